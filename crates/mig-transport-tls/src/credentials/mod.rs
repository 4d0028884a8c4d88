//! Who we are and whom we trust: credentials in QEMU's directory layout (docs/wire/transports.md §5.2).
//!
//! ```text
//!   DIR/ca-cert.pem                        both ends: whom the other end's certificate must come from, one or several
//!   DIR/ca-crl.pem                         both ends, optional: what these have taken back
//!   DIR/server-cert.pem, server-key.pem    the destination, which is the TLS server
//!   DIR/client-cert.pem, client-key.pem    the source, the TLS client; without the pair it shows no certificate
//!   DIR/keys.psk                           both ends: keys in place of certificates (feature `tls-psk`)
//! ```
//!
//! Everything is read and checked once, when the credentials are made: dates, purpose, key and chain, so that what would
//! fail in every handshake fails before the first one, with the file's name; what is slow the first time is done
//! ([`randomness`]). Each error is a [`Misuse`](mig_transport::Error::Misuse) and says what to do. Clones share what was read.
//!
//! TLS 1.3 and 1.2, AES-GCM before ChaCha20; no resumption, no tickets, no early data: a migration has one handshake a
//! channel and keeps it for minutes.

mod certificate;
mod check;
mod directory;
mod distinguished_name;
mod expected_name;
#[cfg(feature = "tls-psk")]
mod psk;
mod randomness;
mod revocation;
#[cfg(test)]
mod tests;
mod time;
mod verifier;

use std::{fmt, path::Path, sync::Arc};

use mig_transport::{Address, Result};
use rustls::{
    ClientConfig, ServerConfig,
    client::{Resumption, WebPkiServerVerifier},
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
};

pub use self::expected_name::ExpectedName;
#[cfg(feature = "tls-psk")]
pub(crate) use self::psk::{Keys, User};
pub(crate) use self::{
    certificate::{AlternativeName, CertificateFacts, printable},
    directory::{misuse, read_bounded, warn_if_others_may_write},
    distinguished_name::{DistinguishedName, attributes},
    time::{now, utc},
    verifier::Witness,
};
use self::{
    check::Purpose,
    directory::Directory,
    verifier::{WitnessingClientVerifier, WitnessingServerVerifier},
};

/// The protocol versions offered and taken.
const VERSIONS: &[&rustls::SupportedProtocolVersion] =
    &[&rustls::version::TLS13, &rustls::version::TLS12];

/// What a source, the TLS client, needs for a handshake.
#[derive(Clone)]
pub struct ClientCredentials {
    directory: Arc<Directory>,
    kind: ClientKind,
}

/// Which kind they are.
#[derive(Clone)]
pub(crate) enum ClientKind {
    /// Certificates.
    X509(ClientX509),
    /// The key of a user.
    #[cfg(feature = "tls-psk")]
    Psk(psk::User),
}

/// Certificates of a source.
#[derive(Clone)]
pub(crate) struct ClientX509 {
    has_certificate: bool,
    verifier: Arc<WebPkiServerVerifier>,
    config: Arc<ClientConfig>,
}

impl ClientCredentials {
    /// Reads `ca-cert.pem`, the pair `client-cert.pem` and `client-key.pem` if it is there, and `ca-crl.pem` if it is
    /// there. Small files, read at once.
    ///
    /// # Errors
    ///
    /// [`Misuse`](mig_transport::Error::Misuse): a file that is missing, unreadable or not what its name says; a
    /// certificate that no destination would take, today.
    pub fn x509(dir: &Path) -> Result<Self> {
        randomness::ready(provider().secure_random)?;
        let directory = Directory::open(dir)?;
        let trust = check::Trust::load(&directory, Purpose::Client)?;
        let verifier = trust.server_verifier(&directory)?;
        let pair = check::load_pair(&directory, Purpose::Client, &trust)?;
        let has_certificate = pair.is_some();
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .expect("the provider has suites of both versions")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(WitnessingServerVerifier::new(
                Arc::clone(&verifier),
                Witness::default(),
            )));
        let mut config = match pair {
            Some(pair) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair))),
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        let kind =
            ClientKind::X509(ClientX509 { has_certificate, verifier, config: Arc::new(config) });
        Ok(Self { directory: Arc::new(directory), kind })
    }

    /// Reads the key of `user` in `keys.psk`; QEMU's default user is `qemu`.
    ///
    /// # Errors
    ///
    /// [`Misuse`](mig_transport::Error::Misuse): no such file, no such user, a line that is none.
    #[cfg(feature = "tls-psk")]
    pub fn psk(dir: &Path, user: &str) -> Result<Self> {
        randomness::ready_for_keys()?;
        let (directory, user) = psk::client(dir, user)?;
        Ok(Self { directory: Arc::new(directory), kind: ClientKind::Psk(user) })
    }

    /// Where they were read.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Whether there is a certificate to show to a destination that asks for one.
    pub fn has_certificate(&self) -> bool {
        match &self.kind {
            ClientKind::X509(x509) => x509.has_certificate,
            #[cfg(feature = "tls-psk")]
            ClientKind::Psk(_) => false,
        }
    }

    /// Which name the destination at `address` must prove: see [`ExpectedName::of`]. Keys have no names, so none is wanted
    /// with them.
    ///
    /// # Errors
    ///
    /// See [`ExpectedName::of`].
    pub fn expected_name(&self, address: &Address, hostname: Option<&str>) -> Result<ExpectedName> {
        match &self.kind {
            ClientKind::X509(_) => ExpectedName::of(address, hostname),
            #[cfg(feature = "tls-psk")]
            ClientKind::Psk(_) => Ok(ExpectedName::none()),
        }
    }

    pub(crate) fn kind(&self) -> &ClientKind {
        &self.kind
    }

    /// The user whose key is used in place of certificates.
    pub fn user(&self) -> Option<&str> {
        match &self.kind {
            ClientKind::X509(_) => None,
            #[cfg(feature = "tls-psk")]
            ClientKind::Psk(user) => Some(user.name()),
        }
    }
}

impl ClientX509 {
    /// The configuration for one connection, whose verifier leaves the certificate it saw with `witness`.
    pub(crate) fn rustls(&self, witness: &Witness) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.config);
        config.dangerous().set_certificate_verifier(Arc::new(WitnessingServerVerifier::new(
            Arc::clone(&self.verifier),
            witness.clone(),
        )));
        Arc::new(config)
    }
}

/// What a destination, the TLS server, needs for a handshake.
#[derive(Clone)]
pub struct ServerCredentials {
    directory: Arc<Directory>,
    kind: ServerKind,
}

/// Which kind they are.
#[derive(Clone)]
pub(crate) enum ServerKind {
    /// Certificates.
    X509(ServerX509),
    /// Keys of users.
    #[cfg(feature = "tls-psk")]
    Psk(psk::Keys),
}

/// Certificates of a destination.
#[derive(Clone)]
pub(crate) struct ServerX509 {
    /// `None`: sources are not asked for a certificate.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    certificate: Arc<SingleCertAndKey>,
    provider: Arc<CryptoProvider>,
}

impl ServerCredentials {
    /// Reads `ca-cert.pem`, the pair `server-cert.pem` and `server-key.pem`, and `ca-crl.pem` if it is there. Small
    /// files, read at once.
    ///
    /// With `verify_peer`, QEMU's default, a source must show a certificate of one of the CAs. Without it anybody who
    /// reaches the port is a source.
    ///
    /// # Errors
    ///
    /// [`Misuse`](mig_transport::Error::Misuse): a file that is missing, unreadable or not what its name says; a
    /// certificate that no source would take, today.
    pub fn x509(dir: &Path, verify_peer: bool) -> Result<Self> {
        randomness::ready(provider().secure_random)?;
        let directory = Directory::open(dir)?;
        let trust = check::Trust::load(&directory, Purpose::Server)?;
        let pair = check::load_pair(&directory, Purpose::Server, &trust)?
            .ok_or_else(|| directory.missing(Purpose::Server.certificate_file()))?;
        let verifier = verify_peer.then(|| trust.client_verifier(&directory)).transpose()?;
        let certificate = Arc::new(SingleCertAndKey::from(pair));
        let x509 = ServerX509 { verifier, certificate, provider: provider() };
        Ok(Self { directory: Arc::new(directory), kind: ServerKind::X509(x509) })
    }

    /// Reads `keys.psk`: whoever knows the key of one of its users may come.
    ///
    /// # Errors
    ///
    /// [`Misuse`](mig_transport::Error::Misuse): no such file, nobody in it, a line that is none.
    #[cfg(feature = "tls-psk")]
    pub fn psk(dir: &Path) -> Result<Self> {
        randomness::ready_for_keys()?;
        let (directory, keys) = psk::server(dir)?;
        Ok(Self { directory: Arc::new(directory), kind: ServerKind::Psk(keys) })
    }

    /// Where they were read.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Whether a source must prove who it is, by a certificate or a user's key.
    pub fn verifies_peer(&self) -> bool {
        match &self.kind {
            ServerKind::X509(x509) => x509.verifier.is_some(),
            #[cfg(feature = "tls-psk")]
            ServerKind::Psk(_) => true,
        }
    }

    pub(crate) fn kind(&self) -> &ServerKind {
        &self.kind
    }
}

impl ServerX509 {
    /// The configuration for one connection, whose verifier leaves the certificate it saw with `witness`.
    pub(crate) fn rustls(&self, witness: &Witness) -> Arc<ServerConfig> {
        let verifier = match &self.verifier {
            Some(verifier) => {
                Arc::new(WitnessingClientVerifier::new(Arc::clone(verifier), witness.clone()))
            }
            None => WebPkiClientVerifier::no_client_auth(),
        };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(VERSIONS)
            .expect("the provider has suites of both versions")
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::clone(&self.certificate) as _);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }
}

impl fmt::Debug for ClientCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentials")
            .field("directory", &self.directory())
            .field("has_certificate", &self.has_certificate())
            .field("user", &self.user())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ServerCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCredentials")
            .field("directory", &self.directory())
            .field("verifies_peer", &self.verifies_peer())
            .finish_non_exhaustive()
    }
}

/// The cryptography, named here and nowhere installed for the whole process. Its suites are in the order wanted: AES-GCM,
/// which processors have instructions for, before ChaCha20.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
