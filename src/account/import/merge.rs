//! Merges records into the users: updates those who exist, and creates those who do not.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
};

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Checked, FieldError, reader::Original};
use crate::{
    account::{ADMIN_ROLE, Cause, FullName, Roles, fields::normalised},
    password::HashedPassword,
    store::{
        self, Transaction,
        imports::{self, Change, Holders, Names, Present},
        users::{self, NewUser},
    },
};

/// How often a transaction is retried when others have changed the same users in the meantime.
pub(super) const MAX_CONFLICTS: usize = 8;

/// The `updated_at` of a user made from a record without one: any record with a date is newer.
const UNDATED: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

/// A user that has passed every check and has a hash to store.
pub(super) struct Ready {
    /// The id to use if the user is new.
    pub(super) id: Uuid,
    pub(super) number: u64,
    pub(super) original: Original,
    pub(super) user: Box<Checked>,
    pub(super) password: Option<HashedPassword>,
}

/// The users that a dry run has created and rolled back, so that it finds duplicates in the file; some 200 bytes each.
/// If they stayed in the database until the end, anyone registering with one of their names would have to wait.
#[derive(Default)]
pub(super) struct Made {
    /// The users by a hash of each of their names.
    ids: HashMap<u64, Uuid>,
    updated_at: HashMap<Uuid, OffsetDateTime>,
    hasher: RandomState,
}

impl Made {
    pub(super) fn note(&mut self, Ready { id, user, .. }: &Ready) {
        self.ids.extend(self.names(user).into_iter().flatten().map(|name| (name, *id)));
        self.updated_at.insert(*id, user.updated_at.unwrap_or(UNDATED));
    }

    /// Fills in these users as the holders of names that have no holder in the database.
    fn complete(&self, user: &Checked, holders: &mut Holders) {
        let [external_id, username, email] = self.names(user).map(|name| self.ids.get(&name?).copied());
        holders.external_id = holders.external_id.or(external_id);
        holders.username = holders.username.or(username);
        holders.email = holders.email.or(email);
    }

    fn names(&self, user: &Checked) -> [Option<u64>; 3] {
        let hash = |kind: &str, name: &str| self.hasher.hash_one((kind, name));
        [
            user.external_id.as_deref().map(|id| hash("external_id", id)),
            Some(hash("username", &normalised(user.username.as_str()))),
            Some(hash("email", &normalised(user.email.as_str()))),
        ]
    }
}

/// The outcome of some records.
#[derive(Default)]
pub(super) struct Done {
    pub(super) created: Vec<usize>,
    pub(super) updated: u64,
    pub(super) unchanged: u64,
    pub(super) refused: Vec<(usize, Denied)>,
}

/// Why a user who has passed every check cannot be written as the record says.
#[derive(Clone, Copy)]
pub(super) enum Denied {
    UsernameTaken,
    EmailTaken,
    LastAdmin,
}

impl Denied {
    pub(super) fn told(self) -> FieldError {
        match self {
            Self::UsernameTaken => FieldError::new("username", "username_taken", "belongs to another user"),
            Self::EmailTaken => FieldError::new("email", "email_taken", "belongs to another user"),
            Self::LastAdmin => FieldError::new("roles", "last_admin", "would leave no enabled administrator"),
        }
    }
}

/// Writes some users, in one transaction. A record that shares a name with an earlier one waits until the outcome of
/// that one is known. Users in `made` count as existing.
pub(super) async fn write(
    transaction: &mut Transaction<'_>,
    chunk: &[Ready],
    made: Option<&Made>,
    now: OffsetDateTime,
    cause: &Cause,
) -> Result<Done, store::Error> {
    let mut done = Done::default();
    let mut waiting: Vec<usize> = (0..chunk.len()).collect();
    while !waiting.is_empty() {
        let names = names(waiting.iter().map(|&i| &*chunk[i].user));
        let mut holders = imports::holders(transaction, &names).await?;
        if let Some(made) = made {
            waiting.iter().zip(&mut holders).for_each(|(&i, holders)| made.complete(&chunk[i].user, holders));
        }
        let mut round = Round::default();
        for (i, holders) in waiting.into_iter().zip(holders) {
            round.sort(i, &chunk[i], &holders, made, &mut done);
        }
        let Round { new, mut known, mut later, held_back: _ } = round;
        let rows = new
            .iter()
            .map(|&i| &chunk[i])
            .map(|new| new_user(new.id, &new.user, new.password.as_ref(), UNDATED));
        match new.len() {
            0 => {}
            // No `COPY` for a single user, who may come from a request: see `imports::copy`.
            1 => {
                for row in rows {
                    users::insert(transaction, &row, cause).await?;
                }
            }
            _ => imports::copy(transaction, rows, cause).await?,
        }
        done.created.extend(new);
        let (mut changes, mut demoted) = (Vec::new(), Vec::new());
        for present in imports::lock(transaction, &known.keys().copied().collect::<Vec<_>>()).await? {
            let Some(records) = known.remove(&present.id) else { continue };
            let folded = fold(&records, &present);
            if folded.demotes(&present) {
                demoted.push((records, present));
            } else {
                changes.extend(done.take(folded, &present));
            }
        }
        // All at once: none of these users can log in until the transaction ends.
        imports::change(transaction, &changes, now, cause).await?;
        for (records, present) in demoted {
            demote(transaction, &records, present, now, cause, &mut done).await?;
        }
        // Users who were deleted in the meantime are new.
        later.extend(known.into_values().flatten().map(|said| said.record));
        later.sort_unstable();
        waiting = later;
    }
    Ok(done)
}

/// The names of these users, in order.
pub(super) fn names<'a>(users: impl Iterator<Item = &'a Checked>) -> Names {
    let mut names = Names::default();
    for user in users {
        names.external_ids.push(user.external_id.clone());
        names.usernames.push(user.username.as_str().to_owned());
        names.emails.push(user.email.as_str().to_owned());
    }
    names
}

/// Records that are looked at together, sorted by what is to be done with them.
#[derive(Default)]
struct Round<'a> {
    new: Vec<usize>,
    /// By user.
    known: HashMap<Uuid, Vec<Said<'a>>>,
    /// Those that wait for the next round.
    later: Vec<usize>,
    /// The users whom those are about.
    held_back: HashSet<Uuid>,
}

impl<'a> Round<'a> {
    /// Takes the next record. One whose outcome is known already goes into `done`.
    fn sort(
        &mut self,
        record: usize,
        ready: &'a Ready,
        holders: &Holders,
        made: Option<&Made>,
        done: &mut Done,
    ) {
        match place(&ready.user, holders) {
            Place::New if holders.is_repeated || holders.is_claimed => self.later.push(record),
            Place::New => self.new.push(record),
            Place::Known { id, is_email_taken }
                if let Some(at) = made.and_then(|made| made.updated_at.get(&id)) =>
            {
                match ready.user.updated_at.is_some_and(|newer| newer > *at) {
                    true if is_email_taken => done.refused.push((record, Denied::EmailTaken)),
                    true => done.updated += 1,
                    false => done.unchanged += 1,
                }
            }
            // A record after one that waits has to wait as well.
            Place::Known { id, is_email_taken }
                if holders.is_claimed
                    || self.held_back.contains(&id)
                    || is_email_taken && self.may_give_up(holders.email) =>
            {
                self.held_back.insert(id);
                self.later.push(record);
            }
            Place::Known { id, is_email_taken } => {
                self.known.entry(id).or_default().push(Said { record, ready, is_email_taken });
            }
            Place::Same => done.unchanged += 1,
            Place::Taken(Denied::EmailTaken) if self.may_give_up(holders.email) => self.later.push(record),
            Place::Taken(denied) => done.refused.push((record, denied)),
        }
    }

    /// Whether an earlier record may still make the holder of an address give it up.
    fn may_give_up(&self, holder: Option<Uuid>) -> bool {
        holder.is_some_and(|id| self.known.contains_key(&id) || self.held_back.contains(&id))
    }
}

/// A record about an existing user.
#[derive(Clone, Copy)]
struct Said<'a> {
    record: usize,
    ready: &'a Ready,
    /// Another user has the address.
    is_email_taken: bool,
}

/// Applies these records to an existing administrator, in order and all at once. If that would remove the
/// last administrator, applies half of them at once, and so on down to the record that is refused.
async fn demote(
    transaction: &mut Transaction<'_>,
    records: &[Said<'_>],
    mut present: Present,
    now: OffsetDateTime,
    cause: &Cause,
    done: &mut Done,
) -> Result<(), store::Error> {
    let mut parts = VecDeque::from([records]);
    while let Some(part) = parts.pop_front() {
        let folded = fold(part, &present);
        if folded.demotes(&present) {
            match imports::demote(transaction, &folded.change, now, cause).await {
                Err(store::Error::LastAdmin) => {
                    if let &[Said { record, .. }] = part {
                        done.refused.push((record, Denied::LastAdmin));
                    } else {
                        let (first, rest) = part.split_at(part.len() / 2);
                        parts.push_front(rest);
                        parts.push_front(first);
                    }
                    continue;
                }
                demoted => demoted?,
            }
            present = done.take(folded, &present).map_or(present, |change| change.user);
        } else if let Some(change) = done.take(folded, &present) {
            imports::change(transaction, std::slice::from_ref(&change), now, cause).await?;
            present = change.user;
        }
    }
    Ok(())
}

/// What a user becomes when records are applied one after the other.
struct Folded {
    change: Change,
    /// How many of the records change something.
    updated: u64,
    unchanged: u64,
    /// The records of which only the roles and `disabled` are taken, because the address is another user's.
    refused: Vec<usize>,
}

impl Folded {
    /// Whether the user stops being an active administrator, so that another one must be left.
    fn demotes(&self, present: &Present) -> bool {
        is_admin(present) && !is_admin(&self.change.user)
    }
}

impl Done {
    /// Counts the outcome of a user's records. Returns the change to write, if any.
    fn take(&mut self, folded: Folded, present: &Present) -> Option<Change> {
        let Folded { change, updated, unchanged, refused } = folded;
        self.updated += updated;
        self.unchanged += unchanged;
        self.refused.extend(refused.into_iter().map(|record| (record, Denied::EmailTaken)));
        let times = |user: &Present| (user.updated_at, user.administered_at);
        (times(&change.user) != times(present)).then_some(change)
    }
}

fn fold(records: &[Said<'_>], present: &Present) -> Folded {
    let mut folded = Folded {
        change: Change { user: present.clone(), is_other_password: false },
        updated: 0,
        unchanged: 0,
        refused: Vec::new(),
    };
    for &Said { record, ready, is_email_taken } in records {
        let before = &mut folded.change.user;
        let newer = ready.user.updated_at.filter(|at| before.is_older_than(*at));
        let Some(at) = newer else {
            folded.unchanged += 1;
            continue;
        };
        let (user, is_other_password) = changed(ready, before, at, is_email_taken);
        if is_email_taken && at > before.updated_at {
            folded.refused.push(record);
        } else if is_same(&user, before) {
            folded.unchanged += 1;
        } else {
            folded.updated += 1;
        }
        // A newer record without changes still sets the times: one dated in between may follow.
        *before = user;
        folded.change.is_other_password |= is_other_password;
    }
    folded
}

/// How a record relates to the existing users.
pub(super) enum Place {
    New,
    /// The user with this id. If the address is another user's, roles and `disabled` still change: otherwise users
    /// could prevent that by having someone else take their address.
    Known {
        id: Uuid,
        is_email_taken: bool,
    },
    /// One user has both names, and the record has no external id: nothing of the record is taken over.
    Same,
    Taken(Denied),
}

pub(super) fn place(user: &Checked, holders: &Holders) -> Place {
    match (holders.external_id, holders.username, holders.email) {
        // The user's username never changes, so it does not matter who has the one in the record.
        (Some(id), _, email) => Place::Known { id, is_email_taken: email.is_some_and(|holder| holder != id) },
        (None, None, None) => Place::New,
        (None, Some(one), Some(other)) if one == other && user.external_id.is_none() => Place::Same,
        (None, Some(_), _) => Place::Taken(Denied::UsernameTaken),
        (None, None, Some(_)) => Place::Taken(Denied::EmailTaken),
    }
}

/// A user to create; `undated` is the `updated_at` to use if the record has none.
pub(in crate::account) fn new_user<'a>(
    id: Uuid,
    user: &'a Checked,
    password: Option<&'a HashedPassword>,
    undated: OffsetDateTime,
) -> NewUser<'a> {
    NewUser {
        id,
        external_id: user.external_id.as_deref(),
        username: user.username.as_str(),
        email: user.email.as_str(),
        full_name: user.full_name.as_ref().map(FullName::as_str),
        password_hash: password,
        roles: user.roles.as_ref().map_or(&[], Roles::as_slice),
        is_email_verified: user.is_email_verified.unwrap_or(false),
        disabled: user.disabled.unwrap_or(false),
        password_changed_at: user.password_changed_at.unwrap_or(user.created_at),
        created_at: user.created_at,
        updated_at: user.updated_at.unwrap_or(undated),
    }
}

/// The user as the record has them, or as they are where the record says nothing or is outdated; and whether the
/// password is a different one. Roles and `disabled` have a time of their own: they are taken even if the user has
/// since changed what users may change themselves, or if the address is another user's.
fn changed(ready: &Ready, present: &Present, at: OffsetDateTime, is_email_taken: bool) -> (Present, bool) {
    let (user, mut changed) = (&ready.user, present.clone());
    if at > present.administered_at {
        if let Some(roles) = &user.roles {
            changed.roles = roles.as_slice().to_vec();
        }
        changed.disabled = user.disabled.unwrap_or(present.disabled);
        changed.administered_at = at;
    }
    if at <= present.updated_at || is_email_taken {
        return (changed, false);
    }
    let is_other_password =
        ready.password.as_ref().is_some_and(|hash| present.password_hash.as_ref() != Some(hash))
            && !is_no_later_password(user, present);
    if is_other_password {
        changed.password_hash.clone_from(&ready.password);
        changed.password_changed_at = user.password_changed_at.unwrap_or(at);
    }
    let is_other_address = normalised(&present.email) != normalised(user.email.as_str());
    changed.email = user.email.as_str().to_owned();
    changed.is_email_verified =
        user.is_email_verified.unwrap_or(present.is_email_verified && !is_other_address);
    if let Some(name) = &user.full_name {
        changed.full_name = Some(name.as_str().to_owned());
    }
    changed.updated_at = at;
    (changed, is_other_password)
}

/// Whether the record dates its password no later than the user's, which then stays. A login here may have replaced the
/// hash, and taking the old one would log the user out, or undo a password that was set here.
pub(super) fn is_no_later_password(user: &Checked, present: &Present) -> bool {
    present.password_hash.is_some()
        && user.password_changed_at.is_some_and(|at| at <= present.password_changed_at)
}

fn is_admin(user: &Present) -> bool {
    !user.disabled && user.roles.iter().any(|role| role == ADMIN_ROLE)
}

/// Whether nothing has changed except the times.
fn is_same(user: &Present, present: &Present) -> bool {
    user.email == present.email
        && user.full_name == present.full_name
        && user.password_hash == present.password_hash
        && user.roles == present.roles
        && user.is_email_verified == present.is_email_verified
        && user.disabled == present.disabled
}
