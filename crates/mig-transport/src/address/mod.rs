//! Addresses in both of QEMU's forms: the URI string and the JSON channel object (docs/wire/transports.md §1, §2).
//!
//! ```text
//!   "tcp:[fe80::1%eth0]:4444,keep-alive"            {"channel-type": "main", "addr": {"transport": "socket", …}}
//!                       │ uri                                              │ json
//!                       └────────────▶ MigrationAddress ◀──────────────────┘
//!                                       │ text, as typed (Display)
//!                                       └ Address ── Inet │ Unix │ Vsock │ Fd │ Exec │ File │ Rdma
//! ```
//!
//! A text is a URI if it starts with letters followed by `:`, and a channel object if it starts with `{`. Both are
//! parsed strictly, by QEMU 10.1's rules where versions differ: an unknown option or key, a duplicate, a value of the
//! wrong type are errors. Every [`AddressError`] says what is wrong, where, and shows the right form.

mod error;
mod exec;
mod fd;
mod file;
mod inet;
mod json;
mod options;
#[cfg(test)]
mod tests;
mod unix;
mod uri;
mod vsock;

use std::{fmt, str::FromStr};

pub use self::{
    error::AddressError,
    exec::ExecAddress,
    fd::FdAddress,
    file::FileAddress,
    inet::{Family, InetAddress},
    unix::UnixAddress,
    vsock::VsockAddress,
};

/// An address as the user typed it: it prints back unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationAddress {
    text: String,
    channel_type: ChannelType,
    address: Address,
}

impl MigrationAddress {
    /// Parses either form.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let parsed = if text.starts_with('{') {
            json::parse(text)
        } else {
            uri::parse(text).map(|address| (ChannelType::Main, address))
        };
        match parsed {
            Ok((channel_type, address)) => {
                Ok(Self { text: text.to_owned(), channel_type, address })
            }
            Err(error) => Err(error.in_text(text)),
        }
    }

    /// Which of a migration's channels the address is for.
    pub fn channel_type(&self) -> ChannelType {
        self.channel_type
    }

    /// What the text says.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What the text says, without the text.
    pub fn into_address(self) -> Address {
        self.address
    }
}

impl FromStr for MigrationAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text)
    }
}

impl fmt::Display for MigrationAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Which of a migration's channels an address is for. QEMU's other one, `cpr`, belongs to a restart of the VMM on the
/// same host and is refused by the parser, with that reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChannelType {
    /// The migration itself; further channels of it (multifd, preempt) reuse the address.
    #[default]
    Main,
}

impl ChannelType {
    /// QEMU's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
        }
    }
}

/// Where a migration goes or comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Address {
    /// `tcp:` (§2.1)
    Inet(InetAddress),
    /// `unix:` (§2.3)
    Unix(UnixAddress),
    /// `vsock:` (§2.4)
    Vsock(VsockAddress),
    /// `fd:` (§2.5)
    Fd(FdAddress),
    /// `exec:` (§2.6)
    Exec(ExecAddress),
    /// `file:` (§2.7)
    File(FileAddress),
    /// `rdma:` (§2.9)
    Rdma(InetAddress),
}

impl Address {
    /// The URI prefix, without its colon; also the name of the transport in messages.
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Inet(_) => "tcp",
            Self::Unix(_) => "unix",
            Self::Vsock(_) => "vsock",
            Self::Fd(_) => "fd",
            Self::Exec(_) => "exec",
            Self::File(_) => "file",
            Self::Rdma(_) => "rdma",
        }
    }

    /// The URI that parses to this address. `None` if there is none: abstract unix names and most argument lists have
    /// only a JSON form, and a value built by hand may be no address at all.
    pub fn to_uri(&self) -> Option<String> {
        let rest = match self {
            Self::Inet(inet) | Self::Rdma(inet) => inet.to_uri_rest(),
            Self::Unix(unix) => unix.to_uri_rest(),
            Self::Vsock(vsock) => Some(vsock.to_string()),
            Self::Fd(fd) => fd.to_uri_rest(),
            Self::Exec(exec) => exec.to_uri_rest(),
            Self::File(file) => file.to_uri_rest(),
        }?;
        let uri = format!("{}:{rest}", self.scheme());
        // The parser has the last word, so that what is published can always be typed in again.
        uri::parse(&uri).is_ok_and(|back| back == *self).then_some(uri)
    }
}

/// The URI, or a description where there is none.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.to_uri(), self) {
            (Some(uri), _) => f.write_str(&uri),
            (None, Self::Unix(unix)) => write!(f, "unix socket {unix}"),
            (None, Self::Exec(ExecAddress::Args(args))) => write!(f, "exec of {args:?}"),
            (None, other) => write!(f, "{} address {other:?}", other.scheme()),
        }
    }
}

impl From<InetAddress> for Address {
    fn from(inet: InetAddress) -> Self {
        Self::Inet(inet)
    }
}

impl From<UnixAddress> for Address {
    fn from(unix: UnixAddress) -> Self {
        Self::Unix(unix)
    }
}

impl From<VsockAddress> for Address {
    fn from(vsock: VsockAddress) -> Self {
        Self::Vsock(vsock)
    }
}

impl From<FdAddress> for Address {
    fn from(fd: FdAddress) -> Self {
        Self::Fd(fd)
    }
}

impl From<ExecAddress> for Address {
    fn from(exec: ExecAddress) -> Self {
        Self::Exec(exec)
    }
}

impl From<FileAddress> for Address {
    fn from(file: FileAddress) -> Self {
        Self::File(file)
    }
}
