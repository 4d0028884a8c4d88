//! A list of bytes to send: small heads, copied, between pages of guest memory, referenced.
//!
//! ```text
//!   heads:  [word][word]…            copied here, a few bytes each
//!   parts:  head 0..8 | page | head 8..16 | page | …     in the order of the wire
//!            ▲ next, skip: how far the kernel has taken it
//! ```
//!
//! The kernel reads the pages; user space never does. The list keeps every region alive until it is cleared, and its
//! size is bounded: [`Gather::MAX_PARTS`] parts (the kernel's own `IOV_MAX`) and [`Gather::MAX_HEAD_BYTES`].

#![expect(
    unsafe_code,
    reason = "iovecs are raw pointers into guest memory, kept alive by the list itself"
)]

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    sync::Arc,
};

use crate::{
    region::{OutOfRegion, Region, RegionSlice},
    sigpipe::without_sigpipe,
};

/// The list has no room for another part: send it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the gather list is full")]
pub struct GatherFull;

#[derive(Clone, Copy)]
enum Part {
    Head { start: u32, len: u32 },
    Page { region: u32, offset: usize, len: usize },
}

impl Part {
    fn len(self) -> usize {
        match self {
            Self::Head { len, .. } => len as usize,
            Self::Page { len, .. } => len,
        }
    }
}

/// What leaves in one call.
pub(crate) struct Run {
    pub(crate) len: usize,
    /// All of it is in this region; `None` if there are heads among it, or it is too short to matter.
    pub(crate) pages: Option<Arc<dyn Region>>,
}

/// What has left in one call.
pub(crate) struct Sent {
    pub(crate) bytes: usize,
    /// How many of them were pages.
    pub(crate) page_bytes: usize,
}

/// See the module.
#[derive(Default)]
pub struct Gather {
    heads: Vec<u8>,
    parts: Vec<Part>,
    regions: Vec<Arc<dyn Region>>,
    /// The first part not wholly sent.
    next: usize,
    /// Bytes of that part already sent.
    skip: usize,
    remaining: usize,
    /// Bytes that may still leave, where somebody paces them.
    allowance: Option<usize>,
}

impl Gather {
    /// Parts a list may hold: the kernel's limit for one call (`IOV_MAX`).
    pub const MAX_PARTS: usize = 1024;
    /// Bytes of heads a list may hold.
    pub const MAX_HEAD_BYTES: usize = 64 * 1024;

    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes still to be sent.
    pub fn remaining(&self) -> usize {
        self.remaining
    }

    /// Bytes that may leave now: all that remain, unless an allowance says less.
    pub fn sendable(&self) -> usize {
        self.allowance.map_or(self.remaining, |allowance| allowance.min(self.remaining))
    }

    /// Bounds what leaves from now on: no more than `allowance` bytes, in however many calls, until it is set anew.
    /// `None`, the default, is no bound. A list without allowance left sends nothing, like an empty one.
    pub fn set_allowance(&mut self, allowance: Option<usize>) {
        self.allowance = allowance;
    }

    /// Bytes of heads in the list, sent ones included.
    pub fn head_bytes(&self) -> usize {
        self.heads.len()
    }

    /// Whether everything was sent.
    pub fn is_empty(&self) -> bool {
        self.remaining == 0
    }

    /// Parts in the list, sent ones included.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// Whether a head of `head_len` bytes and one page still fit.
    pub fn has_room(&self, head_len: usize) -> bool {
        self.parts.len() + 2 <= Self::MAX_PARTS
            && self.heads.len() + head_len <= Self::MAX_HEAD_BYTES
    }

    /// Appends bytes by copying them.
    pub fn push_head(&mut self, bytes: &[u8]) -> Result<(), GatherFull> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.heads.len() + bytes.len() > Self::MAX_HEAD_BYTES {
            return Err(GatherFull);
        }
        let end = self.heads.len();
        let full = self.parts.len() == Self::MAX_PARTS;
        match self.parts.last_mut() {
            // Heads that follow each other are one part.
            Some(Part::Head { start, len }) if (*start + *len) as usize == end => {
                *len += bytes.len() as u32;
            }
            _ if full => return Err(GatherFull),
            _ => self.parts.push(Part::Head { start: end as u32, len: bytes.len() as u32 }),
        }
        self.heads.extend_from_slice(bytes);
        self.remaining += bytes.len();
        Ok(())
    }

    /// Appends `len` bytes of `region` from `offset` by reference; the region is kept until the list is cleared.
    ///
    /// # Errors
    ///
    /// `Ok(Err(GatherFull))` when there is no room, `Err` when the range does not exist.
    pub fn push_page(
        &mut self,
        region: &Arc<dyn Region>,
        offset: usize,
        len: usize,
    ) -> Result<Result<(), GatherFull>, OutOfRegion> {
        let region_len = region.len();
        if offset.checked_add(len).is_none_or(|end| end > region_len) {
            return Err(OutOfRegion { offset, len, region_len });
        }
        if self.parts.len() == Self::MAX_PARTS {
            return Ok(Err(GatherFull));
        }
        if len == 0 {
            return Ok(Ok(()));
        }
        // A migration has few blocks and long runs of one: the last one used is nearly always the one.
        let index = match self.regions.iter().rposition(|kept| Arc::ptr_eq(kept, region)) {
            Some(index) => index,
            None => {
                self.regions.push(Arc::clone(region));
                self.regions.len() - 1
            }
        };
        self.parts.push(Part::Page { region: index as u32, offset, len });
        self.remaining += len;
        Ok(Ok(()))
    }

    /// Notes that the first `n` remaining bytes were sent.
    ///
    /// # Panics
    ///
    /// If fewer than `n` bytes remain.
    pub fn advance(&mut self, mut n: usize) {
        assert!(n <= self.remaining, "sent {n} of {} bytes", self.remaining);
        self.remaining -= n;
        if let Some(allowance) = &mut self.allowance {
            *allowance = allowance.saturating_sub(n);
        }
        while n > 0 {
            let left = self.parts[self.next].len() - self.skip;
            if n < left {
                self.skip += n;
                return;
            }
            n -= left;
            self.next += 1;
            self.skip = 0;
        }
    }

    /// Forgets everything, sent or not, the allowance too, and lets the regions go. Keeps its allocations.
    pub fn clear(&mut self) {
        self.heads.clear();
        self.parts.clear();
        self.regions.clear();
        self.next = 0;
        self.skip = 0;
        self.remaining = 0;
        self.allowance = None;
    }

    /// Copies the next remaining bytes into `into` without sending them, for channels that cannot send from guest
    /// memory (TLS, test doubles). Answers how many, within the allowance; the caller
    /// [`advance`](Self::advance)s by what it got rid of.
    pub fn copy_next(&self, into: &mut [u8]) -> usize {
        let wanted = into.len().min(self.sendable());
        let into = &mut into[..wanted];
        let mut done = 0;
        let mut skip = self.skip;
        for part in &self.parts[self.next..] {
            if done == into.len() {
                break;
            }
            let n = (part.len() - skip).min(into.len() - done);
            let target = &mut into[done..done + n];
            match *part {
                Part::Head { start, .. } => {
                    target.copy_from_slice(&self.heads[start as usize + skip..][..n]);
                }
                Part::Page { region, offset, .. } => {
                    let region = Arc::clone(&self.regions[region as usize]);
                    RegionSlice::new(region, offset + skip, n)
                        .expect("the range was checked when it was pushed")
                        .copy_out(target);
                }
            }
            done += n;
            skip = 0;
        }
        done
    }

    /// Writes remaining bytes at `position` of a file with one blocking system call, leaving the file's own position
    /// alone; what was written is advanced past. May write less than all.
    pub fn write_at(&mut self, file: BorrowedFd<'_>, position: u64) -> io::Result<usize> {
        let position =
            libc::off64_t::try_from(position).map_err(|_| io::ErrorKind::InvalidInput)?;
        let written = self.with_iovecs(self.sendable(), |iov, count| {
            // SAFETY: `with_iovecs` vouches for the entries; the kernel only reads what they describe.
            moved(unsafe { libc::pwritev64(file.as_raw_fd(), iov, count as _, position) })
        })?;
        self.advance(written);
        Ok(written)
    }

    /// One gathered system call on a non-blocking descriptor; what was sent is advanced past.
    pub(crate) fn send_to(&mut self, fd: RawFd, socket: bool) -> io::Result<usize> {
        let sent = self.with_iovecs(self.sendable(), |iov, count| {
            if socket {
                // SAFETY: `with_iovecs` vouches for the entries.
                return unsafe { raw_send(fd, iov, count, 0) };
            }
            // SAFETY: as above; a pipe takes no flags.
            without_sigpipe(|| moved(unsafe { libc::writev(fd, iov, count as libc::c_int) }))
        })?;
        self.advance(sent);
        Ok(sent)
    }

    /// What leaves next in one call where runs of at least `least` bytes of pages leave apart from the rest.
    pub(crate) fn next_run(&self, least: usize) -> Run {
        let mut allowed = self.sendable();
        let mut skip = self.skip;
        let mut before = 0;
        let (mut run, mut run_of) = (0, None);
        for part in &self.parts[self.next..] {
            let region = match *part {
                Part::Page { region, .. } => Some(region),
                Part::Head { .. } => None,
            };
            if allowed == 0 || (run_of != region && run >= least) {
                break;
            }
            let n = (part.len() - skip).min(allowed);
            skip = 0;
            allowed -= n;
            if region.is_some() && run_of == region {
                run += n;
                continue;
            }
            before += run;
            (run, run_of) = (0, region);
            match region {
                Some(_) => run = n,
                None => before += n,
            }
        }
        match run_of {
            Some(region) if run >= least && before == 0 => {
                Run { len: run, pages: Some(Arc::clone(&self.regions[region as usize])) }
            }
            Some(_) if run >= least => Run { len: before, pages: None },
            _ => Run { len: before + run, pages: None },
        }
    }

    /// One gathered system call on a non-blocking socket with no more than `len` bytes, which are advanced past as far as
    /// they were sent. With `MSG_ZEROCOPY` they have to be [pages](Run::pages), whose region the caller keeps: the
    /// kernel goes on reading them.
    pub(crate) fn send_run(
        &mut self,
        fd: BorrowedFd<'_>,
        len: usize,
        flags: libc::c_int,
    ) -> io::Result<Sent> {
        let len = len.min(self.sendable());
        debug_assert!(
            flags & libc::MSG_ZEROCOPY == 0 || self.page_bytes(len) == len,
            "heads are copied: their buffer is used again"
        );
        let bytes = self.with_iovecs(len, |iov, count| {
            // SAFETY: `with_iovecs` vouches for the entries.
            unsafe { raw_send(fd.as_raw_fd(), iov, count, flags) }
        })?;
        let page_bytes = self.page_bytes(bytes);
        self.advance(bytes);
        Ok(Sent { bytes, page_bytes })
    }

    /// How many of the next `len` bytes are pages.
    fn page_bytes(&self, len: usize) -> usize {
        let (mut skip, mut left, mut pages) = (self.skip, len, 0);
        for part in &self.parts[self.next..] {
            if left == 0 {
                break;
            }
            let n = (part.len() - skip).min(left);
            skip = 0;
            left -= n;
            if matches!(part, Part::Page { .. }) {
                pages += n;
            }
        }
        pages
    }

    /// Calls `call` with the next `allowed` bytes, of those that remain, as kernel vectors, valid and alive during the
    /// call.
    fn with_iovecs(
        &self,
        mut allowed: usize,
        call: impl FnOnce(*const libc::iovec, usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut iov = [const { MaybeUninit::<libc::iovec>::uninit() }; Self::MAX_PARTS];
        let mut skip = self.skip;
        let mut count = 0;
        for (slot, part) in iov.iter_mut().zip(&self.parts[self.next..]) {
            if allowed == 0 {
                break;
            }
            let (base, len) = match *part {
                Part::Head { start, len } => {
                    (self.heads[start as usize..].as_ptr().cast_mut(), len as usize)
                }
                Part::Page { region, offset, len } => {
                    // SAFETY: `offset + len <= region.len()` was checked when the page was pushed.
                    (unsafe { self.regions[region as usize].as_ptr().add(offset) }.as_ptr(), len)
                }
            };
            // SAFETY: `skip < len` of the first part (advance keeps it so) and 0 for the others.
            let base = unsafe { base.add(skip) };
            let iov_len = (len - skip).min(allowed);
            slot.write(libc::iovec { iov_base: base.cast(), iov_len });
            allowed -= iov_len;
            count += 1;
            skip = 0;
        }
        // The first `count` entries were written above; they describe memory that `self` keeps alive (heads,
        // regions) for the whole call.
        call(iov.as_ptr().cast(), count)
    }
}

/// # Safety
///
/// `iov` points to `count` initialised entries describing readable memory.
pub(crate) unsafe fn raw_send(
    fd: RawFd,
    iov: *const libc::iovec,
    count: usize,
    flags: libc::c_int,
) -> io::Result<usize> {
    // SAFETY: all zeroes is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iov.cast_mut();
    message.msg_iovlen = count as _;
    // SAFETY: per the caller; MSG_NOSIGNAL because a library must not kill its host with SIGPIPE.
    moved(unsafe { libc::sendmsg(fd, &message, libc::MSG_NOSIGNAL | flags) })
}

/// What a reading or writing system call answered.
pub(crate) fn moved(answer: isize) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// One scattered read into regions on a non-blocking descriptor.
pub(crate) fn receive_from(fd: RawFd, into: &[RegionSlice]) -> io::Result<usize> {
    let mut iov = [const { MaybeUninit::<libc::iovec>::uninit() }; Gather::MAX_PARTS];
    let mut count = 0;
    // Empty parts take no room: a full list of them before a real one would read like the end.
    for (slot, slice) in iov.iter_mut().zip(into.iter().filter(|slice| !slice.is_empty())) {
        slot.write(libc::iovec { iov_base: slice.as_ptr().as_ptr().cast(), iov_len: slice.len() });
        count += 1;
    }
    // SAFETY: `count` entries were written; each describes mapped, writable memory that the slices keep alive.
    moved(unsafe { libc::readv(fd, iov.as_ptr().cast(), count as libc::c_int) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::VecRegion;

    fn region(fill: u8, len: usize) -> Arc<dyn Region> {
        let region: Arc<dyn Region> = VecRegion::zeroed(len);
        RegionSlice::whole(Arc::clone(&region)).copy_in(&vec![fill; len]);
        region
    }

    fn drain(gather: &mut Gather, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = vec![0; step];
        while !gather.is_empty() {
            let n = gather.copy_next(&mut buffer);
            all.extend_from_slice(&buffer[..n]);
            gather.advance(n);
        }
        all
    }

    #[test]
    fn order_is_kept_whatever_the_step() {
        for step in 1..20 {
            let mut gather = Gather::new();
            gather.push_head(b"ab").unwrap();
            gather.push_head(b"c").unwrap();
            gather.push_page(&region(b'x', 16), 2, 5).unwrap().unwrap();
            gather.push_head(b"de").unwrap();
            gather.push_page(&region(b'y', 4), 0, 4).unwrap().unwrap();
            assert_eq!(gather.parts(), 4);
            assert_eq!(gather.remaining(), 14);
            assert_eq!(drain(&mut gather, step), b"abcxxxxxdeyyyy");
        }
    }

    #[test]
    fn an_allowance_bounds_what_leaves_and_shrinks_with_it() {
        let mut gather = Gather::new();
        gather.push_head(b"ab").unwrap();
        gather.push_page(&region(b'x', 8), 0, 8).unwrap().unwrap();
        gather.set_allowance(Some(5));
        let mut buffer = [0; 16];
        assert_eq!(gather.copy_next(&mut buffer), 5);
        gather.advance(3);
        assert_eq!(gather.sendable(), 2);
        assert_eq!(gather.copy_next(&mut buffer), 2);

        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&ours);
        assert_eq!(gather.send_to(fd, true).unwrap(), 2);
        assert_eq!((gather.sendable(), gather.remaining()), (0, 5));
        gather.set_allowance(None);
        assert_eq!(gather.send_to(fd, true).unwrap(), 5);
        drop(ours);
        let mut seen = Vec::new();
        std::io::Read::read_to_end(&mut { theirs }, &mut seen).unwrap();
        assert_eq!(seen, b"xxxxxxx");
    }

    #[test]
    fn long_runs_of_one_region_leave_apart_within_the_allowance() {
        let (a, b) = (region(b'a', 64), region(b'b', 64));
        let mut gather = Gather::new();
        gather.push_head(b"head").unwrap();
        gather.push_page(&a, 0, 4).unwrap().unwrap();
        gather.push_page(&b, 0, 20).unwrap().unwrap();
        gather.push_page(&b, 40, 20).unwrap().unwrap();
        gather.push_page(&a, 0, 32).unwrap().unwrap();
        gather.push_head(b"tail").unwrap();
        let runs = |gather: &mut Gather| {
            let mut runs = Vec::new();
            while gather.sendable() > 0 {
                let run = gather.next_run(16);
                let region = run.pages.map(|region| match () {
                    () if Arc::ptr_eq(&region, &a) => 'a',
                    () => 'b',
                });
                assert_eq!(gather.page_bytes(run.len) == run.len, region.is_some());
                runs.push((run.len, region));
                gather.advance(run.len);
            }
            runs
        };
        gather.set_allowance(Some(28));
        // A run that the allowance cuts is as long as it is now.
        assert_eq!(runs(&mut gather), [(8, None), (20, Some('b'))]);
        gather.set_allowance(Some(12));
        assert!(gather.next_run(16).pages.is_none());
        gather.advance(4);
        gather.set_allowance(None);
        assert_eq!(runs(&mut gather), [(16, Some('b')), (32, Some('a')), (4, None)]);
    }

    #[test]
    fn bounds_hold() {
        let mut gather = Gather::new();
        let page = region(0, 8);
        assert!(gather.push_page(&page, 4, 5).is_err());
        for _ in 0..Gather::MAX_PARTS {
            gather.push_page(&page, 0, 8).unwrap().unwrap();
        }
        assert_eq!(gather.push_page(&page, 0, 8).unwrap(), Err(GatherFull));
        assert_eq!(gather.push_head(b"x"), Err(GatherFull));
        gather.clear();
        assert!(gather.push_head(&vec![0; Gather::MAX_HEAD_BYTES + 1]).is_err());
        assert!(gather.push_head(b"x").is_ok());
    }
}
