CREATE OR REPLACE FUNCTION attempt_login(
    at timestamptz, keys bytea[], spacings interval[], spans interval[], account bytea, device bytea, name text,
    OUT again_at timestamptz, OUT is_device_known boolean, OUT who users
) LANGUAGE plpgsql
-- Planned once for each connection: to plan at each call was half of what it took. No plan may be one that reads all of
-- a table then, though it may be made while the table is small: every row is looked up by a key.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
DECLARE
    leeway CONSTANT interval := '30 seconds';
    login CONSTANT bytea := (SELECT known_for FROM login_attempts WHERE key = substr(device, 1, 16) AND expires_at > at);
BEGIN
    -- Reads users only where somebody has logged in under that name. Everywhere else, a name that nobody has takes the
    -- same time as any other.
    is_device_known := login IS NOT NULL AND coalesce(login = (
        SELECT login_of(device, id, password_changed_at) FROM users WHERE username_key = name OR email_key = name
    ), false);
    IF is_device_known THEN
        keys := array_replace(keys, account, substr(device, 1, 16));
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

    -- Nobody waits for the disk, and for those who hold the row meanwhile. A server that crashes forgets the attempts of
    -- its last half second.
    PERFORM set_config('synchronous_commit', 'off', true);
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

    -- Only now, with a snapshot of its own: the attempt may have waited for its places until a change of this name was
    -- over, and nobody's failures count under the former one any more. Nor is anybody looked up for a refusal.
    SELECT users.* INTO who FROM users WHERE username_key = name OR email_key = name;
END
$$;

CREATE OR REPLACE FUNCTION caused_by(actor text, request_id text, administrator uuid, target uuid) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF administrator IS NOT NULL THEN
        -- Both rows before anything else, and in one order: of two administrators who take each other's rights away, one
        -- waits here, and then has none.
        PERFORM FROM users WHERE id IN (administrator, target) ORDER BY id FOR NO KEY UPDATE;
        -- Looks again, at what there is once it has waited.
        IF NOT EXISTS (SELECT FROM users WHERE id = administrator AND 'admin' = ANY(roles) AND NOT disabled) THEN
            RAISE insufficient_privilege USING
                MESSAGE = 'this user is not an administrator any more',
                CONSTRAINT = 'caused_by_administrator';
        END IF;
    END IF;
    RETURN caused_by(actor, request_id);
END
$$;
