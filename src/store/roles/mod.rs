//! The roles of the database, and what each of them may do.
//!
//! | role | is | may |
//! |---|---|---|
//! | [`OWNER`] | who migrates | everything with the schema and its rows |
//! | [`APP`] | the service | what [`TABLES`] and [`FUNCTIONS`] say |
//! | [`READONLY`] | people who look | read the views of the schema `masked` |
//!
//! [`set_up()`] creates them, once. From then on the schema `public` and the tables belong to [`OWNER`], which is how
//! [`become_owner`] and [`migrations`] know that there are roles. Without them, the role that migrates owns everything,
//! and nothing here is done. [`TABLES`] and [`FUNCTIONS`] are the one place that says what the roles may do: [`grant`]
//! applies them, with each migration and in [`set_up()`], and [`Privileges`] compares.

mod privileges;
mod set_up;
mod take_over;

use super::{PgConnection, migrations, run};
pub use privileges::{Privilege, Privileges};
pub(super) use privileges::{deviate, grant, repair};
pub use set_up::{Error, Login, SetUp, Sharing, Step, set_up};

/// Owns the schema and changes it.
pub const OWNER: &str = "gatepass_owner";
/// The service.
pub const APP: &str = "gatepass_app";
/// For people who read, and are not to learn who the users are.
pub const READONLY: &str = "gatepass_readonly";

/// What the roles may do with one table. A privilege that is not listed here (`TRUNCATE`, `REFERENCES`, `TRIGGER`,
/// `MAINTAIN`) belongs to nobody but the owner.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its name, in the schema `public`.
    pub name: &'static str,
    /// The columns that [`APP`] may read.
    pub select: Columns,
    /// The columns that [`APP`] may set in a new row.
    pub insert: Columns,
    /// The columns that [`APP`] may change. To lock a row, a role must be allowed to change something in it.
    pub update: Columns,
    /// Whether [`APP`] may delete rows.
    pub delete: bool,
    /// Whether [`READONLY`] may read the view of the same name in the schema `masked`.
    pub masked: bool,
}

/// Columns of a table.
#[derive(Clone, Copy, Debug)]
pub enum Columns {
    /// None.
    None,
    /// All, including those added later.
    All,
    /// These.
    These(&'static [&'static str]),
}

/// Nothing for anybody.
const NOTHING: Table = Table {
    name: "",
    select: Columns::None,
    insert: Columns::None,
    update: Columns::None,
    delete: false,
    masked: false,
};

/// Every table. One that is missing here can be used by nobody but the owner.
pub const TABLES: &[Table] = &[
    Table {
        name: "users",
        select: Columns::All,
        insert: Columns::All,
        update: Columns::These(&[
            "email",
            "full_name",
            "password_hash",
            "roles",
            "is_email_verified",
            "disabled",
            "password_changed_at",
            "updated_at",
            "administered_at",
        ]),
        delete: true,
        masked: true,
    },
    Table {
        name: "sessions",
        select: Columns::All,
        insert: Columns::All,
        update: Columns::These(&[
            "refresh_generation",
            "user_agent",
            "client_ip",
            "last_used_at",
            "renewed_at",
            "is_confirmed",
            "refresh_expires_at",
            "access_expires_at",
            "ended_at",
            "end_reason",
        ]),
        delete: true,
        masked: true,
    },
    Table {
        name: "revocations",
        select: Columns::All,
        insert: Columns::These(&["session_id", "user_id", "roles", "expires_at"]),
        // To be able to lock what it deletes.
        update: Columns::These(&["expires_at"]),
        delete: true,
        masked: true,
    },
    Table {
        name: "signing_keys",
        select: Columns::All,
        insert: Columns::All,
        update: Columns::These(&[
            "wrapped_key",
            "wrapped_by",
            "token_seconds",
            "activated_at",
            "retired_at",
            "verifies_until",
        ]),
        masked: true,
        ..NOTHING
    },
    Table {
        name: "clients",
        select: Columns::All,
        insert: Columns::All,
        delete: true,
        masked: true,
        ..NOTHING
    },
    Table {
        name: "login_attempts",
        select: Columns::All,
        insert: Columns::All,
        update: Columns::These(&["free_at", "expires_at", "known_for"]),
        delete: true,
        ..NOTHING
    },
    // The history is written by triggers and functions that run as the owner.
    Table { name: "history", select: Columns::All, masked: true, ..NOTHING },
    Table { name: "history_personal", select: Columns::All, ..NOTHING },
    Table { name: "history_unsealed", select: Columns::All, delete: true, ..NOTHING },
    Table { name: "history_seals", select: Columns::All, insert: Columns::All, masked: true, ..NOTHING },
    Table {
        name: "imports",
        select: Columns::All,
        insert: Columns::All,
        update: Columns::These(&[
            "created",
            "updated",
            "unchanged",
            "rejected",
            "rejects_bytes",
            "updated_at",
        ]),
        delete: true,
        ..NOTHING
    },
    // sqlx's own; the service checks whether the schema is current.
    Table {
        name: "_sqlx_migrations",
        select: Columns::These(&["version", "description", "installed_on", "checksum"]),
        ..NOTHING
    },
];

/// The functions that only triggers and other functions call. A trigger needs no privilege on its function when it
/// fires.
pub const INNER_FUNCTIONS: &[&str] = &[
    "revoke_session()",
    "revoke_all_sessions()",
    "end_sessions_of_disabled_user()",
    "note_administration()",
    "outdate_tokens()",
    "keep_an_admin()",
    "history_columns(jsonb, text[])",
    "write_history(text, text, jsonb, jsonb, text[], text[], text[])",
    "try_to_write_history(text, text, jsonb, jsonb, text[], text[], text[])",
    "record_change()",
    "forget_person()",
    "check_seal()",
    "keep_access_end()",
];

/// The functions that [`APP`] may call.
pub const FUNCTIONS: &[&str] = &[
    "caused_by(text, text)",
    "caused_by(text, text, uuid, uuid)",
    "oldest_schema_served()",
    // Release 0.1.0 calls it.
    "take_login_attempt(timestamptz, bytea[], interval[], interval[], bytea, bytea)",
    "login_of(bytea, uuid, timestamptz)",
    "attempt_login(timestamptz, bytea[], interval[], interval[], bytea, bytea, text)",
    "prepare_history()",
    "drop_history(timestamptz)",
];

/// The function's name as Postgres writes it.
fn full_function_name(name: &str) -> String {
    format!("public.{}", name.replace("timestamptz", "timestamp with time zone").replace(", ", ","))
}

/// Whether [`OWNER`] owns the schema.
///
/// # Errors
///
/// When the database fails.
pub async fn owns_schema(conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT pg_get_userbyid(nspowner) = $1 AS "is!" FROM pg_namespace WHERE nspname = 'public'"#,
        OWNER as _
    )
    .fetch_one(conn)
    .await
}

/// Continues as [`OWNER`] until [`be_oneself`], if [that is necessary](needs_owner). `false` when there are no roles.
///
/// # Errors
///
/// As [`needs_owner`].
pub(super) async fn become_owner(conn: &mut PgConnection) -> Result<bool, migrations::Error> {
    let needs_owner = needs_owner(&mut *conn).await?;
    if needs_owner {
        run(conn, &format!("SET ROLE {OWNER}")).await?;
    }
    Ok(needs_owner)
}

/// Whether the schema or the table `users` is [`OWNER`]'s. Then what a migration creates must be too, whoever is logged
/// in.
///
/// # Errors
///
/// [`migrations::Error::NotOwner`] when the role that is logged in may not act as [`OWNER`].
pub(super) async fn needs_owner(conn: &mut PgConnection) -> Result<bool, migrations::Error> {
    let state = sqlx::query!(
        r#"SELECT current_user::text AS "user!", pg_has_role(pg_roles.oid, 'MEMBER') AS "is_member!"
           FROM pg_roles
           WHERE rolname = $1 AND (
               EXISTS (SELECT FROM pg_namespace WHERE nspname = 'public' AND nspowner = pg_roles.oid)
               -- A restored database has the tables' owner, and the schema's not yet.
               OR EXISTS (SELECT FROM pg_class WHERE oid = to_regclass('public.users') AND relowner = pg_roles.oid)
           )"#,
        OWNER
    )
    .fetch_optional(conn)
    .await?;
    match state {
        None => Ok(false),
        Some(state) if state.is_member => Ok(true),
        Some(state) => Err(migrations::Error::NotOwner(state.user)),
    }
}

/// Continues as the role that is logged in.
pub(super) async fn be_oneself(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    run(conn, "RESET ROLE").await
}

/// The members of [`OWNER`] that may log in and do not administer roles anyway, as a master user does: as a rule, the
/// role that the service used formerly.
///
/// # Errors
///
/// When the database fails.
pub async fn members(conn: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT member.rolname::text AS "name!"
           FROM pg_roles AS member JOIN pg_roles AS owner ON owner.rolname = $1 AND owner.oid <> member.oid
           WHERE pg_has_role(member.oid, owner.oid, 'MEMBER')
               AND member.rolcanlogin AND NOT member.rolsuper AND NOT member.rolcreaterole
           ORDER BY 1"#,
        OWNER
    )
    .fetch_all(conn)
    .await
}

/// The role that is logged in, and whether it has more rights than a service should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub user: String,
    /// It may do everything in every database.
    pub is_superuser: bool,
    /// It may create roles or databases, or replicate, or it bypasses row security.
    pub administers: bool,
    /// It owns tables, or is a member of a role that does.
    pub owns_tables: bool,
}

/// The role that is logged in.
///
/// # Errors
///
/// When the database fails.
pub async fn standing(conn: &mut PgConnection) -> Result<Standing, sqlx::Error> {
    sqlx::query_as!(
        Standing,
        r#"SELECT rolname::text AS "user!", rolsuper AS "is_superuser!",
               rolcreaterole OR rolcreatedb OR rolbypassrls OR rolreplication AS "administers!",
               EXISTS (
                   SELECT FROM pg_class
                   WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
                       AND pg_has_role(relowner, 'MEMBER')
               ) AS "owns_tables!"
           FROM pg_roles WHERE rolname = current_user"#
    )
    .fetch_one(conn)
    .await
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
