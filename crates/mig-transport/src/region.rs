//! Guest memory: a pinned, shareable range of bytes that somebody else writes at any time.
//!
//! Rules of this room:
//!
//! 1. Nobody forms a Rust reference (`&[u8]`, `IoSlice`) into a region: another thread or the guest may be writing it.
//! 2. Copies go through inline assembly (x86-64) or volatile words, which the compiler may neither split into
//!    assumptions nor elide. A torn page is harmless: whoever wrote it also made it dirty again.
//! 3. Every access is bounds-checked against the region's length when the [`RegionSlice`] is made.

#![expect(
    unsafe_code,
    reason = "guest memory is reached by raw pointers; rules in the module head"
)]

use std::{fmt, ptr::NonNull, sync::Arc};

/// A range of memory that may be shared with a running guest.
///
/// # Safety
///
/// The implementor promises that, for as long as the value lives:
///
/// - `as_ptr()` answers the same address and `len()` the same length each time;
/// - all `len()` bytes are mapped readable and writable, and stay so;
/// - no Rust reference to any of these bytes is alive while a user of this trait may touch them.
///
/// A channel that sends [without a copy](crate::SendHalf::request_zero_copy) keeps the value until the kernel is done with
/// it, so these promises are all that it needs. They say nothing of what is in memory: who lets go of a region and goes
/// on using its bytes otherwise must have ended the channel in its orderly way first.
pub unsafe trait Region: Send + Sync {
    /// The first byte.
    fn as_ptr(&self) -> NonNull<u8>;
    /// The length in bytes.
    fn len(&self) -> usize;
    /// Whether there is nothing here.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reports, as (offset, length), the parts of `len` bytes from `offset` that may hold something; the rest was never
    /// touched: it reads as zeros without being looked at. Answers whether that is known; if not, what was reported means
    /// nothing. Pages that change meanwhile may or may not be reported.
    fn touched(&self, offset: usize, len: usize, each: &mut dyn FnMut(usize, usize)) -> bool {
        let _ = (offset, len, each);
        false
    }

    /// Whether the kernel may back this memory with transparent huge pages when it is first touched. Who receives a guest tries
    /// then whether they help, and may have memory populated that no page came for; false never does harm.
    fn may_have_huge_pages(&self) -> bool {
        false
    }

    /// All of `len` bytes from `offset` are about to be read, and nothing may be there yet: brings it all in one go, if that is
    /// cheaper than a page fault each. It may do nothing.
    fn expect_reads(&self, offset: usize, len: usize) {
        let _ = (offset, len);
    }
}

/// Copies without a [`RegionSlice`], and so without its reference count, which the loops that touch every page of
/// memory from several threads would fight over.
impl dyn Region + '_ {
    /// Copies all of `from` in at `offset`.
    pub fn copy_in_at(&self, offset: usize, from: &[u8]) -> Result<(), OutOfRegion> {
        let to = self.checked(offset, from.len())?;
        // SAFETY: `checked` vouches for the destination, which is mapped while `self` is borrowed; no reference into
        // a region exists, so `from` does not overlap it (trait rules).
        unsafe { copy(from.as_ptr(), to.as_ptr(), from.len()) };
        Ok(())
    }

    /// `copy_in_at` past the cache, for pages that arrive: they are not read again soon, and writing
    /// them through the cache would first read their old content from memory. Faster for whole pages, where the
    /// processor knows how.
    ///
    /// Other threads may see the bytes late, until this thread called [`publish_streamed`](crate::publish_streamed).
    pub fn stream_in_at(&self, offset: usize, from: &[u8]) -> Result<(), OutOfRegion> {
        let to = self.checked(offset, from.len())?;
        #[cfg(target_arch = "x86_64")]
        if !from.is_empty() && from.len().is_multiple_of(64) && to.addr().get().is_multiple_of(16) {
            // SAFETY: as in `copy_in_at`; length and alignment were just tested.
            unsafe { copy_streaming(from.as_ptr(), to.as_ptr(), from.len()) };
            return Ok(());
        }
        // SAFETY: as in `copy_in_at`.
        unsafe { copy(from.as_ptr(), to.as_ptr(), from.len()) };
        Ok(())
    }

    /// Copies `into.len()` bytes out from `offset`.
    pub fn copy_out_at(&self, offset: usize, into: &mut [u8]) -> Result<(), OutOfRegion> {
        let from = self.checked(offset, into.len())?;
        // SAFETY: as in `copy_in_at`, with the roles exchanged.
        unsafe { copy(from.as_ptr(), into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    /// Copies [`COMPARED`] bytes out from `offset` and compares them, on the way, with as many of `other` from `other_offset`:
    /// bit `n` of the answer is set if block `n` of 64 bytes differs. Both come out of main memory side by side, once, and
    /// what lies one page further on in both is asked for meanwhile.
    pub fn copy_out_compared(
        &self,
        offset: usize,
        into: &mut [u8; COMPARED],
        other: &dyn Region,
        other_offset: usize,
    ) -> Result<u64, OutOfRegion> {
        let from = self.checked(offset, COMPARED)?;
        let with = other.checked(other_offset, COMPARED)?;
        // SAFETY: as in `copy_out_at`; of `with`, as many bytes are read.
        Ok(unsafe { copy_compared(from.as_ptr(), into.as_mut_ptr(), with.as_ptr()) })
    }

    /// Sets `len` bytes from `offset` to zero.
    pub fn zero_at(&self, offset: usize, len: usize) -> Result<(), OutOfRegion> {
        let to = self.checked(offset, len)?;
        // SAFETY: as in `copy_in_at`.
        unsafe { fill_zero(to.as_ptr(), len) };
        Ok(())
    }

    /// The address of `len` bytes at `offset`, if all of them exist.
    fn checked(&self, offset: usize, len: usize) -> Result<NonNull<u8>, OutOfRegion> {
        let region_len = self.len();
        match offset.checked_add(len) {
            // SAFETY: inside the region, or one past its end for an empty range.
            Some(end) if end <= region_len => Ok(unsafe { self.as_ptr().add(offset) }),
            _ => Err(OutOfRegion { offset, len, region_len }),
        }
    }
}

/// How much [`copy_out_compared`](#method.copy_out_compared) takes at a time: 64 blocks of 64 bytes, a page.
pub const COMPARED: usize = 64 * 64;

/// An offset and a length that do not fit a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at offset {offset:#x} do not fit a region of {region_len:#x} bytes")]
pub struct OutOfRegion {
    /// Where the range starts.
    pub offset: usize,
    /// How long it is.
    pub len: usize,
    /// What there is.
    pub region_len: usize,
}

/// A checked part of a region, which it keeps alive.
#[derive(Clone)]
pub struct RegionSlice {
    region: Arc<dyn Region>,
    offset: usize,
    len: usize,
}

impl RegionSlice {
    /// `len` bytes of `region` from `offset`; refused unless all of them exist.
    pub fn new(region: Arc<dyn Region>, offset: usize, len: usize) -> Result<Self, OutOfRegion> {
        let region_len = region.len();
        match offset.checked_add(len) {
            Some(end) if end <= region_len => Ok(Self { region, offset, len }),
            _ => Err(OutOfRegion { offset, len, region_len }),
        }
    }

    /// All of `region`.
    pub fn whole(region: Arc<dyn Region>) -> Self {
        let len = region.len();
        Self { region, offset: 0, len }
    }

    /// A part of this part, counted from its own start.
    pub fn sub(&self, offset: usize, len: usize) -> Result<Self, OutOfRegion> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => {
                Ok(Self { region: Arc::clone(&self.region), offset: self.offset + offset, len })
            }
            _ => Err(OutOfRegion { offset, len, region_len: self.len }),
        }
    }

    /// The region this is a part of.
    pub fn region(&self) -> &Arc<dyn Region> {
        &self.region
    }

    /// Where this part starts in its region.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// The address of the first byte. Valid for `len()` bytes while `self` lives; see the trait's rules for its use.
    pub fn as_ptr(&self) -> NonNull<u8> {
        // SAFETY: `offset + len <= region.len()` was checked on construction, so the result is inside the mapping
        // (or one past its end when the slice is empty).
        unsafe { self.region.as_ptr().add(self.offset) }
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing here.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the first `into.len()` bytes out.
    ///
    /// # Panics
    ///
    /// If `into` is longer than this slice.
    pub fn copy_out(&self, into: &mut [u8]) {
        assert!(into.len() <= self.len, "copy of {} bytes out of {}", into.len(), self.len);
        // SAFETY: source is `into.len() <= len` mapped bytes; the destination is exclusively ours; the two cannot
        // overlap because no reference into a region exists (trait rules).
        unsafe { copy(self.as_ptr().as_ptr(), into.as_mut_ptr(), into.len()) }
    }

    /// Copies all of `from` in, at the start of this slice.
    ///
    /// # Panics
    ///
    /// If `from` is longer than this slice.
    pub fn copy_in(&self, from: &[u8]) {
        assert!(from.len() <= self.len, "copy of {} bytes into {}", from.len(), self.len);
        // SAFETY: as in `copy_out`, with the roles exchanged.
        unsafe { copy(from.as_ptr(), self.as_ptr().as_ptr(), from.len()) }
    }

    /// Sets every byte to zero.
    pub fn zero(&self) {
        // SAFETY: `len` mapped, writable bytes from `as_ptr()`.
        unsafe { fill_zero(self.as_ptr().as_ptr(), self.len) }
    }
}

impl fmt::Debug for RegionSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegionSlice({:#x}+{:#x})", self.offset, self.len)
    }
}

/// Orders what this thread streamed (`stream_in_at`) into regions before everything it does next.
pub fn publish_streamed() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: an instruction without operands; SSE is part of x86-64. Release stores alone do not wait for streamed ones.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// [`copy`], past the cache.
///
/// # Safety
///
/// As for `copy`; `len` is a positive multiple of 64, `to` is aligned to 16.
#[cfg(target_arch = "x86_64")]
unsafe fn copy_streaming(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the loop touches just the two ranges the caller vouches for, 64 bytes a turn, and leaves nothing changed
    // but the registers named. The stores are ordered by `publish_streamed`.
    unsafe {
        std::arch::asm!(
            "2:",
            "movdqu {a}, [{from}]",
            "movdqu {b}, [{from} + 16]",
            "movdqu {c}, [{from} + 32]",
            "movdqu {d}, [{from} + 48]",
            "movntdq [{to}], {a}",
            "movntdq [{to} + 16], {b}",
            "movntdq [{to} + 32], {c}",
            "movntdq [{to} + 48], {d}",
            "add {from}, 64",
            "add {to}, 64",
            "sub {len}, 64",
            "jnz 2b",
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            len = inout(reg) len => _,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack),
        );
    }
}

/// [`copy`] of `COMPARED` bytes, with a bit for each block of 64 that is not as in `with`.
///
/// # Safety
///
/// As for `copy`; `with` is mapped for as many bytes.
#[cfg(target_arch = "x86_64")]
unsafe fn copy_compared(from: *const u8, to: *mut u8, with: *const u8) -> u64 {
    let mut differs = 0_u64;
    // SAFETY: the loop reads and writes just the ranges the caller vouches for and leaves nothing changed but the registers
    // named; a prefetch of what is not mapped does nothing. Opaque to the compiler, as in `copy`.
    unsafe {
        std::arch::asm!(
            "pxor {zero}, {zero}",
            "2:",
            "movdqu {p}, [{from} + {at}]",
            "movdqu {q}, [{from} + {at} + 16]",
            "movdqu {r}, [{from} + {at} + 32]",
            "movdqu {s}, [{from} + {at} + 48]",
            "movdqu {t}, [{with} + {at}]",
            "movdqu {u}, [{with} + {at} + 16]",
            "movdqu {v}, [{with} + {at} + 32]",
            "movdqu {w}, [{with} + {at} + 48]",
            "prefetcht0 [{from} + {at} + 4096]",
            "prefetcht0 [{with} + {at} + 4096]",
            "movdqu [{to} + {at}], {p}",
            "movdqu [{to} + {at} + 16], {q}",
            "movdqu [{to} + {at} + 32], {r}",
            "movdqu [{to} + {at} + 48], {s}",
            "pxor {p}, {t}",
            "pxor {q}, {u}",
            "pxor {r}, {v}",
            "pxor {s}, {w}",
            "por {p}, {q}",
            "por {r}, {s}",
            "por {p}, {r}",
            "pcmpeqb {p}, {zero}",
            "pmovmskb {bit:e}, {p}",
            // 0 for an equal block, 1 for another.
            "xor {bit:e}, 0xffff",
            "neg {bit:e}",
            "sbb {bit}, {bit}",
            "and {bit:e}, 1",
            "or {differs}, {bit}",
            "ror {differs}, 1",
            "add {at}, 64",
            "cmp {at}, {len}",
            "jne 2b",
            from = in(reg) from,
            to = in(reg) to,
            with = in(reg) with,
            len = const COMPARED,
            at = inout(reg) 0_usize => _,
            differs = inout(reg) differs,
            bit = out(reg) _,
            zero = out(xmm_reg) _,
            p = out(xmm_reg) _,
            q = out(xmm_reg) _,
            r = out(xmm_reg) _,
            s = out(xmm_reg) _,
            t = out(xmm_reg) _,
            u = out(xmm_reg) _,
            v = out(xmm_reg) _,
            w = out(xmm_reg) _,
            options(nostack),
        );
    }
    differs
}

/// [`copy`] of `COMPARED` bytes, with a bit for each block of 64 that is not as in `with`.
///
/// # Safety
///
/// As for `copy`; `with` is mapped for as many bytes.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy_compared(from: *const u8, to: *mut u8, with: *const u8) -> u64 {
    let mut differs = 0;
    for block in 0..64 {
        let (mut ours, mut theirs) = ([0; 64], [0; 64]);
        // SAFETY: block by block, the ranges that the caller vouches for; the copies lie on the stack.
        unsafe {
            copy(from.add(block * 64), ours.as_mut_ptr(), 64);
            copy(with.add(block * 64), theirs.as_mut_ptr(), 64);
            copy(ours.as_ptr(), to.add(block * 64), 64);
        }
        differs |= u64::from(ours != theirs) << block;
    }
    differs
}

/// Copies without telling the compiler anything about the bytes.
///
/// # Safety
///
/// Both ranges are mapped for `len` bytes, `to` writable, and they do not overlap.
#[cfg(target_arch = "x86_64")]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the instruction touches just the two ranges the caller vouches for; the ABI guarantees a clear
    // direction flag. Opaque to the compiler, so a concurrent writer causes no undefined behaviour in Rust.
    unsafe {
        std::arch::asm!("rep movsb", inout("rcx") len => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags));
    }
}

/// Copies without telling the compiler anything about the bytes.
///
/// # Safety
///
/// Both ranges are mapped for `len` bytes, `to` writable, and they do not overlap.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    let aligned = (from as usize | to as usize) % 8 == 0;
    let words = if aligned { len / 8 } else { 0 };
    for i in 0..words {
        // SAFETY: `8 * (i + 1) <= len`, both pointers 8-aligned.
        unsafe { to.cast::<u64>().add(i).write_volatile(from.cast::<u64>().add(i).read_volatile()) }
    }
    for i in words * 8..len {
        // SAFETY: `i < len`.
        unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) }
    }
}

/// Zeroes `len` bytes.
///
/// # Safety
///
/// `to` is mapped writable for `len` bytes.
#[cfg(target_arch = "x86_64")]
unsafe fn fill_zero(to: *mut u8, len: usize) {
    // SAFETY: as in `copy`, for one range.
    unsafe {
        std::arch::asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") 0u8,
            options(nostack, preserves_flags));
    }
}

/// Zeroes `len` bytes.
///
/// # Safety
///
/// `to` is mapped writable for `len` bytes.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn fill_zero(to: *mut u8, len: usize) {
    for i in 0..len {
        // SAFETY: `i < len`.
        unsafe { to.add(i).write_volatile(0) }
    }
}

/// A region on the heap, for tests and for device buffers; a guest's memory is mapped (`mig-ram`).
pub struct VecRegion {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the allocation is owned by this value alone, reached only through raw pointers, and may move between threads.
unsafe impl Send for VecRegion {}
// SAFETY: shared access goes through raw copies whose races the region rules allow for.
unsafe impl Sync for VecRegion {}

impl VecRegion {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Arc<Self> {
        let bytes = vec![0u8; len].into_boxed_slice();
        let start =
            NonNull::new(Box::into_raw(bytes).cast::<u8>()).expect("a box's pointer is never null");
        Arc::new(Self { start, len })
    }
}

impl Drop for VecRegion {
    fn drop(&mut self) {
        // SAFETY: pointer and length come from the boxed slice of `zeroed`, which nobody else frees.
        drop(unsafe {
            Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.len))
        });
    }
}

// SAFETY: the allocation lives and stays in place until drop, and no reference to its bytes is ever formed.
unsafe impl Region for VecRegion {
    fn as_ptr(&self) -> NonNull<u8> {
        self.start
    }

    fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod fences;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_go_in_and_come_out_at_the_right_place() {
        let all = RegionSlice::whole(VecRegion::zeroed(100));
        let part = all.sub(10, 20).unwrap();
        part.copy_in(b"hello");
        let mut seen = [0u8; 17];
        all.copy_out(&mut seen);
        assert_eq!(&seen, b"\0\0\0\0\0\0\0\0\0\0hello\0\0");
        part.zero();
        all.copy_out(&mut seen);
        assert_eq!(seen, [0; 17]);
    }

    #[test]
    fn a_page_is_compared_on_its_way_out() {
        const AT: usize = 72;
        let ours: Arc<dyn Region> = VecRegion::zeroed(COMPARED + AT);
        let theirs: Arc<dyn Region> = VecRegion::zeroed(COMPARED);
        let bytes: Vec<u8> = (0..COMPARED).map(|at| (at % 251) as u8).collect();
        ours.copy_in_at(AT, &bytes).unwrap();
        theirs.copy_in_at(0, &bytes).unwrap();
        let mut seen = [0; COMPARED];
        let mut compared = || ours.copy_out_compared(AT, &mut seen, &*theirs, 0).unwrap();
        assert_eq!(compared(), 0);
        let mut expected = 0;
        for changed in [0, 63, 64, 1000, 2047, 4095] {
            theirs.copy_in_at(changed, &[bytes[changed] ^ 0x80]).unwrap();
            expected |= 1 << (changed / 64);
            assert_eq!(compared(), expected, "byte {changed}");
        }
        assert_eq!(seen[..], bytes[..]);
        assert!(ours.copy_out_compared(AT + 1, &mut seen, &*theirs, 0).is_err());
        assert!(ours.copy_out_compared(AT, &mut seen, &*theirs, 1).is_err());
    }

    /// Long aligned ones may go another way than short or odd ones.
    #[test]
    fn copies_of_every_length_and_alignment_are_the_same() {
        const ROOM: usize = 3 * 4096;
        let from: Vec<u8> = (0..ROOM).map(|at| (at % 251) as u8 + 1).collect();
        for len in [0, 1, 63, 64, 4032, 4095, 4096, 4097, 4160, 8192] {
            for (offset, skip) in [(0, 0), (16, 1), (1, 16), (8, 0), (64, 3)] {
                let part = &from[skip..skip + len];
                let mut expected = vec![0; ROOM];
                expected[offset..offset + len].copy_from_slice(part);
                for streamed in [false, true] {
                    let region: Arc<dyn Region> = VecRegion::zeroed(ROOM);
                    let outcome = match streamed {
                        false => region.copy_in_at(offset, part),
                        true => region.stream_in_at(offset, part),
                    };
                    publish_streamed();
                    assert_eq!(outcome, Ok(()));
                    let mut seen = vec![0; ROOM];
                    region.copy_out_at(0, &mut seen).unwrap();
                    assert!(seen == expected, "{len} bytes to {offset} from {skip}, {streamed}");
                }
            }
        }
    }

    #[test]
    fn ranges_that_do_not_exist_are_refused() {
        let region = VecRegion::zeroed(100);
        assert!(RegionSlice::new(region.clone(), 90, 11).is_err());
        assert!(RegionSlice::new(region.clone(), usize::MAX, 2).is_err());
        let part = RegionSlice::new(region, 50, 50).unwrap();
        assert_eq!(part.sub(1, 50).unwrap_err().region_len, 50);
        assert!(part.sub(50, 0).is_ok());
    }

    #[test]
    fn copies_without_a_slice_are_checked_too() {
        let region: Arc<dyn Region> = VecRegion::zeroed(100);
        region.copy_in_at(95, b"hello").unwrap();
        region.zero_at(96, 2).unwrap();
        let mut seen = [9; 6];
        region.copy_out_at(94, &mut seen).unwrap();
        assert_eq!(&seen, b"\0h\0\0lo");
        for (offset, len) in [(96, 5), (usize::MAX, 5), (101, 5)] {
            assert!(region.copy_in_at(offset, &[1; 5]).is_err());
            assert!(region.stream_in_at(offset, &[1; 64]).is_err());
            assert!(region.copy_out_at(offset, &mut [1; 5]).is_err());
            assert!(region.zero_at(offset, len).is_err());
        }
    }
}
