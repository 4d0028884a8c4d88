//! A guest without a VMM: memory of a chosen content, and a thread that keeps writing it while it migrates.
//!
//! ```text
//!   |<------------------------- RAM ------------------------->|
//!   |<-- working set: written -->|  the rest stays as it was  |
//! ```
//!
//! The writer touches one word in each page it picks, at the rate it was given, until it is stopped; a stop returns
//! only when no write is under way, as a VMM's does.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use mig_engine::{DeviceSection, Guest, GuestError};
use mig_proto::globalstate::RunState;
use mig_transport::{Region, RegionSlice};

const PAGE: usize = 4096;

/// How often the writer looks at the clock; also the longest a stop waits for it.
const TICK: Duration = Duration::from_millis(1);

/// What the memory holds and how it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Bytes the guest writes a second, counted in whole pages; 0: nobody writes.
    pub dirty_rate: u64,
    /// Bytes, from the start of memory, that it writes in.
    pub working_set: u64,
    /// Share of the pages that are zero, in percent.
    pub zero_percent: u8,
    /// Share of the pages that compress about 4 : 1, in percent.
    pub compressible_percent: u8,
    /// Seed of everything random here.
    pub seed: u64,
}

/// The guest. Dropping it ends its writer.
pub struct SyntheticGuest {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    loaded: Vec<DeviceSection>,
    started: Option<RunState>,
}

struct Shared {
    ram: Arc<dyn Region>,
    state: Mutex<State>,
    changed: Condvar,
    pages_written: AtomicU64,
    /// How much slower than asked it writes, in percent.
    throttle: AtomicU8,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Stopping,
    Stopped,
    Gone,
}

impl SyntheticGuest {
    /// A source guest: fills `ram` and starts writing it.
    pub fn running(ram: Arc<dyn Region>, workload: Workload) -> Self {
        fill(&ram, workload);
        let shared = Arc::new(Shared {
            ram,
            state: Mutex::new(State::Running),
            changed: Condvar::new(),
            pages_written: AtomicU64::new(0),
            throttle: AtomicU8::new(0),
        });
        let writes = workload.dirty_rate > 0 && workload.working_set >= PAGE as u64;
        let writer = writes.then(|| {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("guest".into())
                .spawn(move || shared.write(workload))
                .expect("a thread can be made where a benchmark is run")
        });
        Self { shared, writer, loaded: Vec::new(), started: None }
    }

    /// A destination guest: waits for its state.
    pub fn incoming(ram: Arc<dyn Region>) -> Self {
        Self {
            shared: Arc::new(Shared {
                ram,
                state: Mutex::new(State::Stopped),
                changed: Condvar::new(),
                pages_written: AtomicU64::new(0),
                throttle: AtomicU8::new(0),
            }),
            writer: None,
            loaded: Vec::new(),
            started: None,
        }
    }

    /// Pages written so far.
    pub fn pages_written(&self) -> u64 {
        self.shared.pages_written.load(Ordering::Relaxed)
    }

    /// The devices that were loaded, and the state it was started in.
    pub fn received(&self) -> (&[DeviceSection], Option<RunState>) {
        (&self.loaded, self.started)
    }

    fn device(&self) -> DeviceSection {
        let mut payload = self.pages_written().to_be_bytes().to_vec();
        // Enough to be a device, and every byte value once, footers' included.
        payload.extend(0..=u8::MAX);
        DeviceSection { idstr: "synthetic-cpu".into(), instance_id: 0, version_id: 1, payload }
    }
}

impl Guest for SyntheticGuest {
    fn machine_type(&self) -> String {
        "mig-synthetic-1".into()
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        if self.writer.is_none() {
            return Ok(());
        }
        let mut state = self.shared.state();
        if *state == State::Running {
            *state = State::Stopping;
            self.shared.changed.notify_all();
        }
        while *state == State::Stopping {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn throttle(&mut self, percent: u8) -> bool {
        self.shared.throttle.store(percent.min(100), Ordering::Relaxed);
        true
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        *self.shared.state() = State::Running;
        self.shared.changed.notify_all();
        Ok(())
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, GuestError> {
        Ok(vec![self.device()])
    }

    fn load_device(&mut self, section: &DeviceSection) -> Result<(), GuestError> {
        if section.idstr != "synthetic-cpu" || section.version_id > 1 {
            return Err(
                format!("no device {} of version {}", section.idstr, section.version_id).into()
            );
        }
        self.loaded.push(section.clone());
        Ok(())
    }

    fn start(&mut self, state: RunState) -> Result<(), GuestError> {
        self.started = Some(state);
        Ok(())
    }
}

impl Drop for SyntheticGuest {
    fn drop(&mut self) {
        *self.shared.state() = State::Gone;
        self.shared.changed.notify_all();
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was printed by its thread.
            let _panicked = writer.join();
        }
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest's thread: writes in small bursts, so that the rate holds and a stop is prompt.
    fn write(&self, workload: Workload) {
        let ram = RegionSlice::whole(Arc::clone(&self.ram));
        let pages = (workload.working_set.min(ram.len() as u64) / PAGE as u64).max(1);
        let pages_per_sec = (workload.dirty_rate / PAGE as u64).max(1);
        let mut random = Random(workload.seed | 1);
        let mut begun = Instant::now();
        let mut done = 0u64;
        let mut throttle = 0;
        loop {
            if !self.may_write() {
                return;
            }
            let asked = self.throttle.load(Ordering::Relaxed);
            if throttle != asked {
                (throttle, begun, done) = (asked, Instant::now(), 0);
            }
            let rate = u128::from(pages_per_sec) * u128::from(100 - throttle);
            let due = (begun.elapsed().as_nanos() * rate / 100_000_000_000) as u64;
            if due <= done {
                // What it could not do while it was stopped is not made up for.
                let mut state = self.state();
                if *state == State::Running {
                    (state, _) = self
                        .changed
                        .wait_timeout(state, TICK)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                if *state == State::Stopping {
                    drop(state);
                    if !self.may_write() {
                        return;
                    }
                    (begun, done) = (Instant::now(), 0);
                }
                continue;
            }
            for _ in 0..(due - done).min(64) {
                let word = random.next();
                let page = (word % pages) as usize;
                let at = page * PAGE + (word >> 40) as usize % (PAGE / 8) * 8;
                ram.sub(at, 8).expect("a word of the working set").copy_in(&word.to_ne_bytes());
                done += 1;
                self.pages_written.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Waits out a stop; false when the guest is gone.
    fn may_write(&self) -> bool {
        let mut state = self.state();
        if *state == State::Stopping {
            *state = State::Stopped;
            self.changed.notify_all();
        }
        while *state == State::Stopped {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state != State::Gone
    }
}

/// A small generator of repeatable noise (xorshift64*).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

fn fill(ram: &Arc<dyn Region>, workload: Workload) {
    let all = RegionSlice::whole(Arc::clone(ram));
    let mut random = Random(workload.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut page = [0u8; PAGE];
    let compressible = u16::from(workload.zero_percent) + u16::from(workload.compressible_percent);
    for number in 0..all.len() / PAGE {
        let kind = (number * 61 % 100) as u16;
        if kind < u16::from(workload.zero_percent) {
            continue;
        }
        // A quarter of noise, the rest repeating: about 4 : 1 for a general compressor.
        let noise = if kind < compressible { PAGE / 4 } else { PAGE };
        for chunk in page[..noise].chunks_exact_mut(8) {
            chunk.copy_from_slice(&random.next().to_ne_bytes());
        }
        page[noise..].fill(0x5a);
        all.sub(number * PAGE, PAGE).expect("a page of the guest").copy_in(&page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mig_transport::VecRegion;

    fn bytes(ram: &Arc<dyn Region>) -> Vec<u8> {
        let mut all = vec![0; ram.len()];
        RegionSlice::whole(Arc::clone(ram)).copy_out(&mut all);
        all
    }

    fn workload() -> Workload {
        Workload {
            dirty_rate: 400 << 20,
            working_set: 16 * PAGE as u64,
            zero_percent: 25,
            compressible_percent: 25,
            seed: 7,
        }
    }

    #[test]
    fn a_stopped_guest_writes_nothing_and_a_resumed_one_does() {
        let ram: Arc<dyn Region> = VecRegion::zeroed(64 * PAGE);
        let mut guest = SyntheticGuest::running(Arc::clone(&ram), workload());
        while guest.pages_written() < 100 {
            thread::yield_now();
        }
        guest.stop().unwrap();
        let (before, count) = (bytes(&ram), guest.pages_written());
        assert_eq!(bytes(&ram), before);
        assert_eq!(guest.pages_written(), count);
        guest.resume().unwrap();
        while guest.pages_written() == count {
            thread::yield_now();
        }
        guest.stop().unwrap();
        assert_ne!(bytes(&ram)[..16 * PAGE], before[..16 * PAGE]);
        assert_eq!(bytes(&ram)[16 * PAGE..], before[16 * PAGE..], "outside the working set");
    }

    #[test]
    fn memory_has_the_content_that_was_asked_for() {
        let ram: Arc<dyn Region> = VecRegion::zeroed(200 * PAGE);
        drop(SyntheticGuest::running(Arc::clone(&ram), Workload { dirty_rate: 0, ..workload() }));
        let all = bytes(&ram);
        let pages: Vec<&[u8]> = all.chunks(PAGE).collect();
        let zero = pages.iter().filter(|page| page.iter().all(|byte| *byte == 0)).count();
        let tail = pages.iter().filter(|page| page[PAGE / 4..].iter().all(|byte| *byte == 0x5a));
        assert_eq!(zero, 50);
        assert_eq!(tail.count(), 50);
    }
}
