//! `vsock:` addresses (docs/wire/transports.md §2.4).

use std::fmt;

use super::{error::AddressError, options::parse_decimal};

/// A socket between a guest and its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VsockAddress {
    /// Which machine: the host, this machine, or a guest.
    pub cid: u32,
    /// Which port there.
    pub port: u32,
}

impl VsockAddress {
    /// Listening: on every context this machine has. Also the port that asks for a free one.
    pub const ANY: u32 = u32::MAX;
    /// The hypervisor's own, which no socket uses.
    pub const CID_HYPERVISOR: u32 = 0;
    /// This machine talking to itself (`vsock_loopback`).
    pub const CID_LOCAL: u32 = 1;
    /// The host, seen from a guest.
    pub const CID_HOST: u32 = 2;

    /// An address of its parts.
    pub fn new(cid: u32, port: u32) -> Self {
        Self { cid, port }
    }

    pub(super) fn parse_uri(rest: &str) -> Result<Self, AddressError> {
        const EXAMPLE: &str = "vsock:2:1234";
        let Some((cid, port)) = rest.split_once(':') else {
            return Err(AddressError::new("a context id and a port are needed", EXAMPLE));
        };
        Ok(Self {
            cid: Self::parse_number("context id", cid)?,
            port: Self::parse_number("port", port).map_err(|error| error.at(cid.len() + 1))?,
        })
    }

    pub(super) fn parse_number(what: &str, text: &str) -> Result<u32, AddressError> {
        parse_decimal(text, u64::from(u32::MAX)).map(|number| number as u32).ok_or_else(|| {
            let what =
                format!("the {what} {text:?} is not a decimal number from 0 to {}", u32::MAX);
            AddressError::new(what, "vsock:2:1234")
        })
    }
}

/// `cid:port`
impl fmt::Display for VsockAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.cid, self.port)
    }
}
