-- Partial, so that users who come from nowhere cost nothing in it.
ALTER TABLE users
ADD COLUMN external_id text COLLATE "C",
ADD CONSTRAINT users_external_id_shape CHECK (
    char_length(external_id) BETWEEN 1 AND 256
    AND external_id !~ '[[:cntrl:]]'
);

CREATE UNIQUE INDEX users_external_id_key ON users (external_id) WHERE external_id IS NOT NULL;

COMMENT ON COLUMN users.external_id IS 'Who the user is in the system that they were imported from, by which they are found there again; null: made here.';
COMMENT ON INDEX users_external_id_key IS 'No two users are the same one of another system.';

DROP TRIGGER users_history ON users;
CREATE TRIGGER users_history AFTER INSERT OR UPDATE OR DELETE ON users
FOR EACH ROW EXECUTE FUNCTION record_change(
    '{roles,is_email_verified,disabled,password_changed_at,created_at}', '{username,email,full_name,external_id}',
    '{password_hash}'
);

CREATE TABLE imports (
    source_hash bytea CONSTRAINT imports_pkey PRIMARY KEY,
    source_name text NOT NULL,
    created bigint NOT NULL,
    updated bigint NOT NULL,
    unchanged bigint NOT NULL,
    rejected bigint NOT NULL,
    rejects_bytes bigint NOT NULL,
    started_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,

    CONSTRAINT imports_source_hash_length CHECK (octet_length(source_hash) = 32),
    CONSTRAINT imports_counts_not_negative CHECK (
        created >= 0 AND updated >= 0 AND unchanged >= 0 AND rejected >= 0 AND rejects_bytes >= 0
    )
);

COMMENT ON TABLE imports IS 'Imports that have begun and are not done: where they go on when they are run again.';
COMMENT ON COLUMN imports.source_hash IS 'SHA-256 of the file and of what it was to be read by.';
COMMENT ON COLUMN imports.source_name IS 'Where the file lies.';
COMMENT ON COLUMN imports.created IS 'How many of its users were made. With the three numbers below: how much of the file is done.';
COMMENT ON COLUMN imports.updated IS 'How many were there, and were changed.';
COMMENT ON COLUMN imports.unchanged IS 'How many were there, and stayed as they were.';
COMMENT ON COLUMN imports.rejected IS 'How many were refused.';
COMMENT ON COLUMN imports.rejects_bytes IS 'How much of the file of those is theirs; what is behind it was not committed.';
COMMENT ON COLUMN imports.started_at IS 'When it began.';
COMMENT ON COLUMN imports.updated_at IS 'When it last went on.';
