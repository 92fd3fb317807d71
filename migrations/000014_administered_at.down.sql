CREATE OR REPLACE FUNCTION end_sessions_of_disabled_user() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    at CONSTANT timestamptz := CASE WHEN NEW.updated_at > OLD.updated_at THEN NEW.updated_at ELSE now() END;
BEGIN
    PERFORM FROM sessions WHERE user_id = NEW.id AND ended_at IS NULL ORDER BY id FOR UPDATE;
    UPDATE sessions SET ended_at = at, end_reason = 'user_disabled' WHERE user_id = NEW.id AND ended_at IS NULL;
    RETURN NULL;
END
$$;

DROP TRIGGER users_administered ON users;
DROP FUNCTION note_administration();
ALTER TABLE users DROP COLUMN administered_at;

COMMENT ON COLUMN users.updated_at IS 'When the row last changed.';
