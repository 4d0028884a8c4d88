//! The library's own live ends, with TLS to and from QEMU.

use mig::{ConnectOptions, ListenOptions};
use mig_tests::guest::Image;
use mig_tests::qemu::{LostTrack, Release, Setup, with_a_source_that_keeps_track};
use mig_tests::report::Cell;
use mig_tests::scratch::Scratch;

use crate::encoded::{assert_same_ram, capture};
use crate::link::{self, Transport};
use crate::live;
use crate::secured::Security;

/// A live source, its guest writing round after round, into this QEMU.
pub(crate) fn into_qemu(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), "pc", "tcp, IPv4, from a live source", "TLS, xbzrle");
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine: "pc", scratch: &scratch, image: Image::Dirty };
    let secured = Security::X509.arranged(&scratch);
    let captured = capture(&setup, &scratch.path("captured"));

    let mut destination = setup.destination("destination");
    secured.destination(&mut destination);
    destination.incoming("tcp:127.0.0.1:0");
    let uri = format!("tcp:{}", destination.listening_address());
    let mut options = ConnectOptions::default();
    options.tls = Some(secured.connect());
    let sent = live::send_with_xbzrle(&captured, &uri, &options);
    destination.completed();
    assert!(sent.confirmed, "the destination has said so");
    assert_same_ram("QEMU", &destination.memory(&scratch), &sent.ram.block("pc.ram"));
    cell.passed("works");
}

/// A running guest of this QEMU into a live destination.
pub(crate) fn from_qemu(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), "pc", "tcp, IPv4, into a live destination", "TLS");
    with_a_source_that_keeps_track(|| {
        let scratch = Scratch::new();
        let (machine, image) = ("pc", Image::Dirty);
        let setup = Setup { binary: &binary, machine, scratch: &scratch, image };
        let secured = Security::X509.arranged(&scratch);
        let captured = capture(&setup, &scratch.path("captured"));

        let mut source = setup.source("source");
        source.set_capability("return-path", true);
        secured.source(&mut source, Transport::TcpV4);
        let mut options = ListenOptions::default();
        options.tls = Some(secured.listen());
        let uri = link::listening_uri(Transport::TcpV4, &scratch, "live");
        let arrived = live::receive_from(&captured, &uri, &options, |at| source.migrate(at));
        source.completed();
        source.reaches("postmigrate");
        source.kept_track()?;
        let there = source.memory(&scratch);
        assert_same_ram("our destination", &there, &arrived.block("pc.ram"));
        Ok::<(), LostTrack>(())
    });
    cell.passed("works");
}

/// Records after which keys change: five times or so for this guest. A QEMU stands eight in a row (docs/wire/transports.md
/// §5.4).
const KEYS: u64 = 48;

/// Our source and our destination change their keys all the time, and ask QEMU to change its own.
pub(crate) fn changing_keys(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), "pc", "tcp, IPv4", "TLS, live, keys that change");
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine: "pc", scratch: &scratch, image: Image::Dirty };
    let secured = Security::X509.arranged(&scratch);
    let captured = capture(&setup, &scratch.path("captured"));

    let mut destination = setup.destination("destination");
    secured.destination(&mut destination);
    destination.incoming("tcp:127.0.0.1:0");
    let uri = format!("tcp:{}", destination.listening_address());
    let mut tls = secured.connect();
    tls.options.key_update_after = Some(KEYS);
    let mut options = ConnectOptions::default();
    options.tls = Some(tls);
    let sent = live::send_with_xbzrle(&captured, &uri, &options);
    destination.completed();
    assert!(sent.confirmed, "the destination has said so");
    assert_same_ram("QEMU", &destination.memory(&scratch), &sent.ram.block("pc.ram"));

    let mut source = setup.source("source");
    source.stop();
    source.set_capability("return-path", true);
    secured.source(&mut source, Transport::TcpV4);
    let mut tls = secured.listen();
    tls.options.key_update_after = Some(KEYS);
    let mut options = ListenOptions::default();
    options.tls = Some(tls);
    let uri = link::listening_uri(Transport::TcpV4, &scratch, "live");
    let arrived = live::receive_from(&captured, &uri, &options, |at| source.migrate(at));
    source.completed();
    assert_same_ram("our destination", &source.memory(&scratch), &arrived.block("pc.ram"));
    cell.passed("works");
}
