//! `gatepass token`: shows people the state of a token.

use std::{
    fmt::Write,
    io::{self, IsTerminal, Read},
    path::PathBuf,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::{
    Failure,
    database::{self, As, Database},
    print, print_json, say, seconds, setup,
};
use crate::{
    clock::Clock,
    config::Settings,
    keys,
    store::{migrations, sessions},
    terminal::plain,
    token::{
        Check, Claims, Format, Inspection, KeyPairFormat, MAX_TOKEN_BYTES, Rejection, SharedFormat,
        SignatureAlgorithm, Verifier,
        refresh::{self, Presented},
    },
};

/// Longer than any token, and than any response with tokens in it.
const MAX_INPUT: u64 = 64 * 1024;

/// Inspect tokens.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show what a token holds, and whether and why it is refused here
    ///
    /// Makes the same checks as the service, in the same order; without a database, all but whether the session has
    /// ended. The output holds nothing that would let somebody else use the token. Claims that no key vouches for are
    /// marked as unverified: anybody can write these.
    ///
    /// Exit code 0: the token is good; 1: it is refused.
    Inspect {
        /// The token, or `-` to read it from standard input, where no other user of the machine sees it
        #[arg(allow_hyphen_values = true)]
        token: String,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(config_file: Option<PathBuf>, command: Command) -> Result<(), Failure> {
    let Command::Inspect { token, json } = command;
    let settings = setup::begin(config_file).await?;
    let input = if token == "-" { from_stdin()? } else { token };
    let token = bare(&input);
    if token.starts_with(refresh::PREFIX) {
        return refresh_token(&settings, token, json).await;
    }
    let now = Clock::system().now();
    let mut inspection = verifier(&settings, now).await?.inspect(token, now);
    if inspection.payload.is_none() && inspection.claims.is_none() {
        (inspection.kid, inspection.payload) =
            (inspection.kid.or_else(|| foreign_kid(token)), payload(token));
    }
    let session = match session_id(&inspection) {
        Some(id) => session(&settings, id).await,
        None => Session::Unasked("the token names none"),
    };
    if let Some(claims) = &inspection.claims
        && let Some(found) = session.revokes(claims)
    {
        inspection.findings.push((Check::Revocation, found));
    }
    let format = format(token);
    let hint = hint(token)
        .or_else(|| cut_off(token, &inspection, format.as_deref()))
        .map(str::to_owned)
        .or_else(|| other_format(&settings, format.as_deref()));
    let report = Report { inspection, format, hint, session, now };
    if json {
        print_json(&report.to_json())?;
    } else {
        print(&report.to_text(io::stdout().is_terminal()))?;
    }
    match report.refusal() {
        None => Ok(()),
        Some(why) => Err(format!("refused: {why}").into()),
    }
}

fn from_stdin() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(MAX_INPUT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The token without what is copied along with it from a header, a shell or JSON.
fn bare(input: &str) -> &str {
    let quotes = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | ',');
    let text = input.trim_matches(quotes);
    let without = |text: &'_ str, prefix: &str| {
        text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    let text = if without(text, "authorization:") { text["authorization:".len()..].trim() } else { text };
    let text = if without(text, "bearer ") { &text["bearer ".len()..] } else { text };
    text.trim_matches(quotes)
}

/// Makes the checks of the service. A key ring that cannot be read is reported at once, not waited for.
async fn verifier(settings: &Settings, now: OffsetDateTime) -> Result<Verifier, Failure> {
    let (policy, has_root) = setup::present_key_policy(settings)?;
    if !has_root {
        say("note: there is no key yet; `gatepass serve` makes one, since TOKEN_SYMMETRIC_KEY is not set");
    }
    let has_ring = policy.has_ring();
    let is_there = setup::has_database(settings)?;
    if has_ring && !is_there {
        say(
            "note: there is no database yet; `gatepass serve` makes one of its own, since DB_SOURCE is not set",
        );
    }
    if !has_ring || !is_there {
        return Ok(keys::verifier(&policy, None, now).await?);
    }
    let database = Database::open(settings).await?;
    let verifier = async {
        if database.embedded().is_some() {
            database.migrate(true).await?;
        } else {
            migrations::check(&mut database.connection(As::Migrator).await?).await?;
        }
        drop(database.connection(As::Service).await?);
        let db = database.pool(1);
        let verifier = keys::verifier(&policy, Some(&db), now).await;
        database::close(&db).await;
        Ok::<_, Failure>(verifier?)
    };
    let verifier = verifier.await;
    database.closing(verifier).await
}

/// What the database says about a session.
enum Session {
    Found(Box<sessions::Session>),
    Missing,
    /// With the reason.
    Unasked(&'static str),
    Unknown(String),
}

async fn session(settings: &Settings, id: Uuid) -> Session {
    let state = async {
        if !setup::has_database(settings)? {
            return Ok(Session::Unasked("DB_SOURCE is not set"));
        }
        let database = Database::open(settings).await?;
        let state = async {
            let mut conn = database.connection(As::Service).await?;
            Ok::<_, Failure>(sessions::by_id(&mut conn, id).await?)
        };
        let state = state.await;
        let state = database.closing(state).await?;
        Ok::<_, Failure>(state.map_or(Session::Missing, |state| Session::Found(state.into())))
    };
    state.await.unwrap_or_else(|error| Session::Unknown(error.to_string()))
}

impl Session {
    /// Whether a token with these claims is refused although it has not expired; `None` if there is nothing to ask.
    fn revokes(&self, claims: &Claims) -> Option<Result<(), Rejection>> {
        match self {
            Self::Found(state) if state.end_reason.is_some() || state.disabled => {
                Some(Err(Rejection::SessionEnded))
            }
            Self::Found(state) if state.roles != claims.roles => Some(Err(Rejection::RolesChanged)),
            Self::Found(_) => Some(Ok(())),
            Self::Missing => Some(Err(Rejection::SessionEnded)),
            // As the service does.
            Self::Unknown(_) => Some(Err(Rejection::RevocationsUnknown)),
            Self::Unasked(_) => None,
        }
    }

    /// `live`, `expired`, `ended`, or `unknown`.
    fn name(&self, now: OffsetDateTime) -> &'static str {
        match self {
            Self::Found(state) if state.end_reason.is_some() => "ended",
            Self::Found(state) if now >= state.expires_at.min(state.refresh_expires_at) => "expired",
            Self::Found(_) => "live",
            Self::Missing => "ended",
            Self::Unasked(_) | Self::Unknown(_) => "unknown",
        }
    }

    fn describe(&self, now: OffsetDateTime) -> String {
        match self {
            Self::Found(state) => {
                let user = if state.disabled { "DISABLED" } else { "enabled" };
                let ends = state.expires_at.min(state.refresh_expires_at);
                let ends = if state.end_reason.is_some() {
                    "ENDED".to_owned()
                } else if now < ends {
                    format!("ends {} unless renewed", relative(ends, now))
                } else {
                    format!("EXPIRED {}", relative(ends, now))
                };
                format!("{ends}; user {} is {user}", plain(&state.username))
            }
            Self::Missing => "ENDED, or never existed: not in the database".to_owned(),
            Self::Unasked(why) => format!("not asked for: {why}"),
            Self::Unknown(why) => format!("not known: {}", plain(why)),
        }
    }

    fn to_json(&self, id: Option<Uuid>, now: OffsetDateTime) -> Value {
        let (state, why) = match self {
            Self::Found(state) => (Some(state), None),
            Self::Missing => (None, None),
            Self::Unasked(why) => (None, Some(*why)),
            Self::Unknown(why) => (None, Some(why.as_str())),
        };
        json!({
            "id": id,
            "state": self.name(now),
            "why_unknown": why,
            "user_id": state.map(|state| state.user_id),
            "user_disabled": state.map(|state| state.disabled),
            "refresh_generation": state.map(|state| state.refresh_generation),
            "expires_at": state.map(|state| seconds(state.expires_at.min(state.refresh_expires_at))),
        })
    }
}

async fn refresh_token(settings: &Settings, token: &str, json: bool) -> Result<(), Failure> {
    let now = Clock::system().now();
    let Some(Presented { session_id, generation, .. }) = Presented::parse(token) else {
        let length = token.chars().count();
        let hint = format!(
            "begins like a refresh token but is not one: {length} characters (a refresh token has 74); was it cut off?"
        );
        if json {
            print_json(&json!({ "accepted": false, "kind": "unknown", "hint": hint }))?;
        }
        return Err(hint.into());
    };
    let session = session(settings, session_id).await;
    if json {
        print_json(&json!({
            "accepted": false,
            "kind": "refresh",
            "generation": generation,
            "session": session.to_json(Some(session_id), now),
        }))?;
    } else {
        let present = match &session {
            Session::Found(state) => format!(" (the session is at {})", state.refresh_generation),
            _ => String::new(),
        };
        print(&format!(
            "a refresh token, unverified: it renews a session, and gives no access by itself\n\nsession     {session_id}\n\
             generation  {generation}{present}\nstate       {}\n",
            session.describe(now)
        ))?;
    }
    Err("refused: this is a refresh token, not an access token".into())
}

/// What something that is not a token here seems to be, judged by its looks.
fn hint(token: &str) -> Option<&'static str> {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| token.starts_with(prefix));
    if token.is_empty() {
        Some("there is nothing: was a shell variable not set?")
    } else if token.len() > MAX_TOKEN_BYTES {
        Some("this is longer than any token: is it a file, or a whole response?")
    } else if begins(&["k4.local.", "k4.secret.", "k4.seal.", "-----BEGIN"]) {
        Some("this is a KEY, not a token: replace it if anybody else may have seen it")
    } else if begins(&["k4."]) {
        Some("this is a key, or the name of one, not a token")
    } else if begins(&["{", "["]) {
        Some("this is JSON: give the value of `access_token` alone")
    } else if begins(&["v1.", "v2.", "v3."]) {
        Some("this is a PASETO of a version that gatepass does not make: it comes from another service")
    } else if token.chars().any(char::is_whitespace) {
        Some("there are spaces or line breaks in it: was it copied from a terminal that wrapped the line?")
    } else if Uuid::try_parse(token).is_ok() {
        Some("this is a UUID: the id of a user, a session or a token, not a token")
    } else if !token.contains('.') {
        Some("a token has full stops in it, and this has none: was it cut off?")
    } else if header(token).is_some_and(|header| header.get("enc").is_some()) {
        Some("this is an encrypted JWT (JWE), which gatepass does not make: it comes from another service")
    } else if header(token)
        .is_some_and(|header| header.keys().any(|name| !["typ", "alg", "kid"].contains(&&**name)))
    {
        Some("this JWT's header has more in it than gatepass's: it comes from another service")
    } else if header(token).is_some_and(|header| !header.contains_key("kid")) {
        Some("this JWT names no key, and gatepass's do: it comes from another service")
    } else {
        None
    }
}

/// What to say about a token that begins as ours do and does not end so: it has not the shape of one, or too short a
/// signature.
fn cut_off(token: &str, inspection: &Inspection, claimed: Option<&str>) -> Option<&'static str> {
    let format = Format::ALL.into_iter().find(|format| claimed == Some(format.name()))?;
    // In Base64: of 32 bytes, of 64, and of an RSA key of 2048 bits.
    let shortest = match format {
        Format::Shared(SharedFormat::Hs256) => 43,
        Format::KeyPair(KeyPairFormat::Jwt(SignatureAlgorithm::EdDsa | SignatureAlgorithm::Es256)) => 86,
        Format::KeyPair(KeyPairFormat::Jwt(SignatureAlgorithm::Rs256 | SignatureAlgorithm::Ps256)) => 342,
        Format::Shared(SharedFormat::V4Local) | Format::KeyPair(KeyPairFormat::V4Public) => 0,
    };
    let has_failed = |at| inspection.findings.iter().any(|(check, found)| *check == at && found.is_err());
    let is_short = token.rsplit('.').next().is_some_and(|signature| signature.len() < shortest);
    (has_failed(Check::Shape) || has_failed(Check::Signature) && is_short)
        .then_some("this begins like a token and does not end like one: was it cut off?")
}

/// What to say about a token of ours whose format the settings do not accept. The keys of other formats are not known
/// here, so all that the checks say is that its key is not.
fn other_format(settings: &Settings, claimed: Option<&str>) -> Option<String> {
    let format = Format::ALL.into_iter().find(|format| claimed == Some(format.name()))?;
    let mut accepted = vec![settings.format()];
    accepted.extend(settings.formats_accepted());
    if accepted.contains(&format) {
        return None;
    }
    let accepted = accepted.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ");
    Some(format!(
        "its format is {format}, and what TOKEN_FORMAT and TOKEN_FORMAT_ACCEPTED allow here is {accepted}: are these \
         the settings of the service?"
    ))
}

/// The header of a JWT, strict or not, to see whose it may be.
fn header(token: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').next()?).ok()?).ok()
}

/// The key that a JWT of another service names.
fn foreign_kid(token: &str) -> Option<String> {
    Some(header(token)?.get("kid")?.as_str()?.to_owned())
}

/// The payload of a JWT of another service.
fn payload(token: &str) -> Option<String> {
    header(token)?;
    String::from_utf8(URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?).ok()
}

/// The format that the token claims to have.
fn format(token: &str) -> Option<String> {
    for prefix in ["v4.local", "v4.public", "v3.local", "v3.public", "v2.local", "v2.public", "v1.local"] {
        if token.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')) {
            return Some(prefix.to_owned());
        }
    }
    Some(format!("jwt:{}", plain(header(token)?.get("alg")?.as_str()?)))
}

/// The session that the token names, verified or not.
fn session_id(inspection: &Inspection) -> Option<Uuid> {
    let verified = inspection.claims.as_ref().map(|claims| claims.session_id);
    verified.or_else(|| {
        let payload: Value = serde_json::from_str(inspection.payload.as_deref()?).ok()?;
        Uuid::try_parse(payload.get("sid")?.as_str()?).ok()
    })
}

struct Report {
    inspection: Inspection,
    format: Option<String>,
    hint: Option<String>,
    session: Session,
    now: OffsetDateTime,
}

impl Report {
    /// What the first failed check found.
    fn refusal(&self) -> Option<String> {
        self.inspection
            .findings
            .iter()
            .find_map(|(_, found)| found.err())
            .map(|rejection| rejection.to_string())
    }

    fn found(&self, check: Check) -> Option<Result<(), String>> {
        let found = self.inspection.findings.iter().find(|(at, _)| *at == check);
        found.map(|(_, found)| found.map_err(|rejection| rejection.to_string()))
    }

    fn is_verified(&self) -> bool {
        self.found(Check::Signature) == Some(Ok(()))
    }

    /// The claims by name. Claims that no key vouches for are among them only where they can be read without a key.
    fn claims(&self) -> Option<Map<String, Value>> {
        match &self.inspection.claims {
            Some(claims) => Some(object(claims)),
            None => {
                let mut claims: Map<_, _> = serde_json::from_str(self.inspection.payload.as_deref()?).ok()?;
                for (name, value) in &mut claims {
                    // As in claims that are verified, whatever the format.
                    if value.is_number()
                        && let Some(at) = instant(name, value)
                    {
                        *value = seconds(at).into();
                    }
                }
                Some(claims)
            }
        }
    }

    fn to_json(&self) -> Value {
        let checks = Check::ALL.map(|check| {
            let found = self.found(check);
            json!({
                "check": check,
                "ok": found.as_ref().map(Result::is_ok),
                "reason": found.and_then(Result::err),
            })
        });
        json!({
            "accepted": self.refusal().is_none(),
            "kind": if self.format.is_some() { "access" } else { "unknown" },
            "format": self.format,
            "kid": self.inspection.kid,
            "checks": checks,
            "verified": self.is_verified(),
            "claims": self.claims(),
            "session": self.session.to_json(session_id(&self.inspection), self.now),
            "hint": self.hint,
        })
    }

    fn to_text(&self, is_terminal: bool) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let mut line = |left: &str, right: &str| _ = writeln!(text, "{left:<10}  {right}");
        line("format", self.format.as_deref().unwrap_or("none that is known here"));
        line("kid", &self.inspection.kid.as_deref().map_or_else(|| "-".to_owned(), plain));
        if let Some(hint) = &self.hint {
            line("hint", hint);
        }
        let (good, bad) = if is_terminal { ("✓ ", "✗ ") } else { ("", "") };
        let blank = if is_terminal { "  " } else { "" };
        text.push('\n');
        for check in Check::ALL {
            let found = match self.found(check) {
                Some(Ok(())) => format!("{good}ok"),
                Some(Err(why)) => format!("{bad}FAILED: {why}"),
                None => format!("{blank}not reached"),
            };
            _ = writeln!(text, "{:<42}  {found}", check.describe());
        }
        match self.claims() {
            Some(claims) => {
                let title =
                    if self.is_verified() { "claims" } else { "claims, UNVERIFIED: anybody can write these" };
                _ = writeln!(text, "\n{title}");
                for (name, value) in &claims {
                    let shown = match value {
                        Value::String(value) => plain(value),
                        other => plain(&other.to_string()),
                    };
                    let time = instant(name, value).map(|at| format!("  ({})", relative(at, self.now)));
                    _ = writeln!(text, "  {:<10}  {shown}{}", plain(name), time.unwrap_or_default());
                }
            }
            None if self.format.as_deref() == Some("v4.local") => {
                text.push_str("\nclaims: encrypted, and no key here opens them\n");
            }
            None => text.push_str("\nclaims: none that can be read\n"),
        }
        _ = writeln!(text, "\nsession   {}", self.session.describe(self.now));
        text
    }
}

fn object(claims: &Claims) -> Map<String, Value> {
    let Claims {
        issuer,
        user_id,
        audience,
        issued_at,
        not_before,
        expires_at,
        token_id,
        session_id,
        username,
        roles,
    } = claims;
    let time = |at: &OffsetDateTime| Value::from(seconds(*at));
    [
        ("iss", issuer.as_str().into()),
        ("sub", user_id.to_string().into()),
        ("aud", audience.as_str().into()),
        ("iat", time(issued_at)),
        ("nbf", time(not_before)),
        ("exp", time(expires_at)),
        ("jti", token_id.to_string().into()),
        ("sid", session_id.to_string().into()),
        ("username", username.as_str().into()),
        ("roles", roles.as_slice().into()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// The time in a claim that holds one, as written in PASETO or in JWT.
fn instant(name: &str, value: &Value) -> Option<OffsetDateTime> {
    if !["exp", "nbf", "iat"].contains(&name) {
        return None;
    }
    match value {
        Value::String(text) => OffsetDateTime::parse(text, &Rfc3339).ok(),
        other => OffsetDateTime::from_unix_timestamp(other.as_i64()?).ok(),
    }
}

/// `3 min ago`, `in 2 h`.
fn relative(at: OffsetDateTime, now: OffsetDateTime) -> String {
    let seconds = (at - now).whole_seconds();
    let amount = match seconds.unsigned_abs() {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    };
    if at > now { format!("in {amount}") } else { format!("{amount} ago") }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn text_copied_along_with_a_token_is_stripped() {
        for input in
            ["v4.x", " v4.x\r\n", "\"v4.x\",", "Bearer v4.x", "authorization: bearer  v4.x", "'v4.x'"]
        {
            assert_eq!(bare(input), "v4.x", "{input:?}");
        }
        for input in ["", " ", "Ä", "bearer", "é".repeat(9).as_str(), "authorizatioñ: x"] {
            assert_eq!(bare(input), input.trim(), "{input:?}");
        }
    }

    #[test]
    fn relative_times_are_shown_in_a_fitting_unit() {
        let now = datetime!(2026-01-02 03:04:05 UTC);
        let at = |seconds| relative(now + time::Duration::seconds(seconds), now);
        assert_eq!(
            [at(-1), at(180), at(-7200), at(864_000)],
            ["1 s ago", "in 3 min", "2 h ago", "in 10 days"]
        );
    }
}
