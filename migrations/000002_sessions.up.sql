CREATE TABLE sessions (
    id uuid CONSTRAINT sessions_pkey PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT sessions_user_id_fkey REFERENCES users ON DELETE CASCADE,
    refresh_generation integer NOT NULL,
    refresh_salt bytea NOT NULL,
    user_agent text,
    client_ip inet,
    created_at timestamptz NOT NULL,
    last_used_at timestamptz NOT NULL,
    refresh_expires_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,

    CONSTRAINT sessions_id_uuidv7 CHECK (get_byte(uuid_send(id), 6) >> 4 = 7),
    CONSTRAINT sessions_refresh_generation_positive CHECK (refresh_generation >= 0),
    CONSTRAINT sessions_refresh_salt_length CHECK (octet_length(refresh_salt) = 32),
    CONSTRAINT sessions_user_agent_length CHECK (char_length(user_agent) BETWEEN 1 AND 512),
    CONSTRAINT sessions_client_ip_host CHECK (masklen(client_ip) = CASE family(client_ip) WHEN 4 THEN 32 ELSE 128 END),
    CONSTRAINT sessions_times_ordered CHECK (
        created_at < refresh_expires_at AND refresh_expires_at <= expires_at
    )
);

CREATE INDEX sessions_user_id_idx ON sessions (user_id);

COMMENT ON TABLE sessions IS 'Logins that go on. One row for each, from login until it ends.';
COMMENT ON COLUMN sessions.id IS 'UUIDv7; the claim sid of the session''s tokens.';
COMMENT ON COLUMN sessions.user_id IS 'Whose session it is; it goes when the user goes.';
COMMENT ON COLUMN sessions.refresh_generation IS 'How often the session has been renewed. The refresh token carries it.';
COMMENT ON COLUMN sessions.refresh_salt IS '32 random bytes that go into the refresh token''s MAC, so that the service''s key alone makes no token.';
COMMENT ON COLUMN sessions.user_agent IS 'User-Agent of the last login or renewal, cut to 512 characters; null: none sent.';
COMMENT ON COLUMN sessions.client_ip IS 'Address of the last login or renewal; null: not known.';
COMMENT ON COLUMN sessions.created_at IS 'When the user logged in.';
COMMENT ON COLUMN sessions.last_used_at IS 'When the session was last seen.';
COMMENT ON COLUMN sessions.refresh_expires_at IS 'When the session ends unless it is renewed before.';
COMMENT ON COLUMN sessions.expires_at IS 'When the session ends in any case.';
COMMENT ON INDEX sessions_user_id_idx IS 'A user''s sessions, and the cascade when the user goes.';
