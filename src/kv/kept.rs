//! What is kept of a key: a value or a known absence, its version, and the moment it was last known to be current.
//!
//! Tiers keep these by the million, and the doors answer from them. So a state with all that belongs to it is *one* allocation behind one thin
//! pointer, and to look at it, or to hold on to it, allocates nothing. Only a long value stays in the pieces in which it came.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use triomphe::ThinArc;

use super::{Answer, CacheStatus, Entry, Held, Key, NamespaceId, Read, State, Value, Version};
use crate::{clock::Moment, limits};

/// Where an entry is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EntryKey {
    pub namespace: NamespaceId,
    pub key: Key,
}

/// The same, borrowed: to look for it nothing is copied, and its bytes need not be those of a legal key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name<'a> {
    pub namespace: NamespaceId,
    pub key: &'a [u8],
}

impl<'a> From<&'a EntryKey> for Name<'a> {
    fn from(key: &'a EntryKey) -> Name<'a> {
        Name { namespace: key.namespace, key: key.key.as_bytes() }
    }
}

/// A state that a tier keeps, or shares among those who asked together. Never changed, but for when it was last verified and used. A clone is
/// the same one, and costs a count.
#[derive(Clone)]
pub struct Kept(ThinArc<Header, u8>);

/// What stands before the bytes: those of the key, then of the expiration if it has one, of the metadata and of the value. There are millions of
/// these, so each field's size counts (docs/decisions/0003-cache-policy.md).
struct Header {
    version: Version,
    /// When it expires, by this process's clock; [`Moment::MAX`] for never. Falls early by at most a trip, never late (P2).
    expires_at: AtomicU64,
    /// A moment at which the state is known to have been current; only ever moves on.
    verified_at: AtomicU64,
    /// The feed covers it, if the continuity began no later than this; only ever moves on.
    covered_from: AtomicU64,
    apart: Arc<Apart>,
    /// When it was last answered to a reader, in units of [`USED_UNIT_NANOS`]; zero for never.
    used_at: AtomicU32,
    shape: Shape,
}

/// What is not in the allocation. All packed states of a namespace share one, so that each takes a pointer and not an id.
struct Apart {
    namespace: NamespaceId,
    /// What is too long to be copied between the other bytes.
    large: Option<Large>,
}

struct Large {
    value: KeptValue,
    metadata: Option<Bytes>,
}

/// The shared ones. They change nothing that anyone could see, so they may be the process's.
static SHARED: Mutex<Shared> = Mutex::new(Shared { of: BTreeMap::new(), swept_at: SWEPT_AT_MIN });

struct Shared {
    of: BTreeMap<NamespaceId, Arc<Apart>>,
    /// At how many those are looked for that nobody uses any longer.
    swept_at: usize,
}

const SWEPT_AT_MIN: usize = 64;

impl Shared {
    fn get(&mut self, namespace: NamespaceId) -> Arc<Apart> {
        if let Some(apart) = self.of.get(&namespace) {
            return Arc::clone(apart);
        }
        if self.of.len() >= self.swept_at {
            self.of.retain(|_, apart| Arc::strong_count(apart) > 1);
            self.swept_at = (self.of.len() * 2).max(SWEPT_AT_MIN);
        }
        let apart = Arc::new(Apart { namespace, large: None });
        self.of.insert(namespace, Arc::clone(&apart));
        apart
    }
}

/// Values up to this length are packed: copied once, when they are filled in or written.
pub const PACKED_VALUE_BYTES_MAX: usize = 64 * 1024;
/// Metadata up to this length is packed with its value. Records of tokens may be longer.
const PACKED_METADATA_BYTES_MAX: usize = 64 * 1024;

/// Where in the bytes each part lies, and which parts there are.
#[derive(Clone, Copy)]
struct Shape(u32);

impl Shape {
    const PRESENT: u32 = 1 << 31;
    const EXPIRATION: u32 = 1 << 30;
    const METADATA: u32 = 1 << 29;
    const KEY_BITS: u32 = 10;
    const METADATA_BITS: u32 = 17;

    fn key_length(self) -> usize {
        (self.0 & ((1 << Shape::KEY_BITS) - 1)) as usize
    }

    fn metadata_length(self) -> usize {
        (self.0 >> Shape::KEY_BITS & ((1 << Shape::METADATA_BITS) - 1)) as usize
    }

    fn has(self, part: u32) -> bool {
        self.0 & part != 0
    }

    fn expiration_length(self) -> usize {
        if self.has(Shape::EXPIRATION) { size_of::<u64>() } else { 0 }
    }

    fn value_start(self) -> usize {
        self.key_length() + self.expiration_length() + self.metadata_length()
    }
}

const _: () = assert!(limits::KEY_BYTES_MAX < 1 << Shape::KEY_BITS);
const _: () = assert!(PACKED_METADATA_BYTES_MAX < 1 << Shape::METADATA_BITS);
const _: () = assert!(Shape::KEY_BITS + Shape::METADATA_BITS <= 29);

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

/// What a state is made of.
#[derive(Clone, Debug)]
pub enum Content {
    Present { value: KeptValue, metadata: Option<Bytes>, expiration: Option<u64> },
    Absent,
}

#[derive(Clone, Debug)]
pub enum KeptValue {
    /// Up to [`PACKED_VALUE_BYTES_MAX`] it is copied. A longer one is kept as it is, so it must be no slice of something longer still.
    Whole(Bytes),
    /// A large value, in pieces of [`crate::limits::CHUNK_BYTES`].
    Parts(Arc<[Bytes]>),
}

/// A state that can be answered at once, and what is known of it at this moment. Expiry has been judged; cheap to make and to pass on.
#[derive(Clone, Debug)]
pub struct Hit {
    pub kept: Kept,
    /// An upper bound on how long ago the state was last known to be current.
    pub age: Duration,
    /// Whether the feed of whoever answered covers it.
    pub covered: bool,
    /// When it was looked up: what is left until it expires counts from here.
    pub now: Moment,
    pub status: CacheStatus,
}

impl KeptValue {
    /// Of bytes that may be a slice of something longer.
    pub fn of_slice(bytes: &Bytes) -> KeptValue {
        let packed = bytes.len() <= PACKED_VALUE_BYTES_MAX;
        KeptValue::Whole(if packed { bytes.clone() } else { Bytes::copy_from_slice(bytes) })
    }
}

impl Large {
    fn new(value: KeptValue, metadata: Option<Bytes>) -> Large {
        let value = match value {
            KeptValue::Whole(bytes) if bytes.len() <= PACKED_VALUE_BYTES_MAX => {
                KeptValue::Whole(Bytes::copy_from_slice(&bytes))
            }
            long => long,
        };
        Large { value, metadata: metadata.as_deref().map(Bytes::copy_from_slice) }
    }
}

impl Hit {
    /// The answer in its general form, which any source may give. It allocates; what answers hits by the hundred thousand reads `kept` instead.
    pub fn answer(self, read: &Read) -> Answer {
        let Hit { kept, age, covered, now, status } = self;
        kept.answer(read, age, covered, now, status)
    }
}

impl Kept {
    pub fn new(key: &EntryKey, version: Version, content: Content, expires_at: Moment, verified: Verified) -> Kept {
        let name = key.key.as_bytes();
        let mut shape = u32::try_from(name.len()).expect("keys are short");
        let mut bytes;
        let mut large = None;
        match content {
            Content::Absent => bytes = name.to_vec(),
            Content::Present { value, metadata, expiration } => {
                shape |= Shape::PRESENT;
                let packed = match &value {
                    KeptValue::Whole(value)
                        if value.len() <= PACKED_VALUE_BYTES_MAX
                            && metadata.as_ref().map_or(0, Bytes::len) <= PACKED_METADATA_BYTES_MAX =>
                    {
                        Some((&value[..], metadata.as_deref()))
                    }
                    _ => None,
                };
                let (packed_value, packed_metadata) = packed.unwrap_or_default();
                let before = name.len() + size_of::<u64>() + packed_metadata.map_or(0, <[u8]>::len);
                bytes = Vec::with_capacity(before + packed_value.len());
                bytes.extend_from_slice(name);
                if let Some(expiration) = expiration {
                    shape |= Shape::EXPIRATION;
                    bytes.extend_from_slice(&expiration.to_be_bytes());
                }
                if let Some(metadata) = packed_metadata {
                    shape |= Shape::METADATA | (metadata.len() as u32) << Shape::KEY_BITS;
                    bytes.extend_from_slice(metadata);
                }
                bytes.extend_from_slice(packed_value);
                if packed.is_none() {
                    large = Some(Large::new(value, metadata));
                }
            }
        }
        let apart = match large {
            None => SHARED.lock().expect("no holder of this lock can panic").get(key.namespace),
            Some(large) => Arc::new(Apart { namespace: key.namespace, large: Some(large) }),
        };
        let header = Header {
            version,
            expires_at: AtomicU64::new(expires_at.as_nanos()),
            verified_at: AtomicU64::new(verified.at.as_nanos()),
            covered_from: AtomicU64::new(verified.covered_from.as_nanos()),
            apart,
            used_at: AtomicU32::new(0),
            shape: Shape(shape),
        };
        Kept(ThinArc::from_header_and_slice(header, &bytes))
    }

    fn header(&self) -> &Header {
        &self.0.header.header
    }

    fn large(&self) -> Option<&Large> {
        self.header().apart.large.as_ref()
    }

    fn shape(&self) -> Shape {
        self.header().shape
    }

    /// Where it is kept.
    pub fn name(&self) -> Name<'_> {
        Name { namespace: self.header().apart.namespace, key: &self.0.slice[..self.shape().key_length()] }
    }

    /// The same, for whoever asks about it.
    pub fn entry_key(&self) -> EntryKey {
        let Name { namespace, key } = self.name();
        let key = Key::new(Bytes::copy_from_slice(key)).expect("it was a key when the state was made");
        EntryKey { namespace, key }
    }

    pub fn version(&self) -> Version {
        self.header().version
    }

    pub fn is_present(&self) -> bool {
        self.shape().has(Shape::PRESENT)
    }

    /// The value, where it is there and in one piece.
    pub fn value(&self) -> Option<&[u8]> {
        match self.large() {
            Some(large) => match &large.value {
                KeptValue::Whole(bytes) => Some(bytes),
                KeptValue::Parts(_) => None,
            },
            None => self.is_present().then(|| &self.0.slice[self.shape().value_start()..]),
        }
    }

    /// The value, where it is too long to be packed.
    pub fn large_value(&self) -> Option<&KeptValue> {
        self.large().map(|large| &large.value)
    }

    /// JSON text, exactly as it was written.
    pub fn metadata(&self) -> Option<&[u8]> {
        if let Some(large) = self.large() {
            return large.metadata.as_deref();
        }
        let shape = self.shape();
        let end = shape.value_start();
        shape.has(Shape::METADATA).then(|| &self.0.slice[end - shape.metadata_length()..end])
    }

    /// Absolute Unix seconds, to show to people. Whether it has expired is told by [`Kept::expires_at`].
    pub fn expiration(&self) -> Option<u64> {
        let at = self.shape().key_length();
        let bytes = self.shape().has(Shape::EXPIRATION).then(|| &self.0.slice[at..at + size_of::<u64>()])?;
        Some(u64::from_be_bytes(bytes.try_into().expect("it is as long as it was made")))
    }

    pub fn expires_at(&self) -> Moment {
        Moment::from_nanos(self.header().expires_at.load(Ordering::Acquire))
    }

    pub fn is_expired(&self, now: Moment) -> bool {
        now >= self.expires_at()
    }

    /// Time left until it expires; `None` for never.
    pub fn time_left(&self, now: Moment) -> Option<Duration> {
        match self.expires_at() {
            Moment::MAX => None,
            expires_at => Some(expires_at.since(now)),
        }
    }

    /// Whether both are the very same one, not only alike.
    pub fn is(&self, other: &Kept) -> bool {
        std::ptr::eq(self.0.as_ptr(), other.0.as_ptr())
    }

    /// Notes that a reader was answered with it.
    pub fn used(&self, now: Moment) {
        let unit = used_unit(now);
        let used_at = &self.header().used_at;
        if used_at.load(Ordering::Relaxed) != unit {
            used_at.store(unit, Ordering::Relaxed);
        }
    }

    /// It takes the place of an entry, and is as much in use.
    pub fn used_as(&self, replaced: &Kept) {
        self.header().used_at.store(replaced.header().used_at.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether a reader was answered with it within the last `duration`, or about a second more.
    pub fn was_used_within(&self, duration: Duration, now: Moment) -> bool {
        let used_at = self.header().used_at.load(Ordering::Relaxed);
        used_at != 0 && used_at >= used_unit(now - duration)
    }

    pub fn verified_at(&self) -> Moment {
        Moment::from_nanos(self.header().verified_at.load(Ordering::Acquire))
    }

    pub fn verified(&self) -> Verified {
        let covered_from = Moment::from_nanos(self.header().covered_from.load(Ordering::Acquire));
        Verified { at: self.verified_at(), covered_from }
    }

    /// The same state was found current once more. An older proof than the one held changes nothing.
    pub fn renew(&self, verified: Verified, expires_at: Option<Moment>) {
        let header = self.header();
        header.verified_at.fetch_max(verified.at.as_nanos(), Ordering::AcqRel);
        header.covered_from.fetch_max(verified.covered_from.as_nanos(), Ordering::AcqRel);
        // Each deadline falls early, never late; so the later of two is right, too, and nearer.
        if let Some(expires_at) = expires_at {
            header.expires_at.fetch_max(expires_at.as_nanos(), Ordering::AcqRel);
        }
    }

    /// What the state is, to name it in a question upstream.
    pub fn held(&self) -> Held {
        Held { version: self.version(), present: self.is_present() }
    }

    /// Whether an asker that holds this much may be told that nothing has changed.
    pub fn unchanged(&self, held: Option<Held>) -> bool {
        held.is_some_and(|held| match self.is_present() {
            true => held.present && held.version == self.version(),
            // A later absence proves an earlier one, never the other way around (P3).
            false => !held.present && held.version <= self.version(),
        })
    }

    /// The answer to a read, at this moment, of a state known to have been current `age` ago. An expired entry has none: the caller has looked.
    pub fn answer(&self, read: &Read, age: Duration, covered: bool, now: Moment, status: CacheStatus) -> Answer {
        let time_left = self.time_left(now);
        let state = if self.unchanged(read.held) {
            State::Unchanged { time_left }
        } else if self.is_present() {
            let (value, metadata) = match self.large() {
                None => {
                    let value = Bytes::from_owner(PackedValue(self.clone())).into();
                    (value, self.metadata().map(Bytes::copy_from_slice))
                }
                Some(large) => {
                    let value = match &large.value {
                        KeptValue::Whole(bytes) => Value::Whole(bytes.clone()),
                        KeptValue::Parts(parts) => Value::Parts(Arc::clone(parts)),
                    };
                    (value, large.metadata.clone())
                }
            };
            State::Present(Entry { value, metadata, expiration: self.expiration(), time_left })
        } else {
            State::Absent
        };
        Answer { state, version: self.version(), age, covered, status }
    }

    /// Bytes of the value and the metadata.
    pub fn length(&self) -> usize {
        match self.large() {
            None => self.0.slice.len() - self.shape().key_length() - self.shape().expiration_length(),
            Some(large) => {
                let value = match &large.value {
                    KeptValue::Whole(bytes) => bytes.len(),
                    KeptValue::Parts(parts) => parts.iter().map(Bytes::len).sum(),
                };
                value + large.metadata.as_ref().map_or(0, Bytes::len)
            }
        }
    }
}

/// Says nothing of key, value and metadata: they are their owner's.
impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Kept");
        shown.field("version", &self.version()).field("present", &self.is_present()).field("bytes", &self.length());
        shown.finish_non_exhaustive()
    }
}

/// A packed value as the owner of its bytes, so that an answer need not copy it.
struct PackedValue(Kept);

impl AsRef<[u8]> for PackedValue {
    fn as_ref(&self) -> &[u8] {
        self.0.value().expect("it is there, and packed")
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

    fn key() -> EntryKey {
        EntryKey { namespace: NamespaceId::from_u128(7), key: Key::new("k").unwrap() }
    }

    fn kept(version: u64, value: Option<KeptValue>) -> Kept {
        let content = match value {
            Some(value) => Content::Present { value, metadata: Some(Bytes::from_static(b"{}")), expiration: Some(9) },
            None => Content::Absent,
        };
        let (version, expires_at) = (Version::from_u64(version), NOW + Duration::from_secs(5));
        Kept::new(&key(), version, content, expires_at, Verified::at(Moment::ZERO))
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
            assert_eq!(answer.version, kept.version());
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

    fn check_parts(name: &str, value: KeptValue, metadata: Option<Bytes>, expiration: Option<u64>) {
        let key =
            EntryKey { namespace: NamespaceId::from_u128(u128::MAX - 1), key: Key::new(name.to_owned()).unwrap() };
        let content = Content::Present { value: value.clone(), metadata: metadata.clone(), expiration };
        let kept = Kept::new(&key, Version::from_u64(5), content, Moment::MAX, Verified::at(Moment::ZERO));
        assert!(kept.name() == Name::from(&key) && kept.entry_key() == key && kept.is_present());
        assert_eq!(kept.metadata(), metadata.as_deref());
        assert_eq!((kept.expiration(), kept.time_left(NOW)), (expiration, None));
        let whole = match value {
            KeptValue::Whole(bytes) => {
                assert_eq!(kept.value(), Some(&bytes[..]));
                bytes
            }
            KeptValue::Parts(parts) => {
                assert_eq!(kept.value(), None);
                parts.concat().into()
            }
        };
        assert_eq!(kept.length(), whole.len() + metadata.as_ref().map_or(0, Bytes::len));
        let answer = kept.answer(&Read::default(), Duration::ZERO, false, NOW, CacheStatus::Hit);
        let State::Present(entry) = answer.state else { panic!("it is there") };
        let value = futures_util::FutureExt::now_or_never(entry.value.collect(u64::MAX)).expect("all is here").unwrap();
        assert_eq!((value, entry.metadata, entry.expiration), (whole, metadata, expiration));
    }

    #[test]
    fn all_parts_come_back_packed_or_not() {
        let bytes = |length: usize| Bytes::from(vec![b'b'; length]);
        for (value, metadata) in [
            (0, None),
            (0, Some(0)),
            (PACKED_VALUE_BYTES_MAX, Some(PACKED_METADATA_BYTES_MAX)),
            (PACKED_VALUE_BYTES_MAX + 1, Some(limits::METADATA_BYTES_MAX)),
            (PACKED_VALUE_BYTES_MAX + 1, None),
            (5, Some(PACKED_METADATA_BYTES_MAX + 1)),
        ] {
            let longest = "k".repeat(limits::KEY_BYTES_MAX);
            for (name, expiration) in [("k", None), (&longest, Some(u64::MAX))] {
                check_parts(name, KeptValue::Whole(bytes(value)), metadata.map(bytes), expiration);
                let parts = KeptValue::Parts([bytes(value), bytes(7)].into());
                check_parts(name, parts, metadata.map(bytes), expiration);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn all_parts_come_back_whatever_they_are(
            name in "[a-z]{3,40}",
            value: Vec<u8>,
            metadata: Option<Vec<u8>>,
            expiration: Option<u64>,
        ) {
            check_parts(&name, KeptValue::Whole(value.into()), metadata.map(Bytes::from), expiration);
        }
    }

    #[test]
    fn namespaces_that_nothing_is_kept_of_any_longer_are_forgotten() {
        let mut shared = Shared { of: BTreeMap::new(), swept_at: SWEPT_AT_MIN };
        let held: Vec<_> = (0..100).map(|id| shared.get(NamespaceId::from_u128(id))).collect();
        (1000..10_000).for_each(|id| _ = shared.get(NamespaceId::from_u128(id)));
        assert!(shared.of.len() <= 400, "{} are known", shared.of.len());
        for (id, apart) in held.iter().enumerate() {
            assert!(Arc::ptr_eq(apart, &shared.get(NamespaceId::from_u128(id as u128))));
        }
    }

    /// The figure that docs/decisions/0003-cache-policy.md counts with.
    #[test]
    fn what_stands_before_the_bytes_takes_64_bytes_with_its_counts() {
        assert_eq!(size_of::<Header>() + 2 * size_of::<usize>(), 64);
        assert_eq!(size_of::<Option<Kept>>(), size_of::<usize>());
    }

    #[test]
    fn what_is_absent_has_a_name_and_no_parts() {
        let kept = kept(5, None);
        assert!(kept.name() == Name::from(&key()) && !kept.is_present());
        assert_eq!((kept.value(), kept.metadata(), kept.expiration()), (None, None, None));
    }

    /// A packed value keeps nothing else alive; a clone is the same state.
    #[test]
    fn a_short_value_is_copied_and_a_clone_is_the_same() {
        let frame = Bytes::from(vec![b'f'; 1000]);
        let content = Content::Present {
            value: KeptValue::of_slice(&frame.slice(3..8)),
            metadata: Some(frame.slice(9..12)),
            expiration: None,
        };
        let kept = Kept::new(&key(), Version::from_u64(5), content, Moment::MAX, Verified::at(Moment::ZERO));
        assert!(frame.is_unique());
        let clone = kept.clone();
        clone.renew(Verified::at(NOW), None);
        assert!(kept.is(&clone) && kept.verified_at() == NOW);
        assert!(!kept.is(&self::kept(5, whole())));
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
