DROP FUNCTION take_login_attempt(timestamptz, bytea[], interval[], interval[], bytea, bytea);
DROP TABLE login_attempts;
