//! Connecting: every address that a name stands for, in order, inside one deadline.

use std::{io, net::SocketAddr};

use async_trait::async_trait;
use mig_transport::{Channel, Connector, Error, Result, address::InetAddress};
use socket2::SockRef;
use tokio::{
    net::TcpSocket,
    time::{Instant, timeout_at},
};

use crate::{
    failure::{AddressesFailed, share_used_up},
    options::{Settings, TcpOptions},
    resolve,
    socket::{channel, open, suit_loopback},
};

/// Opens tcp channels to one address. The name is looked up anew for each channel.
#[derive(Clone, Debug)]
pub struct TcpConnector {
    address: InetAddress,
    options: TcpOptions,
}

impl TcpConnector {
    /// A connector; nothing is looked up or opened yet.
    pub fn new(address: InetAddress, options: TcpOptions) -> Self {
        Self { address, options }
    }

    fn check(&self) -> Result<()> {
        self.address.check()?;
        let misuse = |what: &str| {
            let address = &self.address;
            Err(Error::Misuse { what: format!("cannot connect to tcp:{address}: {what}") })
        };
        if self.address.host.is_empty() {
            return misuse("an empty host is for listening; name the destination, say localhost");
        }
        if self.address.port_number() == Some(0) {
            return misuse("port 0 is for listening; name the port the destination listens on");
        }
        if self.address.to.is_some() {
            return misuse("to= is for listening; name the one port the destination listens on");
        }
        Ok(())
    }

    /// Tries each address with a fair share of the time that is left: a black hole in front must not take the time of
    /// an address that would answer.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the socket of the attempt that is under way.
    async fn try_each(&self, addresses: &[SocketAddr], deadline: Instant) -> Result<Channel> {
        let settings = Settings::of(&self.address, &self.options);
        let local = match &self.address.bind {
            Some(bind) => Some(resolve::local(bind).await?),
            None => None,
        };
        let mut failed = AddressesFailed::new();
        for (index, &address) in addresses.iter().enumerate() {
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / (addresses.len() - index) as u32;
            let attempt = attempt(address, local, &settings);
            let outcome = match timeout_at(Instant::now() + share, attempt).await {
                Ok(outcome) => outcome?,
                Err(_) => Err(share_used_up(share)),
            };
            match outcome {
                Ok(channel) => return Ok(channel),
                Err(error) => failed.push(address, error),
            }
        }
        Err(failed.into_error(self.doing(), self.options.deadline))
    }

    fn doing(&self) -> String {
        format!("connecting to tcp:{}", self.address)
    }
}

/// The inner error belongs to this address, the outer ends the whole attempt.
///
/// # Cancel safety
///
/// Dropping the future closes the socket.
async fn attempt(
    address: SocketAddr,
    local: Option<SocketAddr>,
    settings: &Settings,
) -> Result<io::Result<Channel>> {
    let socket = match open(address, settings)? {
        Ok(socket) => socket,
        Err(error) => return Ok(Err(error)),
    };
    if let Some(local) = local {
        if local.is_ipv4() != address.is_ipv4() {
            let what = format!("bind={} is of the other family", local.ip());
            return Ok(Err(io::Error::new(io::ErrorKind::AddrNotAvailable, what)));
        }
        socket.bind(&local.into()).map_err(|error| Error::Misuse {
            what: format!("cannot connect from bind={}: {error}", local.ip()),
        })?;
    }
    if address.ip().is_loopback() && settings.congestion.is_none() {
        suit_loopback(SockRef::from(&socket));
    }
    Ok(connect(socket, address).await)
}

/// # Cancel safety
///
/// Dropping the future closes the socket.
async fn connect(socket: socket2::Socket, address: SocketAddr) -> io::Result<Channel> {
    let stream = TcpSocket::from_std_stream(socket.into()).connect(address).await?;
    let local = stream.local_addr().ok();
    channel(stream.into_std()?, local, address)
}

#[async_trait]
impl Connector for TcpConnector {
    async fn connect(&self) -> Result<Channel> {
        self.check()?;
        let deadline = Instant::now() + self.options.deadline;
        let addresses = match timeout_at(deadline, resolve::resolve(&self.address)).await {
            Ok(addresses) => addresses?,
            Err(_) => {
                let doing = format!("looking up the host {:?}", self.address.host);
                return Err(Error::Deadline { doing, after: self.options.deadline });
            }
        };
        self.try_each(&addresses, deadline).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mig_transport::Blame;

    use super::*;
    use crate::socket;

    fn connector() -> TcpConnector {
        TcpConnector::new(InetAddress::new("a.test", 1), TcpOptions::default())
    }

    fn loopback_listener(backlog: i32) -> (socket2::Socket, SocketAddr) {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let settings = Settings::of(&InetAddress::default(), &TcpOptions::default());
        let socket = socket::open(any, &settings).unwrap().unwrap();
        socket.bind(&any.into()).unwrap();
        socket.listen(backlog).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, address)
    }

    /// A port where connections hang: nobody accepts and the queue is full, so the kernel drops what comes.
    fn black_hole() -> (Vec<socket2::Socket>, SocketAddr) {
        let (listener, address) = loopback_listener(0);
        let mut held = vec![listener];
        // One more than the queue of a backlog of 0 takes; these hang or stand, the next ones hang.
        for _ in 0..2 {
            let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let client = client.unwrap();
            client.set_nonblocking(true).unwrap();
            let _in_progress = client.connect(&address.into());
            held.push(client);
        }
        (held, address)
    }

    fn refused() -> SocketAddr {
        let (listener, address) = loopback_listener(1);
        drop(listener);
        address
    }

    /// Paused: the clock jumps to the deadline when nothing else can happen.
    #[tokio::test(start_paused = true)]
    async fn a_black_hole_takes_only_its_share() {
        let (_held, hole) = black_hole();
        let (_listener, good) = loopback_listener(1);
        let started = Instant::now();
        let deadline = started + Duration::from_secs(30);
        let channel = connector().try_each(&[hole, refused(), good], deadline).await.unwrap();
        assert_eq!(channel.endpoint().peer, good.to_string());
        assert_eq!(started.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_black_hole_alone_ends_at_the_deadline() {
        let (_held, hole) = black_hole();
        let started = Instant::now();
        let deadline = started + Duration::from_secs(30);
        let error = connector().try_each(&[hole], deadline).await.unwrap_err();
        assert_eq!(error.blame(), Blame::Deadline);
        assert!(error.to_string().contains(&hole.to_string()), "{error}");
        assert_eq!(started.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn every_address_is_named_with_its_reason() {
        let (_held, hole) = black_hole();
        let closed = refused();
        let deadline = Instant::now() + Duration::from_secs(30);
        let error = connector().try_each(&[closed, hole], deadline).await.unwrap_err();
        assert_eq!(error.blame(), Blame::Io);
        let text = error.to_string();
        assert!(text.contains(&format!("{closed}: Connection refused")), "{text}");
        assert!(text.contains(&format!("{hole}: no answer within 30s")), "{text}");
        assert!(text.contains("tcp:a.test:1"), "{text}");
    }

    #[tokio::test]
    async fn what_cannot_be_connected_to_is_refused_before_anything_is_opened() {
        for (host, port, to) in [("", 1, None), ("::1", 0, None), ("::1", 1, Some(2))] {
            let address = InetAddress { to, ..InetAddress::new(host, port) };
            let error = TcpConnector::new(address, TcpOptions::default()).connect().await;
            assert_eq!(error.unwrap_err().blame(), Blame::Misuse, "{host}:{port}");
        }
    }
}
