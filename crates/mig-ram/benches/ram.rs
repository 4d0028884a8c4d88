//! Rates of the loops that touch every page: `cargo bench -p mig-ram [-- MIB]`. Prints figures, judges nothing.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use mig_ram::{
    Backing, BlockOptions, Copying, DirtyBitmap, GuestMemory, HugePages, Mechanism, PAGE_SIZE,
    PlaceMechanism, PlacePolicy, Placement, PlacementOptions, RamBlock, RamBlocks, Result,
    TrackerPolicy, Warmth, is_zero,
};
use rustix::time::{ClockId, clock_gettime};

const RUNS: usize = 5;
/// What the engine hands over: pages out of a read buffer, with 8-byte words between.
const READ_BUFFER: usize = 1 << 20;

fn main() -> Result<()> {
    let mib = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(2048usize);
    let pages = mib * 256;
    println!("{mib} MiB of {PAGE_SIZE}-byte pages, medians of {RUNS}");
    zero_test(pages)?;
    bitmap();
    for backing in [Backing::Anonymous, Backing::Memfd] {
        for (mechanism, warmth) in [
            (PlaceMechanism::HugePages, Warmth::Detect),
            (PlaceMechanism::Plain, Warmth::Warm),
            (PlaceMechanism::Plain, Warmth::Detect),
            (PlaceMechanism::Populate, Warmth::Detect),
            (PlaceMechanism::Userfault, Warmth::Detect),
        ] {
            if mechanism == PlaceMechanism::HugePages && backing == Backing::Memfd {
                continue;
            }
            for copying in [Copying::Inline, Copying::Thread] {
                if mechanism == PlaceMechanism::Userfault || copying == Copying::Inline {
                    placing(pages, mechanism, warmth, copying, backing)?;
                }
            }
        }
    }
    for mechanism in Mechanism::ALL {
        tracking(pages, mechanism)?;
    }
    Ok(())
}

/// Wall clock and this process's processor time.
fn timed(work: impl FnOnce() -> Result<()>) -> Result<(Duration, Duration)> {
    let cpu = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
    };
    let (wall, used) = (Instant::now(), cpu());
    work()?;
    Ok((wall.elapsed(), cpu() - used))
}

fn median(mut of: Vec<(Duration, Duration)>) -> (f64, f64) {
    of.sort();
    let (wall, cpu) = of[of.len() / 2];
    (wall.as_secs_f64(), cpu.as_secs_f64())
}

fn fresh(pages: usize, backing: Backing) -> Result<RamBlocks> {
    fresh_with(pages, backing, HugePages::Never)
}

fn fresh_with(pages: usize, backing: Backing, huge_pages: HugePages) -> Result<RamBlocks> {
    let options = BlockOptions { backing, huge_pages, max_length: None };
    RamBlocks::new([RamBlock::with_options("pc.ram", (pages * PAGE_SIZE) as u64, &options)?])
}

fn gigabytes_per_sec(pages: usize, seconds: f64) -> f64 {
    (pages * PAGE_SIZE) as f64 / seconds / 1e9
}

fn zero_test(pages: usize) -> Result<()> {
    for (what, pages, times) in [("memory", pages, 1), ("second-level cache", 64, pages / 64)] {
        let memory = fresh(pages, Backing::Anonymous)?;
        memory.set().as_slice()[0].populate()?;
        let region = memory.set().as_slice()[0].region();
        let runs = (0..RUNS).map(|_| {
            timed(|| {
                for _ in 0..times {
                    for page in 0..pages {
                        let zero = is_zero(&*region, page * PAGE_SIZE, PAGE_SIZE);
                        assert!(black_box(zero) == Ok(true), "populated memory is zero");
                    }
                }
                Ok(())
            })
        });
        let (wall, cpu) = median(runs.collect::<Result<_>>()?);
        println!(
            "zero test in {what}: {:.1} GB/s, {:.1} GB per CPU second",
            gigabytes_per_sec(pages * times, wall),
            gigabytes_per_sec(pages * times, cpu),
        );
    }
    Ok(())
}

fn bitmap() {
    // 1 TiB of guest memory.
    const PAGES: usize = 1 << 28;
    let bitmap = DirtyBitmap::new(PAGES);
    for (what, every) in [("empty", PAGES), ("one in 4096", 4096), ("one in 2", 2)] {
        (0..PAGES).step_by(every).for_each(|page| _ = bitmap.set(page));
        let start = Instant::now();
        let pages: usize = bitmap.runs().map(|run| run.len).sum();
        println!("runs of a 1 TiB bitmap, {what}: {:.1?} for {pages} pages", start.elapsed());
    }
}

fn placing(
    pages: usize,
    mechanism: PlaceMechanism,
    warmth: Warmth,
    copying: Copying,
    backing: Backing,
) -> Result<()> {
    let mut buffer = vec![0; READ_BUFFER];
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    for word in buffer.chunks_exact_mut(8) {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        word.copy_from_slice(&seed.to_ne_bytes());
    }
    let record = PAGE_SIZE + 8;
    let in_buffer = READ_BUFFER / record;
    let mut copying_cpu = Vec::new();
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        let memory = match mechanism {
            PlaceMechanism::HugePages => fresh_with(pages, backing, HugePages::Advise)?,
            _ => fresh(pages, backing)?,
        };
        if warmth == Warmth::Warm {
            memory.set().as_slice()[0].populate()?;
        }
        let policy = PlacePolicy::Only(mechanism);
        let options = PlacementOptions { policy, warmth, copying, ..PlacementOptions::default() };
        runs.push(timed(|| {
            let placement = Placement::new(&memory, options)?;
            let mut placer = placement.placer()?;
            for page in 0..pages {
                let at = page % in_buffer * record + 8;
                let bytes = &buffer[at..at + PAGE_SIZE];
                placer.place_page(0, (page * PAGE_SIZE) as u64, bytes)?;
            }
            placer.flush()?;
            placement.finish()?;
            copying_cpu.push(placement.statistics().copying_cpu);
            Ok(())
        })?);
    }
    let (wall, cpu) = median(runs);
    copying_cpu.sort();
    if mechanism == PlaceMechanism::HugePages {
        println!("the following was forced; unforced: {}", unforced(pages)?);
    }
    println!(
        "placing, {backing:?} {warmth:?} {mechanism} {copying:?}: {wall:.2} s, {cpu:.2} s CPU ({:.2} s of it the \
         copying thread's), {:.1} GB/s",
        copying_cpu[RUNS / 2].as_secs_f64(),
        gigabytes_per_sec(pages, wall),
    );
    Ok(())
}

/// What is chosen for memory that may have huge pages, and why.
fn unforced(pages: usize) -> Result<String> {
    let memory = fresh_with(pages, Backing::Anonymous, HugePages::Advise)?;
    let placement = Placement::new(&memory, PlacementOptions::default())?;
    let info = placement.info();
    Ok(match info.passed_over.first() {
        Some(passed_over) => format!("{}, {passed_over}", info.mechanism),
        None => info.mechanism.to_string(),
    })
}

/// One thread writes a word to every page in turn; then everything is collected.
fn tracking(pages: usize, mechanism: Mechanism) -> Result<()> {
    // mprotect runs into the limit of mappings only with scattered writes; these are not.
    let block = RamBlock::new("pc.ram", (pages * PAGE_SIZE) as u64)?;
    block.populate()?;
    let memory = RamBlocks::with_policy([block], TrackerPolicy::Only(mechanism))?;
    let info = memory.start_dirty_log()?;
    let block = memory.set().as_slice()[0].clone();
    let whole = block.slice(0, pages * PAGE_SIZE)?;
    let dirty = DirtyBitmap::new(pages);
    let mut syncs = Vec::new();
    let mut quiet = Vec::new();
    let mut writes = Vec::new();
    for _ in 0..RUNS {
        writes.push(timed(|| {
            for page in 0..pages {
                whole.sub(page * PAGE_SIZE, 8).expect("inside the block").copy_in(&[1; 8]);
            }
            Ok(())
        })?);
        syncs.push(timed(|| memory.sync_dirty(0, &dirty).map(drop))?);
        assert_eq!(dirty.count(), pages as u64, "every page was written");
        dirty.clear_all();
        quiet.push(timed(|| memory.sync_dirty(0, &dirty).map(drop))?);
    }
    let (write, write_cpu) = median(writes);
    println!(
        "tracking, {}: a first write costs {:.2} us ({:.2} us CPU); sync of all dirty {:.1} ms, of none {:.1} ms",
        info.mechanism,
        write / pages as f64 * 1e6,
        write_cpu / pages as f64 * 1e6,
        median(syncs).0 * 1e3,
        median(quiet).0 * 1e3,
    );
    Ok(())
}
