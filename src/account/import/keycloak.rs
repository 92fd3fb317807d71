//! Keycloak: a realm with its users, or a file of users, as `kc.sh export` writes them.
//! <https://www.keycloak.org/server/importExport>

use serde_json::Value;

use super::{
    Draft, Roles, Rules,
    object::{Object, at_millisecond},
};
use crate::password::foreign::Imported;

pub(super) fn draft(object: &mut Object<'_>, rules: &Rules) -> Draft {
    let names: Vec<String> =
        ["firstName", "lastName"].into_iter().filter_map(|name| object.text(name)).collect();
    // Leaves out the roles that every user has, which say nothing.
    let is_own = |role: &String| {
        !role.starts_with("default-roles-") && !["offline_access", "uma_authorization"].contains(&&**role)
    };
    let roles = object.texts("realmRoles").map(|roles| {
        let (roles, others): (Vec<_>, Vec<_>) =
            roles.into_iter().filter(is_own).partition(|role| Roles::is_name(role));
        if !others.is_empty() {
            rules.left_out.lock().roles.extend(others);
        }
        roles
    });
    let credentials = object.value("credentials").and_then(Value::as_array);
    let is_password = |credential: &&Value| credential["type"] == "password";
    let credential = credentials.into_iter().flatten().find(is_password);
    let text = |credential: &Value, name: &str| credential[name].as_str().unwrap_or_default().to_owned();
    let created = credential.and_then(|credential| credential["createdDate"].as_i64());
    Draft {
        external_id: object.text("id"),
        username: object.text("username"),
        email: object.text("email"),
        full_name: (!names.is_empty()).then(|| names.join(" ")),
        roles,
        is_email_verified: object.flag("emailVerified"),
        disabled: object.flag("enabled").map(|enabled| !enabled),
        created_at: object.milliseconds("createdTimestamp"),
        password_changed_at: created.and_then(at_millisecond),
        password: credential.map(|credential| {
            Imported::keycloak(&text(credential, "credentialData"), &text(credential, "secretData"))
        }),
        ..Draft::default()
    }
    .with_username()
}
