//! A source with data channels whose destination stalls, hangs up, or is of no interest any more: the migration ends, soon,
//! and the guest goes on here.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use mig_engine::{
    AutoChannels, Capabilities, Deadlines, Destination, Error, MigrationHandle, MultifdCompression,
    Outcome, Owner, Parameters, Source,
};
use mig_ram::{RamBlock, RamBlocks};
use mig_testkit::pattern;
use mig_transport::{
    Blame, Capabilities as Can, Channel, ChannelParts, Connector, Endpoint, Gather, SendHalf,
};
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::{
    multifd_wire::{Far, Kind, channel, connection, deadlines, tcp_pair},
    support::{Arriving, Diary, TestGuest, whole},
};

/// Far below the idle deadline of the tests that do not wait for it.
const SOON: Duration = Duration::from_secs(10);
/// More than the sockets hold.
const RAM_BYTES: usize = 32 << 20;

/// Both ends of a connection.
fn unix_pair() -> (Channel, Channel) {
    let (one, other) = std::os::unix::net::UnixStream::pair().unwrap();
    (channel(one.into(), "unix"), channel(other.into(), "unix"))
}

/// Hands out channels that are there: main first.
struct Several(Mutex<VecDeque<Channel>>);

impl Several {
    fn new(channels: impl IntoIterator<Item = Channel>) -> Self {
        Self(Mutex::new(channels.into_iter().collect()))
    }
}

#[async_trait]
impl Connector for Several {
    async fn connect(&self) -> mig_transport::Result<Channel> {
        let next = self.0.lock().unwrap().pop_front();
        next.ok_or_else(|| {
            mig_transport::Error::io("connecting", io::ErrorKind::ConnectionRefused.into())
        })
    }
}

fn source(channels: u8, limits: Deadlines, compression: MultifdCompression) -> (Source, Diary) {
    let ram = Arc::new(RamBlocks::new([RamBlock::new("ram", RAM_BYTES as u64).unwrap()]).unwrap());
    pattern::fill(&whole(&ram, 0), 5);
    let diary = Diary::default();
    let mut guest = TestGuest::new(&diary);
    guest.machine = "pc-q35-10.0";
    let mut capabilities = Capabilities::default();
    capabilities.return_path = true;
    capabilities.multifd = true;
    let mut parameters = Parameters::default();
    parameters.multifd_channels = channels;
    parameters.multifd_compression = compression;
    parameters.multifd_zlib_level = Some(1);
    let source = Source::new(ram, Box::new(guest))
        .with_capabilities(capabilities)
        .with_parameters(parameters)
        .with_deadlines(limits);
    (source, diary)
}

fn destination() -> (Destination, Arc<RamBlocks>) {
    let ram = Arc::new(RamBlocks::new([RamBlock::new("ram", RAM_BYTES as u64).unwrap()]).unwrap());
    let mut guest = TestGuest::new(&Diary::default());
    guest.machine = "pc-q35-10.0";
    let mut capabilities = Capabilities::default();
    capabilities.multifd = true;
    let destination = Destination::new(ram.clone(), Box::new(guest))
        .with_capabilities(capabilities)
        .with_deadlines(deadlines());
    (destination, ram)
}

async fn read_all(mut far: impl Far) {
    let mut some = vec![0; 1 << 16];
    while far.read(&mut some).await.is_ok_and(|came| came > 0) {}
}

/// The source must have given up, with its guest.
#[track_caller]
fn assert_it_runs_here(ended: Result<Outcome, Error>, diary: &Diary) -> Error {
    let error = ended.unwrap_err();
    assert_eq!(error.owner(), Owner::Source, "{error}");
    assert!(!diary.has("stop") || diary.runs());
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_count_what_went_over_data_channels() {
    let (mut source, _) = source(2, deadlines(), MultifdCompression::None);
    let (mut destination, ram) = destination();
    let (out, into): (Vec<_>, Vec<_>) = (0..3).map(|_| unix_pair()).unzip();
    let (connector, mut listener) = (Several::new(out), Arriving::new(into));
    let (sent, received) = tokio::join!(source.run(&connector), destination.run(&mut listener));
    let (sent, received) = (sent.unwrap().info.ram, received.unwrap().info.ram);
    pattern::check(&whole(&ram, 0), 5).unwrap();
    assert!(sent.multifd_bytes > RAM_BYTES as u64, "{sent:?}");
    assert_eq!(sent.multifd_bytes, received.multifd_bytes);
    assert_eq!(sent.transferred, received.transferred);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_was_to_make_it_faster_and_cannot_be_opened_ends_nothing() {
    let (source, _) = source(1, deadlines(), MultifdCompression::None);
    let mut parameters = Parameters::default();
    parameters.multifd_auto = Some(AutoChannels::default());
    // Slow enough for a trial.
    parameters.max_bandwidth = 20 << 20;
    let mut source = source.with_parameters(parameters.clone());
    let (mut destination, ram) = destination();
    destination = destination.with_parameters(parameters);
    let (out, into): (Vec<_>, Vec<_>) = (0..2).map(|_| unix_pair()).unzip();
    let (connector, mut listener) = (Several::new(out), Arriving::new(into));
    let (sent, received) = tokio::join!(source.run(&connector), destination.run(&mut listener));
    received.unwrap();
    let multifd = sent.unwrap().info.multifd.expect("there was one");
    assert_eq!(multifd.channels, 1);
    let why = multifd.channels_chosen.expect("somebody chose");
    assert!(why.contains("could not be opened"), "{why}");
    pattern::check(&whole(&ram, 0), 5).unwrap();
}

/// The main channel says something every 50 ms meanwhile, which is read: that is no life of the other one.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_nobody_reads_ends_the_migration_by_the_idle_deadline() {
    let mut limits = deadlines();
    limits.idle = Some(Duration::from_millis(500));
    let (mut source, diary) = source(2, limits, MultifdCompression::None);
    let (main, main_far) = connection(Kind::Unix).await;
    let (first, first_far) = connection(Kind::Unix).await;
    let (second, second_far) = connection(Kind::Unix).await;
    let reading = [main_far, second_far].map(|far| tokio::spawn(read_all(far)));
    let connector = Several::new([main, first, second]);
    let ended = tokio::time::timeout(SOON, source.run(&connector)).await;
    let error = assert_it_runs_here(ended.expect("it ends by itself"), &diary);
    assert_eq!(error.blame(), Blame::Deadline, "{error}");
    assert!(error.to_string().contains("data channel 0, "), "{error}");
    drop(first_far);
    for task in reading {
        task.await.unwrap();
    }
}

/// Reset while its socket is full, which no read of the others would show.
#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_is_reset_with_a_full_queue_ends_the_migration_at_once() {
    let (mut source, diary) = source(2, deadlines(), MultifdCompression::None);
    let (main, main_far) = connection(Kind::Tcp).await;
    let (first, mut first_far) = tcp_pair().await;
    let (second, second_far) = connection(Kind::Tcp).await;
    let reading = [main_far, second_far].map(|far| tokio::spawn(read_all(far)));
    let resetting = async move {
        // The hello, and some of the first packet.
        first_far.read_exact(&mut [0; 5000]).await.unwrap();
        first_far.set_zero_linger().unwrap();
    };
    let connector = Several::new([main, first, second]);
    let begun = Instant::now();
    let (ended, ()) = tokio::join!(source.run(&connector), resetting);
    assert!(begun.elapsed() < SOON);
    let error = assert_it_runs_here(ended, &diary);
    assert_eq!(error.blame(), Blame::Io, "{error}");
    assert!(error.to_string().contains("data channel 0"), "{error}");
    for task in reading {
        task.await.unwrap();
    }
}

/// Takes everything at once, so that whoever sends never waits; from a certain byte on the migration is cancelled, and
/// each write takes a while.
struct Swallow {
    taken: Arc<AtomicUsize>,
    cancel_at: usize,
    handle: MigrationHandle,
}

impl Swallow {
    fn take(&self, len: usize) {
        let taken = self.taken.fetch_add(len, Ordering::Relaxed) + len;
        if taken >= self.cancel_at {
            self.handle.cancel();
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl AsyncWrite for Swallow {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.take(bytes.len());
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl SendHalf for Swallow {
    fn poll_send(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        gather: &mut Gather,
    ) -> Poll<io::Result<usize>> {
        let len = gather.sendable();
        self.take(len);
        gather.advance(len);
        Poll::Ready(Ok(len))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_does_not_wait_for_channels_that_never_wait() {
    for compression in [MultifdCompression::None, MultifdCompression::Zlib] {
        let (mut source, diary) = source(2, deadlines(), compression);
        let (main, main_far) = connection(Kind::Unix).await;
        let taken = Arc::new(AtomicUsize::new(0));
        let swallow = |_| {
            Channel::new(ChannelParts {
                send: Some(Box::new(Swallow {
                    taken: Arc::clone(&taken),
                    cancel_at: 1 << 20,
                    handle: source.handle(),
                })),
                capabilities: Can::socket(),
                endpoint: Endpoint { transport: "test", ..Endpoint::default() },
                ..ChannelParts::default()
            })
        };
        let channels = [0, 1].map(swallow);
        let reading = tokio::spawn(read_all(main_far));
        let connector = Several::new([main].into_iter().chain(channels));
        let ended = source.run(&connector).await;
        let error = assert_it_runs_here(ended, &diary);
        assert_eq!(error.blame(), Blame::Cancelled, "{error}");
        let taken = taken.load(Ordering::Relaxed);
        assert!(taken < RAM_BYTES / 2, "{compression:?}: {taken} bytes were still sent");
        reading.await.unwrap();
    }
}
