//! Which origins have to be heard, and what all of them together prove.
//!
//! Each origin's echo proves two things. First, as to any follower (F4): the changes that this origin made before a moment, its *mark*, have been heard. Second,
//! as one of several (O4): when it echoed, nobody outside the list that it had sent before had begun a write, but for those who had left by then. So let `w` be
//! no later than the marks of all who are on the list of somebody whose own mark is no earlier than `w`. Whatever changed before `w` was changed by somebody on
//! that list, and so was heard; or by somebody who had left. Those are the three ways in which something can be missed:
//!
//! - **Who left was listed here.** With its *end* it has said that all it had changed was sent before, and this was heard on the same link. Without, it died: the
//!   others have finished its writes before they took it off the list, but its purges are lost. That is a gap.
//! - **Who left was never listed here**, having come and gone while no link was there to hear it. A list says how often an origin has joined: more than
//!   have been seen to join is a gap. So is the first list of all: nobody can say who was there just before it.
//! - **Items were not heard.** A link that begins where an earlier one of the same feed ended, or at the feed's own beginning, has missed nothing. Any other is
//!   a gap.
//!
//! All of them are gaps *now*, after what was missed took effect: whatever is asked for from here on knows of it. And nobody's earlier proof is used past a gap.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    clock::Moment,
    error::{Error, Kind, Result},
    kv::{
        Version,
        feed::{Item, Members, Message, Position},
    },
    purge::feed::Feed,
};

pub(super) struct Roster {
    /// What is heard from all of them, as one.
    feed: Feed,
    /// Those that are listed or followed, by the epoch of their feed.
    known: BTreeMap<u64, Known>,
    /// By the address that they lead to.
    links: BTreeMap<String, Link>,
    /// Who has left with an end, the last ones.
    ended: VecDeque<u64>,
    /// And who has without.
    vanished: VecDeque<u64>,
    census: Option<Census>,
    /// And the safe version at it.
    watermark: Option<(Moment, Version)>,
}

#[derive(Default)]
struct Known {
    /// The least number of joins with which it was listed.
    listed_at: Option<u64>,
    /// The number of the last item that was relayed, and none before was missed; `None` until it is followed.
    sequence: Option<u64>,
    /// What its last echo since the last gap proves.
    mark: Option<(Moment, Version)>,
    /// It was on a list, or proved something: it may have changed things, and can't go without a word.
    counts: bool,
}

#[derive(Default)]
struct Link {
    /// Whom it led to last.
    epoch: Option<u64>,
    /// The address under which that one is listed.
    listed_as: Option<String>,
    live: Option<Live>,
}

/// What was said on a link that is open.
#[derive(Default)]
struct Live {
    /// After which item the sender was asked to go on; taken by its first start.
    from: Option<Position>,
    /// From its start on.
    epoch: Option<u64>,
    list: Option<Members>,
    /// Whether its last echo proved something. Only then is its list known to be complete.
    proves: bool,
}

/// Who was there when the latest list was made, to see by the next whether anybody came and went in between.
struct Census {
    joined: u64,
    epochs: BTreeSet<u64>,
}

/// Origins on one list; a sender that names more is not one of ours.
const LISTED_MAX: usize = 256;
/// Ends that are remembered, for lists that are a little behind.
const ENDED_MAX: usize = 256;

impl Roster {
    pub(super) fn new(feed: Feed) -> Roster {
        Roster {
            feed,
            known: BTreeMap::new(),
            links: BTreeMap::new(),
            ended: VecDeque::new(),
            vanished: VecDeque::new(),
            census: None,
            watermark: None,
        }
    }

    /// A link is being opened: from where to go on.
    pub(super) fn open(&mut self, address: &str) -> Option<Position> {
        let from = self.place(address);
        self.links.entry(address.to_owned()).or_default().live = Some(Live { from, ..Live::default() });
        from
    }

    /// The link is lost: what it said last counts no more, what it proved does.
    pub(super) fn lost(&mut self, address: &str) {
        if let Some(link) = self.links.get_mut(address) {
            link.live = None;
        }
    }

    /// No link is opened there any more.
    pub(super) fn forget(&mut self, address: &str) {
        self.links.remove(address);
    }

    /// What was said on a link that is open, in its order (`link.rs` sees to that).
    pub(super) fn hear(&mut self, address: &str, message: Message) -> Result<()> {
        let closed = || Error::new(Kind::Unreachable, format!("the link to {address} was given up"));
        if let Message::Start { position, resumed } = message {
            return self.start(address, position, resumed).ok_or_else(closed);
        }
        let live = self.links.get_mut(address).and_then(|link| link.live.as_mut());
        let (live, epoch) = live.and_then(|live| live.epoch.map(|epoch| (live, epoch))).ok_or_else(closed)?;
        match message {
            Message::Start { .. } => {}
            Message::Items { first, items } => {
                let known = self.known.entry(epoch).or_default();
                // Two addresses may lead to one origin: then each item comes twice, which changes nothing.
                known.sequence = known.sequence.max(Some(first + items.len() as u64 - 1));
                if items.contains(&Item::Gap) {
                    self.doubt();
                }
                self.feed.relay(&items);
            }
            Message::Echo(echo) => {
                // Who has left can't know who came after.
                let proof = echo.proof.filter(|_| !self.ended.contains(&epoch));
                live.proves = proof.is_some();
                if let Some(proof) = proof {
                    let mark = (Moment::from_nanos(echo.stamp) - proof.age, proof.version);
                    let earlier = &mut self.known.entry(epoch).or_default().mark;
                    *earlier = Some(earlier.map_or(mark, |earlier| (earlier.0.max(mark.0), earlier.1.max(mark.1))));
                    self.advance();
                }
            }
            Message::Members(members) if members.list.len() > LISTED_MAX => {
                let what = format!("{address} lists {} origins on one store", members.list.len());
                return Err(Error::new(Kind::Unreachable, what));
            }
            Message::Members(members) => self.hear_members(address, members),
            Message::End => {
                live.proves = false;
                live.list = None;
                tracing::info!(address, epoch, "an origin has left, and all that it changed was heard");
                self.ended.retain(|ended| *ended != epoch);
                self.ended.push_back(epoch);
                forget_first(&mut self.ended);
                self.known.remove(&epoch);
            }
        }
        Ok(())
    }

    /// Addresses of origins that have to be heard and are not followed.
    pub(super) fn wanted(&self) -> BTreeSet<String> {
        let unfollowed = self.listed().filter(|(epoch, _)| !self.is_followed(*epoch) && !self.ended.contains(epoch));
        unfollowed.map(|(_, address)| address.to_owned()).collect()
    }

    /// Whether the link leads to an origin that another one of these leads to as well.
    pub(super) fn is_spare(&self, address: &str, others: &[String]) -> bool {
        let live = |address: &str| self.links.get(address).and_then(|link| link.live.as_ref()?.epoch);
        live(address).is_some_and(|epoch| others.iter().any(|other| other != address && live(other) == Some(epoch)))
    }

    /// Whether any list names the address; nobody knows while there is none.
    pub(super) fn is_listed(&self, address: &str) -> Option<bool> {
        let mut listed = self.listed().peekable();
        listed.peek()?;
        Some(listed.any(|(epoch, listed_as)| listed_as == address && !self.ended.contains(&epoch)))
    }

    /// As of when all that the origin at an address changed has been heard.
    pub(super) fn mark(&self, address: &str) -> Option<Moment> {
        let epoch = self.links.get(address)?.epoch?;
        self.known.get(&epoch)?.mark.map(|(moment, _)| moment)
    }

    /// Of the origin to which the link led last.
    pub(super) fn epoch(&self, address: &str) -> Option<u64> {
        self.links.get(address)?.epoch
    }

    /// Whether an origin is known to write nothing more, and what it intended to be done.
    pub(super) fn has_left(&self, epoch: u64) -> bool {
        self.ended.contains(&epoch) || self.vanished.contains(&epoch)
    }

    #[cfg(test)]
    pub(super) fn watermark(&self) -> Option<(Moment, Version)> {
        self.watermark
    }

    /// Where a link to an address can begin so that nothing is missed.
    fn place(&self, address: &str) -> Option<Position> {
        let link = self.links.get(address);
        let is_there = |listed_as: &str| {
            listed_as == address || link.is_some_and(|link| link.listed_as.as_deref() == Some(listed_as))
        };
        // Somebody whom nobody has followed yet: from its beginning. Of several, the one that came last is the one that is still there.
        let unknown = |epoch: &u64| self.known.get(epoch).is_none_or(|known| known.sequence.is_none());
        let newcomer = self
            .listed()
            .filter(|(epoch, listed_as)| is_there(listed_as) && unknown(epoch) && !self.ended.contains(epoch))
            .map(|(epoch, _)| epoch)
            .last();
        if let Some(epoch) = newcomer {
            return Some(Position { epoch, sequence: 0 });
        }
        let epoch = link?.epoch?;
        let sequence = self.known.get(&epoch)?.sequence?;
        Some(Position { epoch, sequence })
    }

    fn start(&mut self, address: &str, position: Position, resumed: bool) -> Option<()> {
        let link = self.links.get_mut(address)?;
        let live = link.live.as_mut()?;
        let Position { epoch, sequence } = position;
        let from = live.from.take();
        live.epoch = Some(epoch);
        let before = link.epoch.replace(epoch).filter(|before| *before != epoch);
        if before.is_some() {
            link.listed_as = None;
        }
        let goes_on = resumed && from.is_some_and(|from| from.sequence == sequence);
        // An origin alone on its store goes on where its earlier process was, and answers for what that one had changed.
        let earlier = from.filter(|from| goes_on && from.epoch != epoch);
        if self.census.is_none() {
            // Without lists it was alone on its store, and let go of it before this one took it.
            self.vanished.extend(before);
            forget_first(&mut self.vanished);
        }
        let earlier = earlier.and_then(|earlier| self.known.remove(&earlier.epoch));
        let known = self.known.entry(epoch).or_insert_with(|| earlier.unwrap_or_default());
        // Nothing of a feed comes before its first item, and nothing after its end.
        let nothing_missed = known.sequence.is_none() && sequence == 0 || self.ended.contains(&epoch);
        known.sequence = known.sequence.max(Some(sequence));
        tracing::info!(address, epoch, sequence, resumed, "following an origin's purge feed");
        if !goes_on && !nothing_missed {
            self.miss();
        }
        Some(())
    }

    fn hear_members(&mut self, address: &str, mut members: Members) {
        let unheard = self.count(&members);
        let there = self.census.as_ref().map(|census| &census.epochs);
        // Of a list that is a little behind, those who have left since are of no interest.
        members.list.retain(|member| there.is_some_and(|there| there.contains(&member.epoch)));
        for member in members.list.iter().filter(|member| !self.ended.contains(&member.epoch)) {
            let known = self.known.entry(member.epoch).or_default();
            known.counts = true;
            known.listed_at = Some(known.listed_at.map_or(members.joined, |least| least.min(members.joined)));
            let links = self.links.values_mut().filter(|link| link.epoch == Some(member.epoch));
            links.for_each(|link| link.listed_as = Some(member.address.clone()));
        }
        if let Some(live) = self.links.get_mut(address).and_then(|link| link.live.as_mut()) {
            live.list = Some(members);
        }
        if unheard {
            self.miss();
        }
    }

    /// Takes a list into account: whether somebody may have come and gone unheard before it.
    fn count(&mut self, members: &Members) -> bool {
        let listed: BTreeSet<u64> = members.list.iter().map(|member| member.epoch).collect();
        let Some(census) = &mut self.census else {
            self.census = Some(Census { joined: members.joined, epochs: listed });
            return true;
        };
        let behind = members.joined < census.joined && !census.epochs.is_disjoint(&listed);
        if behind || members.joined == census.joined {
            if !behind {
                // Without a join between them, the later of two lists has the fewer.
                census.epochs.retain(|epoch| listed.contains(epoch));
            }
            return false;
        }
        // Whoever was there at the time of the latest list, and still is, was on it.
        let new = listed.difference(&census.epochs).count() as u64;
        let begun_anew = members.joined < census.joined;
        let unheard = begun_anew || members.joined - census.joined > new;
        *census = Census { joined: members.joined, epochs: listed };
        unheard
    }

    /// Moves the watermark on to where all who have to be heard have proven something.
    fn advance(&mut self) {
        let mut required = BTreeSet::new();
        // Up to which number of joins somebody has left who is on no list.
        let mut judged = 0;
        for live in self.live().filter(|live| live.proves) {
            required.extend(live.epoch);
            match &live.list {
                Some(members) => {
                    required.extend(members.list.iter().map(|member| member.epoch));
                    judged = judged.max(members.joined);
                }
                // Alone on its store.
                None => judged = u64::MAX,
            }
        }
        required.retain(|epoch| !self.ended.contains(epoch));
        if required.is_empty() {
            return;
        }
        let mut vanished = Vec::new();
        for (epoch, known) in self.known.iter().filter(|(_, known)| known.counts) {
            if !required.contains(epoch) {
                if known.listed_at.is_none_or(|listed_at| listed_at <= judged) {
                    vanished.push(*epoch);
                } else {
                    // It joined after all these lists were made.
                    required.insert(*epoch);
                }
            }
        }
        if !vanished.is_empty() {
            tracing::warn!(epochs = ?vanished, "origins are gone without a word: what they changed last may not have been heard");
            for epoch in vanished {
                self.known.remove(&epoch);
                self.vanished.push_back(epoch);
            }
            forget_first(&mut self.vanished);
            return self.miss();
        }
        for epoch in &required {
            self.known.entry(*epoch).or_default().counts = true;
        }
        self.drop_unknown();
        let marks: Option<Vec<_>> = required.iter().map(|epoch| self.known.get(epoch)?.mark).collect();
        let Some(marks) = marks else { return };
        let least = marks.into_iter().reduce(|least, mark| (least.0.min(mark.0), least.1.min(mark.1)));
        let Some(least) = least else { return };
        // What was proven once stays so until a gap.
        let watermark = self.watermark.map_or(least, |proven| (proven.0.max(least.0), proven.1.max(least.1)));
        self.watermark = Some(watermark);
        self.feed.knows(Some(watermark));
    }

    /// Forgets of whom nobody speaks any more.
    fn drop_unknown(&mut self) {
        let spoken_of: BTreeSet<u64> =
            self.listed().map(|(epoch, _)| epoch).chain(self.links.values().filter_map(|link| link.epoch)).collect();
        self.known.retain(|epoch, known| known.counts || spoken_of.contains(epoch));
    }

    /// Something was not heard (F6).
    fn miss(&mut self) {
        self.doubt();
        self.feed.relay(&[Item::Gap]);
    }

    fn doubt(&mut self) {
        self.known.values_mut().for_each(|known| known.mark = None);
        self.watermark = None;
        self.feed.knows(None);
    }

    fn live(&self) -> impl Iterator<Item = &Live> {
        self.links.values().filter_map(|link| link.live.as_ref())
    }

    /// Who is on the list of anybody, with their addresses.
    fn listed(&self) -> impl Iterator<Item = (u64, &str)> {
        let lists = self.live().filter_map(|live| live.list.as_ref());
        lists.flat_map(|members| members.list.iter().map(|member| (member.epoch, member.address.as_str())))
    }

    fn is_followed(&self, epoch: u64) -> bool {
        self.live().any(|live| live.epoch == Some(epoch))
    }
}

fn forget_first(epochs: &mut VecDeque<u64>) {
    epochs.drain(..epochs.len().saturating_sub(ENDED_MAX));
}

#[cfg(test)]
mod tests;
