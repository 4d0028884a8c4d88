//! Which operation fails, and how; and what was counted.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError},
    task::{Context, Poll},
};

use super::link::{Link, Resetter};

/// What an end does with a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Opening a channel.
    Connect,
    /// Taking a channel from a listener.
    Accept,
    /// Reading, into ordinary or guest memory.
    Read,
    /// Writing, from ordinary or guest memory.
    Write,
    /// Ending the write direction in order.
    End,
    /// Writing to a disk, see [`Faults::block`].
    DiskWrite,
    /// Making it durable.
    DiskSync,
    /// Giving a finished file its name.
    DiskCommit,
}

/// What an operation does instead of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// It fails with this error of the system. The next one works again, so one that is overlooked is found.
    Fail(i32),
    /// It never comes back, and no later one of its kind on this channel does.
    Stall,
}

/// What happens to a byte that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteAct {
    /// It and all behind it are lost: the reader sees an orderly end before it, the writer notices nothing.
    Truncate,
    /// The direction is ended in order before it, and this and every later write fails as after one's own end (EPIPE).
    HalfClose,
    /// It and all behind it never leave.
    Stall,
    /// This bit of it, 0 to 7, is turned.
    Flip(u8),
    /// With it under way, unread by anybody, all connections of the [link](Faults::with_link) are reset. The write it
    /// belongs to returns behind that.
    Reset,
}

/// One fault of one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The `nth` operation of a kind, from 0, on the channel that was the `channel`-th to be opened, from 0. Connecting
    /// and accepting count over all channels; say channel 0 for them.
    Operation {
        /// Which channel.
        channel: usize,
        /// Which kind.
        operation: Operation,
        /// Which one.
        nth: usize,
        /// What it does.
        act: Act,
    },
    /// The byte at `position` of what this end writes to a channel.
    Byte {
        /// Which channel.
        channel: usize,
        /// Which byte, from 0.
        position: u64,
        /// What becomes of it.
        act: ByteAct,
    },
}

/// Counts the operations of one end and makes one of them fail. Cheap to clone; one for each end and run.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    fault: Option<Fault>,
    piece: Option<usize>,
    record: bool,
    link: OnceLock<Resetter>,
    state: Mutex<State>,
    come_back: Condvar,
}

#[derive(Debug, Default)]
struct State {
    released: bool,
    done: BTreeMap<(usize, Operation), usize>,
    written: BTreeMap<usize, u64>,
    recorded: BTreeMap<usize, Vec<u8>>,
    struck: bool,
}

/// What a half is to do now.
pub(super) enum Order {
    /// Its work, with at most so many bytes.
    Work(usize),
    /// The same, with this byte of them changed by this mask.
    Turn { at_most: usize, index: usize, mask: u8 },
    /// Failing.
    Fail(io::Error),
    /// Nothing, for ever.
    Stall,
    /// Waiting for [`Faults::poll_hold`], then asking again.
    Hold,
    /// Ending the direction; then nothing works any more, or everything is swallowed.
    Cut { swallow: bool },
}

impl Faults {
    /// Everything works, and is counted.
    pub fn counting() -> Self {
        Self::default()
    }

    /// The same, and what is written is kept.
    pub fn recording() -> Self {
        Self(Arc::new(Shared { record: true, ..Shared::default() }))
    }

    /// One thing does not.
    pub fn with(fault: Fault) -> Self {
        Self(Arc::new(Shared { fault: Some(fault), ..Shared::default() }))
    }

    /// No operation moves more than `bytes` bytes at a time. Before the first use.
    ///
    /// # Panics
    ///
    /// If it is in use already, or `bytes` is 0.
    #[must_use]
    pub fn in_pieces(mut self, bytes: usize) -> Self {
        assert!(bytes > 0, "an operation moves something");
        let shared = Arc::get_mut(&mut self.0).expect("said before the first use");
        shared.piece = Some(bytes);
        self
    }

    /// [`ByteAct::Reset`] resets this link, made with [`LinkFault::OnDemand`](super::LinkFault::OnDemand), and
    /// [`link_struck`](Self::link_struck) asks it. Before the first use.
    ///
    /// # Panics
    ///
    /// If it has a link already.
    #[must_use]
    pub fn with_link(self, link: &Link) -> Self {
        assert!(self.0.link.set(link.resetter()).is_ok(), "one link");
        self
    }

    /// What blocks its thread asks by this, before it does its work: a disk, say.
    ///
    /// # Errors
    ///
    /// The one it is to fail with. One that stalls fails when everything is [released](Self::release).
    pub fn block(&self, operation: Operation) -> io::Result<()> {
        match self.order(0, operation) {
            Order::Fail(error) => Err(error),
            Order::Stall => {
                let state = self.state();
                let waited = self.0.come_back.wait_while(state, |state| !state.released);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
                Err(io::Error::other("nobody waits for this any more"))
            }
            _ => {
                self.done(0, operation, 0);
                Ok(())
            }
        }
    }

    /// Lets every thread go that stalls.
    pub fn release(&self) {
        self.state().released = true;
        self.0.come_back.notify_all();
    }

    /// How often each kind of operation came to an end, by channel.
    pub fn counts(&self) -> BTreeMap<(usize, Operation), usize> {
        self.state().done.clone()
    }

    /// Bytes that this end believes to have written, by channel.
    pub fn written(&self) -> BTreeMap<usize, u64> {
        self.state().written.clone()
    }

    /// What was written, by channel, if that was [kept](Self::recording).
    pub fn recorded(&self) -> BTreeMap<usize, Vec<u8>> {
        self.state().recorded.clone()
    }

    /// Whether the fault came to its turn.
    pub fn struck(&self) -> bool {
        self.state().struck
    }

    /// Whether the fault of the [link](Self::with_link) itself came to its turn; `false` without a link.
    pub fn link_struck(&self) -> bool {
        self.0.link.get().is_some_and(Resetter::has_struck)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each call leaves it whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks what an operation that begins, or is polled again, is to do.
    pub(super) fn order(&self, channel: usize, operation: Operation) -> Order {
        let mut state = self.state();
        let at_most = self.0.piece.unwrap_or(usize::MAX);
        let done = state.done.get(&(channel, operation)).copied().unwrap_or(0);
        match self.0.fault {
            Some(Fault::Operation { channel: on, operation: which, nth, act })
                if (on, which, nth) == (channel, operation, done) =>
            {
                state.struck = true;
                match act {
                    Act::Stall => Order::Stall,
                    Act::Fail(errno) => {
                        state.done.insert((channel, operation), done + 1);
                        Order::Fail(io::Error::from_raw_os_error(errno))
                    }
                }
            }
            Some(Fault::Byte { channel: on, position, act })
                if on == channel && matches!(operation, Operation::Write | Operation::End) =>
            {
                let written = state.written.get(&channel).copied().unwrap_or(0);
                // Where nothing is written any more, the end is what stalls.
                let strikes = operation == Operation::Write || act == ByteAct::Stall;
                state.struck |= written >= position && strikes;
                match act {
                    ByteAct::Reset if written >= position && !self.resetter().is_held() => {
                        Order::Hold
                    }
                    _ => byte_order(act, written, position, at_most, operation),
                }
            }
            _ => Order::Work(at_most),
        }
    }

    fn resetter(&self) -> &Resetter {
        self.0.link.get().expect("a link to be reset")
    }

    /// Stops the link: from here on nobody reads what is written.
    pub(super) fn poll_hold(&self, cx: &Context<'_>) -> Poll<()> {
        self.resetter().poll_held(cx)
    }

    /// Whether the link waits for what was just written to a channel, to be reset then.
    pub(super) fn resets_behind(&self, channel: usize) -> bool {
        let here = matches!(self.0.fault,
            Some(Fault::Byte { channel: on, act: ByteAct::Reset, .. }) if on == channel);
        here && self.resetter().is_held() && !self.resetter().is_done()
    }

    /// Resets the link.
    pub(super) fn poll_reset(&self, cx: &Context<'_>) -> Poll<()> {
        self.resetter().poll_done(cx)
    }

    /// Keeps what was written, if that is wanted.
    pub(super) fn record(&self, channel: usize, bytes: impl FnOnce() -> Vec<u8>) {
        if self.0.record {
            self.state().recorded.entry(channel).or_default().extend(bytes());
        }
    }

    /// An operation came to an end with so many bytes moved.
    pub(super) fn done(&self, channel: usize, operation: Operation, bytes: usize) {
        let mut state = self.state();
        *state.done.entry((channel, operation)).or_default() += 1;
        if operation == Operation::Write {
            *state.written.entry(channel).or_default() += bytes as u64;
            if let Some(Fault::Byte { channel: on, position, .. }) = self.0.fault {
                state.struck |= on == channel && state.written[&channel] > position;
            }
        }
    }
}

fn byte_order(
    act: ByteAct,
    written: u64,
    position: u64,
    at_most: usize,
    operation: Operation,
) -> Order {
    // Bytes that come before it.
    let before = usize::try_from(position.saturating_sub(written)).unwrap_or(usize::MAX);
    match act {
        ByteAct::Flip(_) if operation == Operation::End || written > position => {
            Order::Work(at_most)
        }
        ByteAct::Flip(bit) if before < at_most => {
            Order::Turn { at_most, index: before, mask: 1 << (bit % 8) }
        }
        _ if before > 0 => Order::Work(at_most.min(before)),
        ByteAct::Stall => Order::Stall,
        ByteAct::Truncate => Order::Cut { swallow: true },
        ByteAct::HalfClose => Order::Cut { swallow: false },
        ByteAct::Flip(_) | ByteAct::Reset => Order::Work(at_most),
    }
}
