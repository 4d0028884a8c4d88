//! How the two ends of a benchmark find each other, for each transport.

use std::{fmt, os::fd::OwnedFd, str::FromStr};

use mig_transport::{Address, Error, MigrationAddress, Result};
use tempfile::TempDir;

/// A transport to be measured: a scheme, with an address of our own choice, or an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `tcp`, `unix`, `vsock`, `fd`, `exec`, `file` or `rdma`, at an address that this machine can meet itself at.
    Scheme(&'static str),
    /// Where the destination listens; `tcp:[::1]:0`.
    Address(MigrationAddress),
}

const SCHEMES: [&str; 7] = ["tcp", "unix", "fd", "exec", "file", "vsock", "rdma"];

impl Transport {
    /// Every transport there is, in the order of the report.
    pub fn all() -> Vec<Self> {
        SCHEMES.into_iter().map(Self::Scheme).collect()
    }

    /// The scheme.
    pub fn scheme(&self) -> &str {
        match self {
            Self::Scheme(scheme) => scheme,
            Self::Address(address) => address.address().scheme(),
        }
    }

    /// Whether a benchmark can put TLS around it. Descriptors and commands can carry it too, but say nothing that tcp and
    /// unix do not.
    pub fn can_have_tls(&self) -> bool {
        matches!(self.scheme(), "tcp" | "unix" | "vsock")
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme(scheme) => f.write_str(scheme),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

impl FromStr for Transport {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(scheme) = SCHEMES.into_iter().find(|scheme| *scheme == text) {
            return Ok(Self::Scheme(scheme));
        }
        let address = MigrationAddress::parse(text).map_err(|error| Error::Misuse {
            what: format!("{error}; or one of the schemes {}", SCHEMES.join(", ")),
        })?;
        match address.address() {
            Address::Inet(_)
            | Address::Unix(_)
            | Address::Vsock(_)
            | Address::File(_)
            | Address::Rdma(_) => Ok(Self::Address(address)),
            other => Err(Error::Misuse {
                what: format!(
                    "{text}: a benchmark needs both ends; for this transport give just the scheme, `{}`",
                    other.scheme()
                ),
            }),
        }
    }
}

/// Where the ends meet.
pub(super) enum Ends {
    /// The destination listens here; the source connects there, or to what the listener says it bound.
    Addresses { listen: String, connect: Option<String> },
    /// Two ends of one connection that is there already.
    Connected { source: OwnedFd, destination: OwnedFd },
}

/// A way for both ends to meet, and what it needs to exist.
pub(super) struct Meeting {
    pub(super) ends: Ends,
    /// The source must be done before the destination begins: a file.
    pub(super) one_after_the_other: bool,
    /// The destination can answer.
    pub(super) return_path: bool,
    /// Holds sockets, FIFOs and files; removed with the meeting.
    _folder: Option<TempDir>,
}

impl Meeting {
    pub(super) fn arrange(transport: &Transport) -> Result<Self> {
        let folder = || {
            tempfile::Builder::new()
                .prefix("mig-bench-")
                .tempdir()
                .map_err(|error| Error::io("making a folder for the benchmark", error))
        };
        let meet = |listen: String, connect: Option<String>, folder| Self {
            ends: Ends::Addresses { listen, connect },
            one_after_the_other: false,
            return_path: true,
            _folder: folder,
        };
        let scheme = match transport {
            Transport::Scheme(scheme) => *scheme,
            Transport::Address(address) => {
                let at = address.to_string();
                let file = matches!(address.address(), Address::File(_));
                let connect = file.then(|| at.clone());
                return Ok(Self {
                    one_after_the_other: file,
                    return_path: !file,
                    ..meet(at, connect, None)
                });
            }
        };
        Ok(match scheme {
            "tcp" => meet("tcp:127.0.0.1:0".into(), None, None),
            // CID 1 is the machine itself.
            "vsock" => meet("vsock:1:4444".into(), None, None),
            "rdma" => meet(rdma_here()?, None, None),
            "unix" => {
                let folder = folder()?;
                let path = folder.path().join("socket");
                meet(format!("unix:{}", path.display()), None, Some(folder))
            }
            "file" => {
                let folder = folder()?;
                let at = format!("file:{}", folder.path().join("stream").display());
                Self {
                    one_after_the_other: true,
                    return_path: false,
                    ..meet(at.clone(), Some(at), Some(folder))
                }
            }
            "exec" => {
                let folder = folder()?;
                let fifo = folder.path().join("fifo");
                rustix::fs::mknodat(
                    rustix::fs::CWD,
                    &fifo,
                    rustix::fs::FileType::Fifo,
                    rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
                    0,
                )
                .map_err(|error| Error::io("making a FIFO for the benchmark", error.into()))?;
                let fifo = fifo.display();
                Self {
                    return_path: false,
                    ..meet(
                        format!("exec:exec cat {fifo}"),
                        Some(format!("exec:exec cat > {fifo}")),
                        Some(folder),
                    )
                }
            }
            _ => {
                let (source, destination) = std::os::unix::net::UnixStream::pair()
                    .map_err(|error| Error::io("making a socket pair", error))?;
                Self {
                    ends: Ends::Connected {
                        source: source.into(),
                        destination: destination.into(),
                    },
                    one_after_the_other: false,
                    return_path: true,
                    _folder: None,
                }
            }
        })
    }
}

/// An address of one of this machine's RDMA devices: the connection manager does not loop back over 127.0.0.1 on all.
#[cfg(feature = "rdma")]
fn rdma_here() -> Result<String> {
    match crate::rdma_loopback()? {
        Some(uri) => Ok(uri),
        None => Err(Error::Unavailable {
            what: "no active RDMA port tells its IP address".into(),
            remedy: "name the address of its network interface, as in rdma:192.0.2.1:0".into(),
        }),
    }
}

#[cfg(not(feature = "rdma"))]
fn rdma_here() -> Result<String> {
    // The front door says that it is not built in.
    Ok("rdma:127.0.0.1:0".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_and_addresses_are_told_apart() {
        assert_eq!("tcp".parse::<Transport>().unwrap(), Transport::Scheme("tcp"));
        let address: Transport = "tcp:[::1]:0".parse().unwrap();
        assert_eq!(address.scheme(), "tcp");
        assert_eq!(address.to_string(), "tcp:[::1]:0");
        assert_eq!("rdma".parse::<Transport>().unwrap(), Transport::Scheme("rdma"));
        assert_eq!("rdma:192.0.2.1:4444".parse::<Transport>().unwrap().scheme(), "rdma");
    }

    #[test]
    fn what_cannot_be_met_at_is_refused_with_the_right_form() {
        let refused = "exec:cat".parse::<Transport>().unwrap_err().to_string();
        assert!(refused.contains("just the scheme, `exec`"), "{refused}");
        let refused = "carrier-pigeon".parse::<Transport>().unwrap_err().to_string();
        assert!(refused.contains("tcp, unix, fd"), "{refused}");
    }
}
