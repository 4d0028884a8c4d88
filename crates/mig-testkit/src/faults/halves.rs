//! Halves that ask before they move a byte.

use std::{
    io::{self, IoSliceMut},
    pin::Pin,
    task::{Context, Poll, ready},
};

use mig_transport::{Gather, ReceiveHalf, Receiver, RegionSlice, SendHalf, Sender, ZeroCopy};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::plan::{Faults, Operation, Order};

/// Bytes that are copied at a time to turn a bit in them.
const BOUNCE_BYTES: usize = 64 * 1024;

/// A reading half around another.
pub(super) struct FaultyReceive {
    inner: Receiver,
    faults: Faults,
    channel: usize,
}

impl FaultyReceive {
    pub(super) fn boxed(inner: Receiver, faults: Faults, channel: usize) -> Box<dyn ReceiveHalf> {
        Box::new(Self { inner, faults, channel })
    }

    /// Reads by `read`, which is told how many bytes it may bring.
    fn ask(
        &mut self,
        read: impl FnOnce(&mut Receiver, usize) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let at_most = match self.faults.order(self.channel, Operation::Read) {
            Order::Stall => return Poll::Pending,
            Order::Fail(error) => return Poll::Ready(Err(error)),
            Order::Work(at_most) => at_most,
            _ => unreachable!("only what is written is cut"),
        };
        let got = ready!(read(&mut self.inner, at_most))?;
        self.faults.done(self.channel, Operation::Read, got);
        Poll::Ready(Ok(got))
    }
}

impl AsyncRead for FaultyReceive {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.ask(|inner, at_most| {
            let room = buffer.remaining().min(at_most);
            let mut part = ReadBuf::new(&mut buffer.initialize_unfilled()[..room]);
            ready!(Pin::new(inner).poll_read(cx, &mut part))?;
            let got = part.filled().len();
            buffer.advance(got);
            Poll::Ready(Ok(got))
        })
        .map_ok(|_got| ())
    }
}

impl ReceiveHalf for FaultyReceive {
    fn poll_receive(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &[RegionSlice],
    ) -> Poll<io::Result<usize>> {
        self.ask(|inner, mut at_most| {
            let mut parts = Vec::with_capacity(into.len());
            for slice in into {
                let len = slice.len().min(at_most);
                parts.push(slice.sub(0, len).expect("a part of it"));
                at_most -= len;
            }
            inner.poll_receive(cx, &parts)
        })
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.ask(|inner, mut at_most| {
            let mut parts = Vec::with_capacity(into.len());
            for piece in into.iter_mut() {
                let len = piece.len().min(at_most);
                parts.push(IoSliceMut::new(&mut piece[..len]));
                at_most -= len;
            }
            inner.poll_read_vectored(cx, &mut parts)
        })
    }

    fn rehome(&mut self) -> io::Result<()> {
        self.inner.rehome()
    }
}

/// A writing half around another.
pub(super) struct FaultySend {
    inner: Sender,
    faults: Faults,
    channel: usize,
    /// The direction was ended before its time.
    cut: bool,
    /// Bytes of a write that returns when the link is reset behind them.
    under_way: Option<usize>,
}

impl FaultySend {
    pub(super) fn boxed(inner: Sender, faults: Faults, channel: usize) -> Box<dyn SendHalf> {
        Box::new(Self { inner, faults, channel, cut: false, under_way: None })
    }

    /// What is to be done about a write; a link that is to be reset behind it reads no more.
    fn poll_order(&self, cx: &Context<'_>) -> Poll<Order> {
        loop {
            match self.faults.order(self.channel, Operation::Write) {
                Order::Hold => ready!(self.faults.poll_hold(cx)),
                order => return Poll::Ready(order),
            }
        }
    }

    /// So many bytes were written. Returns when the link was reset behind them, if that is their fault.
    fn poll_written(&mut self, cx: &Context<'_>, bytes: usize) -> Poll<io::Result<usize>> {
        self.done(Operation::Write, bytes);
        if self.faults.resets_behind(self.channel) {
            self.under_way = Some(bytes);
        }
        self.poll_under_way(cx).unwrap_or(Poll::Ready(Ok(bytes)))
    }

    /// What a write comes to that waits for the link's reset; `None` without one.
    fn poll_under_way(&mut self, cx: &Context<'_>) -> Option<Poll<io::Result<usize>>> {
        let bytes = self.under_way?;
        Some(self.faults.poll_reset(cx).map(|()| {
            self.under_way = None;
            Ok(bytes)
        }))
    }

    fn done(&self, operation: Operation, bytes: usize) {
        self.faults.done(self.channel, operation, bytes);
    }

    /// Ends the direction, once.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.cut {
            let ended = ready!(Pin::new(&mut self.inner).poll_shutdown(cx));
            self.cut = true;
            // Whatever it says about the end: it is the fault's.
            drop(ended);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FaultySend {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let Some(written) = this.poll_under_way(cx) {
            return written;
        }
        let sent = match ready!(this.poll_order(cx)) {
            Order::Stall => return Poll::Pending,
            Order::Fail(error) => return Poll::Ready(Err(error)),
            Order::Work(at_most) => {
                let part = &bytes[..bytes.len().min(at_most)];
                ready!(Pin::new(&mut this.inner).poll_write(cx, part))?
            }
            Order::Turn { at_most, index, mask } => {
                let mut part = bytes[..bytes.len().min(at_most)].to_vec();
                if let Some(byte) = part.get_mut(index) {
                    *byte ^= mask;
                }
                ready!(Pin::new(&mut this.inner).poll_write(cx, &part))?
            }
            Order::Cut { swallow } => {
                ready!(this.poll_cut(cx))?;
                if !swallow {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                bytes.len()
            }
            Order::Hold => unreachable!("it was waited for"),
        };
        this.faults.record(this.channel, || bytes[..sent].to_vec());
        this.poll_written(cx, sent)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.cut {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.cut {
            return Poll::Ready(Ok(()));
        }
        match self.faults.order(self.channel, Operation::End) {
            Order::Stall => return Poll::Pending,
            Order::Fail(error) => return Poll::Ready(Err(error)),
            _ => {}
        }
        ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
        self.done(Operation::End, 0);
        Poll::Ready(Ok(()))
    }
}

impl SendHalf for FaultySend {
    fn poll_send(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        gather: &mut Gather,
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let Some(written) = this.poll_under_way(cx) {
            return written;
        }
        let may = gather.sendable();
        if may == 0 {
            return Poll::Ready(Ok(0));
        }
        let mut next = Vec::new();
        this.faults.record(this.channel, || {
            next = vec![0; may];
            let _all = gather.copy_next(&mut next);
            Vec::new()
        });
        let sent = match ready!(this.poll_order(cx)) {
            Order::Stall => return Poll::Pending,
            Order::Fail(error) => return Poll::Ready(Err(error)),
            Order::Work(at_most) if at_most >= may => ready!(this.inner.poll_send(cx, gather))?,
            Order::Work(at_most) => {
                let paced = may < gather.remaining();
                gather.set_allowance(Some(at_most));
                let sent = this.inner.poll_send(cx, gather);
                let moved = if let Poll::Ready(Ok(sent)) = &sent { *sent } else { 0 };
                gather.set_allowance(paced.then_some(may - moved));
                ready!(sent)?
            }
            Order::Turn { at_most, index, mask } => {
                let mut part = vec![0; BOUNCE_BYTES.min(may).min(at_most)];
                let copied = gather.copy_next(&mut part);
                if let Some(byte) = part[..copied].get_mut(index) {
                    *byte ^= mask;
                }
                let sent = ready!(Pin::new(&mut this.inner).poll_write(cx, &part[..copied]))?;
                gather.advance(sent);
                sent
            }
            Order::Cut { swallow } => {
                ready!(this.poll_cut(cx))?;
                if !swallow {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                gather.advance(may);
                may
            }
            Order::Hold => unreachable!("it was waited for"),
        };
        this.faults.record(this.channel, || next[..sent].to_vec());
        this.poll_written(cx, sent)
    }

    fn request_zero_copy(&mut self) -> ZeroCopy {
        self.inner.request_zero_copy()
    }

    fn rehome(&mut self) -> io::Result<()> {
        self.inner.rehome()
    }
}
