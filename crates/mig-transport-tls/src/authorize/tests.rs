//! The table of rules and names: what fits, what does not, and what is said then.

use std::os::unix::fs::PermissionsExt;

use rcgen::{CertificateParams, DnType, SanType};

use super::Authorization;
use crate::{
    credentials::ServerCredentials,
    session::engine::Peer,
    testing::{Site, client_params, key, warnings},
};

/// A certificate with this name, in this order, and these SANs: `dns:`, `ip:`, `uri:`, `email:`.
fn source(name: &[(DnType, &str)], alternative: &[&str]) -> Peer {
    let site = Site::new();
    let mut params: CertificateParams = client_params("");
    params.distinguished_name = rcgen::DistinguishedName::new();
    for (kind, value) in name {
        params.distinguished_name.push(kind.clone(), *value);
    }
    let ia5 = |text: &str| text.try_into().expect("ASCII");
    params.subject_alt_names = alternative
        .iter()
        .map(|name| match name.split_once(':').expect("a kind") {
            ("dns", name) => SanType::DnsName(ia5(name)),
            ("ip", address) => SanType::IpAddress(address.parse().expect("an address")),
            ("uri", uri) => SanType::URI(ia5(uri)),
            ("email", address) => SanType::Rfc822Name(ia5(address)),
            other => panic!("{other:?}"),
        })
        .collect();
    let certificate = params.signed_by(&key(), &site.ca).expect("a certificate");
    Peer::Certificate(certificate.der().to_vec())
}

fn laptop() -> Peer {
    source(
        &[
            (DnType::CountryName, "GB"),
            (DnType::OrganizationName, "Example, Home"),
            (DnType::CommonName, "laptop.example.com"),
        ],
        &[
            "dns:laptop.example.com",
            "dns:*.pool.example.com",
            "ip:192.0.2.7",
            "ip:2001:db8::7",
            "uri:spiffe://example/mig/src1",
            "email:a@b.example",
        ],
    )
}

fn allows(rule: &str, peer: &Peer) -> bool {
    Authorization::parse([rule]).expect("a rule").check(peer).is_ok()
}

#[test]
fn a_rule_fits_what_it_says_and_nothing_else() {
    let laptop = laptop();
    for fits in [
        "any",
        "allow any",
        r"dn:C=GB,O=Example\, Home,CN=laptop.example.com",
        r"allow   dn:C=GB,O=Example\, Home,CN=laptop.example.com",
        r"dn:C=GB,O=Example\, Home,CN=*.example.com",
        r"dn:C=GB,O=*,CN=*",
        "dn:*",
        "dn:*,CN=laptop.example.com",
        "dn:C=GB,*",
        "dn:*,O=Ex*,*",
        "dn:C=*,*,CN=lap*com",
        r"dn:*,C=GB,*,O=Example\, Home,CN=*,*",
        "san:dns:laptop.example.com",
        "san:dns:LAPTOP.Example.com",
        "san:dns:*.example.com",
        "san:dns:lap*.*.com",
        r"san:dns:\*.pool.example.com",
        "san:ip:192.0.2.7",
        "san:ip:192.0.2.0/24",
        "san:ip:0.0.0.0/0",
        "san:ip:2001:db8::/32",
        "san:ip:2001:DB8:0::7",
        "san:ip:::/1",
        "san:uri:spiffe://example/mig/src1",
        "san:uri:spiffe://example/*",
        "san:email:*@b.example",
        "san:email:a@B.Example",
        "san:email:*B.EXAMPLE",
        "san:dns:laptop.example.com.",
    ] {
        assert!(allows(fits, &laptop), "{fits}");
    }
    for other in [
        r"dn:C=GB,O=Example\, Home,CN=laptop.example.co",
        r"dn:C=GB,O=Example\, Home,CN=Laptop.example.com",
        r"dn:C=GB,O=Example\, Home",
        "dn:CN=laptop.example.com",
        "dn:C=GB,*,O=*",
        "dn:CN=*",
        "dn:*,CN=*,*,C=*",
        "san:dns:example.com",
        "san:dns:laptop.example.co",
        "san:dns:*.com",
        "san:dns:*",
        r"san:dns:laptop\*.example.com",
        "san:ip:192.0.2.8",
        "san:ip:192.0.3.0/24",
        "san:ip:2001:db9::/32",
        "san:ip:8000::/1",
        "san:uri:spiffe://example/mig/src",
        "san:uri:SPIFFE://example/mig/src1",
        "san:email:a@b.exampl",
        "san:email:A@b.example",
        "san:dns:laptop.example.com..",
        "psk:laptop.example.com",
        "psk:*",
    ] {
        assert!(!allows(other, &laptop), "{other}");
    }
}

/// Whoever may choose the common name must not be able to write the rest of a name into it.
#[test]
fn a_value_cannot_forge_its_neighbours() {
    let forger =
        source(&[(DnType::CommonName, "src1,O=Example"), (DnType::OrganizationName, "Evil")], &[]);
    assert!(allows(r"dn:CN=src1\,O=Example,O=Evil", &forger));
    assert!(!allows("dn:CN=*,O=Example", &forger));
    assert!(!allows("dn:CN=*,O=Example,O=Evil", &forger));
    let forger = source(&[(DnType::CommonName, "x,O=Example")], &[]);
    assert!(!allows("dn:CN=*,O=Example", &forger));
    assert!(!allows("dn:*,O=Example", &forger));
    let forger = source(&[(DnType::CommonName, r"x\")], &["dns:a.evil.example"]);
    assert!(allows(r"dn:CN=x\\", &forger));
    assert!(!allows("san:dns:*.example", &forger), "one label, as in certificates");
}

/// rcgen makes no such names; OpenSSL does.
#[test]
fn an_attribute_cannot_forge_the_others_of_its_part() {
    let pem = include_str!("../credentials/testdata/multi-valued.pem");
    let der: rustls::pki_types::CertificateDer<'_> =
        rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).expect("a certificate");
    let peer = Peer::Certificate(der.to_vec());
    assert!(allows("dn:C=GB,OU=multi+O=Example Home,CN=a", &peer));
    assert!(allows("dn:C=GB,OU=*+O=*,CN=a", &peer));
    assert!(allows("dn:C=GB,*,CN=a", &peer));
    assert!(!allows("dn:C=GB,OU=*Home,CN=a", &peer));
    assert!(!allows("dn:C=GB,OU=*,CN=a", &peer));
}

#[test]
fn the_first_rule_that_fits_decides() {
    let laptop = laptop();
    let check = |rules: &[&str]| Authorization::parse(rules).expect("rules").check(&laptop).is_ok();
    assert!(check(&["deny san:dns:other", "allow any"]));
    assert!(!check(&["deny san:dns:laptop.example.com", "allow any"]));
    assert!(check(&["allow san:dns:laptop.example.com", "deny any"]));
    let turned = r"deny dn:CN=laptop.example.com,O=Example\, Home,C=GB";
    assert!(!check(&[turned, "allow any"]), "certtool's order is good enough to be denied");
    assert!(!check(&["san:dns:other", "san:dns:another"]));
}

/// A space at the end of a name is part of it, and written with a backslash.
#[test]
fn space_around_a_rule_is_none_of_it() {
    let spaced = source(&[(DnType::CommonName, "a ")], &[]);
    assert!(allows("  dn:CN=a\\  ", &spaced));
    assert!(allows("dn:CN=a\\ ", &spaced));
    assert!(!allows("dn:CN=a ", &spaced));
    let slashed = source(&[(DnType::CommonName, "a\\")], &[]);
    assert!(allows("dn:CN=a\\\\  ", &slashed));
}

/// A dot at the end, a domain in another case: what is denied stays denied, whichever side has it.
#[test]
fn another_way_to_write_a_name_is_no_way_round_a_rule() {
    let dotted =
        source(&[(DnType::CommonName, "a")], &["dns:Src1.Example.", "email:Root@EVIL.example"]);
    for denied in [
        "deny san:dns:src1.example",
        "deny san:dns:src1.example.",
        "deny san:dns:*.example",
        "deny san:email:Root@evil.example",
        "deny san:email:*@Evil.Example",
        "deny san:email:*Evil*",
    ] {
        let rules = Authorization::parse([denied, "allow any"]).expect("rules");
        assert!(rules.check(&dotted).is_err(), "{denied}");
    }
}

/// An IPv4 address in its IPv6 form is the same machine, whichever side writes it so.
#[test]
fn a_mapped_address_is_no_way_round_a_rule() {
    let of = |address: &str| source(&[(DnType::CommonName, "a")], &[address]);
    let (mapped, plain) = (of("ip:::ffff:10.1.2.3"), of("ip:10.1.2.3"));
    for rule in [
        "san:ip:10.0.0.0/8",
        "san:ip:10.1.2.3",
        "san:ip:::ffff:10.0.0.0/104",
        "san:ip:::ffff:10.1.2.3",
        "san:ip:0.0.0.0/0",
    ] {
        for peer in [&mapped, &plain] {
            assert!(allows(rule, peer), "{rule}");
            let rules = Authorization::parse([&format!("deny {rule}"), "allow any"]);
            assert!(rules.expect("rules").check(peer).is_err(), "{rule}");
        }
    }
    for rule in ["san:ip:11.0.0.0/8", "san:ip:::ffff:11.0.0.0/104", "san:ip:::/97"] {
        assert!(!allows(rule, &mapped) && !allows(rule, &plain), "{rule}");
    }
    // What was written as IPv6 stays that as well.
    assert!(allows("san:ip:::/0", &mapped));
}

/// Nobody knows what a rule would have denied.
#[test]
fn names_that_cannot_be_read_are_refused_by_any_rule() {
    let with = |extension: Vec<u8>| {
        let site = Site::new();
        let mut params = client_params("src1");
        let mut extension = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], extension);
        extension.set_criticality(false);
        params.custom_extensions.push(extension);
        let certificate = params.signed_by(&key(), &site.ca).expect("a certificate");
        Peer::Certificate(certificate.der().to_vec())
    };
    let rules = Authorization::parse(["deny san:dns:src1", "allow any"]).expect("rules");
    let readable = [0x30, 6, 0x82, 4, b's', b'r', b'c', b'2'].to_vec();
    assert!(rules.check(&with(readable)).is_ok());
    for extension in [
        // No sequence; one that is cut; a name that is no ASCII; an address of five bytes.
        vec![4, 1, 0],
        vec![0x30, 6, 0x82, 9, b's'],
        vec![0x30, 6, 0x82, 4, b's', b'r', b'c', 0xff],
        vec![0x30, 7, 0x87, 5, 1, 2, 3, 4, 5],
    ] {
        let told = rules.check(&with(extension.clone())).expect_err("refused").to_string();
        assert!(told.contains("cannot be read"), "{extension:x?}: {told}");
    }
}

#[test]
fn users_of_keys_have_rules_of_their_own() {
    let user = Peer::Key("qemu".into());
    assert!(allows("psk:qemu", &user));
    assert!(allows("psk:q*", &user));
    assert!(!allows("psk:qem", &user));
    assert!(!allows("dn:*", &user));
    assert!(!allows("san:dns:qemu", &user));
    assert!(allows("any", &user));
}

#[test]
fn a_refusal_tells_who_came() {
    let told = |rule: &str, peer: &Peer| {
        Authorization::parse([rule, "allow san:dns:x"])
            .expect("rules")
            .check(peer)
            .expect_err("refused")
            .to_string()
    };
    let who = r"C=GB,O=Example\, Home,CN=laptop.example.com (dns:laptop.example.com, dns:*.pool.example.com, ip:192.0.2.7, ip:2001:db8::7, uri:spiffe://example/mig/src1, email:a@b.example)";
    let laptop = laptop();
    assert_eq!(told("dn:CN=x", &laptop), format!("not authorised: {who}: no rule allows it"));
    assert_eq!(
        told("deny san:ip:192.0.2.0/24", &laptop),
        format!("not authorised: {who}: the rule \"deny san:ip:192.0.2.0/24\" denies it")
    );
    assert_eq!(
        told("dn:CN=laptop.example.com,*,C=GB", &laptop),
        format!(
            "not authorised: {who}: no rule allows it; the rule \"dn:CN=laptop.example.com,*,C=GB\" has the parts in the \
             reverse order, as certtool prints them"
        )
    );
    assert_eq!(
        told("any", &Peer::Anonymous),
        "not authorised: the source showed no certificate that the rules could be held against"
    );
    assert_eq!(
        told("any", &Peer::Certificate(vec![1, 2, 3])),
        "not authorised: the source's certificate cannot be read"
    );
    assert_eq!(
        told("psk:x", &Peer::Key("a\u{1b}b".into())),
        r"not authorised: the user a\u{1b}b of keys.psk: no rule allows it"
    );
}

#[test]
fn rules_come_from_files() {
    let site = Site::new();
    let path = site.path().join("rules");
    let rule = format!("file:{}", path.display());
    site.write("rules", "# who may come\n\ndeny san:ip:192.0.2.7\r\n  allow any  \n");
    assert!(!allows(&rule, &laptop()));
    let rules = Authorization::parse(["san:dns:laptop.example.com", rule.as_str()]).expect("rules");
    assert!(rules.check(&laptop()).is_ok(), "in the order given");

    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("changed");
    let told = warnings(|| drop(Authorization::parse([rule.as_str()]).expect("rules")));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].ends_with(
            "rules: others can write to it (mode 0666), and let in whom they like; chmod go-w it"
        ),
        "{told:?}"
    );

    let wrong = |text: &str| {
        site.write("rules", text);
        site.told(&Authorization::parse([rule.as_str()]).expect_err("refused"))
    };
    assert!(
        wrong("any\ndns:x\n")
            .starts_with("DIR/rules: line 2: authorisation rule \"dns:x\": write dn:NAME")
    );
    assert!(
        wrong("file:/x\n").contains(
            "line 1: authorisation rule \"file:/x\": a file of rules cannot name another"
        )
    );
    assert!(wrong("").starts_with("no authorisation rule allows anybody"));
    let most = format!("any\n{}", "any\n".repeat(9_999));
    site.write("rules", &most);
    assert!(allows(&rule, &laptop()));
    assert!(
        wrong(&format!("{most}any\n"))
            .starts_with("DIR/rules: line 10001: more authorisation rules than 10000")
    );
    assert!(wrong(&"#\n".repeat(600_000)).contains("larger than 1024 KiB"));
    site.write("rules", format!("san:uri:{}\n", "x".repeat(600_000)));
    let error = Authorization::parse([&rule, &rule]).expect_err("too long in all");
    assert!(error.to_string().contains("1024 KiB"), "{error}");
    std::fs::write(&path, [0xff]).expect("written");
    assert!(wrong("deny any").starts_with("no authorisation rule allows anybody"));
    std::fs::remove_file(&path).expect("removed");
    let error = Authorization::parse([rule.as_str()]).expect_err("none");
    assert!(site.told(&error).starts_with("DIR/rules: no such file"), "{error}");
}

#[test]
fn rules_that_let_nobody_in_are_a_mistake() {
    for rules in [&["deny any", "allow any"][..], &["deny dn:CN=x", "deny any", "dn:CN=y"]] {
        let error = Authorization::parse(rules).expect_err("nobody");
        assert!(error.to_string().starts_with("no authorisation rule allows anybody"), "{error}");
    }

    let site = Site::complete();
    let x509 = |verify_peer| ServerCredentials::x509(site.path(), verify_peer).expect("a server");
    let told = |rules: &[&str], credentials: &ServerCredentials| {
        let rules = Authorization::parse(rules).expect("rules");
        let checked = rules.check_against(credentials);
        checked.map_or_else(|error| site.told(&error), |()| String::new())
    };
    let asks = x509(true);
    assert_eq!(told(&["dn:CN=x"], &asks), "");
    assert_eq!(told(&["psk:x", "san:dns:x"], &asks), "");
    assert_eq!(told(&["any"], &asks), "");
    assert_eq!(
        told(&["psk:x", "psk:y"], &asks),
        "the authorisation rules allow users of keys.psk (psk:) and nobody else, and sources show certificates here: nobody \
         could come; write dn:NAME, san:dns:HOST or any, or take keys in place of certificates (--tls-psk)"
    );
    assert!(told(&["any"], &x509(false)).contains("no source is asked who it is"));

    #[cfg(feature = "tls-psk")]
    {
        site.write("keys.psk", format!("qemu:{0}\nguest7:{0}\n", "00".repeat(32)));
        let keys = ServerCredentials::psk(site.path()).expect("users");
        for rules in
            [&["any"][..], &["psk:guest*"], &["dn:CN=x", "psk:qemu"], &["deny psk:qemu", "any"]]
        {
            assert_eq!(told(rules, &keys), "", "{rules:?}");
        }
        for rules in [&["dn:CN=x"][..], &["psk:eve"], &["deny psk:*", "any"]] {
            assert_eq!(
                told(rules, &keys),
                "the authorisation rules allow none of the users that DIR/keys.psk has: nobody could come; with keys in place of \
                 certificates write psk:USER, with one of its users, or any",
                "{rules:?}"
            );
        }
    }
}

#[test]
fn what_is_no_rule_is_refused_with_the_right_form() {
    let told = |rule: &str| Authorization::parse([rule]).expect_err(rule).to_string();
    for (rule, part) in [
        ("", "write dn:NAME"),
        ("laptop.example.com", "write dn:NAME"),
        ("CN=laptop", "write dn:NAME"),
        ("san:laptop", "write dn:NAME"),
        ("san:dns:", "nothing follows the colon"),
        ("permit any", "write dn:NAME"),
        ("dn:", "is no part of one"),
        ("dn:laptop", "has no attribute before it"),
        ("dn:CN=a, O=b", "no space follows a comma: write \"O=b\""),
        ("dn:CN=a,b", "has no attribute before it"),
        ("san:ip:laptop", "is no IPv4 or IPv6 address"),
        ("san:ip:192.0.2.0/33", "is not a number of bits from 0 to 32"),
        ("san:ip:2001:db8::/x", "is not a number of bits from 0 to 128"),
        ("deny any", "no authorisation rule allows anybody"),
        ("deny file:/x", "write file:PATH alone"),
    ] {
        assert!(told(rule).contains(part), "{rule}: {}", told(rule));
    }
    assert!(Authorization::parse::<[&str; 0]>([]).is_err());
}
