//! Memory from the kernel: mapped, advised, discarded, unmapped.
//!
//! Rules of this room:
//!
//! 1. A [`Mapping`] is made by one `mmap` at an address the kernel chose and undone by one `munmap` in `Drop`; nothing
//!    else in the crate maps, moves or unmaps.
//! 2. The advice functions take a [`RegionSlice`], whose range was checked and whose mapping it keeps alive. They only
//!    use advice that keeps the range mapped, readable and writable.
//! 3. A memfd is sealed against resizing, so that nobody can pull pages from under the mapping (SIGBUS).

#![expect(unsafe_code, reason = "mmap, munmap and madvise; rules in the module head")]

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
};

use mig_transport::{Region, RegionSlice};
use rustix::{
    fs::{MemfdFlags, SealFlags},
    mm::{Advice, MapFlags, ProtFlags},
};

use crate::error::{Error, Result};

/// What a block's memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory: the cheapest to fault in; no other process can map it.
    #[default]
    Anonymous,
    /// A sealed memfd, mapped shared: other processes (vhost-user back ends) can map it through [`Mapping::fd`]. Their
    /// writes go past this process's page tables, so no tracker here sees them.
    Memfd,
}

/// What the kernel is told about transparent huge pages.
///
/// Neither side always wins: with free huge pages at hand they make first touch two to three times cheaper, on a
/// fragmented host the kernel compacts memory for each of them and first touch gets three to five times dearer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Nothing: `/sys/kernel/mm/transparent_hugepage/enabled` decides.
    #[default]
    SystemDefault,
    /// `MADV_NOHUGEPAGE`.
    Never,
    /// `MADV_HUGEPAGE`.
    Advise,
}

/// A private or shared mapping that lives as long as the value.
pub struct Mapping {
    start: NonNull<u8>,
    len: usize,
    fd: Option<OwnedFd>,
    huge_pages: HugePages,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is reached through raw pointers only.
unsafe impl Send for Mapping {}
// SAFETY: shared access goes through racing-safe copies (`Region`'s rules); the other fields are immutable.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes (rounded up to host pages) of fresh zeros.
    ///
    /// Nothing is populated: memory is charged page by page as it is written. `name` is what a memfd is called in
    /// `/proc/self/maps`.
    pub fn new(name: &str, len: usize, backing: Backing, huge_pages: HugePages) -> Result<Self> {
        let page = rustix::param::page_size();
        let doing = || format!("mapping {len:#x} bytes for block '{name}'");
        let len = match len.checked_next_multiple_of(page) {
            Some(len) if len > 0 && isize::try_from(len).is_ok() => len,
            _ => return Err(Error::misuse(format!("{}: no such length", doing()))),
        };
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let (start, fd) = match backing {
            Backing::Anonymous => {
                // SAFETY: a null hint without MAP_FIXED takes unused address space only.
                let start = unsafe {
                    rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, access, MapFlags::PRIVATE)
                };
                (start.map_err(|errno| Error::io(doing(), errno))?, None)
            }
            Backing::Memfd => {
                let fd = sealed_memfd(name, len).map_err(|errno| Error::io(doing(), errno))?;
                // SAFETY: as above; the file is at least `len` long and sealed so.
                let start = unsafe {
                    rustix::mm::mmap(std::ptr::null_mut(), len, access, MapFlags::SHARED, &fd, 0)
                };
                (start.map_err(|errno| Error::io(doing(), errno))?, Some(fd))
            }
        };
        let start = NonNull::new(start.cast()).expect("mmap without MAP_FIXED never answers null");
        let mapping = Self { start, len, fd, huge_pages };
        let advice = match huge_pages {
            HugePages::SystemDefault => return Ok(mapping),
            HugePages::Never => Advice::LinuxNoHugepage,
            HugePages::Advise => Advice::LinuxHugepage,
        };
        // SAFETY: the range is exactly our own mapping; the advice changes no contents.
        if let Err(errno) = unsafe { rustix::mm::madvise(start.as_ptr().cast(), len, advice) } {
            // EINVAL: a kernel without transparent huge pages. The mapping is as good without the advice.
            tracing::debug!(%errno, ?huge_pages, name, "huge page advice not taken");
        }
        Ok(mapping)
    }

    /// The memfd behind it, for other processes to map.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }
}

fn sealed_memfd(name: &str, len: usize) -> rustix::io::Result<OwnedFd> {
    // A name the kernel would refuse (NUL inside, over 249 bytes) is cosmetic: cut it.
    let name: String = name.chars().filter(|c| *c != '\0').take(50).collect();
    let fd = rustix::fs::memfd_create(
        format!("mig-ram:{name}"),
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?;
    rustix::fs::ftruncate(&fd, len as u64)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

// SAFETY: address and length never change, the mapping is readable and writable until `Drop`, and this crate forms no
// reference into it.
unsafe impl Region for Mapping {
    fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    fn len(&self) -> usize {
        self.len
    }

    fn touched(&self, offset: usize, len: usize, each: &mut dyn FnMut(usize, usize)) -> bool {
        let known = crate::residency::touched(self, offset, len, each);
        if let Err(error) = &known {
            tracing::debug!(%error, "cannot tell which pages were touched");
        }
        known.is_ok()
    }

    fn may_have_huge_pages(&self) -> bool {
        // Shared memory has a switch of its own.
        let anonymous = self.fd.is_none();
        match self.huge_pages {
            HugePages::Never => false,
            HugePages::Advise => anonymous && system_allows(&["[always]", "[madvise]"]),
            HugePages::SystemDefault => anonymous && system_allows(&["[always]"]),
        }
    }

    fn expect_reads(&self, offset: usize, len: usize) {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return;
        }
        // SAFETY: inside the mapping, as just tested.
        let start = unsafe { self.start.add(offset) };
        if let Err(errno) = advise_range(start.as_ptr(), len, Advice::LinuxPopulateRead) {
            tracing::debug!(%errno, "cannot map memory ahead of reading it");
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the one `new` mapped, and whoever could reach it held the value alive.
        let undone = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(undone.is_ok(), "munmap of our own mapping: {undone:?}");
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.fd.is_some() { "memfd" } else { "anonymous" };
        write!(f, "Mapping({kind}, {:#x} bytes)", self.len)
    }
}

/// Makes the pages of `range` present and writable without changing them, all in one call.
///
/// Widened to whole host pages. Fails with EINVAL before Linux 5.14.
pub(crate) fn populate_write(range: &RegionSlice) -> rustix::io::Result<()> {
    advise_whole_pages(range, Advice::LinuxPopulateWrite)
}

/// Maps every page of `range` for reading: the zero page where nothing was written. Linux 5.14.
pub(crate) fn populate_read(range: &RegionSlice) -> rustix::io::Result<()> {
    advise_whole_pages(range, Advice::LinuxPopulateRead)
}

/// Whether the system's setting for transparent huge pages is one of these.
fn system_allows(settings: &[&str]) -> bool {
    let chosen = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    chosen.is_ok_and(|chosen| settings.iter().any(|setting| chosen.contains(setting)))
}

/// Allows huge pages for `range`, or forbids them; what is there already stays as it is. Only for memory that
/// [may have them](Region::may_have_huge_pages).
pub(crate) fn advise_huge_pages(range: &RegionSlice, allowed: bool) -> rustix::io::Result<()> {
    let advice = if allowed { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
    advise_whole_pages(range, advice)
}

/// Gives the memory of `range` back; it reads as zeros afterwards. Only whole host pages inside it.
pub(crate) fn discard(mapping: &Mapping, range: &RegionSlice) -> rustix::io::Result<()> {
    let page = rustix::param::page_size();
    let start = range.offset().next_multiple_of(page);
    let end = (range.offset() + range.len()) / page * page;
    if start >= end {
        return Ok(());
    }
    match &mapping.fd {
        None => {
            let at = range.as_ptr().as_ptr().wrapping_add(start - range.offset());
            // SAFETY: whole pages inside the slice; private anonymous memory stays mapped and reads zeros afterwards.
            unsafe { rustix::mm::madvise(at.cast(), end - start, Advice::LinuxDontNeed) }
        }
        Some(fd) => rustix::fs::fallocate(
            fd,
            rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE,
            start as u64,
            (end - start) as u64,
        ),
    }
}

fn advise_whole_pages(range: &RegionSlice, advice: Advice) -> rustix::io::Result<()> {
    advise_range(range.as_ptr().as_ptr(), range.len(), advice)
}

/// The range is mapped while this runs: whoever calls it borrows what keeps it so.
fn advise_range(start: *mut u8, len: usize, advice: Advice) -> rustix::io::Result<()> {
    let page = rustix::param::page_size();
    let into = start.addr() % page;
    let start = start.wrapping_sub(into);
    loop {
        // SAFETY: whole pages that hold the range, which is mapped; the advice changes no contents.
        match unsafe { rustix::mm::madvise(start.cast(), len + into, advice) } {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn lengths_are_rounded_and_impossible_ones_refused() {
        for backing in [Backing::Anonymous, Backing::Memfd] {
            let mapping = Mapping::new("x", 1, backing, HugePages::Never).unwrap();
            assert_eq!(mapping.len(), rustix::param::page_size());
            assert!(Mapping::new("x", 0, backing, HugePages::Never).is_err());
            assert!(Mapping::new("x", usize::MAX, backing, HugePages::Never).is_err());
            assert!(Mapping::new("x", 1 << 60, backing, HugePages::Never).is_err());
        }
    }

    #[test]
    fn a_memfd_cannot_be_shrunk_under_the_mapping() {
        let mapping = Mapping::new("a\0b", 8192, Backing::Memfd, HugePages::SystemDefault).unwrap();
        let fd = mapping.fd().unwrap();
        assert_eq!(rustix::fs::ftruncate(fd, 4096), Err(rustix::io::Errno::PERM));
    }

    #[test]
    fn what_is_discarded_reads_as_zeros_and_the_rest_stays() {
        for backing in [Backing::Anonymous, Backing::Memfd] {
            let page = rustix::param::page_size();
            let mapping = Arc::new(Mapping::new("x", 4 * page, backing, HugePages::Never).unwrap());
            let whole = RegionSlice::whole(mapping.clone());
            whole.copy_in(&vec![7; 4 * page]);
            populate_write(&whole.sub(10, 20).unwrap()).unwrap();
            // Half of page 0 and half of page 3 are not whole pages.
            discard(&mapping, &whole.sub(page / 2, 3 * page).unwrap()).unwrap();
            let mut seen = vec![0; 4 * page];
            whole.copy_out(&mut seen);
            assert!(seen[..page].iter().all(|b| *b == 7));
            assert!(seen[page..3 * page].iter().all(|b| *b == 0));
            assert!(seen[3 * page..].iter().all(|b| *b == 7));
        }
    }
}
