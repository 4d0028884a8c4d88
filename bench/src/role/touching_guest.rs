//! A guest that writes eight bytes in each page of its working set, over and over: the same that
//! [`firmware`](crate::contestant) makes a QEMU's do.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use mig_engine::{DeviceSection, Guest, GuestError};
use mig_proto::globalstate::RunState;
use mig_ram::PAGE_SIZE;
use mig_transport::RegionSlice;
use serde::{Deserialize, Serialize};

use super::guest::IdleGuest;
use crate::failure::Result;

/// What is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Touch {
    pub(crate) ram_bytes: u64,
    /// Of the first page that is touched.
    pub(crate) start: u32,
    /// How many are.
    pub(crate) pages: u32,
}

impl Touch {
    /// What the pages hold before: each of their words of 32 bits.
    pub(crate) const FILL: u32 = 0x5aa5_c33c;
    /// Where the eight bytes are in a page.
    pub(crate) const AT: u8 = 0x40;
    /// What is added to either half of them in each round: no byte stays as it was.
    pub(crate) const STEP: u32 = 0x0101_0101;

    /// Half of such a guest's memory, from 16 MiB on.
    pub(crate) fn half_of(ram_bytes: u64) -> Self {
        let pages = u32::try_from(ram_bytes / 2 / PAGE_SIZE as u64).unwrap_or(u32::MAX);
        Self { ram_bytes, start: 16 << 20, pages }
    }
}

/// The name of the thread that writes.
pub(super) const THREAD: &str = "guest";

/// Pages written between two looks at whether to stop.
pub(super) const BURST: usize = 64;

/// See the module. Dropping it ends its writing.
pub(super) struct TouchingGuest {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Pausing,
    Paused,
    Gone,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// The same as `Running`, to be asked often.
    running: AtomicBool,
    /// Pages written so far, a burst at a time.
    written: AtomicU64,
}

impl TouchingGuest {
    /// Fills the working set, and begins to write.
    pub(super) fn running(ram: &RegionSlice, touch: Touch) -> Result<Self> {
        let len = touch.pages as usize * PAGE_SIZE;
        let set = ram.sub(touch.start as usize, len)?;
        let page: Vec<u8> = Touch::FILL.to_le_bytes().into_iter().cycle().take(PAGE_SIZE).collect();
        for offset in (0..len).step_by(PAGE_SIZE) {
            set.sub(offset, PAGE_SIZE)?.copy_in(&page);
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Running),
            changed: Condvar::new(),
            running: AtomicBool::new(true),
            written: AtomicU64::new(0),
        });
        let writing = Arc::clone(&shared);
        let writer =
            thread::Builder::new().name(THREAD.into()).spawn(move || writing.write(&set))?;
        Ok(Self { shared, writer: Some(writer) })
    }

    /// For somebody else to look at what it does.
    pub(super) fn progress(&self) -> Progress {
        Progress(Arc::clone(&self.shared))
    }

    fn change(&self, from: State, to: State) -> MutexGuard<'_, State> {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == from {
            *state = to;
            self.shared.running.store(to == State::Running, Ordering::Release);
            self.shared.changed.notify_all();
        }
        state
    }
}

/// How far a guest has come.
pub(super) struct Progress(Arc<Shared>);

impl Progress {
    /// Pages written so far, give or take a burst either way.
    pub(super) fn written(&self) -> u64 {
        self.0.written.load(Ordering::Acquire)
    }

    pub(super) fn is_running(&self) -> bool {
        self.0.running.load(Ordering::Acquire)
    }
}

impl Shared {
    fn write(&self, set: &RegionSlice) {
        let mut half = 0u32;
        loop {
            half = half.wrapping_add(Touch::STEP);
            let word = (u64::from(half) << 32 | u64::from(half)).to_le_bytes();
            for (number, page) in (0..set.len()).step_by(PAGE_SIZE).enumerate() {
                if number % BURST == 0 {
                    self.written.fetch_add(BURST as u64, Ordering::Release);
                    if !self.may_write() {
                        return;
                    }
                }
                set.sub(page + usize::from(Touch::AT), word.len())
                    .expect("eight bytes within a page of the working set")
                    .copy_in(&word);
            }
        }
    }

    /// Waits out a pause; false when the guest is gone.
    fn may_write(&self) -> bool {
        if self.running.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match *state {
                State::Running => return true,
                State::Gone => return false,
                State::Pausing => {
                    *state = State::Paused;
                    self.changed.notify_all();
                }
                State::Paused => {}
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Guest for TouchingGuest {
    fn machine_type(&self) -> String {
        IdleGuest.machine_type()
    }

    fn stop(&mut self) -> std::result::Result<(), GuestError> {
        let mut state = self.change(State::Running, State::Pausing);
        while *state == State::Pausing {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn resume(&mut self) -> std::result::Result<(), GuestError> {
        drop(self.change(State::Paused, State::Running));
        Ok(())
    }

    fn save_devices(&mut self) -> std::result::Result<Vec<DeviceSection>, GuestError> {
        IdleGuest.save_devices()
    }

    fn load_device(&mut self, section: &DeviceSection) -> std::result::Result<(), GuestError> {
        IdleGuest.load_device(section)
    }

    fn start(&mut self, state: RunState) -> std::result::Result<(), GuestError> {
        IdleGuest.start(state)
    }
}

impl Drop for TouchingGuest {
    fn drop(&mut self) {
        for from in [State::Running, State::Pausing, State::Paused] {
            drop(self.change(from, State::Gone));
        }
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was printed by its thread.
            let _panicked = writer.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use mig_transport::VecRegion;

    use super::*;

    #[test]
    fn every_byte_of_the_eight_changes_and_nothing_else_does() {
        const PAGES: usize = 4;
        let touch = Touch { ram_bytes: 0, start: PAGE_SIZE as u32, pages: PAGES as u32 };
        let ram = RegionSlice::whole(VecRegion::zeroed((PAGES + 2) * PAGE_SIZE));
        let bytes = || {
            let mut bytes = vec![0; ram.len()];
            ram.copy_out(&mut bytes);
            bytes
        };
        let mut guest = TouchingGuest::running(&ram, touch).unwrap();
        let at = usize::from(Touch::AT);
        let written = |bytes: &[u8]| bytes[PAGE_SIZE + at..][..8].to_vec();
        while written(&bytes())[..4] == Touch::FILL.to_le_bytes() {
            thread::yield_now();
        }
        guest.stop().unwrap();
        let before = bytes();
        assert!(bytes() == before, "it writes while it is stopped");
        assert!(
            before[..PAGE_SIZE]
                .iter()
                .chain(&before[(PAGES + 1) * PAGE_SIZE..])
                .all(|byte| *byte == 0)
        );
        for page in before[PAGE_SIZE..][..PAGES * PAGE_SIZE].chunks(PAGE_SIZE) {
            let fill = Touch::FILL.to_le_bytes();
            let rest = page[..at].chunks(4).chain(page[at + 8..].chunks(4));
            assert!(rest.into_iter().all(|word| word == fill));
        }
        guest.resume().unwrap();
        while written(&bytes()) == written(&before) {
            thread::yield_now();
        }
    }
}
