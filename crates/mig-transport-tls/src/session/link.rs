//! The writing side of a connection, which both tasks reach.
//!
//! ```text
//!   writing task ── plaintext ─▶ Seal ─▶ Records ─▶ the channel's sender
//!   reading task ── "TLS owes something" ─▶ ┘          │ would block: wakes both
//! ```
//! Mostly the writing task has it for itself, and its lock is free. When reading makes TLS want to write, the reading task
//! writes: otherwise an answer to a key update would wait until somebody sends. A channel's sender wakes one waker only, the
//! last that asked, so it is always asked with one that wakes both tasks; neither steals the other's wake-up.
//!
//! What was sealed but not sent is bounded: at most [`BATCH_BYTES`] of plaintext in records, and what TLS itself has to say.
//!
//! A call that has sealed something never fails. A batch leaves in several writes; when a later one fails, the peer can read
//! what went before it, and an error would say that nothing was written: a source whose last byte was in there would keep a
//! guest that runs at the destination too. What the channel said is told by the next call.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
};

use atomic_waker::AtomicWaker;
use mig_transport::Sender;
use tokio::io::AsyncWrite;

use super::engine::{MAX_PLAINTEXT_BYTES, MAX_RECORD_BYTES, Records, Seal};

/// Plaintext sealed at a time, and sent in one system call: 32 records. A receiver decrypts faster than a sender encrypts and
/// sends, and sleeps in between: whenever it is woken, both ends pay. Twice as much no longer stays in the processor's cache.
pub(crate) const BATCH_BYTES: usize = 32 * MAX_PLAINTEXT_BYTES;
/// A batch in records, and what TLS itself says before and behind it. Memory that no record was in yet costs nothing.
const OUTGOING_BYTES: usize = 33 * MAX_RECORD_BYTES;

/// What both halves share.
pub(crate) struct Link {
    side: Mutex<WriteSide>,
    /// The reading task has something to send that did not leave yet.
    owes: AtomicBool,
    /// Data has come from the peer, over this channel or one before it: it has taken who we are.
    heard: Arc<AtomicBool>,
    /// What it probably means when the peer hangs up before.
    hung_up: &'static str,
    tasks: Arc<Tasks>,
    /// Wakes both tasks.
    both: Waker,
}

/// The tasks at the two halves.
#[derive(Default)]
struct Tasks {
    reading: AtomicWaker,
    writing: AtomicWaker,
}

impl Wake for Tasks {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.reading.wake();
        self.writing.wake();
    }
}

impl Link {
    pub(crate) fn new(
        seal: Box<dyn Seal>,
        sender: Sender,
        hung_up: &'static str,
        heard: Arc<AtomicBool>,
    ) -> Arc<Self> {
        let tasks = Arc::new(Tasks::default());
        Arc::new(Self {
            side: Mutex::new(WriteSide {
                seal,
                records: Records::with_room(OUTGOING_BYTES),
                sender: Some(sender),
                state: State::Open,
                untold: None,
            }),
            owes: AtomicBool::new(false),
            heard,
            hung_up,
            both: Waker::from(Arc::clone(&tasks)),
            tasks,
        })
    }

    /// For the writing task: `step` with a context that wakes both.
    pub(crate) fn write<T>(
        &self,
        cx: &Context<'_>,
        step: impl FnOnce(&mut WriteSide, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        self.tasks.writing.register(cx.waker());
        let mut side = self.lock();
        let outcome = match side.untold.take() {
            Some(error) => Poll::Ready(Err(error)),
            None => step(&mut side, &mut Context::from_waker(&self.both)),
        };
        drop(side);
        outcome.map_err(|error| self.explain(error))
    }

    /// For the reading task: data has come.
    pub(crate) fn heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    /// With TLS 1.3 a source is done when its certificate is not verified yet: a refusal looks like a broken pipe.
    pub(crate) fn explain(&self, error: io::Error) -> io::Error {
        let hung_up =
            matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
        // The system's own word only: this side's ends are of the same kind.
        match self.hung_up() {
            Some(hint) if hung_up && error.raw_os_error().is_some() => {
                io::Error::new(error.kind(), format!("{error}: {hint}"))
            }
            _ => error,
        }
    }

    /// What it probably means if the peer hangs up now, if that is not in what it said.
    pub(crate) fn hung_up(&self) -> Option<&'static str> {
        (!self.heard.load(Ordering::Relaxed)).then_some(self.hung_up)
    }

    /// For the reading task: TLS has something to say because of what was read.
    pub(crate) fn settle(&self, cx: &Context<'_>) {
        self.owes.store(true, Ordering::Release);
        self.settle_rest(cx);
    }

    /// For the reading task, whenever it is polled: sends what did not leave the last time.
    pub(crate) fn settle_rest(&self, cx: &Context<'_>) {
        if !self.owes.load(Ordering::Acquire) {
            return;
        }
        self.tasks.reading.register(cx.waker());
        let outcome = self.lock().poll_settle(&mut Context::from_waker(&self.both));
        // A failure is the writing task's to tell: reading goes on for as long as something comes.
        if outcome.is_ready() {
            self.owes.store(false, Ordering::Release);
        }
    }

    /// The writing half is gone: says goodbye if that can be done at once, and ends the direction.
    pub(crate) fn hang_up(&self) {
        let mut side = self.lock();
        let nobody = Waker::noop();
        let goodbye = std::pin::pin!(tokio::task::unconstrained(std::future::poll_fn(|cx| {
            side.poll_close_notify(cx)
        })));
        let said = goodbye.poll(&mut Context::from_waker(nobody));
        if said.is_pending() {
            tracing::debug!("a TLS connection is closed with data that the channel did not take");
        }
        side.sender = None;
        side.records.clear();
        side.state = State::Ended;
    }

    /// Changes the sending keys now; the update leaves with the next flush.
    #[cfg(test)]
    pub(crate) fn refresh(&self, ask: bool) -> io::Result<()> {
        let side = &mut *self.lock();
        side.seal.refresh(ask, &mut side.records)
    }

    /// Bytes that were sealed and did not leave.
    #[cfg(test)]
    pub(crate) fn pending_bytes(&self) -> usize {
        self.lock().records.rest().len()
    }

    #[cfg(test)]
    pub(crate) fn key_changes(&self) -> u64 {
        self.lock().seal.key_changes()
    }

    /// See [`SendHalf::rehome`](mig_transport::SendHalf::rehome).
    pub(crate) fn rehome(&self) -> io::Result<()> {
        match &mut self.lock().sender {
            Some(sender) => sender.rehome(),
            None => Err(ended()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, WriteSide> {
        self.side.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is written with.
pub(crate) struct WriteSide {
    seal: Box<dyn Seal>,
    records: Records,
    /// `None` once the half was dropped.
    sender: Option<Sender>,
    state: State,
    /// Why the direction failed, in a call that had to count what it sealed.
    untold: Option<io::Error>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// A close_notify is among the records, or has left.
    Closing,
    /// The channel's sender was shut down, or dropped.
    Ended,
    /// The channel failed in the middle of a record.
    Failed,
}

impl WriteSide {
    /// Seals what `next` puts into the buffer it is given, until that is nothing or a batch is full, and sends as much of it
    /// as the channel takes now. Waits, before that, until the last batch has left.
    pub(crate) fn poll_seal(
        &mut self,
        cx: &mut Context<'_>,
        mut next: impl FnMut(&mut [u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        self.check_open()?;
        ready!(self.poll_drain(cx))?;
        let mut sealed = 0;
        while sealed < BATCH_BYTES {
            match self.seal.seal(&mut next, &mut self.records) {
                Ok(0) => break,
                Ok(n) => sealed += n,
                Err(error) => return self.send_sealed(cx, sealed, Some(error)),
            }
        }
        self.send_sealed(cx, sealed, None)
    }

    /// Like [`poll_seal`](Self::poll_seal), of the beginning of `bytes`.
    pub(crate) fn poll_seal_slice(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut rest = bytes;
        self.poll_seal(cx, |plaintext| {
            let n = rest.len().min(plaintext.len());
            plaintext[..n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            n
        })
    }

    /// Sends what the channel takes now of `sealed` bytes. From the first of them on the answer is their number, whatever
    /// fails: see the module.
    fn send_sealed(
        &mut self,
        cx: &mut Context<'_>,
        sealed: usize,
        not_sealed: Option<io::Error>,
    ) -> Poll<io::Result<usize>> {
        let sent = match self.poll_drain(cx) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => Ok(()),
        };
        let Some(error) = sent.err().or(not_sealed) else { return Poll::Ready(Ok(sealed)) };
        if sealed == 0 {
            return Poll::Ready(Err(error));
        }
        self.untold = Some(error);
        Poll::Ready(Ok(sealed))
    }

    /// Everything sealed so far leaves, with what TLS itself owes.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.state {
            // The end took everything with it.
            State::Ended => Poll::Ready(Ok(())),
            _ => self.poll_settle(cx),
        }
    }

    /// The orderly end: close_notify, then the end of the channel's own direction.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state == State::Ended && self.sender.is_none() {
            return Poll::Ready(Ok(()));
        }
        if self.state != State::Ended {
            ready!(self.poll_close_notify(cx))?;
            self.state = State::Ended;
        }
        // Polled until it is done: a child may have to be waited for.
        match &mut self.sender {
            Some(sender) => Pin::new(sender).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_settle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.state == State::Failed || self.state == State::Ended {
            return Poll::Ready(Err(self.why_closed()));
        }
        // One answer at a time waits for the channel: a peer that asks for many and reads none gets no more of our memory.
        ready!(self.poll_drain(cx))?;
        self.seal.settle(&mut self.records)?;
        ready!(self.poll_drain(cx))?;
        match &mut self.sender {
            Some(sender) => Pin::new(sender).poll_flush(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_close_notify(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.state {
            State::Open => {
                self.seal.close(&mut self.records)?;
                self.state = State::Closing;
            }
            State::Closing => {}
            State::Ended | State::Failed => return Poll::Ready(Err(self.why_closed())),
        }
        self.poll_settle(cx)
    }

    /// Many records a call.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.records.is_empty() {
            let Some(sender) = &mut self.sender else { return Poll::Ready(Err(ended())) };
            let outcome = ready!(Pin::new(sender).poll_write(cx, self.records.rest()));
            let sent = match outcome {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                other => other,
            };
            match sent {
                Ok(sent) => self.records.advance(sent),
                Err(error) => {
                    self.state = State::Failed;
                    self.records.clear();
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn check_open(&self) -> io::Result<()> {
        if self.state == State::Open { Ok(()) } else { Err(self.why_closed()) }
    }

    fn why_closed(&self) -> io::Error {
        match self.state {
            State::Failed => io::Error::new(
                io::ErrorKind::BrokenPipe,
                "this direction of the TLS connection failed before",
            ),
            _ => ended(),
        }
    }
}

fn ended() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "this direction of the TLS connection was ended")
}
