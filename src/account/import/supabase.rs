//! Supabase: the table `auth.users`, as CSV with a header row or as JSON.
//! <https://supabase.com/docs/guides/platform/migrating-within-supabase>

use serde_json::{Map, Value};

use super::{Draft, Rules, object::Object};

/// Leaves out deleted users, whose rows stay in the table.
pub(super) fn is_user(fields: &Map<String, Value>) -> bool {
    fields.get("deleted_at").is_none_or(|at| at.is_null() || at == "")
}

pub(super) fn draft(object: &mut Object<'_>, rules: &Rules) -> Draft {
    let meta = object.object("raw_user_meta_data");
    let name = ["full_name", "name"].into_iter().find_map(|name| meta.as_ref()?.get(name)?.as_str());
    let is_banned = match object.value("banned_until") {
        Some(Value::String(text)) if text == "infinity" => true,
        Some(_) => object.time("banned_until").is_some_and(|until| until > rules.now),
        None => false,
    };
    Draft {
        external_id: object.text("id"),
        email: object.text("email"),
        full_name: name.map(str::to_owned),
        is_email_verified: Some(object.value("email_confirmed_at").is_some()),
        disabled: Some(is_banned),
        created_at: object.time("created_at"),
        updated_at: object.time("updated_at"),
        password: object.text("encrypted_password").map(|text| rules.password(&text, "")),
        ..Draft::default()
    }
    .with_username()
}
