//! A listener with strangers at its door.

use std::{io::Write, net::Shutdown, os::unix::net::UnixStream, time::Duration};

use mig_testkit::memory_pair;
use mig_transport::{
    Blame, Capabilities, Channel, Connector, FdIo, FdKind, Listener, NEWCOMER_GRACE,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

use super::{
    doubles::{Door, Ends, half_open, socket_pair},
    flood::look,
};

async fn works(source: &mut Channel, destination: &mut Channel) {
    let mut sender = source.take_sender().expect("fresh");
    let mut receiver = destination.take_receiver().expect("fresh");
    sender.write_all(b"hello").await.expect("it is read");
    sender.flush().await.expect("it is read");
    let mut heard = [0; 5];
    receiver.read_exact(&mut heard).await.expect("it was sent");
    assert_eq!(&heard, b"hello");
}

/// Time stands still unless everybody waits, so a wait for anybody's deadline would show.
#[tokio::test(start_paused = true)]
async fn a_hundred_silent_strangers_delay_nobody() {
    let mut ends = Ends::new();
    ends.options.max_handshakes = 64;
    let (knock, door) = Door::new();
    let mut listener = ends.listener(door);
    let mut strangers = Vec::new();
    for _ in 0..50 {
        let (theirs, ours) = memory_pair(1 << 16);
        knock.send(ours).expect("the door is there");
        strangers.push(theirs);
    }
    let (ours, theirs) = memory_pair(1 << 16);
    knock.send(theirs).expect("the door is there");
    for _ in 0..50 {
        let (theirs, ours) = memory_pair(1 << 16);
        knock.send(ours).expect("the door is there");
        strangers.push(theirs);
    }
    let started = tokio::time::Instant::now();
    let connector = ends.connector(ours);
    let (source, destination) = tokio::join!(connector.connect(), listener.accept());
    let (mut source, mut destination) = (source.expect("rightful"), destination.expect("rightful"));
    assert_eq!(started.elapsed(), Duration::ZERO);
    works(&mut source, &mut destination).await;

    // Nobody goes a moment after coming; then one too many drops the oldest, until half are new again. Those within the limit
    // go by their deadline.
    look(&mut listener).await;
    let gone = |stranger: &mut Channel| {
        let mut receiver = stranger.take_receiver().expect("fresh");
        async move { receiver.read(&mut [0; 1]).await.expect("an orderly end") }
    };
    assert_eq!(started.elapsed(), Duration::ZERO);
    for _ in 0..2 {
        tokio::time::advance(NEWCOMER_GRACE).await;
        look(&mut listener).await;
    }
    let kept = strangers.split_off(strangers.len() - 64);
    for mut stranger in strangers {
        assert_eq!(gone(&mut stranger).await, 0, "dropped at once");
    }
    assert_eq!(started.elapsed(), NEWCOMER_GRACE * 2);
    drop(knock);
    let error = listener.accept().await.expect_err("nobody else comes");
    assert_eq!(error.to_string(), "nobody comes any more");
    assert_eq!(started.elapsed(), NEWCOMER_GRACE * 2 + ends.options.handshake);
    for mut stranger in kept {
        assert_eq!(gone(&mut stranger).await, 0, "dropped by its deadline");
    }
}

/// Whoever speaks is not dropped while somebody is silent.
#[tokio::test(start_paused = true)]
async fn a_flood_drops_itself_and_not_the_one_who_speaks() {
    let mut ends = Ends::new();
    ends.options.max_handshakes = 3;
    let (knock, door) = Door::new();
    let mut listener = ends.listener(door);
    let (ours, theirs) = memory_pair(1 << 16);
    knock.send(theirs).expect("the door is there");
    let connector = ends.connector(ours);
    let (source, destination) = tokio::join!(
        async {
            // Its hello is there before the flood.
            let mut connecting = connector.connect();
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(connecting.as_mut().poll(&mut cx).is_pending());
            tokio::task::yield_now().await;
            let mut strangers = Vec::new();
            for _ in 0..1000 {
                let (theirs, ours) = memory_pair(64);
                knock.send(ours).expect("the door is there");
                strangers.push(theirs);
            }
            connecting.await
        },
        listener.accept()
    );
    let (mut source, mut destination) = (source.expect("rightful"), destination.expect("rightful"));
    works(&mut source, &mut destination).await;
}

#[tokio::test]
async fn strangers_that_speak_wrongly_change_nothing() {
    let ends = Ends::new();
    let (knock, door) = Door::new();
    let mut listener = ends.listener(door);
    let mut kept = Vec::new();
    for said in
        [&b"QEVM\0\0\0\x03"[..], b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x04hell", b""]
    {
        let (ours, mut theirs) = half_open();
        theirs.write_all(said).expect("there is room");
        theirs.shutdown(Shutdown::Write).expect("a socket");
        knock.send(ours).expect("the door is there");
        kept.push(theirs);
    }
    let (ours, theirs) = socket_pair();
    knock.send(theirs).expect("the door is there");
    let connector = ends.connector(ours);
    let (source, destination) = tokio::join!(connector.connect(), listener.accept());
    works(&mut source.expect("rightful"), &mut destination.expect("rightful")).await;
}

/// Who gives up waiting for a source can say what became of the last one.
#[tokio::test]
async fn the_last_one_that_was_refused_is_remembered_once() {
    let ends = Ends::new().authorizing("dn:O=Example,CN=somebody else");
    let (knock, door) = Door::new();
    let mut listener = ends.listener(door);
    let (ours, theirs) = socket_pair();
    knock.send(theirs).expect("the door is there");
    drop(knock);
    assert!(listener.last_dropped().is_none());
    let connector = ends.connector(ours);
    let (_source, nobody) = tokio::join!(connector.connect(), listener.accept());
    assert_eq!(nobody.expect_err("refused").to_string(), "nobody comes any more");
    let told = listener.last_dropped().expect("it was refused").to_string();
    assert_eq!(told, "not authorised: O=Example,CN=src1: no rule allows it");
    assert!(listener.last_dropped().is_none());
}

/// A dropped `accept` goes on where it was.
#[tokio::test]
async fn accepting_may_be_given_up_and_taken_up_again() {
    let ends = Ends::new();
    let (ours, theirs) = socket_pair();
    let mut listener = ends.listener_of(theirs);
    let connecting = tokio::spawn({
        let connector = ends.connector(ours);
        async move { connector.connect().await }
    });
    let mut destination = loop {
        tokio::select! {
            biased;
            accepted = listener.accept() => break accepted.expect("rightful"),
            () = tokio::task::yield_now() => {}
        }
    };
    let mut source = connecting.await.expect("no panic").expect("rightful");
    works(&mut source, &mut destination).await;
}

/// Over a transport that has one connection (fd, exec) there is nobody else to wait for.
#[tokio::test]
async fn the_only_connection_there_is_fails_aloud() {
    let ends = Ends::new();
    let (ours, mut theirs) = UnixStream::pair().expect("a socket pair");
    theirs.write_all(b"QEVM\0\0\0\x03").expect("there is room");
    let io = FdIo::new(ours.into(), FdKind::Socket, Interest::READABLE | Interest::WRITABLE)
        .expect("inside a runtime");
    let capabilities = Capabilities::socket().with(|can| can.several_channels = false);
    let only = io.socket_channel(capabilities, mig_transport::Endpoint::default());
    let mut listener = ends.listener_of(only);
    let error = listener.accept().await.expect_err("no TLS");
    assert_eq!(error.blame(), Blame::PeerIncompatible);
    assert!(error.to_string().contains("plain stream"), "{error}");
    let error = listener.accept().await.expect_err("there was only one");
    assert_eq!(error.to_string(), "nobody comes any more");
}
