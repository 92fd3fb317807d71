//! `gatepass user`: what an administrator does to users.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    sync::Arc,
};

use uuid::Uuid;

use super::{Failure, database, explain, password_input::PasswordArgs, print, print_json, seconds, setup};
use crate::{
    account::{self, Accounts, Position, Registration, Roles, Search, User, UserChange},
    clock::Clock,
    http::UserBody,
    metrics::Metrics,
    password::Password,
    random,
    token::Issuer,
};

/// Look after users. A user is named by username, e-mail address or id.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make a user, whether or not registration is open; asks for the password
    Create {
        /// 3 to 64 of a-z A-Z 0-9 _ . -
        username: String,
        /// E-mail address
        #[arg(long)]
        email: String,
        /// Name for display
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
    /// List users, oldest first; with --query by what it has found
    List {
        /// Those alone whose username or e-mail address begins with TEXT, whatever its case
        #[arg(long, value_name = "TEXT", conflicts_with = "after")]
        query: Option<String>,
        /// Those alone who have this role
        #[arg(long)]
        role: Option<String>,
        /// At most this many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// Go on after the user of this id
        #[arg(long, value_name = "ID")]
        after: Option<Uuid>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show a user
    Show {
        /// Username, e-mail address or id
        user: String,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Set a user's password, which ends their sessions; asks for it
    ///
    /// Failed logins in the user's name are forgotten.
    SetPassword {
        /// Username, e-mail address or id
        user: String,
        #[command(flatten)]
        password: PasswordArgs,
    },
    /// Set a user's roles: exactly those given
    SetRole {
        /// Username, e-mail address or id
        user: String,
        /// The roles
        #[arg(required_unless_present = "none")]
        roles: Vec<String>,
        /// No role at all
        #[arg(long, conflicts_with = "roles")]
        none: bool,
    },
    /// Lock a user out, which ends their sessions
    ///
    /// Every replica refuses their access tokens within a second. A service that verifies tokens by itself, and does not
    /// follow /revocations, accepts them until they expire.
    Disable {
        /// Username, e-mail address or id
        user: String,
    },
    /// Let a user in again
    ///
    /// A user who was disabled is enabled, and failed logins in the user's name are forgotten.
    Enable {
        /// Username, e-mail address or id
        user: String,
    },
    /// Log a user out everywhere
    ///
    /// Every replica refuses their access tokens within a second. A service that verifies tokens by itself, and does not
    /// follow /revocations, accepts them until they expire.
    RevokeSessions {
        /// Username, e-mail address or id
        user: String,
    },
    /// Delete a user, sessions and all; asks first at a terminal
    Delete {
        /// Username, e-mail address or id
        user: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

pub(super) async fn run(config_file: Option<PathBuf>, command: Command) -> Result<(), Failure> {
    let settings = setup::begin(config_file).await?;
    // Asked for before anything is begun: a prompt may stand for long, and wrong use is told at once.
    let password = match &command {
        Command::Create { password, .. } | Command::SetPassword { password, .. } => Some(password.read()?),
        _ => None,
    };
    database::on_pool(&settings, async |db| {
        let key = setup::symmetric_key(&settings)?;
        // No command makes tokens, so that any key will do.
        let issuer = Arc::new(Issuer::new(key.clone(), setup::party(&settings)));
        let parts = setup::account_parts(&settings, &key, issuer, db.clone(), None, Metrics::new(), 1)?;
        let accounts = Accounts::new(parts).caused_by(setup::operator());
        execute(&accounts, command, password.as_ref()).await.map_err(explain)
    })
    .await
}

async fn execute(accounts: &Accounts, command: Command, password: Option<&Password>) -> Result<(), Failure> {
    // Only of commands that have read one.
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
                print(&table(&users))
            }
        }
        Command::Show { user, json } => show(accounts.find(&user).await?, json),
        Command::SetPassword { user, password: _ } => {
            let user = accounts.find(&user).await?;
            accounts.set_password(&user, password()?, now, rng).await?;
            accounts.forgive(&user, now).await;
            print(&format!("password of {} set\n", user.username))
        }
        Command::SetRole { user, roles, none: _ } => {
            let change = UserChange { roles: Some(&roles), ..UserChange::default() };
            let user = accounts.update(accounts.find(&user).await?.id, &change, now).await?;
            print(&format!("{} has the roles: {}\n", user.username, list(&user.roles)))
        }
        Command::Disable { user } => {
            let change = UserChange { disabled: Some(true), ..UserChange::default() };
            let user = accounts.update(accounts.find(&user).await?.id, &change, now).await?;
            print(&format!("{} is disabled\n", user.username))
        }
        Command::Enable { user } => {
            let change = UserChange { disabled: Some(false), ..UserChange::default() };
            let user = accounts.update(accounts.find(&user).await?.id, &change, now).await?;
            accounts.forgive(&user, now).await;
            print(&format!("{} is enabled\n", user.username))
        }
        Command::RevokeSessions { user } => {
            let user = accounts.find(&user).await?;
            let ended = accounts.revoke_sessions(user.id, None, now).await?;
            print(&format!("{} session(s) of {} ended\n", ended, user.username))
        }
        Command::Delete { user, yes } => {
            let user = accounts.find(&user).await?;
            if !yes && io::stdin().is_terminal() && !confirmed(&user)? {
                return print("nothing deleted\n");
            }
            accounts.delete(user.id, now).await?;
            print(&format!("{} is deleted\n", user.username))
        }
    }
}

fn confirmed(user: &User) -> Result<bool, Failure> {
    let mut terminal = io::stderr();
    write!(terminal, "Delete {} <{}> for good? Type the username: ", user.username, user.email)?;
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
        user.username,
        user.email,
        if user.is_email_verified { "" } else { " (not verified)" },
        user.full_name.as_deref().unwrap_or("-"),
        list(&user.roles),
        if user.disabled { "disabled" } else { "enabled" },
        seconds(user.created_at),
        seconds(user.password_changed_at),
    ))
}

fn table(users: &[User]) -> String {
    let mut text = format!("{:<36}  {:<24}  {:<8}  {:<32}  ROLES\n", "ID", "USERNAME", "STATE", "EMAIL");
    for user in users {
        let state = if user.disabled { "disabled" } else { "enabled" };
        let User { id, username, email, roles, .. } = user;
        text.push_str(&format!("{id}  {username:<24}  {state:<8}  {email:<32}  {}\n", list(roles)));
    }
    text
}

fn list(roles: &[String]) -> String {
    if roles.is_empty() { "-".to_owned() } else { roles.join(" ") }
}
