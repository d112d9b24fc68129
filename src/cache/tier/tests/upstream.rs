//! An upstream that does as it is told.

use super::*;

/// A key's last write: its version, its value unless it deleted, and when it expires.
type LastWrite = (Version, Option<Bytes>, Option<Moment>);

/// An origin that is always current, a trip away, and can be held up, stopped or made to fail.
pub(super) struct Upstream {
    pub(super) clock: Arc<ManualClock>,
    pub(super) states: Mutex<HashMap<Key, LastWrite>>,
    pub(super) last: AtomicU64,
    pub(super) questions: Mutex<Vec<Read>>,
    /// How old its answers are.
    pub(super) age: Mutex<Duration>,
    /// Whether its feed covers its answers.
    pub(super) covered: Mutex<bool>,
    pub(super) status: Mutex<CacheStatus>,
    pub(super) failure: Mutex<Option<Kind>>,
    /// Questions wait here, after they have been answered in substance, while it is set.
    pub(super) held_up: Mutex<Option<Arc<Notify>>>,
    pub(super) waiting: AtomicUsize,
    pub(super) streaming: Mutex<bool>,
    /// Held by each value that is on its way.
    pub(super) streams: Arc<()>,
    pub(super) feed: Feed,
    /// How often it was followed.
    pub(super) followed: AtomicUsize,
}

impl Upstream {
    pub(super) fn new(clock: &Arc<ManualClock>) -> Arc<Upstream> {
        Arc::new(Upstream {
            clock: Arc::clone(clock),
            states: Mutex::default(),
            last: AtomicU64::new(100),
            questions: Mutex::default(),
            age: Mutex::default(),
            covered: Mutex::new(true),
            status: Mutex::new(CacheStatus::Bypass),
            failure: Mutex::default(),
            held_up: Mutex::default(),
            waiting: AtomicUsize::new(0),
            streaming: Mutex::default(),
            streams: Arc::default(),
            feed: Feed::new(Arc::new(Arc::clone(clock)), &FeedSettings::default(), Some(Default::default())),
            followed: AtomicUsize::new(0),
        })
    }

    pub(super) fn set(&self, key: &Key, value: Option<&[u8]>, left: Option<Duration>) -> Version {
        let version = Version::from_u64(self.last.fetch_add(1, Ordering::SeqCst) + 1);
        let expires_at = left.map(|left| self.clock.now() + left);
        self.states.lock().unwrap().insert(key.clone(), (version, value.map(Bytes::copy_from_slice), expires_at));
        version
    }

    pub(super) fn asked(&self) -> usize {
        self.questions.lock().unwrap().len()
    }

    pub(super) fn fail(&self, kind: Option<Kind>) {
        *self.failure.lock().unwrap() = kind;
    }

    pub(super) fn hold_up(&self) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        *self.held_up.lock().unwrap() = Some(Arc::clone(&notify));
        notify
    }

    pub(super) fn failure(&self) -> Result<()> {
        match *self.failure.lock().unwrap() {
            Some(kind) => Err(Error::new(kind, "told to fail")),
            None => Ok(()),
        }
    }

    pub(super) fn now(&self, key: &Key, read: &Read) -> Answer {
        let safe = Version::from_u64(self.last.load(Ordering::SeqCst));
        let age = *self.age.lock().unwrap();
        let state = self.states.lock().unwrap().get(key).cloned();
        let (state, version) = match state {
            Some((version, Some(value), expires_at)) if expires_at.is_none_or(|at| at > self.clock.now()) => {
                let time_left = expires_at.map(|at| at.since(self.clock.now()));
                if read.held.is_some_and(|held| held.present && held.version == version) {
                    (State::Unchanged { time_left }, version)
                } else {
                    let value = match *self.streaming.lock().unwrap() {
                        false => Value::Whole(value),
                        true => {
                            let length = Some(value.len() as u64);
                            let chunks: Vec<_> = value.chunks(10_000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
                            let held = Arc::clone(&self.streams);
                            let chunks = futures_util::stream::iter(chunks).inspect(move |_| {
                                let _ = &held;
                            });
                            Value::Stream(ValueStream { length, chunks: chunks.boxed() })
                        }
                    };
                    (State::Present(Entry { value, metadata: None, expiration: None, time_left }), version)
                }
            }
            _ if read.held.is_some_and(|held| !held.present && held.version <= safe) => {
                (State::Unchanged { time_left: None }, safe)
            }
            _ => (State::Absent, safe),
        };
        Answer { state, version, age, covered: *self.covered.lock().unwrap(), status: *self.status.lock().unwrap() }
    }
}

#[async_trait]
impl Source for Upstream {
    fn held(&self, _: NamespaceId, _: &[u8], _: &Read) -> Option<Hit> {
        None
    }

    async fn get(&self, namespace: NamespaceId, key: &Key, read: &Read) -> Result<Answer> {
        read.asker.into_iter().for_each(|asker| self.feed.note(asker, namespace, key.as_bytes()));
        self.questions.lock().unwrap().push(read.clone());
        let answer = self.failure().map(|()| self.now(key, read));
        let held_up = self.held_up.lock().unwrap().clone();
        if let Some(held_up) = held_up {
            self.waiting.fetch_add(1, Ordering::SeqCst);
            held_up.notified().await;
        }
        answer
    }

    async fn list(&self, _: NamespaceId, _: &List) -> Result<Page> {
        self.failure().map(|()| Page { keys: Vec::new(), cursor: None })
    }

    async fn follow(&self, follow: Follow, pings: Frames) -> Result<Frames> {
        self.failure()?;
        self.followed.fetch_add(1, Ordering::SeqCst);
        Ok(self.feed.follow(follow, pings))
    }
}

#[async_trait]
impl Writer for Upstream {
    async fn write(&self, namespace: NamespaceId, key: &Key, change: Change, via: Via) -> Result<Written> {
        self.failure()?;
        let value = match change {
            Change::Delete => None,
            Change::Put { value, .. } => Some(value.collect(crate::limits::VALUE_BYTES_MAX).await?),
        };
        let version = self.set(key, value.as_deref(), None);
        via.follower.into_iter().for_each(|by| self.feed.note(by, namespace, key.as_bytes()));
        Ok(Written { version, expiration: None, time_left: None })
    }

    async fn write_many(
        &self,
        namespace: NamespaceId,
        writes: Vec<(Key, Change)>,
        via: Via,
    ) -> Result<Vec<Result<Written>>> {
        let mut outcomes = Vec::new();
        for (key, change) in writes {
            outcomes.push(self.write(namespace, &key, change, via).await);
        }
        Ok(outcomes)
    }

    async fn control(&self, _: AccountId, _: Control) -> Result<(Controlled, Version)> {
        Ok((Controlled::Done, Version::from_u64(self.last.load(Ordering::SeqCst))))
    }
}
