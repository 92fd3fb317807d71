//! The triggers, on which others rely to hear of a change whoever makes it.

use sqlx::PgConnection;

use super::Error;

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
    /// Its name.
    pub name: String,
    /// The statement that enables it; `None` if it is gone.
    pub enable: Option<String>,
}

impl Idle {
    /// Whether it writes the history, which may be switched off on purpose.
    pub fn is_historian(&self) -> bool {
        self.name.contains("_history")
    }
}

/// What happens while these do not fire.
pub fn harm(idle: &[Idle]) -> String {
    let names = idle.iter().map(|trigger| &*trigger.name).collect::<Vec<_>>().join(", ");
    format!(
        "disabled or gone: {names}. So a session may end, or a user be disabled or demoted, and replicas accept the \
         tokens all the same"
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
    let idle = sqlx::query_as!(
        Idle,
        r#"SELECT known.name AS "name!",
                  CASE WHEN tgname IS NOT NULL
                      THEN format('ALTER TABLE %s ENABLE TRIGGER %I', tgrelid::regclass, tgname)
                  END AS enable
           FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS known (on_table, name, place)
           LEFT JOIN pg_trigger ON tgrelid = to_regclass(on_table) AND tgname = known.name
           WHERE tgenabled IS NULL OR tgenabled IN ('D', 'R')
           ORDER BY place"#,
        &tables,
        &names,
    );
    Ok(idle.fetch_all(conn).await?)
}
