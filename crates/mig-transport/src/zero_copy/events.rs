//! Waiting on a socket that has an error queue.
//!
//! Every completion is an `EPOLLERR`. The runtime takes that, together with `EPOLLOUT`, for the end of the write
//! direction, which it never forgets: from then on a half would be told that it may write, be refused, and be told so
//! again, for ever. So the socket is watched by an epoll of its own, of which the runtime only learns that it has
//! something to say.
//!
//! ```text
//!   socket ── writable, completions ──▶ epoll of ours ── readable ──▶ runtime ──▶ task tries again
//! ```

#![expect(unsafe_code, reason = "an epoll of its own; see each block")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll, ready},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    task::coop,
};

use crate::fd_io::register;

/// Wakes a task when its socket takes bytes again, or has completions.
pub(crate) struct SendEvents {
    epoll: Arc<OwnedFd>,
    registered: RwLock<Arc<AsyncFd<Arc<OwnedFd>>>>,
}

impl SendEvents {
    /// Watches a socket for as long as both live. Must be called inside a tokio runtime.
    pub(crate) fn new(socket: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it, for us alone.
        let epoll = Arc::new(unsafe { OwnedFd::from_raw_fd(epoll) });
        let events = (libc::EPOLLOUT | libc::EPOLLET) as u32;
        let mut event = libc::epoll_event { events, u64: 0 };
        // SAFETY: the event lives during the call; both descriptors are open.
        let added = unsafe {
            libc::epoll_ctl(
                epoll.as_raw_fd(),
                libc::EPOLL_CTL_ADD,
                socket.as_raw_fd(),
                &raw mut event,
            )
        };
        if added < 0 {
            return Err(io::Error::last_os_error());
        }
        let registered = RwLock::new(register(&epoll, Interest::READABLE)?);
        Ok(Self { epoll, registered })
    }

    /// As [`FdIo::rehome`](crate::FdIo::rehome).
    pub(crate) fn rehome(&self) -> io::Result<()> {
        let here = register(&self.epoll, Interest::READABLE)?;
        *self.registered.write().unwrap_or_else(PoisonError::into_inner) = here;
        Ok(())
    }

    /// Makes `call`, and again after each event, until it answers something other than `WouldBlock`.
    pub(crate) fn poll_attempt<T>(
        &self,
        cx: &mut Context<'_>,
        mut call: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        // A socket that takes everything must let the task's other business come to its turn.
        let budget = ready!(coop::poll_proceed(cx));
        loop {
            match call() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.poll_event(cx))?;
                }
                outcome => {
                    budget.made_progress();
                    return Poll::Ready(outcome);
                }
            }
        }
    }

    /// Waits for something that has changed since the last event.
    pub(crate) fn poll_event(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let registered =
            Arc::clone(&self.registered.read().unwrap_or_else(PoisonError::into_inner));
        loop {
            let mut ready = ready!(registered.poll_read_ready(cx))?;
            if let Ok(outcome) = ready.try_io(|_| self.take()) {
                return Poll::Ready(outcome);
            }
        }
    }

    /// Takes the event off the queue, which has room for one: there is one socket.
    fn take(&self) -> io::Result<()> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event, for the time of the call; it does not wait.
        match unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), &raw mut event, 1, 0) } {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            n if n > 0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
