//! Why this exists: whatever way pages take into memory, the result is the last record of each page, and memory that
//! only ever got zeros stays untouched. Every mechanism is forced in turn, with and without a thread.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use mig_ram::{
    Backing, BlockOptions, Copying, DirtyBitmap, Error, GuestMemory, HugePages, PAGE_SIZE,
    PlaceMechanism, PlacePolicy, Placement, PlacementOptions, RamBlock, RamBlocks, Warmth,
};
use mig_transport::{Blame, RegionSlice};

const PAGES: usize = 500;

fn memory(backing: Backing) -> RamBlocks {
    memory_with(backing, HugePages::Never)
}

fn memory_with(backing: Backing, huge_pages: HugePages) -> RamBlocks {
    let options = BlockOptions { backing, huge_pages, max_length: None };
    let lengths = [("pc.ram", PAGES), ("pc.bios", 16)];
    let blocks = lengths.map(|(name, pages)| {
        RamBlock::with_options(name, (pages * PAGE_SIZE) as u64, &options).unwrap()
    });
    RamBlocks::new(blocks).unwrap()
}

fn contents(memory: &RamBlocks, block: usize) -> Vec<u8> {
    let info = memory.block(block).unwrap();
    let mut bytes = vec![0; info.used_length as usize];
    info.slice(0, bytes.len()).unwrap().copy_out(&mut bytes);
    bytes
}

fn at(page: usize) -> u64 {
    (page * PAGE_SIZE) as u64
}

/// Runs `test` in every way that works here.
fn each(test: impl Fn(&RamBlocks, PlacementOptions)) {
    let mechanisms = [
        PlaceMechanism::HugePages,
        PlaceMechanism::Userfault,
        PlaceMechanism::Populate,
        PlaceMechanism::Plain,
    ];
    let policies = mechanisms.map(PlacePolicy::Only);
    for policy in policies.into_iter().chain([PlacePolicy::Best]) {
        for copying in [Copying::Inline, Copying::Thread] {
            for warmth in [Warmth::Detect, Warmth::Cold, Warmth::Warm] {
                for backing in [Backing::Anonymous, Backing::Memfd] {
                    let options = PlacementOptions { policy, copying, warmth, staging_pages: 32 };
                    let forced = policy == PlacePolicy::Only(PlaceMechanism::HugePages);
                    if forced && (backing == Backing::Memfd || warmth == Warmth::Warm) {
                        // Where there are none to be had: refused.
                        continue;
                    }
                    let huge_pages = if forced { HugePages::Advise } else { HugePages::Never };
                    let memory = memory_with(backing, huge_pages);
                    match Placement::new(&memory, options) {
                        Ok(placement) => drop(placement),
                        Err(error @ Error::Unavailable { .. }) => {
                            let reason = format!("{options:?}: {error}");
                            let lacking = if forced { "huge-pages" } else { "userfaultfd" };
                            mig_testkit::not_applicable(lacking, &reason);
                            continue;
                        }
                        Err(error) => panic!("{options:?}: {error}"),
                    }
                    test(&memory, options);
                }
            }
        }
    }
}

/// xorshift: reproducible and quick.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

#[test]
fn the_last_record_of_each_page_wins() {
    each(|memory, options| {
        let mut model = [vec![0; PAGES * PAGE_SIZE], vec![0; 16 * PAGE_SIZE]];
        if options.warmth != Warmth::Cold {
            // Some of it was touched before, and is not zero.
            for page in (0..PAGES).step_by(3) {
                memory.block(0).unwrap().page(at(page)).unwrap().copy_in(&[9; 100]);
            }
            model = [contents(memory, 0), contents(memory, 1)];
        }
        let placement = Placement::new(memory, options).unwrap();
        let mut placer = placement.placer().unwrap();
        let mut dice = Dice(0x1234_5678_9abc);
        let received = DirtyBitmap::new(PAGES);
        let mut read = [0; PAGE_SIZE];
        for step in 0..3000usize {
            let block = usize::from(dice.roll(10) == 0);
            let pages = if block == 0 { PAGES } else { 16 };
            let first = dice.roll(pages);
            let run = 1 + dice.roll(40).min(pages - first - 1);
            for page in first..first + run {
                let place = &mut model[block][page * PAGE_SIZE..][..PAGE_SIZE];
                match dice.roll(4) {
                    0 => {
                        placer.place_zero(block, at(page)).unwrap();
                        place.fill(0);
                    }
                    1 if step % 50 == 0 => {
                        placer.read_page(block, at(page), &mut read).unwrap();
                        assert!(read == *place, "{options:?}: read of page {page}");
                        continue;
                    }
                    fill => {
                        place.fill(step as u8);
                        place[8 * fill] = page as u8;
                        placer.place_page(block, at(page), place).unwrap();
                    }
                }
                if block == 0 {
                    received.set(page);
                }
            }
            if dice.roll(200) == 0 {
                placer.flush().unwrap();
            }
        }
        placer.flush().unwrap();
        placement.finish().unwrap();
        for (block, expected) in model.iter().enumerate() {
            let now = contents(memory, block);
            let pages = now.chunks(PAGE_SIZE).zip(expected.chunks(PAGE_SIZE));
            let differ = pages.into_iter().position(|(now, expected)| now != expected);
            assert_eq!(differ, None, "{options:?}, block {block}");
        }
        assert_eq!(placement.received(0).unwrap().to_words(), received.to_words());
        // After the end pages still arrive (plainly), for postcopy's sake.
        placer.place_page(0, 0, &[1; PAGE_SIZE]).unwrap();
        assert_eq!(contents(memory, 0)[0], 1);
    });
}

#[test]
fn memory_that_gets_zeros_only_stays_untouched() {
    each(|memory, options| {
        let placement = Placement::new(memory, options).unwrap();
        let mut placer = placement.placer().unwrap();
        for page in 0..PAGES {
            match page {
                100..164 => placer.place_page(0, at(page), &[1; PAGE_SIZE]).unwrap(),
                _ => placer.place_zero(0, at(page)).unwrap(),
            }
        }
        placer.flush().unwrap();
        placement.finish().unwrap();
        if options.warmth == Warmth::Warm {
            // Looking at a page maps it.
            return;
        }
        let touched = DirtyBitmap::new(PAGES);
        assert!(memory.mark_touched(0, &touched).unwrap());
        // Populating ahead may go too far by as much as it was right.
        let allowed = match options.policy {
            PlacePolicy::Only(PlaceMechanism::Populate) => 64..=127,
            // All that would be in one with them.
            PlacePolicy::Only(PlaceMechanism::HugePages) => 64..=PAGES as u64,
            _ => 64..=64,
        };
        assert!(allowed.contains(&touched.count()), "{options:?} {touched:?}");
        assert_eq!(placement.statistics().zero_pages_written, 0, "{options:?}");
    });
}

#[test]
fn offsets_from_a_hostile_source_are_refused() {
    each(|memory, options| {
        let placement = Placement::new(memory, options).unwrap();
        let mut placer = placement.placer().unwrap();
        for offset in [at(PAGES), 1, 4095, at(PAGES) - 1, u64::MAX, u64::MAX - 4095, 1 << 63] {
            let refused = [
                placer.place_page(0, offset, &[1; PAGE_SIZE]),
                placer.place_zero(0, offset),
                placer.read_page(0, offset, &mut [0; PAGE_SIZE]),
            ];
            for error in refused.map(Result::unwrap_err) {
                assert!(matches!(error, Error::OutOfBlock { .. }), "{offset:#x}: {error}");
                assert_eq!(error.blame(), Blame::PeerMisbehaved);
            }
        }
        assert_eq!(placer.place_zero(2, 0).unwrap_err().blame(), Blame::Misuse);
        assert_eq!(placer.place_page(0, 0, &[1; 100]).unwrap_err().blame(), Blame::Misuse);
        placer.flush().unwrap();
        placement.finish().unwrap();
        assert!(contents(memory, 0).iter().all(|byte| *byte == 0));
    });
}

#[test]
fn the_end_is_refused_while_pages_are_staged() {
    let memory = memory(Backing::Anonymous);
    let options = PlacementOptions {
        policy: PlacePolicy::Only(PlaceMechanism::Userfault),
        ..PlacementOptions::default()
    };
    let placement = match Placement::new(&memory, options) {
        Ok(placement) => placement,
        Err(error @ Error::Unavailable { .. }) => {
            return mig_testkit::not_applicable("userfaultfd", &error.to_string());
        }
        Err(error) => panic!("{error}"),
    };
    let mut placer = placement.placer().unwrap();
    placer.place_page(0, 0, &[1; PAGE_SIZE]).unwrap();
    assert_eq!(placement.finish().unwrap_err().blame(), Blame::Misuse);
    placer.flush().unwrap();
    placement.finish().unwrap();
    assert_eq!(placement.statistics().pages_placed, 1);

    // A channel that broke: its pages never came, so the memory is not to be trusted.
    let memory = self::memory(Backing::Anonymous);
    let placement = Placement::new(&memory, options).unwrap();
    placement.placer().unwrap().place_page(0, 0, &[1; PAGE_SIZE]).unwrap();
    assert_eq!(placement.finish().unwrap_err().blame(), Blame::Misuse);
}

/// The rule is that nobody looks at missing pages. Who does must neither hang for ever nor see garbage.
#[test]
fn a_thread_that_looks_too_early_waits_for_the_end() {
    let memory = memory(Backing::Anonymous);
    let placement = Placement::new(&memory, PlacementOptions::default()).unwrap();
    let info = memory.block(0).unwrap();
    let looked = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let early = scope.spawn(|| {
            let mut byte = [7];
            RegionSlice::new(info.region.clone(), 50 * PAGE_SIZE, 1).unwrap().copy_out(&mut byte);
            looked.store(true, Ordering::Release);
            byte[0]
        });
        let mut placer = placement.placer().unwrap();
        placer.place_page(0, 0, &[1; PAGE_SIZE]).unwrap();
        placer.flush().unwrap();
        if placement.info().mechanism == PlaceMechanism::Userfault {
            assert!(!looked.load(Ordering::Acquire));
        }
        placement.finish().unwrap();
        assert_eq!(early.join().unwrap(), 0);
    });
}

#[test]
fn channels_place_side_by_side_and_duplicates_do_no_harm() {
    each(|memory, options| {
        let placement = Placement::new(memory, options).unwrap();
        std::thread::scope(|scope| {
            for channel in 0..3usize {
                let placement = Arc::clone(&placement);
                scope.spawn(move || {
                    let mut placer = placement.placer().unwrap();
                    for page in 0..PAGES {
                        // Each page by its own channel; every tenth by all of them, as no honest source does.
                        if page % 3 == channel || page % 10 == 0 {
                            placer.place_page(0, at(page), &[page as u8; PAGE_SIZE]).unwrap();
                        }
                    }
                    placer.flush().unwrap();
                });
            }
        });
        placement.finish().unwrap();
        let now = contents(memory, 0);
        let right = |(page, bytes): (usize, &[u8])| bytes.iter().all(|byte| *byte == page as u8);
        assert!(now.chunks(PAGE_SIZE).enumerate().all(right), "{options:?}");
    });
}

#[test]
fn pages_received_in_place_are_those_copied_there() {
    each(|memory, options| {
        let placement = Placement::new(memory, options).unwrap();
        let mut placer = placement.placer().unwrap();
        // Everything once in order, then once more from the end: touched by then, or still staged.
        let order = (0..PAGES).chain((0..PAGES).rev());
        let mut lent_pages = 0;
        for (time, page) in order.enumerate() {
            let bytes = [(time / PAGES * 100 + page) as u8; PAGE_SIZE];
            let lent = placer.lend().is_some_and(|lent| {
                lent[..PAGE_SIZE].copy_from_slice(&bytes);
                true
            });
            if lent && placer.take_lent(0, at(page)).unwrap() {
                lent_pages += 1;
            } else {
                placer.place_page(0, at(page), &bytes).unwrap();
            }
        }
        assert!(placer.take_lent(0, at(PAGES)).is_err(), "behind the block");
        placer.flush().unwrap();
        placement.finish().unwrap();
        assert!(placer.lend().is_none(), "nothing is left to place in bulk");
        let now = contents(memory, 0);
        let right =
            |(page, bytes): (usize, &[u8])| bytes.iter().all(|byte| *byte == (100 + page) as u8);
        assert!(now.chunks(PAGE_SIZE).enumerate().all(right), "{options:?}");
        assert_eq!(placement.statistics().pages_lent, lent_pages, "{options:?}");
        if placement.info().mechanism == PlaceMechanism::Userfault {
            assert!(lent_pages > PAGES as u64, "{lent_pages} pages, {options:?}");
        }
    });
}

/// What a data channel does: a packet of pages goes straight into memory that is there, and is staged where it is not.
#[test]
fn pages_go_straight_into_memory_only_where_it_exists() {
    each(|memory, options| {
        for page in (0..PAGES).step_by(5) {
            memory.block(0).unwrap().page(at(page)).unwrap().copy_in(&[9; 100]);
        }
        let placement = Placement::new(memory, options).unwrap();
        let bulk = placement.info().mechanism == PlaceMechanism::Userfault;
        let mut placer = placement.placer().unwrap();
        let fill = |places: &[RegionSlice], pages: &[u64]| {
            let mut pages = pages.iter();
            for place in places {
                for part in 0..place.len() / PAGE_SIZE {
                    let number = (pages.next().unwrap() / PAGE_SIZE as u64) as u8;
                    place.sub(part * PAGE_SIZE, PAGE_SIZE).unwrap().copy_in(&[number; PAGE_SIZE]);
                }
            }
            assert_eq!(pages.next(), None);
        };
        let packets = [vec![10, 11, 12, 14, 13], vec![5, 10], vec![10, 11], vec![20]];
        for (time, packet) in packets.iter().enumerate() {
            let offsets: Vec<u64> = packet.iter().map(|page| at(*page)).collect();
            let mut places = Vec::new();
            if placer.in_place(0, &offsets, &mut places).unwrap() {
                let merged = if time == 0 { 3 } else { packet.len() };
                assert_eq!(places.len(), if time == 2 { 1 } else { merged }, "{options:?}");
                fill(&places, &offsets);
                placer.received_in_place(0, &offsets).unwrap();
            } else {
                assert!(bulk && places.is_empty(), "{options:?}");
                // The second packet brings one that is staged since the first, unless it was there before.
                for page in packet {
                    placer.place_page(0, at(*page), &[*page as u8; PAGE_SIZE]).unwrap();
                }
                if time == 0 {
                    assert!(!placer.in_place(0, &offsets, &mut places).unwrap(), "staged");
                    placer.flush().unwrap();
                    assert!(placer.in_place(0, &offsets, &mut places).unwrap(), "there by now");
                }
            }
        }
        let outside = [at(PAGES), at(PAGES - 1)];
        assert!(placer.in_place(0, &outside, &mut Vec::new()).is_err());
        assert!(placer.received_in_place(0, &outside).is_err());
        placer.flush().unwrap();
        placement.finish().unwrap();
        let now = contents(memory, 0);
        for page in packets.into_iter().flatten() {
            let bytes = &now[page * PAGE_SIZE..][..PAGE_SIZE];
            assert!(bytes.iter().all(|byte| *byte == page as u8), "{options:?}: page {page}");
            assert!(placement.received(0).unwrap().test(page), "{options:?}: page {page}");
        }
    });
}

/// As no honest source does: two channels stage the same page, and one of them breaks.
#[test]
fn a_page_that_two_channels_staged_and_one_lost_is_missed() {
    let memory = memory(Backing::Anonymous);
    let policy = PlacePolicy::Only(PlaceMechanism::Userfault);
    let options =
        PlacementOptions { policy, copying: Copying::Inline, ..PlacementOptions::default() };
    let placement = match Placement::new(&memory, options) {
        Ok(placement) => placement,
        Err(error @ Error::Unavailable { .. }) => {
            return mig_testkit::not_applicable("userfaultfd", &error.to_string());
        }
        Err(error) => panic!("{error}"),
    };
    let (mut first, mut second) = (placement.placer().unwrap(), placement.placer().unwrap());
    first.place_page(0, 0, &[1; PAGE_SIZE]).unwrap();
    assert!(second.lend().is_some());
    assert!(!second.take_lent(0, 0).unwrap(), "somebody has it staged");
    second.place_page(0, 0, &[2; PAGE_SIZE]).unwrap();
    first.flush().unwrap();
    drop(second);
    assert_eq!(placement.finish().unwrap_err().blame(), Blame::Misuse);
}

#[test]
fn the_report_says_what_runs_and_why_nothing_better() {
    let memory = memory(Backing::Anonymous);
    let best = Placement::new(&memory, PlacementOptions::default()).unwrap();
    eprintln!("best here: {:?}", best.info());
    drop(best);
    let warm = PlacementOptions { warmth: Warmth::Warm, ..PlacementOptions::default() };
    let warm = Placement::new(&memory, warm).unwrap();
    assert_eq!(warm.info().mechanism, PlaceMechanism::Plain);
    assert!(warm.info().passed_over[0].reason.contains("touched before"));
    for block in memory.set().as_slice() {
        block.populate().unwrap();
    }
    let detected = Placement::new(&memory, PlacementOptions::default()).unwrap();
    assert_eq!(detected.info().mechanism, PlaceMechanism::Plain);
    assert_eq!(detected.info().touched_bytes, memory.total_bytes());
    for staging_pages in [0, 1025] {
        let options = PlacementOptions { staging_pages, ..PlacementOptions::default() };
        assert_eq!(Placement::new(&memory, options).unwrap_err().blame(), Blame::Misuse);
    }
}

#[test]
fn the_copying_thread_counts_its_time() {
    let memory = memory(Backing::Anonymous);
    let options = PlacementOptions { copying: Copying::Thread, ..PlacementOptions::default() };
    let placement = Placement::new(&memory, options).unwrap();
    let mut placer = placement.placer().unwrap();
    for page in 0..PAGES {
        placer.place_page(0, at(page), &[1; PAGE_SIZE]).unwrap();
    }
    placer.flush().unwrap();
    if placement.info().mechanism == PlaceMechanism::Userfault {
        assert!(!placement.statistics().copying_cpu.is_zero());
        assert_eq!(placement.statistics().pages_placed, PAGES as u64);
    }
}

/// Real memory of some size that a VMM advised: whatever the trial says here, it is told, and the contents are right.
#[test]
fn huge_pages_are_tried_where_they_are_allowed_and_only_there() {
    const CHUNKS: usize = 40;
    let pages = CHUNKS * 512;
    for huge_pages in [HugePages::Advise, HugePages::Never] {
        let options = BlockOptions { huge_pages, ..BlockOptions::default() };
        let block = RamBlock::with_options("pc.ram", at(pages), &options).unwrap();
        let may = block.region().may_have_huge_pages();
        assert!(!(may && huge_pages == HugePages::Never));
        let memory = RamBlocks::new([block]).unwrap();
        let placement = Placement::new(&memory, PlacementOptions::default()).unwrap();
        let info = placement.info().clone();
        let passed_over = info.passed_over.iter().find(|other| other.mechanism == "huge-pages");
        match (info.mechanism, passed_over) {
            (PlaceMechanism::HugePages, None) => assert!(may),
            (_, Some(told)) if may => assert!(told.reason.contains(" us"), "{told}"),
            (_, Some(told)) => assert!(told.reason.contains("not allowed"), "{told}"),
            (other, None) => panic!("{other} without a word about huge pages"),
        }
        let mut placer = placement.placer().unwrap();
        for page in (0..pages).filter(|page| page % 7 != 3) {
            placer.place_page(0, at(page), &[page as u8 | 1; PAGE_SIZE]).unwrap();
        }
        placer.flush().unwrap();
        placement.finish().unwrap();
        let used = placement.statistics().huge_pages;
        assert_eq!(used > 0, info.mechanism == PlaceMechanism::HugePages, "{used}");
        // Where the mapping begins is the kernel's choice.
        assert!(used <= CHUNKS as u64 + 1, "{used}");
        let now = contents(&memory, 0);
        for (page, bytes) in now.chunks(PAGE_SIZE).enumerate() {
            let expected = if page % 7 == 3 { 0 } else { page as u8 | 1 };
            assert!(bytes.iter().all(|byte| *byte == expected), "page {page}");
        }
    }
}
