//! `/auth/verify`: forward auth. A proxy (nginx `auth_request`, Traefik ForwardAuth, Envoy ext_authz) asks here about
//! every request before passing it on: 200 with the user's identity, 401 or 403. `docs/forward-auth.md` is for the
//! proxy's operator.
//!
//! The request in question is addressed to another service, and anybody may have sent it. So only its `Authorization`
//! counts: not its method (a CORS preflight without a token is refused like anything else), not its body, which is left
//! unread, and none of its `X-Auth-*` fields.
//!
//! # Who demands the roles
//!
//! It is for the operator to demand roles. nginx and Traefik ask at exactly the address in their configuration. Envoy's
//! `path_prefix` puts that address before the client's path *and query*, so the client's `?role=` follows whatever the
//! operator wrote. The client's part must neither widen a demand (roles are alternatives) nor get in the way of an
//! application that has a parameter of that name. Therefore:
//!
//! - A query with roles demands them, and may then hold nothing else. A query made up of an operator's part and a
//!   client's (`/auth/verify?role=admin&uri=` and the client's part) is refused for everybody, so that no such
//!   configuration works long enough to be in use. `/auth/verify` itself also refuses a query with a parameter that was
//!   meant to be a role (`?roles=admin`). A query without roles demands nothing, whatever else is in it.
//! - If the first segment below `/auth/verify/` begins with `role=`, it is read like a query, and the query is ignored.
//!   The segment is the operator's, because the client's part comes after it. `role=*` there demands no role.
//! - A client that writes either where the operator wrote neither makes demands only of itself.

use std::{fmt::Write, sync::Arc};

use axum::{
    Extension,
    http::{HeaderName, HeaderValue, StatusCode, Uri},
};
use uuid::Uuid;

use super::Problem;
use crate::{account::Roles, token::Claims};

const PREFIX: &str = "/auth/verify/";

const X_AUTH_SUBJECT: HeaderName = HeaderName::from_static("x-auth-subject");
const X_AUTH_USER: HeaderName = HeaderName::from_static("x-auth-user");
const X_AUTH_ROLES: HeaderName = HeaderName::from_static("x-auth-roles");
const X_AUTH_SESSION: HeaderName = HeaderName::from_static("x-auth-session");
const X_AUTH_EXPIRES: HeaderName = HeaderName::from_static("x-auth-expires");

/// Who the user is. Every 200 has all of these fields, even empty ones: otherwise a proxy that copies the fields it
/// finds would leave the client's own in place.
type Identity = [(HeaderName, HeaderValue); 5];

/// For proxies: ask whether a request may pass.
///
/// Takes any method, and does not read the body. The response is never a redirect and never sets a cookie.
#[utoipa::path(
    get, path = "/auth/verify", tag = "forward auth", security(("bearer" = [])),
    params((
        "role" = Option<Vec<String>>, Query,
        description = "The user needs one of these roles. A query with roles may hold nothing else.",
    )),
    responses(
        (status = 200, description = "The request may pass. The body is empty.", headers(
            ("X-Auth-Subject" = String, description = "The user's id."),
            ("X-Auth-User" = String, description = "The username, with `%`, `,` and all bytes that are not visible ASCII as `%XX`."),
            ("X-Auth-Roles" = String, description = "The roles, sorted and separated by commas; empty if there are none."),
            ("X-Auth-Session" = String, description = "The session's id."),
            ("X-Auth-Expires" = i64, description = "When the token expires, in seconds since 1970."),
        )),
        (status = 403, description = "`forbidden`: the user has none of the demanded roles, or the demand cannot be read."),
    ),
)]
pub(super) async fn verify(Extension(claims): Extension<Arc<Claims>>, uri: Uri) -> Result<Identity, Problem> {
    let demand = uri.query().unwrap_or_default();
    if is_misspelt(demand) { Err(misspelt()) } else { answer(&claims, demand) }
}

/// For proxies that put a prefix before the path and query of the request (Envoy): ask whether it may pass.
///
/// Takes any method and any path. If the first segment begins with `role=`, as in
/// `/auth/verify/role=admin&role=owner/…`, it demands the roles, and the query is ignored; `role=*` there demands none.
#[utoipa::path(
    get, path = "/auth/verify/{*rest}", tag = "forward auth", security(("bearer" = [])),
    params(
        ("rest" = String, Path, description = "Any path, of any number of segments."),
        ("role" = Option<Vec<String>>, Query, description = "As with `/auth/verify`, unless the path demands the roles."),
    ),
    responses(
        (status = 200, description = "The request may pass. The body is empty.", headers(
            ("X-Auth-Subject" = String, description = "As with `/auth/verify`."),
            ("X-Auth-User" = String, description = "As with `/auth/verify`."),
            ("X-Auth-Roles" = String, description = "As with `/auth/verify`."),
            ("X-Auth-Session" = String, description = "As with `/auth/verify`."),
            ("X-Auth-Expires" = i64, description = "As with `/auth/verify`."),
        )),
        (status = 403, description = "`forbidden`: the user has none of the demanded roles, or the demand cannot be read."),
    ),
)]
pub(super) async fn verify_below(
    Extension(claims): Extension<Arc<Claims>>,
    uri: Uri,
) -> Result<Identity, Problem> {
    answer(&claims, demand_below(&uri))
}

/// The part of an address below [`PREFIX`] that demands roles.
fn demand_below(uri: &Uri) -> &str {
    // The path as it was sent: no `..` or `%2F` changes which segment is the first.
    let rest = uri.path().strip_prefix(PREFIX).unwrap_or_default();
    match rest.split('/').next() {
        Some("role=*") => "",
        Some(segment) if segment.starts_with("role=") => segment,
        _ => uri.query().unwrap_or_default(),
    }
}

fn answer(claims: &Claims, demand: &str) -> Result<Identity, Problem> {
    match meets(claims, demand) {
        Demand::Met => Ok(identity(claims)),
        Demand::Unmet => Err(forbidden("This needs a role that the user does not have.")),
        Demand::Unreadable => Err(unreadable()),
    }
}

fn unreadable() -> Problem {
    forbidden("The demand for roles cannot be read: it may contain nothing but names of roles.")
}

fn misspelt() -> Problem {
    forbidden(
        "`roles`, `Role` and the like are not parameters: a role is demanded with `role`, as in `?role=admin`.",
    )
}

/// Whether there is a parameter whose name was meant to be `role`, judging by its letters. In a query that is entirely
/// the operator's, this is a demand, which must not pass for none.
fn is_misspelt(demand: &str) -> bool {
    form_urlencoded::parse(demand.as_bytes()).any(|(name, _)| {
        let letters: String =
            name.chars().filter(|c| c.is_alphabetic()).flat_map(char::to_lowercase).collect();
        name != "role" && ["role", "roles"].contains(&&*letters)
    })
}

fn forbidden(detail: &'static str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
}

/// What became of a demand for roles.
#[derive(Debug, PartialEq, Eq)]
enum Demand {
    /// The user has one of the roles, or none is demanded.
    Met,
    /// The user has none of the roles.
    Unmet,
    /// There is something else besides a `role`, or a value that cannot be the name of a role.
    Unreadable,
}

/// Checks a user against a demand of the form `role=a&role=b`, percent-encoded or not.
fn meets(claims: &Claims, demand: &str) -> Demand {
    let (mut is_demand, mut is_pure, mut has_one) = (false, true, false);
    for (name, value) in form_urlencoded::parse(demand.as_bytes()) {
        let is_role = name == "role";
        is_demand |= is_role;
        is_pure &= is_role && Roles::is_name(&value);
        has_one |= is_role && claims.has_role(&value);
    }
    match (is_demand, is_pure, has_one) {
        (false, ..) | (true, true, true) => Demand::Met,
        (true, true, false) => Demand::Unmet,
        (true, false, _) => Demand::Unreadable,
    }
}

fn identity(claims: &Claims) -> Identity {
    let mut roles = String::new();
    for (i, role) in claims.roles.iter().enumerate() {
        if i > 0 {
            roles.push(',');
        }
        push(&mut roles, role);
    }
    let mut user = String::new();
    push(&mut user, &claims.username);
    let id = |id: Uuid| text(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
    [
        (X_AUTH_SUBJECT, id(claims.user_id)),
        (X_AUTH_USER, text(&user)),
        (X_AUTH_ROLES, text(&roles)),
        (X_AUTH_SESSION, id(claims.session_id)),
        (X_AUTH_EXPIRES, HeaderValue::from(claims.expires_at.unix_timestamp())),
    ]
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).expect("visible ASCII is what a header field takes")
}

/// Adds `name`, with `%`, `,` and every byte that is not visible ASCII percent-encoded. Names that keep to the rules
/// have no such bytes; rows made by hand, and tokens of a fork, may. The encoded form is always valid in a header
/// field, and no two names share one.
fn push(out: &mut String, name: &str) {
    for byte in name.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' && byte != b',' {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("a String takes everything");
        }
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn claims(username: &str, roles: &[&str]) -> Claims {
        let at = datetime!(2026-01-02 03:04:05 UTC);
        Claims {
            issuer: "gatepass".into(),
            user_id: Uuid::from_u128(1),
            audience: "gatepass".into(),
            issued_at: at,
            not_before: at,
            expires_at: at,
            token_id: Uuid::from_u128(2),
            session_id: Uuid::from_u128(3),
            username: username.into(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        }
    }

    #[test]
    fn a_role_requirement_is_met_by_any_of_its_roles_and_lists_only_roles() {
        use Demand::{Met, Unmet, Unreadable};
        let user = claims("alice", &["editor", "billing:read"]);
        for (demand, expected) in [
            ("", Met),
            ("&&", Met),
            ("page=2&q=role", Met),
            ("Role=admin", Met),
            ("role=editor", Met),
            ("role=admin&role=editor", Met),
            ("role=editor&", Met),
            ("role=billing%3Aread", Met),
            ("%72ole=editor", Met),
            ("role=admin", Unmet),
            ("%72ole=admin", Unmet),
            ("role=edit", Unmet),
            ("role=admin&role=owner", Unmet),
            // Not the name of a role.
            ("role", Unreadable),
            ("role=", Unreadable),
            ("role=*", Unreadable),
            ("role=Editor", Unreadable),
            ("role=editor,admin", Unreadable),
            ("role=editor+", Unreadable),
            ("role=editor%00", Unreadable),
            ("role=editor%FF", Unreadable),
            // An operator's part and a client's in one.
            ("role=editor&page=2", Unreadable),
            ("page=2&role=editor", Unreadable),
            ("role=admin&uri=/x?y&role=editor", Unreadable),
            ("role=admin/x&role=editor", Unreadable),
            ("role=admin&role=/x&role=editor", Unreadable),
            ("role=admin&role[]=editor&role=editor", Unreadable),
        ] {
            assert_eq!(meets(&user, demand), expected, "{demand}");
        }
        // Not even for a user whose token has such a role.
        assert_eq!(meets(&claims("alice", &["Editor", ""]), "role=Editor"), Unreadable);
        assert_eq!(meets(&claims("alice", &["Editor", ""]), "role="), Unreadable);
    }

    #[test]
    fn misspelt_role_parameters_are_recognised() {
        for demand in [
            "roles=admin",
            "Role=admin",
            "role[]=admin",
            "role%20=admin",
            "+role=admin",
            "role%00=admin",
            "_ROLES_=admin",
            "role0=admin",
            "role=admin&roles=owner",
            "roles",
        ] {
            assert!(is_misspelt(demand), "{demand}");
        }
        for demand in
            ["", "role=admin&role=owner", "%72ole=admin", "page=2&q=roles", "r=1", "roleplay=1", "rule=1"]
        {
            assert!(!is_misspelt(demand), "{demand}");
        }
    }

    #[test]
    fn the_first_path_segment_takes_precedence_over_the_query() {
        for (address, expected) in [
            ("/auth/verify/", ""),
            ("/auth/verify/?role=a", "role=a"),
            ("/auth/verify/x/y?role=a", "role=a"),
            ("/auth/verify/role=a", "role=a"),
            ("/auth/verify/role=a&role=b/x?role=c", "role=a&role=b"),
            ("/auth/verify/role=*/x?role=c", ""),
            ("/auth/verify/role=*x/y?role=c", "role=*x"),
            ("/auth/verify/role=a/../role=*/x?role=c", "role=a"),
            ("/auth/verify/role=a//role=b", "role=a"),
            ("/auth/verify/role=a%2Frole=*", "role=a%2Frole=*"),
            ("/auth/verify/role=", "role="),
            // The client's, without an operator's before it.
            ("/auth/verify//role=a/x?role=c", "role=c"),
            ("/auth/verify/x/role=a?role=c", "role=c"),
            ("/auth/verify/roles=a?role=c", "role=c"),
            ("/auth/verify/%72ole=*?role=c", "role=c"),
        ] {
            assert_eq!(demand_below(&address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn header_values_are_safe_whatever_a_name_holds() {
        let values = |username: &str, roles: &[&str]| {
            let [_, (_, user), (_, roles), ..] = identity(&claims(username, roles));
            (user.to_str().unwrap().to_owned(), roles.to_str().unwrap().to_owned())
        };
        assert_eq!(
            values("Alice_P.Liddell-9", &["a", "b:c"]),
            ("Alice_P.Liddell-9".to_owned(), "a,b:c".to_owned())
        );
        assert_eq!(values("", &[]), (String::new(), String::new()));
        assert_eq!(
            values("a\r\nX-Auth-Roles: admin", &["x,admin", "%2C"]),
            ("a%0D%0AX-Auth-Roles:%20admin".to_owned(), "x%2Cadmin,%252C".to_owned())
        );
        assert_eq!(values("Å\0\u{7f}🦀", &["é"]).0, "%C3%85%00%7F%F0%9F%A6%80");
    }
}
