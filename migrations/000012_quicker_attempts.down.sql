CREATE OR REPLACE FUNCTION take_login_attempt(
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
