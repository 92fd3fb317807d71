CREATE TABLE login_attempts (
    key bytea CONSTRAINT login_attempts_pkey PRIMARY KEY,
    free_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,

    CONSTRAINT login_attempts_key_length CHECK (octet_length(key) = 16),
    CONSTRAINT login_attempts_expires_when_free CHECK (free_at <= expires_at)
);

CREATE INDEX login_attempts_expires_at_idx ON login_attempts (expires_at);

COMMENT ON TABLE login_attempts IS 'Failed attempts of late. One row for each account name, address and known device that has had any, and for each known device; no row is as good as one without attempts.';
COMMENT ON COLUMN login_attempts.key IS 'Whose they are: 16 bytes of a hash of the account name, the address or both, under a key that the database does not have.';
COMMENT ON COLUMN login_attempts.free_at IS 'When all places are free again. Each attempt moves it on by the time in which one place becomes free.';
COMMENT ON COLUMN login_attempts.expires_at IS 'When the row can be forgotten: once all places are free, and for a device once it counts as known no more.';
COMMENT ON INDEX login_attempts_expires_at_idx IS 'What can be forgotten.';

CREATE FUNCTION take_login_attempt(
    at timestamptz, keys bytea[], spacings interval[], spans interval[], account bytea, device bytea,
    OUT again_at timestamptz, OUT is_device_known boolean
) LANGUAGE plpgsql
-- A plan that is kept from when the table was small would read all of it once it is large.
SET plan_cache_mode = force_custom_plan
AS $$
BEGIN
    is_device_known := EXISTS (SELECT FROM login_attempts WHERE key = device AND expires_at > at);
    IF is_device_known THEN
        keys := array_replace(keys, account, device);
    END IF;

    -- Nearly all that is refused is refused here, and nothing is written for it.
    SELECT max(free_at + spacing - span) INTO again_at
    FROM unnest(keys, spacings, spans) AS bucket (key, spacing, span)
    JOIN login_attempts USING (key);
    IF again_at > at THEN
        RETURN;
    END IF;

    WITH taken AS (
        INSERT INTO login_attempts AS present (key, free_at, expires_at)
        SELECT key, at + spacing, at + spacing
        FROM unnest(keys, spacings) AS bucket (key, spacing)
        ORDER BY key
        ON CONFLICT (key) DO UPDATE SET
            free_at = greatest(present.free_at, at) + (excluded.free_at - at),
            expires_at = greatest(present.expires_at, greatest(present.free_at, at) + (excluded.free_at - at))
        RETURNING key, free_at
    )
    SELECT max(free_at - span) INTO again_at
    FROM unnest(keys, spans) AS bucket (key, span)
    JOIN taken USING (key);
    IF again_at > at THEN
        -- Others were faster. What was taken is given back before anybody has seen it.
        UPDATE login_attempts SET free_at = free_at - spacing
        FROM unnest(keys, spacings) AS bucket (key, spacing)
        WHERE login_attempts.key = bucket.key;
        RETURN;
    END IF;
    again_at := NULL;
END
$$;

COMMENT ON FUNCTION take_login_attempt(timestamptz, bytea[], interval[], interval[], bytea, bytea) IS 'Takes a place from each of the keys, or from none: then again_at says when to come back. A device that is known stands in for the account.';
