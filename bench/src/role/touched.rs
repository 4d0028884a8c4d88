//! A source whose guest touches every page again and again, with XBZRLE: how many deltas a second of its processor time
//! makes.
//!
//! ```text
//!   pass 1: whole pages ─▶ pass 2: into the cache ─▶ deltas, one for every page: begun ─▶ the window ─▶ cancelled
//! ```
//!
//! A guest whose writes are tracked is slower than a source, and a pass of a few pages would cost the look at all of memory. So
//! a pass waits, asleep, until every page was touched since the last one ended: all passes are of the whole working set, as
//! QEMU's are, whose guest is the faster one there.

use std::{
    process,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use mig_engine::{Capabilities, MigrationHandle, MigrationInfo, Parameters, Source};
use mig_proto::state::MigrationStatus;
use mig_ram::{BlockInfo, DirtyBitmap, DirtyLogInfo, GuestMemory, RamBlocks};
use mig_transport::Blame;
use serde::{Deserialize, Serialize};

use super::{
    Go, Ready, Touch, cpu, hear,
    meeting::connector,
    on_runtime, say,
    touching_guest::{BURST, Progress, THREAD, TouchingGuest},
};
use crate::{
    child::{STEP, TRANSFER, thread_seconds},
    failure::Result,
    memory::{guest_ram, whole},
};

/// How often the counters are looked at while nothing is measured.
const TICK: Duration = Duration::from_millis(10);

/// What to send.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TouchedRole {
    pub(crate) touch: Touch,
    /// How long is measured.
    pub(crate) window: Duration,
}

/// What the window was like.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct TouchedResult {
    pub(crate) seconds: f64,
    /// Of everything but the guest.
    pub(crate) cpu_seconds: f64,
    /// Pages that went as deltas, and the bytes of their records.
    pub(crate) deltas: u64,
    pub(crate) delta_bytes: u64,
    /// Pages that went as they are.
    pub(crate) whole_pages: u64,
    /// Passes that began.
    pub(crate) passes: u64,
}

pub(super) fn live(role: &TouchedRole) -> Result<()> {
    let ram = guest_ram(role.touch.ram_bytes)?;
    let guest = TouchingGuest::running(&whole(&ram), role.touch)?;
    let pages = u64::from(role.touch.pages);
    let memory = Arc::new(Awaited { ram, guest: guest.progress(), pages });
    say(&Ready { address: None })?;
    let go: Go = hear()?;
    let connector = connector(&go.address, false, None)?;
    let mut capabilities = Capabilities::default();
    capabilities.xbzrle = true;
    let mut parameters = Parameters::default();
    parameters.xbzrle_cache_size = role.touch.ram_bytes;
    // It is not to end before it is told to.
    parameters.downtime_limit = 0;
    let mut source = Source::new(memory, Box::new(guest))
        .with_capabilities(capabilities)
        .with_parameters(parameters);
    let (handle, watched) = (source.handle(), role.clone());
    let watcher = thread::spawn(move || {
        let seen = watch(&handle, &watched);
        handle.cancel();
        seen
    });
    let ended = on_runtime(async { Ok(source.run(&*connector).await) })?;
    let seen = watcher.join().map_err(|_panicked| "the watcher broke down")?;
    match ended {
        Err(error) if error.blame() == Blame::Cancelled => {}
        Err(error) => return Err(error.into()),
        Ok(_) => return Err("the guest stood still: the migration came to its end".into()),
    }
    say(&seen?)
}

/// Guest memory whose dirty log is read only when every page was touched since it was asked for.
struct Awaited {
    ram: RamBlocks,
    guest: Progress,
    pages: u64,
}

impl GuestMemory for Awaited {
    fn block_count(&self) -> usize {
        self.ram.block_count()
    }

    fn block(&self, index: usize) -> Option<BlockInfo> {
        self.ram.block(index)
    }

    fn start_dirty_log(&self) -> mig_ram::Result<DirtyLogInfo> {
        self.ram.start_dirty_log()
    }

    fn sync_dirty(&self, index: usize, into: &DirtyBitmap) -> mig_ram::Result<u64> {
        let (due, deadline) =
            (self.guest.written() + self.pages + 2 * BURST as u64, Instant::now() + STEP);
        while self.guest.written() < due && self.guest.is_running() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        self.ram.sync_dirty(index, into)
    }

    fn stop_dirty_log(&self) -> mig_ram::Result<()> {
        self.ram.stop_dirty_log()
    }

    fn mark_touched(&self, index: usize, into: &DirtyBitmap) -> mig_ram::Result<bool> {
        self.ram.mark_touched(index, into)
    }
}

fn ended(status: MigrationStatus) -> bool {
    use MigrationStatus::{Cancelled, Completed, Failed};
    matches!(status, Completed | Failed | Cancelled)
}

fn watch(handle: &MigrationHandle, role: &TouchedRole) -> Result<TouchedResult> {
    let deadline = Instant::now() + TRANSFER;
    let deltas = |info: &MigrationInfo| info.xbzrle_cache.as_ref().map_or(0, |cache| cache.pages);
    while deltas(&handle.info()) < u64::from(role.touch.pages) {
        if Instant::now() >= deadline || ended(handle.status()) {
            return Err(format!("no pass of deltas came: {:?}", handle.info()).into());
        }
        thread::sleep(TICK);
    }
    let own =
        || -> Result<f64> { Ok(cpu().as_secs_f64() - thread_seconds(process::id(), &[THREAD])?) };
    let (begun, used, before) = (Instant::now(), own()?, handle.info());
    thread::sleep(role.window);
    let (after, used, seconds) = (handle.info(), own()? - used, begun.elapsed().as_secs_f64());
    let bytes = |info: &MigrationInfo| info.xbzrle_cache.as_ref().map_or(0, |cache| cache.bytes);
    Ok(TouchedResult {
        seconds,
        cpu_seconds: used,
        deltas: deltas(&after) - deltas(&before),
        delta_bytes: bytes(&after) - bytes(&before),
        whole_pages: after.ram.normal - before.ram.normal,
        passes: after.ram.dirty_sync_count - before.ram.dirty_sync_count,
    })
}
