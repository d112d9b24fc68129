//! Several origins on one store as one upstream of a tier.
//!
//! It follows all of them, and relays what it hears in one feed of its own, which the tier follows as it would any upstream's: `fleet/roster.rs` knows whom
//! it has to hear, and what all of them together prove. What is asked goes to one of them (`fleet/asking.rs`), as well as can be told to one that answers; each of them
//! answers from the same store.
//!
//! An origin that joins is found by the lists that the others send, and is followed and asked like those that the configuration names.

mod again;
mod asking;
mod member;
mod pace;
mod roster;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use self::{member::Member, pace::Pace, roster::Roster};
use crate::{
    cache::link::{self, Retry, Times},
    clock::Clock,
    error::Result,
    kv::{
        Backend,
        feed::{Follow, Message},
    },
    metrics::FleetMetrics,
    purge::feed::{Feed, FeedSettings},
};

/// Makes the link to an address. It is not asked whether anybody is there.
pub type Dial = Arc<dyn Fn(&str) -> Arc<dyn Backend> + Send + Sync>;

/// Of the tier whose upstream it is; `config` says what each does.
#[derive(Clone, Debug)]
pub struct FleetSettings {
    pub name: String,
    /// For all that is tried to answer one question.
    pub deadline: Duration,
    /// For all that is tried to find out what becomes of one write.
    pub write_deadline: Duration,
    /// How often the tier pings the fleet's feed.
    pub feed_interval: Duration,
    /// Of the feed that it sends.
    pub feed: FeedSettings,
}

/// Cheap to clone; all clones are the one fleet.
#[derive(Clone)]
pub struct Fleet(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    dial: Dial,
    /// Those that the configuration names.
    addresses: Vec<String>,
    settings: FleetSettings,
    metrics: FleetMetrics,
    /// What all of them say, in one.
    feed: Feed,
    roster: Mutex<Roster>,
    /// Whom it asks and follows: those of the configuration first, then those that lists named.
    members: RwLock<Vec<Arc<Member>>>,
    pace: Mutex<Pace>,
    /// Somebody else may have to be followed.
    changed: Notify,
}

/// The fleet's watermark is a ping of its own old on top of its tier's; so it pings its origins more often, by so much.
const PINGS_PER_INTERVAL: u32 = 4;
/// A link that is silent for so many intervals is given up.
const SILENT_INTERVALS: u32 = 2;
/// Origins that the configuration does not name and that are followed nevertheless.
const LEARNT_MAX: usize = 64;

impl Fleet {
    pub fn new(
        dial: Dial,
        addresses: Vec<String>,
        clock: Arc<dyn Clock>,
        settings: FleetSettings,
        metrics: FleetMetrics,
    ) -> Fleet {
        let feed = Feed::new(Arc::clone(&clock), &settings.feed, None);
        let fleet = Fleet(Arc::new(Shared {
            roster: Mutex::new(Roster::new(feed.clone())),
            members: RwLock::default(),
            pace: Mutex::new(Pace::new()),
            changed: Notify::new(),
            clock,
            dial,
            addresses,
            settings,
            metrics,
            feed,
        }));
        for address in &fleet.0.addresses {
            fleet.add(address);
        }
        fleet
    }

    /// Follows the origins until it is stopped. Then its own feed ends.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.keep_links() => {}
        }
        self.0.feed.close();
    }

    /// Brings the gauges up to date.
    pub fn measure(&self) {
        let now = self.0.clock.now();
        for member in self.members() {
            let mark = self.roster().mark(&member.address);
            member.metrics.is(member.is_up(), mark.map(|mark| now.since(mark)));
        }
    }

    async fn keep_links(&self) {
        let mut tasks = JoinSet::new();
        let mut links: HashMap<String, AbortHandle> = HashMap::new();
        loop {
            self.choose_links(&mut tasks, &mut links);
            tokio::select! {
                biased;
                // A link's task never ends by itself; what it may have panicked of is for whoever runs this.
                Some(Err(error)) = tasks.join_next() => {
                    if let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                }
                () = self.0.changed.notified() => {}
            }
        }
    }

    /// Opens links to those who are to be followed, and gives up those to learnt addresses that lead to nobody, or to somebody whom another link leads to.
    fn choose_links(&self, tasks: &mut JoinSet<()>, links: &mut HashMap<String, AbortHandle>) {
        let configured = &self.0.addresses;
        let mut roster = self.roster();
        links.retain(|address, task| {
            let spare = roster.is_listed(address) == Some(false) || roster.is_spare(address, configured);
            let keep = configured.contains(address) || !spare;
            if !keep {
                tracing::info!(tier = self.0.settings.name, address, "this origin is followed no more");
                task.abort();
                roster.forget(address);
                self.remove(address);
            }
            keep
        });
        let wanted = roster.wanted();
        drop(roster);
        for address in configured.iter().chain(&wanted) {
            if links.contains_key(address) {
                continue;
            }
            if links.len() >= configured.len() + LEARNT_MAX {
                tracing::error!(
                    tier = self.0.settings.name,
                    address,
                    "too many origins to follow them all: nothing is covered"
                );
                break;
            }
            if !configured.contains(address) {
                tracing::info!(
                    tier = self.0.settings.name,
                    address,
                    "another origin is on the list, and is followed from here on"
                );
            }
            let member = self.add(address);
            let link = tasks.spawn(self.clone().keep_link(member));
            links.insert(address.clone(), link);
        }
    }

    async fn keep_link(self, member: Arc<Member>) {
        let clock = &*self.0.clock;
        let interval = self.0.settings.feed_interval;
        let times = Times {
            interval: interval / PINGS_PER_INTERVAL,
            silence: interval * SILENT_INTERVALS,
            deadline: self.0.settings.deadline,
        };
        let mut retry = Retry::new();
        loop {
            let opened_at = clock.now();
            let from = self.roster().open(&member.address);
            let follow = Follow { follower: member.follower, from, all_states: true };
            let hear = |message| self.hear(&member, message);
            let Err(error) = link::session(clock, &*member.backend, follow, times, hear).await;
            self.roster().lost(&member.address);
            member.set_followed(false);
            self.0.changed.notify_one();
            let (tier, address) = (&self.0.settings.name, &member.address);
            if retry.lost(clock, opened_at) {
                tracing::warn!(tier, address, %error, "an origin's purge feed is lost: what is held ages until it is back, or has left");
            } else {
                tracing::debug!(tier, address, %error, "an origin's purge feed can't be followed");
            }
            retry.pause(clock).await;
        }
    }

    fn hear(&self, member: &Member, message: Message) -> Result<()> {
        let changes_who = matches!(message, Message::Start { .. } | Message::Members(_) | Message::End);
        match &message {
            Message::Start { .. } => {
                member.set_followed(true);
                member.health.heard();
            }
            Message::Items { .. } => member.health.heard(),
            Message::Echo(echo) if echo.proof.is_some() => member.health.heard(),
            Message::Echo(_) | Message::Members(_) | Message::End => {}
        }
        self.roster().hear(&member.address, message)?;
        if changes_who {
            self.0.changed.notify_one();
        }
        Ok(())
    }

    /// The origin at an address, from now on among those that are asked.
    fn add(&self, address: &str) -> Arc<Member> {
        let mut members = self.0.members.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(member) = members.iter().find(|member| member.address == address) {
            return Arc::clone(member);
        }
        let shared = &self.0;
        let backend = (shared.dial)(address);
        let metrics = shared.metrics.member(address);
        let clock = Arc::clone(&shared.clock);
        let member = Arc::new(Member::new(address.to_owned(), backend, clock, shared.settings.deadline, metrics));
        members.push(Arc::clone(&member));
        member
    }

    fn remove(&self, address: &str) {
        self.0.members.write().unwrap_or_else(PoisonError::into_inner).retain(|member| member.address != address);
        self.0.metrics.forget(address);
    }

    fn members(&self) -> Vec<Arc<Member>> {
        self.0.members.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn roster(&self) -> MutexGuard<'_, Roster> {
        self.0.roster.lock().expect("no holder of this lock can panic")
    }
}

#[cfg(test)]
mod tests;
