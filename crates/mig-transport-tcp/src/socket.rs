//! Sockets: opened, and given what the settings say (docs/wire/transports.md §4).

use std::{fs, io, net::SocketAddr, os::fd::OwnedFd};

use mig_transport::{Capabilities, Channel, Endpoint, Error, FdIo, FdKind, Peer, Result};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;

use crate::options::Settings;

/// A socket of the address's family, with the settings; not connected, not bound, non-blocking.
///
/// The inner error belongs to this one address (no IPv6 here, say), the outer to the machine or the caller.
pub(crate) fn open(address: SocketAddr, settings: &Settings) -> Result<io::Result<Socket>> {
    let protocol = if settings.mptcp { Protocol::MPTCP } else { Protocol::TCP };
    let socket = match Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol)) {
        Ok(socket) => socket,
        Err(error) if settings.mptcp && !is_no_such_family(&error) => {
            return Err(Error::Unavailable {
                what: format!("multipath TCP (mptcp) is not available: {error}"),
                remedy: "it takes Linux 5.6 or newer with CONFIG_MPTCP, and sysctl net.mptcp.enabled=1; or leave mptcp out"
                    .to_owned(),
            });
        }
        Err(error) => return Ok(Err(error)),
    };
    if let Err(error) = socket.set_nonblocking(true) {
        return Ok(Err(error));
    }
    apply(SockRef::from(&socket), settings)?;
    Ok(Ok(socket))
}

/// Sets the options. What somebody asked for must work; a default that the kernel does not know is left out.
pub(crate) fn apply(socket: SockRef<'_>, settings: &Settings) -> Result<()> {
    if let Err(error) = socket.set_tcp_nodelay(settings.no_delay) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let kept = match settings.keep_alive {
        None => socket.set_keepalive(false),
        Some(keep) => {
            let mut probes = TcpKeepalive::new();
            if !keep.idle.is_zero() {
                probes = probes.with_time(keep.idle);
            }
            if !keep.interval.is_zero() {
                probes = probes.with_interval(keep.interval);
            }
            if keep.count != 0 {
                probes = probes.with_retries(keep.count);
            }
            socket.set_tcp_keepalive(&probes)
        }
    };
    tolerate("keep-alive", kept, settings.keep_alive_asked)?;
    if let Some(timeout) = settings.user_timeout {
        let set = socket.set_tcp_user_timeout(Some(timeout));
        tolerate("user-timeout", set, settings.user_timeout_asked)?;
    }
    if let Some(name) = &settings.congestion {
        socket.set_tcp_congestion(name.as_bytes()).map_err(|error| no_congestion(name, &error))?;
    }
    Ok(())
}

/// What Linux always has and lets everybody use.
const LOOPBACK_CONGESTION: &str = "reno";

/// On the loopback nothing is lost and nobody is to be fair to: pacing, as bbr does it, costs a third of the processor
/// time there and buys nothing (docs/performance.md). Only where nobody chose a congestion control, and before the
/// socket connects: a socket that bbr once had goes on pacing under its successor.
pub(crate) fn suit_loopback(socket: SockRef<'_>) {
    if let Err(error) = socket.set_tcp_congestion(LOOPBACK_CONGESTION.as_bytes()) {
        tracing::debug!(%error, LOOPBACK_CONGESTION, "the system's congestion control stays");
    }
}

fn tolerate(option: &str, outcome: io::Result<()>, asked: bool) -> Result<()> {
    match outcome {
        Ok(()) => Ok(()),
        Err(error) if asked => Err(Error::Unavailable {
            what: format!("{option} cannot be set on this socket: {error}"),
            remedy: format!("leave {option} out, or use a kernel that knows it here"),
        }),
        Err(error) => {
            tracing::debug!(%error, option, "a default option is not known here");
            Ok(())
        }
    }
}

fn no_congestion(name: &str, error: &io::Error) -> Error {
    let list = |which: &str| {
        let names =
            fs::read_to_string(format!("/proc/sys/net/ipv4/tcp_{which}_congestion_control"));
        names.map_or_else(|_| "unknown".to_owned(), |names| names.trim().to_owned())
    };
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("without CAP_NET_ADMIN these are allowed: {}", list("allowed"))
        }
        _ => format!("there are: {}; another may come with modprobe tcp_{name}", list("available")),
    };
    Error::Unavailable {
        what: format!("congestion control {name:?} cannot be used: {error}"),
        remedy,
    }
}

fn is_no_such_family(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// The channel over a connected socket.
pub(crate) fn channel(
    stream: std::net::TcpStream,
    local: Option<SocketAddr>,
    peer: SocketAddr,
) -> io::Result<Channel> {
    let congestion = SockRef::from(&stream).tcp_congestion().unwrap_or_default();
    let congestion = String::from_utf8_lossy(&congestion);
    let io =
        FdIo::new(OwnedFd::from(stream), FdKind::Socket, Interest::READABLE | Interest::WRITABLE)?;
    let endpoint = Endpoint {
        transport: "tcp",
        local: local.map(|local| local.to_string()).unwrap_or_default(),
        peer: peer.to_string(),
    };
    tracing::debug!(%endpoint, congestion = congestion.trim_end_matches('\0'), "connected");
    Ok(io.socket_channel(Capabilities::socket(), endpoint).with_peer(Peer::address(peer.ip())))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mig_transport::{Blame, address::InetAddress};

    use super::*;
    use crate::options::TcpOptions;

    fn opened(address: &InetAddress) -> Socket {
        let settings = Settings::of(address, &TcpOptions::default());
        open("127.0.0.1:0".parse().unwrap(), &settings).unwrap().unwrap()
    }

    #[test]
    fn the_kernel_has_what_the_settings_say() {
        let socket = opened(&InetAddress::new("h", 1));
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(15));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(5));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 6);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(120)));

        let socket = opened(&InetAddress {
            keep_alive_count: Some(3),
            keep_alive_idle_seconds: Some(77),
            user_timeout_ms: Some(1234),
            congestion: Some("reno".into()),
            ..InetAddress::new("h", 1)
        });
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(77));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_millis(1234)));
        assert!(socket.tcp_congestion().unwrap().starts_with(b"reno"));

        let off = InetAddress { keep_alive: Some(false), ..InetAddress::new("h", 1) };
        assert!(!opened(&off).keepalive().unwrap());
    }

    #[test]
    fn a_machine_does_not_pace_itself() {
        let socket = opened(&InetAddress::new("h", 1));
        suit_loopback(SockRef::from(&socket));
        assert!(socket.tcp_congestion().unwrap().starts_with(b"reno"));
    }

    #[test]
    fn only_what_was_asked_for_must_work() {
        let refused = || Err(io::Error::from_raw_os_error(92));
        assert!(tolerate("keep-alive", refused(), false).is_ok());
        let error = tolerate("keep-alive", refused(), true).unwrap_err();
        assert_eq!(error.blame(), Blame::Unavailable);
    }
}
