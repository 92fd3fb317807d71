//! The documents generated from the table of settings: `app.env.example` and the README's table.

use super::settings::{DefaultValue, SETTINGS, Setting};

/// The settings that somebody new to gatepass sets first, with their values: the lines of the example that are not
/// commented out.
const FIRST: &[(&str, &str)] = &[("ENVIRONMENT", "development"), ("HTTP_SERVER_ADDRESS", "0.0.0.0:8080")];

const HEAD: &str = "\
# Settings of gatepass. Copy this file to app.env in the working directory, and uncomment what you want to change.
#
# The environment takes precedence over this file. An empty value counts as not set. Values may be in 'single' or
# \"double\" quotes; $ is an ordinary character. Every secret can also be read from a file: NAME_FILE=/path in place of
# NAME. Setting both is an error, even if one is here and the other in the environment.
#
# This file is generated: gatepass config --example > app.env.example
";

/// The text of `app.env.example`: every setting with a line about it, under its group's heading.
pub fn app_env_example() -> String {
    let mut text = HEAD.to_owned();
    let mut group = "";
    for setting in SETTINGS {
        if group != setting.group {
            group = setting.group;
            text += &format!("\n# --- {group} ---\n");
        }
        text += &format!("\n# {}\n", setting.about);
        text += &match FIRST.iter().find(|(name, _)| *name == setting.name) {
            Some((name, value)) => format!("{name}={value}\n"),
            None => format!("# {}={}\n", setting.name, shown(setting)),
        };
    }
    text
}

/// The README's table of settings, in Markdown: name, default and purpose.
pub fn settings_table_markdown() -> String {
    let mut text = "| setting | default | what |\n|---|---|---|\n".to_owned();
    for setting in SETTINGS {
        let default = match setting.default {
            DefaultValue::Text(text) => format!("`{text}`"),
            other => other.to_string(),
        };
        let file = setting.file_name().map(|name| format!(" Or `{name}`.")).unwrap_or_default();
        let what = format!("{}{file}", setting.about).replace('|', r"\|");
        text += &format!("| `{}` | {default} | {what} |\n", setting.name);
    }
    text
}

/// The default, or an example where there is none.
fn shown(setting: &Setting) -> &'static str {
    match setting.default {
        DefaultValue::Text(text) => text,
        DefaultValue::Cores => "2",
        DefaultValue::Unset => setting.example.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_in_the_repository_is_the_one_generated() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/app.env.example");
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(path, app_env_example()).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap();
        assert!(
            committed == app_env_example(),
            "app.env.example is out of date: run this with UPDATE_EXPECT=1"
        );
    }

    #[test]
    fn the_table_has_a_row_for_every_setting() {
        let table = settings_table_markdown();
        assert_eq!(table.lines().count(), 2 + SETTINGS.len());
        for (setting, row) in SETTINGS.iter().zip(table.lines().skip(2)) {
            assert!(row.starts_with(&format!("| `{}` | ", setting.name)), "{row}");
            assert_eq!(row.replace(r"\|", "").matches('|').count(), 4, "{row}");
        }
    }
}
