//! What every transport promises, checked from the backend's own tests.
//!
//! ```text
//!   backend's test ── make() ──▶ (Channel, Channel) ──▶ each promise of `two_way` / `one_way` on a fresh pair
//! ```
//! A backend calls [`two_way`] with a closure that connects a pair over loopback, [`one_way`] with one that makes a
//! writing and a reading end, or [`storage`] where what is written can be read only afterwards. A broken promise
//! panics with its name. Every promise has a hang guard, so it must not run under tokio's paused time.

mod checks;
mod stops;
mod storage;

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use mig_transport::{Channel, Gather, Receiver, RegionSlice, Sender};
use tokio::sync::oneshot;

use self::checks::{PACED, UNPACED};

/// Much longer than any promise takes: hitting it means that something waits for ever.
const HANG_GUARD: Duration = Duration::from_secs(60);

/// A channel that is made when it is awaited.
pub type LaterChannel = Pin<Box<dyn Future<Output = Channel> + Send>>;

/// All promises of a channel that carries bytes both ways. `make` answers the two ends of a fresh connection.
///
/// # Cancel safety
///
/// None is needed: it is awaited to its end by a test.
pub async fn two_way<F, Fut>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (Channel, Channel)>,
{
    let pair = async || guard("connecting", make()).await;
    guard("honest capabilities", checks::honest_both_ways(pair().await)).await;
    guard("bytes both ways, in order", checks::bytes_both_ways(pair().await)).await;
    guard("reading into many pieces", checks::vectored(pair().await)).await;
    guard("pages from and into regions", checks::pages(pair().await, UNPACED)).await;
    guard("no more leaves than is allowed", checks::pages(pair().await, PACED)).await;
    guard("nothing lost by a dropped read", checks::dropped_read(pair().await)).await;
    guard("half-close", checks::half_close(pair().await)).await;
    guard("orderly end", checks::orderly_end(pair().await)).await;
    guard("shutdown wakes a reader", stops::wakes_reader(pair().await.0)).await;
    let (first, second) = pair().await;
    guard("shutdown wakes a writer", stops::wakes_writer(first, second)).await;
    guard("shutdown is for good", stops::is_for_good(pair().await)).await;
    guard("shutdown before the halves are taken", stops::before_taking(pair().await.0)).await;
    let (first, second) = pair().await;
    guard("a forced shutdown reaches the far end", stops::reaches_far_end(first, second)).await;
    guard("a dropped end is seen by a reader", stops::drop_seen_by_reader(pair().await)).await;
    guard("a dropped end is seen by a writer", stops::drop_seen_by_writer(pair().await)).await;
}

/// All promises of a channel that carries bytes one way. `make` answers the writing and the reading end of a fresh
/// pair.
///
/// # Cancel safety
///
/// None is needed: it is awaited to its end by a test.
pub async fn one_way<F, Fut>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (Channel, Channel)>,
{
    let pair = async || guard("opening", make()).await;
    guard("honest capabilities", checks::honest_one_way(pair().await)).await;
    guard("bytes in order", checks::bytes_one_way(pair().await)).await;
    guard("pages from and into regions", checks::pages(pair().await, UNPACED)).await;
    guard("no more leaves than is allowed", checks::pages(pair().await, PACED)).await;
    guard("nothing lost by a dropped read", checks::dropped_read(pair().await)).await;
    guard("orderly end", checks::orderly_end(pair().await)).await;
    let (writing, reading) = pair().await;
    guard("shutdown wakes a reader", stops::wakes_reader(reading)).await;
    drop(writing);
    let (writing, reading) = pair().await;
    guard("shutdown wakes a writer", stops::wakes_writer(writing, reading)).await;
    guard("shutdown before the halves are taken", stops::before_taking(pair().await.0)).await;
    guard("a dropped end is seen by a reader", stops::drop_seen_by_reader(pair().await)).await;
    guard("a dropped end is seen by a writer", stops::drop_seen_by_writer(pair().await)).await;
}

/// All promises of a channel into storage: `make` answers the writing end, and a future that opens what was written,
/// awaited only after the writer has ended.
///
/// # Cancel safety
///
/// None is needed: it is awaited to its end by a test.
pub async fn storage<F, Fut>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = (Channel, LaterChannel)>,
{
    let pair = async || guard("opening", make()).await;
    let (writing, reading) = pair().await;
    guard("pages from and into regions", storage::pages(writing, reading, UNPACED)).await;
    let (writing, reading) = pair().await;
    guard("no more leaves than is allowed", storage::pages(writing, reading, PACED)).await;
    let (writing, reading) = pair().await;
    guard("small writes", storage::small_writes(writing, reading)).await;
    guard("shutdown is for good", stops::writer_is_for_good(pair().await.0)).await;
    guard("shutdown before the halves are taken", stops::before_taking(pair().await.0)).await;
}

/// # Cancel safety
///
/// As that of `work`.
async fn guard<T>(promise: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(HANG_GUARD, work).await {
        Ok(done) => done,
        Err(_) => panic!("{promise}: nothing happened for {HANG_GUARD:?}"),
    }
}

/// Sends all of `gather`.
///
/// # Cancel safety
///
/// The list knows how far it got.
pub async fn send_all(sender: &mut Sender, gather: &mut Gather) -> std::io::Result<()> {
    while !gather.is_empty() {
        let before = gather.remaining();
        let sent = poll_fn(|cx| sender.poll_send(cx, gather)).await?;
        assert!(sent > 0, "poll_send took nothing of {before} bytes and did not wait");
        assert_eq!(gather.remaining(), before - sent, "poll_send advances by what it answers");
    }
    Ok(())
}

/// Fills all of `slices`; fails with `UnexpectedEof` if the input ends before.
///
/// # Cancel safety
///
/// None: what came is in the regions, and how much is forgotten.
pub async fn receive_all(receiver: &mut Receiver, slices: &[RegionSlice]) -> std::io::Result<()> {
    let mut left: Vec<RegionSlice> = slices.to_vec();
    while !left.is_empty() {
        let mut got = poll_fn(|cx| receiver.poll_receive(cx, &left)).await?;
        if got == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        while got > 0 {
            let first = left.first().expect("no more comes than was asked for");
            if got < first.len() {
                left[0] = first.sub(got, first.len() - got).expect("got is inside the slice");
                break;
            }
            got -= first.len();
            left.remove(0);
        }
    }
    Ok(())
}

/// Polls `work`, and tells through the receiver when it first had to wait.
fn tell_when_blocked<W: Future + Send + 'static>(
    work: W,
) -> (impl Future<Output = W::Output> + Send, oneshot::Receiver<()>) {
    let (tell, told) = oneshot::channel();
    let watched = async move {
        let mut work = pin!(work);
        let mut tell = Some(tell);
        poll_fn(move |cx| {
            let outcome = work.as_mut().poll(cx);
            if let (Poll::Pending, Some(tell)) = (&outcome, tell.take()) {
                // Nobody listens any more: then nobody needs to know.
                let _told = tell.send(());
            }
            outcome
        })
        .await
    };
    (watched, told)
}
