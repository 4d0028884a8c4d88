//! Listening: one socket for each address, accepted from in turn.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    task::{Context, Poll},
};

use async_trait::async_trait;
use mig_transport::{
    AcceptFailure, Address, Channel, Error, Listener, LogLimit, Result,
    address::{Family, InetAddress},
};
use socket2::SockRef;
use tokio::time::timeout;

use crate::{
    failure::AddressesFailed,
    options::{Settings, TcpOptions},
    resolve::resolve_passive,
    socket::{apply, channel, open},
};

/// How often a free port is sought that every address of a name can have, before some addresses go without.
const FREE_PORT_TRIES: usize = 16;

/// Accepts tcp channels on every address that the given one stands for.
///
/// Several sockets share one port number, also when it was picked by the kernel. An address that cannot be bound is
/// left out with a warning as long as another can (docs/wire/transports.md §2.2).
#[derive(Debug)]
pub struct TcpListener {
    sockets: Vec<tokio::net::TcpListener>,
    local: Vec<SocketAddr>,
    /// Which socket is asked first next time.
    next: usize,
    settings: Settings,
    log: LogLimit,
}

impl TcpListener {
    /// Binds and listens.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] when no address can be bound: in use, not of this machine, not permitted; each is named.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves nothing open.
    pub async fn bind(address: &InetAddress, options: TcpOptions) -> Result<Self> {
        address.check()?;
        if address.bind.is_some() {
            return Err(Error::Misuse {
                what: format!(
                    "cannot listen on tcp:{address}: bind= is for connecting; the host says where to listen"
                ),
            });
        }
        let addresses = match timeout(options.deadline, resolve_passive(address)).await {
            Ok(addresses) => addresses?,
            Err(_) => {
                let doing = format!("looking up the host {:?}", address.host);
                return Err(Error::Deadline { doing, after: options.deadline });
            }
        };
        let binding = Binding {
            settings: Settings::of(address, &options),
            only_v6: address.family()? == Family::V6,
            backlog: options.backlog.clamp(1, i32::MAX as u32) as i32,
        };
        let sockets = binding.bind_range(address, &addresses)?;
        let mut local = Vec::with_capacity(sockets.len());
        for socket in &sockets {
            let name = socket.local_addr();
            local
                .push(name.map_err(|source| Error::io("asking a socket for its address", source))?);
        }
        tracing::debug!(?local, "listening");
        Ok(Self { sockets, local, next: 0, settings: binding.settings, log: LogLimit::default() })
    }

    /// The addresses that were really bound.
    pub fn local_socket_addresses(&self) -> &[SocketAddr] {
        &self.local
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Accepted>> {
        for turn in 0..self.sockets.len() {
            let index = (self.next + turn) % self.sockets.len();
            if let Poll::Ready(accepted) = self.sockets[index].poll_accept(cx) {
                let (stream, peer) = accepted?;
                self.next = index + 1;
                let local = stream.local_addr().unwrap_or(self.local[index]);
                return Poll::Ready(Ok(Accepted { stream, local, peer }));
            }
        }
        Poll::Pending
    }

    fn make_channel(&self, accepted: Accepted) -> Result<Channel> {
        let Accepted { stream, local, peer } = accepted;
        apply(SockRef::from(&stream), &self.settings)?;
        let doing = "preparing an accepted connection";
        let stream = stream.into_std().map_err(|source| Error::io(doing, source))?;
        channel(stream, Some(local), peer).map_err(|source| Error::io(doing, source))
    }
}

struct Accepted {
    stream: tokio::net::TcpStream,
    local: SocketAddr,
    peer: SocketAddr,
}

#[async_trait]
impl Listener for TcpListener {
    /// What goes wrong with one connection is logged and the next one awaited; only a broken socket of ours is an error.
    async fn accept(&mut self) -> Result<Channel> {
        loop {
            let accepted = match poll_fn(|cx| self.poll_accept(cx)).await {
                Ok(accepted) => accepted,
                Err(error) => {
                    AcceptFailure::get_over(error).await?;
                    continue;
                }
            };
            let peer = accepted.peer;
            match self.make_channel(accepted) {
                Ok(channel) => return Ok(channel),
                Err(error) => {
                    if let Some(unsaid) = self.log.say() {
                        tracing::warn!(%peer, %error, unsaid, "a connection was dropped");
                    }
                }
            }
        }
    }

    fn local_addresses(&self) -> Vec<String> {
        let uri = |local: &SocketAddr| {
            let host = match local {
                SocketAddr::V6(v6) if v6.scope_id() != 0 => {
                    format!("{}%{}", v6.ip(), v6.scope_id())
                }
                other => other.ip().to_string(),
            };
            Address::Inet(InetAddress::new(host, local.port())).to_uri()
        };
        self.local.iter().filter_map(uri).collect()
    }
}

/// How sockets are bound.
struct Binding {
    settings: Settings,
    only_v6: bool,
    backlog: i32,
}

impl Binding {
    /// The first port of the range that every address can have; if there is none, the first that some can.
    fn bind_range(
        &self,
        address: &InetAddress,
        addresses: &[SocketAddr],
    ) -> Result<Vec<tokio::net::TcpListener>> {
        let first = addresses.first().map_or(0, SocketAddr::port);
        let last = address.to.unwrap_or(first);
        if last < first {
            return Err(Error::Misuse {
                what: format!("to={last} ends the range of ports before its start, {first}"),
            });
        }
        let free_tries = if first == 0 { FREE_PORT_TRIES } else { 0 };
        let all = std::iter::repeat_n(0, free_tries).chain(first..=last).map(|port| (port, true));
        let some = (first..=last).map(|port| (port, false));
        let mut reasons = AddressesFailed::new();
        for (port, every) in all.chain(some) {
            let (sockets, failed) = self.bind_port(addresses, port)?;
            let in_use = failed.failures().any(|(_, e)| e.kind() == io::ErrorKind::AddrInUse);
            let enough = !every || !in_use;
            if enough && !sockets.is_empty() {
                for (address, error) in failed.failures() {
                    tracing::warn!(%address, %error, "not listening here");
                }
                return Ok(sockets);
            }
            if reasons.is_empty() {
                reasons = failed;
            }
        }
        Err(cannot_listen(address, last > first, reasons))
    }

    /// One socket for each address, on one port.
    fn bind_port(
        &self,
        addresses: &[SocketAddr],
        port: u16,
    ) -> Result<(Vec<tokio::net::TcpListener>, AddressesFailed)> {
        let (mut sockets, mut failed) = (Vec::new(), AddressesFailed::new());
        let mut port = port;
        for &(mut address) in addresses {
            address.set_port(port);
            match self.bind_one(address)? {
                Ok(socket) => {
                    // Further addresses share what the kernel picked.
                    if let Ok(bound) = socket.local_addr() {
                        port = bound.port();
                    }
                    sockets.push(socket);
                }
                Err(error) => failed.push(address, error),
            }
        }
        Ok((sockets, failed))
    }

    fn bind_one(&self, address: SocketAddr) -> Result<io::Result<tokio::net::TcpListener>> {
        match self.listen(address, self.only_v6)? {
            // Somebody has the IPv4 side of a socket that would take both: take the IPv6 side alone.
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && address.is_ipv6()
                    && !self.only_v6 =>
            {
                self.listen(address, true)
            }
            other => Ok(other),
        }
    }

    fn listen(
        &self,
        address: SocketAddr,
        only_v6: bool,
    ) -> Result<io::Result<tokio::net::TcpListener>> {
        let socket = match open(address, &self.settings)? {
            Ok(socket) => socket,
            Err(error) => return Ok(Err(error)),
        };
        let listen = || {
            socket.set_reuse_address(true)?;
            if address.is_ipv6() {
                socket.set_only_v6(only_v6)?;
            }
            socket.bind(&address.into())?;
            socket.listen(self.backlog)
        };
        Ok(listen().and_then(|()| tokio::net::TcpListener::from_std(socket.into())))
    }
}

fn cannot_listen(address: &InetAddress, range: bool, reasons: AddressesFailed) -> Error {
    let kind = reasons.first_kind().unwrap_or(io::ErrorKind::Other);
    let advice = match kind {
        io::ErrorKind::AddrInUse if range => "every port of the range is in use",
        io::ErrorKind::AddrInUse => "port 0 takes a free one, to=N tries a range",
        io::ErrorKind::AddrNotAvailable => "no interface of this machine has that address",
        io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => {
            return Error::io(format!("listening on tcp:{address}"), io::Error::new(kind, reasons));
        }
    };
    Error::Misuse { what: format!("cannot listen on tcp:{address}: {reasons}; {advice}") }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// QEMU leaves accepted sockets as they come (docs/wire/transports.md §4); we do not.
    #[tokio::test]
    async fn accepted_sockets_get_the_options_too() {
        let address =
            InetAddress { user_timeout_ms: Some(4321), ..InetAddress::new("127.0.0.1", 0) };
        let mut listener = TcpListener::bind(&address, TcpOptions::default()).await.unwrap();
        let _client = std::net::TcpStream::connect(listener.local_socket_addresses()[0]).unwrap();
        let accepted = poll_fn(|cx| listener.poll_accept(cx)).await.unwrap();
        // Options belong to the socket, so a second descriptor shows them.
        let twin = SockRef::from(&accepted.stream).try_clone().unwrap();
        let _channel = listener.make_channel(accepted).unwrap();
        assert!(twin.tcp_nodelay().unwrap() && twin.keepalive().unwrap());
        assert_eq!(twin.tcp_user_timeout().unwrap(), Some(Duration::from_millis(4321)));
        assert!(twin.nonblocking().unwrap());
    }
}
