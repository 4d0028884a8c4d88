//! The safe types against a device: both ends in one process, over whatever RDMA device has these addresses.
//!
//! Where there is no RDMA device each test says that it is not applicable; `cargo xtask test` runs them in the lab. The
//! addresses are 10.55.0.1 and fd55::1, or those in `MIG_RDMA_TEST_ADDRS`, separated by commas.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails the test")]

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mig_transport::{Region, RegionSlice, VecRegion};
use mig_transport_rdma::{
    availability, devices,
    verbs::{
        Access, Buffer, CmEvent, CmEventKind, CmId, CompletionQueue, ConnectParameters,
        EventChannel, MemoryRegion, NotGivenBack, PostError, ProtectionDomain, QueueDepths,
        QueuePair, RemoteMemory, WorkCompletion, WorkKind, WorkStatus,
    },
};

/// Ten times what anything here takes under emulation.
const GUARD: Duration = Duration::from_secs(30);
const RESOLVE: Duration = Duration::from_secs(10);
const DEPTHS: QueueDepths = QueueDepths { send: 16, recv: 8 };
const MIB: usize = 1 << 20;

fn addresses() -> Vec<IpAddr> {
    std::env::var("MIG_RDMA_TEST_ADDRS")
        .unwrap_or_else(|_| "10.55.0.1,fd55::1".into())
        .split(',')
        .map(|address| address.parse().expect("an IP address"))
        .collect()
}

/// The device, for one test at a time: some count what all of them use. `None` where there is none.
async fn device() -> Option<tokio::sync::MutexGuard<'static, ()>> {
    static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let reason = match devices() {
        Ok(devices) if devices.is_empty() => "no RDMA device".to_owned(),
        Ok(_) => return Some(ONE_AT_A_TIME.lock().await),
        Err(error) => error.to_string(),
    };
    mig_testkit::not_applicable("rdma-device", &reason);
    None
}

/// One end of a connection with everything it needs. Dropped in this order; any other would do.
struct End {
    queue_pair: QueuePair,
    sends: CompletionQueue,
    recvs: CompletionQueue,
    domain: ProtectionDomain,
    id: CmId,
    channel: EventChannel,
}

impl End {
    fn new(id: CmId, channel: EventChannel) -> Self {
        let domain = ProtectionDomain::new(&id).unwrap();
        let sends = CompletionQueue::new(&id, 64).unwrap();
        let recvs = CompletionQueue::new(&id, 64).unwrap();
        let queue_pair = QueuePair::create(&id, &domain, &sends, &recvs, DEPTHS).unwrap();
        Self { queue_pair, sends, recvs, domain, id, channel }
    }

    async fn expect(&mut self, kind: CmEventKind) -> CmEvent {
        expect(&mut self.channel, self.id.key(), kind).await
    }
}

async fn guarded<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(GUARD, future).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

async fn expect(
    channel: &mut EventChannel,
    id: mig_transport_rdma::verbs::IdKey,
    kind: CmEventKind,
) -> CmEvent {
    let event = guarded(&format!("{kind}"), channel.event()).await.unwrap();
    assert_eq!(event.kind, kind, "{event:?}: {:?}", event.reason());
    assert_eq!(event.id, id, "{event:?}");
    event
}

async fn completion(queue: &mut CompletionQueue) -> WorkCompletion {
    let mut done = Vec::new();
    let count = guarded("a completion", queue.completions(&mut done)).await.unwrap();
    assert_eq!((count, done.len()), (1, 1), "{done:?}");
    done.remove(0)
}

/// A listener on a free port.
fn listener(address: IpAddr) -> (EventChannel, CmId, SocketAddr) {
    let channel = EventChannel::new().unwrap();
    let id = CmId::new(&channel).unwrap();
    id.set_reuse_address().unwrap();
    if address.is_ipv6() {
        id.set_ipv6_only().unwrap();
    }
    id.bind_addr(SocketAddr::new(address, 0)).unwrap();
    id.listen(5).unwrap();
    let at = id.local_addr().unwrap();
    assert_eq!(at.ip(), address);
    assert_ne!(at.port(), 0);
    (channel, id, at)
}

/// An end whose way to `to` is known.
async fn resolved(to: SocketAddr) -> End {
    let mut channel = EventChannel::new().unwrap();
    let id = CmId::new(&channel).unwrap();
    id.resolve_addr(to, RESOLVE).unwrap();
    expect(&mut channel, id.key(), CmEventKind::AddrResolved).await;
    id.resolve_route(RESOLVE).unwrap();
    expect(&mut channel, id.key(), CmEventKind::RouteResolved).await;
    assert_eq!(id.peer_addr(), Some(to));
    End::new(id, channel)
}

const REQUEST: &[u8] = b"version and flags, and more than eight bytes";
const ANSWER: &[u8] = b"the answer is longer than eight bytes too";

/// Two connected ends, each with `recvs` RECVs of 4 KiB posted.
async fn pair(address: IpAddr, recvs: usize) -> (End, End) {
    let (mut listening, listener, at) = listener(address);
    let mut source = resolved(at).await;
    post_recvs(&source, recvs).await;
    let parameters = ConnectParameters {
        private_data: REQUEST,
        responder_resources: 2,
        initiator_depth: 2,
        retry_count: 7,
        rnr_retry_count: 7,
    };
    source.id.connect(&parameters).unwrap();

    let request = expect(&mut listening, listener.key(), CmEventKind::ConnectRequest).await;
    assert!(request.private_data.starts_with(REQUEST), "{request:?}");
    assert!(request.private_data[REQUEST.len()..].iter().all(|&byte| byte == 0));
    let id = request.request.expect("a request brings an id");
    let own = EventChannel::new().unwrap();
    id.migrate(&own).unwrap();
    let mut destination = End::new(id, own);
    post_recvs(&destination, recvs).await;
    destination.id.accept(&ConnectParameters { private_data: ANSWER, ..parameters }).unwrap();
    // Both must look: fetching the answer is what makes the source's library confirm it.
    let (_, established) = tokio::join!(
        destination.expect(CmEventKind::Established),
        source.expect(CmEventKind::Established),
    );
    assert!(established.private_data.starts_with(ANSWER), "{established:?}");
    (source, destination)
}

async fn post_recvs(end: &End, count: usize) {
    let buffers = Buffer::allocate(&end.domain, count, 4096).await.unwrap();
    for (token, buffer) in (100..).zip(buffers) {
        end.queue_pair.post_recv(buffer, token).unwrap();
    }
}

#[tokio::test]
async fn the_doctor_sees_the_device() {
    let Some(_alone) = device().await else { return };
    availability().unwrap();
    let devices = devices().unwrap();
    println!("{devices:#?}");
    let gids: Vec<_> =
        devices.iter().flat_map(|device| &device.ports).flat_map(|port| &port.gids).collect();
    for address in addresses() {
        let wanted = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let gid = gids.iter().find(|gid| gid.address == wanted).expect("a GID for each address");
        assert!(gid.kind.is_some() && gid.interface.is_some(), "{gid:?}");
    }
}

#[tokio::test]
async fn messages_and_writes_arrive_over_each_family() {
    let Some(_alone) = device().await else { return };
    for address in addresses() {
        exchange(address).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_on_several_threads() {
    let Some(_alone) = device().await else { return };
    exchange(addresses()[0]).await;
}

async fn exchange(address: IpAddr) {
    let (mut source, mut destination) = pair(address, 2).await;
    let limits = source.id.limits().unwrap();
    println!("{address}: {limits:?}");
    assert!(limits.max_message_size as usize >= MIB);

    // A message.
    let mut buffer = Buffer::allocate(&source.domain, 1, 5000).await.unwrap().remove(0);
    buffer[..5].copy_from_slice(b"hello");
    source.queue_pair.post_send(buffer, 5, 1).unwrap();
    let received = completion(&mut destination.recvs).await;
    assert_eq!((received.kind, received.status), (WorkKind::Recv, WorkStatus::Success));
    assert_eq!((received.token, received.byte_len), (100, 5));
    assert_eq!(&received.buffer.unwrap()[..received.byte_len], b"hello");
    let sent = completion(&mut source.sends).await;
    assert_eq!((sent.kind, sent.status, sent.token), (WorkKind::Send, WorkStatus::Success, 1));
    assert_eq!(&sent.buffer.unwrap()[..5], b"hello");

    // A mebibyte into the middle of a region.
    let from: Arc<dyn Region> = VecRegion::zeroed(2 * MIB);
    let into: Arc<dyn Region> = VecRegion::zeroed(4 * MIB);
    let pattern: Vec<u8> = (0..MIB).map(|at| (at % 251) as u8).collect();
    from.copy_in_at(4096, &pattern).unwrap();
    let local = MemoryRegion::register(
        &source.domain,
        RegionSlice::whole(Arc::clone(&from)),
        Access::LocalRead,
    );
    let local = local.await.unwrap();
    let window = RegionSlice::new(Arc::clone(&into), MIB, 2 * MIB).unwrap();
    let remote =
        MemoryRegion::register(&destination.domain, window, Access::RemoteWrite).await.unwrap();
    let to = RemoteMemory { address: remote.remote_address() + 4096, key: remote.remote_key() };
    source.queue_pair.post_write(&local, 4096, MIB, to, 2).unwrap();
    // While it is under way the memory cannot be given back.
    let NotGivenBack::StillPosted(local) = local.deregister().await.unwrap_err() else {
        panic!("the device was asked while WRITEs were under way");
    };
    let written = completion(&mut source.sends).await;
    assert_eq!((written.kind, written.token), (WorkKind::Write, 2));
    assert!(written.status.is_success(), "{}", written.status);
    let mut seen = vec![0; MIB];
    into.copy_out_at(MIB + 4096, &mut seen).unwrap();
    assert!(seen == pattern);

    // Nothing to nowhere.
    source.queue_pair.post_probe(3).unwrap();
    assert!(completion(&mut source.sends).await.status.is_success());

    // Ranges that do not exist are refused here, before any device sees them.
    let refused = source.queue_pair.post_write(&local, 2 * MIB - 1, 2, to, 4).unwrap_err();
    assert!(matches!(refused, PostError::OutOfRange { .. }), "{refused}");
    let refused = destination.queue_pair.post_write(&local, 0, 1, to, 4).unwrap_err();
    assert!(matches!(refused, PostError::OtherDomain), "{refused}");

    local.deregister().await.unwrap();
    remote.deregister().await.unwrap();
    assert_eq!(Arc::strong_count(&from), 1);
    assert_eq!(Arc::strong_count(&into), 1);

    // The end: both disconnect, both are told.
    source.id.disconnect().unwrap();
    destination.expect(CmEventKind::Disconnected).await;
    destination.id.disconnect().unwrap();
    source.expect(CmEventKind::Disconnected).await;
    // RECVs that were never used come back flushed.
    let flushed = completion(&mut destination.recvs).await;
    assert_eq!((flushed.status, flushed.token), (WorkStatus::Flushed, 101));
    assert!(flushed.buffer.is_some());
}

#[tokio::test]
async fn a_write_after_the_memory_was_given_back_is_refused_by_the_device() {
    let Some(_alone) = device().await else { return };
    let (mut source, destination) = pair(addresses()[0], 1).await;
    let whole = |bytes| RegionSlice::whole(VecRegion::zeroed(bytes));
    let local = MemoryRegion::register(&source.domain, whole(4096), Access::LocalRead).await;
    let local = local.unwrap();
    let remote =
        MemoryRegion::register(&destination.domain, whole(4096), Access::RemoteWrite).await;
    let remote = remote.unwrap();
    let to = RemoteMemory { address: remote.remote_address(), key: remote.remote_key() };
    remote.deregister().await.unwrap();
    source.queue_pair.post_write(&local, 0, 4096, to, 1).unwrap();
    let refused = completion(&mut source.sends).await;
    println!("{}", refused.status);
    assert_eq!(refused.status, WorkStatus::RemoteAccess);
}

#[tokio::test]
async fn a_full_queue_gives_the_buffer_back() {
    let Some(_alone) = device().await else { return };
    let (mut source, mut destination) = pair(addresses()[0], 0).await;
    let more = Buffer::allocate(&source.domain, DEPTHS.recv as usize + 1, 64).await.unwrap();
    let mut refused = 0;
    for buffer in more {
        if let Err(error) = source.queue_pair.post_recv(buffer, 0) {
            assert!(matches!(error.reason, PostError::Full), "{error}");
            assert_eq!(error.buffer.len(), 64);
            refused += 1;
        }
    }
    assert_eq!(refused, 1);
    assert_eq!(source.queue_pair.posted_recvs(), DEPTHS.recv);
    // Probes fill the send queue; taking completions makes room again.
    let mut posted = 0;
    while source.queue_pair.send_room() > 0 {
        source.queue_pair.post_probe(posted).unwrap();
        posted += 1;
    }
    assert_eq!(posted, u64::from(DEPTHS.send));
    assert!(matches!(source.queue_pair.post_probe(posted), Err(PostError::Full)));
    let mut done = Vec::new();
    while (done.len() as u64) < posted {
        guarded("probes", source.sends.completions(&mut done)).await.unwrap();
    }
    assert!(done.iter().zip(0..).all(|(one, token)| one.token == token && one.status.is_success()));
    assert_eq!(source.queue_pair.send_room(), DEPTHS.send);
    // And an error flushes what is left.
    source.queue_pair.set_error().unwrap();
    let mut flushed = Vec::new();
    while flushed.len() < DEPTHS.recv as usize {
        guarded("the flush", source.recvs.completions(&mut flushed)).await.unwrap();
    }
    assert!(flushed.iter().all(|one| one.status == WorkStatus::Flushed));
    assert_eq!(destination.recvs.poll(&mut done).unwrap(), 0);
}

#[tokio::test]
async fn dropping_one_end_tells_the_other() {
    let Some(_alone) = device().await else { return };
    let (source, mut destination) = pair(addresses()[0], 2).await;
    drop(source);
    destination.expect(CmEventKind::Disconnected).await;
}

#[tokio::test]
async fn refusals_and_dead_ports_are_told_apart() {
    let Some(_alone) = device().await else { return };
    let (mut listening, listener, at) = listener(addresses()[0]);
    let mut source = resolved(at).await;
    source.id.connect(&ConnectParameters::default()).unwrap();
    let request = expect(&mut listening, listener.key(), CmEventKind::ConnectRequest).await;
    request.request.unwrap().reject(b"not you").unwrap();
    let rejected = source.expect(CmEventKind::Rejected).await;
    println!("{:?}", rejected.reason());
    assert!(rejected.private_data.starts_with(b"not you"), "{rejected:?}");

    // A request that nobody answers is refused by dropping it.
    let mut source = resolved(at).await;
    source.id.connect(&ConnectParameters::default()).unwrap();
    drop(expect(&mut listening, listener.key(), CmEventKind::ConnectRequest).await);
    println!("{:?}", source.expect(CmEventKind::Rejected).await.reason());

    drop((listener, listening));
    let mut source = resolved(at).await;
    source.id.connect(&ConnectParameters::default()).unwrap();
    let nobody = source.expect(CmEventKind::Rejected).await;
    assert!(nobody.reason().unwrap().contains("nobody listens"), "{:?}", nobody.reason());
}

/// Sends a message, then answers each that comes, `rounds` times.
async fn play(mut end: End, begins: bool, rounds: u64) -> End {
    let mut idle = Buffer::allocate(&end.domain, 2, 64).await.unwrap();
    if begins {
        end.queue_pair.post_send(idle.pop().unwrap(), 16, 0).unwrap();
    }
    let mut done = Vec::new();
    for round in 0..rounds {
        guarded("a message", end.recvs.completions(&mut done)).await.unwrap();
        let message = done.pop().unwrap();
        assert!(message.status.is_success() && done.is_empty(), "{}", message.status);
        end.queue_pair.post_recv(message.buffer.unwrap(), round).unwrap();
        while idle.is_empty() {
            guarded("a SEND", end.sends.completions(&mut done)).await.unwrap();
            idle.extend(done.drain(..).filter_map(|sent| sent.buffer));
        }
        end.queue_pair.post_send(idle.pop().unwrap(), 16, round).unwrap();
    }
    end
}

/// A lost wake-up would stop the game; each message is waited for with nothing else under way.
async fn ping_pong() {
    let (source, destination) = pair(addresses()[0], 2).await;
    let first = tokio::spawn(play(source, true, 1000));
    let second = tokio::spawn(play(destination, false, 1000));
    // An end that finished stays, so that the other's last message has somewhere to go.
    let (_first, _second) = (first.await.unwrap(), second.await.unwrap());
}

#[tokio::test]
async fn no_wake_up_is_lost() {
    let Some(_alone) = device().await else { return };
    ping_pong().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wake_up_is_lost_on_several_threads() {
    let Some(_alone) = device().await else { return };
    ping_pong().await;
}

/// Counts as memory; tells when it is let go of.
struct Watched(Arc<VecRegion>, Arc<AtomicBool>);

// SAFETY: as the region inside.
#[expect(unsafe_code, reason = "a region that tells of its end")]
unsafe impl Region for Watched {
    fn as_ptr(&self) -> std::ptr::NonNull<u8> {
        self.0.as_ptr()
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.1.store(true, Ordering::SeqCst);
    }
}

/// What the kernel counts of each kind of object on all devices: queue pairs, memory regions, …
fn objects() -> String {
    let output = std::process::Command::new("rdma").args(["resource", "show"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(" mr "), "{text}");
    text
}

#[tokio::test]
async fn registering_can_be_abandoned_at_any_moment() {
    let Some(_alone) = device().await else { return };
    let (source, _destination) = pair(addresses()[0], 0).await;
    let before = objects();
    let kept = RegionSlice::whole(VecRegion::zeroed(MIB));
    let kept = MemoryRegion::register(&source.domain, kept, Access::RemoteWrite).await.unwrap();
    assert_ne!(objects(), before, "the kernel counts memory regions");
    kept.deregister().await.unwrap();
    assert_eq!(objects(), before);
    let gone = Arc::new(AtomicBool::new(false));
    for polls in 0..3 {
        gone.store(false, Ordering::SeqCst);
        let watched = Watched(VecRegion::zeroed(64 * MIB), Arc::clone(&gone));
        let mut registering = Box::pin(MemoryRegion::register(
            &source.domain,
            RegionSlice::whole(Arc::new(watched)),
            Access::RemoteWrite,
        ));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        for _ in 0..polls {
            if registering.as_mut().poll(&mut cx).is_ready() {
                break;
            }
        }
        drop(registering);
        guarded("letting go of the memory", async {
            while !gone.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
    assert_eq!(objects(), before);
}

#[tokio::test]
async fn nothing_is_left_after_everything_was_dropped_in_the_middle() {
    let Some(_alone) = device().await else { return };
    let before = objects();
    let gone = Arc::new(AtomicBool::new(false));
    {
        let (source, destination) = pair(addresses()[0], 4).await;
        let watched = Watched(VecRegion::zeroed(8 * MIB), Arc::clone(&gone));
        let slice = RegionSlice::whole(Arc::new(watched));
        let local = MemoryRegion::register(&source.domain, slice, Access::LocalRead).await.unwrap();
        let into = RegionSlice::whole(VecRegion::zeroed(8 * MIB));
        let remote = MemoryRegion::register(&destination.domain, into, Access::RemoteWrite).await;
        let remote = remote.unwrap();
        let to = RemoteMemory { address: remote.remote_address(), key: remote.remote_key() };
        for token in 0..8 {
            let at = token as usize * MIB;
            let to = RemoteMemory { address: to.address + at as u64, ..to };
            source.queue_pair.post_write(&local, at, MIB, to, token).unwrap();
        }
        // The memory goes first, the queue pair with WRITEs under way later.
        drop(local);
        assert_ne!(objects(), before);
        assert!(!gone.load(Ordering::SeqCst), "WRITEs still read the memory");
        drop(destination);
        drop(remote);
        drop(source);
    }
    guarded("letting go of the memory", async {
        while !gone.load(Ordering::SeqCst) || objects() != before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
