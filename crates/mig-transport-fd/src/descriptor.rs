//! A descriptor that was found fit to carry a migration.

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
};

use mig_transport::{Error, Result};
use rustix::{
    fs::{FileType, OFlags},
    io::Errno,
    net::{AddressFamily, SocketType, sockopt},
};

/// What a descriptor is, as far as a migration cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DescriptorKind {
    /// A connected stream socket: bytes go both ways. Unix sockets carry descriptors too.
    Socket {
        /// Of the unix family.
        unix: bool,
    },
    /// The reading end of a pipe or FIFO.
    PipeReader,
    /// The writing end of a pipe or FIFO.
    PipeWriter,
    /// A FIFO opened for reading and writing. It serves either way, but never sees the other end go.
    PipeBoth,
}

impl DescriptorKind {
    /// Whether bytes can come out.
    pub fn reads(self) -> bool {
        self != Self::PipeWriter
    }

    /// Whether bytes can go in.
    pub fn writes(self) -> bool {
        self != Self::PipeReader
    }

    /// Whether it is a socket.
    pub fn is_socket(self) -> bool {
        matches!(self, Self::Socket { .. })
    }
}

impl fmt::Display for DescriptorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Socket { .. } => "a connected socket",
            Self::PipeReader => "the reading end of a pipe",
            Self::PipeWriter => "the writing end of a pipe",
            Self::PipeBoth => "a FIFO opened both ways",
        })
    }
}

/// A descriptor that cannot carry a migration, handed back with the reason.
#[derive(Debug)]
pub struct RejectedFd {
    /// What is wrong, and what to use instead.
    pub error: Error,
    /// The descriptor, as it was.
    pub fd: OwnedFd,
}

impl fmt::Display for RejectedFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for RejectedFd {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl From<RejectedFd> for Error {
    fn from(rejected: RejectedFd) -> Self {
        rejected.error
    }
}

/// An owned descriptor whose kind is known. Dropping it closes it.
#[derive(Debug)]
pub struct Descriptor {
    fd: OwnedFd,
    kind: DescriptorKind,
    name: String,
}

impl Descriptor {
    /// Takes over a descriptor that this process inherited, by its number. From then on it is close-on-exec, and closed
    /// with the channel; in place of 0, 1 and 2 stands `/dev/null`, so what is printed later cannot mix with the stream.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] when the number is closed, was adopted before, belongs to this process itself (it is
    /// close-on-exec), or is nothing that can carry a migration. A refused number stays as it was.
    pub fn adopt(number: RawFd) -> Result<Self> {
        crate::adopt::adopt(number)
    }

    /// Takes a descriptor that has an owner already; `name` is for messages.
    ///
    /// # Errors
    ///
    /// The descriptor comes back, with [`Error::Misuse`], when it cannot carry a migration.
    pub fn from_owned(
        fd: OwnedFd,
        name: impl Into<String>,
    ) -> std::result::Result<Self, RejectedFd> {
        let name = name.into();
        match Self::kind_of(fd.as_fd(), &name) {
            Ok(kind) => Ok(Self { fd, kind, name }),
            Err(error) => Err(RejectedFd { error, fd }),
        }
    }

    /// What it is.
    pub fn kind(&self) -> DescriptorKind {
        self.kind
    }

    /// What it is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The descriptor and its kind.
    pub fn into_parts(self) -> (OwnedFd, DescriptorKind) {
        (self.fd, self.kind)
    }

    pub(crate) fn checked(fd: OwnedFd, kind: DescriptorKind, name: String) -> Self {
        Self { fd, kind, name }
    }

    /// Whether both are one open file: a socket that a parent gave to a child as stdin and stdout.
    pub(crate) fn is_same_file(&self, other: &Self) -> bool {
        match (rustix::fs::fstat(&self.fd), rustix::fs::fstat(&other.fd)) {
            (Ok(one), Ok(two)) => one.st_dev == two.st_dev && one.st_ino == two.st_ino,
            _ => false,
        }
    }

    /// Finds out what a descriptor is; [`Error::Misuse`] tells why it will not do and what would.
    pub(crate) fn kind_of(fd: BorrowedFd<'_>, name: &str) -> Result<DescriptorKind> {
        let system = |error: Errno| Error::io(format!("{name}: asking what it is"), error.into());
        let refuse =
            |is: &str, instead: &str| Error::Misuse { what: format!("{name} is {is}; {instead}") };
        let flags = rustix::fs::fcntl_getfl(fd).map_err(system)?;
        if flags.contains(OFlags::PATH) {
            return Err(refuse("a bare path reference (O_PATH)", "open it for reading or writing"));
        }
        let mode = rustix::fs::fstat(fd).map_err(system)?.st_mode;
        match FileType::from_raw_mode(mode) {
            FileType::Socket => socket_kind(fd, name),
            FileType::Fifo => Ok(match flags & OFlags::RWMODE {
                OFlags::WRONLY => DescriptorKind::PipeWriter,
                OFlags::RDWR => DescriptorKind::PipeBoth,
                _ => DescriptorKind::PipeReader,
            }),
            FileType::RegularFile => Err(refuse(
                "a plain file",
                "use file:PATH, or file:/dev/fdset/N for a descriptor that was handed over",
            )),
            FileType::Directory => Err(refuse("a directory", "use file:PATH to save into one")),
            FileType::CharacterDevice => Err(refuse(
                "a terminal or another character device",
                "connect a pipe or a socket to it",
            )),
            FileType::BlockDevice => Err(refuse("a block device", "use file:PATH")),
            _ => Err(refuse(
                "neither a socket nor a pipe nor a FIFO",
                "connect a pipe or a socket to it",
            )),
        }
    }
}

fn socket_kind(fd: BorrowedFd<'_>, name: &str) -> Result<DescriptorKind> {
    let system = |error: Errno| Error::io(format!("{name}: asking what it is"), error.into());
    let refuse =
        |is: &str, instead: &str| Error::Misuse { what: format!("{name} is {is}; {instead}") };
    if sockopt::socket_type(fd).map_err(system)? != SocketType::STREAM {
        return Err(refuse("not a stream socket", "connect a stream socket (SOCK_STREAM)"));
    }
    if sockopt::socket_acceptconn(fd).map_err(system)? {
        return Err(refuse(
            "a listening socket",
            "hand over the connection it accepts, or let this end listen with tcp: or unix:",
        ));
    }
    match rustix::net::getpeername(fd) {
        Ok(_) => {}
        Err(Errno::NOTCONN) => {
            return Err(refuse(
                "a socket that is not connected",
                "connect it before handing it over, or use tcp: or unix:",
            ));
        }
        Err(error) => return Err(system(error)),
    }
    let unix = sockopt::socket_domain(fd).map_err(system)? == AddressFamily::UNIX;
    Ok(DescriptorKind::Socket { unix })
}
