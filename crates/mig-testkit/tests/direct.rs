//! The double keeps to the rules of what it stands for: windows are served by both ends, pages are in place when one
//! closes and not before, and memory that was taken back is out of reach.

#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

use std::{sync::Arc, time::Duration};

use mig_testkit::{Fault, direct_pair, pattern};
use mig_transport::{
    Blame, RamBlockInfo, RamHooks, Region, RegionSlice, SavePages, VecRegion, WindowReason,
};

const BYTES: usize = 4 * 4096;

fn block() -> (RamBlockInfo, RegionSlice) {
    let region: Arc<dyn Region> = VecRegion::zeroed(BYTES);
    let slice = RegionSlice::whole(Arc::clone(&region));
    (RamBlockInfo { idstr: "ram".into(), used_length: BYTES as u64, region }, slice)
}

/// Both ends past the window of the setup section, and their memory.
async fn set_up(
    source: &mut dyn RamHooks,
    destination: &mut dyn RamHooks,
) -> (RegionSlice, RegionSlice) {
    let ((near, near_memory), (far, far_memory)) = (block(), block());
    source.register_block(&near).await.unwrap();
    destination.register_block(&far).await.unwrap();
    source.before_iterate(WindowReason::Setup).await.unwrap();
    let (closed, served) =
        tokio::join!(source.after_iterate(WindowReason::Setup), destination.load_hook());
    closed.unwrap();
    served.unwrap();
    (near_memory, far_memory)
}

#[tokio::test(start_paused = true)]
async fn pages_are_in_place_when_the_window_closes_and_both_ends_wait_for_each_other() {
    let (mut out, mut into, direct) = direct_pair(64, true);
    let (mut source, mut destination) = (out.take_ram_hooks(), into.take_ram_hooks());
    let (near, far) = set_up(&mut *source, &mut *destination).await;
    pattern::fill(&near.sub(0, BYTES / 2).unwrap(), 3);
    source.before_iterate(WindowReason::Round).await.unwrap();
    let unserved = tokio::time::timeout(Duration::from_secs(1), source.save_pages(0, 0, 4096));
    assert!(unserved.await.is_err(), "nobody serves the window");
    let window = async {
        let saved = source.save_pages(0, 0, BYTES as u64).await.unwrap();
        assert_eq!(saved, SavePages::Delayed { zero_pages: 2 });
        assert!(pattern::check(&far.sub(0, BYTES / 2).unwrap(), 3).is_err(), "not yet");
        source.after_iterate(WindowReason::Round).await.unwrap();
    };
    let ((), served) = tokio::join!(window, destination.load_hook());
    served.unwrap();
    pattern::check(&far.sub(0, BYTES / 2).unwrap(), 3).unwrap();
    assert_eq!(direct.saved(), [(0, 0, BYTES as u64)]);

    // Nothing is written once the memory was taken back.
    source.before_iterate(WindowReason::Finish).await.unwrap();
    let window = async {
        source.save_pages(0, 0, 4096).await.unwrap();
    };
    let serving = tokio::time::timeout(Duration::from_secs(1), destination.load_hook());
    let ((), unclosed) = tokio::join!(window, serving);
    assert!(unclosed.is_err(), "the window is open until the source closes it");
    destination.release().await.unwrap();
    let error = source.after_iterate(WindowReason::Finish).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Io, "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_end_that_goes_away_ends_the_others_wait() {
    let (mut out, mut into, direct) = direct_pair(64, true);
    let (mut source, mut destination) = (out.take_ram_hooks(), into.take_ram_hooks());
    set_up(&mut *source, &mut *destination).await;
    direct.disturb("source before Round", Fault::Fail);
    assert!(source.before_iterate(WindowReason::Round).await.is_err());
    drop(source);
    assert_eq!(destination.load_hook().await.unwrap_err().blame(), Blame::Io);
    drop(destination);
    let calls = direct.calls();
    assert_eq!(calls[calls.len() - 2..], ["destination load", "destination dropped"]);
}
