//! A cancel works at every moment, and leaves the guest with its source.

use std::time::Duration;

use mig_engine::{Event, Owner};
use mig_proto::state::MigrationStatus;
use mig_testkit::memory_pair;
use mig_transport::Blame;
use tokio::io::AsyncWriteExt;

use crate::support::{Arriving, BlackHole, Pair, Ready, channels, one_way};

#[tokio::test(start_paused = true)]
async fn before_it_starts() {
    let mut pair = Pair::new();
    pair.source.handle().cancel();
    let error = pair.source.run(&BlackHole).await.unwrap_err();
    assert_eq!((error.blame(), error.owner()), (Blame::Cancelled, Owner::Source));
    assert_eq!(pair.source.handle().status(), MigrationStatus::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn while_connecting_to_a_black_hole_and_while_nobody_comes() {
    let mut pair = Pair::new();
    let (source, destination) = (pair.source.handle(), pair.destination.handle());
    let mut listener = Arriving::new([]);
    let operator = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(source.status(), MigrationStatus::Setup);
        assert_eq!(destination.info().socket_address, ["memory:test"]);
        source.cancel();
        destination.cancel();
        tokio::time::Instant::now()
    };
    let (sent, received, asked) =
        tokio::join!(pair.source.run(&BlackHole), pair.destination.run(&mut listener), operator);
    assert_eq!(sent.unwrap_err().blame(), Blame::Cancelled);
    assert_eq!(received.unwrap_err().blame(), Blame::Cancelled);
    assert!(asked.elapsed() <= Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn while_the_destination_does_not_read() {
    let mut pair = Pair::new();
    let handle = pair.source.handle();
    let (out, _silent) = channels();
    let connector = Ready::new(out);
    let operator = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(handle.status(), MigrationStatus::Active);
        handle.cancel();
        tokio::time::Instant::now()
    };
    let (sent, asked) = tokio::join!(pair.source.run(&connector), operator);
    let error = sent.unwrap_err();
    assert_eq!((error.blame(), error.owner()), (Blame::Cancelled, Owner::Source));
    assert_eq!(error.phase(), Some("active"));
    assert!(asked.elapsed() <= Duration::from_millis(100));
    assert!(pair.source_diary.entries().is_empty(), "the guest was never stopped");
}

#[tokio::test(start_paused = true)]
async fn in_pre_switchover_the_guest_runs_again() {
    let mut pair = Pair::new();
    let mut capabilities = one_way();
    capabilities.pause_before_switchover = true;
    pair.source = pair.source.with_capabilities(capabilities);
    let handle = pair.source.handle();
    let mut heard = handle.subscribe();
    let (out, into) = channels();
    let operator = async {
        while heard.recv().await.unwrap() != Event::Status(MigrationStatus::PreSwitchover) {}
        handle.cancel();
    };
    let ((sent, received), ()) = tokio::join!(pair.run(out, into), operator);
    assert_eq!(sent.unwrap_err().owner(), Owner::Source);
    assert_eq!(received.unwrap_err().blame(), Blame::PeerMisbehaved);
    assert_eq!(pair.source_diary.entries(), ["stop", "resume"]);
    assert!(!pair.destination_diary.runs());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_destination_tells_the_source() {
    let mut pair = Pair::new();
    let mut capabilities = one_way();
    capabilities.return_path = true;
    capabilities.pause_before_switchover = true;
    pair.source = pair.source.with_capabilities(capabilities);
    let mut heard = pair.source.handle().subscribe();
    let destination = pair.destination.handle();
    let (out, into) = channels();
    let operator = async {
        while heard.recv().await.unwrap() != Event::Status(MigrationStatus::PreSwitchover) {}
        destination.cancel();
    };
    let ((sent, received), ()) = tokio::join!(pair.run(out, into), operator);
    assert_eq!(received.unwrap_err().blame(), Blame::Cancelled);
    let sent = sent.unwrap_err();
    assert!(sent.to_string().contains("SHUT 1"), "{sent}");
    assert_eq!(pair.source_diary.entries(), ["stop", "resume"]);
}

#[tokio::test(start_paused = true)]
async fn after_the_guest_was_started_it_is_too_late() {
    let mut pair = Pair::new();
    pair.source = pair.source.with_capabilities(one_way());
    let (out, mut relayed) = channels();
    let (mut relaying, into) = memory_pair(8 * 1024);
    let mut from = relayed.take_receiver().unwrap();
    let mut to = relaying.take_sender().unwrap();
    let destination = pair.destination.handle();
    let diary = pair.destination_diary.clone();
    let operator = async {
        tokio::io::copy(&mut from, &mut to).await.unwrap();
        to.flush().await.unwrap();
        // The destination waits for the end of the channel, which does not come.
        while !diary.has("start") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        destination.cancel();
    };
    let ((sent, received), ()) = tokio::join!(pair.run(out, into), operator);
    assert!(!sent.unwrap().confirmed);
    assert!(!received.unwrap().confirmed);
    assert_eq!(pair.destination.handle().status(), MigrationStatus::Completed);
    drop(to);
}
