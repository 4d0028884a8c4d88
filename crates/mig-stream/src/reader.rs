//! The reading half: one large buffer, borrowed by whoever decodes, and an exact position.
//!
//! ```text
//!   channel ──fill()──▶ [ consumed | buffered ........ | free ]
//!                                  ▲ position           ▲ received
//!                        buffer() lends it, consume(n) moves on
//! ```
//!
//! A decoder works on [`buffer`](StreamReader::buffer), says how much it understood with
//! [`consume`](StreamReader::consume) and asks for more with [`fill`](StreamReader::fill). Only the tail it could not
//! use yet is ever moved to the front. The typed reads take big-endian integers and are for small, rare things.
//!
//! On failure the first error sticks, for the reads that wait; bytes that came before it can still be taken through
//! `buffer`. A stream that ends inside something asked for is [`Error::PeerMisbehaved`], with the position of its end.

use std::{
    fmt,
    future::poll_fn,
    io::{self, IoSliceMut},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use mig_transport::{Receiver, RegionSlice, ShutdownHandle};
use tokio::io::{AsyncRead, ReadBuf};

use crate::{
    counters::StreamCounters,
    error::{Error, Place, Result},
    idle::{IdleClock, IdleWatch},
};

/// See the module.
pub struct StreamReader {
    receiver: Receiver,
    buffer: Box<[u8]>,
    /// Consumed up to here.
    start: usize,
    /// Filled up to here.
    end: usize,
    position: u64,
    ended: bool,
    failed: Option<Error>,
    idle: IdleWatch,
    counters: Arc<StreamCounters>,
    name: Arc<str>,
}

impl StreamReader {
    /// The default size of the buffer: half of it costs nothing, a sixteenth half the speed. 256 pages with their words
    /// fit, so that as many can be read elsewhere and [given back](Self::give_back).
    pub const BUFFER_BYTES: usize = 256 * (8 + 4096);
    /// The same for a return path, whose messages are small.
    pub const RETURN_PATH_BUFFER_BYTES: usize = 64 * 1024;
    /// No buffer is smaller: two counted strings and two words fit.
    pub const LEAST_BUFFER_BYTES: usize = 1024;
    /// A tail of this length is moved to the front at every fill; a longer one only when there is no room behind it.
    const CHEAP_MOVE_BYTES: usize = 8 * 1024;
    /// Reads into memory that still lack this much bypass the buffer; less is worth reading ahead.
    const DIRECT_BYTES: usize = 64 * 1024;

    pub(crate) fn new(
        receiver: Receiver,
        name: Arc<str>,
        buffer_bytes: usize,
        idle: Option<Arc<IdleClock>>,
        counters: Arc<StreamCounters>,
    ) -> Self {
        Self {
            receiver,
            buffer: vec![0; buffer_bytes.max(Self::LEAST_BUFFER_BYTES)].into_boxed_slice(),
            start: 0,
            end: 0,
            position: 0,
            ended: false,
            failed: None,
            idle: IdleWatch::new(idle),
            counters,
            name,
        }
    }

    /// Bytes consumed so far: where the next one is in the stream.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The most bytes that [`peek`](Self::peek) can show.
    pub fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// Makes the buffer at least so large; what is in it stays. For a channel that may turn out to be nobody's: it gets a
    /// large buffer only once it is known.
    pub fn grow(&mut self, bytes: usize) {
        if bytes <= self.buffer.len() {
            return;
        }
        let mut larger = vec![0; bytes].into_boxed_slice();
        let buffered = self.end - self.start;
        larger[..buffered].copy_from_slice(self.buffer());
        (self.buffer, self.start, self.end) = (larger, 0, buffered);
    }

    /// The bytes that came and were not consumed.
    #[inline]
    pub fn buffer(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Whether the channel said that nothing more will come; the buffer may still hold something.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Bytes of this channel, readable from anywhere while it runs.
    pub fn counters(&self) -> Arc<StreamCounters> {
        Arc::clone(&self.counters)
    }

    /// Moves the whole channel to the runtime in which this is called; nothing may be waiting on it, in either
    /// direction.
    pub fn rehome(&mut self) -> Result<()> {
        self.idle.rehome();
        self.receiver.rehome().map_err(|error| self.fail(error))
    }

    /// Bounds silence from here on; what came before does not count.
    pub fn set_idle(&mut self, idle: Option<Arc<IdleClock>>) {
        self.idle = IdleWatch::new(idle);
    }

    /// A handle that stops the whole channel.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.receiver.shutdown_handle()
    }

    /// The first error, if there was one.
    pub fn error(&self) -> Option<&Error> {
        self.failed.as_ref()
    }

    /// Moves past `n` bytes of the buffer.
    ///
    /// # Panics
    ///
    /// If fewer are buffered.
    #[inline]
    pub fn consume(&mut self, n: usize) {
        let buffered = self.end - self.start;
        assert!(n <= buffered, "{n} bytes consumed of {buffered}");
        self.start += n;
        self.position += n as u64;
    }

    /// Reads more into the buffer; answers how many bytes were added, 0 at the end of the stream. [`Error::Misuse`] if
    /// the buffer is full.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no byte is lost.
    pub async fn fill(&mut self) -> Result<usize> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// [`fill`](Self::fill) for hand-written futures.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        self.poll_fill_at_most(cx, usize::MAX)
    }

    fn poll_fill_at_most(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<Result<usize>> {
        self.check()?;
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        self.compact();
        if self.end == self.buffer.len() {
            return Poll::Ready(Err(Error::misuse(format!(
                "the buffer of {} bytes is full: consume some before filling it",
                self.buffer.len()
            ))));
        }
        let room = most.min(self.buffer.len() - self.end);
        let mut free = ReadBuf::new(&mut self.buffer[self.end..self.end + room]);
        match Pin::new(&mut self.receiver).poll_read(cx, &mut free) {
            Poll::Ready(Ok(())) => {
                let n = free.filled().len();
                self.end += n;
                self.came(n);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.fail(error))),
            Poll::Pending => self.poll_idle(cx).map(Err),
        }
    }

    /// Shows the next `n` bytes (or more) without consuming them. Whoever classifies a channel by its first bytes hands
    /// the reader on as it is. [`Error::Misuse`] if `n` is more than the [capacity](Self::capacity).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no byte is lost.
    pub async fn peek(&mut self, n: usize) -> Result<&[u8]> {
        self.need(n, "more bytes").await?;
        Ok(self.buffer())
    }

    /// Whether the stream ends here: nothing is buffered and nothing will come. Waits for a byte or the end.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no byte is lost.
    pub async fn at_end(&mut self) -> Result<bool> {
        if self.buffer().is_empty() {
            return Ok(self.fill().await? == 0);
        }
        Ok(false)
    }

    /// Reads one byte.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: consumed whole or not at all; so are all of these.
    pub async fn read_u8(&mut self) -> Result<u8> {
        self.read_array("a byte").await.map(u8::from_be_bytes)
    }

    /// Reads two bytes, the high one first, as all of these.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: consumed whole or not at all.
    pub async fn read_be16(&mut self) -> Result<u16> {
        self.read_array("a 16-bit integer").await.map(u16::from_be_bytes)
    }

    /// Reads four bytes.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: consumed whole or not at all.
    pub async fn read_be32(&mut self) -> Result<u32> {
        self.read_array("a 32-bit integer").await.map(u32::from_be_bytes)
    }

    /// Reads eight bytes.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: consumed whole or not at all.
    pub async fn read_be64(&mut self) -> Result<u64> {
        self.read_array("a 64-bit integer").await.map(u64::from_be_bytes)
    }

    /// Reads a counted string: a length byte, then as many bytes, 255 at most.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: consumed whole or not at all.
    pub async fn read_str8(&mut self) -> Result<Vec<u8>> {
        const WHAT: &str = "a counted string";
        self.need(1, WHAT).await?;
        let len = usize::from(self.buffer()[0]);
        self.need(1 + len, WHAT).await?;
        let bytes = self.buffer()[1..=len].to_vec();
        self.consume(1 + len);
        Ok(bytes)
    }

    /// Fills `into` from the stream.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe if `into` is no longer than the [capacity](Self::capacity): consumed whole or not at all. Else
    /// [`position`](Self::position) tells how many bytes `into` has.
    pub async fn read_exact(&mut self, into: &mut [u8]) -> Result<()> {
        self.check()?;
        if into.len() <= self.capacity() {
            self.need(into.len(), "a run of bytes").await?;
            into.copy_from_slice(&self.buffer()[..into.len()]);
            self.consume(into.len());
            return Ok(());
        }
        let mut done = 0;
        while done < into.len() {
            self.need(1, "the rest of a run of bytes").await?;
            let n = (into.len() - done).min(self.buffer().len());
            into[done..done + n].copy_from_slice(&self.buffer()[..n]);
            self.consume(n);
            done += n;
        }
        Ok(())
    }

    /// Moves past `n` bytes, buffered or still to come.
    ///
    /// # Cancel safety
    ///
    /// [`position`](Self::position) tells how far it came; no byte is lost.
    pub async fn skip(&mut self, n: u64) -> Result<()> {
        self.check()?;
        let mut left = n;
        while left > 0 {
            self.need(1, "bytes to skip").await?;
            let step = self.buffer().len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.consume(step);
            left -= step as u64;
        }
        Ok(())
    }

    /// Fills a part of guest memory: what is buffered is copied, a long rest goes straight from the channel.
    ///
    /// # Cancel safety
    ///
    /// [`position`](Self::position) tells how much of `into` was filled; no byte is lost.
    pub async fn read_into(&mut self, into: &RegionSlice) -> Result<()> {
        const WHAT: &str = "the rest of a run of memory";
        self.check()?;
        let mut done = 0;
        while done < into.len() {
            let left = into.len() - done;
            let rest = into.sub(done, left).map_err(|error| Error::misuse(error.to_string()))?;
            done += if self.buffer().is_empty() && left >= Self::DIRECT_BYTES {
                match poll_fn(|cx| self.poll_receive(cx, std::slice::from_ref(&rest))).await? {
                    0 => return Err(self.truncated(WHAT)),
                    n => n,
                }
            } else {
                self.need(1, WHAT).await?;
                let n = left.min(self.buffer().len());
                rest.copy_in(&self.buffer()[..n]);
                self.consume(n);
                n
            };
        }
        Ok(())
    }

    /// Reads straight into guest memory, filling the parts in order, past the buffer; answers how many bytes came, 0
    /// at the end of the stream. [`Error::Misuse`] while anything is buffered: that comes first.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no byte is lost.
    pub async fn receive(&mut self, into: &[RegionSlice]) -> Result<usize> {
        self.check()?;
        if !self.buffer().is_empty() {
            return Err(Error::misuse("bytes are buffered: take them before receiving past them"));
        }
        if into.iter().all(RegionSlice::is_empty) {
            return Err(Error::misuse("no memory to receive into"));
        }
        poll_fn(|cx| self.poll_receive(cx, into)).await
    }

    /// Reads past the buffer into several pieces of memory, filling them in order; answers how many bytes came, 0 at the
    /// end of the stream. For whoever knows where the next bytes belong; what was guessed wrong is
    /// [given back](Self::give_back). [`Error::Misuse`] while anything is buffered: that comes first.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no byte is lost.
    pub async fn read_vectored(&mut self, into: &mut [IoSliceMut<'_>]) -> Result<usize> {
        self.check()?;
        if !self.buffer().is_empty() {
            return Err(Error::misuse("bytes are buffered: take them before reading past them"));
        }
        poll_fn(|cx| {
            if self.ended {
                return Poll::Ready(Ok(0));
            }
            let outcome = self.receiver.poll_read_vectored(cx, into);
            self.poll_came(cx, outcome)
        })
        .await
    }

    /// Takes back the last bytes that [`read_vectored`](Self::read_vectored) gave out, the pieces in order: they are
    /// buffered again, and [`position`](Self::position) is before them. [`Error::Misuse`] if something is buffered, or
    /// they are more than the [capacity](Self::capacity).
    pub fn give_back<'a>(&mut self, pieces: impl Iterator<Item = &'a [u8]>) -> Result<()> {
        if !self.buffer().is_empty() {
            return Err(Error::misuse("bytes are buffered: nothing fits before them"));
        }
        let mut end = 0;
        for piece in pieces {
            let Some(place) = self.buffer.get_mut(end..end + piece.len()) else {
                return Err(Error::misuse(format!(
                    "more bytes given back than the buffer of {} holds",
                    self.buffer.len()
                )));
            };
            place.copy_from_slice(piece);
            end += piece.len();
        }
        let Some(position) = self.position.checked_sub(end as u64) else {
            return Err(Error::misuse("more bytes given back than were read"));
        };
        (self.start, self.end, self.position) = (0, end, position);
        Ok(())
    }

    /// [`fill`](Self::fill) that leaves what follows the next `most` bytes to be read elsewhere.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no byte is lost.
    pub async fn fill_at_most(&mut self, most: usize) -> Result<usize> {
        poll_fn(|cx| self.poll_fill_at_most(cx, most)).await
    }

    fn poll_receive(&mut self, cx: &mut Context<'_>, into: &[RegionSlice]) -> Poll<Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        let outcome = self.receiver.poll_receive(cx, into);
        self.poll_came(cx, outcome)
    }

    /// What a read past the buffer means.
    fn poll_came(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<usize>>,
    ) -> Poll<Result<usize>> {
        match outcome {
            Poll::Ready(Ok(n)) => {
                self.position += n as u64;
                self.came(n);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.fail(error))),
            Poll::Pending => self.poll_idle(cx).map(Err),
        }
    }

    /// # Cancel safety
    ///
    /// Consumed whole or not at all.
    async fn read_array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        self.need(N, what).await?;
        let mut array = [0; N];
        array.copy_from_slice(&self.buffer()[..N]);
        self.consume(N);
        Ok(array)
    }

    /// Waits until `n` bytes are buffered.
    ///
    /// # Cancel safety
    ///
    /// Nothing is consumed; what came stays buffered.
    async fn need(&mut self, n: usize, what: &'static str) -> Result<()> {
        self.check()?;
        if n > self.capacity() {
            return Err(Error::misuse(format!(
                "{n} bytes at once do not fit a buffer of {} bytes",
                self.capacity()
            )));
        }
        while self.buffer().len() < n {
            if self.fill().await? == 0 {
                return Err(self.truncated(what));
            }
        }
        Ok(())
    }

    fn compact(&mut self) {
        let tail = self.end - self.start;
        let due = tail <= Self::CHEAP_MOVE_BYTES || self.end == self.buffer.len();
        if due && self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    fn came(&mut self, n: usize) {
        if n == 0 {
            self.ended = true;
        } else {
            self.idle.progress();
            self.counters.add_received(n);
        }
    }

    #[inline]
    fn check(&self) -> Result<()> {
        match &self.failed {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        self.idle.poll_expired(cx).map(|after| {
            let place = Some(self.end_of_received());
            self.stick(Error::Deadline { doing: "reading".into(), place, after })
        })
    }

    /// Where the last byte that came ends.
    fn end_of_received(&self) -> Place {
        let at = self.position + self.buffer().len() as u64;
        Place { channel: Arc::clone(&self.name), at }
    }

    fn truncated(&mut self, what: &str) -> Error {
        let place = self.end_of_received();
        self.stick(Error::PeerMisbehaved { place, what: what.into() })
    }

    fn fail(&mut self, source: io::Error) -> Error {
        let error = Error::channel("reading", self.end_of_received(), source);
        self.stick(error)
    }

    fn stick(&mut self, error: Error) -> Error {
        self.failed = Some(error.clone());
        error
    }
}

impl fmt::Debug for StreamReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamReader")
            .field("channel", &self.name)
            .field("position", &self.position)
            .field("buffered", &self.buffer().len())
            .field("ended", &self.ended)
            .field("error", &self.failed)
            .finish_non_exhaustive()
    }
}
