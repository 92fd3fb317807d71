//! Passwords come from a prompt or from standard input, never from an argument, which everyone on the machine can see.

use std::io::{self, IsTerminal, Read};

use secrecy::{ExposeSecret, SecretString};

use super::{Failure, WrongUse};
use crate::password::Password;

/// Where a password comes from.
#[derive(Debug, clap::Args)]
pub(super) struct PasswordArgs {
    /// Read the password from standard input instead of asking for it
    #[arg(long)]
    password_stdin: bool,
}

impl PasswordArgs {
    /// Reads the password; at a terminal, asks for it twice.
    pub(super) fn read(&self) -> Result<Password, Failure> {
        let text = if self.password_stdin {
            from_stdin()?
        } else if io::stdin().is_terminal() {
            from_prompt()?
        } else {
            return Err(Box::new(WrongUse(
                "there is no terminal to ask for the password at: use --password-stdin".into(),
            )));
        };
        Ok(Password::new(text.expose_secret()))
    }
}

fn from_stdin() -> Result<SecretString, Failure> {
    let mut text = String::new();
    io::stdin().lock().take(64 * 1024).read_to_string(&mut text)?;
    // The line break at the end is `echo`'s, and not part of the password.
    let end = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).map(str::len);
    text.truncate(end.unwrap_or(text.len()));
    Ok(text.into())
}

fn from_prompt() -> Result<SecretString, Failure> {
    let first = SecretString::from(rpassword::prompt_password("Password: ")?);
    let second = SecretString::from(rpassword::prompt_password("Again: ")?);
    if first.expose_secret() != second.expose_secret() {
        return Err("the two passwords differ".into());
    }
    Ok(first)
}
