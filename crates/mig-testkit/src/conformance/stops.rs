//! Promises about stopping: from outside, and by the other end going away.

use std::future::poll_fn;

use mig_transport::{Channel, Gather, Receiver, RegionSlice, Sender, ShutdownHandle, VecRegion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    checks::{take_both, take_receiver, take_sender},
    tell_when_blocked,
};

const CHUNK: usize = 256 * 1024;

pub(super) async fn wakes_reader(mut channel: Channel) {
    let mut receiver = take_receiver(&mut channel);
    let stop = channel.shutdown_handle();
    let (read, blocked) = tell_when_blocked(async move {
        let outcome = receiver.read(&mut [0; 16]).await;
        (outcome, receiver)
    });
    let reader = tokio::spawn(read);
    blocked.await.expect("with nothing sent the reader waits");
    stop.shutdown();
    let (outcome, mut receiver) = reader.await.expect("the reader does not panic");
    assert_stopped(outcome);
    receiver_is_stopped(&mut receiver).await;
}

pub(super) async fn wakes_writer(mut writing: Channel, reading: Channel) {
    let mut sender = take_sender(&mut writing);
    let stop = writing.shutdown_handle();
    let (write, blocked) = tell_when_blocked(async move {
        let chunk = vec![0x5a; CHUNK];
        loop {
            if let Err(error) = sender.write_all(&chunk).await {
                return (error, sender);
            }
        }
    });
    let writer = tokio::spawn(write);
    blocked.await.expect("with nobody reading the writer waits");
    stop.shutdown();
    let (error, mut sender) = writer.await.expect("the writer does not panic");
    assert_stopped::<()>(Err(error));
    sender_is_stopped(&mut sender).await;
    drop(reading);
}

pub(super) async fn is_for_good((mut first, _second): (Channel, Channel)) {
    let (mut receiver, mut sender) = take_both(&mut first);
    let stop = sender.shutdown_handle();
    assert!(!stop.is_shutdown());
    // From a thread that knows nothing of the runtime, twice, and from a clone.
    let elsewhere = receiver.shutdown_handle();
    std::thread::spawn(move || {
        elsewhere.shutdown();
        elsewhere.shutdown();
    })
    .join()
    .expect("a shutdown does not panic");
    stop.clone().shutdown();
    assert!(stop.is_shutdown());
    receiver_is_stopped(&mut receiver).await;
    sender_is_stopped(&mut sender).await;
}

pub(super) async fn writer_is_for_good(mut writing: Channel) {
    let mut sender = take_sender(&mut writing);
    sender.write_all(b"x").await.expect("storage takes a byte");
    writing.shutdown_handle().shutdown();
    sender_is_stopped(&mut sender).await;
}

pub(super) async fn before_taking(mut channel: Channel) {
    channel.shutdown_handle().shutdown();
    if let Ok(mut receiver) = channel.take_receiver() {
        receiver_is_stopped(&mut receiver).await;
    }
    if let Ok(mut sender) = channel.take_sender() {
        sender_is_stopped(&mut sender).await;
    }
}

/// Both halves stay alive on the stopped end: it is the shutdown that the far end sees. A transport that does not
/// claim the capability passes.
pub(super) async fn reaches_far_end(mut first: Channel, mut second: Channel) {
    if !first.capabilities().forced_shutdown {
        return;
    }
    let _kept = take_both(&mut first);
    let (mut receiver, mut sender) = take_both(&mut second);
    first.shutdown_handle().shutdown();
    ends(&mut receiver).await;
    fails(&mut sender).await;
}

/// With a shutdown handle that somebody keeps, which must not keep the connection.
pub(super) async fn drop_seen_by_reader((writing, mut reading): (Channel, Channel)) {
    let _kept = writing.shutdown_handle();
    drop(writing);
    let mut receiver = take_receiver(&mut reading);
    ends(&mut receiver).await;
}

pub(super) async fn drop_seen_by_writer((mut writing, mut reading): (Channel, Channel)) {
    let _kept = reading.shutdown_handle();
    let receiver = take_receiver(&mut reading);
    // Absent on a one-way channel, and then there is nothing to drop.
    let answering = reading.take_sender();
    drop((receiver, answering));
    fails(&mut take_sender(&mut writing)).await;
}

/// An end of input, or an error where the transport can tell that the end was not orderly.
async fn ends(receiver: &mut Receiver) {
    let mut buffer = [0; 64];
    if let Ok(got) = receiver.read(&mut buffer).await {
        assert_eq!(got, 0, "nothing was sent");
    }
}

/// The first writes may still land in buffers.
async fn fails(sender: &mut Sender) {
    let chunk = vec![0xa5; CHUNK];
    loop {
        if let Err(error) = sender.write_all(&chunk).await {
            assert!(!ShutdownHandle::caused(&error), "nobody stopped this end: {error}");
            return;
        }
    }
}

async fn receiver_is_stopped(receiver: &mut Receiver) {
    let slice = [RegionSlice::whole(VecRegion::zeroed(16))];
    assert_stopped(receiver.read(&mut [0; 16]).await);
    assert_stopped(poll_fn(|cx| receiver.poll_receive(cx, &slice)).await);
}

async fn sender_is_stopped(sender: &mut Sender) {
    let mut gather = Gather::new();
    gather.push_head(b"head").expect("an empty list has room");
    assert_stopped(sender.write(b"x").await);
    assert_stopped(poll_fn(|cx| sender.poll_send(cx, &mut gather)).await);
    assert_stopped(sender.shutdown().await);
}

fn assert_stopped<T: std::fmt::Debug>(outcome: std::io::Result<T>) {
    match outcome {
        Err(error) if ShutdownHandle::caused(&error) => {}
        other => panic!("a stopped channel answers that it was stopped, not {other:?}"),
    }
}
