-- Prints the schema of the database as DBML (https://dbml.dbdiagram.io/docs): tables with their columns, constraints,
-- indexes and comments, from the system catalogue. Run by scripts/db-docs.
\pset format unaligned
\pset tuples_only on
\pset recordsep '\n'

CREATE FUNCTION pg_temp.quoted(text) RETURNS text IMMUTABLE LANGUAGE sql AS $$
    SELECT '''' || replace(replace($1, '\', '\\'), '''', '\''') || ''''
$$;

WITH tables AS (
    SELECT c.oid, c.relname, c.relkind, obj_description(c.oid, 'pg_class') AS comment
    FROM pg_class AS c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        AND c.relname <> '_sqlx_migrations'
),

columns AS (
    SELECT
        t.oid,
        string_agg(
            format(
                '  %s %s [%s]',
                a.attname,
                -- In DBML, a type name with brackets or blanks needs quotes.
                CASE WHEN format_type(a.atttypid, a.atttypmod) ~ '^[a-z0-9_]+$'
                    THEN format_type(a.atttypid, a.atttypmod)
                    ELSE '"' || format_type(a.atttypid, a.atttypmod) || '"' END,
                concat_ws(
                    ', ',
                    CASE WHEN EXISTS (
                        SELECT FROM pg_constraint AS k
                        WHERE k.conrelid = t.oid AND k.contype = 'p' AND k.conkey = ARRAY[a.attnum]
                    ) THEN 'pk' END,
                    CASE WHEN a.attnotnull THEN 'not null' ELSE 'null' END,
                    CASE WHEN EXISTS (
                        SELECT FROM pg_constraint AS k
                        WHERE k.conrelid = t.oid AND k.contype = 'u' AND k.conkey = ARRAY[a.attnum]
                    ) THEN 'unique' END,
                    CASE WHEN a.attidentity <> '' THEN 'increment' END,
                    CASE WHEN d.adbin IS NOT NULL AND a.attgenerated = ''
                        THEN 'default: `' || pg_get_expr(d.adbin, d.adrelid) || '`' END,
                    'note: ' || pg_temp.quoted(col_description(t.oid, a.attnum))
                )
            ),
            E'\n' ORDER BY a.attnum
        ) AS lines
    FROM tables AS t
    JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef AS d ON d.adrelid = t.oid AND d.adnum = a.attnum
    GROUP BY t.oid
),

indexes AS (
    SELECT
        t.oid,
        string_agg(
            format(
                '    (%s) [%s]',
                (
                    SELECT string_agg(
                        CASE WHEN i.indkey[n - 1] = 0
                            THEN '`' || pg_get_indexdef(i.indexrelid, n, false) || '`'
                            ELSE pg_get_indexdef(i.indexrelid, n, false) END, ', ' ORDER BY n
                    )
                    FROM generate_series(1, i.indnkeyatts) AS n
                ),
                concat_ws(
                    ', ',
                    CASE WHEN i.indisprimary THEN 'pk' WHEN i.indisunique THEN 'unique' END,
                    'name: ' || pg_temp.quoted(c.relname),
                    'note: ' || pg_temp.quoted(nullif(concat_ws(
                        ' ',
                        obj_description(c.oid, 'pg_class'),
                        'Where ' || pg_get_expr(i.indpred, i.indrelid) || '.'
                    ), ''))
                )
            ),
            E'\n' ORDER BY c.relname
        ) AS lines
    FROM tables AS t
    JOIN pg_index AS i ON i.indrelid = t.oid
    JOIN pg_class AS c ON c.oid = i.indexrelid
    GROUP BY t.oid
),

checks AS (
    SELECT t.oid, string_agg(k.conname || ': ' || pg_get_constraintdef(k.oid), E'\n' ORDER BY k.conname) AS lines
    FROM tables AS t JOIN pg_constraint AS k ON k.conrelid = t.oid AND k.contype = 'c'
    GROUP BY t.oid
)

SELECT format(
    E'Table %s {\n%s\n%s%s}\n',
    t.relname, columns.lines,
    E'\n  indexes {\n' || indexes.lines || E'\n  }\n',
    format(
        E'\n  Note: \'\'\'\n%s\n  \'\'\'\n',
        -- Between triple quotes only backslashes have to be escaped.
        replace(concat_ws(
            E'\n\n', t.comment,
            CASE WHEN t.relkind = 'p' THEN 'Partitioned by ' || pg_get_partkeydef(t.oid) || '.' END, checks.lines
        ), '\', '\\')
    )
)
FROM tables AS t
JOIN columns USING (oid) LEFT JOIN indexes USING (oid) LEFT JOIN checks USING (oid)
ORDER BY t.relname;

SELECT format(
    'Ref %s: %s.%s > %s.%s [delete: %s]',
    k.conname, k.conrelid::regclass,
    (SELECT attname FROM pg_attribute WHERE attrelid = k.conrelid AND attnum = k.conkey[1]),
    k.confrelid::regclass,
    (SELECT attname FROM pg_attribute WHERE attrelid = k.confrelid AND attnum = k.confkey[1]),
    CASE k.confdeltype WHEN 'c' THEN 'cascade' WHEN 'n' THEN 'set null' WHEN 'r' THEN 'restrict' ELSE 'no action' END
)
FROM pg_constraint AS k
WHERE k.contype = 'f' AND k.connamespace = 'public'::regnamespace AND k.conparentid = 0
ORDER BY k.conname;
