//! Who makes room when many connect at once: those who make the crowd, and not the source.

use std::{
    future::{Future, poll_fn},
    task::{Context, Poll, Waker},
    time::Duration,
};

use mig_transport::{Blame, Channel, Connector, Listener, LogLimit, NEWCOMER_GRACE, Peer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::doubles::{Door, Ends, memory_pair_from};
use crate::{TlsListener, testing::warnings};

const FLOOD: usize = 300;
/// Not enough to be of the crowd of those who spoke.
const A_BYTE: &[u8] = &[0x16];

fn address(last: u8) -> Peer {
    Peer::address([192, 0, 2, last].into())
}

/// Connects from there, and says as much.
async fn stranger(
    from: Peer,
    says: &[u8],
    knock: &mpsc::UnboundedSender<Channel>,
) -> (Channel, mig_transport::Sender) {
    let (mut theirs, ours) = memory_pair_from(from, true);
    knock.send(ours).expect("the door is there");
    let mut sender = theirs.take_sender().expect("fresh");
    sender.write_all(says).await.expect("there is room");
    (theirs, sender)
}

/// Lets the listener look at everything that is there, and nobody comes of it.
pub(super) async fn look(listener: &mut TlsListener) {
    let mut accepting = listener.accept();
    for _ in 0..3 * FLOOD {
        let polled = poll_fn(|cx| Poll::Ready(accepting.as_mut().poll(cx))).await;
        assert!(polled.is_pending(), "nobody can be done");
        tokio::task::yield_now().await;
    }
}

async fn is_gone(stranger: &mut Channel) -> bool {
    let mut receiver = stranger.take_receiver().expect("fresh");
    let mut byte = [0];
    let mut reading = std::pin::pin!(receiver.read(&mut byte));
    reading.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// The source is slow to say a word, and a flood that says one byte a connection comes meanwhile.
#[tokio::test(start_paused = true)]
async fn a_flood_of_one_byte_from_elsewhere_drops_itself() {
    let mut ends = Ends::new();
    ends.options.max_handshakes = 64;
    let (knock, door) = Door::new();
    let mut listener = ends.listener(door);
    let (ours, theirs) = memory_pair_from(address(1), true);
    knock.send(theirs).expect("the door is there");
    let mut flood = Vec::new();
    for _ in 0..FLOOD {
        flood.push(stranger(address(66), A_BYTE, &knock).await);
    }
    look(&mut listener).await;
    let connector = ends.connector(ours);
    let (source, destination) =
        in_time(async { tokio::join!(connector.connect(), listener.accept()) }).await;
    source.expect("rightful");
    destination.expect("rightful");
}

/// Time is paused: whoever waits for nothing any more fails at once, instead of never.
async fn in_time<T>(work: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(3600);
    tokio::time::timeout(limit, work).await.expect("the rightful source gets in")
}

/// The flood has the source's own address (a NAT, a jump host): whoever said a whole record is no part of it.
#[tokio::test(start_paused = true)]
async fn a_flood_of_one_byte_from_the_same_address_drops_itself() {
    let mut ends = Ends::new();
    ends.options.max_handshakes = 64;
    let (knock, door) = Door::new();
    let mut listener = ends.listener(door);
    let (ours, theirs) = memory_pair_from(address(1), true);
    knock.send(theirs).expect("the door is there");
    let connector = ends.connector(ours);
    let mut connecting = connector.connect();
    // Its hello is there, its next word comes after the flood.
    assert!(connecting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let mut flood = Vec::new();
    for _ in 0..FLOOD {
        flood.push(stranger(address(1), A_BYTE, &knock).await);
    }
    look(&mut listener).await;
    let (source, destination) =
        in_time(async { tokio::join!(connecting, listener.accept()) }).await;
    source.expect("rightful");
    destination.expect("rightful");
}

/// The same flood says nothing at all, and so does the source until many have connected behind it: its machine is busy.
#[tokio::test(start_paused = true)]
async fn a_silent_flood_from_the_same_address_takes_no_slow_sources_place() {
    let mut ends = Ends::new();
    ends.options.max_handshakes = 64;
    let (knock, door) = Door::new();
    let mut listener = ends.listener(door);
    let (ours, theirs) = memory_pair_from(address(1), true);
    knock.send(theirs).expect("the door is there");
    let mut flood = Vec::new();
    for _ in 0..FLOOD {
        flood.push(stranger(address(1), b"", &knock).await);
    }
    look(&mut listener).await;
    let connector = ends.connector(ours);
    let (source, destination) =
        in_time(async { tokio::join!(connector.connect(), listener.accept()) }).await;
    source.expect("rightful");
    destination.expect("rightful");
}

/// The source says its first word at the end of its grace, and the flood has gone round as often as it could.
#[tokio::test(start_paused = true)]
async fn a_hello_that_comes_late_is_heard_in_a_flood_from_the_same_address() {
    let mut ends = Ends::new();
    ends.options.max_handshakes = 64;
    let (knock, door) = Door::new();
    let mut listener = ends.listener(door);
    let mut flood = Vec::new();
    // 64, and then 32 in each grace: it is let in with the last of those that come after 200 ms.
    for _ in 0..64 + 2 * 32 - 1 {
        flood.push(stranger(address(1), b"", &knock).await);
    }
    let (ours, theirs) = memory_pair_from(address(1), true);
    knock.send(theirs).expect("the door is there");
    for _ in 0..FLOOD {
        flood.push(stranger(address(1), b"", &knock).await);
    }
    let connector = ends.connector(ours);
    let late = async {
        tokio::time::sleep(NEWCOMER_GRACE * 3 - Duration::from_millis(5)).await;
        connector.connect().await
    };
    let (source, destination) = in_time(async { tokio::join!(late, listener.accept()) }).await;
    source.expect("rightful");
    destination.expect("rightful");
}

/// So many connect to a door whose 64 or 320 places are taken by others past their grace, and a source behind them: how long
/// it takes.
async fn behind(places: usize, addresses: usize, held_say: &[u8], silent: usize) -> Duration {
    let mut ends = Ends::new();
    ends.options.max_handshakes = places;
    let (knock, door) = Door::new();
    let mut listener = ends.listener(door);
    let somewhere = |number: usize| {
        let [high, low] = u16::try_from(number % addresses).expect("few").to_be_bytes();
        Peer::address([10, 0, high, low].into())
    };
    let mut strangers = Vec::new();
    for number in 0..places {
        strangers.push(stranger(somewhere(number), held_say, &knock).await);
    }
    look(&mut listener).await;
    tokio::time::advance(NEWCOMER_GRACE).await;
    for number in 0..silent {
        strangers.push(stranger(somewhere(number), b"", &knock).await);
    }
    let (ours, theirs) = memory_pair_from(address(1), true);
    knock.send(theirs).expect("the door is there");
    let connector = ends.connector(ours);
    let started = tokio::time::Instant::now();
    let (source, destination) =
        in_time(async { tokio::join!(connector.connect(), listener.accept()) }).await;
    source.expect("rightful");
    destination.expect("rightful");
    started.elapsed()
}

/// A pause for each newcomer among old ones would be seconds: 90 of 100 ms each in the first of these.
#[tokio::test(start_paused = true)]
async fn newcomers_among_old_holders_stop_the_door_for_half_of_the_places_only() {
    let begun = endless_hello(16, 1);
    for (places, addresses, held_say, silent) in [
        (64, 64, &begun[..], 90),
        (64, 64, b"", 90),
        (64, 1, b"", 90),
        (320, 320, &begun, 80),
        (320, 32, &begun, 1000),
        (320, 1, &begun, 1000),
    ] {
        let took = behind(places, addresses, held_say, silent).await;
        let graces = u32::try_from(silent / (places / 2)).expect("few");
        let expected =
            NEWCOMER_GRACE * graces..=NEWCOMER_GRACE * graces + Duration::from_millis(50);
        assert!(expected.contains(&took), "{places} of {addresses}, {silent} silent: {took:?}");
    }
}

/// Whoever is behind a flood waits until all places went round, a moment for each half of them.
#[tokio::test(start_paused = true)]
async fn a_flood_before_the_source_costs_a_moment_for_each_half_of_the_places() {
    const ROUNDS: u32 = 4;
    let mut ends = Ends::new();
    ends.options.max_handshakes = 64;
    let (knock, door) = Door::new();
    let mut listener = ends.listener(door);
    let mut flood = Vec::new();
    for _ in 0..64 * ROUNDS {
        flood.push(stranger(address(1), b"", &knock).await);
    }
    let (ours, theirs) = memory_pair_from(address(1), true);
    knock.send(theirs).expect("the door is there");
    let connector = ends.connector(ours);
    let started = tokio::time::Instant::now();
    let (source, destination) =
        in_time(async { tokio::join!(connector.connect(), listener.accept()) }).await;
    source.expect("rightful");
    destination.expect("rightful");
    let paused = started.elapsed();
    // The first two halves are there at once.
    let halves = 2 * ROUNDS - 1;
    let expected = NEWCOMER_GRACE * halves..NEWCOMER_GRACE * (halves + 1);
    assert!(expected.contains(&paused), "{paused:?}");
}

/// From more addresses than there are places, so that no crowd is larger than another: who said a record stays.
#[tokio::test(start_paused = true)]
async fn a_flood_of_one_byte_from_everywhere_drops_itself() {
    let mut ends = Ends::new();
    ends.options.max_handshakes = 64;
    let (knock, door) = Door::new();
    let mut listener = ends.listener(door);
    let (ours, theirs) = memory_pair_from(address(1), true);
    knock.send(theirs).expect("the door is there");
    let connector = ends.connector(ours);
    let mut connecting = connector.connect();
    assert!(connecting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    look(&mut listener).await;
    let mut flood = Vec::new();
    for number in 0..FLOOD {
        let [high, low] = u16::try_from(number).expect("few").to_be_bytes();
        let from = Peer::address([10, 0, high, low].into());
        flood.push(stranger(from, A_BYTE, &knock).await);
    }
    look(&mut listener).await;
    let (source, destination) =
        in_time(async { tokio::join!(connecting, listener.accept()) }).await;
    source.expect("rightful");
    destination.expect("rightful");
}

/// As many channels as QEMU's multifd can have connect at once, and none is sent away.
#[tokio::test(start_paused = true)]
async fn all_channels_of_one_source_have_a_place() {
    let ends = Ends::new();
    let (knock, door) = Door::new();
    let mut listener = ends.listener(door);
    let mut channels = Vec::new();
    for _ in 0..256 {
        channels.push(stranger(address(1), b"", &knock).await);
    }
    look(&mut listener).await;
    for (channel, _) in &mut channels {
        assert!(!is_gone(channel).await);
    }
}

#[tokio::test(start_paused = true)]
async fn few_have_a_place_once_nobody_is_missing() {
    let ends = Ends::new();
    let (knock, door) = Door::new();
    let mut listener = ends.listener(door);
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(stranger(address(1), b"", &knock).await);
    }
    look(&mut listener).await;
    listener.nobody_is_missing(true);
    for _ in 0..20 {
        strangers.push(stranger(address(1), b"", &knock).await);
    }
    look(&mut listener).await;
    let mut gone = 0;
    for (stranger, _) in &mut strangers {
        gone += usize::from(is_gone(stranger).await);
    }
    assert_eq!(gone, 38);

    listener.nobody_is_missing(false);
    let mut strangers = Vec::new();
    for _ in 0..20 {
        strangers.push(stranger(address(1), b"", &knock).await);
    }
    look(&mut listener).await;
    for (stranger, _) in &mut strangers {
        assert!(!is_gone(stranger).await);
    }
}

/// What is polled beside accepting, a migration, has its turn between.
#[tokio::test(start_paused = true)]
async fn one_turn_is_a_few_strangers_and_not_all() {
    let ends = Ends::new();
    let (knock, door) = Door::new();
    let mut listener = ends.listener(door);
    let mut strangers = Vec::new();
    for _ in 0..100 {
        strangers.push(stranger(address(1), b"GET / HTTP/1.1\r\n", &knock).await);
    }
    let mut accepting = listener.accept();
    for _ in 0..50 {
        let polled = poll_fn(|cx| Poll::Ready(accepting.as_mut().poll(cx))).await;
        assert!(polled.is_pending(), "nobody can be done");
        tokio::task::yield_now().await;
    }
    drop(accepting);
    let mut gone = 0;
    for (stranger, _) in &mut strangers {
        gone += usize::from(is_gone(stranger).await);
    }
    assert!((10..=50).contains(&gone), "{gone} of 100 in 50 turns");
}

#[test]
fn a_flood_is_a_few_lines_of_the_log() {
    let told = warnings(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let ends = Ends::new();
            let (knock, door) = Door::new();
            let mut listener = ends.listener(door);
            for _ in 0..100 {
                drop(stranger(address(1), b"GET / HTTP/1.1\r\n", &knock).await);
            }
            drop(knock);
            listener.accept().await.expect_err("nobody is left");
        });
    });
    assert!(!told.is_empty());
    assert!(told.len() <= LogLimit::BURST as usize, "{told:?}");
}

/// A client hello of 65 000 bytes that nobody finishes, in records of as many.
fn endless_hello(piece: usize, pieces: usize) -> Vec<u8> {
    let mut hello = vec![1, 0, 0xfd, 0xe8, 3, 3];
    hello.resize(piece * pieces, 0);
    let mut records = Vec::new();
    for body in hello.chunks(piece) {
        records.extend_from_slice(&[0x16, 3, 1]);
        records.extend_from_slice(&u16::try_from(piece).expect("a record").to_be_bytes());
        records.extend_from_slice(body);
    }
    records
}

/// TLS would let it go on; what is incomplete is held.
#[tokio::test(start_paused = true)]
async fn a_hello_without_an_end_is_cut_short() {
    for (said, why) in [
        (endless_hello(1, 129), "more than 128 records"),
        (endless_hello(16 * 1024, 2), "more than 18437 bytes"),
    ] {
        let ends = Ends::new();
        let (mut ours, theirs) = memory_pair_from(Peer::Unknown, false);
        let mut listener = ends.listener_of(theirs);
        let mut sender = ours.take_sender().expect("fresh");
        sender.write_all(&said).await.expect("there is room");
        let started = tokio::time::Instant::now();
        let error = listener.accept().await.expect_err("it is no source");
        assert_eq!(error.blame(), Blame::PeerMisbehaved, "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}

/// `exec:ncat -l` is connected long before anybody calls: how long a source may take to come is not TLS's to say.
#[tokio::test(start_paused = true)]
async fn over_the_only_channel_the_deadline_starts_with_the_first_byte() {
    let ends = Ends::new();
    let (ours, theirs) = memory_pair_from(Peer::Unknown, false);
    let mut listener = ends.listener_of(theirs);
    let connector = ends.connector(ours);
    let (source, destination) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            connector.connect().await
        },
        listener.accept()
    );
    source.expect("rightful");
    destination.expect("rightful");

    let (mut ours, theirs) = memory_pair_from(Peer::Unknown, false);
    let mut listener = ends.listener_of(theirs);
    let mut sender = ours.take_sender().expect("fresh");
    let started = tokio::time::Instant::now();
    let (error, ()) = tokio::join!(listener.accept(), async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        sender.write_all(A_BYTE).await.expect("it is read");
    });
    let error = error.expect_err("it says no more");
    assert_eq!(error.blame(), Blame::Deadline, "{error}");
    assert_eq!(started.elapsed(), Duration::from_secs(60) + ends.options.handshake);
}
