//! Stopping a channel from any task.

use std::{
    error, fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use atomic_waker::AtomicWaker;

/// What a backend does, beside waking both halves, when its channel is stopped: shut the socket down, end the child.
pub trait ForceShutdown: Send + Sync {
    /// Called once, from any thread. Must not block.
    fn force_shutdown(&self);
}

/// Stops a channel: from any task, any number of times, waking both halves. Cheap to clone.
#[derive(Clone)]
pub struct ShutdownHandle(Arc<Shared>);

struct Shared {
    stopped: AtomicBool,
    receiver: AtomicWaker,
    sender: AtomicWaker,
    force: Option<Box<dyn ForceShutdown>>,
}

/// Which half is asking.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Half {
    Receiver,
    Sender,
}

impl ShutdownHandle {
    pub(crate) fn new(force: Option<Box<dyn ForceShutdown>>) -> Self {
        Self(Arc::new(Shared {
            stopped: AtomicBool::new(false),
            receiver: AtomicWaker::new(),
            sender: AtomicWaker::new(),
            force,
        }))
    }

    /// Stops the channel. Every read and write that waits, and every later one, fails at once with an error for which
    /// [`ShutdownHandle::caused`] answers true. Bytes already given to the kernel may still arrive.
    pub fn shutdown(&self) {
        if self.0.stopped.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(force) = &self.0.force {
            force.force_shutdown();
        }
        self.0.receiver.wake();
        self.0.sender.wake();
    }

    /// Whether somebody stopped the channel.
    pub fn is_shutdown(&self) -> bool {
        self.0.stopped.load(Ordering::Acquire)
    }

    /// Whether `error` comes from a channel being stopped on this side.
    pub fn caused(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Stopped>())
    }

    /// Fails at once when stopped; otherwise makes sure that a stop wakes this task.
    pub(crate) fn check(&self, half: Half, cx: &mut Context<'_>) -> io::Result<()> {
        if self.is_shutdown() {
            return Err(stopped());
        }
        let waker = match half {
            Half::Receiver => &self.0.receiver,
            Half::Sender => &self.0.sender,
        };
        waker.register(cx.waker());
        // A stop between the first look and the registration would otherwise be slept through.
        if self.is_shutdown() { Err(stopped()) } else { Ok(()) }
    }

    /// What a finished operation means: after a stop the kernel's word (end of file, broken pipe) is only its echo.
    pub(crate) fn explain<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match outcome {
            Poll::Ready(_) if self.is_shutdown() => Poll::Ready(Err(stopped())),
            other => other,
        }
    }
}

impl fmt::Debug for ShutdownHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShutdownHandle").field("stopped", &self.is_shutdown()).finish()
    }
}

#[derive(Debug)]
struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the channel was shut down on this side")
    }
}

impl error::Error for Stopped {}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, Stopped)
}
