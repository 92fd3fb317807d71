//! The rules for a user's fields, as types: a value of one of these types has passed its check.
//!
//! The database has the same rules as constraints (`migrations/000001_users.up.sql`). Here they come with a message
//! that a form can show.

use email_address::{EmailAddress, Options};
use serde::Serialize;
use unicode_normalization::{UnicodeNormalization, char::is_combining_mark};

/// What is wrong with one field of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct FieldError {
    /// The field's name in the request; `roles[2]` for an element.
    #[schema(example = "username")]
    pub field: String,
    /// A stable code for what is wrong.
    #[schema(example = "too_short")]
    pub code: &'static str,
    /// What a form can show after the field's name.
    #[schema(example = "needs 3 to 64 characters")]
    pub message: String,
}

impl FieldError {
    /// An error about `field`.
    pub fn new(field: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self { field: field.into(), code, message: message.into() }
    }
}

/// 3 to 64 of `a-z A-Z 0-9 _ . -`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Username(String);

impl Username {
    /// Checks a username.
    ///
    /// # Errors
    ///
    /// `too_short`, `too_long` or `invalid_characters`, about the field `username`.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        let refuse = |code, message| Err(FieldError::new("username", code, message));
        match text.chars().count() {
            0..3 => refuse("too_short", "needs 3 to 64 characters"),
            65.. => refuse("too_long", "needs 3 to 64 characters"),
            _ if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) => {
                refuse("invalid_characters", "may hold a-z, A-Z, 0-9, `_`, `.` and `-`")
            }
            _ => Ok(Self(text.to_owned())),
        }
    }

    /// The name as the user wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An e-mail address of at most 254 bytes (RFC 5321), which may contain letters beyond ASCII (RFC 6531). Its domain has
/// a dot, and labels of letters, digits and hyphens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Email(String);

impl Email {
    /// The longest address, in bytes.
    pub const MAX_BYTES: usize = 254;

    /// Checks an address.
    ///
    /// # Errors
    ///
    /// `too_long` or `invalid_email`, about the field `email`.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        if text.len() > Self::MAX_BYTES {
            return Err(FieldError::new("email", "too_long", "may have at most 254 bytes"));
        }
        let options = Options::default().with_required_tld().without_domain_literal().without_display_text();
        // Quoted local parts may contain blanks and control characters. No one has such an address, and every system
        // that received one would have to cope with it.
        let odd = |c: char| c.is_whitespace() || c.is_control() || c == '"';
        let parsed = EmailAddress::parse_with_options(&without_marks(text), options);
        if text.contains(odd) || !parsed.is_ok_and(|address| can_be_host(address.domain())) {
            return Err(FieldError::new("email", "invalid_email", "is not an e-mail address"));
        }
        Ok(Self(text.to_owned()))
    }

    /// The address as the user wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a domain that [`EmailAddress`] accepts can be the name of a host. After the `@` it also accepts characters
/// that are valid only before it (RFC 5322), and numbers such as an IPv4 address.
fn can_be_host(domain: &str) -> bool {
    let is_number = |label: &str| label.chars().all(char::is_numeric);
    domain.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '.')
        && !domain.rsplit('.').next().is_some_and(is_number)
}

/// The address in composed form, with each combining mark that follows a letter replaced by a letter of the same
/// length: an accent without a composed form, a vowel sign or a virama of an Indic script, a tone in Thai. RFC 6531
/// allows these marks in addresses, but [`EmailAddress`] does not. Invisible marks stay and so are refused: with them,
/// two different addresses would look the same.
fn without_marks(address: &str) -> String {
    let mut is_after_letter = false;
    let replace = |c: char| {
        let is_mark = is_after_letter && is_combining_mark(c) && !is_invisible_mark(c);
        is_after_letter = is_mark || c.is_alphanumeric();
        match (is_mark, c.len_utf8()) {
            (false, _) => c,
            (true, 2) => '\u{e9}',
            (true, 3) => '\u{915}',
            (true, _) => '\u{10400}',
        }
    };
    address.nfc().map(replace).collect()
}

/// The grapheme joiner, the inherent vowels of Khmer, and variation selectors.
fn is_invisible_mark(c: char) -> bool {
    matches!(
        u32::from(c),
        0x34f | 0x17b4..=0x17b5 | 0x180b..=0x180f | 0xfe00..=0xfe0f | 0xe_0100..=0xe_01ef
    )
}

/// A username or an address in the form in which it is looked up: two names have the same form if they name the same
/// user.
pub(super) fn normalised(name: &str) -> String {
    name.nfc().collect::<String>().to_lowercase()
}

/// A name for display: 1 to 256 characters, none of them a control character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FullName(String);

impl FullName {
    /// Checks a name. Blanks around it are trimmed; if nothing is left, there is no name.
    ///
    /// # Errors
    ///
    /// `too_long` or `invalid_characters`, about the field `full_name`.
    pub fn parse(text: &str) -> Result<Option<Self>, FieldError> {
        let text = text.trim();
        if text.chars().count() > 256 {
            return Err(FieldError::new("full_name", "too_long", "may have at most 256 characters"));
        }
        if text.contains(char::is_control) {
            return Err(FieldError::new("full_name", "invalid_characters", "may hold no control characters"));
        }
        Ok((!text.is_empty()).then(|| Self(text.to_owned())))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Names of roles: `a-z`, then up to 63 of `a-z 0-9 _ . : -`. At most 32, sorted, without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles(Vec<String>);

impl Roles {
    /// Checks a list of roles.
    ///
    /// # Errors
    ///
    /// `invalid_role` for each invalid name, or `too_many`, about the field `roles`.
    pub fn parse<S: AsRef<str>>(names: &[S]) -> Result<Self, Vec<FieldError>> {
        let errors: Vec<_> = names
            .iter()
            .enumerate()
            .filter(|(_, name)| !Self::is_name(name.as_ref()))
            .map(|(i, _)| {
                let message = "needs a-z first, then at most 63 of a-z, 0-9, `_`, `.`, `:` and `-`";
                FieldError::new(format!("roles[{i}]"), "invalid_role", message)
            })
            .collect();
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut roles: Vec<String> = names.iter().map(|name| name.as_ref().to_owned()).collect();
        roles.sort();
        roles.dedup();
        if roles.len() > 32 {
            return Err(vec![FieldError::new("roles", "too_many", "may hold at most 32 roles")]);
        }
        Ok(Self(roles))
    }

    /// Whether `text` is a valid name for a role.
    pub fn is_name(text: &str) -> bool {
        text.len() <= 64
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_.:-".contains(&b))
    }

    /// The names.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usernames() {
        for name in ["abc", "A.b_c-9", "...", &"x".repeat(64)] {
            assert_eq!(Username::parse(name).unwrap().as_str(), name);
        }
        for (name, code) in [
            ("", "too_short"),
            ("ab", "too_short"),
            (&*"x".repeat(65), "too_long"),
            ("a b c", "invalid_characters"),
            ("alice@example.com", "invalid_characters"),
            ("ålice", "invalid_characters"),
            ("al\0ice", "invalid_characters"),
            ("alice\n", "invalid_characters"),
        ] {
            assert_eq!(Username::parse(name).unwrap_err().code, code, "{name:?}");
        }
    }

    #[test]
    fn email_addresses() {
        for address in [
            "a@b.co",
            "Alice.Liddell+tag@Example.COM",
            "ü@exämple.de",
            "o'hara@mail.example",
            "jose\u{301}@exa\u{308}mple.de",
            // An accent that does not compose, on top of another one.
            "q\u{323}\u{301}@example.com",
            "हिन्दी@example.com",
            "ผู้ใช้@ตัวอย่าง.ไทย",
            "ひと@例え.テスト",
            "me@xn--exmple-cua.xn--p1ai",
            "a@3com.com",
            "a@163.com",
            "a@1.2.3.4.c0",
            // Odd characters before the @ are accepted.
            "a/b%c_d`e|f@a-b--c.com",
            "விஜய்@example.com",
            "\u{1112b}\u{11127}\u{11134}@example.com",
        ] {
            assert_eq!(Email::parse(address).unwrap().as_str(), address);
        }
        for address in [
            "",
            "alice",
            "@example.com",
            "alice@",
            "alice@localhost",
            "alice@[127.0.0.1]",
            "Alice <alice@example.com>",
            "a@b@example.com",
            // Domains that no host can have.
            "alice@exa/mple.com",
            "alice@exam%ple.com",
            "alice@a`|b.com",
            "alice@a_b.com",
            "alice@_dmarc.example.com",
            "alice@a+b.com",
            "alice@example.c~m",
            "alice@-a.com",
            "alice@a-.com",
            "alice@a.-com",
            "alice@127.0.0.1",
            "alice@example.42",
            "alice@127.0.0.\u{661}",
            "\"a b\"@example.com",
            "alice@example.com\n",
            "al\0ice@example.com",
            "alice @example.com",
            // A mark without a letter.
            "\u{301}jose@example.com",
            "jose.\u{301}@example.com",
            "jose@\u{301}example.com",
            "jose-\u{301}@example.com",
            // Invisible characters.
            "jose\u{fe0f}@example.com",
            "jose\u{34f}@example.com",
            "jo\u{301}\u{200d}se@example.com",
        ] {
            assert_eq!(Email::parse(address).unwrap_err().code, "invalid_email", "{address:?}");
        }
        let long = format!("{}@{}.com", "a".repeat(64), "b".repeat(186));
        assert_eq!(long.len(), 255);
        assert_eq!(Email::parse(&long).unwrap_err().code, "too_long");
        // At most 64 bytes before the @, including the marks.
        let local = "q\u{301}".repeat(21);
        assert!(Email::parse(&format!("{local}x@example.com")).is_ok());
        assert!(Email::parse(&format!("{local}xx@example.com")).is_err());
    }

    #[test]
    fn full_names() {
        assert_eq!(FullName::parse("  Ada Lovelace ").unwrap().unwrap().as_str(), "Ada Lovelace");
        assert_eq!(FullName::parse(" ").unwrap(), None);
        assert_eq!(FullName::parse(&"é".repeat(256)).unwrap().unwrap().as_str().chars().count(), 256);
        assert_eq!(FullName::parse(&"é".repeat(257)).unwrap_err().code, "too_long");
        assert_eq!(FullName::parse("a\0b").unwrap_err().code, "invalid_characters");
        assert_eq!(FullName::parse("a\u{85}b").unwrap_err().code, "invalid_characters");
    }

    #[test]
    fn roles() {
        let roles = Roles::parse(&["support", "admin", "admin", "billing:read"]).unwrap();
        assert_eq!(roles.as_slice(), ["admin", "billing:read", "support"]);
        let errors = Roles::parse(&["admin", "", "Admin", "a,b", &"a".repeat(65)]).unwrap_err();
        let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["roles[1]", "roles[2]", "roles[3]", "roles[4]"]);
        let many: Vec<_> = (0..33).map(|i| format!("r{i}")).collect();
        assert_eq!(Roles::parse(&many).unwrap_err()[0].code, "too_many");
    }
}
