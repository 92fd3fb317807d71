//! Who asks for a change, and in which request: for the history.

use std::{convert::Infallible, sync::Arc};

use axum::{extract::FromRequestParts, http::request::Parts};

use super::{App, RequestId};
use crate::{
    account::{Actor, Cause},
    token::Claims,
};

/// The user of the bearer token, if the route takes one, and the request's id.
impl FromRequestParts<App> for Cause {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Infallible> {
        let actor = parts.extensions.get::<Arc<Claims>>().map(|claims| Actor::User(claims.user_id));
        let request_id = parts.extensions.get::<RequestId>().map(|id| id.as_str().to_owned());
        Ok(Self::new(actor.as_ref(), request_id))
    }
}
