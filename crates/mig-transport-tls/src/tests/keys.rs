//! Keys change at any time, in both directions, while both are used: QEMU's TLS once could not
//! (docs/wire/transports.md §5.3).

use std::{pin::Pin, sync::Arc, task::Poll, time::Duration};

use mig_testkit::{memory_pair, pattern};
use mig_transport::{Channel, Receiver, Sender};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::doubles::{Ends, socket_pair};
use crate::session::Link;

/// Much longer than anything here takes.
const HANG_GUARD: Duration = Duration::from_secs(120);
const ALL: usize = 8 << 20;
const PIECE: usize = 50_021;

/// Writes all of a pattern, and changes keys before each piece, asking the peer to do so too every other time.
async fn write(sender: &mut Sender, link: Arc<Link>, seed: u64) {
    let all = pattern::bytes(seed, 0, ALL);
    for (at, piece) in all.chunks(PIECE).enumerate() {
        link.refresh(at % 2 == 0).expect("the keys can change");
        sender.write_all(piece).await.expect("the peer reads");
    }
    sender.shutdown().await.expect("an orderly end");
}

async fn read(receiver: &mut Receiver, seed: u64) {
    let mut buffer = vec![0; 70_001];
    let mut done = 0;
    loop {
        let got = receiver.read(&mut buffer).await.expect("the peer writes");
        if got == 0 {
            break;
        }
        pattern::compare(seed, done, &buffer[..got]).expect("what was written is read");
        done += got;
    }
    assert_eq!(done, ALL);
}

fn both(mut channel: Channel) -> (Receiver, Sender) {
    (channel.take_receiver().expect("fresh"), channel.take_sender().expect("fresh"))
}

async fn both_ways(pair: (Channel, Channel)) {
    let ends = Ends::new();
    let ((source, source_link), (destination, destination_link)) = ends.links(pair).await;
    let (mut source_in, mut source_out) = both(source);
    let (mut destination_in, mut destination_out) = both(destination);
    // Four tasks, on as many threads as there are.
    let tasks = [
        tokio::spawn(async move { write(&mut source_out, source_link, 1).await }),
        tokio::spawn(async move { write(&mut destination_out, destination_link, 2).await }),
        tokio::spawn(async move { read(&mut destination_in, 1).await }),
        tokio::spawn(async move { read(&mut source_in, 2).await }),
    ];
    let all = async {
        for task in tasks {
            task.await.expect("no task panics");
        }
    };
    tokio::time::timeout(HANG_GUARD, all).await.expect("nothing waits for ever");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn keys_change_both_ways_during_a_transfer_both_ways() {
    both_ways(socket_pair()).await;
}

#[tokio::test]
async fn keys_change_while_hardly_anything_fits_the_channel() {
    both_ways(memory_pair(997)).await;
}

/// The destination never writes by itself: what TLS wants to say leaves all the same, and is understood.
#[tokio::test]
async fn an_end_that_only_reads_answers_key_updates() {
    let ends = Ends::new();
    for pair in [socket_pair(), memory_pair(100)] {
        let ((source, link), (destination, answers)) = ends.links(pair).await;
        let (mut source_in, mut source_out) = both(source);
        let (mut destination_in, destination_out) = both(destination);
        let all = async {
            tokio::join!(
                async {
                    write(&mut source_out, Arc::clone(&link), 3).await;
                },
                async {
                    read(&mut destination_in, 3).await;
                    assert!(answers.key_changes() > 10, "{} answers", answers.key_changes());
                    drop(destination_out);
                },
                async {
                    let got = source_in.read(&mut [0; 16]).await;
                    assert_eq!(got.expect("key updates, and an orderly end"), 0);
                }
            )
        };
        tokio::time::timeout(HANG_GUARD, all).await.expect("nothing waits for ever");
    }
}

/// An end that is told to changes its keys by itself, and the other answers each time.
#[tokio::test]
async fn keys_change_after_as_many_records_as_were_chosen() {
    let mut ends = Ends::new();
    ends.options.key_update_after = Some(3);
    let ((source, link), (destination, answers)) = ends.links(socket_pair()).await;
    let (_source_in, mut source_out) = both(source);
    let (mut destination_in, _destination_out) = both(destination);
    let all = pattern::bytes(4, 0, ALL);
    let both = async {
        tokio::join!(
            async {
                source_out.write_all(&all).await.expect("the peer reads");
                source_out.shutdown().await.expect("an orderly end");
            },
            read(&mut destination_in, 4),
        )
    };
    tokio::time::timeout(HANG_GUARD, both).await.expect("nothing waits for ever");
    // At most 16 KiB in a record.
    assert!(link.key_changes() >= (ALL >> 14) as u64 / 4, "{}", link.key_changes());
    assert!(answers.key_changes() >= 1, "{}", answers.key_changes());
}

/// A peer that asks for new keys again and again, and reads nothing, is answered when it does.
#[tokio::test]
async fn answers_that_nobody_takes_do_not_pile_up() {
    let ends = Ends::new();
    let (ours, theirs) = memory_pair(1 << 20);
    let ((source, link), (destination, answers)) = ends.links((ours, theirs)).await;
    let (_source_in, mut source_out) = both(source);
    let (mut destination_in, mut destination_out) = both(destination);
    // The way back is full.
    let fill = std::future::poll_fn(|cx| {
        while let Poll::Ready(written) = Pin::new(&mut destination_out).poll_write(cx, &[0; 65536])
        {
            written.expect("there is somebody");
        }
        Poll::Ready(())
    });
    fill.await;
    let before = answers.pending_bytes();
    assert!(before > 0, "nothing fits any more");
    for _ in 0..3000 {
        link.refresh(true).expect("the keys can change");
        source_out.write_all(b"x").await.expect("it is read");
        source_out.flush().await.expect("it is read");
        destination_in.read_exact(&mut [0]).await.expect("it was sent");
    }
    assert_eq!(answers.pending_bytes(), before);
}
