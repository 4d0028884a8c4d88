//! What of vsock this machine has.

use mig_transport::{Error, Result, address::VsockAddress};

use crate::socket::{open, sock_addr};

/// Whether the kernel has vsock: [`Error::Unavailable`] says what is missing and what would bring it. Whether a peer is
/// there only connecting tells.
pub fn availability() -> Result<()> {
    open().map(drop)
}

/// Whether this machine can connect to itself over vsock, as two processes of one host (or a test) do.
pub fn loopback_availability() -> Result<()> {
    let probe = sock_addr(VsockAddress::new(VsockAddress::CID_LOCAL, VsockAddress::ANY));
    open()?.bind(&probe).map_err(|error| Error::Unavailable {
        what: format!("vsock cannot connect this machine to itself (context id 1): {error}"),
        remedy: "run modprobe vsock_loopback (Linux 5.6 or newer with CONFIG_VSOCKETS_LOOPBACK)"
            .to_owned(),
    })
}
