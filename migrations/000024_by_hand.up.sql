-- What somebody may well write in psql, and what would then end replicas, or let tokens live on.

-- A time without a value in a program (infinity, the year 10000) would end each request that reads it, and in the feed
-- of revocations every replica, again after each start: so would `UPDATE sessions SET access_expires_at = 'infinity'`,
-- once that session ends. Up to the year 9000, something can be added to it.
ALTER TABLE users ADD CONSTRAINT users_times_in_range CHECK (
    least(created_at, updated_at, password_changed_at, administered_at) >= timestamptz '1970-01-01 00:00Z'
    AND greatest(created_at, updated_at, password_changed_at, administered_at) < timestamptz '9000-01-01 00:00Z'
) NOT VALID;

-- `sessions_times_ordered` and `sessions_access_within_session` order the others.
ALTER TABLE sessions ADD CONSTRAINT sessions_times_in_range CHECK (
    least(created_at, last_used_at, renewed_at, access_expires_at, ended_at) >= timestamptz '1970-01-01 00:00Z'
    AND greatest(expires_at, last_used_at, renewed_at, ended_at) < timestamptz '9000-01-01 00:00Z'
) NOT VALID;

ALTER TABLE revocations ADD CONSTRAINT revocations_times_in_range CHECK (
    expires_at >= timestamptz '1970-01-01 00:00Z' AND expires_at < timestamptz '10000-01-01 00:00Z'
) NOT VALID;

ALTER TABLE clients ADD CONSTRAINT clients_times_in_range CHECK (
    created_at >= timestamptz '1970-01-01 00:00Z' AND created_at < timestamptz '10000-01-01 00:00Z'
) NOT VALID;

-- `UPDATE users SET roles[0] = …` makes an array that begins at 0, which cannot be read either. `array_lower` is null for
-- an empty one.
ALTER TABLE users ADD CONSTRAINT users_roles_from_one CHECK (
    array_lower(roles, 1) IS NOT DISTINCT FROM CASE WHEN roles <> '{}' THEN 1 END AND array_upper(roles, 2) IS NULL
) NOT VALID;

ALTER TABLE revocations ADD CONSTRAINT revocations_roles_from_one CHECK (
    array_lower(roles, 1) IS NOT DISTINCT FROM CASE WHEN roles <> '{}' THEN 1 END AND array_upper(roles, 2) IS NULL
) NOT VALID;

-- The end of a session revokes its tokens up to this time. Made earlier, it would let them live on.
CREATE FUNCTION keep_access_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE check_violation USING
        MESSAGE = 'access_expires_at is when the last token of the session expires: it does not become earlier',
        HINT = 'To end a session, set ended_at and end_reason, or delete it: replicas then refuse its tokens.',
        SCHEMA = TG_TABLE_SCHEMA,
        TABLE = TG_TABLE_NAME,
        CONSTRAINT = 'sessions_access_not_earlier';
END
$$;

COMMENT ON FUNCTION keep_access_end() IS 'Refuses to make access_expires_at earlier, up to which the end of a session revokes its tokens.';

REVOKE ALL ON FUNCTION keep_access_end() FROM PUBLIC;

CREATE TRIGGER sessions_access_not_earlier BEFORE UPDATE ON sessions
FOR EACH ROW WHEN (NEW.access_expires_at < OLD.access_expires_at) EXECUTE FUNCTION keep_access_end();

-- Somebody's search_path may lead to another table of the name first: a temporary one, or one that they restored beside.
ALTER FUNCTION revoke_session() SET search_path = public, pg_temp;
ALTER FUNCTION revoke_all_sessions() SET search_path = public, pg_temp;
ALTER FUNCTION end_sessions_of_disabled_user() SET search_path = public, pg_temp;
ALTER FUNCTION outdate_tokens() SET search_path = public, pg_temp;
ALTER FUNCTION keep_an_admin() SET search_path = public, pg_temp;
