//! `mig recv --save -` straight from one QEMU into another, through a pipe.

use mig_tests::guest::Image;
use mig_tests::mig::listening_in;
use mig_tests::process::STEP;
use mig_tests::qemu::{
    Binary, LostTrack, Release, Seen, Setup, text, with_a_source_that_keeps_track,
};
use mig_tests::report::Cell;
use mig_tests::scratch::Scratch;

use crate::link::mig_words;

/// The second QEMU starts `mig`, which listens for the first.
pub(crate) fn straight_through(release: Release, machine: &'static str, return_path: bool) {
    let Some(binary) = release.or_skip() else { return };
    let feature = if return_path { "return path" } else { "plain" };
    let cell = Cell::new(binary.version(), machine, "unix, through `recv --save -`", feature);
    with_a_source_that_keeps_track(|| attempt(&binary, machine, return_path));
    cell.passed("works");
}

fn attempt(binary: &Binary, machine: &str, return_path: bool) -> Result<(), LostTrack> {
    let scratch = Scratch::new();
    let setup = Setup { binary, machine, scratch: &scratch, image: Image::Dirty };
    let mut source = setup.source("source");
    let mut destination = setup.destination("destination");

    let uri = format!("unix:{}", text(&scratch.path("straight.sock")));
    destination.incoming(&format!("exec:{}", mig_words(&["recv", &uri, "--save", "-"])));
    let listening = destination.process.stderr().wait_for("listening line", STEP, listening_in);
    source.set_capability("return-path", return_path);
    source.migrate(&listening);
    source.completed();
    destination.completed();
    source.kept_track()?;
    Seen::of(&mut source, &scratch).lives_on_in(&mut destination, &scratch);
    Ok(())
}
