//! A recorder with data channels keeps one plain stream: every page as one record, as it was when the source let go of
//! it, and everything else byte for byte. What goes wrong leaves nothing that looks complete.

use std::{
    io::{self, Cursor},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use mig_engine::{
    Discard, Error, InputEnd, MultifdCompression, MultifdOptions, Owner, Parameters, RecordOptions,
    Recorded, Recorder, ReplayOptions, Replayed, Replayer, StreamSink, StreamWalk,
};
use mig_proto::{
    Command, DecodeError, Delta, Event, Options, RamWord, SectionHeader, SectionKind, encode,
    encode::ContinueMemory,
};
use mig_transport::{Blame, Channel, Connector};
use tokio::{io::AsyncWriteExt, net::UnixStream, sync::mpsc};

use crate::{
    multifd_wire::{
        Kind, Mode, NAMES, PAGE, PAGES, Receiving, Script, channel, connection, deadlines, listen,
        name, play,
    },
    support::{Arriving, whole},
};

const NONE: MultifdCompression = MultifdCompression::None;
const MAIN_AND_TWO: [Option<usize>; 3] = [Some(1), None, Some(0)];

/// Keeps in memory what a file would keep on a disk.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    committed: bool,
    dropped: bool,
}

impl Kept {
    fn committed(&self) -> Option<Vec<u8>> {
        let state = self.0.lock().unwrap();
        state.committed.then(|| state.bytes.clone())
    }

    /// The driver's copy has gone, uncommitted.
    fn is_abandoned(&self) -> bool {
        let state = self.0.lock().unwrap();
        state.dropped && !state.committed
    }
}

struct KeptSink(Kept);

impl StreamSink for KeptSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.0.lock().unwrap().bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn commit(self: Box<Self>) -> io::Result<()> {
        self.0.0.lock().unwrap().committed = true;
        Ok(())
    }

    fn name(&self) -> String {
        "memory".into()
    }
}

impl Drop for KeptSink {
    fn drop(&mut self) {
        self.0.0.lock().unwrap().dropped = true;
    }
}

fn options(channels: usize, compression: MultifdCompression) -> RecordOptions {
    let mut options = RecordOptions::default();
    options.deadlines = deadlines();
    let channels = u8::try_from(channels).unwrap();
    options.multifd = Some(MultifdOptions::new(channels).compression(compression));
    options
}

/// Records what a script says: what was kept, the outcome, and the verdict.
async fn record(
    script: &Script,
    options: RecordOptions,
    order: &[Option<usize>],
    kind: Kind,
) -> (Kept, Result<Recorded, Error>, Option<u32>) {
    let kept = Kept::default();
    let mut listener = Arriving::new([]);
    let door = listener.door();
    let recorder = Recorder::new(options);
    let sink = Box::new(KeptSink(kept.clone()));
    // Who waits to be accepted is hung up on when it is over.
    let recording = async move { recorder.run(&mut listener, sink, None).await };
    let (recorded, said) = tokio::join!(recording, play(script, door, order, kind));
    (kept, recorded, said)
}

/// What is to be kept of a main channel, made from its pieces: without what speaks to one destination or of data
/// channels, without pages, and with all of `memory` before the last end of ram.
fn expected(main: &[u8], memory: &[Vec<u8>; 2]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut section = None;
    let mut walk = StreamWalk::new(Options::default());
    let walked = walk.walk::<DecodeError>(main, InputEnd::Closed, |piece| {
        match &piece.event {
            Some(Event::Command(Command::OpenReturnPath | Command::Ping(_))) => return Ok(()),
            Some(
                Event::MultifdFlush(_)
                | Event::Zero(_)
                | Event::Xbzrle { .. }
                | Event::Page(_)
                | Event::Payload(_),
            ) => return Ok(()),
            Some(Event::Section(header)) => section = header.is_ram().then_some(header.kind),
            Some(Event::EndOfRecords(_)) if section == Some(SectionKind::End) => {
                pages(&mut out, memory);
            }
            _ => {}
        }
        out.extend_from_slice(piece.bytes);
        Ok(())
    });
    assert_eq!(walked.unwrap().consumed, main.len());
    out
}

/// Records of all pages.
fn pages(out: &mut Vec<u8>, memory: &[Vec<u8>; 2]) {
    let mut continued = ContinueMemory::new();
    for (number, block) in (0..).zip(memory) {
        let name = name(NAMES[number as usize]);
        for (page, bytes) in block.chunks(PAGE).enumerate() {
            let at = (page * PAGE) as u64;
            if bytes.iter().all(|byte| *byte == 0) {
                encode::zero_page(out, continued.word(number, RamWord::zero(at)), name);
            } else {
                encode::page_head(out, continued.word(number, RamWord::page(at)), name);
                out.extend_from_slice(bytes);
            }
        }
    }
}

fn assert_same(kept: &[u8], expected: &[u8], what: &str) {
    let differ = kept.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!((differ, kept.len()), (None, expected.len()), "{what}");
}

/// A destination without any capability loads it, and has the memory that the script ends with.
async fn load(stored: &[u8], memory: &[Vec<u8>; 2]) {
    let mut receiving = Receiving::new(1, NONE);
    receiving.destination = receiving.destination.with_capabilities(Default::default());
    let (near, mut far) = connection(Kind::Unix).await;
    receiving.door.send(near).unwrap();
    let sending = async {
        far.write_all(stored).await.unwrap();
        far.shutdown().await.unwrap();
        far
    };
    let (loaded, _far) = tokio::join!(receiving.destination.run(&mut receiving.listener), sending);
    loaded.unwrap();
    assert_eq!(receiving.diary.entries(), ["load clock", "load disk", "start"]);
    for (index, expected) in memory.iter().enumerate() {
        let mut now = vec![0; expected.len()];
        whole(&receiving.ram, index).copy_out(&mut now);
        assert!(now == *expected, "block {index}");
    }
}

/// In every mode, with every compression: rounds in which pages change, become zero, and are zero no more.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_is_one_plain_stream() {
    for mode in [Mode::PerRound, Mode::PerSection] {
        for compression in [NONE, MultifdCompression::Zlib, MultifdCompression::Zstd] {
            let what = format!("{mode:?} {compression:?}");
            let mut script = Script::new(3, mode, compression);
            script.rounds();
            let order = [None, Some(2), Some(0), Some(1)];
            let options = options(3, compression);
            let (kept, recorded, said) = record(&script, options, &order, Kind::Tcp).await;
            let recorded = recorded.unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(recorded.confirmed);
            assert_eq!(said, Some(0));
            let stored = kept.committed().expect("committed");
            assert_same(&stored, &expected(&script.main, &script.memory), &what);
            assert_eq!(recorded.bytes, stored.len() as u64);
            // Each page once.
            let all: usize = PAGES.iter().sum();
            assert_eq!(recorded.pages.normal + recorded.pages.zero, all as u64, "{what}");
            assert_eq!(recorded.info.status, "completed");
            let wire: usize = script.data.iter().map(|bytes| bytes.len() + 64).sum();
            assert_eq!(recorded.info.ram.multifd_bytes, wire as u64, "{what}");
            load(&stored, &script.memory).await;
        }
    }
}

/// The same bytes, whoever came first.
#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_channels_does_not_show() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.rounds();
    let expected = expected(&script.main, &script.memory);
    for order in [[None, Some(0), Some(1)], [Some(1), Some(0), None], [Some(0), None, Some(1)]] {
        let (kept, recorded, _) = record(&script, options(2, NONE), &order, Kind::Unix).await;
        recorded.unwrap();
        assert_same(&kept.committed().unwrap(), &expected, &format!("{order:?}"));
    }
}

/// Zero pages come in packets, over main, and over main after a packet brought the page, and the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_copy_wins_whichever_way_it_came() {
    for mode in [Mode::PerRound, Mode::PerSection] {
        let mut script = Script::new(2, mode, NONE);
        let zero_on_main = |script: &mut Script, page: usize| {
            let word = RamWord::zero((page * PAGE) as u64);
            encode::zero_page(&mut script.main, word, name(NAMES[0]));
            script.memory[0][page * PAGE..(page + 1) * PAGE].fill(0);
        };
        script.packet(0, 0, &[(1, 1), (2, 1), (3, 1)], &[4]);
        script.packet(1, 1, &[(0, 1), (15, 1)], &[]);
        script.end_round();
        script.section(SectionKind::Part, "ram");
        zero_on_main(&mut script, 1);
        zero_on_main(&mut script, 5);
        script.packet(1, 0, &[(4, 2)], &[2]);
        script.synchronise();
        script.end_ram();
        script.section(SectionKind::Part, "ram");
        script.packet(0, 0, &[(5, 3), (1, 3)], &[]);
        zero_on_main(&mut script, 4);
        script.synchronise();
        script.end_ram();
        script.end();
        let (kept, recorded, said) =
            record(&script, options(2, NONE), &MAIN_AND_TWO, Kind::Unix).await;
        recorded.unwrap();
        assert_eq!(said, Some(0));
        let stored = kept.committed().unwrap();
        assert_same(&stored, &expected(&script.main, &script.memory), "zeros");
        load(&stored, &script.memory).await;
    }
}

/// A delta to a page that a data channel brought. QEMU forbids the two together at the source (docs/wire/ram.md §11), and
/// asks nothing of a destination: ours takes it.
#[tokio::test(flavor = "multi_thread")]
async fn deltas_over_main_apply_to_what_data_channels_brought() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.packet(0, 0, &[(1, 1), (2, 1)], &[]);
    script.end_round();
    script.section(SectionKind::Part, "ram");
    // Behind 100 equal bytes, 3 new ones.
    let delta = [100, 3, b'n', b'e', b'w'];
    let word = RamWord::xbzrle(PAGE as u64);
    encode::xbzrle_page(&mut script.main, word, name(NAMES[0]), Delta::new(&delta).unwrap());
    script.memory[0][PAGE + 100..PAGE + 103].copy_from_slice(b"new");
    script.synchronise();
    script.end_ram();
    script.packet(1, 0, &[(2, 2)], &[]);
    script.end();
    let (kept, recorded, _) = record(&script, options(2, NONE), &MAIN_AND_TWO, Kind::Unix).await;
    recorded.unwrap();
    let stored = kept.committed().unwrap();
    assert_same(&stored, &expected(&script.main, &script.memory), "deltas");
    // A destination with a guest likewise.
    let mut receiving = Receiving::new(2, NONE);
    let (received, said) = receiving.run(&script, &MAIN_AND_TWO, Kind::Unix).await;
    received.unwrap();
    assert_eq!(said, Some(0));
    receiving.check(&script);
}

/// A device before END of ram: its state could look at memory in which pages still land.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_before_the_end_of_ram_is_kept_and_not_loaded() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.packet(0, 0, &[(1, 1), (2, 1)], &[]);
    script.end_round();
    let header = SectionHeader {
        kind: SectionKind::Full,
        section_id: 9,
        idstr: name("early"),
        instance_id: 0,
        version_id: 1,
    };
    encode::section(&mut script.main, &header);
    script.main.extend_from_slice(b"early state");
    script.main.extend_from_slice(&encode::footer(9));
    script.end();
    let mut receiving = Receiving::new(2, NONE);
    let (received, said) = receiving.run(&script, &MAIN_AND_TWO, Kind::Unix).await;
    let error = received.unwrap_err();
    assert_eq!(error.blame(), Blame::PeerIncompatible, "{error}");
    let words =
        "device early comes before the last section of ram, while data channels bring pages";
    assert!(error.to_string().contains(words), "{error}");
    assert!(error.position().is_some(), "{error}");
    assert_eq!(said, Some(1));
    assert!(!receiving.diary.runs());
    // Nothing is loaded here.
    let (kept, recorded, _) = record(&script, options(2, NONE), &MAIN_AND_TWO, Kind::Unix).await;
    recorded.unwrap();
    let stored = kept.committed().unwrap();
    assert_same(&stored, &expected(&script.main, &script.memory), "early");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_too_large_is_refused_with_the_figures() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.rounds();
    let total = PAGES.iter().sum::<usize>() * PAGE;
    let mut limited = options(2, NONE);
    limited.max_guest_memory = Some(total as u64 - 1);
    let (kept, recorded, said) = record(&script, limited, &MAIN_AND_TWO, Kind::Unix).await;
    let error = recorded.unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse, "{error}");
    let words = format!("{total} bytes of memory, and no more than {} may be held", total - 1);
    assert!(error.to_string().contains(&words), "{error}");
    assert!(error.to_string().contains("data channels"), "{error}");
    assert!(!error.to_string().contains("this transport"), "{error}");
    assert!(error.position().is_some(), "{error}");
    assert_eq!(error.owner(), Owner::Source);
    assert_eq!(said, Some(1));
    assert!(kept.is_abandoned());
    // As much as it is, it may be.
    let mut limited = options(2, NONE);
    limited.max_guest_memory = Some(total as u64);
    record(&script, limited, &MAIN_AND_TWO, Kind::Unix).await.1.unwrap();
}

/// More than any machine has, and nothing is allocated for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_list_that_no_machine_can_hold_is_refused() {
    const HUGE: u64 = 1 << 50;
    let mut script = Script::new(2, Mode::PerRound, NONE);
    let mut list = Vec::new();
    let len = |pages: usize| ((pages * PAGE) as u64).to_be_bytes();
    list.extend_from_slice(NAMES[0].as_bytes());
    list.extend_from_slice(&len(PAGES[0]));
    let at = script.main.windows(list.len()).position(|window| window == list).unwrap();
    let at = at + NAMES[0].len();
    script.main[at..at + 8].copy_from_slice(&HUGE.to_be_bytes());
    // The list's first word is the sum.
    let total = HUGE + (PAGES[1] * PAGE) as u64;
    let first = at - NAMES[0].len() - 1 - 8;
    script.main[first..first + 8].copy_from_slice(&RamWord::mem_size(total).to_be_bytes());
    script.end();
    let (kept, recorded, said) = record(&script, options(2, NONE), &MAIN_AND_TWO, Kind::Unix).await;
    let error = recorded.unwrap_err();
    assert!(error.to_string().contains(&total.to_string()), "{error}");
    assert_eq!(error.blame(), Blame::Unavailable, "{error}");
    assert!(!error.to_string().contains("this transport"), "{error}");
    assert_eq!(said, Some(1));
    assert!(kept.is_abandoned());
}

/// The channels of a recording that is under way: all of `script` but the last bytes of main has been sent.
async fn stalled(
    script: &Script,
    door: &mpsc::UnboundedSender<Channel>,
    percent: usize,
) -> (Box<dyn crate::multifd_wire::Far>, Vec<Box<dyn crate::multifd_wire::Far>>) {
    let (near, mut main) = connection(Kind::Unix).await;
    door.send(near).unwrap();
    let mut data = Vec::new();
    for (hello, bytes) in script.hellos.iter().zip(&script.data) {
        let (near, mut far) = connection(Kind::Unix).await;
        door.send(near).unwrap();
        far.write_all(hello).await.unwrap();
        data.push((far, &bytes[..bytes.len() * percent / 100]));
    }
    let sending = async {
        let [one, two] = &mut data[..] else { panic!("two data channels") };
        let part = &script.main[..script.main.len() * percent / 100];
        // All at once: they wait for each other at the other end.
        let sent =
            tokio::join!(main.write_all(part), one.0.write_all(one.1), two.0.write_all(two.1));
        sent.0.unwrap();
    };
    // Not all of it may fit where nobody reads on.
    let _late = tokio::time::timeout(Duration::from_millis(100), sending).await;
    (main, data.into_iter().map(|(far, _)| far).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_in_the_middle_leaves_nothing() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.rounds();
    for percent in [40, 80, 99] {
        let kept = Kept::default();
        let mut listener = Arriving::new([]);
        let door = listener.door();
        let recorder = Recorder::new(options(2, NONE));
        let handle = recorder.handle();
        let source = async {
            let (mut main, data) = stalled(&script, &door, percent).await;
            handle.cancel();
            let said = listen(&mut main).await;
            drop(data);
            said
        };
        let sink = Box::new(KeptSink(kept.clone()));
        let (recorded, said) = tokio::join!(recorder.run(&mut listener, sink, None), source);
        let error = recorded.unwrap_err();
        assert_eq!(error.blame(), Blame::Cancelled, "{percent} %: {error}");
        assert_eq!(error.owner(), Owner::Source, "{percent} %");
        assert!(kept.is_abandoned(), "{percent} %");
        assert_eq!(said, Some(1), "{percent} %");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_breaks_in_the_middle_leaves_nothing() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.rounds();
    let kept = Kept::default();
    let mut listener = Arriving::new([]);
    let door = listener.door();
    let recorder = Recorder::new(options(2, NONE));
    let source = async {
        let (mut main, mut data) = stalled(&script, &door, 60).await;
        data.remove(1);
        let said = listen(&mut main).await;
        drop(data);
        said
    };
    let sink = Box::new(KeptSink(kept.clone()));
    let (recorded, said) = tokio::join!(recorder.run(&mut listener, sink, None), source);
    let error = recorded.unwrap_err();
    assert_eq!(error.blame(), Blame::PeerMisbehaved, "{error}");
    assert!(error.to_string().contains("data channel 1: "), "{error}");
    assert_eq!(error.owner(), Owner::Source);
    assert_eq!(said, Some(1));
    assert!(kept.is_abandoned());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_that_breaks_a_rule_leaves_nothing() {
    let mut script = Script::new(2, Mode::PerRound, NONE);
    script.packet_with(1, 0, &[(1, 1)], &[], |header| header[64] = b'x');
    script.rounds();
    let (kept, recorded, said) = record(&script, options(2, NONE), &MAIN_AND_TWO, Kind::Tcp).await;
    let error = recorded.unwrap_err();
    assert!(error.to_string().contains("data channel 1: byte "), "{error}");
    assert_eq!(said, Some(1));
    assert!(kept.is_abandoned());
}

/// For a stream that is only to be verified.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_thrown_away_is_verified_all_the_same() {
    let mut script = Script::new(2, Mode::PerSection, NONE);
    script.rounds();
    let mut listener = Arriving::new([]);
    let door = listener.door();
    let recorder = Recorder::new(options(2, NONE));
    let (recorded, said) = tokio::join!(
        recorder.run(&mut listener, Box::new(Discard), None),
        play(&script, door, &MAIN_AND_TWO, Kind::Tcp)
    );
    let recorded = recorded.unwrap();
    assert!(recorded.confirmed);
    assert_eq!(said, Some(0));
    assert_eq!(recorded.bytes, expected(&script.main, &script.memory).len() as u64);
}

/// Connects to whoever listens behind the door.
struct Dialling(mpsc::UnboundedSender<Channel>);

#[async_trait]
impl Connector for Dialling {
    async fn connect(&self) -> mig_transport::Result<Channel> {
        let (near, far) = UnixStream::pair().unwrap();
        let [near, far] = [near, far].map(|end| channel(end.into_std().unwrap().into(), "unix"));
        self.0.send(near).unwrap();
        Ok(far)
    }
}

async fn replay(
    stored: &[u8],
    door: mpsc::UnboundedSender<Channel>,
    channels: u8,
    compression: MultifdCompression,
) -> Result<Replayed, Error> {
    let mut options = ReplayOptions::default();
    options.multifd = true;
    options.deadlines = deadlines();
    options.parameters = Parameters::default();
    options.parameters.multifd_channels = channels;
    options.parameters.multifd_compression = compression;
    let input = Cursor::new(stored.to_vec());
    let again = input.clone();
    let replayer =
        Replayer::new(options).with_second_reading(move || Ok(Box::new(again) as Box<_>));
    replayer.run(&Dialling(door), Box::new(input), "stored").await
}

/// A stored stream without sections of ram that say nothing.
fn meaning(stored: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut in_part = false;
    let mut walk = StreamWalk::new(Options::default());
    let walked = walk.walk::<DecodeError>(stored, InputEnd::Closed, |piece| {
        if let Some(Event::Section(header)) = &piece.event {
            in_part = header.is_ram() && header.kind == SectionKind::Part;
        }
        if in_part {
            let is_end = matches!(piece.event, Some(Event::Footer { .. }));
            let is_empty = matches!(piece.event, Some(Event::Section(_) | Event::EndOfRecords(_)));
            assert!(is_end || is_empty, "{:?}", piece.event);
            in_part = !is_end;
        } else {
            out.extend_from_slice(piece.bytes);
        }
        Ok(())
    });
    assert_eq!(walked.unwrap().consumed, stored.len());
    out
}

/// Kept, sent again and kept again, it is the same; and a destination has the same memory.
#[tokio::test(flavor = "multi_thread")]
async fn a_recording_survives_being_replayed() {
    for compression in [NONE, MultifdCompression::Zlib, MultifdCompression::Zstd] {
        let mut script = Script::new(2, Mode::PerRound, NONE);
        script.rounds();
        let first = record(&script, options(2, NONE), &MAIN_AND_TWO, Kind::Unix).await;
        let stored = first.0.committed().unwrap();
        for channels in [1, 3] {
            let again = Kept::default();
            let mut listener = Arriving::new([]);
            let door = listener.door();
            let recorder = Recorder::new(options(usize::from(channels), compression));
            let (recorded, replayed) = tokio::join!(
                recorder.run(&mut listener, Box::new(KeptSink(again.clone())), None),
                replay(&stored, door, channels, compression)
            );
            assert!(replayed.unwrap().confirmed);
            assert!(recorded.unwrap().confirmed);
            let what = format!("{compression:?} over {channels}");
            let again = again.committed().unwrap();
            assert_eq!(meaning(&again), meaning(&stored), "{what}");
            load(&again, &script.memory).await;
        }
        let mut receiving = Receiving::new(2, compression);
        let (received, replayed) = tokio::join!(
            receiving.destination.run(&mut receiving.listener),
            replay(&stored, receiving.door.clone(), 2, compression)
        );
        assert!(received.unwrap().confirmed);
        assert!(replayed.unwrap().confirmed);
        receiving.check(&script);
    }
}
