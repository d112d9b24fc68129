//! Threads that serve connections, one for each core: each has a runtime of its own, and a connection stays on the one that it was given to.
//!
//! So a hot read wakes no other thread and shares no queue with one. A new connection goes to the thread that has the fewest.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio::runtime::{Builder, Handle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::error::{Error, Result};

pub struct Threads {
    threads: Box<[Thread]>,
    ended: CancellationToken,
}

struct Thread {
    runtime: Handle,
    /// Connections that it serves.
    connections: Arc<AtomicUsize>,
}

impl Threads {
    /// As many as there are cores that this process may use.
    pub fn start() -> Result<Threads> {
        let ended = CancellationToken::new();
        let count = thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..count).map(|number| Thread::start(number, ended.clone()));
        Ok(Threads { threads: threads.collect::<Result<_>>()?, ended })
    }

    /// Serves a connection on the thread that has the fewest.
    pub fn spawn(&self, tasks: &TaskTracker, connection: impl Future<Output = ()> + Send + 'static) {
        let least = self.threads.iter().min_by_key(|thread| thread.connections.load(Ordering::Relaxed));
        let Thread { runtime, connections } = least.expect("there is a thread for each core");
        connections.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(Arc::clone(connections));
        let task = async move {
            let _counted = counted;
            connection.await;
        };
        tasks.spawn_on(task, runtime);
    }
}

impl Threads {
    /// Ends the threads. What is still under way on them is broken off.
    pub fn end(&self) {
        self.ended.cancel();
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.end();
    }
}

impl Thread {
    fn start(number: usize, ended: CancellationToken) -> Result<Thread> {
        let failed = |e| Error::internal("starting a thread that serves connections").with_source(e);
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let run = move || runtime.block_on(ended.cancelled());
        thread::Builder::new().name(format!("serve-{number}")).spawn(run).map_err(failed)?;
        Ok(Thread { runtime: handle, connections: Arc::default() })
    }
}

/// Counts a connection of a thread while it lives.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Mutex};

    use super::*;

    #[tokio::test]
    async fn connections_are_spread_over_the_threads_and_go_where_one_ended() {
        let threads = Threads::start().expect("threads start");
        let (tasks, seen) = (TaskTracker::new(), Arc::new(Mutex::new(HashSet::new())));
        let count = threads.threads.len();
        let ends: Vec<_> = (0..count)
            .map(|_| {
                let (end, ended) = tokio::sync::oneshot::channel::<()>();
                let seen = Arc::clone(&seen);
                threads.spawn(&tasks, async move {
                    seen.lock().unwrap().insert(thread::current().id());
                    let _ = ended.await;
                });
                end
            })
            .collect();
        drop(ends);
        tasks.close();
        tasks.wait().await;
        assert_eq!(seen.lock().unwrap().len(), count);
        assert!(threads.threads.iter().all(|thread| thread.connections.load(Ordering::Relaxed) == 0));
    }
}
