//! A migration that goes well.

use std::time::Duration;

use mig_engine::{Blockers, Event, Parameters};
use mig_proto::state::MigrationStatus;
use mig_transport::Blame;

use crate::support::{BlackHole, Pair, channels, check, one_way};

#[tokio::test(start_paused = true)]
async fn a_guest_arrives_whole_and_is_told_apart_from_its_source() {
    let mut pair = Pair::new();
    let (out, into) = channels();
    let mut heard = pair.source.handle().subscribe();
    let (sent, received) = pair.run(out, into).await;
    let (sent, received) = (sent.unwrap(), received.unwrap());
    check(&pair.destination_ram);
    assert!(sent.confirmed && received.confirmed);
    assert_eq!(pair.source_diary.entries(), ["stop", "save"]);
    assert_eq!(pair.destination_diary.entries(), ["load clock", "load disk", "start"]);

    let mut statuses = Vec::new();
    let mut passes = Vec::new();
    while let Ok(event) = heard.try_recv() {
        match event {
            Event::Status(status) => statuses.push(status),
            Event::Pass { pass, remaining } => passes.push((pass, remaining)),
            _ => {}
        }
    }
    use MigrationStatus as S;
    assert_eq!(statuses, [S::Setup, S::Active, S::Device, S::Completed]);
    assert_eq!(passes, [(1, 68 * 4096)]);

    let ram = &sent.info.ram;
    assert_eq!((ram.normal, ram.duplicate), (36, 32));
    assert_eq!(ram.normal_bytes, 36 * 4096);
    assert_eq!(ram.total, 68 * 4096);
    assert_eq!(ram.remaining, 0);
    assert_eq!(ram.transferred, received.info.ram.transferred);
    assert_eq!(ram.precopy_bytes + ram.downtime_bytes, ram.transferred);
    assert_eq!((received.info.ram.normal, received.info.ram.duplicate), (36, 32));
    assert_eq!(sent.info.status, "completed");
    assert!(sent.info.downtime.is_some());
}

#[tokio::test(start_paused = true)]
async fn without_a_return_path_it_is_sent_and_not_confirmed() {
    let mut pair = Pair::new();
    pair.source = pair.source.with_capabilities(one_way());
    let (out, into) = channels();
    let (sent, received) = pair.run(out, into).await;
    assert!(!sent.unwrap().confirmed);
    assert!(!received.unwrap().confirmed);
    check(&pair.destination_ram);
    assert!(pair.destination_diary.has("start"));
}

#[tokio::test(start_paused = true)]
async fn pause_before_switchover_waits_with_the_guest_stopped() {
    let mut pair = Pair::new();
    let mut capabilities = one_way();
    capabilities.return_path = true;
    capabilities.pause_before_switchover = true;
    pair.source = pair.source.with_capabilities(capabilities);
    let handle = pair.source.handle();
    let diary = pair.source_diary.clone();
    let (out, into) = channels();
    let mut heard = handle.subscribe();
    let operator = async {
        loop {
            if heard.recv().await.unwrap() == Event::Status(MigrationStatus::PreSwitchover) {
                break;
            }
        }
        assert_eq!(diary.entries(), ["stop"]);
        // Longer than the idle deadline: the wire is silent, and that is no dead link.
        tokio::time::sleep(Duration::from_secs(500)).await;
        assert_eq!(handle.status(), MigrationStatus::PreSwitchover);
        handle.continue_switchover();
    };
    let ((sent, received), ()) = tokio::join!(pair.run(out, into), operator);
    sent.unwrap();
    received.unwrap();
    check(&pair.destination_ram);
}

#[tokio::test(start_paused = true)]
async fn a_blocked_guest_does_not_migrate() {
    let blockers = Blockers::default();
    let blocker = blockers.add("a device that cannot be saved");
    let mut pair = Pair::new();
    pair.source = pair.source.with_blockers(blockers);
    let error = pair.source.run(&BlackHole).await.unwrap_err();
    assert_eq!(error.blame(), Blame::Misuse);
    assert!(error.to_string().contains("a device that cannot be saved"), "{error}");
    assert_eq!(pair.source.handle().info().blocked_reasons.len(), 1);
    assert_eq!(pair.source.handle().status(), MigrationStatus::None);
    drop(blocker);
    let (out, into) = channels();
    pair.run(out, into).await.0.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_rate_is_kept_and_can_be_raised_while_it_runs() {
    let mut pair = Pair::new();
    let mut slow = Parameters::default();
    slow.max_bandwidth = 1000;
    pair.source = pair.source.with_parameters(slow);
    let handle = pair.source.handle();
    let (out, into) = channels();
    let operator = async {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let transferred = handle.info().ram.transferred;
        assert!(transferred < 12_000, "{transferred} bytes in 10 s at 1000 bytes/s");
        handle.set_parameters(Parameters::default());
    };
    let begun = tokio::time::Instant::now();
    let ((sent, received), ()) = tokio::join!(pair.run(out, into), operator);
    sent.unwrap();
    received.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}
