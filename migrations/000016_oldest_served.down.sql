DROP FUNCTION oldest_schema_served();
