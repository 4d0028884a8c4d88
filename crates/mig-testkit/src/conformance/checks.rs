//! Promises about bytes and pages.

use std::{future::poll_fn, io::IoSliceMut, sync::Arc, task::Poll};

use mig_transport::{Blame, Channel, Gather, Receiver, Region, RegionSlice, Sender, VecRegion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{receive_all, send_all};
use crate::pattern;

const SEED: u64 = 0x6d69_6721;
/// More than any transport buffers, and no multiple of a page.
const STREAM_BYTES: usize = 3 * 1024 * 1024 + 4321;
const PAGE: usize = 4096;
const PAGES: usize = 2048;
const HEAD: usize = 8;
/// Nothing bounds what leaves.
pub(super) const UNPACED: &[usize] = &[];
/// Less than a head, than a page, than what a backend takes for small, and much.
pub(super) const PACED: &[usize] = &[3, 500, 5_000, 70_000, 300_000];

pub(super) fn take_both(channel: &mut Channel) -> (Receiver, Sender) {
    (take_receiver(channel), take_sender(channel))
}

pub(super) fn take_receiver(channel: &mut Channel) -> Receiver {
    channel.take_receiver().expect("a fresh channel that receives has its receiver")
}

pub(super) fn take_sender(channel: &mut Channel) -> Sender {
    channel.take_sender().expect("a fresh channel that sends has its sender")
}

pub(super) async fn honest_both_ways((mut first, mut second): (Channel, Channel)) {
    for channel in [&mut first, &mut second] {
        assert!(channel.capabilities().return_path, "both halves are there: {channel:?}");
        assert!(!channel.endpoint().transport.is_empty(), "a channel names its transport");
        let _halves = take_both(channel);
        let misuse = channel.take_receiver().expect_err("taken once, gone");
        assert_eq!(misuse.blame(), Blame::Misuse);
        assert_eq!(channel.take_sender().expect_err("taken once, gone").blame(), Blame::Misuse);
    }
}

pub(super) async fn honest_one_way((mut writing, mut reading): (Channel, Channel)) {
    assert!(!writing.capabilities().return_path, "nothing comes back: {writing:?}");
    assert!(!reading.capabilities().return_path, "nothing goes back: {reading:?}");
    assert_eq!(writing.take_receiver().expect_err("it only writes").blame(), Blame::Misuse);
    assert_eq!(reading.take_sender().expect_err("it only reads").blame(), Blame::Misuse);
}

pub(super) async fn bytes_both_ways((mut first, mut second): (Channel, Channel)) {
    let (mut first_in, mut first_out) = take_both(&mut first);
    let (mut second_in, mut second_out) = take_both(&mut second);
    tokio::join!(
        write_pattern(&mut first_out, 1),
        read_pattern(&mut second_in, 1),
        write_pattern(&mut second_out, 2),
        read_pattern(&mut first_in, 2),
    );
}

pub(super) async fn bytes_one_way((mut writing, mut reading): (Channel, Channel)) {
    let (mut sender, mut receiver) = (take_sender(&mut writing), take_receiver(&mut reading));
    tokio::join!(write_pattern(&mut sender, 1), read_pattern(&mut receiver, 1));
}

/// Pieces of every size from one byte up, so that no boundary falls on a convenient place.
pub(super) async fn write_pattern(sender: &mut Sender, seed: u64) {
    let all = pattern::bytes(seed, 0, STREAM_BYTES);
    let mut piece = 1;
    let mut rest = all.as_slice();
    while !rest.is_empty() {
        let (now, later) = rest.split_at(piece.min(rest.len()));
        sender.write_all(now).await.expect("the peer is reading");
        rest = later;
        piece = if piece > 200_000 { 1 } else { piece * 2 + 1 };
    }
    sender.flush().await.expect("the peer is reading");
}

pub(super) async fn read_pattern(receiver: &mut Receiver, seed: u64) {
    let mut buffer = vec![0; 70_001];
    let mut done = 0;
    while done < STREAM_BYTES {
        let want = buffer.len().min(STREAM_BYTES - done);
        let got = receiver.read(&mut buffer[..want]).await.expect("the peer is writing");
        assert!(got > 0, "the input ended after {done} of {STREAM_BYTES} bytes");
        if let Err(wrong) = pattern::compare(seed, done, &buffer[..got]) {
            panic!("stream: {wrong}");
        }
        done += got;
    }
}

/// More pieces than the kernel takes at a call, of small sizes, some of them empty. A channel may fill the first one only.
pub(super) async fn vectored((mut writing, mut reading): (Channel, Channel)) {
    let (mut sender, mut receiver) = (take_sender(&mut writing), take_receiver(&mut reading));
    tokio::join!(write_pattern(&mut sender, 1), async {
        let mut buffer = vec![0; 70_001];
        let mut done = 0;
        while done < STREAM_BYTES {
            let want = buffer.len().min(STREAM_BYTES - done);
            let mut rest = &mut buffer[..want];
            let (first, after) = rest.split_at_mut(rest.len().min(1000));
            rest = after;
            let mut pieces = vec![IoSliceMut::new(first)];
            while !rest.is_empty() {
                let (piece, after) = rest.split_at_mut((pieces.len() * 7 % 90).min(rest.len()));
                pieces.push(IoSliceMut::new(piece));
                rest = after;
            }
            let got = poll_fn(|cx| receiver.poll_read_vectored(cx, &mut pieces)).await;
            let got = got.expect("the peer is writing");
            assert!(got > 0, "the input ended after {done} of {STREAM_BYTES} bytes");
            if let Err(wrong) = pattern::compare(1, done, &buffer[..got]) {
                panic!("pieces: {wrong}");
            }
            done += got;
        }
    });
}

/// Heads and pages as a migration sends them, twice through a list that starts in the middle of a region.
pub(super) async fn pages((mut writing, mut reading): (Channel, Channel), allowances: &[usize]) {
    let (mut sender, mut receiver) = (take_sender(&mut writing), take_receiver(&mut reading));
    tokio::join!(
        async {
            send_pages(&mut sender, allowances).await;
            drop(sender);
        },
        receive_pages(&mut receiver)
    );
}

/// Lets the whole list go, or, as whoever paces a channel does, so many bytes at a time, in turn.
pub(super) async fn send_pages(sender: &mut Sender, allowances: &[usize]) {
    let source: Arc<dyn Region> = VecRegion::zeroed((PAGES + 1) * PAGE);
    pattern::fill(&RegionSlice::whole(Arc::clone(&source)), SEED);
    let mut gather = Gather::new();
    let sent = poll_fn(|cx| sender.poll_send(cx, &mut gather)).await;
    assert_eq!(sent.expect("an empty list is sent at once"), 0);
    let mut paces = allowances.iter().copied().cycle();
    for page in 0..PAGES {
        if !gather.has_room(HEAD) {
            send_list(sender, &mut gather, &mut paces).await;
            gather.clear();
        }
        gather.push_head(&(page as u64).to_be_bytes()).expect("there is room");
        // Half a page off, so that pages of the source and of the destination never line up.
        gather
            .push_page(&source, page * PAGE + PAGE / 2, PAGE)
            .expect("the page is in the region")
            .expect("there is room");
    }
    send_list(sender, &mut gather, &mut paces).await;
    sender.flush().await.expect("the peer is reading");
}

async fn send_list(
    sender: &mut Sender,
    gather: &mut Gather,
    paces: &mut impl Iterator<Item = usize>,
) {
    while let (false, Some(allowance)) = (gather.is_empty(), paces.next()) {
        let before = gather.remaining();
        gather.set_allowance(Some(allowance));
        let sent = poll_fn(|cx| sender.poll_send(cx, gather)).await.expect("the peer is reading");
        assert!(
            (1..=allowance).contains(&sent),
            "{sent} bytes sent of an allowance of {allowance}"
        );
        assert_eq!(gather.remaining(), before - sent, "poll_send advances by what it answers");
    }
    gather.set_allowance(None);
    send_all(sender, gather).await.expect("the peer is reading");
}

pub(super) async fn receive_pages(receiver: &mut Receiver) {
    let whole = RegionSlice::whole(VecRegion::zeroed(PAGES * PAGE));
    let part = |offset, len| whole.sub(offset, len).expect("the part is in the region");
    let got = poll_fn(|cx| receiver.poll_receive(cx, &[])).await;
    assert_eq!(got.expect("nothing was asked for"), 0);
    for page in 0..PAGES {
        let mut head = [0; HEAD];
        receiver.read_exact(&mut head).await.expect("the peer is writing");
        assert_eq!(u64::from_be_bytes(head), page as u64, "heads stay between their pages");
        let start = page * PAGE;
        // Scattered: a small piece, an empty one, the rest.
        let pieces = [part(start, 100), part(start, 0), part(start + 100, PAGE - 100)];
        let pieces = if page % 2 == 0 { &pieces[..] } else { &[part(start, PAGE)][..] };
        receive_all(receiver, pieces).await.expect("the peer is writing");
    }
    for page in 0..PAGES {
        let mut found = vec![0; PAGE];
        part(page * PAGE, PAGE).copy_out(&mut found);
        if let Err(wrong) = pattern::compare(SEED, page * PAGE + PAGE / 2, &found) {
            panic!("page {page}: {wrong}");
        }
    }
    assert_end(receiver).await;
}

/// The other side has ended: nothing more comes, by either method, however often it is asked.
pub(super) async fn assert_end(receiver: &mut Receiver) {
    let slice = [RegionSlice::whole(VecRegion::zeroed(16))];
    for _ in 0..2 {
        assert_eq!(receiver.read(&mut [0; 16]).await.expect("an end is no error"), 0);
        let got = poll_fn(|cx| receiver.poll_receive(cx, &slice)).await;
        assert_eq!(got.expect("an end is no error"), 0);
    }
}

pub(super) async fn dropped_read((mut writing, mut reading): (Channel, Channel)) {
    let (mut sender, mut receiver) = (take_sender(&mut writing), take_receiver(&mut reading));
    for round in 0..50u8 {
        let mut buffer = [0; 4];
        let waits = poll_fn(|cx| {
            let mut read = std::pin::pin!(receiver.read(&mut buffer));
            Poll::Ready(read.as_mut().poll(cx).is_pending())
        })
        .await;
        assert!(waits, "nothing was sent yet");
        sender.write_all(&[round; 4]).await.expect("the peer is there");
        sender.flush().await.expect("the peer is there");
        receiver.read_exact(&mut buffer).await.expect("four bytes were sent");
        assert_eq!(buffer, [round; 4]);
    }
}

pub(super) async fn half_close((mut first, mut second): (Channel, Channel)) {
    let (mut first_in, mut first_out) = take_both(&mut first);
    let (mut second_in, mut second_out) = take_both(&mut second);
    first_out.write_all(b"last words").await.expect("the peer is there");
    first_out.flush().await.expect("the peer is there");
    drop(first_out);
    let mut heard = Vec::new();
    second_in.read_to_end(&mut heard).await.expect("an end is no error");
    assert_eq!(heard, b"last words", "what was sent before the end arrives");
    assert_end(&mut second_in).await;
    // The other direction goes on.
    tokio::join!(write_pattern(&mut second_out, 3), read_pattern(&mut first_in, 3));
    drop(second_out);
    assert_end(&mut first_in).await;
}

pub(super) async fn orderly_end((mut writing, mut reading): (Channel, Channel)) {
    let (mut sender, mut receiver) = (take_sender(&mut writing), take_receiver(&mut reading));
    tokio::join!(
        async {
            write_pattern(&mut sender, 4).await;
            sender.shutdown().await.expect("an orderly end with a peer that reads");
            sender.write_all(b"x").await.expect_err("nothing is sent after the end");
        },
        async {
            read_pattern(&mut receiver, 4).await;
            assert_end(&mut receiver).await;
        }
    );
}
