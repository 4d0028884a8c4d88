//! Nobody who wants a migration to stop waits for long: whatever the other end sends, and whatever the guest's memory looks
//! like, an engine that always has something to do gives way.
//!
//! What is counted is how often that was, not how fast anything is: work that went on for so long must have been polled so
//! many times. The channels here are always ready and know nothing of what a runtime lets a task do at a time.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use mig_engine::{
    Capabilities, Destination, Discard, RecordOptions, Recorder, ReplayOptions, Replayer,
    ReturnPathWish, Source,
};
use mig_proto::{Configuration, Name, RamWord, SectionHeader, SectionKind, encode};
use mig_ram::{PAGE_SIZE, RamBlock, RamBlocks};
use mig_testkit::{pattern, stream_channel};
use mig_transport::{Blame, Channel, Endpoint};
use tokio::io::{AsyncRead, ReadBuf, Sink};

use crate::support::{Arriving, BlackHole, Diary, Ready, TestGuest, whole};

/// Each poll may take this long, all together: ten times what a turn lasts.
const LONGEST: Duration = Duration::from_millis(50);

/// For so long there is something to do.
const FLOOD: Duration = Duration::from_millis(400);

/// Pages of the guest that is flooded.
const PAGES: u64 = 4096;

/// Runs `work` to its end, which must give way while it goes on.
#[track_caller]
fn gives_way<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut polls, mut took) = (0, Duration::ZERO);
    let output = runtime.block_on(async {
        let mut work = pin!(work);
        poll_fn(|cx| {
            let begun = Instant::now();
            let polled = work.as_mut().poll(cx);
            (polls, took) = (polls + 1, took + begun.elapsed());
            polled
        })
        .await
    });
    assert!(took / polls < LONGEST, "it was polled {polls} times in {took:?}");
    output
}

/// A stream that goes on with the same records for [`FLOOD`], and is then cut.
#[derive(Clone)]
struct Flood(Arc<Records>);

struct Records {
    bytes: Vec<u8>,
    /// What comes once.
    head: usize,
    at: AtomicU64,
    begun: OnceLock<Instant>,
}

impl Flood {
    /// Every page of the guest, again and again, as `record` appends it.
    fn of(record: impl Fn(&mut Vec<u8>, &mut encode::ContinueMemory, u64)) -> Self {
        let mut bytes = encode::FILE_HEADER.to_vec();
        encode::configuration(&mut bytes, &Configuration::new(b"test-1.0").unwrap());
        let section = |kind| SectionHeader {
            kind,
            section_id: 1,
            idstr: Name::new(b"ram").unwrap(),
            instance_id: 0,
            version_id: 4,
        };
        encode::section(&mut bytes, &section(SectionKind::Start));
        let block = encode::Block::new(Name::new(b"test.ram").unwrap(), PAGES * PAGE_SIZE as u64);
        encode::block_list(&mut bytes, [block].into_iter());
        bytes.extend(RamWord::EOS.to_be_bytes());
        bytes.extend(encode::footer(1));
        encode::section(&mut bytes, &section(SectionKind::Part));
        let mut continued = encode::ContinueMemory::new();
        record(&mut bytes, &mut continued, 0);
        let head = bytes.len();
        for page in 0..PAGES {
            record(&mut bytes, &mut continued, page);
        }
        Self(Arc::new(Records { bytes, head, at: AtomicU64::new(0), begun: OnceLock::new() }))
    }

    fn of_zeros() -> Self {
        let name = Name::new(b"test.ram").unwrap();
        Self::of(move |out, continued, page| {
            let word = continued.word(0, RamWord::zero(page * PAGE_SIZE as u64));
            encode::zero_page(out, word, name);
        })
    }

    fn of_pages() -> Self {
        let name = Name::new(b"test.ram").unwrap();
        Self::of(move |out, continued, page| {
            let word = continued.word(0, RamWord::page(page * PAGE_SIZE as u64));
            encode::page_head(out, word, name);
            out.extend([page as u8; PAGE_SIZE]);
        })
    }

    /// As much as fits; nothing once it is over.
    fn pour(&self, mut into: &mut [u8]) -> usize {
        let Records { bytes, head, at, begun } = &*self.0;
        let mut taken = 0;
        if begun.get_or_init(Instant::now).elapsed() > FLOOD {
            return 0;
        }
        while !into.is_empty() {
            let position = usize::try_from(at.load(Ordering::Relaxed)).unwrap();
            let position = match position.checked_sub(*head) {
                Some(behind) => head + behind % (bytes.len() - head),
                None => position,
            };
            let len = into.len().min(bytes.len() - position);
            into[..len].copy_from_slice(&bytes[position..position + len]);
            into = &mut into[len..];
            taken += len;
            at.fetch_add(len as u64, Ordering::Relaxed);
        }
        taken
    }

    fn channel(&self) -> Channel {
        stream_channel(Some(self.clone()), None::<Sink>, Endpoint::default())
    }
}

impl AsyncRead for Flood {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let taken = self.pour(buffer.initialize_unfilled());
        buffer.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl io::Read for Flood {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(self.pour(into))
    }
}

fn memory(pages: u64) -> Arc<RamBlocks> {
    let block = RamBlock::new("test.ram", pages * PAGE_SIZE as u64).unwrap();
    Arc::new(RamBlocks::new([block]).unwrap())
}

#[track_caller]
fn destination_gives_way(memory: Arc<RamBlocks>, flood: &Flood) {
    let mut listener = Arriving::new([flood.channel()]);
    let guest = TestGuest::new(&Diary::default());
    let mut destination = Destination::new(memory, Box::new(guest));
    let error = gives_way(destination.run(&mut listener)).unwrap_err();
    assert_eq!(error.blame(), Blame::PeerMisbehaved, "{error}");
}

/// Nine bytes each, for which a page is looked at.
#[test]
fn a_destination_that_gets_zero_pages() {
    let memory = memory(PAGES);
    pattern::fill(&whole(&memory, 0), 1);
    destination_gives_way(memory, &Flood::of_zeros());
}

/// Received straight to where they are placed from.
#[test]
fn a_destination_that_gets_pages_in_a_row() {
    destination_gives_way(memory(PAGES), &Flood::of_pages());
}

#[test]
fn a_recorder() {
    let recorder = Recorder::new(RecordOptions::default());
    let mut listener = Arriving::new([Flood::of_zeros().channel()]);
    let error = gives_way(recorder.run(&mut listener, Box::new(Discard), None)).unwrap_err();
    assert_eq!(error.blame(), Blame::PeerMisbehaved, "{error}");
}

/// What is stored is brought into memory before anybody is connected to.
#[test]
fn a_replayer_that_holds_the_memory() {
    let mut options = ReplayOptions::default();
    options.multifd = true;
    let replayer = Replayer::new(options).with_second_reading(|| Ok(Box::new(io::empty())));
    let run = replayer.run(&BlackHole, Box::new(Flood::of_zeros()), "a flood");
    let error = gives_way(run).unwrap_err();
    assert_eq!(error.blame(), Blame::PeerMisbehaved, "{error}");
}

/// Into a channel that takes everything at once.
fn abyss() -> Ready {
    let channel =
        stream_channel(None::<tokio::io::Empty>, Some(tokio::io::sink()), Endpoint::default());
    Ready::new(channel)
}

#[test]
fn a_replayer_that_sends() {
    let mut options = ReplayOptions::default();
    options.return_path = ReturnPathWish::Never;
    let connector = abyss();
    let run = Replayer::new(options).run(&connector, Box::new(Flood::of_zeros()), "a flood");
    let error = gives_way(run).unwrap_err();
    assert_eq!(error.blame(), Blame::PeerMisbehaved, "{error}");
}

/// A guest that has written next to nothing, of a size for which it takes a while to find that out.
#[test]
fn a_source_of_zero_pages() {
    let guest = TestGuest::new(&Diary::default());
    let mut source =
        Source::new(memory(256 * 1024), Box::new(guest)).with_capabilities(Capabilities::default());
    let connector = abyss();
    let sent = gives_way(source.run(&connector)).unwrap();
    assert!(!sent.confirmed);
}
