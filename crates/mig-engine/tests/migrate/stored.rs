//! A recorder and a replayer on a transport that carries memory itself: what is stored is one plain stream, and a plain
//! stream can be sent over such a transport. Bytes cross threads here, so time is real and the deadlines are short.

use std::{
    io::{self, Cursor, Read},
    sync::{Arc, Mutex},
    time::Duration,
};

use mig_engine::{
    InputEnd, Outcome, Owner, Parameters, RecordOptions, Recorded, Recorder, ReplayOptions,
    Replayed, Replayer, ReturnPathWish, StreamSink, StreamWalk,
};
use mig_proto::{
    Advise, Command, Deflated, Delta, Event, Name, Options, RamWord, SectionHeader, SectionKind,
    UnknownIterables, encode,
};
use mig_ram::{GuestMemory, PAGE_SIZE};
use mig_testkit::{DirectRam, Fault, direct_pair, memory_pair, pattern};
use mig_transport::{Blame, Channel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    Arriving, Diary, Pair, RAM_BYTES, Ready, TestGuest, check, one_way, stored_zlib, whole,
};

const BUFFER: usize = 64 * 1024;
/// What `fill` writes.
const NORMAL: u64 = 36;
const ZERO: u64 = 32;

type Result<T> = std::result::Result<T, mig_engine::Error>;

/// Keeps in memory what a file would keep on a disk.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<(Vec<u8>, bool)>>);

impl Memory {
    fn committed(&self) -> Option<Vec<u8>> {
        let state = self.0.lock().unwrap();
        state.1.then(|| state.0.clone())
    }
}

impl StreamSink for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().0.extend_from_slice(bytes);
        Ok(())
    }

    fn commit(self: Box<Self>) -> io::Result<()> {
        self.0.lock().unwrap().1 = true;
        Ok(())
    }

    fn name(&self) -> String {
        "memory".into()
    }
}

/// A live guest into a recorder.
async fn recorded(
    pair: &mut Pair,
    recorder: Recorder,
    channels: (Channel, Channel),
) -> (Memory, Result<Outcome>, Result<Recorded>) {
    let memory = Memory::default();
    let mut listener = Arriving::new([channels.1]);
    let connector = Ready::new(channels.0);
    let sink = Box::new(memory.clone());
    let (sent, kept) =
        tokio::join!(pair.source.run(&connector), recorder.run(&mut listener, sink, None));
    (memory, sent, kept)
}

/// A stored stream out of a replayer, over these channels, into a guest.
async fn replayed(
    pair: &mut Pair,
    replayer: Replayer,
    stored: &[u8],
    channels: (Channel, Channel),
) -> (Result<Replayed>, Result<Outcome>) {
    let connector = Ready::new(channels.0);
    let mut listener = Arriving::new([channels.1]);
    let input = Box::new(Cursor::new(stored.to_vec()));
    tokio::join!(replayer.run(&connector, input, "a.mig"), pair.destination.run(&mut listener))
}

/// What a replayer says that sends nothing.
async fn refused(replayer: Replayer, stored: &[u8]) -> mig_engine::Error {
    let (out, mut into, direct) = direct_pair(BUFFER, true);
    let connector = Ready::new(out);
    let input = Box::new(Cursor::new(stored.to_vec()));
    let error = replayer.run(&connector, input, "a.mig").await.unwrap_err();
    let mut came = Vec::new();
    into.take_receiver().unwrap().read_to_end(&mut came).await.unwrap();
    assert!(came.is_empty(), "{error}");
    assert_eq!(direct.calls(), ["source dropped"], "{error}");
    assert_eq!(error.owner(), Owner::Source);
    error
}

/// A file that can be read twice.
fn file(options: ReplayOptions, stored: &[u8]) -> Replayer {
    let stored = stored.to_vec();
    Replayer::new(options)
        .with_second_reading(move || Ok(Box::new(Cursor::new(stored)) as Box<dyn Read + Send>))
}

fn two_way() -> ReplayOptions {
    let mut options = ReplayOptions::default();
    options.return_path = ReturnPathWish::Always;
    options
}

/// The destination's memory is not fresh.
fn soil(pair: &Pair) {
    pattern::fill(&whole(&pair.destination_ram, 0), 7);
    pattern::fill(&whole(&pair.destination_ram, 1), 8);
}

/// Where in a stream which records about memory are.
fn records(stream: &[u8]) -> Vec<(SectionKind, &'static str, u64)> {
    let mut options = Options::default();
    options.unknown_iterables = UnknownIterables::KeepRaw;
    let (mut found, mut kind) = (Vec::new(), SectionKind::Full);
    StreamWalk::new(options)
        .walk::<mig_proto::DecodeError>(stream, InputEnd::Closed, |piece| {
            let what = match &piece.event {
                Some(Event::Section(header)) => {
                    kind = header.kind;
                    return Ok(());
                }
                Some(Event::Page(_)) => "page",
                Some(Event::Zero(_)) => "zero",
                Some(Event::Hook(_)) => "hook",
                Some(Event::BlockList { .. }) => "list",
                Some(Event::Command(_)) => "command",
                _ => return Ok(()),
            };
            match found.last_mut() {
                Some((last, same, count)) if (*last, *same) == (kind, what) => *count += 1,
                _ => found.push((kind, what, 1)),
            }
            Ok(())
        })
        .unwrap();
    found
}

#[tokio::test]
async fn a_live_guest_is_kept_as_one_plain_stream_and_sent_again_either_way() {
    let mut pair = Pair::new();
    let (out, into, direct) = direct_pair(BUFFER, true);
    // The ROM comes in the stream, behind the window: into memory all the same.
    direct.decline(1);
    let recorder = Recorder::new(RecordOptions::default());
    let (memory, sent, kept) = recorded(&mut pair, recorder, (out, into)).await;
    assert!(sent.unwrap().confirmed);
    let kept = kept.unwrap();
    let stored = memory.committed().unwrap();
    assert_eq!(
        records(&stored),
        [
            (SectionKind::Start, "list", 1),
            (SectionKind::End, "page", 32),
            (SectionKind::End, "zero", 32),
            (SectionKind::End, "page", 4)
        ]
    );
    assert_eq!(kept.bytes, stored.len() as u64);
    assert_eq!((kept.pages.normal, kept.pages.zero), (NORMAL, ZERO));
    assert_eq!((kept.info.ram.normal, kept.info.ram.duplicate), (NORMAL, ZERO));
    let calls = direct.calls();
    let at = |call: &str| calls.iter().position(|noted| noted == call).unwrap();
    assert!(at("destination load") < at("destination release"), "{calls:?}");
    assert!(at("destination release") < at("destination dropped"), "{calls:?}");

    // As a plain stream, into memory that is not fresh.
    let mut pair = Pair::new();
    soil(&pair);
    let plain = Replayer::new(two_way());
    let (sent, received) = replayed(&mut pair, plain, &stored, memory_pair(BUFFER)).await;
    assert!(sent.unwrap().confirmed);
    received.unwrap();
    check(&pair.destination_ram);

    // And by a transport that carries memory itself.
    let mut pair = Pair::new();
    soil(&pair);
    let (out, into, direct) = direct_pair(BUFFER, true);
    let (sent, received) =
        replayed(&mut pair, file(two_way(), &stored), &stored, (out, into)).await;
    let sent = sent.unwrap();
    received.unwrap();
    check(&pair.destination_ram);
    assert!(sent.confirmed);
    assert_eq!((sent.pages.normal, sent.pages.zero), (NORMAL, ZERO));
    assert_eq!(sent.info.ram.remaining, 0);
    assert!(sent.bytes > NORMAL * PAGE_SIZE as u64);
    assert_eq!(direct.saved(), [(0, 0, RAM_BYTES), (1, 0, 4 * 4096)], "each page once");
    let mut calls = direct.calls();
    calls.retain(|call| call.starts_with("source"));
    calls.dedup();
    assert_eq!(
        calls,
        [
            "source register test.ram",
            "source register test.rom",
            "source before Setup",
            "source after Setup",
            "source before Finish",
            "source save",
            "source after Finish",
            "source dropped"
        ]
    );
}

#[tokio::test]
async fn memory_that_may_not_be_held_is_refused_before_it_is_taken() {
    let mut pair = Pair::new();
    let (out, into, direct) = direct_pair(BUFFER, true);
    let mut options = RecordOptions::default();
    options.max_guest_memory = Some(4096);
    let (memory, sent, kept) = recorded(&mut pair, Recorder::new(options), (out, into)).await;
    let error = kept.unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse);
    let total = RAM_BYTES + 4 * 4096;
    for number in [total, 4096] {
        assert!(error.to_string().contains(&format!(" {number} ")), "{error}");
    }
    assert!(memory.committed().is_none());
    assert_eq!(sent.unwrap_err().owner(), Owner::Source);
    assert!(!direct.calls().iter().any(|call| call.starts_with("destination register")));

    let mut options = two_way();
    options.max_guest_memory = Some(total - 1);
    let stored = stored_by_hand();
    let error = refused(file(options, &stored), &stored).await;
    assert_eq!(error.blame(), Blame::Misuse, "{error}");
}

fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap()
}

fn ram(out: &mut Vec<u8>, kind: SectionKind, records: impl FnOnce(&mut Vec<u8>)) {
    let header =
        SectionHeader { kind, section_id: 2, idstr: name("ram"), instance_id: 0, version_id: 4 };
    encode::section(out, &header);
    records(out);
    encode::ram_word(out, RamWord::EOS);
    out.extend_from_slice(&encode::footer(2));
}

fn page(out: &mut Vec<u8>, at: u64, byte: u8) {
    encode::page_head(out, RamWord::page(at), name("test.ram"));
    out.extend([byte; PAGE_SIZE]);
}

fn head(out: &mut Vec<u8>) {
    *out = encode::FILE_HEADER.to_vec();
    encode::configuration(out, &mig_proto::Configuration::new(b"test-1.0").unwrap());
    ram(out, SectionKind::Start, |out| {
        let block = |text, len| encode::Block::new(name(text), len);
        let blocks = [block("test.ram", RAM_BYTES), block("test.rom", 4 * 4096)];
        encode::block_list(out, blocks.into_iter());
    });
}

fn tail(out: &mut Vec<u8>) {
    for (section_id, idstr) in [(3, "clock"), (4, "disk")] {
        let header = SectionHeader {
            kind: SectionKind::Full,
            section_id,
            idstr: name(idstr),
            instance_id: 0,
            version_id: 3,
        };
        encode::section(out, &header);
        out.extend_from_slice(idstr.repeat(50).as_bytes());
        out.extend_from_slice(&encode::footer(section_id));
    }
    out.push(encode::EOF);
    out.extend_from_slice(&encode::vmdescription_header(2));
    out.extend_from_slice(b"{}");
}

/// Pages that change: the last copy counts, and a delta changes the copy before it.
fn stored_by_hand() -> Vec<u8> {
    let mut out = Vec::new();
    head(&mut out);
    ram(&mut out, SectionKind::Part, |out| {
        page(out, 0, 1);
        page(out, 4096, 2);
        page(out, 8192, 3);
    });
    ram(&mut out, SectionKind::Part, |out| {
        page(out, 4096, 4);
        encode::zero_page(out, RamWord::zero(8192), name("test.ram"));
        let delta = Delta::new(&[16, 2, 9, 9]).unwrap();
        encode::xbzrle_page(out, RamWord::xbzrle(0), name("test.ram"), delta);
        let zlib = stored_zlib(&[8; PAGE_SIZE]);
        let data = Deflated::new(&zlib).unwrap();
        encode::compressed_page(out, RamWord::compressed(4096 * 7), name("test.ram"), data);
    });
    ram(&mut out, SectionKind::End, |out| page(out, 4096 * 5, 6));
    tail(&mut out);
    out
}

fn check_by_hand(pair: &Pair) {
    let mut expected = vec![0; RAM_BYTES as usize];
    expected[..4096].fill(1);
    expected[16..18].fill(9);
    expected[4096..8192].fill(4);
    expected[5 * 4096..6 * 4096].fill(6);
    expected[7 * 4096..8 * 4096].fill(8);
    let mut found = vec![0; RAM_BYTES as usize];
    whole(&pair.destination_ram, 0).copy_out(&mut found);
    assert!(found == expected);
    assert_eq!(pair.destination_ram.block_count(), 2);
}

#[tokio::test]
async fn of_a_page_that_was_stored_several_times_the_last_copy_is_sent() {
    let mut pair = Pair::new();
    soil(&pair);
    let (out, into, direct) = direct_pair(BUFFER, false);
    let stored = stored_by_hand();
    let replayer = file(ReplayOptions::default(), &stored);
    let (sent, received) = replayed(&mut pair, replayer, &stored, (out, into)).await;
    let sent = sent.unwrap();
    received.unwrap();
    check_by_hand(&pair);
    assert!(!sent.confirmed, "a channel without a way back");
    assert_eq!((sent.pages.normal, sent.pages.zero), (4, 64));
    assert_eq!(direct.saved().len(), 2);
    assert!(pair.destination_diary.has("load disk"));
}

#[tokio::test]
async fn a_pipe_is_refused_before_anything_is_sent() {
    let error = refused(Replayer::new(two_way()), &stored_by_hand()).await;
    assert_eq!(error.blame(), Blame::Misuse);
    assert!(error.to_string().contains("a.mig") && error.to_string().contains("file"), "{error}");
}

/// Streams that cannot be sent this way, what is wrong with them, and whose fault it is.
#[tokio::test]
async fn what_is_wrong_with_a_stored_stream_is_found_before_anything_is_sent() {
    let whole = stored_by_hand();
    let host_pages = |out: &mut Vec<u8>, advised: bool| {
        *out = encode::FILE_HEADER.to_vec();
        encode::configuration(out, &mig_proto::Configuration::new(b"test-1.0").unwrap());
        if advised {
            let advise = Advise { page_sizes: 0x20_1000, target_page_size: 4096 };
            encode::command(out, &Command::PostcopyAdvise(Some(advise)));
        }
        ram(out, SectionKind::Start, |out| {
            let mut block = encode::Block::new(name("test.ram"), 0x20_0000);
            if advised {
                block.host_page_size = Some(0x20_0000);
            } else {
                block.address = Some(0);
            }
            encode::block_list(out, [block].into_iter());
        });
        ram(out, SectionKind::End, |_| {});
        tail(out);
    };
    let (mut advised, mut ignoring) = (Vec::new(), Vec::new());
    host_pages(&mut advised, true);
    host_pages(&mut ignoring, false);
    let mut bad_delta = Vec::new();
    head(&mut bad_delta);
    ram(&mut bad_delta, SectionKind::End, |out| {
        let delta = Delta::new(&[16, 2, 9]).unwrap();
        encode::xbzrle_page(out, RamWord::xbzrle(0), name("test.ram"), delta);
    });
    tail(&mut bad_delta);
    let mut bad_zlib = Vec::new();
    head(&mut bad_zlib);
    ram(&mut bad_zlib, SectionKind::End, |out| {
        let short = stored_zlib(&[8; PAGE_SIZE - 1]);
        let data = Deflated::new(&short).unwrap();
        encode::compressed_page(out, RamWord::compressed(0x3000), name("test.ram"), data);
    });
    tail(&mut bad_zlib);
    let cases = [
        (whole[..whole.len() - 600].to_vec(), Blame::PeerMisbehaved, "cannot be sent"),
        (advised, Blame::PeerIncompatible, "postcopy-ram"),
        (ignoring, Blame::PeerIncompatible, "x-ignore-shared"),
        (bad_delta, Blame::PeerMisbehaved, "delta"),
        (bad_zlib, Blame::PeerMisbehaved, "compressed data for page 0x3000 of block 'test.ram'"),
    ];
    for (stored, blame, word) in cases {
        let mut options = two_way();
        options.stream.ignore_shared = word == "x-ignore-shared";
        let error = refused(file(options, &stored), &stored).await;
        assert!(error.to_string().contains(word), "{error}");
        assert_eq!(error.blame(), blame, "{error}");
    }
}

#[tokio::test]
async fn memory_after_the_last_section_of_it_is_the_sources_fault() {
    let mut bytes = Vec::new();
    head(&mut bytes);
    ram(&mut bytes, SectionKind::End, |out| page(out, 0, 1));
    ram(&mut bytes, SectionKind::Part, |out| page(out, 0, 2));
    tail(&mut bytes);
    let (mut out, into, _direct) = direct_pair(BUFFER, true);
    let memory = Memory::default();
    let mut listener = Arriving::new([into]);
    let recorder = Recorder::new(RecordOptions::default());
    let mut sender = out.take_sender().unwrap();
    sender.write_all(&bytes).await.unwrap();
    let error = recorder.run(&mut listener, Box::new(memory.clone()), None).await.unwrap_err();
    assert_eq!(error.blame(), Blame::PeerMisbehaved, "{error}");
    assert!(memory.committed().is_none());
}

#[tokio::test]
async fn the_rate_holds_for_a_replay() {
    let mut pair = Pair::new();
    let (out, into, _direct) = direct_pair(BUFFER, true);
    let stored = stored_by_hand();
    let mut options = two_way();
    options.parameters = Parameters::default();
    options.parameters.max_bandwidth = 100_000;
    let begun = std::time::Instant::now();
    let (sent, received) = replayed(&mut pair, file(options, &stored), &stored, (out, into)).await;
    sent.unwrap();
    received.unwrap();
    check_by_hand(&pair);
    // Three pages; that it is no slower is for paused time to say.
    assert!(begun.elapsed() >= Duration::from_millis(100));
}

const RECORDER: [&str; 3] =
    ["destination register test.ram", "destination load", "destination release"];
const REPLAYER: [&str; 6] = [
    "source register test.ram",
    "source before Setup",
    "source after Setup",
    "source before Finish",
    "source save",
    "source after Finish",
];

#[tokio::test]
async fn hooks_that_hang_or_fail_end_a_recording_and_nothing_looks_complete() {
    for call in RECORDER {
        for (fault, cancel, blame) in [
            (Fault::Fail, false, Blame::Io),
            (Fault::Hang, true, Blame::Cancelled),
            (Fault::Hang, false, Blame::Deadline),
        ] {
            let mut pair = Pair::new();
            let (out, into, direct) = direct_pair(BUFFER, true);
            direct.disturb(call, fault);
            let mut options = RecordOptions::default();
            options.deadlines.idle = Some(Duration::from_millis(200));
            let recorder = Recorder::new(options);
            let handle = recorder.handle();
            let cancelling = when(cancel, &direct, call, || handle.cancel());
            let recording = recorded(&mut pair, recorder, (out, into));
            let ((memory, sent, kept), ()) = tokio::join!(recording, cancelling);
            assert_eq!(kept.unwrap_err().blame(), blame, "{call} {fault:?}");
            assert!(memory.committed().is_none(), "{call} {fault:?}");
            assert_eq!(sent.unwrap_err().owner(), Owner::Source, "{call} {fault:?}");
            assert!(direct.calls().iter().any(|noted| noted == "destination dropped"));
        }
    }
}

#[tokio::test]
async fn hooks_that_hang_or_fail_end_a_replay() {
    for call in REPLAYER {
        for (fault, cancel, blame) in [
            (Fault::Fail, false, Blame::Io),
            (Fault::Hang, true, Blame::Cancelled),
            (Fault::Hang, false, Blame::Deadline),
        ] {
            let mut pair = Pair::with_destination_guest(TestGuest::new(&Diary::default()));
            let (out, into, direct) = direct_pair(BUFFER, true);
            direct.disturb(call, fault);
            let mut options = two_way();
            options.deadlines.idle = Some(Duration::from_millis(200));
            let stored = stored_by_hand();
            let replayer = file(options, &stored);
            let handle = replayer.handle();
            let cancelling = when(cancel, &direct, call, || handle.cancel());
            let replaying = replayed(&mut pair, replayer, &stored, (out, into));
            let ((sent, received), ()) = tokio::join!(replaying, cancelling);
            let error = sent.unwrap_err();
            assert_eq!((error.blame(), error.owner()), (blame, Owner::Source), "{call}: {error}");
            received.unwrap_err();
            assert!(!pair.destination_diary.runs(), "{call}");
        }
    }
}

async fn when(wanted: bool, direct: &DirectRam, call: &str, act: impl FnOnce()) {
    if wanted {
        while !direct.calls().iter().any(|noted| noted == call) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        act();
    }
}

#[tokio::test]
async fn without_a_way_back_a_recording_is_kept_and_not_confirmed() {
    let mut pair = Pair::new();
    pair.source = pair.source.with_capabilities(one_way());
    let (out, into, _direct) = direct_pair(BUFFER, false);
    let recorder = Recorder::new(RecordOptions::default());
    let (memory, sent, kept) = recorded(&mut pair, recorder, (out, into)).await;
    assert!(!sent.unwrap().confirmed);
    assert!(!kept.unwrap().confirmed);
    assert!(memory.committed().is_some());
}
