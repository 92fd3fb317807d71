//! This service's own format: one JSON object per line, or one CSV row, with a few fields. `gatepass export` writes it.

use serde_json::{Map, Value};

use super::{Draft, ReadError, Rules, object::Object};

/// Every field.
pub(super) const FIELDS: [&str; 12] = [
    "external_id",
    "username",
    "email",
    "full_name",
    "roles",
    "is_email_verified",
    "disabled",
    "created_at",
    "updated_at",
    "password_changed_at",
    "password_hash",
    "salt",
];

/// Checks that a column is one of the fields, or a note.
pub(super) fn check_column(name: &str) -> Result<(), ReadError> {
    if name.starts_with('_') || FIELDS.contains(&name) {
        Ok(())
    } else {
        Err(ReadError::UnknownColumn(name.to_owned()))
    }
}

pub(super) fn draft(object: &mut Object<'_>, rules: &Rules) -> Draft {
    object.knows(&FIELDS);
    let salt = object.text("salt");
    let password = object.text("password_hash");
    let password = password.map(|text| rules.password(&text, salt.as_deref().unwrap_or_default()));
    Draft {
        external_id: object.text("external_id"),
        username: object.text("username"),
        email: object.text("email"),
        full_name: object.text("full_name"),
        roles: object.texts("roles"),
        is_email_verified: object.flag("is_email_verified"),
        disabled: object.flag("disabled"),
        created_at: object.time("created_at"),
        updated_at: object.time("updated_at"),
        password_changed_at: object.time("password_changed_at"),
        password,
        ..Draft::default()
    }
}

/// A row of the table `users` that the usual course has one build: `username, hashed_password, full_name, email,
/// password_changed_at, created_at, is_email_verified, role`.
pub(super) fn course_draft(object: &mut Object<'_>, rules: &Rules) -> Draft {
    // Go's zero time stands for never.
    let known = |at: Option<time::OffsetDateTime>| at.filter(|at| at.year() >= 1970);
    let username = object.text("username");
    Draft {
        external_id: username.clone(),
        username,
        email: object.text("email"),
        full_name: object.text("full_name"),
        roles: object.text("role").map(|role| vec![role]),
        is_email_verified: object.flag("is_email_verified"),
        created_at: known(object.time("created_at")),
        password_changed_at: known(object.time("password_changed_at")),
        password: object.text("hashed_password").map(|text| rules.password(&text, "")),
        ..Draft::default()
    }
}

/// Whether a row from a database is from the course's table.
pub(super) fn is_course(fields: &Map<String, Value>) -> bool {
    fields.contains_key("hashed_password")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_has_every_field_and_no_other() {
        let schema: Value = serde_json::from_str(include_str!("../../../docs/import.schema.json")).unwrap();
        let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let mut fields = FIELDS.map(str::to_owned).to_vec();
        fields.sort();
        assert_eq!(names(&schema["properties"]), fields);
        assert_eq!(schema["required"], serde_json::json!(["username", "email"]));
        assert_eq!(schema["additionalProperties"], false);
    }
}
