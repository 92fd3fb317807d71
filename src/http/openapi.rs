//! The OpenAPI document: the routes describe themselves, and what all of them share is added here once.

use std::{mem, time::Duration};

use utoipa::{
    Modify, OpenApi, ToSchema,
    openapi::{
        self, ContentBuilder, HeaderBuilder, ObjectBuilder, Ref, RefOr, Response, ResponseBuilder,
        example::Example,
        example::ExampleBuilder,
        path::Operation,
        schema::{KnownFormat, Schema, SchemaFormat, Type},
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};
use utoipa_axum::router::OpenApiRouter;

use super::{Problem, RequestId, form, json, problem::ProblemDocument};
use crate::{
    account::{self, FieldError},
    bearer::Refusal,
    token::Rejection,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "gatepass",
        description = "Users, sessions and tokens.\n\nErrors are problem documents (RFC 9457); match on their `code`. \
                       Every response carries `x-request-id`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
        contact(),
    ),
    servers((url = ".", description = "The server that this document comes from")),
    components(schemas(ProblemDocument<'static>)),
    modifiers(&Schemes),
    tags(
        (name = "users", description = "Registration, login, and the user's own account"),
        (name = "admin", description = "User management and history, for users with the role `admin`"),
        (name = "sessions", description = "Where a user is logged in, and logging out there"),
        (name = "tokens", description = "For holders of tokens, and for services that ask about tokens"),
        (name = "forward auth", description = "For proxies that ask whether a request may pass"),
        (name = "keys", description = "Public keys, for services that verify tokens themselves"),
        (name = "health", description = "For load balancers and orchestrators"),
        (name = "docs", description = "This description"),
    ),
)]
struct Frame;

struct Schemes;

impl Modify for Schemes {
    fn modify(&self, openapi: &mut openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("PASETO or JWT")
            .description(Some("The `access_token` from a login or a renewal."))
            .build();
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Basic)
            .description(Some("The `client_id` and `client_secret` that `gatepass client create` printed."))
            .build();
        components.add_security_scheme("client", SecurityScheme::Http(scheme));
    }
}

/// The whole document as JSON, for a service with the default settings. `docs/openapi.json` is a copy of it.
pub fn document() -> String {
    text(&assembled())
}

/// The document of a service that requires a new password to have at least this many characters.
pub(super) fn document_where(password_min_length: usize) -> String {
    let mut openapi = assembled();
    let schemas = openapi.components.iter_mut().flat_map(|components| components.schemas.values_mut());
    for schema in schemas {
        let RefOr::T(Schema::Object(object)) = schema else { continue };
        for property in object.properties.values_mut() {
            let RefOr::T(Schema::Object(text)) = property else { continue };
            let is_password = text.format == Some(SchemaFormat::KnownFormat(KnownFormat::Password));
            // An existing password may have any length.
            if is_password && text.min_length.is_some() {
                text.min_length = Some(password_min_length);
            }
        }
    }
    text(&openapi)
}

fn text(openapi: &openapi::OpenApi) -> String {
    let mut json = openapi.to_pretty_json().expect("an OpenAPI document has a JSON form");
    json.push('\n');
    json
}

fn assembled() -> openapi::OpenApi {
    let routes = [super::ROUTES, super::BEARER_ROUTES, super::FORWARD_AUTH_ROUTES].concat();
    let frame = OpenApiRouter::with_openapi(Frame::openapi());
    let mut openapi = routes.iter().fold(frame, |all, route| all.routes(route())).into_openapi();
    // axum marks a parameter that takes more than one segment with a star; OpenAPI has no such parameter.
    let paths = mem::take(&mut openapi.paths.paths);
    openapi.paths.paths = paths.into_iter().map(|(path, item)| (path.replace("{*", "{"), item)).collect();
    for item in openapi.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.delete,
            &mut item.options,
            &mut item.head,
            &mut item.patch,
            &mut item.trace,
        ];
        for operation in operations.into_iter().flatten() {
            complete(operation);
        }
    }
    openapi
}

/// Adds the responses that every operation of its kind can give.
fn complete(operation: &mut Operation) {
    let mut common =
        vec![("500", "`internal_error`: a fault in the service; its log has it under the request id.")];
    if operation.security.is_some() {
        common.push((
            "503",
            "`database_unavailable`, `revocations_stale`, `overloaded` or `timeout`: try again after `Retry-After`.",
        ));
    } else if operation.request_body.is_some() {
        common.push((
            "503",
            "`database_unavailable`, `overloaded` or `timeout`: try again after `Retry-After`.",
        ));
    }
    // The body of a request that a proxy asks about is not ours to limit.
    if operation.tags.iter().flatten().all(|tag| tag != "forward auth") {
        common.push(("413", "`body_too_large`: the body is larger than 64 KiB."));
    }
    let takes_form = matches!(
        &operation.request_body, Some(RefOr::T(body)) if body.content.contains_key(form::MEDIA_TYPE)
    );
    if operation.request_body.is_some() {
        common.push(("408", "`request_timeout`: the body did not arrive in time."));
        if takes_form {
            common.extend([
                (
                    "400",
                    "`invalid_request`: the body is not a form, did not arrive whole, lacks a parameter, or repeats one.",
                ),
                ("415", "`unsupported_media_type`: the body is not `application/x-www-form-urlencoded`."),
            ]);
        } else {
            common.extend([
                ("400", "`malformed_json`: the body is not JSON, or did not arrive whole."),
                ("415", "`unsupported_media_type`: the body is not JSON (`application/json`, or a type that ends in `+json`)."),
                ("422", "`validation_failed`: `errors` says what is wrong with each field."),
            ]);
        }
    }
    let challenge = if takes(operation, "client") {
        common.extend([
            ("401", "`invalid_client`: the client credentials are wrong, or missing where they are required."),
            ("429", "`too_many_attempts`: too many wrong credentials from this address. Try again after `Retry-After`."),
        ]);
        Some("RFC 7617.")
    } else if takes(operation, "bearer") {
        common.push(("401", "`missing_token`, `invalid_token`, `token_expired`, `session_revoked`, or `token_outdated` when the user's roles have changed: renew the session."));
        Some("RFC 6750.")
    } else {
        None
    };
    let media_type = if takes_form { form::MEDIA_TYPE } else { json::MEDIA_TYPE };
    let responses = &mut operation.responses.responses;
    for (status, description) in common {
        let absent = || RefOr::T(ResponseBuilder::new().description(description).build());
        responses.entry(status.to_owned()).or_insert_with(absent);
    }
    for (status, response) in responses {
        let RefOr::T(response) = response else { continue };
        header(response, "x-request-id", "The request's id, as in the service's log.");
        match (status.as_str(), challenge) {
            // With that code the token is good, and the password is wrong.
            ("401", Some(challenge)) if response.description.contains("`invalid_credentials`") => {
                let challenge = format!("{challenge} Not with `invalid_credentials`.");
                header(response, "WWW-Authenticate", &challenge);
            }
            ("401", Some(challenge)) => header(response, "WWW-Authenticate", challenge),
            ("429" | "503", _) => header(response, "Retry-After", "Seconds to wait."),
            _ => {}
        }
        if status.as_str() >= "400" {
            let content = ContentBuilder::new()
                .schema(Some(Ref::from_schema_name(ProblemDocument::name())))
                .examples_from_iter(examples(&response.description, media_type))
                .build();
            response.content.entry("application/problem+json".to_owned()).or_insert(RefOr::T(content));
        }
    }
}

/// Whether `operation` takes the credentials of this scheme.
fn takes(operation: &Operation, scheme: &str) -> bool {
    operation.security.iter().flatten().any(|requirement| {
        serde_json::to_value(requirement).is_ok_and(|requirement| requirement.get(scheme).is_some())
    })
}

/// A real example for each code that `description` names, for a route that takes this media type.
fn examples(description: &str, media_type: &str) -> impl Iterator<Item = (String, RefOr<Example>)> {
    let codes: Vec<&str> = description.split('`').skip(1).step_by(2).collect();
    samples(media_type).into_iter().filter(move |sample| codes.contains(&sample.code())).map(|sample| {
        let document = serde_json::to_value(sample.document(&RequestId::sample())).ok();
        (sample.code().to_owned(), RefOr::T(ExampleBuilder::new().value(document).build()))
    })
}

/// Every problem that a route can answer with, made the way the routes make it.
fn samples(media_type: &str) -> Vec<Problem> {
    let faulty = FieldError::new("username", "too_short", "needs 3 to 64 characters");
    vec![
        Refusal::Missing.into(),
        Refusal::Unreadable.into(),
        Refusal::Token(Rejection::Expired).into(),
        Refusal::Token(Rejection::SessionEnded).into(),
        Refusal::Token(Rejection::RolesChanged).into(),
        Refusal::Token(Rejection::RevocationsUnknown).into(),
        account::Error::InvalidCredentials.into(),
        account::Error::InvalidRefreshToken.into(),
        account::Error::RefreshTokenReused.into(),
        account::Error::SessionExpired.into(),
        account::Error::InvalidClient.into(),
        account::Error::RegistrationClosed.into(),
        account::Error::UsernameTaken.into(),
        account::Error::EmailTaken.into(),
        account::Error::TooManyAttempts { retry_after: Duration::from_secs(90) }.into(),
        account::Error::ExportUnderWay.into(),
        account::Error::LastAdmin.into(),
        account::Error::Overloaded { retry_after: Duration::from_secs(1) }.into(),
        Problem::database_unavailable(),
        account::Error::Hasher.into(),
        Problem::forbidden(account::ADMIN_ROLE),
        Problem::not_found(),
        Problem::malformed("The body is not JSON: fault at line 1, column 12."),
        Problem::invalid_request("The form is not what this route takes: missing field `token`."),
        Problem::request_timeout(),
        Problem::too_large(),
        Problem::unsupported_media_type(media_type),
        Problem::invalid(vec![faulty]),
        Problem::not_ready(vec!["database: not reachable".to_owned()]),
        Problem::timeout(),
    ]
}

fn header(response: &mut Response, name: &str, description: &str) {
    let text = ObjectBuilder::new().schema_type(Type::String).build();
    let header = HeaderBuilder::new().schema(Some(text)).description(Some(description)).build();
    response.headers.insert(name.to_owned(), RefOr::T(header));
}
