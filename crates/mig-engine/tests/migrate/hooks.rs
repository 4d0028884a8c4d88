//! A transport that carries pages itself: the order in which it is asked, that nothing else carries them, and that it can
//! neither hold up nor outlive a migration.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use mig_engine::{Deadlines, Destination, Error, Outcome, Owner, Parameters, Source};
use mig_ram::{RamBlock, RamBlocks};
use mig_testkit::{DirectRam, Fault, direct_pair, pattern, stream_channel};
use mig_transport::{
    Blame, Channel, ChannelParts, Connector, RamBlockInfo, RamHooks, Result, SavePages,
    WindowReason,
};
use tokio::time::Instant;

use crate::support::{
    Arriving, Diary, Half, Pair, RAM_BYTES, Ready, TestGuest, channels, check, one_way, whole,
};

const PAGE: u64 = 4096;
/// What `fill` writes.
const NORMAL: u64 = 36;
const ZERO: u64 = 32;

/// Every call of a migration of an idle guest.
const CALLS: [&str; 17] = [
    "source register test.ram",
    "source register test.rom",
    "source before Setup",
    "source after Setup",
    "destination register test.ram",
    "destination register test.rom",
    "destination load",
    "source before Round",
    "source save",
    "source after Round",
    "destination load",
    "source before Finish",
    "source after Finish",
    "destination load",
    "destination release",
    "source dropped",
    "destination dropped",
];

type Ended = (std::result::Result<Outcome, Error>, std::result::Result<Outcome, Error>);

#[tokio::test(start_paused = true)]
async fn pages_go_by_the_transport_and_the_hooks_are_asked_in_order() {
    let mut pair = Pair::new();
    let (out, into, direct) = direct_pair(64 * 1024, true);
    let (sent, received) = pair.run(out, into).await;
    let (sent, received) = (sent.unwrap(), received.unwrap());
    check(&pair.destination_ram);
    assert!(sent.confirmed);
    let calls = direct.calls();
    // Calls that are alike and follow each other are compared as one: the two ends interleave as they like.
    let by = |who: &str, calls: &[String]| -> Vec<String> {
        let mut own: Vec<_> = calls.iter().filter(|call| call.starts_with(who)).cloned().collect();
        own.dedup();
        own
    };
    let expected = CALLS.map(str::to_owned);
    for who in ["source", "destination"] {
        assert_eq!(by(who, &calls), by(who, &expected));
    }
    assert_eq!(direct.saved(), [(0, 0, RAM_BYTES), (1, 0, 4 * PAGE)], "whole runs");
    assert_eq!((sent.info.ram.normal, sent.info.ram.duplicate), (NORMAL, ZERO));
    assert_eq!(received.info.ram.normal, 0, "no page came in the stream");
    let overhead = sent.info.ram.transferred - NORMAL * PAGE;
    assert!((100..4096).contains(&overhead), "what the transport wrote counts: {overhead}");
    assert!(sent.info.ram.precopy_bytes >= NORMAL * PAGE, "it was written while the guest ran");
    assert!(sent.info.ram.mbps > 0.0, "and is what the bandwidth is measured by");
    assert_eq!(sent.info.ram.remaining, 0);
}

#[tokio::test(start_paused = true)]
async fn runs_are_as_long_as_the_dirt_goes_and_no_longer_than_sixteen_mebibytes() {
    const MIB: u64 = 1 << 20;
    let ram = |len| Arc::new(RamBlocks::new([RamBlock::new("big", len).unwrap()]).unwrap());
    let (from, to) = (ram(20 * MIB), ram(20 * MIB));
    // Two stretches of pages in between zeros.
    for at in [0, 17 * MIB] {
        let part = whole(&from, 0).sub(usize::try_from(at).unwrap(), MIB as usize).unwrap();
        pattern::fill(&part, at);
    }
    let diary = Diary::default();
    let mut source = Source::new(from, Box::new(TestGuest::new(&diary)));
    let mut destination = Destination::new(to.clone(), Box::new(TestGuest::new(&diary)));
    let (out, into, direct) = direct_pair(64 * 1024, true);
    let connector = Ready::new(out);
    let mut listener = Arriving::new([into]);
    let (sent, received) = tokio::join!(source.run(&connector), destination.run(&mut listener));
    received.unwrap();
    assert_eq!(direct.saved(), [(0, 0, 16 * MIB), (0, 16 * MIB, 4 * MIB)]);
    let ram = sent.unwrap().info.ram;
    assert_eq!((ram.normal, ram.duplicate), (512, 18 * 256));
    for at in [0, 17 * MIB] {
        let part = whole(&to, 0).sub(usize::try_from(at).unwrap(), MIB as usize).unwrap();
        pattern::check(&part, at).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_transport_declines_goes_in_the_stream_behind_the_window() {
    let mut pair = Pair::new();
    let (out, into, direct) = direct_pair(1024, true);
    direct.decline(1);
    let (sent, received) = pair.run(out, into).await;
    let (sent, received) = (sent.unwrap(), received.unwrap());
    check(&pair.destination_ram);
    assert_eq!((sent.info.ram.normal, sent.info.ram.duplicate), (NORMAL, ZERO));
    assert_eq!(received.info.ram.normal, 4, "only the ROM");
}

#[tokio::test(start_paused = true)]
async fn without_a_way_back_it_is_sent_and_not_confirmed() {
    let mut pair = Pair::new();
    pair.source = pair.source.with_capabilities(one_way());
    let (out, into, _direct) = direct_pair(64 * 1024, false);
    let (sent, received) = pair.run(out, into).await;
    assert!(!sent.unwrap().confirmed);
    assert!(!received.unwrap().confirmed);
    check(&pair.destination_ram);
}

/// A connector for a transport that has a way back only when it is asked for one.
struct NotAskedForOne;

#[async_trait]
impl Connector for NotAskedForOne {
    async fn connect(&self) -> Result<Channel> {
        panic!("refused before anything is opened")
    }

    fn is_two_way(&self) -> Option<bool> {
        Some(false)
    }
}

#[tokio::test(start_paused = true)]
async fn a_way_back_that_the_transport_was_not_asked_for_is_refused_at_either_end() {
    let mut pair = Pair::new();
    let error = pair.source.run(&NotAskedForOne).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse);
    assert!(error.to_string().contains("both ends"), "{error}");
    assert!(pair.source_diary.entries().is_empty(), "the guest was never stopped");

    // The source has one, the destination does not: docs/wire/rdma.md §11.
    let mut pair = Pair::new();
    let (out, _into, _) = direct_pair(1024, true);
    let (_out, into, _) = direct_pair(1024, false);
    let (out, into) = joined(out, into);
    let (sent, received) = pair.run(out, into).await;
    assert_eq!(received.unwrap_err().blame(), Blame::PeerIncompatible);
    assert_eq!(sent.unwrap_err().owner(), Owner::Source);
    assert!(pair.source_diary.entries().is_empty(), "the guest was never stopped");
}

/// Two channels of which the second has no way back although the first does.
fn joined(mut out: Channel, mut into: Channel) -> (Channel, Channel) {
    let (near, far) = tokio::io::duplex(1024);
    let (near_reader, near_writer) = tokio::io::split(near);
    let (out_hooks, into_hooks) = (out.take_ram_hooks(), into.take_ram_hooks());
    let first =
        hooked(stream_channel(Some(near_reader), Some(near_writer), <_>::default()), out_hooks);
    let second = stream_channel(Some(far), None::<tokio::io::Empty>, <_>::default());
    (first, hooked(second, into_hooks))
}

fn hooked(mut plain: Channel, hooks: Box<dyn RamHooks>) -> Channel {
    let capabilities = plain.capabilities();
    Channel::new(ChannelParts {
        receive: plain.take_receiver().ok().map(|half| Box::new(Half(half)) as _),
        send: plain.take_sender().ok().map(|half| Box::new(Half(half)) as _),
        hooks: Some(hooks),
        capabilities,
        ..ChannelParts::default()
    })
}

#[tokio::test(start_paused = true)]
async fn the_rate_holds_for_what_the_transport_writes_and_zero_pages_are_free() {
    let mut pair = Pair::new();
    let mut parameters = Parameters::default();
    parameters.max_bandwidth = 100_000;
    pair.source = pair.source.with_parameters(parameters);
    let (out, into, direct) = direct_pair(64 * 1024, true);
    let begun = Instant::now();
    let (sent, received) = pair.run(out, into).await;
    sent.unwrap();
    received.unwrap();
    check(&pair.destination_ram);
    let seconds = begun.elapsed().as_secs_f64();
    let fair = (NORMAL * PAGE) as f64 / 100_000.0;
    assert!((0.95 * fair..1.1 * fair).contains(&seconds), "{seconds} s instead of {fair} s");
    assert!(direct.saved().iter().all(|(_, _, len)| *len == PAGE), "bursts are bounded");
}

#[tokio::test(start_paused = true)]
async fn what_the_guest_writes_while_a_window_is_open_is_sent_again() {
    let mut pair = Pair::new();
    let mut parameters = Parameters::default();
    parameters.max_bandwidth = 1_000_000;
    pair.source = pair.source.with_parameters(parameters);
    let first = whole(&pair.source_ram, 0).sub(0, 4096).unwrap();
    let (out, into, direct) = direct_pair(64 * 1024, true);
    let watched = direct.clone();
    let guest = async {
        // Its page was taken over, and the rate keeps the window open.
        while watched.saved().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        pattern::fill(&first, 99);
    };
    let ((sent, received), ()) = tokio::join!(pair.run(out, into), guest);
    sent.unwrap();
    received.unwrap();
    pattern::check(&whole(&pair.destination_ram, 0).sub(0, 4096).unwrap(), 99).unwrap();
    let firsts = direct.saved().iter().filter(|(block, at, _)| (*block, *at) == (0, 0)).count();
    assert!(firsts >= 2, "{:?}", direct.saved());
}

#[tokio::test(start_paused = true)]
async fn a_window_may_last_longer_than_silence_as_long_as_the_transport_shows_life() {
    let mut pair = Pair::new();
    let mut parameters = Parameters::default();
    parameters.max_bandwidth = 1000;
    let mut deadlines = Deadlines::default();
    deadlines.idle = Some(Duration::from_secs(20));
    pair.source = pair.source.with_parameters(parameters);
    pair.destination = pair.destination.with_deadlines(deadlines);
    let (out, into, _direct) = direct_pair(64 * 1024, true);
    let begun = Instant::now();
    let (sent, received) = pair.run(out, into).await;
    sent.unwrap();
    received.unwrap();
    assert!(begun.elapsed() > Duration::from_secs(120));
}

/// Every call but those that tell of an end; the finishing window is reached in all of them.
fn calls() -> impl Iterator<Item = &'static str> {
    let mut seen = Vec::new();
    CALLS.into_iter().filter(move |call| {
        let first = !seen.contains(call) && !call.ends_with("dropped");
        seen.push(*call);
        first
    })
}

async fn disturbed(
    call: &str,
    fault: Fault,
    idle: Option<Duration>,
    cancel: bool,
) -> (Pair, Ended, DirectRam, Duration) {
    let mut pair = Pair::new();
    // Only the end that is held up runs out of patience.
    let (mut source_deadlines, mut destination_deadlines) =
        (Deadlines::default(), Deadlines::default());
    let at_source = call.starts_with("source");
    source_deadlines.idle = idle.filter(|_| at_source);
    destination_deadlines.idle = idle.filter(|_| !at_source);
    pair.source = pair.source.with_deadlines(source_deadlines);
    pair.destination = pair.destination.with_deadlines(destination_deadlines);
    let (out, into, direct) = direct_pair(64 * 1024, true);
    direct.disturb(call, fault);
    let handle = match at_source {
        true => pair.source.handle(),
        false => pair.destination.handle(),
    };
    let watched = direct.clone();
    let operator = async {
        while cancel && !watched.calls().iter().any(|noted| noted == call) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if cancel {
            tokio::time::sleep(Duration::from_millis(5)).await;
            handle.cancel();
        }
        Instant::now()
    };
    let run = async {
        let ended = pair.run(out, into).await;
        (ended, Instant::now())
    };
    let ((ended, over), begun) = tokio::join!(run, operator);
    (pair, ended, direct, over.duration_since(begun))
}

/// The guest runs at the source alone, and no hooks are left.
fn check_failed(what: &str, pair: &Pair, ended: &Ended, direct: &DirectRam) -> (Blame, Blame) {
    let (sent, received) = (ended.0.as_ref().unwrap_err(), ended.1.as_ref().unwrap_err());
    assert_eq!(sent.owner(), Owner::Source, "{what}: {sent}");
    assert!(
        !pair.source_diary.has("stop") || pair.source_diary.runs(),
        "{what}: the guest runs on at the source"
    );
    assert!(!pair.destination_diary.runs(), "{what}: and nowhere else");
    for who in ["source dropped", "destination dropped"] {
        assert!(direct.calls().iter().any(|call| call == who), "{what}: {who}");
    }
    (sent.blame(), received.blame())
}

#[tokio::test(start_paused = true)]
async fn a_cancel_works_within_every_hook() {
    for call in calls() {
        let (pair, ended, direct, took) = disturbed(call, Fault::Hang, None, true).await;
        let (sent, received) = check_failed(call, &pair, &ended, &direct);
        let own = if call.starts_with("source") { sent } else { received };
        assert_eq!(own, Blame::Cancelled, "{call}");
        assert!(took <= Duration::from_millis(200), "{call}: both ends are unblocked: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_never_returns_ends_by_the_idle_deadline() {
    for call in calls() {
        let idle = Duration::from_secs(30);
        let (pair, ended, direct, took) = disturbed(call, Fault::Hang, Some(idle), false).await;
        let (sent, received) = check_failed(call, &pair, &ended, &direct);
        let (own, error) = match call.starts_with("source") {
            true => (sent, ended.0.unwrap_err()),
            false => (received, ended.1.unwrap_err()),
        };
        assert_eq!(own, Blame::Deadline, "{call}");
        assert!(error.to_string().contains("30s"), "{call}: {error}");
        assert!(took >= idle && took < idle + Duration::from_secs(2), "{call}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_fails_gives_the_guest_back_to_the_source() {
    for call in calls() {
        let (pair, ended, direct, _) = disturbed(call, Fault::Fail, None, false).await;
        let (sent, received) = check_failed(call, &pair, &ended, &direct);
        let own = if call.starts_with("source") { sent } else { received };
        assert_eq!(own, Blame::Io, "{call}");
    }
}

/// Hooks that open windows and take nothing.
struct Inert;

#[async_trait]
impl RamHooks for Inert {
    async fn register_block(&mut self, _: &RamBlockInfo) -> Result<()> {
        Ok(())
    }

    async fn before_iterate(&mut self, _: WindowReason) -> Result<()> {
        Ok(())
    }

    async fn save_pages(&mut self, _: usize, _: u64, _: u64) -> Result<SavePages> {
        Ok(SavePages::NotSupported)
    }

    async fn after_iterate(&mut self, _: WindowReason) -> Result<()> {
        Ok(())
    }

    async fn load_hook(&mut self) -> Result<()> {
        panic!("the source loads nothing")
    }
}

#[tokio::test(start_paused = true)]
async fn a_hook_record_on_a_channel_without_hooks_is_ignored() {
    let mut pair = Pair::new();
    let (out, into) = channels();
    let (sent, received) = pair.run(hooked(out, Box::new(Inert)), into).await;
    received.unwrap();
    check(&pair.destination_ram);
    let sent = sent.unwrap();
    assert_eq!((sent.info.ram.normal, sent.info.ram.duplicate), (NORMAL, ZERO));
}

#[tokio::test(start_paused = true)]
async fn stream_bytes_right_behind_the_hook_record_are_the_sources_fault() {
    let mut pair = Pair::new();
    let (out, into) = channels();
    let (_, mut hooks, direct) = direct_pair(1024, true);
    let into = hooked(into, hooks.take_ram_hooks());
    let connector = Ready::new(hooked(out, Box::new(Inert)));
    let mut listener = Arriving::new([into]);
    let (sent, received) =
        tokio::join!(pair.source.run(&connector), pair.destination.run(&mut listener));
    let received = received.unwrap_err();
    assert_eq!(received.blame(), Blame::PeerMisbehaved);
    assert!(received.to_string().contains("HOOK"), "{received}");
    assert!(received.position().is_some());
    assert_eq!(sent.unwrap_err().owner(), Owner::Source);
    assert!(!direct.calls().iter().any(|call| call == "destination load"), "no window is served");
}
