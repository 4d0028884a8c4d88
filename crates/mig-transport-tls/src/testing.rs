//! Certificates for the tests of this crate, made as they run.

use std::{
    fmt, fs,
    path::Path,
    sync::{Arc, Mutex},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

/// A CA and the directory that it issues into.
pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) ca: CertifiedIssuer<'static, KeyPair>,
}

impl Site {
    /// With a CA and nothing else.
    pub(crate) fn new() -> Self {
        Self::with_ca(ca_params("Test CA"))
    }

    pub(crate) fn with_ca(params: CertificateParams) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let ca = CertifiedIssuer::self_signed(params, key()).expect("a CA");
        let site = Self { dir, ca };
        site.write("ca-cert.pem", site.ca.pem());
        site
    }

    /// With a server for `localhost` and a client.
    pub(crate) fn complete() -> Self {
        let site = Self::new();
        site.issue("server", server_params(&["localhost"]));
        site.issue("client", client_params("src1"));
        site
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `NAME-cert.pem` and `NAME-key.pem`.
    pub(crate) fn issue(&self, name: &str, params: CertificateParams) {
        let key = key();
        let certificate = params.signed_by(&key, &self.ca).expect("a certificate");
        self.write(&format!("{name}-cert.pem"), certificate.pem());
        self.write(&format!("{name}-key.pem"), key.serialize_pem());
    }

    pub(crate) fn revoke(&self, serial: u64, next_update: i32) {
        self.write("ca-crl.pem", revocations(&self.ca, serial, 2020, next_update));
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        use std::os::unix::fs::PermissionsExt;

        let path = self.path().join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("private");
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).expect("there")
    }

    /// An error's text without this run's directory.
    pub(crate) fn told(&self, error: &mig_transport::Error) -> String {
        error.to_string().replace(&self.path().display().to_string(), "DIR")
    }
}

/// A list of `ca` that revokes one certificate.
pub(crate) fn revocations(
    ca: &Issuer<'_, KeyPair>,
    serial: u64,
    this_update: i32,
    next_update: i32,
) -> String {
    let list = revocation_params(serial, this_update, next_update);
    list.signed_by(ca).expect("a list").pem().expect("PEM")
}

pub(crate) fn revocation_params(
    serial: u64,
    this_update: i32,
    next_update: i32,
) -> CertificateRevocationListParams {
    let entry = RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: date_time_ymd(2020, 1, 1),
        reason_code: None,
        invalidity_date: None,
    };
    CertificateRevocationListParams {
        this_update: date_time_ymd(this_update, 1, 1),
        next_update: date_time_ymd(next_update, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![entry],
        key_identifier_method: KeyIdMethod::Sha256,
    }
}

pub(crate) fn key() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key")
}

/// The first certificate in PEM.
#[cfg(feature = "trial")]
pub(crate) fn der(pem: &str) -> rustls::pki_types::CertificateDer<'static> {
    rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).expect("a certificate")
}

pub(crate) fn ca_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// For a server with these SANs.
pub(crate) fn server_params(names: &[&str]) -> CertificateParams {
    let mut params = params("dst1");
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    params.subject_alt_names = CertificateParams::new(names).expect("names").subject_alt_names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

pub(crate) fn client_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Example");
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.is_ca = IsCa::ExplicitNoCa;
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    params
}

/// What is warned about while `run` runs, on this thread.
pub(crate) fn warnings(run: impl FnOnce()) -> Vec<String> {
    let log = Arc::new(Mutex::new(Vec::new()));
    tracing::subscriber::with_default(Log(Arc::clone(&log)), run);
    let told = log.lock().expect("nobody panicked");
    told.clone()
}

struct Log(Arc<Mutex<Vec<String>>>);

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        self.0.lock().expect("nobody panicked").push(message.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
