//! Real handshakes between two ends in memory that must fail, and what each end says about it.

use std::fmt::Write as _;

use mig_transport::{Error, MigrationAddress};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, date_time_ymd};
use rustls::{ClientConnection, Connection, ServerConnection};

use super::Explainer;
use crate::{
    credentials::{ClientCredentials, ClientKind, ExpectedName, ServerCredentials, ServerKind},
    testing::{Site, ca_params, client_params, server_params},
};

/// Both ends of one connection.
struct Pair {
    source: (Explainer, Connection),
    destination: (Explainer, Connection),
}

impl Pair {
    fn new(
        client: &Site,
        server: &Site,
        verify_peer: bool,
        uri: &str,
        hostname: Option<&str>,
    ) -> Self {
        let address = MigrationAddress::parse(uri).expect("an address").into_address();
        let expected = ExpectedName::of(&address, hostname).expect("a name");
        let credentials = ClientCredentials::x509(client.path()).expect("a client's");
        let source = Explainer::source(&credentials, &expected, "tcp:there");
        let config = match credentials.kind() {
            ClientKind::X509(x509) => x509.rustls(source.witness()),
            #[cfg(feature = "tls-psk")]
            ClientKind::Psk(_) => panic!("not certificates"),
        };
        let connection = ClientConnection::new(config, expected.rustls().expect("a name"))
            .expect("a connection");
        let source = (source, connection.into());
        let credentials = ServerCredentials::x509(server.path(), verify_peer).expect("a server's");
        let destination = Explainer::destination(&credentials, "tcp:here");
        let config = match credentials.kind() {
            ServerKind::X509(x509) => x509.rustls(destination.witness()),
            #[cfg(feature = "tls-psk")]
            ServerKind::Psk(_) => panic!("not certificates"),
        };
        let connection = ServerConnection::new(config).expect("a connection");
        Self { source, destination: (destination, connection.into()) }
    }

    /// What each end says once nothing moves any more; the first to fail first, if they are two.
    fn shake(mut self) -> [Option<Error>; 2] {
        let mut said = [None, None];
        loop {
            let moved = carry(&mut self.source.1, &mut self.destination, &mut said[1])
                + carry(&mut self.destination.1, &mut self.source, &mut said[0]);
            if moved == 0 {
                return said;
            }
        }
    }
}

/// Takes what one end has to say to the other.
fn carry(
    from: &mut Connection,
    to: &mut (Explainer, Connection),
    said: &mut Option<Error>,
) -> usize {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).expect("a Vec takes everything");
    }
    if said.is_some() {
        return 0;
    }
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        to.1.read_tls(&mut rest).expect("a slice gives everything");
        if let Err(error) = to.1.process_new_packets() {
            *said = Some(to.0.failed(&error));
            break;
        }
    }
    bytes.len()
}

/// Fails at both ends, and both texts.
fn told(name: &str, client: &Site, server: &Site, uri: &str, hostname: Option<&str>) -> String {
    let mut out = format!("{name}:\n");
    let said = Pair::new(client, server, true, uri, hostname).shake();
    for (end, site, error) in [("source", client, &said[0]), ("destination", server, &said[1])] {
        let text = match error {
            Some(error) => {
                let text = dated(error.to_string());
                let text = text.replace(&site.path().display().to_string(), "DIR");
                format!("{:?}: {text}", error.blame())
            }
            None => "nothing".into(),
        };
        writeln!(out, "  {end}: {text}").expect("a String");
    }
    out.push('\n');
    out
}

fn dated(text: String) -> String {
    match text.split_once("now is ") {
        Some((before, after)) => {
            let rest = after.split_once(" UTC").map_or("", |(_now, rest)| rest);
            format!("{before}now is TODAY{rest}")
        }
        None => text,
    }
}

fn with(
    mut params: CertificateParams,
    change: impl FnOnce(&mut CertificateParams),
) -> CertificateParams {
    change(&mut params);
    params
}

/// A set whose NAME pair is `params`, made so that its own end's checks cannot see what is wrong: the other end has the
/// same CA in a set of its own.
fn two(server: CertificateParams, client: CertificateParams) -> (Site, Site) {
    let destination = Site::new();
    destination.issue("server", server);
    destination.issue("client", client);
    let source = Site::new();
    for name in ["ca-cert.pem", "client-cert.pem", "client-key.pem"] {
        source.write(name, destination.read(name));
    }
    (source, destination)
}

#[test]
fn a_good_pair_agrees() {
    let site = Site::complete();
    for uri in ["tcp:localhost:4444", "tcp:LOCALHOST:4444"] {
        let said = Pair::new(&site, &site, true, uri, None).shake();
        assert!(said.iter().all(Option::is_none), "{said:?}");
    }
    let by_address = Site::new();
    by_address.issue("server", server_params(&["192.0.2.7", "2001:db8::7"]));
    by_address.issue("client", client_params("src1"));
    for uri in ["tcp:192.0.2.7:4444", "tcp:[2001:db8::7]:4444", "tcp:[2001:db8::7%lo]:4444"] {
        let said = Pair::new(&by_address, &by_address, true, uri, None).shake();
        assert!(said.iter().all(Option::is_none), "{uri}: {said:?}");
    }
    let said = Pair::new(&by_address, &by_address, true, "unix:/x", Some("192.0.2.7")).shake();
    assert!(said.iter().all(Option::is_none), "{said:?}");
}

#[test]
fn without_verify_peer_a_source_needs_no_certificate() {
    let (source, destination) = two(server_params(&["localhost"]), client_params("src1"));
    std::fs::remove_file(source.path().join("client-cert.pem")).expect("removed");
    std::fs::remove_file(source.path().join("client-key.pem")).expect("removed");
    let said = Pair::new(&source, &destination, false, "tcp:localhost:1", None).shake();
    assert!(said.iter().all(Option::is_none), "{said:?}");
}

#[test]
fn whose_certificate_does_not_fit_and_why() {
    let mut all = String::new();
    let client = || client_params("src1");

    let (source, destination) = two(server_params(&["dst1.example", "192.0.2.7"]), client());
    all += &told("another name", &source, &destination, "tcp:dst2.example:1", None);
    all += &told("another address", &source, &destination, "tcp:192.0.2.8:1", None);
    all += &told("another override", &source, &destination, "tcp:dst1.example:1", Some("dst3"));
    let (source, destination) = two(server_params(&[]), client());
    all += &told("no SAN", &source, &destination, "tcp:dst1:1", None);
    let (source, destination) = two(
        with(server_params(&[]), |params| {
            let uri = "spiffe://x/y".try_into().expect("a URI");
            params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
        }),
        client(),
    );
    all += &told("a SAN that is no host's", &source, &destination, "tcp:dst1:1", None);
    let (source, destination) = two(server_params(&[]), client());
    all += &told("no SAN, an address wanted", &source, &destination, "tcp:192.0.2.7:1", None);

    let stranger = Site::with_ca(ca_params("Other CA"));
    stranger.issue("server", server_params(&["localhost"]));
    stranger.issue("client", client());
    let site = Site::complete();
    all += &told("the destination has another CA", &site, &stranger, "tcp:localhost:1", None);
    // The source knows both CAs, so it is the destination that refuses.
    let both = Site::new();
    both.write(
        "ca-cert.pem",
        format!("{}{}", stranger.read("ca-cert.pem"), site.read("ca-cert.pem")),
    );
    for name in ["client-cert.pem", "client-key.pem"] {
        both.write(name, stranger.read(name));
    }
    all += &told("the source has another CA", &both, &site, "tcp:localhost:1", None);
    let namesake = Site::complete();
    all += &told("a CA made anew under its name", &namesake, &site, "tcp:localhost:1", None);

    let (source, destination) = two(
        with(server_params(&["localhost"]), |params| params.serial_number = Some(0x77_u64.into())),
        with(client(), |params| params.serial_number = Some(0x78_u64.into())),
    );
    destination.revoke(0x78, 2110);
    all += &told("the source is revoked", &source, &destination, "tcp:localhost:1", None);
    std::fs::remove_file(destination.path().join("ca-crl.pem")).expect("removed");
    destination.revoke(0x77, 2110);
    source.write("ca-crl.pem", destination.read("ca-crl.pem"));
    std::fs::remove_file(destination.path().join("ca-crl.pem")).expect("removed");
    all += &told("the destination is revoked", &source, &destination, "tcp:localhost:1", None);

    let (source, destination) = two(server_params(&["localhost"]), client());
    for name in ["client-cert.pem", "client-key.pem"] {
        std::fs::remove_file(source.path().join(name)).expect("removed");
    }
    all += &told("the source has no certificate", &source, &destination, "tcp:localhost:1", None);

    // anyExtendedKeyUsage pleases GnuTLS, so it is let pass at load; rustls at the other end wants the word itself.
    let any = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]
    };
    let (source, destination) = two(with(server_params(&["localhost"]), any), client());
    all +=
        &told("for any purpose, the destination's", &source, &destination, "tcp:localhost:1", None);
    insta::assert_snapshot!(all);
}

/// A certificate that ends while its owner runs: credentials are checked when they are read, handshakes come later.
#[test]
fn a_certificate_may_expire_after_it_was_read() {
    let site = Site::complete();
    let pair = Pair::new(&site, &site, true, "tcp:localhost:1", None);
    let expired =
        with(server_params(&["localhost"]), |params| params.not_after = date_time_ymd(2021, 1, 1));
    let old = expired.signed_by(&crate::testing::key(), &site.ca).expect("a certificate");
    let time = rustls::pki_types::UnixTime::now();
    let not_after = rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        1_609_459_200,
    ));
    pair.source.0.witness().keep(old.der());
    let error = rustls::CertificateError::ExpiredContext { time, not_after };
    let text = dated(pair.source.0.failed(&error.into()).to_string());
    assert_eq!(
        text,
        "tcp:there: the destination's certificate (O=Example,CN=dst1 (dns:localhost)) has expired: valid from 2020-01-01 \
         00:00:00 UTC to 2021-01-01 00:00:00 UTC, and now is TODAY; have the CA issue a new one, or set this machine's clock"
    );
}

#[test]
fn who_does_not_speak_tls_is_told_apart() {
    let site = Site::complete();
    let pair = Pair::new(&site, &site, true, "tcp:localhost:1", None);
    let mut all = String::new();
    for first in [
        &b"QEVM\0\0\0\x03"[..],
        &[0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1],
        b"GET / HTTP/1.1",
        b"\x16\x01",
        b"Q",
    ] {
        let error = pair.destination.0.not_tls(first).expect("no TLS");
        writeln!(all, "{:?}: {error}", error.blame()).expect("a String");
    }
    let error = pair.source.0.not_tls(b"QEVM").expect("no TLS");
    writeln!(all, "{:?}: {error}", error.blame()).expect("a String");
    for explainer in [&pair.source.0, &pair.destination.0] {
        for first in [&[][..], &[0x16], &[0x16, 3, 1], &[0x15, 3, 3, 0, 2], &[0x14], &[0x17, 3]] {
            assert!(explainer.not_tls(first).is_none(), "{first:x?}");
        }
        for spoke in [false, true] {
            let error = explainer.ended(spoke);
            writeln!(all, "{:?}: {error}", error.blame()).expect("a String");
        }
        writeln!(all, "hint: {}", explainer.hung_up_hint()).expect("a String");
    }
    insta::assert_snapshot!(all);
}

/// Those that rustls itself never sends come from GnuTLS and OpenSSL.
#[test]
fn every_alert_is_put_into_words() {
    use rustls::AlertDescription as A;

    let site = Site::complete();
    let pair = Pair::new(&site, &site, true, "tcp:localhost:1", None);
    let bare = Site::new();
    let mut all = String::new();
    let mut tell = |explainer: &Explainer, site: &Site, alert| {
        let error = explainer.failed(&rustls::Error::AlertReceived(alert));
        writeln!(all, "{:?}: {}", error.blame(), site.told(&error)).expect("a String");
    };
    for alert in [
        A::HandshakeFailure,
        A::BadCertificate,
        A::UnsupportedCertificate,
        A::CertificateRevoked,
        A::CertificateExpired,
        A::CertificateUnknown,
        A::UnknownCA,
        A::AccessDenied,
        A::DecryptError,
        A::ProtocolVersion,
        A::InsufficientSecurity,
        A::InternalError,
        A::UserCanceled,
        A::UnrecognisedName,
        A::UnknownPSKIdentity,
        A::CertificateRequired,
        A::Unknown(222),
    ] {
        tell(&pair.source.0, &site, alert);
        tell(&pair.destination.0, &site, alert);
    }
    let credentials = ClientCredentials::x509(bare.path()).expect("no certificate");
    let address = MigrationAddress::parse("tcp:localhost:1").expect("an address").into_address();
    let expected = ExpectedName::of(&address, None).expect("a name");
    let explainer = Explainer::source(&credentials, &expected, "tcp:there");
    for alert in [A::HandshakeFailure, A::CertificateRequired] {
        tell(&explainer, &bare, alert);
    }
    insta::assert_snapshot!(all);
}

#[test]
fn a_strangers_name_cannot_write_on_the_terminal() {
    let site = Site::new();
    let params = with(client_params("src1"), |params| {
        params.distinguished_name.push(rcgen::DnType::OrganizationalUnitName, "a\u{1b}[2Jb\nc");
        // The last one is shown as it is.
        params
            .distinguished_name
            .push(rcgen::DnType::LocalityName, "d\u{202e}e\u{2028}f\u{200b}\u{feff}Zürich");
        let many = (0..1000).map(|n| format!("host{n}.example"));
        params.subject_alt_names =
            CertificateParams::new(many.collect::<Vec<_>>()).expect("names").subject_alt_names;
    });
    let certificate = params.signed_by(&crate::testing::key(), &site.ca).expect("a certificate");
    let facts = crate::credentials::CertificateFacts::of(certificate.der()).expect("a certificate");
    let text = facts.to_string();
    assert!(text.contains(r"OU=a\u{1b}[2Jb\nc"), "{text}");
    assert!(text.contains(r"L=d\u{202e}e\u{2028}f\u{200b}\u{feff}Zürich"), "{text}");
    assert!(text.contains("and 980 more"), "{text}");
    assert!(text.len() < 1000, "{}", text.len());
}
