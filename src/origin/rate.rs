//! The optional limit on writes per key and second, so that people can see their 429s before production does.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    clock::{Clock, Moment},
    error::{Error, Kind, Result},
    kv::{Key, NamespaceId},
};

const WINDOW: Duration = Duration::from_secs(1);
/// Keys that are watched at once. Beyond it, further keys go unlimited: this is a courtesy to developers, not a defence.
const KEYS_MAX: usize = 100_000;

pub(super) struct WriteRate {
    clock: Arc<dyn Clock>,
    per_second: u32,
    recent: Mutex<HashMap<(NamespaceId, Key), Window>>,
}

struct Window {
    start: Moment,
    writes: u32,
}

impl WriteRate {
    pub(super) fn new(clock: Arc<dyn Clock>, per_second: u32) -> WriteRate {
        WriteRate { clock, per_second, recent: Mutex::default() }
    }

    /// Counts a write to a key, or refuses it.
    pub(super) fn charge(&self, namespace: NamespaceId, key: &Key) -> Result<()> {
        let now = self.clock.now();
        let mut recent = self.recent.lock().expect("no holder of this lock can panic");
        let watched = (namespace, key.clone());
        if recent.len() >= KEYS_MAX && !recent.contains_key(&watched) {
            recent.retain(|_, window| now.since(window.start) < WINDOW);
            if recent.len() >= KEYS_MAX {
                return Ok(());
            }
        }
        let window = recent.entry(watched).or_insert(Window { start: now, writes: 0 });
        if now.since(window.start) >= WINDOW {
            *window = Window { start: now, writes: 0 };
        }
        if window.writes >= self.per_second {
            let wait = WINDOW.saturating_sub(now.since(window.start));
            return Err(Error::new(Kind::RateLimited, "Too Many Requests").after(wait));
        }
        window.writes += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn a_key_takes_so_many_writes_a_second_and_others_are_not_slowed() {
        let clock = ManualClock::shared();
        let rate = WriteRate::new(Arc::new(Arc::clone(&clock)), 2);
        let namespace = NamespaceId::from_u128(1);
        let (a, b) = (Key::new("a").unwrap(), Key::new("b").unwrap());
        rate.charge(namespace, &a).unwrap();
        rate.charge(namespace, &a).unwrap();
        let refused = rate.charge(namespace, &a).unwrap_err();
        assert_eq!((refused.kind, refused.message.as_str()), (Kind::RateLimited, "Too Many Requests"));
        assert_eq!(refused.retry_after, Some(WINDOW));
        rate.charge(namespace, &b).unwrap();
        rate.charge(NamespaceId::from_u128(2), &a).unwrap();
        clock.advance(WINDOW);
        rate.charge(namespace, &a).unwrap();
    }

    #[test]
    fn watching_keys_takes_bounded_memory() {
        let clock = ManualClock::shared();
        let rate = WriteRate::new(Arc::new(Arc::clone(&clock)), 1);
        let namespace = NamespaceId::from_u128(1);
        for i in 0..KEYS_MAX + 10 {
            rate.charge(namespace, &Key::new(i.to_string()).unwrap()).unwrap();
        }
        assert_eq!(rate.recent.lock().unwrap().len(), KEYS_MAX);
        clock.advance(WINDOW);
        rate.charge(namespace, &Key::new("another").unwrap()).unwrap();
        assert_eq!(rate.recent.lock().unwrap().len(), 1);
    }
}
