//! Creates the roles, once.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand_core::CryptoRng;
use secrecy::SecretString;

use super::{APP, OWNER, READONLY, members, privileges, quoted, run};
use crate::{
    random,
    store::{
        PgConnection, begin_alone,
        migrations::{self, LOCK_ATTEMPTS, LOCK_REST, Schema},
        scram,
    },
};

/// Enough for people who read. Each of them can change the timeouts.
const READONLY_CONNECTIONS: u32 = 10;
const READONLY_TIMEOUT: &str = "60s";

/// Why the roles could not be created.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The role that is logged in may not create roles.
    #[error(
        "{0} may not create roles: set MASTER_DB_SOURCE to the URL of a role that may (CREATEROLE), such as RDS's \
         master user"
    )]
    NotMaster(String),
    /// From Postgres 16 on, changing a role takes ADMIN OPTION on it, which its creator gets. Roles brought along by
    /// `pg_upgrade` count as made by others.
    #[error(
        "{user} may not change the roles that others have created: have their creator, or a superuser, run \
         GRANT {} TO {} WITH ADMIN OPTION, and run this again",
        .roles.join(", "),
        quoted(.user)
    )]
    OthersRoles {
        /// The role that is logged in.
        user: String,
        /// The roles in question.
        roles: Vec<String>,
    },
    /// The database belongs to another role.
    #[error(
        "{user} may not grant access to the database, which belongs to {owner}: log in as {owner}, \
         or have {owner} granted to {user}"
    )]
    NotDatabaseOwner {
        /// The role that is logged in.
        user: String,
        /// The owner of the database.
        owner: String,
    },
    /// Nobody can log in with IAM here.
    #[error("there is no role rds_iam, which RDS creates: if this is not an RDS database, leave out --iam")]
    NoIam,
    /// What belongs to a superuser can be given away only by a superuser.
    #[error("a part of the schema belongs to the superuser {0}: run this as a superuser")]
    SuperusersSchema(String),
    /// Roles belong to the whole server, and these are in use elsewhere on it.
    #[error(
        "the roles have rights in another database of this server ({}), and a role has one password for all of them: \
         give gatepass a server of its own, or share the roles (--share-roles)",
        .0.join(", ")
    )]
    Shared(Vec<String>),
    /// A role has more rights than it should, and they cannot be taken from it.
    #[error("{role} is {surplus}, and only a superuser can take that from it: do so, and run this again")]
    TooMighty {
        /// The role.
        role: &'static str,
        /// Its attributes and the roles that it is a member of.
        surplus: String,
    },
    /// Something in the schema is not ours. If it were taken over, it would act with the rights of [`OWNER`].
    #[error(
        "the schema holds objects that no migration of gatepass has created: {}. Drop them, or move them to another \
         schema (ALTER … SET SCHEMA), and run this again",
        listed(.0)
    )]
    Foreign(Vec<String>),
    /// Not everything could be granted or revoked.
    #[error("the rights of the roles are still not what they should be: {}", listed(.0))]
    Deviating(Vec<String>),
    /// Somebody else is migrating.
    #[error(transparent)]
    Migrating(#[from] migrations::Error),
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
}

/// The first few, as a list.
fn listed(all: &[String]) -> String {
    const SHOWN: usize = 8;

    let more = all.len().saturating_sub(SHOWN);
    let shown = all[..all.len() - more].join(", ");
    if more > 0 { format!("{shown}, {more} more") } else { shown }
}

/// Whether the roles may have rights in other databases of the same server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// They may not: [`Error::Shared`].
    Refused,
    /// They may: they are the roles of another gatepass, too.
    Allowed,
}

/// How the roles log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// With a password each: a random one for each role that is new, or for every role.
    Password {
        /// Whether the passwords of existing roles are replaced too.
        renew: bool,
    },
    /// With tokens of AWS's IAM (`rds_iam`).
    Iam,
    /// However `pg_hba.conf` says, without a password from us.
    Otherwise,
}

/// One thing that [`set_up`] has taken care of.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Step {
    /// The state that it is in now.
    pub what: String,
    /// Whether that is a change.
    pub changed: bool,
}

/// What [`set_up`] has done.
#[derive(Debug, Default)]
pub struct SetUp {
    /// Everything that it has taken care of.
    pub steps: Vec<Step>,
    /// The passwords that it has generated, by role. They are stored nowhere.
    pub passwords: Vec<(&'static str, SecretString)>,
    /// As in [`members`].
    pub members: Vec<String>,
}

/// Creates the roles, gives [`OWNER`] the schema and what the migrations have made in it, and gives each role the
/// privileges that it needs, in one transaction. What is right already stays as it is. The tables need not exist yet.
///
/// This needs a role that may create roles and owns the database, but not a superuser. That role becomes a member of
/// [`OWNER`]. So does the former owner of the table `users`, so that a service that runs as that owner can continue.
///
/// # Errors
///
/// Any [`Error`]; then nothing has changed.
pub async fn set_up(
    conn: &mut PgConnection,
    login: Login,
    sharing: Sharing,
    rng: &mut (impl CryptoRng + Send),
) -> Result<SetUp, Error> {
    migrations::locked(conn, async |conn| {
        let mut attempt = 1;
        loop {
            let lock_timeout = migrations::lock_timeout(attempt);
            match try_to_set_up(&mut *conn, login, sharing, lock_timeout, &mut *rng).await {
                Err(Error::Database(error))
                    if migrations::is_locked_out(&error) && attempt < LOCK_ATTEMPTS =>
                {
                    tracing::info!(attempt, "waiting for a lock on a table");
                    attempt += 1;
                    tokio::time::sleep(LOCK_REST).await;
                }
                done => break done,
            }
        }
    })
    .await
}

async fn try_to_set_up(
    conn: &mut PgConnection,
    login: Login,
    sharing: Sharing,
    lock_timeout: &str,
    rng: &mut impl CryptoRng,
) -> Result<SetUp, Error> {
    let mut transaction = begin_alone(conn).await?;
    // All names are written in full from here on.
    run(
        &mut transaction,
        &format!("SET LOCAL lock_timeout = '{lock_timeout}'; SET LOCAL search_path = pg_catalog"),
    )
    .await?;
    let master = Master::of(&mut transaction).await?;
    let elsewhere = other_databases(&mut transaction).await?;
    if sharing == Sharing::Refused && !elsewhere.is_empty() {
        return Err(Error::Shared(elsewhere));
    }
    let roles = others_roles(&mut transaction).await?;
    if !roles.is_empty() {
        return Err(Error::OthersRoles { user: master.user, roles });
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
    // What a later release has decided must not be undone.
    if let Ok(Schema::Newer(version)) | Err(migrations::Error::LeftBehind { version, .. }) =
        migrations::check(&mut transaction).await
    {
        return Err(migrations::Error::Newer(version).into());
    }
    let before = privileges::deviations(&mut transaction).await?;
    privileges::grant(&mut transaction).await?;
    let after = privileges::deviations(&mut transaction).await?;
    if !after.is_empty() {
        return Err(Error::Deviating(after));
    }
    done.step("every role has the rights that it needs, and no others", !before.is_empty());
    done.members = members(&mut transaction).await?;
    transaction.commit().await?;
    Ok(done)
}

/// The databases other than this one in which the roles own something or have rights.
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

/// Those of the roles that exist and may not be changed.
async fn others_roles(conn: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT rolname::text AS "name!" FROM pg_roles
           WHERE rolname IN ($1, $2, $3) AND current_setting('server_version_num')::integer >= 160000
               AND NOT pg_has_role(oid, 'MEMBER WITH ADMIN OPTION')
           ORDER BY 1"#,
        OWNER,
        APP,
        READONLY
    )
    .fetch_all(conn)
    .await
}

/// The role that sets up, and the database.
pub(super) struct Master {
    pub(super) user: String,
    pub(super) is_superuser: bool,
    database: String,
    pub(super) database_owner: String,
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
    done.step(format!("{role} exists"), found.is_none());
    let surplus = Surplus::of(&mut *conn, role).await?;
    surplus.take(&mut *conn, role).await?;
    done.step(
        format!("{role} has no administrative attributes, and is a member of no role"),
        found.is_none() || !surplus.is_empty(),
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

/// What a role that existed before has and should not have.
struct Surplus {
    /// As in `ALTER ROLE`, without the `NO`.
    attributes: Vec<String>,
    /// The roles that it is a member of, except for RDS's own, which only says how it logs in.
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
            // REVOKE may skip what somebody else has granted, without an error.
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

impl SetUp {
    pub(super) fn step(&mut self, what: impl Into<String>, changed: bool) {
        self.steps.push(Step { what: what.into(), changed });
    }

    /// Makes `member` a member of `role`, so that it can do all that `role` can. A superuser can already.
    pub(super) async fn membership(
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

    /// Sets who may connect. Nobody may create temporary tables: the service has none.
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

    /// Sets limits that keep people who read from getting in the way by accident.
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
        self.step(format!("{READONLY} can only read, for {READONLY_TIMEOUT} at a time"), before != after);
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

pub(super) async fn may_act_as(conn: &mut PgConnection, user: &str, role: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar!(
        r#"SELECT pg_has_role(member.oid, role.oid, 'USAGE') AS "may!"
           FROM pg_roles AS member CROSS JOIN pg_roles AS role WHERE member.rolname = $1 AND role.rolname = $2"#,
        user,
        role
    )
    .fetch_one(conn)
    .await
}
