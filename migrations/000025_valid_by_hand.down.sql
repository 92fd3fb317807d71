ALTER TABLE revocations DROP CONSTRAINT revocations_roles_from_one;
ALTER TABLE users DROP CONSTRAINT users_roles_from_one;
ALTER TABLE clients DROP CONSTRAINT clients_times_in_range;
ALTER TABLE revocations DROP CONSTRAINT revocations_times_in_range;
ALTER TABLE sessions DROP CONSTRAINT sessions_times_in_range;
ALTER TABLE users DROP CONSTRAINT users_times_in_range;

ALTER TABLE users ADD CONSTRAINT users_times_in_range CHECK (
    least(created_at, updated_at, password_changed_at, administered_at) >= timestamptz '1970-01-01 00:00Z'
    AND greatest(created_at, updated_at, password_changed_at, administered_at) < timestamptz '9000-01-01 00:00Z'
) NOT VALID;

ALTER TABLE sessions ADD CONSTRAINT sessions_times_in_range CHECK (
    least(created_at, last_used_at, renewed_at, access_expires_at, ended_at) >= timestamptz '1970-01-01 00:00Z'
    AND greatest(expires_at, last_used_at, renewed_at, ended_at) < timestamptz '9000-01-01 00:00Z'
) NOT VALID;

ALTER TABLE revocations ADD CONSTRAINT revocations_times_in_range CHECK (
    expires_at >= timestamptz '1970-01-01 00:00Z' AND expires_at < timestamptz '10000-01-01 00:00Z'
) NOT VALID;

ALTER TABLE clients ADD CONSTRAINT clients_times_in_range CHECK (
    created_at >= timestamptz '1970-01-01 00:00Z' AND created_at < timestamptz '10000-01-01 00:00Z'
) NOT VALID;

ALTER TABLE users ADD CONSTRAINT users_roles_from_one CHECK (
    array_lower(roles, 1) IS NOT DISTINCT FROM CASE WHEN roles <> '{}' THEN 1 END AND array_upper(roles, 2) IS NULL
) NOT VALID;

ALTER TABLE revocations ADD CONSTRAINT revocations_roles_from_one CHECK (
    array_lower(roles, 1) IS NOT DISTINCT FROM CASE WHEN roles <> '{}' THEN 1 END AND array_upper(roles, 2) IS NULL
) NOT VALID;
