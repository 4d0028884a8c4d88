//! The moment at which something happens, seen by a thread that does nothing else.

use std::{
    os::fd::AsFd,
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::{child::STEP, failure::Result};

/// Waits for an event of a descriptor; answers when it came.
pub(crate) fn until(fd: &impl AsFd, event: PollFlags, limit: Duration) -> Result<Instant> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left)?;
        match poll(&mut [PollFd::new(fd, event)], Some(&left)) {
            Ok(0) => return Err(format!("nothing happened for {limit:?}").into()),
            Ok(_) => return Ok(Instant::now()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Somebody who waits for something, from now on.
#[derive(Debug)]
pub(crate) struct Watch(Receiver<Result<Instant>>);

impl Watch {
    /// Of whatever `wait` waits for, on a thread of its own, which must end.
    pub(crate) fn start(wait: impl FnOnce() -> Result<Instant> + Send + 'static) -> Result<Self> {
        let (to, seen) = channel();
        let serve = move || {
            // Nobody asks any more where something else went wrong.
            let _nobody = to.send(wait());
        };
        thread::Builder::new().name("watch".into()).spawn(serve)?;
        Ok(Self(seen))
    }

    /// Of the other end of a socket going away. What it still has to say need not be read for that.
    pub(crate) fn hang_up(socket: &impl AsFd) -> Result<Self> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        Self::start(move || until(&socket, PollFlags::RDHUP, STEP))
    }

    /// When it happened.
    pub(crate) fn seen(self) -> Result<Instant> {
        self.0.recv_timeout(2 * STEP).map_err(|_| "nobody saw it happen")?
    }
}
