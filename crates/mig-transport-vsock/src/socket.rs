//! Sockets and their names.

use std::{io, sync::Arc};

use mig_transport::{
    Capabilities, Channel, Endpoint, Error, FdIo, Peer, Result, address::VsockAddress,
};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

/// The kernel was built without the address family, or its module is not loaded.
const EAFNOSUPPORT: i32 = 97;
/// The module is there and finds no device.
const ENODEV: i32 = 19;

pub(crate) fn open() -> Result<Socket> {
    let opened = Socket::new(Domain::VSOCK, Type::STREAM, None).and_then(|socket| {
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    match opened {
        Ok(socket) => Ok(socket),
        Err(error) if matches!(error.raw_os_error(), Some(EAFNOSUPPORT | ENODEV)) => {
            Err(Error::Unavailable {
                what: format!("this kernel has no vsock: {error}"),
                remedy:
                    "on a host run modprobe vhost_vsock, in a guest give the machine a vsock device"
                        .to_owned(),
            })
        }
        Err(error) => Err(Error::io("opening a vsock socket", error)),
    }
}

pub(crate) fn sock_addr(address: VsockAddress) -> SockAddr {
    SockAddr::vsock(address.cid, address.port)
}

/// A socket's own name.
pub(crate) fn local(socket: &SockRef<'_>) -> io::Result<VsockAddress> {
    let name = socket.local_addr()?;
    address(&name).ok_or_else(|| io::Error::other("the socket has no vsock name"))
}

pub(crate) fn address(name: &SockAddr) -> Option<VsockAddress> {
    name.as_vsock_address().map(|(cid, port)| VsockAddress::new(cid, port))
}

pub(crate) fn channel(
    io: &Arc<FdIo>,
    local: Option<VsockAddress>,
    peer: Option<VsockAddress>,
) -> Channel {
    let name = |address: Option<VsockAddress>| address.map(|a| a.to_string()).unwrap_or_default();
    let endpoint = Endpoint { transport: "vsock", local: name(local), peer: name(peer) };
    tracing::debug!(%endpoint, "connected");
    let who = peer.map_or(Peer::Unknown, |peer| Peer::Context(peer.cid));
    io.socket_channel(Capabilities::socket(), endpoint).with_peer(who)
}
