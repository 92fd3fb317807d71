//! What has to be in the database at the end: what the clients' records say, and nothing that contradicts itself.
//!
//! From the beginning on, a trigger keeps a journal of every change to a session.

use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use super::{
    clients::{ADMIN, User},
    record::Fate,
};

const JOURNAL: &str = "
CREATE TABLE journal AS SELECT sessions AS was, sessions AS became, now() AS at FROM sessions WITH NO DATA;
CREATE FUNCTION keep_journal() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS
'BEGIN INSERT INTO journal VALUES (OLD, NEW, now()); RETURN NULL; END';
CREATE TRIGGER journal AFTER UPDATE OR DELETE ON sessions FOR EACH ROW EXECUTE FUNCTION keep_journal();
";

/// The clients' record.
const RECORD: &str = "
CREATE TABLE held_users (username text PRIMARY KEY, is_there boolean, roles text, lost_logins int);
CREATE TABLE held (
    id uuid PRIMARY KEY, username text, fate text, codes text[], least int, most int, idle_least timestamptz,
    idle_most timestamptz
);
";

/// Queries that must find nothing. `$1` is how long sessions are kept, in seconds.
const INVARIANTS: [(&str, &str); 16] = [
    (
        "a session was changed after its end",
        "SELECT (was).id::text FROM journal WHERE (was).ended_at IS NOT NULL AND (became).id IS NOT NULL
             AND ((was).ended_at, (was).end_reason, (was).refresh_generation, (was).access_expires_at)
             IS DISTINCT FROM
                 ((became).ended_at, (became).end_reason, (became).refresh_generation, (became).access_expires_at)",
    ),
    (
        "a generation was left out, or came back",
        "SELECT (was).id::text FROM journal WHERE (became).id IS NOT NULL
             AND (became).refresh_generation - (was).refresh_generation NOT IN (0, 1)",
    ),
    (
        "a session ended more than once",
        "SELECT (was).id::text FROM journal WHERE (was).ended_at IS NULL AND (became).ended_at IS NOT NULL
         GROUP BY (was).id HAVING count(*) > 1",
    ),
    (
        "a session goes on for its client and is gone or over",
        "SELECT held.id::text FROM held LEFT JOIN sessions ON sessions.id = held.id
         WHERE fate = 'live' AND idle_least > now() AND (sessions.id IS NULL OR ended_at IS NOT NULL)",
    ),
    (
        "a session is over for its client and goes on",
        "SELECT held.id::text FROM held JOIN sessions ON sessions.id = held.id
         WHERE fate = 'over' AND ended_at IS NULL",
    ),
    (
        "a session is over for another reason than its client knows",
        "SELECT held.id::text FROM held JOIN sessions ON sessions.id = held.id
         WHERE fate = 'over' AND ended_at IS NOT NULL
             AND CASE end_reason WHEN 'refresh_token_reused' THEN end_reason ELSE 'session_revoked' END <> ALL(codes)",
    ),
    (
        "the generation is not the number of renewals",
        "SELECT held.id::text FROM held JOIN sessions ON sessions.id = held.id
         WHERE refresh_generation NOT BETWEEN least AND most",
    ),
    (
        "a user has sessions that nobody has begun",
        "SELECT username FROM sessions JOIN users ON users.id = user_id JOIN held_users USING (username)
         WHERE sessions.id NOT IN (SELECT id FROM held)
         GROUP BY username, lost_logins HAVING count(*) > lost_logins",
    ),
    (
        "a session was cleaned up too early",
        "SELECT (was).id::text FROM journal WHERE (became).id IS NULL
             AND (was).user_id IN (SELECT id FROM users)
             AND greatest((was).refresh_expires_at, (was).access_expires_at) + $1 * interval '1 second' > at",
    ),
    (
        "a session has ended and is not revoked, or it has not and is",
        "SELECT id::text FROM sessions
         WHERE (ended_at IS NOT NULL) <> EXISTS (SELECT FROM revocations WHERE session_id = sessions.id)",
    ),
    (
        "a user is lost, or has come back, or has other roles",
        "SELECT coalesce(username, held_users.username) FROM users FULL JOIN held_users USING (username)
         WHERE (users.id IS NOT NULL) <> coalesce(is_there, false)
             OR array_to_string(users.roles, ',') <> held_users.roles OR disabled",
    ),
    (
        "the history keeps something personal of a user who is gone",
        "SELECT user_id::text FROM history_personal WHERE user_id NOT IN (SELECT id FROM users)",
    ),
    (
        "the history tells a session's beginning not once",
        "SELECT row_id FROM history WHERE table_name = 'sessions' AND operation = 'INSERT'
         GROUP BY row_id HAVING count(*) > 1
         UNION ALL
         SELECT id::text FROM sessions WHERE id::text NOT IN (
             SELECT row_id FROM history WHERE table_name = 'sessions' AND operation = 'INSERT')",
    ),
    (
        "a session is gone, and neither was it deleted nor had it ended",
        "SELECT row_id FROM history WHERE table_name = 'sessions' GROUP BY row_id
         HAVING count(*) = 1 AND row_id NOT IN (SELECT id::text FROM sessions)",
    ),
    (
        "the history tells of an end not once, or of a session that was revived",
        "SELECT row_id FROM history WHERE table_name = 'sessions' AND operation = 'UPDATE'
         GROUP BY row_id HAVING count(*) > 1 OR bool_or(changed_data -> 'after' ->> 'ended_at' IS NULL)",
    ),
    (
        "not one key signs, or not one is to be the next",
        "SELECT 'active' WHERE (SELECT count(*) FROM signing_keys
                               WHERE activated_at IS NOT NULL AND retired_at IS NULL) <> 1
         UNION ALL
         SELECT 'next' WHERE (SELECT count(*) FROM signing_keys
                             WHERE activated_at IS NULL AND retired_at IS NULL) <> 1",
    ),
];

pub async fn keep_journal(conn: &mut PgConnection) {
    sqlx::raw_sql(JOURNAL).execute(conn).await.unwrap();
}

/// Checks the database against the record; `strangers` are users whom no client has taken.
pub async fn check(
    db: &PgPool,
    users: &[&User],
    strangers: &[String],
    retention: time::Duration,
) -> Result<(), String> {
    let mut conn = db.acquire().await.unwrap();
    sqlx::raw_sql(RECORD).execute(&mut *conn).await.unwrap();
    let mut transaction = conn.begin().await.unwrap();
    let insert = "INSERT INTO held_users VALUES ($1, $2, $3, $4)";
    let others = strangers.iter().map(|name| (name.as_str(), "")).chain([(ADMIN, "admin")]);
    for (name, roles) in others {
        let row = sqlx::query(insert).bind(name).bind(true).bind(roles).bind(i32::MAX);
        row.execute(&mut *transaction).await.unwrap();
    }
    for user in users {
        sqlx::query(insert)
            .bind(&user.name)
            .bind(user.is_there)
            .bind(&user.roles.now)
            .bind(user.lost_logins)
            .execute(&mut *transaction)
            .await
            .unwrap();
        for session in &user.sessions {
            let (least, most) = session.generations();
            let (fate, codes) = match &session.fate {
                Fate::Live => ("live", None),
                Fate::Doubtful { .. } => ("doubtful", None),
                Fate::Over { codes, .. } => ("over", Some(codes)),
            };
            sqlx::query("INSERT INTO held VALUES ($1::uuid, $2, $3, $4, $5, $6, $7, $8)")
                .bind(&session.id)
                .bind(&user.name)
                .bind(fate)
                .bind(codes.map(|codes| codes.iter().copied().collect::<Vec<_>>()).unwrap_or_default())
                .bind(least)
                .bind(most)
                .bind(session.idle_end.0)
                .bind(session.idle_end.1)
                .execute(&mut *transaction)
                .await
                .unwrap();
        }
    }
    transaction.commit().await.unwrap();
    let mut broken = Vec::new();
    for (what, query) in INVARIANTS {
        // Only one of the queries uses it.
        let query = query.replace("$1", &retention.whole_seconds().to_string());
        let found: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&mut *conn).await.unwrap();
        if !found.is_empty() {
            broken.push(format!("{what}: {found:?}"));
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(broken.join("\n")) }
}
