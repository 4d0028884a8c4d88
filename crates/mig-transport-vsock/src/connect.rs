//! Connecting.

use std::{io, os::fd::OwnedFd, sync::Arc};

use async_trait::async_trait;
use mig_transport::{Channel, Connector, Error, FdIo, FdKind, Result, address::VsockAddress};
use socket2::{SockAddr, SockRef, Socket};
use tokio::{io::Interest, time::timeout};

use crate::{
    available::loopback_availability,
    options::VsockOptions,
    socket::{channel, local, open, sock_addr},
};

/// EINPROGRESS: the connection is being made. The standard library names it only on newer versions.
const EINPROGRESS: i32 = 115;

/// Opens channels to one vsock address.
#[derive(Clone, Debug)]
pub struct VsockConnector {
    address: VsockAddress,
    options: VsockOptions,
}

impl VsockConnector {
    /// A connector; nothing is opened yet.
    pub fn new(address: VsockAddress, options: VsockOptions) -> Self {
        Self { address, options }
    }

    fn check(&self) -> Result<()> {
        if self.address.cid == VsockAddress::ANY || self.address.port == VsockAddress::ANY {
            return Err(Error::Misuse {
                what: format!(
                    "cannot connect to vsock:{}: {} is for listening; name the context id (2 is the host) and port",
                    self.address,
                    VsockAddress::ANY
                ),
            });
        }
        // Without loopback the kernel would send this to the host, which is not what 1 means.
        if self.address.cid == VsockAddress::CID_LOCAL {
            loopback_availability()?;
        }
        Ok(())
    }

    fn explain(&self, source: io::Error) -> Error {
        let hint = match source.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused => {
                " (nobody listens on that port there)"
            }
            io::ErrorKind::TimedOut => " (there is no such machine, or it does not answer)",
            _ => "",
        };
        Error::io(format!("connecting to vsock:{}{hint}", self.address), source)
    }
}

/// # Cancel safety
///
/// Dropping the future closes the socket.
async fn connect(socket: Socket, address: &SockAddr) -> io::Result<Arc<FdIo>> {
    match socket.connect(address) {
        Ok(()) => {}
        Err(error) if error.raw_os_error() == Some(EINPROGRESS) => {}
        Err(error) => return Err(error),
    }
    let interest = Interest::READABLE | Interest::WRITABLE;
    let io = FdIo::new(OwnedFd::from(socket), FdKind::Socket, interest)?;
    io.async_io(Interest::WRITABLE, |fd| {
        let socket = SockRef::from(&fd);
        if let Some(error) = socket.take_error()? {
            return Err(error);
        }
        match socket.peer_addr() {
            Ok(_) => Ok(()),
            // Neither failed nor done: woken too early.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            Err(error) => Err(error),
        }
    })
    .await?;
    Ok(io)
}

#[async_trait]
impl Connector for VsockConnector {
    async fn connect(&self) -> Result<Channel> {
        self.check()?;
        let (socket, address) = (open()?, sock_addr(self.address));
        let connected = timeout(self.options.deadline, connect(socket, &address)).await;
        let io = match connected {
            Ok(io) => io.map_err(|source| self.explain(source))?,
            Err(_) => {
                let doing = format!("connecting to vsock:{}", self.address);
                return Err(Error::Deadline { doing, after: self.options.deadline });
            }
        };
        let local = local(&SockRef::from(&io.as_fd())).ok();
        Ok(channel(&io, local, Some(self.address)))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use socket2::{Domain, Type};

    use super::*;

    /// The waiting is the same for every family; tcp is one that each kernel connects to itself.
    #[tokio::test]
    async fn a_connection_under_way_is_waited_for() {
        let any = SockAddr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let socket = |nonblocking| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(nonblocking).unwrap();
            socket
        };
        let listener = socket(false);
        listener.bind(&any).unwrap();
        listener.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let io = connect(socket(true), &address).await.unwrap();
        let peer = SockRef::from(&io.as_fd()).peer_addr().unwrap();
        assert_eq!(peer.as_socket(), address.as_socket());
        drop(listener);
        let error = connect(socket(true), &address).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
