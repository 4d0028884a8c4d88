//! Is this page nothing but zeros? Asked of every page before it is sent, at memory speed.
//!
//! Rules of this room:
//!
//! 1. The bytes belong to a running guest: no reference is formed; every load is a volatile one of at most 32 bytes.
//! 2. A racing write makes the answer stale, not wrong: whoever wrote the page also made it dirty again.
//! 3. Bounds are checked once, before the first load; pointers never leave the checked range.
//!
//! A page that is not zero mostly says so in its first bytes, so the loops look at the answer every 256 bytes.

#![expect(
    unsafe_code,
    reason = "guest memory is reached by raw pointers; rules in the module head"
)]

use mig_transport::{OutOfRegion, Region};

use crate::block::PAGE_SIZE;

/// Whether `len` bytes of `region` from `offset` are all zero (sender's choice of ZERO records, docs/wire/ram.md §3).
///
/// Reading an untouched page of anonymous memory maps the shared zero page, it does not allocate one.
pub fn is_zero(region: &dyn Region, offset: usize, len: usize) -> Result<bool, OutOfRegion> {
    let region_len = region.len();
    if offset.checked_add(len).is_none_or(|end| end > region_len) {
        return Err(OutOfRegion { offset, len, region_len });
    }
    // SAFETY: the sum was just checked against the region, which is mapped readable while it is borrowed.
    Ok(unsafe {
        let start = region.as_ptr().as_ptr().add(offset).cast_const();
        // Head and tail are what keeps the wide loads aligned; both are empty for pages.
        let head = start.align_offset(CHUNK_ALIGN).min(len);
        let wide = (len - head) / CHUNK * CHUNK;
        let tail = head + wide;
        bytes_are_zero(start, head)
            && chunks_are_zero(start.add(head), wide)
            && bytes_are_zero(start.add(tail), len - tail)
    })
}

/// Which of `count` pages of `region` from `offset` are zero: bit i for page i, at most [`MAX_ZERO_PAGES`] of them.
///
/// The first word of every page is loaded before any answer is looked at. The loads do not depend on each other, so the
/// processor fetches many pages' first lines at once, instead of waiting for memory page by page; and a page that is not
/// zero mostly says so in its first word.
///
/// # Panics
///
/// If `count` is more than [`MAX_ZERO_PAGES`].
pub fn zero_pages(region: &dyn Region, offset: usize, count: usize) -> Result<u64, OutOfRegion> {
    assert!(count <= MAX_ZERO_PAGES, "one bit a page: {count} pages");
    let (region_len, len) = (region.len(), count * PAGE_SIZE);
    if offset.checked_add(len).is_none_or(|end| end > region_len) {
        return Err(OutOfRegion { offset, len, region_len });
    }
    let mut candidates = 0u64;
    for page in 0..count {
        // SAFETY: the sum was just checked, so eight bytes from the start of each page are mapped readable; unaligned
        // because a region promises no alignment.
        let first = unsafe {
            let start = region.as_ptr().as_ptr().add(offset + page * PAGE_SIZE);
            volatile_word(start)
        };
        candidates |= u64::from(first == 0) << page;
    }
    let mut zero = 0u64;
    while candidates != 0 {
        let page = candidates.trailing_zeros() as usize;
        candidates &= candidates - 1;
        zero |= u64::from(is_zero(region, offset + page * PAGE_SIZE, PAGE_SIZE)?) << page;
    }
    Ok(zero)
}

/// Pages that [`zero_pages`] looks at in one call.
pub const MAX_ZERO_PAGES: usize = 64;

/// The eight bytes at `start`, in one volatile load where they are aligned.
///
/// # Safety
///
/// Eight readable bytes at `start`.
unsafe fn volatile_word(start: *const u8) -> u64 {
    let aligned = start.cast::<u64>();
    if aligned.is_aligned() {
        // SAFETY: readable by the caller's promise, aligned by the test.
        return unsafe { aligned.read_volatile() };
    }
    // SAFETY: `i < 8`.
    (0..8).fold(0, |word, i| word << 8 | u64::from(unsafe { start.add(i).read_volatile() }))
}

/// The wide loops take this many bytes between two looks at the answer.
const CHUNK: usize = 256;
/// What the widest load wants.
const CHUNK_ALIGN: usize = 32;

/// # Safety
///
/// `len` readable bytes at `start`.
unsafe fn bytes_are_zero(start: *const u8, len: usize) -> bool {
    // SAFETY: `i < len`.
    (0..len).all(|i| unsafe { start.add(i).read_volatile() } == 0)
}

/// # Safety
///
/// `len` readable bytes at `start`, which is aligned to `CHUNK_ALIGN`; `len` is a multiple of `CHUNK`.
#[cfg(target_arch = "x86_64")]
unsafe fn chunks_are_zero(start: *const u8, len: usize) -> bool {
    // std caches the answer: a load and a test.
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2; range and alignment are the caller's promise.
        unsafe { chunks_are_zero_avx2(start, len) }
    } else {
        // SAFETY: SSE2 is part of x86-64; range and alignment are the caller's promise.
        unsafe { chunks_are_zero_sse2(start, len) }
    }
}

/// # Safety
///
/// As [`chunks_are_zero`], and the processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn chunks_are_zero_avx2(start: *const u8, len: usize) -> bool {
    use std::arch::x86_64::{__m256i, _mm256_or_si256, _mm256_testz_si256};
    const LOADS: usize = CHUNK / 32;
    let mut at = 0;
    while at < len {
        // SAFETY: `at + CHUNK <= len`, and everything is 32-aligned.
        let load = |i: usize| unsafe { start.add(at + 32 * i).cast::<__m256i>().read_volatile() };
        let mut all = load(0);
        for i in 1..LOADS {
            all = _mm256_or_si256(all, load(i));
        }
        if _mm256_testz_si256(all, all) == 0 {
            return false;
        }
        at += CHUNK;
    }
    true
}

/// # Safety
///
/// As [`chunks_are_zero`].
#[cfg(target_arch = "x86_64")]
unsafe fn chunks_are_zero_sse2(start: *const u8, len: usize) -> bool {
    use std::arch::x86_64::{
        __m128i, _mm_cmpeq_epi8, _mm_movemask_epi8, _mm_or_si128, _mm_setzero_si128,
    };
    const LOADS: usize = CHUNK / 16;
    let mut at = 0;
    while at < len {
        // SAFETY: `at + CHUNK <= len`, everything is 16-aligned, SSE2 is part of x86-64.
        let differs = unsafe {
            let load = |i: usize| start.add(at + 16 * i).cast::<__m128i>().read_volatile();
            let mut all = load(0);
            for i in 1..LOADS {
                all = _mm_or_si128(all, load(i));
            }
            _mm_movemask_epi8(_mm_cmpeq_epi8(all, _mm_setzero_si128())) != 0xffff
        };
        if differs {
            return false;
        }
        at += CHUNK;
    }
    true
}

/// # Safety
///
/// `len` readable bytes at `start`, which is aligned to `CHUNK_ALIGN`; `len` is a multiple of `CHUNK`.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn chunks_are_zero(start: *const u8, len: usize) -> bool {
    // SAFETY: the caller's promise.
    unsafe { chunks_are_zero_portable(start, len) }
}

/// # Safety
///
/// As [`chunks_are_zero`].
#[cfg(any(test, not(target_arch = "x86_64")))]
unsafe fn chunks_are_zero_portable(start: *const u8, len: usize) -> bool {
    const LOADS: usize = CHUNK / 8;
    let mut at = 0;
    while at < len {
        let mut all = 0;
        for i in 0..LOADS {
            // SAFETY: `at + CHUNK <= len`, everything is 8-aligned.
            all |= unsafe { start.add(at + 8 * i).cast::<u64>().read_volatile() };
        }
        if all != 0 {
            return false;
        }
        at += CHUNK;
    }
    true
}

#[cfg(test)]
mod tests {
    use mig_transport::{RegionSlice, VecRegion};

    use super::*;

    #[test]
    fn one_byte_anywhere_is_seen() {
        let region = VecRegion::zeroed(3 * 4096);
        let whole = RegionSlice::whole(region.clone());
        for (offset, len) in [(0, 4096), (7, 1000), (4095, 2), (33, 31), (100, 4096 + 77)] {
            assert!(is_zero(&*region, offset, len).unwrap());
            for at in offset..offset + len {
                whole.sub(at, 1).unwrap().copy_in(&[1]);
                assert!(!is_zero(&*region, offset, len).unwrap(), "byte {at} of {offset}+{len}");
                whole.sub(at, 1).unwrap().zero();
            }
            // Neighbours do not matter.
            whole.sub(offset + len, 1).unwrap().copy_in(&[1]);
            assert!(is_zero(&*region, offset, len).unwrap());
            whole.zero();
        }
    }

    #[test]
    fn every_width_agrees() {
        let region = VecRegion::zeroed(2 * 4096);
        let whole = RegionSlice::whole(region.clone());
        let head = region.as_ptr().as_ptr().align_offset(CHUNK_ALIGN);
        let checks = |expected: bool| {
            let start = region.as_ptr().as_ptr().cast_const().wrapping_add(head);
            // SAFETY: 4096 bytes from the aligned start are inside the region of 8192.
            unsafe {
                assert_eq!(chunks_are_zero_portable(start, 4096), expected);
                #[cfg(target_arch = "x86_64")]
                {
                    assert_eq!(chunks_are_zero_sse2(start, 4096), expected);
                    if std::arch::is_x86_feature_detected!("avx2") {
                        assert_eq!(chunks_are_zero_avx2(start, 4096), expected);
                    }
                }
            }
        };
        checks(true);
        for at in 0..4096 {
            whole.sub(head + at, 1).unwrap().copy_in(&[0x80]);
            checks(false);
            whole.sub(head + at, 1).unwrap().zero();
        }
        whole.sub(head + 4096, 1).unwrap().copy_in(&[1]);
        checks(true);
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let region = VecRegion::zeroed(100);
        assert!(is_zero(&*region, 50, 51).is_err());
        assert!(is_zero(&*region, usize::MAX, 2).is_err());
        assert!(is_zero(&*region, 100, 0).unwrap());
    }

    #[test]
    fn pages_are_told_apart_in_one_call() {
        let region = mig_transport::VecRegion::zeroed(70 * PAGE_SIZE);
        assert_eq!(zero_pages(&*region, 0, 64), Ok(u64::MAX));
        // The first byte of one, the last byte of another, all of a third but its first word.
        let whole = RegionSlice::whole(region.clone());
        whole.sub(3 * PAGE_SIZE, 1).unwrap().copy_in(&[1]);
        whole.sub(5 * PAGE_SIZE - 1, 1).unwrap().copy_in(&[1]);
        whole.sub(7 * PAGE_SIZE + 8, PAGE_SIZE - 8).unwrap().copy_in(&[7; PAGE_SIZE - 8]);
        assert_eq!(zero_pages(&*region, 0, 10), Ok(0b11_0110_0111));
        assert_eq!(zero_pages(&*region, 4 * PAGE_SIZE, 1), Ok(0));
        assert_eq!(zero_pages(&*region, 0, 0), Ok(0));
        assert!(zero_pages(&*region, 69 * PAGE_SIZE, 2).is_err());
        assert!(zero_pages(&*region, usize::MAX, 1).is_err());
        // Not aligned to anything: from byte 1 the third page is the one with a byte in it.
        assert_eq!(zero_pages(&*region, 1, 3), Ok(0b011));
    }
}
