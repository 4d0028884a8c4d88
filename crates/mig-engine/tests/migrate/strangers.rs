//! A listener survives whoever else connects.

use std::time::Duration;

use mig_proto::multifd::Hello;
use mig_testkit::{memory_pair, stream_channel};
use mig_transport::{Blame, Capabilities, Channel, ChannelParts, NEWCOMER_GRACE, Peer};
use tokio::io::AsyncWriteExt;

use crate::support::{Arriving, Half, Pair, Ready, check};

/// As a source begins, up to the last byte of its machine's name.
const HEAD: &[u8] = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc";

/// A connection as a listening socket would give it, and the other end as a stranger holds it.
fn connection() -> (Channel, tokio::io::DuplexStream) {
    connection_of(Capabilities::socket())
}

fn connection_of(capabilities: Capabilities) -> (Channel, tokio::io::DuplexStream) {
    let (near, far) = tokio::io::duplex(4096);
    let (reader, writer) = tokio::io::split(near);
    let mut inner = stream_channel(Some(reader), Some(writer), Default::default());
    let parts = ChannelParts {
        receive: Some(Box::new(Half(inner.take_receiver().unwrap()))),
        send: Some(Box::new(Half(inner.take_sender().unwrap()))),
        capabilities,
        ..ChannelParts::default()
    };
    (Channel::new(parts), far)
}

#[tokio::test(start_paused = true)]
async fn the_right_source_gets_in_past_silence_and_garbage() {
    let mut pair = Pair::new();
    let (silent, _silent_end) = connection();
    let (garbage, mut garbage_end) = connection();
    let (gone, gone_end) = connection();
    drop(gone_end);
    garbage_end.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut listener = Arriving::new([silent, garbage, gone]);
    let door = listener.door();
    let (out, into) = memory_pair(8 * 1024);
    let connector = Ready::new(out);
    let source = async {
        // While the silent one still has its time.
        tokio::time::sleep(Duration::from_secs(1)).await;
        door.send(into).unwrap();
        pair.source.run(&connector).await
    };
    let begun = tokio::time::Instant::now();
    let (sent, received) = tokio::join!(source, pair.destination.run(&mut listener));
    sent.unwrap();
    received.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(9), "nobody waited for the silent one");
    check(&pair.destination_ram);
}

/// 64 bytes that anybody can say, before main and while it is read, with and without something behind them.
#[tokio::test(start_paused = true)]
async fn a_strangers_hello_ends_no_single_stream() {
    let mut pair = Pair::new();
    let hello = Hello { uuid: [0; 16], id: 0 }.encode();
    let (early, mut early_end) = connection();
    let (during, mut during_end) = connection();
    early_end.write_all(&hello).await.unwrap();
    during_end.write_all(&[&hello[..], &[0x5a; 2000]].concat()).await.unwrap();
    let mut listener = Arriving::new([early]);
    let door = listener.door();
    let (out, into) = memory_pair(8 * 1024);
    let connector = Ready::new(out);
    let source = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        door.send(into).unwrap();
        door.send(during).unwrap();
        pair.source.run(&connector).await
    };
    let begun = tokio::time::Instant::now();
    let (sent, received) = tokio::join!(source, pair.destination.run(&mut listener));
    sent.unwrap();
    received.unwrap();
    // The guest stood still for nobody's sake: paused time moves only where somebody waits for it.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    check(&pair.destination_ram);
}

#[tokio::test(start_paused = true)]
async fn a_silent_stranger_is_dropped_by_its_deadline() {
    let mut pair = Pair::new();
    let (silent, mut silent_end) = connection();
    let mut listener = Arriving::new([silent]);
    let handle = pair.destination.handle();
    let begun = tokio::time::Instant::now();
    let stranger = async {
        let mut nothing = [0; 1];
        let end = tokio::io::AsyncReadExt::read(&mut silent_end, &mut nothing).await;
        assert_eq!(end.unwrap(), 0, "hung up on");
        assert_eq!(begun.elapsed().as_secs(), 10);
        handle.cancel();
    };
    let (received, ()) = tokio::join!(pair.destination.run(&mut listener), stranger);
    assert_eq!(received.unwrap_err().blame(), Blame::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn nobody_coming_is_a_deadline() {
    let mut pair = Pair::new();
    let error = pair.destination.run(&mut Arriving::new([])).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Deadline);
    assert!(error.to_string().contains("waiting for a source"), "{error}");
}

/// It is open before its source exists, so it has as long as a source has to come, and no longer.
#[tokio::test(start_paused = true)]
async fn one_channel_that_says_nothing_is_a_deadline() {
    for said in [&b""[..], b"QE"] {
        let mut pair = Pair::new();
        let (channel, mut far) = connection_of(Capabilities::default());
        far.write_all(said).await.unwrap();
        let begun = tokio::time::Instant::now();
        let error = pair.destination.run(&mut Arriving::new([channel])).await.unwrap_err();
        assert_eq!(
            (error.blame(), error.wait()),
            (Blame::Deadline, Some(mig_engine::Wait::Accept))
        );
        assert_eq!(begun.elapsed().as_secs(), 300);
    }
}

/// Hundreds who say nothing, and half of a word of a source: the oldest go, and the right one is served at once.
/// It may have been the source, and nothing else says what happened to it.
#[tokio::test(start_paused = true)]
async fn a_deadline_names_what_was_wrong_with_the_last_one_that_came() {
    let mut pair = Pair::new();
    let (garbage, mut garbage_end) = connection();
    garbage_end.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut listener = Arriving::new([garbage]);
    let error = pair.destination.run(&mut listener).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Deadline);
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert!(cause.starts_with("not a migration stream"), "{cause}");
}

/// A door at which somebody was turned away before the listener gave out a channel: by TLS, by address.
struct Refusing;

#[async_trait::async_trait]
impl mig_transport::Listener for Refusing {
    async fn accept(&mut self) -> mig_transport::Result<mig_transport::Channel> {
        std::future::pending().await
    }

    fn local_addresses(&self) -> Vec<String> {
        Vec::new()
    }

    fn last_dropped(&mut self) -> Option<mig_transport::Error> {
        Some(mig_transport::Error::PeerIncompatible { what: "not authorised".into() })
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_names_whom_the_listener_turned_away() {
    let mut pair = Pair::new();
    let error = pair.destination.run(&mut Refusing).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Deadline);
    let cause = std::error::Error::source(&error).expect("a cause").to_string();
    assert_eq!(cause, "not authorised");
}

#[tokio::test(start_paused = true)]
async fn a_crowd_at_the_door_holds_nobody_up() {
    let mut pair = Pair::new();
    let mut ends = Vec::new();
    let mut crowd = Vec::new();
    for at in 0..500 {
        let (near, mut far) = connection();
        if at % 2 == 1 {
            far.write_all(b"QEVM\0\0\0\x03\x07\0\0").await.unwrap();
        }
        crowd.push(near);
        ends.push(far);
    }
    let (out, into) = memory_pair(8 * 1024);
    crowd.push(into);
    let mut listener = Arriving::new(crowd);
    let connector = Ready::new(out);
    let begun = tokio::time::Instant::now();
    let (sent, received) =
        tokio::join!(pair.source.run(&connector), pair.destination.run(&mut listener));
    sent.unwrap();
    received.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    check(&pair.destination_ram);
}

/// The flood has the source's own address (one machine, a NAT, a tunnel), and is faster than the source's first words.
#[tokio::test(start_paused = true)]
async fn a_flood_from_its_own_address_takes_no_slow_sources_seat() {
    let mut pair = Pair::new();
    let here = Peer::address([192, 0, 2, 1].into());
    let (out, into) = memory_pair(8 * 1024);
    let mut arriving = vec![into.with_peer(here)];
    let mut ends = Vec::new();
    for _ in 0..3 * mig_engine::MAX_CANDIDATES {
        let (near, far) = connection();
        arriving.push(near.with_peer(here));
        ends.push(far);
    }
    let mut listener = Arriving::new(arriving);
    let connector = Ready::new(out);
    let source = async {
        // The flood has connected by then.
        tokio::time::sleep(Duration::from_millis(20)).await;
        pair.source.run(&connector).await
    };
    let (sent, received) = tokio::join!(source, pair.destination.run(&mut listener));
    sent.unwrap();
    received.unwrap();
    check(&pair.destination_ram);
}

/// How long a source takes behind so many who say nothing, where all seats are taken by others past their grace.
async fn behind(addresses: usize, held_say: &[u8], silent: usize) -> Duration {
    let mut pair = Pair::new();
    let somewhere =
        |number: usize| Peer::address([10, 0, 0, u8::try_from(number % addresses).unwrap()].into());
    let mut ends = Vec::new();
    let mut held = Vec::new();
    for number in 0..mig_engine::MAX_CANDIDATES {
        let (near, mut far) = connection();
        far.write_all(held_say).await.unwrap();
        held.push(near.with_peer(somewhere(number)));
        ends.push(far);
    }
    let mut listener = Arriving::new(held);
    let door = listener.door();
    let (out, into) = memory_pair(8 * 1024);
    let connector = Ready::new(out);
    let source = async {
        tokio::time::sleep(NEWCOMER_GRACE * 2).await;
        for number in 0..silent {
            let (near, far) = connection();
            door.send(near.with_peer(somewhere(number))).unwrap();
            ends.push(far);
        }
        door.send(into.with_peer(Peer::address([192, 0, 2, 1].into()))).unwrap();
        let begun = tokio::time::Instant::now();
        pair.source.run(&connector).await.unwrap();
        begun.elapsed()
    };
    let (took, received) = tokio::join!(source, pair.destination.run(&mut listener));
    received.unwrap();
    check(&pair.destination_ram);
    took
}

/// A pause for each newcomer among old ones would be 8 s in the first of these.
#[tokio::test(start_paused = true)]
async fn newcomers_among_old_holders_stop_the_door_for_half_of_the_seats_only() {
    for (addresses, held_say, silent) in
        [(128, &b"QEVM"[..], 80), (13, b"QEVM", 900), (13, b"", 900), (1, b"", 900)]
    {
        let took = behind(addresses, held_say, silent).await;
        let graces = u32::try_from(silent / (mig_engine::MAX_CANDIDATES / 2)).unwrap();
        let expected = NEWCOMER_GRACE * graces..NEWCOMER_GRACE * (graces + 1);
        assert!(expected.contains(&took), "{addresses} addresses, {silent} silent: {took:?}");
    }
}

/// Whoever is behind a flood has to wait until all seats went round, a moment for each half of them.
#[tokio::test(start_paused = true)]
async fn a_flood_before_the_source_costs_a_moment_for_each_half_of_the_seats() {
    let mut pair = Pair::new();
    let here = Peer::address([192, 0, 2, 1].into());
    let (out, into) = memory_pair(8 * 1024);
    let mut ends = Vec::new();
    let mut arriving = Vec::new();
    const ROUNDS: u32 = 4;
    for _ in 0..ROUNDS as usize * mig_engine::MAX_CANDIDATES {
        let (near, far) = connection();
        arriving.push(near.with_peer(here));
        ends.push(far);
    }
    arriving.push(into.with_peer(here));
    let mut listener = Arriving::new(arriving);
    let connector = Ready::new(out);
    let begun = tokio::time::Instant::now();
    let (sent, received) =
        tokio::join!(pair.source.run(&connector), pair.destination.run(&mut listener));
    sent.unwrap();
    received.unwrap();
    let paused = begun.elapsed();
    // The first two halves are there at once.
    let halves = 2 * ROUNDS - 1;
    let expected = NEWCOMER_GRACE * halves..NEWCOMER_GRACE * (halves + 1);
    assert!(expected.contains(&paused), "{paused:?}");
}

/// Four bytes, or most of a head, and then nobody: that was not the source.
#[tokio::test(start_paused = true)]
async fn whoever_hangs_up_in_the_head_ends_no_listening() {
    for len in 0..HEAD.len() {
        let mut pair = Pair::new();
        let (stranger, mut stranger_end) = connection();
        stranger_end.write_all(&HEAD[..len]).await.unwrap();
        drop(stranger_end);
        let mut listener = Arriving::new([stranger]);
        let door = listener.door();
        let (out, into) = memory_pair(8 * 1024);
        let connector = Ready::new(out);
        let source = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            door.send(into).unwrap();
            pair.source.run(&connector).await
        };
        let (sent, received) = tokio::join!(source, pair.destination.run(&mut listener));
        sent.unwrap_or_else(|error| panic!("after {len} bytes of a stranger: {error}"));
        received.unwrap_or_else(|error| panic!("after {len} bytes of a stranger: {error}"));
        check(&pair.destination_ram);
    }
}

/// Over the only channel there is it is an answer.
#[tokio::test(start_paused = true)]
async fn the_only_channel_that_ends_in_the_head_says_where() {
    let mut pair = Pair::new();
    let (channel, mut far) = connection_of(Capabilities::default());
    far.write_all(&HEAD[..6]).await.unwrap();
    drop(far);
    let error = pair.destination.run(&mut Arriving::new([channel])).await.unwrap_err();
    assert_eq!(error.blame(), Blame::PeerMisbehaved);
    assert!(error.to_string().contains("inside the file header"), "{error}");
}

/// A source with data channels may say its head and then nothing until it has connected them all. It is no stranger meanwhile:
/// what its head says is judged at once.
#[tokio::test(start_paused = true)]
async fn a_head_is_a_source() {
    let mut pair = Pair::new();
    let (main, mut far) = connection();
    far.write_all(HEAD).await.unwrap();
    let begun = tokio::time::Instant::now();
    let error = pair.destination.run(&mut Arriving::new([main])).await.unwrap_err();
    assert!(error.to_string().contains("expected \"test-1.0\""), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5), "nothing more was waited for");
}

/// Of a crowd from one address the oldest go, and not a lonely one from elsewhere, however long it has waited.
#[tokio::test(start_paused = true)]
async fn a_crowd_pushes_out_itself() {
    let mut pair = Pair::new();
    let peer = |last| Peer::address([192, 0, 2, last].into());
    let (lonely, mut lonely_end) = connection();
    let mut ends = Vec::new();
    let mut arriving = vec![lonely.with_peer(peer(1))];
    for _ in 0..mig_engine::MAX_CANDIDATES + 100 {
        let (near, far) = connection();
        arriving.push(near.with_peer(peer(2)));
        ends.push(far);
    }
    let mut listener = Arriving::new(arriving);
    let handle = pair.destination.handle();
    let watch = async {
        let mut nothing = [0];
        // The first of the crowd is hung up on.
        let end = tokio::io::AsyncReadExt::read(&mut ends[0], &mut nothing).await;
        assert_eq!(end.unwrap(), 0);
        let waits = tokio::io::AsyncReadExt::read(&mut lonely_end, &mut nothing);
        assert!(tokio::time::timeout(Duration::from_secs(1), waits).await.is_err(), "it may stay");
        handle.cancel();
    };
    let (received, ()) = tokio::join!(pair.destination.run(&mut listener), watch);
    assert_eq!(received.unwrap_err().blame(), Blame::Cancelled);
}

/// From everywhere, so that no crowd is larger than another: whoever began to speak stays, and of the others the oldest go.
#[tokio::test(start_paused = true)]
async fn a_crowd_from_everywhere_pushes_out_the_silent_ones_first() {
    let mut pair = Pair::new();
    let peer = |at: usize| Peer::address([10, 0, (at >> 8) as u8, at as u8].into());
    let (slow, mut slow_end) = connection();
    slow_end.write_all(b"QEVM\0\0\0\x03\x07\0\0").await.unwrap();
    let mut arriving = vec![slow.with_peer(peer(0))];
    let mut ends = Vec::new();
    for at in 1..mig_engine::MAX_CANDIDATES + 100 {
        let (near, far) = connection();
        arriving.push(near.with_peer(peer(at)));
        ends.push(far);
    }
    let mut listener = Arriving::new(arriving);
    let handle = pair.destination.handle();
    let watch = async {
        let mut nothing = [0];
        for end in &mut ends[..90] {
            let read = tokio::io::AsyncReadExt::read(end, &mut nothing).await;
            assert_eq!(read.unwrap(), 0, "the oldest are hung up on");
        }
        let waits = tokio::io::AsyncReadExt::read(&mut slow_end, &mut nothing);
        assert!(tokio::time::timeout(Duration::from_secs(1), waits).await.is_err(), "it may stay");
        handle.cancel();
    };
    let (received, ()) = tokio::join!(pair.destination.run(&mut listener), watch);
    assert_eq!(received.unwrap_err().blame(), Blame::Cancelled);
}

/// Once the right source is in, a crowd that says nothing is sent away: it would keep out whoever comes to say something.
#[tokio::test(start_paused = true)]
async fn a_crowd_is_sent_away_once_the_source_is_in() {
    let mut pair = Pair::new();
    let mut capabilities = crate::support::one_way();
    capabilities.pause_before_switchover = true;
    pair.source = pair.source.with_capabilities(capabilities);
    let handle = pair.source.handle();
    let mut heard = handle.subscribe();
    let (mut ends, mut arriving) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let (near, far) = connection();
        arriving.push(near);
        ends.push(far);
    }
    let (out, into) = memory_pair(8 * 1024);
    arriving.push(into);
    let mut listener = Arriving::new(arriving);
    let connector = Ready::new(out);
    let watch = async {
        let paused = mig_engine::Event::Status(mig_proto::state::MigrationStatus::PreSwitchover);
        while heard.recv().await.unwrap() != paused {}
        let mut gone = 0;
        for end in &mut ends {
            let mut nothing = [0];
            let read = tokio::io::AsyncReadExt::read(end, &mut nothing);
            let read = tokio::time::timeout(Duration::from_millis(1), read).await;
            gone += u32::from(matches!(read, Ok(Ok(0))));
        }
        assert!(gone >= 90, "{gone} are gone");
        handle.continue_switchover();
    };
    let begun = tokio::time::Instant::now();
    let (sent, received, ()) =
        tokio::join!(pair.source.run(&connector), pair.destination.run(&mut listener), watch);
    sent.unwrap();
    received.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(5), "before the deadline of the silent ones");
}
