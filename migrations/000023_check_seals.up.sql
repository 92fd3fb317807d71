-- Whoever has the service's password can add a seal. A false one is found, but one that claims to be the last that there
-- can be would end the sealing for good, one of billions of rows would keep Postgres busy with numbering them, and one of
-- a time without a value in a program (infinity, the year 10000) would end every verification.
CREATE FUNCTION check_seal() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    -- A number that is taken, or not positive, is refused by the table.
    IF NEW.number - 1 > (SELECT coalesce(max(number), 0) FROM history_seals) THEN
        RAISE check_violation USING
            MESSAGE = 'a seal has the number after the last', CONSTRAINT = 'history_seals_number_next';
    END IF;
    IF lower_inf(NEW.ids) OR upper_inf(NEW.ids)
        OR (SELECT sum(upper(range)::numeric - lower(range)) FROM unnest(NEW.ids) AS range) > 1000
    THEN
        RAISE check_violation USING
            MESSAGE = 'a seal covers at most 1000 rows', CONSTRAINT = 'history_seals_ids_few';
    END IF;
    -- Not "close to now": a restore brings seals that are years old.
    IF NEW.sealed_at < timestamptz '1970-01-01 00:00Z' OR NEW.sealed_at >= timestamptz '10000-01-01 00:00Z' THEN
        RAISE check_violation USING
            MESSAGE = 'a seal is made between 1970 and 9999', CONSTRAINT = 'history_seals_sealed_at_in_range';
    END IF;
    RETURN NEW;
END
$$;

COMMENT ON FUNCTION check_seal() IS 'Refuses a seal that no service makes: beyond the next number, of more than 1000 rows, or of a time that no clock shows.';

REVOKE ALL ON FUNCTION check_seal() FROM PUBLIC;

CREATE TRIGGER history_seals_check BEFORE INSERT ON history_seals FOR EACH ROW EXECUTE FUNCTION check_seal();
