//! A connection that breaks as one does under Linux: the reason is told once, to whichever call comes first.
//!
//! ```text
//!                    first call      later writes    later reads
//!   reset            ECONNRESET      EPIPE           what had come, then an end as if in order
//!   timed out        ETIMEDOUT       EPIPE           the same
//!   hung up on       EPIPE / the end EPIPE           the same, and it is one
//! ```
//!
//! Seen with TCP sockets: a reader that asks second reads 0, as after a FIN, though what the other end had said last may be
//! lost. Doubles that repeat the reason to each half hide what a program makes of that.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use mig_transport::{Channel, ChannelParts, Endpoint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::memory::stream_parts;

/// Breaks a connection, from any task.
#[derive(Clone, Debug, Default)]
pub struct Breaker(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    broken: bool,
    untold: Option<io::ErrorKind>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Breaker {
    /// The other end, or somebody between, resets the connection.
    pub fn reset(&self) {
        self.strike(Some(io::ErrorKind::ConnectionReset));
    }

    /// The kernel gives up: what it sent was not acknowledged for too long.
    pub fn time_out(&self) {
        self.strike(Some(io::ErrorKind::TimedOut));
    }

    /// The other end closes the connection in order. It takes nothing any more, and says so at once.
    pub fn hang_up(&self) {
        self.strike(None);
    }

    /// A connection breaks once; what comes later changes nothing.
    fn strike(&self, untold: Option<io::ErrorKind>) {
        let mut state = self.state();
        if state.broken {
            return;
        }
        (state.broken, state.untold) = (true, untold);
        for waker in [state.reader.take(), state.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each call leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A channel over `reader` and `writer` that this breaks. What `reader` has when it breaks can still be read.
    pub fn channel<R, W>(&self, reader: R, writer: W, endpoint: Endpoint) -> Channel
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        Channel::new(self.parts(reader, writer, endpoint))
    }

    /// The parts of such a channel, for who wants other facts about it.
    pub fn parts<R, W>(&self, reader: R, writer: W, endpoint: Endpoint) -> ChannelParts
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let reader = Reading { inner: reader, breaker: self.clone() };
        let writer = Writing { inner: writer, breaker: self.clone() };
        stream_parts(Some(reader), Some(writer), endpoint)
    }
}

struct Reading<R> {
    inner: R,
    breaker: Breaker,
}

impl<R: AsyncRead + Unpin> AsyncRead for Reading<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if polled.is_ready() && buffer.filled().len() > before {
            return polled;
        }
        let mut state = self.breaker.state();
        if !state.broken {
            state.reader = Some(cx.waker().clone());
            return polled;
        }
        Poll::Ready(state.untold.take().map_or(Ok(()), |kind| Err(kind.into())))
    }
}

struct Writing<W> {
    inner: W,
    breaker: Breaker,
}

impl<W: AsyncWrite + Unpin> Writing<W> {
    /// Does `step` unless the connection is broken.
    fn step<T>(
        &mut self,
        cx: &mut Context<'_>,
        step: impl FnOnce(Pin<&mut W>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        {
            let mut state = self.breaker.state();
            if state.broken {
                let kind = state.untold.take().unwrap_or(io::ErrorKind::BrokenPipe);
                return Poll::Ready(Err(kind.into()));
            }
            state.writer = Some(cx.waker().clone());
        }
        step(Pin::new(&mut self.inner), cx)
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Writing<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.step(cx, |inner, cx| inner.poll_write(cx, bytes))
    }

    /// A socket has nothing to flush, so it tells nothing.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.breaker.state().broken {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.breaker.state().broken {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn pair() -> (Channel, Breaker, tokio::io::DuplexStream) {
        let breaker = Breaker::default();
        let (near, far) = duplex(4);
        let (reader, writer) = tokio::io::split(near);
        (breaker.channel(reader, writer, Endpoint::default()), breaker, far)
    }

    #[tokio::test]
    async fn the_writer_that_asks_first_leaves_an_end_to_the_reader() {
        let (mut channel, breaker, mut far) = pair();
        let (mut reader, mut writer) =
            (channel.take_receiver().unwrap(), channel.take_sender().unwrap());
        far.write_all(b"yes").await.unwrap();
        writer.write_all(b"full").await.unwrap();
        let blocked = async { writer.write_all(b"more").await.unwrap_err().kind() };
        let strike = async { breaker.reset() };
        assert_eq!(tokio::join!(blocked, strike).0, io::ErrorKind::ConnectionReset);
        assert_eq!(writer.write_all(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let mut heard = Vec::new();
        reader.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"yes", "what had come is not lost, and then it looks like an end");
    }

    #[tokio::test]
    async fn the_reader_that_asks_first_has_the_reason() {
        let (mut channel, breaker, _far) = pair();
        let (mut reader, mut writer) =
            (channel.take_receiver().unwrap(), channel.take_sender().unwrap());
        breaker.time_out();
        assert_eq!(reader.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(reader.read_u8().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(writer.write_all(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn who_was_hung_up_on_hears_so() {
        let (mut channel, breaker, _far) = pair();
        let (mut reader, mut writer) =
            (channel.take_receiver().unwrap(), channel.take_sender().unwrap());
        breaker.hang_up();
        breaker.reset();
        assert_eq!(writer.write_all(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(reader.read(&mut [0]).await.unwrap(), 0);
    }
}
