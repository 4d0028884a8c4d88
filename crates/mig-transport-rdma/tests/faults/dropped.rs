//! Either end's future is dropped after every number of polls that matters: the other end is told, one of them has the guest,
//! and nothing stays with the device.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use mig_transport::{Connector, Listener, Result};
use mig_transport_rdma::{RdmaConnector, RdmaOptions};

use crate::{
    guarded,
    migration::{Ends, Guest, listener, migrate, options},
    on_a_device,
};

/// A future that is given up after some polls.
struct Polls<F>(Option<Pin<Box<F>>>, usize);

impl<F: Future> Future for Polls<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.1 == 0 {
            self.0 = None;
        }
        let Some(future) = &mut self.0 else { return Poll::Ready(None) };
        let outcome = future.as_mut().poll(cx);
        self.1 -= 1;
        if self.1 == 0 && outcome.is_pending() {
            self.0 = None;
            return Poll::Ready(None);
        }
        outcome.map(Some)
    }
}

async fn either<F: Future>(future: F, polls: Option<usize>) -> Option<F::Output> {
    match polls {
        None => Some(future.await),
        Some(polls) => Polls(Some(Box::pin(future)), polls).await,
    }
}

fn said(outcome: &Option<Result<()>>) -> String {
    match outcome {
        None => "dropped".into(),
        Some(Ok(())) => "completed".into(),
        Some(Err(error)) => error.to_string(),
    }
}

/// One migration in which one end is dropped after so many polls. Answers whether it was still under way.
async fn cut(
    source_polls: Option<usize>,
    destination_polls: Option<usize>,
    options: &RdmaOptions,
) -> bool {
    let (mut listener, address) = listener(options.clone()).await;
    let connector = RdmaConnector::new(address, options.clone());
    let (from, into) = (Guest::full(), Guest::empty());
    let began = Instant::now();
    let (source, destination) = guarded("an end", async {
        let (source, destination) =
            tokio::join!(connector.connect(), async { listener.accept().await.unwrap() });
        let (source, destination) = (Ends::of(source.unwrap()), Ends::of(destination));
        tokio::join!(
            either(source.source(&from), source_polls),
            either(destination.destination(&into), destination_polls),
        )
    })
    .await;
    println!(
        "{source_polls:?} {destination_polls:?}: source {}; destination {}; {:?}",
        said(&source),
        said(&destination),
        began.elapsed()
    );
    // A destination that did not get to its end must not be taken for one that did: the source says so, unless its last byte
    // had been read before.
    if let Some(Ok(())) = destination {
        assert!(from.bytes() == into.bytes());
    }
    guarded("letting go of the memory", async {
        while !(from.is_free() && into.is_free()) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    source.is_none() || destination.is_none()
}

fn sweep(pin_all: bool, is_source: bool) {
    on_a_device(|| async move {
        let mut options = options();
        options.pin_all = pin_all;
        let mut polls = 1;
        loop {
            let (source, destination) =
                if is_source { (Some(polls), None) } else { (None, Some(polls)) };
            if !cut(source, destination, &options).await {
                break;
            }
            polls += 1 + polls / 4;
        }
        let (mut listener, address) = listener(options.clone()).await;
        migrate(&mut listener, &address, options).await;
    });
}

#[test]
fn a_source_that_is_dropped_at_each_moment() {
    sweep(false, true);
}

#[test]
fn a_source_that_pins_all_and_is_dropped_at_each_moment() {
    sweep(true, true);
}

#[test]
fn a_destination_that_is_dropped_at_each_moment() {
    sweep(false, false);
}

#[test]
fn fifty_migrations_need_no_more_than_one() {
    on_a_device(|| async {
        let mut options = options();
        let mut resident = 0;
        for number in 0..50 {
            options.pin_all = number % 2 == 1;
            options.return_path = false;
            let (mut listener, address) = listener(options.clone()).await;
            migrate(&mut listener, &address, options.clone()).await;
            let now = crate::status("VmRSS:").unwrap();
            let now: u64 = now.split_whitespace().nth(1).unwrap().parse().unwrap();
            if number == 9 {
                resident = now;
            }
            if number == 49 {
                println!("{resident} kB after 10, {now} kB after 50");
                assert!(now < resident + 16 * 1024, "{resident} kB after 10, {now} kB after 50");
            }
        }
    });
}
