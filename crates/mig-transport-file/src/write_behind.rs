//! What is written becomes durable while more is being written, so that little is left to do at the end.
//!
//! ```text
//!   writer  ── window ── window ──┊── window … ── all of it, at last: fsync
//!   thread            fdatasync ──┊──────▶ fdatasync …
//!                         two windows ahead: the writer waits
//! ```
//!
//! Who has sent a whole guest waits for the verdict no longer than its own deadline, and the verdict waits for the disk.
//! Without this all of the file could still be in the page cache by then. A disk that is slower than the network now slows
//! the stream down instead, where every byte that moves is a sign of life.
//!
//! The thread is begun with the first full window, so small files have none. A failure of its is the file's: the kernel
//! tells of it once, and would not tell the last `fsync`. Dropping waits for nothing; a call in progress ends behind.

use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

/// Bytes that are made durable at a time: enough that a fast disk is seldom asked to finish what it has, and two of
/// them are written within the default deadline of a source that waits (a minute) by a disk of 2.2 MB/s.
pub(crate) const WINDOW_BYTES: u64 = 64 << 20;

/// Makes what was written durable.
pub(crate) type Sync = Box<dyn FnMut() -> io::Result<()> + Send>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct WriteBehind {
    shared: Option<Arc<Shared>>,
    /// Where the last full window ended, and the one before.
    handed: [u64; 2],
    /// There is no thread to be had: the end has to do it all.
    without: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    wanted: u64,
    durable: u64,
    failed: Option<io::Error>,
    /// Nobody wants more.
    over: bool,
    /// The thread has ended.
    ended: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, going_on: impl FnMut(&mut State) -> bool) -> MutexGuard<'_, State> {
        self.changed.wait_while(self.state(), going_on).unwrap_or_else(PoisonError::into_inner)
    }
}

impl WriteBehind {
    /// Everything before `position` was written; `sync` is made for the first full window. Waits while more than two of
    /// them are not durable.
    ///
    /// # Errors
    ///
    /// Making something durable failed.
    pub(crate) fn wrote(
        &mut self,
        position: u64,
        sync: impl FnOnce() -> io::Result<Sync>,
    ) -> io::Result<()> {
        let [last, before] = self.handed;
        if position - last < WINDOW_BYTES || self.without {
            return Ok(());
        }
        let Some(shared) = self.shared(sync) else { return Ok(()) };
        shared.state().wanted = position;
        shared.changed.notify_all();
        let mut state = shared.wait_while(|state| state.durable < before && state.failed.is_none());
        let outcome = state.failed.take().map_or(Ok(()), Err);
        drop(state);
        self.handed = [position, last];
        outcome
    }

    /// Ends the thread, waiting for what it has begun. The file's own sync still has to follow.
    ///
    /// # Errors
    ///
    /// As for [`wrote`](Self::wrote).
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        let Some(shared) = self.shared.take() else { return Ok(()) };
        self.without = true;
        shared.state().over = true;
        shared.changed.notify_all();
        let mut state = shared.wait_while(|state| !state.ended);
        state.failed.take().map_or(Ok(()), Err)
    }

    fn shared(&mut self, sync: impl FnOnce() -> io::Result<Sync>) -> Option<Arc<Shared>> {
        if self.shared.is_none() {
            let shared = Arc::<Shared>::default();
            let theirs = Arc::clone(&shared);
            let thread = thread::Builder::new().name("mig-durable".into());
            let begun = sync().and_then(|mut sync| thread.spawn(move || theirs.serve(&mut sync)));
            match begun {
                Ok(_runs) => self.shared = Some(shared),
                Err(error) => {
                    tracing::debug!(%error, "nothing is made durable before the end");
                    self.without = true;
                }
            }
        }
        self.shared.clone()
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.state().over = true;
            shared.changed.notify_all();
        }
    }
}

impl Shared {
    fn serve(&self, sync: &mut Sync) {
        loop {
            let mut state = self.wait_while(|state| state.wanted == state.durable && !state.over);
            let wanted = state.wanted;
            if state.over {
                state.ended = true;
                drop(state);
                self.changed.notify_all();
                return;
            }
            drop(state);
            let synced = sync();
            let mut state = self.state();
            match synced {
                Ok(()) => state.durable = wanted,
                Err(error) => {
                    state.failed = Some(error);
                    // What was not kept stays so.
                    state.over = true;
                }
            }
            drop(state);
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    };

    use super::*;

    #[test]
    fn no_more_than_two_windows_are_ever_left() {
        let (written, synced) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let mut behind = WriteBehind::default();
        for window in 1..=50 {
            let position = window * WINDOW_BYTES;
            written.store(position, Ordering::SeqCst);
            let (from, to) = (Arc::clone(&written), Arc::clone(&synced));
            let sync = move || -> io::Result<Sync> {
                Ok(Box::new(move || {
                    to.store(from.load(Ordering::SeqCst), Ordering::SeqCst);
                    Ok(())
                }))
            };
            behind.wrote(position, sync).unwrap();
            let left = position - synced.load(Ordering::SeqCst);
            assert!(left <= 2 * WINDOW_BYTES, "{left} at {position}");
        }
        behind.settle().unwrap();
    }

    #[test]
    fn less_than_a_window_has_no_thread() {
        let mut behind = WriteBehind::default();
        behind.wrote(WINDOW_BYTES - 1, || unreachable!("nothing is to be made durable")).unwrap();
        behind.settle().unwrap();
    }

    #[test]
    fn a_failure_is_told_while_writing_or_at_the_end() {
        let fails =
            || -> io::Result<Sync> { Ok(Box::new(|| Err(io::ErrorKind::StorageFull.into()))) };
        let mut behind = WriteBehind::default();
        let mut outcomes = (1..=3).map(|window| behind.wrote(window * WINDOW_BYTES, fails));
        let error = outcomes.find_map(Result::err).expect("two windows ahead it is waited for");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);

        let mut behind = WriteBehind::default();
        let (begin, begun) = mpsc::channel();
        let sync = || -> io::Result<Sync> {
            Ok(Box::new(move || {
                let _gone = begin.send(());
                Err(io::ErrorKind::StorageFull.into())
            }))
        };
        behind.wrote(WINDOW_BYTES, sync).unwrap();
        begun.recv().unwrap();
        assert_eq!(behind.settle().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn who_gives_up_does_not_wait_for_the_disk() {
        let (release, stuck) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        let sync = || -> io::Result<Sync> {
            Ok(Box::new(move || {
                begin.send(()).unwrap();
                let _released = stuck.recv();
                Ok(())
            }))
        };
        let mut behind = WriteBehind::default();
        behind.wrote(WINDOW_BYTES, sync).unwrap();
        begun.recv().unwrap();
        drop(behind);
        drop(release);
        // The thread ends behind, and lets go of what it has.
        assert!(begun.recv().is_err());
    }
}
