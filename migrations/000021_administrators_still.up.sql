-- An administrator whose rights are being taken away has requests under way that were admitted with them. What these
-- change is decided with the change itself, or they would give the rights back.
CREATE FUNCTION caused_by(actor text, request_id text, administrator uuid, target uuid) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF administrator IS NOT NULL THEN
        -- Both rows before anything else, and in one order: of two administrators who take each other's rights away, one
        -- waits here, and then has none.
        PERFORM FROM users WHERE id IN (administrator, target) ORDER BY id FOR NO KEY UPDATE;
        -- Looks again, at what there is once it has waited.
        IF NOT EXISTS (SELECT FROM users WHERE id = administrator AND 'admin' = ANY(roles) AND NOT disabled) THEN
            RAISE insufficient_privilege USING
                MESSAGE = 'this user is not an administrator any more',
                CONSTRAINT = 'caused_by_administrator';
        END IF;
    END IF;
    RETURN caused_by(actor, request_id);
END
$$;

COMMENT ON FUNCTION caused_by(text, text, uuid, uuid) IS 'As with two parameters. If an administrator is given, they are locked together with the user whom they change, and have to be one still.';
