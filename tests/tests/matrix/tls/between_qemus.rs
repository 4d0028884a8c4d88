//! Two real QEMUs with TLS between them, without us: what every other scenario here stands on.

use mig_tests::guest::Image;
use mig_tests::qemu::{LostTrack, Release, Seen, Setup, with_a_source_that_keeps_track};
use mig_tests::scratch::Scratch;
use mig_tests::tls::{Authority, Endpoint};

/// The certificates are sound and the harness uses them right.
pub(crate) fn works(from: Release, to: Release) {
    let (Some(from), Some(to)) = (from.or_skip(), to.or_skip()) else { return };
    with_a_source_that_keeps_track(|| {
        let scratch = Scratch::new();
        let machine = "pc-i440fx-7.2";
        let at = |binary| Setup { binary, machine, scratch: &scratch, image: Image::Dirty };
        let dir = Authority::new("QEMU to QEMU").both(scratch.path("pki"));
        let mut source = at(&from).source("source");
        source.set_capability("return-path", true);
        source.tls_x509(&dir, Endpoint::Client);
        let mut destination = at(&to).destination("destination");
        destination.tls_x509(&dir, Endpoint::Server);
        destination.incoming("tcp:127.0.0.1:0");
        source.migrate(&format!("tcp:{}", destination.listening_address()));
        source.completed();
        destination.completed();
        source.kept_track()?;
        let seen = Seen::of(&mut source, &scratch);
        seen.lives_on_in(&mut destination, &scratch);
        Ok::<(), LostTrack>(())
    });
}
