//! Whether a scenario's channels have TLS, and what each end is told about it.

use std::path::PathBuf;

use mig::tls::{ClientCredentials, ServerCredentials};
use mig::{ConnectTls, ListenTls};
use mig_tests::qemu::{Qemu, text};
use mig_tests::scratch::Scratch;
use mig_tests::tls::{self, Authority, Endpoint};

use crate::link::Transport;

/// The name of a destination whose address has none, and what all certificates here have.
const NAME: &str = "localhost";

/// What a row wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Security {
    /// Bytes as they are.
    Plain,
    /// Certificates at both ends.
    X509,
    /// One key at both ends, which are QEMUs.
    Psk,
}

impl Security {
    /// What the table calls it, before the rest of the feature.
    pub(crate) fn feature(self, return_path: bool) -> &'static str {
        match (self, return_path) {
            (Self::Plain, false) => "plain",
            (Self::Plain, true) => "return path",
            (Self::X509, false) => "TLS",
            (Self::X509, true) => "TLS, return path",
            (Self::Psk, false) => "TLS with a pre-shared key",
            (Self::Psk, true) => "TLS with a pre-shared key, return path",
        }
    }

    /// The same with files for both ends.
    pub(crate) fn arranged(self, scratch: &Scratch) -> Secured {
        let dir = scratch.path("tls");
        match self {
            Self::Plain => {}
            Self::X509 => drop(Authority::new("matrix").both(dir.clone())),
            Self::Psk => tls::pre_shared(&dir, tls::USERNAME, tls::KEY),
        }
        Secured { security: self, dir }
    }
}

/// See [`Security::arranged`].
#[derive(Clone, Debug)]
pub(crate) struct Secured {
    security: Security,
    dir: PathBuf,
}

impl Secured {
    /// Tells a source.
    pub(crate) fn source(&self, qemu: &mut Qemu, transport: Transport) {
        match self.security {
            Security::Plain => return,
            Security::X509 => qemu.tls_x509(&self.dir, Endpoint::Client),
            Security::Psk => qemu.tls_psk(&self.dir, Endpoint::Client, Some(tls::USERNAME)),
        }
        if !transport.names_a_host() {
            qemu.tls_hostname(NAME);
        }
    }

    /// Tells a destination.
    pub(crate) fn destination(&self, qemu: &mut Qemu) {
        match self.security {
            Security::Plain => {}
            Security::X509 => qemu.tls_x509(&self.dir, Endpoint::Server),
            Security::Psk => qemu.tls_psk(&self.dir, Endpoint::Server, None),
        }
    }

    /// Certificates for a live source.
    pub(crate) fn connect(&self) -> ConnectTls {
        let credentials = ClientCredentials::x509(&self.dir);
        ConnectTls::new(credentials.expect("the certificates are sound"))
    }

    /// Certificates for a live destination.
    pub(crate) fn listen(&self) -> ListenTls {
        let credentials = ServerCredentials::x509(&self.dir, true);
        ListenTls::new(credentials.expect("the certificates are sound"))
    }

    /// The flags of `mig send`.
    pub(crate) fn source_flags(&self, transport: Transport) -> Vec<String> {
        let mut flags = self.destination_flags();
        if !flags.is_empty() && !transport.names_a_host() {
            flags.extend(["--tls-hostname".into(), NAME.into()]);
        }
        flags
    }

    /// The flags of `mig recv`.
    pub(crate) fn destination_flags(&self) -> Vec<String> {
        match self.security {
            Security::Plain => Vec::new(),
            Security::X509 => vec!["--tls-creds".into(), text(&self.dir).into()],
            Security::Psk => unreachable!("pre_shared.rs has the migs with keys"),
        }
    }
}
