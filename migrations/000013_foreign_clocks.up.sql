CREATE OR REPLACE FUNCTION take_login_attempt(
    at timestamptz, keys bytea[], spacings interval[], spans interval[], account bytea, device bytea,
    OUT again_at timestamptz, OUT is_device_known boolean
) LANGUAGE plpgsql
-- Planned once for each connection: to plan at each call was half of what it took. No plan may be one that reads all of
-- the table then, though it may be made while the table is small: every row is looked up by its key.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
DECLARE
    leeway CONSTANT interval := '30 seconds';
BEGIN
    -- Nobody waits for the disk, and for those who hold the row meanwhile. A server that crashes forgets the attempts of
    -- its last half second.
    PERFORM set_config('synchronous_commit', 'off', true);

    is_device_known := coalesce((SELECT expires_at FROM login_attempts WHERE key = device) > at, false);
    IF is_device_known THEN
        keys := array_replace(keys, account, device);
    END IF;

    -- Nearly all that is refused is refused here, and nothing is written for it. All places are free again within the span,
    -- whatever happens: a later time was written by a clock that is ahead of ours, and would lock out everybody else for as
    -- long as it is. It counts as if there were none.
    SELECT max((
        SELECT free_at FROM login_attempts WHERE key = bucket.key AND free_at <= at + bucket.span + leeway
    ) + bucket.spacing - bucket.span) INTO again_at
    FROM unnest(keys, spacings, spans) AS bucket (key, spacing, span);
    IF again_at > at THEN
        RETURN;
    END IF;

    WITH taken AS (
        INSERT INTO login_attempts AS present (key, free_at, expires_at)
        SELECT key, at + spacing, at + spacing
        FROM unnest(keys, spacings) WITH ORDINALITY AS bucket (key, spacing, place)
        ORDER BY place
        ON CONFLICT (key) DO UPDATE SET
            free_at = (excluded.free_at - at) + CASE
                WHEN present.free_at <= at + spans[array_position(keys, present.key)] + leeway
                THEN greatest(present.free_at, at) ELSE at
            END,
            expires_at = greatest(present.expires_at, (excluded.free_at - at) + CASE
                WHEN present.free_at <= at + spans[array_position(keys, present.key)] + leeway
                THEN greatest(present.free_at, at) ELSE at
            END)
        RETURNING key, free_at
    )
    SELECT max(free_at - span) INTO again_at
    FROM unnest(keys, spans) AS bucket (key, span)
    JOIN taken USING (key);
    IF again_at > at THEN
        -- Others were faster. What was taken is given back before anybody has seen it.
        UPDATE login_attempts SET free_at = free_at - spacings[array_position(keys, key)] WHERE key = ANY (keys);
        RETURN;
    END IF;
    again_at := NULL;
END
$$;
