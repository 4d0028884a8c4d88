//! One connection of a link: it can be left unread, ended one way, and closed so that its peer is reset.

use std::io;

use rustix::net::{RecvFlags, Shutdown};
use tokio::{
    io::Interest,
    net::{TcpStream, UnixStream},
};

use super::link::LinkAddress;

/// A connected socket. Dropping it ends nothing in order first: that would be another fault than a reset.
#[derive(Debug)]
pub(super) enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Wire {
    /// # Cancel safety
    ///
    /// Nothing stays open.
    pub(super) async fn connect(to: &LinkAddress) -> io::Result<Self> {
        Ok(match to {
            LinkAddress::Tcp(to) => Self::Tcp(TcpStream::connect(to).await?),
            LinkAddress::Unix(to) => Self::Unix(UnixStream::connect(to).await?),
        })
    }

    /// A TCP connection that is closed like this resets its peer. A unix socket does so when something unread is in it.
    pub(super) fn reset_when_closed(&self) {
        if let Self::Tcp(stream) = self {
            stream.set_zero_linger().expect("an open socket");
        }
    }

    /// Returns when closing it resets its peer, or when its peer is about to be gone anyway.
    ///
    /// # Cancel safety
    ///
    /// Nothing is read.
    pub(super) async fn resets_now(&self) {
        if let Self::Unix(stream) = self {
            let look = || {
                let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
                rustix::net::recv(stream, &mut [0; 1], flags).map_err(io::Error::from)
            };
            // An error is an end, too.
            let _there = stream.async_io(Interest::READABLE, look).await;
        }
    }

    /// # Cancel safety
    ///
    /// Nothing is lost: it waits before it reads.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match self {
                Self::Tcp(stream) => {
                    stream.readable().await?;
                    stream.try_read(buffer)
                }
                Self::Unix(stream) => {
                    stream.readable().await?;
                    stream.try_read(buffer)
                }
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }

    /// # Cancel safety
    ///
    /// Some of the bytes may have left.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match self {
                Self::Tcp(stream) => {
                    stream.writable().await?;
                    stream.try_write(bytes)
                }
                Self::Unix(stream) => {
                    stream.writable().await?;
                    stream.try_write(bytes)
                }
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => bytes = &bytes[written?..],
            }
        }
        Ok(())
    }

    /// Ends what is written to it, in order.
    pub(super) fn end(&self) {
        // Who has gone already needs no end.
        let _ended = match self {
            Self::Tcp(stream) => rustix::net::shutdown(stream, Shutdown::Write),
            Self::Unix(stream) => rustix::net::shutdown(stream, Shutdown::Write),
        };
    }
}
