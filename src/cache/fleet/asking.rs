//! Which origin is asked, and what is done when it does not answer.
//!
//! Each answers from the same store, so any will do: of two drawn at random, among those that seem well, the less busy one. A read may be asked of another one
//! too, and the first answer counts. A write that was certainly not taken goes to another one at once. One that may have been taken stays with that origin, which
//! knows it by its name when it is handed in again, until the origin has left: then what it intended is done, and the next one finds it in the store. Before,
//! two that look for it at once would both find nothing, and of two that take it the one with the greater version could come last, over what was written
//! after the other. A change of namespaces and tokens, or a value of which something was sent, has no second chance.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};

use super::{
    Fleet,
    again::Again,
    member::{Member, Standing, Task},
    pace::Pace,
};
use crate::{
    clock::{self, Moment},
    error::{Error, Kind, Result},
    kv::{
        AccountId, Answer, Change, Control, Controlled, Key, List, NamespaceId, Page, Read, Source, Taken, Version,
        Via, WriteId, Writer, Written,
        feed::{Follow, FollowerId, Frames},
        kept::Hit,
    },
};

/// The parts of the deadline after each of which somebody else is asked as well, or instead.
const PATIENCE_PARTS: u32 = 3;
/// How often a read goes round all of them, if one answers that it can't.
const ROUNDS: u32 = 3;
/// How often a write is handed in, at most.
const ATTEMPTS: usize = 16;
/// The pauses when all have refused, at first and at last.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_LAST: Duration = Duration::from_millis(500);

#[async_trait]
impl Source for Fleet {
    fn held(&self, _: NamespaceId, _: &[u8], _: &Read) -> Option<Hit> {
        None
    }

    async fn get(&self, namespace: NamespaceId, key: &Key, read: &Read) -> Result<Answer> {
        if let Some(asker) = read.asker {
            self.0.feed.note(asker, namespace, key.as_bytes());
        }
        let began_at = self.0.clock.now();
        let wait = self.pace().begin();
        let question = |member: Arc<Member>| {
            let (key, read) = (key.clone(), Read { asker: Some(member.follower), ..read.clone() });
            async move { member.ask(Task::Read, member.backend.get(namespace, &key, &read)).await }.boxed()
        };
        let answer = self.ask(question, Some(wait)).await;
        if answer.is_ok() {
            self.pace().answered(self.0.clock.now().since(began_at));
        }
        answer
    }

    async fn list(&self, namespace: NamespaceId, list: &List) -> Result<Page> {
        let question = |member: Arc<Member>| {
            let list = list.clone();
            async move { member.ask(Task::Read, member.backend.list(namespace, &list)).await }.boxed()
        };
        self.ask(question, None).await
    }

    async fn follow(&self, follow: Follow, pings: Frames) -> Result<Frames> {
        Ok(self.0.feed.follow(follow, pings))
    }
}

#[async_trait]
impl Writer for Fleet {
    async fn write(&self, namespace: NamespaceId, key: &Key, change: Change, via: Via) -> Result<Written> {
        let (again, by) = (Again::new(change), via.follower);
        let id = via.id.unwrap_or_else(|| WriteId::drawn(self.0.clock.random()));
        let mut attempts = Attempts::new(self);
        loop {
            let member = attempts.next().await?;
            let Some(change) = again.change() else { return Err(attempts.given_up()) };
            let via = attempts.via(&member, id);
            let writing = member.backend.write(namespace, key, change, via);
            match attempts.hand_in(&member, writing, !again.is_arriving()).await {
                Ok(written) => {
                    self.wrote(namespace, std::slice::from_ref(key), by);
                    return Ok(written);
                }
                Err(error) => attempts.failed(member, error, true)?,
            }
        }
    }

    async fn write_many(
        &self,
        namespace: NamespaceId,
        writes: Vec<(Key, Change)>,
        via: Via,
    ) -> Result<Vec<Result<Written>>> {
        let (id, by) = (via.id.unwrap_or_else(|| WriteId::drawn(self.0.clock.random())), via.follower);
        // Of a key that is in it more than once the last change counts, and by its name the call has one of each.
        let (writes, places) = last_of_each(writes);
        let writes: Vec<(Key, Again)> = writes.into_iter().map(|(key, change)| (key, Again::new(change))).collect();
        let mut outcomes: Vec<Option<Result<Written>>> = writes.iter().map(|_| None).collect();
        let mut attempts = Attempts::new(self);
        loop {
            // Each is known by the call's name and its key; so those that were not taken can be handed in by themselves.
            let open: Vec<usize> = (0..writes.len()).filter(|at| is_open(&outcomes[*at])).collect();
            let changes: Option<Vec<_>> =
                open.iter().map(|at| Some((writes[*at].0.clone(), writes[*at].1.change()?))).collect();
            let member = match attempts.next().await {
                Ok(member) => member,
                Err(error) => return given_up(outcomes, &places, error),
            };
            let Some(changes) = changes else { return given_up(outcomes, &places, attempts.given_up()) };
            let via = attempts.via(&member, id);
            let writing = member.backend.write_many(namespace, changes, via);
            let error = match attempts.hand_in(&member, writing, true).await {
                Ok(answers) if answers.len() != open.len() => {
                    return Err(Error::internal(format!(
                        "{} answered {} of {} writes",
                        member.address,
                        answers.len(),
                        open.len()
                    )));
                }
                Ok(answers) => {
                    open.into_iter().zip(answers).for_each(|(at, answer)| outcomes[at] = Some(answer));
                    // One that may have been taken decides where all are handed in again.
                    let open = || outcomes.iter().filter(|outcome| is_open(outcome));
                    match open().find(|outcome| may_be_taken(outcome)).or_else(|| open().next()) {
                        None => {
                            let keys: Vec<Key> = writes.into_iter().map(|(key, _)| key).collect();
                            self.wrote(namespace, &keys, by);
                            let outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
                            return Ok(places.iter().map(|at| copied(&outcomes[*at])).collect());
                        }
                        Some(Some(Err(error))) => {
                            member.spare(Task::Write);
                            error.copied()
                        }
                        Some(_) => return Err(Error::internal("an outcome was answered and is not there")),
                    }
                }
                Err(error) => error,
            };
            if let Err(error) = attempts.failed(member, error, true) {
                return given_up(outcomes, &places, error);
            }
        }
    }

    async fn control(&self, account: AccountId, control: Control) -> Result<(Controlled, Version)> {
        let mut attempts = Attempts::new(self);
        loop {
            let member = attempts.next().await?;
            let deciding = member.backend.control(account, control.clone());
            match attempts.hand_in(&member, deciding, false).await {
                Ok(decided) => return Ok(decided),
                Err(error) => {
                    let untaken = error.untaken;
                    attempts.failed(member, error, untaken)?;
                }
            }
        }
    }
}

/// Whether a write is still to be taken by somebody.
fn is_open(outcome: &Option<Result<Written>>) -> bool {
    match outcome {
        None => true,
        Some(Ok(_)) => false,
        Some(Err(error)) => error.kind.is_outage(),
    }
}

fn may_be_taken(outcome: &Option<Result<Written>>) -> bool {
    matches!(outcome, Some(Err(error)) if !error.untaken)
}

/// What is known of each write when no more is tried; of which one the outcome is, each place says.
fn given_up(outcomes: Vec<Option<Result<Written>>>, places: &[usize], error: Error) -> Result<Vec<Result<Written>>> {
    if outcomes.iter().all(Option::is_none) {
        return Err(error);
    }
    let outcomes: Vec<_> = outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err(error.copied()))).collect();
    Ok(places.iter().map(|at| copied(&outcomes[*at])).collect())
}

fn copied(outcome: &Result<Written>) -> Result<Written> {
    outcome.as_ref().map(|written| *written).map_err(Error::copied)
}

/// The last change of each key, and for each change handed in where that one is.
fn last_of_each(writes: Vec<(Key, Change)>) -> (Vec<(Key, Change)>, Vec<usize>) {
    let mut kept: Vec<(Key, Change)> = Vec::with_capacity(writes.len());
    let mut places = HashMap::with_capacity(writes.len());
    let at = writes.into_iter().map(|(key, change)| match places.get(&key) {
        Some(at) => {
            kept[*at] = (key, change);
            *at
        }
        None => {
            places.insert(key.clone(), kept.len());
            kept.push((key, change));
            kept.len() - 1
        }
    });
    let at = at.collect();
    (kept, at)
}

impl Fleet {
    /// Asks until somebody answers: another one as well when the first takes its time, another one instead when it fails.
    async fn ask<T>(
        &self,
        question: impl Fn(Arc<Member>) -> BoxFuture<'static, Result<T>> + Send + Sync,
        hedge: Option<Duration>,
    ) -> Result<T> {
        let clock = &*self.0.clock;
        let began_at = clock.now();
        let patience = self.0.settings.deadline / PATIENCE_PARTS;
        let mut hedge_at = hedge.filter(|wait| *wait < patience).map(|wait| began_at + wait);
        let mut patient_until = began_at + patience;
        let mut asked: Vec<Arc<Member>> = Vec::new();
        let mut answers = FuturesUnordered::new();
        let mut failure: Option<Error> = None;
        let mut rounds = 0;
        loop {
            if answers.is_empty() {
                match self.choose(Task::Read, &asked) {
                    Some(member) => {
                        if failure.is_some() {
                            member.metrics.retried();
                        }
                        answers.push(numbered(asked.len(), question(Arc::clone(&member))));
                        asked.push(member);
                    }
                    None => {
                        let failure = failure.take().unwrap_or_else(|| self.nobody());
                        rounds += 1;
                        // Those that are not there are not waited for.
                        if failure.kind == Kind::Unreachable || rounds == ROUNDS {
                            return Err(failure);
                        }
                        clock.sleep(clock::jittered(clock, PAUSE_FIRST * rounds)).await;
                        asked.clear();
                        continue;
                    }
                }
            }
            let wake_at = hedge_at.map_or(patient_until, |at| at.min(patient_until));
            tokio::select! {
                biased;
                Some(answer) = answers.next() => match answer {
                    (_, Err(error)) if error.kind.is_outage() => failure = Some(worse(failure, error)),
                    (by, answer) => {
                        asked[..by].iter().for_each(|slower| slower.overtaken(began_at));
                        return answer;
                    }
                },
                () = clock.sleep(wake_at.since(clock.now())) => {
                    let hedges = hedge_at.take().is_some_and(|at| at < patient_until);
                    if !hedges {
                        if patient_until >= began_at + self.0.settings.deadline {
                            let what = format!("no origin answered within {:?}", self.0.settings.deadline);
                            let late = Err(Error::new(Kind::Unreachable, what));
                            asked.iter().for_each(|silent| silent.health.observe(began_at, &late));
                            return late.map_err(|late| worse(failure, late));
                        }
                        patient_until = patient_until + patience;
                    }
                    let well = |member: &Arc<Member>| member.standing(Task::Read) < Standing::Spared;
                    let other = self.choose(Task::Read, &asked).filter(|other| !hedges || well(other));
                    if let Some(other) = other.filter(|_| !hedges || self.pace().may_hedge()) {
                        if hedges {
                            other.metrics.hedged();
                        } else {
                            other.metrics.retried();
                        }
                        answers.push(numbered(asked.len(), question(Arc::clone(&other))));
                        asked.push(other);
                    }
                }
            }
        }
    }

    /// Of two drawn at random from those that seem best, the one with less under way.
    fn choose(&self, task: Task, but: &[Arc<Member>]) -> Option<Arc<Member>> {
        let mut left: Vec<(Standing, Arc<Member>)> = self
            .members()
            .into_iter()
            .filter(|member| !but.iter().any(|other| Arc::ptr_eq(other, member)))
            .map(|member| (member.standing(task), member))
            .collect();
        let best = left.iter().map(|(standing, _)| *standing).min()?;
        left.retain(|(standing, _)| *standing == best);
        while !left.is_empty() {
            let (_, first) = left.swap_remove(self.draw(left.len()));
            let chosen = match left.len() {
                0 => first,
                others => {
                    let (_, second) = &left[self.draw(others)];
                    if second.under_way() < first.under_way() { Arc::clone(second) } else { first }
                }
            };
            if best < Standing::Down || chosen.health.may_ask() {
                return Some(chosen);
            }
            left.retain(|(_, member)| !Arc::ptr_eq(member, &chosen));
        }
        None
    }

    fn draw(&self, count: usize) -> usize {
        usize::try_from(self.0.clock.random() % count as u64).expect("below a number of origins")
    }

    /// The tier that wrote keeps what it wrote, and has use for its next states.
    fn wrote(&self, namespace: NamespaceId, keys: &[Key], by: Option<FollowerId>) {
        if let Some(by) = by {
            keys.iter().for_each(|key| self.0.feed.note(by, namespace, key.as_bytes()));
        }
    }

    /// Those of whom nobody knows yet who they are: if one of them took a write and died, nobody could say who it was.
    fn unmet(&self) -> Vec<Arc<Member>> {
        let members = self.members();
        let roster = self.roster();
        members.into_iter().filter(|member| roster.epoch(&member.address).is_none()).collect()
    }

    /// Whether one of them may be there.
    fn is_meeting(&self) -> bool {
        self.unmet().iter().any(|member| !member.health.is_down())
    }

    fn nobody(&self) -> Error {
        let count = self.members().len();
        Error::new(Kind::Unreachable, format!("none of {count} origins answers"))
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.0.pace.lock().expect("no holder of this lock can panic")
    }
}

/// A question, with the place of the one who was asked.
async fn numbered<T>(place: usize, question: BoxFuture<'static, Result<T>>) -> (usize, Result<T>) {
    (place, question.await)
}

/// What is told of two failures. That somebody answered, if only with an error, shows that not all are away.
fn worse(earlier: Option<Error>, error: Error) -> Error {
    match earlier {
        Some(earlier) if error.kind == Kind::Unreachable && earlier.kind != Kind::Unreachable => earlier,
        _ => error,
    }
}

/// The ways of one write to an origin that takes it.
struct Attempts<'a> {
    fleet: &'a Fleet,
    until: Moment,
    made: usize,
    /// Since the last pause.
    tried: Vec<Arc<Member>>,
    pause: Duration,
    failure: Option<Error>,
    /// The epoch of the origin that it is handed in to now.
    epoch: Option<u64>,
    /// The epoch of the origin that may have taken it.
    taker: Option<u64>,
    /// Whether anybody may have taken it before.
    again: bool,
    began_at: Moment,
    /// Who may have, if nobody else may.
    only_taker: Option<u64>,
}

impl<'a> Attempts<'a> {
    fn new(fleet: &'a Fleet) -> Attempts<'a> {
        let until = fleet.0.clock.now() + fleet.0.settings.write_deadline;
        Attempts {
            fleet,
            until,
            made: 0,
            tried: Vec::new(),
            pause: PAUSE_FIRST,
            failure: None,
            epoch: None,
            taker: None,
            again: false,
            began_at: fleet.0.clock.now(),
            only_taker: None,
        }
    }

    /// How it is handed in: under its name, and with who may have taken it if that is one alone.
    fn via(&self, member: &Member, id: WriteId) -> Via {
        let ago = self.fleet.0.clock.now().since(self.began_at);
        Via {
            follower: Some(member.follower),
            id: Some(if self.again { id.again() } else { id }),
            to: self.epoch,
            taken: self.only_taker.map(|epoch| Taken { epoch, ago }),
        }
    }

    /// Whom to hand it in to next: each once, then after a pause each once more.
    async fn next(&mut self) -> Result<Arc<Member>> {
        loop {
            if let Some((member, epoch)) = self.choose() {
                if self.made > 0 {
                    member.metrics.retried();
                }
                self.made += 1;
                self.epoch = Some(epoch);
                return Ok(member);
            }
            let clock = &*self.fleet.0.clock;
            let pause = clock::jittered(clock, self.pause);
            // Those that are known not to be there are not waited for, but who has not said yet who it is.
            if (self.made == 0 && !self.fleet.is_meeting()) || clock.now() + pause >= self.until {
                return Err(self.given_up());
            }
            clock.sleep(pause).await;
            self.pause = (self.pause * 2).min(PAUSE_LAST);
            self.tried.clear();
        }
    }

    /// The origin to hand it in to, and its epoch.
    fn choose(&mut self) -> Option<(Arc<Member>, u64)> {
        if self.taker.take_if(|taker| self.fleet.roster().has_left(*taker)).is_some() {
            // Another one may be where it was.
            self.tried.clear();
        }
        let Some(taker) = self.taker else {
            let unmet = self.fleet.unmet();
            let but: Vec<_> = self.tried.iter().chain(&unmet).cloned().collect();
            let member = self.fleet.choose(Task::Write, &but)?;
            let epoch = self.fleet.roster().epoch(&member.address)?;
            return Some((member, epoch));
        };
        // Wherever it is found; who is there in its place is one like any other, and has to wait like them.
        let is_taker = |member: &Arc<Member>| self.fleet.roster().epoch(&member.address) == Some(taker);
        let mut places = self.fleet.members().into_iter().filter(is_taker);
        let member = places.find(|member| !self.tried.iter().any(|tried| Arc::ptr_eq(tried, member)))?;
        (!member.health.is_down() || member.health.may_ask()).then_some((member, taker))
    }

    /// Hands it in, with a part of the time if it can be handed in once more after that.
    async fn hand_in<T>(&self, member: &Member, work: impl Future<Output = Result<T>>, repeatable: bool) -> Result<T> {
        let asking = member.ask(Task::Write, async {
            if !repeatable {
                return work.await;
            }
            let clock = &*self.fleet.0.clock;
            let patience = self.fleet.0.settings.write_deadline / PATIENCE_PARTS;
            let patience = patience.min(self.until.since(clock.now()));
            clock::within(clock, patience, work).await.unwrap_or_else(|_| {
                let what = format!("{} did not take a write within {patience:?}", member.address);
                Err(Error::new(Kind::Unreachable, what))
            })
        });
        asking.await
    }

    /// An attempt failed: an error if there is to be no other.
    fn failed(&mut self, member: Arc<Member>, error: Error, repeatable: bool) -> Result<()> {
        if !error.untaken && self.taker.is_none() {
            self.taker = self.epoch;
            self.only_taker = if self.again { None } else { self.epoch };
            self.again = true;
        } else if error.untaken && self.taker.is_some() {
            // Whether it has left is found out by others; until then this costs nobody anything.
            self.made -= 1;
        }
        self.tried.push(member);
        if !repeatable || !error.kind.is_outage() {
            return Err(error);
        }
        self.failure = Some(worse(self.failure.take(), error));
        let late = self.fleet.0.clock.now() >= self.until;
        if late || self.made >= ATTEMPTS { Err(self.given_up()) } else { Ok(()) }
    }

    fn given_up(&mut self) -> Error {
        self.failure.take().unwrap_or_else(|| self.fleet.nobody())
    }
}
