//! Whose revocation lists count. That a list of somebody else is refused is among the mistakes in
//! `credentials::tests`.

use mig_transport::{Blame, Error};
use rcgen::{
    CertificateParams, CertifiedIssuer, CrlDistributionPoint, CrlIssuingDistributionPoint, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::UnixTime;

use crate::{
    credentials::{ServerCredentials, ServerKind},
    testing::{
        Site, ca_params, client_params, key, revocation_params, revocations, server_params,
        warnings,
    },
};

/// An authority between the CA of `site` and whom it issues to.
fn intermediate(site: &Site, params: CertificateParams) -> CertifiedIssuer<'static, KeyPair> {
    CertifiedIssuer::signed_by(params, key(), &site.ca).expect("a CA")
}

/// The server's certificate is by `middle`, whose own follows it.
fn below(site: &Site, middle: &CertifiedIssuer<'static, KeyPair>) {
    let pair = key();
    let certificate = server_params(&["localhost"]).signed_by(&pair, middle).expect("signed");
    site.write("server-cert.pem", format!("{}{}", certificate.pem(), middle.pem()));
    site.write("server-key.pem", pair.serialize_pem());
}

fn load(site: &Site) -> Result<ServerCredentials, Error> {
    ServerCredentials::x509(site.path(), true)
}

fn refusal(site: &Site) -> String {
    let error = load(site).expect_err("refused");
    assert_eq!(error.blame(), Blame::Misuse);
    site.told(&error)
}

/// Whether a source with this number, by `issuer`, is let in.
fn lets_in(site: &Site, issuer: &CertifiedIssuer<'static, KeyPair>, serial: u64) -> bool {
    let mut params = client_params("src1");
    params.serial_number = Some(serial.into());
    let certificate = params.signed_by(&key(), issuer).expect("a certificate");
    let chain = match issuer.pem() == site.ca.pem() {
        true => Vec::new(),
        false => vec![issuer.der().clone()],
    };
    let credentials = load(site).expect("a server");
    let verifier = match credentials.kind() {
        ServerKind::X509(x509) => x509.verifier.as_ref().expect("it asks"),
        #[cfg(feature = "tls-psk")]
        ServerKind::Psk(_) => panic!("not certificates"),
    };
    verifier.verify_client_cert(certificate.der(), &chain, UnixTime::now()).is_ok()
}

#[test]
fn an_intermediates_list_counts_where_its_certificate_is_known() {
    let site = Site::complete();
    let middle = intermediate(&site, ca_params("Middle CA"));
    let list = revocations(&middle, 7, 2020, 2110);
    site.write("ca-crl.pem", &list);
    assert_eq!(
        refusal(&site),
        "DIR/ca-crl.pem: the revocation list of O=Example,CN=Middle CA revokes nothing here, as ca-cert.pem has no such CA; \
         put the list of a CA there that ca-cert.pem has; where O=Example,CN=Middle CA is an intermediate CA, add its \
         certificate after this end's own in server-cert.pem"
    );
    below(&site, &middle);
    assert!(lets_in(&site, &middle, 8));
    assert!(!lets_in(&site, &middle, 7));
    assert!(lets_in(&site, &site.ca, 7), "a list is about what its own CA issued");

    // Both, in whichever order.
    let root = revocations(&site.ca, 9, 2020, 2110);
    for lists in [[list.as_str(), &root], [&root, &list]] {
        site.write("ca-crl.pem", lists.concat());
        assert!(!lets_in(&site, &middle, 7));
        assert!(!lets_in(&site, &site.ca, 9));
        assert!(lets_in(&site, &site.ca, 7));
    }
}

#[test]
fn an_intermediate_that_leads_to_no_ca_or_may_not_sign_lists_signs_none() {
    let site = Site::complete();
    let other = Site::with_ca(ca_params("Other CA"));
    let stray = intermediate(&other, ca_params("Stray CA"));
    let own = site.read("server-cert.pem");
    site.write("server-cert.pem", format!("{own}{}", stray.pem()));
    site.write("ca-crl.pem", revocations(&stray, 7, 2020, 2110));
    assert!(refusal(&site).contains("CN=Stray CA revokes nothing here"), "{}", refusal(&site));

    let site = Site::complete();
    let mut params = ca_params("Middle CA");
    let list = {
        // rcgen signs only what may be signed.
        let able = intermediate(&site, params.clone());
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::from_pem(&able.key().serialize_pem()).expect("the same key");
        let unable = CertifiedIssuer::signed_by(params, key, &site.ca).expect("a CA");
        below(&site, &unable);
        revocations(&able, 7, 2020, 2110)
    };
    site.write("ca-crl.pem", list);
    assert_eq!(
        refusal(&site),
        "DIR/ca-crl.pem: the key of O=Example,CN=Middle CA may not sign revocation lists (key usage: Key Cert Sign); have its \
         certificate issued with cRLSign (certtool: crl_signing_key)"
    );
}

/// certtool's template of QEMU's manual has `cert_signing_key` and no `crl_signing_key`; who is trusted is trusted.
#[test]
fn a_trusted_ca_may_sign_lists_whatever_its_key_is_said_to_be_for() {
    let mut params = ca_params("Test CA");
    let key = key();
    let able = CertifiedIssuer::self_signed(params.clone(), &key).expect("a CA");
    let list = revocation_params(7, 2020, 2110).signed_by(&able).expect("a list");
    let list = list.pem().expect("PEM");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let mut site = Site::new();
    site.ca = CertifiedIssuer::self_signed(
        params,
        KeyPair::from_pem(&key.serialize_pem()).expect("the same key"),
    )
    .expect("a CA");
    site.write("ca-cert.pem", site.ca.pem());
    site.issue("server", server_params(&["localhost"]));
    site.write("ca-crl.pem", list);
    assert!(!lets_in(&site, &site.ca, 7));
    assert!(lets_in(&site, &site.ca, 8));
}

/// A new list that was appended to the old one counts, and the old one does not hide it.
#[test]
fn the_newest_list_counts_wherever_it_is() {
    let site = Site::complete();
    let (old, new) = (revocations(&site.ca, 7, 2020, 2110), revocations(&site.ca, 8, 2021, 2110));
    for lists in [[&old, &new], [&new, &old]] {
        site.write("ca-crl.pem", [lists[0].as_str(), lists[1]].concat());
        assert!(!lets_in(&site, &site.ca, 8));
    }
}

#[test]
fn a_changed_list_is_blamed_and_not_the_certificate() {
    let site = Site::complete();
    let mut list = revocations(&site.ca, 7, 2020, 2110);
    // In the signature, which is the last of it.
    let at = list.find("\n-----END").expect("PEM") - 8;
    let other = if &list[at..=at] == "A" { "B" } else { "A" };
    list.replace_range(at..=at, other);
    site.write("ca-crl.pem", list);
    assert_eq!(
        refusal(&site),
        "DIR/ca-crl.pem: the revocation list of O=Example,CN=Test CA was not signed by the CA of that name that is known here; \
         fetch that CA's own list; a CA made anew under its old name has another key"
    );
}

#[test]
fn a_list_that_is_about_a_part_only_is_warned_about() {
    let site = Site::complete();
    let mut params = revocation_params(7, 2020, 2110);
    params.issuing_distribution_point = Some(CrlIssuingDistributionPoint {
        distribution_point: CrlDistributionPoint { uris: vec!["http://ca.example/1".into()] },
        scope: None,
    });
    site.write("ca-crl.pem", params.signed_by(&site.ca).expect("a list").pem().expect("PEM"));
    let told = warnings(|| drop(load(&site).expect("a server")));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("is about a part of its certificates only"), "{told:?}");
}
