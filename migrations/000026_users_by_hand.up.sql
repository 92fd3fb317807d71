-- `AFTER UPDATE OF disabled` looks at which columns the statement names, not at what a BEFORE trigger of somebody's own
-- has changed.
CREATE OR REPLACE TRIGGER users_disabled AFTER UPDATE ON users
FOR EACH ROW WHEN (NEW.disabled AND NOT OLD.disabled)
EXECUTE FUNCTION end_sessions_of_disabled_user();

CREATE OR REPLACE TRIGGER users_roles_changed AFTER UPDATE ON users
FOR EACH ROW WHEN (OLD.roles IS DISTINCT FROM NEW.roles)
EXECUTE FUNCTION outdate_tokens();

CREATE OR REPLACE TRIGGER users_admin_changed AFTER UPDATE ON users
FOR EACH ROW WHEN (
    'admin' = ANY(OLD.roles) AND NOT OLD.disabled AND NOT ('admin' = ANY(NEW.roles) AND NOT NEW.disabled)
)
EXECUTE FUNCTION keep_an_admin();
