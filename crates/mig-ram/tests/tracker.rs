//! Why this exists: a write that tracking misses is a corrupted guest. Every mechanism that runs here is forced in turn
//! and raced against real writers; one that cannot run is reported as skipped.

#![expect(unsafe_code, reason = "a system call that writes guest memory, as a device model does")]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    io::Write,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use mig_ram::{
    Backing, BlockInfo, BlockOptions, DirtyBitmap, DirtyTracker, Error, GuestMemory, Mechanism,
    PAGE_SIZE, RamBlock, RamBlocks, TrackerPolicy,
};
use mig_transport::RegionSlice;

fn block(pages: usize, backing: Backing) -> RamBlock {
    let options = BlockOptions { backing, ..BlockOptions::default() };
    RamBlock::with_options("pc.ram", (pages * PAGE_SIZE) as u64, &options).unwrap()
}

fn page(block: &BlockInfo, number: usize) -> RegionSlice {
    block.page((number * PAGE_SIZE) as u64).unwrap()
}

/// Runs `test` with every policy that works here, on both kinds of memory.
fn each(test: impl Fn(TrackerPolicy, Backing)) {
    let policies = Mechanism::ALL.map(TrackerPolicy::Only);
    for policy in policies.into_iter().chain([TrackerPolicy::Best, TrackerPolicy::Unprivileged]) {
        match DirtyTracker::start(&[block(1, Backing::Anonymous).info()], policy) {
            Ok(_) => [Backing::Anonymous, Backing::Memfd].into_iter().for_each(|b| test(policy, b)),
            Err(error @ Error::Unavailable { .. }) => {
                mig_testkit::not_applicable("userfaultfd", &format!("{policy:?}: {error}"));
            }
            Err(error) => panic!("{policy:?}: {error}"),
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
fn no_write_is_lost_while_rounds_go_on() {
    const PAGES: usize = 700;
    each(|policy, backing| {
        let ram = RamBlocks::with_policy([block(PAGES, backing)], policy).unwrap();
        let info = ram.block(0).unwrap();
        let whole = RegionSlice::whole(info.region.clone());
        // Half of it exists before tracking starts.
        (0..PAGES).step_by(2).for_each(|n| page(&info, n).copy_in(&[n as u8; 64]));
        let log = ram.start_dirty_log().unwrap();
        // Round 1 sends everything.
        let mut copy = vec![0; PAGES * PAGE_SIZE];
        whole.copy_out(&mut copy);

        let dirty = DirtyBitmap::new(PAGES);
        let writing = AtomicBool::new(true);
        let rounds = std::thread::scope(|scope| {
            let writers: Vec<_> = (1..=3u64)
                .map(|seed| {
                    let info = &info;
                    scope.spawn(move || {
                        let mut dice = Dice(seed * 0x9e37_79b9);
                        for i in 0..6000u32 {
                            // A quarter of the writes hits eight pages all writers share.
                            let number = if i % 4 == 0 { dice.roll(8) } else { dice.roll(PAGES) };
                            let at = dice.roll(PAGE_SIZE / 8) * 8;
                            let place = page(info, number).sub(at, 8).unwrap();
                            place.copy_in(&(u64::from(i) << 8 | seed).to_ne_bytes());
                        }
                    })
                })
                .collect();
            let mut rounds = 0;
            loop {
                let last = !writing.load(Ordering::Acquire);
                ram.sync_dirty(0, &dirty).unwrap();
                let mut from = 0;
                while let Some(run) = dirty.take_next_run(from, 64) {
                    for number in run.start..run.end() {
                        let at = number * PAGE_SIZE;
                        page(&info, number).copy_out(&mut copy[at..at + PAGE_SIZE]);
                    }
                    from = run.end();
                }
                rounds += 1;
                if last {
                    break rounds;
                }
                if writers.iter().all(|writer| writer.is_finished()) {
                    writing.store(false, Ordering::Release);
                }
            }
        });
        let mut now = vec![0; PAGES * PAGE_SIZE];
        whole.copy_out(&mut now);
        let differ = now.chunks(PAGE_SIZE).zip(copy.chunks(PAGE_SIZE)).position(|(a, b)| a != b);
        assert_eq!(differ, None, "{policy:?} {backing:?} {log:?}, {rounds} rounds");
    });
}

#[test]
fn exactly_what_was_written_since_is_reported() {
    each(|policy, backing| {
        let ram = RamBlocks::with_policy([block(300, backing), block2(backing)], policy).unwrap();
        let (first, second) = (ram.block(0).unwrap(), ram.block(1).unwrap());
        for number in [0, 10, 299] {
            page(&first, number).copy_in(&[1]);
        }
        ram.start_dirty_log().unwrap();
        let dirty = DirtyBitmap::new(300);
        assert_eq!(ram.sync_dirty(0, &dirty).unwrap(), 0, "clean slate, {policy:?} {backing:?}");

        // Existing pages, pages that never existed, reads.
        for number in [10, 11, 12, 64, 298] {
            page(&first, number).copy_in(&[2]);
        }
        page(&second, 1).copy_in(&[2]);
        page(&first, 200).copy_out(&mut [0]);
        assert_eq!(ram.sync_dirty(0, &dirty).unwrap(), 5, "{policy:?} {backing:?}");
        assert_eq!(
            dirty.runs().map(|run| (run.start, run.len)).collect::<Vec<_>>(),
            [(10, 3), (64, 1), (298, 1)]
        );
        // Already dirty in the bitmap: found again, not counted again.
        page(&first, 10).copy_in(&[3]);
        page(&first, 200).copy_in(&[3]);
        assert_eq!(ram.sync_dirty(0, &dirty).unwrap(), 1);
        dirty.clear_all();
        assert_eq!(ram.sync_dirty(0, &dirty).unwrap(), 0);
        let other = DirtyBitmap::new(64);
        assert_eq!(ram.sync_dirty(1, &other).unwrap(), 1);
        assert!(other.test(1));

        ram.stop_dirty_log().unwrap();
        page(&first, 5).copy_in(&[4]);
        assert!(ram.sync_dirty(0, &dirty).is_err());
        // A second migration starts afresh.
        ram.start_dirty_log().unwrap();
        assert_eq!(ram.sync_dirty(0, &dirty).unwrap(), 0);
        page(&first, 6).copy_in(&[4]);
        assert_eq!(ram.sync_dirty(0, &dirty).unwrap(), 1);
        ram.stop_dirty_log().unwrap();
    });
}

fn block2(backing: Backing) -> RamBlock {
    let options = BlockOptions { backing, ..BlockOptions::default() };
    RamBlock::with_options("vga.vram", 64 * PAGE_SIZE as u64, &options).unwrap()
}

#[test]
fn writes_by_the_kernel_are_found_where_promised() {
    each(|policy, backing| {
        let ram = RamBlocks::with_policy([block(16, backing)], policy).unwrap();
        let info = ram.block(0).unwrap();
        let log = ram.start_dirty_log().unwrap();
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(&[0xab; 4000]).unwrap();
        let target = RegionSlice::new(info.region.clone(), 4 * PAGE_SIZE + 3000, 4000).unwrap();
        // SAFETY: 4000 bytes of a live mapping.
        let got = unsafe { libc::read(reader.as_raw_fd(), target.as_ptr().as_ptr().cast(), 4000) };
        let error = std::io::Error::last_os_error();
        let dirty = DirtyBitmap::new(16);
        ram.sync_dirty(0, &dirty).unwrap();
        if log.kernel_writes {
            assert_eq!(got, 4000, "{error} with {log:?}");
            assert!(dirty.test(4) && dirty.test(5) && dirty.count() == 2, "{log:?}");
        } else {
            assert_eq!((got, error.raw_os_error()), (-1, Some(libc::EFAULT)), "{log:?}");
        }
    });
}

#[test]
fn memory_given_back_and_written_again_is_reported() {
    each(|policy, backing| {
        let ram = RamBlocks::with_policy([block(16, backing)], policy).unwrap();
        let info = ram.block(0).unwrap();
        (0..16).for_each(|n| page(&info, n).copy_in(&[1]));
        let log = ram.start_dirty_log().unwrap();
        ram.release(0, 4 * PAGE_SIZE as u64, 4 * PAGE_SIZE as u64).unwrap();
        let dirty = DirtyBitmap::new(16);
        ram.sync_dirty(0, &dirty).unwrap();
        dirty.clear_all();
        page(&info, 5).copy_in(&[2]);
        ram.sync_dirty(0, &dirty).unwrap();
        assert!(dirty.test(5), "{log:?} {backing:?}");
        // And a second time: the page is tracked like any other again.
        dirty.clear_all();
        page(&info, 5).copy_in(&[3]);
        ram.sync_dirty(0, &dirty).unwrap();
        assert!(dirty.test(5), "{log:?} {backing:?}");
    });
}

#[test]
fn writers_survive_the_end_of_tracking() {
    each(|policy, backing| {
        let ram = RamBlocks::with_policy([block(256, backing)], policy).unwrap();
        let info = ram.block(0).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut number = 0;
                    while !stop.load(Ordering::Acquire) {
                        page(&info, number).copy_in(&[1]);
                        number = (number + 7) % 256;
                    }
                });
            }
            for _ in 0..20 {
                ram.start_dirty_log().unwrap();
                let dirty = DirtyBitmap::new(256);
                ram.sync_dirty(0, &dirty).unwrap();
                ram.stop_dirty_log().unwrap();
            }
            stop.store(true, Ordering::Release);
        });
    });
}

/// Of a large guest the protection is taken off behind whoever stops the log; the next one starts from a clean slate.
#[test]
fn the_log_of_a_large_guest_starts_again_at_once() {
    const PAGES: usize = (512 << 20) / PAGE_SIZE;
    let ram = RamBlocks::new([block(PAGES, Backing::Anonymous)]).unwrap();
    let info = ram.block(0).unwrap();
    // Only memory that is there takes time to end; a log that did not wait for it would have to make do with less.
    for n in 0..PAGES {
        page(&info, n).copy_in(&[1]);
    }
    let dirty = DirtyBitmap::new(PAGES);
    let mut first = None;
    for round in 0..3 {
        let mechanism = ram.start_dirty_log().unwrap().mechanism;
        assert_eq!(&mechanism, first.get_or_insert_with(|| mechanism.clone()), "round {round}");
        assert_eq!(ram.sync_dirty(0, &dirty).unwrap(), 0, "round {round}");
        page(&info, PAGES - 1).copy_in(&[1]);
        assert_eq!(ram.sync_dirty(0, &dirty).unwrap(), 1, "round {round}");
        dirty.clear_all();
        ram.stop_dirty_log().unwrap();
        page(&info, 0).copy_in(&[1]);
        assert!(ram.sync_dirty(0, &dirty).is_err());
    }
}

#[test]
fn scattered_writes_beyond_the_limit_of_mappings_are_not_lost() {
    // mprotect makes a mapping of every stretch of equal access; vm.max_map_count is 65530 unless raised.
    const PAGES: usize = 150_000;
    let policy = TrackerPolicy::Only(Mechanism::Mprotect);
    let ram = RamBlocks::with_policy([block(PAGES, Backing::Anonymous)], policy).unwrap();
    let info = ram.block(0).unwrap();
    ram.start_dirty_log().unwrap();
    let dirty = DirtyBitmap::new(PAGES);
    for round in 0..2 {
        (0..PAGES).step_by(2).for_each(|n| page(&info, n).copy_in(&[1]));
        ram.sync_dirty(0, &dirty).unwrap();
        assert!((0..PAGES).step_by(2).all(|n| dirty.test(n)), "round {round}");
        dirty.clear_all();
    }
}

#[test]
fn the_report_says_what_runs_and_why_nothing_better() {
    let memory = [block(4, Backing::Anonymous).info()];
    let best = DirtyTracker::start(&memory, TrackerPolicy::Best).unwrap();
    let rank = |name: &str| Mechanism::ALL.iter().position(|m| m.name() == name).unwrap();
    assert_eq!(best.info().passed_over.len(), rank(&best.info().mechanism));
    for passed in &best.info().passed_over {
        assert!(!passed.reason.is_empty());
    }
    eprintln!("best here: {:?}", best.info());
}

#[test]
fn misuse_is_refused_with_a_reason() {
    let ram = RamBlocks::new([block(128, Backing::Anonymous)]).unwrap();
    ram.stop_dirty_log().unwrap();
    ram.start_dirty_log().unwrap();
    assert!(matches!(ram.start_dirty_log(), Err(Error::Misuse { .. })));
    assert!(matches!(ram.sync_dirty(0, &DirtyBitmap::new(127)), Err(Error::Misuse { .. })));
    assert!(matches!(ram.sync_dirty(1, &DirtyBitmap::new(128)), Err(Error::Misuse { .. })));
    // The same memory twice: whoever came first keeps it.
    for mechanism in Mechanism::ALL {
        let policy = TrackerPolicy::Only(mechanism);
        let ram = RamBlocks::with_policy([block(4, Backing::Anonymous)], policy).unwrap();
        if ram.start_dirty_log().is_ok() {
            assert!(DirtyTracker::start(&[ram.block(0).unwrap()], policy).is_err(), "{mechanism}");
        }
    }
    let twice = [ram.block(0).unwrap(), ram.block(0).unwrap()];
    assert!(matches!(DirtyTracker::start(&twice, TrackerPolicy::Best), Err(Error::Misuse { .. })));
    let heap =
        BlockInfo { region: mig_transport::VecRegion::zeroed(5000), ..ram.block(0).unwrap() };
    assert!(matches!(DirtyTracker::start(&[heap], TrackerPolicy::Best), Err(Error::Misuse { .. })));
}

#[test]
fn trackers_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<DirtyTracker>();
    shared::<RamBlocks>();
    let _object: Arc<dyn GuestMemory> =
        Arc::new(RamBlocks::new([block(1, Backing::Anonymous)]).unwrap());
}
