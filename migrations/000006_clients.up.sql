CREATE TABLE clients (
    id uuid CONSTRAINT clients_pkey PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    secret_hash bytea NOT NULL,
    created_at timestamptz NOT NULL,

    CONSTRAINT clients_id_uuidv7 CHECK (get_byte(uuid_send(id), 6) >> 4 = 7),
    CONSTRAINT clients_name_shape CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$'),
    CONSTRAINT clients_name_key UNIQUE (name),
    CONSTRAINT clients_secret_hash_length CHECK (octet_length(secret_hash) = 32)
);

COMMENT ON TABLE clients IS 'Services that may ask about tokens. One row for each.';
COMMENT ON COLUMN clients.id IS 'UUIDv7; the client_id that the service presents.';
COMMENT ON COLUMN clients.name IS 'What operators call it: 1 to 32 of a-z A-Z 0-9 _ . -, a letter or digit first. Too short for an id, so that no name is one.';
COMMENT ON COLUMN clients.secret_hash IS 'SHA-256 of the client_secret, which has 256 random bits and is kept nowhere.';
COMMENT ON COLUMN clients.created_at IS 'When the client was made.';
