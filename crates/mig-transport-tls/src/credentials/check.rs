//! What would fail in every handshake fails here, once, with the file's name: QEMU's `sanity-check`
//! (docs/wire/transports.md §5.2), and what rustls asks beyond it.
//!
//! ```text
//!   ca-cert.pem ──▶ each: a CA, may sign, valid now ──▶ Trust ──▶ verifiers for the other end
//!   X-cert.pem  ──▶ no CA, may sign handshakes, fit for X, valid now ──┐ chain to Trust
//!   X-key.pem   ──▶ readable, not encrypted, the certificate's ────────┴──▶ CertifiedKey
//! ```

use std::{path::Path, sync::Arc};

use mig_transport::Result;
use rustls::{
    CertificateError, InconsistentKeys, RootCertStore,
    client::{VerifierBuilderError, WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{
    certificate::{CertificateFacts, printable},
    directory::{Directory, PemFile, misuse, warn_if_others_may_write},
    provider,
    revocation::{self, CRL_FILE},
    time::{now, utc},
};

pub(super) const CA_FILE: &str = "ca-cert.pem";

/// Which end a pair of certificate and key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The source.
    Client,
    /// The destination.
    Server,
}

impl Purpose {
    pub(super) fn of_the_other_end(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    pub(super) fn certificate_file(self) -> &'static str {
        match self {
            Self::Client => "client-cert.pem",
            Self::Server => "server-cert.pem",
        }
    }

    fn key_file(self) -> &'static str {
        match self {
            Self::Client => "client-key.pem",
            Self::Server => "server-key.pem",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// The CAs of the directory, and what they have taken back.
pub(super) struct Trust {
    roots: Arc<RootCertStore>,
    crls: Vec<CertificateRevocationListDer<'static>>,
}

impl Trust {
    /// For the end that `purpose` names.
    pub(super) fn load(directory: &Directory, purpose: Purpose) -> Result<Self> {
        let file = directory.require(CA_FILE)?;
        let certificates = file.certificates()?;
        warn_if_others_may_write(file.path(), "put an authority of their own there");
        let mut roots = RootCertStore::empty();
        for (at, certificate) in certificates.iter().enumerate() {
            let place = Place { file: file.path(), at, of: certificates.len() };
            check_ca(&place, certificate)?;
            roots
                .add(certificate.clone())
                .map_err(|error| place.wrong(&error.to_string(), ANEW))?;
        }
        let crls = revocation::load(directory, &certificates, purpose)?;
        Ok(Self { roots: Arc::new(roots), crls })
    }

    /// For sources: checks a destination's certificate.
    pub(super) fn server_verifier(
        &self,
        directory: &Directory,
    ) -> Result<Arc<WebPkiServerVerifier>> {
        WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .with_crls(self.crls.iter().cloned())
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| unusable(directory, &error))
    }

    /// For destinations: checks a source's certificate, and lets none in without.
    pub(super) fn client_verifier(
        &self,
        directory: &Directory,
    ) -> Result<Arc<dyn ClientCertVerifier>> {
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .with_crls(self.crls.iter().cloned())
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| unusable(directory, &error))
    }
}

fn unusable(directory: &Directory, error: &VerifierBuilderError) -> mig_transport::Error {
    let (file, what) = match error {
        VerifierBuilderError::InvalidCrl(why) => {
            (CRL_FILE, rustls::Error::from(why.clone()).to_string())
        }
        other => (CA_FILE, other.to_string()),
    };
    misuse(format!("{}: cannot be used: {what}; {ANEW}", directory.file(file).display()))
}

pub(super) const ANEW: &str = "have the CA issue it anew";

/// A certificate of a file, for messages.
struct Place<'a> {
    file: &'a Path,
    at: usize,
    of: usize,
}

impl Place<'_> {
    fn wrong(&self, what: &str, remedy: &str) -> mig_transport::Error {
        let which = match self.of {
            1 => String::new(),
            of => format!(" certificate {} of {of}:", self.at + 1),
        };
        misuse(format!("{}:{which} {what}; {remedy}", self.file.display()))
    }

    fn parse<'c>(&self, certificate: &'c CertificateDer<'_>) -> Result<X509Certificate<'c>> {
        match X509Certificate::from_der(certificate) {
            Ok(([], parsed)) => Ok(parsed),
            Ok(_) => Err(self.wrong("bytes follow the certificate in its PEM section", ANEW)),
            Err(error) => Err(self.wrong(&format!("this is no X.509 certificate ({error})"), ANEW)),
        }
    }

    fn check_dates(&self, facts: &CertificateFacts) -> Result<()> {
        let (subject, validity) = (printable(&facts.subject.to_string()), facts.validity());
        let now = now();
        let today = utc(now);
        if now > facts.not_after {
            let what =
                format!("the certificate of {subject} has expired: {validity}, and now is {today}");
            Err(self.wrong(&what, "have the CA issue a new one, or set this machine's clock"))
        } else if now < facts.not_before {
            let what = format!(
                "the certificate of {subject} is not valid yet: {validity}, and now is {today}"
            );
            Err(self.wrong(&what, "wait, have the CA issue a new one, or set this machine's clock"))
        } else {
            Ok(())
        }
    }
}

fn check_ca(place: &Place<'_>, certificate: &CertificateDer<'_>) -> Result<()> {
    let parsed = place.parse(certificate)?;
    let facts = CertificateFacts::of_parsed(&parsed);
    let subject = printable(&facts.subject.to_string());
    let remedy = "put the CA's own certificate there (basic constraints CA:TRUE; with certtool: ca, cert_signing_key)";
    match parsed.basic_constraints() {
        Ok(Some(constraints)) if constraints.value.ca => {}
        Ok(Some(_)) => {
            return Err(
                place.wrong(&format!("the certificate of {subject} is not that of a CA"), remedy)
            );
        }
        Ok(None) => {
            let what = format!(
                "the certificate of {subject} does not say that it is a CA's (it has no basic constraints)"
            );
            return Err(place.wrong(&what, remedy));
        }
        Err(error) => {
            return Err(
                place.wrong(&format!("its basic constraints make no sense ({error})"), ANEW)
            );
        }
    }
    match parsed.key_usage() {
        Ok(Some(usage)) if !usage.value.key_cert_sign() => {
            let what = format!(
                "the key of {subject} may not sign certificates (key usage: {})",
                usage.value
            );
            return Err(place.wrong(&what, remedy));
        }
        Ok(_) => {}
        Err(error) => {
            return Err(place.wrong(&format!("its key usage makes no sense ({error})"), ANEW));
        }
    }
    place.check_dates(&facts)
}

/// The pair for one end, checked. `None` if neither file is there.
pub(super) fn load_pair(
    directory: &Directory,
    purpose: Purpose,
    trust: &Trust,
) -> Result<Option<CertifiedKey>> {
    let (certificate_file, key_file) = (purpose.certificate_file(), purpose.key_file());
    let file = match (directory.read(certificate_file)?, directory.has(key_file)) {
        (Some(file), _) => file,
        (None, true) => return Err(directory.missing(certificate_file)),
        (None, false) => return Ok(None),
    };
    let key = directory.require(key_file)?.private_key()?;
    let chain = file.certificates()?;
    check_leaf(&file, &chain, purpose)?;
    check_chain(directory, &file, &chain, purpose, trust)?;
    let key_path = directory.file(key_file);
    CertifiedKey::from_der(chain, key, &provider()).map(Some).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => misuse(format!(
            "{}: this is not the key of the certificate in {certificate_file}; take both from the same set",
            key_path.display()
        )),
        other => misuse(format!(
            "{}: the key cannot be used: {other}; make one of ECDSA P-256, P-384, Ed25519, or RSA of 2048 bits and more",
            key_path.display()
        )),
    })
}

fn check_leaf(file: &PemFile, chain: &[CertificateDer<'static>], purpose: Purpose) -> Result<()> {
    let place = Place { file: file.path(), at: 0, of: chain.len() };
    let parsed = place.parse(&chain[0])?;
    let facts = CertificateFacts::of_parsed(&parsed);
    let (subject, name) = (printable(&facts.subject.to_string()), purpose.name());
    if let Ok(Some(constraints)) = parsed.basic_constraints()
        && constraints.value.ca
    {
        let what = format!(
            "the certificate of {subject} is that of a CA, and a {name} needs one of its own"
        );
        return Err(place.wrong(&what, "have the CA issue a certificate without the CA flag"));
    }
    match parsed.key_usage() {
        Ok(Some(usage)) if !usage.value.digital_signature() => {
            let what = format!(
                "the key of {subject} may not sign handshakes (key usage: {})",
                usage.value
            );
            let remedy = "have it issued with digitalSignature (certtool: signing_key)";
            return Err(place.wrong(&what, remedy));
        }
        Ok(_) => {}
        Err(error) => {
            return Err(place.wrong(&format!("its key usage makes no sense ({error})"), ANEW));
        }
    }
    match parsed.extended_key_usage() {
        Ok(Some(usage)) => {
            let fits = match purpose {
                Purpose::Client => usage.value.client_auth,
                Purpose::Server => usage.value.server_auth,
            };
            if !fits && !usage.value.any {
                let what = format!(
                    "the certificate of {subject} is not for a TLS {name} (extended key usage)"
                );
                let remedy = format!("have it issued with {name}Auth (certtool: tls_www_{name})");
                return Err(place.wrong(&what, &remedy));
            }
        }
        Ok(None) => {}
        Err(error) => {
            return Err(
                place.wrong(&format!("its extended key usage makes no sense ({error})"), ANEW)
            );
        }
    }
    place.check_dates(&facts)?;
    if purpose == Purpose::Server && facts.host_names().is_empty() {
        tracing::warn!(
            "{}: the certificate of {subject} has {}: QEMU takes its common name, sources that \
             follow RFC 9525, such as mig, will refuse it; have it issued with one (certtool: dns_name, ip_address)",
            file.path().display(),
            facts.lack_of_host_names()
        );
    }
    Ok(())
}

/// By the verifier that the other end would use, with the same CAs: one directory a site is QEMU's layout.
fn check_chain(
    directory: &Directory,
    file: &PemFile,
    chain: &[CertificateDer<'static>],
    purpose: Purpose,
    trust: &Trust,
) -> Result<()> {
    let (leaf, intermediates) =
        chain.split_first().expect("a file without certificates was refused");
    let verdict = match purpose {
        Purpose::Client => trust
            .client_verifier(directory)?
            .verify_client_cert(leaf, intermediates, UnixTime::now())
            .map(drop),
        Purpose::Server => {
            // Which names it is for is the source's question; the chain is looked at before them.
            let any = ServerName::try_from("localhost").expect("a name");
            trust
                .server_verifier(directory)?
                .verify_server_cert(leaf, intermediates, &any, &[], UnixTime::now())
                .map(drop)
        }
    };
    let place = Place { file: file.path(), at: 0, of: chain.len() };
    let subject = CertificateFacts::of(leaf)
        .map_or_else(String::new, |facts| printable(&facts.subject.to_string()));
    let issuer = CertificateFacts::of(leaf)
        .map_or_else(String::new, |facts| printable(&facts.issuer.to_string()));
    match verdict {
        Ok(()) => Ok(()),
        Err(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => Ok(()),
        // What its purpose is was looked at; "any" is left, which GnuTLS takes.
        Err(rustls::Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        )) => Ok(()),
        Err(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)) => Err(place.wrong(
            &format!("the certificate of {subject} was issued by {issuer}, which no certificate in {CA_FILE} leads to"),
            "take both from the same CA, and put intermediate CAs after the certificate in this file",
        )),
        Err(rustls::Error::InvalidCertificate(CertificateError::BadSignature)) => Err(place.wrong(
            &format!("the certificate of {subject} was not signed by the {issuer} of {CA_FILE}"),
            "take both from the same CA; one that was made anew under the old name has another key",
        )),
        Err(rustls::Error::InvalidCertificate(CertificateError::Revoked)) => Err(place.wrong(
            &format!("the certificate of {subject} is revoked by {CRL_FILE}"),
            "have the CA issue a new one",
        )),
        Err(error @ rustls::Error::InvalidCertRevocationList(_)) => Err(misuse(format!(
            "{}: cannot be held against the certificate of {subject} in {}: {error}; {ANEW}",
            directory.file(CRL_FILE).display(),
            purpose.certificate_file()
        ))),
        Err(error) => Err(place.wrong(
            &format!("the certificate of {subject} does not hold against {CA_FILE}: {error}"),
            ANEW,
        )),
    }
}
