ALTER FUNCTION history_columns(jsonb, text[]) CALLED ON NULL INPUT;
DROP FUNCTION attempt_login(timestamptz, bytea[], interval[], interval[], bytea, bytea, text);

-- Reads users only where somebody has logged in under that name. Everywhere else, a name that nobody has takes the same
-- time as any other.
CREATE FUNCTION known_device(device bytea, name text, at timestamptz) RETURNS bytea
LANGUAGE plpgsql STABLE STRICT
-- As for take_login_attempt.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
DECLARE
    login CONSTANT bytea := (SELECT known_for FROM login_attempts WHERE key = substr(device, 1, 16) AND expires_at > at);
BEGIN
    IF login IS NOT NULL AND login = (
        SELECT login_of(device, id, password_changed_at) FROM users WHERE username_key = name OR email_key = name
    ) THEN
        RETURN substr(device, 1, 16);
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION known_device(bytea, text, timestamptz) IS 'The key of the device if it is known for the user with this name, in its case-insensitive form, and for the password that they have now.';

-- Looks when it is called, which is after a login attempt has taken its places, and perhaps waited for them. The
-- statement that calls it sees the users as they were before.
CREATE FUNCTION is_still_named(user_id uuid, name text) RETURNS boolean
LANGUAGE plpgsql VOLATILE
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
BEGIN
    RETURN EXISTS (SELECT FROM users WHERE id = user_id AND name IN (username_key, email_key));
END
$$;

COMMENT ON FUNCTION is_still_named(uuid, text) IS 'Whether this is at this moment a name of the user, in its case-insensitive form.';
