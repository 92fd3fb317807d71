CREATE FUNCTION oldest_schema_served() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT 16::bigint';

COMMENT ON FUNCTION oldest_schema_served() IS 'The last migration that a release has to know to serve on this schema. A migration that takes away what an earlier release needs replaces it.';
