//! Handing a descriptor to another process over a unix socket (`SCM_RIGHTS`).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use mig_transport::{Error, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::{io::Interest, net::UnixStream};

/// Room for more descriptors than the one that is expected, so that extra ones are seen and closed, not lost.
const ROOM: usize = 16;

/// Receives exactly one descriptor, travelling with one byte that is thrown away.
///
/// # Errors
///
/// [`Error::PeerMisbehaved`] if the message holds none or several (which are closed) or the peer hangs up,
/// [`Error::Deadline`] after `within`.
///
/// # Cancel safety
///
/// Dropping the future loses nothing: the message is read in one step or not at all.
pub async fn receive_fd(socket: &UnixStream, within: Duration) -> Result<OwnedFd> {
    let doing = "receiving a descriptor";
    tokio::time::timeout(within, socket.async_io(Interest::READABLE, || receive_now(socket)))
        .await
        .map_err(|_| Error::Deadline { doing: doing.into(), after: within })?
        .map_err(|error| Error::io(doing, error))
}

/// Sends one descriptor, with one byte.
///
/// # Cancel safety
///
/// Dropping the future sends nothing, or all.
pub async fn send_fd(socket: &UnixStream, fd: BorrowedFd<'_>, within: Duration) -> Result<()> {
    let doing = "handing over a descriptor";
    tokio::time::timeout(within, socket.async_io(Interest::WRITABLE, || send_now(socket, fd)))
        .await
        .map_err(|_| Error::Deadline { doing: doing.into(), after: within })?
        .map_err(|error| Error::io(doing, error))
}

fn receive_now(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0u8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ROOM))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
    // Owned from here on: whatever is not returned is closed.
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let wrong = |what: String| Err(Error::PeerMisbehaved { what }.into_io());
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return wrong(format!("more than {ROOM} descriptors came where one was expected"));
    }
    match (fds.pop(), fds.len()) {
        (Some(fd), 0) => Ok(fd),
        (Some(_), others) => {
            wrong(format!("{} descriptors came where one was expected", others + 1))
        }
        (None, _) if got.bytes == 0 => {
            wrong("the other end closed without handing over a descriptor".into())
        }
        (None, _) => wrong("bytes came without the descriptor that was expected".into()),
    }
}

fn send_now(socket: &UnixStream, fd: BorrowedFd<'_>) -> io::Result<()> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let pushed = control.push(SendAncillaryMessage::ScmRights(&fds));
    debug_assert!(pushed, "the buffer was sized for it");
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::sendmsg(socket, &[IoSlice::new(&[0])], &mut control, flags)?;
    Ok(())
}
