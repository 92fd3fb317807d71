//! Gives [`OWNER`] what the migrations have made, whoever owned it before.

use std::{collections::BTreeSet, fmt};

use super::{
    APP, Error, FUNCTIONS, INNER_FUNCTIONS, OWNER, READONLY, SetUp, TABLES, full_function_name, quoted, run,
    set_up::{Master, may_act_as},
};
use crate::store::PgConnection;

impl SetUp {
    /// Gives [`OWNER`] the schemas and what the migrations have made in them: nothing else, and nothing that somebody
    /// may have put there before the migrations came to make it.
    pub(super) async fn take_over(&mut self, conn: &mut PgConnection, master: &Master) -> Result<(), Error> {
        let others = of_others(&mut *conn).await?;
        // The owner of the users is the role that migrated.
        let migrated = others.iter().find(|object| object.kind == "TABLE" && object.name == "public.users");
        let migrated = migrated.map(|users| (users.owner.clone(), users.is_superusers));
        let is_trusted = |object: &Object| {
            object.is_superusers
                || object.owner == master.user
                || object.owner == master.database_owner
                // This stands for the owner of the database: so far, nobody has chosen an owner for the schema.
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
            // What runs as that role would stop at once otherwise.
            self.membership(&mut *conn, master, OWNER, &owner, is_superuser).await?;
        }
        Ok(())
    }
}

/// Something in one of our schemas, or a trigger on a table there.
struct Object {
    /// As in `ALTER`.
    kind: String,
    /// In full.
    name: String,
    /// For a partition, the partitioned table.
    root: Option<String>,
    /// For a trigger, the owner of its function.
    owner: String,
    is_superusers: bool,
}

impl Object {
    /// Whether the migrations make something of this kind and name.
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

/// Everything in our schemas that [`OWNER`] does not own, of whatever kind, except for what extensions have brought.
/// Schemas come first.
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
