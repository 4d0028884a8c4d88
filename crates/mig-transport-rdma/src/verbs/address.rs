//! Socket addresses as the connection manager reads and writes them.

#![expect(unsafe_code, reason = "reads an address from the library's memory; rules in `verbs`")]

use std::{
    mem::size_of,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
};

use libc::{sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage};

/// An address in the system's form, big enough for each family.
#[repr(C)]
pub(super) union RawAddress {
    v4: sockaddr_in,
    v6: sockaddr_in6,
    storage: sockaddr_storage,
}

impl RawAddress {
    pub(super) fn new(address: SocketAddr) -> Self {
        // SAFETY: all zero bytes are an address of no family.
        let mut raw = Self { storage: unsafe { std::mem::zeroed() } };
        match address {
            SocketAddr::V4(address) => {
                raw.v4 = sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                    sin_zero: [0; 8],
                };
            }
            SocketAddr::V6(address) => {
                raw.v6 = sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                    sin6_scope_id: address.scope_id(),
                };
            }
        }
        raw
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut sockaddr {
        (&raw mut *self).cast()
    }

    /// Copies what is at `address`; nothing for a family that is not IP.
    ///
    /// # Safety
    ///
    /// `address` is readable for the size of a `sockaddr_storage`.
    pub(super) unsafe fn read(address: *const sockaddr) -> Option<SocketAddr> {
        const { assert!(size_of::<RawAddress>() == size_of::<sockaddr_storage>()) }
        // SAFETY: the caller vouches for the length.
        let raw = unsafe { address.cast::<Self>().read_unaligned() };
        // SAFETY: the family is the first field of every form, and all bytes are initialised.
        match i32::from(unsafe { raw.storage.ss_family }) {
            libc::AF_INET => {
                // SAFETY: the family says that this form is there; any bytes are a valid one.
                let v4 = unsafe { raw.v4 };
                let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let v6 = unsafe { raw.v6 };
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                Some(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back_as_they_went() {
        let link_local: Ipv6Addr = "fe80::1".parse().unwrap();
        for address in [
            "10.55.0.1:4444".parse().unwrap(),
            "[fd55::1]:65535".parse().unwrap(),
            SocketAddr::from(SocketAddrV6::new(link_local, 1, 0, 7)),
        ] {
            let mut raw = RawAddress::new(address);
            // SAFETY: `raw` is as long as is wanted.
            assert_eq!(unsafe { RawAddress::read(raw.as_mut_ptr()) }, Some(address));
        }
    }

    #[test]
    fn an_address_of_no_family_is_none() {
        // SAFETY: zero bytes are valid for the union.
        let mut raw: RawAddress = unsafe { std::mem::zeroed() };
        // SAFETY: as long as is wanted.
        assert_eq!(unsafe { RawAddress::read(raw.as_mut_ptr()) }, None);
    }
}
