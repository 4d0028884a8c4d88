//! Source and destination against each other, over a link on which things go wrong: never two owners.
//!
//! ```text
//!   0 options │ 1 rounds of writes │ … │ faults: which │ be16 after so many bytes │ value
//! ```
//! With data channels each of them has its own link; time is real there, and deadlines are so short that any of them may
//! end a migration that nothing was wrong with.

use std::{
    cell::RefCell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use mig_engine::{Capabilities, Destination, Owner, Parameters, Source};
use mig_ram::RamBlocks;
use mig_transport::{Channel, Connector};
use tokio::sync::mpsc;

use super::{
    Clock,
    destination::placing,
    faulty::{Fault, Handles, What, link},
    guest::{Diary, FuzzGuest, Memory},
    meeting::Arriving,
    next, next16, take, wait,
};

/// The target.
pub fn pair(data: &[u8]) {
    thread_local! {
        static RAM: RefCell<[Arc<RamBlocks>; 2]> = RefCell::new({
            let rams = [Memory::block(), Memory::block()];
            Memory::fill(&rams[0]);
            rams
        });
    }
    let Some((&[options, rounds], mut script)) = data.split_first_chunk() else { return };
    let writes = take(&mut script, usize::from(rounds % 16));
    let rams = RAM.with_borrow(Clone::clone);
    let (source_diary, destination_diary) = (Diary::default(), Diary::default());
    let return_path = options & 1 != 0;
    let mut capabilities = Capabilities::default();
    capabilities.return_path = return_path;
    capabilities.xbzrle = options & 4 != 0 && options & MULTIFD == 0;
    capabilities.auto_converge = options & 8 != 0;
    let multifd = options & MULTIFD != 0;
    capabilities.multifd = multifd;
    let clock = if multifd { Clock::Real } else { Clock::Paused };
    let mut parameters = Parameters::default();
    if options & 16 != 0 {
        parameters.max_bandwidth = 1 << 20;
        parameters.downtime_limit = 1;
    }
    parameters.xbzrle_cache_size = 16 * 1024;
    let source_memory = Memory::new(Arc::clone(&rams[0]), writes);
    let mut source = Source::new(source_memory, FuzzGuest::new(&source_diary))
        .with_capabilities(capabilities)
        .with_parameters(parameters.clone())
        .with_deadlines(clock.deadlines());
    let mut guest = FuzzGuest::new(&destination_diary);
    guest.refuses = options & 32 != 0;
    let destination_memory = Memory::new(Arc::clone(&rams[1]), &[]);
    let mut destination_capabilities = Capabilities::default();
    destination_capabilities.multifd = multifd;
    let mut destination = Destination::new(destination_memory, guest)
        .with_placing(placing())
        .with_capabilities(destination_capabilities)
        .with_parameters(parameters)
        .with_deadlines(clock.deadlines());

    let faults = Faults::read(script);
    let flips = faults.flips;
    let unharmed = !multifd && faults.all.iter().all(Vec::is_empty) && options & 32 == 0;
    let handles = Handles { source: source.handle(), destination: destination.handle() };
    let buffer_bytes = if options & 128 == 0 { 64 * 1024 } else { 100 };
    let (mut listener, door) = Arriving::new();
    let (sent, received) = clock.run(async {
        let runtime = tokio::runtime::Handle::current();
        let connector = Linking {
            door,
            runtime,
            buffer_bytes,
            handles,
            faults: faults.all.into(),
            next: 0.into(),
        };
        tokio::join!(source.run(&connector), destination.run(&mut listener))
    });
    let (here, there) = (source_diary.source_runs(), destination_diary.destination_runs());
    assert!(!(here && there), "two owners: {sent:?} and {received:?}");
    if unharmed {
        assert!(sent.is_ok() && received.is_ok(), "nothing happened: {sent:?}, {received:?}");
    }
    match &sent {
        Ok(outcome) => {
            assert!(!here);
            assert_eq!(outcome.confirmed, return_path);
            let unknown = received.as_ref().is_err_and(|error| error.owner() == Owner::Unknown);
            assert!(there || unknown || !return_path, "a yes that nobody said: {received:?}");
        }
        Err(error) => assert_eq!(here, error.owner() == Owner::Source, "{error}"),
    }
    assert_eq!(there, received.is_ok(), "{received:?}");
    if there && !flips {
        assert!(Memory::content(&rams[0]) == Memory::content(&rams[1]), "another memory");
    }
}

/// Bit of the options: two data channels.
const MULTIFD: u8 = 2;

/// Connects the next channel, by a link with the faults that are its own.
struct Linking {
    door: mpsc::UnboundedSender<Channel>,
    runtime: tokio::runtime::Handle,
    buffer_bytes: usize,
    handles: Handles,
    /// Main there, main back, data there, data back.
    faults: Mutex<[Vec<Fault>; 4]>,
    next: AtomicUsize,
}

#[async_trait]
impl Connector for Linking {
    async fn connect(&self) -> mig_transport::Result<Channel> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let [there, back] = {
            let mut faults = self.faults.lock().expect("nobody panics while holding it");
            // The first data channel has those of data channels, further ones have none.
            let first = if number == 0 { 0 } else { 2 };
            [first, first + 1].map(|direction| std::mem::take(&mut faults[direction]))
        };
        let (ours, theirs, carrying) = link(self.buffer_bytes, there, back, self.handles.clone());
        self.runtime.spawn(carrying);
        // A destination that is done accepts nobody.
        let _ = self.door.send(theirs);
        Ok(ours)
    }
}

/// What goes wrong in each direction, in the order of its bytes.
struct Faults {
    /// Main there, main back, data there, data back.
    all: [Vec<Fault>; 4],
    /// Some byte is changed, so that nothing can be said of the memory.
    flips: bool,
}

impl Faults {
    fn read(mut script: &[u8]) -> Self {
        let mut faults = Self { all: Default::default(), flips: false };
        while let Some(which) = next(&mut script) {
            let (after, value) = (next16(&mut script), next(&mut script).unwrap_or(0));
            let is_back = which & 0x80 != 0;
            let what = match which % 5 {
                0 if value >= 0xc0 => What::ResetSource,
                0 if value >= 0x80 => What::ResetDestination,
                0 => What::Break,
                1 => What::Stall(wait(value)),
                2 if !is_back => {
                    faults.flips = true;
                    What::Flip(value | 1)
                }
                3 => What::CancelSource,
                _ => What::CancelDestination,
            };
            let is_data = which & 0x40 != 0;
            let direction = &mut faults.all[2 * usize::from(is_data) + usize::from(is_back)];
            // A direction back has few bytes.
            let after = if is_back { after % 64 } else { after };
            direction.push(Fault { after: after.into(), what });
        }
        for direction in &mut faults.all {
            direction.sort_by_key(|fault| fault.after);
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    /// The source's connection is reset at each of the last bytes, while little of what it writes fits on the way.
    #[test]
    fn a_reset_of_the_source_behind_the_end() {
        // Eight pages, one of them zero, what stands around them, and the description.
        for after in 7 * 4096..7 * 4096 + 700_u16 {
            let [high, low] = after.to_be_bytes();
            super::pair(&[0x81, 0, 0, high, low, 0xc0]);
        }
    }
}
