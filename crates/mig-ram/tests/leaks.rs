//! Why this exists: a destination that fails and tries again all day must not run out of descriptors, mappings or
//! threads. One test in a process of its own, because it counts what the process has.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use mig_ram::{
    Backing, BlockOptions, Copying, DirtyBitmap, DirtyTracker, GuestMemory, HugePages, Mechanism,
    PAGE_SIZE, PlaceMechanism, PlacePolicy, Placement, PlacementOptions, RamBlock, RamBlocks,
    TrackerPolicy,
};

#[derive(Debug, PartialEq)]
struct Held {
    descriptors: usize,
    guest_mappings: usize,
    threads: usize,
}

/// Guest mappings are told from the allocator's by their lengths, which nothing else in this process has.
const PAGES: usize = 12_347;

fn held() -> Held {
    let entries = |path: &str| std::fs::read_dir(path).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let guest = |line: &&str| {
        let range = line.split(' ').next().unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let address = |text| u64::from_str_radix(text, 16).unwrap();
        line.contains("mig-ram") || address(end) - address(start) >= (PAGES * PAGE_SIZE) as u64
    };
    Held {
        descriptors: entries("/proc/self/fd"),
        guest_mappings: maps.lines().filter(guest).count(),
        threads: entries("/proc/self/task"),
    }
}

fn one_life(backing: Backing) {
    for huge_pages in [HugePages::SystemDefault, HugePages::Never, HugePages::Advise] {
        let options = BlockOptions { backing, huge_pages, max_length: None };
        let block =
            || RamBlock::with_options("pc.ram", (PAGES * PAGE_SIZE) as u64, &options).unwrap();
        for mechanism in Mechanism::ALL {
            let policy = TrackerPolicy::Only(mechanism);
            let ram = RamBlocks::with_policy([block()], policy).unwrap();
            let info = ram.block(0).unwrap();
            if let Err(error) = ram.start_dirty_log() {
                mig_testkit::not_applicable("userfaultfd", &error.to_string());
                continue;
            }
            info.page(0).unwrap().copy_in(&[1]);
            ram.sync_dirty(0, &DirtyBitmap::new(PAGES)).unwrap();
            // Fails half way: the second block is tracked already (or, where userfaultfd and mprotect do not mind
            // each other, starts and ends).
            let other = block().info();
            drop(DirtyTracker::start(&[other.clone(), info.clone()], policy));
            // Fails at once: the second block is the first one again.
            assert!(DirtyTracker::start(&[info.clone(), info], TrackerPolicy::Best).is_err());
        }
        for mechanism in [PlaceMechanism::Userfault, PlaceMechanism::Populate] {
            for copying in [Copying::Inline, Copying::Thread] {
                let policy = PlacePolicy::Only(mechanism);
                let options = PlacementOptions { policy, copying, ..PlacementOptions::default() };
                let ram = RamBlocks::new([block()]).unwrap();
                let Ok(placement) = Placement::new(&ram, options) else { continue };
                let mut placer = placement.placer().unwrap();
                for page in 0..600u64 {
                    placer.place_page(0, page * 4096, &[1; PAGE_SIZE]).unwrap();
                }
                // Dropped as an aborted migration drops it: staged, not flushed, not finished.
            }
        }
    }
}

#[test]
fn nothing_is_left_behind() {
    // The first life may keep what is made once a process: the signal handler, the thread name table of the runtime.
    one_life(Backing::Anonymous);
    let before = held();
    for _ in 0..3 {
        one_life(Backing::Anonymous);
        one_life(Backing::Memfd);
    }
    assert_eq!(held(), before);
}
