//! Ends that TLS keeps apart: who says what, who goes on waiting, and that the rightful one still gets in.
//!
//! ```text
//!   one `mig recv` ◀── plain, of another authority, without a certificate, a wrong name, not allowed: each QEMU keeps its guest
//!                  ◀── the rightful QEMU: saved
//!   one QEMU       ◀── plain, of another authority, a wrong name, without a certificate, not allowed: each `mig send` says why
//!                  ◀── the rightful `mig send`: loaded
//! ```

use std::path::{Path, PathBuf};

use serde_json::json;

use mig_tests::guest::Image;
use mig_tests::mig::Mig;
use mig_tests::process::STEP;
use mig_tests::qemu::{Qemu, Release, Seen, Setup, text};
use mig_tests::report::Cell;
use mig_tests::scratch::Scratch;
use mig_tests::tls::{Authority, Endpoint, Identity};

use crate::cell::{loads_without_us, nothing_temporary_left};
use crate::link;

/// The rightful source, as it is called and where it says it comes from.
const SOURCE: Identity<'static> = Identity {
    common_name: "source-1",
    organization: "mig tests",
    alternative_names: &["source-1.example"],
    expired: false,
};

/// Directories of all who want in.
struct Ends {
    /// The destination.
    server: PathBuf,
    /// Who may come.
    rightful: PathBuf,
    /// A certificate of the same authority, under another name.
    other: PathBuf,
    /// No certificate.
    nameless: PathBuf,
    /// A certificate of another authority; it trusts both.
    stranger: PathBuf,
    /// Trusts another authority.
    trusting_another: PathBuf,
}

impl Ends {
    fn of(scratch: &Scratch) -> Self {
        let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
        let directory = |name: &str| ours.directory(scratch.path(name));
        let ends = Self {
            server: directory("server"),
            rightful: directory("rightful"),
            other: directory("other"),
            nameless: directory("nameless"),
            stranger: directory("stranger"),
            trusting_another: theirs.directory(scratch.path("trusting-another")),
        };
        ours.issue(&ends.server, Endpoint::Server, &Identity::default());
        ours.issue(&ends.rightful, Endpoint::Client, &SOURCE);
        let other = Identity {
            common_name: "source-2",
            alternative_names: &["source-2.example"],
            ..SOURCE
        };
        ours.issue(&ends.other, Endpoint::Client, &other);
        // No end takes a certificate of its own that it would not trust.
        theirs.trusted_in(&ends.stranger);
        theirs.issue(&ends.stranger, Endpoint::Client, &SOURCE);
        theirs.issue(&ends.trusting_another, Endpoint::Client, &SOURCE);
        ends
    }
}

/// How a QEMU presents itself.
#[derive(Clone, Copy)]
struct Guise<'a> {
    name: &'static str,
    /// No TLS at all without.
    dir: Option<&'a Path>,
    hostname: &'static str,
    /// What `mig recv` says about it.
    said: &'static str,
}

/// Everybody tries; `rule` of `mig recv` fits the rightful source only.
pub(crate) fn by_recv(release: Release, rule: &'static str) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), "pc", "tcp, IPv4", by(rule));
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine: "pc", scratch: &scratch, image: Image::Idle };
    let ends = Ends::of(&scratch);
    let saved = scratch.path("saved");
    let words = ["recv", "tcp:127.0.0.1:0", "--save", text(&saved), "--json"];
    let tls = ["--tls-creds", text(&ends.server), "--tls-authz", rule];
    let mut recv = Mig::start("mig recv", &[&words[..], &tls].concat());
    let uri = recv.listening();
    let guises = [
        Guise { name: "plain", dir: None, hostname: "", said: PLAIN },
        Guise { name: "stranger", dir: Some(&ends.stranger), hostname: "", said: STRANGE },
        Guise { name: "nameless", dir: Some(&ends.nameless), hostname: "", said: NO_CERTIFICATE },
        Guise { name: "other", dir: Some(&ends.other), hostname: "", said: NOT_ALLOWED },
        Guise { name: "picky", dir: Some(&ends.rightful), hostname: "b.example", said: "" },
    ];
    for (before, guise) in guises.into_iter().enumerate() {
        let mut source = come(&setup, &uri, guise);
        assert_eq!(source.ended(), "failed", "{}: {}", guise.name, source.query());
        source.reaches("running");
        let mut dropped = 0;
        let why = recv.process.stderr().wait_for("word about it", STEP, |line| {
            dropped += usize::from(line.contains("a connection was dropped"));
            (dropped > before).then(|| line.to_owned())
        });
        assert!(why.contains(guise.said), "{}: no {:?} in {why}", guise.name, guise.said);
        assert!(!saved.exists(), "{} has left {}", guise.name, saved.display());
    }
    // A key of the right authority and the right name, by an address that the certificate has not: the override helps.
    let rightful =
        Guise { name: "rightful", dir: Some(&ends.rightful), hostname: "localhost", said: "" };
    let mut source = come(&setup, &uri, rightful);
    source.completed();
    recv.succeeds();
    assert_eq!(recv.last_json()["confirmed"], true);
    nothing_temporary_left(&scratch, &saved);
    cell.passed("refused, and the rightful one works");
}

const PLAIN: &str = "sends a plain stream";
const NO_CERTIFICATE: &str = "shows no certificate";
/// QEMU's GnuTLS keeps a certificate to itself whose authority is none of those that the destination names.
const STRANGE: &str = NO_CERTIFICATE;
const NOT_ALLOWED: &str = "CN=source-2";

fn by(rule: &str) -> &'static str {
    if rule.contains("CN=") { "TLS, strangers, by DN" } else { "TLS, strangers, by SAN" }
}

fn come(setup: &Setup<'_>, uri: &str, guise: Guise<'_>) -> Qemu {
    let mut source = setup.source(guise.name);
    source.set_capability("return-path", true);
    if let Some(dir) = guise.dir {
        source.tls_x509(dir, Endpoint::Client);
    }
    source.tls_hostname(guise.hostname);
    source.migrate(uri);
    source
}

/// QEMU closes the connection and says why in its log alone.
const REFUSED: &[&str] = &["most likely the destination refuses our certificate"];

/// One who comes to a QEMU: flags, exit code, and words on stderr.
type Comer<'a> = (&'a [&'a str], i32, &'a [&'a str]);

/// Everybody tries, at a QEMU that lets in the rightful source only.
pub(crate) fn by_qemu(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), "pc", "tcp, IPv4", "TLS, strangers at QEMU");
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine: "pc", scratch: &scratch, image: Image::Dirty };
    let ends = Ends::of(&scratch);
    let file = scratch.path("plain");
    let mut source = setup.source("source");
    source.stop();
    link::capture_without_us(&mut source, &file);
    let seen = Seen::of(&mut source, &scratch);

    let mut destination = setup.destination("destination");
    destination.tls_x509(&ends.server, Endpoint::Server);
    // In the order of the certificate, most significant first.
    let identity = "O=mig tests,CN=source-1";
    destination.tls_authz(json!({ "qom-type": "authz-simple", "identity": identity }));
    destination.incoming("tcp:127.0.0.1:0");
    let uri = format!("tcp:{}", destination.listening_address());
    let creds = |dir: &'_ PathBuf| ["--tls-creds".to_owned(), text(dir).to_owned()];
    let (rightful, other) = (creds(&ends.rightful), creds(&ends.other));
    let (nameless, stranger) = (creds(&ends.nameless), creds(&ends.stranger));
    let trusting_another = creds(&ends.trusting_another);
    let refused: [Comer<'_>; 6] = [
        (&[], 1, &["--tls-creds"]),
        (&[&trusting_another[0], &trusting_another[1]], 1, &["does not lead to", "CN=ours"]),
        (
            &[&rightful[0], &rightful[1], "--tls-hostname", "b.example"],
            1,
            &["b.example", "localhost", "127.0.0.1"],
        ),
        (&[&nameless[0], &nameless[1]], 1, &["this end has no certificate"]),
        (&[&stranger[0], &stranger[1]], 1, REFUSED),
        (&[&other[0], &other[1]], 1, REFUSED),
    ];
    for (flags, code, words) in refused {
        let mut send = sending(&file, &uri, flags);
        send.exits_with(code);
        let said = send.process.stderr().all(STEP);
        for word in words {
            assert!(said.contains(word), "{flags:?}: no {word:?} in {said}");
        }
    }
    let mut send = sending(&file, &uri, &[&rightful[0], &rightful[1]]);
    destination.completed();
    send.succeeds();
    assert_eq!(send.last_json()["confirmed"], true);
    seen.lives_on_in(&mut destination, &scratch);
    cell.passed("refused, and the rightful one works");
}

fn sending(file: &Path, uri: &str, flags: &[&str]) -> Mig {
    Mig::start("mig send", &[&["send", text(file), uri, "--json"], flags].concat())
}

/// TLS into a QEMU that has none: it takes the first record for a stream, and gives up.
pub(crate) fn where_qemu_has_none(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), "pc", "tcp, IPv4", "TLS into a QEMU without");
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine: "pc", scratch: &scratch, image: Image::Idle };
    let ends = Ends::of(&scratch);
    let file = scratch.path("plain");
    link::capture_without_us(&mut setup.source("source"), &file);
    let mut destination = setup.destination("destination");
    destination.incoming("tcp:127.0.0.1:0");
    let uri = format!("tcp:{}", destination.listening_address());
    let mut send = sending(&file, &uri, &["--tls-creds", text(&ends.rightful)]);
    send.exits_with(1);
    let said = send.process.stderr().all(STEP);
    assert!(said.contains("TLS"), "{said}");
    cell.passed("refused");
}

/// A certificate of a destination that has its name in the CN alone: QEMU takes it, rustls does not.
pub(crate) fn without_alternative_names(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), "pc", "tcp, IPv4", "TLS, a certificate without SAN");
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine: "pc", scratch: &scratch, image: Image::Dirty };
    let ours = Authority::new("ours");
    let dir = ours.directory(scratch.path("tls"));
    let only_cn = Identity { alternative_names: &[], ..Identity::default() };
    ours.issue(&dir, Endpoint::Server, &only_cn);
    ours.issue(&dir, Endpoint::Client, &SOURCE);

    // QEMU as a client has nothing against it.
    let saved = scratch.path("saved");
    let words = ["recv", "tcp:127.0.0.1:0", "--save", text(&saved), "--tls-creds", text(&dir)];
    let mut recv = Mig::start("mig recv", &words);
    let guise = Guise { name: "source", dir: Some(&dir), hostname: "localhost", said: "" };
    let mut source = setup.source("source");
    source.stop();
    source.set_capability("return-path", true);
    source.tls_x509(&dir, Endpoint::Client);
    source.tls_hostname(guise.hostname);
    source.migrate(&recv.listening());
    source.completed();
    recv.succeeds();
    let seen = Seen::of(&mut source, &scratch);
    loads_without_us(&setup, &seen, "third", &format!("exec:cat {}", text(&saved)));

    let mut destination = setup.destination("destination");
    destination.tls_x509(&dir, Endpoint::Server);
    destination.incoming("tcp:127.0.0.1:0");
    let uri = format!("tcp:{}", destination.listening_address());
    let mut send =
        sending(&saved, &uri, &["--tls-creds", text(&dir), "--tls-hostname", "localhost"]);
    send.exits_with(1);
    let said = send.process.stderr().all(STEP);
    assert!(said.contains("SAN") || said.contains("subjectAltName"), "{said}");
    cell.passed("QEMU takes it, mig refuses");
}

/// A QEMU with TLS comes to a `mig recv` without: it is told apart from noise, and one without TLS gets in after it.
pub(crate) fn where_recv_has_none(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), "pc", "tcp, IPv4", "TLS into a mig without");
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine: "pc", scratch: &scratch, image: Image::Idle };
    let ends = Ends::of(&scratch);
    let saved = scratch.path("saved");
    let words = ["recv", "tcp:127.0.0.1:0", "--save", text(&saved), "--json"];
    let mut recv = Mig::start("mig recv", &words);
    let uri = recv.listening();
    let with = Guise { name: "with", dir: Some(&ends.rightful), hostname: "", said: "" };
    let mut source = come(&setup, &uri, with);
    assert_eq!(source.ended(), "failed", "{}", source.query());
    source.reaches("running");
    recv.process.stderr().wait_for("word about TLS", STEP, |line| {
        line.contains("the source speaks TLS").then_some(())
    });
    let without = Guise { name: "without", dir: None, hostname: "", said: "" };
    let mut source = come(&setup, &uri, without);
    source.completed();
    recv.succeeds();
    cell.passed("refused");
}
