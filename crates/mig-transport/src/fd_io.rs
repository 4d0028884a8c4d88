//! Channel halves over any descriptor that the kernel can poll: sockets of every family, pipes, FIFOs.
//!
//! tcp, unix, vsock, fd and exec all end here, so the raw vectored calls exist once. Readiness comes from tokio, the
//! bytes go straight between the kernel and guest memory.

#![expect(
    unsafe_code,
    reason = "registers descriptors with the reactor, reads into spare capacity; see each block"
)]

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use libc::MSG_NOSIGNAL;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

use crate::{
    capabilities::Capabilities,
    channel::{Channel, ChannelParts, Endpoint, ReceiveHalf, SendHalf},
    gather::{Gather, moved, raw_send, receive_from},
    peer::Peer,
    region::{Region, RegionSlice},
    shutdown::ForceShutdown,
    sigpipe::without_sigpipe,
    zero_copy::{SendEvents, ZeroCopy, ZeroCopySending},
};

/// What kind of descriptor this is: it decides how to send without a signal and how to end one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FdKind {
    /// A connected stream socket.
    Socket,
    /// A pipe or FIFO.
    Pipe,
}

/// A descriptor registered with the runtime.
pub struct FdIo {
    fd: Arc<OwnedFd>,
    /// Where readiness comes from. A moved half has it registered anew, elsewhere.
    registered: RwLock<Arc<AsyncFd<Arc<OwnedFd>>>>,
    interest: Interest,
    kind: FdKind,
    /// `O_NONBLOCK` was ours. It belongs to the open file, which other processes may share (a shell its stdin), so it
    /// is taken back when this value goes.
    restore_blocking: bool,
    /// Halves alive. With the last one a socket is shut down for good: a shutdown handle that somebody keeps must not
    /// keep the peer waiting.
    halves: AtomicUsize,
    /// How the sending half waits once zero copy was asked for.
    send_events: OnceLock<SendEvents>,
    /// What the kernel may read until the socket is closed; the last field, so that it goes after the descriptor.
    abandoned: Mutex<Vec<Arc<dyn Region>>>,
}

impl FdIo {
    /// Registers a descriptor and sets it non-blocking for as long as this value lives. Must be called inside a tokio
    /// runtime.
    pub fn new(fd: OwnedFd, kind: FdKind, interest: Interest) -> io::Result<Arc<Self>> {
        let restore_blocking = set_nonblocking(fd.as_fd(), true)?;
        let fd = Arc::new(fd);
        let registered = register(&fd, interest).inspect_err(|_| {
            if restore_blocking {
                let _restored = set_nonblocking(fd.as_fd(), false);
            }
        })?;
        Ok(Arc::new(Self {
            fd,
            registered: RwLock::new(registered),
            interest,
            kind,
            restore_blocking,
            halves: AtomicUsize::new(0),
            send_events: OnceLock::new(),
            abandoned: Mutex::default(),
        }))
    }

    /// Registers the descriptor with the runtime in which this is called, and no longer with the one it was registered
    /// with. Who waits meanwhile is not woken: the halves must be idle.
    pub fn rehome(&self) -> io::Result<()> {
        let here = register(&self.fd, self.interest)?;
        *self.registered.write().unwrap_or_else(PoisonError::into_inner) = here;
        self.send_events.get().map_or(Ok(()), SendEvents::rehome)
    }

    fn registered(&self) -> Arc<AsyncFd<Arc<OwnedFd>>> {
        Arc::clone(&self.registered.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until the kernel calls the descriptor readable, without reading: for descriptors that carry no bytes, a
    /// pidfd for one. Fails if it was registered without interest in reading.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn readable(&self) -> io::Result<()> {
        // Readiness is kept, not cleared: the caller asks about a lasting state.
        self.registered().readable().await.map(|mut ready| ready.retain_ready())
    }

    /// Makes `call` once the descriptor is ready, again after each `WouldBlock`: for what is neither reading nor writing
    /// bytes, such as accepting or waiting for a connection.
    ///
    /// # Cancel safety
    ///
    /// What `call` did is returned at once; dropping the future before loses nothing.
    pub async fn async_io<T>(
        &self,
        interest: Interest,
        mut call: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.registered().async_io(interest, |fd| call(fd.as_fd())).await
    }

    /// The channel over a connected socket, both ways.
    pub fn socket_channel(
        self: &Arc<Self>,
        capabilities: Capabilities,
        endpoint: Endpoint,
    ) -> Channel {
        let (receive, send) = self.split();
        Channel::new(ChannelParts {
            receive: Some(Box::new(receive)),
            send: Some(Box::new(send)),
            force: Some(Box::new(Arc::clone(self))),
            hooks: None,
            capabilities,
            endpoint,
            peer: Peer::Unknown,
        })
    }

    /// The descriptor, for socket options.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Both halves of a two-way descriptor.
    pub fn split(self: &Arc<Self>) -> (FdReceiveHalf, FdSendHalf) {
        (self.receive_half(), self.send_half())
    }

    /// The reading half alone.
    pub fn receive_half(self: &Arc<Self>) -> FdReceiveHalf {
        self.halves.fetch_add(1, Ordering::Relaxed);
        FdReceiveHalf(Arc::clone(self))
    }

    /// The writing half alone.
    pub fn send_half(self: &Arc<Self>) -> FdSendHalf {
        self.halves.fetch_add(1, Ordering::Relaxed);
        FdSendHalf { io: Some(Arc::clone(self)), zero_copy: None }
    }

    fn half_gone(&self) {
        if self.halves.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.force_shutdown();
        }
    }

    fn raw(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    fn shutdown(&self, how: libc::c_int) -> io::Result<()> {
        if self.kind != FdKind::Socket {
            return Ok(());
        }
        // SAFETY: plain call on a descriptor we own.
        if unsafe { libc::shutdown(self.raw(), how) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            // The peer was faster: the direction is closed, which is what was asked.
            error if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            error => Err(error),
        }
    }

    fn poll_io<T>(
        &self,
        cx: &mut Context<'_>,
        interest: Interest,
        mut call: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        if interest == Interest::WRITABLE
            && let Some(events) = self.send_events.get()
        {
            return events.poll_attempt(cx, call);
        }
        let registered = self.registered();
        loop {
            let mut ready = ready!(if interest == Interest::READABLE {
                registered.poll_read_ready(cx)
            } else {
                registered.poll_write_ready(cx)
            })?;
            match ready.try_io(|_| call()) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(outcome) => return Poll::Ready(outcome),
                Err(_would_block) => {}
            }
        }
    }
}

pub(crate) fn register(
    fd: &Arc<OwnedFd>,
    interest: Interest,
) -> io::Result<Arc<AsyncFd<Arc<OwnedFd>>>> {
    // SAFETY: the `AsyncFd` holds the `OwnedFd`, of which nobody can take the descriptor out, so that stays open and
    // keeps its identity for as long as it is registered.
    unsafe { AsyncFd::register_with_interest(Arc::clone(fd), interest) }
        .map(Arc::new)
        .map_err(|error| error.into_parts().1)
}

/// For sockets. A pipe has nothing to shut down, and a handle that kept it open would keep its reader waiting: give
/// such a channel no `force`, closing the descriptor is its only end.
impl ForceShutdown for Arc<FdIo> {
    fn force_shutdown(&self) {
        FdIo::force_shutdown(self);
    }
}

impl FdIo {
    fn force_shutdown(&self) {
        // Nobody is left to tell if this fails; the halves are woken either way.
        if let Err(error) = self.shutdown(libc::SHUT_RDWR) {
            tracing::debug!(%error, "shutdown of a socket");
        }
    }
}

impl std::fmt::Debug for FdIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FdIo").field("fd", &self.raw()).field("kind", &self.kind).finish()
    }
}

impl Drop for FdIo {
    fn drop(&mut self) {
        if self.restore_blocking {
            // A destructor has nobody to answer to, and the next holder can set the flag itself.
            let _restored = set_nonblocking(self.as_fd(), false);
        }
    }
}

/// Sets or clears `O_NONBLOCK`; answers whether that changed anything.
fn set_nonblocking(fd: BorrowedFd<'_>, on: bool) -> io::Result<bool> {
    let raw = fd.as_raw_fd();
    // SAFETY: plain calls on an open descriptor.
    let flags = unsafe { libc::fcntl(raw, libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    let wanted = if on { flags | libc::O_NONBLOCK } else { flags & !libc::O_NONBLOCK };
    if wanted == flags {
        return Ok(false);
    }
    // SAFETY: as above.
    if unsafe { libc::fcntl(raw, libc::F_SETFL, wanted) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(true)
}

/// The reading half of an [`FdIo`].
#[derive(Debug)]
pub struct FdReceiveHalf(Arc<FdIo>);

impl AsyncRead for FdReceiveHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let io = &self.0;
        ready!(io.poll_io(cx, Interest::READABLE, || {
            // SAFETY: the kernel writes only initialised bytes; none is marked filled before it was written.
            let spare = unsafe { buffer.unfilled_mut() };
            // SAFETY: `spare` is writable memory of that length, exclusively ours during the call.
            let got =
                moved(unsafe { libc::read(io.raw(), spare.as_mut_ptr().cast(), spare.len()) })?;
            // SAFETY: the kernel has just written `got` bytes there.
            unsafe { buffer.assume_init(got) };
            buffer.advance(got);
            Ok(())
        }))?;
        Poll::Ready(Ok(()))
    }
}

impl Drop for FdReceiveHalf {
    fn drop(&mut self) {
        self.0.half_gone();
    }
}

impl ReceiveHalf for FdReceiveHalf {
    fn rehome(&mut self) -> io::Result<()> {
        self.0.rehome()
    }

    fn poll_receive(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &[RegionSlice],
    ) -> Poll<io::Result<usize>> {
        let io = &self.0;
        io.poll_io(cx, Interest::READABLE, || receive_from(io.raw(), into))
    }

    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let io = &self.0;
        // More pieces than the kernel takes at a call wait for the next one.
        let count = into.len().min(libc::UIO_MAXIOV as usize) as libc::c_int;
        io.poll_io(cx, Interest::READABLE, || {
            // SAFETY: `IoSliceMut` has the layout of `iovec`; every piece is writable and exclusively borrowed during
            // the call, and there are at least `count` of them.
            moved(unsafe { libc::readv(io.raw(), into.as_mut_ptr().cast(), count) })
        })
    }
}

/// The writing half of an [`FdIo`]. Ending or dropping it ends the write direction of a socket; a pipe ends when the
/// last holder of its descriptor goes, and this half lets go of it then.
#[derive(Debug)]
pub struct FdSendHalf {
    /// `None` once ended.
    io: Option<Arc<FdIo>>,
    /// Once it was asked for and the socket and the limits allow it.
    zero_copy: Option<Box<ZeroCopySending>>,
}

impl FdSendHalf {
    fn io(&self) -> io::Result<&Arc<FdIo>> {
        self.io.as_ref().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    fn begin_zero_copy(&self) -> Result<ZeroCopySending, String> {
        let Some(io) = &self.io else { return Err("not here: this direction was ended".into()) };
        if io.kind != FdKind::Socket {
            return Err("not here: a pipe".into());
        }
        let zero_copy = ZeroCopySending::new(io.as_fd())?;
        let failed = |error| format!("not here: watching the socket for completions: {error}");
        if io.send_events.get().is_none() {
            // Only this half sets it, and it is borrowed here.
            let _set = io.send_events.set(SendEvents::new(io.as_fd()).map_err(failed)?);
        }
        Ok(zero_copy)
    }

    fn end(&mut self) -> io::Result<()> {
        self.io.take().map_or(Ok(()), |io| {
            let ended = io.shutdown(libc::SHUT_WR);
            if let Some(mut zero_copy) = self.zero_copy.take() {
                let kept = zero_copy.abandon(io.as_fd());
                io.abandoned.lock().unwrap_or_else(PoisonError::into_inner).extend(kept);
            }
            io.half_gone();
            ended
        })
    }
}

impl AsyncWrite for FdSendHalf {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let io = self.io()?;
        io.poll_io(cx, Interest::WRITABLE, || {
            let (start, len) = (bytes.as_ptr().cast(), bytes.len());
            match io.kind {
                // SAFETY: `bytes` is readable for its length during the call.
                FdKind::Socket => moved(unsafe { libc::send(io.raw(), start, len, MSG_NOSIGNAL) }),
                FdKind::Pipe => {
                    // SAFETY: as above.
                    without_sigpipe(|| moved(unsafe { libc::write(io.raw(), start, len) }))
                }
            }
        })
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let io = self.io()?;
        // More pieces than the kernel takes at a call wait for the next one.
        let (start, count) = (pieces.as_ptr().cast(), pieces.len().min(libc::UIO_MAXIOV as usize));
        io.poll_io(cx, Interest::WRITABLE, || match io.kind {
            // SAFETY: `IoSlice` has the layout of `iovec`; there are at least `count` of them, each readable during the
            // call.
            FdKind::Socket => unsafe { raw_send(io.raw(), start, count, 0) },
            FdKind::Pipe => {
                // SAFETY: as above.
                without_sigpipe(|| moved(unsafe { libc::writev(io.raw(), start, count as _) }))
            }
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Self { io: Some(io), zero_copy: Some(zero_copy) } = &mut *self
            && let Some(events) = io.send_events.get()
        {
            // Said again each time it is polled, which changes nothing.
            io.shutdown(libc::SHUT_WR)?;
            ready!(zero_copy.poll_drained(io.as_fd(), events, cx))?;
        }
        Poll::Ready(self.end())
    }
}

impl SendHalf for FdSendHalf {
    fn rehome(&mut self) -> io::Result<()> {
        self.io()?.rehome()
    }

    fn poll_send(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        gather: &mut Gather,
    ) -> Poll<io::Result<usize>> {
        if gather.sendable() == 0 {
            return Poll::Ready(Ok(0));
        }
        let Self { io, zero_copy } = &mut *self;
        let io = io.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        io.poll_io(cx, Interest::WRITABLE, || match zero_copy {
            Some(zero_copy) => zero_copy.send(io.as_fd(), gather),
            None => gather.send_to(io.raw(), io.kind == FdKind::Socket),
        })
    }

    fn request_zero_copy(&mut self) -> ZeroCopy {
        if let Some(zero_copy) = &self.zero_copy {
            return zero_copy.told();
        }
        match self.begin_zero_copy() {
            Ok(zero_copy) => self.zero_copy.insert(Box::new(zero_copy)).told(),
            Err(reason) => ZeroCopy::unavailable(reason),
        }
    }
}

impl Drop for FdSendHalf {
    fn drop(&mut self) {
        // A destructor has nobody to answer to; the descriptor goes with its last holder anyway.
        let _ended = self.end();
    }
}
