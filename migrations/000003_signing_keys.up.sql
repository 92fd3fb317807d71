CREATE TABLE signing_keys (
    id text COLLATE "C" CONSTRAINT signing_keys_pkey PRIMARY KEY,
    format text NOT NULL,
    public_key text NOT NULL,
    wrapped_key bytea,
    wrapped_by text,
    token_seconds integer NOT NULL,
    published_at timestamptz NOT NULL,
    activated_at timestamptz,
    retired_at timestamptz,
    verifies_until timestamptz,

    CONSTRAINT signing_keys_id_shape CHECK (id COLLATE "C" ~ '^[A-Za-z0-9._-]{43,64}$'),
    CONSTRAINT signing_keys_format_known CHECK (
        format IN ('v4.public', 'jwt:EdDSA', 'jwt:ES256', 'jwt:RS256', 'jwt:PS256')
    ),
    CONSTRAINT signing_keys_public_key_length CHECK (char_length(public_key) BETWEEN 1 AND 4096),
    CONSTRAINT signing_keys_wrapped_key_length CHECK (octet_length(wrapped_key) BETWEEN 1 AND 8192),
    CONSTRAINT signing_keys_wrapped_by_shape CHECK (wrapped_by COLLATE "C" ~ '^k4\.lid\.[A-Za-z0-9_-]{44}$'),
    CONSTRAINT signing_keys_token_seconds_positive CHECK (token_seconds > 0),
    CONSTRAINT signing_keys_private_until_retired CHECK (
        (wrapped_key IS NULL) = (retired_at IS NOT NULL) AND (wrapped_by IS NULL) = (retired_at IS NOT NULL)
    ),
    CONSTRAINT signing_keys_verifies_after_retirement CHECK (
        (verifies_until IS NULL) = (retired_at IS NULL) AND verifies_until >= retired_at
    )
);

CREATE UNIQUE INDEX signing_keys_active_key ON signing_keys (format)
WHERE activated_at IS NOT NULL AND retired_at IS NULL;

CREATE UNIQUE INDEX signing_keys_next_key ON signing_keys (format)
WHERE activated_at IS NULL AND retired_at IS NULL;

COMMENT ON TABLE signing_keys IS 'Key pairs for tokens of published formats. One row for each, also when it is gone.';
COMMENT ON COLUMN signing_keys.id IS 'The kid of the key''s tokens: PASERK k4.pid, or a JWK''s thumbprint (RFC 7638).';
COMMENT ON COLUMN signing_keys.format IS 'The one format and algorithm that the key is for.';
COMMENT ON COLUMN signing_keys.public_key IS 'PASERK k4.public, or a JWK (RFC 7517).';
COMMENT ON COLUMN signing_keys.wrapped_key IS 'The private key, encrypted under a key derived from the root key; null: destroyed, since the key is retired.';
COMMENT ON COLUMN signing_keys.wrapped_by IS 'PASERK k4.lid of the root key that wrapped_key opens under.';
COMMENT ON COLUMN signing_keys.token_seconds IS 'The longest life of a token that the key has signed, in seconds.';
COMMENT ON COLUMN signing_keys.published_at IS 'When the key was made, and published.';
COMMENT ON COLUMN signing_keys.activated_at IS 'When the key began to sign; null: it is the next one.';
COMMENT ON COLUMN signing_keys.retired_at IS 'When the key was taken out of signing.';
COMMENT ON COLUMN signing_keys.verifies_until IS 'Until when the key''s tokens are accepted; the same as retired_at: no longer.';
COMMENT ON INDEX signing_keys_active_key IS 'One key of a format signs.';
COMMENT ON INDEX signing_keys_next_key IS 'One key of a format is the next.';
