DROP TRIGGER history_seals_check ON history_seals;
DROP FUNCTION check_seal();
