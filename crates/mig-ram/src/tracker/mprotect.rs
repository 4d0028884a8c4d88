//! Tracking with `mprotect` and a SIGSEGV handler: the last resort, which needs nothing but signals.
//!
//! ```text
//!   writer ── SIGSEGV ── handler: [ make the page writable · set its bit ] ── the instruction runs again
//!   sync   ── take bits · protect those pages ── report
//! ```
//!
//! No lock can be taken in a signal handler; the order alone keeps the promise. A page that is open either has its bit
//! set or a handler about to set it. A sync that takes the bit protects *afterwards*, so what is written in between is
//! in memory when it reports. A handler that opens the page in between still sets the bit, for the next sync. The
//! handler runs on the writer's own thread: when the guest's threads are stopped, all bits are set.
//!
//! Rules of this room:
//!
//! 1. The handler uses atomics and system calls only: no lock, no allocation, nothing that can panic; errno is kept.
//! 2. It acts only on addresses in an active slot; everything else goes to the handler that was there before. Once
//!    installed it stays: somebody may have chained to it since.
//! 3. A slot's bitmap is freed after its state left `ACTIVE` and its count of users was seen at zero; users count
//!    themselves before they look at the state (sequentially consistent on both sides).
//! 4. A slot holds the range's [`RegionSlice`] in its owner; the range is made writable again before that is dropped.

#![expect(unsafe_code, reason = "mprotect and a signal handler; rules in the module head")]

use std::{
    ffi::c_void,
    io,
    ptr::NonNull,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{
            AtomicPtr, AtomicU8, AtomicUsize,
            Ordering::{Acquire, Release, SeqCst},
        },
    },
};

use libc::{c_int, siginfo_t};
use mig_transport::RegionSlice;
use rustix::mm::MprotectFlags;

use super::Sink;
use crate::{
    bitmap::DirtyBitmap,
    error::{Error, Result},
};

/// Blocks of all guests of one process; each costs the handler a few loads at every fault.
const SLOTS: usize = 256;
/// So many late faults in a range that is not tracked any more are taken for threads that faulted just before.
const LATE_FAULTS: usize = 4096;

const FREE: u8 = 0;
const ACTIVE: u8 = 1;
/// Not tracked any more, but a thread may have faulted before the range was opened and enter the handler only now.
const RETIRED: u8 = 2;

struct Slot {
    users: AtomicUsize,
    state: AtomicU8,
    start: AtomicUsize,
    len: AtomicUsize,
    page: AtomicUsize,
    written: AtomicPtr<DirtyBitmap>,
    late: AtomicUsize,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        users: AtomicUsize::new(0),
        state: AtomicU8::new(FREE),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        page: AtomicUsize::new(0),
        written: AtomicPtr::new(std::ptr::null_mut()),
        late: AtomicUsize::new(0),
    }
}; SLOTS];

/// Who claims and frees slots, one at a time. The handler never takes it.
static CLAIMS: Mutex<()> = Mutex::new(());

/// What handled SIGSEGV before us.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

#[derive(Debug)]
pub(super) struct Mprotect {
    ranges: Vec<Protected>,
}

/// A protected range and its slot; dropping opens the one and retires the other.
#[derive(Debug)]
struct Protected {
    range: RegionSlice,
    slot: usize,
    written: NonNull<DirtyBitmap>,
}

// SAFETY: the bitmap is shared through `&` only (all its operations are atomic) and freed by `Drop` alone.
unsafe impl Send for Protected {}
// SAFETY: as above.
unsafe impl Sync for Protected {}

impl Mprotect {
    pub(super) fn start(ranges: &[RegionSlice]) -> Result<Self> {
        install_handler()?;
        let ranges = ranges.iter().map(Protected::new).collect::<Result<_>>()?;
        Ok(Self { ranges })
    }

    pub(super) fn sync(&self, index: usize, sink: &Sink<'_>) -> io::Result<u64> {
        let protected = &self.ranges[index];
        let written = protected.written();
        let page = rustix::param::page_size();
        let mut newly = 0;
        let mut from = 0;
        while let Some(run) = written.take_next_run(from, usize::MAX) {
            newly += sink.mark(run.start * page, run.len * page);
            let (offset, len) = (run.start * page, run.len * page);
            if protected.protect(offset, len, MprotectFlags::READ).is_err() {
                // Too many mappings (vm.max_map_count): the pages stay open, so they are dirty next time as well.
                written.set_range(run.start, run.len);
            }
            from = run.end();
        }
        Ok(newly)
    }
}

impl Protected {
    fn new(range: &RegionSlice) -> Result<Self> {
        let page = rustix::param::page_size();
        let written = Box::new(DirtyBitmap::new(range.len() / page));
        let slot = claim(range, page, NonNull::from(&*written))?;
        // From here on the slot and this value share the bitmap; `Drop` takes it back.
        let written = NonNull::from(Box::leak(written));
        let protected = Self { range: range.clone(), slot, written };
        protected
            .protect(0, range.len(), MprotectFlags::READ)
            .map_err(|errno| Error::io("write-protecting guest memory with mprotect", errno))?;
        Ok(protected)
    }

    fn written(&self) -> &DirtyBitmap {
        // SAFETY: freed in `Drop` only.
        unsafe { self.written.as_ref() }
    }

    fn protect(
        &self,
        offset: usize,
        len: usize,
        access: MprotectFlags,
    ) -> Result<(), rustix::io::Errno> {
        let part = self.range.sub(offset, len).expect("the tracker's own pages are in range");
        // SAFETY: a live mapping. Taking write access away keeps the region's promise for its users: every write
        // fault is resolved by the handler, which an active slot covers whenever access is less than full.
        unsafe { rustix::mm::mprotect(part.as_ptr().as_ptr().cast(), len, access) }
    }
}

impl Drop for Protected {
    fn drop(&mut self) {
        let full = MprotectFlags::READ | MprotectFlags::WRITE;
        if let Err(errno) = self.protect(0, self.range.len(), full) {
            // Opening a whole mapping never needs a new one, so this cannot fail for lack of anything. If it does,
            // the slot must stay, or writers would die.
            tracing::error!(%errno, "cannot open guest memory again; it stays tracked");
            std::mem::forget(self.range.clone());
            return;
        }
        retire(self.slot);
        // SAFETY: made by `Box` in `new`; the handler does not use it any more (rule 3).
        drop(unsafe { Box::from_raw(self.written.as_ptr()) });
    }
}

fn claim(range: &RegionSlice, page: usize, written: NonNull<DirtyBitmap>) -> Result<usize> {
    let _one_at_a_time = CLAIMS.lock().unwrap_or_else(PoisonError::into_inner);
    let start = range.as_ptr().as_ptr().expose_provenance();
    let overlaps = |slot: &Slot| {
        slot.state.load(Acquire) == ACTIVE
            && start < slot.start.load(Acquire) + slot.len.load(Acquire)
            && slot.start.load(Acquire) < start + range.len()
    };
    if TABLE.iter().any(overlaps) {
        return Err(Error::misuse("this memory is being tracked already; stop that first"));
    }
    let free = |wanted| TABLE.iter().position(move |slot| slot.state.load(Acquire) == wanted);
    let Some(index) = free(FREE).or_else(|| free(RETIRED)) else {
        return Err(Error::Unavailable {
            what: format!("{SLOTS} blocks are being tracked with mprotect"),
            remedy: "stop tracking some, or allow userfaultfd".into(),
        });
    };
    let slot = &TABLE[index];
    slot.state.store(FREE, SeqCst);
    wait_for_users(slot);
    slot.start.store(start, Release);
    slot.len.store(range.len(), Release);
    slot.page.store(page, Release);
    slot.late.store(0, Release);
    slot.written.store(written.as_ptr(), Release);
    slot.state.store(ACTIVE, SeqCst);
    Ok(index)
}

fn retire(index: usize) {
    let _one_at_a_time = CLAIMS.lock().unwrap_or_else(PoisonError::into_inner);
    TABLE[index].state.store(RETIRED, SeqCst);
    wait_for_users(&TABLE[index]);
}

/// A user is a handler in the middle of two system calls at most.
fn wait_for_users(slot: &Slot) {
    while slot.users.load(SeqCst) != 0 {
        std::thread::yield_now();
    }
}

fn install_handler() -> Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    let failed = |_| Error::io("installing a SIGSEGV handler", io::Error::last_os_error());
    let ask = |new: *const libc::sigaction, old: *mut libc::sigaction| {
        // SAFETY: both pointers are null or valid for the call.
        match unsafe { libc::sigaction(libc::SIGSEGV, new, old) } {
            0 => Ok(()),
            other => Err(failed(other)),
        }
    };
    // SAFETY: all-zero is a valid `sigaction` (default action, empty mask).
    let (mut previous, mut ours): (libc::sigaction, libc::sigaction) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    ask(std::ptr::null(), &raw mut previous)?;
    // Known before the first signal can come in.
    PREVIOUS.get_or_init(|| previous);
    ours.sa_sigaction = on_fault as extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize;
    // On the alternate stack, where std's own overflow handler, which we chain to, wants to be.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    ask(&raw const ours, std::ptr::null_mut())?;
    *installed = true;
    Ok(())
}

extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands a valid record to an SA_SIGINFO handler; SIGSEGV's has an address. errno is this
    // thread's own.
    let (address, denied, errno) = unsafe {
        ((*info).si_addr().addr(), (*info).si_code == SEGV_ACCERR, *libc::__errno_location())
    };
    if !(denied && TABLE.iter().any(|slot| slot.handles(address))) {
        pass_on(signal, info, context);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// The page is mapped, but may not be touched this way.
const SEGV_ACCERR: c_int = 2;

impl Slot {
    /// Whether the fault is over: the page is open now, or was already.
    fn handles(&self, address: usize) -> bool {
        self.users.fetch_add(1, SeqCst);
        let handled = self.handles_counted(address);
        self.users.fetch_sub(1, SeqCst);
        handled
    }

    fn handles_counted(&self, address: usize) -> bool {
        let state = self.state.load(SeqCst);
        let start = self.start.load(Acquire);
        let len = self.len.load(Acquire);
        if state == FREE || address < start || address - start >= len {
            return false;
        }
        if state == RETIRED {
            return self.late.fetch_add(1, SeqCst) < LATE_FAULTS;
        }
        let page = self.page.load(Acquire);
        let number = (address - start) / page;
        // SAFETY: the state is `ACTIVE` and we are counted, so the bitmap lives (rule 3).
        let written = unsafe { &*self.written.load(Acquire) };
        if open(start + number * page, page) {
            written.set(number);
            return true;
        }
        // Every scattered page is a mapping of its own and there are too many: open the block, all of it dirty.
        if open(start, len) {
            written.set_all();
            return true;
        }
        false
    }
}

fn open(start: usize, len: usize) -> bool {
    let at = std::ptr::with_exposed_provenance_mut::<c_void>(start);
    let full = MprotectFlags::READ | MprotectFlags::WRITE;
    // SAFETY: inside a range an active slot covers, whose owner keeps it mapped; full access is what a region promises.
    unsafe { rustix::mm::mprotect(at, len, full) }.is_ok()
}

/// Gives a fault that is not ours to whoever had SIGSEGV before.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Some(previous) = PREVIOUS.get() else {
        return;
    };
    match previous.sa_sigaction {
        // A synchronous SIGSEGV cannot be ignored. Back to the default: the instruction faults again and ends the process.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: all-zero is the default action; `sigaction` is async-signal-safe.
            unsafe {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &raw const default, std::ptr::null_mut());
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the kernel gave us this address as a handler of three arguments.
            unsafe {
                let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                    std::mem::transmute(handler);
                handler(signal, info, context);
            }
        }
        handler => {
            // SAFETY: the kernel gave us this address as a handler of one argument.
            unsafe {
                let handler: extern "C" fn(c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}
