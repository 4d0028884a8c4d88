//! The destination's hooks: a window is served until the source closes it. Every request is judged by [`Server`] first.

use std::{collections::HashMap, future::poll_fn, sync::Arc};

use async_trait::async_trait;
use mig_ram::{MAX_ZERO_PAGES, PAGE_SIZE, zero_pages};
use mig_transport::{
    Error, OutOfRegion, RamBlockInfo, RamHooks, Region, RegionSlice, Result, SavePages,
    WindowReason,
};

use crate::{
    counters::RdmaCounters,
    link::broken,
    memlock,
    options::RdmaOptions,
    protocol::{
        CHUNK_BYTES, Span,
        blocks::DestinationBlocks,
        message::Outgoing,
        private_data::Agreed,
        serve::{Action, Registration, Server, Slot},
    },
    receiving::ReceivingEnd,
    sending::{Shared, lock},
    source::Registered,
    verbs::{Access, ProtectionDomain},
};

/// Bytes made zero before others get a turn.
const ZERO_STEP: u64 = 16 << 20;

pub(crate) struct DestinationHooks {
    end: Shared<ReceivingEnd>,
    pd: ProtectionDomain,
    agreed: Agreed,
    memory: Vec<RamBlockInfo>,
    /// Until the first window.
    blocks: DestinationBlocks,
    server: Option<Server>,
    registered: HashMap<Slot, Registered>,
    /// The most bytes a source may have registered here at a time.
    limit: Option<u64>,
    counters: Arc<RdmaCounters>,
}

impl DestinationHooks {
    pub(crate) fn new(end: Shared<ReceivingEnd>, agreed: Agreed, options: &RdmaOptions) -> Self {
        let pd = lock(&end).link.pd().clone();
        Self {
            end,
            pd,
            agreed,
            memory: Vec::new(),
            blocks: DestinationBlocks::new(),
            server: None,
            registered: HashMap::new(),
            limit: options.pinned_memory,
            counters: Arc::clone(&options.counters),
        }
    }

    fn slice(&self, span: &Span) -> Result<RegionSlice> {
        let region = Arc::clone(&self.memory[span.block as usize].region);
        RegionSlice::new(region, span.offset as usize, span.len as usize).map_err(|_| {
            Error::Misuse { what: format!("rdma: block {} is shorter than it was", span.block) }
        })
    }

    async fn register(&mut self, slot: Slot, span: &Span) -> Result<u32> {
        let memory = self.slice(span)?;
        let now: u64 = self.registered.values().map(Registered::bytes).sum();
        if let Some(limit) = self.limit.filter(|limit| now + span.len > *limit) {
            return Err(Error::Unavailable {
                what: format!(
                    "rdma: the source wants {} bytes of guest memory registered here at a time, {limit} are allowed",
                    now + span.len
                ),
                remedy: "allow more pinned memory here, or less at the source (a QEMU in time wants all of it)".into(),
            });
        }
        let registered =
            Registered::new(&self.pd, memory, Access::RemoteWrite, &self.counters).await?;
        let key = registered.region.remote_key();
        self.registered.insert(slot, registered);
        // Nothing comes from the other end meanwhile, and all of a guest may be registered in a row.
        lock(&self.end).link.tell_life();
        Ok(key)
    }

    async fn respond(&self, response: Outgoing<'_>) -> Result<()> {
        poll_fn(|cx| lock(&self.end).poll_respond(cx, &response)).await
    }

    /// With pin-all everything is registered now.
    async fn reply_blocks(&mut self, server: &Server) -> Result<()> {
        let mut keys = Vec::new();
        let total = server.blocks().total_bytes();
        if !self.agreed.pin_all {
            memlock::check(total.min(CHUNK_BYTES), "a part of guest memory")?;
        }
        if self.agreed.pin_all {
            let limits = lock(&self.end).link.limits().clone();
            memlock::check_device(&limits, server.blocks().blocks().iter().map(|block| block.len))?;
            memlock::check(server.blocks().total_bytes(), "all guest memory (rdma-pin-all)")?;
            for (block, info) in (0..).zip(server.blocks().blocks()) {
                let span = Span { block, offset: 0, len: info.len };
                keys.push(self.register(Slot::Whole { block }, &span).await?);
            }
        }
        let blocks = server.blocks_result(&keys)?;
        self.respond(Outgoing::RamBlocksResult(&blocks)).await
    }

    async fn register_all(
        &mut self,
        server: &Server,
        registrations: &[Registration],
        repeat: u32,
    ) -> Result<()> {
        let mut first_key = None;
        for Registration { slot, span, exists } in registrations {
            let key = match self.registered.get(slot).filter(|_| *exists) {
                Some(registered) => registered.region.remote_key(),
                None => self.register(*slot, span).await?,
            };
            first_key.get_or_insert(key);
        }
        let (Some(first), Some(key)) = (registrations.first(), first_key) else {
            return Err(Error::Misuse { what: "rdma: a request to register nothing".into() });
        };
        self.respond(server.register_reply(first, key, repeat)).await
    }

    async fn unregister(&mut self, slots: &[Slot], repeat: u32) -> Result<()> {
        for slot in slots {
            if let Some(registered) = self.registered.remove(slot) {
                registered.deregister().await?;
            }
        }
        self.respond(Outgoing::UnregisterFinished { repeat }).await
    }

    /// Makes memory zero where it is not: what was never touched stays so.
    async fn zero(&self, span: &Span) -> Result<()> {
        self.counters.zeroed(span.len);
        let memory = self.slice(span)?;
        let region = &**memory.region();
        let out_of_region = |error: OutOfRegion| Error::Misuse {
            what: format!("rdma: making memory zero: {error}"),
        };
        let (mut at, end) = (span.offset, span.end());
        while at < end {
            let step = (end - at).min(ZERO_STEP);
            for (start, len) in touched(region, at as usize, step as usize) {
                zero_where_needed(region, start, len).map_err(out_of_region)?;
            }
            at += step;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn serve(&mut self, server: &mut Server) -> Result<()> {
        loop {
            let arrived = poll_fn(|cx| lock(&self.end).poll_command(cx)).await?;
            let Some(arrived) = arrived else {
                // As with every connection that is gone: nobody says that a rule was broken.
                return Err(broken(
                    "the source hung up inside a hook window; its own log has the reason".into(),
                ));
            };
            let action = server.serve(arrived.bytes())?;
            match &action {
                Action::ReplyBlocks => self.reply_blocks(server).await?,
                Action::Register { registrations, repeat } => {
                    self.register_all(server, registrations, *repeat).await?;
                }
                Action::Unregister { slots, repeat } => self.unregister(slots, *repeat).await?,
                Action::Zero(span) => self.zero(span).await?,
                Action::Finished => {}
            }
            lock(&self.end).done(arrived)?;
            if action == Action::Finished {
                return Ok(());
            }
        }
    }
}

#[async_trait]
impl RamHooks for DestinationHooks {
    fn report_life(&mut self, alive: Arc<dyn Fn() + Send + Sync>) {
        lock(&self.end).link.report_life(alive);
    }

    async fn register_block(&mut self, block: &RamBlockInfo) -> Result<()> {
        let address = block.region.as_ptr().addr().get() as u64;
        self.blocks.register(&block.idstr, block.used_length, address)?;
        self.memory.push(block.clone());
        Ok(())
    }

    async fn before_iterate(&mut self, _: WindowReason) -> Result<()> {
        Err(only_serves())
    }

    async fn save_pages(&mut self, _: usize, _: u64, _: u64) -> Result<SavePages> {
        Err(only_serves())
    }

    async fn after_iterate(&mut self, _: WindowReason) -> Result<()> {
        Err(only_serves())
    }

    async fn load_hook(&mut self) -> Result<()> {
        let mut server = match self.server.take() {
            Some(server) => server,
            None => {
                let blocks = std::mem::take(&mut self.blocks);
                Server::new(blocks, self.agreed.pin_all, CHUNK_BYTES)?
            }
        };
        let served = self.serve(&mut server).await;
        self.server = Some(server);
        served
    }

    async fn release(&mut self) -> Result<()> {
        for (_, registered) in self.registered.drain() {
            registered.deregister().await?;
        }
        lock(&self.end).link.farewell().complete();
        Ok(())
    }
}

/// The parts of a range that may hold something. The others need not even be read, which would cost a page fault each.
fn touched(region: &dyn Region, offset: usize, len: usize) -> Vec<(usize, usize)> {
    let (mut parts, end) = (Vec::new(), offset + len);
    let known = region.touched(offset, len, &mut |start, len| {
        let (start, end) = (start.max(offset), (start + len).min(end));
        parts.push((start, end.saturating_sub(start)));
    });
    if known { parts } else { vec![(offset, len)] }
}

/// Reads first: what is zero stays unwritten.
fn zero_where_needed(region: &dyn Region, start: usize, len: usize) -> Result<(), OutOfRegion> {
    const STEP: usize = MAX_ZERO_PAGES * PAGE_SIZE;
    for at in (start..start + len).step_by(STEP) {
        let len = (start + len - at).min(STEP);
        let whole = len / PAGE_SIZE;
        let zero = zero_pages(region, at, whole)?;
        for number in (0..whole).filter(|number| zero >> number & 1 == 0) {
            region.zero_at(at + number * PAGE_SIZE, PAGE_SIZE)?;
        }
        // QEMU sends whole pages; anything else is as legal.
        region.zero_at(at + whole * PAGE_SIZE, len % PAGE_SIZE)?;
    }
    Ok(())
}

fn only_serves() -> Error {
    Error::Misuse { what: "rdma: the destination sends no pages".into() }
}
