-- The functions below run as the owner of the schema. Nobody else may put functions beside them that would be called in
-- their place; from Postgres 15 on that is the default.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;

CREATE SEQUENCE history_id_seq;

CREATE TABLE history (
    id bigint NOT NULL DEFAULT nextval('history_id_seq'),
    table_name text COLLATE "C" NOT NULL,
    operation text COLLATE "C" NOT NULL,
    row_id text COLLATE "C",
    user_id uuid,
    changed_data jsonb NOT NULL,
    personal_hash bytea,
    changed_at timestamptz NOT NULL,
    actor text COLLATE "C",
    request_id text COLLATE "C",
    database_user text COLLATE "C" NOT NULL,

    CONSTRAINT history_pkey PRIMARY KEY (id, changed_at),
    CONSTRAINT history_operation_known CHECK (operation IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'DROP')),
    CONSTRAINT history_personal_hash_length CHECK (octet_length(personal_hash) = 32)
) PARTITION BY RANGE (changed_at);

ALTER SEQUENCE history_id_seq OWNED BY history.id;

CREATE INDEX history_user_id_idx ON history (user_id, id);
CREATE INDEX history_table_name_idx ON history (table_name, id);

-- A month whose partition is missing never keeps a writer waiting.
CREATE TABLE history_default PARTITION OF history DEFAULT;

COMMENT ON TABLE history IS 'What was changed, by whom. One row for each row changed in users, sessions (beginning and end), signing_keys and clients, whoever changed it; rows are added and never changed.';
COMMENT ON COLUMN history.id IS 'Rises with each row, though not in the order in which they commit.';
COMMENT ON COLUMN history.table_name IS 'Where something changed.';
COMMENT ON COLUMN history.operation IS 'What was done to the row, TRUNCATE to all of them; DROP: a month of the history itself was given up.';
COMMENT ON COLUMN history.row_id IS 'The row''s primary key; of a DROP, the partition; null: every row.';
COMMENT ON COLUMN history.user_id IS 'Whose account it is about; null: nobody''s.';
COMMENT ON COLUMN history.changed_data IS 'Columns "before" and "after", of an UPDATE only those that changed; "hidden" names those that changed too and whose values are secret. Nothing of a person but ids.';
COMMENT ON COLUMN history.personal_hash IS 'SHA-256 of the salt and the text of the row''s personal data, which may be gone; null: it never had any.';
COMMENT ON COLUMN history.changed_at IS 'When, by the database''s clock.';
COMMENT ON COLUMN history.actor IS 'Who, as the service says: a user''s id, "cli:" and the name of a user of the operating system, or "service"; null: nobody said, as in psql.';
COMMENT ON COLUMN history.request_id IS 'The request that asked for it.';
COMMENT ON COLUMN history.database_user IS 'Who was logged in to the database.';
COMMENT ON INDEX history_user_id_idx IS 'What happened to an account, newest first.';
COMMENT ON INDEX history_table_name_idx IS 'What happened in a table, newest first.';
COMMENT ON SEQUENCE history_id_seq IS 'Numbers the history.';

CREATE TABLE history_personal (
    history_id bigint CONSTRAINT history_personal_pkey PRIMARY KEY,
    user_id uuid NOT NULL,
    salt uuid NOT NULL,
    changed_data jsonb NOT NULL
);

CREATE INDEX history_personal_user_id_idx ON history_personal (user_id);

COMMENT ON TABLE history_personal IS 'What the history knows of persons. It goes when the user goes; the row of the history stays.';
COMMENT ON COLUMN history_personal.history_id IS 'The row of the history that it belongs to.';
COMMENT ON COLUMN history_personal.user_id IS 'Whose it is.';
COMMENT ON COLUMN history_personal.salt IS '122 random bits, so that nobody finds out by guessing what the hash in the history was made of.';
COMMENT ON COLUMN history_personal.changed_data IS 'As in the history: names, e-mail address, address and browser.';
COMMENT ON INDEX history_personal_user_id_idx IS 'What goes when the user goes.';

CREATE TABLE history_unsealed (
    id bigint CONSTRAINT history_unsealed_pkey PRIMARY KEY
);

COMMENT ON TABLE history_unsealed IS 'Rows of the history that wait for the next seal. A row that commits late is here with the others, whatever its number.';
COMMENT ON COLUMN history_unsealed.id IS 'The row of the history.';

CREATE TABLE history_seals (
    number bigint CONSTRAINT history_seals_pkey PRIMARY KEY,
    ids int8multirange NOT NULL,
    row_hashes bytea,
    rows_hash bytea NOT NULL,
    hash bytea NOT NULL,
    sealed_at timestamptz NOT NULL,

    CONSTRAINT history_seals_number_positive CHECK (number > 0),
    CONSTRAINT history_seals_ids_not_empty CHECK (NOT isempty(ids)),
    CONSTRAINT history_seals_row_hashes_length CHECK (octet_length(row_hashes) % 32 = 0),
    CONSTRAINT history_seals_rows_hash_length CHECK (octet_length(rows_hash) = 32),
    CONSTRAINT history_seals_hash_length CHECK (octet_length(hash) = 32)
);

COMMENT ON TABLE history_seals IS 'The chain that shows what was done to the history afterwards. One row for each batch.';
COMMENT ON COLUMN history_seals.number IS 'Its place in the chain, from 1 on without gaps.';
COMMENT ON COLUMN history_seals.ids IS 'The rows of the history that it seals; a row is in one seal.';
COMMENT ON COLUMN history_seals.row_hashes IS 'SHA-256 of each of them, 32 bytes each, in the order of their ids; null: the rows were given up with their month.';
COMMENT ON COLUMN history_seals.rows_hash IS 'SHA-256 of row_hashes.';
COMMENT ON COLUMN history_seals.hash IS 'SHA-256 of the hash of the seal before, the number, the time and rows_hash.';
COMMENT ON COLUMN history_seals.sealed_at IS 'When, by the database''s clock.';

-- The functions that write run as the owner of the schema, and nobody else may call them or make triggers of them. So a
-- role that serves needs no right to write to the history, and may not be given any. It needs SELECT on all four tables,
-- INSERT on history_seals, DELETE on history_unsealed, and EXECUTE on prepare_history and drop_history.

CREATE FUNCTION caused_by(actor text, request_id text) RETURNS boolean LANGUAGE sql AS $$
    SELECT set_config('gatepass.actor', coalesce(actor, ''), true) IS NOT NULL
        AND set_config('gatepass.request_id', coalesce(request_id, ''), true) IS NOT NULL
$$;

COMMENT ON FUNCTION caused_by(text, text) IS 'Says who acts, until the end of the transaction. Always true, for the WHERE of the statement that changes something: (SELECT caused_by(…)).';

-- In PL/pgSQL, which plans it once and not at every call.
CREATE FUNCTION history_columns(whole jsonb, names text[]) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN (SELECT jsonb_object_agg(name, whole -> name) FROM unnest(names) AS name WHERE whole IS NOT NULL);
END
$$;

COMMENT ON FUNCTION history_columns(jsonb, text[]) IS 'Of a row these columns and no other; null when there are none.';

CREATE FUNCTION write_history(
    table_name text, operation text, old_row jsonb, new_row jsonb, shown text[], personal text[], secret text[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    this_row CONSTANT jsonb := coalesce(new_row, old_row);
    whose CONSTANT uuid := CASE table_name WHEN 'users' THEN this_row ->> 'id' ELSE this_row ->> 'user_id' END;
    personal_data jsonb;
    salt CONSTANT uuid := gen_random_uuid();
    changed text[];
    hidden text[];
    new_id bigint;
BEGIN
    IF operation = 'UPDATE' THEN
        changed := ARRAY(
            SELECT name FROM unnest(shown || personal || secret) AS name
            WHERE old_row -> name IS DISTINCT FROM new_row -> name
        );
        IF changed = '{}' THEN
            RETURN;
        END IF;
        hidden := ARRAY(SELECT name FROM unnest(secret) AS name WHERE name = ANY (changed));
        shown := ARRAY(SELECT name FROM unnest(shown) AS name WHERE name = ANY (changed));
        personal := ARRAY(SELECT name FROM unnest(personal) AS name WHERE name = ANY (changed));
    END IF;
    -- What is deleted was there before.
    IF operation IN ('INSERT', 'UPDATE') AND personal <> '{}' THEN
        personal_data := jsonb_build_object(
            'before', history_columns(old_row, personal), 'after', history_columns(new_row, personal)
        );
    END IF;

    INSERT INTO history (
        table_name, operation, row_id, user_id, changed_data, personal_hash, changed_at, actor, request_id, database_user
    ) VALUES (
        table_name, operation, this_row ->> 'id', whose,
        jsonb_build_object('before', history_columns(old_row, shown), 'after', history_columns(new_row, shown))
            || CASE WHEN hidden <> '{}' THEN jsonb_build_object('hidden', hidden) ELSE '{}' END,
        sha256(uuid_send(salt) || convert_to(personal_data::text, 'UTF8')),
        clock_timestamp(),
        nullif(left(current_setting('gatepass.actor', true), 128), ''),
        nullif(left(current_setting('gatepass.request_id', true), 128), ''),
        session_user
    ) RETURNING id INTO new_id;
    IF personal_data IS NOT NULL THEN
        INSERT INTO history_personal (history_id, user_id, salt, changed_data)
        VALUES (new_id, whose, salt, personal_data);
    END IF;
    INSERT INTO history_unsealed (id) VALUES (new_id);
END
$$;

COMMENT ON FUNCTION write_history(text, text, jsonb, jsonb, text[], text[], text[]) IS 'Writes one row of the history, of an UPDATE that changed any of these columns.';
CREATE FUNCTION record_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    -- As the database is set, not the session: whoever may change rows may also say SET.
    IF EXISTS (
        SELECT FROM pg_db_role_setting AS setting JOIN pg_database AS database ON database.oid = setting.setdatabase
        WHERE database.datname = current_database() AND setting.setrole = 0
            AND 'gatepass.history=lenient' = ANY(setting.setconfig)
    ) THEN
        BEGIN
            PERFORM write_history(
                TG_TABLE_NAME, TG_OP, to_jsonb(OLD), to_jsonb(NEW),
                TG_ARGV[0]::text[], TG_ARGV[1]::text[], TG_ARGV[2]::text[]
            );
        EXCEPTION WHEN OTHERS THEN
            RAISE WARNING 'the history does not know of this % in %: %', TG_OP, TG_TABLE_NAME, SQLERRM;
        END;
    ELSE
        PERFORM write_history(
            TG_TABLE_NAME, TG_OP, to_jsonb(OLD), to_jsonb(NEW),
            TG_ARGV[0]::text[], TG_ARGV[1]::text[], TG_ARGV[2]::text[]
        );
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION record_change() IS 'Writes a change into the history. Its arguments name columns: those that are shown, those that are personal, those that are secret. What is not named does not get there.';

-- A column is named, or the history does not know it. A migration that adds one decides.

CREATE TRIGGER users_history AFTER INSERT OR UPDATE OR DELETE ON users
FOR EACH ROW EXECUTE FUNCTION record_change(
    '{roles,is_email_verified,disabled,password_changed_at,created_at}', '{username,email,full_name}', '{password_hash}'
);

CREATE TRIGGER sessions_history_begun AFTER INSERT ON sessions
FOR EACH ROW EXECUTE FUNCTION record_change(
    '{user_id,created_at,expires_at,ended_at,end_reason}', '{user_agent,client_ip}', '{}'
);

CREATE TRIGGER sessions_history_ended AFTER UPDATE OF user_id, expires_at, ended_at, end_reason ON sessions
FOR EACH ROW WHEN (
    (OLD.user_id, OLD.expires_at, OLD.ended_at, OLD.end_reason)
    IS DISTINCT FROM (NEW.user_id, NEW.expires_at, NEW.ended_at, NEW.end_reason)
)
EXECUTE FUNCTION record_change('{user_id,expires_at,ended_at,end_reason}', '{}', '{}');

-- Of one that had ended, the history knows the end already.
CREATE TRIGGER sessions_history_deleted AFTER DELETE ON sessions
FOR EACH ROW WHEN (OLD.ended_at IS NULL)
EXECUTE FUNCTION record_change('{user_id,created_at,expires_at}', '{}', '{}');

CREATE TRIGGER signing_keys_history AFTER INSERT OR UPDATE OR DELETE ON signing_keys
FOR EACH ROW EXECUTE FUNCTION record_change(
    '{format,public_key,wrapped_by,token_seconds,published_at,activated_at,retired_at,verifies_until}',
    '{}', '{wrapped_key}'
);

CREATE TRIGGER clients_history AFTER INSERT OR UPDATE OR DELETE ON clients
FOR EACH ROW EXECUTE FUNCTION record_change('{name,created_at}', '{}', '{secret_hash}');

CREATE TRIGGER users_history_truncated AFTER TRUNCATE ON users
FOR EACH STATEMENT EXECUTE FUNCTION record_change('{}', '{}', '{}');
CREATE TRIGGER sessions_history_truncated AFTER TRUNCATE ON sessions
FOR EACH STATEMENT EXECUTE FUNCTION record_change('{}', '{}', '{}');
CREATE TRIGGER signing_keys_history_truncated AFTER TRUNCATE ON signing_keys
FOR EACH STATEMENT EXECUTE FUNCTION record_change('{}', '{}', '{}');
CREATE TRIGGER clients_history_truncated AFTER TRUNCATE ON clients
FOR EACH STATEMENT EXECUTE FUNCTION record_change('{}', '{}', '{}');

CREATE FUNCTION forget_person() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    DELETE FROM history_personal WHERE TG_OP = 'TRUNCATE' OR user_id = OLD.id;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION forget_person() IS 'Takes what is personal out of the history when a user goes, whoever deletes them.';

CREATE TRIGGER users_history_forget AFTER DELETE ON users FOR EACH ROW EXECUTE FUNCTION forget_person();
CREATE TRIGGER users_history_forget_all AFTER TRUNCATE ON users FOR EACH STATEMENT EXECUTE FUNCTION forget_person();

-- Attached, not made as partitions at once: that would make writers wait for whoever reads. For the same reason it gives
-- up after a second, and the next call tries again.
CREATE FUNCTION prepare_history() RETURNS integer LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp SET timezone = 'UTC' SET lock_timeout = '1s' AS $$
DECLARE
    month timestamptz;
    partition text;
    made integer := 0;
BEGIN
    FOR month IN
        SELECT date_trunc('month', now()) + n * interval '1 month' FROM generate_series(0, 2) AS n
        UNION
        SELECT date_trunc('month', changed_at) FROM history_default
        ORDER BY 1
    LOOP
        partition := 'history_' || to_char(month, 'YYYY_MM');
        CONTINUE WHEN to_regclass(partition) IS NOT NULL;
        -- One replica at a time, and nobody writes into the default partition meanwhile.
        LOCK TABLE history IN SHARE UPDATE EXCLUSIVE MODE;
        LOCK TABLE ONLY history_default IN ACCESS EXCLUSIVE MODE;
        CONTINUE WHEN to_regclass(partition) IS NOT NULL;
        EXECUTE format('CREATE TABLE %I (LIKE history INCLUDING ALL)', partition);
        EXECUTE format(
            'WITH late AS (DELETE FROM history_default WHERE changed_at >= $1 AND changed_at < $2 RETURNING *)
             INSERT INTO %I SELECT * FROM late',
            partition
        ) USING month, month + interval '1 month';
        EXECUTE format(
            'ALTER TABLE history ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
            partition, month, month + interval '1 month'
        );
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;

COMMENT ON FUNCTION prepare_history() IS 'Makes the partitions of this month and the two after it, and of months whose rows had to go into the default partition; how many.';

CREATE FUNCTION drop_history(before timestamptz) RETURNS text LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp SET timezone = 'UTC' SET lock_timeout = '1s' AS $$
DECLARE
    -- Names of partitions sort by time. Whoever has the service's password may not make the last month unseen.
    oldest text := (
        SELECT min(relname) FROM pg_inherits JOIN pg_class ON oid = inhrelid
        WHERE inhparent = 'history'::regclass AND relname < 'history_' || to_char(
            least(before, now() - interval '30 days'), 'YYYY_MM'
        ) AND relname ~ '^history_\d{4}_\d\d$'
    );
    dropped int8multirange;
    is_unsealed boolean;
    new_id bigint;
BEGIN
    IF oldest IS NULL THEN
        RETURN NULL;
    END IF;
    -- What an earlier DROP gave up stays named for as long as there is a history.
    EXECUTE format(
        'SELECT coalesce(range_agg(ids), ''{}''), EXISTS (SELECT FROM history_unsealed JOIN %1$I USING (id))
         FROM (
             SELECT int8range(id, id, ''[]'') AS ids FROM %1$I
             UNION ALL
             SELECT unnest((changed_data -> ''before'' ->> ''ids'')::int8multirange) FROM %1$I WHERE operation = ''DROP''
         ) AS given_up',
        oldest
    ) INTO dropped, is_unsealed;
    IF is_unsealed THEN
        RETURN NULL;
    END IF;
    EXECUTE format('DELETE FROM history_personal USING %I AS month WHERE history_id = month.id', oldest);
    UPDATE history_seals SET row_hashes = NULL WHERE ids <@ dropped AND row_hashes IS NOT NULL;
    INSERT INTO history (table_name, operation, row_id, changed_data, changed_at, actor, database_user)
    VALUES (
        'history', 'DROP', oldest,
        jsonb_build_object('before', jsonb_build_object('ids', dropped::text), 'after', NULL),
        clock_timestamp(), nullif(left(current_setting('gatepass.actor', true), 128), ''), session_user
    ) RETURNING id INTO new_id;
    INSERT INTO history_unsealed (id) VALUES (new_id);
    -- Last, as nobody writes from here to the end of the transaction.
    EXECUTE format('DROP TABLE %I', oldest);
    RETURN oldest;
END
$$;

COMMENT ON FUNCTION drop_history(timestamptz) IS 'Gives up the oldest month that ended before then, and is sealed; its partition''s name, or null when there is none. The last 30 days stay in any case.';

REVOKE ALL ON FUNCTION
    write_history(text, text, jsonb, jsonb, text[], text[], text[]),
    record_change(), forget_person(), prepare_history(), drop_history(timestamptz)
FROM PUBLIC;

SELECT prepare_history();
