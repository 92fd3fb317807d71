//! The triggers, on which others rely to hear of a change whoever makes it.

use sqlx::PgConnection;

use super::{Error, migrations};

/// All of them: the table, and the name.
const ALL: &[(&str, &str)] = &[
    ("users", "users_admin_changed"),
    ("users", "users_admin_deleted"),
    ("users", "users_administered"),
    ("users", "users_disabled"),
    ("users", "users_history"),
    ("users", "users_history_forget"),
    ("users", "users_history_forget_all"),
    ("users", "users_history_truncated"),
    ("users", "users_roles_changed"),
    ("sessions", "sessions_access_not_earlier"),
    ("sessions", "sessions_deleted"),
    ("sessions", "sessions_ended"),
    ("sessions", "sessions_history_begun"),
    ("sessions", "sessions_history_deleted"),
    ("sessions", "sessions_history_ended"),
    ("sessions", "sessions_history_truncated"),
    ("sessions", "sessions_truncated"),
    ("signing_keys", "signing_keys_history"),
    ("signing_keys", "signing_keys_history_truncated"),
    ("clients", "clients_history"),
    ("clients", "clients_history_truncated"),
    ("history_seals", "history_seals_check"),
];

/// A trigger that does not fire.
#[derive(Debug)]
pub struct Idle {
    /// Its name, or that of the foreign key whose it is.
    pub name: String,
    /// The statement that lets it fire.
    pub mend: String,
}

impl Idle {
    /// Whether it writes the history, which may be switched off on purpose.
    pub fn is_historian(&self) -> bool {
        self.name.contains("_history")
    }
}

/// What it means that these do not fire.
pub fn harm(idle: &[Idle]) -> String {
    let names = idle.iter().map(|trigger| &*trigger.name).collect::<Vec<_>>().join(", ");
    format!(
        "disabled or gone: {names}. What they see to is not done, such as that replicas hear of the end of a session"
    )
}

/// Those that somebody has disabled or dropped.
///
/// # Errors
///
/// When the database fails.
pub async fn idle(conn: &mut PgConnection) -> Result<Vec<Idle>, Error> {
    let (tables, names): (Vec<_>, Vec<_>) =
        ALL.iter().map(|(table, name)| ((*table).to_owned(), (*name).to_owned())).unzip();
    // A foreign key's own are disabled with all others (`DISABLE TRIGGER ALL`), and then deletions do not cascade.
    let idle = sqlx::query!(
        r#"SELECT known.name AS "name!",
                  format('ALTER TABLE %s ENABLE TRIGGER %I', tgrelid::regclass, known.name) AS "enable!",
                  tgname IS NULL AS "is_gone!",
                  place
           FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS known (on_table, name, place)
           LEFT JOIN pg_trigger ON tgrelid = to_regclass(on_table) AND tgname = known.name
           WHERE tgenabled IS NULL OR tgenabled IN ('D', 'R')
           UNION ALL
           SELECT DISTINCT conname::text, format('ALTER TABLE %s ENABLE TRIGGER ALL', tgrelid::regclass), false,
               NULL::bigint
           FROM pg_trigger JOIN pg_constraint ON pg_constraint.oid = tgconstraint
           WHERE tgisinternal AND tgenabled IN ('D', 'R')
               AND tgrelid IN (SELECT to_regclass(name) FROM unnest($1::text[]) AS name)
           ORDER BY place, 1"#,
        &tables,
        &names,
    );
    let idle = idle.fetch_all(conn).await?.into_iter().map(|row| {
        let created = if row.is_gone { migrations::trigger(&row.name) } else { None };
        // In one line, and without the semicolon.
        let created = created.map(|statement| {
            statement.trim_end_matches(';').split_whitespace().collect::<Vec<_>>().join(" ")
        });
        Idle { name: row.name, mend: created.unwrap_or(row.enable) }
    });
    Ok(idle.collect())
}
