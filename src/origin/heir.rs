//! What the others do for an origin that died: they carry out what it intended, and take it off the list.
//!
//! One of them alone does, for a lease at a time: of two, one could find an intent that the other had not seen, and that the dead one never carried out, after
//! others had been told that it never will be. Whoever begins says so by moving the dead one's beat on, and is done, or has given up, before its lease on that is over. So
//! whoever tries next, be it the same one, does so as after the death itself: when the beat has not moved for a lease.

use std::{collections::HashMap, time::Duration};

use super::membership::{MARGINS_PER_LEASE, STEP_INTENTS, agreement, update};
use crate::{
    clock::{self, Clock, Moment},
    error::{Error, Kind, Result},
    kv::Version,
    store::{
        Agreed, Batch, Durability, Store, Table,
        keys::{self, Intent, Listed, Members},
    },
};

/// Pauses before something is tried again.
pub(super) const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LAST: Duration = Duration::from_millis(500);

/// When which beat of the others was seen first.
#[derive(Default)]
pub(super) struct Others {
    seen: HashMap<u64, (u64, Moment)>,
}

impl Others {
    /// Those whose beat has not moved for a lease.
    pub(super) fn dead(&mut self, members: &Members, own: u64, now: Moment, lease: Duration) -> Vec<Listed> {
        let judged = lease + lease / MARGINS_PER_LEASE;
        let others: Vec<&Listed> = members.members.iter().filter(|other| other.epoch != own).collect();
        self.seen.retain(|epoch, _| others.iter().any(|other| other.epoch == *epoch));
        let mut dead = Vec::new();
        for other in others {
            let seen = self.seen.entry(other.epoch).or_insert((other.beat, now));
            if seen.0 != other.beat {
                *seen = (other.beat, now);
            } else if now.since(seen.1) > judged {
                dead.push(other.clone());
            }
        }
        dead
    }

    pub(super) fn all_seem_well(&self, now: Moment, lease: Duration) -> bool {
        self.seen.values().all(|(_, at)| now.since(*at) < lease)
    }
}

/// Who finishes for one that died.
pub(super) struct Heir<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) clock: &'a dyn Clock,
    pub(super) epoch: u64,
    pub(super) lease: Duration,
}

impl Heir<'_> {
    /// Carries out what a dead origin intended, and takes it off the list, of which something is known. Answers what it says then.
    pub(super) async fn finish(&self, known: Agreed, dead: &Listed) -> Result<(Agreed, Members)> {
        let mut until = self.clock.now();
        let mut ours = false;
        let inherit = |members: &mut Members| {
            until = self.clock.now() + self.lease;
            let dead = members.of_mut(dead.epoch).filter(|member| member.beat == dead.beat);
            ours = dead.is_some();
            if let Some(dead) = dead {
                dead.heir = Some(self.epoch);
                dead.beat += 1;
            }
            Ok(())
        };
        let (agreed, members) = update(agreement(self.store)?, self.clock, known, inherit).await?;
        if !ours {
            return Ok((agreed, members));
        }
        let CarriedOut { intents, highest, end } = self.carry_out_until(dead, until).await?;
        let mut removed = false;
        let remove = |members: &mut Members| {
            removed = members.of(dead.epoch).is_some_and(|member| member.heir == Some(self.epoch));
            if removed {
                members.floor = members.highest().max(highest.as_u64());
                members.remove(dead.epoch, end);
            }
            Ok(())
        };
        let changed = update(agreement(self.store)?, self.clock, agreed, remove).await?;
        if removed {
            let (epoch, address) = (dead.epoch, &dead.address);
            tracing::warn!(epoch, address, intents, "an origin died; what it intended is carried out");
        }
        Ok(changed)
    }

    /// Tries again as long as that may help, since the next attempt is a lease away.
    async fn carry_out_until(&self, dead: &Listed, until: Moment) -> Result<CarriedOut> {
        loop {
            let left = until.since(self.clock.now());
            let carried_out = clock::within(self.clock, left, self.carry_out(dead, until)).await;
            match carried_out.unwrap_or_else(|_| Err(Error::unavailable("it took as long as a lease lasts"))) {
                Err(error) if error.kind.is_outage() && self.clock.now() + PAUSE_LAST < until => {
                    tracing::debug!(%error, epoch = dead.epoch, "carrying out what it intended failed, and is tried again");
                    self.clock.sleep(clock::jittered(self.clock, PAUSE_LAST)).await;
                }
                other => return other,
            }
        }
    }

    async fn carry_out(&self, dead: &Listed, until: Moment) -> Result<CarriedOut> {
        let (mut from, to) = keys::intents_from(dead.epoch, dead.done);
        let mut all = CarriedOut { intents: 0, highest: Version::ZERO, end: dead.done };
        loop {
            let rows = self.store.scan(Table::Intent, &from, &to, STEP_INTENTS).await?;
            for (row, value) in &rows {
                all.end = all.end.max(keys::intent_number(row)? + 1);
                match Intent::decode(row, value) {
                    Ok(intent) => {
                        all.highest =
                            intent.changes.iter().map(|change| change.version).fold(all.highest, Version::max);
                        until_known(self.store, self.clock, intent.into_batch(), || until).await?;
                        all.intents += 1;
                    }
                    Err(error) => tracing::error!(%error, "an intent of an origin that died is passed over"),
                }
            }
            match rows.last() {
                Some((last, _)) if rows.len() == STEP_INTENTS => from = keys::after(last),
                _ => return Ok(all),
            }
        }
    }
}

struct CarriedOut {
    intents: u64,
    /// Of their versions.
    highest: Version,
    /// Below which all are carried out that ever will be.
    end: u64,
}

/// Commits a batch whose changes have their versions, again and again while its outcome is not known, until a moment that may move on (O3).
pub(super) async fn until_known(
    store: &dyn Store,
    clock: &dyn Clock,
    batch: Batch,
    until: impl Fn() -> Moment,
) -> Result<()> {
    let mut pause = PAUSE_FIRST;
    loop {
        let left = until().since(clock.now());
        if left.is_zero() {
            return Err(Error::unavailable(
                "the store did not say what became of a commit for as long as a lease lasts",
            ));
        }
        let error = match clock::within(clock, left, store.commit(batch.clone(), Durability::Synced)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) if error.kind.is_outage() && error.kind != Kind::Internal => error,
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(Error::unavailable("the store did not answer for as long as the lease lasted")),
        };
        tracing::debug!(%error, "a commit whose outcome is not known is tried again");
        clock.sleep(clock::jittered(clock, pause)).await;
        pause = (pause * 2).min(PAUSE_LAST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Moment {
        Moment::ZERO + Duration::from_secs(seconds)
    }

    fn listed(epoch: u64) -> Listed {
        Listed { epoch, id: 0, address: String::new(), beat: 1, safe: 0, done: 0, heir: None }
    }

    fn epochs(dead: Vec<Listed>) -> Vec<u64> {
        dead.into_iter().map(|dead| dead.epoch).collect()
    }

    #[test]
    fn whose_beat_has_not_moved_for_a_lease_is_dead_to_the_others() {
        let mut members = Members { members: vec![listed(1), listed(2), listed(3)], ..Members::default() };
        let mut others = Others::default();
        assert!(others.dead(&members, 1, at(0), LEASE).is_empty());
        members.of_mut(2).unwrap().beat += 1;
        assert!(others.dead(&members, 1, at(8), LEASE).is_empty());
        assert!(others.dead(&members, 1, at(11), LEASE).is_empty(), "a lease and its margin are not over");
        assert_eq!(epochs(others.dead(&members, 1, at(12), LEASE)), [3]);
        assert_eq!(epochs(others.dead(&members, 1, at(19), LEASE)), [3]);
        assert_eq!(epochs(others.dead(&members, 1, at(24), LEASE)), [2, 3]);
    }

    #[test]
    fn after_an_attempt_to_finish_the_next_one_is_a_lease_away() {
        let mut members = Members { members: vec![listed(1), listed(2), listed(3)], ..Members::default() };
        let mut others = Others::default();
        others.dead(&members, 2, at(0), LEASE);
        let refresh = |members: &mut Members| members.members[..2].iter_mut().for_each(|member| member.beat += 1);
        let dead = members.of_mut(3).unwrap();
        (dead.heir, dead.beat) = (Some(1), 2);
        for seconds in [12, 22] {
            refresh(&mut members);
            assert!(others.dead(&members, 2, at(seconds), LEASE).is_empty());
        }
        refresh(&mut members);
        assert_eq!(epochs(others.dead(&members, 2, at(24), LEASE)), [3]);
    }
}
