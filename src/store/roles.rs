//! The roles of the database, and what each of them may do.
//!
//! | role | is | may |
//! |---|---|---|
//! | [`OWNER`] | who migrates | everything with the schema and its rows |
//! | [`APP`] | the service | what [`TABLES`] and [`FUNCTIONS`] say |
//! | [`READONLY`] | people who look | read the views of the schema `masked` |
//!
//! [`set_up`] makes them, once. From then on the schema `public` and the tables belong to [`OWNER`]; by that
//! [`become_owner`] and [`migrations`] know that there are roles. Without them whoever migrates owns
//! everything, and nothing here is done. [`TABLES`] and [`FUNCTIONS`] are the one place that says what the roles may do:
//! [`grant`] makes it so, with each migration and in [`set_up`]; [`Privileges`] compares.

use std::{collections::BTreeSet, fmt, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand_core::CryptoRng;
use secrecy::SecretString;
use sqlx::AssertSqlSafe;

use super::{
    PgConnection,
    migrations::{self, Schema},
    scram,
};
use crate::random;

/// Owns the schema and changes it.
pub const OWNER: &str = "gatepass_owner";
/// The service.
pub const APP: &str = "gatepass_app";
/// People who look, and are not to learn who the users are.
pub const READONLY: &str = "gatepass_readonly";

/// What the roles may do with one table. A privilege that has no place here (`TRUNCATE`, `REFERENCES`, `TRIGGER`) nobody
/// has but the owner.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its name, in the schema `public`.
    pub name: &'static str,
    /// What [`APP`] may read.
    pub select: Columns,
    /// What [`APP`] may give a value in a new row.
    pub insert: Columns,
    /// What [`APP`] may change. To lock a row it has to be allowed to change something of it.
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
    /// All, also those of later.
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

/// Every table. One that is missing here nobody but the owner can use.
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
        // To lock what it deletes.
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
        update: Columns::These(&["free_at", "expires_at"]),
        delete: true,
        ..NOTHING
    },
    // The history is written by triggers and functions, which run as the owner.
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
    // sqlx's own; the service looks whether the schema is current.
    Table {
        name: "_sqlx_migrations",
        select: Columns::These(&["version", "description", "installed_on", "checksum"]),
        ..NOTHING
    },
];

/// The functions that only triggers and other functions call: those of triggers need nobody's leave.
pub const INNER_FUNCTIONS: &[&str] = &[
    "revoke_session()",
    "revoke_all_sessions()",
    "end_sessions_of_disabled_user()",
    "note_administration()",
    "outdate_tokens()",
    "keep_an_admin()",
    "history_columns(jsonb, text[])",
    "write_history(text, text, jsonb, jsonb, text[], text[], text[])",
    "record_change()",
    "forget_person()",
];

/// The functions that [`APP`] may call.
pub const FUNCTIONS: &[&str] = &[
    "caused_by(text, text)",
    "take_login_attempt(timestamptz, bytea[], interval[], interval[], bytea, bytea)",
    "prepare_history()",
    "drop_history(timestamptz)",
];

/// What is enough for people who look. Each of them can set the times otherwise.
const READONLY_CONNECTIONS: u32 = 10;
const READONLY_TIMEOUT: &str = "60s";

/// How long [`set_up`] waits for a table that is in use. While it waits, everybody else who wants the table queues up.
const LOCK_TIMEOUT: &str = "2s";
/// How often [`set_up`] tries, with a rest in which the others get through.
const LOCK_ATTEMPTS: u32 = 30;
const LOCK_REST: Duration = Duration::from_secs(1);

/// Why the roles could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Whoever is logged in may not make roles.
    #[error(
        "{0} may not make roles: set MASTER_DB_SOURCE to one that may (CREATEROLE), such as RDS's master user"
    )]
    NotMaster(String),
    /// The database belongs to somebody else.
    #[error(
        "{user} may not say who connects to the database, which belongs to {owner}: log in as one of these, \
         or have {owner} granted to {user}"
    )]
    NotDatabaseOwner {
        /// Who is logged in.
        user: String,
        /// Whose database it is.
        owner: String,
    },
    /// Nobody can log in with IAM.
    #[error("there is no role rds_iam, which RDS makes: this is no database of RDS, or leave out --iam")]
    NoIam,
    /// What belongs to a role of Postgres's administrators, only one of them can give away.
    #[error("a part of the schema belongs to the superuser {0}: run this as a superuser")]
    SuperusersSchema(String),
    /// Roles belong to the whole server, and these are in use elsewhere in it.
    #[error(
        "the roles have rights in another database of this server ({}), and a role has one password for all of them: \
         give gatepass a server of its own, or share the roles (--share-roles)",
        .0.join(", ")
    )]
    Shared(Vec<String>),
    /// A role can do more than it should, and keeps it.
    #[error("{role} is {surplus}, and only a superuser can take that from it: do so, and run this again")]
    TooMighty {
        /// Which.
        role: &'static str,
        /// Its attributes and the roles that it is a member of.
        surplus: String,
    },
    /// Something in the schema is none of ours. Taken over, it would act with the rights of [`OWNER`].
    #[error(
        "the schema holds what no migration of gatepass has made: {}. Drop it, or move it to another schema \
         (ALTER … SET SCHEMA), and run this again",
        listed(.0)
    )]
    Foreign(Vec<String>),
    /// Not everything could be granted or revoked.
    #[error("the roles may still do something else than they should: {}", listed(.0))]
    Deviating(Vec<String>),
    /// Somebody is migrating.
    #[error(transparent)]
    Migrating(#[from] migrations::Error),
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// The first few.
fn listed(all: &[String]) -> String {
    const SHOWN: usize = 8;

    let more = all.len().saturating_sub(SHOWN);
    let shown = all[..all.len() - more].join(", ");
    if more > 0 { format!("{shown}, {more} more") } else { shown }
}

/// Whether the roles may have rights in other databases of the same server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// No: [`Error::Shared`].
    Refused,
    /// Yes: they are those of another gatepass, too.
    Allowed,
}

/// How the roles log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// With a password each: random ones for roles that are new, or for all.
    Password {
        /// Those of roles that exist are replaced.
        renew: bool,
    },
    /// With tokens of AWS's IAM (`rds_iam`).
    Iam,
    /// However `pg_hba.conf` says, without a password of ours.
    Otherwise,
}

/// One thing that [`set_up`] has seen to.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Step {
    /// How it is now.
    pub what: String,
    /// Whether it was otherwise before.
    pub changed: bool,
}

/// What [`set_up`] has done.
#[derive(Debug, Default)]
pub struct SetUp {
    /// Everything it has seen to.
    pub steps: Vec<Step>,
    /// The passwords that it has made, by role. They are kept nowhere.
    pub passwords: Vec<(&'static str, SecretString)>,
    /// As [`members`].
    pub members: Vec<String>,
}

/// Makes the roles, gives [`OWNER`] the schema and what the migrations have made in it, and everybody the privileges they
/// need, in one transaction; what is so already stays as it is. The tables need not be there yet.
///
/// Needs a role that may make roles and owns the database; a superuser need it not be. It becomes a member of [`OWNER`], as
/// does whoever owned the table `users`, so that a service that runs as that goes on.
///
/// # Errors
///
/// [`Error`]; then nothing has changed.
pub async fn set_up(
    conn: &mut PgConnection,
    login: Login,
    sharing: Sharing,
    rng: &mut (impl CryptoRng + Send),
) -> Result<SetUp, Error> {
    migrations::locked(conn, async |conn| {
        let mut attempt = 1;
        loop {
            match try_to_set_up(&mut *conn, login, sharing, &mut *rng).await {
                Err(Error::Database(error)) if is_in_use(&error) && attempt < LOCK_ATTEMPTS => {
                    tracing::info!(attempt, "waiting for others to let go of a table");
                    attempt += 1;
                    tokio::time::sleep(LOCK_REST).await;
                }
                done => break done,
            }
        }
    })
    .await
}

/// `lock_not_available` or `deadlock_detected`.
fn is_in_use(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("55P03" | "40P01"))
}

async fn try_to_set_up(
    conn: &mut PgConnection,
    login: Login,
    sharing: Sharing,
    rng: &mut impl CryptoRng,
) -> Result<SetUp, Error> {
    let mut transaction = super::begin_alone(conn).await?;
    // All names in full from here on.
    run(
        &mut transaction,
        &format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; SET LOCAL search_path = pg_catalog"),
    )
    .await?;
    let master = Master::of(&mut transaction).await?;
    let elsewhere = other_databases(&mut transaction).await?;
    if sharing == Sharing::Refused && !elsewhere.is_empty() {
        return Err(Error::Shared(elsewhere));
    }
    let mut done = SetUp::default();
    for role in [OWNER, APP, READONLY] {
        make_role(&mut transaction, role, login, rng, &mut done).await?;
    }
    done.membership(&mut transaction, &master, OWNER, &master.user, master.is_superuser).await?;
    done.database(&mut transaction, &master).await?;
    done.take_over(&mut transaction, &master).await?;
    done.limits(&mut transaction, &master).await?;
    run(
        &mut transaction,
        &format!(
            "ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} REVOKE EXECUTE ON ROUTINES FROM PUBLIC;
             SET LOCAL ROLE {OWNER};
             SET LOCAL search_path = public"
        ),
    )
    .await?;
    // What a later release has decided is not taken back.
    if let Ok(Schema::Newer(version)) = migrations::check(&mut transaction).await {
        return Err(migrations::Error::Newer(version).into());
    }
    let before = deviations(&mut transaction).await?;
    grant(&mut transaction).await?;
    let after = deviations(&mut transaction).await?;
    if !after.is_empty() {
        return Err(Error::Deviating(after));
    }
    done.step("every role may do what it has to, and nothing else", !before.is_empty());
    done.members = members(&mut transaction).await?;
    transaction.commit().await?;
    Ok(done)
}

/// The databases besides this in which the roles own something or may do something.
async fn other_databases(conn: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT DISTINCT datname::text AS "name!"
           FROM pg_shdepend AS dependency JOIN pg_database
               ON pg_database.oid = dbid OR classid = 'pg_database'::regclass AND pg_database.oid = objid
           WHERE refclassid = 'pg_authid'::regclass AND datname <> current_database()
               AND refobjid IN (SELECT oid FROM pg_roles WHERE rolname IN ($1, $2, $3))
           ORDER BY 1"#,
        OWNER,
        APP,
        READONLY
    )
    .fetch_all(conn)
    .await
}

/// Who is a member of [`OWNER`], may log in, and does not rule over roles anyhow as a master user does: whoever formerly
/// served, as a rule.
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

/// Who sets up, and where.
struct Master {
    user: String,
    is_superuser: bool,
    database: String,
    database_owner: String,
}

impl Master {
    async fn of(conn: &mut PgConnection) -> Result<Self, Error> {
        let who = sqlx::query!(
            r#"SELECT rolname::text AS "user!", rolsuper AS "is_superuser!", rolcreaterole AS "may_make_roles!",
                   datname::text AS "database!", pg_get_userbyid(datdba)::text AS "owner!",
                   pg_has_role(datdba, 'USAGE') AS "owns_database!"
               FROM pg_roles CROSS JOIN pg_database
               WHERE rolname = current_user AND datname = current_database()"#
        )
        .fetch_one(conn)
        .await?;
        if !who.is_superuser && !who.may_make_roles {
            return Err(Error::NotMaster(who.user));
        }
        if !who.owns_database {
            return Err(Error::NotDatabaseOwner { user: who.user, owner: who.owner });
        }
        Ok(Self {
            user: who.user,
            is_superuser: who.is_superuser,
            database: who.database,
            database_owner: who.owner,
        })
    }
}

async fn make_role(
    conn: &mut PgConnection,
    role: &'static str,
    login: Login,
    rng: &mut impl CryptoRng,
    done: &mut SetUp,
) -> Result<(), Error> {
    let found = sqlx::query!(r#"SELECT rolcanlogin AS "can_log_in!" FROM pg_roles WHERE rolname = $1"#, role)
        .fetch_optional(&mut *conn)
        .await?;
    if found.is_none() {
        run(&mut *conn, &format!("CREATE ROLE {role}")).await?;
    }
    let surplus = Surplus::of(&mut *conn, role).await?;
    surplus.take(&mut *conn, role).await?;
    done.step(
        format!("{role} rules nothing else on the server, and is a member of nothing"),
        !surplus.is_empty(),
    );
    let can_log_in = found.as_ref().is_some_and(|found| found.can_log_in);
    if !can_log_in {
        run(&mut *conn, &format!("ALTER ROLE {role} LOGIN")).await?;
    }
    done.step(format!("the role {role} can log in"), !can_log_in);
    match login {
        Login::Password { renew } if renew || found.is_none() => {
            let password = URL_SAFE_NO_PAD.encode(random::bytes::<24>(rng));
            let verifier = scram::verifier(&password, random::bytes(rng));
            run(&mut *conn, &format!("ALTER ROLE {role} PASSWORD '{verifier}'")).await?;
            done.step(format!("{role} has a new password"), true);
            done.passwords.push((role, password.into()));
        }
        Login::Password { .. } | Login::Otherwise => {}
        Login::Iam => {
            let state = sqlx::query!(
                r#"SELECT to_regrole('rds_iam') IS NOT NULL AS "exists!",
                       coalesce(pg_has_role($1, to_regrole('rds_iam'), 'MEMBER'), false) AS "is_member!""#,
                role as _,
            )
            .fetch_one(&mut *conn)
            .await?;
            if !state.exists {
                return Err(Error::NoIam);
            }
            if !state.is_member {
                run(&mut *conn, &format!("GRANT rds_iam TO {role}")).await?;
            }
            done.step(format!("{role} logs in with IAM"), !state.is_member);
        }
    }
    Ok(())
}

/// What a role that was made beforehand can do and should not.
struct Surplus {
    /// As in `ALTER ROLE`, without the `NO`.
    attributes: Vec<String>,
    /// The roles that it is a member of, but for RDS's that only says how it logs in.
    memberships: Vec<String>,
}

impl Surplus {
    async fn of(conn: &mut PgConnection, role: &str) -> Result<Self, sqlx::Error> {
        sqlx::query_as!(
            Self,
            r#"SELECT array_remove(ARRAY[
                       CASE WHEN rolsuper THEN 'SUPERUSER' END, CASE WHEN rolcreaterole THEN 'CREATEROLE' END,
                       CASE WHEN rolcreatedb THEN 'CREATEDB' END, CASE WHEN rolreplication THEN 'REPLICATION' END,
                       CASE WHEN rolbypassrls THEN 'BYPASSRLS' END
                   ], NULL) AS "attributes!",
                   ARRAY(
                       SELECT DISTINCT pg_get_userbyid(roleid)::text FROM pg_auth_members
                       WHERE member = pg_roles.oid AND pg_get_userbyid(roleid) <> 'rds_iam'
                   ) AS "memberships!"
               FROM pg_roles WHERE rolname = $1"#,
            role
        )
        .fetch_one(conn)
        .await
    }

    fn is_empty(&self) -> bool {
        self.attributes.is_empty() && self.memberships.is_empty()
    }

    async fn take(&self, conn: &mut PgConnection, role: &'static str) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        let mut sql = String::new();
        if !self.attributes.is_empty() {
            sql.push_str(&format!("ALTER ROLE {role} NO{};\n", self.attributes.join(" NO")));
        }
        for other in &self.memberships {
            sql.push_str(&format!("REVOKE {} FROM {role};\n", quoted(other)));
        }
        let left = match run(&mut *conn, &sql).await {
            // What somebody else has granted, REVOKE may pass over without an error.
            Ok(()) => Self::of(conn, role).await?.describe(),
            Err(error) if migrations::is_not_privileged(&error) => self.describe(),
            Err(error) => return Err(error.into()),
        };
        if left.is_empty() { Ok(()) } else { Err(Error::TooMighty { role, surplus: left }) }
    }

    fn describe(&self) -> String {
        let memberships = self.memberships.iter().map(|role| format!("a member of {role}"));
        self.attributes.iter().cloned().chain(memberships).collect::<Vec<_>>().join(", ")
    }
}

/// Something in one of our schemas, or a trigger on a table there.
struct Object {
    /// As in `ALTER`.
    kind: String,
    /// In full.
    name: String,
    /// Of a partition, the table.
    root: Option<String>,
    /// Of a trigger, the owner of its function.
    owner: String,
    is_superusers: bool,
}

impl Object {
    /// Whether the migrations make something of the kind and the name.
    fn is_known(&self) -> bool {
        let is = |kind: &str, schema: &str, name: &str| {
            self.kind == kind && self.name.strip_prefix(schema) == Some(name)
        };
        let tables = || TABLES.iter().map(|table| table.name);
        self.kind == "SCHEMA"
            || self.kind == "TRIGGER"
            || tables().any(|name| is("TABLE", "public.", name))
            || tables().any(|name| is("VIEW", "masked.", name))
            || self.root.as_ref().is_some_and(|root| tables().any(|name| *root == format!("public.{name}")))
            || FUNCTIONS
                .iter()
                .chain(INNER_FUNCTIONS)
                .any(|name| self.kind == "FUNCTION" && self.name == full_function_name(name))
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} of {}", self.kind.to_lowercase(), self.name, self.owner)
    }
}

/// As Postgres writes it.
fn full_function_name(name: &str) -> String {
    format!("public.{}", name.replace("timestamptz", "timestamp with time zone").replace(", ", ","))
}

/// Everything of whatever kind in our schemas that [`OWNER`] does not own, but for what extensions have brought; the
/// schemas first.
async fn of_others(conn: &mut PgConnection) -> Result<Vec<Object>, sqlx::Error> {
    sqlx::query_as!(
        Object,
        r#"WITH space AS (SELECT oid, nspname, nspowner FROM pg_namespace WHERE nspname IN ('public', 'masked')),
           object AS (
               SELECT 0 AS place, 'pg_namespace'::regclass::oid AS class, oid AS id, 'SCHEMA' AS kind,
                   quote_ident(nspname) AS name, NULL AS root, nspowner AS owner
               FROM space
               UNION ALL
               SELECT 1, classid, objid, upper(what.type),
                   CASE classid
                       WHEN 'pg_class'::regclass THEN objid::regclass::text
                       WHEN 'pg_proc'::regclass THEN objid::regprocedure::text
                       ELSE what.identity
                   END,
                   CASE classid WHEN 'pg_class'::regclass THEN pg_partition_root(objid)::regclass::text END,
                   -- What belongs to the first superuser is not noted down.
                   coalesce((
                       SELECT ownership.refobjid FROM pg_shdepend AS ownership
                       WHERE ownership.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
                           AND ownership.classid = content.classid AND ownership.objid = content.objid
                           AND ownership.deptype = 'o'
                   ), 10)
               FROM pg_depend AS content, pg_identify_object(classid, objid, 0) AS what
               WHERE refclassid = 'pg_namespace'::regclass AND refobjid IN (SELECT oid FROM space) AND deptype = 'n'
                   -- A sequence of a column follows the table.
                   AND NOT EXISTS (
                       SELECT FROM pg_depend AS following JOIN pg_class ON pg_class.oid = following.objid
                       WHERE following.classid = 'pg_class'::regclass AND following.objid = content.objid
                           AND content.classid = 'pg_class'::regclass AND relkind = 'S'
                           AND following.deptype IN ('a', 'i')
                   )
               UNION ALL
               SELECT 2, 'pg_trigger'::regclass, pg_trigger.oid, 'TRIGGER', format('%I on %s', tgname, tgrelid::regclass),
                   NULL, proowner
               FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid JOIN pg_proc ON pg_proc.oid = tgfoid
               WHERE relnamespace IN (SELECT oid FROM space) AND NOT tgisinternal
           )
           SELECT kind AS "kind!", name AS "name!", root, rolname::text AS "owner!", rolsuper AS "is_superusers!"
           FROM object JOIN pg_roles ON pg_roles.oid = owner
           WHERE rolname <> $1 AND NOT EXISTS (
               SELECT FROM pg_depend WHERE classid = class AND objid = id AND deptype = 'e'
           )
           ORDER BY place, kind, name"#,
        OWNER
    )
    .fetch_all(conn)
    .await
}

impl SetUp {
    fn step(&mut self, what: impl Into<String>, changed: bool) {
        self.steps.push(Step { what: what.into(), changed });
    }

    /// Makes `member` a member of `role`, so that it can do all that `role` can; of superusers that is true already.
    async fn membership(
        &mut self,
        conn: &mut PgConnection,
        master: &Master,
        role: &str,
        member: &str,
        is_superuser: bool,
    ) -> Result<(), Error> {
        if is_superuser {
            return Ok(());
        }
        let is_member = may_act_as(&mut *conn, member, role).await?;
        if !is_member {
            run(&mut *conn, &format!("GRANT {} TO {}", quoted(role), quoted(member))).await?;
        }
        let whose = if member == master.user { " (which runs this)" } else { "" };
        self.step(format!("{member}{whose} is a member of {role}"), !is_member);
        Ok(())
    }

    /// Who may connect. Nobody may make temporary tables: the service has none.
    async fn database(&mut self, conn: &mut PgConnection, master: &Master) -> Result<(), Error> {
        let before = database_rights(&mut *conn).await?;
        let others = sqlx::query_scalar!(
            r#"SELECT DISTINCT rolname::text AS "name!"
               FROM pg_database CROSS JOIN aclexplode(datacl) AS entry JOIN pg_roles ON pg_roles.oid = grantee
               WHERE datname = current_database() AND grantee <> datdba AND rolname NOT IN ($1, $2, $3)"#,
            OWNER,
            APP,
            READONLY
        )
        .fetch_all(&mut *conn)
        .await?;
        let others: String = others.iter().map(|role| format!(", {}", quoted(role))).collect();
        run(
            &mut *conn,
            &format!(
                "REVOKE ALL ON DATABASE {database} FROM PUBLIC, {OWNER}, {APP}, {READONLY}{others} CASCADE;
                 GRANT CONNECT ON DATABASE {database} TO {OWNER}, {APP}, {READONLY};
                 GRANT CREATE ON DATABASE {database} TO {OWNER}",
                database = quoted(&master.database)
            ),
        )
        .await?;
        let after = database_rights(&mut *conn).await?;
        self.step(
            format!("only these roles, their members and the owner connect to {}", master.database),
            before != after,
        );
        Ok(())
    }

    /// Gives [`OWNER`] the schemas, and what the migrations have made in them: nothing else, and nothing that somebody may
    /// have put there before the migrations came to make it.
    async fn take_over(&mut self, conn: &mut PgConnection, master: &Master) -> Result<(), Error> {
        let others = of_others(&mut *conn).await?;
        // Whoever owns the users has migrated.
        let migrated = others.iter().find(|object| object.kind == "TABLE" && object.name == "public.users");
        let migrated = migrated.map(|users| (users.owner.clone(), users.is_superusers));
        let is_trusted = |object: &Object| {
            object.is_superusers
                || object.owner == master.user
                || object.owner == master.database_owner
                // That is the owner of the database: until now nobody chose one for the schema.
                || object.owner == "pg_database_owner"
                || migrated.as_ref().is_some_and(|(owner, _)| *owner == object.owner)
        };
        let (ours, foreign): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|object| object.is_known() && is_trusted(object));
        if !foreign.is_empty() {
            return Err(Error::Foreign(foreign.iter().map(ToString::to_string).collect()));
        }
        let ours: Vec<_> = ours.into_iter().filter(|object| object.kind != "TRIGGER").collect();
        let owners: BTreeSet<_> = ours
            .iter()
            .filter(|object| object.owner != "pg_database_owner")
            .map(|object| (object.owner.as_str(), object.is_superusers))
            .collect();
        let mut lent = Vec::new();
        for (owner, is_superuser) in owners {
            if is_superuser && !master.is_superuser {
                return Err(Error::SuperusersSchema(owner.to_owned()));
            }
            if !may_act_as(&mut *conn, &master.user, owner).await? {
                run(&mut *conn, &format!("GRANT {} TO {}", quoted(owner), quoted(&master.user))).await?;
                lent.push(owner);
            }
        }
        for object in &ours {
            run(&mut *conn, &format!("ALTER {} {} OWNER TO {OWNER}", object.kind, object.name)).await?;
        }
        for owner in lent {
            run(&mut *conn, &format!("REVOKE {} FROM {}", quoted(owner), quoted(&master.user))).await?;
        }
        self.step(format!("{OWNER} owns the schema and all that is in it"), !ours.is_empty());
        if let Some((owner, is_superuser)) = migrated
            && ![master.user.as_str(), APP, READONLY].contains(&owner.as_str())
        {
            // What runs as it would stop at once.
            self.membership(&mut *conn, master, OWNER, &owner, is_superuser).await?;
        }
        Ok(())
    }

    /// What keeps people who look from being in the way by accident.
    async fn limits(&mut self, conn: &mut PgConnection, master: &Master) -> Result<(), Error> {
        let before = settings_of_readonly(&mut *conn).await?;
        run(
            &mut *conn,
            &format!(
                "ALTER ROLE {READONLY} CONNECTION LIMIT {READONLY_CONNECTIONS};
                 ALTER ROLE {READONLY} IN DATABASE {database} SET search_path = masked;
                 ALTER ROLE {READONLY} IN DATABASE {database} SET default_transaction_read_only = on;
                 ALTER ROLE {READONLY} IN DATABASE {database} SET statement_timeout = '{READONLY_TIMEOUT}';
                 ALTER ROLE {READONLY} IN DATABASE {database}
                     SET idle_in_transaction_session_timeout = '{READONLY_TIMEOUT}'",
                database = quoted(&master.database),
            ),
        )
        .await?;
        let after = settings_of_readonly(&mut *conn).await?;
        self.step(format!("{READONLY} reads, for {READONLY_TIMEOUT} at a time"), before != after);
        Ok(())
    }
}

async fn database_rights(conn: &mut PgConnection) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar!("SELECT datacl::text FROM pg_database WHERE datname = current_database()")
        .fetch_one(conn)
        .await
}

async fn settings_of_readonly(conn: &mut PgConnection) -> Result<String, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT concat(rolconnlimit, setconfig) AS "all!"
           FROM pg_roles LEFT JOIN pg_db_role_setting ON setrole = pg_roles.oid
               AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
           WHERE rolname = $1"#,
        READONLY
    )
    .fetch_one(conn)
    .await
}

async fn may_act_as(conn: &mut PgConnection, user: &str, role: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT pg_has_role(member.oid, role.oid, 'USAGE') AS "may!"
           FROM pg_roles AS member CROSS JOIN pg_roles AS role WHERE member.rolname = $1 AND role.rolname = $2"#,
        user,
        role
    )
    .fetch_one(conn)
    .await
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

/// Goes on as [`OWNER`] until [`be_oneself`], where [`it has to`](needs_owner). `false` when there are no roles.
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

/// Whether the schema or the users are [`OWNER`]'s: then what a migration makes is its too, whoever is logged in.
///
/// # Errors
///
/// [`migrations::Error::NotOwner`] when whoever is logged in may not act as that.
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

/// Whether there are roles that may do something else than they should.
pub(super) async fn deviate(conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let mut transaction = super::begin_alone(conn).await?;
    Ok(owns_schema(&mut transaction).await? && !deviations(&mut transaction).await?.is_empty())
}

/// Grants once more where that is needed. Somebody who may not is no reason to stop.
pub(super) async fn repair(conn: &mut PgConnection) -> Result<(), migrations::Error> {
    if !deviate(&mut *conn).await? {
        return Ok(());
    }
    match become_owner(&mut *conn).await {
        Ok(_) => {
            grant(&mut *conn).await?;
            be_oneself(conn).await?;
            tracing::info!("the roles may again do what they have to, and nothing else");
        }
        Err(migrations::Error::NotOwner(user)) => tracing::warn!(
            "the roles may do something else than they should, and {user} may not change that: run `gatepass db setup`"
        ),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Goes on as whoever is logged in.
pub(super) async fn be_oneself(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    run(conn, "RESET ROLE").await
}

/// Gives [`APP`] and [`READONLY`] what [`TABLES`] and [`FUNCTIONS`] say, and takes everything else from them and from
/// everybody, in one transaction. [`OWNER`] calls it, and what it does not own is left alone. Tables and columns that are
/// not there (yet, or any more) are passed over.
///
/// # Errors
///
/// When the database fails.
pub(super) async fn grant(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = super::begin_alone(conn).await?;
    let all = everything(&mut transaction).await?;
    let strangers: String = all.strangers.iter().map(|role| format!(", {}", quoted(role))).collect();
    let mut sql = String::new();
    for (kind, name) in &all.objects {
        sql.push_str(&format!(
            "REVOKE ALL ON {kind} {name} FROM PUBLIC, {APP}, {READONLY}{strangers} CASCADE;\n"
        ));
    }
    for (role, wanted) in [(APP, Privileges::of_app()), (READONLY, Privileges::of_readonly())] {
        for privilege in wanted.0.iter().filter(|privilege| all.has(privilege)) {
            let columns = privilege.column.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
            let kind = match &*privilege.name {
                "EXECUTE" => "ROUTINE",
                "USAGE" => "SCHEMA",
                _ => "TABLE",
            };
            sql.push_str(&format!(
                "GRANT {}{columns} ON {kind} {} TO {role};\n",
                privilege.name, privilege.object
            ));
        }
    }
    run(&mut transaction, &sql).await?;
    transaction.commit().await
}

/// What [`OWNER`] has in the schemas.
struct Everything {
    /// Kind and full name.
    objects: Vec<(String, String)>,
    /// Full names of tables and views, and their columns.
    columns: BTreeSet<(String, String)>,
    /// Who may do something with them and is none of ours.
    strangers: Vec<String>,
}

impl Everything {
    fn has(&self, privilege: &Privilege) -> bool {
        match &privilege.column {
            Some(column) => self.columns.contains(&(privilege.object.clone(), column.clone())),
            None => self.objects.iter().any(|(_, name)| *name == privilege.object),
        }
    }
}

/// Inside of a transaction.
async fn everything(conn: &mut PgConnection) -> Result<Everything, sqlx::Error> {
    run(&mut *conn, "SET LOCAL search_path = pg_catalog").await?;
    let objects = sqlx::query!(
        r#"WITH space AS (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'masked'))
           SELECT kind AS "kind!", name AS "name!" FROM (
               SELECT 'SCHEMA' AS kind, quote_ident(nspname) AS name, nspowner AS owner
               FROM pg_namespace WHERE oid IN (SELECT oid FROM space)
               UNION ALL
               SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, oid::regclass::text, relowner
               FROM pg_class WHERE relnamespace IN (SELECT oid FROM space) AND relkind IN ('r', 'p', 'v', 'S')
               UNION ALL
               SELECT 'ROUTINE', oid::regprocedure::text, proowner
               FROM pg_proc WHERE pronamespace IN (SELECT oid FROM space)
           ) AS object
           WHERE pg_get_userbyid(owner) = $1"#,
        OWNER as _
    )
    .fetch_all(&mut *conn)
    .await?;
    let strangers = sqlx::query_scalar!(
        r#"WITH space AS (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'masked'))
           SELECT DISTINCT rolname::text AS "name!" FROM (
               SELECT nspacl AS acl, nspowner AS owner FROM pg_namespace WHERE oid IN (SELECT oid FROM space)
               UNION ALL
               SELECT relacl, relowner FROM pg_class WHERE relnamespace IN (SELECT oid FROM space)
               UNION ALL
               SELECT attacl, relowner FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
               WHERE relnamespace IN (SELECT oid FROM space)
               UNION ALL
               SELECT proacl, proowner FROM pg_proc WHERE pronamespace IN (SELECT oid FROM space)
           ) AS object CROSS JOIN aclexplode(acl) AS entry JOIN pg_roles ON pg_roles.oid = grantee
           WHERE pg_get_userbyid(owner) = $1 AND grantee <> owner AND rolname NOT IN ($2, $3)
           ORDER BY 1"#,
        OWNER as _,
        APP,
        READONLY
    )
    .fetch_all(&mut *conn)
    .await?;
    let columns = sqlx::query!(
        r#"SELECT attrelid::regclass::text AS "name!", attname::text AS "column!"
           FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
           WHERE relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'masked'))
               AND relkind IN ('r', 'p', 'v') AND attnum > 0 AND NOT attisdropped"#
    )
    .fetch_all(conn)
    .await?;
    Ok(Everything {
        objects: objects.into_iter().map(|object| (object.kind, object.name)).collect(),
        columns: columns.into_iter().map(|row| (row.name, row.column)).collect(),
        strangers,
    })
}

/// Leave to do one thing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Privilege {
    /// The full name of a table, a view or a function, or a schema's.
    pub object: String,
    /// One column alone.
    pub column: Option<String>,
    /// As in `GRANT`.
    pub name: String,
}

impl Privilege {
    /// To find anything in a schema.
    fn to_use(schema: &str) -> Self {
        Self { object: schema.into(), column: None, name: "USAGE".into() }
    }
}

impl fmt::Display for Privilege {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.column {
            Some(column) => write!(f, "{} ({column}) on {}", self.name, self.object),
            None => write!(f, "{} on {}", self.name, self.object),
        }
    }
}

/// What a role may do with schemas, tables, views and functions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Privileges(pub BTreeSet<Privilege>);

impl Privileges {
    /// What [`APP`] should have.
    pub fn of_app() -> Self {
        let mut all = BTreeSet::new();
        for table in TABLES {
            let object = format!("public.{}", table.name);
            let mut add = |name: &str, columns: Columns| match columns {
                Columns::None => {}
                Columns::All => {
                    all.insert(Privilege { object: object.clone(), column: None, name: name.into() });
                }
                Columns::These(columns) => all.extend(columns.iter().map(|column| Privilege {
                    object: object.clone(),
                    column: Some((*column).into()),
                    name: name.into(),
                })),
            };
            add("SELECT", table.select);
            add("INSERT", table.insert);
            add("UPDATE", table.update);
            add("DELETE", if table.delete { Columns::All } else { Columns::None });
        }
        all.extend(FUNCTIONS.iter().map(|function| Privilege {
            object: full_function_name(function),
            column: None,
            name: "EXECUTE".into(),
        }));
        all.insert(Privilege::to_use("public"));
        Self(all)
    }

    /// What [`READONLY`] should have.
    pub fn of_readonly() -> Self {
        let masked = TABLES.iter().filter(|table| table.masked);
        let all = masked.map(|table| Privilege {
            object: format!("masked.{}", table.name),
            column: None,
            name: "SELECT".into(),
        });
        Self(all.chain([Privilege::to_use("masked")]).collect())
    }

    /// What `role` has, in whatever way it comes by it.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn held(conn: &mut PgConnection, role: &str) -> Result<Self, sqlx::Error> {
        let mut transaction = super::begin_alone(conn).await?;
        run(&mut transaction, "SET LOCAL search_path = pg_catalog").await?;
        let all = sqlx::query!(
            r#"WITH relation AS (
                   SELECT class.oid, class.oid::regclass::text AS name, relkind, role.oid AS role
                   FROM pg_class AS class CROSS JOIN pg_roles AS role
                   WHERE rolname = $1 AND relkind IN ('r', 'p', 'v', 'S')
                       AND relnamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'masked'))
                       AND NOT EXISTS (
                           SELECT FROM pg_depend
                           WHERE classid = 'pg_class'::regclass AND objid = class.oid AND deptype = 'e'
                       )
               )
               SELECT name AS "object!", NULL AS "column", privilege AS "name!"
               FROM relation
               CROSS JOIN unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) AS privilege
               WHERE relkind <> 'S' AND has_table_privilege(role, oid, privilege)
               UNION ALL
               SELECT name, attname::text, privilege
               FROM relation
               JOIN pg_attribute ON attrelid = oid AND attnum > 0 AND NOT attisdropped
               CROSS JOIN unnest('{SELECT,INSERT,UPDATE,REFERENCES}'::text[]) AS privilege
               WHERE relkind <> 'S' AND NOT has_table_privilege(role, oid, privilege)
                   AND has_column_privilege(role, oid, attnum, privilege)
               UNION ALL
               SELECT name, NULL, privilege
               FROM relation CROSS JOIN unnest('{USAGE,SELECT,UPDATE}'::text[]) AS privilege
               WHERE relkind = 'S' AND has_sequence_privilege(role, oid, privilege)
               UNION ALL
               SELECT nspname::text, NULL, 'USAGE'
               FROM pg_namespace AS space CROSS JOIN pg_roles AS role
               WHERE rolname = $1 AND nspname IN ('public', 'masked')
                   AND has_schema_privilege(role.oid, space.oid, 'USAGE')
               UNION ALL
               SELECT proc.oid::regprocedure::text, NULL, 'EXECUTE'
               FROM pg_proc AS proc CROSS JOIN pg_roles AS role
               WHERE rolname = $1 AND has_function_privilege(role.oid, proc.oid, 'EXECUTE')
                   AND pronamespace IN (SELECT oid FROM pg_namespace WHERE nspname IN ('public', 'masked'))
                   AND NOT EXISTS (
                       SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = proc.oid AND deptype = 'e'
                   )"#,
            role
        )
        .fetch_all(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Self(
            all.into_iter()
                .map(|row| Privilege { object: row.object, column: row.column, name: row.name })
                .collect(),
        ))
    }

    /// What of these is not among `others`. Who may do something with a table may do it with each column.
    pub fn beyond(&self, others: &Self) -> Vec<&Privilege> {
        let is_among = |privilege: &Privilege| {
            others.0.contains(privilege)
                || others.0.contains(&Privilege { column: None, ..privilege.clone() })
        };
        self.0.iter().filter(|privilege| !is_among(privilege)).collect()
    }
}

/// What [`APP`] and [`READONLY`] have too much or too little of, of what is there, and who else has any of it. Inside of a
/// transaction.
async fn deviations(conn: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let there = everything(&mut *conn).await?;
    let mut all: Vec<_> =
        there.strangers.iter().map(|stranger| format!("{stranger} has rights of its own")).collect();
    for (role, mut wanted) in [(APP, Privileges::of_app()), (READONLY, Privileges::of_readonly())] {
        wanted.0.retain(|privilege| there.has(privilege));
        let held = Privileges::held(&mut *conn, role).await?;
        all.extend(held.beyond(&wanted).iter().map(|excess| format!("{role} has {excess}")));
        all.extend(wanted.beyond(&held).iter().map(|lack| format!("{role} lacks {lack}")));
    }
    Ok(all)
}

/// Who is logged in, and whether that is more than a service should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub user: String,
    /// It may do everything in every database.
    pub is_superuser: bool,
    /// It may make roles or databases, or is not held by row security.
    pub administers: bool,
    /// Tables belong to it, or to a role that it is a member of.
    pub owns_tables: bool,
}

/// Who is logged in.
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

/// Runs statements that name roles, tables or databases: of such the macros of sqlx cannot be told. The names are
/// constants, or come quoted from the catalogue or [`quoted`].
async fn run(conn: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await?;
    Ok(())
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
