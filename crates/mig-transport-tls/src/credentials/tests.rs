//! What is wrong with credentials is said when they are read: with the file, what is wrong with it, and what to do.

use std::{fmt::Write as _, fs, os::unix::fs::PermissionsExt};

use mig_transport::Blame;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, date_time_ymd};

use super::{ClientCredentials, ServerCredentials};
use crate::testing::{Site, ca_params, client_params, key, revocations, server_params, warnings};

#[test]
fn a_complete_set_loads_at_both_ends() {
    let site = Site::complete();
    let server = ServerCredentials::x509(site.path(), true).expect("a server");
    assert!(server.verifies_peer());
    assert_eq!(server.directory(), site.path());
    assert!(!ServerCredentials::x509(site.path(), false).expect("a server").verifies_peer());
    let client = ClientCredentials::x509(site.path()).expect("a client");
    assert!(client.has_certificate());
}

#[test]
fn a_source_may_have_no_certificate() {
    let site = Site::new();
    assert!(!ClientCredentials::x509(site.path()).expect("a client").has_certificate());
}

#[test]
fn credentials_can_be_shared_between_tasks() {
    fn shared<T: Clone + Send + Sync + 'static>() {}
    shared::<ClientCredentials>();
    shared::<ServerCredentials>();
}

/// QEMU's manual makes certificates with certtool, which writes a text before them and the key's numbers around it.
#[test]
fn text_around_the_pem_is_skipped() {
    let site = Site::complete();
    for name in ["ca-cert.pem", "server-cert.pem", "server-key.pem"] {
        let text = site.read(name);
        site.write(name, format!("X.509 Certificate Information:\n\tVersion: 3\n\n{text}\nbye\n"));
    }
    ServerCredentials::x509(site.path(), true).expect("a server");
}

/// `openssl ecparam -genkey` and `openssl genrsa` of old.
#[test]
fn keys_may_be_pkcs8_pkcs1_or_sec1() {
    for (certificate, key) in [
        (include_str!("testdata/rsa-cert.pem"), include_str!("testdata/rsa-pkcs1-key.pem")),
        (include_str!("testdata/ec-cert.pem"), include_str!("testdata/ec-sec1-key.pem")),
    ] {
        let site = Site::new();
        site.write("ca-cert.pem", include_str!("testdata/keys-ca-cert.pem"));
        site.write("server-cert.pem", certificate);
        site.write("server-key.pem", key);
        ServerCredentials::x509(site.path(), true).expect("a server");
    }
}

#[test]
fn several_cas_may_be_trusted() {
    let site = Site::complete();
    let other = Site::with_ca(ca_params("Other CA"));
    site.write("ca-cert.pem", format!("{}{}", other.read("ca-cert.pem"), site.read("ca-cert.pem")));
    ServerCredentials::x509(site.path(), true).expect("a server");
    ClientCredentials::x509(site.path()).expect("a client");
}

#[test]
fn an_old_revocation_list_is_still_held_against_a_certificate() {
    let site = Site::complete();
    site.issue("server", numbered(server_params(&["localhost"]), 7));
    site.revoke(8, 2021);
    ServerCredentials::x509(site.path(), true).expect("warned about, as QEMU takes it");
    site.revoke(7, 2021);
    ServerCredentials::x509(site.path(), true).expect_err("its own certificate is revoked");
}

/// What will not fail everywhere, or is as bad as its owner thinks it is, is said and goes on, as with QEMU.
#[test]
fn what_is_doubtful_is_warned_about() {
    let site = Site::complete();
    let load = || drop(ServerCredentials::x509(site.path(), true).expect("a server"));
    let warned = || {
        let told = warnings(load);
        told.iter()
            .map(|text| text.replace(&site.path().display().to_string(), "DIR"))
            .collect::<Vec<_>>()
    };
    assert_eq!(warned(), [""; 0]);

    let key = site.path().join("server-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("changed");
    assert_eq!(
        warned(),
        ["DIR/server-key.pem: this secret is readable by others (mode 0644); chmod 600 it"]
    );
    for (mode, what) in [(0o622, "writable"), (0o660, "readable and writable")] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).expect("changed");
        let told = format!(
            "DIR/server-key.pem: this secret is {what} by others (mode {mode:04o}); chmod 600 it"
        );
        assert_eq!(warned(), [told]);
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("changed");

    let ca = site.path().join("ca-cert.pem");
    fs::set_permissions(&ca, fs::Permissions::from_mode(0o664)).expect("changed");
    assert_eq!(
        warned(),
        [
            "DIR/ca-cert.pem: others can write to it (mode 0664), and put an authority of their own there; chmod go-w it"
        ]
    );
    fs::set_permissions(&ca, fs::Permissions::from_mode(0o644)).expect("changed");

    fs::set_permissions(site.path(), fs::Permissions::from_mode(0o777)).expect("changed");
    assert_eq!(
        warned(),
        [
            "DIR: others can write to it (mode 0777), and put files of their own in the place of those in it; chmod go-w it"
        ]
    );
    fs::set_permissions(site.path(), fs::Permissions::from_mode(0o755)).expect("changed");
    assert_eq!(warned(), [""; 0]);

    site.revoke(7, 2110);
    let list = site.path().join("ca-crl.pem");
    fs::set_permissions(&list, fs::Permissions::from_mode(0o666)).expect("changed");
    assert_eq!(
        warned(),
        [
            "DIR/ca-crl.pem: others can write to it (mode 0666), and leave out of it whom they like, or put an older one there; \
             chmod go-w it"
        ]
    );

    site.revoke(7, 2021);
    let told = warned();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with(
            "DIR/ca-crl.pem: the revocation list should have been replaced by 2021-01-01 00:00:00 UTC"
        ),
        "{told:?}"
    );
    fs::remove_file(site.path().join("ca-crl.pem")).expect("removed");

    site.issue("server", server_params(&[]));
    let told = warned();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].starts_with(
            "DIR/server-cert.pem: the certificate of O=Example,CN=dst1 has no subject alternative name"
        ),
        "{told:?}"
    );
}

fn numbered(mut params: CertificateParams, serial: u64) -> CertificateParams {
    params.serial_number = Some(serial.into());
    params
}

fn with(
    mut params: CertificateParams,
    change: impl FnOnce(&mut CertificateParams),
) -> CertificateParams {
    change(&mut params);
    params
}

/// One way to spoil a set.
type Spoil = fn(&Site);

/// Each of them is found when a server's credentials are read.
const SERVER: &[(&str, Spoil)] = &[
    ("no CA", |site| fs::remove_file(site.path().join("ca-cert.pem")).expect("removed")),
    ("no certificate", |site| {
        fs::remove_file(site.path().join("server-cert.pem")).expect("removed")
    }),
    ("neither certificate nor key", |site| {
        for name in ["server-cert.pem", "server-key.pem"] {
            fs::remove_file(site.path().join(name)).expect("removed");
        }
    }),
    ("no key", |site| fs::remove_file(site.path().join("server-key.pem")).expect("removed")),
    ("an empty file", |site| site.write("server-cert.pem", "\n")),
    ("a key for a certificate", |site| site.write("server-cert.pem", key().serialize_pem())),
    ("a certificate for a key", |site| site.write("server-key.pem", site.ca.pem())),
    ("DER", |site| site.write("ca-cert.pem", site.ca.der())),
    ("words", |site| site.write("ca-cert.pem", "hello")),
    ("cut short", |site| {
        let text = site.read("server-cert.pem");
        site.write("server-cert.pem", &text[..text.len() / 2]);
    }),
    ("not base64", |site| {
        site.write("ca-cert.pem", "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n");
    }),
    ("no certificate in the PEM", |site| {
        site.write("ca-cert.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    }),
    ("a directory", |site| {
        fs::remove_file(site.path().join("ca-cert.pem")).expect("removed");
        fs::create_dir(site.path().join("ca-cert.pem")).expect("made");
    }),
    ("far too large", |site| site.write("ca-cert.pem", vec![b'x'; (4 << 20) + 1])),
    ("an encrypted key", |site| {
        let text = site.read("server-key.pem");
        site.write("server-key.pem", text.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"));
    }),
    ("an encrypted key of old", |site| {
        let text = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END EC \
                    PRIVATE KEY-----\n";
        site.write("server-key.pem", text);
    }),
    ("another certificate's key", |site| site.write("server-key.pem", key().serialize_pem())),
    ("a CA that is none", |site| site.write("ca-cert.pem", site.read("server-cert.pem"))),
    ("a CA that does not say so", |site| {
        let params = with(ca_params("Test CA"), |params| params.is_ca = IsCa::NoCa);
        site.write("ca-cert.pem", Site::with_ca(params).ca.pem());
    }),
    ("a CA that may not sign", |site| {
        let params = with(ca_params("Test CA"), |params| {
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        });
        site.write("ca-cert.pem", Site::with_ca(params).ca.pem());
    }),
    ("an expired CA, the second of two", |site| {
        let params =
            with(ca_params("Old CA"), |params| params.not_after = date_time_ymd(2021, 1, 1));
        let old = Site::with_ca(params);
        site.write("ca-cert.pem", format!("{}{}", site.ca.pem(), old.ca.pem()));
    }),
    ("expired", |site| {
        site.issue(
            "server",
            with(server_params(&["localhost"]), |params| {
                params.not_after = date_time_ymd(2021, 1, 1);
            }),
        );
    }),
    ("not valid yet", |site| {
        site.issue(
            "server",
            with(server_params(&["localhost"]), |params| {
                params.not_before = date_time_ymd(2110, 1, 1);
            }),
        );
    }),
    ("a CA's certificate for the server's", |site| {
        site.issue("server", ca_params("dst1"));
    }),
    ("a key that may not sign", |site| {
        site.issue(
            "server",
            with(server_params(&["localhost"]), |params| {
                params.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
            }),
        );
    }),
    ("a client's certificate for the server's", |site| site.issue("server", client_params("dst1"))),
    ("another CA's certificate", |site| {
        let other = Site::with_ca(ca_params("Other CA"));
        other.issue("server", server_params(&["localhost"]));
        for name in ["server-cert.pem", "server-key.pem"] {
            site.write(name, other.read(name));
        }
    }),
    ("a certificate of the CA's namesake", |site| {
        let other = Site::new();
        other.issue("server", server_params(&["localhost"]));
        for name in ["server-cert.pem", "server-key.pem"] {
            site.write(name, other.read(name));
        }
    }),
    ("revoked", |site| {
        site.issue("server", numbered(server_params(&["localhost"]), 7));
        site.revoke(7, 2110);
    }),
    ("a revocation list that is none", |site| site.write("ca-crl.pem", site.ca.pem())),
    ("another CA's revocation list", |site| {
        let other = Site::with_ca(ca_params("Other CA"));
        other.revoke(7, 2110);
        site.write("ca-crl.pem", other.read("ca-crl.pem"));
    }),
    ("another CA's revocation list beside the right one", |site| {
        let other = Site::with_ca(ca_params("Other CA"));
        let lists = [revocations(&site.ca, 7, 2020, 2110), revocations(&other.ca, 7, 2020, 2110)];
        site.write("ca-crl.pem", lists.concat());
    }),
    ("a revocation list of the CA's namesake", |site| {
        let other = Site::new();
        other.revoke(7, 2110);
        site.write("ca-crl.pem", other.read("ca-crl.pem"));
    }),
    ("a link to no revocation list", |site| link_to_nowhere(site, "ca-crl.pem")),
    ("a link to no key", |site| link_to_nowhere(site, "server-key.pem")),
];

fn link_to_nowhere(site: &Site, name: &str) {
    let path = site.path().join(name);
    let _if_it_is_there = fs::remove_file(&path);
    std::os::unix::fs::symlink("../elsewhere/gone.pem", path).expect("a link");
}

const CLIENT: &[(&str, Spoil)] = &[
    ("links to neither certificate nor key", |site| {
        link_to_nowhere(site, "client-cert.pem");
        link_to_nowhere(site, "client-key.pem");
    }),
    ("no certificate, and a link to no key", |site| {
        fs::remove_file(site.path().join("client-cert.pem")).expect("removed");
        link_to_nowhere(site, "client-key.pem");
    }),
    ("a key alone", |site| fs::remove_file(site.path().join("client-cert.pem")).expect("removed")),
    ("a certificate alone", |site| {
        fs::remove_file(site.path().join("client-key.pem")).expect("removed")
    }),
    ("a server's certificate for the client's", |site| {
        site.issue("client", server_params(&["localhost"]));
    }),
    ("any purpose but this one", |site| {
        site.issue(
            "client",
            with(client_params("src1"), |params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
            }),
        );
    }),
];

#[test]
fn each_mistake_is_found_when_credentials_are_read() {
    let mut told = String::new();
    let mut tell = |site: &Site, name: &str, error: mig_transport::Error| {
        assert_eq!(error.blame(), Blame::Misuse, "{name}");
        writeln!(told, "{name}:\n  {}\n", dated(site.told(&error))).expect("a String");
    };
    for (name, spoil) in SERVER {
        let site = Site::complete();
        spoil(&site);
        tell(&site, name, ServerCredentials::x509(site.path(), true).expect_err(name));
    }
    for (name, spoil) in CLIENT {
        let site = Site::complete();
        spoil(&site);
        tell(&site, name, ClientCredentials::x509(site.path()).expect_err(name));
    }
    let site = Site::complete();
    tell(&site, "no directory", ClientCredentials::x509(&site.path().join("x")).expect_err("none"));
    let file = site.path().join("ca-cert.pem");
    tell(&site, "a file for a directory", ClientCredentials::x509(&file).expect_err("a file"));
    insta::assert_snapshot!(told);
}

/// Without the moment of this run.
fn dated(text: String) -> String {
    match text.split_once("now is ") {
        Some((before, after)) => {
            let rest = after.split_once(" UTC").map_or("", |(_now, rest)| rest);
            format!("{before}now is TODAY{rest}")
        }
        None => text,
    }
}
