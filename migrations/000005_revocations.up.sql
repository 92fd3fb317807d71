ALTER TABLE sessions ADD COLUMN access_expires_at timestamptz;

-- How long the tokens before this were good, nobody wrote down: no longer than the session.
UPDATE sessions SET access_expires_at = expires_at;

ALTER TABLE sessions
ALTER COLUMN access_expires_at SET NOT NULL,
ADD CONSTRAINT sessions_access_within_session CHECK (access_expires_at <= expires_at);

COMMENT ON COLUMN sessions.access_expires_at IS 'When the last of the access tokens that the session has been given ends.';

CREATE TABLE revocations (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id bigint GENERATED ALWAYS AS IDENTITY,
    session_id uuid,
    user_id uuid,
    roles text[],
    expires_at timestamptz NOT NULL,

    CONSTRAINT revocations_pkey PRIMARY KEY (xid, id),
    CONSTRAINT revocations_session_or_user CHECK ((session_id IS NULL) <> (user_id IS NULL)),
    CONSTRAINT revocations_roles_of_user CHECK ((roles IS NULL) = (user_id IS NULL))
);

CREATE INDEX revocations_expires_at_idx ON revocations (expires_at);
CREATE INDEX revocations_user_id_idx ON revocations (user_id) WHERE user_id IS NOT NULL;

COMMENT ON TABLE revocations IS 'What every replica has to know of access tokens that are still alive: sessions that have ended, users whose roles have changed.';
COMMENT ON COLUMN revocations.xid IS 'The transaction that wrote the row: readers ask for those that had not committed when they last looked.';
COMMENT ON COLUMN revocations.id IS 'Rises with each row; of two rows about one user the higher is the later.';
COMMENT ON COLUMN revocations.session_id IS 'The session that has ended.';
COMMENT ON COLUMN revocations.user_id IS 'The user whose roles have changed.';
COMMENT ON COLUMN revocations.roles IS 'The user''s roles since: tokens with others are outdated.';
COMMENT ON COLUMN revocations.expires_at IS 'When the last access token that this is about ends.';
COMMENT ON INDEX revocations_expires_at_idx IS 'What can be forgotten.';
COMMENT ON INDEX revocations_user_id_idx IS 'What is known of a user whose roles change once more.';

CREATE FUNCTION revoke_session() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO revocations (session_id, expires_at) VALUES (OLD.id, OLD.access_expires_at);
    PERFORM pg_notify('gatepass_revocations', '');
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION revoke_session() IS 'Tells every replica that a session is over, whoever ended it.';

CREATE TRIGGER sessions_ended AFTER UPDATE OF ended_at ON sessions
FOR EACH ROW WHEN (OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL)
EXECUTE FUNCTION revoke_session();

-- The minute is for a database whose clock is ahead of the replicas'.
CREATE TRIGGER sessions_deleted AFTER DELETE ON sessions
FOR EACH ROW WHEN (OLD.ended_at IS NULL AND OLD.access_expires_at > now() - interval '1 minute')
EXECUTE FUNCTION revoke_session();

CREATE FUNCTION revoke_all_sessions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO revocations (session_id, expires_at) SELECT id, access_expires_at FROM sessions WHERE ended_at IS NULL;
    PERFORM pg_notify('gatepass_revocations', '');
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION revoke_all_sessions() IS 'Tells every replica that all sessions are over.';

CREATE TRIGGER sessions_truncated BEFORE TRUNCATE ON sessions
EXECUTE FUNCTION revoke_all_sessions();

CREATE FUNCTION end_sessions_of_disabled_user() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    at CONSTANT timestamptz := CASE WHEN NEW.updated_at > OLD.updated_at THEN NEW.updated_at ELSE now() END;
BEGIN
    PERFORM FROM sessions WHERE user_id = NEW.id AND ended_at IS NULL ORDER BY id FOR UPDATE;
    UPDATE sessions SET ended_at = at, end_reason = 'user_disabled' WHERE user_id = NEW.id AND ended_at IS NULL;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION end_sessions_of_disabled_user() IS 'A disabled user has no sessions, whoever disabled them.';

CREATE TRIGGER users_disabled AFTER UPDATE OF disabled ON users
FOR EACH ROW WHEN (NEW.disabled AND NOT OLD.disabled)
EXECUTE FUNCTION end_sessions_of_disabled_user();

CREATE FUNCTION outdate_tokens() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- A renewal under way may hand out the former roles for one more life of a token; the minute is for its clock.
    -- Replicas that still know of a change before this one have to hear of this one too, sessions or not: they would hold
    -- the next login to the roles of then.
    INSERT INTO revocations (user_id, roles, expires_at)
    SELECT NEW.id, NEW.roles, max(until) FROM (
        SELECT greatest(max(access_expires_at), now() + max(access_expires_at - renewed_at) + interval '1 minute')
        FROM sessions WHERE user_id = NEW.id AND ended_at IS NULL
        UNION ALL
        SELECT expires_at + interval '1 minute' FROM revocations WHERE user_id = NEW.id
    ) AS known (until)
    HAVING max(until) IS NOT NULL;
    IF FOUND THEN
        PERFORM pg_notify('gatepass_revocations', '');
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION outdate_tokens() IS 'Tells every replica which roles the tokens of a user have to have.';

CREATE TRIGGER users_roles_changed AFTER UPDATE OF roles ON users
FOR EACH ROW WHEN (OLD.roles IS DISTINCT FROM NEW.roles)
EXECUTE FUNCTION outdate_tokens();
