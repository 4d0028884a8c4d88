//! The channel: two owned halves, facts that do not change, and a way to stop both.
//!
//! A backend implements [`SendHalf`] and [`ReceiveHalf`], tokio's own traits plus one method each for guest memory, and
//! hands them to [`Channel::new`]. The holders [`Sender`] and [`Receiver`] erase the type and look for a shutdown on
//! every poll, so a backend need not. Dropping the sender ends the write direction and nothing else.

use std::{
    fmt,
    io::{self, IoSlice, IoSliceMut},
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    capabilities::Capabilities,
    error::{Error, Result},
    gather::Gather,
    hooks::{NoRamHooks, RamHooks},
    peer::{Identity, Peer},
    region::RegionSlice,
    shutdown::{ForceShutdown, Half, ShutdownHandle},
    zero_copy::ZeroCopy,
};

/// Bytes that a channel without direct access to guest memory copies at a time.
const BOUNCE_BYTES: usize = 64 * 1024;

/// The writing half of a backend. `poll_shutdown` is the orderly end: everything is flushed, the direction closed, a
/// child waited for, a file made durable; an error there means that the bytes may not have arrived.
pub trait SendHalf: AsyncWrite + Send + Unpin {
    /// Sends as much of `gather` as the channel takes now and its allowance permits, and advances it; answers how many
    /// bytes that were (at least one unless nothing is [`sendable`](Gather::sendable)). The default copies through a
    /// buffer of bounded size.
    fn poll_send(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        gather: &mut Gather,
    ) -> Poll<io::Result<usize>> {
        let mut bounce = vec![0; BOUNCE_BYTES.min(gather.sendable())];
        let n = gather.copy_next(&mut bounce);
        let sent = ready!(self.poll_write(cx, &bounce[..n]))?;
        gather.advance(sent);
        Poll::Ready(Ok(sent))
    }

    /// Asks that long runs of pages leave without being copied, from now on (docs/wire/transports.md §4,
    /// `zero-copy-send`). It changes how fast bytes leave, never which; the answer tells, now and later, whether it is
    /// so and why not. The orderly end then waits until the kernel has read everything: only after that may memory
    /// that was sent be used for something else. The default is right for what does not send from memory itself.
    fn request_zero_copy(&mut self) -> ZeroCopy {
        ZeroCopy::unavailable("not here: not a TCP socket")
    }

    /// Moves the whole channel to the runtime in which this is called: it is polled there from now on. The default is
    /// right for what is woken by no runtime's reactor.
    fn rehome(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The reading half of a backend. End of input is `Ok(0)`, as everywhere in tokio.
pub trait ReceiveHalf: AsyncRead + Send + Unpin {
    /// Reads into guest memory, filling `into` in order; answers how many bytes came, 0 at the end of input. The
    /// default copies through a buffer of bounded size.
    fn poll_receive(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &[RegionSlice],
    ) -> Poll<io::Result<usize>> {
        let Some(first) = into.iter().find(|slice| !slice.is_empty()) else {
            return Poll::Ready(Ok(0));
        };
        let mut bounce = vec![0; BOUNCE_BYTES.min(first.len())];
        let mut buffer = ReadBuf::new(&mut bounce);
        ready!(self.poll_read(cx, &mut buffer))?;
        first.copy_in(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Reads into several pieces of ordinary memory, filling them in order; answers how many bytes came, 0 at the end of
    /// input. The default fills the first piece only.
    fn poll_read_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some(first) = into.iter_mut().find(|piece| !piece.is_empty()) else {
            return Poll::Ready(Ok(0));
        };
        let mut buffer = ReadBuf::new(first);
        ready!(self.poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// See [`SendHalf::rehome`].
    fn rehome(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Names of the two ends, for messages and for `socket-address`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The transport's scheme: `tcp`, `unix`, …
    pub transport: &'static str,
    /// This end, as the transport writes it; empty where it has no name.
    pub local: String,
    /// The other end; empty where it has no name.
    pub peer: String,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.local.as_str(), self.peer.as_str()) {
            ("", "") => f.write_str(self.transport),
            (local, "") => write!(f, "{} {local}", self.transport),
            ("", peer) => write!(f, "{} {peer}", self.transport),
            (local, peer) => write!(f, "{} {local} to {peer}", self.transport),
        }
    }
}

/// What a backend hands over to make a [`Channel`]. A one-way channel lacks a half.
#[derive(Default)]
pub struct ChannelParts {
    /// The reading half, if bytes can come.
    pub receive: Option<Box<dyn ReceiveHalf>>,
    /// The writing half, if bytes can go.
    pub send: Option<Box<dyn SendHalf>>,
    /// What a shutdown does beside waking both halves.
    pub force: Option<Box<dyn ForceShutdown>>,
    /// Pages that do not travel in the stream; `None` for nearly all transports.
    pub hooks: Option<Box<dyn RamHooks>>,
    /// Facts that do not change. `return_path` is corrected to what the halves allow.
    pub capabilities: Capabilities,
    /// Names for messages.
    pub endpoint: Endpoint,
    /// Who is at the other end, as far as the kernel vouches for it. A channel around another one hands it on.
    pub peer: Peer,
}

/// One connection of a migration.
pub struct Channel {
    receiver: Option<Receiver>,
    sender: Option<Sender>,
    hooks: Option<Box<dyn RamHooks>>,
    shutdown: ShutdownHandle,
    capabilities: Capabilities,
    endpoint: Endpoint,
    peer: Peer,
    identity: Option<Identity>,
}

impl Channel {
    /// A channel of a backend's parts.
    pub fn new(parts: ChannelParts) -> Self {
        let shutdown = ShutdownHandle::new(parts.force);
        let mut capabilities = parts.capabilities;
        capabilities.return_path &= parts.receive.is_some() && parts.send.is_some();
        Self {
            receiver: parts.receive.map(|half| Receiver { half, shutdown: shutdown.clone() }),
            sender: parts.send.map(|half| Sender { half, shutdown: shutdown.clone() }),
            hooks: parts.hooks,
            shutdown,
            capabilities,
            endpoint: parts.endpoint,
            peer: parts.peer,
            identity: None,
        }
    }

    /// What the channel can do.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// What the two ends are called.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Who is at the other end, as far as the kernel vouches for it.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The same channel, with the one at its other end named.
    #[must_use]
    pub fn with_peer(mut self, peer: Peer) -> Self {
        self.peer = peer;
        self
    }

    /// Who the other end has proven to be; `None` where nothing asked it.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// The same channel, whose other end has proven who it is. A channel around another one hands it on.
    #[must_use]
    pub fn with_identity(mut self, identity: Option<Identity>) -> Self {
        self.identity = identity;
        self
    }

    /// A handle that stops the channel; it works before and after the halves were taken.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.shutdown.clone()
    }

    /// Takes the reading half; [`Error::Misuse`] if bytes cannot come this way, or it was taken.
    pub fn take_receiver(&mut self) -> Result<Receiver> {
        self.receiver.take().ok_or_else(|| Error::Misuse {
            what: format!("{}: nothing can be received on this channel", self.endpoint),
        })
    }

    /// Takes the writing half; [`Error::Misuse`] if bytes cannot go this way, or it was taken.
    pub fn take_sender(&mut self) -> Result<Sender> {
        self.sender.take().ok_or_else(|| Error::Misuse {
            what: format!("{}: nothing can be sent on this channel", self.endpoint),
        })
    }

    /// Takes the RAM hooks; a transport without any answers [`NoRamHooks`].
    pub fn take_ram_hooks(&mut self) -> Box<dyn RamHooks> {
        self.hooks.take().unwrap_or_else(|| Box::new(NoRamHooks))
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("endpoint", &self.endpoint)
            .field("capabilities", &self.capabilities)
            .finish_non_exhaustive()
    }
}

/// The reading half of a [`Channel`].
pub struct Receiver {
    half: Box<dyn ReceiveHalf>,
    shutdown: ShutdownHandle,
}

impl Receiver {
    /// See [`ReceiveHalf::poll_receive`].
    pub fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        into: &[RegionSlice],
    ) -> Poll<io::Result<usize>> {
        self.shutdown.check(Half::Receiver, cx)?;
        let outcome = Pin::new(&mut *self.half).poll_receive(cx, into);
        self.shutdown.explain(outcome)
    }

    /// See [`ReceiveHalf::poll_read_vectored`].
    pub fn poll_read_vectored(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.shutdown.check(Half::Receiver, cx)?;
        let outcome = Pin::new(&mut *self.half).poll_read_vectored(cx, into);
        self.shutdown.explain(outcome)
    }

    /// Moves the whole channel to the runtime in which this is called, with a thread that serves one channel alone; nothing
    /// may be waiting on it, in either direction.
    pub fn rehome(&mut self) -> io::Result<()> {
        self.half.rehome()
    }

    /// A handle that stops the whole channel.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.shutdown.clone()
    }
}

impl AsyncRead for Receiver {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.shutdown.check(Half::Receiver, cx)?;
        let outcome = Pin::new(&mut *self.half).poll_read(cx, buffer);
        self.shutdown.explain(outcome)
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// The writing half of a [`Channel`].
pub struct Sender {
    half: Box<dyn SendHalf>,
    shutdown: ShutdownHandle,
}

impl Sender {
    /// See [`SendHalf::poll_send`].
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        gather: &mut Gather,
    ) -> Poll<io::Result<usize>> {
        self.shutdown.check(Half::Sender, cx)?;
        let outcome = Pin::new(&mut *self.half).poll_send(cx, gather);
        self.shutdown.explain(outcome)
    }

    /// See [`SendHalf::request_zero_copy`].
    pub fn request_zero_copy(&mut self) -> ZeroCopy {
        self.half.request_zero_copy()
    }

    /// Moves the whole channel to the runtime in which this is called, with a thread that serves one channel alone; nothing
    /// may be waiting on it, in either direction.
    pub fn rehome(&mut self) -> io::Result<()> {
        self.half.rehome()
    }

    /// A handle that stops the whole channel.
    pub fn shutdown_handle(&self) -> ShutdownHandle {
        self.shutdown.clone()
    }
}

impl AsyncWrite for Sender {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.shutdown.check(Half::Sender, cx)?;
        let outcome = Pin::new(&mut *self.half).poll_write(cx, bytes);
        self.shutdown.explain(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.shutdown.check(Half::Sender, cx)?;
        let outcome = Pin::new(&mut *self.half).poll_write_vectored(cx, pieces);
        self.shutdown.explain(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.half.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shutdown.check(Half::Sender, cx)?;
        let outcome = Pin::new(&mut *self.half).poll_flush(cx);
        self.shutdown.explain(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shutdown.check(Half::Sender, cx)?;
        let outcome = Pin::new(&mut *self.half).poll_shutdown(cx);
        self.shutdown.explain(outcome)
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}
