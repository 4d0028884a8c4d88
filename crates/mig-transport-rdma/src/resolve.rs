//! From host and port to socket addresses. The port is a number, `ipv4` and `ipv6` are obeyed (docs/wire/rdma.md §2.1).

use std::net::SocketAddr;

use mig_transport::{
    Error, Result,
    address::{Family, InetAddress},
};

/// All addresses of the host, restricted to the family, in the resolver's order, each once.
///
/// # Cancel safety
///
/// Dropping the future abandons the lookup; the system's resolver ends by itself, on its own thread.
pub(crate) async fn resolve(address: &InetAddress) -> Result<Vec<SocketAddr>> {
    address.check_rdma()?;
    let (host, port) = (address.host.as_str(), address.port_number().unwrap_or(0));
    let found = tokio::net::lookup_host((host, port))
        .await
        .map_err(|source| Error::io(format!("looking up the host {host:?}"), source))?;
    let family = address.family()?;
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for candidate in found {
        let wanted = match family {
            Family::V4 => candidate.is_ipv4(),
            Family::V6 => candidate.is_ipv6(),
            _ => true,
        };
        if wanted && !addresses.contains(&candidate) {
            addresses.push(candidate);
        }
    }
    if addresses.is_empty() {
        return Err(Error::Misuse {
            what: format!(
                "{host:?} has no address of that family; name another host or drop ipv4/ipv6"
            ),
        });
    }
    Ok(addresses)
}
