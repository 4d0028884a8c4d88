//! Two ends in memory, record by record; what each says when their keys do not fit.

use mig_transport::{Blame, Error, MigrationAddress};

use super::*;
use crate::{
    credentials::{ClientCredentials, ClientKind, ExpectedName, ServerCredentials, ServerKind},
    testing::Site,
};

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

fn site(keys: &str) -> Site {
    let site = Site::new();
    site.write("keys.psk", keys);
    site
}

fn source(site: &Site, user: &str) -> Box<dyn Handshake> {
    source_up_to(SslVersion::TLS1_3, site, user)
}

fn source_up_to(newest: SslVersion, site: &Site, user: &str) -> Box<dyn Handshake> {
    let credentials = ClientCredentials::psk(site.path(), user).expect("a user");
    let address = MigrationAddress::parse("unix:/x").expect("an address").into_address();
    let expected = credentials.expected_name(&address, None).expect("none is wanted");
    assert_eq!(expected, ExpectedName::none());
    let words = Arc::new(Explainer::source(&credentials, &expected, "unix:there"));
    match credentials.kind() {
        ClientKind::Psk(user) => client_up_to(newest, user, words).expect("a handshake"),
        ClientKind::X509(_) => panic!("not certificates"),
    }
}

fn destination(site: &Site) -> Box<dyn Handshake> {
    let credentials = ServerCredentials::psk(site.path()).expect("users");
    assert!(credentials.verifies_peer());
    let words = Arc::new(Explainer::destination(&credentials, "unix:here"));
    match credentials.kind() {
        ServerKind::Psk(keys) => server(keys, words).expect("a handshake"),
        ServerKind::X509(_) => panic!("not certificates"),
    }
}

/// Whole records, as the session cuts them.
fn records(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut rest = bytes;
    let mut records = Vec::new();
    while !rest.is_empty() {
        let len = 5 + usize::from(u16::from_be_bytes([rest[3], rest[4]]));
        let (record, more) = rest.split_at(len);
        records.push(record.to_vec());
        rest = more;
    }
    records
}

/// Both handshakes to their end: agreed, or what each end says.
fn shake(
    mut source: Box<dyn Handshake>,
    mut destination: Box<dyn Handshake>,
) -> [Result<Established, Option<Error>>; 2] {
    let mut out = Vec::new();
    assert_eq!(source.advance(None, &mut out).expect("a hello"), Step::More);
    assert_eq!(destination.advance(None, &mut Vec::new()).expect("nothing"), Step::More);
    let mut ends = [(source, Ok(Step::More)), (destination, Ok(Step::More))];
    let mut to = 1;
    while !out.is_empty() {
        let mut back = Vec::new();
        for mut record in records(&out) {
            let (end, step) = &mut ends[to];
            if matches!(step, Ok(Step::More)) {
                *step = end.advance(Some(&mut record), &mut back);
            }
        }
        (out, to) = (back, 1 - to);
    }
    ends.map(|(end, step)| match step {
        Ok(Step::Done) => Ok(end.finish().expect("agreed")),
        Ok(Step::More) => Err(None),
        Err(error) => Err(Some(error)),
    })
}

/// What was sealed, in records.
fn all(records: &mut Records) -> Vec<u8> {
    let bytes = records.rest().to_vec();
    records.advance(bytes.len());
    bytes
}

fn from(text: &[u8]) -> impl FnMut(&mut [u8]) -> usize {
    |into| {
        into[..text.len()].copy_from_slice(text);
        text.len()
    }
}

#[test]
fn two_ends_that_know_a_key_agree_and_talk() {
    let site = site(&format!("other:aabb\nqemu:{KEY}\n"));
    for (newest, agreed) in [
        (SslVersion::TLS1_3, "TLS 1.3, AES_128_GCM_SHA256, pre-shared key"),
        (SslVersion::TLS1_2, "TLS 1.2, ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256, pre-shared key"),
    ] {
        let [source, destination] = shake(source_up_to(newest, &site, "qemu"), destination(&site));
        let (mut source, mut destination) = (source.expect("agreed"), destination.expect("agreed"));
        assert_eq!(destination.peer, Peer::Key("qemu".into()));
        assert_eq!(source.agreed, agreed);
        assert_eq!(destination.agreed, agreed);
        let wears_out =
            agreed.contains("GCM").then_some(AES_GCM_RECORDS * MAX_PLAINTEXT_BYTES as u64);
        assert_eq!(source.most_bytes, wears_out);
        talk(&mut source.seal, &mut destination.open);
        talk(&mut destination.seal, &mut source.open);

        let mut out = Records::default();
        source.seal.settle(&mut out).expect("nothing owed");
        assert!(out.is_empty());
        source.seal.close(&mut out).expect("closed");
        let mut goodbye = records(&all(&mut out));
        assert_eq!(goodbye.len(), 1);
        let opened = destination.open.open(&mut goodbye[0]).expect("opened");
        assert_eq!(opened.what, Content::Closed);
        assert!(source.seal.seal(&mut from(b"x"), &mut out).is_err(), "nothing follows a goodbye");
        talk(&mut destination.seal, &mut source.open);
    }
}

fn talk(seal: &mut Box<dyn Seal>, open: &mut Box<dyn Open>) {
    for len in [1, 5, MAX_PLAINTEXT_BYTES] {
        let text: Vec<u8> = (0..len).map(|n| n.to_le_bytes()[0]).collect();
        let mut out = Records::default();
        seal.seal(&mut from(&text), &mut out).expect("sealed");
        let mut came = Vec::new();
        for mut record in records(&all(&mut out)) {
            assert!(record.len() <= super::super::engine::MAX_RECORD_BYTES);
            let opened = open.open(&mut record).expect("opened");
            assert!(!opened.owes);
            if let Content::Data(at) = opened.what {
                came.extend_from_slice(&record[at]);
            }
        }
        assert_eq!(came, text);
    }
}

#[test]
fn a_damaged_record_opens_to_nothing() {
    let site = site(&format!("qemu:{KEY}\n"));
    let [source, destination] = shake(source(&site, "qemu"), destination(&site));
    let (mut source, mut destination) = (source.expect("agreed"), destination.expect("agreed"));
    let mut out = Records::default();
    source.seal.seal(&mut from(b"hello"), &mut out).expect("sealed");
    let mut record = records(&all(&mut out)).remove(0);
    record[8] ^= 1;
    let error = Error::io("reading", destination.open.open(&mut record).expect_err("damaged"));
    assert_eq!(error.blame(), Blame::Io);
    assert!(error.to_string().contains("damaged or altered"), "{error}");
    destination.seal.settle(&mut out).expect("an alert");
    let mut alert = records(&all(&mut out)).remove(0);
    let error = Error::io("reading", source.open.open(&mut alert).expect_err("an alert"));
    assert_eq!(error.blame(), Blame::Io, "{error}");
    assert!(error.to_string().contains("damaged or altered on the way, says the peer"), "{error}");
}

#[test]
fn keys_are_not_worn_out() {
    let site = site(&format!("qemu:{KEY}\n"));
    let [source, destination] = shake(source(&site, "qemu"), destination(&site));
    let (mut source, mut destination) = (source.expect("agreed"), destination.expect("agreed"));
    source.seal.wear_out_after(3);
    talk(&mut source.seal, &mut destination.open);
    let mut out = Records::default();
    let error = source.seal.seal(&mut from(b"x"), &mut out).expect_err("the fourth");
    let error = Error::io("writing", error);
    assert_eq!(error.blame(), Blame::PeerIncompatible);
    assert!(error.to_string().contains("used up after 3 records"), "{error}");
    assert!(out.is_empty());
    // The other direction has keys of its own, and the goodbye is said.
    talk(&mut destination.seal, &mut source.open);
    source.seal.close(&mut out).expect("closed");
    assert!(!out.is_empty());
}

#[test]
fn who_does_not_know_the_key_is_refused_with_the_reason() {
    let told = |newest, source_keys: &str, user, destination_keys: &str| {
        let (here, there) = (site(source_keys), site(destination_keys));
        let said = shake(source_up_to(newest, &here, user), destination(&there));
        said.map(|end| match end {
            Ok(established) => format!("{:?}", established.peer),
            Err(Some(error)) => {
                assert_eq!(error.blame(), Blame::PeerIncompatible, "{error}");
                there.told(&error).replace(&here.path().display().to_string(), "DIR")
            }
            Err(None) => "nothing".into(),
        })
    };
    let other = KEY.replace('0', "f");
    for newest in [SslVersion::TLS1_3, SslVersion::TLS1_2] {
        let [source, destination] =
            told(newest, &format!("qemu:{other}"), "qemu", &format!("qemu:{KEY}"));
        assert!(
            source.contains("not take the user \"qemu\" with the key that DIR/keys.psk has"),
            "{source}"
        );
        assert!(destination.contains("does not know the key that keys.psk has"), "{destination}");

        let [source, destination] =
            told(newest, &format!("eve:{KEY}"), "eve", &format!("qemu:{KEY}"));
        assert!(source.contains("does not take the user \"eve\""), "{source}");
        assert!(
            destination.contains("says to be the user \"eve\", of whom keys.psk has no key"),
            "{destination}"
        );
    }
}

#[test]
fn a_source_with_certificates_is_told_apart() {
    let site = Site::complete();
    site.write("keys.psk", format!("qemu:{KEY}"));
    let credentials = ClientCredentials::x509(site.path()).expect("certificates");
    let address = MigrationAddress::parse("tcp:localhost:1").expect("an address").into_address();
    let expected = credentials.expected_name(&address, None).expect("a name");
    let words = Arc::new(Explainer::source(&credentials, &expected, "tcp:there"));
    let handshake = match credentials.kind() {
        ClientKind::X509(x509) => {
            let config = super::super::agree::client_config(&x509.rustls(words.witness()));
            let name = expected.rustls().expect("a name");
            super::super::agree::client(config, name, words).expect("a handshake")
        }
        ClientKind::Psk(_) => panic!("not keys"),
    };
    let [source, destination] = shake(handshake, destination(&site)).map(|end| match end {
        Err(Some(error)) => error.to_string(),
        _ => panic!("must fail"),
    });
    assert!(destination.contains("the source offers no key"), "{destination}");
    assert!(source.contains("the same kind of credentials (x509, psk, anon)"), "{source}");
}

/// In TLS 1.3 a server may decline the key and show a certificate. Whoever sits between the two can do that.
#[test]
fn a_certificate_in_place_of_the_key_is_refused() {
    let site = Site::complete();
    site.write("keys.psk", format!("qemu:{KEY}"));
    let credentials = ServerCredentials::x509(site.path(), false).expect("certificates");
    let words = Arc::new(Explainer::destination(&credentials, "tcp:here"));
    let handshake = match credentials.kind() {
        ServerKind::X509(x509) => {
            let config = super::super::agree::server_config(&x509.rustls(words.witness()));
            super::super::agree::server(config, words).expect("a handshake")
        }
        ServerKind::Psk(_) => panic!("not keys"),
    };
    let [source, destination] = shake(source(&site, "qemu"), handshake);
    let source = source.err().flatten().expect("refused").to_string();
    assert!(source.contains("the destination does not agree to a key"), "{source}");
    let destination = destination.err().flatten().expect("refused").to_string();
    assert!(destination.contains("the source refused our certificate"), "{destination}");
}

/// What is not TLS never reaches OpenSSL; what looks like it and is not must end it.
#[test]
fn nonsense_ends_a_handshake() {
    let site = site(&format!("qemu:{KEY}"));
    for mut record in [
        vec![22, 3, 1, 0, 4, 1, 0, 0, 0],
        vec![23, 3, 3, 0, 1, 0],
        vec![21, 3, 3, 0, 2, 2, 80],
        [&[22, 3, 1, 0x40, 0][..], &[0xff; 0x4000]].concat(),
    ] {
        let mut destination = destination(&site);
        let error = destination.advance(Some(&mut record), &mut Vec::new()).expect_err("nonsense");
        assert!(error.to_string().starts_with("unix:here: "), "{error}");
    }
}

#[test]
fn keys_are_read_strictly_and_never_shown() {
    let told = |text: &str| {
        let site = site(text);
        site.told(&ServerCredentials::psk(site.path()).expect_err(text))
    };
    for (text, part) in [
        ("", "DIR/keys.psk: the file is empty"),
        ("\n\n", "DIR/keys.psk: the file is empty"),
        ("qemu", "line 1: it must be USER:HEXKEY"),
        ("qemu:", "line 1: the key must have 1 to 64 bytes"),
        ("qemu:abc", "line 1: the key must have 1 to 64 bytes"),
        ("qemu:0xab", "line 1: the key has something else"),
        (":aabb", "line 1: a user's name has 1 to 128 bytes"),
        ("#71:aabb", "line 1: names in hexadecimal"),
        ("a:aabb\n\na:ccdd", "line 3: a second key of the user \"a\""),
    ] {
        let told = told(text);
        assert!(told.contains(part), "{told}");
        assert!(!told.contains("aabb") && !told.contains("ccdd"), "{told}");
    }
    assert!(told(&format!("qemu:{}", "ab".repeat(65))).contains("1 to 64 bytes"));
    assert!(told(&format!("{}:ab", "u".repeat(129))).contains("1 to 128 bytes"));

    let site = site(&format!("alice:{KEY}\r\n"));
    let error = ClientCredentials::psk(site.path(), "qemu").expect_err("no such user");
    assert!(site.told(&error).contains("DIR/keys.psk: no key of the user \"qemu\""), "{error}");
    let credentials = ClientCredentials::psk(site.path(), "alice").expect("a user");
    assert!(!format!("{credentials:?}").contains("0001"), "{credentials:?}");
    let credentials = ServerCredentials::psk(site.path()).expect("users");
    assert!(!format!("{credentials:?}").contains("0001"), "{credentials:?}");
    std::fs::remove_file(site.path().join("keys.psk")).expect("removed");
    let error = ServerCredentials::psk(site.path()).expect_err("no file");
    assert!(
        site.told(&error).contains("DIR/keys.psk: no such file; it must have a line USER:HEXKEY"),
        "{error}"
    );
}
