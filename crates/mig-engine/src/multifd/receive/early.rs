//! Data channels that came before their main channel: nobody knows yet whose they are.
//!
//! ```text
//!   places, oldest first:  a0 a1 b0 c0 a2 ──one more, and no place──▶ the oldest of those from where most are goes
//! ```
//!
//! A source's channels come within moments of its main channel. Until then each costs a KiB and its socket, and a flood of
//! them pushes out itself.

use std::{
    collections::VecDeque,
    future::poll_fn,
    task::{Context, Poll, Waker},
};

use mig_proto::multifd::Hello;
use mig_stream::{Stream, StreamReader};
use mig_transport::{AtTheDoor, who_makes_room};
use tokio::time::Instant;

use super::Origin;
use crate::error::Error;

/// How many may wait beyond those that are expected, and how many ends' channels too many are remembered.
pub(super) const MOST_EARLY: usize = 64;

/// A channel that came before main.
pub(super) struct Early {
    pub(super) hello: Hello,
    pub(super) stream: Stream,
    pub(super) reader: StreamReader,
}

impl Early {
    /// By one look. A source may have sent everything and left before main is here: that is no end.
    fn has_ended(&mut self) -> bool {
        // Nobody waits for it: whoever serves it asks again.
        let mut nobody = Context::from_waker(Waker::noop());
        self.reader.buffer().is_empty()
            && matches!(self.reader.poll_fill(&mut nobody), Poll::Ready(Ok(0) | Err(_)))
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Waiting {
    /// Oldest first.
    all: Vec<Early>,
    /// About a channel beyond the expected ones, of which end and guest.
    surplus: VecDeque<(Origin, [u8; 16], Error)>,
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is one of this number.
    pub(super) fn has(&self, id: u8) -> bool {
        self.all.iter().any(|early| early.hello.id == id)
    }

    pub(super) fn push(&mut self, early: Early) {
        self.all.push(early);
    }

    /// All of them; none is left.
    pub(super) fn take(&mut self) -> Vec<Early> {
        std::mem::take(&mut self.all)
    }

    /// Why a channel with this hello cannot be of the same source as those from there.
    pub(super) fn refuses(&self, hello: &Hello, from: &Origin) -> Option<&'static str> {
        let mut from_there =
            self.all.iter().filter(|other| Origin::of(&other.stream).is_same(from)).peekable();
        from_there.peek()?;
        if from_there.clone().any(|other| other.hello.uuid != hello.uuid) {
            return Some("of another guest than the first from there");
        }
        from_there.any(|other| other.hello.id == hello.id).then_some("of a number that is there")
    }

    /// Lets the oldest of the largest crowd go.
    pub(super) fn make_room(&mut self) -> Option<Early> {
        // All have said their hello, and the first is the oldest.
        let all = self.all.iter().map(|early| AtTheDoor {
            crowd: Origin::of(&early.stream).crowd(),
            spoke: true,
            age: (),
            newcomer_since: None,
        });
        let goes = who_makes_room(all, Instant::now())?;
        Some(self.all.remove(goes.at))
    }

    /// Drops those that have ended meanwhile, and answers their numbers.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what came stays in its reader.
    pub(super) async fn forget_the_gone(&mut self) -> Vec<u8> {
        // The runtime learns of ends in between, once for all of them: a wait for each would be theirs to make long.
        tokio::task::yield_now().await;
        let mut gone = Vec::new();
        let look = poll_fn(|_cx| {
            self.all.retain_mut(|early| {
                let ended = early.has_ended();
                if ended {
                    gone.push(early.hello.id);
                }
                !ended
            });
            Poll::Ready(())
        });
        // Their number is bounded, and one that is not looked at keeps its place.
        tokio::task::unconstrained(look).await;
        gone
    }

    /// Remembers that a channel too many came from there: it counts if main does too.
    pub(super) fn remember_surplus(&mut self, from: Origin, uuid: [u8; 16], surplus: Error) {
        let known =
            |(other, guest, _): &(Origin, [u8; 16], Error)| *guest == uuid && other.is_same(&from);
        if self.surplus.iter().any(known) {
            return;
        }
        if self.surplus.len() == MOST_EARLY {
            self.surplus.pop_front();
        }
        self.surplus.push_back((from, uuid, surplus));
    }

    /// What is remembered of this end, about this guest if it is known.
    pub(super) fn take_surplus(&mut self, main: &Origin, uuid: Option<[u8; 16]>) -> Option<Error> {
        let mut all = std::mem::take(&mut self.surplus).into_iter();
        all.find(|(from, guest, _)| uuid.is_none_or(|uuid| uuid == *guest) && main.is_same(from))
            .map(|(_, _, surplus)| surplus)
    }
}
