//! What the CAs have taken back: `ca-crl.pem`, held against the CAs before any certificate is held against it.
//!
//! ```text
//!   ca-cert.pem ────────────────┐
//!   this end's own chain ───────┴▶ CAs that may sign lists
//!                                        │ name, signature
//!   ca-crl.pem ──▶ list, list, … ────────┴▶ newest first ──▶ verifiers for the other end
//! ```
//!
//! A verifier skips a list that is by nobody whom it meets, and everybody whom the right list would refuse gets in. So a list
//! that is by no CA known here, or was not signed by it, is an error, and nothing starts.
//!
//! An intermediate CA may sign lists about what it issued. It is known if its certificate follows this end's own in
//! `server-cert.pem` or `client-cert.pem` and leads to `ca-cert.pem`. In `ca-cert.pem` it would be trusted for itself,
//! and its own revocation by the CA above would not count any more.
//!
//! Of several lists by one CA the newest that is about a certificate decides, wherever it is in the file. A CA without a list
//! has revoked nothing that is known here.

use std::cmp::Reverse;

use mig_transport::Result;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::{
    asn1_rs::{Any, BitString},
    certificate::X509Certificate,
    oid_registry::OID_X509_EXT_ISSUER_DISTRIBUTION_POINT,
    prelude::FromDer,
    revocation_list::CertificateRevocationList,
    x509::{SubjectPublicKeyInfo, X509Name},
};

use super::{
    certificate::printable,
    check::{ANEW, CA_FILE, Purpose},
    directory::{Directory, PemFile, misuse, warn_if_others_may_write},
    distinguished_name::DistinguishedName,
    provider,
    time::{now, utc},
};

pub(super) const CRL_FILE: &str = "ca-crl.pem";

/// The lists, each by one of `cas` or an intermediate of this end's own chain; none if there is no such file.
pub(super) fn load(
    directory: &Directory,
    cas: &[CertificateDer<'static>],
    purpose: Purpose,
) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let Some(file) = directory.read(CRL_FILE)? else { return Ok(Vec::new()) };
    warn_if_others_may_write(
        file.path(),
        "leave out of it whom they like, or put an older one there",
    );
    let chain = match directory.read(purpose.certificate_file())? {
        Some(own) => own.certificates()?,
        None => Vec::new(),
    };
    let signers = signers(cas, chain.get(1..).unwrap_or_default());
    let lists = file.revocation_lists()?;
    let mut dated = Vec::with_capacity(lists.len());
    for (at, list) in lists.iter().enumerate() {
        let place = Place { file: &file, at, of: lists.len(), purpose };
        let parsed = place.parse(list)?;
        place.check_signer(&parsed, &signers)?;
        place.remark(&parsed);
        dated.push((Reverse(parsed.last_update().timestamp()), list.clone()));
    }
    dated.sort_by_key(|(newest, _list)| *newest);
    Ok(dated.into_iter().map(|(_newest, list)| list).collect())
}

/// One that may have signed a list.
struct Signer<'a> {
    certificate: X509Certificate<'a>,
    /// It is in `ca-cert.pem`: what its certificate says of its key's usage does not bind it there.
    is_trusted: bool,
}

/// Those of `ca-cert.pem`, and of the intermediates those that lead to them.
fn signers<'a>(
    cas: &'a [CertificateDer<'_>],
    intermediates: &'a [CertificateDer<'_>],
) -> Vec<Signer<'a>> {
    let parsed = |der: &'a CertificateDer<'_>| X509Certificate::from_der(der).ok();
    let mut all: Vec<_> = cas
        .iter()
        .filter_map(parsed)
        .map(|(_rest, certificate)| Signer { certificate, is_trusted: true })
        .collect();
    // Whichever order they are in: each turn takes one over, or is the last.
    let mut left: Vec<_> =
        intermediates.iter().filter_map(|der| Some((der, parsed(der)?.1))).collect();
    let leads = |(der, one): &(&CertificateDer<'_>, X509Certificate<'_>), known: &[Signer<'_>]| {
        let above = known.iter().filter(|ca| ca.certificate.subject() == one.issuer());
        one.is_ca()
            && above.into_iter().any(|ca| {
                signed_by(ca.certificate.public_key(), der, &one.signature_value) == Signed::Well
            })
    };
    while let Some(at) = left.iter().position(|one| leads(one, &all)) {
        let (_der, certificate) = left.swap_remove(at);
        all.push(Signer { certificate, is_trusted: false });
    }
    all
}

/// A list of the file, for messages.
struct Place<'a> {
    file: &'a PemFile,
    at: usize,
    of: usize,
    purpose: Purpose,
}

impl Place<'_> {
    fn named(&self) -> String {
        match self.of {
            1 => self.file.path().display().to_string(),
            of => format!("{}: list {} of {of}", self.file.path().display(), self.at + 1),
        }
    }

    fn wrong(&self, what: &str, remedy: &str) -> mig_transport::Error {
        misuse(format!("{}: {what}; {remedy}", self.named()))
    }

    fn parse<'l>(
        &self,
        list: &'l CertificateRevocationListDer<'_>,
    ) -> Result<CertificateRevocationList<'l>> {
        match CertificateRevocationList::from_der(list) {
            Ok((_rest, parsed)) => Ok(parsed),
            Err(error) => Err(self.wrong(&format!("this is no revocation list ({error})"), ANEW)),
        }
    }

    fn check_signer(
        &self,
        list: &CertificateRevocationList<'_>,
        signers: &[Signer<'_>],
    ) -> Result<()> {
        let issuer = shown(list.issuer());
        let namesakes: Vec<_> =
            signers.iter().filter(|one| one.certificate.subject() == list.issuer()).collect();
        if namesakes.is_empty() {
            return Err(self.wrong(
                &format!("the revocation list of {issuer} revokes nothing here, as {CA_FILE} has no such CA"),
                &format!(
                    "put the list of a CA there that {CA_FILE} has; where {issuer} is an intermediate CA, add its certificate \
                     after this end's own in {}",
                    self.purpose.certificate_file()
                ),
            ));
        }
        let verdict = |one: &&Signer<'_>| {
            signed_by(one.certificate.public_key(), list.as_raw(), &list.signature_value)
        };
        let verdicts: Vec<_> = namesakes.iter().map(verdict).collect();
        let Some(at) = verdicts.iter().position(|verdict| *verdict == Signed::Well) else {
            let (what, remedy) = match verdicts.contains(&Signed::Badly) {
                true => (
                    "was not signed by the CA of that name that is known here",
                    "fetch that CA's own list; a CA made anew under its old name has another key",
                ),
                false => (
                    "is signed in a way that is not supported here",
                    "have the CA sign it with ECDSA, Ed25519 or RSA, and SHA-256 or more",
                ),
            };
            return Err(self.wrong(&format!("the revocation list of {issuer} {what}"), remedy));
        };
        let signer = namesakes[at];
        match signer.certificate.key_usage() {
            Ok(Some(usage)) if !signer.is_trusted && !usage.value.crl_sign() => Err(self.wrong(
                &format!(
                    "the key of {issuer} may not sign revocation lists (key usage: {})",
                    usage.value
                ),
                "have its certificate issued with cRLSign (certtool: crl_signing_key)",
            )),
            _ => Ok(()),
        }
    }

    /// What will not fail, and is less than one may think.
    fn remark(&self, list: &CertificateRevocationList<'_>) {
        if let Some(next) = list.next_update().map(|next| next.timestamp())
            && next < now()
        {
            tracing::warn!(
                "{}: the revocation list should have been replaced by {}; what it revokes stays refused, what was revoked \
                 since is not known here: fetch the CA's new one",
                self.named(),
                utc(next)
            );
        }
        let mut extensions = list.extensions().iter();
        if extensions.any(|extension| extension.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT) {
            tracing::warn!(
                "{}: the revocation list of {} is about a part of its certificates only (issuing distribution point); of the \
                 others none is known to be revoked: fetch the list that is about all of them",
                self.named(),
                shown(list.issuer())
            );
        }
    }
}

fn shown(name: &X509Name<'_>) -> String {
    printable(&DistinguishedName::of(name).to_string())
}

/// What became of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signed {
    Well,
    Badly,
    /// No algorithm here goes with this kind of key and signature.
    Unknown,
}

/// Whether `key` signed `whole`, a certificate or a list, by the algorithms that handshakes take.
fn signed_by(key: &SubjectPublicKeyInfo<'_>, whole: &[u8], signature: &BitString<'_>) -> Signed {
    let Some((data, algorithm)) = parts(whole) else { return Signed::Badly };
    let Some((_whole, key_algorithm, _rest)) =
        element(key.raw).and_then(|(_whole, inside, _rest)| element(inside))
    else {
        return Signed::Badly;
    };
    let algorithms = provider().signature_verification_algorithms.all;
    let mut fitting = algorithms.iter().filter(|one| {
        one.signature_alg_id().as_ref() == algorithm
            && one.public_key_alg_id().as_ref() == key_algorithm
    });
    let mut verdict = Signed::Unknown;
    let bits = &key.subject_public_key.data;
    if fitting.any(|one| {
        verdict = Signed::Badly;
        one.verify_signature(bits, data, &signature.data).is_ok()
    }) {
        return Signed::Well;
    }
    verdict
}

/// ```text
///   SEQUENCE { what is signed, SEQUENCE { algorithm }, BIT STRING }        RFC 5280 §4.1, §5.1
///              └── whole ───┘             └ inside ┘
/// ```
fn parts(whole: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_whole, inside, _rest) = element(whole)?;
    let (data, _inside, rest) = element(inside)?;
    let (_whole, algorithm, _rest) = element(rest)?;
    Some((data, algorithm))
}

/// The first element in DER: all of it, what is in it, and what follows it.
fn element(der: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (rest, any) = Any::from_der(der).ok()?;
    Some((&der[..der.len() - rest.len()], any.data, rest))
}

#[cfg(test)]
mod tests;
