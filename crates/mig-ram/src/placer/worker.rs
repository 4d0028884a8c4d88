//! The copying thread of a placer: staging buffers go in, empty ones come back, in order.
//!
//! The first failure stops the placing for good: it is handed to the next call of the placer, later buffers are dropped.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use rustix::time::{ClockId, clock_gettime};

use super::{Placement, WORKER_PATIENCE, staging::Staging};
use crate::error::{Error, Result};

/// Full buffers under way; with the one being filled, four in all.
const QUEUE: usize = 3;

#[derive(Debug)]
pub(super) struct Worker {
    /// None once the thread was told to end.
    full: Option<SyncSender<Staging>>,
    empty: Receiver<Staging>,
    under_way: usize,
    spare: Vec<Staging>,
    pages: usize,
    failure: Arc<Failure>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Failure {
    happened: AtomicBool,
    error: Mutex<Option<Error>>,
}

impl Worker {
    pub(super) fn start(placement: Arc<Placement>) -> Result<Self> {
        let (full, jobs) = sync_channel::<Staging>(QUEUE);
        let (done, empty) = sync_channel(QUEUE);
        let failure = Arc::new(Failure::default());
        let noting = Arc::clone(&failure);
        let pages = placement.options().staging_pages;
        let thread = std::thread::Builder::new()
            .name("mig-ram-place".into())
            .spawn(move || {
                let mut counted = 0;
                while let Ok(mut staging) = jobs.recv() {
                    if !noting.happened.load(Ordering::Acquire)
                        && let Err(error) = placement.put(&staging)
                    {
                        *noting.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        noting.happened.store(true, Ordering::Release);
                    }
                    staging.clear();
                    let now = thread_cpu_nanos();
                    placement.add_cpu_nanos(now - counted);
                    counted = now;
                    if done.send(staging).is_err() {
                        return;
                    }
                }
            })
            .map_err(|source| Error::io("starting the page copying thread", source))?;
        let (full, thread) = (Some(full), Some(thread));
        Ok(Self { full, empty, under_way: 0, spare: Vec::new(), pages, failure, thread })
    }

    /// Queues a full buffer and leaves an empty one in its place. Waits while the queue is full.
    pub(super) fn submit(&mut self, staging: &mut Staging) -> Result<()> {
        self.check()?;
        while let Ok(back) = self.empty.try_recv() {
            self.under_way -= 1;
            self.spare.push(back);
        }
        if self.under_way == QUEUE {
            self.wait_for_one()?;
        }
        let next = self.spare.pop().unwrap_or_else(|| Staging::new(self.pages));
        let full = self.full.as_ref().expect("the sender is taken in drop only");
        // Never blocks: the queue has room for all that are under way.
        full.send(std::mem::replace(staging, next)).map_err(|_| gone())?;
        self.under_way += 1;
        Ok(())
    }

    /// Waits until everything queued is in memory.
    pub(super) fn drain(&mut self) -> Result<()> {
        while self.under_way > 0 {
            self.wait_for_one()?;
        }
        self.check()
    }

    /// Hands out the thread's failure.
    pub(super) fn check(&self) -> Result<()> {
        if !self.failure.happened.load(Ordering::Acquire) {
            return Ok(());
        }
        let error = self.failure.error.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(error
            .unwrap_or_else(|| Error::misuse("placing failed before; start the migration anew")))
    }

    fn wait_for_one(&mut self) -> Result<()> {
        match self.empty.recv_timeout(WORKER_PATIENCE) {
            Ok(back) => {
                self.under_way -= 1;
                self.spare.push(back);
                Ok(())
            }
            Err(RecvTimeoutError::Timeout) => Err(Error::Deadline {
                doing: "waiting for pages to be copied into guest memory".into(),
                after: WORKER_PATIENCE,
            }),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }
}

fn gone() -> Error {
    Error::io("handing pages to the copying thread", std::io::Error::other("the thread has ended"))
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The thread ends after the buffers that are queued, three at most.
        self.full = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the page copying thread panicked");
        }
    }
}

fn thread_cpu_nanos() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}
