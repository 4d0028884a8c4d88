//! Those that a listener is shaking hands with, and who makes room.
//!
//! ```text
//!   crowds: (a, silent) ×5   (a, spoke) ×1   (b, silent) ×1   ──one more──▶ of the largest, who got on longest ago goes
//! ```
//! A crowd is a neighbourhood, and in it those who said a whole record apart from those who did not: a flood pushes out itself,
//! whether it connects only, or says a byte, or knows how to begin. A rightful source says its first record at once, so even from
//! a flood's own address it is in a crowd of few when it matters; and a flood that speaks as it does has to do as much
//! for each connection as this end.
//!
//! From as many neighbourhoods as there are places every crowd is of one: then those who did not say a record go first.
//!
//! Nobody goes within [`NEWCOMER_GRACE`](mig_transport::NEWCOMER_GRACE) of connecting while somebody is missing: a source's hello may
//! be on its way, or not looked at yet. Where half of all are that new, [`full_until`](Handshakes::full_until) says when
//! there is room again, and nobody is accepted before, unless one of them is over.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use atomic_waker::AtomicWaker;
use mig_transport::{AtTheDoor, Channel, LogLimit, MakesRoom, Peer, Result, who_makes_room};
use rustix::process::{Resource, getrlimit};
use tokio::time::Instant;

use crate::session::Progress;

/// The fewest at a time.
const MIN_HANDSHAKES: usize = 4;
/// At most one of so many descriptors of this process is for a handshake. With the usual 1024 that is enough for all channels
/// of QEMU's multifd (255) and some strangers, and leaves as many for channels that are agreed.
const SHARE_OF_DESCRIPTORS: u64 = 3;
/// How many once everybody who is expected is here: enough to hear that a source has more channels than that.
const ENOUGH: usize = 2;
/// Handshakes that get a step in one turn. A step is a signature at worst, around a millisecond; the migration has its turn
/// between.
const STEPS_AT_ONCE: usize = 2;

/// One that is going on.
pub(super) struct Handshake {
    work: Pin<Box<dyn Future<Output = Result<Channel>> + Send>>,
    peer: String,
    from: Peer,
    progress: Progress,
    connected: Instant,
    called: Arc<Called>,
}

impl Handshake {
    pub(super) fn new(
        work: Pin<Box<dyn Future<Output = Result<Channel>> + Send>>,
        peer: String,
        from: Peer,
        progress: Progress,
    ) -> Self {
        Self { work, peer, from, progress, connected: Instant::now(), called: Called::new() }
    }

    fn crowd(&self) -> (Peer, bool) {
        (self.from, self.progress.spoke())
    }
}

/// See the module.
pub(super) struct Handshakes {
    all: Vec<Handshake>,
    most_ever: usize,
    most: usize,
    /// Whose turn it is.
    next: usize,
    /// A flood is a few lines.
    log: LogLimit,
}

impl Handshakes {
    /// At most `max`, or what this process has descriptors for.
    pub(super) fn new(max: usize) -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let share = usize::try_from(descriptors / SHARE_OF_DESCRIPTORS).unwrap_or(usize::MAX);
        let most = max.min(share.max(MIN_HANDSHAKES)).max(1);
        Self { all: Vec::new(), most_ever: most, most, next: 0, log: LogLimit::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// See [`Listener::nobody_is_missing`](mig_transport::Listener::nobody_is_missing).
    pub(super) fn nobody_is_missing(&mut self, nobody: bool) {
        self.most = if nobody { self.most_ever.min(ENOUGH) } else { self.most_ever };
        while self.all.len() > self.most {
            self.make_room();
        }
    }

    /// When one more may be accepted, if not now.
    pub(super) fn full_until(&self) -> Option<Instant> {
        if self.all.len() < self.most {
            return None;
        }
        self.whose_turn()?.not_before
    }

    /// Somebody goes for it if there is no place: ask [`full_until`](Self::full_until) before one comes.
    pub(super) fn add(&mut self, handshake: Handshake) {
        while self.all.len() >= self.most {
            self.make_room();
        }
        self.all.push(handshake);
    }

    fn whose_turn(&self) -> Option<MakesRoom> {
        // Once nobody is missing, whoever comes is no source, and neither are those who are here.
        let somebody_is_missing = self.most == self.most_ever;
        let all = self.all.iter().map(|one| AtTheDoor {
            crowd: one.crowd(),
            spoke: one.progress.spoke(),
            age: one.progress.last(),
            newcomer_since: somebody_is_missing.then_some(one.connected),
        });
        who_makes_room(all, Instant::now())
    }

    fn make_room(&mut self) {
        let Some(MakesRoom { at, crowd: largest, .. }) = self.whose_turn() else { return };
        let dropped = self.all.remove(at);
        if let Some(unsaid) = self.log.say() {
            tracing::warn!(
                peer = %dropped.peer,
                said_something = dropped.progress.spoke(),
                unsaid,
                "a connection was dropped: {} others are in a TLS handshake, and of the {largest} that are like it, it got on \
                 longest ago",
                self.all.len()
            );
        }
    }

    /// One that is over. Only those that were called are looked at, and few of them in one turn.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<(Result<Channel>, String)> {
        let mut steps = 0;
        let first = self.next;
        for turn in 0..self.all.len() {
            let at = (first + turn) % self.all.len();
            let one = &mut self.all[at];
            one.called.listener.register(cx.waker());
            if steps == STEPS_AT_ONCE || !one.called.now.swap(false, Ordering::AcqRel) {
                continue;
            }
            steps += 1;
            self.next = at + 1;
            let waker = Waker::from(Arc::clone(&one.called));
            if let Poll::Ready(outcome) = one.work.as_mut().poll(&mut Context::from_waker(&waker)) {
                self.next = at;
                return Poll::Ready((outcome, self.all.remove(at).peer));
            }
        }
        if steps == STEPS_AT_ONCE {
            // Perhaps others were called.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

/// Wakes whoever accepts, for one handshake.
struct Called {
    now: AtomicBool,
    listener: AtomicWaker,
}

impl Called {
    fn new() -> Arc<Self> {
        Arc::new(Self { now: AtomicBool::new(true), listener: AtomicWaker::new() })
    }
}

impl Wake for Called {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.now.store(true, Ordering::Release);
        self.listener.wake();
    }
}
