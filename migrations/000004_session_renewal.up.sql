ALTER TABLE sessions
ADD COLUMN renewed_at timestamptz,
ADD COLUMN is_confirmed boolean NOT NULL DEFAULT false,
ADD COLUMN ended_at timestamptz,
ADD COLUMN end_reason text;

UPDATE sessions SET renewed_at = created_at;

ALTER TABLE sessions
ALTER COLUMN renewed_at SET NOT NULL,
ALTER COLUMN is_confirmed DROP DEFAULT,
ADD CONSTRAINT sessions_end_reason_known CHECK (
    end_reason IN ('logout', 'revoked', 'password_changed', 'user_disabled', 'refresh_token_reused')
),
ADD CONSTRAINT sessions_end_has_reason CHECK ((ended_at IS NULL) = (end_reason IS NULL));

COMMENT ON TABLE sessions IS 'Logins. One row for each, from login until a while after its end.';
COMMENT ON COLUMN sessions.renewed_at IS 'When the present generation began: the last renewal, or the login.';
COMMENT ON COLUMN sessions.is_confirmed IS 'Whether a token of the present generation has been seen: then whoever renewed has got the answer.';
COMMENT ON COLUMN sessions.ended_at IS 'When the session was ended; null: it goes on until it expires.';
COMMENT ON COLUMN sessions.end_reason IS 'Why it was ended.';
