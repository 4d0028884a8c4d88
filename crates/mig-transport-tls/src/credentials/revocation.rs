//! What the CAs have taken back: `ca-crl.pem`, held against the CAs before any certificate is held against it.
//!
//! ```text
//!   ca-cert.pem ─────────────────────────────────────┐
//!   what follows in client-cert.pem, server-cert.pem ┴▶ CAs that may sign lists
//!                                        │ name, signature
//!   ca-crl.pem ──▶ list, list, … ────────┴▶ newest first ──▶ verifiers for the other end
//! ```
//!
//! A verifier skips a list that is by nobody whom it meets, and everybody whom the right list would refuse gets in. So a list
//! that is by no CA known here, or was not signed by it, is an error, and nothing starts.
//!
//! An intermediate CA may sign lists about what it issued. It is known if its certificate follows an end's own in
//! `server-cert.pem` or `client-cert.pem`, whichever end this is, and leads to `ca-cert.pem`. In `ca-cert.pem` it would be
//! trusted for itself, and its own revocation by the CA above would not count any more.
//!
//! Of several lists by one CA the newest decides, wherever it is in the file, and no other is asked. So each must be about
//! everything that its CA issued: one about a part (issuing distribution point) would hide those about the rest, and is an error.
//! A verifier finds the list by its CA's name, so where two CAs known here share that name and not the key, as after a CA
//! was made anew, one's certificates would be held against the other's list; that is an error too. A CA without a list has
//! revoked nothing that is known here.

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
    let known = Intermediates::read(directory, purpose)?;
    let signers = signers(cas, &known.certificates);
    let lists = file.revocation_lists()?;
    let mut dated = Vec::with_capacity(lists.len());
    for (at, list) in lists.iter().enumerate() {
        let place = Place { file: &file, at, of: lists.len(), known: &known };
        let parsed = place.parse(list)?;
        place.check_signer(&parsed, &signers)?;
        place.check_scope(&parsed)?;
        place.remark(&parsed);
        dated.push((Reverse(parsed.last_update().timestamp()), list.clone()));
    }
    dated.sort_by_key(|(newest, _list)| *newest);
    Ok(dated.into_iter().map(|(_newest, list)| list).collect())
}

/// What follows the ends' own certificates in their files.
struct Intermediates {
    certificates: Vec<CertificateDer<'static>>,
    /// The file that one more can be added to: this end's own, or the other's where this end has none.
    file: Option<&'static str>,
}

impl Intermediates {
    /// The other end's file need not be readable for this end: what is not known of it only makes a list an error.
    fn read(directory: &Directory, purpose: Purpose) -> Result<Self> {
        let (name, other_name) =
            (purpose.certificate_file(), purpose.of_the_other_end().certificate_file());
        let own = directory.read(name)?.map(|file| file.certificates()).transpose()?;
        let other = directory.read(other_name).ok().flatten();
        let other = other.and_then(|file| file.certificates().ok());
        let file = match (&own, &other) {
            (Some(_), _) => Some(name),
            (None, Some(_)) => Some(other_name),
            (None, None) => None,
        };
        let chains = [own, other].into_iter().flatten();
        Ok(Self {
            certificates: chains.flat_map(|chain| chain.into_iter().skip(1)).collect(),
            file,
        })
    }

    /// How `issuer`, whose list is there, becomes known.
    fn how_to_add(&self, issuer: &str) -> String {
        match self.file {
            Some(file) => format!(
                "where {issuer} is an intermediate CA, add its certificate after the end's own in {file}"
            ),
            None => format!(
                "where {issuer} is an intermediate CA, this directory has neither client-cert.pem nor server-cert.pem for its \
                 certificate to follow in: leave its list out, or add its certificate to {CA_FILE}, which trusts it whatever \
                 the CA above it revokes"
            ),
        }
    }
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
    known: &'a Intermediates,
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
                    "put the list of a CA there that {CA_FILE} has; {}",
                    self.known.how_to_add(&issuer)
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
        let key = |one: &Signer<'_>| one.certificate.public_key().raw.to_vec();
        if namesakes.iter().any(|one| key(one) != key(signer)) {
            return Err(self.wrong(
                &format!(
                    "the revocation list of {issuer} was signed by one of several CAs of that name that are known here, with \
                     different keys; which of them issued a certificate cannot be told by its name, and good ones of the others \
                     would be refused"
                ),
                &format!(
                    "leave only the CA of that name whose list this is in {CA_FILE} and after the ends' own certificates, or \
                     give a CA that is made anew a new name"
                ),
            ));
        }
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

    /// The verifier asks one list and no other. What one that is about a part does not have counts as not revoked, though
    /// another list had it.
    fn check_scope(&self, list: &CertificateRevocationList<'_>) -> Result<()> {
        let mut extensions = list.extensions().iter();
        if !extensions.any(|extension| extension.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT) {
            return Ok(());
        }
        Err(self.wrong(
            &format!(
                "the revocation list of {} is about a part of its certificates only (issuing distribution point), and would let \
                 in what another list revokes",
                shown(list.issuer())
            ),
            "put the CA's list there that is about all its certificates (one without that extension)",
        ))
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
