//! Stopping a channel from any task.

use std::{
    error, fmt, io,
    sync::Arc,
    task::{Context, Poll},
};

use crate::sync::{AtomicBool, AtomicWaker, Ordering};

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

#[cfg(all(test, modelled))]
mod models {
    use std::{future::poll_fn, sync::atomic::AtomicUsize};

    use loom::{future::block_on, thread};

    use super::*;
    use crate::sync::model;

    /// Sleeps until the channel is stopped, as a half does for which no byte comes.
    fn sleep(handle: &ShutdownHandle, half: Half) {
        block_on(poll_fn(|cx| match handle.check(half, cx) {
            Ok(()) => Poll::Pending,
            Err(_stopped) => Poll::Ready(()),
        }));
    }

    /// Counts how often it was asked. The count is no part of what is modelled.
    struct Counting(Arc<AtomicUsize>);

    impl ForceShutdown for Counting {
        fn force_shutdown(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Seen to fail (a deadlock) without the second look in `check`, and with `wake` before `stopped` is set.
    #[test]
    fn loom_a_stop_wakes_both_halves() {
        model(|| {
            let handle = ShutdownHandle::new(None);
            let (stopper, sender) = (handle.clone(), handle.clone());
            let stopping = thread::spawn(move || stopper.shutdown());
            let sending = thread::spawn(move || sleep(&sender, Half::Sender));
            sleep(&handle, Half::Receiver);
            sending.join().unwrap();
            stopping.join().unwrap();
        });
    }

    /// Seen to fail (forced twice) with a load and a store in place of the swap.
    #[test]
    fn loom_two_stops_force_once() {
        model(|| {
            let forced = Arc::new(AtomicUsize::new(0));
            let handle = ShutdownHandle::new(Some(Box::new(Counting(Arc::clone(&forced)))));
            let other = handle.clone();
            let stopping = thread::spawn(move || other.shutdown());
            handle.shutdown();
            stopping.join().unwrap();
            assert_eq!(forced.load(Ordering::Relaxed), 1);
        });
    }

    /// A half has waited in one task and goes to another thread's (`rehome`) while somebody stops the channel. Seen to
    /// fail (a deadlock) when `check` registers in a half's first poll only.
    #[test]
    fn loom_a_stop_finds_a_half_that_moves() {
        model(|| {
            let handle = ShutdownHandle::new(None);
            let stopper = handle.clone();
            let stopping = thread::spawn(move || stopper.shutdown());
            // One poll here, and no more.
            block_on(poll_fn(|cx| Poll::Ready(handle.check(Half::Receiver, cx).is_ok())));
            let moved = thread::spawn(move || sleep(&handle, Half::Receiver));
            moved.join().unwrap();
            stopping.join().unwrap();
        });
    }
}
