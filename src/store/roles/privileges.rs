//! Who may do what, and whether that is so.

use std::{collections::BTreeSet, fmt};

use super::{
    APP, Columns, FUNCTIONS, OWNER, READONLY, TABLES, be_oneself, become_owner, full_function_name,
    owns_schema, quoted, run,
};
use crate::store::{
    PgConnection, begin_alone,
    migrations::{self, Rights},
};

/// Whether there are roles whose rights differ from what they should be.
pub(in crate::store) async fn deviate(conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let mut transaction = begin_alone(conn).await?;
    Ok(owns_schema(&mut transaction).await? && !deviations(&mut transaction).await?.is_empty())
}

/// Repeats the grants where necessary. It is no reason to stop if the role that is logged in may not.
pub(in crate::store) async fn repair(conn: &mut PgConnection) -> Result<Rights, migrations::Error> {
    if !deviate(&mut *conn).await? {
        return Ok(Rights::Right);
    }
    match become_owner(&mut *conn).await {
        Ok(_) => {
            grant(&mut *conn).await?;
            be_oneself(conn).await?;
            tracing::info!("the rights of the roles have been restored");
            Ok(Rights::Restored)
        }
        Err(migrations::Error::NotOwner(user)) => {
            tracing::warn!(
                "the rights of the roles are not what they should be, and {user} may not change that: run \
                 `gatepass db setup`"
            );
            Ok(Rights::Wrong)
        }
        Err(error) => Err(error),
    }
}

/// Gives [`APP`] and [`READONLY`] what [`TABLES`] and [`FUNCTIONS`] say, and takes everything else from them and from
/// everybody, in one transaction. [`OWNER`] calls it; what [`OWNER`] does not own is left alone. Tables and columns
/// that do not exist, yet or any more, are skipped.
///
/// # Errors
///
/// When the database fails.
pub(in crate::store) async fn grant(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut transaction = begin_alone(conn).await?;
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

/// What [`OWNER`] owns in the schemas.
struct Everything {
    /// Kind and full name.
    objects: Vec<(String, String)>,
    /// Full names of tables and views, with their columns.
    columns: BTreeSet<(String, String)>,
    /// Roles that have rights to these objects and are none of ours.
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

/// To be called in a transaction.
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

/// A right to do one thing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Privilege {
    /// The full name of a table, a view or a function, or the name of a schema.
    pub object: String,
    /// The only column that it covers, if it is for one.
    pub column: Option<String>,
    /// As in `GRANT`.
    pub name: String,
}

impl Privilege {
    /// The right to look up anything in a schema.
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

    /// What `role` has, however it came by it.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn held(conn: &mut PgConnection, role: &str) -> Result<Self, sqlx::Error> {
        let mut transaction = begin_alone(conn).await?;
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
               CROSS JOIN unnest(
                   '{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]
                   -- Asked of a server that does not know it, it is an error.
                   || CASE WHEN current_setting('server_version_num')::integer >= 170000 THEN '{MAINTAIN}'::text[] END
               ) AS privilege
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

    /// Those of these that are not among `others`. A right to a table includes each of its columns.
    pub fn beyond(&self, others: &Self) -> Vec<&Privilege> {
        let is_among = |privilege: &Privilege| {
            others.0.contains(privilege)
                || others.0.contains(&Privilege { column: None, ..privilege.clone() })
        };
        self.0.iter().filter(|privilege| !is_among(privilege)).collect()
    }
}

/// What [`APP`] and [`READONLY`] have in excess or lack among the objects that exist, and who else has a right to any
/// of them. To be called in a transaction.
pub(super) async fn deviations(conn: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
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
