//! Where the kernel always copies.

use std::{
    future::poll_fn,
    io::{Read, Write},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use mig_testkit::pattern;
use mig_transport::{FdIo, FdKind, Gather, Sender};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest},
    runtime,
};

use super::support::{Gone, channel, region, send, sockets};

const REGION_BYTES: usize = 1 << 20;

async fn end(sender: &mut Sender) {
    poll_fn(|cx| Pin::new(&mut *sender).poll_shutdown(cx)).await.unwrap();
}

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn up_to(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        1 + (self.0 >> 33) as usize % most
    }
}

#[tokio::test]
async fn mixed_lists_arrive_unchanged_and_the_copying_is_found_out() {
    let (ours, mut theirs) = sockets();
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        all
    });
    let mut channel = channel(ours);
    let mut sender = channel.take_sender().unwrap();
    let told = sender.request_zero_copy();
    assert!(told.report().in_force, "{told:?}");

    let gone = Gone::default();
    let regions = [region(1, REGION_BYTES, &gone), region(2, REGION_BYTES, &gone)];
    let (mut dice, mut expected, mut pages, polls) = (Dice(7), Vec::new(), 0, AtomicUsize::new(0));
    let mut gather = Gather::new();
    // Before and after it is found out.
    while expected.len() < 16 << 20 {
        for _ in 0..dice.up_to(6) {
            let head = pattern::bytes(3, expected.len(), dice.up_to(40));
            gather.push_head(&head).unwrap();
            expected.extend_from_slice(&head);
            for _ in 0..dice.up_to(3) {
                let (which, len) = (dice.up_to(2), dice.up_to(200_000));
                let offset = dice.up_to(REGION_BYTES - len);
                gather.push_page(&regions[which - 1], offset, len).unwrap().unwrap();
                expected.extend_from_slice(&pattern::bytes(which as u64, offset, len));
                pages += len;
            }
        }
        while !gather.is_empty() {
            gather.set_allowance(Some(dice.up_to(300_000)));
            send(&mut sender, &mut gather, &polls).await.unwrap();
        }
        gather.clear();
    }
    assert!(!sender.request_zero_copy().is_in_force(), "asked again, the same answer");
    // What goes past the list keeps its place.
    sender.write_all(b"the end").await.unwrap();
    expected.extend_from_slice(b"the end");
    end(&mut sender).await;
    assert!(reader.join().unwrap() == expected, "all bytes, in order");

    let report = told.report();
    assert!(!report.in_force, "{report:?}");
    assert!(report.reason.as_deref().unwrap().contains("copied"), "{report:?}");
    assert_eq!(report.bytes_zero_copied, 0);
    assert_eq!(report.bytes_copied_by_kernel + report.bytes_ordinary, pages as u64);
    assert!((4 << 20..8 << 20).contains(&report.bytes_copied_by_kernel), "{report:?}");
    assert_eq!(gone.count(), 0);
    drop(regions);
    assert_eq!(gone.count(), 2, "nobody keeps memory that the kernel is done with");
}

/// Every completion is an error event of the socket: it must not be taken for the end, nor for leave to write.
#[tokio::test]
async fn completions_neither_end_the_channel_nor_keep_the_task_busy() {
    let (ours, mut theirs) = sockets();
    let mut channel = channel(ours);
    let (mut sender, mut receiver) =
        (channel.take_sender().unwrap(), channel.take_receiver().unwrap());
    assert!(sender.request_zero_copy().report().in_force);
    let (polls, bytes) = (Arc::new(AtomicUsize::new(0)), 16 << 20);
    let counted = Arc::clone(&polls);
    let gone = Gone::default();
    let region = region(1, REGION_BYTES, &gone);
    let sending = tokio::spawn(async move {
        for _ in 0..bytes / REGION_BYTES {
            let mut gather = Gather::new();
            for at in (0..REGION_BYTES).step_by(32 * 1024) {
                gather.push_page(&region, at, 32 * 1024).unwrap().unwrap();
                gather.push_head(b"|").unwrap();
            }
            send(&mut sender, &mut gather, &counted).await.unwrap();
            // The runtime looks at the socket, which takes more bytes and has completions at once.
            for _ in 0..200 {
                tokio::task::yield_now().await;
            }
        }
        end(&mut sender).await;
    });
    // Nobody reads: the socket fills up, what was sent first is done with, and the task has to stand still. It is polled a
    // handful of times then; thousands of times if it takes a completion for leave to write.
    for _ in 0..20_000 {
        tokio::task::yield_now().await;
    }
    assert!(!sending.is_finished());
    let meanwhile = polls.load(Ordering::SeqCst);
    assert!(meanwhile < 1_000, "{meanwhile} polls while nothing could be sent");
    // The other direction has nothing to do with it.
    theirs.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    receiver.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");

    let reading = thread::spawn(move || {
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        all.len()
    });
    sending.await.unwrap();
    assert_eq!(reading.join().unwrap(), bytes + bytes / (32 * 1024));
    assert_eq!(gone.count(), 1);
}

#[test]
fn a_half_goes_on_in_another_runtime() {
    let build = || runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (ours, mut theirs) = sockets();
    let first = build();
    let (mut sender, _channel) = first.block_on(async {
        let mut channel = channel(ours);
        let mut sender = channel.take_sender().unwrap();
        assert!(sender.request_zero_copy().report().in_force);
        (sender, channel)
    });
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        all
    });
    let gone = Gone::default();
    let second = build();
    second.block_on(async { sender.rehome() }).unwrap();
    drop(first);
    second.block_on(async {
        let mut gather = Gather::new();
        for _ in 0..64 {
            let region = region(5, REGION_BYTES, &gone);
            gather.push_page(&region, 0, REGION_BYTES).unwrap().unwrap();
            send(&mut sender, &mut gather, &AtomicUsize::new(0)).await.unwrap();
            gather.clear();
        }
        end(&mut sender).await;
    });
    assert_eq!(gone.count(), 64);
    assert!(reader.join().unwrap() == pattern::bytes(5, 0, REGION_BYTES).repeat(64));
}

/// What is sent before it goes must not be what is in that memory afterwards.
#[tokio::test]
async fn a_half_that_goes_early_takes_back_what_it_lent() {
    let (ours, mut theirs) = sockets();
    let mut channel = channel(ours);
    let mut sender = channel.take_sender().unwrap();
    let told = sender.request_zero_copy();
    let gone = Gone::default();
    let lent = region(9, 32 << 20, &gone);
    let mut gather = Gather::new();
    gather.push_page(&lent, 0, 32 << 20).unwrap().unwrap();
    let full = poll_fn(|cx| {
        while sender.poll_send(cx, &mut gather)?.is_ready() {}
        std::task::Poll::Ready(std::io::Result::Ok(()))
    });
    full.await.unwrap();
    drop((lent, gather));
    assert_eq!(gone.count(), 0, "the kernel still reads it: {told:?}");
    drop(sender);
    assert_eq!(gone.count(), 0, "it does until the socket is closed");
    drop(channel);
    assert_eq!(gone.count(), 1);
    let mut all = Vec::new();
    let error = theirs.read_to_end(&mut all).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(all == pattern::bytes(9, 0, all.len()), "what came is what was there");
}

#[tokio::test]
async fn what_is_no_tcp_socket_says_so() {
    let (unix, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let io = FdIo::new(unix.into(), FdKind::Socket, Interest::READABLE | Interest::WRITABLE);
    let (_reader, pipe) = std::io::pipe().unwrap();
    let pipe = FdIo::new(pipe.into(), FdKind::Pipe, Interest::WRITABLE).unwrap();
    let (mut memory, _other) = mig_testkit::memory_pair(1024);
    let reports = [
        mig_transport::SendHalf::request_zero_copy(&mut io.unwrap().send_half()).report(),
        mig_transport::SendHalf::request_zero_copy(&mut pipe.send_half()).report(),
        memory.take_sender().unwrap().request_zero_copy().report(),
    ];
    for report in reports {
        assert!(report.requested && !report.in_force, "{report:?}");
        assert!(report.reason.as_deref().unwrap().starts_with("not here: "), "{report:?}");
    }
}
