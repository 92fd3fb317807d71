//! The clients. Each has one user at a time, does one thing after the other with them and their sessions, on any
//! replica, and checks each answer against its [record](super::record).

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use chacha20::ChaCha20Rng;
use gatepass::random;
use rand_core::{Rng, SeedableRng};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::sleep;

use super::{
    fleet::{Answer, Fleet, REPLICAS},
    record::{Fate, Roles, Said, Session, Span, Tokens},
};
use crate::app::PASSWORD;

/// How many sessions of a user are alive at once.
const SESSIONS: usize = 5;
/// After this a request whose answer was lost has taken effect, if it ever does.
const REST: Duration = Duration::from_secs(3);
const ROLES: [&[&str]; 3] = [&[], &["editor"], &["editor", "viewer"]];
pub const ADMIN: &str = "root";

/// The error is what a user's client has done, and why the answer is wrong.
pub type Outcome<T = ()> = Result<T, String>;

/// Randomness that repeats with the same seed.
pub struct Dice(ChaCha20Rng);

impl Dice {
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(ChaCha20Rng::seed_from_u64(seed.wrapping_mul(1000).wrapping_add(stream)))
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.0.next_u64() % end as u64).unwrap()
    }

    pub fn millis(&mut self, from: usize, to: usize) -> Duration {
        Duration::from_millis((from + self.below(to - from)) as u64)
    }
}

/// A user, as their client knows them.
#[derive(Default)]
pub struct User {
    pub name: String,
    /// More than one while the answer to a change is lost.
    passwords: Vec<String>,
    pub roles: Roles,
    pub sessions: Vec<Session>,
    /// How many sessions may exist that nobody knows of.
    pub lost_logins: i32,
    pub is_there: bool,
    id: String,
}

/// What a client does; [`ACTS`] says how often.
#[derive(Clone, Copy, Debug)]
enum Act {
    LogIn,
    Check,
    Renew,
    /// And leaves before the answer comes.
    RenewAndLeave,
    /// With the previous refresh token.
    RenewAgain,
    /// With an older one, as a thief would.
    Replay,
    List,
    LogOut,
    LogOutAndLeave,
    Revoke,
    EndOne,
    EndOthers,
    EndAll,
    /// Tries a session that is over.
    Resurrect,
    ChangePassword,
    ChangeRoles,
    Disable,
    DeleteAccount,
    Rest,
}

const ACTS: [(usize, Act); 19] = [
    (10, Act::LogIn),
    (40, Act::Check),
    (30, Act::Renew),
    (3, Act::RenewAndLeave),
    (6, Act::RenewAgain),
    (2, Act::Replay),
    (6, Act::List),
    (4, Act::LogOut),
    (1, Act::LogOutAndLeave),
    (3, Act::Revoke),
    (3, Act::EndOne),
    (1, Act::EndOthers),
    (1, Act::EndAll),
    (12, Act::Resurrect),
    (2, Act::ChangePassword),
    (3, Act::ChangeRoles),
    (1, Act::Disable),
    (1, Act::DeleteAccount),
    (4, Act::Rest),
];

pub struct Story {
    fleet: Arc<Fleet>,
    http: Client,
    dice: Dice,
    number: usize,
    user: User,
    former: Vec<User>,
    /// An administrator's access token, and when it ends.
    admin: Option<(String, OffsetDateTime)>,
    /// What was done: with one session, by its number, or with the user as a whole.
    told: Vec<(Option<usize>, String)>,
    /// The session that is in use at the moment.
    present: Option<usize>,
    /// The replica to ask, if not just any.
    place: Option<usize>,
}

impl Story {
    pub fn new(fleet: Arc<Fleet>, seed: u64, number: usize) -> Self {
        Self {
            fleet,
            http: Client::new(),
            dice: Dice::new(seed, number as u64),
            number,
            user: User::default(),
            former: Vec::new(),
            admin: None,
            told: Vec::new(),
            present: None,
            place: None,
        }
    }

    /// Acts until the soak is over, and returns the story with its users. If an answer was not predicted, the error is
    /// what led there.
    pub async fn play(mut self) -> Outcome<Self> {
        let played = async {
            while !self.fleet.is_over.load(Relaxed) {
                if self.user.is_there {
                    self.act().await?;
                } else {
                    self.meet().await?;
                }
                sleep(self.dice.millis(5, 90)).await;
            }
            Ok::<_, String>(())
        };
        match played.await {
            Ok(()) => Ok(self),
            Err(fault) => Err(self.story(&fault)),
        }
    }

    /// What was done with the user, and with the one of their sessions that went wrong.
    fn story(&self, fault: &str) -> String {
        let lines: Vec<_> = self.told.iter().filter(|(of, _)| of.is_none() || *of == self.present).collect();
        let lines: Vec<_> =
            lines[lines.len().saturating_sub(150)..].iter().map(|(_, line)| line.as_str()).collect();
        let session = self.present.and_then(|i| Some((i, self.user.sessions.get(i)?)));
        let (number, name) = (self.number, &self.user.name);
        format!("client {number}, user {name}: {fault}\n{}\n  {session:#?}", lines.join("\n"))
    }

    pub fn users(&self) -> impl Iterator<Item = &User> {
        self.former.iter().chain(Some(&self.user)).filter(|user| !user.name.is_empty())
    }

    fn tell(&mut self, what: &str) {
        self.told.push((self.present, format!("  {} {what}", self.fleet.clock.now().time())));
    }

    async fn ask(
        &mut self,
        what: &str,
        patience: Option<Duration>,
        request: impl Fn(&Client, &str) -> RequestBuilder + Sync,
    ) -> Outcome<Answer> {
        let answer = loop {
            let mut replicas = self.fleet.replicas();
            replicas.retain(|replica| self.place.is_none_or(|place| replica.place == place));
            let replica = &replicas[self.dice.below(replicas.len())];
            let answer = self.fleet.ask(replica, &self.http, &request, patience).await;
            let told = match &answer {
                Ok(answer) => format!("{what} from {}: {}", answer.span.sent.time(), answer.told),
                Err(fault) => format!("{what}: {fault}"),
            };
            self.tell(&told);
            let answer = answer?;
            if !answer.is_unheard {
                break answer;
            }
        };
        if answer.said == Said::Lost {
            sleep(self.dice.millis(100, 400)).await;
        }
        Ok(answer)
    }

    /// Asks until there is an answer; the span covers all attempts.
    async fn insist(
        &mut self,
        what: &str,
        request: impl Fn(&Client, &str) -> RequestBuilder + Sync,
    ) -> Outcome<(Answer, bool)> {
        let first = self.ask(what, None, &request).await?;
        if first.said != Said::Lost {
            return Ok((first, false));
        }
        loop {
            // No late request may undo what is done next.
            sleep(REST).await;
            let answer = self.ask(what, None, &request).await?;
            if answer.said != Said::Lost {
                return Ok((Answer { span: first.span.to(answer.span), ..answer }, true));
            }
        }
    }

    /// A new user, registered now or imported before.
    async fn meet(&mut self) -> Outcome {
        self.present = None;
        let user = std::mem::take(&mut self.user);
        self.former.push(user);
        let imported = self.fleet.imported.lock().unwrap().pop();
        let user = User { passwords: vec![PASSWORD.to_owned()], is_there: true, ..User::default() };
        if let Some(name) = imported {
            self.user = User { name, ..user };
        } else {
            let name = format!("user{}-{}", self.number, self.former.len());
            let body =
                json!({ "username": name, "email": format!("{name}@example.com"), "password": PASSWORD });
            self.user = User { name, ..user };
            let registered =
                self.insist("register", |http, url| http.post(format!("{url}/users")).json(&body)).await?;
            match registered {
                (Answer { said: Said::Done(_), .. }, _) => {}
                (Answer { said: Said::Refused(code), .. }, true) if code == "username_taken" => {}
                (answer, _) => return Err(format!("a new user is not taken: {answer:?}")),
            }
        }
        self.log_in().await
    }

    async fn act(&mut self) -> Outcome {
        self.present = None;
        let mut turn = self.dice.below(ACTS.iter().map(|(turns, _)| turns).sum());
        let (_, act) = ACTS
            .iter()
            .find(|(turns, _)| {
                let is_it = turn < *turns;
                turn = turn.saturating_sub(*turns);
                is_it
            })
            .unwrap();
        if self.user.passwords.len() > 1 || self.user.id.is_empty() || matches!(act, Act::LogIn) {
            return self.log_in().await;
        }
        let now = self.fleet.clock.now();
        if matches!(act, Act::Resurrect) {
            let dead: Vec<_> = self.having(|session| matches!(session.fate, Fate::Over { .. }));
            return match dead.len() {
                0 => Ok(()),
                count => {
                    let session = dead[self.dice.below(count)];
                    self.renew(session, 0, None).await?;
                    self.check(session).await
                }
            };
        }
        let open = self.having(|session| {
            session.is_live(now) || matches!(session.fate, Fate::Doubtful { .. }) && now < session.idle_end.1
        });
        if open.is_empty() {
            return self.log_in().await;
        }
        let session = open[self.dice.below(open.len())];
        if matches!(act, Act::EndOthers | Act::EndAll | Act::ChangePassword | Act::DeleteAccount) {
            self.tell(&format!("{act:?}"));
        }
        match act {
            Act::LogIn | Act::Resurrect => Ok(()),
            Act::Check => self.check(session).await,
            Act::Renew => self.renew(session, 0, None).await,
            Act::RenewAndLeave => {
                let patience = self.dice.millis(1, 20);
                self.renew(session, 0, Some(patience)).await?;
                // The service may still process the abandoned request: ask for its answer, and go no further.
                sleep(Duration::from_millis(500)).await;
                self.renew(session, 0, None).await?;
                sleep(Duration::from_millis(1500)).await;
                Ok(())
            }
            Act::RenewAgain => self.renew(session, 1, None).await,
            Act::Replay => self.renew(session, 2, None).await,
            Act::List => self.list(session).await,
            Act::LogOut => self.end(session, "POST", "/users/logout", None).await,
            Act::LogOutAndLeave => {
                let patience = self.dice.millis(1, 20);
                self.end(session, "POST", "/users/logout", Some(patience)).await
            }
            Act::Revoke => self.revoke(session).await,
            Act::EndOne => {
                let path = format!("/sessions/{}", self.user.sessions[session].id);
                self.end(session, "DELETE", &path, None).await
            }
            Act::EndOthers => self.end_many(session, "/sessions", true).await,
            Act::EndAll => self.end_many(session, "/sessions?all=true", false).await,
            Act::ChangePassword => self.change_password(session).await,
            Act::ChangeRoles => self.change_roles().await,
            Act::Disable => self.disable().await,
            Act::DeleteAccount => self.delete_account(session).await,
            Act::Rest => {
                sleep(self.dice.millis(500, 4000)).await;
                Ok(())
            }
        }
    }

    fn having(&self, condition: impl Fn(&Session) -> bool) -> Vec<usize> {
        (0..self.user.sessions.len()).filter(|i| condition(&self.user.sessions[*i])).collect()
    }

    async fn log_in(&mut self) -> Outcome {
        let now = self.fleet.clock.now();
        let is_certain = self.user.passwords.len() == 1 && !self.user.id.is_empty();
        if is_certain && self.having(|session| session.is_live(now)).len() >= SESSIONS {
            return Ok(());
        }
        let passwords = self.user.passwords.clone();
        for password in &passwords {
            let body = json!({ "username": self.user.name, "password": password });
            let answer = self
                .ask("log in", None, |http, url| http.post(format!("{url}/users/login")).json(&body))
                .await?;
            match answer.said {
                Said::Done(body) => {
                    let session = Session::begun(
                        text(&body["session_id"]),
                        tokens(&body),
                        &self.user.roles,
                        answer.span,
                        &self.fleet.rules,
                    );
                    self.tell(&format!("  as session {}, {}", self.user.sessions.len(), session.id));
                    self.user.sessions.push(session);
                    self.user.id = text(&body["user"]["id"]);
                    self.user.passwords = vec![password.clone()];
                    return Ok(());
                }
                Said::Lost => {
                    self.user.lost_logins += 1;
                    return Ok(());
                }
                Said::Refused(code) if code == "invalid_credentials" => {}
                Said::Refused(code) => return Err(format!("a login is answered {code}")),
            }
        }
        Err("the user is locked out".to_owned())
    }

    async fn renew(&mut self, i: usize, age: usize, patience: Option<Duration>) -> Outcome {
        self.present = Some(i);
        let session = &self.user.sessions[i];
        let Some(token) = session.refresh_tokens.iter().rev().nth(age) else { return Ok(()) };
        if age > 0 && session.lost.is_some() {
            return Ok(());
        }
        let body = json!({ "refresh_token": token });
        let what = format!("renew session {i}, of {age} ago");
        let answer = self
            .ask(&what, patience, |http, url| http.post(format!("{url}/tokens/renew_access")).json(&body))
            .await?;
        let said = match answer.said {
            Said::Done(body) => Said::Done(tokens(&body)),
            Said::Refused(code) => Said::Refused(code),
            Said::Lost => Said::Lost,
        };
        let Self { user, fleet, .. } = self;
        let verdict = user.sessions[i].renewed(age, said, &user.roles, answer.span, &fleet.rules);
        verdict.map_err(|fault| format!("session {i}: {fault}"))
    }

    /// Makes a request with an access token of a session, and records what the answer says about the token. The request
    /// may be refused because of its token or with one of the codes `foretold`, or succeed.
    async fn bear(
        &mut self,
        i: usize,
        what: &str,
        patience: Option<Duration>,
        foretold: &[&str],
        request: impl Fn(&Client, &str) -> RequestBuilder + Sync,
    ) -> Outcome<(Said<Value>, Span)> {
        self.present = Some(i);
        let session = &self.user.sessions[i];
        let age = if self.dice.below(3) == 0 { self.dice.below(session.access_tokens.len()) } else { 0 };
        let token = session.access_tokens[session.access_tokens.len() - 1 - age].clone();
        let what = format!("{what} with session {i}, token of {age} before");
        let answer =
            self.ask(&what, patience, |http, url| request(http, url).bearer_auth(&token.text)).await?;
        let said = match &answer.said {
            Said::Refused(code) if is_about_token(code) => Said::Refused(code.clone()),
            // This has nothing to do with the token.
            Said::Refused(code) if foretold.contains(&&**code) => Said::Done(()),
            Said::Refused(code) => return Err(format!("{what} is refused: {code}")),
            Said::Done(_) => Said::Done(()),
            Said::Lost => Said::Lost,
        };
        if let Said::Done(body) = &answer.said
            && what.starts_with("verify")
        {
            let expected = json!({ "session_id": self.user.sessions[i].id, "roles": token.roles });
            if *body != expected {
                return Err(format!("{what}: {body} came, and foretold was {expected}"));
            }
        }
        let quiet = self.fleet.quiet_since(answer.span);
        let Self { user, fleet, .. } = self;
        let verdict = user.sessions[i].checked(age, &said, &user.roles, answer.span, quiet, &fleet.rules);
        verdict.map_err(|fault| format!("session {i}: {fault}"))?;
        Ok((answer.said, answer.span))
    }

    async fn check(&mut self, i: usize) -> Outcome {
        let path = match self.dice.below(8) {
            0 => "/users/me",
            1 => "/users/me/history",
            _ => "/auth/verify",
        };
        let what = if path == "/auth/verify" { "verify" } else { path };
        self.bear(i, what, None, &[], |http, url| http.get(format!("{url}{path}"))).await?;
        Ok(())
    }

    /// The list shows exactly the sessions that are alive.
    async fn list(&mut self, i: usize) -> Outcome {
        let (said, span) =
            self.bear(i, "list", None, &[], |http, url| http.get(format!("{url}/sessions"))).await?;
        let Said::Done(body) = said else { return Ok(()) };
        let shown: Vec<_> =
            body["sessions"].as_array().unwrap().iter().map(|session| text(&session["id"])).collect();
        for session in &self.user.sessions {
            let is_shown = shown.contains(&session.id);
            // The last access token may outlive the refresh token that came with it.
            let end = session.idle_end.1 + self.fleet.rules.access_token;
            let is_over = matches!(session.fate, Fate::Over { .. }) || span.sent >= end;
            if is_shown && is_over || !is_shown && session.is_live(span.answered) {
                return Err(format!("session {} is shown: {is_shown}; it is {:?}", session.id, session.fate));
            }
        }
        let strangers =
            shown.iter().filter(|id| self.user.sessions.iter().all(|session| session.id != **id)).count();
        if strangers > usize::try_from(self.user.lost_logins).unwrap() {
            return Err(format!("{strangers} sessions are shown that nobody has begun"));
        }
        Ok(())
    }

    async fn end(&mut self, i: usize, method: &str, path: &str, patience: Option<Duration>) -> Outcome {
        let method: reqwest::Method = method.parse().unwrap();
        // For a session of the user's that is over.
        let foretold: &[&str] = if path.starts_with("/sessions/") { &["not_found"] } else { &[] };
        let (said, span) = self
            .bear(i, &format!("{method} {path}"), patience, foretold, |http, url| {
                http.request(method.clone(), format!("{url}{path}"))
            })
            .await?;
        let session = &mut self.user.sessions[i];
        if matches!(&said, Said::Refused(code) if code == "not_found") && session.is_live(span.answered) {
            return Err(format!("session {i} is not found"));
        }
        session.ended(&plain(&said), span, &self.fleet.rules);
        Ok(())
    }

    /// By its refresh token (RFC 7009).
    async fn revoke(&mut self, i: usize) -> Outcome {
        self.present = Some(i);
        let token = self.user.sessions[i].refresh_tokens.last().unwrap().clone();
        let body = format!("token={token}");
        let answer = self
            .ask(&format!("revoke session {i}"), None, |http, url| {
                let request = http.post(format!("{url}/tokens/revoke")).body(body.clone());
                request.header("content-type", "application/x-www-form-urlencoded")
            })
            .await?;
        if let Said::Refused(code) = &answer.said {
            return Err(format!("a revocation is refused: {code}"));
        }
        self.user.sessions[i].ended(&plain(&answer.said), answer.span, &self.fleet.rules);
        Ok(())
    }

    async fn end_many(&mut self, i: usize, path: &str, but_this: bool) -> Outcome {
        let (said, span) = self
            .bear(i, &format!("DELETE {path}"), None, &[], |http, url| http.delete(format!("{url}{path}")))
            .await?;
        self.others_ended(but_this.then_some(i), &said, span);
        Ok(())
    }

    fn others_ended(&mut self, but: Option<usize>, said: &Said<Value>, span: Span) {
        for (j, session) in self.user.sessions.iter_mut().enumerate() {
            if Some(j) != but {
                session.ended(&plain(said), span, &self.fleet.rules);
            }
        }
    }

    async fn change_password(&mut self, i: usize) -> Outcome {
        let present = self.user.passwords[0].clone();
        let new = format!("{PASSWORD}-{}", self.told.len());
        let body = json!({ "current_password": present, "new_password": new });
        let (said, span) = self
            .bear(i, "change the password", None, &[], |http, url| {
                http.put(format!("{url}/users/me/password")).json(&body)
            })
            .await?;
        match &said {
            Said::Done(_) => self.user.passwords = vec![new],
            Said::Lost => {
                self.user.passwords = vec![new, present];
                sleep(REST).await;
            }
            Said::Refused(_) => return Ok(()),
        }
        self.others_ended(Some(i), &said, span);
        Ok(())
    }

    async fn delete_account(&mut self, i: usize) -> Outcome {
        let body = json!({ "password": self.user.passwords[0] });
        let (said, mut span) = self
            .bear(i, "delete the account", None, &[], |http, url| {
                http.post(format!("{url}/users/me/delete")).json(&body)
            })
            .await?;
        match said {
            Said::Done(_) => {}
            Said::Refused(_) => return Ok(()),
            Said::Lost => {
                for session in &mut self.user.sessions {
                    session.maybe_gone(span);
                }
                sleep(REST).await;
                let body = json!({ "username": self.user.name, "password": self.user.passwords[0] });
                let (answer, _) = self
                    .insist("log in to see", |http, url| http.post(format!("{url}/users/login")).json(&body))
                    .await?;
                self.user.lost_logins += 1;
                span = span.to(answer.span);
                if answer.said != Said::Refused("invalid_credentials".to_owned()) {
                    return Ok(());
                }
            }
        }
        for session in &mut self.user.sessions {
            session.gone(span);
        }
        self.user.is_there = false;
        Ok(())
    }

    /// Makes an administrator's change to the user, and insists until it is done.
    async fn administer(&mut self, change: Value) -> Outcome<Span> {
        let mut whole: Option<Span> = None;
        loop {
            if self.admin.is_none() {
                let body = json!({ "username": ADMIN, "password": PASSWORD });
                let (answer, _) = self
                    .insist("root logs in", |http, url| http.post(format!("{url}/users/login")).json(&body))
                    .await?;
                let Said::Done(body) = answer.said else {
                    return Err("the administrator cannot log in".to_owned());
                };
                let Tokens { access_token, access_expires_at, .. } = tokens(&body);
                self.admin = Some((access_token, access_expires_at));
            }
            let (token, end) = self.admin.clone().unwrap();
            let path = format!("/admin/users/{}", self.user.id);
            let (answer, _) = self
                .insist(&format!("root changes the user: {change}"), |http, url| {
                    http.patch(format!("{url}{path}")).json(&change).bearer_auth(&token)
                })
                .await?;
            let span = whole.map_or(answer.span, |whole| whole.to(answer.span));
            match answer.said {
                Said::Done(_) => return Ok(span),
                Said::Refused(code) if is_about_token(&code) && answer.span.answered >= end => {
                    self.admin = None;
                }
                said => return Err(format!("an administrator is answered {said:?}")),
            }
            whole = Some(span);
        }
    }

    async fn change_roles(&mut self) -> Outcome {
        let roles = ROLES[self.dice.below(ROLES.len())];
        let now = roles.join(",");
        let change = json!({ "roles": roles });
        let span = self.administer(change).await?;
        if now != self.user.roles.now {
            self.user.roles = Roles { now, changed: Some(span) };
        }
        Ok(())
    }

    async fn disable(&mut self) -> Outcome {
        let span = self.administer(json!({ "disabled": true })).await?;
        for session in &mut self.user.sessions {
            session.locked_out(span);
        }
        let body = json!({ "username": self.user.name, "password": self.user.passwords[0] });
        let (answer, _) = self
            .insist("log in, locked out", |http, url| http.post(format!("{url}/users/login")).json(&body))
            .await?;
        if answer.said != Said::Refused("invalid_credentials".to_owned()) {
            return Err(format!("a disabled user is answered {:?}", answer.said));
        }
        self.administer(json!({ "disabled": false })).await?;
        Ok(())
    }

    /// After the soak, when everything is up: checks each session of each user once more. A token that would still be
    /// good, had nothing happened to its session, is presented to every replica.
    pub async fn finish(mut self) -> Outcome<Self> {
        let mut users = std::mem::take(&mut self.former);
        users.push(std::mem::take(&mut self.user));
        for user in users {
            self.user = user;
            if let Err(fault) = self.finish_user().await {
                return Err(format!("in the end, {}", self.story(&fault)));
            }
            let user = std::mem::take(&mut self.user);
            self.former.push(user);
        }
        Ok(self)
    }

    async fn finish_user(&mut self) -> Outcome {
        self.present = None;
        if self.user.is_there && self.user.passwords.len() > 1 {
            self.log_in().await?;
        }
        for i in 0..self.user.sessions.len() {
            self.place = None;
            self.renew(i, 0, None).await?;
            let now = self.fleet.clock.now();
            if self.user.sessions[i].access_tokens.last().is_some_and(|token| now < token.expires_at) {
                for place in 0..REPLICAS {
                    self.place = Some(place);
                    self.check(i).await?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a code means that a request is refused because of its token.
fn is_about_token(code: &str) -> bool {
    ["missing_token", "invalid_token", "token_expired", "session_revoked", "token_outdated"].contains(&code)
}

fn plain(said: &Said<Value>) -> Said {
    match said {
        Said::Done(_) => Said::Done(()),
        Said::Refused(code) => Said::Refused(code.clone()),
        Said::Lost => Said::Lost,
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn tokens(body: &Value) -> Tokens {
    let at = |name: &str| OffsetDateTime::parse(body[name].as_str().unwrap(), &Rfc3339).unwrap();
    Tokens {
        refresh_token: text(&body["refresh_token"]),
        refresh_expires_at: at("refresh_token_expires_at"),
        access_token: text(&body["access_token"]),
        access_expires_at: at("access_token_expires_at"),
    }
}

/// A random seed.
pub fn any_seed() -> u64 {
    u64::from(u32::from_be_bytes(random::bytes(&mut random::system())))
}
