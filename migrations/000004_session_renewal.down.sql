COMMENT ON TABLE sessions IS 'Logins that go on. One row for each, from login until it ends.';

-- Without these columns they would go on.
DELETE FROM sessions WHERE ended_at IS NOT NULL;

ALTER TABLE sessions
DROP COLUMN renewed_at,
DROP COLUMN is_confirmed,
DROP COLUMN ended_at,
DROP COLUMN end_reason;
