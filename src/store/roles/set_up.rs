//! The roles are made, once.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rand_core::CryptoRng;
use secrecy::SecretString;

use super::{APP, OWNER, READONLY, members, privileges, quoted, run};
use crate::{
    random,
    store::{
        PgConnection, begin_alone,
        error::has_code,
        migrations::{self, LOCK_ATTEMPTS, LOCK_REST, LOCK_TIMEOUT, Schema},
        scram,
    },
};

/// What is enough for people who look. Each of them can set the times otherwise.
const READONLY_CONNECTIONS: u32 = 10;
const READONLY_TIMEOUT: &str = "60s";

/// Why the roles could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Whoever is logged in may not make roles.
    #[error(
        "{0} may not make roles: set MASTER_DB_SOURCE to one that may (CREATEROLE), such as RDS's master user"
    )]
    NotMaster(String),
    /// From Postgres 16 on, the roles that others have made are theirs. Those that `pg_upgrade` has brought along are, too.
    #[error(
        "{user} may not change the roles that others have made: have one of these, or a superuser, say \
         GRANT {} TO {} WITH ADMIN OPTION, and run this again",
        .roles.join(", "),
        quoted(.user)
    )]
    OthersRoles {
        /// Who is logged in.
        user: String,
        /// Which.
        roles: Vec<String>,
    },
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
                // lock_not_available, deadlock_detected
                Err(Error::Database(error))
                    if has_code(&error, &["55P03", "40P01"]) && attempt < LOCK_ATTEMPTS =>
                {
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

async fn try_to_set_up(
    conn: &mut PgConnection,
    login: Login,
    sharing: Sharing,
    rng: &mut impl CryptoRng,
) -> Result<SetUp, Error> {
    let mut transaction = begin_alone(conn).await?;
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
    // What a later release has decided is not taken back.
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

/// Those of the roles that are there and may not be changed.
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

/// Who sets up, and where.
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

impl SetUp {
    pub(super) fn step(&mut self, what: impl Into<String>, changed: bool) {
        self.steps.push(Step { what: what.into(), changed });
    }

    /// Makes `member` a member of `role`, so that it can do all that `role` can; of superusers that is true already.
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
