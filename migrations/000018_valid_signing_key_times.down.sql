ALTER TABLE signing_keys DROP CONSTRAINT signing_keys_times_in_range;
ALTER TABLE signing_keys ADD CONSTRAINT signing_keys_times_in_range CHECK (
    least(published_at, activated_at, retired_at, verifies_until) >= timestamptz '2000-01-01 00:00Z'
    AND greatest(published_at, activated_at, retired_at, verifies_until) < timestamptz '10000-01-01 00:00Z'
) NOT VALID;
