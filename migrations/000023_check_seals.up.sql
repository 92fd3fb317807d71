-- Whoever has the service's password can add a seal. A false one is found, but one that claims to be the last that there
-- can be would end the sealing for good, and one of billions of rows would keep Postgres busy with numbering them.
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
    RETURN NEW;
END
$$;

COMMENT ON FUNCTION check_seal() IS 'Refuses a seal that no service makes: beyond the next number, or of more than 1000 rows.';

REVOKE ALL ON FUNCTION check_seal() FROM PUBLIC;

CREATE TRIGGER history_seals_check BEFORE INSERT ON history_seals FOR EACH ROW EXECUTE FUNCTION check_seal();
