//! The library's verifiers, unweakened, with a memory: what the other end showed is needed to explain why it was refused.
//!
//! ```text
//!   rustls ──certificate──▶ Witnessing…Verifier ──▶ WebPki…Verifier ──verdict──▶ rustls
//!                                  └── keeps the end entity's certificate ──▶ Witness (one a connection)
//! ```

use std::sync::{Arc, OnceLock};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

/// The certificate that one connection's other end showed, valid or not. Only for explaining: what it says is unproven
/// until the handshake is done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Witness(Arc<OnceLock<CertificateDer<'static>>>);

impl Witness {
    pub(crate) fn seen(&self) -> Option<&CertificateDer<'static>> {
        self.0.get()
    }

    pub(crate) fn keep(&self, certificate: &CertificateDer<'_>) {
        // A connection has one certificate; the first is it.
        let _kept = self.0.set(certificate.clone().into_owned());
    }
}

#[derive(Debug)]
pub(super) struct WitnessingServerVerifier {
    inner: Arc<WebPkiServerVerifier>,
    witness: Witness,
}

impl WitnessingServerVerifier {
    pub(super) fn new(inner: Arc<WebPkiServerVerifier>, witness: Witness) -> Self {
        Self { inner, witness }
    }
}

impl ServerCertVerifier for WitnessingServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.witness.keep(end_entity);
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.inner.requires_raw_public_keys()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        self.inner.root_hint_subjects()
    }
}

#[derive(Debug)]
pub(super) struct WitnessingClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    witness: Witness,
}

impl WitnessingClientVerifier {
    pub(super) fn new(inner: Arc<dyn ClientCertVerifier>, witness: Witness) -> Self {
        Self { inner, witness }
    }
}

impl ClientCertVerifier for WitnessingClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.witness.keep(end_entity);
        self.inner.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.inner.requires_raw_public_keys()
    }
}
