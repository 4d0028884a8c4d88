//! A transport that carries pages itself, without hardware: what RDMA looks like to everything above it.
//!
//! ```text
//!   source's hooks                            destination's hooks
//!     after_iterate(SETUP) ◀─── blocks ─────── load_hook
//!     save_pages, after_iterate ◀── READY ──── load_hook
//!                          ════ bytes ═══════▶ the other end's memory, when the window closes
//!                          ──── FINISHED ────▶ load_hook returns
//! ```
//!
//! The source waits in every window until the destination serves it, and the destination until the source closes it
//! (docs/wire/rdma.md §4, §6). Whoever goes away takes its memory along: the other end's next call fails. Every call is
//! noted, and can be made to hang or to fail.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use mig_transport::{
    Channel, Error, RamBlockInfo, RamHooks, RegionSlice, Result, SavePages, WindowReason,
};
use tokio::sync::mpsc;

use crate::memory::{named, stream_parts};

const PAGE: usize = 4096;

/// What a call does instead of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It never returns.
    Hang,
    /// It fails, as a link would.
    Fail,
}

/// Watches and disturbs a [`direct_pair`].
#[derive(Clone, Default)]
pub struct DirectRam(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    calls: Vec<String>,
    fault: Option<(String, Fault)>,
    declined: Vec<usize>,
    saved: Vec<(usize, u64, u64)>,
}

impl DirectRam {
    /// Every call so far, in order: `source register pc.ram`, `source before Setup`, `source save`, `source after Round`,
    /// `destination load` and so on, and `source dropped`. Neighbours that are alike are noted once.
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// Notes something else between the calls.
    pub fn note(&self, what: impl Into<String>) {
        let what = what.into();
        let mut state = self.state();
        if state.calls.last() != Some(&what) {
            state.calls.push(what);
        }
    }

    /// From now on the call noted as `call` does this instead.
    pub fn disturb(&self, call: impl Into<String>, fault: Fault) {
        self.state().fault = Some((call.into(), fault));
    }

    /// Pages of the block with this index are to go in the stream.
    pub fn decline(&self, block: usize) {
        self.state().declined.push(block);
    }

    /// The runs that were taken over: block, offset, length.
    pub fn saved(&self) -> Vec<(usize, u64, u64)> {
        self.state().saved.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each call leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Cancel safety
    ///
    /// Cancel safe.
    async fn call(&self, what: String) -> Result<()> {
        let fault = self.state().fault.clone().filter(|(call, _)| *call == what);
        self.note(what.as_str());
        match fault {
            Some((_, Fault::Hang)) => std::future::pending().await,
            Some((_, Fault::Fail)) => {
                Err(Error::io(what, std::io::ErrorKind::ConnectionReset.into()))
            }
            None => Ok(()),
        }
    }
}

/// Two ends of a connection in memory, as [`memory_pair`](crate::memory_pair), whose hooks write into the memory of the
/// second. With `return_path` the second can answer.
pub fn direct_pair(buffer_bytes: usize, return_path: bool) -> (Channel, Channel, DirectRam) {
    let control = DirectRam::default();
    let (to_destination, from_source) = mpsc::unbounded_channel();
    let (to_source, from_destination) = mpsc::unbounded_channel();
    let source = SourceHooks {
        control: control.clone(),
        blocks: Vec::new(),
        far: Vec::new(),
        delayed: Vec::new(),
        served: false,
        out: to_destination,
        back: from_destination,
    };
    let destination = DestinationHooks {
        control: control.clone(),
        blocks: Vec::new(),
        lent: Arc::default(),
        alive: None,
        first: true,
        out: to_source,
        back: from_source,
    };
    let (there, from_first) = tokio::io::duplex(buffer_bytes);
    let (back, from_second) = match return_path {
        true => {
            let (back, from_second) = tokio::io::duplex(buffer_bytes);
            (Some(back), Some(from_second))
        }
        false => (None, None),
    };
    let mut first = stream_parts(from_second, Some(there), named("first", "second"));
    let mut second = stream_parts(Some(from_first), back, named("second", "first"));
    first.hooks = Some(Box::new(source));
    second.hooks = Some(Box::new(destination));
    for parts in [&mut first, &mut second] {
        parts.capabilities.direct_ram_writes = true;
        parts.capabilities.several_channels = false;
    }
    (Channel::new(first), Channel::new(second), control)
}

/// Memory that is lent until it is taken back.
type Lent = Arc<Mutex<Option<Vec<RamBlockInfo>>>>;

enum FromDestination {
    Ready,
    Blocks(Lent),
}

enum FromSource {
    Life,
    Finished,
}

struct SourceHooks {
    control: DirectRam,
    blocks: Vec<RamBlockInfo>,
    far: Vec<Lent>,
    delayed: Vec<(usize, usize, usize)>,
    served: bool,
    out: mpsc::UnboundedSender<FromSource>,
    back: mpsc::UnboundedReceiver<FromDestination>,
}

impl SourceHooks {
    /// # Cancel safety
    ///
    /// Not cancel safe: a message may be lost.
    async fn hear(&mut self) -> Result<FromDestination> {
        self.back.recv().await.ok_or_else(|| gone("the destination"))
    }

    /// Waits until the destination serves the window.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe.
    async fn served(&mut self) -> Result<()> {
        while !self.served {
            match self.hear().await? {
                FromDestination::Ready => self.served = true,
                FromDestination::Blocks(lent) => self.far.push(lent),
            }
        }
        Ok(())
    }

    fn tell(&self, what: FromSource) -> Result<()> {
        self.out.send(what).map_err(|_| gone("the destination"))
    }

    fn write(&self, block: usize, offset: usize, len: usize) -> Result<()> {
        let near = RegionSlice::new(Arc::clone(&self.blocks[block].region), offset, len)
            .expect("runs lie in their block");
        let mut bytes = vec![0; len];
        near.copy_out(&mut bytes);
        let far = self.far.first().expect("the setup window closed");
        let far = far.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(far) = &*far else { return Err(gone("the destination's memory")) };
        RegionSlice::new(Arc::clone(&far[block].region), offset, len)
            .expect("blocks are alike")
            .copy_in(&bytes);
        Ok(())
    }
}

#[async_trait]
impl RamHooks for SourceHooks {
    async fn register_block(&mut self, block: &RamBlockInfo) -> Result<()> {
        self.control.call(format!("source register {}", block.idstr)).await?;
        self.blocks.push(block.clone());
        Ok(())
    }

    async fn before_iterate(&mut self, reason: WindowReason) -> Result<()> {
        self.served = false;
        self.control.call(format!("source before {reason:?}")).await
    }

    async fn save_pages(&mut self, block: usize, offset: u64, len: u64) -> Result<SavePages> {
        self.control.call("source save".into()).await?;
        assert_eq!((offset % PAGE as u64, len % PAGE as u64), (0, 0), "whole pages");
        assert!(
            len > 0 && offset + len <= self.blocks[block].used_length,
            "a run lies in its block"
        );
        if self.control.state().declined.contains(&block) {
            return Ok(SavePages::NotSupported);
        }
        self.served().await?;
        self.tell(FromSource::Life)?;
        self.control.state().saved.push((block, offset, len));
        let [offset, len] = [offset, len].map(|it| usize::try_from(it).expect("64 bits"));
        self.delayed.push((block, offset, len));
        let mut page = vec![0; PAGE];
        let mut zero_pages = 0;
        for at in (offset..offset + len).step_by(PAGE) {
            let slice = RegionSlice::new(Arc::clone(&self.blocks[block].region), at, PAGE);
            slice.expect("runs lie in their block").copy_out(&mut page);
            zero_pages += u64::from(page.iter().all(|byte| *byte == 0));
        }
        Ok(SavePages::Delayed { zero_pages })
    }

    async fn after_iterate(&mut self, reason: WindowReason) -> Result<()> {
        self.control.call(format!("source after {reason:?}")).await?;
        self.served().await?;
        if reason == WindowReason::Setup {
            let far = self.far.first().expect("blocks come before READY");
            let lengths = |blocks: &[RamBlockInfo]| {
                blocks.iter().map(|block| block.used_length).collect::<Vec<_>>()
            };
            let far = far.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(far) = &*far else { return Err(gone("the destination's memory")) };
            assert_eq!(lengths(&self.blocks), lengths(far), "both ends list the same blocks");
        }
        for (block, offset, len) in std::mem::take(&mut self.delayed) {
            self.write(block, offset, len)?;
        }
        self.tell(FromSource::Finished)
    }

    async fn load_hook(&mut self) -> Result<()> {
        panic!("the source loads nothing")
    }
}

impl Drop for SourceHooks {
    fn drop(&mut self) {
        self.control.note("source dropped");
    }
}

struct DestinationHooks {
    control: DirectRam,
    blocks: Vec<RamBlockInfo>,
    lent: Lent,
    alive: Option<Arc<dyn Fn() + Send + Sync>>,
    first: bool,
    out: mpsc::UnboundedSender<FromDestination>,
    back: mpsc::UnboundedReceiver<FromSource>,
}

impl DestinationHooks {
    fn tell(&self, what: FromDestination) -> Result<()> {
        self.out.send(what).map_err(|_| gone("the source"))
    }

    fn take_back(&self) {
        *self.lent.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[async_trait]
impl RamHooks for DestinationHooks {
    fn report_life(&mut self, alive: Arc<dyn Fn() + Send + Sync>) {
        self.alive = Some(alive);
    }

    async fn register_block(&mut self, block: &RamBlockInfo) -> Result<()> {
        self.control.call(format!("destination register {}", block.idstr)).await?;
        self.blocks.push(block.clone());
        Ok(())
    }

    async fn before_iterate(&mut self, _reason: WindowReason) -> Result<()> {
        panic!("the destination opens no window")
    }

    async fn save_pages(&mut self, _block: usize, _offset: u64, _len: u64) -> Result<SavePages> {
        panic!("the destination saves nothing")
    }

    async fn after_iterate(&mut self, _reason: WindowReason) -> Result<()> {
        panic!("the destination closes no window")
    }

    async fn load_hook(&mut self) -> Result<()> {
        self.control.call("destination load".into()).await?;
        if std::mem::take(&mut self.first) {
            let blocks = std::mem::take(&mut self.blocks);
            *self.lent.lock().unwrap_or_else(PoisonError::into_inner) = Some(blocks);
            self.tell(FromDestination::Blocks(Arc::clone(&self.lent)))?;
        }
        self.tell(FromDestination::Ready)?;
        loop {
            match self.back.recv().await {
                Some(FromSource::Finished) => return Ok(()),
                Some(FromSource::Life) => {
                    if let Some(alive) = &self.alive {
                        alive();
                    }
                }
                None => return Err(gone("the source")),
            }
        }
    }

    async fn release(&mut self) -> Result<()> {
        self.control.call("destination release".into()).await?;
        self.take_back();
        Ok(())
    }
}

impl Drop for DestinationHooks {
    fn drop(&mut self) {
        self.take_back();
        self.control.note("destination dropped");
    }
}

fn gone(who: &str) -> Error {
    Error::io(format!("{who} is gone"), std::io::ErrorKind::ConnectionReset.into())
}
