//! A guest that writes when it is told: between two passes, or while its pages are on their way.
//!
//! Nothing here depends on how fast anything is. The dirty log is the script's own, so that every write is known.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use mig_ram::{
    BlockInfo, DirtyBitmap, DirtyLogInfo, GuestMemory, PAGE_SIZE, RamBlock, RamBlocks, Result,
};
use mig_transport::{Channel, ChannelParts, Gather, SendHalf, Sender};
use tokio::io::AsyncWrite;

use crate::support::{Diary, Half, whole};

/// Pages of the two blocks.
pub(crate) const PAGES: [usize; 2] = [96, 16];

type Script = dyn Fn(&Writes, u64) + Send + Sync;

/// Memory, what was written of it, and by what script.
pub(crate) struct Writes {
    pub(crate) ram: Arc<RamBlocks>,
    /// That of the guest, which writes nothing once it is stopped.
    pub(crate) diary: Diary,
    dirty: [DirtyBitmap; 2],
    round: AtomicU64,
    /// Called with the number of the pass that ends, counted from 1, before its dirt is told.
    between: Box<Script>,
    /// Called whenever the channel takes bytes and the guest runs, with the number of the pass that is being sent.
    meanwhile: Option<Box<Script>>,
}

impl Writes {
    pub(crate) fn new(
        between: impl Fn(&Self, u64) + Send + Sync + 'static,
        meanwhile: Option<Box<Script>>,
    ) -> Arc<Self> {
        Self::with_pages(PAGES, between, meanwhile)
    }

    /// The same with blocks of so many pages.
    pub(crate) fn with_pages(
        pages: [usize; 2],
        between: impl Fn(&Self, u64) + Send + Sync + 'static,
        meanwhile: Option<Box<Script>>,
    ) -> Arc<Self> {
        let blocks = pages.map(|pages| (pages * PAGE_SIZE) as u64);
        let [main, other] = ["test.ram", "test.rom"].map(str::to_owned);
        let blocks = [(main, blocks[0]), (other, blocks[1])];
        let ram = RamBlocks::new(blocks.map(|(name, len)| RamBlock::new(name, len).unwrap()));
        Arc::new(Self {
            ram: Arc::new(ram.unwrap()),
            diary: Diary::default(),
            dirty: pages.map(DirtyBitmap::new),
            round: AtomicU64::new(1),
            between: Box::new(between),
            meanwhile,
        })
    }

    /// The guest writes.
    pub(crate) fn write(&self, block: usize, page: usize, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= PAGE_SIZE);
        let memory = whole(&self.ram, block);
        memory.sub(page * PAGE_SIZE + at, bytes.len()).unwrap().copy_in(bytes);
        self.dirty[block].set(page);
    }

    fn meddle(&self) {
        if let Some(meanwhile) = &self.meanwhile
            && !self.diary.has("stop")
        {
            meanwhile(self, self.round.load(Ordering::Relaxed));
        }
    }

    /// The guest writes what is there already.
    pub(crate) fn rewrite(&self, block: usize, page: usize) {
        self.dirty[block].set(page);
    }
}

impl GuestMemory for Writes {
    fn block_count(&self) -> usize {
        self.ram.block_count()
    }

    fn block(&self, index: usize) -> Option<BlockInfo> {
        self.ram.block(index)
    }

    fn start_dirty_log(&self) -> Result<DirtyLogInfo> {
        Ok(DirtyLogInfo {
            mechanism: "script".into(),
            kernel_writes: true,
            passed_over: Vec::new(),
        })
    }

    fn sync_dirty(&self, index: usize, into: &DirtyBitmap) -> Result<u64> {
        if index == 0 {
            let round = self.round.load(Ordering::Relaxed);
            (self.between)(self, round);
            self.round.store(round + 1, Ordering::Relaxed);
        }
        Ok(into.absorb(&self.dirty[index]))
    }

    fn stop_dirty_log(&self) -> Result<()> {
        Ok(())
    }
}

/// The channel, with the guest writing while it is written to.
pub(crate) fn meddled(mut channel: Channel, writes: &Arc<Writes>) -> Channel {
    let (receiver, sender) = (channel.take_receiver().unwrap(), channel.take_sender().unwrap());
    Channel::new(ChannelParts {
        receive: Some(Box::new(Half(receiver))),
        send: Some(Box::new(Meddled { half: Half(sender), writes: Arc::clone(writes) })),
        capabilities: channel.capabilities(),
        ..ChannelParts::default()
    })
}

struct Meddled {
    half: Half<Sender>,
    writes: Arc<Writes>,
}

impl AsyncWrite for Meddled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.half).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.half).poll_shutdown(cx)
    }
}

impl SendHalf for Meddled {
    fn poll_send(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        gather: &mut Gather,
    ) -> Poll<io::Result<usize>> {
        self.writes.meddle();
        self.half.0.poll_send(cx, gather)
    }
}
