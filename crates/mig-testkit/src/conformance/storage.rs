//! Promises of a channel whose bytes are read after the writer has ended.

use mig_transport::Channel;
use tokio::io::AsyncWriteExt;

use super::{
    LaterChannel,
    checks::{
        assert_end, read_pattern, receive_pages, send_pages, take_receiver, take_sender,
        write_pattern,
    },
};

pub(super) async fn pages(mut writing: Channel, reading: LaterChannel, allowances: &[usize]) {
    assert!(writing.capabilities().storage, "it says what it is: {writing:?}");
    let mut sender = take_sender(&mut writing);
    send_pages(&mut sender, allowances).await;
    sender.shutdown().await.expect("storage has room");
    let mut reading = reading.await;
    receive_pages(&mut take_receiver(&mut reading)).await;
}

pub(super) async fn small_writes(mut writing: Channel, reading: LaterChannel) {
    let mut sender = take_sender(&mut writing);
    write_pattern(&mut sender, 1).await;
    sender.shutdown().await.expect("storage has room");
    sender.write_all(b"x").await.expect_err("nothing is written after the end");
    drop(sender);
    let mut reading = reading.await;
    let mut receiver = take_receiver(&mut reading);
    read_pattern(&mut receiver, 1).await;
    assert_end(&mut receiver).await;
}
