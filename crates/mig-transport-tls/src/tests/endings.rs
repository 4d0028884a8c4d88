//! How a connection ends, and what an end may be taken for (docs/wire/transports.md §5.3): in order, without a word, in the
//! middle of a record, or with a record that somebody touched.

use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
};

use mig_testkit::pattern;
use mig_transport::{
    Blame, Channel, Connector, Endpoint, Error, Listener, Receiver, Sender, ShutdownHandle,
    ZeroCopy,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::doubles::{Door, Ends, half_open, socket_pair};

/// A source and a destination with a wire between them that a test holds: what one end writes gets to the other only if
/// the test carries it there.
struct Wire {
    source: Channel,
    destination: Channel,
    near: UnixStream,
    far: UnixStream,
}

impl Wire {
    async fn new() -> Self {
        let ends = Ends::new();
        let ((ours, near), (theirs, far)) = (half_open(), half_open());
        for end in [&near, &far] {
            end.set_nonblocking(true).expect("a socket");
        }
        let agreeing = ends.pair((ours, theirs));
        let mut wire = (near, far);
        let carrying = async {
            loop {
                for (from, to) in [(0, 1), (1, 0)] {
                    let ends = [&mut wire.0, &mut wire.1];
                    let bytes = take(ends[from]);
                    let ends = [&mut wire.0, &mut wire.1];
                    ends[to].write_all(&bytes).expect("there is room");
                }
                tokio::task::yield_now().await;
            }
        };
        let (source, destination) = tokio::select! {
            pair = agreeing => pair,
            () = carrying => unreachable!(),
        };
        let (near, far) = wire;
        Self { source, destination, near, far }
    }
}

/// What has arrived.
fn take(mut end: &UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    match end.read(&mut bytes) {
        Ok(got) => bytes.truncate(got),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            bytes.clear();
        }
    }
    bytes
}

fn taken(channel: &mut Channel) -> (Receiver, Sender) {
    (channel.take_receiver().expect("fresh"), channel.take_sender().expect("fresh"))
}

async fn say(sender: &mut Sender, bytes: &[u8]) {
    sender.write_all(bytes).await.expect("there is room");
    sender.flush().await.expect("there is room");
}

/// Everything up to the end, and the end.
async fn hear(receiver: &mut Receiver) -> (Vec<u8>, Result<(), Error>) {
    let mut all = Vec::new();
    let mut buffer = vec![0; 10_000];
    loop {
        match receiver.read(&mut buffer).await {
            Ok(0) => return (all, Ok(())),
            Ok(got) => all.extend_from_slice(&buffer[..got]),
            Err(error) => return (all, Err(Error::io("reading", error))),
        }
    }
}

#[tokio::test]
async fn an_orderly_end_is_announced_and_believed_both_ways() {
    let (mut source, mut destination) = Ends::new().pair(socket_pair()).await;
    let (mut source_in, mut source_out) = taken(&mut source);
    let (mut destination_in, mut destination_out) = taken(&mut destination);
    say(&mut source_out, b"all of it").await;
    source_out.shutdown().await.expect("orderly");
    let (heard, end) = hear(&mut destination_in).await;
    assert_eq!(heard, b"all of it");
    end.expect("announced");
    say(&mut destination_out, b"thanks").await;
    destination_out.shutdown().await.expect("orderly");
    let (heard, end) = hear(&mut source_in).await;
    assert_eq!(heard, b"thanks");
    end.expect("announced");
}

#[tokio::test]
async fn close_notify_is_on_the_wire_before_the_end() {
    let mut wire = Wire::new().await;
    let (_receiver, mut sender) = taken(&mut wire.source);
    sender.shutdown().await.expect("orderly");
    // An encrypted alert: header, two bytes, their type, the tag.
    let last = take(&wire.near);
    assert_eq!((last.len(), &last[..5]), (5 + 2 + 1 + 16, &[23, 3, 3, 0, 19][..]));
    assert_eq!(take(&wire.near), b"", "and then the end");
}

/// An end that nobody announced: a destination takes it, a source does not.
#[tokio::test]
async fn an_unannounced_end_is_one_for_a_destination_only() {
    let mut wire = Wire::new().await;
    let (mut source_in, mut source_out) = taken(&mut wire.source);
    let (mut destination_in, mut destination_out) = taken(&mut wire.destination);
    say(&mut source_out, b"a stream with an end of its own").await;
    say(&mut destination_out, b"something").await;
    (&wire.far).write_all(&take(&wire.near)).expect("there is room");
    (&wire.near).write_all(&take(&wire.far)).expect("there is room");
    wire.near.shutdown(std::net::Shutdown::Write).expect("a socket");
    wire.far.shutdown(std::net::Shutdown::Write).expect("a socket");

    let (heard, end) = hear(&mut destination_in).await;
    assert_eq!(heard, b"a stream with an end of its own");
    end.expect("as QEMU's main channel ends");

    let (heard, end) = hear(&mut source_in).await;
    assert_eq!(heard, b"something");
    let error = end.expect_err("anybody could have done it");
    assert_eq!(error.blame(), Blame::Io);
    assert!(error.to_string().contains("close_notify"), "{error}");
    let again = source_in.read(&mut [0; 1]).await.expect_err("for good");
    assert_eq!(again.kind(), ErrorKind::InvalidData);
}

#[tokio::test]
async fn an_unannounced_end_is_unexpected() {
    let mut wire = Wire::new().await;
    let (mut source_in, _source_out) = taken(&mut wire.source);
    wire.near.shutdown(std::net::Shutdown::Write).expect("a socket");
    let error = source_in.read(&mut [0; 1]).await.expect_err("not announced");
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    assert!(error.to_string().contains("right after the TLS handshake"), "{error}");
}

/// A destination that answered has taken our certificate, so it does not close a later channel because of that: of one
/// channel too many, say.
#[tokio::test]
async fn who_has_heard_the_destination_is_not_told_that_it_is_refused() {
    let ends = Ends::new();
    let ((first, theirs_first), (second, theirs_second)) = (socket_pair(), socket_pair());
    let connector = ends.connector_to("localhost", [first, second]);
    let (knock, door) = Door::new();
    let mut listener = ends.listener(door);
    knock.send(theirs_first).expect("the door is there");
    let (main, heard) = tokio::join!(connector.connect(), listener.accept());
    let (mut main, mut heard) = (main.expect("connects"), heard.expect("accepts"));
    say(&mut heard.take_sender().expect("fresh"), b"welcome").await;
    let mut word = [0; 7];
    taken(&mut main).0.read_exact(&mut word).await.expect("it was said");

    knock.send(theirs_second).expect("the door is there");
    let (data, surplus) = tokio::join!(connector.connect(), listener.accept());
    let (mut data, surplus) = (data.expect("connects"), surplus.expect("accepts"));
    surplus.shutdown_handle().shutdown();
    let (mut receiver, mut sender) = taken(&mut data);
    let error = receiver.read(&mut word).await.expect_err("not announced").to_string();
    assert!(!error.contains("certificate") && error.contains("close_notify"), "{error}");
    let error = loop {
        if let Err(error) = sender.write_all(&[0; 65536]).await {
            break error.to_string();
        }
    };
    assert!(!error.contains("certificate"), "{error}");
}

#[tokio::test]
async fn an_end_inside_a_record_is_unexpected_at_both_ends() {
    for cut in [1, 4, 5, 6, 20] {
        let mut wire = Wire::new().await;
        let (_in, mut out) = taken(&mut wire.source);
        let (mut receiver, _out) = taken(&mut wire.destination);
        say(&mut out, b"the first").await;
        (&wire.far).write_all(&take(&wire.near)).expect("there is room");
        say(&mut out, b"the second").await;
        (&wire.far).write_all(&take(&wire.near)[..cut]).expect("there is room");
        wire.far.shutdown(std::net::Shutdown::Write).expect("a socket");
        let (heard, end) = hear(&mut receiver).await;
        assert_eq!(heard, b"the first", "what came before is whole");
        let error = end.expect_err("truncated").to_string();
        assert!(error.contains(&format!("ended {cut} bytes into a TLS record")), "{error}");
    }
}

/// Every byte of a record flipped in some bit: an error, and not a byte of what it had.
#[tokio::test]
async fn a_flipped_bit_is_an_error_and_never_data() {
    let sent = pattern::bytes(7, 0, 40);
    for at in 0..62 {
        let mut wire = Wire::new().await;
        let (_in, mut out) = taken(&mut wire.source);
        let (mut receiver, _out) = taken(&mut wire.destination);
        say(&mut out, b"before").await;
        (&wire.far).write_all(&take(&wire.near)).expect("there is room");
        say(&mut out, &sent).await;
        let mut record = take(&wire.near);
        assert_eq!(record.len(), 62);
        record[at] ^= 1 << (at % 8);
        (&wire.far).write_all(&record).expect("there is room");
        // A longer length than there is waits for the rest.
        wire.far.shutdown(std::net::Shutdown::Write).expect("a socket");
        let (heard, end) = hear(&mut receiver).await;
        if at == 2 {
            // The minor version says nothing and is to be ignored (RFC 8446 §5.1).
            assert!(heard[6..] == sent && end.is_ok());
            continue;
        }
        assert_eq!(heard, b"before", "byte {at}");
        let error = end.expect_err("it was touched");
        assert_eq!(error.blame(), Blame::Io, "byte {at}: {error}");
        let text = error.to_string();
        assert!(
            text.contains("damaged or altered on the way") || text.contains("into a TLS record"),
            "byte {at}: {text}"
        );
        // The other end is told; that it can tell who it was is not the point.
        if text.contains("authentication") {
            let alert = take(&wire.far);
            assert_eq!(alert.len(), 24, "byte {at}");
            (&wire.near).write_all(&alert).expect("there is room");
            let (mut told, _sender) = (_in, out);
            let (_, end) = hear(&mut told).await;
            let told = end.expect_err("an alert").to_string();
            assert!(told.contains("bad_record_mac"), "{told}");
        }
    }
}

/// Records that somebody swapped, left out or played again do not open either.
#[tokio::test]
async fn records_in_another_order_are_an_error() {
    for order in [&[1, 0][..], &[0, 0], &[1]] {
        let mut wire = Wire::new().await;
        let (_in, mut out) = taken(&mut wire.source);
        let (mut receiver, _out) = taken(&mut wire.destination);
        let mut records = Vec::new();
        for bytes in [b"one", b"two"] {
            say(&mut out, bytes).await;
            records.push(take(&wire.near));
        }
        for &which in order {
            (&wire.far).write_all(&records[which]).expect("there is room");
        }
        let (heard, end) = hear(&mut receiver).await;
        assert!(heard.is_empty() || heard == b"one", "{heard:?}");
        assert!(end.expect_err("not in order").to_string().contains("authentication failed"));
    }
}

#[tokio::test]
async fn a_forced_shutdown_stops_both_halves_and_is_no_orderly_end() {
    let mut wire = Wire::new().await;
    let (mut receiver, mut sender) = taken(&mut wire.source);
    wire.source.shutdown_handle().shutdown();
    let error = receiver.read(&mut [0; 1]).await.expect_err("stopped");
    assert!(ShutdownHandle::caused(&error), "{error}");
    let error = sender.write_all(b"x").await.expect_err("stopped");
    assert!(ShutdownHandle::caused(&error), "{error}");
    drop((receiver, sender));
    assert_eq!(take(&wire.near), b"", "no goodbye from a channel that was stopped");
}

#[tokio::test]
async fn nothing_is_sent_without_a_copy() {
    let (mut source, _destination) = Ends::new().pair(socket_pair()).await;
    assert!(!source.capabilities().zero_copy && !source.capabilities().fd_passing);
    let (_receiver, mut sender) = taken(&mut source);
    let told: ZeroCopy = sender.request_zero_copy();
    assert!(format!("{told:?}").contains("not over TLS"), "{told:?}");
}

/// A half in one runtime, the other in another, and back.
#[tokio::test]
async fn halves_move_to_other_runtimes() {
    let (mut source, mut destination) = Ends::new().pair(socket_pair()).await;
    let (mut source_in, mut source_out) = taken(&mut source);
    let (mut destination_in, mut destination_out) = taken(&mut destination);
    let elsewhere = |work: Box<dyn FnOnce(&tokio::runtime::Runtime) + Send>| {
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            work(&runtime);
        })
    };
    let all = pattern::bytes(9, 0, 3 << 20);
    let expected = all.clone();
    let writing = elsewhere(Box::new(move |runtime| {
        runtime.block_on(async {
            source_out.rehome().expect("nobody waits on it");
            source_out.write_all(&all).await.expect("it is read");
            source_out.shutdown().await.expect("it is read");
            let (heard, end) = hear(&mut source_in).await;
            end.expect("orderly");
            assert_eq!(heard, b"got it");
        });
    }));
    let reading = elsewhere(Box::new(move |runtime| {
        runtime.block_on(async {
            destination_in.rehome().expect("nobody waits on it");
            let (heard, end) = hear(&mut destination_in).await;
            end.expect("orderly");
            assert!(heard == expected);
            say(&mut destination_out, b"got it").await;
            destination_out.shutdown().await.expect("it is read");
        });
    }));
    let both = tokio::task::spawn_blocking(|| (writing.join(), reading.join()));
    let (wrote, read) = both.await.expect("joined");
    wrote.expect("the source's thread");
    read.expect("the destination's thread");
}

/// Whatever carries it: nobody between the ends can announce one.
#[tokio::test]
async fn an_end_that_tls_announces_is_the_other_ends_own() {
    let pair = super::doubles::memory_pair_from(mig_transport::Peer::Unknown, true);
    assert!(pair.1.capabilities().relayed);
    let (source, destination) = Ends::new().pair(pair).await;
    assert!(!destination.capabilities().relayed);
    assert!(source.capabilities().announced_ends);
    assert!(!destination.capabilities().announced_ends, "it takes an end that was not announced");
}

/// Linux tells of a reset once, and the write takes it: what the reader finds looks like an end in order, and is none. What
/// the destination announced before is one all the same.
#[tokio::test]
async fn a_reset_that_the_writer_was_told_of_is_no_end_for_the_reader() {
    for announced in [false, true] {
        let breaker = mig_testkit::Breaker::default();
        let (near, far) = tokio::io::duplex(1 << 14);
        let (reader, writer) = tokio::io::split(near);
        let ours = breaker.channel(reader, writer, Endpoint::default());
        let (reader, writer) = tokio::io::split(far);
        let theirs = mig_testkit::stream_channel(Some(reader), Some(writer), Endpoint::default());
        let (mut source, mut destination) = Ends::new().pair((ours, theirs)).await;
        let (mut source_in, mut source_out) = taken(&mut source);
        let (_destination_in, mut destination_out) = taken(&mut destination);
        say(&mut destination_out, b"pong").await;
        if announced {
            destination_out.shutdown().await.expect("there is room");
        }
        let lot = pattern::bytes(3, 0, 4 << 20);
        let writing = async {
            let written = source_out.write_all(&lot).await;
            written.expect_err("nobody reads, and it is reset").kind()
        };
        let reset = async {
            tokio::task::yield_now().await;
            breaker.reset();
        };
        assert_eq!(tokio::join!(writing, reset).0, ErrorKind::ConnectionReset);
        let (heard, end) = hear(&mut source_in).await;
        assert_eq!(heard, b"pong");
        assert_eq!(end.is_ok(), announced, "{end:?}");
    }
}
