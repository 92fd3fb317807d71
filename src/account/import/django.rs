//! Django: `manage.py dumpdata auth.user`, or the table `auth_user` as CSV with a header row.
//! <https://docs.djangoproject.com/en/stable/ref/django-admin/#dumpdata>

use serde_json::{Map, Value};

use super::{Draft, Rules, object::Object};

/// Selects only the users from a dump of everything, including those of the project's own user model.
pub(super) fn is_user(fields: &Map<String, Value>) -> bool {
    match fields.get("model") {
        Some(model) => model
            .as_str()
            .is_some_and(|model| model.rsplit('.').next().is_some_and(|name| name.ends_with("user"))),
        None => true,
    }
}

pub(super) fn draft(object: &mut Object<'_>, rules: &Rules) -> Draft {
    // CSV has one level, a dump has two.
    let fields = object.object("fields");
    let Some(fields) = fields else { return of_row(object, rules).with_username() };
    let mut inner = Object::new(&fields, false);
    let draft = of_row(&mut inner, rules);
    object.errors.append(&mut inner.errors);
    Draft { external_id: object.id("pk"), ..draft }.with_username()
}

fn of_row(row: &mut Object<'_>, rules: &Rules) -> Draft {
    let names: Vec<String> = ["first_name", "last_name"]
        .into_iter()
        .filter_map(|name| row.text(name))
        .filter(|name| !name.is_empty())
        .collect();
    Draft {
        external_id: row.id("id"),
        username: row.text("username"),
        email: row.text("email").filter(|address| !address.is_empty()),
        full_name: (!names.is_empty()).then(|| names.join(" ")),
        // A superuser's rights in Django say nothing about their rights here.
        roles: None,
        disabled: row.flag("is_active").map(|active| !active),
        created_at: row.time("date_joined"),
        // Django's unsalted hasher writes bare hexadecimal MD5.
        password: row.text("password").map(|text| rules.password(&text, "")),
        ..Draft::default()
    }
}
