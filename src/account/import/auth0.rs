//! Auth0: the file with password hashes that its support sends, and what the export extension writes; one object per
//! line, or an array. <https://auth0.com/docs/manage-users/user-migration/bulk-user-exports>

use super::{Draft, Rules, object::Object};

pub(super) fn draft(object: &mut Object<'_>, rules: &Rules) -> Draft {
    let id = match object.value("_id") {
        // As MongoDB writes it.
        Some(serde_json::Value::Object(id)) => id.get("$oid").and_then(|id| id.as_str()).map(str::to_owned),
        Some(_) => object.text("_id"),
        None => None,
    };
    let external_id = match object.text("user_id") {
        Some(id) => Some(id),
        None => id.map(|id| format!("auth0|{id}")),
    };
    let password = ["passwordHash", "password_hash"].into_iter().find_map(|name| object.text(name));
    Draft {
        external_id,
        username: object.text("username"),
        email: object.text("email"),
        full_name: object.text("name").filter(|name| !name.contains('@')),
        is_email_verified: object.flag("email_verified"),
        disabled: object.flag("blocked"),
        created_at: object.time("created_at"),
        updated_at: object.time("updated_at"),
        // The first is in what the extension writes, the second beside the hash.
        password_changed_at: object.time("last_password_reset").max(object.mongo_time("password_set_date")),
        password: password.map(|text| rules.password(&text, "")),
        ..Draft::default()
    }
    .with_username()
}
