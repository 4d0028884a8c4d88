//! Listening.

use std::{io, os::fd::OwnedFd, sync::Arc};

use async_trait::async_trait;
use mig_transport::{
    AcceptFailure, Address, Channel, Error, FdIo, FdKind, Listener, LogLimit, Result,
    address::VsockAddress,
};
use socket2::{SockRef, Socket};
use tokio::io::Interest;

use crate::{
    available::loopback_availability,
    options::VsockOptions,
    socket::{address as name_of, channel, local, open, sock_addr},
};

/// Accepts channels on one vsock address: context id [`VsockAddress::ANY`], or one this machine has; the port
/// [`VsockAddress::ANY`] takes a free one.
#[derive(Debug)]
pub struct VsockListener {
    io: Arc<FdIo>,
    local: VsockAddress,
    log: LogLimit,
}

impl VsockListener {
    /// Binds and listens. Must be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if the kernel has no vsock, or no loopback where that is asked for; [`Error::Misuse`] if
    /// the address is taken, not this machine's, or not permitted.
    pub fn bind(address: VsockAddress, options: VsockOptions) -> Result<Self> {
        let socket = open()?;
        if let Err(error) = socket.bind(&sock_addr(address)) {
            if address.cid == VsockAddress::CID_LOCAL {
                loopback_availability()?;
            }
            return Err(cannot_listen(address, &error));
        }
        let backlog = options.backlog.clamp(1, i32::MAX as u32) as i32;
        let doing = || format!("listening on vsock:{address}");
        socket.listen(backlog).map_err(|source| Error::io(doing(), source))?;
        let local = local(&SockRef::from(&socket)).map_err(|source| Error::io(doing(), source))?;
        let io = FdIo::new(OwnedFd::from(socket), FdKind::Socket, Interest::READABLE)
            .map_err(|source| Error::io(doing(), source))?;
        tracing::debug!(%local, "listening");
        Ok(Self { io, local, log: LogLimit::default() })
    }

    /// The address that was really bound.
    pub fn local_address(&self) -> VsockAddress {
        self.local
    }

    fn make_channel(&self, socket: Socket, peer: Option<VsockAddress>) -> io::Result<Channel> {
        let local = local(&SockRef::from(&socket)).unwrap_or(self.local);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let io = FdIo::new(OwnedFd::from(socket), FdKind::Socket, interest)?;
        Ok(channel(&io, Some(local), peer))
    }
}

#[async_trait]
impl Listener for VsockListener {
    /// What goes wrong with one connection is logged and the next one awaited; only a broken socket of ours is an error.
    async fn accept(&mut self) -> Result<Channel> {
        loop {
            let accepted =
                self.io.async_io(Interest::READABLE, |fd| SockRef::from(&fd).accept()).await;
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    AcceptFailure::get_over(error).await?;
                    continue;
                }
            };
            match self.make_channel(socket, name_of(&peer)) {
                Ok(channel) => return Ok(channel),
                Err(error) => {
                    if let Some(unsaid) = self.log.say() {
                        tracing::warn!(%error, unsaid, "a connection was dropped");
                    }
                }
            }
        }
    }

    fn local_addresses(&self) -> Vec<String> {
        Address::Vsock(self.local).to_uri().into_iter().collect()
    }
}

fn cannot_listen(address: VsockAddress, error: &io::Error) -> Error {
    let advice = match error.kind() {
        io::ErrorKind::AddrNotAvailable => {
            "this machine does not have that context id; 4294967295 listens on all it has"
        }
        io::ErrorKind::AddrInUse => "the port 4294967295 takes a free one",
        io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "write for example vsock:4294967295:1234",
    };
    Error::Misuse { what: format!("cannot listen on vsock:{address}: {error}; {advice}") }
}
