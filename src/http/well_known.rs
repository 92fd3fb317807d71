//! `/.well-known`: the public keys, and where everything is. Served from memory; the same bytes until a key changes.
//!
//! The metadata differs from RFC 8414 in two points, because gatepass is not an OAuth server. It has no
//! `token_endpoint`, which the RFC requires. And it has two empty arrays, which the RFC wants left out (section 3.2):
//! `response_types_supported`, because it is also required, and `grant_types_supported`, because leaving it out would
//! imply two grants (section 2).

use std::time::Duration;

use aws_lc_rs::digest;
use axum::{
    extract::State,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH},
    },
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use utoipa::ToSchema;

use super::{App, Problem};
use crate::token::KeyStatus;

const JWKS: &str = "/.well-known/jwks.json";
const PASERKS: &str = "/.well-known/paserk.json";

/// A JWK set (RFC 7517).
#[derive(ToSchema)]
#[expect(dead_code, reason = "only describes the document, which is made where the keys are")]
pub(super) struct JwkSet {
    /// Public keys for JWTs; none if tokens have another format or a shared key.
    #[schema(value_type = Vec<Object>, example = json!([{
        "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        "alg": "EdDSA", "use": "sig", "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    }]))]
    keys: Vec<()>,
}

/// The public keys for PASETOs.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only describes the document, which is made where the keys are")]
pub(super) struct PaserkSet {
    /// None if tokens have another format or a shared key.
    keys: Vec<Paserk>,
}

/// A public key for PASETOs.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only describes the document, which is made where the keys are")]
pub(super) struct Paserk {
    /// PASERK `k4.pid`, as in the footer of the key's tokens.
    #[schema(example = "k4.pid.9ShR3xc8-qVJ_di0tc9nx0IDIqbatdeM2mqLFBJsKRHs")]
    kid: String,
    /// PASERK `k4.public`.
    #[schema(example = "k4.public.cHFyc3R1dnd4eXp7fH1-f4CBgoOEhYaHiImKi4yNjo8")]
    paserk: String,
    /// `next` will sign, `active` signs, `retiring` has signed tokens that are still valid.
    #[schema(value_type = String, example = "active")]
    status: KeyStatus,
}

/// Metadata of the service (RFC 8414).
#[derive(Serialize, ToSchema)]
pub(super) struct Metadata {
    /// The `iss` of access tokens.
    #[schema(example = "https://auth.example.com")]
    issuer: String,
    /// Where the public keys for JWTs are.
    #[schema(example = "https://auth.example.com/.well-known/jwks.json")]
    jwks_uri: String,
    /// Where the public keys for PASETOs are.
    #[schema(example = "https://auth.example.com/.well-known/paserk.json")]
    paserks_uri: String,
    /// Where clients ask about tokens (RFC 7662).
    #[schema(example = "https://auth.example.com/tokens/introspect")]
    introspection_endpoint: String,
    /// How those clients authenticate.
    #[schema(example = json!(["client_secret_basic"]))]
    introspection_endpoint_auth_methods_supported: [&'static str; 1],
    /// Where tokens are revoked, which ends their sessions (RFC 7009).
    #[schema(example = "https://auth.example.com/tokens/revoke")]
    revocation_endpoint: String,
    /// `none`: holding the token is enough.
    #[schema(example = json!(["none", "client_secret_basic"]))]
    revocation_endpoint_auth_methods_supported: [&'static str; 2],
    /// Empty: a login is not an OAuth flow. RFC 8414 requires the member.
    response_types_supported: [&'static str; 0],
    /// Empty: a login is not an OAuth grant. Leaving it out would imply two grants that do not exist here.
    grant_types_supported: [&'static str; 0],
    /// Where the API is described.
    #[schema(example = "https://auth.example.com/docs")]
    service_documentation: String,
}

/// Get the public keys for JWTs.
#[utoipa::path(
    get, path = "/.well-known/jwks.json", tag = "keys",
    responses(
        (status = 200, description = "A JWK set (RFC 7517).", body = JwkSet, content_type = "application/jwk-set+json", headers(
            ("ETag" = String, description = "Changes when the document does."),
            ("Cache-Control" = String, description = "How long the document may be used without asking again."),
        )),
        (status = 304, description = "The document still has the `ETag` in `If-None-Match`."),
    ),
)]
pub(super) async fn jwks(State(app): State<App>, headers: HeaderMap) -> Response {
    let keys = &app.keys;
    document(&headers, keys.published().jwks.clone(), "application/jwk-set+json", keys.cached_for())
}

/// Get the public keys for PASETOs.
#[utoipa::path(
    get, path = "/.well-known/paserk.json", tag = "keys",
    responses(
        (status = 200, description = "The keys as PASERKs.", body = PaserkSet, headers(
            ("ETag" = String, description = "Changes when the document does."),
            ("Cache-Control" = String, description = "How long the document may be used without asking again."),
        )),
        (status = 304, description = "The document still has the `ETag` in `If-None-Match`."),
    ),
)]
pub(super) async fn paserks(State(app): State<App>, headers: HeaderMap) -> Response {
    let keys = &app.keys;
    document(&headers, keys.published().paserks.clone(), "application/json", keys.cached_for())
}

/// Get the metadata of the service: what it offers, and where.
#[utoipa::path(
    get, path = "/.well-known/oauth-authorization-server", tag = "keys",
    responses(
        (status = 200, description = "Metadata (RFC 8414).", body = Metadata, headers(
            ("ETag" = String, description = "Changes when the document does."),
            ("Cache-Control" = String, description = "How long the document may be used without asking again."),
        )),
        (status = 304, description = "The document still has the `ETag` in `If-None-Match`."),
        (status = 404, description = "`not_found`: the service does not know its own address, because its issuer is not a URL."),
    ),
)]
pub(super) async fn metadata(State(app): State<App>, headers: HeaderMap) -> Result<Response, Problem> {
    let here = app.public_url().ok_or_else(Problem::not_found)?;
    let metadata = Metadata {
        issuer: app.keys.issuer().party().issuer.clone(),
        jwks_uri: format!("{here}{JWKS}"),
        paserks_uri: format!("{here}{PASERKS}"),
        introspection_endpoint: format!("{here}/tokens/introspect"),
        introspection_endpoint_auth_methods_supported: ["client_secret_basic"],
        revocation_endpoint: format!("{here}/tokens/revoke"),
        revocation_endpoint_auth_methods_supported: ["none", "client_secret_basic"],
        response_types_supported: [],
        grant_types_supported: [],
        service_documentation: format!("{here}/docs"),
    };
    let body = serde_json::to_string(&metadata).expect("a struct of strings has a JSON form");
    Ok(document(&headers, body, "application/json", app.keys.cached_for()))
}

fn document(request: &HeaderMap, body: String, media_type: &'static str, cached_for: Duration) -> Response {
    let hash = digest::digest(&digest::SHA256, body.as_bytes());
    let etag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(&hash.as_ref()[..16]));
    let caching = format!("public, max-age={}", cached_for.as_secs());
    let is_known = request.get_all(IF_NONE_MATCH).iter().any(|field| names(field, &etag));
    let fields = [(CACHE_CONTROL, caching), (ETAG, etag)];
    if is_known {
        return (StatusCode::NOT_MODIFIED, fields).into_response();
    }
    (fields, [(CONTENT_TYPE, media_type)], body).into_response()
}

/// Whether `If-None-Match` names this representation, by weak comparison (RFC 9110, section 13.1.2).
fn names(field: &HeaderValue, etag: &str) -> bool {
    let is = |tag: &str| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag;
    field.to_str().is_ok_and(|tags| tags.split(',').any(|tag| is(tag.trim())))
}
