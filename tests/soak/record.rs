//! What a client may expect: a record of what it did, when, and what it was told. It knows no HTTP, no SQL, no clock.
//!
//! A request takes effect at some moment between [`Span::sent`] and [`Span::answered`]; where that makes a difference,
//! either answer is right. A request whose answer is lost ([`Said::Lost`]) may have taken effect or not, and what it
//! would have done stays in doubt until an answer settles it. Any answer that the record cannot explain is a fault of
//! the service.
//!
//! ```text
//!            logout, …                    renewal refused
//!   Live ─────────────────────▶ Over ◀──────────────────── Doubtful ◀── logout lost ── Live
//!                                                              └── renewed, once whatever was lost is settled ──▶ Live
//! ```

use std::collections::BTreeSet;

use time::{Duration, OffsetDateTime};

/// How long after its answer was lost a request may still take effect: Postgres completes what it was sent.
pub const SETTLED_AFTER: Duration = Duration::seconds(12);

/// The service's settings.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub reuse_interval: Duration,
    pub refresh_token: Duration,
    pub session: Duration,
    pub access_token: Duration,
    pub retention: Duration,
    /// How long a revocation may take to reach the other replicas.
    pub lag: Duration,
}

/// When a request was made and when it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub sent: OffsetDateTime,
    pub answered: OffsetDateTime,
}

impl Span {
    /// From the beginning of this to the end of the other.
    pub fn to(self, other: Self) -> Self {
        Self { sent: self.sent, answered: other.answered }
    }
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said<T = ()> {
    Done(T),
    /// With this code.
    Refused(String),
    /// No answer, or one that leaves open what happened.
    Lost,
}

/// What a login or a renewal gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    pub refresh_token: String,
    pub refresh_expires_at: OffsetDateTime,
    pub access_token: String,
    pub access_expires_at: OffsetDateTime,
}

#[derive(Clone, Debug)]
pub struct Access {
    pub text: String,
    pub expires_at: OffsetDateTime,
    /// The roles that it has.
    pub roles: String,
}

/// The roles of a user, separated by commas.
#[derive(Clone, Debug, Default)]
pub struct Roles {
    pub now: String,
    /// The last change.
    pub changed: Option<Span>,
}

/// The state of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Live,
    /// The answer to something that would have ended it was lost. It may still end until then; if it has, a renewal
    /// gets one of these codes.
    Doubtful {
        until: OffsetDateTime,
        codes: BTreeSet<&'static str>,
    },
    /// It has ended. A renewal gets one of these codes.
    Over {
        at: Span,
        codes: BTreeSet<&'static str>,
    },
}

/// A session, as its client knows it.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: String,
    /// By generation; the last is the current one, unless an answer was lost.
    pub refresh_tokens: Vec<String>,
    /// A renewal with the last of them whose answer was lost.
    pub lost: Option<Span>,
    /// The last renewal that was answered.
    renewed: Span,
    /// Whether an access token of the current generation has been used.
    is_used: bool,
    /// Until when it may be idle: at least, and at most.
    pub idle_end: (OffsetDateTime, OffsetDateTime),
    /// When it ends in any case, at the latest.
    end: OffsetDateTime,
    /// The last few, the newest last.
    pub access_tokens: Vec<Access>,
    pub fate: Fate,
}

/// What the record makes of an answer; the error says why it is a fault.
pub type Verdict = Result<(), String>;

pub const REVOKED: &str = "session_revoked";
pub const REUSED: &str = "refresh_token_reused";
pub const EXPIRED: &str = "session_expired";
pub const UNKNOWN: &str = "invalid_refresh_token";

impl Session {
    pub fn begun(id: String, tokens: Tokens, roles: &Roles, span: Span, rules: &Rules) -> Self {
        let mut session = Self {
            id,
            refresh_tokens: vec![tokens.refresh_token.clone()],
            lost: None,
            renewed: span,
            is_used: false,
            idle_end: (tokens.refresh_expires_at, tokens.refresh_expires_at),
            end: span.answered + rules.session,
            access_tokens: Vec::new(),
            fate: Fate::Live,
        };
        session.take_access(tokens, roles);
        session
    }

    fn take_access(&mut self, tokens: Tokens, roles: &Roles) {
        if self.access_tokens.len() == 3 {
            self.access_tokens.remove(0);
        }
        self.access_tokens.push(Access {
            text: tokens.access_token,
            expires_at: tokens.access_expires_at,
            roles: roles.now.clone(),
        });
    }

    /// Whether nothing has ended it, and it has not been idle for too long at `at`.
    pub fn is_live(&self, at: OffsetDateTime) -> bool {
        self.fate == Fate::Live && at < self.idle_end.0
    }

    /// The answers that a renewal with the token from `age` generations ago may get. The empty string stands for
    /// success.
    pub fn renewal(&self, age: usize, span: Span, rules: &Rules) -> BTreeSet<&'static str> {
        let mut may = BTreeSet::new();
        let is_live = match &self.fate {
            Fate::Live => true,
            Fate::Doubtful { codes, .. } => {
                may.extend(codes);
                true
            }
            Fate::Over { codes, .. } => {
                may.extend(codes);
                false
            }
        };
        if is_live && span.answered >= self.idle_end.0 {
            may.insert(EXPIRED);
        }
        if is_live && span.sent < self.idle_end.1 {
            let is_recent = span.answered < self.renewed.sent + rules.reuse_interval;
            match age {
                0 => may.extend([""]),
                1 if self.lost.is_none() && (is_recent || !self.is_used) => may.extend([""]),
                1 => may.extend(["", REUSED]),
                _ => may.extend([REUSED]),
            }
        }
        // The row may have been cleaned up.
        if span.answered > self.idle_end.0 + rules.retention {
            may.insert(UNKNOWN);
        }
        may
    }

    /// Records the answer to a renewal with the token from `age` generations ago.
    pub fn renewed(
        &mut self,
        age: usize,
        said: Said<Tokens>,
        roles: &Roles,
        span: Span,
        rules: &Rules,
    ) -> Verdict {
        let may = self.renewal(age, span, rules);
        match said {
            Said::Lost if age == 0 => {
                let lost = self.lost.map_or(span, |lost| lost.to(span));
                self.lost = Some(lost);
                self.idle_end.1 = self.idle_end.1.max((span.answered + rules.refresh_token).min(self.end));
            }
            Said::Lost if may.contains(REUSED) => self.doubt(REUSED, span),
            Said::Lost => {}
            Said::Refused(code) => {
                let Some(code) = may.get(&*code) else { return Err(foretold(&may, &code)) };
                match *code {
                    EXPIRED => self.idle_end.1 = self.idle_end.1.min(span.answered),
                    // The row was cleaned up, unless the account may have been deleted.
                    UNKNOWN if !self.has_doubt(UNKNOWN) => {}
                    code => self.over(&[code].into(), span),
                }
            }
            Said::Done(tokens) => {
                if !may.contains("") {
                    return Err(foretold(&may, "a renewal"));
                }
                if let Fate::Doubtful { until, .. } = self.fate
                    && span.sent > until
                {
                    self.fate = Fate::Live;
                }
                self.take_renewal(age, tokens, roles, span)?;
            }
        }
        Ok(())
    }

    fn take_renewal(&mut self, age: usize, tokens: Tokens, roles: &Roles, span: Span) -> Verdict {
        let is_next = !self.refresh_tokens.contains(&tokens.refresh_token);
        if age == 0 {
            if !is_next {
                return Err("a renewal gave a refresh token that there has been before".to_owned());
            }
            self.refresh_tokens.push(tokens.refresh_token.clone());
            self.renewed = self.lost.take().map_or(span, |lost| lost.to(span));
            self.is_used = false;
        } else if self.lost.is_none() && self.refresh_tokens.last() != Some(&tokens.refresh_token) {
            return Err("a refresh token that was used again gave another than its successor".to_owned());
        } else if self.lost.is_some() && is_next {
            return Err("a former refresh token gave one that nobody has".to_owned());
        }
        if self.lost.is_none() {
            self.idle_end = (tokens.refresh_expires_at, tokens.refresh_expires_at);
        }
        self.take_access(tokens, roles);
        Ok(())
    }

    /// The answers that a request with an access token may get. The empty string stands for success. `quiet_since` is
    /// when the last thing ended that keeps replicas from hearing of each other, or `None` while it lasts.
    pub fn check(
        &self,
        access: &Access,
        roles: &Roles,
        span: Span,
        quiet_since: Option<OffsetDateTime>,
        rules: &Rules,
    ) -> BTreeSet<&'static str> {
        const OUTDATED: &str = "token_outdated";
        let is_heard =
            |at: Span| quiet_since.is_some_and(|quiet| span.sent > at.answered.max(quiet) + rules.lag);
        let mut may = BTreeSet::new();
        if span.answered >= access.expires_at {
            // Its key may be gone.
            may.extend(["token_expired", "invalid_token"]);
        }
        if span.sent >= access.expires_at {
            return may;
        }
        if access.roles == roles.now {
            may.insert("");
        } else {
            may.insert(OUTDATED);
        }
        if roles.changed.is_some_and(|at| !is_heard(at)) {
            may.extend(["", OUTDATED]);
        }
        match &self.fate {
            Fate::Live => {}
            Fate::Over { at, .. } if is_heard(*at) => {
                may.remove("");
                may.remove(OUTDATED);
                may.insert(REVOKED);
            }
            Fate::Over { .. } | Fate::Doubtful { .. } => {
                may.insert(REVOKED);
            }
        }
        may
    }

    /// Records the answer to a request with an access token, counted by `age` from the newest.
    pub fn checked(
        &mut self,
        age: usize,
        said: &Said,
        roles: &Roles,
        span: Span,
        quiet_since: Option<OffsetDateTime>,
        rules: &Rules,
    ) -> Verdict {
        let access = &self.access_tokens[self.access_tokens.len() - 1 - age];
        let may = self.check(access, roles, span, quiet_since, rules);
        match said {
            // The service may have seen it.
            Said::Lost => self.is_used = true,
            Said::Done(()) if may.contains("") => self.is_used = true,
            Said::Done(()) => return Err(foretold(&may, "a request that is served")),
            Said::Refused(code) if may.contains(&**code) => {
                if code == REVOKED
                    && let Fate::Doubtful { codes, .. } = &self.fate
                {
                    self.fate = Fate::Over { at: span, codes: codes.clone() };
                }
            }
            Said::Refused(code) => return Err(foretold(&may, code)),
        }
        Ok(())
    }

    /// Records the answer to what ends the session if it is alive; after that a renewal gets [`REVOKED`].
    pub fn ended(&mut self, said: &Said, span: Span, rules: &Rules) {
        // None of its refresh and access tokens is good any more: there is nothing to end.
        if span.sent >= self.idle_end.1 + rules.access_token {
            return;
        }
        match said {
            Said::Refused(_) => {}
            Said::Done(()) if span.answered < self.idle_end.0 => {
                let mut codes = BTreeSet::from([REVOKED]);
                // It may have been over before, for another reason.
                if let Fate::Doubtful { codes: others, .. } = &self.fate {
                    codes.extend(others);
                }
                self.over(&codes, span);
            }
            Said::Done(()) | Said::Lost => self.doubt(REVOKED, span),
        }
    }

    /// Its user was disabled, which ends every session, even one that has expired.
    pub fn locked_out(&mut self, span: Span) {
        let mut codes = BTreeSet::from([REVOKED]);
        if let Fate::Doubtful { codes: others, .. } = &self.fate {
            codes.extend(others);
        }
        self.over(&codes, span);
    }

    /// Its user is gone, and the row with them.
    pub fn gone(&mut self, span: Span) {
        let at = if let Fate::Over { at, .. } = self.fate { at } else { span };
        self.fate = Fate::Over { at, codes: [UNKNOWN].into() };
    }

    /// Its user may be gone.
    pub fn maybe_gone(&mut self, span: Span) {
        if let Fate::Over { codes, .. } = &mut self.fate {
            codes.insert(UNKNOWN);
        } else {
            self.doubt(UNKNOWN, span);
        }
    }

    fn has_doubt(&self, code: &str) -> bool {
        matches!(&self.fate, Fate::Doubtful { codes, .. } if codes.contains(code))
    }

    /// What is over stays over.
    fn over(&mut self, codes: &BTreeSet<&'static str>, at: Span) {
        if !matches!(self.fate, Fate::Over { .. }) {
            self.fate = Fate::Over { at, codes: codes.clone() };
        }
    }

    fn doubt(&mut self, code: &'static str, span: Span) {
        let settled = span.answered + SETTLED_AFTER;
        match &mut self.fate {
            Fate::Live => self.fate = Fate::Doubtful { until: settled, codes: [code].into() },
            Fate::Doubtful { until, codes } => {
                *until = settled;
                codes.insert(code);
            }
            Fate::Over { .. } => {}
        }
    }

    /// How often it has been renewed: at least, and at most.
    pub fn generations(&self) -> (i32, i32) {
        let known = i32::try_from(self.refresh_tokens.len()).unwrap() - 1;
        (known, known + i32::from(self.lost.is_some()))
    }
}

fn foretold(may: &BTreeSet<&str>, got: &str) -> String {
    let may: Vec<_> = may.iter().map(|code| if code.is_empty() { "success" } else { code }).collect();
    format!("{got} came, and foretold was {}", may.join(" or "))
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const START: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);
    const RULES: Rules = Rules {
        reuse_interval: Duration::seconds(4),
        refresh_token: Duration::seconds(40),
        session: Duration::seconds(180),
        access_token: Duration::seconds(15),
        retention: Duration::seconds(20),
        lag: Duration::seconds(1),
    };

    /// Sent and answered this many seconds after the login.
    fn span(sent: i64, answered: i64) -> Span {
        Span { sent: START + Duration::seconds(sent), answered: START + Duration::seconds(answered) }
    }

    fn tokens(generation: usize, at: i64) -> Tokens {
        Tokens {
            refresh_token: format!("refresh {generation}"),
            refresh_expires_at: START + Duration::seconds(at + 40),
            access_token: format!("access {generation}"),
            access_expires_at: START + Duration::seconds(at + 15),
        }
    }

    fn session() -> Session {
        Session::begun("id".to_owned(), tokens(0, 0), &Roles::default(), span(0, 0), &RULES)
    }

    impl Session {
        fn after_renewal(mut self, age: usize, said: Said<Tokens>, span: Span) -> Self {
            self.renewed(age, said, &Roles::default(), span, &RULES).unwrap();
            self
        }

        fn after_use(mut self, span: Span) -> Self {
            self.checked(0, &Said::Done(()), &Roles::default(), span, Some(START), &RULES).unwrap();
            self
        }

        fn after_end(mut self, said: &Said, span: Span) -> Self {
            self.ended(said, span, &RULES);
            self
        }
    }

    #[test]
    fn what_a_renewal_may_be_answered() {
        let renewed = || session().after_renewal(0, Said::Done(tokens(1, 1)), span(1, 2));
        let lost = || session().after_renewal(0, Said::Lost, span(1, 2));
        let logged_out = || session().after_end(&Said::Done(()), span(3, 4));
        let maybe = || session().after_end(&Said::Lost, span(3, 4));
        for (what, session, age, span, may) in [
            ("a new one", session(), 0, span(1, 2), &[""][..]),
            ("at its end", session(), 0, span(39, 40), &["", EXPIRED]),
            ("after it", session(), 0, span(40, 41), &[EXPIRED]),
            ("cleaned up", session(), 0, span(61, 61), &[EXPIRED, UNKNOWN]),
            ("the token before, at once", renewed(), 1, span(3, 4), &[""]),
            ("the token before, unused since", renewed(), 1, span(20, 21), &[""]),
            ("the token before, later", renewed().after_use(span(3, 3)), 1, span(5, 6), &["", REUSED]),
            ("an older one", renewed(), 2, span(3, 4), &[REUSED]),
            ("after a lost answer", lost(), 0, span(30, 31), &[""]),
            ("after one, when it may have been prolonged", lost(), 0, span(40, 41), &["", EXPIRED]),
            ("after one, when it cannot have been", lost(), 0, span(42, 43), &[EXPIRED]),
            ("logged out", logged_out(), 0, span(5, 6), &[REVOKED]),
            ("logged out, or not", maybe(), 0, span(5, 6), &["", REVOKED]),
            (
                "logged out for certain",
                maybe().after_end(&Said::Done(()), span(5, 6)),
                0,
                span(7, 8),
                &[REVOKED],
            ),
            (
                "not logged out",
                maybe().after_renewal(0, Said::Done(tokens(1, 17)), span(17, 17)),
                0,
                span(18, 18),
                &[""],
            ),
            (
                "perhaps still logged out",
                maybe().after_renewal(0, Said::Done(tokens(1, 15)), span(15, 15)),
                0,
                span(18, 18),
                &["", REVOKED],
            ),
            (
                "a replay found it out",
                renewed().after_renewal(2, Said::Refused(REUSED.to_owned()), span(3, 3)),
                0,
                span(4, 4),
                &[REUSED],
            ),
        ] {
            assert_eq!(session.renewal(age, span, &RULES), may.iter().copied().collect(), "{what}");
        }
    }

    #[test]
    fn what_an_access_token_may_be_answered() {
        const OUTDATED: &str = "token_outdated";
        let as_editor = |changed| Roles { now: "editor".to_owned(), changed: Some(changed) };
        let none = Roles::default;
        let logged_out = || session().after_end(&Said::Done(()), span(3, 4));
        for (what, session, roles, quiet_since, span, may) in [
            ("a new one", session(), none(), Some(0), span(1, 2), &[""][..]),
            ("at its end", session(), none(), Some(0), span(14, 15), &["", "token_expired", "invalid_token"]),
            ("after it", session(), none(), Some(0), span(15, 16), &["token_expired", "invalid_token"]),
            ("not heard everywhere yet", logged_out(), none(), Some(0), span(5, 6), &["", REVOKED]),
            ("heard", logged_out(), none(), Some(0), span(6, 6), &[REVOKED]),
            ("heard again", logged_out(), none(), Some(5), span(6, 6), &["", REVOKED]),
            ("nothing heard", logged_out(), none(), None, span(9, 9), &["", REVOKED]),
            ("other roles", session(), as_editor(span(3, 4)), Some(0), span(6, 6), &[OUTDATED]),
            ("other roles soon", session(), as_editor(span(3, 4)), Some(0), span(5, 5), &["", OUTDATED]),
        ] {
            let quiet_since = quiet_since.map(|seconds| START + Duration::seconds(seconds));
            let got = session.check(&session.access_tokens[0], &roles, span, quiet_since, &RULES);
            assert_eq!(got, may.iter().copied().collect(), "{what}");
        }
    }

    #[test]
    fn an_answer_without_reason_is_a_fault() {
        let roles = Roles::default();
        let renew = |mut session: Session, age, said| session.renewed(age, said, &roles, span(3, 3), &RULES);
        let renewed = || session().after_renewal(0, Said::Done(tokens(1, 1)), span(1, 2));
        // Lost, revived, forked, or gone back.
        renew(session(), 0, Said::Refused(REVOKED.to_owned())).unwrap_err();
        renew(session().after_end(&Said::Done(()), span(1, 2)), 0, Said::Done(tokens(1, 3))).unwrap_err();
        renew(renewed(), 1, Said::Done(tokens(2, 3))).unwrap_err();
        renew(renewed(), 0, Said::Done(tokens(0, 3))).unwrap_err();
        let ended = session().after_end(&Said::Done(()), span(1, 2));
        let check = |mut session: Session, said: Said| {
            session.checked(0, &said, &roles, span(4, 4), Some(START), &RULES)
        };
        check(ended.clone(), Said::Done(())).unwrap_err();
        check(ended, Said::Refused(REVOKED.to_owned())).unwrap();
        check(session(), Said::Refused(REVOKED.to_owned())).unwrap_err();
        check(session(), Said::Refused("invalid_token".to_owned())).unwrap_err();
    }

    #[test]
    fn who_is_gone_is_gone_whatever_was_before() {
        for mut session in [
            session(),
            session().after_end(&Said::Done(()), span(1, 2)),
            session().after_end(&Said::Lost, span(1, 2)),
        ] {
            session.locked_out(span(3, 3));
            assert_eq!(session.renewal(0, span(4, 4), &RULES), [REVOKED].into());
            session.maybe_gone(span(4, 4));
            assert_eq!(session.renewal(0, span(4, 4), &RULES), [REVOKED, UNKNOWN].into());
            session.gone(span(5, 5));
            assert_eq!(session.renewal(0, span(6, 6), &RULES), [UNKNOWN].into());
        }
    }
}
