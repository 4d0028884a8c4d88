//! The source's data channels.
//!
//! ```text
//!   the source ── Pass ──▶ every lane takes packets until nothing is left ──▶ idle
//!              ── Sync ──▶ every lane sends SYNC                          ──▶ idle      (then the mark, on main)
//!              ── End ───▶ every lane ends its direction                  ──▶ gone
//! ```
//!
//! The source orders and waits; an order is never given while another is under way. Whatever fails in a lane is the
//! answer to whoever waits, at once: the other lanes are not waited for.

mod beside;
mod channel;

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use mig_compress::{Observed, judge};
use mig_proto::{
    RamWord,
    multifd::{Dialect, SyncMode, ZeroPages},
};
use mig_stream::{IdleClock, Stream, StreamCounters, StreamOptions, StreamWriter};
use mig_transport::Connector;
use tokio::sync::{mpsc, watch};

pub(crate) use self::beside::{Beside, Main};
use self::channel::serve;
use super::{
    info::{CompressionInfo, MultifdInfo},
    lane::{Lane, processors},
    packer::{Packing, Spent},
};
use crate::{
    error::{Error, Result},
    handle::Shared,
    parameters::ZeroPageDetection,
    source::pages::Pages,
};

/// What all lanes of a source share.
pub(super) struct Common {
    pub(super) migration: Arc<Shared>,
    pub(super) pages: Arc<Pages>,
    pub(super) zeros: ZeroPageDetection,
    pub(super) packing: Packing,
    pub(super) uuid: [u8; 16],
    /// Nanoseconds of processor time of all lanes.
    cpu: AtomicU64,
    /// What compressing cost all channels.
    spent: Mutex<Spent>,
    /// Packets sent on all channels, SYNC included.
    packets: AtomicU64,
    /// No lane takes anything more.
    held: AtomicBool,
    /// The guest stands still: the rate is for others.
    urgent: AtomicBool,
    /// A lane has failed.
    failed: watch::Sender<bool>,
}

impl Common {
    pub(super) fn next_packet(&self) -> u64 {
        self.packets.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn add_cpu(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.cpu.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn add_spent(&self, spent: &Spent) {
        self.spent.lock().unwrap_or_else(PoisonError::into_inner).add(spent);
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    pub(super) fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed)
    }
}

/// What the lanes are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Send what is unsent.
    Pass,
    /// Send SYNC.
    Sync,
    /// Send nothing more.
    End,
}

/// See the module.
struct SendChannels {
    lanes: Vec<SendLane>,
    common: Arc<Common>,
    options: StreamOptions,
    /// One entry for each order that a lane carried out.
    done: mpsc::UnboundedReceiver<()>,
    tell: mpsc::UnboundedSender<()>,
    /// Lanes that have not carried out the last order.
    busy: usize,
    /// That was to send pages.
    passing: bool,
    /// Why there are so many, where nobody said how many.
    chosen: Option<String>,
}

struct SendLane {
    lane: Lane<()>,
    /// One order at most: the next is given when all lanes have done the last.
    orders: mpsc::Sender<Order>,
    counters: Arc<StreamCounters>,
    name: String,
}

impl SendChannels {
    /// As many as the parameters say can be [opened](Self::open); none is yet. `uuid` is that of the guest.
    fn new(
        migration: &Arc<Shared>,
        pages: &Arc<Pages>,
        dialect: Dialect,
        uuid: Option<[u8; 16]>,
        idle: Option<Arc<IdleClock>>,
    ) -> Result<Self> {
        let parameters = migration.parameters();
        if parameters.multifd_channels == 0 {
            return Err(Error::misuse(
                "multifd with 0 channels: at least one must carry the pages",
            ));
        }
        let zeros = match (parameters.zero_page_detection, dialect.zero_pages) {
            // An older destination does not know zero pages in packets.
            (ZeroPageDetection::Multifd, ZeroPages::OnMain) => ZeroPageDetection::Legacy,
            (asked, _) => asked,
        };
        let packing = Packing::chosen(&parameters, pages)?;
        let mut options = StreamOptions::default().limiter(Arc::clone(&migration.limiter));
        if let Some(idle) = &idle {
            // Main goes on saying that a section ends and another begins, whatever becomes of these.
            options = options.idle(IdleClock::part_of(idle));
        }
        let common = Arc::new(Common {
            migration: Arc::clone(migration),
            pages: Arc::clone(pages),
            zeros,
            packing,
            uuid: uuid.unwrap_or_default(),
            cpu: AtomicU64::new(0),
            spent: Mutex::default(),
            packets: AtomicU64::new(0),
            held: AtomicBool::new(false),
            urgent: AtomicBool::new(false),
            failed: watch::Sender::new(false),
        });
        let (tell, done) = mpsc::unbounded_channel();
        Ok(Self {
            lanes: Vec::new(),
            common,
            options,
            done,
            tell,
            busy: 0,
            passing: false,
            chosen: None,
        })
    }

    /// Opens one more. It takes part in the pass that is under way.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the connection is closed.
    async fn open(&mut self, connector: &dyn Connector) -> Result<()> {
        let id = u8::try_from(self.lanes.len())
            .map_err(|_| Error::misuse("more than 256 data channels"))?;
        let connected = connector.connect().await;
        let channel = connected.map_err(|error| {
            Error::of_connecting(error).noting(format!("while data channel {id} was opened"))
        })?;
        let mut stream = Stream::open(channel, self.options.clone());
        let name = format!("data channel {id}, {}", stream.endpoint());
        let counters = stream.counters();
        let out = stream.writer()?;
        let (orders, ordered) = mpsc::channel(1);
        let (common, tell) = (Arc::clone(&self.common), self.tell.clone());
        let serve = move || async move {
            let served = serve(id, stream, out, Arc::clone(&common), ordered, tell).await;
            if served.is_err() {
                common.failed.send_replace(true);
            }
            served
        };
        let lane = Lane::spawn(format!("mig-send-{id}"), &self.common.migration, serve)?;
        if self.passing && self.busy > 0 {
            // There is room for its first order.
            let _gone = orders.try_send(Order::Pass);
            self.busy += 1;
        }
        self.lanes.push(SendLane { lane, orders, counters, name });
        Ok(())
    }

    /// How many there are.
    fn len(&self) -> usize {
        self.lanes.len()
    }

    /// Processor time that their threads took.
    fn cpu(&self) -> Duration {
        Duration::from_nanos(self.common.cpu.load(Ordering::Relaxed))
    }

    /// Notes why there are so many.
    fn chosen(&mut self, why: String) {
        self.chosen = Some(why);
    }

    /// Bytes that all of them have sent.
    fn bytes_out(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.counters.bytes_out()).sum()
    }

    /// What is to be reported about them now.
    fn info(&self) -> MultifdInfo {
        MultifdInfo {
            channels: self.lanes.len(),
            channels_chosen: self.chosen.clone(),
            compression: self.compression(),
        }
    }

    fn compression(&self) -> Option<CompressionInfo> {
        let method = self.common.packing.compression().ok()??;
        let spent = *self.common.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let channels = u32::try_from(self.lanes.len()).unwrap_or(u32::MAX);
        let processors = processors();
        let observed = Observed {
            method,
            level: self.common.packing.level,
            bytes_in: spent.bytes_in,
            bytes_out: spent.bytes_out,
            compress_seconds: spent.compressing.as_secs_f64(),
            wait_seconds: spent.waiting.as_secs_f64(),
            channels,
            processors: u32::try_from(processors).unwrap_or(u32::MAX),
        };
        Some(CompressionInfo::new(&observed, &judge(&observed)))
    }

    /// Whether every order was carried out.
    fn is_idle(&self) -> bool {
        self.busy == 0
    }

    /// Lets the lanes send what is unsent. While `urgent`, the rate does not hold them up.
    fn begin_pass(&mut self, urgent: bool) {
        self.common.held.store(false, Ordering::Relaxed);
        self.common.urgent.store(urgent, Ordering::Relaxed);
        self.order(Order::Pass);
    }

    /// Lets the lanes stop where they are, before everything is sent.
    fn hold(&self) {
        self.common.held.store(true, Ordering::Relaxed);
    }

    /// Sends SYNC on every channel: what was sent before is in place at the destination before anything that is sent
    /// after. On return the channels have taken it.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: drop the channels.
    async fn sync(&mut self) -> Result<()> {
        self.order(Order::Sync);
        self.settled().await
    }

    /// [`sync`](Self::sync), and its mark on the main channel where that is a record of its own
    /// (docs/wire/ram.md §9.5).
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: drop the channels.
    async fn mark(&mut self, mode: SyncMode, main: &mut StreamWriter) -> Result<()> {
        self.sync().await?;
        self.common.migration.zero_copy.watch();
        if mode == SyncMode::PerRound {
            main.write_all(&RamWord::MULTIFD_FLUSH.to_be_bytes()).await?;
        }
        Ok(())
    }

    /// Ends every channel in its orderly way.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: drop the channels.
    async fn end(&mut self) -> Result<()> {
        self.order(Order::End);
        self.settled().await?;
        self.common.migration.zero_copy.watch();
        self.common.migration.statistics.multifd_bytes.set(self.bytes_out());
        let info = self.info();
        if let Some(compression) = &info.compression {
            tracing::info!(
                method = compression.method,
                level = compression.level,
                "{}",
                compression.verdict
            );
        }
        self.common.migration.tell_multifd(info);
        Ok(())
    }

    /// Waits until every lane is idle. That the wait ends is each lane's business: its channel keeps the deadline on
    /// silence.
    ///
    /// # Errors
    ///
    /// The first failure of any lane, idle ones included.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    async fn settled(&mut self) -> Result<()> {
        while self.busy > 0 {
            self.next().await?;
        }
        Ok(())
    }

    fn order(&mut self, order: Order) {
        debug_assert_eq!(self.busy, 0, "{order:?} while another order is carried out");
        self.passing = order == Order::Pass;
        for lane in &mut self.lanes {
            // There is room, for the last one was carried out; or the lane is gone, which its result tells.
            let _gone = lane.orders.try_send(order);
        }
        self.busy = self.lanes.len();
    }

    /// Waits for a lane to carry out its order, or for any of them to fail.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    async fn next(&mut self) -> Result<()> {
        poll_fn(|cx| match self.poll_failure(cx) {
            Poll::Ready(error) => Poll::Ready(Err(error)),
            Poll::Pending => self.done.poll_recv(cx).map(|id| id.ok_or_else(Error::cancelled)),
        })
        .await?;
        self.busy -= 1;
        Ok(())
    }

    /// Tells, once, that a lane has failed: for whoever waits for something else, on main. [`failure`](Self::failure)
    /// has the reason.
    fn alarm(&self) -> watch::Receiver<bool> {
        self.common.failed.subscribe()
    }

    /// Waits for a lane to fail; answers why.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    async fn failure(&mut self) -> Error {
        poll_fn(|cx| self.poll_failure(cx)).await
    }

    fn poll_failure(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        for lane in &mut self.lanes {
            if let Poll::Ready(ended) = lane.lane.poll_result(cx) {
                let error = match ended {
                    Ok(()) => Error::misuse("a data channel ended by itself"),
                    Err(error) => error,
                };
                return Poll::Ready(error.on(lane.name.as_str()));
            }
        }
        Poll::Pending
    }
}

impl Drop for SendChannels {
    fn drop(&mut self) {
        // A lane whose channel is always ready looks up between two packets only.
        self.hold();
        self.lanes.iter_mut().for_each(|lane| lane.lane.end());
    }
}
