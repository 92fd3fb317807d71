DROP FUNCTION caused_by(text, text, uuid, uuid);
