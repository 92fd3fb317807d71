//! An error and its causes, in words.

use std::{error::Error, fmt};

#[cfg(feature = "server")]
use sqlx::{error::DatabaseError, postgres::PgDatabaseError};

#[cfg(feature = "server")]
use crate::terminal::plain;

/// An error as the field of a log line, which then also says its causes.
pub(crate) fn cause<E: Error + 'static>(error: &E) -> impl tracing::Value + use<'_, E> {
    tracing::field::display(Chain(error))
}

/// An error with all its causes, as one text.
#[cfg(feature = "server")]
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    Chain(error).to_string()
}

struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&texts(self.0).join(": "))
    }
}

/// What an error and its causes say, outermost first. Many an error ends with what its cause says, which is left to the
/// cause.
pub(crate) fn texts(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut texts = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        let (text, cause) = (text(error), next.map(ToString::to_string));
        let own = cause.as_ref().and_then(|cause| text.strip_suffix(cause));
        let own = own.filter(|own| own.is_empty() || own.ends_with(": "));
        let own = own.map_or(&*text, |own| own.trim_end_matches(": "));
        if !own.is_empty() {
            texts.push(own.to_owned());
        }
    }
    texts
}

/// What one error says. To a database's message sqlx adds a line number, which is one of Postgres's own source code and
/// passes for one of the statement. Postgres's hint, if it has one, is of more use. Its detail may quote a user's data;
/// the message, too, quotes others, and another database's may say anything.
fn text(error: &(dyn Error + 'static)) -> String {
    #[cfg(feature = "server")]
    if let Some(error) = error.downcast_ref::<Box<dyn DatabaseError>>() {
        let hint = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::hint);
        let message = plain(error.message());
        return hint.map_or_else(|| message.clone(), |hint| format!("{message} ({})", plain(hint)));
    }
    error.to_string()
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use std::{fs, io, sync::Arc};

    use sqlx::{error::ErrorKind, migrate::MigrateError};

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Fault {
        text: &'static str,
        source: Option<Box<dyn Error + Send + Sync>>,
    }

    fn fault(text: &'static str, source: impl Error + Send + Sync + 'static) -> Fault {
        Fault { text, source: Some(Box::new(source)) }
    }

    #[test]
    fn the_whole_chain_of_causes_of_an_error_is_shown() {
        let root = Fault { text: "no route", source: None };
        assert_eq!(chain(&root), "no route");
        let outer = fault("not served", fault("not sent", root));
        assert_eq!(chain(&outer), "not served: not sent: no route");
        assert_eq!(texts(&outer), ["not served", "not sent", "no route"]);
    }

    #[test]
    fn lines_for_people_have_the_causes_in_the_same_words() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let subscriber = tracing_subscriber::fmt().compact().with_ansi(false);
        let subscriber = subscriber.with_writer(Arc::new(log.reopen().unwrap())).finish();
        let error = fault("not served: no route", Fault { text: "no route", source: None });
        tracing::subscriber::with_default(subscriber, || tracing::warn!(error = cause(&error), "oh"));
        let line = fs::read_to_string(log.path()).unwrap();
        assert!(line.ends_with(" oh error=not served: no route\n"), "{line}");
    }

    #[test]
    fn what_an_error_says_of_its_cause_is_not_repeated() {
        let gone = || Fault { text: "gone", source: None };
        let outer = fault("not read: no file: gone", fault("no file: gone", fault("gone", gone())));
        assert_eq!(texts(&outer), ["not read", "no file", "gone"]);
        // Only by chance does this one end like its cause.
        assert_eq!(chain(&fault("begone", gone())), "begone: gone");
        let missing = || io::Error::from_raw_os_error(2);
        let outer = fault("no database", sqlx::Error::Io(missing()));
        assert_eq!(chain(&outer), format!("no database: error communicating with database: {}", missing()));
    }

    /// As Postgres's errors show themselves.
    #[derive(Debug, thiserror::Error)]
    #[error("no table at line 1392")]
    struct OfDatabase;

    impl DatabaseError for OfDatabase {
        fn message(&self) -> &str {
            "no table \u{1b}_"
        }

        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }

        fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
            self
        }
    }

    #[test]
    fn a_database_error_says_no_line_of_postgres_own_source() {
        let error = MigrateError::ExecuteMigration(sqlx::Error::Database(Box::new(OfDatabase)), 7);
        assert!(error.to_string().ends_with(": no table at line 1392"));
        assert_eq!(
            chain(&error),
            "while executing migration 7: error returned from database: no table \\u{1b}_"
        );
    }
}
