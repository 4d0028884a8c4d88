//! The writing half: what is put is listed, what is flushed is paced and sent.
//!
//! ```text
//!   put_be64, put_head_and_region …      flush().await
//!   ────────▶ [word][page][word][page]… ──── rate ────▶ channel
//!              heads copied, pages by reference, ≤ 1 MiB and ≤ 256 pages
//! ```
//!
//! Putting never waits: it appends to a bounded list. The hot loop is
//!
//! ```text
//!   loop { if writer.needs_flush() { writer.flush().await? }  writer.put_head_and_region(…)? }
//! ```
//!
//! A put for which there is no room is refused as [`Error::Misuse`] and changes nothing. The `write_*` functions are
//! the comfortable ones: they flush when they must and take any length. On failure the first error sticks, and what was
//! listed is lost with it.

use std::{
    fmt,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use mig_transport::{Gather, GatherFull, Region, Sender, ShutdownHandle, ZeroCopy};
use tokio::io::AsyncWrite;

use crate::{
    counters::StreamCounters,
    error::{Error, Place, Result},
    idle::{IdleClock, IdleWatch},
    pacer::{Grant, Pacer},
    rate_limiter::RateLimiter,
};

/// See the module.
pub struct StreamWriter {
    sender: Sender,
    gather: Gather,
    limiter: Option<Arc<RateLimiter>>,
    idle: IdleWatch,
    counters: Arc<StreamCounters>,
    name: Arc<str>,
    position: u64,
    sent: u64,
    urgent: bool,
    state: State,
}

enum State {
    Open,
    Finished,
    Failed(Error),
}

impl StreamWriter {
    /// A list of this many bytes wants to be flushed: 256 pages of 4 KiB, where longer gains nothing.
    pub const FLUSH_BYTES: usize = 1024 * 1024;
    /// Room that a list which does not [need a flush](Self::needs_flush) is sure to have for one head.
    pub const HEAD_ROOM: usize = 4096 + 512;
    /// From here on `write_all` sends the caller's bytes themselves: a copy costs more than a system call.
    const DIRECT_BYTES: usize = 16 * 1024;

    pub(crate) fn new(
        sender: Sender,
        name: Arc<str>,
        limiter: Option<Arc<RateLimiter>>,
        idle: Option<Arc<IdleClock>>,
        counters: Arc<StreamCounters>,
    ) -> Self {
        Self {
            sender,
            gather: Gather::new(),
            limiter,
            idle: IdleWatch::new(idle),
            counters,
            name,
            position: 0,
            sent: 0,
            urgent: false,
            state: State::Open,
        }
    }

    /// Bytes put so far: where the next one will be in the stream.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Bytes put and not yet taken by the channel.
    pub fn unsent(&self) -> usize {
        self.gather.remaining()
    }

    /// Bytes of this channel, readable from anywhere while it runs.
    pub fn counters(&self) -> Arc<StreamCounters> {
        Arc::clone(&self.counters)
    }

    /// Moves the whole channel to the runtime in which this is called; nothing may be waiting on it, in either
    /// direction.
    pub fn rehome(&mut self) -> Result<()> {
        self.check_open()?;
        self.idle.rehome();
        self.sender
            .rehome()
            .map_err(|error| self.fail("moving the channel to another thread", error))
    }

    /// Asks that long runs of what is put by reference leave without being copied, from now on; the answer tells, now and
    /// later, whether it is so and why not. See [`SendHalf::request_zero_copy`](mig_transport::SendHalf::request_zero_copy)
    /// for what that means for the memory; [`finish`](Self::finish) waits until nothing of it is read any more.
    pub fn request_zero_copy(&mut self) -> ZeroCopy {
        self.sender.request_zero_copy()
    }

    /// A handle that stops the whole channel.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.sender.shutdown_handle()
    }

    /// The first error, if there was one.
    pub fn error(&self) -> Option<&Error> {
        match &self.state {
            State::Failed(error) => Some(error),
            State::Open | State::Finished => None,
        }
    }

    /// While `urgent`, what is sent does not wait for the rate; others that share it wait for these bytes too.
    pub fn set_urgent(&mut self, urgent: bool) {
        self.urgent = urgent;
    }

    /// Whether the list should be flushed before more is put. While it answers no, one head of at most
    /// [`HEAD_ROOM`](Self::HEAD_ROOM) bytes and one page are sure to fit.
    #[inline]
    pub fn needs_flush(&self) -> bool {
        self.gather.remaining() >= Self::FLUSH_BYTES || !self.gather.has_room(Self::HEAD_ROOM)
    }

    /// Whether a head of `head_len` bytes and one page fit.
    #[inline]
    pub fn has_room(&self, head_len: usize) -> bool {
        self.gather.has_room(head_len)
    }

    /// Puts one byte.
    #[inline]
    pub fn put_u8(&mut self, value: u8) -> Result<()> {
        self.put(&[value])
    }

    /// Puts two bytes, the high one first, as all of these.
    #[inline]
    pub fn put_be16(&mut self, value: u16) -> Result<()> {
        self.put(&value.to_be_bytes())
    }

    /// Puts four bytes.
    #[inline]
    pub fn put_be32(&mut self, value: u32) -> Result<()> {
        self.put(&value.to_be_bytes())
    }

    /// Puts eight bytes.
    #[inline]
    pub fn put_be64(&mut self, value: u64) -> Result<()> {
        self.put(&value.to_be_bytes())
    }

    /// Puts a counted string: a length byte, then the bytes (docs/wire/stream.md, conventions). At most 255.
    pub fn put_str8(&mut self, bytes: &[u8]) -> Result<()> {
        let mut counted = [0; 256];
        let Ok(len) = u8::try_from(bytes.len()) else {
            return Err(Error::misuse(format!(
                "a counted string holds at most 255 bytes, not {}",
                bytes.len()
            )));
        };
        counted[0] = len;
        counted[1..=bytes.len()].copy_from_slice(bytes);
        self.put(&counted[..=bytes.len()])
    }

    /// Puts bytes by copying them; for more than a few KiB, [`write_all`](Self::write_all).
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.check_open()?;
        self.gather.push_head(bytes).map_err(no_room)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Puts `len` bytes of `region` by reference: they are read when they are sent, not now, and the region is kept
    /// until then.
    #[inline]
    pub fn put_region(
        &mut self,
        region: &Arc<dyn Region>,
        offset: usize,
        len: usize,
    ) -> Result<()> {
        self.check_open()?;
        self.gather
            .push_page(region, offset, len)
            .map_err(|error| Error::misuse(error.to_string()))?
            .map_err(no_room)?;
        self.position += len as u64;
        Ok(())
    }

    /// [`put`](Self::put) and [`put_region`](Self::put_region) in one: both, or, on error, neither.
    #[inline]
    pub fn put_head_and_region(
        &mut self,
        head: &[u8],
        region: &Arc<dyn Region>,
        offset: usize,
        len: usize,
    ) -> Result<()> {
        self.check_open()?;
        if !self.gather.has_room(head.len()) {
            return Err(no_room(GatherFull));
        }
        if offset.checked_add(len).is_none_or(|end| end > region.len()) {
            return Err(Error::misuse(format!(
                "{len} bytes at offset {offset:#x} do not fit a region of {:#x} bytes",
                region.len()
            )));
        }
        // Room and range were checked, so both succeed.
        self.gather.push_head(head).map_err(no_room)?;
        self.gather
            .push_page(region, offset, len)
            .map_err(|error| Error::misuse(error.to_string()))?
            .map_err(no_room)?;
        self.position += (head.len() + len) as u64;
        Ok(())
    }

    /// Sends everything that was put, at the pace of the rate. On return the channel has taken all of it.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was not sent stays listed, and the next flush goes on exactly there. More may be put in
    /// between.
    pub async fn flush(&mut self) -> Result<()> {
        self.check_open()?;
        while !self.gather.is_empty() {
            self.send_some(Load::List).await?;
        }
        self.gather.clear();
        poll_fn(|cx| self.poll_step(cx, "flushing", |sender, cx| sender.poll_flush(cx))).await
    }

    /// [`flush`](Self::flush)es if [`needs_flush`](Self::needs_flush) says so.
    ///
    /// # Cancel safety
    ///
    /// As `flush`.
    #[inline]
    pub async fn make_room(&mut self) -> Result<()> {
        if self.needs_flush() { self.flush().await } else { self.check_open() }
    }

    /// Puts bytes of any length, flushing as it must; the tail may stay listed.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe, but nothing is lost or sent twice: [`position`](Self::position) tells how many bytes were
    /// accepted, so the caller may go on behind them.
    pub async fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.check_open()?;
        if bytes.len() < Self::DIRECT_BYTES {
            if bytes.len() + self.gather.head_bytes() > Gather::MAX_HEAD_BYTES || self.needs_flush()
            {
                self.flush().await?;
            }
            return self.put(bytes);
        }
        // The list goes first; it is nearly always short here.
        while !self.gather.is_empty() {
            self.send_some(Load::List).await?;
        }
        self.gather.clear();
        let mut rest = bytes;
        while !rest.is_empty() {
            let sent = self.send_some(Load::Bytes(rest)).await?;
            rest = &rest[sent..];
        }
        Ok(())
    }

    /// [`put_head_and_region`](Self::put_head_and_region), flushing first if it must.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: dropped before it is done, nothing was put.
    pub async fn write_head_and_region(
        &mut self,
        head: &[u8],
        region: &Arc<dyn Region>,
        offset: usize,
        len: usize,
    ) -> Result<()> {
        if self.needs_flush() || !self.has_room(head.len()) {
            self.flush().await?;
        }
        self.put_head_and_region(head, region, offset, len)
    }

    /// Sends everything and ends this direction in the channel's orderly way. On return the transport vouches that the
    /// bytes left (a child took them, a file is durable); whether the other end has understood them, only it can say.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: call it again to go on.
    pub async fn finish(&mut self) -> Result<()> {
        if matches!(self.state, State::Finished) {
            return Ok(());
        }
        self.flush().await?;
        poll_fn(|cx| {
            self.poll_step(cx, "ending the stream", |sender, cx| sender.poll_shutdown(cx))
        })
        .await?;
        self.state = State::Finished;
        Ok(())
    }

    /// Counts `bytes` that went beside the stream, in pages that the transport carries itself, and waits until the rate
    /// would have let them go. Paid afterwards, because only the transport knows which pages are zero and cost nothing:
    /// let no more than [`step_beside`](Self::step_beside) go before paying.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, but for the rate: what was not waited for is not counted against it.
    pub async fn pay_beside(&mut self, bytes: usize) -> Result<()> {
        self.check_open()?;
        self.idle.progress();
        self.counters.add_beside(bytes);
        let mut paid = 0;
        while paid < bytes {
            let permit = self.permit(bytes - paid).await?;
            if let (Permit::Urgent(bytes), Some(limiter)) = (permit, &self.limiter) {
                limiter.charge_urgent(bytes);
            }
            paid += permit.bytes();
        }
        Ok(())
    }

    /// How many bytes may go beside the stream at once without being a burst that the rate forbids, at most `wanted`.
    pub fn step_beside(&self, wanted: usize) -> usize {
        let rate = match &self.limiter {
            Some(limiter) if !self.urgent => limiter.rate_bytes_per_sec(),
            _ => 0,
        };
        match rate {
            0 => wanted,
            rate => Pacer::quantum_bytes(rate).min(wanted),
        }
    }

    #[inline]
    fn check_open(&self) -> Result<()> {
        match &self.state {
            State::Open => Ok(()),
            State::Finished => {
                Err(Error::misuse(format!("{}: this direction was finished", self.name)))
            }
            State::Failed(error) => Err(error.clone()),
        }
    }

    /// Sends what the rate and the channel allow in one go; answers how much, at least one byte.
    ///
    /// # Cancel safety
    ///
    /// What was sent is advanced past within the poll that sent it; no permit is taken along.
    async fn send_some(&mut self, load: Load<'_>) -> Result<usize> {
        loop {
            let permit = self.permit(load.len(&self.gather)).await?;
            let mut permit = Some(permit);
            // A permit is used or given back within the poll that got it, so that no dropped future takes it along.
            // Woken after that, there is a new one to be asked for.
            let sent = poll_fn(|cx| match permit.take() {
                Some(permit) => self.poll_send(cx, &load, permit),
                None => Poll::Ready(Ok(0)),
            })
            .await?;
            if sent > 0 {
                return Ok(sent);
            }
        }
    }

    /// Waits until the rate lets some of `wanted` bytes go.
    ///
    /// # Cancel safety
    ///
    /// A grant that was waited for goes back to the rate.
    async fn permit(&mut self, wanted: usize) -> Result<Permit> {
        let Some(limiter) = self.limiter.clone() else {
            return Ok(Permit::Free(wanted));
        };
        if self.urgent {
            return Ok(Permit::Urgent(wanted));
        }
        let mut acquire = pin!(limiter.acquire(wanted));
        poll_fn(|cx| {
            if let Poll::Ready(grant) = acquire.as_mut().poll(cx) {
                return Poll::Ready(Ok(Permit::Paced(grant)));
            }
            // Meanwhile what the channel holds back may leave, and a stop of the channel must end this wait as well.
            match Pin::new(&mut self.sender).poll_flush(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(self.fail("writing", error))),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        load: &Load<'_>,
        permit: Permit,
    ) -> Poll<Result<usize>> {
        let allowed = permit.bytes();
        let outcome = match *load {
            Load::List => {
                self.gather.set_allowance(Some(allowed));
                let outcome = self.sender.poll_send(cx, &mut self.gather);
                self.gather.set_allowance(None);
                outcome
            }
            Load::Bytes(bytes) => Pin::new(&mut self.sender).poll_write(cx, &bytes[..allowed]),
        };
        let outcome = match outcome {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            other => other,
        };
        let sent = match outcome {
            Poll::Ready(Ok(sent)) => sent,
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        };
        if let Some(limiter) = &self.limiter {
            match permit {
                Permit::Paced(grant) => limiter.give_back(grant, allowed.saturating_sub(sent)),
                Permit::Urgent(_) => limiter.charge_urgent(sent),
                Permit::Free(_) => {}
            }
        }
        match outcome {
            Poll::Ready(Ok(sent)) => {
                self.idle.progress();
                self.counters.add_sent(sent);
                self.sent += sent as u64;
                if matches!(load, Load::Bytes(_)) {
                    self.position += sent as u64;
                }
                Poll::Ready(Ok(sent))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.fail("writing", error))),
            Poll::Pending => self.poll_idle(cx, "writing").map(Err),
        }
    }

    /// A step of the channel that moves no bytes of ours.
    fn poll_step(
        &mut self,
        cx: &mut Context<'_>,
        doing: &'static str,
        step: impl FnOnce(Pin<&mut Sender>, &mut Context<'_>) -> Poll<io::Result<()>>,
    ) -> Poll<Result<()>> {
        match step(Pin::new(&mut self.sender), cx) {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.fail(doing, error))),
            Poll::Pending => self.poll_idle(cx, doing).map(Err),
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>, doing: &'static str) -> Poll<Error> {
        self.idle.poll_expired(cx).map(|after| {
            let place = Some(self.place());
            self.stick(Error::Deadline { doing: doing.into(), place, after })
        })
    }

    fn place(&self) -> Place {
        Place { channel: Arc::clone(&self.name), at: self.sent }
    }

    fn fail(&mut self, doing: &'static str, source: io::Error) -> Error {
        let error = Error::channel(doing, self.place(), source);
        self.stick(error)
    }

    fn stick(&mut self, error: Error) -> Error {
        // Nobody will send the list any more: let the guest's memory go.
        self.gather.clear();
        self.state = State::Failed(error.clone());
        error
    }
}

impl fmt::Debug for StreamWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamWriter")
            .field("channel", &self.name)
            .field("position", &self.position)
            .field("unsent", &self.unsent())
            .field("error", &self.error())
            .finish_non_exhaustive()
    }
}

/// What is to be moved: the list, or bytes of the caller.
enum Load<'a> {
    List,
    Bytes(&'a [u8]),
}

impl Load<'_> {
    fn len(&self, gather: &Gather) -> usize {
        match self {
            Self::List => gather.remaining(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

/// Leave to send so many bytes, by what right.
#[derive(Clone, Copy)]
enum Permit {
    Free(usize),
    Urgent(usize),
    Paced(Grant),
}

impl Permit {
    fn bytes(self) -> usize {
        match self {
            Self::Free(bytes) | Self::Urgent(bytes) => bytes,
            Self::Paced(grant) => grant.bytes,
        }
    }
}

fn no_room(_full: GatherFull) -> Error {
    Error::misuse("no room for more in the list of this writer: flush it first")
}
