//! One origin, as the fleet that asks it sees it: whether it is there, what it refuses, and how busy we keep it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    cache::health::Health,
    clock::{self, Clock, Moment},
    error::{Kind, Result},
    kv::{Backend, feed::FollowerId},
    metrics::MemberMetrics,
};

/// What it is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Read,
    Write,
}

/// How good a choice it is, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    Good,
    /// Its feed is not heard: it may be gone, or slow.
    Unheard,
    /// It has just refused such a task, or was slow with one.
    Spared,
    /// It did not answer at all.
    Down,
}

pub(super) struct Member {
    pub(super) address: String,
    pub(super) backend: Arc<dyn Backend>,
    /// As which it is asked and followed. Each has its own: two addresses may lead to one origin, where the second feed of a follower ends the first.
    pub(super) follower: FollowerId,
    pub(super) metrics: MemberMetrics,
    pub(super) health: Health,
    clock: Arc<dyn Clock>,
    followed: AtomicBool,
    under_way: AtomicUsize,
    /// When it last answered anything.
    answered_at: AtomicU64,
    /// Until when it is left alone if others are there, for reads and for writes. An origin that takes no writes may answer reads well.
    spared_until: [AtomicU64; 2],
}

/// How long an origin is left alone that refused something.
pub(super) const SPARED: Duration = Duration::from_millis(500);

impl Member {
    pub(super) fn new(
        address: String,
        backend: Arc<dyn Backend>,
        clock: Arc<dyn Clock>,
        deadline: Duration,
        metrics: MemberMetrics,
    ) -> Member {
        Member {
            follower: FollowerId(clock.random()),
            health: Health::new(Arc::clone(&clock), address.clone(), deadline),
            address,
            backend,
            metrics,
            clock,
            followed: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            answered_at: AtomicU64::new(0),
            spared_until: Default::default(),
        }
    }

    pub(super) fn set_followed(&self, followed: bool) {
        self.followed.store(followed, Ordering::Release);
    }

    pub(super) fn standing(&self, task: Task) -> Standing {
        if self.health.is_down() {
            Standing::Down
        } else if self.clock.now().as_nanos() < self.spared_until[task as usize].load(Ordering::Acquire) {
            Standing::Spared
        } else if !self.followed.load(Ordering::Acquire) {
            Standing::Unheard
        } else {
            Standing::Good
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.followed.load(Ordering::Acquire) && !self.health.is_down()
    }

    pub(super) fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Does one thing at it, and learns from how that went.
    pub(super) async fn ask<T>(&self, task: Task, asking: impl Future<Output = Result<T>>) -> Result<T> {
        let _load = Load::new(&self.under_way);
        self.metrics.asked();
        let asked_at = self.clock.now();
        let answer = asking.await;
        self.health.observe(asked_at, &answer);
        if answer.as_ref().map_or_else(|error| error.answered, |_| true) {
            self.answered_at.store(self.clock.now().as_nanos(), Ordering::Release);
        }
        match &answer {
            Ok(_) => self.spared_until[task as usize].store(0, Ordering::Release),
            Err(error) if error.kind.is_outage() && error.kind != Kind::Unreachable => self.spare(task),
            Err(_) => {}
        }
        answer
    }

    /// Another one has answered what this one was asked at that moment, and it has answered nothing at all since: it may have been stopped.
    pub(super) fn overtaken(&self, asked_at: Moment) {
        if self.answered_at.load(Ordering::Acquire) < asked_at.as_nanos() {
            self.spare(Task::Read);
            self.spare(Task::Write);
        }
    }

    /// Others are to be asked for a while.
    pub(super) fn spare(&self, task: Task) {
        let until: Moment = self.clock.now() + clock::jittered(&*self.clock, SPARED);
        self.spared_until[task as usize].store(until.as_nanos(), Ordering::Release);
    }
}

/// One more under way while it lives.
struct Load<'a>(&'a AtomicUsize);

impl Load<'_> {
    fn new(under_way: &AtomicUsize) -> Load<'_> {
        under_way.fetch_add(1, Ordering::Relaxed);
        Load(under_way)
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
