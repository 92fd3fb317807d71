CREATE TABLE users (
    id uuid CONSTRAINT users_pkey PRIMARY KEY,
    username text NOT NULL,
    username_key text COLLATE "C" NOT NULL GENERATED ALWAYS AS (lower(username COLLATE "C")) STORED,
    email text NOT NULL,
    email_key text COLLATE "C" NOT NULL GENERATED ALWAYS AS (lower(normalize(email) COLLATE "und-x-icu")) STORED,
    full_name text,
    password_hash text,
    roles text[] NOT NULL,
    is_email_verified boolean NOT NULL,
    disabled boolean NOT NULL,
    password_changed_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,

    CONSTRAINT users_id_uuidv7 CHECK (get_byte(uuid_send(id), 6) >> 4 = 7),
    CONSTRAINT users_username_shape CHECK (username COLLATE "C" ~ '^[A-Za-z0-9_.-]{3,64}$'),
    CONSTRAINT users_username_key UNIQUE (username_key),
    CONSTRAINT users_email_shape CHECK (
        octet_length(email) <= 254
        AND email COLLATE "C" ~ '^[^[:space:][:cntrl:]]+@[^@[:space:][:cntrl:]]+$'
    ),
    CONSTRAINT users_email_key UNIQUE (email_key),
    CONSTRAINT users_full_name_shape CHECK (
        char_length(full_name) BETWEEN 1 AND 256
        AND full_name COLLATE "C" !~ '[[:cntrl:]]'
    ),
    CONSTRAINT users_password_hash_shape CHECK (char_length(password_hash) BETWEEN 1 AND 1024),
    CONSTRAINT users_roles_shape CHECK (
        cardinality(roles) <= 32
        AND array_position(roles, NULL) IS NULL
        AND cardinality(roles) = cardinality(string_to_array(array_to_string(roles, ','), ','))
        AND array_to_string(roles, ',') COLLATE "C" ~ '^([a-z][a-z0-9_.:-]{0,63}(,[a-z][a-z0-9_.:-]{0,63})*)?$'
    )
);

COMMENT ON TABLE users IS 'Who can log in. One row for each user.';
COMMENT ON COLUMN users.id IS 'UUIDv7; the claim sub of the user''s tokens.';
COMMENT ON COLUMN users.username IS '3 to 64 of a-z A-Z 0-9 _ . -, as the user wrote it.';
COMMENT ON COLUMN users.username_key IS 'The username without regard to case: unique, and what a login looks up.';
COMMENT ON COLUMN users.email IS 'E-mail address of at most 254 bytes, as the user wrote it.';
COMMENT ON COLUMN users.email_key IS 'The e-mail address without regard to case and to how accents are composed (NFC): unique, and what a login looks up.';
COMMENT ON COLUMN users.full_name IS 'Name for display, 1 to 256 characters; null: none given.';
COMMENT ON COLUMN users.password_hash IS 'PHC string; null: the user cannot log in with a password.';
COMMENT ON COLUMN users.roles IS 'At most 32 names, which the service keeps sorted and none twice; the claim roles of the user''s tokens. "admin" administers users.';
COMMENT ON COLUMN users.is_email_verified IS 'Whether the user has shown that the address is theirs.';
COMMENT ON COLUMN users.disabled IS 'A disabled user cannot log in, and live tokens are refused.';
COMMENT ON COLUMN users.password_changed_at IS 'When the present password was set.';
COMMENT ON COLUMN users.created_at IS 'When the user was made.';
COMMENT ON COLUMN users.updated_at IS 'When the row last changed.';
