//! The source's hooks: pages by RDMA WRITE, in the order [`Transfer`] says.
//!
//! ```text
//!   register_block …  before(Setup)   how much must be locked is known: checked
//!   after(Setup)      RAM_BLOCKS_REQUEST ▶ ◀ RESULT   REGISTER_FINISHED ▶      with pin-all both ends register meanwhile
//!   save_pages        zero test ─▶ Transfer ─▶ WRITE, COMPRESS, REGISTER
//!   after(…)          all WRITEs complete   REGISTER_FINISHED ▶
//! ```

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
};

use async_trait::async_trait;
use mig_ram::{MAX_ZERO_PAGES, PAGE_SIZE, zero_pages};
use mig_transport::{Error, RamBlockInfo, RamHooks, RegionSlice, Result, SavePages, WindowReason};

use crate::{
    counters::RdmaCounters,
    link::Arrived,
    memlock,
    options::RdmaOptions,
    protocol::{
        CHUNK_BYTES, Span,
        blocks::SourceBlocks,
        message::{Message, Outgoing},
        private_data::Agreed,
        runs::{MAX_OFFER_PAGES, Policy},
        transfer::{Step, Transfer},
        windows::{Config, WindowId},
    },
    sending::{SendingEnd, Shared, lock},
    verbs::{Access, DeviceLimits, MemoryRegion, NotGivenBack, ProtectionDomain, RemoteMemory},
};

/// Bytes offered to the transfer at a time.
const OFFER_BYTES: u64 = MAX_OFFER_PAGES * PAGE_SIZE as u64;

/// Bytes that may wait while more is looked for.
const AHEAD: u64 = 128 << 20;

pub(crate) struct SourceHooks {
    end: Shared<SendingEnd>,
    pd: ProtectionDomain,
    agreed: Agreed,
    config: Config,
    /// The budget comes from the limit on locked memory.
    default_budget: bool,
    limits: DeviceLimits,
    memory: Vec<RamBlockInfo>,
    /// Until the exchange.
    blocks: SourceBlocks,
    transfer: Option<Transfer>,
    /// Bytes of pages taken over.
    offered: u64,
    /// Nothing but zeros came last, so memory may never have been touched: reading it would fault page by page.
    untouched_ahead: bool,
    local: HashMap<WindowId, Registered>,
    counters: Arc<RdmaCounters>,
}

/// Registered memory, counted for as long as it is.
pub(crate) struct Registered {
    pub(crate) region: MemoryRegion,
    counted: Counted,
}

struct Counted {
    bytes: u64,
    counters: Arc<RdmaCounters>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counters.deregistered(self.bytes);
    }
}

impl Registered {
    pub(crate) fn bytes(&self) -> u64 {
        self.counted.bytes
    }

    /// # Cancel safety
    ///
    /// Cancel safe: a registration that is under way is undone when it is done.
    pub(crate) async fn new(
        pd: &ProtectionDomain,
        memory: RegionSlice,
        access: Access,
        counters: &Arc<RdmaCounters>,
    ) -> Result<Self> {
        let bytes = memory.len() as u64;
        let region = MemoryRegion::register(pd, memory, access).await.map_err(|error| {
            if error.is_out_of_memory() {
                memlock::too_little(
                    bytes.saturating_add(memlock::pinned_now()),
                    "a part of guest memory and what is locked already",
                )
            } else if error.raw_os_error() == Some(libc::EFAULT) {
                Error::Unavailable {
                    what: "rdma: guest memory cannot be pinned while the dirty log write-protects it, on a kernel before 6.2"
                        .into(),
                    remedy: "use rdma-pin-all, a pinned-memory budget as large as the guest, or a newer kernel".into(),
                }
            } else {
                error.into()
            }
        })?;
        counters.registered(bytes);
        let counted = Counted { bytes, counters: Arc::clone(counters) };
        Ok(Self { region, counted })
    }

    /// # Cancel safety
    ///
    /// Cancel safe: it is given back all the same.
    pub(crate) async fn deregister(self) -> Result<()> {
        let Self { region, counted } = self;
        let done = region.deregister().await;
        drop(counted);
        done.map_err(|error| match error {
            NotGivenBack::StillPosted(_) => {
                Error::Misuse { what: "rdma: memory is given back while WRITEs read it".into() }
            }
            NotGivenBack::Refused(error) => {
                let doing = format!("giving registered guest memory back (rdma, {})", error.call);
                Error::io(doing, error.source)
            }
        })
    }
}

/// What cannot be done while the end is locked.
enum Pause {
    Register {
        window: WindowId,
        span: Span,
    },
    Drop {
        window: WindowId,
    },
    /// Nothing more can be done now.
    Done,
}

impl SourceHooks {
    pub(crate) fn new(end: Shared<SendingEnd>, agreed: Agreed, options: &RdmaOptions) -> Self {
        let (pd, limits) = {
            let end = lock(&end);
            (end.link.pd().clone(), end.link.limits().clone())
        };
        let config = Config {
            window_bytes: options.window_bytes,
            pinned_budget: options.pinned_memory.unwrap_or_else(memlock::default_budget),
        };
        Self {
            end,
            pd,
            agreed,
            config,
            default_budget: options.pinned_memory.is_none(),
            limits,
            memory: Vec::new(),
            blocks: SourceBlocks::new(),
            transfer: None,
            offered: 0,
            untouched_ahead: false,
            local: HashMap::new(),
            counters: Arc::clone(&options.counters),
        }
    }

    /// Says what would have to be locked before anything is.
    fn check_memory(&self) -> Result<()> {
        let total = total_bytes(&self.memory);
        if self.agreed.pin_all {
            let lens = self.memory.iter().map(|block| block.used_length);
            memlock::check_device(&self.limits, lens)?;
            return memlock::check(total, "all guest memory (rdma-pin-all)");
        }
        if self.default_budget && self.config.pinned_budget < 2 * CHUNK_BYTES {
            let least = 2 * CHUNK_BYTES + memlock::RESERVE;
            return Err(memlock::too_little(least, "two windows of guest memory"));
        }
        let window = self.config.effective_window()?;
        memlock::check_device(&self.limits, [window].into_iter())?;
        memlock::check(self.config.pinned_budget.min(total), "the pinned-memory budget")
    }

    fn slice(&self, span: &Span) -> Result<RegionSlice> {
        let block = &self.memory[span.block as usize];
        let place = (usize::try_from(span.offset), usize::try_from(span.len));
        let (Ok(offset), Ok(len)) = place else { return Err(no_such(span)) };
        RegionSlice::new(Arc::clone(&block.region), offset, len).map_err(|_| no_such(span))
    }

    async fn register(&mut self, window: WindowId, span: &Span) -> Result<()> {
        let memory = self.slice(span)?;
        let registered =
            Registered::new(&self.pd, memory, Access::LocalRead, &self.counters).await?;
        self.local.insert(window, registered);
        // Nothing comes from the other end meanwhile, and all of a guest may be registered in a row.
        lock(&self.end).link.tell_life();
        Ok(())
    }

    /// Kernels before 6.2 pin memory for reading as if it were written. That fails where a dirty log write-protects it, so
    /// what fits the budget is registered before the log begins: after the exchange of blocks (docs/wire/rdma.md §7). It is
    /// not done without need, since untouched memory becomes allocated by it.
    fn must_register_early(&self, total: u64) -> bool {
        pins_by_writing() && total <= self.config.pinned_budget
    }

    /// RAM_BLOCKS_REQUEST and its answer; with pin-all both ends register everything at the same time.
    async fn exchange(&mut self) -> Result<()> {
        poll_fn(|cx| lock(&self.end).poll_send_message(cx, &Outgoing::RamBlocksRequest)).await?;
        if self.agreed.pin_all {
            let lens = self.memory.iter().map(|block| block.used_length);
            let spans: Vec<Span> =
                (0..).zip(lens).map(|(block, len)| Span { block, offset: 0, len }).collect();
            for span in spans {
                self.register(WindowId { block: span.block, index: 0 }, &span).await?;
            }
        }
        let arrived = poll_fn(|cx| -> Poll<Result<Arrived>> {
            let mut end = lock(&self.end);
            loop {
                if let Some(arrived) = end.responses.pop_front() {
                    return Poll::Ready(Ok(arrived));
                }
                ready!(end.poll_progress(cx))?;
            }
        })
        .await?;
        let mut blocks = std::mem::take(&mut self.blocks);
        match Message::decode(arrived.bytes())? {
            Message::RamBlocksResult(result) => blocks.accept_result(&result)?,
            other => return Err(unexpected(&other)),
        }
        lock(&self.end).repost(arrived)?;
        let policy = Policy {
            max_write: Policy::default().max_write.min(u64::from(self.limits.max_message_size)),
            ..Policy::default()
        };
        let mut transfer = Transfer::new(blocks, self.agreed, self.config, policy)?;
        if !self.agreed.pin_all && self.must_register_early(total_bytes(&self.memory)) {
            for window in transfer.windows().all().collect::<Vec<_>>() {
                self.register(window, &transfer.windows().span(window)).await?;
            }
        }
        if !self.local.is_empty() {
            transfer.pinned_here()?;
        }
        self.transfer = Some(transfer);
        Ok(())
    }

    /// Carries out what was offered: with `flush` until all of it is done, else until little enough waits for the other
    /// end. Whoever offers pages is held back by this.
    async fn drive(&mut self, flush: bool) -> Result<()> {
        loop {
            match poll_fn(|cx| self.poll_steps(cx, flush)).await? {
                Pause::Register { window, span } => self.register(window, &span).await?,
                Pause::Drop { window } => {
                    if let Some(registered) = self.local.remove(&window) {
                        registered.deregister().await?;
                    }
                }
                Pause::Done => return Ok(()),
            }
        }
    }

    fn poll_steps(&mut self, cx: &mut Context<'_>, flush: bool) -> Poll<Result<Pause>> {
        let Some(transfer) = &mut self.transfer else { return Poll::Ready(Err(too_early())) };
        let mut end = lock(&self.end);
        loop {
            while let Some(arrived) = end.responses.pop_front() {
                transfer.response(&Message::decode(arrived.bytes())?)?;
                end.repost(arrived)?;
            }
            for token in std::mem::take(&mut end.link.written) {
                transfer.write_done(window_of(token))?;
            }
            // Looked for each time: a throttled source fills the queue with WRITEs for nobody before it waits for one.
            let over = end.link.look_for_end(cx)?;
            if over || !end.link.has_spare() || !end.link.has_write_room() {
                ready!(end.poll_progress(cx))?;
                continue;
            }
            match transfer.poll(&mut end.rule, flush)? {
                Step::Send(message) => {
                    if let Outgoing::Compress(compress) = &message {
                        self.counters.zeroed(compress.length);
                    }
                    end.post(&message)?;
                }
                Step::Write { window, span, remote_addr, rkey } => {
                    let registered = self.local.get(&window).ok_or_else(too_early)?;
                    let start = transfer.windows().span(window).offset;
                    let (offset, len) = ((span.offset - start) as usize, span.len as usize);
                    let to = RemoteMemory { address: remote_addr, key: rkey };
                    tracing::trace!(link = end.link.name(), ?window, ?span, "writing");
                    let token = token_of(window);
                    end.link.queue_pair().post_write(&registered.region, offset, len, to, token)?;
                    end.link.wrote();
                    self.counters.wrote(span.len);
                }
                Step::RegisterLocal { window, span } => {
                    return Poll::Ready(Ok(Pause::Register { window, span }));
                }
                Step::DropLocal { window } => return Poll::Ready(Ok(Pause::Drop { window })),
                // What comes next may be looked for while the other end works.
                Step::Wait { .. } if !flush && self.offered - sent_bytes(transfer) <= AHEAD => {
                    match end.poll_progress(cx) {
                        Poll::Ready(progress) => progress?,
                        Poll::Pending => return Poll::Ready(Ok(Pause::Done)),
                    }
                }
                Step::Idle if !flush || transfer.drained() => return Poll::Ready(Ok(Pause::Done)),
                Step::Wait { .. } | Step::Idle => ready!(end.poll_progress(cx))?,
            }
        }
    }
}

#[async_trait]
impl RamHooks for SourceHooks {
    fn report_life(&mut self, alive: Arc<dyn Fn() + Send + Sync>) {
        lock(&self.end).link.report_life(alive);
    }

    async fn register_block(&mut self, block: &RamBlockInfo) -> Result<()> {
        self.blocks.register(&block.idstr, block.used_length)?;
        self.memory.push(block.clone());
        Ok(())
    }

    async fn before_iterate(&mut self, reason: WindowReason) -> Result<()> {
        match reason {
            WindowReason::Setup => self.check_memory(),
            _ if self.transfer.is_none() => Err(too_early()),
            _ => Ok(()),
        }
    }

    async fn save_pages(&mut self, block: usize, offset: u64, len: u64) -> Result<SavePages> {
        let Some(info) = self.memory.get(block) else {
            let what = format!("rdma: pages of block {block}, which was not registered");
            return Err(Error::Misuse { what });
        };
        let region = Arc::clone(&info.region);
        let block = u32::try_from(block).unwrap_or(u32::MAX);
        let mut zero = 0;
        let (mut at, end) = (offset, offset.saturating_add(len));
        while at < end {
            let run = Span { block, offset: at, len: (end - at).min(OFFER_BYTES) };
            if self.untouched_ahead {
                region.expect_reads(run.offset as usize, run.len as usize);
            }
            let masks = zeros(&*region, &run).map_err(|_| no_such(&run))?;
            let zeros = masks.iter().map(|mask| u64::from(mask.count_ones())).sum::<u64>();
            zero += zeros;
            self.untouched_ahead = zeros == run.len / PAGE_SIZE as u64;
            if !self.transfer.as_ref().ok_or_else(too_early)?.has_room() {
                self.drive(true).await?;
            }
            let transfer = self.transfer.as_mut().ok_or_else(too_early)?;
            transfer.offer(run, PAGE_SIZE as u64, masks)?;
            self.offered += run.len;
            self.drive(false).await?;
            at += run.len;
        }
        Ok(SavePages::Delayed { zero_pages: zero })
    }

    async fn after_iterate(&mut self, reason: WindowReason) -> Result<()> {
        match reason {
            WindowReason::Setup => self.exchange().await?,
            _ => self.drive(true).await?,
        }
        poll_fn(|cx| lock(&self.end).poll_send_message(cx, &Outgoing::RegisterFinished)).await
    }

    async fn load_hook(&mut self) -> Result<()> {
        Err(Error::Misuse { what: "rdma: the source serves no hook window".into() })
    }
}

/// Bytes of pages written or said to be zero.
fn sent_bytes(transfer: &Transfer) -> u64 {
    let counters = transfer.counters();
    counters.written_bytes + counters.compressed_bytes
}

fn total_bytes(memory: &[RamBlockInfo]) -> u64 {
    memory.iter().map(|block| block.used_length).sum()
}

fn pins_by_writing() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (6, 2),
        _ => false,
    }
}

/// Which pages of a run are zero, 64 to a word.
fn zeros(
    region: &dyn mig_transport::Region,
    run: &Span,
) -> std::result::Result<Vec<u64>, mig_transport::OutOfRegion> {
    let (offset, pages) = (run.offset as usize, run.len as usize / PAGE_SIZE);
    (0..pages)
        .step_by(MAX_ZERO_PAGES)
        .map(|page| {
            zero_pages(region, offset + page * PAGE_SIZE, (pages - page).min(MAX_ZERO_PAGES))
        })
        .collect()
}

fn token_of(window: WindowId) -> u64 {
    u64::from(window.block) << 32 | u64::from(window.index)
}

fn window_of(token: u64) -> WindowId {
    WindowId { block: (token >> 32) as u32, index: token as u32 }
}

fn no_such(span: &Span) -> Error {
    let Span { block, offset, len } = span;
    Error::Misuse { what: format!("rdma: {len} bytes at {offset:#x} are not in block {block}") }
}

fn too_early() -> Error {
    Error::Misuse { what: "rdma: pages are offered before the block exchange".into() }
}

fn unexpected(message: &Message<'_>) -> Error {
    Error::PeerMisbehaved {
        what: format!("the other end answered RAM_BLOCKS_REQUEST with {}", message.kind()),
    }
}
