//! When entries expire: what a write may ask for, and the sweeper that removes what has expired.
//!
//! Nobody waits for the sweeper: an expired entry is judged so at every reading. It only gives the room back.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    commit::{Action, Change, Committer},
    garbled::Garbled,
    versions::Time,
};
use crate::{
    clock::Clock,
    error::{Error, Kind, Result},
    kv::Expires,
    limits,
    store::{Store, Table, keys},
};

/// The absolute expiration of a write that is taken at `now` (Unix seconds). The texts are those of worker-binding 4.2.
///
/// That an absolute one is 60 seconds ahead is judged by the door alone, when the request arrives: a second that passes on the way here must not
/// refuse what the door took, or only a part of a bulk write.
pub(super) fn resolve(expires: Expires, now: u64) -> Result<Option<u64>> {
    let least = limits::EXPIRATION_TTL_SECONDS_MIN.unsigned_abs();
    match expires {
        Expires::Never => Ok(None),
        Expires::After(seconds) if seconds < least => Err(Error::new(
            Kind::ExpirationTtlInvalid,
            format!("Invalid expiration_ttl of {seconds}. Expiration TTL must be at least {least}."),
        )),
        Expires::After(seconds) => Ok(Some(now.saturating_add(seconds))),
        Expires::At(at) if at <= now => Err(Error::new(
            Kind::ExpirationInvalid,
            format!(
                "Invalid expiration of {at}. Please specify integer greater than the current number of seconds since the UNIX epoch."
            ),
        )),
        Expires::At(at) => Ok(Some(at)),
    }
}

/// The time left to an entry at `now` (Unix milliseconds): none once it has expired.
pub(super) fn time_left(expiration: u64, now: u64) -> Option<Duration> {
    let left = expiration.saturating_mul(1000).saturating_sub(now);
    (left > 0).then(|| Duration::from_millis(left))
}

const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Entries removed in one batch.
const STEP_ROWS: usize = 1000;

pub(super) struct Sweeper {
    pub(super) store: Arc<dyn Store>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) time: Arc<Time>,
    pub(super) committer: Arc<Committer>,
    pub(super) garbled: Garbled,
}

impl Sweeper {
    /// Runs until it is dropped, or the origin turns read-only.
    pub(super) async fn run(self) {
        while !self.committer.is_read_only() {
            match self.sweep().await {
                Ok(0) => {}
                Ok(entries) => tracing::debug!(entries, "removed expired entries"),
                Err(error) => tracing::warn!(%error, "removing expired entries failed, and is tried again"),
            }
            self.clock.sleep(SWEEP_INTERVAL).await;
        }
    }

    /// Removes all that has expired by now. It goes on behind what it has removed, where the store would find but its traces.
    pub(super) async fn sweep(&self) -> Result<usize> {
        let end = keys::expiry_end(self.time.seconds());
        let mut from = Bytes::new();
        let mut swept = 0;
        loop {
            let rows = self.store.scan(Table::Expiry, &from, &end, STEP_ROWS).await?;
            swept += self.remove(&rows).await?;
            match rows.last() {
                Some((last, _)) if rows.len() == STEP_ROWS => from = keys::after(last),
                _ => return Ok(swept),
            }
        }
    }

    /// Removes the entries of these rows, and returns how many it could.
    async fn remove(&self, rows: &[(Bytes, Bytes)]) -> Result<usize> {
        let mut removed_rows = Vec::with_capacity(rows.len());
        let mut removals = Vec::with_capacity(rows.len());
        for (row, _) in rows.iter().filter(|(row, _)| !self.garbled.holds(row)) {
            match keys::parse_expiry(row) {
                Ok((expiration, namespace, key)) => {
                    removed_rows.push(row);
                    removals.push(Change {
                        namespace,
                        key,
                        action: Action::Expire { expiration },
                        id: None,
                        own: false,
                    });
                }
                Err(error) => self.garbled.pass_over(row, &error),
            }
        }
        if removals.is_empty() {
            return Ok(0);
        }
        let outcomes = self.committer.commit(removals, None).await?;
        let mut removed = 0;
        for (row, outcome) in removed_rows.into_iter().zip(outcomes) {
            match outcome {
                Ok(_) => removed += 1,
                Err(error) => self.garbled.pass_over(row, &error),
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expirations_are_checked_with_the_reference_texts() {
        let now = 1_700_000_000;
        let check = |expires, expected: Result<Option<u64>, &str>| {
            let resolved = resolve(expires, now);
            assert_eq!(resolved.as_ref().map_err(|e| e.message.as_str()), expected.as_ref().map_err(|e| *e));
        };
        check(Expires::Never, Ok(None));
        check(Expires::After(60), Ok(Some(now + 60)));
        check(Expires::After(59), Err("Invalid expiration_ttl of 59. Expiration TTL must be at least 60."));
        check(Expires::After(0), Err("Invalid expiration_ttl of 0. Expiration TTL must be at least 60."));
        check(Expires::After(u64::MAX), Ok(Some(u64::MAX)));
        check(Expires::At(now + 60), Ok(Some(now + 60)));
        // A door took it when it was 60 seconds ahead.
        check(Expires::At(now + 59), Ok(Some(now + 59)));
        check(Expires::At(now + 1), Ok(Some(now + 1)));
        check(
            Expires::At(now),
            Err(
                "Invalid expiration of 1700000000. Please specify integer greater than the current number of seconds since the UNIX epoch.",
            ),
        );
    }

    #[test]
    fn an_entry_has_expired_at_its_very_second() {
        assert_eq!(time_left(10, 9_999), Some(Duration::from_millis(1)));
        assert_eq!(time_left(10, 10_000), None);
        assert_eq!(time_left(10, 11_000), None);
        assert!(time_left(u64::MAX, 0).is_some());
    }
}
