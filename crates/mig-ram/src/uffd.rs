//! userfaultfd and `/proc/self/pagemap`: page faults and page tables of our own process, as much of them as we need.
//!
//! Rules of this room:
//!
//! 1. A range is registered through [`Registration`], which holds a [`RegionSlice`]: the mapping outlives the
//!    registration, and the registration ends before the descriptor closes.
//! 2. Every ioctl gets an address range inside a registered slice, computed here from checked offsets. No address
//!    leaves the room as a number; faults come out as offsets.
//! 3. The kernel writes guest memory only in [`Registration::copy`], from a borrowed buffer: a racing guest sees that
//!    as it would see any other vCPU's store.
//! 4. Everything here blocks for as long as the kernel works on page tables, never for somebody else's fault.

#![expect(unsafe_code, reason = "userfaultfd and pagemap ioctls; rules in the module head")]

use std::{
    ffi::c_void,
    io,
    os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use linux_raw_sys::{general as raw, ioctl as raw_ioctl};
use mig_transport::RegionSlice;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    ioctl::{Ioctl, IoctlOutput, Opcode, Updater, opcode},
    mm::UserfaultfdFlags,
};

use crate::error::{Error, Result};

/// Feature bits of userfaultfd that this crate asks for.
pub(crate) mod feature {
    use linux_raw_sys::general as raw;

    /// Write-protect faults (Linux 5.7).
    pub(crate) const WRITE_PROTECT: u64 = raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64;
    /// The same on shared memory (5.19).
    pub(crate) const WRITE_PROTECT_SHARED: u64 = raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM as u64;
    /// Pages that do not exist yet can be write-protected (6.4).
    pub(crate) const WRITE_PROTECT_UNPOPULATED: u64 = raw::UFFD_FEATURE_WP_UNPOPULATED as u64;
    /// The kernel resolves write-protect faults itself and only notes them (6.7).
    pub(crate) const WRITE_PROTECT_ASYNC: u64 = raw::UFFD_FEATURE_WP_ASYNC as u64;
    /// Missing pages of shared memory (4.11).
    pub(crate) const MISSING_SHARED: u64 = raw::UFFD_FEATURE_MISSING_SHMEM as u64;
}

/// Whose faults a descriptor may handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// All of them if we may, else those of user code only.
    Best,
    /// Those of user code only, which needs no privilege.
    UserModeOnly,
}

/// An open, initialised userfaultfd.
#[derive(Debug)]
pub(crate) struct Userfaultfd {
    fd: OwnedFd,
    features: u64,
    kernel_faults: bool,
}

impl Userfaultfd {
    /// Opens one with the `required` features, and those of `optional` that the kernel knows.
    pub(crate) fn open(required: u64, optional: u64, privilege: Privilege) -> Result<Arc<Self>> {
        // A descriptor can be initialised once, and only with features the kernel knows: ask on a first one.
        let known = initialise(&open_descriptor(privilege)?.0, 0)
            .map_err(|errno| Error::io("asking userfaultfd for its features", errno))?;
        let missing = required & !known;
        if missing != 0 {
            return Err(Error::Unavailable {
                what: format!("this kernel's userfaultfd lacks features {missing:#x}"),
                remedy: "a newer kernel has them".into(),
            });
        }
        let features = required | (optional & known);
        let (fd, kernel_faults) = open_descriptor(privilege)?;
        initialise(&fd, features).map_err(|errno| Error::io("initialising userfaultfd", errno))?;
        Ok(Arc::new(Self { fd, features, kernel_faults }))
    }

    /// Whether all of `features` are on.
    pub(crate) fn has(&self, features: u64) -> bool {
        self.features & features == features
    }

    /// Whether faults that happen inside system calls are handled too. If not, such a call fails with EFAULT.
    pub(crate) fn kernel_faults(&self) -> bool {
        self.kernel_faults
    }

    /// Registers `range`, which must be whole host pages, for faults on missing pages.
    pub(crate) fn register_missing(
        self: &Arc<Self>,
        range: RegionSlice,
    ) -> io::Result<Registration> {
        self.register(range, raw::UFFDIO_REGISTER_MODE_MISSING)
    }

    /// Registers `range`, which must be whole host pages, for write-protection.
    pub(crate) fn register_write_protect(
        self: &Arc<Self>,
        range: RegionSlice,
    ) -> io::Result<Registration> {
        self.register(range, raw::UFFDIO_REGISTER_MODE_WP)
    }

    fn register(self: &Arc<Self>, range: RegionSlice, mode: u32) -> io::Result<Registration> {
        let mut request = raw::uffdio_register {
            range: raw_range(&range, 0, range.len()),
            mode: u64::from(mode),
            ioctls: 0,
        };
        // SAFETY: the opcode takes this struct; registering changes no contents, and the range is a live mapping that
        // the registration below keeps alive.
        unsafe { self.update::<{ raw_ioctl::UFFDIO_REGISTER as Opcode }, _>(&mut request)? };
        Ok(Registration { uffd: Arc::clone(self), range, active: AtomicBool::new(true) })
    }

    /// Reads waiting write-protect faults into `into`, as many as fit; none when there are none.
    pub(crate) fn read_faults(&self, into: &mut FaultBuffer) -> io::Result<()> {
        into.filled = 0;
        match rustix::io::read(&self.fd, &mut into.bytes) {
            Ok(len) => into.filled = len / FAULT_BYTES,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(())
    }

    /// # Safety
    ///
    /// `OPCODE` is a userfaultfd ioctl on a `T`, and the ranges inside are registered slices that stay alive.
    unsafe fn update<const OPCODE: Opcode, T>(&self, value: &mut T) -> Result<(), Errno> {
        // SAFETY: the caller's promise.
        unsafe { rustix::ioctl::ioctl(&self.fd, Updater::<OPCODE, T>::new(value)) }
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The descriptor, and whether it handles faults inside system calls.
fn open_descriptor(privilege: Privilege) -> Result<(OwnedFd, bool)> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    if privilege == Privilege::Best {
        // SAFETY: what the descriptor can do is confined by this room's rules.
        if let Ok(fd) = unsafe { rustix::mm::userfaultfd(flags) } {
            return Ok((fd, true));
        }
        let device = OFlags::RDWR | OFlags::CLOEXEC;
        if let Ok(device) = rustix::fs::open("/dev/userfaultfd", device, Mode::empty()) {
            // SAFETY: the device's one ioctl makes a descriptor and touches no memory.
            if let Ok(fd) = unsafe { rustix::ioctl::ioctl(&device, NewDescriptor(flags)) } {
                return Ok((fd, true));
            }
        }
    }
    let user_only = UserfaultfdFlags::from_bits_retain(raw::UFFD_USER_MODE_ONLY);
    // SAFETY: as above.
    match unsafe { rustix::mm::userfaultfd(flags | user_only) } {
        Ok(fd) => Ok((fd, false)),
        Err(errno) => Err(Error::Unavailable {
            what: format!("userfaultfd cannot be opened: {}", io::Error::from(errno)),
            remedy: "it needs CONFIG_USERFAULTFD, and a seccomp profile (containers have one) that lets it through"
                .into(),
        }),
    }
}

fn initialise(fd: &OwnedFd, features: u64) -> Result<u64, Errno> {
    let mut api = raw::uffdio_api { api: u64::from(raw::UFFD_API), features, ioctls: 0 };
    // SAFETY: the opcode takes this struct and touches nothing else.
    unsafe {
        rustix::ioctl::ioctl(fd, Updater::<{ raw_ioctl::UFFDIO_API as Opcode }, _>::new(&mut api))?;
    }
    Ok(api.features)
}

/// `USERFAULTFD_IOC_NEW` on the device node: the argument is the flags, the answer a descriptor.
struct NewDescriptor(UserfaultfdFlags);

// SAFETY: the opcode takes no pointer, so nothing is written through the one we make of the flags; a non-negative
// answer is a fresh descriptor that nobody else owns.
unsafe impl Ioctl for NewDescriptor {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        opcode::none(0xaa, 0)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::without_provenance_mut(self.0.bits() as usize)
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: see the impl.
        Ok(unsafe { OwnedFd::from_raw_fd(out) })
    }
}

const FAULT_BYTES: usize = 32;

/// Room for some faults.
pub(crate) struct FaultBuffer {
    bytes: [u8; 64 * FAULT_BYTES],
    filled: usize,
}

/// Where somebody waits for write access. Only of use to [`Registration::offset_of`].
#[derive(Clone, Copy)]
pub(crate) struct FaultAddress(u64);

impl FaultBuffer {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; 64 * FAULT_BYTES], filled: 0 }
    }

    /// The write-protect faults that were read last.
    pub(crate) fn faults(&self) -> impl Iterator<Item = FaultAddress> + '_ {
        // struct uffd_msg: event at 0, pagefault flags at 8, address at 16, in host order.
        self.bytes.chunks_exact(FAULT_BYTES).take(self.filled).filter_map(|message| {
            let word = |at: usize| {
                u64::from_ne_bytes(message[at..at + 8].try_into().expect("a slice of eight bytes"))
            };
            let write_protect = word(8) & u64::from(raw::UFFD_PAGEFAULT_FLAG_WP) != 0;
            (u32::from(message[0]) == raw::UFFD_EVENT_PAGEFAULT && write_protect)
                .then(|| FaultAddress(word(16)))
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.filled == 0
    }
}

/// A range whose faults come to us, until dropped or ended.
#[derive(Debug)]
pub(crate) struct Registration {
    uffd: Arc<Userfaultfd>,
    range: RegionSlice,
    active: AtomicBool,
}

impl Registration {
    /// Whether it has not been ended.
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Gives the range back to the kernel: protection is lifted, everybody who waits for a page goes on.
    pub(crate) fn end(&self) -> io::Result<()> {
        if !self.active.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let mut request = raw_range(&self.range, 0, self.range.len());
        // SAFETY: the range is the one registered, and still mapped.
        unsafe {
            self.uffd.update::<{ raw_ioctl::UFFDIO_UNREGISTER as Opcode }, _>(&mut request)?;
        }
        Ok(())
    }

    /// Where in the range a fault is.
    pub(crate) fn offset_of(&self, fault: FaultAddress) -> Option<usize> {
        let start = self.range.as_ptr().as_ptr().addr() as u64;
        let offset = usize::try_from(fault.0.checked_sub(start)?).ok()?;
        (offset < self.range.len()).then_some(offset)
    }

    /// Protects whole host pages against writing, or lifts that and lets waiting writers go on.
    pub(crate) fn write_protect(&self, offset: usize, len: usize, on: bool) -> io::Result<()> {
        let mode = if on { raw_mode::WRITE_PROTECT } else { 0 };
        // The kernel holds its lock for one call: a guest of a terabyte must not wait for all of it.
        const AT_ONCE: usize = 1 << 30;
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let here = AT_ONCE.min(end - at);
            let mut request =
                raw::uffdio_writeprotect { range: raw_range(&self.range, at, here), mode };
            // SAFETY: `raw_range` checked the range against the registered slice; contents do not change.
            match unsafe {
                self.uffd.update::<{ raw_ioctl::UFFDIO_WRITEPROTECT as Opcode }, _>(&mut request)
            } {
                Ok(()) => at += here,
                // The address space is changing elsewhere; done again from the start of this piece.
                Err(Errno::AGAIN | Errno::INTR) => std::thread::yield_now(),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Makes missing pages present with the contents of `from`, all at once for whoever looks. Answers how many bytes
    /// were placed before the first page that exists already; all of them if none does.
    pub(crate) fn copy(&self, offset: usize, from: &[u8]) -> io::Result<usize> {
        let to = raw_range(&self.range, offset, from.len());
        let mut done = 0;
        while done < from.len() {
            let mut request = raw::uffdio_copy {
                dst: to.start + done as u64,
                src: from[done..].as_ptr().expose_provenance() as u64,
                len: (from.len() - done) as u64,
                mode: 0,
                copy: 0,
            };
            // SAFETY: the destination was checked by `raw_range`; the source is borrowed for the call.
            let answer = unsafe {
                self.uffd.update::<{ raw_ioctl::UFFDIO_COPY as Opcode }, _>(&mut request)
            };
            // A short copy answers EAGAIN and its length.
            done += usize::try_from(request.copy).unwrap_or(0).min(from.len() - done);
            match answer {
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::INTR) if request.copy <= 0 => std::thread::yield_now(),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::EXIST) => return Ok(done),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(done)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            // Closing the descriptor ends it too; nothing is lost but the order.
            tracing::debug!(%error, range = ?self.range, "unregistering from userfaultfd");
        }
    }
}

mod raw_mode {
    /// `UFFDIO_WRITEPROTECT_MODE_WP`, which the bindings lack.
    pub(super) const WRITE_PROTECT: u64 = 1;
}

fn raw_range(within: &RegionSlice, offset: usize, len: usize) -> raw::uffdio_range {
    let fits = offset.checked_add(len).is_some_and(|end| end <= within.len());
    assert!(fits, "{len:#x} bytes at {offset:#x} of {within:?}");
    let start = within.as_ptr().as_ptr().expose_provenance() + offset;
    raw::uffdio_range { start: start as u64, len: len as u64 }
}

/// `/proc/self/pagemap`: what the page tables say.
#[derive(Debug)]
pub(crate) struct Pagemap(OwnedFd);

/// What [`Pagemap::scan`] looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scan {
    /// Pages written since they were protected; protects them again in the same step. Fails unless the whole range is
    /// registered for asynchronous write-protection.
    WrittenAndProtect,
    /// Pages that exist, in memory or in swap.
    Existing,
}

impl Pagemap {
    pub(crate) fn open() -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open("/proc/self/pagemap", flags, Mode::empty()).map(Self).map_err(|errno| {
            Error::Unavailable {
                what: format!("/proc/self/pagemap cannot be opened: {}", io::Error::from(errno)),
                remedy: "mount /proc".into(),
            }
        })
    }

    /// Reports runs of host pages of `range`, as (byte offset, length), that match. Linux 6.7.
    ///
    /// After an error, pages from the offset of the last report on may have been protected without being reported:
    /// [`ScanFailure::from`] says from where.
    pub(crate) fn scan(
        &self,
        range: &RegionSlice,
        scan: Scan,
        each: impl FnMut(usize, usize),
    ) -> Result<(), ScanFailure> {
        self.scan_range(raw_range(range, 0, range.len()), scan, each)
    }

    /// [`scan`](Self::scan) of `len` bytes from address `start`, for pages that exist.
    pub(crate) fn scan_existing(
        &self,
        start: usize,
        len: usize,
        each: impl FnMut(usize, usize),
    ) -> Result<(), ScanFailure> {
        let range = raw::uffdio_range { start: start as u64, len: len as u64 };
        self.scan_range(range, Scan::Existing, each)
    }

    fn scan_range(
        &self,
        whole: raw::uffdio_range,
        scan: Scan,
        mut each: impl FnMut(usize, usize),
    ) -> Result<(), ScanFailure> {
        const REGIONS: usize = 512;
        let mut regions = [raw::page_region { start: 0, end: 0, categories: 0 }; REGIONS];
        let end = whole.start + whole.len;
        let mut at = whole.start;
        while at < end {
            let (flags, mask, any_of) = match scan {
                Scan::WrittenAndProtect => {
                    (raw::PM_SCAN_WP_MATCHING | raw::PM_SCAN_CHECK_WPASYNC, raw::PAGE_IS_WRITTEN, 0)
                }
                Scan::Existing => (0, 0, raw::PAGE_IS_PRESENT | raw::PAGE_IS_SWAPPED),
            };
            let mut request = raw::pm_scan_arg {
                size: size_of::<raw::pm_scan_arg>() as u64,
                flags: u64::from(flags),
                start: at,
                end,
                walk_end: 0,
                vec: regions.as_mut_ptr().expose_provenance() as u64,
                vec_len: REGIONS as u64,
                max_pages: 0,
                category_inverted: 0,
                category_mask: u64::from(mask),
                category_anyof_mask: u64::from(any_of),
                return_mask: u64::from(mask | any_of),
            };
            // SAFETY: the kernel fills at most `REGIONS` entries of the array, which is borrowed until after the call; of the
            // range it only reads, and protects, page tables, and it refuses what is not mapped.
            let found = unsafe { rustix::ioctl::ioctl(&self.0, PagemapScan(&mut request)) };
            let failed = |errno: Errno| ScanFailure {
                from: (at - whole.start) as usize,
                source: errno.into(),
            };
            let found = match found {
                Ok(found) => found.min(REGIONS),
                Err(Errno::INTR) if scan == Scan::Existing => continue,
                Err(errno) => return Err(failed(errno)),
            };
            for region in &regions[..found] {
                each((region.start - whole.start) as usize, (region.end - region.start) as usize);
            }
            if request.walk_end <= at {
                return Err(failed(Errno::IO));
            }
            at = request.walk_end;
        }
        Ok(())
    }

    /// The same for existing pages only, by reading an entry for each page: slower, any kernel.
    pub(crate) fn read_existing(
        &self,
        start: usize,
        len: usize,
        mut each: impl FnMut(usize, usize),
    ) -> io::Result<()> {
        const ENTRY: usize = 8;
        const EXISTS: u64 = 1 << 63 | 1 << 62;
        let page = rustix::param::page_size();
        let (first, pages) = (start / page, len.div_ceil(page));
        let mut entries = vec![0; ENTRY * 8192];
        let mut at = 0;
        while at < pages {
            let want = (ENTRY * (pages - at)).min(entries.len());
            let position = ((first + at) * ENTRY) as u64;
            let got = rustix::io::pread(&self.0, &mut entries[..want], position)?;
            if got < ENTRY {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for entry in entries[..got].chunks_exact(ENTRY) {
                let bits = u64::from_ne_bytes(entry.try_into().expect("a chunk of eight bytes"));
                if bits & EXISTS != 0 {
                    each(at * page, page);
                }
                at += 1;
            }
        }
        Ok(())
    }
}

/// Why and where a scan ended early.
#[derive(Debug)]
pub(crate) struct ScanFailure {
    /// Everything before this offset was reported.
    pub(crate) from: usize,
    pub(crate) source: io::Error,
}

/// `PAGEMAP_SCAN`, whose answer is how many regions were filled in.
struct PagemapScan<'a>(&'a mut raw::pm_scan_arg);

// SAFETY: the opcode reads and writes one `pm_scan_arg` (its size is in its number) and the array named inside, which
// the maker of the request vouches for.
unsafe impl Ioctl for PagemapScan<'_> {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<raw::pm_scan_arg>(b'f', 16)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<usize> {
        usize::try_from(out).map_err(|_| Errno::IO)
    }
}
