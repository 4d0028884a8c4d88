//! Certificates of one test's own, and how a QEMU is told to use them.
//!
//! ```text
//!   Authority ── server, client ──▶ DIR/{ca,server,client}-{cert,key}.pem ──▶ Qemu::tls_x509 ──▶ mig --tls-creds DIR
//! ```
//! QEMU's credentials are objects of its monitor, so a scenario decides about TLS after its QEMU has started. What each
//! directory holds is docs/wire/transports.md §5.2.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use serde_json::{Value, json};

use crate::qemu::{Qemu, text};

/// The id of a QEMU's credentials.
const CREDENTIALS: &str = "tls0";
/// The id of a QEMU's rule about who may come.
const AUTHORIZATION: &str = "authz0";

/// Which end of TLS: the source is the client (docs/wire/transports.md §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The source.
    Client,
    /// The destination.
    Server,
}

impl Endpoint {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Who has the key of [`pre_shared`].
pub const USERNAME: &str = "migration";

/// The key, in digits.
pub const KEY: &str = "9a5eed0000112233445566778899aabbccddeeff0f1e2d3c4b5a697887960123";

/// A directory with one pre-shared key, for both ends.
pub fn pre_shared(dir: &Path, username: &str, key: &str) {
    fs::create_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    write(&dir.join("keys.psk"), &format!("{username}:{key}\n"));
}

/// What a certificate says.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// CN of its distinguished name.
    pub common_name: &'a str,
    /// O of its distinguished name.
    pub organization: &'a str,
    /// Host names and addresses it is valid for.
    pub alternative_names: &'a [&'a str],
    /// It ended years ago.
    pub expired: bool,
}

impl Default for Identity<'_> {
    fn default() -> Self {
        Self {
            common_name: "localhost",
            organization: "mig tests",
            alternative_names: &["localhost", "127.0.0.1", "::1"],
            expired: false,
        }
    }
}

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    /// A fresh one.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("the provider makes keys");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).expect("nothing unusual is asked for").pem();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// A directory in which nothing but this authority is trusted.
    #[must_use]
    pub fn directory(&self, dir: PathBuf) -> PathBuf {
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        self.trusted_in(&dir);
        dir
    }

    /// The directory trusts this authority, beside those that it trusts already.
    pub fn trusted_in(&self, dir: &Path) {
        let file = dir.join("ca-cert.pem");
        let already = fs::read_to_string(&file).unwrap_or_default();
        write(&file, &format!("{already}{}", self.certificate));
    }

    /// Puts an end's certificate and key there.
    pub fn issue(&self, dir: &Path, endpoint: Endpoint, identity: &Identity<'_>) {
        let names: Vec<String> = identity.alternative_names.iter().map(|&n| n.into()).collect();
        let mut params = CertificateParams::new(names).expect("names of hosts");
        let name = &mut params.distinguished_name;
        // The default has one of its own.
        name.remove(DnType::CommonName);
        name.push(DnType::OrganizationName, identity.organization);
        name.push(DnType::CommonName, identity.common_name);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![match endpoint {
            Endpoint::Client => ExtendedKeyUsagePurpose::ClientAuth,
            Endpoint::Server => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        if identity.expired {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().expect("the provider makes keys");
        let certificate = params.signed_by(&key, &self.issuer).expect("nothing unusual");
        let of = |what: &str| dir.join(format!("{}-{what}.pem", endpoint.name()));
        write(&of("cert"), &certificate.pem());
        write(&of("key"), &key.serialize_pem());
    }

    /// A directory with everything both ends need.
    #[must_use]
    pub fn both(&self, dir: PathBuf) -> PathBuf {
        let dir = self.directory(dir);
        self.issue(&dir, Endpoint::Server, &Identity::default());
        let client = Identity { common_name: "source", ..Identity::default() };
        self.issue(&dir, Endpoint::Client, &client);
        dir
    }
}

/// Readable by its owner only, as a key should be.
fn write(file: &Path, contents: &str) {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut file| file.write_all(contents.as_bytes()))
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

impl Qemu {
    /// From now on every channel of a migration has TLS with the certificates in `dir`.
    #[track_caller]
    pub fn tls_x509(&mut self, dir: &Path, endpoint: Endpoint) {
        self.tls(json!({
            "qom-type": "tls-creds-x509", "dir": text(dir), "endpoint": endpoint.name(),
            "verify-peer": true,
        }));
    }

    /// The same, for a server that takes clients without a certificate.
    #[track_caller]
    pub fn tls_x509_of_anybody(&mut self, dir: &Path) {
        self.tls(json!({
            "qom-type": "tls-creds-x509", "dir": text(dir), "endpoint": "server",
            "verify-peer": false,
        }));
    }

    /// The same with the keys in `dir`/keys.psk; a client is `username`.
    #[track_caller]
    pub fn tls_psk(&mut self, dir: &Path, endpoint: Endpoint, username: Option<&str>) {
        let mut object = json!({
            "qom-type": "tls-creds-psk", "dir": text(dir), "endpoint": endpoint.name(),
        });
        if let Some(username) = username {
            object["username"] = username.into();
        }
        self.tls(object);
    }

    /// Adds the credentials, a QMP object but for its id, and uses them.
    #[track_caller]
    pub fn tls(&mut self, mut object: Value) {
        object["id"] = CREDENTIALS.into();
        let _ = self.qmp.run("object-add", object);
        self.set_parameters(json!({ "tls-creds": CREDENTIALS }));
    }

    /// The name that a source wants to find in its server's certificate, instead of the address's host.
    #[track_caller]
    pub fn tls_hostname(&mut self, name: &str) {
        self.set_parameters(json!({ "tls-hostname": name }));
    }

    /// A destination takes only clients that this object, but for its id, lets in.
    #[track_caller]
    pub fn tls_authz(&mut self, mut object: Value) {
        object["id"] = AUTHORIZATION.into();
        let _ = self.qmp.run("object-add", object);
        self.set_parameters(json!({ "tls-authz": AUTHORIZATION }));
    }
}
