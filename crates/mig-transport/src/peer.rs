//! Who is at the other end of a channel: as far as the kernel vouches for it, and what was proven on top.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

/// Bits of an IPv6 address that one customer, so perhaps one stranger, has for itself.
const V6_NETWORK_BITS: u32 = 64;

/// What the kernel knows about the other end without reading a byte of it. Ports and process numbers are no part of it:
/// all channels of one migration have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Peer {
    /// The transport knows nobody at its other end: an inherited descriptor, a command, a file.
    #[default]
    Unknown,
    /// A machine, by its address.
    Address(IpAddr),
    /// A process of this machine, by its user.
    User(u32),
    /// A virtual machine or its host, by its vsock context id.
    Context(u32),
}

impl Peer {
    /// The machine of an address; an IPv4 address is the same in its IPv6 form.
    pub fn address(address: IpAddr) -> Self {
        Self::Address(address.to_canonical())
    }

    /// What several connections of one stranger have in common: an IPv6 stranger has a whole network of addresses.
    #[must_use]
    pub fn neighbourhood(self) -> Self {
        match self {
            Self::Address(IpAddr::V6(v6)) => {
                let network = v6.to_bits() >> V6_NETWORK_BITS << V6_NETWORK_BITS;
                Self::Address(IpAddr::V6(Ipv6Addr::from_bits(network)))
            }
            other => other,
        }
    }
}

/// As a rule of an [`AllowList`](crate::AllowList) that lets exactly this peer in.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("somebody unknown"),
            Self::Address(address) => write!(f, "{address}"),
            Self::User(uid) => write!(f, "uid:{uid}"),
            Self::Context(cid) => write!(f, "cid:{cid}"),
        }
    }
}

/// Who the other end has proven to be, whatever its address: the subject of a verified certificate, the user of a key.
/// Only good for telling whether two channels have the same one; their names are in their endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity(Arc<[u8]>);

impl Identity {
    /// One that was proven, in whatever form the backend has it, as long as no two have the same.
    pub fn proven(form: impl Into<Arc<[u8]>>) -> Self {
        Self(form.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> Peer {
        Peer::address(address.parse().unwrap())
    }

    #[test]
    fn a_mapped_address_is_the_same_machine() {
        assert_eq!(peer("::ffff:192.0.2.7"), peer("192.0.2.7"));
        assert_ne!(peer("192.0.2.7"), peer("192.0.2.8"));
    }

    #[test]
    fn an_ipv6_network_is_one_neighbourhood() {
        assert_eq!(peer("2001:db8::1").neighbourhood(), peer("2001:db8::ffff:2").neighbourhood());
        assert_ne!(peer("2001:db8::1").neighbourhood(), peer("2001:db8:0:1::1").neighbourhood());
        assert_ne!(peer("192.0.2.7").neighbourhood(), peer("192.0.2.8").neighbourhood());
        assert_eq!(Peer::User(7).neighbourhood(), Peer::User(7));
    }
}
