//! The two halves of a channel under TLS.
//!
//! Reading: many records come with one read, each is decrypted in place when somebody wants its bytes, and copied once, to
//! where they are wanted. Writing: see [`link`](super::link).
//!
//! How an end of input is read (docs/wire/transports.md §5.3): after a close_notify it is one. Without, QEMU's main channel
//! ends so, and the stream has an end of its own: a destination takes it for the end. A source must not: whoever sits
//! between the two can close a connection, and "closed in order, and no SHUT" would mean that the destination gave up the
//! guest. It reads an error of kind `UnexpectedEof`. In the middle of a record it is that error at both ends.

use std::{
    io::{self, IoSliceMut},
    ops::Range,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use mig_transport::{
    Error, ForceShutdown, Gather, ReceiveHalf, Receiver, RegionSlice, SendHalf, ShutdownHandle,
    ZeroCopy,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    engine::{Content, Open},
    incoming::{Incoming, NotTls},
    link::Link,
};

/// Which end of the migration this is; it decides what an end without close_notify means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The TLS client.
    Source,
    /// The TLS server.
    Destination,
}

/// The reading half.
pub(crate) struct TlsReceiveHalf {
    link: Arc<Link>,
    receiver: Receiver,
    open: Box<dyn Open>,
    incoming: Incoming,
    /// Plaintext of the last record that was opened, as far as nobody took it.
    plain: Range<usize>,
    state: State,
    role: Role,
    /// The link has been told.
    data_came: bool,
}

enum State {
    Open,
    /// In order: every read answers 0 from here on.
    Ended,
    /// Every read fails; the first one with the reason.
    Failed(Option<io::Error>),
}

impl TlsReceiveHalf {
    /// `incoming` has what came behind the handshake.
    pub(crate) fn new(
        link: Arc<Link>,
        receiver: Receiver,
        open: Box<dyn Open>,
        mut incoming: Incoming,
        role: Role,
    ) -> Self {
        incoming.grow();
        Self {
            link,
            receiver,
            open,
            incoming,
            plain: 0..0,
            state: State::Open,
            role,
            data_came: false,
        }
    }

    /// Gives up to `want` bytes to `put`, in pieces, in order: what is here, or what comes first.
    fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        want: usize,
        mut put: impl FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        self.link.settle_rest(cx);
        let mut done = 0;
        while done < want {
            match self.poll_plain(cx, done == 0) {
                Poll::Ready(Ok(())) if self.plain.is_empty() => break,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) if done > 0 => {
                    self.state = State::Failed(Some(error));
                    break;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if done > 0 => break,
                Poll::Pending => return Poll::Pending,
            }
            let n = self.plain.len().min(want - done);
            put(self.incoming.at(self.plain.start..self.plain.start + n));
            self.plain.start += n;
            done += n;
        }
        Poll::Ready(Ok(done))
    }

    /// Makes sure that there is plaintext; none means the end. Waits for the channel only if it `may_wait`.
    fn poll_plain(&mut self, cx: &mut Context<'_>, may_wait: bool) -> Poll<io::Result<()>> {
        while self.plain.is_empty() {
            match &mut self.state {
                State::Open => {}
                State::Ended => return Poll::Ready(Ok(())),
                State::Failed(why) => {
                    return Poll::Ready(Err(why.take().unwrap_or_else(failed_before)));
                }
            }
            match self.incoming.whole_record() {
                Ok(Some(len)) => {
                    let opened = self.open_record(cx, len);
                    self.sticky(opened)?;
                }
                Ok(None) if !may_wait => return Poll::Pending,
                Ok(None) => {
                    let read = ready!(self.poll_fill(cx));
                    if read? == 0 {
                        let end = self.end_of_input();
                        self.sticky(end)?;
                    }
                }
                Err(not_tls) => {
                    let error = damaged(not_tls);
                    self.sticky(Err(error))?;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What breaks TLS breaks it for good; what the channel says is asked of it again.
    fn sticky(&mut self, outcome: io::Result<()>) -> io::Result<()> {
        if outcome.is_err() {
            self.state = State::Failed(None);
        }
        outcome
    }

    fn open_record(&mut self, cx: &mut Context<'_>, len: usize) -> io::Result<()> {
        let at = self.incoming.take(len);
        let opened = match self.open.open(self.incoming.at_mut(at.clone())) {
            Ok(opened) => opened,
            Err(error) => {
                // The peer is told why, if the channel takes it.
                self.link.settle(cx);
                return Err(error);
            }
        };
        if opened.owes {
            self.link.settle(cx);
        }
        match opened.what {
            Content::Data(within) => {
                if !self.data_came && !within.is_empty() {
                    self.data_came = true;
                    self.link.heard();
                }
                self.plain = at.start + within.start..at.start + within.end;
            }
            Content::Internal => {}
            Content::Closed => self.state = State::Ended,
        }
        Ok(())
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = ReadBuf::new(self.incoming.room());
        let read = ready!(Pin::new(&mut self.receiver).poll_read(cx, &mut room));
        // A refusal that overtakes what this end still sends is a reset, not an end.
        read.map_err(|error| self.link.explain(error))?;
        let came = room.filled().len();
        self.incoming.came(came);
        Poll::Ready(Ok(came))
    }

    /// The channel ended without close_notify.
    fn end_of_input(&mut self) -> io::Result<()> {
        let held = self.incoming.held().len();
        let what = match (held, self.role) {
            (0, Role::Destination) => {
                self.state = State::Ended;
                return Ok(());
            }
            (0, Role::Source) => {
                let otherwise = "the connection ended without a word of TLS (close_notify): the destination may have ended it, \
                                 or anybody on the way";
                self.link.hung_up().unwrap_or(otherwise).to_owned()
            }
            _ => format!("the connection ended {held} bytes into a TLS record"),
        };
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, what))
    }
}

impl AsyncRead for TlsReceiveHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let want = buffer.remaining();
        self.poll_take(cx, want, |bytes| buffer.put_slice(bytes)).map_ok(|_| ())
    }
}

impl ReceiveHalf for TlsReceiveHalf {
    fn poll_receive(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &[RegionSlice],
    ) -> Poll<io::Result<usize>> {
        let want = into.iter().map(RegionSlice::len).sum();
        let (mut slice, mut skip) = (0, 0);
        self.poll_take(cx, want, |mut bytes| {
            while !bytes.is_empty() {
                let room = &into[slice];
                let n = (room.len() - skip).min(bytes.len());
                let copied = room.region().copy_in_at(room.offset() + skip, &bytes[..n]);
                copied.expect("a part of a slice is in its region");
                bytes = &bytes[n..];
                skip += n;
                if skip == room.len() {
                    (slice, skip) = (slice + 1, 0);
                }
            }
        })
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let want = into.iter().map(|piece| piece.len()).sum();
        let (mut piece, mut skip) = (0, 0);
        self.poll_take(cx, want, |mut bytes| {
            while !bytes.is_empty() {
                let room = &mut into[piece][skip..];
                let n = room.len().min(bytes.len());
                room[..n].copy_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                skip += n;
                if skip == into[piece].len() {
                    (piece, skip) = (piece + 1, 0);
                }
            }
        })
    }

    fn rehome(&mut self) -> io::Result<()> {
        self.receiver.rehome()
    }
}

/// The writing half.
pub(crate) struct TlsSendHalf(pub(crate) Arc<Link>);

impl AsyncWrite for TlsSendHalf {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.write(cx, |side, cx| side.poll_seal_slice(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.write(cx, |side, cx| side.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.write(cx, |side, cx| side.poll_shutdown(cx))
    }
}

impl SendHalf for TlsSendHalf {
    fn poll_send(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        gather: &mut Gather,
    ) -> Poll<io::Result<usize>> {
        if gather.sendable() == 0 {
            return Poll::Ready(Ok(0));
        }
        self.0.write(cx, |side, cx| {
            side.poll_seal(cx, |plaintext| {
                let n = gather.copy_next(plaintext);
                gather.advance(n);
                n
            })
        })
    }

    fn request_zero_copy(&mut self) -> ZeroCopy {
        ZeroCopy::unavailable("not over TLS: what is encrypted is a copy")
    }

    fn rehome(&mut self) -> io::Result<()> {
        self.0.rehome()
    }
}

impl Drop for TlsSendHalf {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}

/// Stopping a channel under TLS stops the one below.
pub(crate) struct StopInner(pub(crate) ShutdownHandle);

impl ForceShutdown for StopInner {
    fn force_shutdown(&self) {
        self.0.shutdown();
    }
}

fn failed_before() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "reading from this TLS connection failed before")
}

/// Anybody on the way could have done it.
fn damaged(NotTls(header): NotTls) -> io::Error {
    let source = io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "{header:02x?} is not the beginning of a TLS record: damaged or altered on the way"
        ),
    );
    Error::Io { doing: "reading a TLS record".to_owned(), source }.into_io()
}
