//! Where the layer gets its keys from.

use std::{pin::Pin, sync::Arc};

#[cfg(feature = "remote")]
use super::RemoteKeys;
use crate::token::Verifier;

/// What a [`BearerLayer`](super::BearerLayer) checks tokens with: a [`Verifier`] with keys that this service was given
/// or, with the feature `remote`, `RemoteKeys` that follow a running gatepass.
#[derive(Clone, Debug)]
pub struct Source(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Given(Arc<Verifier>),
    #[cfg(feature = "remote")]
    Remote(RemoteKeys),
}

/// Ready when the keys are as fresh as they can be. Boxed, since few requests ever wait for one.
pub(super) type Refresh = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Source {
    pub(super) fn verifier(&self) -> &Verifier {
        match &self.0 {
            Kind::Given(verifier) => verifier,
            #[cfg(feature = "remote")]
            Kind::Remote(keys) => keys.verifier(),
        }
    }

    /// What to wait for when a token names an unknown key; `None` if waiting cannot bring new keys now.
    pub(super) fn refresh(&self) -> Option<Refresh> {
        match &self.0 {
            Kind::Given(_) => None,
            #[cfg(feature = "remote")]
            Kind::Remote(keys) => keys.refresh().map(|refresh| Box::pin(refresh) as Refresh),
        }
    }
}

impl From<Arc<Verifier>> for Source {
    fn from(verifier: Arc<Verifier>) -> Self {
        Self(Kind::Given(verifier))
    }
}

impl From<Verifier> for Source {
    fn from(verifier: Verifier) -> Self {
        Arc::new(verifier).into()
    }
}

#[cfg(feature = "remote")]
impl From<RemoteKeys> for Source {
    fn from(keys: RemoteKeys) -> Self {
        Self(Kind::Remote(keys))
    }
}
