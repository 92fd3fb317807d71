//! What is masked, and how: the only table of masks, for [`sample`](super::sample) and [`mask`](super::mask).
//!
//! A mask is an SQL expression, so a value is masked on the server that has it. Most masks are HMAC-SHA-256 (RFC 2104)
//! of the value under a key of the run: the same value has the same mask in every table, and nobody without the key can
//! tell which value it came from. Ids stay: they hold the rows together and say nothing about a person.
//!
//! What is not listed here does not pass. A table or column that the database has and [`TABLES`] has not is an error;
//! in documents of the history, fields that are not in [`FIELDS`] are left out.

use aws_lc_rs::digest;

use super::{
    Error,
    names::{AGENTS, FAMILIES},
    run,
};
use crate::store::PgConnection;

/// How a value is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mask {
    /// Not at all.
    Keep,
    /// `user_` and 64 bits.
    Username,
    /// 80 bits `@example.com`.
    Email,
    /// One of the names of made-up people.
    FullName,
    /// The hash of the documented password, if the user had a password.
    PasswordHash,
    /// 32 bytes.
    Bytes,
    /// One of a few browsers.
    Agent,
    /// An address in `10.0.0.0/8` or `fd00::/8`.
    Address,
    /// Who did something: ids stay, operators do not.
    Actor,
    /// 128 bits.
    Token,
    /// A database role; those of gatepass stay.
    Role,
    /// A document of the history.
    Document,
    /// 128 bits, as a UUID.
    Salt,
    /// The hash of the masked salt and the masked document, so that the history verifies.
    PersonalHash,
}

use Mask::{
    Actor, Address, Agent, Bytes, Document, Email, FullName, Keep, PasswordHash, PersonalHash, Role, Salt,
    Token, Username,
};

/// A table.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) rows: Rows,
    /// Every column that is not generated.
    pub(super) columns: &'static [(&'static str, Mask)],
}

/// What happens to the rows of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// They are the same everywhere: all go into a sample.
    All,
    /// They belong to the user whom this column names.
    OfUser(&'static str),
    /// Secrets, or data about nobody: left out of a sample, deleted by `mask`.
    None,
}

/// Every table, each after those that it refers to.
pub(super) const TABLES: &[Table] = &[
    Table {
        name: "_sqlx_migrations",
        rows: Rows::All,
        columns: &[
            ("version", Keep),
            ("description", Keep),
            ("installed_on", Keep),
            ("success", Keep),
            ("checksum", Keep),
            ("execution_time", Keep),
        ],
    },
    Table {
        name: "users",
        rows: Rows::OfUser("id"),
        columns: &[
            ("id", Keep),
            ("username", Username),
            ("email", Email),
            ("full_name", FullName),
            ("password_hash", PasswordHash),
            ("roles", Keep),
            ("is_email_verified", Keep),
            ("disabled", Keep),
            ("password_changed_at", Keep),
            ("created_at", Keep),
            ("updated_at", Keep),
            ("external_id", Token),
            ("administered_at", Keep),
        ],
    },
    Table {
        name: "sessions",
        rows: Rows::OfUser("user_id"),
        columns: &[
            ("id", Keep),
            ("user_id", Keep),
            ("refresh_generation", Keep),
            ("refresh_salt", Bytes),
            ("user_agent", Agent),
            ("client_ip", Address),
            ("created_at", Keep),
            ("last_used_at", Keep),
            ("refresh_expires_at", Keep),
            ("expires_at", Keep),
            ("renewed_at", Keep),
            ("is_confirmed", Keep),
            ("ended_at", Keep),
            ("end_reason", Keep),
            ("access_expires_at", Keep),
        ],
    },
    // Before the personal data, from which its hash is computed.
    Table {
        name: "history",
        rows: Rows::OfUser("user_id"),
        columns: &[
            ("id", Keep),
            ("table_name", Keep),
            ("operation", Keep),
            ("row_id", Keep),
            ("user_id", Keep),
            ("changed_data", Document),
            ("personal_hash", PersonalHash),
            ("changed_at", Keep),
            ("actor", Actor),
            ("request_id", Token),
            ("database_user", Role),
        ],
    },
    Table {
        name: "history_personal",
        rows: Rows::OfUser("user_id"),
        columns: &[("history_id", Keep), ("user_id", Keep), ("salt", Salt), ("changed_data", Document)],
    },
    // The seals cover what was there before; what is left waits for new ones.
    Table { name: "history_seals", rows: Rows::None, columns: &[] },
    Table { name: "history_unsealed", rows: Rows::None, columns: &[] },
    Table { name: "clients", rows: Rows::None, columns: &[] },
    Table { name: "imports", rows: Rows::None, columns: &[] },
    Table { name: "login_attempts", rows: Rows::None, columns: &[] },
    Table { name: "revocations", rows: Rows::None, columns: &[] },
    Table { name: "signing_keys", rows: Rows::None, columns: &[] },
];

/// The fields that a document of the history may have, whichever table it is about.
const FIELDS: &[(&str, Mask)] = &[
    ("username", Username),
    ("email", Email),
    ("full_name", FullName),
    ("external_id", Token),
    ("user_agent", Agent),
    ("client_ip", Address),
    ("roles", Keep),
    ("is_email_verified", Keep),
    ("disabled", Keep),
    ("password_changed_at", Keep),
    ("created_at", Keep),
    ("user_id", Keep),
    ("expires_at", Keep),
    ("ended_at", Keep),
    ("end_reason", Keep),
    // For keys.
    ("format", Keep),
    ("token_seconds", Keep),
    ("published_at", Keep),
    ("activated_at", Keep),
    ("retired_at", Keep),
    ("verifies_until", Keep),
    // For months that were dropped.
    ("ids", Keep),
];

impl Mask {
    /// The expression that masks the value of the expression `value`; null stays null.
    pub(super) fn sql(self, value: &str) -> String {
        match self {
            Self::Keep => value.to_owned(),
            Self::Username => {
                format!("'user_' || left({}, 16)", mac("username", &format!(r#"lower({value} COLLATE "C")"#)))
            }
            Self::Email => {
                let key = format!(r#"lower(normalize({value}) COLLATE "und-x-icu")"#);
                format!("left({}, 20) || '@example.com'", mac("email", &key))
            }
            Self::FullName => {
                let names = FAMILIES.iter().flat_map(|family| {
                    family.given.iter().flat_map(move |(given, _)| {
                        family.surnames.iter().map(move |(surname, _)| {
                            if family.surname_first {
                                format!("{surname} {given}")
                            } else {
                                format!("{given} {surname}")
                            }
                        })
                    })
                });
                one_of(names.collect(), &mac("full_name", value))
            }
            Self::PasswordHash => {
                format!("CASE WHEN {value} IS NOT NULL THEN current_setting('devdata.password_hash') END")
            }
            Self::Bytes => format!("decode({}, 'hex')", mac("bytes", &format!("encode({value}, 'hex')"))),
            Self::Agent => {
                one_of(AGENTS.iter().map(|&agent| agent.to_owned()).collect(), &mac("agent", value))
            }
            Self::Address => {
                let mac = mac("address", &format!("host({value})"));
                format!(
                    "CASE family({value})
                     WHEN 4 THEN '10.0.0.0'::inet + ('x' || left({mac}, 6))::bit(24)::integer
                     WHEN 6 THEN regexp_replace('fd' || left({mac}, 30), '(.{{4}})(?=.)', '\\1:', 'g')::inet END"
                )
            }
            Self::Actor => format!(
                "CASE WHEN {value} = 'service' OR {value} ~ '^[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}$' THEN {value}
                 ELSE 'cli:' || left({}, 16) END",
                mac("actor", value)
            ),
            Self::Token => format!("left({}, 32)", mac("token", value)),
            Self::Role => format!(
                "CASE WHEN {value} IN ('gatepass_owner', 'gatepass_app') THEN {value} ELSE 'role_' || left({}, 16) END",
                mac("role", value)
            ),
            Self::Document => document(value),
            Self::Salt => format!("left({}, 32)::uuid", mac("salt", &format!("{value}::text"))),
            Self::PersonalHash => format!(
                "coalesce((
                     SELECT sha256(uuid_send({}) || convert_to(({})::text, 'UTF8'))
                     FROM public.history_personal AS personal WHERE personal.history_id = history.id
                 ), {value})",
                Self::Salt.sql("personal.salt"),
                Self::Document.sql("personal.changed_data"),
            ),
        }
    }
}

/// HMAC-SHA-256 of `kind` and a text, in hexadecimal. [`Key::set`] has set the two padded keys.
fn mac(kind: &str, value: &str) -> String {
    format!(
        "encode(sha256(decode(current_setting('devdata.outer'), 'hex') || sha256(
             decode(current_setting('devdata.inner'), 'hex') || convert_to('{kind}:' || ({value}), 'UTF8')
         )), 'hex')"
    )
}

fn one_of(values: Vec<String>, mac: &str) -> String {
    let count = values.len();
    let values: Vec<_> = values.iter().map(|value| format!("'{}'", value.replace('\'', "''"))).collect();
    format!("(ARRAY[{}])[1 + ('x' || left({mac}, 7))::bit(28)::integer % {count}]", values.join(", "))
}

/// `{before, after, hidden?}` of the history, with only [`FIELDS`] passed.
fn document(value: &str) -> String {
    let side = |name: &str| {
        let masked = FIELDS.iter().filter(|(_, mask)| *mask != Keep).map(|(field, mask)| {
            let text = match mask {
                Address => "(content #>> '{}')::inet",
                _ => "(content #>> '{}')",
            };
            format!("WHEN '{field}' THEN to_jsonb({})", mask.sql(text))
        });
        let known: Vec<_> = FIELDS.iter().map(|(field, _)| format!("'{field}'")).collect();
        format!(
            "'{name}', CASE WHEN jsonb_typeof({value} -> '{name}') = 'object' THEN (
                 SELECT jsonb_object_agg(name, CASE name {} ELSE content END)
                 FROM jsonb_each({value} -> '{name}') AS field (name, content) WHERE name IN ({})
             ) END",
            masked.collect::<Vec<_>>().join(" "),
            known.join(", "),
        )
    };
    // `hidden` has names of columns, not their values.
    format!(
        "jsonb_build_object({}, {}) || CASE WHEN {value} ? 'hidden'
             THEN jsonb_build_object('hidden', {value} -> 'hidden') ELSE '{{}}' END",
        side("before"),
        side("after")
    )
}

/// The key of the masks. Whoever has it can test guesses of values.
pub struct Key([u8; 32]);

impl Key {
    /// Derives the key from a secret of any length.
    pub fn new(secret: &[u8]) -> Self {
        let mut key = [0; 32];
        key.copy_from_slice(digest::digest(&digest::SHA256, secret).as_ref());
        Self(key)
    }

    /// Passes the key, and the hash that replaces every password hash, to the transaction. They are not in the text of
    /// a statement, which others with the same role can see and `pg_stat_statements` keeps. A server that logs
    /// statements logs parameters too, and only a superuser can change that: docs/devdata.md says how.
    pub(super) async fn set(&self, conn: &mut PgConnection, password_hash: &str) -> Result<(), sqlx::Error> {
        // Expressions as long as these take longer to compile than to run.
        run(&mut *conn, "SET LOCAL jit = off").await?;
        let half = |pad: u8| {
            let mut block = [pad; 64];
            block.iter_mut().zip(self.0).for_each(|(byte, key)| *byte ^= key);
            block
        };
        sqlx::query!(
            "SELECT set_config('devdata.inner', encode($1, 'hex'), true) AS inner,
                 set_config('devdata.outer', encode($2, 'hex'), true) AS outer,
                 set_config('devdata.password_hash', $3, true) AS hash",
            &half(0x36)[..],
            &half(0x5c)[..],
            password_hash,
        )
        .fetch_one(conn)
        .await?;
        Ok(())
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

/// Makes sure that [`TABLES`] knows every table, and every column of the tables that pass.
///
/// # Errors
///
/// [`Error::Unknown`] with the names that are missing.
pub(super) async fn check(conn: &mut PgConnection) -> Result<(), Error> {
    let columns = sqlx::query!(
        r#"SELECT nspname::text AS "schema!", relname::text AS "table!", attname::text AS "column!"
           FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
           WHERE relkind IN ('r', 'p', 'm', 'f') AND NOT relispartition AND attnum > 0 AND NOT attisdropped
               AND attgenerated = '' AND nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'devdata')
           ORDER BY nspname, relname, attnum"#
    )
    .fetch_all(conn)
    .await?;
    let is_known = |schema: &str, table: &str, column: &str| {
        schema == "public"
            && TABLES.iter().any(|known| {
                known.name == table
                    && (known.rows == Rows::None || known.columns.iter().any(|(name, _)| *name == column))
            })
    };
    let unknown: Vec<_> = columns
        .iter()
        .filter(|row| !is_known(&row.schema, &row.table, &row.column))
        .map(|row| format!("{}.{}.{}", row.schema, row.table, row.column))
        .collect();
    if unknown.is_empty() { Ok(()) } else { Err(Error::Unknown(unknown.join(", "))) }
}
