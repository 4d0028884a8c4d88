//! Two real QEMUs with TLS between them, without us: what every other scenario here stands on.

use mig_tests::guest::Image;
use mig_tests::qemu::{LostTrack, Release, Seen, Setup, with_a_source_that_keeps_track};
use mig_tests::report::Cell;
use mig_tests::scratch::Scratch;

use crate::link::Transport;
use crate::secured::Security;

/// The certificates and keys are sound, and the harness uses them right.
pub(crate) fn works(from: Release, to: Release, security: Security) {
    let (Some(from), Some(to)) = (from.or_skip(), to.or_skip()) else { return };
    let transport = "tcp, QEMU into the other QEMU without mig";
    let cell = Cell::new(from.version(), "pc", transport, security.feature(true));
    with_a_source_that_keeps_track(|| {
        let scratch = Scratch::new();
        let machine = "pc-i440fx-7.2";
        let at = |binary| Setup { binary, machine, scratch: &scratch, image: Image::Dirty };
        let secured = security.arranged(&scratch);
        let mut source = at(&from).source("source");
        source.set_capability("return-path", true);
        secured.source(&mut source, Transport::TcpV4);
        let mut destination = at(&to).destination("destination");
        secured.destination(&mut destination);
        destination.incoming("tcp:127.0.0.1:0");
        source.migrate(&format!("tcp:{}", destination.listening_address()));
        source.completed();
        destination.completed();
        source.kept_track()?;
        let seen = Seen::of(&mut source, &scratch);
        seen.lives_on_in(&mut destination, &scratch);
        Ok::<(), LostTrack>(())
    });
    cell.passed("works");
}
