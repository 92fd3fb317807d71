DROP TABLE imports;

DROP TRIGGER users_history ON users;
CREATE TRIGGER users_history AFTER INSERT OR UPDATE OR DELETE ON users
FOR EACH ROW EXECUTE FUNCTION record_change(
    '{roles,is_email_verified,disabled,password_changed_at,created_at}', '{username,email,full_name}', '{password_hash}'
);

ALTER TABLE users DROP COLUMN external_id;
