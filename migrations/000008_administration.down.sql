DROP TRIGGER users_admin_deleted ON users;
DROP TRIGGER users_admin_changed ON users;
DROP FUNCTION keep_an_admin();
DROP INDEX users_enabled_admins_idx;
DROP INDEX users_roles_idx;
