//! The source's connection breaks the way Linux shows it (the reason once, to whoever asks first), at every byte from
//! the last items on, while the destination is left with what had come, says what it has to say, and is not heard: never
//! two owners. With a description of the devices that is longer than the channel's buffer, the source is still writing when
//! the destination has everything.

use std::{io::Cursor, time::Duration};

use mig_engine::{Error, Outcome, Owner, ReplayOptions, Replayer, ReturnPathWish};
use mig_testkit::{Breaker, memory_pair, stream_channel};
use mig_transport::{Channel, Endpoint};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::support::{Arriving, Pair, Ready, channels, check, one_way};

/// What the source's kernel can hold: less than the description.
const BUFFER_BYTES: usize = 4096;

/// So many that it is.
const DEVICES: usize = 100;

/// How the source's connection ends.
#[derive(Clone, Copy, Debug)]
enum Break {
    Reset,
    TimeOut,
}

#[derive(Clone, Copy, Debug)]
struct Cut {
    forward: usize,
    by: Break,
}

impl Cut {
    fn at(forward: usize) -> Self {
        Self { forward, by: if forward & 1 == 0 { Break::Reset } else { Break::TimeOut } }
    }
}

fn end() -> Endpoint {
    Endpoint { transport: "reset", ..Endpoint::default() }
}

/// Carries `cut.forward` bytes to the destination and nothing of its verdict back, and then breaks the source's
/// connection; the destination's stays until it has given up or is done.
async fn link(source: DuplexStream, destination: DuplexStream, breaker: Breaker, cut: Cut) {
    let (mut from_source, mut to_source) = tokio::io::split(source);
    let (mut from_destination, mut to_destination) = tokio::io::split(destination);
    let mut left = cut.forward;
    let mut bytes = [0; 1024];
    while left > 0 {
        let room = left.min(bytes.len());
        let got = from_source.read(&mut bytes[..room]).await.unwrap();
        to_destination.write_all(&bytes[..got]).await.unwrap();
        left -= got;
    }
    let verdict = async {
        let mut message = [0; 8];
        // PONG 1 passes; whatever is next decides, and is lost.
        from_destination.read_exact(&mut message).await?;
        to_source.write_all(&message).await?;
        from_destination.read_exact(&mut message).await
    };
    // A destination that has the end finds that out by the silence that follows; another one waits on.
    let _none = tokio::time::timeout(Duration::from_secs(5), verdict).await;
    match cut.by {
        Break::Reset => breaker.reset(),
        Break::TimeOut => breaker.time_out(),
    }
    // The source's end stays: it is the breaker that ends it.
    drop((from_destination, to_destination));
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// The source's channel, and the destination's, with the link between.
fn through(cut: Cut) -> (Channel, Channel, impl Future<Output = ()>) {
    let (near, source_end) = tokio::io::duplex(BUFFER_BYTES);
    let (far, destination_end) = tokio::io::duplex(4096);
    let breaker = Breaker::default();
    let (reader, writer) = tokio::io::split(near);
    let out = breaker.channel(reader, writer, end());
    let (reader, writer) = tokio::io::split(far);
    let into = stream_channel(Some(reader), Some(writer), end());
    (out, into, link(source_end, destination_end, breaker, cut))
}

/// A whole stream, as the source sends it.
async fn stream(return_path: bool) -> Vec<u8> {
    let mut pair = Pair::with_more_devices(DEVICES);
    if !return_path {
        pair.source = pair.source.with_capabilities(one_way());
    }
    let (out, mut near) = memory_pair(1 << 16);
    let (mut far, into) = channels();
    let (mut from, mut to) = (near.take_receiver().unwrap(), far.take_sender().unwrap());
    let (mut answers, mut back) = (far.take_receiver().unwrap(), near.take_sender().unwrap());
    let forth = async move {
        let (mut all, mut bytes) = (Vec::new(), [0; 4096]);
        while let got @ 1.. = from.read(&mut bytes).await.unwrap() {
            all.extend_from_slice(&bytes[..got]);
            // The destination may have hung up.
            let _gone = to.write_all(&bytes[..got]).await;
        }
        all
    };
    let back = async move { tokio::io::copy(&mut answers, &mut back).await };
    let ((sent, received), all, _copied) = tokio::join!(pair.run(out, into), forth, back);
    sent.unwrap();
    received.unwrap();
    all
}

/// Where the end of the stream is, and the description behind it.
fn verge(stream: &[u8]) -> usize {
    let starts = |w: &[u8]| w[0] == 0 && w[1] == 6 && w[6] == b'{';
    stream.windows(7).rposition(starts).expect("EOF, the description's header, JSON")
}

/// Every byte around the end and in the head of what follows, some of the bytes of the description, and its last ones; and
/// as many where it is the source's kernel that has them.
fn cuts(verge: usize, whole: usize) -> impl Iterator<Item = usize> {
    let near = move |at: usize| {
        let around = |place: usize| place.abs_diff(at) < 24;
        around(verge)
            || around(verge - BUFFER_BYTES)
            || around(whole)
            || around(whole - BUFFER_BYTES)
    };
    (verge - BUFFER_BYTES - 24..=whole).filter(move |at| near(*at) || at % 211 == 0)
}

async fn migrates(cut: Cut) -> (Pair, Result<Outcome, Error>, bool) {
    let mut pair = Pair::with_more_devices(DEVICES);
    let (out, into, link) = through(cut);
    let ((sent, received), ()) = tokio::join!(pair.run(out, into), link);
    (pair, sent, received.is_ok())
}

fn one_owner(pair: &Pair, sent: &Result<Outcome, Error>, received: bool, cut: Cut) {
    let here = pair.source_diary.runs();
    let there = pair.destination_diary.runs();
    assert!(!(here && there), "{cut:?}: two owners; {sent:?}");
    assert_eq!(there, received, "{cut:?}");
    match sent {
        Ok(_) => panic!("{cut:?}: nobody said so"),
        Err(error) => assert_eq!(here, error.owner() == Owner::Source, "{cut:?}: {error}"),
    }
    if received {
        check(&pair.destination_ram);
    }
}

#[tokio::test(start_paused = true)]
async fn told_once_at_every_byte_makes_no_two_owners() {
    let stream = stream(true).await;
    let verge = verge(&stream);
    assert!(stream.len() - verge > 2 * BUFFER_BYTES, "the description is longer than the buffer");
    let mut seen = [0; 2];
    for forward in cuts(verge, stream.len()) {
        let cut = Cut::at(forward);
        let (pair, sent, received) = migrates(cut).await;
        one_owner(&pair, &sent, received, cut);
        let owner = sent.unwrap_err().owner();
        // The channel had taken more of it than the destination.
        let taken = (forward + BUFFER_BYTES).min(stream.len());
        let expected = if taken <= verge { Owner::Source } else { Owner::Unknown };
        assert_eq!(owner, expected, "{cut:?} of {verge}, {}", stream.len());
        // Who has something left to write is the first to hear of it there.
        seen[usize::from(taken < stream.len())] += 1;
    }
    assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
}

/// A proxy whose other side broke ends its own in order, whatever verdict it had not passed on yet.
#[tokio::test(start_paused = true)]
async fn hung_up_on_while_it_writes_a_source_knows_nothing_unless_the_end_was_announced() {
    let stream = stream(true).await;
    for (behind, announced) in [(0, false), (10, false), (10, true)] {
        let mut pair = Pair::with_more_devices(DEVICES);
        let breaker = Breaker::default();
        let (near, mut far) = tokio::io::duplex(BUFFER_BYTES);
        let (reader, writer) = tokio::io::split(near);
        let mut parts = breaker.parts(reader, writer, end());
        parts.capabilities = parts.capabilities.with(|can| can.announced_ends = announced);
        let connector = Ready::new(Channel::new(parts));
        // The channel takes no more than that.
        let mut most = vec![0; verge(&stream) + behind - BUFFER_BYTES];
        let proxy = async {
            far.read_exact(&mut most).await.unwrap();
            // Until it is full.
            tokio::time::sleep(Duration::from_millis(1)).await;
            breaker.hang_up();
        };
        let (sent, ()) = tokio::join!(pair.source.run(&connector), proxy);
        let error = sent.unwrap_err();
        let here = behind == 0 || announced;
        assert_eq!(error.owner(), if here { Owner::Source } else { Owner::Unknown }, "{error}");
        assert_eq!(pair.source_diary.runs(), here);
    }
}

/// Bytes cross threads here, so time is real, and all go at once.
#[tokio::test]
async fn told_once_to_a_replayer_makes_no_owner_of_it() {
    // OPEN_RETURN_PATH and PING are the replayer's own.
    let stored = stream(false).await;
    let whole = stream(true).await.len();
    let verge = verge(&stored) + whole - stored.len();
    let mut runs = tokio::task::JoinSet::new();
    for forward in cuts(verge, whole).filter(|at| at % 5 == 0) {
        let (cut, stored) = (Cut::at(forward), stored.clone());
        runs.spawn(async move {
            let mut options = ReplayOptions::default();
            options.return_path = ReturnPathWish::Always;
            let mut pair = Pair::new();
            let (out, into, link) = through(cut);
            let (connector, mut listener) = (Ready::new(out), Arriving::new([into]));
            let replayer = Replayer::new(options);
            let (sent, received, ()) = tokio::join!(
                replayer.run(&connector, Box::new(Cursor::new(stored)), "a.mig"),
                pair.destination.run(&mut listener),
                link
            );
            let error = sent.unwrap_err();
            assert_eq!(pair.destination_diary.runs(), received.is_ok(), "{cut:?}");
            assert!(!(received.is_ok() && error.owner() == Owner::Source), "{cut:?}: {error}");
            let taken = (forward + BUFFER_BYTES).min(whole);
            let expected = if taken <= verge { Owner::Source } else { Owner::Unknown };
            assert_eq!(error.owner(), expected, "{cut:?} of {verge}, {whole}: {error}");
        });
    }
    assert!(runs.len() > 30);
    while let Some(run) = runs.join_next().await {
        run.unwrap();
    }
}
