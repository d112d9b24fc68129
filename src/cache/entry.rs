//! What a tier keeps of a key: a value or a known absence, its version, and the moment it was last known to be current.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;

use crate::{
    clock::Moment,
    kv::{Answer, CacheStatus, Entry, Held, Key, NamespaceId, Read, State, Value, Version},
};

/// Where an entry is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EntryKey {
    pub namespace: NamespaceId,
    pub key: Key,
}

/// A state that a tier keeps, or shares among those who asked together. Never changed, but for when it was last verified.
#[derive(Debug)]
pub struct Kept {
    pub version: Version,
    pub content: Content,
    /// When it expires, by this process's clock; [`Moment::MAX`] for never. Falls early by at most a trip, never late (P2).
    expires_at: AtomicU64,
    /// A moment at which the state is known to have been current; only ever moves on.
    verified_at: AtomicU64,
    /// The feed covers it, if the continuity began no later than this; only ever moves on.
    covered_from: AtomicU64,
    /// When it was last answered to a reader, in units of [`USED_UNIT_NANOS`]; zero for never.
    used_at: AtomicU32,
}

/// What is known of a state's currency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// A moment at which it was current.
    pub at: Moment,
    /// It is covered by a continuity that began no later than this.
    pub covered_from: Moment,
}

impl Verified {
    /// By an answer that says nothing of the feed: a continuity covers it that had begun when it was current.
    pub fn at(at: Moment) -> Verified {
        Verified { at, covered_from: at }
    }
}

/// About a second: fine enough to know what is in use, and so coarse that a hot entry is not written to at each read.
const USED_UNIT_NANOS: u64 = 1 << 30;

#[derive(Debug)]
pub enum Content {
    Present { value: KeptValue, metadata: Option<Bytes>, expiration: Option<u64> },
    Absent,
}

#[derive(Clone, Debug)]
pub enum KeptValue {
    Whole(Bytes),
    /// A large value, in pieces of [`crate::limits::CHUNK_BYTES`].
    Parts(Arc<[Bytes]>),
}

impl Kept {
    pub fn new(version: Version, content: Content, expires_at: Moment, verified: Verified) -> Kept {
        Kept {
            version,
            content,
            expires_at: AtomicU64::new(expires_at.as_nanos()),
            verified_at: AtomicU64::new(verified.at.as_nanos()),
            covered_from: AtomicU64::new(verified.covered_from.as_nanos()),
            used_at: AtomicU32::new(0),
        }
    }

    /// Notes that a reader was answered with it.
    pub fn used(&self, now: Moment) {
        let unit = used_unit(now);
        if self.used_at.load(Ordering::Relaxed) != unit {
            self.used_at.store(unit, Ordering::Relaxed);
        }
    }

    /// It takes the place of an entry, and is as much in use.
    pub fn used_as(&self, replaced: &Kept) {
        self.used_at.store(replaced.used_at.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether a reader was answered with it within the last `duration`, or about a second more.
    pub fn was_used_within(&self, duration: Duration, now: Moment) -> bool {
        let used_at = self.used_at.load(Ordering::Relaxed);
        used_at != 0 && used_at >= used_unit(now - duration)
    }

    pub fn verified_at(&self) -> Moment {
        Moment::from_nanos(self.verified_at.load(Ordering::Acquire))
    }

    pub fn verified(&self) -> Verified {
        let covered_from = Moment::from_nanos(self.covered_from.load(Ordering::Acquire));
        Verified { at: self.verified_at(), covered_from }
    }

    pub fn expires_at(&self) -> Moment {
        Moment::from_nanos(self.expires_at.load(Ordering::Acquire))
    }

    pub fn is_present(&self) -> bool {
        matches!(self.content, Content::Present { .. })
    }

    pub fn is_expired(&self, now: Moment) -> bool {
        now >= self.expires_at()
    }

    /// The same state was found current once more. An older proof than the one held changes nothing.
    pub fn renew(&self, verified: Verified, expires_at: Option<Moment>) {
        self.verified_at.fetch_max(verified.at.as_nanos(), Ordering::AcqRel);
        self.covered_from.fetch_max(verified.covered_from.as_nanos(), Ordering::AcqRel);
        // Each deadline falls early, never late; so the later of two is right, too, and nearer.
        if let Some(expires_at) = expires_at {
            self.expires_at.fetch_max(expires_at.as_nanos(), Ordering::AcqRel);
        }
    }

    /// What the state is, to name it in a question upstream.
    pub fn held(&self) -> Held {
        Held { version: self.version, present: self.is_present() }
    }

    /// The answer to a read, at this moment, of a state known to have been current `age` ago. An expired entry has none: the caller has looked.
    pub fn answer(&self, read: &Read, age: Duration, covered: bool, now: Moment, status: CacheStatus) -> Answer {
        let time_left = match self.expires_at() {
            Moment::MAX => None,
            expires_at => Some(expires_at.since(now)),
        };
        let unchanged = read.held.is_some_and(|held| match &self.content {
            Content::Present { .. } => held.present && held.version == self.version,
            // A later absence proves an earlier one, never the other way around (P3).
            Content::Absent => !held.present && held.version <= self.version,
        });
        let state = match &self.content {
            _ if unchanged => State::Unchanged { time_left },
            Content::Absent => State::Absent,
            Content::Present { value, metadata, expiration } => State::Present(Entry {
                value: match value {
                    KeptValue::Whole(bytes) => Value::Whole(bytes.clone()),
                    KeptValue::Parts(parts) => Value::Parts(Arc::clone(parts)),
                },
                metadata: metadata.clone(),
                expiration: *expiration,
                time_left,
            }),
        };
        Answer { state, version: self.version, age, covered, status }
    }

    /// Bytes of what is kept, beside what keeping costs.
    pub fn length(&self) -> usize {
        match &self.content {
            Content::Absent => 0,
            Content::Present { value, metadata, .. } => {
                let value = match value {
                    KeptValue::Whole(bytes) => bytes.len(),
                    KeptValue::Parts(parts) => parts.iter().map(Bytes::len).sum(),
                };
                value + metadata.as_ref().map_or(0, Bytes::len)
            }
        }
    }
}

fn used_unit(moment: Moment) -> u32 {
    // Wraps after a century and a third: what was used just before then counts as unused.
    (moment.as_nanos() / USED_UNIT_NANOS) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment::from_nanos(1 << 40);

    fn kept(version: u64, value: Option<KeptValue>) -> Kept {
        let content = match value {
            Some(value) => Content::Present { value, metadata: Some(Bytes::from_static(b"{}")), expiration: Some(9) },
            None => Content::Absent,
        };
        Kept::new(Version::from_u64(version), content, NOW + Duration::from_secs(5), Verified::at(Moment::ZERO))
    }

    fn whole() -> Option<KeptValue> {
        Some(KeptValue::Whole(Bytes::from_static(b"value")))
    }

    #[test]
    fn unchanged_is_what_the_asker_holds_in_that_version_or_an_earlier_absence() {
        let check = |kept: &Kept, held: Option<(u64, bool)>, expected: bool| {
            let held = held.map(|(version, present)| Held { version: Version::from_u64(version), present });
            let read = Read { held, ..Read::default() };
            let answer = kept.answer(&read, Duration::ZERO, false, NOW, CacheStatus::Hit);
            assert_eq!(matches!(answer.state, State::Unchanged { .. }), expected, "{kept:?}, {held:?}");
            assert_eq!(answer.version, kept.version);
        };
        let present = kept(5, whole());
        check(&present, None, false);
        check(&present, Some((5, true)), true);
        for other in [(4, true), (6, true), (5, false), (4, false)] {
            check(&present, Some(other), false);
        }
        let absent = kept(5, None);
        check(&absent, None, false);
        check(&absent, Some((5, false)), true);
        check(&absent, Some((4, false)), true);
        for other in [(6, false), (5, true), (4, true)] {
            check(&absent, Some(other), false);
        }
    }

    #[test]
    fn an_answer_says_all_that_is_kept_and_what_is_left_of_it() {
        let parts: Arc<[Bytes]> = [Bytes::from_static(b"va"), Bytes::from_static(b"lue")].into();
        for value in [whole(), Some(KeptValue::Parts(parts))] {
            let answer = kept(5, value).answer(&Read::default(), Duration::from_secs(3), true, NOW, CacheStatus::Hit);
            assert_eq!((answer.age, answer.covered), (Duration::from_secs(3), true));
            let State::Present(entry) = answer.state else { panic!("it is there") };
            assert_eq!(entry.value.length(), Some(5));
            assert_eq!((entry.metadata, entry.expiration), (Some(Bytes::from_static(b"{}")), Some(9)));
            assert_eq!(entry.time_left, Some(Duration::from_secs(5)));
        }
    }

    #[test]
    fn its_length_is_that_of_its_value_and_metadata() {
        let parts: Arc<[Bytes]> = [Bytes::from_static(b"va"), Bytes::from_static(b"lue")].into();
        assert_eq!(kept(5, whole()).length(), 7);
        assert_eq!(kept(5, Some(KeptValue::Parts(parts))).length(), 7);
        assert_eq!(kept(5, None).length(), 0);
    }

    #[test]
    fn a_proof_only_ever_moves_on() {
        let kept = kept(5, whole());
        let at = |seconds| Moment::ZERO + Duration::from_secs(seconds);
        kept.renew(Verified { at: at(10), covered_from: at(12) }, Some(NOW + Duration::from_secs(9)));
        kept.renew(Verified { at: at(8), covered_from: at(11) }, Some(NOW));
        assert_eq!(kept.verified(), Verified { at: at(10), covered_from: at(12) });
        assert_eq!(kept.expires_at(), NOW + Duration::from_secs(9));
        assert!(kept.is_expired(NOW + Duration::from_secs(9)) && !kept.is_expired(NOW + Duration::from_secs(8)));
    }

    #[test]
    fn it_was_used_when_a_reader_was_answered_with_it_or_with_what_it_replaced() {
        let minute = Duration::from_secs(60);
        let (read, unread) = (kept(5, whole()), kept(5, whole()));
        read.used(NOW);
        assert!(read.was_used_within(minute, NOW) && read.was_used_within(minute, NOW + minute));
        assert!(!read.was_used_within(minute, NOW + minute + Duration::from_secs(3)));
        assert!(!unread.was_used_within(minute, NOW));
        let replacing = kept(6, whole());
        replacing.used_as(&read);
        assert!(replacing.was_used_within(minute, NOW));
        replacing.used_as(&unread);
        assert!(!replacing.was_used_within(minute, NOW));
    }
}
