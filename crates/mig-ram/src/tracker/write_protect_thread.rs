//! Tracking with a fault thread: userfaultfd in synchronous write-protect mode.
//!
//! ```text
//!   writer ── touches a protected page ── sleeps ─────────────────────────▶ goes on
//!   thread            reads the fault ── lock: [ set bit · unprotect + wake ]
//!   sync                                 lock: [ take bits · protect those pages ] ── report
//! ```
//!
//! The lock makes the two brackets exclusive. Otherwise a sync could take the bit between the thread's two steps and
//! leave a page open with its bit clear: its next write would be lost.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    thread::JoinHandle,
};

use mig_transport::RegionSlice;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags},
    io::Errno,
};

use super::{Sink, async_write_protect::protect_all};
use crate::{
    bitmap::DirtyBitmap,
    error::{Error, Result},
    mapping,
    uffd::{FaultAddress, FaultBuffer, Privilege, Registration, Userfaultfd, feature},
};

#[derive(Debug)]
pub(super) struct WriteProtectThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    uffd: Arc<Userfaultfd>,
    tracked: Vec<Tracked>,
    stop: OwnedFd,
    /// See the module head. Guards page protection, not data: a panic inside leaves nothing half done.
    protecting: Mutex<()>,
    /// Why nobody serves faults any more, if so.
    broken: OnceLock<String>,
}

#[derive(Debug)]
struct Tracked {
    registration: Registration,
    /// One bit a host page.
    written: DirtyBitmap,
}

/// So many words are taken and protected under one hold of the lock: bounds how long a writer waits for a sync.
const WORDS_AT_ONCE: usize = 64;

impl WriteProtectThread {
    pub(super) fn start(ranges: &[RegionSlice], privilege: Privilege) -> Result<Self> {
        Self::start_with(ranges, privilege, feature::WRITE_PROTECT_UNPOPULATED)
    }

    /// `optional` without `WRITE_PROTECT_UNPOPULATED` is what a kernel before 6.4 gives.
    fn start_with(ranges: &[RegionSlice], privilege: Privilege, optional: u64) -> Result<Self> {
        let page = rustix::param::page_size();
        let optional = optional | feature::WRITE_PROTECT_SHARED;
        let uffd = Userfaultfd::open(feature::WRITE_PROTECT, optional, privilege)?;
        if !uffd.has(feature::WRITE_PROTECT_UNPOPULATED) {
            // Only what exists can be protected: map the zero page everywhere.
            for range in ranges {
                mapping::populate_read(range)
                    .map_err(|errno| Error::io("mapping guest memory to protect it", errno))?;
            }
        }
        let registrations = protect_all(&uffd, ranges)?;
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::io("making an eventfd", errno))?;
        let tracked = registrations
            .into_iter()
            .zip(ranges)
            .map(|(registration, range)| Tracked {
                registration,
                written: DirtyBitmap::new(range.len() / page),
            })
            .collect();
        let shared = Arc::new(Shared {
            uffd,
            tracked,
            stop,
            protecting: Mutex::new(()),
            broken: OnceLock::new(),
        });
        let serving = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("mig-ram-dirty".into())
            .spawn(move || serving.serve())
            .map_err(|source| Error::io("starting the dirty tracking thread", source))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(super) fn kernel_writes(&self) -> bool {
        self.shared.uffd.kernel_faults()
    }

    /// Those pages are open now, so their bits must be set.
    pub(super) fn note_released(&self, index: usize, offset: usize, len: usize) {
        let written = &self.shared.tracked[index].written;
        let page = rustix::param::page_size();
        let end = (offset + len).div_ceil(page).min(written.pages());
        let start = (offset / page).min(end);
        let _lock = self.shared.lock();
        written.set_range(start, end - start);
    }

    pub(super) fn sync(&self, index: usize, sink: &Sink<'_>) -> io::Result<u64> {
        let Tracked { registration, written } = &self.shared.tracked[index];
        let page = rustix::param::page_size();
        let mut newly = 0;
        for first in (0..written.words()).step_by(WORDS_AT_ONCE) {
            let pages = first * 64..written.pages().min((first + WORDS_AT_ONCE) * 64);
            let _lock = self.shared.lock();
            let mut from = pages.start;
            while from < pages.end
                && let Some(run) = written.next_run_within(from, pages.len())
                && run.start < pages.end
            {
                let end = run.end().min(pages.end);
                let (offset, len) = (run.start * page, (end - run.start) * page);
                written.clear_range(run.start, end - run.start);
                newly += sink.mark(offset, len);
                if let Err(error) = registration.write_protect(offset, len, true) {
                    // Perhaps still open: reported again next time, whatever happens.
                    written.set_range(run.start, end - run.start);
                    return Err(error);
                }
                from = end;
            }
        }
        // Asked last: whatever was written unseen until now shows here.
        match self.shared.broken.get() {
            None => Ok(newly),
            Some(why) => Err(io::Error::other(why.clone())),
        }
    }
}

impl Drop for WriteProtectThread {
    fn drop(&mut self) {
        // Writers first: ending a registration opens its pages and wakes whoever waits.
        for tracked in &self.shared.tracked {
            if let Err(error) = tracked.registration.end() {
                tracing::warn!(%error, "ending write tracking");
            }
        }
        if let Err(error) = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes()) {
            tracing::warn!(%error, "stopping the dirty tracking thread");
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the dirty tracking thread panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.protecting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves faults until told to stop.
    fn serve(&self) {
        if let Err(error) = self.serve_faults() {
            self.give_up(&error);
        }
    }

    /// Nobody serves faults from here on. Writers must not wait for that for ever: their pages are opened, unseen, so
    /// every `sync` fails from now on, and with it the migration; the guest goes on.
    fn give_up(&self, why: &io::Error) {
        tracing::error!(error = %why, "write tracking broke down");
        self.broken.get_or_init(|| format!("write tracking broke down: {why}"));
        for tracked in &self.tracked {
            if let Err(error) = tracked.registration.end() {
                tracing::error!(%error, "ending write tracking");
            }
        }
    }

    fn serve_faults(&self) -> io::Result<()> {
        let mut faults = FaultBuffer::new();
        loop {
            let mut waits =
                [PollFd::new(&self.uffd, PollFlags::IN), PollFd::new(&self.stop, PollFlags::IN)];
            match rustix::event::poll(&mut waits, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if !waits[1].revents().is_empty() {
                return Ok(());
            }
            loop {
                self.uffd.read_faults(&mut faults)?;
                if faults.is_empty() {
                    break;
                }
                let _lock = self.lock();
                for fault in faults.faults() {
                    self.resolve(fault);
                }
            }
        }
    }

    /// Called with the lock held.
    fn resolve(&self, fault: FaultAddress) {
        let page = rustix::param::page_size();
        let found = self.tracked.iter().find_map(|tracked| {
            tracked.registration.offset_of(fault).map(|offset| (tracked, offset / page))
        });
        let Some((tracked, number)) = found else {
            return;
        };
        tracked.written.set(number);
        if let Err(error) = tracked.registration.write_protect(number * page, page, false) {
            // Ended meanwhile, which woke the writer, or there is no such page any more.
            tracing::debug!(%error, "opening a page to its writer");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        block::{BlockOptions, PAGE_SIZE, RamBlock},
        mapping::Backing,
    };

    /// What kernels 5.14 to 6.3 do, on this one.
    #[test]
    fn pages_that_do_not_exist_are_tracked_on_older_kernels_too() {
        for backing in [Backing::Anonymous, Backing::Memfd] {
            let options = BlockOptions { backing, ..BlockOptions::default() };
            let block = RamBlock::with_options("x", 64 * PAGE_SIZE as u64, &options).unwrap();
            let whole = RegionSlice::whole(block.region());
            whole.sub(3 * PAGE_SIZE, 1).unwrap().copy_in(&[1]);
            let ranges = std::slice::from_ref(&whole);
            let tracker = match WriteProtectThread::start_with(ranges, Privilege::Best, 0) {
                Ok(tracker) => tracker,
                Err(error @ Error::Unavailable { .. }) => {
                    return mig_testkit::not_applicable("userfaultfd", &error.to_string());
                }
                Err(error) => panic!("{error}"),
            };
            let into = DirtyBitmap::new(64);
            let sink = Sink { into: &into, limit: 64 };
            assert_eq!(tracker.sync(0, &sink).unwrap(), 0);
            for page in [3, 4, 63] {
                whole.sub(page * PAGE_SIZE, 1).unwrap().copy_in(&[2]);
            }
            assert_eq!(tracker.sync(0, &sink).unwrap(), 3);
            assert!([3, 4, 63].iter().all(|page| into.test(*page)));
        }
    }

    #[test]
    fn when_nobody_serves_faults_writers_go_on_and_every_sync_fails() {
        let block = RamBlock::new("x", 16 * PAGE_SIZE as u64).unwrap();
        let whole = RegionSlice::whole(block.region());
        let ranges = std::slice::from_ref(&whole);
        let tracker = match WriteProtectThread::start(ranges, Privilege::Best) {
            Ok(tracker) => tracker,
            Err(error @ Error::Unavailable { .. }) => {
                return mig_testkit::not_applicable("userfaultfd", &error.to_string());
            }
            Err(error) => panic!("{error}"),
        };
        tracker.shared.give_up(&io::Error::from_raw_os_error(libc::EIO));
        // The thread still runs here, but the pages do not come to it: this returns at once either way, or never.
        whole.copy_in(&[1; 16 * PAGE_SIZE]);
        let into = DirtyBitmap::new(16);
        for _ in 0..2 {
            let error = tracker.sync(0, &Sink { into: &into, limit: 16 }).unwrap_err();
            assert!(error.to_string().contains("broke down"), "{error}");
        }
    }
}
