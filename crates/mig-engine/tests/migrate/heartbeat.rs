//! A source that has nothing to say is heard to be alive, and finds out whether its destination is.

use std::time::Duration;

use mig_engine::{Event, Owner, Wait};
use mig_proto::state::MigrationStatus;
use mig_testkit::memory_pair;
use mig_transport::Blame;
use tokio::io::AsyncWriteExt;

use crate::support::{Pair, Ready, channels, check, one_way};

fn paused(mut pair: Pair) -> Pair {
    let mut capabilities = one_way();
    capabilities.return_path = true;
    capabilities.pause_before_switchover = true;
    pair.source = pair.source.with_capabilities(capabilities);
    pair
}

/// An hour before the switchover, and neither end allows silence for longer than a few seconds.
#[tokio::test(start_paused = true)]
async fn a_long_pause_is_no_silence_for_either_end() {
    let mut pair = paused(Pair::new());
    let mut deadlines = mig_engine::Deadlines::default();
    deadlines.idle = Some(Duration::from_secs(8));
    deadlines.heartbeat = Some(Duration::from_secs(8));
    pair.source = pair.source.with_deadlines(deadlines);
    pair.destination = pair.destination.with_deadlines(deadlines);
    let handle = pair.source.handle();
    let mut heard = handle.subscribe();
    let (out, into) = channels();
    let operator = async {
        while heard.recv().await.unwrap() != Event::Status(MigrationStatus::PreSwitchover) {}
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(handle.waits_for().contains("continue"), "{}", handle.waits_for());
        handle.continue_switchover();
    };
    let ((sent, received), ()) = tokio::join!(pair.run(out, into), operator);
    sent.unwrap();
    received.unwrap();
    check(&pair.destination_ram);
}

/// Far away, or slow: each answer comes after the next PING has left, and none after the deadline.
#[tokio::test(start_paused = true)]
async fn answers_that_take_longer_than_a_pulse_are_signs_of_life() {
    // 600 ms later, and however many are under way.
    let late = |_begun, now| now + Duration::from_millis(600);
    answered_late(Duration::from_secs(2), Duration::from_secs(300), late).await;
}

/// More PINGs than the source can tell apart, all answered at once, and in time.
#[tokio::test(start_paused = true)]
async fn a_backlog_that_is_answered_at_once_is_a_sign_of_life() {
    // Less than it takes until the count begins anew.
    let limit = Duration::from_secs(2400);
    let held = |begun, now| std::cmp::max(begun + Duration::from_secs(2000), now);
    answered_late(limit, 3 * limit, held).await;
}

/// A pause in which what the destination says arrives at `when(beginning, now)`.
async fn answered_late(
    heartbeat: Duration,
    pause: Duration,
    when: impl Fn(tokio::time::Instant, tokio::time::Instant) -> tokio::time::Instant,
) {
    let begun = tokio::time::Instant::now();
    let mut pair = paused(Pair::new());
    let mut deadlines = mig_engine::Deadlines::default();
    deadlines.heartbeat = Some(heartbeat);
    pair.source = pair.source.with_deadlines(deadlines);
    let handle = pair.source.handle();
    let mut heard = handle.subscribe();
    let (out, mut relayed) = channels();
    let (mut relaying, into) = memory_pair(8 * 1024);
    let (mut from, mut to) = (relayed.take_receiver().unwrap(), relaying.take_sender().unwrap());
    let (mut answers, mut back) =
        (relaying.take_receiver().unwrap(), relayed.take_sender().unwrap());
    let forward = async {
        let _over = tokio::io::copy(&mut from, &mut to).await;
        to.shutdown().await.unwrap();
    };
    let (late, mut due) = tokio::sync::mpsc::unbounded_channel::<(tokio::time::Instant, Vec<u8>)>();
    let take = async move {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = tokio::io::AsyncReadExt::read(&mut answers, &mut buffer).await {
            let when = when(begun, tokio::time::Instant::now());
            late.send((when, buffer[..read].to_vec())).unwrap();
        }
    };
    let give = async {
        while let Some((when, bytes)) = due.recv().await {
            tokio::time::sleep_until(when).await;
            if back.write_all(&bytes).await.is_err() {
                break;
            }
            let _gone = back.flush().await;
        }
    };
    let operator = async {
        while heard.recv().await.unwrap() != Event::Status(MigrationStatus::PreSwitchover) {}
        tokio::time::sleep(pause).await;
        handle.continue_switchover();
    };
    let connector = Ready::new(out);
    let mut listener = crate::support::Arriving::new([into]);
    let (sent, received, (), (), (), ()) = tokio::join!(
        pair.source.run(&connector),
        pair.destination.run(&mut listener),
        forward,
        take,
        give,
        operator
    );
    sent.unwrap();
    received.unwrap();
    check(&pair.destination_ram);
}

/// Its kernel still takes what is sent, so only the answer that does not come tells.
#[tokio::test(start_paused = true)]
async fn a_destination_that_stands_still_is_found() {
    let mut pair = paused(Pair::new());
    let handle = pair.source.handle();
    let mut heard = handle.subscribe();
    // Room for everything: nobody waits for a reader.
    let (out, mut stopped) = memory_pair(1 << 20);
    let operator = async {
        while heard.recv().await.unwrap() != Event::Status(MigrationStatus::PreSwitchover) {}
        tokio::time::Instant::now()
    };
    let connector = Ready::new(out);
    let (sent, since) = tokio::join!(pair.source.run(&connector), operator);
    let error = sent.unwrap_err();
    assert_eq!((error.blame(), error.wait()), (Blame::Deadline, Some(Wait::Heartbeat)), "{error}");
    assert_eq!((error.owner(), error.phase()), (Owner::Source, Some("pre-switchover")));
    // A minute, and the pulses before and behind it.
    let found = since.elapsed().as_secs();
    assert!((60..=85).contains(&found), "{found} s");
    assert_eq!(pair.source_diary.entries(), ["stop", "resume"]);
    drop(stopped.take_receiver());
}

/// Switched off, nothing is said that QEMU's source would not say, and nothing is found out.
#[tokio::test(start_paused = true)]
async fn without_a_heartbeat_a_pause_is_silent() {
    let mut pair = paused(Pair::new());
    let mut deadlines = mig_engine::Deadlines::default();
    deadlines.heartbeat = None;
    pair.source = pair.source.with_deadlines(deadlines);
    let handle = pair.source.handle();
    let mut heard = handle.subscribe();
    let (out, mut relayed) = channels();
    let (mut relaying, into) = memory_pair(8 * 1024);
    let (mut from, mut to) = (relayed.take_receiver().unwrap(), relaying.take_sender().unwrap());
    let (mut answers, mut back) =
        (relaying.take_receiver().unwrap(), relayed.take_sender().unwrap());
    let forward = async {
        let mut sent = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let read = tokio::io::AsyncReadExt::read(&mut from, &mut buffer).await.unwrap();
            if read == 0 {
                break;
            }
            sent.extend_from_slice(&buffer[..read]);
            to.write_all(&buffer[..read]).await.unwrap();
            to.flush().await.unwrap();
        }
        to.shutdown().await.unwrap();
        sent
    };
    let backward = async {
        let _over = tokio::io::copy(&mut answers, &mut back).await;
    };
    let operator = async {
        while heard.recv().await.unwrap() != Event::Status(MigrationStatus::PreSwitchover) {}
        tokio::time::sleep(Duration::from_secs(500)).await;
        handle.continue_switchover();
    };
    let connector = Ready::new(out);
    let mut listener = crate::support::Arriving::new([into]);
    let (sent, received, bytes, (), ()) = tokio::join!(
        pair.source.run(&connector),
        pair.destination.run(&mut listener),
        forward,
        backward,
        operator
    );
    sent.unwrap();
    received.unwrap();
    let pings = bytes.windows(7).filter(|bytes| bytes == b"\x08\0\x02\0\x04mi").count();
    let heartbeats = bytes.windows(8).filter(|bytes| bytes == b"\x08\0\x02\0\x04mii").count();
    assert_eq!((pings, heartbeats), (0, 0));
}
