//! What a decoder holds stays within the bound it states, whatever the input announces.
//!
//! A counting allocator is the only witness that does not trust the decoder's own books.
#![expect(unsafe_code, reason = "a global allocator that counts cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use mig_proto::{Decoder, Options, Step, UnknownIterables, encode};

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

fn count(change: impl FnOnce(usize) -> usize) {
    // A thread that is being torn down has nothing to count.
    let _ = LIVE.try_with(|live| {
        live.set(change(live.get()));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: every request goes to the system's allocator unchanged, and its answer back unchanged;
// counting touches two thread-local cells that never allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(|live| live + layout.size());
        // SAFETY: the caller's promises about `layout` are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(|live| live.saturating_sub(layout.size()));
        // SAFETY: `block` came from `System` with this layout, because all blocks do.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that was allocated at once while `stream` was decoded, in pieces of 4 KiB.
fn peak_of(options: &Options, stream: &[u8]) -> usize {
    let options = options.clone();
    let before = LIVE.get();
    PEAK.set(before);
    let mut decoder = Decoder::new(options);
    let mut given = 0;
    let mut at = 0;
    loop {
        let closed = given == stream.len();
        let input = &stream[at..given];
        let step = if closed { decoder.finish(input) } else { decoder.decode(input) };
        match step {
            Ok(Step::Event { consumed, .. }) => at += consumed,
            Ok(Step::NeedMore { consumed, .. }) => {
                at += consumed;
                given = (given + 4096).min(stream.len());
            }
            Ok(Step::Finished) | Err(_) => break,
        }
    }
    PEAK.get() - before
}

fn preamble() -> Vec<u8> {
    [&encode::FILE_HEADER[..], b"\x07\0\0\0\x02pc"].concat()
}

#[test]
fn a_device_section_without_an_end_costs_its_limit_and_no_more() {
    let mut stream = preamble();
    stream.extend_from_slice(b"\x04\0\0\0\x01\x01x\0\0\0\0\0\0\0\x01");
    stream.resize(12 << 20, 0x7e);
    let mut options = Options::default();
    options.limits.section_bytes = 3 << 20;
    let peak = peak_of(&options, &stream);
    assert!(peak >= 3 << 20, "the buffer grew to {peak}");
    // Twice the limit while it grows.
    assert!(peak <= (6 << 20) + (64 << 10), "{peak}");
}

#[test]
fn announced_lengths_are_not_allocated() {
    let mut stream = preamble();
    stream.extend_from_slice(b"\x05\x1aconfiguration/capabilities\0\0\0\x01");
    for tail in [&b"\0\0\0\x40"[..], b"\xff\xff\xff\xff"] {
        assert!(peak_of(&Options::default(), &[&stream[..], tail].concat()) < 64 << 10);
    }
    let mut options = Options::default();
    options.unknown_iterables = UnknownIterables::KeepRaw;
    for tail in [
        // VMDESCRIPTION and PACKAGED of 4 GiB, a block list of 16 EiB.
        &b"\0\x06\xff\xff\xff\xff{"[..],
        b"\x08\0\x07\0\x04\xff\xff\xff\xff\0",
        b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04\xff\xff\xff\xff\xff\xff\xf0\x04\x01a\0\0\0\0\0\0\0\0",
    ] {
        let peak = peak_of(&options, &[&preamble()[..], tail].concat());
        assert!(peak < 64 << 10, "{peak} for {tail:?}");
    }
}

#[test]
fn blocks_and_sections_cost_their_limits() {
    let options = Options::default();
    let mut blocks = preamble();
    blocks.extend_from_slice(b"\x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04");
    blocks.extend_from_slice(b"\x7f\xff\xff\xff\xff\xff\xf0\x04");
    let mut sections = preamble();
    for number in 0..20_000_u32 {
        let mut name = [b'n'; 255];
        name[..4].copy_from_slice(&number.to_be_bytes());
        blocks.push(255);
        blocks.extend_from_slice(&name);
        blocks.extend_from_slice(&4096_u64.to_be_bytes());
        sections.push(4);
        sections.extend_from_slice(&number.to_be_bytes());
        sections.push(255);
        sections.extend_from_slice(&[b'n'; 255]);
        sections.extend_from_slice(&[0; 8]);
        sections.extend_from_slice(&encode::footer(number));
    }
    let peak = peak_of(&options, &blocks);
    assert!((256 << 10..1 << 20).contains(&peak), "{peak} for 1024 blocks");
    let peak = peak_of(&options, &sections);
    assert!((1 << 20..4096 * 450).contains(&peak), "{peak} for 4096 sections");
}
