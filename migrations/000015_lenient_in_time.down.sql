CREATE OR REPLACE FUNCTION record_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
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

DROP FUNCTION try_to_write_history(text, text, jsonb, jsonb, text[], text[], text[]);
