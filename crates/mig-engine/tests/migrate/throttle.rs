//! Capability `auto-converge`: a guest that writes faster than it is sent is slowed down, and nobody stays slow.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use mig_engine::{
    Capabilities, Destination, DeviceSection, Error, Guest, GuestError, Outcome, Parameters, Source,
};
use mig_proto::globalstate::RunState;
use mig_ram::{PAGE_SIZE, RamBlock, RamBlocks};
use mig_transport::Blame;

use crate::{
    scripted::{PAGES, Writes},
    support::{Arriving, BlackHole, Diary, Pair, Ready, TestGuest, channels},
};

/// A guest that can be slowed down.
struct Throttled {
    inner: TestGuest,
    percent: Arc<AtomicU8>,
}

impl Guest for Throttled {
    fn machine_type(&self) -> String {
        self.inner.machine_type()
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        self.inner.stop()
    }

    fn throttle(&mut self, percent: u8) -> bool {
        self.percent.store(percent, Ordering::Relaxed);
        self.inner.diary.note(format!("throttle {percent}"));
        true
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.inner.resume()
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, GuestError> {
        self.inner.save_devices()
    }

    fn load_device(&mut self, section: &DeviceSection) -> Result<(), GuestError> {
        self.inner.load_device(section)
    }

    fn start(&mut self, state: RunState) -> Result<(), GuestError> {
        self.inner.start(state)
    }
}

fn auto_converge() -> Capabilities {
    let mut capabilities = Capabilities::default();
    capabilities.return_path = true;
    capabilities.auto_converge = true;
    capabilities
}

/// A guest that writes all its memory in every pass while it runs at more than half of its speed, and its source. The
/// rate is such that a pass takes a tenth of a second or longer, so that each is judged.
fn writing_guest() -> (Arc<Writes>, Source) {
    let percent = Arc::new(AtomicU8::new(0));
    let pace = Arc::clone(&percent);
    let memory = Writes::new(
        move |guest, pass| {
            let pages = match pace.load(Ordering::Relaxed) {
                ..50 if !guest.diary.has("stop") => PAGES[0],
                _ => 0,
            };
            (0..pages).for_each(|page| guest.write(0, page, 0, &[pass as u8; 64]));
        },
        None,
    );
    let guest = Throttled { inner: TestGuest::new(&memory.diary), percent };
    let mut parameters = Parameters::default();
    parameters.downtime_limit = 0;
    parameters.max_bandwidth = (PAGES[0] * PAGE_SIZE) as u64 * 8;
    let source = Source::new(Arc::clone(&memory) as _, Box::new(guest))
        .with_capabilities(auto_converge())
        .with_parameters(parameters);
    (memory, source)
}

async fn run(source: &mut Source) -> Result<Outcome, Error> {
    let blocks = ["test.ram", "test.rom"].into_iter().zip(PAGES);
    let blocks = blocks.map(|(name, pages)| RamBlock::new(name, (pages * PAGE_SIZE) as u64));
    let there = RamBlocks::new(blocks.map(Result::unwrap)).unwrap();
    let guest = TestGuest::new(&Diary::default());
    let mut destination = Destination::new(Arc::new(there), Box::new(guest));
    let (out, into) = channels();
    let (connector, mut listener) = (Ready::new(out), Arriving::new([into]));
    tokio::join!(source.run(&connector), destination.run(&mut listener)).0
}

fn throttles(diary: &Diary) -> Vec<String> {
    diary.entries().into_iter().filter(|entry| entry.starts_with("throttle")).collect()
}

#[tokio::test]
async fn a_guest_that_writes_too_fast_is_slowed_down_until_it_arrives() {
    let (memory, mut source) = writing_guest();
    let outcome = run(&mut source).await.unwrap();
    // At 50 % it writes nothing; when it stands still it is let go.
    let steps = ["throttle 0", "throttle 20", "throttle 30", "throttle 40", "throttle 50"];
    assert_eq!(throttles(&memory.diary), [&steps[..], &["throttle 0"]].concat());
    let entries = memory.diary.entries();
    assert_eq!(entries[entries.len() - 3..], ["stop", "throttle 0", "save"]);
    assert_eq!(outcome.info.cpu_throttle_percentage, None, "nobody is slow any more");
    // Twice for each of four steps.
    assert!(outcome.info.ram.dirty_sync_count >= 9, "{:?}", outcome.info.ram);
}

#[tokio::test]
async fn a_cancel_lets_it_go_before_it_is_given_back() {
    let (memory, mut source) = writing_guest();
    let handle = source.handle();
    let mut parameters = handle.parameters();
    parameters.max_cpu_throttle = 30;
    handle.set_parameters(parameters);
    let mut passes = handle.subscribe();
    let operator = async {
        while handle.info().cpu_throttle_percentage != Some(30) {
            passes.recv().await.unwrap();
        }
        handle.cancel();
    };
    let (sent, ()) = tokio::join!(run(&mut source), operator);
    assert_eq!(sent.unwrap_err().blame(), Blame::Cancelled);
    assert_eq!(
        throttles(&memory.diary),
        ["throttle 0", "throttle 20", "throttle 30", "throttle 0"]
    );
    assert_eq!(handle.info().cpu_throttle_percentage, None);
}

#[tokio::test]
async fn without_the_capability_nobody_is_slowed_down() {
    let (memory, mut source) = writing_guest();
    let mut capabilities = auto_converge();
    capabilities.auto_converge = false;
    source = source.with_capabilities(capabilities);
    let handle = source.handle();
    let mut events = handle.subscribe();
    let operator = async {
        // As many passes as bring the others home, and as many again.
        let mut passes = 0;
        while passes < 18 {
            passes +=
                u8::from(matches!(events.recv().await.unwrap(), mig_engine::Event::Pass { .. }));
        }
        handle.cancel();
    };
    let wait = tokio::time::timeout(Duration::from_secs(60), async {
        tokio::join!(run(&mut source), operator).0
    });
    assert_eq!(wait.await.unwrap().unwrap_err().blame(), Blame::Cancelled);
    assert!(throttles(&memory.diary).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_cannot_be_slowed_down_is_refused_before_anything_is_sent() {
    let mut pair = Pair::new();
    pair.source = pair.source.with_capabilities(auto_converge());
    let error = pair.source.run(&BlackHole).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse);
    assert!(error.to_string().contains("auto-converge"), "{error}");
    assert!(pair.source_diary.entries().is_empty());
}
