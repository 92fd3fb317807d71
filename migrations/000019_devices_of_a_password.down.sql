DROP FUNCTION is_still_named(uuid, text);
DROP FUNCTION known_device(bytea, text, timestamptz);
DROP FUNCTION login_of(bytea, uuid, timestamptz);
ALTER TABLE login_attempts DROP COLUMN known_for;
