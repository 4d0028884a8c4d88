//! A sending half that asks for zero copy: which calls a list becomes, and what the kernel says of them.

use std::{
    io,
    os::fd::BorrowedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::{ZeroCopy, ZeroCopyLimits, error_queue, events::SendEvents, flight::Flight};
use crate::{
    gather::{Gather, Run},
    region::Region,
};

/// Shorter runs of pages are sent the ordinary way, together with what is around them: the kernel's documentation calls
/// it a gain from about 10 KB on.
const LEAST_RUN: usize = 16 * 1024;

/// So many bytes copied on end, and the kernel is not asked any more.
const PROBE_BYTES: u64 = 4 * 1024 * 1024;

/// So many bytes refused on end for want of room, and the kernel is not asked any more. More than any socket's buffer takes,
/// so that what is in flight had the time to make room.
const REFUSED_BYTES: u64 = 64 * 1024 * 1024;

/// How long the orderly end waits without a single completion.
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);

/// See the module.
pub(crate) struct ZeroCopySending {
    told: ZeroCopy,
    limits: ZeroCopyLimits,
    flight: Flight,
    /// Completed bytes on end that the kernel copied.
    copied_on_end: u64,
    /// Bytes on end that it had no room for.
    refused_on_end: u64,
    /// The write direction was ended, and completions are waited for until then.
    ending: Option<Ending>,
}

struct Ending {
    patience: Pin<Box<Sleep>>,
    in_flight: usize,
}

impl ZeroCopySending {
    /// Asks the kernel of a connected socket; the other outcome is the reason against it.
    pub(crate) fn new(socket: BorrowedFd<'_>) -> Result<Self, String> {
        error_queue::enable(socket)?;
        let limits = ZeroCopyLimits::here();
        if let Some(shortage) = limits.shortage() {
            return Err(shortage);
        }
        Ok(Self {
            told: ZeroCopy::in_force(),
            limits,
            flight: Flight::new(limits.most_sends()),
            copied_on_end: 0,
            refused_on_end: 0,
            ending: None,
        })
    }

    pub(crate) fn told(&self) -> ZeroCopy {
        self.told.clone()
    }

    /// Sends what is sendable in as many calls as that takes; stops where the socket is full.
    pub(crate) fn send(&mut self, fd: BorrowedFd<'_>, gather: &mut Gather) -> io::Result<usize> {
        self.collect(fd)?;
        let mut total = 0;
        while gather.sendable() > 0 {
            match self.send_run(fd, gather) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => total += sent,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && total > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    fn send_run(&mut self, fd: BorrowedFd<'_>, gather: &mut Gather) -> io::Result<usize> {
        let least = if self.told.is_in_force() { LEAST_RUN } else { usize::MAX };
        let run = gather.next_run(least);
        // The kernel may wait for the rest before it makes up a packet.
        let more = if run.len < gather.sendable() { libc::MSG_MORE } else { 0 };
        if let Some(region) = &run.pages
            && let Some(sent) = self.lend(fd, gather, &run, region, more)?
        {
            return Ok(sent);
        }
        let sent = gather.send_run(fd, run.len, more)?;
        self.told.add_ordinary(sent.page_bytes as u64);
        Ok(sent.bytes)
    }

    /// Sends a run of pages without a copy; `None` if it has to go the ordinary way.
    fn lend(
        &mut self,
        fd: BorrowedFd<'_>,
        gather: &mut Gather,
        run: &Run,
        region: &Arc<dyn Region>,
        more: libc::c_int,
    ) -> io::Result<Option<usize>> {
        if self.flight.is_full() {
            self.collect(fd)?;
            if self.flight.is_full() {
                return Ok(None);
            }
        }
        for last_attempt in [false, true] {
            let error = match gather.send_run(fd, run.len, libc::MSG_ZEROCOPY | more) {
                Ok(sent) => {
                    self.refused_on_end = 0;
                    self.flight.push(sent.bytes, Arc::clone(region));
                    return Ok(Some(sent.bytes));
                }
                Err(error) => error,
            };
            match error.raw_os_error() {
                Some(libc::ENOBUFS) => {
                    let times = self.told.add_enobufs();
                    if last_attempt {
                        self.refused(run.len, times);
                    } else {
                        // What is done with makes room.
                        self.collect(fd)?;
                    }
                }
                // Memory that cannot be lent (a device's), or a socket that has changed its mind.
                Some(libc::EFAULT | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOMEM) => {
                    self.told.give_up(format!(
                        "the kernel does not send this memory without a copy: {error}"
                    ));
                    return Ok(None);
                }
                _ => return Err(error),
            }
        }
        Ok(None)
    }

    fn refused(&mut self, bytes: usize, times: u64) {
        self.refused_on_end += bytes as u64;
        if self.refused_on_end < REFUSED_BYTES {
            return;
        }
        let figure =
            |bytes: Option<u64>| bytes.map_or("no limit".into(), |bytes| format!("{bytes} bytes"));
        self.told.give_up(format!(
            "the kernel had no room for {} bytes on end (ENOBUFS, {times} times in all) beside {} bytes in flight: \
             RLIMIT_MEMLOCK, which all that a user runs shares, is {}, net.core.optmem_max is {}",
            self.refused_on_end,
            self.flight.bytes(),
            figure(self.limits.memlock_bytes),
            figure(self.limits.optmem_bytes),
        ));
    }

    /// Takes in what the kernel is done with.
    fn collect(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        while !self.flight.is_empty() {
            let Some(done) = error_queue::next(fd)? else { break };
            let bytes = self.flight.complete(done);
            if !done.copied {
                self.copied_on_end = 0;
                self.told.add_zero_copied(bytes);
                continue;
            }
            self.told.add_copied(bytes);
            self.copied_on_end += bytes;
            if self.copied_on_end >= PROBE_BYTES {
                self.told.give_up(format!(
                    "the kernel copied all of {} bytes on end that it was asked to send without a copy: it always does where \
                     the other end is on this machine (loopback, veth), and where the network device cannot gather",
                    self.copied_on_end
                ));
            }
        }
        Ok(())
    }

    /// Waits until the kernel is done with everything; to be called again until it says so. The write direction was
    /// ended before, which lets the other end acknowledge at once.
    pub(crate) fn poll_drained(
        &mut self,
        fd: BorrowedFd<'_>,
        events: &SendEvents,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            self.collect(fd)?;
            if self.flight.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let in_flight = self.flight.len();
            let ending = self.ending.get_or_insert_with(|| Ending {
                patience: Box::pin(sleep_until(Instant::now() + DRAIN_PATIENCE)),
                in_flight,
            });
            if in_flight != ending.in_flight {
                ending.in_flight = in_flight;
                ending.patience.as_mut().reset(Instant::now() + DRAIN_PATIENCE);
            }
            if ending.patience.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(self.overdue()));
            }
            ready!(events.poll_event(cx))?;
        }
    }

    fn overdue(&self) -> io::Error {
        io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "the other end has not acknowledged the last {} bytes, which are sent from guest memory, and nothing \
                 of them for {} s",
                self.flight.bytes(),
                DRAIN_PATIENCE.as_secs()
            ),
        )
    }

    /// Ends before the kernel is done: answers the memory that it still reads, to be kept until the socket is closed,
    /// which makes it forget the rest.
    pub(crate) fn abandon(&mut self, fd: BorrowedFd<'_>) -> Vec<Arc<dyn Region>> {
        if let Err(error) = self.collect(fd) {
            tracing::debug!(%error, "completions of a half that is dropped");
        }
        if self.flight.is_empty() {
            return Vec::new();
        }
        if let Err(error) = error_queue::reset_when_closed(fd) {
            tracing::debug!(%error, bytes = self.flight.bytes(), "what is in flight goes on");
        }
        self.flight.take_regions()
    }
}

impl std::fmt::Debug for ZeroCopySending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ZeroCopySending")
            .field("told", &self.told)
            .field("in_flight", &self.flight.len())
            .finish_non_exhaustive()
    }
}
