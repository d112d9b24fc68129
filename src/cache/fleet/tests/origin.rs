//! Origins on one store that do as they are told, each with a feed that says what it is told to.

use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};

use super::*;
use crate::{
    kv::{
        CacheStatus, Entry, State,
        feed::{Echo, Item, Members, Position, Proof, Purge},
    },
    wire::feed::{self as wire, Decoder, EncodedItem, ItemsFrame},
};

/// What all origins have in common.
#[derive(Default)]
pub(super) struct Store {
    pub(super) values: Mutex<HashMap<Key, (Version, Option<Bytes>)>>,
    pub(super) last: AtomicU64,
    /// What each named write became.
    named: Mutex<HashMap<(WriteId, Key), Version>>,
    /// Writes that took effect, in order.
    pub(super) written: Mutex<Vec<Key>>,
    pub(super) controlled: AtomicUsize,
}

/// How an origin answers what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Well,
    /// After so long.
    Slow(Duration),
    /// Nobody takes its connections.
    Gone,
    /// It takes what it is asked, and never says anything.
    Mute,
    /// The same, but the write takes effect.
    MuteAfterwards,
    /// It answers that it can't, having done nothing, or having said nothing of that.
    Refusing,
    Failing,
    /// It answers that the request is wrong.
    Rejecting,
    /// It answers that it can't, but the write takes effect.
    FailingAfterwards,
}

pub(super) struct Origin {
    clock: Arc<ManualClock>,
    pub(super) store: Arc<Store>,
    pub(super) reading: Mutex<Mood>,
    pub(super) writing: Mutex<Mood>,
    /// Keys whose writes it does not take, in calls with many.
    pub(super) busy_keys: Mutex<HashSet<Key>>,
    pub(super) reads: Mutex<Vec<Read>>,
    pub(super) writes: Mutex<Vec<Via>>,
    pub(super) under_way: AtomicUsize,
    pub(super) process: Mutex<Arc<Process>>,
}

/// What ends with the process.
pub(super) struct Process {
    pub(super) epoch: u64,
    items: Mutex<Vec<Item>>,
    members: Mutex<Option<Members>>,
    pub(super) proves: AtomicBool,
    /// Its links are open, and it says nothing.
    pub(super) silent: AtomicBool,
    ended: AtomicBool,
    changed: Notify,
    /// Links that are open end with it.
    links: Mutex<CancellationToken>,
    pub(super) followed: Mutex<Vec<Follow>>,
    pub(super) pings: AtomicUsize,
}

impl Process {
    fn new(epoch: u64) -> Arc<Process> {
        Arc::new(Process {
            epoch,
            items: Mutex::default(),
            members: Mutex::default(),
            proves: AtomicBool::new(true),
            silent: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            changed: Notify::new(),
            links: Mutex::default(),
            followed: Mutex::default(),
            pings: AtomicUsize::new(0),
        })
    }

    pub(super) fn lists(&self, joined: u64, list: &[(u64, &str)]) {
        let list = list.iter().map(|(epoch, address)| Member { epoch: *epoch, address: (*address).into() }).collect();
        *self.members.lock().unwrap() = Some(Members { joined, list });
        self.changed.notify_waiters();
    }

    pub(super) fn says(&self, item: Item) {
        self.items.lock().unwrap().push(item);
        self.changed.notify_waiters();
    }

    pub(super) fn ends(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    pub(super) fn break_links(&self) {
        std::mem::take(&mut *self.links.lock().unwrap()).cancel();
    }

    fn follow(self: &Arc<Process>, follow: Follow, pings: Frames) -> Frames {
        self.followed.lock().unwrap().push(follow);
        let last = self.items.lock().unwrap().len();
        let from = follow.from.filter(|from| from.epoch == self.epoch && from.sequence <= last as u64);
        let sent = from.map_or(last, |from| from.sequence as usize);
        let mut greeting = BytesMut::new();
        let position = Position { epoch: self.epoch, sequence: sent as u64 };
        wire::put_start(&mut greeting, position, from.is_some());
        let link = Link {
            process: Arc::clone(self),
            broken: self.links.lock().unwrap().clone(),
            pings,
            decoder: Decoder::default(),
            sent,
            listed: None,
            ended: false,
            out: greeting,
        };
        stream::unfold(link, async |mut link| Some((Ok(link.next().await?), link))).boxed()
    }
}

struct Link {
    process: Arc<Process>,
    broken: CancellationToken,
    pings: Frames,
    decoder: Decoder,
    sent: usize,
    listed: Option<Members>,
    ended: bool,
    out: BytesMut,
}

impl Link {
    async fn next(&mut self) -> Option<Bytes> {
        let process = Arc::clone(&self.process);
        loop {
            let changed = process.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if process.silent.load(Ordering::SeqCst) {
                changed.await;
                continue;
            }
            self.gather(&[]);
            if !self.out.is_empty() {
                return Some(self.out.split().freeze());
            }
            if self.ended {
                return None;
            }
            tokio::select! {
                biased;
                () = self.broken.cancelled() => return None,
                () = changed => {}
                ping = self.pings.next() => {
                    self.decoder.add(&ping?.ok()?);
                    let mut stamps = Vec::new();
                    while let Some(stamp) = self.decoder.ping().unwrap() {
                        process.pings.fetch_add(1, Ordering::SeqCst);
                        stamps.push(stamp);
                    }
                    self.gather(&stamps);
                }
            }
        }
    }

    fn gather(&mut self, stamps: &[u64]) {
        let process = &self.process;
        let members = process.members.lock().unwrap().clone();
        if members != self.listed {
            members.iter().for_each(|members| wire::put_members(&mut self.out, members));
            self.listed = members;
        }
        let items = process.items.lock().unwrap();
        if items.len() > self.sent {
            let frame = ItemsFrame::begin(&mut self.out, self.sent as u64 + 1);
            items[self.sent..].iter().for_each(|item| EncodedItem::new(item).put(&mut self.out, true));
            frame.end(&mut self.out);
            self.sent = items.len();
        }
        for stamp in stamps {
            let proof = Proof { age: Duration::ZERO, version: Version::from_u64(process.epoch) };
            let proof = process.proves.load(Ordering::SeqCst).then_some(proof);
            wire::put_echo(&mut self.out, Echo { stamp: *stamp, proof });
        }
        if process.ended.load(Ordering::SeqCst) && !self.ended {
            wire::put_end(&mut self.out);
            self.ended = true;
        }
    }
}

impl Origin {
    pub(super) fn new(clock: &Arc<ManualClock>, store: &Arc<Store>, epoch: u64) -> Arc<Origin> {
        Arc::new(Origin {
            clock: Arc::clone(clock),
            store: Arc::clone(store),
            reading: Mutex::new(Mood::Well),
            writing: Mutex::new(Mood::Well),
            busy_keys: Mutex::default(),
            reads: Mutex::default(),
            writes: Mutex::default(),
            under_way: AtomicUsize::new(0),
            process: Mutex::new(Process::new(epoch)),
        })
    }

    pub(super) fn is(&self, mood: Mood) {
        *self.reading.lock().unwrap() = mood;
        *self.writing.lock().unwrap() = mood;
    }

    pub(super) fn process(&self) -> Arc<Process> {
        Arc::clone(&self.process.lock().unwrap())
    }

    /// Another process takes its address.
    pub(super) fn restart(&self, epoch: u64) -> Arc<Process> {
        let next = Process::new(epoch);
        std::mem::replace(&mut *self.process.lock().unwrap(), Arc::clone(&next)).break_links();
        next
    }

    /// A write of somebody else's, and its purge.
    pub(super) fn change(&self, name: &str, value: &'static str) -> Version {
        let version = self.store.put(&key(name), Some(Bytes::from_static(value.as_bytes())));
        let purge = Purge { namespace: NAMESPACE, key: key(name), version, state: None };
        self.process().says(Item::Purge(purge));
        version
    }

    pub(super) fn asked(&self) -> usize {
        self.reads.lock().unwrap().len()
    }

    pub(super) fn handed_in(&self) -> usize {
        self.writes.lock().unwrap().len()
    }

    async fn in_mood<T>(&self, mood: Mood, work: impl Future<Output = Result<T>>) -> Result<T> {
        let _under_way = UnderWay::new(&self.under_way);
        match mood {
            Mood::Well => {}
            Mood::Slow(time) => self.clock.sleep(time).await,
            Mood::Gone => return Err(Error::new(Kind::Unreachable, "connection refused").and_untaken()),
            Mood::Mute => std::future::pending().await,
            Mood::MuteAfterwards => {
                work.await?;
                return std::future::pending().await;
            }
            Mood::FailingAfterwards => {
                work.await?;
                return Err(Error::unavailable("it is not known whether").from_elsewhere());
            }
            Mood::Rejecting => return Err(Error::bad_request("what is this").from_elsewhere()),
            Mood::Refusing => return Err(Error::unavailable("takes none").from_elsewhere().and_untaken()),
            Mood::Failing => return Err(Error::unavailable("could not").from_elsewhere()),
        }
        work.await
    }

    async fn take(&self, key: &Key, change: Change, via: Via) -> Result<Written> {
        if via.to.is_some_and(|meant| meant != self.process().epoch) {
            return Err(Error::unavailable("meant for the one that was here before").from_elsewhere().and_untaken());
        }
        let value = match change {
            Change::Delete => None,
            Change::Put { value, .. } => Some(value.collect(1 << 20).await?),
        };
        let named = via.id.map(|id| (id.name(), key.clone()));
        let known = named.as_ref().and_then(|named| self.store.named.lock().unwrap().get(named).copied());
        let version = known.unwrap_or_else(|| {
            self.store.written.lock().unwrap().push(key.clone());
            self.store.put(key, value)
        });
        named.map(|named| self.store.named.lock().unwrap().insert(named, version));
        Ok(Written { version, expiration: None, time_left: None })
    }
}

impl Store {
    fn put(&self, key: &Key, value: Option<Bytes>) -> Version {
        let version = Version::from_u64(self.last.fetch_add(1, Ordering::SeqCst) + 1);
        self.values.lock().unwrap().insert(key.clone(), (version, value));
        version
    }
}

struct UnderWay<'a>(&'a AtomicUsize);

impl UnderWay<'_> {
    fn new(count: &AtomicUsize) -> UnderWay<'_> {
        count.fetch_add(1, Ordering::SeqCst);
        UnderWay(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Source for Origin {
    fn held(&self, _: NamespaceId, _: &[u8], _: &Read) -> Option<Hit> {
        None
    }

    async fn get(&self, _: NamespaceId, key: &Key, read: &Read) -> Result<Answer> {
        self.reads.lock().unwrap().push(read.clone());
        let mood = *self.reading.lock().unwrap();
        self.in_mood(mood, async {
            let (version, value) = self.store.values.lock().unwrap().get(key).cloned().unwrap_or_default();
            let state = value.map_or(State::Absent, |value| {
                State::Present(Entry { value: value.into(), metadata: None, expiration: None, time_left: None })
            });
            Ok(Answer { state, version, age: Duration::ZERO, covered: true, status: CacheStatus::Bypass })
        })
        .await
    }

    async fn list(&self, _: NamespaceId, _: &List) -> Result<Page> {
        self.reads.lock().unwrap().push(Read::latest());
        let mood = *self.reading.lock().unwrap();
        self.in_mood(mood, async { Ok(Page { keys: Vec::new(), cursor: None }) }).await
    }

    async fn follow(&self, follow: Follow, pings: Frames) -> Result<Frames> {
        match *self.reading.lock().unwrap() {
            Mood::Gone => Err(Error::new(Kind::Unreachable, "connection refused")),
            Mood::Mute => Ok(stream::pending().boxed()),
            _ => Ok(self.process().follow(follow, pings)),
        }
    }
}

#[async_trait]
impl Writer for Origin {
    async fn write(&self, _: NamespaceId, key: &Key, change: Change, via: Via) -> Result<Written> {
        self.writes.lock().unwrap().push(via);
        let mood = *self.writing.lock().unwrap();
        self.in_mood(mood, async { self.take(key, change, via).await }).await
    }

    async fn write_many(&self, _: NamespaceId, writes: Vec<(Key, Change)>, via: Via) -> Result<Vec<Result<Written>>> {
        self.writes.lock().unwrap().push(via);
        let mood = *self.writing.lock().unwrap();
        self.in_mood(mood, async {
            let mut outcomes = Vec::new();
            for (key, change) in writes {
                let busy = self.busy_keys.lock().unwrap().contains(&key);
                outcomes.push(match busy {
                    true => Err(Error::unavailable("this one not").and_untaken()),
                    false => self.take(&key, change, via).await,
                });
            }
            Ok(outcomes)
        })
        .await
    }

    async fn control(&self, _: AccountId, _: Control) -> Result<(Controlled, Version)> {
        self.writes.lock().unwrap().push(Via::default());
        let mood = *self.writing.lock().unwrap();
        self.in_mood(mood, async {
            self.store.controlled.fetch_add(1, Ordering::SeqCst);
            Ok((Controlled::Done, Version::from_u64(1)))
        })
        .await
    }
}
