//! Which name the destination's certificate must be for (docs/wire/transports.md §5.1).

use std::fmt;

use mig_transport::{Address, Result};
use rustls::pki_types::ServerName;

use super::directory::misuse;

/// The name that a destination must prove by its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedName(Option<ServerName<'static>>);

impl ExpectedName {
    /// `hostname` (QEMU's `tls-hostname`) if given, else the host part of a tcp address: a name, or an IPv4 or IPv6
    /// address (without brackets and scope), which the certificate must then have as an IP address.
    ///
    /// # Errors
    ///
    /// [`Misuse`](mig_transport::Error::Misuse): the address has no host and no `hostname` was given, or it is no name.
    pub fn of(address: &Address, hostname: Option<&str>) -> Result<Self> {
        match (hostname.filter(|name| !name.is_empty()), address) {
            (Some(hostname), _) => Self::parse(hostname),
            (None, Address::Inet(inet)) if !inet.host.is_empty() => Self::parse(&inet.host),
            (None, address) => Err(misuse(format!(
                "TLS over {address}: the address has no host, so nothing says which name the destination's certificate \
                 must be for: give --tls-hostname NAME (tls-hostname)"
            ))),
        }
    }

    fn parse(host: &str) -> Result<Self> {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        // A scope says by which interface, here; no certificate has one.
        let bare = match bare.split_once('%') {
            Some((address, _scope)) if address.contains(':') => address,
            _ => bare,
        };
        match ServerName::try_from(bare.to_owned()) {
            Ok(name) => Ok(Self(Some(name))),
            Err(_) => Err(misuse(format!(
                "{host:?} is neither a host name nor an IP address, so no certificate can be for it; give the name that \
                 the certificate has with --tls-hostname NAME (one beyond ASCII in its xn-- form)"
            ))),
        }
    }

    /// Where no certificates are, no name is wanted.
    #[cfg(feature = "tls-psk")]
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// # Errors
    ///
    /// There is none, and with certificates there must be one.
    pub(crate) fn rustls(&self) -> Result<ServerName<'static>> {
        self.0.clone().ok_or_else(|| {
            misuse("TLS with certificates wants the name that the destination's must be for".into())
        })
    }
}

impl fmt::Display for ExpectedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(ServerName::IpAddress(ip)) => std::net::IpAddr::from(*ip).fmt(f),
            Some(name) => f.write_str(&name.to_str()),
            None => f.write_str("whoever knows the key"),
        }
    }
}

#[cfg(test)]
mod tests {
    use mig_transport::MigrationAddress;

    use super::ExpectedName;

    fn expected(uri: &str, hostname: Option<&str>) -> Result<String, String> {
        let address = MigrationAddress::parse(uri).expect("an address").into_address();
        ExpectedName::of(&address, hostname)
            .map(|name| name.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_tcp_address_has_its_host() {
        assert_eq!(expected("tcp:host-1.example:4444", None).as_deref(), Ok("host-1.example"));
        assert_eq!(expected("tcp:192.0.2.7:4444", None).as_deref(), Ok("192.0.2.7"));
        assert_eq!(expected("tcp:[2001:db8::7]:4444", None).as_deref(), Ok("2001:db8::7"));
        assert_eq!(expected("tcp:[fe80::1%eth0]:4444", None).as_deref(), Ok("fe80::1"));
    }

    #[test]
    fn the_override_wins_and_may_be_an_address() {
        assert_eq!(expected("tcp:a:1", Some("b.example")).as_deref(), Ok("b.example"));
        assert_eq!(expected("unix:/x", Some("[::1]")).as_deref(), Ok("::1"));
        assert_eq!(expected("tcp:a:1", Some("")).as_deref(), Ok("a"), "empty is none, as in QEMU");
    }

    #[test]
    fn an_address_without_a_host_needs_the_override() {
        for uri in ["unix:/run/m.sock", "vsock:3:4444", "fd:7", "exec:nc host 4444", "tcp::4444"] {
            let error = expected(uri, None).expect_err("no name");
            assert!(error.contains("--tls-hostname NAME"), "{error}");
            assert!(error.contains(uri), "{error}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let error = expected("unix:/x", Some("münchen.example")).expect_err("not ASCII");
        assert!(error.contains("xn--"), "{error}");
        assert!(expected("unix:/x", Some("a b")).is_err());
    }
}
