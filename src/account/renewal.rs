//! Renewal: from a refresh token to its successor and a fresh access token.
//!
//! ```text
//!   presented        the session's row                                      outcome
//!   generation g     generation g                                           Rotate: the row goes to g + 1
//!   generation g-1   renewed no longer than the reuse interval ago          Repeat: the token of g again
//!   generation g-1   g unconfirmed: nothing that belongs to it was seen     Repeat
//!   generation g-1   g confirmed, and the interval over                     Reused: the session ends
//!   any older one                                                           Reused
//!   any              ended, idle for too long, or over                      Ended, and why
//! ```
//!
//! A refresh token is a MAC over the session, the generation and the row's salt. So any replica can give the successor
//! again, to any number of callers in parallel, without its being stored. All of them get the same token; a session
//! never forks.
//!
//! # What a thief gains
//!
//! A thief who presents a stolen token after the owner has is detected: the owner has moved on and confirmed the next
//! generation by using it, so the stolen token is a reuse and ends the session for both. A thief who presents it first
//! moves the session on and uses what they were given, and the owner's next renewal is the reuse. The two can hold the
//! same token for the reuse interval, or until one of them uses what they were given. In that window, no one has more
//! than the one session that was stolen.
//!
//! A patient thief is not detected. By renewing each time shortly before the owner, and using none of it until the
//! owner has renewed too, the thief makes each of the owner's renewals look like one whose answer may have been lost.
//! That is the price of forgiving lost answers, and it lasts as long as the session. Each repeat that comes later than
//! the reuse interval is logged with both addresses: an owner repeats a renewal from where the first one came. A
//! service that verifies tokens by itself confirms nothing here. If all services do so, a lost answer is forgiven until
//! the next renewal, and so is a patient thief.
//!
//! Compared with other systems:
//!
//! - Hydra's grace period lets the old token create a sibling: a second chain that continues beside the first and is
//!   never noticed. Here there is one chain.
//! - Supabase accepts the parent of the active token at any time, so a thief who holds the last token but one stays as
//!   long as the owner. Here it is valid only while the owner may not have received the answer.
//! - Auth0 accepts the previous token within a leeway of seconds, and so logs out a phone that lost the answer before
//!   it slept. Here the time asleep does not count; only use does.

use std::{mem, time::Duration};

use rand_core::CryptoRng;
use time::OffsetDateTime;

use super::{Accounts, Actor, Caller, Error, Tokens, throttle::Kind};
use crate::{
    metrics::RenewalOutcome,
    store::sessions::{self, EndReason, Owner, Session, Which},
    token::{Lifetime, Subject, refresh::Presented},
};

/// How often a renewal may find that another was faster. More than that means that something else is wrong.
const MAX_RACES: usize = 8;

/// What happens to a session when one of its refresh tokens is presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The session goes to the next generation.
    Rotate,
    /// The current generation's token is given again.
    Repeat,
    /// The token was used before, and so was its successor: the session ends.
    Reused,
    /// The session had already ended.
    Ended(End),
}

/// Why a session has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It was idle for too long, or is too old.
    Expired,
    /// Someone ended it.
    Revoked,
    /// A replay ended it.
    Reused,
}

/// What the decision needs to know about a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    pub(super) generation: u32,
    pub(super) renewed_at: OffsetDateTime,
    pub(super) is_confirmed: bool,
    pub(super) refresh_expires_at: OffsetDateTime,
    pub(super) ended: Option<EndReason>,
    pub(super) is_user_disabled: bool,
}

/// Whom the tokens are for, and of which generation they are.
struct Given {
    owner: Owner,
    generation: u32,
    refresh_expires_at: OffsetDateTime,
}

/// Decides what an authentic token of generation `presented` does to a session at `now`.
pub(super) fn decide(
    presented: u32,
    session: &State,
    reuse_interval: Duration,
    now: OffsetDateTime,
) -> Outcome {
    match session.ended {
        Some(EndReason::RefreshTokenReused) => return Outcome::Ended(End::Reused),
        Some(_) => return Outcome::Ended(End::Revoked),
        None if session.is_user_disabled => return Outcome::Ended(End::Revoked),
        None if now >= session.refresh_expires_at => return Outcome::Ended(End::Expired),
        None => {}
    }
    // If our clock is behind that of the replica that renewed, the renewal is in the future, which counts as recent.
    let is_recent = now < session.renewed_at + reuse_interval;
    match session.generation.checked_sub(presented) {
        Some(0) => Outcome::Rotate,
        Some(1) if is_recent || !session.is_confirmed => Outcome::Repeat,
        // A future generation can be authentic only if the key or the database is from another time.
        Some(_) | None => Outcome::Reused,
    }
}

impl Accounts {
    /// Renews a session.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidRefreshToken`], replaced by [`Error::TooManyAttempts`] after too many of these;
    /// [`Error::RefreshTokenReused`], [`Error::SessionEnded`], [`Error::SessionExpired`].
    pub async fn renew(
        &self,
        refresh_token: &str,
        caller: &Caller,
        now: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Tokens, Error> {
        match self.try_renew(refresh_token, caller, now, rng).await {
            Err(failure @ Error::InvalidRefreshToken) => {
                Err(self.parts.throttle.count(Kind::Renewal, caller.ip, failure, now).await)
            }
            outcome => outcome,
        }
    }

    async fn try_renew(
        &self,
        refresh_token: &str,
        caller: &Caller,
        now: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Tokens, Error> {
        let invalid = || {
            self.parts.metrics.renewal(RenewalOutcome::Invalid);
            Error::InvalidRefreshToken
        };
        let presented = Presented::parse(refresh_token).ok_or_else(invalid)?;
        let id = presented.session_id;
        let reuse_interval = self.parts.policy.refresh_reuse_interval;
        let mut has_looked = false;
        for _ in 0..MAX_RACES {
            // Checked before anything is said about the session: only a holder of one of its tokens learns its state.
            let row = self.parts.db.read(async |mut conn| sessions::by_id(&mut conn, id).await).await?;
            let row = row.filter(|row| self.parts.refresh_keys.is_authentic(&presented, &row.refresh_salt));
            let row = row.ok_or_else(invalid)?;
            let presented = presented.generation;
            let decided = decide(presented, &state(&row), reuse_interval, now);
            // What this replica has seen and not yet written may confirm that the answer was not lost.
            let is_late = now >= row.renewed_at + reuse_interval;
            if let Some(activity) = &self.parts.activity
                && decided == Outcome::Repeat
                && is_late
                && !mem::replace(&mut has_looked, true)
            {
                activity.flush().await?;
                continue;
            }
            let (outcome, given) = match decided {
                Outcome::Rotate => (RenewalOutcome::Rotated, self.rotate(&row, caller, now).await?.map(Ok)),
                Outcome::Repeat => (RenewalOutcome::Repeated, self.repeat(&row, caller, now).await?.map(Ok)),
                Outcome::Reused => {
                    let is_ended = self.end_reused(&row, presented, caller, now).await?;
                    (RenewalOutcome::Reused, is_ended.then_some(Err(Error::RefreshTokenReused)))
                }
                Outcome::Ended(End::Expired) => (RenewalOutcome::Expired, Some(Err(Error::SessionExpired))),
                Outcome::Ended(End::Revoked) => (RenewalOutcome::Ended, Some(Err(Error::SessionEnded))),
                Outcome::Ended(End::Reused) => (RenewalOutcome::Ended, Some(Err(Error::RefreshTokenReused))),
            };
            // `None`: the session was changed after it was read. Look again.
            if let Some(given) = given {
                self.parts.metrics.renewal(outcome);
                return self.renewed(&row, given?, now, rng);
            }
        }
        Err(Error::Contended)
    }

    /// Moves the session to its next generation. `None` if another request was faster.
    async fn rotate(
        &self,
        row: &Session,
        caller: &Caller,
        now: OffsetDateTime,
    ) -> Result<Option<Given>, Error> {
        let refresh_expires_at = self.parts.policy.refresh_expires_at(now, row.expires_at);
        let renewal = sessions::Renewal {
            id: row.id,
            user_id: row.user_id,
            generation: row.refresh_generation,
            user_agent: caller.user_agent.as_deref(),
            client_ip: caller.ip,
            refresh_expires_at,
            access_expires_at: self.parts.policy.access_expires_at(now, row.expires_at),
            now,
        };
        let db = &self.parts.db;
        let rotating = db.write(async |mut conn| sessions::rotate(&mut conn, &renewal).await);
        let Some(owner) = rotating.await? else { return Ok(None) };
        tracing::debug!(session_id = %row.id, "session renewed");
        let generation = row.refresh_generation.cast_unsigned() + 1;
        Ok(Some(Given { owner, generation, refresh_expires_at }))
    }

    /// Gives the current generation's token again. `None` if that generation is no longer the current one.
    async fn repeat(
        &self,
        row: &Session,
        caller: &Caller,
        now: OffsetDateTime,
    ) -> Result<Option<Given>, Error> {
        let access_expires_at = self.parts.policy.access_expires_at(now, row.expires_at);
        // Nothing to write where the row covers this token: ending the session, or changing the roles, revokes access
        // tokens up to the row's `access_expires_at`.
        let owner = if access_expires_at <= row.access_expires_at {
            Some(Owner { username: row.username.clone(), roles: row.roles.clone() })
        } else {
            let (db, generation) = (&self.parts.db, row.refresh_generation);
            let extending = db.write(async |mut conn| {
                sessions::extend_access(&mut conn, row.id, row.user_id, generation, access_expires_at).await
            });
            extending.await?
        };
        let Some(owner) = owner else { return Ok(None) };
        if now >= row.renewed_at + self.parts.policy.refresh_reuse_interval {
            tracing::info!(
                session_id = %row.id,
                user_id = %row.user_id,
                client_ip = caller.ip.map(tracing::field::display),
                last_client_ip = row.client_ip.map(|ip| tracing::field::display(ip.addr())),
                "a renewal was repeated after the reuse interval"
            );
        }
        let generation = row.refresh_generation.cast_unsigned();
        Ok(Some(Given { owner, generation, refresh_expires_at: row.refresh_expires_at }))
    }

    /// Ends the session. `false` if it is no longer at this generation.
    async fn end_reused(
        &self,
        row: &Session,
        presented: u32,
        caller: &Caller,
        now: OffsetDateTime,
    ) -> Result<bool, Error> {
        let which = Which::OneAt(row.id, row.refresh_generation);
        let (reason, cause) = (EndReason::RefreshTokenReused, self.cause.by(&Actor::Service));
        let (db, user_id) = (&self.parts.db, row.user_id);
        let ending =
            db.write(async |mut conn| sessions::end(&mut conn, user_id, which, reason, now, &cause).await);
        if ending.await? == 0 {
            return Ok(false);
        }
        let present = row.refresh_generation.cast_unsigned();
        tracing::warn!(
            session_id = %row.id,
            user_id = %row.user_id,
            presented,
            present,
            client_ip = caller.ip.map(tracing::field::display),
            last_client_ip = row.client_ip.map(|ip| tracing::field::display(ip.addr())),
            "{}: session ended",
            if presented > present {
                // Not a sign of theft, but the session must not continue: what the database has lost may be its end.
                "a refresh token is ahead of the database, which has been set back by a restore or a failover"
            } else {
                "a refresh token was used again"
            }
        );
        self.tell_revocations().await;
        Ok(true)
    }

    fn renewed(
        &self,
        row: &Session,
        given: Given,
        now: OffsetDateTime,
        rng: &mut impl CryptoRng,
    ) -> Result<Tokens, Error> {
        let Given { owner, generation, refresh_expires_at } = given;
        let expires_at = self.parts.policy.access_expires_at(now, row.expires_at);
        let subject = Subject {
            user_id: row.user_id,
            session_id: row.id,
            username: owner.username,
            roles: owner.roles,
        };
        let lifetime = Lifetime { now, expires_at };
        self.tokens(subject, (generation, &row.refresh_salt), lifetime, refresh_expires_at, rng)
    }
}

fn state(row: &Session) -> State {
    State {
        generation: row.refresh_generation.cast_unsigned(),
        renewed_at: row.renewed_at,
        is_confirmed: row.is_confirmed,
        refresh_expires_at: row.refresh_expires_at.min(row.expires_at),
        ended: row.end_reason,
        is_user_disabled: row.disabled,
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);
    const INTERVAL: Duration = Duration::from_secs(10);

    fn session(renewed_seconds_ago: i64, is_confirmed: bool) -> State {
        State {
            generation: 7,
            renewed_at: NOW - time::Duration::seconds(renewed_seconds_ago),
            is_confirmed,
            refresh_expires_at: NOW + time::Duration::hours(1),
            ended: None,
            is_user_disabled: false,
        }
    }

    #[test]
    fn the_outcome_depends_on_generation_confirmation_and_elapsed_time() {
        use Outcome::{Repeat, Reused, Rotate};
        // Seconds since the renewal (negative if a clock is behind), and the outcomes for generations 5, 6, 7 and 8.
        for (ago, is_confirmed, expected) in [
            (-3600, false, [Reused, Repeat, Rotate, Reused]),
            (-3600, true, [Reused, Repeat, Rotate, Reused]),
            (0, false, [Reused, Repeat, Rotate, Reused]),
            (0, true, [Reused, Repeat, Rotate, Reused]),
            (9, true, [Reused, Repeat, Rotate, Reused]),
            (10, true, [Reused, Reused, Rotate, Reused]),
            (10, false, [Reused, Repeat, Rotate, Reused]),
            (80_000, false, [Reused, Repeat, Rotate, Reused]),
            (80_000, true, [Reused, Reused, Rotate, Reused]),
        ] {
            let session = session(ago, is_confirmed);
            let outcomes = [5, 6, 7, 8].map(|presented| decide(presented, &session, INTERVAL, NOW));
            assert_eq!(outcomes, expected, "renewed {ago} s ago, confirmed: {is_confirmed}");
        }
    }

    #[test]
    fn an_ended_session_gives_its_reason_whatever_token_is_presented() {
        use Outcome::Ended;
        let open = session(5, true);
        let hour = time::Duration::hours(1);
        let reasons =
            [EndReason::Logout, EndReason::Revoked, EndReason::PasswordChanged, EndReason::UserDisabled];
        for presented in 0..9 {
            let outcome = |session: State, now| decide(presented, &session, INTERVAL, now);
            for ended in reasons {
                let session = State { ended: Some(ended), ..open };
                assert_eq!(outcome(session, NOW), Ended(End::Revoked));
                assert_eq!(outcome(session, NOW + hour * 9), Ended(End::Revoked));
            }
            let reused = State { ended: Some(EndReason::RefreshTokenReused), ..open };
            assert_eq!(outcome(reused, NOW), Ended(End::Reused));
            assert_eq!(outcome(State { is_user_disabled: true, ..open }, NOW), Ended(End::Revoked));
            assert_eq!(outcome(open, NOW + hour), Ended(End::Expired));
            assert_ne!(outcome(open, NOW + hour - Duration::from_secs(1)), Ended(End::Expired));
        }
    }

    #[test]
    fn the_first_generation_has_none_before_it() {
        let first = State { generation: 0, ..session(0, false) };
        assert_eq!(decide(0, &first, INTERVAL, NOW), Outcome::Rotate);
        assert_eq!(decide(1, &first, INTERVAL, NOW), Outcome::Reused);
    }
}
