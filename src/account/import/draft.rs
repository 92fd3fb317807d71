//! What a record says about a user, and the check that turns it into a user. The rules are those of a registration
//! ([`fields`](super::super::fields)).

use aws_lc_rs::digest::{SHA256, digest};
use time::{Duration, OffsetDateTime, macros::datetime};

use super::{Email, FieldError, FullName, Roles, Rules, Username, object::Object};
use crate::{
    account::ADMIN_ROLE,
    hex,
    password::foreign::{Imported, Refused},
};

/// How far in the future a record's times may be, since the other system's clock may be ahead of ours.
const CLOCK_SKEW: Duration = Duration::minutes(5);

/// The longest external id, in characters.
const MAX_EXTERNAL_ID: usize = 256;

/// What a record says about a user, unchecked. `None` where it says nothing.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) external_id: Option<String>,
    pub(super) username: Option<String>,
    /// Whether the username is one that we make up, if there is an address to make it of.
    pub(super) is_username_made: bool,
    pub(super) email: Option<String>,
    pub(super) full_name: Option<String>,
    pub(super) roles: Option<Vec<String>>,
    pub(super) is_email_verified: Option<bool>,
    pub(super) disabled: Option<bool>,
    pub(super) created_at: Option<OffsetDateTime>,
    pub(super) updated_at: Option<OffsetDateTime>,
    pub(super) password_changed_at: Option<OffsetDateTime>,
    pub(super) password: Option<Result<Imported, Refused>>,
}

/// A user to create, or changes to an existing one. What is `None` stays as it is.
#[derive(Debug)]
pub(in crate::account) struct Checked {
    pub(in crate::account) external_id: Option<String>,
    pub(in crate::account) username: Username,
    pub(in crate::account) is_username_made: bool,
    pub(in crate::account) email: Email,
    pub(in crate::account) full_name: Option<FullName>,
    pub(in crate::account) roles: Option<Roles>,
    pub(in crate::account) is_email_verified: Option<bool>,
    pub(in crate::account) disabled: Option<bool>,
    pub(in crate::account) created_at: OffsetDateTime,
    pub(in crate::account) updated_at: Option<OffsetDateTime>,
    pub(in crate::account) password_changed_at: Option<OffsetDateTime>,
    pub(in crate::account) password: Option<Imported>,
}

impl Draft {
    /// Checks a draft. The errors that `object` already has are kept.
    pub(super) fn check(self, object: Object<'_>, rules: &Rules) -> Result<Checked, Vec<FieldError>> {
        let mut errors = object.errors;
        let mut note = |error| errors.push(error);
        let missing = |field: &str| FieldError::new(field, "missing", "is missing");
        let external_id = self.external_id.and_then(|id| check_external_id(id).map_err(&mut note).ok());
        let username = match self.username {
            // The address is missing that it would be made of, and nothing else.
            None if self.is_username_made => None,
            name => {
                let name = name.ok_or_else(|| missing("username"));
                name.and_then(|name| Username::parse(&name)).map_err(&mut note).ok()
            }
        };
        let email = self.email.ok_or_else(|| missing("email"));
        let email = email.and_then(|address| Email::parse(&address)).map_err(&mut note).ok();
        let full_name = self.full_name.as_deref();
        let full_name = full_name.and_then(|name| FullName::parse(name).map_err(&mut note).ok()).flatten();
        for (field, at) in [
            ("created_at", self.created_at),
            ("updated_at", self.updated_at),
            ("password_changed_at", self.password_changed_at),
        ] {
            if at.is_some_and(|at| at > rules.now + CLOCK_SKEW) {
                note(FieldError::new(field, "in_the_future", "lies in the future"));
            } else if at.is_some_and(|at| at < datetime!(1970-01-01 00:00 UTC)) {
                note(FieldError::new(field, "too_early", "lies before 1970"));
            }
        }
        let password = match self.password {
            // `NoPassword`: what other systems store for a user who cannot log in with a password.
            None | Some(Err(Refused::NoPassword)) => None,
            Some(Ok(Imported::Keep(hash))) if !is_storable(hash.as_str()) => {
                note(FieldError::new(
                    "password_hash",
                    "refused",
                    "is too long, or contains characters that no hash has",
                ));
                None
            }
            Some(Ok(password)) => Some(password),
            Some(Err(refused)) => {
                note(FieldError::new("password_hash", "refused", format!("is {refused}")));
                None
            }
        };
        let roles = self.roles.map(|roles| Roles::parse(&roles)).transpose();
        let roles = roles.map_err(|roles| errors.extend(roles)).ok().flatten();
        if !rules.allow_admin
            && roles.as_ref().is_some_and(|roles| roles.as_slice().iter().any(|role| role == ADMIN_ROLE))
        {
            let message =
                format!("contain `{ADMIN_ROLE}`, which an import does not grant without --allow-admin");
            errors.push(FieldError::new("roles", "admin_not_allowed", message));
        }
        let (Some(username), Some(email), []) = (username, email, &errors[..]) else { return Err(errors) };
        Ok(Checked {
            external_id,
            username,
            is_username_made: self.is_username_made,
            email,
            full_name,
            roles,
            is_email_verified: self.is_email_verified,
            disabled: self.disabled,
            created_at: self.created_at.unwrap_or(rules.now),
            updated_at: self.updated_at,
            password_changed_at: self.password_changed_at,
            password,
        })
    }

    /// Makes up a username if the other system has none, or one that is not valid here: the beginning of the e-mail
    /// address, and eight hexadecimal digits that are always the same for the same user.
    pub(super) fn with_username(mut self) -> Self {
        if self.username.as_deref().is_some_and(|name| Username::parse(name).is_ok()) {
            return self;
        }
        self.is_username_made = true;
        let Some(email) = &self.email else { return Self { username: None, ..self } };
        let local = email.split('@').next().unwrap_or_default();
        let is_good = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let mut name: String = local.chars().map(|c| if is_good(c) { c } else { '-' }).take(55).collect();
        let whose = self.external_id.clone().unwrap_or_else(|| email.to_lowercase());
        let whose = digest(&SHA256, whose.as_bytes());
        name.push('-');
        name.push_str(&hex::encode(&whose.as_ref()[..4]));
        self.username = Some(name);
        self
    }
}

/// Whether the table accepts a hash. If it did not, it would refuse all rows that are copied with it.
fn is_storable(hash: &str) -> bool {
    hash.len() <= 1024 && hash.bytes().all(|byte| byte.is_ascii_graphic())
}

fn check_external_id(id: String) -> Result<String, FieldError> {
    match id.chars().count() {
        0 => Err(FieldError::new("external_id", "too_short", "needs 1 to 256 characters")),
        1..=MAX_EXTERNAL_ID if !id.contains(char::is_control) => Ok(id),
        1..=MAX_EXTERNAL_ID => {
            Err(FieldError::new("external_id", "invalid_characters", "may hold no control characters"))
        }
        _ => Err(FieldError::new("external_id", "too_long", "needs 1 to 256 characters")),
    }
}
