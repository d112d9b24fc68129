//! The rules of several origins, each as a claim about what is said on links.

mod history;

use std::{sync::Arc, time::Duration};

use super::*;
use crate::{
    clock::ManualClock,
    kv::{
        Key, NamespaceId,
        feed::{Echo, Member, Proof, Purge},
    },
    purge::feed::FeedSettings,
};

const A: &str = "a:7000";
const B: &str = "b:7000";

fn roster() -> Roster {
    let clock = ManualClock::shared();
    Roster::new(Feed::new(Arc::new(clock), &FeedSettings::default(), None))
}

fn at(seconds: u64) -> Moment {
    Moment::ZERO + Duration::from_secs(seconds)
}

fn place(epoch: u64, sequence: u64) -> Option<Position> {
    Some(Position { epoch, sequence })
}

fn purge(name: &str) -> Item {
    let (namespace, key) = (NamespaceId::from_u128(7), Key::new(name.to_owned()).unwrap());
    Item::Purge(Purge { namespace, key, version: Version::from_u64(1), state: None })
}

impl Roster {
    fn starts(&mut self, address: &str, epoch: u64, sequence: u64, resumed: bool) {
        let position = Position { epoch, sequence };
        self.hear(address, Message::Start { position, resumed }).unwrap();
    }

    /// A link to an origin that many have followed before.
    fn follows(&mut self, address: &str, epoch: u64) {
        self.open(address);
        self.starts(address, epoch, 10, false);
    }

    fn lists(&mut self, address: &str, joined: u64, list: &[(u64, &str)]) {
        let list =
            list.iter().map(|(epoch, address)| Member { epoch: *epoch, address: (*address).to_owned() }).collect();
        self.hear(address, Message::Members(Members { joined, list })).unwrap();
    }

    /// An echo that proves what was so at a moment.
    fn proves(&mut self, address: &str, seconds: u64) {
        let age = Duration::from_secs(1);
        let proof = Some(Proof { age, version: Version::from_u64(seconds) });
        self.hear(address, Message::Echo(Echo { stamp: at(seconds + 1).as_nanos(), proof })).unwrap();
    }

    fn proves_nothing(&mut self, address: &str) {
        self.hear(address, Message::Echo(Echo { stamp: at(1000).as_nanos(), proof: None })).unwrap();
    }

    fn says(&mut self, address: &str, first: u64, item: Item) {
        self.hear(address, Message::Items { first, items: vec![item] }).unwrap();
    }

    fn ends(&mut self, address: &str) {
        self.hear(address, Message::End).unwrap();
    }

    fn gaps(&self) -> u64 {
        self.feed.counts().gaps
    }

    /// In seconds; zero for none.
    fn proven(&self) -> u64 {
        let Some((moment, version)) = self.watermark() else { return 0 };
        assert_eq!(version.as_u64(), moment.since(Moment::ZERO).as_secs(), "both are the least of all");
        version.as_u64()
    }
}

const BOTH: [(u64, &str); 2] = [(1, A), (2, B)];

/// Two origins, both followed, at a watermark of 20 seconds, as if nothing had ever been missed.
fn both() -> (Roster, u64) {
    let mut roster = roster();
    for (epoch, address) in BOTH {
        roster.follows(address, epoch);
        roster.lists(address, 2, &BOTH);
    }
    for (_, address) in BOTH {
        roster.proves(address, 20);
    }
    assert_eq!(roster.proven(), 20);
    let gaps = roster.gaps();
    (roster, gaps)
}

#[test]
fn the_watermark_is_the_least_of_all_members() {
    let (mut roster, gaps) = both();
    roster.proves(A, 30);
    assert_eq!(roster.proven(), 20);
    roster.proves(B, 25);
    assert_eq!(roster.proven(), 25);
    roster.proves(B, 40);
    assert_eq!(roster.proven(), 30);
    // An older proof takes nothing back.
    roster.proves(A, 28);
    assert_eq!((roster.proven(), roster.gaps()), (30, gaps));
}

#[test]
fn a_member_that_nobody_follows_stops_the_watermark() {
    let mut roster = roster();
    roster.follows(A, 1);
    roster.lists(A, 2, &BOTH);
    roster.proves(A, 30);
    assert_eq!(roster.proven(), 0);
    assert_eq!(roster.wanted().into_iter().collect::<Vec<_>>(), [B]);
    // Somebody else answers there.
    roster.follows(B, 9);
    roster.proves(A, 40);
    roster.proves(B, 40);
    assert_eq!(roster.proven(), 0);
    roster.lost(B);
    roster.follows(B, 2);
    for address in [A, B, A] {
        roster.proves(address, 50);
    }
    assert_eq!(roster.proven(), 50);
    assert!(roster.wanted().is_empty());
}

#[test]
fn a_newcomer_counts_from_the_first_list_on_that_has_it() {
    let (mut roster, gaps) = both();
    roster.lists(A, 3, &[(1, A), (2, B), (3, "c:7000")]);
    assert_eq!(roster.wanted().into_iter().collect::<Vec<_>>(), ["c:7000"]);
    for _ in 0..2 {
        roster.proves(B, 30);
        roster.proves(A, 30);
        assert_eq!(roster.proven(), 20);
    }
    assert_eq!(roster.open("c:7000"), place(3, 0));
    roster.starts("c:7000", 3, 0, true);
    roster.says("c:7000", 1, purge("written before anybody listened"));
    roster.proves("c:7000", 28);
    assert_eq!((roster.proven(), roster.gaps()), (28, gaps));
}

#[test]
fn what_a_newcomer_changed_before_it_was_followed_is_missed_unless_it_says_it_all() {
    for (sequence, resumed, missed) in [(0, true, 0), (0, false, 0), (5, false, 1)] {
        let (mut roster, gaps) = both();
        roster.lists(A, 3, &[(1, A), (2, B), (3, "c:7000")]);
        assert_eq!(roster.open("c:7000"), place(3, 0));
        roster.starts("c:7000", 3, sequence, resumed);
        assert_eq!(roster.gaps(), gaps + missed, "from {sequence}, resumed {resumed}");
    }
}

#[test]
fn a_link_that_goes_on_where_it_was_has_missed_nothing() {
    let (mut roster, gaps) = both();
    roster.says(B, 11, purge("k"));
    roster.lost(B);
    roster.proves(A, 30);
    assert_eq!(roster.proven(), 20);
    assert_eq!(roster.open(B), place(2, 11));
    roster.starts(B, 2, 11, true);
    // Its list comes before its first echo, and until then the other's has it.
    roster.proves(A, 40);
    assert_eq!(roster.proven(), 20);
    roster.lists(B, 2, &BOTH);
    roster.proves(B, 45);
    assert_eq!((roster.proven(), roster.gaps()), (40, gaps));
}

#[test]
fn a_link_that_begins_anew_is_a_gap_and_all_have_to_prove_something_after_it() {
    for (sequence, resumed) in [(11, false), (15, false), (15, true)] {
        let (mut roster, gaps) = both();
        roster.says(B, 11, purge("k"));
        roster.proves(A, 30);
        roster.lost(B);
        assert_eq!(roster.open(B), place(2, 11));
        roster.starts(B, 2, sequence, resumed);
        assert_eq!((roster.proven(), roster.gaps()), (0, gaps + 1));
        roster.lists(B, 2, &BOTH);
        roster.proves(B, 40);
        assert_eq!(roster.proven(), 0);
        roster.proves(A, 35);
        assert_eq!((roster.proven(), roster.gaps()), (35, gaps + 1));
    }
}

#[test]
fn a_follower_that_lost_its_place_in_the_middle_has_a_gap() {
    let (mut roster, gaps) = both();
    roster.lost(B);
    roster.open(B);
    roster.starts(B, 2, 10, true);
    roster.says(B, 11, purge("k"));
    assert_eq!(roster.gaps(), gaps);
    roster.starts(B, 2, 90, false);
    assert_eq!((roster.proven(), roster.gaps()), (0, gaps + 1));
}

#[test]
fn a_gap_that_is_told_is_a_gap() {
    let (mut roster, gaps) = both();
    roster.says(A, 11, Item::Gap);
    assert_eq!((roster.proven(), roster.gaps()), (0, gaps + 1));
    roster.proves(A, 30);
    assert_eq!(roster.proven(), 0);
    roster.proves(B, 30);
    assert_eq!(roster.proven(), 30);
}

#[test]
fn who_has_left_with_an_end_is_neither_waited_for_nor_missed() {
    let (mut roster, gaps) = both();
    roster.says(B, 11, purge("its last"));
    roster.ends(B);
    // The other's list is still a little behind.
    roster.proves(A, 30);
    assert_eq!((roster.proven(), roster.gaps()), (30, gaps));
    assert!(roster.wanted().is_empty());
    // It is asked once more before its process is gone.
    roster.lost(B);
    roster.open(B);
    roster.starts(B, 2, 11, false);
    roster.proves(B, 1);
    roster.lists(A, 2, &[(1, A)]);
    roster.proves(A, 40);
    roster.lost(B);
    roster.proves(A, 50);
    assert_eq!((roster.proven(), roster.gaps()), (50, gaps));
}

/// It can't know what has become of the others since.
#[test]
fn the_list_of_one_that_has_left_holds_nobody_up() {
    const ALL: [(u64, &str); 3] = [(1, A), (2, B), (3, "c:7000")];
    for comes_back in [false, true] {
        let (mut roster, _) = both();
        roster.lists(A, 3, &ALL);
        roster.follows("c:7000", 3);
        for address in [A, B, "c:7000"] {
            roster.lists(address, 3, &ALL);
            roster.proves(address, 30);
        }
        roster.ends(B);
        if comes_back {
            roster.lost(B);
            roster.open(B);
            roster.starts(B, 2, 10, false);
            roster.lists(B, 3, &ALL);
            roster.proves(B, 40);
        }
        roster.lost("c:7000");
        roster.lists(A, 3, &[(1, A)]);
        for seconds in [40, 50] {
            roster.proves(A, seconds);
        }
        assert_eq!(roster.proven(), 50, "comes back: {comes_back}");
    }
}

#[test]
fn who_is_gone_without_a_word_is_a_gap_once_and_no_more_waited_for() {
    let (mut roster, gaps) = both();
    roster.lost(B);
    roster.lists(A, 2, &[(1, A)]);
    roster.proves(A, 30);
    assert_eq!((roster.proven(), roster.gaps()), (0, gaps + 1));
    roster.proves(A, 40);
    assert_eq!((roster.proven(), roster.gaps()), (40, gaps + 1));
}

/// It can't reach the store: the others have taken it off the list, and it proves nothing, but its link is there.
#[test]
fn who_was_taken_off_the_list_does_not_hold_up_the_others_by_being_there() {
    let (mut roster, gaps) = both();
    roster.proves_nothing(B);
    roster.proves(A, 30);
    assert_eq!(roster.proven(), 20);
    roster.lists(A, 2, &[(1, A)]);
    roster.proves(A, 40);
    roster.proves_nothing(B);
    roster.proves(A, 50);
    assert_eq!((roster.proven(), roster.gaps()), (50, gaps + 1));
    // Its link is lost and comes back, with its old list: that says nothing new.
    roster.lost(B);
    roster.open(B);
    roster.starts(B, 2, 10, true);
    roster.lists(B, 2, &BOTH);
    roster.proves_nothing(B);
    let gaps = roster.gaps();
    roster.proves(A, 60);
    roster.proves(A, 70);
    assert_eq!((roster.proven(), roster.gaps()), (70, gaps));
}

#[test]
fn a_list_proves_nothing_by_itself() {
    let (mut roster, _) = both();
    roster.lost(A);
    roster.lost(B);
    roster.open(A);
    roster.starts(A, 1, 10, true);
    roster.lists(A, 2, &[(1, A)]);
    roster.proves_nothing(A);
    assert_eq!(roster.proven(), 20);
}

#[test]
fn an_end_lets_the_next_process_of_the_address_begin_without_a_gap() {
    let (mut roster, gaps) = both();
    roster.ends(B);
    roster.lost(B);
    roster.lists(A, 3, &[(1, A), (3, B)]);
    roster.proves(A, 30);
    assert_eq!(roster.proven(), 20);
    assert_eq!(roster.open(B), place(3, 0));
    roster.starts(B, 3, 0, true);
    roster.lists(B, 3, &[(1, A), (3, B)]);
    roster.proves(B, 40);
    assert_eq!((roster.proven(), roster.gaps()), (30, gaps));
}

#[test]
fn without_an_end_the_next_process_of_the_address_is_no_substitute() {
    let (mut roster, gaps) = both();
    roster.lost(B);
    roster.lists(A, 3, &[(1, A), (2, B), (3, B)]);
    assert_eq!(roster.open(B), place(3, 0));
    roster.starts(B, 3, 0, true);
    roster.lists(B, 3, &[(1, A), (2, B), (3, B)]);
    roster.proves(A, 30);
    roster.proves(B, 30);
    // The dead one may have written until its lease ended.
    assert_eq!((roster.proven(), roster.gaps()), (20, gaps));
    roster.lists(A, 3, &[(1, A), (3, B)]);
    roster.proves(A, 40);
    // The other's list still has it.
    assert_eq!((roster.proven(), roster.gaps()), (20, gaps));
    roster.lists(B, 3, &[(1, A), (3, B)]);
    roster.proves(B, 40);
    assert_eq!((roster.proven(), roster.gaps()), (0, gaps + 1));
    roster.proves(B, 50);
    roster.proves(A, 50);
    assert_eq!((roster.proven(), roster.gaps()), (50, gaps + 1));
}

#[test]
fn of_several_that_were_listed_at_an_address_the_last_one_is_there() {
    let (mut roster, _) = both();
    roster.lists(A, 4, &[(1, A), (2, B), (3, "c:7000"), (4, "c:7000")]);
    assert_eq!(roster.open("c:7000"), place(4, 0));
    roster.starts("c:7000", 4, 0, true);
    roster.says("c:7000", 1, purge("k"));
    roster.lost("c:7000");
    // It was followed; the earlier one never will be.
    roster.lists(A, 4, &[(1, A), (2, B), (4, "c:7000")]);
    assert_eq!(roster.open("c:7000"), place(4, 1));
}

#[test]
fn an_unknown_process_at_the_address_is_a_gap_unless_it_has_said_nothing_yet() {
    for (sequence, missed) in [(0, 0), (1, 1)] {
        let (mut roster, gaps) = both();
        roster.lost(B);
        assert_eq!(roster.open(B), place(2, 10));
        roster.starts(B, 3, sequence, false);
        assert_eq!(roster.gaps(), gaps + missed);
    }
}

/// All links were lost; somebody came, wrote and left meanwhile.
#[test]
fn who_came_and_went_unheard_is_a_gap() {
    for (joined, list, missed) in [
        (2, &[(1, A), (2, B)][..], 0),
        (3, &[(1, A), (2, B), (3, "c:7000")], 0),
        (3, &[(1, A), (2, B)], 1),
        (4, &[(1, A), (2, B), (4, "c:7000")], 1),
        (4, &[(1, A), (3, "c:7000"), (4, "d:7000")], 0),
    ] {
        let (mut roster, gaps) = both();
        roster.lost(A);
        roster.lost(B);
        roster.open(A);
        roster.starts(A, 1, 10, true);
        roster.lists(A, joined, list);
        assert_eq!(roster.gaps(), gaps + missed, "{joined} had joined, {list:?}");
        // The other one says the same, or was a little behind.
        roster.open(B);
        roster.starts(B, 2, 10, true);
        roster.lists(B, 2, &BOTH);
        roster.lists(B, joined, list);
        assert_eq!(roster.gaps(), gaps + missed, "{joined} had joined, {list:?}");
    }
}

/// Nobody can say who was there just before it.
#[test]
fn the_first_list_of_all_is_a_gap() {
    let mut roster = roster();
    roster.open(A);
    roster.starts(A, 1, 0, false);
    assert_eq!(roster.gaps(), 0);
    roster.lists(A, 1, &[(1, A)]);
    assert_eq!(roster.gaps(), 1);
    roster.lists(A, 2, &BOTH);
    assert_eq!(roster.gaps(), 1);
}

#[test]
fn a_record_that_begins_anew_is_a_gap_and_counts_from_there() {
    let (mut roster, gaps) = both();
    roster.lists(A, 1, &[(9, A)]);
    assert_eq!(roster.gaps(), gaps + 1);
    roster.lists(A, 3, &[(9, A), (11, B)]);
    assert_eq!(roster.gaps(), gaps + 2);
}

#[test]
fn who_joined_after_a_list_was_made_is_not_gone_for_not_being_on_it() {
    let (mut roster, gaps) = both();
    roster.lists(B, 3, &[(1, A), (2, B), (3, "c:7000")]);
    roster.lost(B);
    roster.proves(A, 30);
    assert_eq!((roster.proven(), roster.gaps()), (20, gaps));
    roster.open("c:7000");
    roster.starts("c:7000", 3, 0, true);
    roster.lists("c:7000", 3, &[(1, A), (2, B), (3, "c:7000")]);
    roster.proves("c:7000", 30);
    roster.proves(A, 40);
    assert_eq!((roster.proven(), roster.gaps()), (20, gaps));
    // Once a list is as new, it is.
    roster.lost("c:7000");
    roster.lists(A, 3, &[(1, A), (2, B)]);
    roster.proves(A, 50);
    assert_eq!((roster.proven(), roster.gaps()), (0, gaps + 1));
}

#[test]
fn an_origin_alone_on_its_store_is_all_there_is() {
    let mut roster = roster();
    roster.follows(A, 1);
    roster.proves(A, 30);
    assert_eq!(roster.proven(), 30);
    let gaps = roster.gaps();
    roster.says(A, 11, purge("k"));
    roster.lost(A);
    // Its next process goes on in the same feed, and has what the earlier one wrote last.
    assert_eq!(roster.open(A), place(1, 11));
    roster.starts(A, 2, 11, true);
    roster.says(A, 12, purge("k"));
    roster.proves(A, 40);
    assert_eq!((roster.proven(), roster.gaps()), (40, gaps));
    roster.lost(A);
    assert_eq!(roster.open(A), place(2, 12));
    roster.starts(A, 3, 13, false);
    assert_eq!(roster.gaps(), gaps + 1);
    for _ in 0..2 {
        roster.proves(A, 50);
    }
    assert_eq!(roster.proven(), 50);
    // The address leads to another store, of which nothing was missed; but of the first, who knows.
    let gaps = roster.gaps();
    roster.lost(A);
    roster.open(A);
    roster.starts(A, 9, 0, false);
    roster.proves(A, 60);
    assert_eq!((roster.proven(), roster.gaps()), (0, gaps + 1));
}

/// The configuration's name for it, and the one under which it is listed.
#[test]
fn two_addresses_that_lead_to_one_origin_are_one_member() {
    let mut roster = roster();
    roster.follows(A, 1);
    roster.follows("alias:7000", 2);
    roster.lists(A, 2, &BOTH);
    assert!(roster.wanted().is_empty());
    roster.open(B);
    roster.starts(B, 2, 0, true);
    assert_eq!(roster.known[&2].sequence, Some(10));
    let gaps = roster.gaps();
    roster.lists("alias:7000", 2, &BOTH);
    for address in [A, "alias:7000", B] {
        roster.says(address, if address == B { 1 } else { 11 }, purge("k"));
    }
    assert!(roster.is_spare(B, &["alias:7000".into()]) && !roster.is_spare(A, &["alias:7000".into()]));
    roster.forget(B);
    roster.proves(A, 30);
    roster.proves("alias:7000", 40);
    assert_eq!((roster.proven(), roster.gaps()), (30, gaps));
    // The next process there is known by the address on the list.
    roster.ends("alias:7000");
    roster.lost("alias:7000");
    roster.lists(A, 3, &[(1, A), (3, B)]);
    assert_eq!(roster.open("alias:7000"), place(3, 0));
}

#[test]
fn who_is_listed_is_known_while_there_is_a_list() {
    let (mut roster, _) = both();
    assert_eq!((roster.is_listed(A), roster.is_listed("c:7000")), (Some(true), Some(false)));
    roster.lost(A);
    roster.lost(B);
    assert_eq!((roster.is_listed(A), roster.is_listed("c:7000")), (None, None));
}

#[test]
fn what_comes_on_a_link_that_was_given_up_is_refused() {
    let (mut roster, gaps) = both();
    roster.lost(B);
    for message in [Message::End, Message::Items { first: 11, items: vec![Item::Gap] }] {
        assert!(roster.hear(B, message).is_err());
    }
    roster.forget(B);
    let start = Message::Start { position: Position { epoch: 2, sequence: 10 }, resumed: true };
    assert!(roster.hear(B, start).is_err());
    let list = (0..1000).map(|epoch| Member { epoch, address: A.into() }).collect();
    assert!(roster.hear(A, Message::Members(Members { joined: 1000, list })).is_err());
    assert_eq!(roster.gaps(), gaps);
}

#[test]
fn what_is_known_does_not_grow_with_those_who_have_gone() {
    let (mut roster, _) = both();
    for epoch in 3..2000 {
        roster.lists(A, epoch, &[(1, A), (2, B), (epoch, "c:7000")]);
        roster.open("c:7000");
        roster.starts("c:7000", epoch, 0, true);
        match epoch % 2 {
            0 => roster.ends("c:7000"),
            _ => roster.lost("c:7000"),
        }
        roster.lists(A, epoch, &BOTH);
        roster.proves(A, 10_000 + epoch);
        roster.proves(B, 10_000 + epoch);
    }
    // And those that were on no list.
    for epoch in 3000..3100 {
        roster.follows("c:7000", epoch);
    }
    roster.lists(A, 2000, &BOTH);
    for address in [A, B, A, B] {
        roster.proves(address, 30_000);
    }
    assert!(roster.known.len() <= 4, "{} are known", roster.known.len());
    assert!(roster.ended.len() <= ENDED_MAX && roster.links.len() == 3);
}
