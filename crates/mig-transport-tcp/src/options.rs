//! What an address does not say, and how both come together.

use std::time::Duration;

use mig_transport::address::InetAddress;

/// How connections are made and kept. What an address says itself (`keep-alive`, `user-timeout`, `congestion`) wins.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpOptions {
    /// How long a lookup and all attempts to connect may take together. Default 30 s.
    pub deadline: Duration,
    /// TCP_NODELAY: small records leave at once. Default true; QEMU sets it on some channels only.
    pub no_delay: bool,
    /// SO_KEEPALIVE: a silent peer that is gone is noticed. Default on; QEMU has it off unless asked.
    pub keep_alive: Option<KeepAlive>,
    /// TCP_USER_TIMEOUT: how long sent bytes may stay unacknowledged, or a peer's window closed, before the connection
    /// is given up. Default 120 s: a destination may stop reading for a while when its disk or its memory is slow, and
    /// a dead link is still noticed in minutes rather than hours. `None` leaves it to the system.
    pub user_timeout: Option<Duration>,
    /// The congestion control to use; `None` is the system's, and reno on the loopback, where pacing costs a third of the
    /// processor time and buys nothing.
    pub congestion: Option<String>,
    /// Connections the kernel completes before they are accepted. Default 4096, as much as Linux usually allows: QEMU's 1
    /// lets a single stranger fill it, and who finds it full tries again only after a second.
    pub backlog: u32,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            no_delay: true,
            keep_alive: Some(KeepAlive::default()),
            user_timeout: Some(Duration::from_secs(120)),
            congestion: None,
            backlog: 4096,
        }
    }
}

impl TcpOptions {
    /// The defaults, changed by `change`.
    pub fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut options = Self::default();
        change(&mut options);
        options
    }
}

/// When a silent connection is probed. A zero leaves that part to the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// Silence before the first probe. Default 15 s.
    pub idle: Duration,
    /// Between probes. Default 5 s.
    pub interval: Duration,
    /// Probes without an answer before the connection is given up; with a user timeout set, the kernel goes by that
    /// instead. Default 6.
    pub count: u32,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self { idle: Duration::from_secs(15), interval: Duration::from_secs(5), count: 6 }
    }
}

/// Address and options in one: what is set on a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) no_delay: bool,
    pub(crate) keep_alive: Option<KeepAlive>,
    /// The address asked for it in so many words, so that failing to set it is an error.
    pub(crate) keep_alive_asked: bool,
    pub(crate) user_timeout: Option<Duration>,
    pub(crate) user_timeout_asked: bool,
    pub(crate) congestion: Option<String>,
    pub(crate) mptcp: bool,
}

impl Settings {
    pub(crate) fn of(address: &InetAddress, options: &TcpOptions) -> Self {
        let seconds = |given: Option<u32>| given.map(|s| Duration::from_secs(s.into()));
        let keep_alive = match address.keep_alive {
            Some(false) => None,
            Some(true) => Some(options.keep_alive.unwrap_or_default()),
            None => options.keep_alive,
        }
        .map(|base| KeepAlive {
            idle: seconds(address.keep_alive_idle_seconds).unwrap_or(base.idle),
            interval: seconds(address.keep_alive_interval_seconds).unwrap_or(base.interval),
            count: address.keep_alive_count.unwrap_or(base.count),
        });
        let keep_alive_asked = address.keep_alive == Some(true)
            || address.keep_alive_idle_seconds.is_some()
            || address.keep_alive_interval_seconds.is_some()
            || address.keep_alive_count.is_some();
        let user_timeout = match address.user_timeout_ms {
            Some(0) => None,
            Some(ms) => Some(Duration::from_millis(ms.into())),
            None => options.user_timeout,
        };
        Self {
            no_delay: options.no_delay,
            keep_alive,
            keep_alive_asked,
            user_timeout,
            user_timeout_asked: address.user_timeout_ms.is_some(),
            congestion: address.congestion.clone().or_else(|| options.congestion.clone()),
            mptcp: address.mptcp == Some(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_wins() {
        let mut address = InetAddress::new("h", 1);
        let defaults = Settings::of(&address, &TcpOptions::default());
        assert_eq!(defaults.keep_alive, Some(KeepAlive::default()));
        assert!(!defaults.keep_alive_asked && defaults.no_delay && !defaults.mptcp);

        address.keep_alive_idle_seconds = Some(9);
        address.user_timeout_ms = Some(0);
        address.congestion = Some("reno".into());
        let options = TcpOptions::with(|options| options.congestion = Some("cubic".into()));
        let settings = Settings::of(&address, &options);
        let idle = Duration::from_secs(9);
        assert_eq!(settings.keep_alive, Some(KeepAlive { idle, ..KeepAlive::default() }));
        assert!(settings.keep_alive_asked);
        assert_eq!(settings.user_timeout, None);
        assert_eq!(settings.congestion.as_deref(), Some("reno"));

        address.keep_alive = Some(false);
        assert_eq!(Settings::of(&address, &options).keep_alive, None);
    }
}
