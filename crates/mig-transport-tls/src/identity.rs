//! Who is the same: what a handshake has proven about the other end, in the form in which two channels are compared.
//!
//! A certificate counts by its subject, its subject alternative names and the name of its issuer, and not by its bytes: one
//! that is renewed between two channels is the same source still, and one with an empty subject (SPIFFE has such) is not
//! everybody. Where several CAs are trusted, each names whom it likes, and a namesake of another CA is somebody else.

use mig_transport::Identity;
use x509_parser::{
    certificate::X509Certificate, oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME, prelude::FromDer,
};

use crate::session::engine::Peer;

/// `None` if nothing was asked of it.
pub(crate) fn proven(peer: &Peer) -> Option<Identity> {
    let (kind, form): (&[u8], Vec<u8>) = match peer {
        Peer::Anonymous => return None,
        Peer::Key(user) => (b"psk:", user.clone().into_bytes()),
        Peer::Certificate(der) => match X509Certificate::from_der(der) {
            // All are DER and tell their length, so that no two of them are the same bytes.
            Ok((_rest, parsed)) => {
                let (issuer, subject) = (parsed.issuer().as_raw(), parsed.subject().as_raw());
                (b"x509:", [issuer, subject, names(&parsed)].concat())
            }
            Err(_unreadable) => (b"der:", der.clone()),
        },
    };
    Some(Identity::proven([kind, &form].concat()))
}

/// As they are in the certificate, readable or not.
fn names<'a>(certificate: &X509Certificate<'a>) -> &'a [u8] {
    let mut extensions = certificate.extensions().iter();
    extensions
        .find(|extension| extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME)
        .map_or(&[], |extension| extension.value)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CertifiedIssuer, DistinguishedName, DnType, Issuer, KeyPair};

    use super::*;

    fn certificate(subject: &str, name: &str) -> Peer {
        issued(&authority("CA"), subject, name)
    }

    fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
        let key = KeyPair::generate().expect("a key");
        CertifiedIssuer::self_signed(crate::testing::ca_params(name), key).expect("a CA")
    }

    fn issued(by: &Issuer<'_, KeyPair>, subject: &str, name: &str) -> Peer {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name = DistinguishedName::new();
        if !subject.is_empty() {
            params.distinguished_name.push(DnType::CommonName, subject);
        }
        let key = KeyPair::generate().expect("a key");
        Peer::Certificate(params.signed_by(&key, by).expect("a certificate").der().to_vec())
    }

    #[test]
    fn a_renewed_certificate_is_the_same_and_another_name_is_not() {
        let one = proven(&certificate("one", "one.example"));
        assert!(one.is_some());
        assert_eq!(one, proven(&certificate("one", "one.example")), "other key, other serial");
        assert_ne!(one, proven(&certificate("two", "one.example")));
        assert_ne!(one, proven(&certificate("one", "two.example")));
        let nameless = |name| proven(&certificate("", name));
        assert_ne!(nameless("one.example"), nameless("two.example"));
    }

    #[test]
    fn a_namesake_of_another_authority_is_somebody_else() {
        let by = |name| proven(&issued(&authority(name), "one", "one.example"));
        assert_eq!(by("CA"), by("CA"));
        assert_ne!(by("CA"), by("another CA"));
    }

    #[test]
    fn a_user_of_a_key_is_who_has_it() {
        assert_eq!(proven(&Peer::Key("a".into())), proven(&Peer::Key("a".into())));
        assert_ne!(proven(&Peer::Key("a".into())), proven(&Peer::Key("b".into())));
        assert_eq!(proven(&Peer::Anonymous), None);
    }
}
