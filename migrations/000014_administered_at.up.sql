ALTER TABLE users ADD COLUMN administered_at timestamptz;

COMMENT ON COLUMN users.administered_at IS 'As of when roles and disabled are so, which users cannot change themselves; null: as updated_at.';
COMMENT ON COLUMN users.updated_at IS 'As of when all else is so: the last change here, or the date of the record that was imported last.';

CREATE FUNCTION note_administration() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Whoever says when, knows: an import, whose records have their own dates. By hand it is now, also where updated_at stays.
    IF NEW.administered_at IS NOT DISTINCT FROM OLD.administered_at THEN
        NEW.administered_at := CASE
            WHEN (NEW.roles, NEW.disabled) IS NOT DISTINCT FROM (OLD.roles, OLD.disabled)
            THEN coalesce(OLD.administered_at, OLD.updated_at)
            WHEN NEW.updated_at > OLD.updated_at THEN greatest(NEW.updated_at, OLD.administered_at)
            ELSE greatest(now(), coalesce(OLD.administered_at, OLD.updated_at))
        END;
    END IF;
    RETURN NEW;
END
$$;

COMMENT ON FUNCTION note_administration() IS 'Tells what an administrator has changed of a user from what the user has, so that the latter keeps no record of another system from disabling them.';

CREATE TRIGGER users_administered BEFORE UPDATE ON users
FOR EACH ROW EXECUTE FUNCTION note_administration();

CREATE OR REPLACE FUNCTION end_sessions_of_disabled_user() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    at CONSTANT timestamptz := CASE WHEN NEW.updated_at > OLD.updated_at THEN NEW.updated_at ELSE now() END;
BEGIN
    PERFORM FROM sessions WHERE user_id = NEW.id AND ended_at IS NULL ORDER BY id FOR UPDATE;
    -- What an import brings may be years old: the user was disabled before the session began.
    UPDATE sessions SET ended_at = greatest(at, last_used_at), end_reason = 'user_disabled'
    WHERE user_id = NEW.id AND ended_at IS NULL;
    RETURN NULL;
END
$$;
