-- Where the history may have gaps, who holds a lock on it keeps nobody from logging in.

-- The setting is for as long as the function runs; its value is nobody's but the one below.
CREATE FUNCTION try_to_write_history(
    table_name text, operation text, old_row jsonb, new_row jsonb, shown text[], personal text[], secret text[]
) RETURNS void LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
BEGIN
    -- Two seconds for a statement, however many rows it changes, and a moment more for each of thousands: the service gives
    -- a statement up after eight. By its time, since what a session could note down it could also make up.
    PERFORM set_config('lock_timeout', greatest(
        1, 2000 - extract(epoch FROM clock_timestamp() - statement_timestamp()) * 1000
    )::integer::text, true);
    PERFORM write_history(table_name, operation, old_row, new_row, shown, personal, secret);
EXCEPTION WHEN OTHERS THEN
    RAISE WARNING 'the history does not know of this % in %: %', operation, table_name, SQLERRM;
END
$$;

COMMENT ON FUNCTION try_to_write_history(text, text, jsonb, jsonb, text[], text[], text[]) IS 'Writes one row of the history, or warns that it cannot; waits for locks for two seconds at most.';

REVOKE ALL ON FUNCTION try_to_write_history(text, text, jsonb, jsonb, text[], text[], text[]) FROM PUBLIC;

CREATE OR REPLACE FUNCTION record_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    -- As the database is set, not the session: whoever may change rows may also say SET.
    IF EXISTS (
        SELECT FROM pg_db_role_setting AS setting JOIN pg_database AS database ON database.oid = setting.setdatabase
        WHERE database.datname = current_database() AND setting.setrole = 0
            AND 'gatepass.history=lenient' = ANY(setting.setconfig)
    ) THEN
        PERFORM try_to_write_history(
            TG_TABLE_NAME, TG_OP, to_jsonb(OLD), to_jsonb(NEW),
            TG_ARGV[0]::text[], TG_ARGV[1]::text[], TG_ARGV[2]::text[]
        );
    ELSE
        PERFORM write_history(
            TG_TABLE_NAME, TG_OP, to_jsonb(OLD), to_jsonb(NEW),
            TG_ARGV[0]::text[], TG_ARGV[1]::text[], TG_ARGV[2]::text[]
        );
    END IF;
    RETURN NULL;
END
$$;
