-- What people may see who look into the database, and are not to learn who the users are: of names, addresses and
-- browsers that there is one, of secrets nothing. The views read as the owner of the schema; who reads them needs no right
-- to the tables. A barrier, so that no condition of theirs is applied to a row before it is masked.

CREATE SCHEMA masked;

COMMENT ON SCHEMA masked IS 'The tables without what is secret, and with what is personal masked.';

CREATE VIEW masked.users WITH (security_barrier) AS
SELECT
    id, left(username, 1) || '***' AS username, left(email, 1) || '***' AS email,
    CASE WHEN full_name IS NOT NULL THEN '***' END AS full_name, password_hash IS NOT NULL AS has_password, roles,
    is_email_verified, disabled, password_changed_at, created_at, updated_at
FROM public.users;

CREATE VIEW masked.sessions WITH (security_barrier) AS
SELECT
    id, user_id, refresh_generation, CASE WHEN user_agent IS NOT NULL THEN '***' END AS user_agent,
    network(set_masklen(client_ip, CASE family(client_ip) WHEN 4 THEN 24 ELSE 48 END)) AS client_ip, created_at,
    last_used_at, renewed_at, is_confirmed, refresh_expires_at, access_expires_at, expires_at, ended_at, end_reason
FROM public.sessions;

CREATE VIEW masked.revocations WITH (security_barrier) AS
SELECT xid, id, session_id, user_id, roles, expires_at FROM public.revocations;

CREATE VIEW masked.signing_keys WITH (security_barrier) AS
SELECT id, format, public_key, token_seconds, published_at, activated_at, retired_at, verifies_until
FROM public.signing_keys;

CREATE VIEW masked.clients WITH (security_barrier) AS
SELECT id, name, created_at FROM public.clients;

CREATE VIEW masked.history WITH (security_barrier) AS
SELECT
    id, table_name, operation, row_id, user_id, changed_data, changed_at,
    CASE WHEN actor LIKE 'cli:%' THEN 'cli:***' ELSE actor END AS actor, request_id, database_user
FROM public.history;

CREATE VIEW masked.history_seals WITH (security_barrier) AS
SELECT number, ids, sealed_at FROM public.history_seals;

COMMENT ON VIEW masked.users IS 'Who can log in: of names and addresses the first letter.';
COMMENT ON VIEW masked.sessions IS 'Logins: of addresses the network (/24, IPv6: /48).';
COMMENT ON VIEW masked.revocations IS 'What every replica has to know of access tokens that are still alive.';
COMMENT ON VIEW masked.signing_keys IS 'Key pairs, without the private keys.';
COMMENT ON VIEW masked.clients IS 'Services that may ask about tokens, without their secrets.';
COMMENT ON VIEW masked.history IS 'What was changed, by whom: operators without their names.';
COMMENT ON VIEW masked.history_seals IS 'Which rows of the history are sealed, and since when.';
