//! The half that writes into a command's stdin.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use mig_transport::{Error, FdSendHalf, Gather, SendHalf};
use tokio::{io::AsyncWrite, time::Sleep};

use crate::group::{Lease, Phase, Waiter};

/// How long a broken pipe waits for the command's status to explain it.
const EXPLAIN_WAIT: Duration = Duration::from_secs(1);

/// Writes to stdin; its end closes stdin and, unless stdout is still being read, waits for the command.
pub(crate) struct ExecSendHalf {
    /// `None` once ended or broken.
    pipe: Option<FdSendHalf>,
    lease: Arc<Lease>,
    exit_deadline: Duration,
    /// Somebody reads stdout. While bytes may come there, the command is not waited for: it may end only after them.
    two_way: bool,
    broken: bool,
    timer: Timer,
}

impl ExecSendHalf {
    pub(crate) fn new(
        pipe: FdSendHalf,
        lease: Arc<Lease>,
        exit_deadline: Duration,
        two_way: bool,
    ) -> Self {
        let timer = Timer::default();
        Self { pipe: Some(pipe), lease, exit_deadline, two_way, broken: false, timer }
    }

    fn poll_pipe(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut FdSendHalf>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Some(pipe) = &mut self.pipe else {
            return if self.broken {
                self.poll_explain(cx)
            } else {
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            };
        };
        match write(Pin::new(pipe), cx) {
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => self.fail(cx),
            Poll::Pending => match self.lease.0.poll_phase(Waiter::Sender, cx) {
                Phase::Running => Poll::Pending,
                Phase::Exited(ending) | Phase::Gone(ending) if !ending.is_success() => {
                    self.fail(cx)
                }
                // It ended well and left somebody to read: fine for as long as they do.
                Phase::Exited(_) | Phase::Gone(_) => {
                    if self.timer.expired(self.exit_deadline, cx) {
                        Poll::Ready(Err(self.give_up(
                            "the command ended, and what it started does not read its stdin",
                        )))
                    } else {
                        Poll::Pending
                    }
                }
            },
            ready => {
                self.timer.clear();
                ready
            }
        }
    }

    fn fail(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.broken = true;
        self.pipe = None;
        self.timer.clear();
        self.poll_explain(cx)
    }

    /// Why the pipe broke: the command's status, and what it said, as soon as both are known.
    fn poll_explain<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        let group = &self.lease.0;
        let phase = group.poll_phase(Waiter::Sender, cx);
        if let Phase::Gone(ending) = phase {
            return Poll::Ready(Err(group.failure(ending, true)));
        }
        if !self.timer.expired(EXPLAIN_WAIT, cx) {
            return Poll::Pending;
        }
        Poll::Ready(Err(match phase {
            Phase::Exited(ending) | Phase::Gone(ending) => group.failure(ending, true),
            Phase::Running => {
                group.stop();
                let what = format!(
                    "{}: the command closed its stdin before the end of the stream and runs on",
                    group.name
                );
                Error::PeerMisbehaved { what }.into_io()
            }
        }))
    }

    fn give_up(&mut self, what: &str) -> io::Error {
        self.pipe = None;
        self.broken = true;
        self.lease.0.stop();
        let doing = format!("{}: {what}", self.lease.0.name);
        Error::Deadline { doing, after: self.exit_deadline }.into_io()
    }
}

impl AsyncWrite for ExecSendHalf {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_pipe(cx, |pipe, cx| pipe.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken {
            return self.poll_explain(cx);
        }
        if self.pipe.take().is_some() {
            self.timer.clear();
            self.lease.0.stdin_closed();
        }
        let others_read = self.two_way && self.lease.0.is_stdout_open();
        match self.lease.0.poll_phase(Waiter::Sender, cx) {
            Phase::Gone(ending) => return Poll::Ready(self.lease.0.check(ending)),
            Phase::Exited(ending) if others_read => {
                return Poll::Ready(self.lease.0.check(ending));
            }
            Phase::Running if others_read => return Poll::Ready(Ok(())),
            Phase::Running | Phase::Exited(_) => {}
        }
        let after = self.exit_deadline;
        if self.timer.expired(after, cx) {
            return Poll::Ready(Err(self.give_up(
                "waiting for the command, and whatever holds its outputs, to end after its stdin was closed",
            )));
        }
        Poll::Pending
    }
}

impl Drop for ExecSendHalf {
    fn drop(&mut self) {
        self.pipe = None;
        self.lease.0.stdin_closed();
    }
}

impl SendHalf for ExecSendHalf {
    fn poll_send(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        gather: &mut Gather,
    ) -> Poll<io::Result<usize>> {
        self.poll_pipe(cx, |pipe, cx| pipe.poll_send(cx, gather))
    }
}

/// A wait that starts with the first look.
#[derive(Default)]
pub(crate) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    pub(crate) fn expired(&mut self, after: Duration, cx: &mut Context<'_>) -> bool {
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep(after)));
        sleep.as_mut().poll(cx).is_ready()
    }

    pub(crate) fn clear(&mut self) {
        self.0 = None;
    }
}
