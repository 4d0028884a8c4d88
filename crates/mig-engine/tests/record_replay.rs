//! Recorder and replayer, against each other and against ends played by hand: what is kept, what is answered, and that
//! nothing looks complete which is not. Bytes cross threads here, so time is real and the deadlines under test are short.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is its purpose")]

use std::{
    io::{self, Cursor},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use mig_engine::{
    Deadlines, Discard, Owner, RecordOptions, Recorder, ReplayOptions, Replayer, ReturnPathWish,
    StreamSink,
};
use mig_proto::{
    Advise, Command, Configuration, Name, RamWord, SectionHeader, SectionKind, encode,
    return_path::Message,
};
use mig_testkit::{memory_pair, stream_channel};
use mig_transport::{Blame, Channel, Connector, Endpoint, Error, Listener, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

const BUFFER: usize = 64 * 1024;

/// Gives one channel, as a connector and as a listener.
struct One(Mutex<Option<Channel>>);

impl One {
    fn new(channel: Channel) -> Self {
        Self(Mutex::new(Some(channel)))
    }

    fn take(&self) -> Result<Channel> {
        let taken = self.0.lock().expect("no test panics while holding it").take();
        taken.ok_or_else(|| Error::Misuse { what: "there was one channel".into() })
    }
}

#[async_trait]
impl Connector for One {
    async fn connect(&self) -> Result<Channel> {
        self.take()
    }
}

#[async_trait]
impl Listener for One {
    async fn accept(&mut self) -> Result<Channel> {
        self.take()
    }

    fn local_addresses(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Keeps in memory what a file would keep on a disk.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    committed: bool,
    dropped: bool,
    /// Fails the first write that would go beyond this many bytes.
    full_at: Option<usize>,
}

impl Memory {
    fn committed(&self) -> Option<Vec<u8>> {
        let state = self.0.lock().unwrap();
        state.committed.then(|| state.bytes.clone())
    }
}

impl StreamSink for Memory {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        if state.full_at.is_some_and(|full| state.bytes.len() + bytes.len() > full) {
            return Err(io::Error::from_raw_os_error(28));
        }
        state.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn commit(self: Box<Self>) -> io::Result<()> {
        self.0.lock().unwrap().committed = true;
        Ok(())
    }

    fn name(&self) -> String {
        "memory".into()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.0.lock().unwrap().dropped = true;
    }
}

fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap()
}

fn section<'a>(kind: SectionKind, section_id: u32, idstr: &'a str) -> SectionHeader<'a> {
    let version_id = if idstr == "ram" { 4 } else { 1 };
    SectionHeader { kind, section_id, idstr: name(idstr), instance_id: 0, version_id }
}

/// What a source says beside the stream itself.
#[derive(Clone, Copy, PartialEq)]
enum Extras {
    None,
    /// Everything that a recorder must leave out.
    All,
}

/// A small stream of two pages.
fn stream(extras: Extras) -> Vec<u8> {
    let mut out = encode::FILE_HEADER.to_vec();
    encode::configuration(&mut out, &Configuration::new(b"pc-test").unwrap());
    if extras == Extras::All {
        encode::command(&mut out, &Command::OpenReturnPath);
        encode::command(&mut out, &Command::Ping(1));
        let advise = Advise { page_sizes: 4096, target_page_size: 4096 };
        encode::command(&mut out, &Command::PostcopyAdvise(Some(advise)));
    }
    encode::section(&mut out, &section(SectionKind::Start, 2, "ram"));
    let block = encode::Block::new(name("pc.ram"), 8192);
    encode::block_list(&mut out, [block].into_iter());
    encode::ram_word(&mut out, RamWord::EOS);
    out.extend_from_slice(&encode::footer(2));
    encode::section(&mut out, &section(SectionKind::Part, 2, "ram"));
    if extras == Extras::All {
        encode::ram_word(&mut out, RamWord::HOOK);
    }
    encode::page_head(&mut out, RamWord::page(0), name("pc.ram"));
    out.extend((0..4096_u32).map(|i| (i % 251) as u8));
    encode::zero_page(&mut out, RamWord::zero(4096).continued(), name("pc.ram"));
    if extras == Extras::All {
        encode::ram_word(&mut out, RamWord::MULTIFD_FLUSH);
    }
    encode::ram_word(&mut out, RamWord::EOS);
    out.extend_from_slice(&encode::footer(2));
    encode::command(&mut out, &Command::SwitchoverStart);
    encode::section(&mut out, &section(SectionKind::Full, 7, "timer"));
    out.extend_from_slice(b"device state");
    out.extend_from_slice(&encode::footer(7));
    out.push(encode::EOF);
    out.extend_from_slice(&encode::vmdescription_header(2));
    out.extend_from_slice(b"{}");
    out
}

fn hasty() -> RecordOptions {
    let mut options = RecordOptions::default();
    options.deadlines.idle = Some(Duration::from_secs(30));
    options.deadlines.accept = None;
    options
}

/// A recorder fed by hand: what was kept, its outcome, and what it answered.
async fn record(
    bytes: &[u8],
    options: RecordOptions,
) -> (Memory, mig_engine::Result<mig_engine::Recorded>, Vec<u8>) {
    let memory = Memory::default();
    let (ours, theirs) = memory_pair(BUFFER);
    let mut listener = One::new(theirs);
    let recorder = Recorder::new(options);
    let recording = recorder.run(&mut listener, Box::new(memory.clone()), None);
    let playing = play(ours, bytes);
    let (outcome, answers) = tokio::join!(recording, playing);
    (memory, outcome, answers)
}

/// Sends `bytes`, ends, and collects what comes back.
async fn play(mut channel: Channel, bytes: &[u8]) -> Vec<u8> {
    let mut sender = channel.take_sender().unwrap();
    let mut receiver = channel.take_receiver().unwrap();
    let mut answers = Vec::new();
    let reading = async {
        // Ends with the recorder's end of the channel.
        receiver.read_to_end(&mut answers).await.unwrap();
    };
    let writing = async {
        // A recorder that gave up reads no more.
        let _refused = sender.write_all(bytes).await;
        drop(sender);
    };
    tokio::join!(reading, writing);
    answers
}

fn messages(messages: &[Message]) -> Vec<u8> {
    messages.iter().flat_map(Message::to_bytes).collect()
}

#[tokio::test]
async fn what_speaks_to_one_destination_only_is_answered_and_not_kept() {
    let (memory, outcome, answers) = record(&stream(Extras::All), hasty()).await;
    let recorded = outcome.unwrap();
    assert!(recorded.confirmed);
    assert_eq!((recorded.pages.normal, recorded.pages.zero), (1, 1));
    assert_eq!(memory.committed().unwrap(), stream(Extras::None));
    let expected = [Message::Pong { value: 1 }, Message::Shut { status: 0 }];
    assert_eq!(answers, messages(&expected));
}

/// A stream of a source whose blocks have huge pages, with ADVISE and what it brings, or without both.
fn huge_pages(advised: bool) -> Vec<u8> {
    let mut out = encode::FILE_HEADER.to_vec();
    encode::configuration(&mut out, &Configuration::new(b"pc-test").unwrap());
    if advised {
        let advise = Advise { page_sizes: 0x20_1000, target_page_size: 4096 };
        encode::command(&mut out, &Command::PostcopyAdvise(Some(advise)));
    }
    encode::section(&mut out, &section(SectionKind::Start, 2, "ram"));
    let huge = |text, used_length| encode::Block {
        host_page_size: advised.then_some(0x20_0000),
        ..encode::Block::new(name(text), used_length)
    };
    let blocks =
        [huge("pc.ram", 0x80_0000), encode::Block::new(name("rom"), 4096), huge("b", 0x20_0000)];
    encode::block_list(&mut out, blocks.into_iter());
    encode::ram_word(&mut out, RamWord::EOS);
    out.extend_from_slice(&encode::footer(2));
    encode::section(&mut out, &section(SectionKind::End, 2, "ram"));
    encode::zero_page(&mut out, RamWord::zero(4096), name("pc.ram"));
    encode::ram_word(&mut out, RamWord::EOS);
    out.extend_from_slice(&encode::footer(2));
    out.push(encode::EOF);
    out.extend_from_slice(&encode::vmdescription_header(2));
    out.extend_from_slice(b"{}");
    out
}

#[tokio::test]
async fn host_page_sizes_that_only_advise_brings_are_not_kept() {
    let (memory, outcome, _) = record(&huge_pages(true), hasty()).await;
    let recorded = outcome.unwrap();
    assert_eq!(recorded.info.ram.total, 0xa0_1000);
    assert_eq!(memory.committed().unwrap(), huge_pages(false));
    assert_eq!(recorded.bytes, huge_pages(false).len() as u64);
}

#[tokio::test]
async fn a_block_list_that_comes_byte_by_byte_is_kept_without_them_too() {
    let bytes = huge_pages(true);
    let memory = Memory::default();
    // So narrow that every read brings one byte.
    let (ours, theirs) = memory_pair(1);
    let mut listener = One::new(theirs);
    let recorder = Recorder::new(hasty());
    let recording = recorder.run(&mut listener, Box::new(memory.clone()), None);
    let (outcome, _) = tokio::join!(recording, play(ours, &bytes));
    outcome.unwrap();
    assert_eq!(memory.committed().unwrap(), huge_pages(false));
}

#[tokio::test]
async fn a_plain_stream_is_kept_byte_for_byte_and_nobody_is_told() {
    let (memory, outcome, answers) = record(&stream(Extras::None), hasty()).await;
    assert!(!outcome.unwrap().confirmed);
    assert_eq!(memory.committed().unwrap(), stream(Extras::None));
    assert!(answers.is_empty());
}

#[tokio::test]
async fn switchover_ack_comes_before_the_first_pong() {
    let mut options = hasty();
    options.switchover_ack = true;
    let (_, outcome, answers) = record(&stream(Extras::All), options).await;
    outcome.unwrap();
    let expected =
        [Message::SwitchoverAck, Message::Pong { value: 1 }, Message::Shut { status: 0 }];
    assert_eq!(answers, messages(&expected));
}

#[tokio::test]
async fn a_forbidden_return_path_is_refused_with_the_reason() {
    let mut options = hasty();
    options.return_path = false;
    let (memory, outcome, _) = record(&stream(Extras::All), options).await;
    let error = outcome.unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse);
    assert!(error.to_string().contains("return-path"), "{error}");
    assert!(memory.committed().is_none());
}

#[tokio::test]
async fn a_stream_cut_anywhere_before_its_eof_is_never_committed() {
    let whole = stream(Extras::All);
    let eof = whole.len() - 1 - 5 - 2;
    // Every position outside the page, some inside.
    for cut in (0..eof).filter(|cut| !(200..4200).contains(cut) || cut % 613 == 0) {
        let (memory, outcome, answers) = record(&whole[..cut], hasty()).await;
        let error = outcome.unwrap_err();
        assert_eq!(error.blame(), Blame::PeerMisbehaved, "cut at {cut}: {error}");
        assert!(memory.committed().is_none(), "cut at {cut}");
        let told = answers.ends_with(&Message::Shut { status: 1 }.to_bytes());
        // OPEN_RETURN_PATH ends there.
        assert_eq!(told, cut >= 25, "cut at {cut}: {answers:?}");
    }
}

#[tokio::test]
async fn a_cut_description_is_complete() {
    let whole = stream(Extras::All);
    for missing in 1..8 {
        let (memory, outcome, _) = record(&whole[..whole.len() - missing], hasty()).await;
        outcome.unwrap();
        assert!(memory.committed().is_some(), "{missing} missing");
    }
}

#[tokio::test]
async fn a_source_that_waits_without_a_description_is_not_waited_for() {
    // Everything but VMDESCRIPTION comes, and then the source waits for its verdict.
    let whole = stream(Extras::All);
    let bytes = &whole[..whole.len() - 7];
    let memory = Memory::default();
    let (mut ours, theirs) = memory_pair(BUFFER);
    let mut listener = One::new(theirs);
    let recording = Recorder::new(hasty());
    let recording = recording.run(&mut listener, Box::new(memory.clone()), None);
    let mut sender = ours.take_sender().unwrap();
    let mut receiver = ours.take_receiver().unwrap();
    let playing = async {
        sender.write_all(bytes).await.unwrap();
        let mut answers = vec![0; 16];
        receiver.read_exact(&mut answers).await.unwrap();
        drop(sender);
        answers
    };
    let (outcome, answers) = tokio::join!(recording, playing);
    assert!(outcome.unwrap().confirmed);
    assert!(answers.ends_with(&Message::Shut { status: 0 }.to_bytes()));
    assert!(memory.committed().is_some());
}

#[tokio::test]
async fn postcopy_is_refused_by_name() {
    let mut bytes = encode::FILE_HEADER.to_vec();
    encode::configuration(&mut bytes, &Configuration::new(b"pc-test").unwrap());
    encode::command(&mut bytes, &Command::PostcopyListen);
    let (memory, outcome, _) = record(&bytes, hasty()).await;
    let error = outcome.unwrap_err();
    assert_eq!(error.blame(), Blame::PeerIncompatible);
    assert!(error.to_string().contains("POSTCOPY_LISTEN"), "{error}");
    assert!(memory.committed().is_none());
}

#[tokio::test]
async fn a_full_disk_fails_the_recording_and_tells_the_source() {
    let memory = Memory::default();
    memory.0.lock().unwrap().full_at = Some(1000);
    let (ours, theirs) = memory_pair(BUFFER);
    let mut listener = One::new(theirs);
    let recorder = Recorder::new(hasty());
    let recording = recorder.run(&mut listener, Box::new(memory.clone()), None);
    let bytes = stream(Extras::All);
    let (outcome, answers) = tokio::join!(recording, play(ours, &bytes));
    let error = outcome.unwrap_err();
    assert_eq!(error.blame(), Blame::Io);
    assert!(error.to_string().contains("memory"), "{error}");
    assert!(memory.committed().is_none());
    assert!(answers.ends_with(&Message::Shut { status: 1 }.to_bytes()));
}

#[tokio::test]
async fn a_cancelled_recording_is_dropped_and_the_source_told() {
    let memory = Memory::default();
    let (mut ours, theirs) = memory_pair(BUFFER);
    let mut listener = One::new(theirs);
    let recorder = Recorder::new(hasty());
    let handle = recorder.handle();
    let recording = recorder.run(&mut listener, Box::new(memory.clone()), None);
    let mut sender = ours.take_sender().unwrap();
    let mut receiver = ours.take_receiver().unwrap();
    let playing = async {
        let bytes = stream(Extras::All);
        sender.write_all(&bytes[..300]).await.unwrap();
        let mut answers = vec![0; 8];
        receiver.read_exact(&mut answers).await.unwrap();
        handle.cancel();
        receiver.read_to_end(&mut answers).await.unwrap();
        answers
    };
    let (outcome, answers) = tokio::join!(recording, playing);
    assert_eq!(outcome.unwrap_err().blame(), Blame::Cancelled);
    assert!(answers.ends_with(&Message::Shut { status: 1 }.to_bytes()));
    assert!(memory.committed().is_none());
    assert!(memory.0.lock().unwrap().dropped);
}

#[tokio::test]
async fn a_source_that_reads_no_answers_does_not_hold_up_a_cancel() {
    let memory = Memory::default();
    // One PONG fits, the verdict behind it does not.
    let (mut ours, theirs) = memory_pair(8);
    let mut listener = One::new(theirs);
    let recorder = Recorder::new(hasty());
    let handle = recorder.handle();
    let recording = recorder.run(&mut listener, Box::new(memory.clone()), None);
    let mut sender = ours.take_sender().unwrap();
    let playing = async {
        sender.write_all(&stream(Extras::All)).await.unwrap();
        while memory.committed().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        handle.cancel();
    };
    let (outcome, ()) = tokio::join!(recording, playing);
    let error = outcome.unwrap_err();
    assert_eq!(error.owner(), Owner::Unknown);
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    assert_eq!(cause.as_deref(), Some("cancelled"));
}

/// The same before the end, where the way back is full. Its own time is counted: nobody else takes any.
#[tokio::test(start_paused = true)]
async fn a_way_back_that_is_full_does_not_hold_up_a_cancel() {
    let (mut ours, theirs) = memory_pair(BUFFER);
    let mut listener = One::new(theirs);
    let recorder = Recorder::new(hasty());
    let handle = recorder.handle();
    let operator = async {
        let mut to = ours.take_sender().unwrap();
        let mut head = encode::FILE_HEADER.to_vec();
        encode::configuration(&mut head, &Configuration::new(b"pc-test").unwrap());
        encode::command(&mut head, &Command::OpenReturnPath);
        to.write_all(&head).await.unwrap();
        let mut ping = Vec::new();
        encode::command(&mut ping, &Command::Ping(7));
        let pings = ping.repeat(1000);
        let flood = async { while to.write_all(&pings).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(3), flood).await.unwrap_err();
        handle.cancel();
        (tokio::time::Instant::now(), to)
    };
    let recording = recorder.run(&mut listener, Box::new(Memory::default()), None);
    let (outcome, (asked, _to)) = tokio::join!(recording, operator);
    assert_eq!(outcome.unwrap_err().blame(), Blame::Cancelled);
    assert!(asked.elapsed() <= Duration::from_millis(100), "{:?}", asked.elapsed());
}

#[tokio::test]
async fn a_source_that_falls_silent_runs_into_the_idle_deadline() {
    let (mut ours, theirs) = memory_pair(BUFFER);
    let mut listener = One::new(theirs);
    let mut options = hasty();
    options.deadlines.idle = Some(Duration::from_millis(600));
    let recorder = Recorder::new(options);
    let recording = recorder.run(&mut listener, Box::new(Discard), None);
    let mut sender = ours.take_sender().unwrap();
    let bytes = stream(Extras::None);
    let playing = sender.write_all(&bytes[..100]);
    let (outcome, played) = tokio::join!(recording, playing);
    played.unwrap();
    assert_eq!(outcome.unwrap_err().blame(), Blame::Deadline);
}

fn replayer(return_path: ReturnPathWish) -> Replayer {
    let mut options = ReplayOptions::default();
    options.return_path = return_path;
    options.deadlines = Deadlines::default();
    Replayer::new(options)
}

fn input(bytes: &[u8]) -> Box<dyn io::Read + Send> {
    Box::new(Cursor::new(bytes.to_vec()))
}

#[tokio::test]
async fn a_replay_into_a_recorder_gives_the_same_bytes_and_is_confirmed() {
    let stored = stream(Extras::None);
    let memory = Memory::default();
    let (ours, theirs) = memory_pair(BUFFER);
    let connector = One::new(ours);
    let mut listener = One::new(theirs);
    let recorder = Recorder::new(hasty());
    let (replayed, recorded) = tokio::join!(
        replayer(ReturnPathWish::Always).run(&connector, input(&stored), "stored"),
        recorder.run(&mut listener, Box::new(memory.clone()), None),
    );
    let replayed = replayed.unwrap();
    assert!(replayed.confirmed);
    // OPEN_RETURN_PATH and PING were put in between.
    assert_eq!(replayed.bytes, stored.len() as u64 + 5 + 9);
    assert!(recorded.unwrap().confirmed);
    assert_eq!(memory.committed().unwrap(), stored);
    assert_eq!(replayed.info.status, "completed");
}

#[tokio::test]
async fn without_a_return_path_a_replay_is_sent_and_not_confirmed() {
    let stored = stream(Extras::None);
    let (ours, theirs) = memory_pair(BUFFER);
    let connector = One::new(ours);
    let (replayed, got) = tokio::join!(
        replayer(ReturnPathWish::Never).run(&connector, input(&stored), "stored"),
        play(theirs, &[]),
    );
    assert!(!replayed.unwrap().confirmed);
    assert_eq!(got, stored);
}

#[tokio::test]
async fn commands_stored_for_another_destination_are_not_said_again() {
    let (ours, theirs) = memory_pair(BUFFER);
    let connector = One::new(ours);
    let mut bytes = encode::FILE_HEADER.to_vec();
    encode::configuration(&mut bytes, &Configuration::new(b"pc-test").unwrap());
    let head = bytes.len();
    encode::command(&mut bytes, &Command::OpenReturnPath);
    encode::command(&mut bytes, &Command::Ping(77));
    bytes.extend_from_slice(&stream(Extras::None)[head..]);
    let (replayed, got) = tokio::join!(
        replayer(ReturnPathWish::Never).run(&connector, input(&bytes), "stored"),
        play(theirs, &[]),
    );
    replayed.unwrap();
    assert_eq!(got, stream(Extras::None));
}

#[tokio::test]
async fn a_return_path_on_a_one_way_channel_is_refused_before_a_byte_is_sent() {
    let (ours, mut theirs) = tokio::io::duplex(BUFFER);
    let one_way = stream_channel(None::<DuplexStream>, Some(ours), Endpoint::default());
    let connector = One::new(one_way);
    let stored = stream(Extras::None);
    let outcome = replayer(ReturnPathWish::Always).run(&connector, input(&stored), "stored").await;
    let error = outcome.unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse);
    let mut got = Vec::new();
    drop(connector);
    theirs.read_to_end(&mut got).await.unwrap();
    assert!(got.is_empty());
}

#[tokio::test]
async fn a_truncated_input_never_looks_complete_to_the_destination() {
    let whole = stream(Extras::None);
    for cut in [0, 3, 8, 40, 200, 3000, whole.len() - 9] {
        let memory = Memory::default();
        let (ours, theirs) = memory_pair(BUFFER);
        let connector = One::new(ours);
        let mut listener = One::new(theirs);
        let recorder = Recorder::new(hasty());
        let (replayed, recorded) = tokio::join!(
            replayer(ReturnPathWish::Always).run(&connector, input(&whole[..cut]), "stored"),
            recorder.run(&mut listener, Box::new(memory.clone()), None),
        );
        let error = replayed.unwrap_err();
        assert_eq!(error.blame(), Blame::PeerMisbehaved, "{cut}: {error}");
        assert_eq!(error.position(), Some(cut as u64), "{cut}: {error}");
        assert_eq!(error.owner(), Owner::Source);
        assert!(recorded.is_err(), "{cut}");
        assert!(memory.committed().is_none(), "{cut}");
    }
}

#[tokio::test]
async fn a_destination_that_gives_up_is_named_with_the_place() {
    for (answer, word) in [
        (messages(&[Message::Pong { value: 1 }, Message::Shut { status: 1 }]), "SHUT 1"),
        (messages(&[Message::Pong { value: 1 }]), "closed the channel without a verdict"),
    ] {
        let stored = stream(Extras::None);
        let (ours, mut theirs) = memory_pair(BUFFER);
        let connector = One::new(ours);
        let giving_up = async {
            let mut receiver = theirs.take_receiver().unwrap();
            let mut sender = theirs.take_sender().unwrap();
            receiver.read_exact(&mut [0; 100]).await.unwrap();
            sender.write_all(&answer).await.unwrap();
        };
        let (replayed, ()) = tokio::join!(
            replayer(ReturnPathWish::Always).run(&connector, input(&stored), "stored"),
            giving_up,
        );
        let error = replayed.unwrap_err();
        assert_eq!(error.blame(), Blame::PeerIncompatible);
        assert!(error.to_string().contains(word), "{error}");
        assert!(error.to_string().contains("pc-test"), "{error}");
    }
}

/// Where the description begins: what comes before ends in the EOF.
fn description_at(stored: &[u8]) -> usize {
    stored.len() - b"{}".len() - 5
}

/// Reads up to the EOF, with what the replayer puts in, and not a byte further.
async fn read_to_eof(receiver: &mut mig_transport::Receiver, stored: &[u8]) {
    let mut got = vec![0; description_at(stored) + 5 + 9];
    receiver.read_exact(&mut got).await.unwrap();
    assert_eq!(got.last(), Some(&encode::EOF));
}

#[tokio::test]
async fn a_verdict_before_the_last_byte_is_success() {
    let stored = stream(Extras::None);
    // The description does not fit, so it cannot have left before the verdict.
    let (ours, mut theirs) = memory_pair(4);
    let connector = One::new(ours);
    let mut sender = theirs.take_sender().unwrap();
    let mut receiver = theirs.take_receiver().unwrap();
    let destination = async {
        read_to_eof(&mut receiver, &stored).await;
        sender.write_all(&messages(&[Message::Shut { status: 0 }])).await.unwrap();
        let mut rest = Vec::new();
        receiver.read_to_end(&mut rest).await.unwrap();
        rest
    };
    let (replayed, rest) = tokio::join!(
        replayer(ReturnPathWish::Always).run(&connector, input(&stored), "stored"),
        destination,
    );
    assert!(replayed.unwrap().confirmed);
    assert!(rest.ends_with(b"{}"), "the rest was still sent");
}

#[tokio::test]
async fn a_verdict_before_the_end_of_the_stream_is_a_lie() {
    let stored = stream(Extras::None);
    let (ours, mut theirs) = memory_pair(64);
    let connector = One::new(ours);
    let mut sender = theirs.take_sender().unwrap();
    // Nobody reads, so the end cannot have left.
    sender.write_all(&messages(&[Message::Shut { status: 0 }])).await.unwrap();
    let outcome = replayer(ReturnPathWish::Always).run(&connector, input(&stored), "stored").await;
    let error = outcome.unwrap_err();
    assert_eq!((error.blame(), error.owner()), (Blame::PeerMisbehaved, Owner::Source));
}

#[tokio::test]
async fn a_replay_cancelled_behind_the_end_of_the_stream_does_not_know_the_owner() {
    let stored = stream(Extras::None);
    let (ours, mut theirs) = memory_pair(BUFFER);
    let connector = One::new(ours);
    let replayer = replayer(ReturnPathWish::Always);
    let handle = replayer.handle();
    let mut receiver = theirs.take_receiver().unwrap();
    let cancelling = async {
        read_to_eof(&mut receiver, &stored).await;
        handle.cancel();
    };
    let (outcome, ()) =
        tokio::join!(replayer.run(&connector, input(&stored), "stored"), cancelling);
    let error = outcome.unwrap_err();
    assert_eq!((error.blame(), error.owner()), (Blame::Cancelled, Owner::Unknown));
    let _open_until_here = theirs.take_sender();
}

#[tokio::test]
async fn a_link_that_breaks_behind_the_end_of_the_stream_does_not_tell_the_owner() {
    let stored = stream(Extras::None);
    let (ours, mut theirs) = memory_pair(4);
    let connector = One::new(ours);
    let mut receiver = theirs.take_receiver().unwrap();
    let sender = theirs.take_sender().unwrap();
    let destination = async {
        read_to_eof(&mut receiver, &stored).await;
        // The description finds nobody; nor does a verdict come.
        drop(receiver);
    };
    let (outcome, ()) = tokio::join!(
        replayer(ReturnPathWish::Always).run(&connector, input(&stored), "stored"),
        destination,
    );
    let error = outcome.unwrap_err();
    assert_eq!((error.blame(), error.owner()), (Blame::Io, Owner::Unknown));
    drop(sender);
}

#[tokio::test]
async fn a_destination_without_a_verdict_leaves_the_owner_unknown() {
    let stored = stream(Extras::None);
    let (ours, mut theirs) = memory_pair(BUFFER);
    let connector = One::new(ours);
    let mut options = ReplayOptions::default();
    options.return_path = ReturnPathWish::Always;
    options.deadlines.final_acknowledgement = Duration::from_millis(50);
    let outcome = Replayer::new(options).run(&connector, input(&stored), "stored").await;
    let error = outcome.unwrap_err();
    assert_eq!(error.blame(), Blame::Deadline);
    assert_eq!(error.owner(), Owner::Unknown);
    let _open_until_here = theirs.take_sender();
}

#[tokio::test]
async fn a_cancelled_replay_ends_and_cuts_the_channel() {
    let stored = stream(Extras::None);
    let (ours, theirs) = memory_pair(512);
    let connector = One::new(ours);
    let replayer = replayer(ReturnPathWish::Always);
    let handle = replayer.handle();
    let cancelling = async {
        tokio::task::yield_now().await;
        handle.cancel();
    };
    // Nobody reads at the other end, so the replay cannot end by itself.
    let (outcome, ()) =
        tokio::join!(replayer.run(&connector, input(&stored), "stored"), cancelling);
    let error = outcome.unwrap_err();
    assert_eq!((error.blame(), error.owner()), (Blame::Cancelled, Owner::Source));
    drop(theirs);
}

/// A disk that takes its time for ever is a deadline with a name, and a cancel does not wait for it.
#[tokio::test]
async fn a_disk_that_hangs_is_given_up_by_its_deadline() {
    struct Hangs(std::sync::mpsc::Receiver<()>);
    impl StreamSink for Hangs {
        fn write(&mut self, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn sync(&mut self) -> io::Result<()> {
            // Until the test is over.
            let _over = self.0.recv();
            Ok(())
        }
        fn commit(self: Box<Self>) -> io::Result<()> {
            Ok(())
        }
        fn name(&self) -> String {
            "a disk".into()
        }
    }
    for cancelled in [false, true] {
        let (_over, hang) = std::sync::mpsc::channel();
        let mut options = hasty();
        if !cancelled {
            options.deadlines.storage = Duration::from_millis(200);
        }
        let recorder = Recorder::new(options);
        let (near, far) = memory_pair(BUFFER);
        let handle = recorder.handle();
        let mut listener = One::new(near);
        let work = recorder.run(&mut listener, Box::new(Hangs(hang)), None);
        let bytes = stream(Extras::All);
        let other = async {
            let played = tokio::spawn(async move { play(far, &bytes).await });
            if cancelled {
                while !handle.waits_for().contains("durable") {
                    tokio::task::yield_now().await;
                }
                handle.cancel();
            }
            played.await.unwrap()
        };
        let (outcome, answers) = tokio::join!(work, other);
        let error = outcome.unwrap_err();
        assert!(answers.ends_with(&Message::Shut { status: 1 }.to_bytes()), "{answers:?}");
        match cancelled {
            true => assert_eq!(error.blame(), Blame::Cancelled),
            false => {
                assert_eq!(error.wait(), Some(mig_engine::Wait::Storage), "{error}");
                assert!(error.to_string().contains("a disk: making the bytes durable"), "{error}");
            }
        }
    }
}
