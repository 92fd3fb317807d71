//! Reads the JSON in tokens.

use serde::Deserialize;

/// Reads an object. serde alone would also accept an array of the struct's values.
pub(super) fn object<'j, T: Deserialize<'j>>(json: &'j [u8]) -> Option<T> {
    if json.trim_ascii_start().first() == Some(&b'{') { serde_json::from_slice(json).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_of_the_values_is_not_accepted_as_an_object() {
        #[derive(Deserialize)]
        struct Footer<'a> {
            kid: &'a str,
        }
        let kid = |json: &'static str| object::<Footer<'_>>(json.as_bytes()).map(|footer| footer.kid);
        assert_eq!(kid(r#"{"kid":"x"}"#), Some("x"));
        assert_eq!(kid(" \t\r\n{\"kid\":\"x\"} "), Some("x"));
        for json in ["", r#"["x"]"#, r#" ["x"]"#, r#""x""#, "null", r#"{"kid":"x"}{}"#] {
            assert_eq!(kid(json), None, "{json}");
        }
    }
}
