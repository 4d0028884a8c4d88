//! Those who have connected and not yet said who they are.
//!
//! ```text
//!   seats, oldest first:  a b a c a a ──one more, and no seat──▶ the oldest of the neighbourhood with the most goes
//! ```
//!
//! A source speaks as soon as it is connected, so it needs its seat for a moment only. Whoever comes beyond the last seat
//! gets one, and somebody of the largest crowd loses theirs: a flood pushes out itself, and not somebody else. From as many
//! neighbourhoods as there are seats every crowd is of one: then those who have said nothing yet go first.
//!
//! Nobody loses a seat within [`NEWCOMER_GRACE`](mig_transport::NEWCOMER_GRACE) of connecting while somebody is missing: a source
//! from the flood's own address may be among them, its words on their way. Where half of all are that new,
//! [`full_until`](Candidates::full_until) says when there is a seat again, and nobody is accepted before.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mig_transport::{AtTheDoor, Channel, LogLimit, MakesRoom, Peer, who_makes_room};
use rustix::process::{Resource, getrlimit};
use tokio::{
    task::{AbortHandle, Id, JoinSet},
    time::Instant,
};

use super::look::{Arrival, look_at};
use crate::error::{Error, Result};

/// The most connections that may be waiting for their first bytes at a time. Each holds a descriptor and a buffer, so
/// there are fewer where descriptors are: an eighth of what this process may have.
pub const MAX_CANDIDATES: usize = 128;

/// The fewest.
const MIN_CANDIDATES: usize = 4;

/// How many once everybody who is expected is here: enough to hear that a source has more channels than that.
const ENOUGH: usize = 8;

/// Tasks whose seat is gone may be so many more, until the runtime comes to them.
const LEAVING: usize = 16;

/// See the module.
pub(super) struct Candidates {
    tasks: JoinSet<Result<Arrival>>,
    /// Oldest first.
    seats: Vec<Seat>,
    all_seats: usize,
    most: usize,
    log: LogLimit,
    last_dropped: Option<Error>,
}

struct Seat {
    task: Id,
    handle: AbortHandle,
    from: Peer,
    spoke: Arc<AtomicBool>,
    connected: Instant,
}

impl Candidates {
    pub(super) fn new() -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let eighth = usize::try_from(descriptors / 8).unwrap_or(MAX_CANDIDATES);
        let seats = eighth.clamp(MIN_CANDIDATES, MAX_CANDIDATES);
        Self {
            tasks: JoinSet::new(),
            seats: Vec::new(),
            all_seats: seats,
            most: seats,
            log: LogLimit::default(),
            last_dropped: None,
        }
    }

    /// Nobody is missing any more, or somebody is again. Where nobody is, most of those who still say nothing go.
    pub(super) fn nobody_is_missing(&mut self, nobody: bool) {
        self.most = if nobody { self.all_seats.min(ENOUGH) } else { self.all_seats };
        while self.seats.len() > self.most {
            self.make_room();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Whether one more connection may be accepted now.
    pub(super) fn has_room(&self) -> bool {
        self.tasks.len() < self.most + LEAVING
    }

    /// When one more may be accepted, if not now.
    pub(super) fn full_until(&self) -> Option<Instant> {
        if self.seats.len() < self.most {
            return None;
        }
        self.whose_turn()?.not_before
    }

    /// Looks at a new one beside the others, in somebody's place if need be: ask [`full_until`](Self::full_until) before one
    /// comes.
    pub(super) fn seat(&mut self, channel: Channel, first_byte: Duration) {
        while self.seats.len() >= self.most {
            self.make_room();
        }
        let from = channel.peer().neighbourhood();
        let spoke = Arc::<AtomicBool>::default();
        let handle = self.tasks.spawn(look_at(channel, first_byte, Arc::clone(&spoke)));
        let connected = Instant::now();
        self.seats.push(Seat { task: handle.id(), handle, from, spoke, connected });
    }

    fn whose_turn(&self) -> Option<MakesRoom> {
        // Once nobody is missing, whoever comes is no source, and neither are those who are here.
        let somebody_is_missing = self.most == self.all_seats;
        let seats = self.seats.iter().map(|seat| AtTheDoor {
            crowd: seat.from,
            spoke: seat.spoke.load(Ordering::Relaxed),
            // The first is the oldest.
            age: (),
            newcomer_since: somebody_is_missing.then_some(seat.connected),
        });
        who_makes_room(seats, Instant::now())
    }

    fn make_room(&mut self) {
        let Some(MakesRoom { at, crowd: largest, .. }) = self.whose_turn() else { return };
        let seat = self.seats.remove(at);
        seat.handle.abort();
        if let Some(unsaid) = self.log.say() {
            let from = seat.from;
            tracing::warn!(
                unsaid,
                "many connect and say nothing: closed one of {largest} from {from}"
            );
        }
    }

    /// The next one that said who it is, or that was found to be a stranger; `Some(None)` if one is gone whose seat was
    /// taken, so that there is [room](Self::has_room). `None` if there is nobody.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nobody is lost.
    pub(super) async fn next(&mut self) -> Option<Option<Result<Arrival>>> {
        let (task, outcome) = match self.tasks.join_next_with_id().await? {
            Ok((task, outcome)) => (task, outcome),
            Err(over) if over.is_cancelled() => return Some(None),
            Err(panicked) => {
                let id = panicked.id();
                tracing::error!(%panicked, "looking at a connection");
                (id, Err(Error::misuse("looking at a connection failed; this is a bug")))
            }
        };
        if let Some(at) = self.seats.iter().position(|seat| seat.task == task) {
            self.seats.remove(at);
        }
        Some(Some(outcome))
    }

    /// Tells of a stranger, unless there are too many of them.
    pub(super) fn tell_of(&mut self, error: Error) {
        if let Some(unsaid) = self.log.say() {
            tracing::warn!(%error, unsaid, "a connection was dropped");
        }
        self.last_dropped = Some(error);
    }

    /// Why the last one was dropped; it may have been the one that is waited for.
    pub(super) fn last_dropped(&mut self) -> Option<Error> {
        self.last_dropped.take()
    }
}
