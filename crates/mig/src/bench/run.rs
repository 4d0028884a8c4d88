//! One run: two threads, a guest, a comparison.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use mig_engine::{Capabilities, Destination, MigrationHandle, Outcome, Parameters, Source};
use mig_ram::{BlockOptions, GuestMemory, HugePages, PlacementOptions, RamBlock, RamBlocks};
use mig_transport::{Blame, Connector, Listener, MigrationAddress, RegionSlice};
use mig_transport_fd::{Descriptor, FdConnector, FdEnds, FdListener};

use super::{
    guest::{SyntheticGuest, Workload},
    meeting::{Ends, Meeting, Transport},
    report::{Registration, RunReport, RunStatus},
};
use crate::transports::{ConnectOptions, ListenOptions, connector, listener};

/// Bytes compared at a time.
const COMPARE_BYTES: usize = 1 << 20;

/// How long the destination may take to listen.
const LISTEN: Duration = Duration::from_secs(30);

/// How long what a run left behind may take to end.
const LEAVING: Duration = Duration::from_secs(10);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Whether the destination's memory was touched before the clock starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Memory {
    /// Untouched: giving it out counts.
    #[default]
    Cold,
    /// Touched before.
    Warm,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct RunPlan {
    /// Over what.
    pub transport: Transport,
    /// Bytes of guest memory; rounded up to whole pages.
    pub ram_bytes: u64,
    /// What the guest does.
    pub workload: Workload,
    /// Cold or warm.
    pub memory: Memory,
    /// With TLS on every channel, by certificates that are made for this run; where [`Transport::can_have_tls`].
    pub tls: bool,
    /// What the source is told to do differently; the destination is told of `multifd`. The return path is what the transport
    /// has.
    pub capabilities: Capabilities,
    /// Of both ends.
    pub parameters: Parameters,
    /// How the destination places pages.
    pub placing: PlacementOptions,
    /// `rdma:` register all memory up front.
    pub rdma_pin_all: bool,
    /// `rdma:` the most bytes of memory registered at a time at each end; `None` leaves it to the transport.
    pub rdma_pinned_memory: Option<u64>,
}

/// Both ends' handles, to watch or cancel a run.
#[derive(Clone, Debug)]
pub struct Handles {
    /// The source.
    pub source: MigrationHandle,
    /// The destination.
    pub destination: MigrationHandle,
}

impl Handles {
    /// Stops the run.
    pub fn cancel(&self) {
        self.source.cancel();
        self.destination.cancel();
    }
}

/// What one end's thread brings home.
struct End {
    outcome: Result<Outcome, mig_engine::Error>,
    seconds: f64,
    cpu_seconds: f64,
}

/// Runs it, blocking the calling thread. `started` gets the handles as soon as they exist.
///
/// Everything that can go wrong is in the report.
pub fn run(plan: &RunPlan, started: impl FnOnce(Handles)) -> RunReport {
    let mut report = RunReport {
        transport: plan.transport.scheme().to_owned(),
        uri: String::new(),
        channels: 1,
        status: RunStatus::Failed,
        reason: None,
        verified: false,
        confirmed: false,
        warm: plan.memory == Memory::Warm,
        tls: plan.tls,
        ram_bytes: plan.ram_bytes,
        wire_bytes: 0,
        seconds: 0.0,
        throughput_bytes_per_sec: 0.0,
        source_cpu_seconds: 0.0,
        destination_cpu_seconds: 0.0,
        rounds: 0,
        normal_pages: 0,
        zero_pages: 0,
        downtime_ms: 0.0,
        downtime_limit_ms: plan.parameters.downtime_limit,
        dirty_tracking: None,
        placement: None,
        registration: None,
        multifd: None,
    };
    if let Err(failure) = measure(plan, started, &mut report) {
        let (status, reason) = explain(&*failure);
        report.status = status;
        report.reason = Some(reason);
    }
    report
}

fn explain(failure: &(dyn std::error::Error + 'static)) -> (RunStatus, String) {
    let blame = failure
        .downcast_ref::<mig_engine::Error>()
        .map(mig_engine::Error::blame)
        .or_else(|| failure.downcast_ref::<mig_transport::Error>().map(mig_transport::Error::blame))
        .or_else(|| failure.downcast_ref::<mig_ram::Error>().map(mig_ram::Error::blame));
    let status = match blame {
        Some(Blame::Unavailable) => RunStatus::Unavailable,
        Some(Blame::Cancelled) => RunStatus::Cancelled,
        _ => RunStatus::Failed,
    };
    let mut reason = failure.to_string();
    let mut cause = failure.source();
    while let Some(error) = cause {
        reason = format!("{reason}: {error}");
        cause = error.source();
    }
    (status, reason)
}

fn measure(
    plan: &RunPlan,
    started: impl FnOnce(Handles),
    report: &mut RunReport,
) -> Result<(), Failure> {
    let meeting = Meeting::arrange(&plan.transport)?;
    let (source_ram, destination_ram) = (guest_ram(plan)?, guest_ram(plan)?);
    let region = |ram: &RamBlocks| ram.block(0).expect("one block was made").region;
    if plan.memory == Memory::Warm {
        touch(&RegionSlice::whole(region(&destination_ram)));
    }
    let guest = SyntheticGuest::running(region(&source_ram), plan.workload);
    let mut capabilities = plan.capabilities;
    capabilities.return_path = meeting.return_path;
    let mut source = Source::new(Arc::clone(&source_ram) as _, Box::new(guest))
        .with_capabilities(capabilities)
        .with_parameters(plan.parameters.clone());
    let incoming = SyntheticGuest::incoming(region(&destination_ram));
    let mut destination = Destination::new(Arc::clone(&destination_ram) as _, Box::new(incoming))
        .with_capabilities(capabilities)
        .with_parameters(plan.parameters.clone())
        .with_placing(plan.placing);
    let handles = Handles { source: source.handle(), destination: destination.handle() };
    started(handles.clone());

    let options = options(plan, &meeting)?;
    let met = meet(meeting, &options, &mut source, &mut destination, &handles, report);
    report.registration = registration(plan, &options);
    let (sent, received) = met?;
    report.seconds = sent.seconds;
    report.source_cpu_seconds = sent.cpu_seconds;
    // Pages may be placed by a thread of the placer's own.
    let placing = destination.placement().map(|placement| placement.statistics().copying_cpu);
    report.destination_cpu_seconds =
        received.cpu_seconds + placing.unwrap_or_default().as_secs_f64();
    // So are data channels.
    let lanes = |handle: &MigrationHandle| handle.info().multifd_cpu_seconds.unwrap_or_default();
    report.source_cpu_seconds += lanes(&handles.source);
    report.destination_cpu_seconds += lanes(&handles.destination);
    let outcome = match (sent.outcome, received.outcome) {
        (Ok(outcome), Ok(_)) => outcome,
        (Err(error), Err(other)) => return Err(Box::new(root_cause(error, other))),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => return Err(Box::new(error)),
    };
    let ram = &outcome.info.ram;
    report.wire_bytes = ram.transferred;
    report.rounds = ram.dirty_sync_count;
    report.normal_pages = ram.normal;
    report.zero_pages = ram.duplicate;
    report.confirmed = outcome.confirmed;
    if let Some(multifd) = outcome.info.multifd {
        report.channels = u32::try_from(multifd.channels).unwrap_or(u32::MAX);
        report.multifd = Some(multifd);
    }
    report.downtime_ms = outcome.info.downtime.unwrap_or_default();
    if report.seconds > 0.0 {
        report.throughput_bytes_per_sec = report.wire_bytes as f64 / report.seconds;
    }
    verify(
        &RegionSlice::whole(region(&source_ram)),
        &RegionSlice::whole(region(&destination_ram)),
    )?;
    report.verified = true;
    report.status = RunStatus::Completed;
    Ok(())
}

/// Of two failures the one that explains the other: a peer that went away is the echo of what made it go.
fn root_cause(source: mig_engine::Error, destination: mig_engine::Error) -> mig_engine::Error {
    let echo =
        matches!(source.blame(), Blame::Io | Blame::PeerIncompatible | Blame::PeerMisbehaved);
    let cause = !matches!(destination.blame(), Blame::Io | Blame::PeerMisbehaved);
    if echo && cause { destination } else { source }
}

fn guest_ram(plan: &RunPlan) -> Result<Arc<RamBlocks>, Failure> {
    let options = BlockOptions { huge_pages: HugePages::Never, ..BlockOptions::default() };
    let bytes = plan.ram_bytes.next_multiple_of(4096).max(4096);
    Ok(Arc::new(RamBlocks::new([RamBlock::with_options("synthetic.ram", bytes, &options)?])?))
}

fn touch(ram: &RegionSlice) {
    for offset in (0..ram.len()).step_by(4096) {
        ram.sub(offset, 1).expect("within the region").copy_in(&[0]);
    }
}

/// What both ends are told beside the address.
fn options(plan: &RunPlan, meeting: &Meeting) -> Result<(ListenOptions, ConnectOptions), Failure> {
    let (mut listen, mut connect) = (ListenOptions::default(), ConnectOptions::default());
    // Only for transports where both ends must agree; the others have it or not.
    (listen.return_path, connect.return_path) = (meeting.return_path, meeting.return_path);
    (listen.rdma_pinned_memory, connect.rdma_pinned_memory) =
        (plan.rdma_pinned_memory, plan.rdma_pinned_memory);
    connect.rdma_pin_all = plan.rdma_pin_all;
    if plan.tls {
        secure(&mut listen, &mut connect)?;
    }
    Ok((listen, connect))
}

/// Certificates of an authority that is forgotten right away.
#[cfg(feature = "tls")]
fn secure(listen: &mut ListenOptions, connect: &mut ConnectOptions) -> Result<(), Failure> {
    use mig_transport_tls::{ClientCredentials, ServerCredentials, trial};

    use crate::tls_end::{ConnectTls, ListenTls};

    let folder = tempfile::Builder::new().prefix("mig-bench-").tempdir()?;
    trial::make(folder.path(), &[], true)?;
    listen.tls = Some(ListenTls::new(ServerCredentials::x509(folder.path(), true)?));
    let mut tls = ConnectTls::new(ClientCredentials::x509(folder.path())?);
    // Whatever the address is.
    tls.hostname = Some("localhost".into());
    connect.tls = Some(tls);
    Ok(())
}

#[cfg(not(feature = "tls"))]
fn secure(_listen: &mut ListenOptions, _connect: &mut ConnectOptions) -> Result<(), Failure> {
    Err(Box::new(mig_transport::Error::Unavailable {
        what: "TLS is not built into this program".into(),
        remedy: "build it with the cargo feature \"tls\"".into(),
    }))
}

/// What a transport with registered memory counted.
#[cfg(feature = "rdma")]
fn registration(
    plan: &RunPlan,
    (listen, connect): &(ListenOptions, ConnectOptions),
) -> Option<Registration> {
    let (source, destination) = (&connect.rdma_counters, &listen.rdma_counters);
    (plan.transport.scheme() == "rdma").then(|| Registration {
        rdma_pin_all: plan.rdma_pin_all,
        source_registered_bytes: source.registered_peak_bytes(),
        destination_registered_bytes: destination.registered_peak_bytes(),
        control_round_trips: source.round_trips() + destination.round_trips(),
    })
}

#[cfg(not(feature = "rdma"))]
fn registration(
    _plan: &RunPlan,
    _options: &(ListenOptions, ConnectOptions),
) -> Option<Registration> {
    None
}

/// Lets both ends meet; fails only if they never did.
fn meet(
    meeting: Meeting,
    options: &(ListenOptions, ConnectOptions),
    source: &mut Source,
    destination: &mut Destination,
    handles: &Handles,
    report: &mut RunReport,
) -> Result<(End, End), Failure> {
    let one_after_the_other = meeting.one_after_the_other;
    let (listen, connect) = match meeting.ends {
        Ends::Connected { source: out, destination: into } => {
            let into = FdEnds::One(Descriptor::from_owned(into, "bench")?);
            let out = FdEnds::One(Descriptor::from_owned(out, "bench")?);
            let (listening, connecting) = (FdListener::new(into)?, FdConnector::new(out)?);
            return together(
                |said| destination_end(destination, said, async { Ok(Box::new(listening) as _) }),
                |_| source_end(source, Ok(Box::new(connecting) as _)),
                handles,
            );
        }
        Ends::Addresses { ref listen, ref connect } => (listen.clone(), connect.clone()),
    };
    let (listen_options, connect_options) = options;
    let listen = MigrationAddress::parse(&listen)?;
    let listening = async { listener(&listen, listen_options).await };
    if one_after_the_other {
        report.uri = listen.to_string();
        let sent = source_end(source, connector(&listen, connect_options))?;
        if sent.outcome.is_err() {
            return Err(sent.outcome.map_or_else(Box::new, |_| unreachable!("it failed")) as _);
        }
        let (said, _listening) = mpsc::channel();
        let received = destination_end(destination, said, listening)?;
        let sent = End { seconds: sent.seconds + received.seconds, ..sent };
        return Ok((sent, received));
    }
    let mut uri = String::new();
    let met = together(
        |said| destination_end(destination, said, listening),
        |bound| {
            let at = connect.or_else(|| bound.into_iter().next()).unwrap_or_default();
            uri = at.clone();
            let at = MigrationAddress::parse(&at)?;
            source_end(source, connector(&at, connect_options))
        },
        handles,
    );
    report.uri = uri;
    met
}

/// The destination on a thread of its own, the source on this one's child, as soon as the destination listens.
fn together<D, S>(receive: D, send: S, handles: &Handles) -> Result<(End, End), Failure>
where
    D: FnOnce(mpsc::Sender<Vec<String>>) -> Result<End, Failure> + Send,
    S: FnOnce(Vec<String>) -> Result<End, Failure> + Send,
{
    let (said, listening) = mpsc::channel();
    thread::scope(|scope| {
        let receiving = scope.spawn(move || receive(said));
        let bound = match listening.recv_timeout(LISTEN) {
            Ok(bound) => bound,
            Err(_) => {
                handles.cancel();
                join(receiving)?;
                return Err("the destination did not come to listen".into());
            }
        };
        let sent = join(scope.spawn(move || send(bound)));
        if sent.as_ref().map_or(true, |end| end.outcome.is_err()) {
            // Nobody will ever come, or come again.
            handles.destination.cancel();
        }
        let received = join(receiving);
        Ok((sent?, received?))
    })
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T, Failure>>) -> Result<T, Failure> {
    thread.join().map_err(|_| Failure::from("a thread of the benchmark panicked"))?
}

fn destination_end(
    destination: &mut Destination,
    said: mpsc::Sender<Vec<String>>,
    listening: impl Future<Output = mig_transport::Result<Box<dyn Listener>>>,
) -> Result<End, Failure> {
    on_runtime(async {
        let mut listener = listening.await?;
        // The other end only goes away together with this one.
        let _gone = said.send(listener.local_addresses());
        Ok(destination.run(&mut *listener).await)
    })
}

fn source_end(
    source: &mut Source,
    connector: mig_transport::Result<Box<dyn Connector>>,
) -> Result<End, Failure> {
    let connector = connector?;
    on_runtime(async { Ok(source.run(&*connector).await) })
}

fn on_runtime(
    job: impl Future<Output = Result<Result<Outcome, mig_engine::Error>, Failure>>,
) -> Result<End, Failure> {
    // Work that blocks (registering memory, writing files) is done by threads of the runtime, which count too.
    let helped = Arc::new(AtomicU64::new(0));
    let helper = Arc::clone(&helped);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_stop(move || {
            let nanos = u64::try_from(thread_cpu().as_nanos()).unwrap_or(u64::MAX);
            helper.fetch_add(nanos, Ordering::Relaxed);
        })
        .build()?;
    let before = thread_cpu();
    let outcome = runtime.block_on(job);
    let own = thread_cpu() - before;
    // Waits for what was abandoned, with a bound: it may hang in the operating system.
    runtime.shutdown_timeout(LEAVING);
    let outcome = outcome?;
    let seconds = outcome.as_ref().map_or(0.0, |outcome| outcome.total.as_secs_f64());
    let cpu = own + Duration::from_nanos(helped.load(Ordering::Relaxed));
    Ok(End { outcome, seconds, cpu_seconds: cpu.as_secs_f64() })
}

/// CPU time of this thread, system calls included.
fn thread_cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn verify(source: &RegionSlice, destination: &RegionSlice) -> Result<(), Failure> {
    let (mut here, mut there) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    for offset in (0..source.len()).step_by(COMPARE_BYTES) {
        let len = COMPARE_BYTES.min(source.len() - offset);
        source.sub(offset, len)?.copy_out(&mut here[..len]);
        destination.sub(offset, len)?.copy_out(&mut there[..len]);
        if here[..len] != there[..len] {
            let at = here.iter().zip(&there).position(|(a, b)| a != b).unwrap_or(0);
            return Err(format!("guest memory differs from byte {:#x} on", offset + at).into());
        }
    }
    Ok(())
}
