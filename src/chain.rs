//! An error and its chain of sources.

use std::error::Error;

/// An error as the field of a log line, which then also shows its sources.
pub(crate) fn cause<E: Error + 'static>(error: &E) -> &(dyn Error + 'static) {
    error
}

/// The sources of an error, nearest first.
#[cfg(feature = "server")]
pub(crate) fn behind(error: &dyn Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&error| error.source())
}

/// An error with all its sources, as one text.
#[cfg(feature = "server")]
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    for error in behind(error) {
        text.push_str(": ");
        text.push_str(&error.to_string());
    }
    text
}

#[cfg(all(test, feature = "server"))]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Fault {
        text: &'static str,
        source: Option<Box<Fault>>,
    }

    #[test]
    fn the_whole_chain_of_causes_of_an_error_is_shown() {
        let fault = |text, source: Option<Fault>| Fault { text, source: source.map(Box::new) };
        let root = fault("no route", None);
        assert_eq!(chain(&root), "no route");
        let outer = fault("not served", Some(fault("not sent", Some(root))));
        assert_eq!(chain(&outer), "not served: not sent: no route");
        assert_eq!(behind(&outer).map(ToString::to_string).collect::<Vec<_>>(), ["not sent", "no route"]);
        assert_eq!(cause(&outer).to_string(), "not served");
    }
}
