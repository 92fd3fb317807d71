//! Django: `manage.py dumpdata auth.user`, or the table `auth_user` as CSV with a header row.
//! <https://docs.djangoproject.com/en/stable/ref/django-admin/#dumpdata>

use serde_json::{Map, Value};

use super::{Draft, Rules, object::Object};

/// The model of a record in a dump that is not a user. The name of a model tells nothing, since a project may call its
/// users anything, and `organizationuser` is a membership. The fields tell: every user model has `password` and
/// `last_login`, unless it has dropped the latter or somebody has removed the hash, and then it still has a name.
pub(super) fn other_model(record: &Map<String, Value>) -> Option<&str> {
    let (Some(Value::String(model)), Some(Value::Object(fields))) =
        (record.get("model"), record.get("fields"))
    else {
        return None;
    };
    let has = |name| fields.contains_key(name);
    let signs = [has("password"), has("last_login"), has("username") || has("email")];
    let is_user = signs.into_iter().filter(|sign| *sign).count() >= 2;
    (!is_user).then_some(model)
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
