//! The half that reads a command's stdout.

use std::{
    io::{self, IoSliceMut},
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use mig_transport::{Error, FdReceiveHalf, ReceiveHalf, RegionSlice};
use tokio::io::{AsyncRead, ReadBuf};

use crate::{
    group::{Lease, Phase, Waiter},
    send::Timer,
};

/// Two ways, the command may be waiting for the end of its stdin, which is not ours to close: then its end of output is
/// taken for what it says. A command that failed has ended by then, and is told of.
const TWO_WAY_EXIT_WAIT: Duration = Duration::from_millis(100);

/// Reads stdout; at its end, the command's status decides whether that was the end or a failure.
pub(crate) struct ExecReceiveHalf {
    /// `None` from the end of output on.
    pipe: Option<FdReceiveHalf>,
    /// Kept open while the command runs, as QEMU does: many relays take the end of stdin for a wish to stop. `None` if
    /// somebody writes there.
    idle_stdin: Option<OwnedFd>,
    lease: Arc<Lease>,
    exit_deadline: Duration,
    two_way: bool,
    ended: bool,
    timer: Timer,
}

impl ExecReceiveHalf {
    pub(crate) fn new(
        pipe: FdReceiveHalf,
        idle_stdin: Option<OwnedFd>,
        lease: Arc<Lease>,
        exit_deadline: Duration,
    ) -> Self {
        let two_way = idle_stdin.is_none();
        let (pipe, timer) = (Some(pipe), Timer::default());
        Self { pipe, idle_stdin, lease, exit_deadline, two_way, ended: false, timer }
    }

    fn poll_pipe(
        &mut self,
        cx: &mut Context<'_>,
        read: impl FnOnce(Pin<&mut FdReceiveHalf>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Some(pipe) = &mut self.pipe {
            match read(Pin::new(pipe), cx) {
                Poll::Ready(Ok(0)) => {
                    self.close();
                    self.timer.clear();
                }
                Poll::Pending => return self.poll_orphans(cx),
                ready => {
                    self.timer.clear();
                    return ready;
                }
            }
        }
        if !self.ended {
            ready!(self.poll_exit(cx))?;
            self.ended = true;
        }
        Poll::Ready(Ok(0))
    }

    /// Nothing to read now. If the command itself is gone, somebody it started holds the pipe: fine while bytes come.
    fn poll_orphans(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Phase::Running = self.lease.0.poll_phase(Waiter::Receiver, cx) {
            return Poll::Pending;
        }
        if !self.timer.expired(self.exit_deadline, cx) {
            return Poll::Pending;
        }
        Poll::Ready(Err(
            self.give_up("the command ended, and what it started holds its stdout without writing")
        ))
    }

    /// The command's output ended; how did the command?
    fn poll_exit(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let group = &self.lease.0;
        let others_write = self.two_way && group.is_stdin_open();
        match group.poll_phase(Waiter::Receiver, cx) {
            Phase::Gone(ending) => return Poll::Ready(group.check(ending)),
            Phase::Exited(ending) if others_write => return Poll::Ready(group.check(ending)),
            Phase::Running if others_write => {
                if self.timer.expired(TWO_WAY_EXIT_WAIT, cx) {
                    return Poll::Ready(Ok(()));
                }
            }
            Phase::Running | Phase::Exited(_) => {
                if self.timer.expired(self.exit_deadline, cx) {
                    return Poll::Ready(Err(self.give_up(
                        "waiting for the command, and whatever holds its stderr, to end after its output ended",
                    )));
                }
            }
        }
        Poll::Pending
    }

    fn close(&mut self) {
        if self.pipe.take().is_some() {
            self.idle_stdin = None;
            self.lease.0.stdout_closed();
        }
    }

    fn give_up(&mut self, what: &str) -> io::Error {
        self.close();
        self.lease.0.stop();
        let doing = format!("{}: {what}", self.lease.0.name);
        Error::Deadline { doing, after: self.exit_deadline }.into_io()
    }
}

impl AsyncRead for ExecReceiveHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let outcome = self.poll_pipe(cx, |pipe, cx| {
            ready!(pipe.poll_read(cx, buffer))?;
            Poll::Ready(Ok(buffer.filled().len() - before))
        });
        outcome.map_ok(drop)
    }
}

impl ReceiveHalf for ExecReceiveHalf {
    fn poll_receive(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &[RegionSlice],
    ) -> Poll<io::Result<usize>> {
        if into.iter().all(RegionSlice::is_empty) {
            return Poll::Ready(Ok(0));
        }
        self.poll_pipe(cx, |pipe, cx| pipe.poll_receive(cx, into))
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        if into.iter().all(|piece| piece.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        self.poll_pipe(cx, |pipe, cx| pipe.poll_read_vectored(cx, into))
    }
}

impl Drop for ExecReceiveHalf {
    fn drop(&mut self) {
        self.close();
    }
}
