//! `unix:` addresses (docs/wire/transports.md §2.3).

use std::fmt;

use super::error::AddressError;

/// A unix stream socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixAddress {
    /// A path in the file system, or a name in Linux's abstract namespace.
    pub path: String,
    /// The name is abstract: no file stands for it. JSON form only.
    pub is_abstract: bool,
    /// An abstract name ends where its text ends; otherwise it is padded with NUL bytes to the length of the
    /// kernel's field. QEMU's default, and ours, is true.
    pub tight: bool,
}

impl UnixAddress {
    /// The longest path or name in bytes: the kernel's 108 without a NUL.
    pub const MAX_PATH_BYTES: usize = 107;

    /// A socket in the file system.
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), is_abstract: false, tight: true }
    }

    /// A socket in the abstract namespace.
    pub fn new_abstract(name: impl Into<String>) -> Self {
        Self { path: name.into(), is_abstract: true, tight: true }
    }

    /// Whether the kernel can take it.
    pub fn check(&self) -> Result<(), AddressError> {
        const EXAMPLE: &str = "unix:/run/vm.sock";
        if self.path.is_empty() {
            return Err(AddressError::new("the path of the socket is missing", EXAMPLE));
        }
        if self.path.contains('\0') {
            return Err(AddressError::new("a socket path cannot hold a NUL byte", EXAMPLE));
        }
        if self.path.len() > Self::MAX_PATH_BYTES {
            let what = format!(
                "the socket path is {} bytes long and the kernel takes at most {}; use a shorter folder",
                self.path.len(),
                Self::MAX_PATH_BYTES
            );
            return Err(AddressError::new(what, EXAMPLE));
        }
        Ok(())
    }

    pub(super) fn parse_uri(rest: &str) -> Result<Self, AddressError> {
        let address = Self::new(rest);
        address.check()?;
        Ok(address)
    }

    pub(super) fn to_uri_rest(&self) -> Option<String> {
        (!self.is_abstract && self.tight).then(|| self.path.clone())
    }
}

/// The path, or the name behind `@` as other tools write abstract names.
impl fmt::Display for UnixAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.is_abstract { "@" } else { "" }, self.path)
    }
}
