CREATE INDEX users_roles_idx ON users USING gin (roles) WHERE roles <> '{}';

CREATE INDEX users_enabled_admins_idx ON users (id) WHERE 'admin' = ANY(roles) AND NOT disabled;

COMMENT ON INDEX users_roles_idx IS 'Who has a role. Nearly all users have none, and cost nothing here.';
COMMENT ON INDEX users_enabled_admins_idx IS 'Whether an administrator is left.';

CREATE FUNCTION keep_an_admin() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- One after the other, "an admin" in ASCII: who waits here then sees whom the other has left. The rows themselves are
    -- no lock for that: each of two who demote each other has one, and wants the other.
    PERFORM pg_advisory_xact_lock(x'616e2061646d696e'::bigint);
    IF NOT EXISTS (SELECT FROM users WHERE 'admin' = ANY(roles) AND NOT disabled) THEN
        RAISE check_violation USING
            MESSAGE = 'this is the last administrator who is not disabled',
            HINT = 'Give another user the role "admin" first.',
            SCHEMA = TG_TABLE_SCHEMA,
            TABLE = TG_TABLE_NAME,
            CONSTRAINT = 'users_last_admin';
    END IF;
    -- Whoever looks through an older snapshot may have seen one who is none any more: to lock that row is an error then.
    IF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
        PERFORM FROM users WHERE 'admin' = ANY(roles) AND NOT disabled ORDER BY id LIMIT 1 FOR SHARE;
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION keep_an_admin() IS 'Of administrators who are not disabled one stays, whoever takes away the others.';

CREATE TRIGGER users_admin_changed AFTER UPDATE OF roles, disabled ON users
FOR EACH ROW WHEN (
    'admin' = ANY(OLD.roles) AND NOT OLD.disabled AND NOT ('admin' = ANY(NEW.roles) AND NOT NEW.disabled)
)
EXECUTE FUNCTION keep_an_admin();

CREATE TRIGGER users_admin_deleted AFTER DELETE ON users
FOR EACH ROW WHEN ('admin' = ANY(OLD.roles) AND NOT OLD.disabled)
EXECUTE FUNCTION keep_an_admin();
