//! Random histories of origins that come, write, are cut off, die and leave, and of links that come and go: whatever is proven is so, and when all is well
//! again, everything is proven again.
//!
//! A moment is a step of the history, and no two things happen in one. A version is the moment at which its write began.

use super::*;

/// Until which an origin may write after it was last let refresh; how long the others wait until they finish for it.
const LEASE: u64 = 250;
const JUDGED: u64 = LEASE + LEASE / 5;
const ADDRESSES: [&str; 4] = ["a:1", "b:1", "c:1", "d:1"];
const CONFIGURED: usize = 2;

/// More of them with `KVASAR_HISTORIES`.
const HISTORIES: u64 = 150;
const STEPS: u64 = 4000;

struct History {
    now: u64,
    chance: u64,
    /// Scales how much goes wrong; none at all at its end.
    trouble: u64,
    joined: u64,
    record: Vec<Entry>,
    /// Who is at each address.
    there: [Option<Process>; 4],
    dead: Vec<Process>,
    writes: Vec<Write>,
    roster: Roster,
    links: Vec<Connection>,
    gap_at: u64,
    gaps: u64,
}

#[derive(Clone)]
struct Entry {
    epoch: u64,
    address: usize,
    beat_at: u64,
}

struct Process {
    epoch: u64,
    /// Its purges: writes by their numbers.
    log: Vec<usize>,
    /// Writes that it has begun and not published.
    open: Vec<usize>,
    list: Members,
    list_until: u64,
    writes_from: u64,
    cut_off: bool,
    ended: bool,
}

#[derive(Default)]
struct Write {
    version: u64,
    took_effect_at: Option<u64>,
    heard: bool,
}

/// A link of the fleet's to an address, and what is under way on it.
#[derive(Default)]
struct Connection {
    address: usize,
    open: bool,
    to: u64,
    sent: usize,
    listed: Option<Members>,
    said_end: bool,
    coming: VecDeque<Message>,
    pings: VecDeque<u64>,
    /// What each message of items holds.
    items: VecDeque<Vec<usize>>,
}

impl History {
    fn new(seed: u64) -> History {
        let links = (0..CONFIGURED).map(|address| Connection { address, ..Connection::default() }).collect();
        let mut history = History {
            now: 1_000_000,
            chance: seed,
            trouble: seed % 4 + 1,
            joined: 0,
            record: Vec::new(),
            there: [const { None }; 4],
            dead: Vec::new(),
            writes: Vec::new(),
            roster: roster(),
            links,
            gap_at: 0,
            gaps: 0,
        };
        history.join(0);
        history
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.chance = self.chance.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.chance;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    fn step(&mut self) {
        self.now += 1;
        let address = self.draw(4) as usize;
        match self.draw(100) {
            0..18 => self.refresh(address),
            18..24 => self.write(address),
            24..43 => self.go_on(address),
            43..48 => self.connect(),
            48..89 => self.hear(),
            89..95 => self.ping(),
            _ if self.draw(12) < self.trouble => self.trouble(address),
            _ => {}
        }
        self.finish_for_the_dead();
        self.check();
    }

    fn trouble(&mut self, address: usize) {
        match self.draw(9) {
            0 | 1 if self.there[address].is_none() => self.join(address),
            0 => self.leave(address),
            1 => {
                self.dead.extend(self.there[address].take());
            }
            2 => {
                if let Some(process) = &mut self.there[address] {
                    process.cut_off = !process.cut_off;
                }
            }
            3 => {
                let count = self.links.len() as u64;
                let at = self.draw(count) as usize;
                self.lose(at);
            }
            4 => (0..self.links.len()).for_each(|at| self.lose(at)),
            5 => self.now += self.draw(LEASE),
            // Its feed has lost what is old.
            6 => {
                let at = self.draw(self.links.len() as u64) as usize;
                if self.links[at].open && self.links[at].coming.is_empty() {
                    let link = &mut self.links[at];
                    if let Some(process) = self.there[link.address].as_ref().filter(|process| process.epoch == link.to)
                    {
                        link.sent = process.log.len();
                        let position = Position { epoch: link.to, sequence: link.sent as u64 };
                        link.coming.push_back(Message::Start { position, resumed: false });
                    }
                }
            }
            _ => {}
        }
    }

    fn join(&mut self, address: usize) {
        self.joined += 1;
        let epoch = 1000 + self.joined;
        let alone = self.record.is_empty();
        self.record.push(Entry { epoch, address, beat_at: self.now });
        let process = Process {
            epoch,
            log: Vec::new(),
            open: Vec::new(),
            list: self.list(),
            list_until: self.now + LEASE,
            writes_from: if alone { self.now } else { self.now + JUDGED },
            cut_off: false,
            ended: false,
        };
        self.dead.extend(self.there[address].replace(process));
    }

    fn list(&self) -> Members {
        let member = |entry: &Entry| Member { epoch: entry.epoch, address: ADDRESSES[entry.address].into() };
        Members { joined: self.joined, list: self.record.iter().map(member).collect() }
    }

    fn refresh(&mut self, address: usize) {
        let list = self.list();
        let Some(process) = self.there[address].as_mut().filter(|process| !process.cut_off && !process.ended) else {
            return;
        };
        match self.record.iter_mut().find(|entry| entry.epoch == process.epoch) {
            Some(entry) => {
                entry.beat_at = self.now;
                (process.list, process.list_until) = (list, self.now + LEASE);
            }
            // The others took it for dead: another begins in its place.
            None => {
                self.dead.extend(self.there[address].take());
                self.join(address);
            }
        }
    }

    fn write(&mut self, address: usize) {
        let Some(process) = &mut self.there[address] else { return };
        if !process.ended
            && process.open.len() < 3
            && self.now >= process.writes_from
            && self.now + LEASE / 10 < process.list_until
        {
            process.open.push(self.writes.len());
            self.writes.push(Write { version: self.now, ..Write::default() });
        }
    }

    /// A write takes effect, or its purge is queued.
    fn go_on(&mut self, address: usize) {
        let Some(process) = self.there[address].as_mut().filter(|process| self.now < process.list_until) else {
            return;
        };
        let Some(first) = process.open.first().copied() else { return };
        let open = process.open.clone();
        if let Some(next) = open.iter().find(|write| self.writes[**write].took_effect_at.is_none()) {
            self.writes[*next].took_effect_at = Some(self.now);
        } else {
            process.open.remove(0);
            process.log.push(first);
        }
    }

    fn leave(&mut self, address: usize) {
        let Some(process) = self.there[address].as_mut().filter(|process| process.open.is_empty()) else { return };
        if self.now < process.list_until {
            process.ended = true;
            let epoch = process.epoch;
            self.record.retain(|entry| entry.epoch != epoch);
        }
    }

    /// Somebody who is there commits what the dead intended, and takes them off the list.
    fn finish_for_the_dead(&mut self) {
        let judged_by_others = |entry: &Entry| {
            let others = self.there.iter().flatten();
            others.into_iter().any(|other| other.epoch != entry.epoch && !other.cut_off && !other.ended)
        };
        let dead: Vec<u64> = self
            .record
            .iter()
            .filter(|entry| self.now > entry.beat_at + JUDGED && judged_by_others(entry))
            .map(|entry| entry.epoch)
            .collect();
        for epoch in dead {
            let processes = self.there.iter_mut().flatten().chain(&mut self.dead);
            for process in processes.filter(|process| process.epoch == epoch) {
                for write in process.open.drain(..) {
                    self.writes[write].took_effect_at.get_or_insert(self.now);
                }
            }
            self.record.retain(|entry| entry.epoch != epoch);
        }
    }

    fn lose(&mut self, at: usize) {
        let link = &mut self.links[at];
        self.roster.lost(ADDRESSES[link.address]);
        *link = Connection { address: link.address, ..Connection::default() };
    }

    /// Opens a link, or sees to whom there are to be links.
    fn connect(&mut self) {
        let configured: Vec<String> = ADDRESSES[..CONFIGURED].iter().map(|address| (*address).to_owned()).collect();
        for address in self.roster.wanted() {
            let address = ADDRESSES.iter().position(|known| *known == address).expect("it is one of ours");
            if !self.links.iter().any(|link| link.address == address) {
                self.links.push(Connection { address, ..Connection::default() });
            }
        }
        let roster = &mut self.roster;
        self.links.retain(|link| {
            let address = ADDRESSES[link.address];
            let keep = link.address < CONFIGURED
                || roster.is_listed(address) != Some(false) && !roster.is_spare(address, &configured);
            if !keep {
                roster.forget(address);
            }
            keep
        });
        let at = self.draw(self.links.len() as u64) as usize;
        let link = &mut self.links[at];
        let Some(process) = self.there[link.address].as_ref().filter(|_| !link.open) else { return };
        let from = self.roster.open(ADDRESSES[link.address]);
        let from = from.filter(|from| from.epoch == process.epoch && from.sequence <= process.log.len() as u64);
        link.open = true;
        link.to = process.epoch;
        link.sent = from.map_or(process.log.len(), |from| from.sequence as usize);
        let position = Position { epoch: process.epoch, sequence: link.sent as u64 };
        link.coming.push_back(Message::Start { position, resumed: from.is_some() });
    }

    fn ping(&mut self) {
        let at = self.draw(self.links.len() as u64) as usize;
        if self.links[at].open && self.links[at].pings.len() < 4 {
            let now = self.now;
            self.links[at].pings.push_back(now);
        }
    }

    /// One end of a link does its next thing: the origin sends what it has, or the fleet hears what has come.
    fn hear(&mut self) {
        let at = self.draw(self.links.len() as u64) as usize;
        let sends = self.draw(2) == 0;
        let link = &mut self.links[at];
        if !link.open {
            return;
        }
        let process = self.there[link.address].as_ref().filter(|process| process.epoch == link.to);
        if let (true, Some(process)) = (sends, process) {
            if !link.said_end && link.listed.as_ref() != Some(&process.list) {
                link.listed = Some(process.list.clone());
                link.coming.push_back(Message::Members(process.list.clone()));
            }
            if link.sent < process.log.len() {
                let items = process.log[link.sent..].to_vec();
                let first = link.sent as u64 + 1;
                link.coming.push_back(Message::Items { first, items: vec![purge("k"); items.len()] });
                link.sent = process.log.len();
                link.items.push_back(items);
            }
            if let Some(stamp) = link.pings.pop_front() {
                let begun_at = process.open.iter().map(|write| self.writes[*write].version).min();
                let age = Duration::from_nanos(begun_at.map_or(0, |begun_at| self.now - begun_at));
                let version = Version::from_u64(begun_at.map_or(self.now, |begun_at| begun_at - 1));
                let knows = !process.ended && self.now < process.list_until;
                let echo = Echo { stamp, proof: knows.then_some(Proof { age, version }) };
                link.coming.push_back(Message::Echo(echo));
            }
            if process.ended && !link.said_end {
                link.coming.push_back(Message::End);
                link.said_end = true;
            }
        } else if let Some(message) = link.coming.pop_front() {
            if let Message::Items { .. } = message {
                let items = link.items.pop_front().expect("each message of items has them");
                items.into_iter().for_each(|write| self.writes[write].heard = true);
            }
            self.roster.hear(ADDRESSES[link.address], message).expect("it speaks in its order");
        } else if process.is_none() {
            self.lose(at);
        }
    }

    fn check(&mut self) {
        if self.roster.gaps() > self.gaps {
            (self.gaps, self.gap_at) = (self.roster.gaps(), self.now);
        }
        let Some((moment, version)) = self.roster.watermark() else { return };
        for write in self.writes.iter().filter(|write| !write.heard) {
            let known_since_the_gap = write.took_effect_at.is_some_and(|at| at <= self.gap_at);
            let current_until = write.took_effect_at.map_or(Moment::MAX, Moment::from_nanos);
            let claimed = current_until < moment || write.version <= version.as_u64();
            assert!(
                !claimed || known_since_the_gap,
                "{:?} claims a write of {} unheard",
                (moment, version),
                write.version
            );
        }
    }
}

#[test]
fn whatever_is_proven_is_so_and_all_is_proven_again_when_all_is_well() {
    let histories = std::env::var("KVASAR_HISTORIES").map_or(HISTORIES, |count| count.parse().expect("a number"));
    let mut proven = 0;
    for seed in 0..histories {
        let mut history = History::new(seed);
        for _ in 0..STEPS {
            history.step();
            proven += u64::from(history.roster.watermark().is_some());
        }
        history.trouble = 0;
        for process in history.there.iter_mut().flatten() {
            process.cut_off = false;
        }
        // By one that the configuration names the others are found.
        if history.there[0].as_ref().is_none_or(|process| process.ended) {
            history.join(0);
        }
        for _ in 0..10 * JUDGED {
            history.step();
        }
        let since = history.roster.watermark().map(|(moment, _)| Moment::from_nanos(history.now).since(moment));
        let late = Duration::from_nanos(3 * JUDGED);
        assert!(since.is_some_and(|since| since < late), "seed {seed}: proven {since:?} ago at the end");
    }
    // Else nothing was tried.
    assert!(proven > histories * STEPS / 5, "{proven} steps with something proven");
}
