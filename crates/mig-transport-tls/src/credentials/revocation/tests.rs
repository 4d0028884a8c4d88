//! Whose revocation lists count. That a list of somebody else is refused is among the mistakes in
//! `credentials::tests`.

use mig_transport::{Blame, Error};
use rcgen::{
    CertificateParams, CertifiedIssuer, CrlDistributionPoint, CrlIssuingDistributionPoint,
    CrlScope, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::UnixTime;

use crate::{
    credentials::{ClientCredentials, ServerCredentials, ServerKind},
    testing::{Site, ca_params, client_params, key, revocation_params, revocations, server_params},
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
         certificate after the end's own in server-cert.pem"
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

/// A verifier asks the newest list whose part may be meant, and no other: what that one does not have would be let in.
#[test]
fn a_list_that_is_about_a_part_only_is_refused_whatever_is_beside_it() {
    let site = Site::complete();
    let part = |scope, this_update| {
        let mut params = revocation_params(8, this_update, 2110);
        params.issuing_distribution_point = Some(CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint { uris: vec!["http://ca.example/1".into()] },
            scope,
        });
        params.signed_by(&site.ca).expect("a list").pem().expect("PEM")
    };
    site.write("ca-crl.pem", part(None, 2021));
    assert_eq!(
        refusal(&site),
        "DIR/ca-crl.pem: the revocation list of O=Example,CN=Test CA is about a part of its certificates only (issuing distribution \
         point), and would let in what another list revokes; put the CA's list there that is about all its certificates (one \
         without that extension)"
    );
    let whole = revocations(&site.ca, 7, 2020, 2110);
    for scope in [None, Some(CrlScope::UserCertsOnly), Some(CrlScope::CaCertsOnly)] {
        for this_update in [2019, 2021] {
            let part = part(scope, this_update);
            for (at, lists) in [(1, [&part, &whole]), (2, [&whole, &part]), (1, [&part, &part])] {
                site.write("ca-crl.pem", [lists[0].as_str(), lists[1]].concat());
                let told = refusal(&site);
                let which = format!("DIR/ca-crl.pem: list {at} of 2: ");
                assert!(told.starts_with(&which) && told.contains("is about a part"), "{told}");
            }
        }
    }
    site.write("ca-crl.pem", whole);
    assert!(!lets_in(&site, &site.ca, 7));
}

/// The verifier would hold one's certificates against the other's list.
#[test]
fn a_list_of_one_of_two_cas_of_a_name_is_refused() {
    let mut site = Site::complete();
    let anew = CertifiedIssuer::self_signed(ca_params("Test CA"), key()).expect("a CA");
    let lists = [revocations(&site.ca, 7, 2020, 2110), revocations(&anew, 7, 2021, 2110)];
    let both = format!("{}{}", site.ca.pem(), anew.pem());
    site.write("ca-cert.pem", &both);
    assert!(lets_in(&site, &site.ca, 7) && lets_in(&site, &anew, 7), "no list, nothing revoked");
    site.write("ca-crl.pem", &lists[0]);
    assert_eq!(
        refusal(&site),
        "DIR/ca-crl.pem: the revocation list of O=Example,CN=Test CA was signed by one of several CAs of that name that are known \
         here, with different keys; which of them issued a certificate cannot be told by its name, and good ones of the others \
         would be refused; leave only the CA of that name whose list this is in ca-cert.pem and after the ends' own \
         certificates, or give a CA that is made anew a new name"
    );
    for lists in [lists[1].clone(), lists.concat()] {
        site.write("ca-crl.pem", lists);
        assert!(refusal(&site).contains("with different keys"), "{}", refusal(&site));
    }
    // What the text advises.
    site.write("ca-cert.pem", anew.pem());
    site.write("ca-crl.pem", &lists[1]);
    site.ca = anew;
    site.issue("server", server_params(&["localhost"]));
    assert!(!lets_in(&site, &site.ca, 7));
    assert!(lets_in(&site, &site.ca, 8));
}

#[test]
fn a_ca_whose_certificate_was_renewed_with_its_key_is_one_ca() {
    let site = Site::complete();
    let same = KeyPair::from_pem(&site.ca.key().serialize_pem()).expect("the same key");
    let mut params = ca_params("Test CA");
    params.serial_number = Some(99_u64.into());
    let renewed = CertifiedIssuer::self_signed(params, same).expect("a CA");
    assert_ne!(renewed.pem(), site.ca.pem());
    site.write("ca-cert.pem", format!("{}{}", site.ca.pem(), renewed.pem()));
    site.revoke(7, 2110);
    assert!(!lets_in(&site, &site.ca, 7));
    assert!(lets_in(&site, &site.ca, 8));
}

#[test]
fn a_source_without_a_certificate_takes_an_intermediates_list_too() {
    let site = Site::new();
    let middle = intermediate(&site, ca_params("Middle CA"));
    site.write("ca-crl.pem", revocations(&middle, 7, 2020, 2110));
    let client = || ClientCredentials::x509(site.path());
    let refusal = || site.told(&client().expect_err("refused"));
    assert_eq!(
        refusal(),
        "DIR/ca-crl.pem: the revocation list of O=Example,CN=Middle CA revokes nothing here, as ca-cert.pem has no such CA; \
         put the list of a CA there that ca-cert.pem has; where O=Example,CN=Middle CA is an intermediate CA, this directory \
         has neither client-cert.pem nor server-cert.pem for its certificate to follow in: leave its list out, or add its \
         certificate to ca-cert.pem, which trusts it whatever the CA above it revokes"
    );
    site.issue("server", server_params(&["localhost"]));
    assert!(refusal().ends_with("add its certificate after the end's own in server-cert.pem"));
    below(&site, &middle);
    assert!(!client().expect("a client").has_certificate());
    // One of its own does not hide what the other file has.
    site.issue("client", client_params("src1"));
    assert!(client().expect("a client").has_certificate());

    // The other end's file may be anything, and is no reason by itself.
    site.write("server-cert.pem", "nothing that makes sense");
    assert!(refusal().ends_with("add its certificate after the end's own in client-cert.pem"));
    site.revoke(7, 2110);
    client().expect("a client");

    // What the text advises.
    let alone = Site::new();
    let middle = intermediate(&alone, ca_params("Middle CA"));
    alone.write("ca-crl.pem", revocations(&middle, 7, 2020, 2110));
    alone.write("ca-cert.pem", format!("{}{}", alone.ca.pem(), middle.pem()));
    ClientCredentials::x509(alone.path()).expect("a client");
}
