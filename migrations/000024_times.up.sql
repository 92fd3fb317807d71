-- A time without a value in a program (infinity, the year 10000) would end each request that reads it, and in the feed
-- of revocations every replica, again after each start: so would `UPDATE sessions SET access_expires_at = 'infinity'`,
-- once that session ends.
ALTER TABLE users ADD CONSTRAINT users_times_in_range CHECK (
    least(created_at, updated_at, password_changed_at, administered_at) >= timestamptz '1970-01-01 00:00Z'
    AND greatest(created_at, updated_at, password_changed_at, administered_at) < timestamptz '10000-01-01 00:00Z'
) NOT VALID;

-- `sessions_times_ordered` and `sessions_access_within_session` order the others.
ALTER TABLE sessions ADD CONSTRAINT sessions_times_in_range CHECK (
    least(created_at, last_used_at, renewed_at, access_expires_at, ended_at) >= timestamptz '1970-01-01 00:00Z'
    AND greatest(expires_at, last_used_at, renewed_at, ended_at) < timestamptz '10000-01-01 00:00Z'
) NOT VALID;

ALTER TABLE revocations ADD CONSTRAINT revocations_times_in_range CHECK (
    expires_at >= timestamptz '1970-01-01 00:00Z' AND expires_at < timestamptz '10000-01-01 00:00Z'
) NOT VALID;

ALTER TABLE clients ADD CONSTRAINT clients_times_in_range CHECK (
    created_at >= timestamptz '1970-01-01 00:00Z' AND created_at < timestamptz '10000-01-01 00:00Z'
) NOT VALID;
