//! Capability `xbzrle`: whatever the guest writes and whenever, the destination has its memory, and the copies that
//! deltas are made against are what the destination had.

use std::sync::{Arc, OnceLock};

use mig_engine::{
    Capabilities, Destination, MigrationHandle, MigrationInfo, Parameters, Source, XbzrleStatistics,
};
use mig_ram::{PAGE_SIZE, RamBlock, RamBlocks};
use mig_testkit::{direct_pair, pattern};
use mig_transport::{Blame, Channel};
use proptest::prelude::*;

use crate::{
    scripted::{PAGES, Writes, meddled},
    support::{Arriving, BlackHole, Diary, Pair, Ready, TestGuest, channels, whole},
};

const PAGE: u64 = PAGE_SIZE as u64;
/// Passes in which the guests here write; in the next one they do not, and are stopped.
const LAST: u64 = 6;

fn with_xbzrle() -> Capabilities {
    let mut capabilities = Capabilities::default();
    capabilities.return_path = true;
    capabilities.xbzrle = true;
    capabilities
}

/// Nothing but an empty remainder ends the passes.
fn parameters(cache_pages: usize) -> Parameters {
    let mut parameters = Parameters::default();
    parameters.downtime_limit = 0;
    parameters.xbzrle_cache_size = cache_pages as u64 * PAGE;
    parameters
}

fn source(memory: &Arc<Writes>, cache_pages: usize) -> Source {
    Source::new(Arc::clone(memory) as _, Box::new(TestGuest::new(&memory.diary)))
        .with_capabilities(with_xbzrle())
        .with_parameters(parameters(cache_pages))
}

/// Both ends, with all memory compared; answers what the source counted.
async fn migrate(memory: &Arc<Writes>, source: Source) -> MigrationInfo {
    migrate_over(memory, source, channels()).await
}

async fn migrate_over(
    memory: &Arc<Writes>,
    mut source: Source,
    (out, into): (Channel, Channel),
) -> MigrationInfo {
    let there = ["test.ram", "test.rom"].into_iter().zip(PAGES);
    let there = there.map(|(name, pages)| RamBlock::new(name, pages as u64 * PAGE).unwrap());
    let there = Arc::new(RamBlocks::new(there).unwrap());
    let guest = TestGuest::new(&Diary::default());
    let mut destination = Destination::new(there.clone(), Box::new(guest));
    let (connector, mut listener) = (Ready::new(meddled(out, memory)), Arriving::new([into]));
    let (sent, received) = tokio::join!(source.run(&connector), destination.run(&mut listener));
    received.unwrap();
    same_memory(&memory.ram, &there);
    sent.unwrap().info
}

#[track_caller]
fn same_memory(here: &RamBlocks, there: &RamBlocks) {
    for (block, pages) in PAGES.into_iter().enumerate() {
        let (mut one, mut other) = (vec![0; pages * PAGE_SIZE], vec![0; pages * PAGE_SIZE]);
        whole(here, block).copy_out(&mut one);
        whole(there, block).copy_out(&mut other);
        for (page, (one, other)) in one.chunks(PAGE_SIZE).zip(other.chunks(PAGE_SIZE)).enumerate() {
            assert!(one == other, "block {block}, page {page}");
        }
    }
}

fn cache(info: &MigrationInfo) -> &XbzrleStatistics {
    info.xbzrle_cache.as_ref().expect("the capability is on")
}

#[tokio::test(start_paused = true)]
async fn pages_that_are_sent_again_go_as_what_changed_in_them() {
    let memory = Writes::new(
        |guest, pass| {
            if pass <= LAST {
                for page in 0..16 {
                    guest.write(0, page, 16 + pass as usize, &[pass as u8; 8]);
                    guest.write(1, page, 2048, &[pass as u8; 40]);
                }
            }
        },
        None,
    );
    pattern::fill(&whole(&memory.ram, 0), 1);
    pattern::fill(&whole(&memory.ram, 1), 2);
    let info = migrate(&memory, source(&memory, 64)).await;
    let cache = cache(&info);
    // The second pass fills the cache, and every later one finds all of it there.
    assert_eq!((cache.cache_miss, cache.pages), (32, 32 * (LAST - 1)));
    assert_eq!((cache.cache_miss_rate, cache.overflow), (0.0, 0));
    assert_eq!(cache.cache_size, 64 * PAGE);
    assert!(cache.encoding_rate > 100.0, "{cache:?}");
    // The encoding, a length, and runs of two bytes with what they bring.
    assert!(cache.bytes < cache.pages * 62, "{cache:?}");
    assert_eq!(info.ram.normal, 112 + 32);
    assert!(info.ram.transferred < (112 + 32) * (PAGE + 8) + 20_000, "{:?}", info.ram);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_writes_while_a_page_is_on_its_way_finds_no_gap() {
    // Between the list and the wire, and in the middle of a page. Before the next pass what was there is there again: if
    // the destination got what was written meanwhile, no delta against the copy would take it away.
    let meanwhile = |guest: &Writes, pass: u64| {
        if pass <= LAST {
            (0..32).for_each(|page| guest.write(0, page, 97 * page, &[0xff; 8]));
        }
    };
    let between = |guest: &Writes, pass| {
        if pass <= LAST {
            for page in 0..32 {
                guest.write(0, page, 97 * page, &[1; 8]);
                guest.write(0, page, 4090, &[pass as u8; 6]);
            }
        }
    };
    let memory = Writes::new(between, Some(Box::new(meanwhile)));
    pattern::fill(&whole(&memory.ram, 0), 1);
    let info = migrate(&memory, source(&memory, 64)).await;
    assert!(cache(&info).pages >= 32 * 4, "{:?}", cache(&info));
}

#[tokio::test(start_paused = true)]
async fn a_cached_page_that_became_zero_is_the_base_of_the_next_delta() {
    let memory = Writes::new(
        |guest, pass| match pass {
            1 | 2 => guest.write(0, 3, 0, &[pass as u8; PAGE_SIZE]),
            3 => guest.write(0, 3, 0, &[0; PAGE_SIZE]),
            4 => guest.write(0, 3, 100, &[1, 2, 3]),
            _ => {}
        },
        None,
    );
    let info = migrate(&memory, source(&memory, 16)).await;
    let cache = cache(&info);
    // Pass 2 enters it, in pass 3 all of it differs, pass 4 sends ZERO, pass 5 three bytes.
    assert_eq!((cache.cache_miss, cache.overflow, cache.pages), (1, 1, 1));
    assert!(cache.bytes < 32, "{cache:?}");
    assert_eq!((info.ram.normal, info.ram.duplicate), (2, 112 + 1));
}

#[tokio::test(start_paused = true)]
async fn what_was_written_and_is_the_same_is_not_sent() {
    let memory = Writes::new(
        |guest, pass| match pass {
            1 => guest.write(0, 5, 0, &[7; 64]),
            2..=4 => guest.rewrite(0, 5),
            _ => {}
        },
        None,
    );
    let info = migrate(&memory, source(&memory, 16)).await;
    let cache = cache(&info);
    assert_eq!((cache.pages, cache.bytes, info.ram.normal), (3, 0, 1));
    assert_eq!(cache.encoding_rate, 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_cache_smaller_than_what_the_guest_writes_serves_the_pages_it_has() {
    let memory = Writes::new(
        |guest, pass| {
            if pass <= LAST {
                (0..64).for_each(|page| guest.write(0, page, 8, &[pass as u8; 8]));
            }
        },
        None,
    );
    pattern::fill(&whole(&memory.ram, 0), 1);
    // 24 pages make 16: a power of two.
    let info = migrate(&memory, source(&memory, 24)).await;
    let cache = cache(&info);
    assert_eq!(cache.cache_size, 16 * PAGE);
    assert_eq!(cache.pages, 16 * (LAST - 1));
    assert_eq!(cache.cache_miss, 64 + 48 * (LAST - 1));
    assert_eq!(cache.cache_miss_rate, 0.75);
}

#[tokio::test(start_paused = true)]
async fn the_cache_is_resized_while_it_is_used() {
    let handle = Arc::new(OnceLock::<MigrationHandle>::new());
    let steering = Arc::clone(&handle);
    // Up, down, nonsense, up beyond the guest's size.
    let sizes = [64, 4, 0, 100_000];
    let memory = Writes::new(
        move |guest, pass| {
            let handle = steering.get().unwrap();
            if pass <= 8 {
                (0..64).for_each(|page| guest.write(0, page, 8, &[pass as u8; 8]));
            }
            // Nothing was changed by asking for nothing.
            let is = handle.info().xbzrle_cache.unwrap().cache_size / PAGE;
            assert_eq!(is, [16, 16, 16, 64, 64, 4, 4, 4, 4, 128, 128][pass as usize]);
            if pass % 2 == 0 && pass <= 8 {
                handle.set_parameters(parameters(sizes[pass as usize / 2 - 1]));
            }
        },
        None,
    );
    pattern::fill(&whole(&memory.ram, 0), 1);
    let source = source(&memory, 16);
    handle.set(source.handle()).unwrap();
    let info = migrate(&memory, source).await;
    // Pass 3 finds all 16 in the larger one, pass 4 all 64, and from then on there are 4.
    assert_eq!(cache(&info).pages, 16 + 64 + 5 * 4);
}

#[tokio::test(start_paused = true)]
async fn a_change_beyond_a_page_of_delta_goes_as_the_page() {
    let memory = Writes::new(
        |guest, pass| {
            // Every second byte: the delta is longer than the page.
            let page: Vec<u8> = (0..PAGE_SIZE).map(|at| (at % 2 * pass as usize) as u8).collect();
            if pass <= LAST {
                guest.write(0, 0, 0, &page);
            }
        },
        None,
    );
    let info = migrate(&memory, source(&memory, 16)).await;
    assert_eq!((cache(&info).overflow, cache(&info).pages), (LAST - 1, 0));
    assert_eq!(info.ram.normal, LAST);
}

#[tokio::test(start_paused = true)]
async fn a_guest_whose_deltas_fit_its_downtime_is_stopped_whatever_its_pages_would_take() {
    let memory = Writes::new(
        |guest, pass| {
            if !guest.diary.has("stop") {
                (0..64).for_each(|page| guest.write(0, page, 8, &[pass as u8; 8]));
            }
        },
        None,
    );
    pattern::fill(&whole(&memory.ram, 0), 1);
    let mut parameters = parameters(64);
    // 30 kB in 300 ms: the deltas are less than 2, the pages 260.
    (parameters.downtime_limit, parameters.avail_switchover_bandwidth) = (300, 100_000);
    let source = source(&memory, 64).with_parameters(parameters);
    let info = migrate(&memory, source).await;
    assert!(info.ram.downtime_bytes < 10_000, "{:?}", info.ram);
    assert!(cache(&info).pages >= 64, "{:?}", cache(&info));
}

#[tokio::test(start_paused = true)]
async fn where_it_cannot_be_nothing_is_sent() {
    let mut pair = Pair::new();
    let mut both = with_xbzrle();
    both.multifd = true;
    pair.source = pair.source.with_capabilities(both);
    let error = pair.source.run(&BlackHole).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse);
    assert!(error.to_string().contains("multifd"), "{error}");

    let mut pair = Pair::new();
    pair.source = pair.source.with_capabilities(with_xbzrle());
    let (out, _into, direct) = direct_pair(64 * 1024, true);
    let error = pair.source.run(&Ready::new(out)).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse, "{error}");
    assert_eq!(pair.source.handle().info().ram.transferred, 0);
    assert!(direct.saved().is_empty());
    assert_eq!(pair.source_diary.entries(), Vec::<String>::new(), "the guest was left alone");

    let mut pair = Pair::new();
    pair.source = pair.source.with_capabilities(with_xbzrle()).with_parameters(parameters(0));
    let error = pair.source.run(&BlackHole).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse, "{error}");
    assert!(error.to_string().contains("xbzrle-cache-size"), "{error}");
}

/// One write of the guest: before which pass's end, or while which is sent, and what.
#[derive(Clone, Copy, Debug)]
struct Write {
    pass: u64,
    meanwhile: bool,
    block: usize,
    page: usize,
    at: usize,
    len: usize,
    fill: u8,
}

fn write() -> impl Strategy<Value = Write> {
    (1..=LAST, any::<bool>(), 0..2usize, 0..12usize, 0..PAGE_SIZE, 1..PAGE_SIZE, 0..3u8).prop_map(
        |(pass, meanwhile, block, page, at, len, fill)| {
            // Whole pages of zeros, too, and contents that come back: what a wrong copy would show is hidden by any change.
            let (at, len) = if fill == 0 && len % 2 == 0 { (0, PAGE_SIZE) } else { (at, len) };
            let (at, len) = if fill == 1 { (at % 4 * 8, len % 40 + 1) } else { (at, len) };
            Write { pass, meanwhile, block, page, at, len: len.min(PAGE_SIZE - at), fill }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_writes_arrive_with_any_cache(
        writes in prop::collection::vec(write(), 1..120),
        cache_pages in 1..40usize,
        buffer in prop_oneof![Just(512usize), Just(16 * 1024)],
    ) {
        let apply = |writes: &[Write], meanwhile: bool| {
            let writes: Vec<Write> =
                writes.iter().filter(|write| write.meanwhile == meanwhile).copied().collect();
            move |guest: &Writes, pass: u64| {
                for write in writes.iter().filter(|write| write.pass == pass) {
                    let bytes: Vec<u8> =
                        (0..write.len).map(|i| write.fill.wrapping_mul((i as u8 / 8) | 1)).collect();
                    guest.write(write.block, write.page, write.at, &bytes);
                }
            }
        };
        let write = apply(&writes, false);
        let between = move |guest: &Writes, pass| {
            write(guest, pass);
            // Every pass has something, so that there are all of them.
            if pass <= LAST {
                guest.rewrite(1, 15);
            }
        };
        let memory = Writes::new(between, Some(Box::new(apply(&writes, true))));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let channels = mig_testkit::memory_pair(buffer);
        runtime.block_on(migrate_over(&memory, source(&memory, cache_pages), channels));
    }
}
