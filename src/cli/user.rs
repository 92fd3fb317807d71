//! `gatepass user`: user administration.

use std::{
    io::{self, IsTerminal, Write},
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
};

use uuid::Uuid;

use super::{
    Failure, database, explain, password_input::PasswordArgs, print, print_json, print_line, seconds, setup,
    table,
};
use crate::{
    account::{self, Accounts, Position, Registration, Roles, Search, User, UserChange},
    clock::Clock,
    http::UserBody,
    metrics::Metrics,
    password::Password,
    random,
    terminal::plain,
    token::Issuer,
};

/// Manage users. A user is named by username, e-mail address or id.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create a user, whether or not registration is open; asks for the password
    Create {
        /// 3 to 64 characters of a-z A-Z 0-9 _ . -
        username: String,
        /// E-mail address
        #[arg(long)]
        email: String,
        /// Display name
        #[arg(long)]
        full_name: Option<String>,
        /// A role, such as `admin`; may be given more than once
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<String>,
        #[command(flatten)]
        password: PasswordArgs,
        /// Print the user as JSON
        #[arg(long)]
        json: bool,
    },
    /// List users, oldest first; with --query, sorted by what matched
    List {
        /// Only users whose username or e-mail address begins with TEXT, ignoring case
        #[arg(long, value_name = "TEXT", conflicts_with = "after")]
        query: Option<String>,
        /// Only users who have this role
        #[arg(long)]
        role: Option<String>,
        /// Print at most this many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// Continue after the user with this id
        #[arg(long, value_name = "ID")]
        after: Option<Uuid>,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a user
    Show {
        /// Username, e-mail address or id
        user: String,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Set a user's password and end their sessions; asks for the password
    ///
    /// Also clears the failed logins under the user's name.
    SetPassword {
        /// Username, e-mail address or id
        user: String,
        #[command(flatten)]
        password: PasswordArgs,
    },
    /// Set a user's roles to exactly those given
    SetRole {
        /// Username, e-mail address or id
        user: String,
        /// The roles
        #[arg(required_unless_present = "none")]
        roles: Vec<String>,
        /// Leave the user without any role
        #[arg(long, conflicts_with = "roles")]
        none: bool,
    },
    /// Lock a user out and end their sessions
    ///
    /// Every replica refuses their access tokens within a second. A service that verifies tokens itself and does not
    /// follow /revocations accepts them until they expire.
    Disable {
        /// Username, e-mail address or id
        user: String,
    },
    /// Let a user in again
    ///
    /// Enables a disabled user, and clears the failed logins under the user's name.
    Enable {
        /// Username, e-mail address or id
        user: String,
    },
    /// Log a user out everywhere
    ///
    /// Every replica refuses their access tokens within a second. A service that verifies tokens itself and does not
    /// follow /revocations accepts them until they expire.
    RevokeSessions {
        /// Username, e-mail address or id
        user: String,
    },
    /// Delete a user with all their sessions; at a terminal, asks first
    Delete {
        /// Username, e-mail address or id
        user: String,
        /// Delete without asking
        #[arg(long)]
        yes: bool,
    },
}

pub(super) async fn run(config_file: Option<PathBuf>, command: Command) -> Result<(), Failure> {
    let settings = setup::begin(config_file).await?;
    // Ask before anything is opened: the prompt may stay open for long, and wrong use should be reported at once.
    let password = match &command {
        Command::Create { password, .. } | Command::SetPassword { password, .. } => Some(password.read()?),
        _ => None,
    };
    database::on_pool(&settings, async |db| {
        let key = setup::symmetric_key(&settings)?;
        // No command makes tokens, so any key will do.
        let issuer = Arc::new(Issuer::new(key.clone(), setup::party(&settings)));
        let (db, metrics, threads) = (db.clone(), Metrics::new(), NonZeroUsize::MIN);
        let parts = setup::account_parts(&settings, &key, issuer, db, metrics, threads)?;
        let accounts = Accounts::new(parts).caused_by(setup::operator());
        execute(&accounts, command, password.as_ref()).await.map_err(explain)
    })
    .await
}

async fn execute(accounts: &Accounts, command: Command, password: Option<&Password>) -> Result<(), Failure> {
    // Only called by the commands for which one was read.
    let password = || password.ok_or("no password was read");
    let now = Clock::system().now();
    let rng = &mut random::system();
    match command {
        Command::Create { username, email, full_name, roles, json, password: _ } => {
            let roles = Roles::parse(&roles).map_err(account::Error::Invalid)?;
            let registration = Registration {
                username: &username,
                email: &email,
                full_name: full_name.as_deref(),
                password: password()?,
            };
            show(accounts.create(&registration, &roles, now, rng).await?, json)
        }
        Command::List { query, role, limit, after, json } => {
            let search = Search { query: query.as_deref(), role: role.as_deref() };
            let users = accounts.search(&search, after.map(Position::Id).as_ref(), limit).await?.users;
            if json {
                print_json(&users.into_iter().map(UserBody::from).collect::<Vec<_>>())
            } else {
                print(&table(["ID", "USERNAME", "STATE", "EMAIL", "ROLES"], users.iter().map(cells)))
            }
        }
        Command::Show { user, json } => show(find(accounts, &user).await?, json),
        Command::SetPassword { user, password: _ } => {
            let user = find(accounts, &user).await?;
            accounts.set_password(&user, password()?, now, rng).await?;
            accounts.forgive(&user, now).await;
            print_line(&format!("password of {} set", user.username))
        }
        Command::SetRole { user, roles, none: _ } => {
            let change = UserChange { roles: Some(&roles), ..UserChange::default() };
            let before = find(accounts, &user).await?;
            let user = accounts.update(before.id, &change, now).await?;
            // All that is not named is taken away: whoever meant to add a role should see it.
            print_line(&match (&before.roles[..], &user.roles[..]) {
                ([], []) => format!("{} has no roles", user.username),
                (before, after) => format!("{}: {} -> {}", user.username, named(before), named(after)),
            })
        }
        Command::Disable { user } => {
            let change = UserChange { disabled: Some(true), ..UserChange::default() };
            let user = accounts.update(find(accounts, &user).await?.id, &change, now).await?;
            print_line(&format!("{} is disabled", user.username))
        }
        Command::Enable { user } => {
            let change = UserChange { disabled: Some(false), ..UserChange::default() };
            let user = accounts.update(find(accounts, &user).await?.id, &change, now).await?;
            accounts.forgive(&user, now).await;
            print_line(&format!("{} is enabled", user.username))
        }
        Command::RevokeSessions { user } => {
            let user = find(accounts, &user).await?;
            let ended = accounts.revoke_sessions(user.id, None, now).await?;
            print_line(&format!("{} session(s) of {} ended", ended, user.username))
        }
        Command::Delete { user, yes } => {
            let user = find(accounts, &user).await?;
            if !yes && io::stdin().is_terminal() && !confirmed(&user)? {
                return Err("nothing deleted: that is not the username".into());
            }
            accounts.delete(user.id, now).await?;
            print_line(&format!("{} is deleted", user.username))
        }
    }
}

/// As [`Accounts::find`], with an error that says who is not there.
async fn find(accounts: &Accounts, user: &str) -> Result<User, Failure> {
    accounts.find(user).await.map_err(|error| match error {
        account::Error::NoSuchUser => format!("{error}: {user}").into(),
        error => error.into(),
    })
}

fn confirmed(user: &User) -> Result<bool, Failure> {
    let mut terminal = io::stderr();
    let who = plain(&format!("{} <{}>", user.username, user.email));
    write!(terminal, "Delete {who} for good? Type the username: ")?;
    terminal.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == user.username)
}

fn show(user: User, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(&UserBody::from(user));
    }
    print(&format!(
        "id          {}\nusername    {}\nemail       {}{}\nfull name   {}\nroles       {}\nstate       {}\n\
         created     {}\npassword    set {}\n",
        user.id,
        plain(&user.username),
        plain(&user.email),
        if user.is_email_verified { "" } else { " (not verified)" },
        user.full_name.as_deref().map_or_else(|| "-".to_owned(), plain),
        plain(&list(&user.roles)),
        if user.disabled { "disabled" } else { "enabled" },
        seconds(user.created_at),
        seconds(user.password_changed_at),
    ))
}

fn cells(user: &User) -> [String; 5] {
    let state = if user.disabled { "disabled" } else { "enabled" };
    let User { id, username, email, roles, .. } = user;
    [id.to_string(), username.clone(), state.to_owned(), email.clone(), list(roles)]
}

fn named(roles: &[String]) -> String {
    if roles.is_empty() { "no roles".to_owned() } else { roles.join(", ") }
}

fn list(roles: &[String]) -> String {
    if roles.is_empty() { "-".to_owned() } else { roles.join(" ") }
}
