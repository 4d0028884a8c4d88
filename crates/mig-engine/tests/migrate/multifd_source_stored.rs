//! A stored stream over data channels: its memory is brought together first, and every page is sent once, as it was last
//! stored.

use std::{
    future::Future,
    io::{Cursor, Read},
    sync::Arc,
    time::{Duration, Instant},
};

use mig_engine::{
    Capabilities, Error, MultifdCompression, Owner, Parameters, ReplayOptions, Replayed, Replayer,
    ReturnPathWish,
};
use mig_proto::{
    Configuration, Name, SectionHeader, SectionKind, encode,
    multifd::{Hello, Method},
};
use mig_testkit::memory_pair;
use mig_transport::Blame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    multifd_source_far::{
        Arrivals, Dialling, Line, SOON, Said, channels, drain, echo, hear, idle, no_lane_stays,
        populate, same_memory, shut, source,
    },
    multifd_wire::Far,
    scripted::Writes,
    support::Ready,
};

const PAGES: [usize; 2] = [3000, 20];
const UUID: [u8; 16] = [3; 16];

/// A guest that writes for three passes, and its stream as it would be stored.
async fn stored(machine: &'static str, xbzrle: bool) -> (Arc<Writes>, Vec<u8>) {
    let memory = Writes::with_pages(
        PAGES,
        |guest, pass| {
            if pass <= 3 {
                for page in (0..PAGES[0]).step_by(7) {
                    guest.write(0, page, 100, &[pass as u8; 20]);
                }
                (0..40).for_each(|page| guest.write(0, page, 0, &[0; 4096]));
            }
        },
        None,
    );
    populate(&memory, PAGES);
    let mut capabilities = Capabilities::default();
    capabilities.xbzrle = xbzrle;
    let (out, mut into) = memory_pair(1 << 20);
    let connector = Ready::new(out);
    let mut source =
        source(&memory, machine, channels(2)).with_capabilities(capabilities).with_uuid(UUID);
    let mut bytes = Vec::new();
    let mut receiver = into.take_receiver().unwrap();
    let (sent, read) = tokio::join!(source.run(&connector), receiver.read_to_end(&mut bytes));
    read.unwrap();
    let info = sent.unwrap().info;
    if let Some(cache) = info.xbzrle_cache {
        assert!(cache.pages > 100, "{cache:?}");
    }
    (memory, bytes)
}

fn options(parameters: Parameters) -> ReplayOptions {
    let mut options = ReplayOptions::default();
    options.return_path = ReturnPathWish::Always;
    options.multifd = true;
    options.parameters = parameters;
    options
}

/// A file that can be read twice.
fn file(options: ReplayOptions, stored: &[u8]) -> Replayer {
    let stored = stored.to_vec();
    Replayer::new(options)
        .with_second_reading(move || Ok(Box::new(Cursor::new(stored)) as Box<dyn Read + Send>))
}

fn input(stored: &[u8]) -> Box<dyn Read + Send> {
    Box::new(Cursor::new(stored.to_vec()))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_goes_once_as_it_was_last_stored() {
    use MultifdCompression::{None, Zlib, Zstd};
    for (machine, mark) in
        [("pc-q35-7.2", Said::Eos), ("pc-q35-8.2", Said::Flush), ("pc-q35-10.0", Said::Flush)]
    {
        for xbzrle in [false, true] {
            let (memory, stored) = stored(machine, xbzrle).await;
            for (compression, method) in
                [(None, Method::None), (Zlib, Method::Zlib), (Zstd, Method::Zstd)]
            {
                let mut parameters = channels(3);
                parameters.multifd_compression = compression;
                let (connector, arrivals) = Dialling::new(Line::Unix);
                let replayer = file(options(parameters), &stored);
                let both = async {
                    tokio::join!(
                        replayer.run(&connector, input(&stored), "a.mig"),
                        hear(arrivals, method, echo)
                    )
                };
                let (sent, heard) = tokio::time::timeout(SOON, both).await.expect("no end");
                let sent = sent.unwrap();
                assert!(sent.confirmed);
                same_memory(&memory.ram, &heard.memory(&mark, PAGES));
                let (normal, zero) = heard.in_packets();
                let zeros = zero + heard.zeros_on_main();
                assert_eq!(normal + zeros, PAGES[0] + PAGES[1], "{machine}: each page once");
                assert_eq!((sent.pages.normal, sent.pages.zero), (normal as u64, zeros as u64));
                assert_eq!(zero > 0, machine == "pc-q35-10.0");
                // START, one pass in sections of the replayer's own, END.
                let part = |said: &&Said| matches!(said, Said::Section(SectionKind::Part, _));
                let parts = heard.main.iter().filter(part).count();
                let rounds = if mark == Said::Eos { 2 + parts } else { 3 };
                assert_eq!(heard.rounds(&mark).len(), rounds, "{machine}");
                assert!(!heard.main.contains(&Said::Page));
                for (id, data) in (0..).zip(&heard.data) {
                    assert_eq!(data.hello, Hello { uuid: UUID, id }.encode());
                }
            }
        }
    }
    no_lane_stays();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_uuid_that_was_given_is_said() {
    let (_, stored) = stored("microvm", false).await;
    let mut options = options(channels(1));
    options.uuid = Some([9; 16]);
    let (connector, arrivals) = Dialling::new(Line::Memory(4096));
    let replayer = file(options, &stored);
    let (sent, heard) = tokio::join!(
        replayer.run(&connector, input(&stored), "a.mig"),
        hear(arrivals, Method::None, echo)
    );
    sent.unwrap();
    assert_eq!(heard.data[0].hello, Hello { uuid: [9; 16], id: 0 }.encode());
}

/// What a replayer says that says nothing to anybody else.
async fn refused(replayer: Replayer, stored: &[u8], words: &str) {
    let (connector, mut arrivals) = Dialling::new(Line::Unix);
    let error = replayer.run(&connector, input(stored), "a.mig").await.unwrap_err();
    assert_eq!((error.blame(), error.owner()), (Blame::Misuse, Owner::Source), "{error}");
    assert!(error.to_string().contains(words), "{error}");
    drop(connector);
    while let Some(mut far) = arrivals.recv().await {
        let mut came = Vec::new();
        far.read_to_end(&mut came).await.unwrap();
        assert!(came.is_empty(), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_before_anything_is_sent() {
    let (_, stored) = stored("pc-q35-10.0", false).await;
    let once = Replayer::new(options(channels(2)));
    refused(once, &stored, "a.mig can be read only once").await;
    refused(file(options(channels(0)), &stored), &stored, "0 channels").await;
    let mut parameters = channels(2);
    parameters.multifd_compression = MultifdCompression::Zlib;
    parameters.multifd_zlib_level = Some(10);
    refused(file(options(parameters), &stored), &stored, "10").await;
    let mut small = options(channels(2));
    small.max_guest_memory = Some(1 << 20);
    refused(file(small, &stored), &stored, "1048576").await;
    let without = without_ram();
    refused(file(options(channels(2)), &without), &without, "no memory").await;
    // And what would be cut in the middle is found out before.
    let cut = &stored[..stored.len() / 2];
    let (connector, _arrivals) = Dialling::new(Line::Unix);
    let replayer = file(options(channels(2)), cut);
    let error = replayer.run(&connector, input(cut), "a.mig").await.unwrap_err();
    assert_eq!((error.blame(), connector.dialled()), (Blame::PeerMisbehaved, 0), "{error}");
}

#[tokio::test]
async fn a_transport_of_one_channel_is_refused() {
    let (_, stored) = stored("pc-q35-10.0", false).await;
    let (out, mut into, _direct) = mig_testkit::direct_pair(8192, true);
    let replayer = file(options(channels(2)), &stored);
    let error = replayer.run(&Ready::new(out), input(&stored), "a.mig").await.unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse, "{error}");
    assert!(error.to_string().contains("no data channels beside the main one"), "{error}");
    let mut came = Vec::new();
    into.take_receiver().unwrap().read_to_end(&mut came).await.unwrap();
    assert!(came.is_empty());
}

fn without_ram() -> Vec<u8> {
    let mut out = encode::FILE_HEADER.to_vec();
    encode::configuration(&mut out, &Configuration::new(b"pc-q35-10.0").unwrap());
    let header = SectionHeader {
        kind: SectionKind::Full,
        section_id: 3,
        idstr: Name::new(b"clock").unwrap(),
        instance_id: 0,
        version_id: 3,
    };
    encode::section(&mut out, &header);
    out.extend_from_slice(b"tick");
    out.extend_from_slice(&encode::footer(3));
    out.push(encode::EOF);
    out.extend_from_slice(&encode::vmdescription_header(2));
    out.extend_from_slice(b"{}");
    out
}

/// Replays to a destination that takes the beginning of everything, and then does what `script` does.
async fn spoilt<T, F>(
    line: Line,
    limit: Duration,
    script: impl FnOnce(Box<dyn Far>, Vec<Box<dyn Far>>, mig_engine::MigrationHandle) -> F,
) -> (Error, T)
where
    F: Future<Output = T>,
{
    let (_, stored) = stored("pc-q35-10.0", false).await;
    let (connector, mut arrivals): (_, Arrivals) = Dialling::new(line);
    let mut options = options(channels(3));
    options.deadlines = idle(limit);
    let replayer = file(options, &stored);
    let handle = replayer.handle();
    let script = async {
        let main = arrivals.recv().await.unwrap();
        let mut data = Vec::new();
        for _ in 0..3 {
            let mut far = arrivals.recv().await.unwrap();
            far.read_exact(&mut [0; 64 + 1344]).await.unwrap();
            data.push(far);
        }
        script(main, data, handle).await
    };
    let run = replayer.run(&connector, input(&stored), "a.mig");
    let both = async { tokio::join!(run, script) };
    let (sent, told): (Result<Replayed, Error>, T) =
        tokio::time::timeout(SOON, both).await.expect("no end");
    let error = sent.unwrap_err();
    assert_eq!(error.owner(), Owner::Source, "{error}");
    no_lane_stays();
    (error, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_fails_ends_it() {
    let long = Duration::from_secs(600);
    let (error, _kept) = spoilt(Line::Tcp, long, |main, mut data, _| async {
        drop(data.remove(1));
        (main, data)
    })
    .await;
    assert_eq!(error.blame(), Blame::Io, "{error}");
    assert!(error.to_string().contains("data channel 1, "), "{error}");

    let short = Duration::from_millis(500);
    let (error, _kept) = spoilt(Line::Unix, short, |main, mut data, _| async {
        let stalled = data.remove(2);
        for far in data {
            tokio::spawn(drain(far));
        }
        (main, stalled)
    })
    .await;
    assert_eq!(error.blame(), Blame::Deadline, "{error}");
    assert!(error.to_string().contains("data channel 2, "), "{error}");

    let (error, _kept) = spoilt(Line::Unix, long, |mut main, data, _| async {
        main.write_all(&shut(1)).await.unwrap();
        (main, data)
    })
    .await;
    assert_eq!(error.blame(), Blame::PeerIncompatible, "{error}");
    assert!(error.to_string().contains("gave up (SHUT 1)"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_it_at_once() {
    let long = Duration::from_secs(600);
    let (error, (asked, _kept)) = spoilt(Line::Unix, long, |main, data, handle| async move {
        handle.cancel();
        (Instant::now(), (main, data))
    })
    .await;
    assert_eq!(error.blame(), Blame::Cancelled, "{error}");
    assert!(asked.elapsed() < SOON);
}
