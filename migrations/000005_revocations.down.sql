DROP TRIGGER users_roles_changed ON users;
DROP FUNCTION outdate_tokens();
DROP TRIGGER users_disabled ON users;
DROP FUNCTION end_sessions_of_disabled_user();
DROP TRIGGER sessions_deleted ON sessions;
DROP TRIGGER sessions_ended ON sessions;
DROP FUNCTION revoke_session();
DROP TABLE revocations;
ALTER TABLE sessions DROP COLUMN access_expires_at;
