//! From host and port to socket addresses (docs/wire/transports.md §2.2).

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use mig_transport::{
    Error, Result,
    address::{Family, InetAddress},
};

/// Where Linux keeps the names of ports.
const SERVICES: &str = "/etc/services";

/// All addresses of the host with the port, restricted to the family, in the resolver's order, each once.
///
/// # Cancel safety
///
/// Dropping the future abandons the lookup; the system's resolver ends by itself, on its own thread.
pub(crate) async fn resolve(address: &InetAddress) -> Result<Vec<SocketAddr>> {
    let family = address.family()?;
    let port = port(address).await?;
    let found = lookup(&address.host, port).await?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for candidate in found {
        let wanted = match family {
            Family::Any | Family::Both => true,
            Family::V4 => candidate.is_ipv4(),
            Family::V6 => candidate.is_ipv6(),
        };
        if wanted && !addresses.contains(&candidate) {
            addresses.push(candidate);
        }
    }
    if addresses.is_empty() {
        let family = match family {
            Family::Any | Family::Both => "",
            Family::V4 => "IPv4 ",
            Family::V6 => "IPv6 ",
        };
        let host = &address.host;
        return Err(Error::Misuse {
            what: format!("{host:?} has no {family}address; name another host or drop ipv4/ipv6"),
        });
    }
    Ok(addresses)
}

/// The addresses to listen on: as [`resolve`], with the wildcard for an empty host.
///
/// # Cancel safety
///
/// As [`resolve`].
pub(crate) async fn resolve_passive(address: &InetAddress) -> Result<Vec<SocketAddr>> {
    if !address.host.is_empty() {
        return resolve(address).await;
    }
    let port = port(address).await?;
    let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    Ok(match address.family()? {
        // The resolver's own order for the wildcard; the IPv6 socket then takes IPv6 only.
        Family::Any => vec![v4, v6],
        Family::Both | Family::V6 => vec![v6],
        Family::V4 => vec![v4],
    })
}

/// A numeric local address, with its scope, and port 0.
///
/// # Cancel safety
///
/// Nothing is lost.
pub(crate) async fn local(host: &str) -> Result<SocketAddr> {
    let found = lookup(host, 0).await?;
    found
        .into_iter()
        .next()
        .ok_or_else(|| Error::Misuse { what: format!("bind={host} is not a local address") })
}

/// # Cancel safety
///
/// Dropping the future abandons a blocking thread, which ends by itself.
async fn lookup(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    match tokio::net::lookup_host((host, port)).await {
        Ok(found) => Ok(found.collect()),
        Err(source) => Err(Error::io(format!("looking up the host {host:?}"), source)),
    }
}

/// # Cancel safety
///
/// Dropping the future abandons a blocking thread, which ends by itself.
async fn port(address: &InetAddress) -> Result<u16> {
    if let Some(port) = address.port_number() {
        return Ok(port);
    }
    let services = tokio::fs::read_to_string(SERVICES).await;
    let port = services.as_deref().map(|services| service_port(services, &address.port));
    match port {
        Ok(Some(port)) => Ok(port),
        Ok(None) => Err(unknown_service(&address.port, "it is not in there")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(unknown_service(&address.port, "there is no such file"))
        }
        Err(error) => Err(unknown_service(&address.port, &error.to_string())),
    }
}

fn unknown_service(name: &str, reason: &str) -> Error {
    Error::Misuse {
        what: format!("the port {name:?} is no service of {SERVICES} ({reason}); give its number"),
    }
}

/// Finds a tcp service by name or alias: lines `name port/protocol alias… # comment`.
fn service_port(services: &str, name: &str) -> Option<u16> {
    services.lines().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let first = words.next()?;
        let port = words.next()?.strip_suffix("/tcp")?;
        (first == name || words.any(|alias| alias == name)).then(|| port.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_found_by_name_and_alias_for_tcp_only() {
        let services =
            "# all\nntp\t123/udp\nhttp\t80/tcp\twww web # the web\nssh 22/tcp\nbad x/tcp\n";
        assert_eq!(service_port(services, "ssh"), Some(22));
        assert_eq!(service_port(services, "web"), Some(80));
        for unknown in ["ntp", "the", "bad", "", "#"] {
            assert_eq!(service_port(services, unknown), None, "{unknown}");
        }
    }

    #[tokio::test]
    async fn families_restrict_and_duplicates_go() {
        let mut address = InetAddress::new("127.0.0.1", 7);
        assert_eq!(resolve(&address).await.unwrap(), ["127.0.0.1:7".parse().unwrap()]);
        address.ipv6 = Some(true);
        let error = resolve(&address).await.unwrap_err();
        assert!(error.to_string().contains("no IPv6 address"), "{error}");
    }

    #[tokio::test]
    async fn the_wildcard_follows_the_table() {
        let rows = [
            (None, None, "0.0.0.0:7 [::]:7"),
            (Some(true), None, "0.0.0.0:7"),
            (Some(true), Some(false), "0.0.0.0:7"),
            (None, Some(true), "[::]:7"),
            (Some(false), Some(true), "[::]:7"),
            (Some(true), Some(true), "[::]:7"),
            (Some(false), None, "[::]:7"),
            (None, Some(false), "0.0.0.0:7"),
        ];
        for (ipv4, ipv6, expected) in rows {
            let address = InetAddress { ipv4, ipv6, ..InetAddress::new("", 7) };
            let found = resolve_passive(&address).await.unwrap();
            let found: Vec<_> = found.iter().map(SocketAddr::to_string).collect();
            assert_eq!(found.join(" "), expected, "{ipv4:?} {ipv6:?}");
        }
    }

    #[tokio::test]
    async fn a_scope_is_kept() {
        let address = InetAddress::new("fe80::1%lo", 7);
        match resolve(&address).await.unwrap()[..] {
            [SocketAddr::V6(v6)] => assert_ne!(v6.scope_id(), 0),
            ref other => panic!("{other:?}"),
        }
        let address = InetAddress::new("fe80::1%nosuchlink", 7);
        assert!(resolve(&address).await.is_err());
    }

    #[tokio::test]
    async fn a_service_that_does_not_exist_is_the_callers_mistake() {
        let address = InetAddress { port: "no-such-service".into(), ..InetAddress::new("::1", 0) };
        let error = resolve(&address).await.unwrap_err();
        assert_eq!(error.blame(), mig_transport::Blame::Misuse);
        assert!(error.to_string().contains("give its number"), "{error}");
    }
}
