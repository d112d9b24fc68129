//! The agreed records of the shared store: each change is made on what the last one left, or not at all, whatever its caller is told.
//!
//! A caller that is told of an error doesn't know whether its change was made, and it may still be, a few seconds later: a coordinator whose caller went away
//! goes on with its rounds until its own deadline, also past another's read of the record. It is made then only if the record still has the revision.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
pub(crate) use kvasar::store::Agreed;
use kvasar::{
    error::{Error, Result},
    store::{Agreement, Replaced},
};

use crate::{
    clock::{MILLI, Nanos},
    quorum::{Ring, RingStore},
};

/// How long a coordinator goes on when its caller has gone.
const ROUNDS_MAX: Nanos = 3000 * MILLI;

/// A change takes several rounds among the replicas.
const ROUNDS: u32 = 4;

impl Ring {
    fn rounds(&self) -> Nanos {
        let trip = self.manner.trip as f64;
        let mut state = self.lock();
        (0..ROUNDS).map(|_| (trip / 2.0 + state.chance.exponential(trip / 2.0)) as Nanos).sum()
    }

    fn agreed(&self, name: &str) -> Agreed {
        self.lock().agreed.get(name).cloned().unwrap_or_default()
    }

    fn compare_and_set(&self, name: &str, revision: u64, value: Bytes) -> Replaced {
        let mut state = self.lock();
        let agreed = state.agreed.entry(name.to_owned()).or_default();
        if agreed.revision != revision {
            return Replaced::Overtaken(agreed.clone());
        }
        *agreed = Agreed { revision: revision + 1, value };
        Replaced::Done
    }
}

/// What becomes of a change.
#[derive(Clone, Copy)]
enum Fate {
    Done,
    Lost,
    Unsaid,
    Late,
}

impl RingStore {
    fn undecided(&self) -> Error {
        Error::unavailable("the change of an agreed record was not decided in time")
    }

    async fn agree(&self) -> Result<()> {
        self.leave().await?;
        let rounds = self.ring.rounds();
        self.ring.time.sleep(rounds).await;
        if !self.ring.has_quorum() {
            return Err(self.unanswered().await);
        }
        Ok(())
    }
}

#[async_trait]
impl Agreement for RingStore {
    async fn read(&self, name: &str) -> Result<Agreed> {
        self.agree().await?;
        let agreed = self.ring.agreed(name);
        self.come_back().await?;
        Ok(agreed)
    }

    async fn replace(&self, name: &str, revision: u64, value: Bytes) -> Result<Replaced> {
        self.agree().await?;
        let fate = {
            let mut state = self.ring.lock();
            if state.chance.happens(self.ring.manner.unknown) && !state.calm {
                *state.chance.pick(&[Fate::Lost, Fate::Unsaid, Fate::Late])
            } else {
                Fate::Done
            }
        };
        match fate {
            Fate::Done => {
                let replaced = self.ring.compare_and_set(name, revision, value);
                self.come_back().await?;
                return Ok(replaced);
            }
            Fate::Lost => {}
            Fate::Unsaid => {
                self.ring.compare_and_set(name, revision, value);
            }
            Fate::Late => {
                let (ring, name) = (Arc::clone(&self.ring), name.to_owned());
                let delay = ring.lock().chance.below(ROUNDS_MAX);
                ring.lock().under_way += 1;
                tokio::spawn(async move {
                    ring.time.sleep(delay).await;
                    ring.compare_and_set(&name, revision, value);
                    ring.lock().under_way -= 1;
                });
            }
        }
        let patience = self.ring.lock().chance.below(self.ring.manner.deadline);
        self.ring.time.sleep(patience).await;
        self.come_back().await?;
        Err(self.undecided())
    }
}
