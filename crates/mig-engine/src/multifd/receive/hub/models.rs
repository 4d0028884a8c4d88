//! The hub under loom: every order of what main and the channels say (docs/testing.md).
//!
//! Guest memory is one page that two passes bring over two channels. It is written without any ordering of its own, so
//! what an earlier pass had for it can win wherever the hub does not forbid that; a wait that nobody ends is a deadlock.

use std::sync::Arc;

use loom::{
    future::block_on,
    sync::atomic::{AtomicU8, Ordering},
    thread,
};

use super::*;
use crate::sync::model;

/// Time stands still: nobody is late.
const ARRIVAL: Duration = Duration::from_secs(60);

/// Lands what channel `id` has of pass `pass`, unless memory is closed; answers whether it did.
fn land(hub: &Hub, id: u8, page: &AtomicU8, pass: u8) -> bool {
    let begun = hub.begin_pages(id).is_ok();
    if begun {
        page.store(pass, Ordering::Relaxed);
    }
    begun
}

/// Closes memory; answers what is in it then.
fn close(hub: &Hub, page: &AtomicU8) -> u8 {
    hub.end_began();
    block_on(hub.close());
    page.load(Ordering::Relaxed)
}

/// Seen to fail when `synchronise` goes on one mark too early, and when `pass_mark` does not wait for all channels.
#[test]
fn loom_a_later_pass_lands_later() {
    model(1, || {
        let (hub, page) = (Arc::new(Hub::new(2)), Arc::new(AtomicU8::new(0)));
        (0..2).for_each(|id| hub.set_here(id, true));
        let first = {
            let (hub, page) = (Arc::clone(&hub), Arc::clone(&page));
            thread::spawn(move || {
                assert!(land(&hub, 0, &page, 1), "the mark that main waits for is behind it");
                block_on(hub.synchronise(0));
            })
        };
        let second = {
            let (hub, page) = (Arc::clone(&hub), Arc::clone(&page));
            thread::spawn(move || {
                block_on(hub.synchronise(1));
                let landed = land(&hub, 1, &page, 2);
                // Too early for the hub's taste, or not.
                let _ended = hub.end(1);
                landed
            })
        };
        block_on(hub.pass_mark(ARRIVAL)).unwrap();
        let seen = close(&hub, &page);
        first.join().unwrap();
        assert_eq!(seen, if second.join().unwrap() { 2 } else { 1 });
    });
}

/// A channel that was opened while the migration runs is ahead of main. Seen to fail when `joined` does not wait, and when
/// `pass_mark` does not.
#[test]
fn loom_a_channel_that_joins_lands_after_what_was_before() {
    model(1, || {
        let (hub, page) = (Arc::new(Hub::any_number()), Arc::new(AtomicU8::new(0)));
        hub.join(1);
        hub.set_here(0, true);
        let second = {
            let (hub, page) = (Arc::clone(&hub), Arc::clone(&page));
            thread::spawn(move || {
                hub.set_here(1, true);
                block_on(hub.joined(1));
                let landed = land(&hub, 1, &page, 2);
                block_on(hub.synchronise(1));
                landed
            })
        };
        let first = {
            let (hub, page) = (Arc::clone(&hub), Arc::clone(&page));
            thread::spawn(move || {
                assert!(land(&hub, 0, &page, 1), "the mark that main waits for is behind it");
                block_on(hub.synchronise(0));
                // Nothing more comes here.
                let _ended = hub.end(0);
            })
        };
        block_on(hub.pass_mark(ARRIVAL)).unwrap();
        hub.join(2);
        let seen = close(&hub, &page);
        first.join().unwrap();
        assert_eq!(seen, if second.join().unwrap() { 2 } else { 1 });
    });
}

/// Seen to fail when `begin_pages` looks whether memory is closed in one step and says that pages come in another.
#[test]
fn loom_nothing_lands_once_memory_is_closed() {
    model(3, || {
        let (hub, page) = (Arc::new(Hub::new(1)), Arc::new(AtomicU8::new(0)));
        hub.set_here(0, true);
        let lane = {
            let (hub, page) = (Arc::clone(&hub), Arc::clone(&page));
            thread::spawn(move || {
                let landed = land(&hub, 0, &page, 1);
                block_on(hub.synchronise(0));
                u8::from(landed)
            })
        };
        let seen = close(&hub, &page);
        assert_eq!(lane.join().unwrap(), seen, "it landed behind the end, or is not seen");
    });
}

/// Two lanes fail at once. Seen to fail when `fail` stops everybody before it has kept the reason, and (a deadlock) when
/// it keeps the reason and stops nobody.
#[test]
fn loom_whoever_waits_hears_a_reason() {
    model(2, || {
        let hub = Arc::new(Hub::new(2));
        let lanes = [0, 1].map(|id| {
            let hub = Arc::clone(&hub);
            thread::spawn(move || hub.fail(Error::peer_misbehaved(format!("lane {id}"))))
        });
        let error = block_on(hub.failure());
        assert_eq!(error.blame(), Blame::PeerMisbehaved, "{error}");
        lanes.into_iter().for_each(|lane| lane.join().unwrap());
    });
}
