DROP FUNCTION record_change() CASCADE;
DROP FUNCTION forget_person() CASCADE;
DROP FUNCTION write_history(text, text, jsonb, jsonb, text[], text[], text[]);
DROP FUNCTION history_columns(jsonb, text[]);
DROP FUNCTION caused_by(text, text);
DROP FUNCTION prepare_history();
DROP FUNCTION drop_history(timestamptz);
DROP TABLE history_seals, history_unsealed, history_personal, history;
