//! The copies are inline assembly, which the address sanitizer does not see. So here both sides of every copy lie between
//! two pages that nobody may touch: one byte too many is a SIGSEGV, in every build.

use super::*;

const PAGE: usize = 4096;
/// Two pages, so that a copy can be longer than one.
const ROOM: usize = 2 * PAGE;

/// `ROOM` bytes with a forbidden page before and after them.
struct Fenced(NonNull<u8>);

impl Fenced {
    fn new() -> Arc<Self> {
        let (fenced, flags) = (ROOM + 2 * PAGE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a null hint without MAP_FIXED takes unused address space only.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), fenced, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        let inside = start.cast::<u8>().wrapping_add(PAGE);
        // SAFETY: the middle of the mapping that was just made.
        let opened =
            unsafe { libc::mprotect(inside.cast(), ROOM, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(opened, 0);
        Arc::new(Self(NonNull::new(inside).expect("mmap answered an address")))
    }

    /// The last `len` bytes, or the first.
    fn bytes(&self, len: usize, last: bool) -> &[u8] {
        let at = if last { ROOM - len } else { 0 };
        // SAFETY: inside the mapping, initialised by the kernel, and nobody writes this one while it is borrowed.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().add(at), len) }
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped, and nothing else refers to it.
        unsafe { libc::munmap(self.0.as_ptr().sub(PAGE).cast(), ROOM + 2 * PAGE) };
    }
}

// SAFETY: the mapping belongs to the process and is reached through raw pointers only.
unsafe impl Send for Fenced {}
// SAFETY: as above.
unsafe impl Sync for Fenced {}

// SAFETY: mapped readable and writable until drop, at one address; `bytes` is called only on one that nobody writes.
unsafe impl Region for Fenced {
    fn as_ptr(&self) -> NonNull<u8> {
        self.0
    }

    fn len(&self) -> usize {
        ROOM
    }
}

/// Lengths around everything the loops step by.
fn lengths() -> impl Iterator<Item = usize> {
    (0..=130).chain([PAGE - 64, PAGE - 1, PAGE, PAGE + 1, PAGE + 64, ROOM - 1, ROOM])
}

#[test]
fn copies_touch_no_byte_beyond_either_side() {
    let (from, to) = (Fenced::new(), Fenced::new());
    RegionSlice::whole(from.clone()).copy_in(&[7; ROOM]);
    let region: Arc<dyn Region> = to;
    for len in lengths() {
        for (last, last_from) in [(false, false), (false, true), (true, false), (true, true)] {
            let at = if last { ROOM - len } else { 0 };
            let bytes = from.bytes(len, last_from);
            for copy in [<dyn Region>::copy_in_at, <dyn Region>::stream_in_at] {
                region.zero_at(0, ROOM).unwrap();
                copy(&*region, at, bytes).unwrap();
                publish_streamed();
                let mut seen = vec![1; ROOM];
                region.copy_out_at(0, &mut seen).unwrap();
                let inside = at..at + len;
                let right = |(i, byte): (usize, &u8)| *byte == 7 * u8::from(inside.contains(&i));
                assert!(seen.iter().enumerate().all(right), "{len} bytes to {at}");
            }
        }
    }
}

#[test]
fn copies_out_and_zeros_touch_no_byte_beyond() {
    let region: Arc<dyn Region> = Fenced::new();
    for len in lengths() {
        for at in [0, ROOM - len] {
            region.copy_in_at(0, &[7; ROOM]).unwrap();
            let slice = RegionSlice::new(Arc::clone(&region), at, len).unwrap();
            let mut seen = vec![0; len];
            slice.copy_out(&mut seen);
            assert!(seen.iter().all(|byte| *byte == 7));
            slice.zero();
            let mut all = vec![0; ROOM];
            region.copy_out_at(0, &mut all).unwrap();
            assert_eq!(all.iter().filter(|byte| **byte == 0).count(), len);
        }
    }
}
