-- As the triggers of users, in the migration before.
CREATE OR REPLACE TRIGGER sessions_ended AFTER UPDATE ON sessions
FOR EACH ROW WHEN (OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL)
EXECUTE FUNCTION revoke_session();
