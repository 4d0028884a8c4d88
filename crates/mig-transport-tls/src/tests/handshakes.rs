//! Handshakes that do not come about: each ends by itself, with a reason, and closes what it had.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    task::{Context, Waker},
    time::Duration,
};

use mig_testkit::memory_pair;
use mig_transport::{Blame, Channel, ChannelParts, Connector, Endpoint, Error, Listener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::doubles::{Door, Ends, half_open, socket_pair};
use crate::TlsOptions;

#[tokio::test(start_paused = true)]
async fn a_silent_peer_costs_the_deadline_and_no_more() {
    let ends = Ends::new();
    let started = tokio::time::Instant::now();
    let (ours, theirs) = memory_pair(1 << 16);
    let error = ends.connector(ours).connect().await.expect_err("nobody answers");
    assert_eq!(error.to_string(), "TLS handshake with second: no answer within 10s");
    assert_eq!(error.blame(), Blame::Deadline);
    assert_eq!(started.elapsed(), Duration::from_secs(10));
    drop(theirs);
}

#[tokio::test(start_paused = true)]
async fn a_slow_peer_does_not_stretch_the_deadline() {
    let mut ends = Ends::new();
    ends.options = TlsOptions::default().with(|options| options.handshake = Duration::from_secs(3));
    let (ours, mut theirs) = memory_pair(1 << 16);
    let drip = async {
        let mut sender = theirs.take_sender().expect("fresh");
        // The header of a record of 16 KiB, and then a byte at a time.
        sender.write_all(&[22, 3, 3, 0x40, 0]).await.expect("it is read");
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            sender.write_all(&[0]).await.expect("it is read");
        }
    };
    let connector = ends.connector(ours);
    let error = tokio::select! {
        outcome = connector.connect() => outcome.expect_err("it is not over in time"),
        () = drip => unreachable!(),
    };
    assert_eq!(error.to_string(), "TLS handshake with second: no answer within 3s");
}

/// Each channel of a source is of the same one, whatever its addresses are.
#[tokio::test]
async fn what_was_proven_is_known_of_the_channel() {
    let ends = Ends::new();
    let (source, destination) = ends.pair(socket_pair()).await;
    let (_source, again) = ends.pair(socket_pair()).await;
    assert!(destination.identity().is_some());
    assert_eq!(destination.identity(), again.identity());
    assert_ne!(source.identity(), destination.identity(), "each knows the other end");
}

/// What a peer that is no TLS says, and what is said about it.
async fn against(said: &'static [u8]) -> (Error, Error) {
    let ends = Ends::new();
    let speak = |mut socket: UnixStream| {
        socket.write_all(said).expect("there is room");
        socket
    };
    let (ours, theirs) = half_open();
    let kept = speak(theirs);
    let to_source = ends.connector(ours).connect().await.expect_err("no TLS there");
    let (ours, theirs) = half_open();
    let kept_too = speak(theirs);
    let mut listener = ends.listener_of(ours);
    let to_destination = listener.accept().await.expect_err("no TLS there, and nobody else");
    drop((kept, kept_too));
    (to_source, to_destination)
}

#[tokio::test]
async fn what_is_no_tls_is_called_so() {
    let (to_source, to_destination) = against(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    assert_eq!(to_source.blame(), Blame::PeerIncompatible, "{to_source}");
    // Listening went on until nobody came any more.
    assert_eq!(to_destination.to_string(), "nobody comes any more");
}

#[tokio::test]
async fn records_that_are_no_handshake_break_the_rules() {
    for said in [
        &b"\x16\x03\x01\x00\x05hello"[..],
        b"\x17\x03\x03\x00\x05hello",
        b"\x16\x03\x01\xff\xff",
        b"\x15\x03\x03\x00\x02\x02\x28",
    ] {
        let (to_source, _) = against(said).await;
        let blame = to_source.blame();
        assert!(
            matches!(blame, Blame::PeerMisbehaved | Blame::PeerIncompatible),
            "{said:02x?}: {to_source}"
        );
    }
}

/// Everything that a source says in a handshake, and everything that a destination does.
async fn whole_handshake(ends: &Ends) -> (Vec<u8>, Vec<u8>) {
    let (ours, near) = memory_pair(1 << 16);
    let (far, theirs) = memory_pair(1 << 16);
    let (near, far) = (taken(near), taken(far));
    let ((there, back), ()) = tokio::join!(
        async {
            let copied = tokio::join!(copy(near.0, far.1), copy(far.0, near.1));
            (copied.0, copied.1)
        },
        async {
            let (source, destination) = ends.pair((ours, theirs)).await;
            drop((source, destination));
        }
    );
    (there, back)
}

type Halves = (mig_transport::Receiver, mig_transport::Sender);

fn taken(mut channel: Channel) -> Halves {
    (channel.take_receiver().expect("fresh"), channel.take_sender().expect("fresh"))
}

async fn copy(mut from: mig_transport::Receiver, mut to: mig_transport::Sender) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(got @ 1..) = from.read(&mut buffer).await {
        all.extend_from_slice(&buffer[..got]);
        if to.write_all(&buffer[..got]).await.is_err() {
            break;
        }
    }
    all
}

/// The source's part of a handshake ends anywhere: the destination goes on listening, at once.
#[tokio::test]
async fn a_handshake_cut_anywhere_ends_at_once() {
    let ends = Ends::new();
    let (there, _) = whole_handshake(&ends).await;
    assert!(there.len() > 500, "{} bytes", there.len());
    // Played back to another server, it is wrong from the finished message on; before that, it is just cut.
    for cut in (0..there.len()).step_by(37).chain([1, 4, 5, 6]) {
        let (ours, mut theirs) = half_open();
        theirs.write_all(&there[..cut]).expect("there is room");
        drop(theirs);
        let mut listener = ends.listener_of(ours);
        let error = listener.accept().await.expect_err("nobody agreed");
        assert_eq!(error.to_string(), "nobody comes any more", "cut after {cut}");
    }
}

#[tokio::test]
async fn a_destination_of_another_ca_is_refused_and_told_why() {
    let (ends, other) = (Ends::new(), Ends::new());
    let (ours, theirs) = socket_pair();
    let connector = ends.connector(ours);
    let mut listener = other.listener_of(theirs);
    let (to_source, to_destination) = tokio::join!(connector.connect(), listener.accept());
    let to_source = to_source.expect_err("it is of another CA");
    assert_eq!(to_source.blame(), Blame::PeerIncompatible);
    assert!(to_source.to_string().contains("the destination's certificate"), "{to_source}");
    assert_eq!(to_destination.expect_err("refused").to_string(), "nobody comes any more");
}

#[tokio::test]
async fn a_destination_of_another_name_is_refused() {
    let ends = Ends::new();
    let (ours, theirs) = socket_pair();
    let connector = ends.connector_to("elsewhere.example", [ours]);
    let mut listener = ends.listener_of(theirs);
    let (to_source, _) = tokio::join!(connector.connect(), listener.accept());
    let error = to_source.expect_err("it is not for that name").to_string();
    assert!(error.contains("elsewhere.example") && error.contains("localhost"), "{error}");
}

/// With TLS 1.3 the source is done before its certificate is looked at: it hears about it when it reads, or writes.
async fn refused(source: &Ends, destination: &Ends) {
    let (ours, theirs) = socket_pair();
    let connector = source.connector(ours);
    let mut listener = destination.listener_of(theirs);
    let (source, refused) = tokio::join!(connector.connect(), listener.accept());
    assert_eq!(refused.expect_err("refused").to_string(), "nobody comes any more");
    let mut source = source.expect("as far as it knows");
    let mut sender = source.take_sender().expect("fresh");
    let failed = loop {
        if let Err(error) = sender.write_all(&[0; 65536]).await {
            break error.to_string();
        }
    };
    assert!(failed.contains("right after the TLS handshake"), "{failed}");
    let mut receiver = source.take_receiver().expect("fresh");
    let error = receiver.read(&mut [0; 16]).await.expect_err("it is told");
    let error = Error::io("reading", error);
    assert_eq!(error.blame(), Blame::PeerIncompatible, "{error}");
    assert!(error.to_string().contains("refused our certificate"), "{error}");
}

#[tokio::test]
async fn a_source_that_is_not_authorised_hears_that_it_is_refused() {
    let ends = Ends::new();
    refused(&ends, &ends.clone().authorizing("dn:O=Example,CN=somebody else")).await;
    let (ours, theirs) = socket_pair();
    let allowing = ends.clone().authorizing("dn:O=Example,CN=src1");
    let connector = ends.connector(ours);
    let mut listener = allowing.listener_of(theirs);
    let (source, destination) = tokio::join!(connector.connect(), listener.accept());
    source.expect("it may come");
    let destination = destination.expect("it may come");
    let peer = destination.endpoint().peer.clone();
    assert!(peer.contains("TLS 1.3") && peer.contains("O=Example,CN=src1"), "{peer}");
}

#[tokio::test]
async fn a_source_of_another_ca_hears_that_it_is_refused() {
    let (ends, other) = (Ends::new(), Ends::new());
    // It trusts the destination, which does not trust it.
    let both = other.site.read("ca-cert.pem") + &ends.site.read("ca-cert.pem");
    other.site.write("ca-cert.pem", both);
    refused(&other, &ends).await;
}

/// Dropped after any number of steps, either end closes its connection.
#[tokio::test]
async fn a_dropped_handshake_closes_the_connection() {
    let ends = Ends::new();
    for steps in 0..12 {
        let (ours, theirs) = socket_pair();
        let connector = ends.connector(ours);
        let mut listener = ends.listener_of(theirs);
        let mut connecting = connector.connect();
        let mut accepting = listener.accept();
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..steps {
            if connecting.as_mut().poll(&mut cx).is_ready() {
                return;
            }
            assert!(accepting.as_mut().poll(&mut cx).is_pending(), "the source is done first");
            // Readiness comes from the reactor.
            tokio::task::yield_now().await;
        }
        drop(connecting);
        drop(connector);
        let error = accepting.await.expect_err("the source has gone");
        assert_eq!(error.to_string(), "nobody comes any more", "after {steps} steps");
    }
    panic!("a handshake takes fewer steps");
}

#[tokio::test]
async fn a_dropped_listener_closes_what_it_was_talking_to() {
    let ends = Ends::new();
    let (ours, mut theirs) = half_open();
    let mut listener = ends.listener_of(ours);
    tokio::select! {
        biased;
        _ = listener.accept() => unreachable!("nobody speaks"),
        () = tokio::task::yield_now() => {}
    }
    drop(listener);
    assert_eq!(theirs.read(&mut [0; 16]).expect("an orderly end"), 0);
}

#[tokio::test]
async fn what_cannot_have_tls_says_so_and_is_closed() {
    let ends = Ends::new();
    let one_way = Channel::new(ChannelParts {
        endpoint: Endpoint { transport: "pipe", ..Endpoint::default() },
        ..ChannelParts::default()
    });
    let error = ends.connector(one_way).connect().await.expect_err("one way");
    assert_eq!(error.blame(), Blame::Misuse);
    assert!(error.to_string().contains("both directions"), "{error}");

    let (first, _second, _ram) = mig_testkit::direct_pair(1 << 16, true);
    let error = ends.connector(first).connect().await.expect_err("pages go beside the stream");
    assert_eq!(error.blame(), Blame::Misuse);
    assert!(error.to_string().contains("beside the stream"), "{error}");
    let (_knock, door) = Door::new();
    assert_eq!(ends.listener(door).local_addresses(), ["door:1"]);
}
