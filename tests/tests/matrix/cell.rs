//! A cell in which everything works.

use std::path::Path;

use mig_tests::guest::Image;
use mig_tests::qemu::{
    Binary, LostTrack, Qemu, Release, Seen, Setup, text, with_a_source_that_keeps_track,
};
use mig_tests::report::Cell;
use mig_tests::scratch::Scratch;
use mig_tests::stream;

use crate::link::{self, Transport};
use crate::secured::Security;

/// Out through `mig recv --save`, in through `mig send`, and the file into a third QEMU without us.
pub(crate) fn works(
    release: Release,
    machine: &'static str,
    transport: Transport,
    return_path: bool,
) {
    secured(release, machine, transport, return_path, Security::Plain);
}

/// The same with TLS.
pub(crate) fn secured(
    release: Release,
    machine: &'static str,
    transport: Transport,
    return_path: bool,
    security: Security,
) {
    let Some(binary) = release.or_skip() else { return };
    let feature = security.feature(return_path);
    let cell = Cell::new(binary.version(), machine, transport.name(), feature);
    with_a_source_that_keeps_track(|| attempt(&binary, machine, transport, return_path, security));
    cell.passed("works");
}

fn attempt(
    binary: &Binary,
    machine: &str,
    transport: Transport,
    return_path: bool,
    security: Security,
) -> Result<(), LostTrack> {
    let scratch = Scratch::new();
    let secured = security.arranged(&scratch);
    let setup = Setup { binary, machine, scratch: &scratch, image: Image::Dirty };
    let saved = scratch.path("saved");

    let mut source = setup.source("source");
    source.set_capability("return-path", return_path);
    link::save(transport, binary, &mut source, &scratch, &saved, return_path, &secured);
    source.reaches("postmigrate");
    source.kept_track()?;
    let seen = Seen::of(&mut source, &scratch);

    let mut destination = setup.destination("destination");
    link::send(transport, binary, &mut destination, &scratch, &saved, return_path, &secured);
    seen.lives_on_in(&mut destination, &scratch);
    // The real source still says the same after all this.
    assert_eq!(source.query()["status"], "completed");

    loads_without_us(&setup, &seen, "third", &format!("exec:cat {}", text(&saved)));
    if binary.is_at_least(8, 2) {
        loads_without_us(&setup, &seen, "fourth", &format!("file:{}", text(&saved)));
    }
    nothing_temporary_left(&scratch, &saved);
    let bytes = std::fs::read(&saved).expect("two QEMUs have just read it");
    stream::assert_reencodes("the saved file", &bytes);
    // Of the commands only SWITCHOVER_START stays, which machines since 10.0 send.
    let commands = stream::tally("the saved file", &bytes).commands;
    assert_eq!(commands, usize::from(binary.is_at_least(10, 0)), "commands in the saved file");
    Ok(())
}

pub(crate) fn loads_without_us(setup: &Setup<'_>, seen: &Seen, name: &str, uri: &str) {
    let mut qemu: Qemu = setup.destination(name);
    qemu.incoming(uri);
    qemu.completed();
    seen.lives_on_in(&mut qemu, setup.scratch);
}

/// `recv --save` writes under another name first; after success only the real one is there.
pub(crate) fn nothing_temporary_left(scratch: &Scratch, saved: &Path) {
    let saved = saved.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let left: Vec<String> = scratch
        .names()
        .into_iter()
        .filter(|name| name != &*saved && name.contains(&*saved))
        .collect();
    assert!(left.is_empty(), "left beside the saved file: {left:?}");
}
