//! What the cache's memory really takes: bytes beyond key and value of each entry, and the process against its budget, also after churn.
//!
//! Each row is measured in a process of its own, which is this program again with arguments, and by what the process grows by: so the allocator's
//! rounding and its holes count, too.

use std::{process::Command, sync::Arc};

use crate::{chance::Chance, process::memory};
use bytes::Bytes;
use clap::ValueEnum;
use kvasar::{
    cache::memory::Memory,
    clock::{Moment, RealClock},
    kv::{
        Key, NamespaceId, Version,
        kept::{Content, EntryKey, Kept, KeptValue, Verified},
    },
};

/// What is measured in a process of its own.
#[derive(clap::Subcommand)]
pub enum Part {
    /// Bytes beyond key and value
    Entry { value_bytes: usize, entries: u64 },
    /// The process with a full cache
    Budget { mebibytes: u64, lengths: Lengths, threads: u64 },
}

pub fn run(part: Option<&Part>) {
    match part {
        None => tables(),
        Some(Part::Entry { value_bytes, entries }) => println!("{}", entry(*value_bytes, *entries)),
        Some(Part::Budget { mebibytes, lengths, threads }) => println!("{}", budget(*mebibytes, *lengths, *threads)),
    }
}

fn tables() {
    println!("| values | entries | bytes beyond key and value |\n|---|---|---|");
    for value_bytes in ["0", "100", "300", "1024", "10000"] {
        for entries in ["200000", "400000", "700000", "1000000"] {
            println!("| {value_bytes} B | {entries} | {} |", in_own_process(&["entry", value_bytes, entries], true));
        }
    }
    println!("\n| budget | values | threads | arenas | entries | full, RSS | churned, RSS | most it may |");
    println!("|---|---|---|---|---|---|---|---|");
    for mebibytes in ["256", "1024"] {
        for lengths in Lengths::value_variants() {
            let value = lengths.to_possible_value().expect("it has a name");
            for (threads, one_arena) in [("1", true), ("8", true), ("8", false)] {
                let row = in_own_process(&["budget", mebibytes, value.get_name(), threads], one_arena);
                let arenas = if one_arena { "one" } else { "as glibc does" };
                println!("| {mebibytes} MiB | {} | {threads} | {arenas} | {row} |", value.get_name());
            }
        }
    }
}

/// With one arena of the allocator's, as a server runs, or as many as it makes unless told.
fn in_own_process(arguments: &[&str], one_arena: bool) -> String {
    let this = std::env::current_exe().expect("this program is a file");
    let mut command = Command::new(this);
    command.arg("cache-memory").args(arguments).env_remove("MALLOC_ARENA_MAX");
    if one_arena {
        command.env("MALLOC_ARENA_MAX", "1");
    }
    let output = command.output().expect("this program runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

const KEY_BYTES: usize = 20;

/// Fills in as a tier does: the value arrives in a buffer of its own, which is gone once the entry is made.
fn kept(number: u64, value: Bytes) -> Kept {
    let namespace = NamespaceId::from_u128(0x0f2a_c74b_498b_4802_8cb6_8387_c421_e279);
    let key = Key::new(format!("{number:0width$}", width = KEY_BYTES)).expect("20 bytes");
    let content = Content::Present { value: KeptValue::Whole(value), metadata: None, expiration: None };
    let verified = Verified::at(Moment::from_nanos(1 << 40));
    Kept::new(&EntryKey { namespace, key }, Version::from_u64(1), content, Moment::MAX, verified)
}

fn resident() -> u64 {
    memory(std::process::id(), "VmRSS")
}

/// What each of so many entries takes beyond its key and value, while nothing has to go.
fn entry(value_bytes: usize, entries: u64) -> String {
    let held = Memory::new(1 << 40, 0.1, &*RealClock::shared());
    let before = resident();
    for number in 0..entries {
        held.insert(kept(number, vec![number as u8; value_bytes].into()));
    }
    assert_eq!(held.entries() as u64, entries);
    format!("{:.1}", (resident() - before) as f64 / entries as f64 - (KEY_BYTES + value_bytes) as f64)
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Lengths {
    /// 100 bytes.
    Small,
    /// 1 KiB.
    Kibibyte,
    /// From 50 bytes to 256 KiB, each doubling as likely as the others; a value in a thousand has 2 MiB.
    Mixed,
}

impl Lengths {
    fn draw(self, chance: &mut Chance) -> usize {
        match self {
            Lengths::Small => 100,
            Lengths::Kibibyte => 1024,
            Lengths::Mixed if chance.draw().is_multiple_of(1000) => 2 << 20,
            Lengths::Mixed => {
                let doubling = 50usize << (chance.draw() % 12);
                (doubling + (chance.draw() as usize) % doubling).min(256 << 10)
            }
        }
    }

    /// About as many keys as fill the budget twice.
    fn keys(self, budget: u64) -> u64 {
        2 * budget
            / match self {
                Lengths::Small => 240,
                Lengths::Kibibyte => 1160,
                Lengths::Mixed => 26_000,
            }
    }
}

/// The process with a full cache, and after its keys were written, removed and filled in again, in other lengths.
fn budget(mebibytes: u64, lengths: Lengths, threads: u64) -> String {
    let budget = mebibytes << 20;
    let held = Arc::new(Memory::new(budget, 0.1, &*RealClock::shared()));
    let keys = lengths.keys(budget);
    let in_threads = |work: &(dyn Fn(u64, &mut Chance) + Sync)| {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || work(thread, &mut Chance::new(thread + 1)));
            }
        });
    };
    in_threads(&|thread, chance| {
        for number in (thread..keys).step_by(threads as usize) {
            held.insert(kept(number, vec![number as u8; lengths.draw(chance)].into()));
        }
    });
    let full = resident();
    let entries = held.entries();
    in_threads(&|_, chance| {
        for _ in 0..4 * keys / threads {
            // Some are new, some are held and take another length, some are purged.
            let number = chance.draw() % (2 * keys);
            let state = kept(number, vec![number as u8; lengths.draw(chance)].into());
            match chance.draw() % 8 {
                0 => held.remove(state.name()),
                1..4 => _ = held.get(state.name()),
                _ => held.insert(state),
            }
        }
    });
    let churned = resident();
    let most = budget as f64 * 1.1 + (64 << 20) as f64;
    let verdict = if full.max(churned) as f64 <= most { "" } else { ", and it is more" };
    let show = |bytes: f64| format!("{:.0} MiB", bytes / (1 << 20) as f64);
    format!("{entries} | {} | {} | {}{verdict}", show(full as f64), show(churned as f64), show(most))
}
