//! Sockets, their names, and who is at the other end.

use std::{
    ffi::OsString,
    fmt, io,
    os::{fd::OwnedFd, unix::ffi::OsStringExt},
    path::PathBuf,
};

use mig_transport::{Capabilities, Channel, Endpoint, FdIo, FdKind, address::UnixAddress};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::{io::Interest, net::UnixStream};

/// The kernel's field for a path or name.
const FIELD_BYTES: usize = 108;

/// What may be under way in one direction, as asked of the kernel, which counts its own overhead and takes twice as much:
/// 512 KiB of kernel memory at most for each end, while the other one does not read. The kernel's own default, 208 KiB in
/// all, holds four of its 32 KiB pieces: both ends then sleep and wake at every turn (docs/performance.md). More than
/// this gains nothing, and from 4 MiB on it costs, because the bytes have left the processor's cache when they are read.
const SEND_BUFFER_BYTES: usize = 256 << 10;

/// The process at the other end, as it was when it connected or began to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Its process, if that is visible from here.
    pub pid: Option<i32>,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl PeerCredentials {
    pub(crate) fn of(stream: &UnixStream) -> io::Result<Self> {
        let peer = stream.peer_cred()?;
        Ok(Self { pid: peer.pid().filter(|&pid| pid > 0), uid: peer.uid(), gid: peer.gid() })
    }
}

/// `pid 4711, uid 0, gid 0`
impl fmt::Display for PeerCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(pid) = self.pid {
            write!(f, "pid {pid}, ")?;
        }
        write!(f, "uid {}, gid {}", self.uid, self.gid)
    }
}

/// The kernel's form of an address. An abstract name starts with a NUL; one that is not tight fills the field.
pub(crate) fn sock_addr(address: &UnixAddress) -> io::Result<SockAddr> {
    if !address.is_abstract {
        return SockAddr::unix(&address.path);
    }
    let mut name = vec![0];
    name.extend_from_slice(address.path.as_bytes());
    if !address.tight {
        name.resize(FIELD_BYTES, 0);
    }
    SockAddr::unix(PathBuf::from(OsString::from_vec(name)))
}

pub(crate) fn open() -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Gives a socket room for [`SEND_BUFFER_BYTES`], unless somebody gave it more.
fn enlarge(socket: SockRef<'_>) {
    // The kernel answers with twice of what was asked, and silently cuts that to `net.core.wmem_max`.
    let bytes = |socket: &SockRef<'_>| socket.send_buffer_size().unwrap_or(0);
    if bytes(&socket) >= 2 * SEND_BUFFER_BYTES {
        return;
    }
    let asked = socket.set_send_buffer_size(SEND_BUFFER_BYTES);
    let got = bytes(&socket);
    if got < 2 * SEND_BUFFER_BYTES {
        let error = asked.err();
        tracing::debug!(
            ?error,
            got,
            "a small send buffer; sysctl net.core.wmem_max={SEND_BUFFER_BYTES} allows more"
        );
    }
}

pub(crate) fn channel(stream: UnixStream, endpoint: Endpoint) -> io::Result<Channel> {
    let fd = OwnedFd::from(stream.into_std()?);
    enlarge(SockRef::from(&fd));
    let io = FdIo::new(fd, FdKind::Socket, Interest::READABLE | Interest::WRITABLE)?;
    tracing::debug!(%endpoint, "connected");
    let capabilities = Capabilities::socket().with(|can| can.fd_passing = true);
    Ok(io.socket_channel(capabilities, endpoint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abstract_names_are_tight_or_fill_the_field() {
        let mut address = UnixAddress::new_abstract("mig");
        let tight = sock_addr(&address).unwrap();
        assert_eq!(tight.as_abstract_namespace(), Some(&b"mig"[..]));
        address.tight = false;
        let padded = sock_addr(&address).unwrap();
        let name = padded.as_abstract_namespace().unwrap();
        assert_eq!((name.len(), &name[..4]), (107, &b"mig\0"[..]));
    }

    #[test]
    fn what_may_be_under_way_grows_and_never_shrinks() {
        let socket = open().unwrap();
        let before = socket.send_buffer_size().unwrap();
        enlarge(SockRef::from(&socket));
        let most = std::fs::read_to_string("/proc/sys/net/core/wmem_max").unwrap();
        let most: usize = most.trim().parse().unwrap();
        assert_eq!(socket.send_buffer_size().unwrap(), before.max(2 * SEND_BUFFER_BYTES.min(most)),);
        socket.set_send_buffer_size(2 * SEND_BUFFER_BYTES.min(most)).unwrap();
        let larger = socket.send_buffer_size().unwrap();
        enlarge(SockRef::from(&socket));
        assert_eq!(socket.send_buffer_size().unwrap(), larger);
    }

    #[test]
    fn the_longest_names_fit() {
        let mut address = UnixAddress::new("p".repeat(UnixAddress::MAX_PATH_BYTES));
        assert!(sock_addr(&address).is_ok());
        address.is_abstract = true;
        assert!(sock_addr(&address).is_ok());
    }
}
