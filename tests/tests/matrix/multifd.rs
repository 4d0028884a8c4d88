//! Pages over data channels: out of a real QEMU into `mig recv --save`, and the file, one plain stream, into another.

use serde_json::json;

use mig_tests::guest::Image;
use mig_tests::mig::Mig;
use mig_tests::qemu::{
    Binary, LostTrack, Release, Seen, Setup, text, with_a_source_that_keeps_track,
};
use mig_tests::report::Cell;
use mig_tests::scratch::Scratch;
use mig_tests::stream;

/// What one cell does with its channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channels {
    /// How many.
    pub(crate) count: u8,
    /// `multifd-compression`.
    pub(crate) compression: &'static str,
    /// What the cell is called.
    pub(crate) feature: &'static str,
    /// Over tcp, else unix.
    pub(crate) tcp: bool,
}

/// Saved from data channels, loaded without any.
pub(crate) fn saved(release: Release, machine: &'static str, channels: Channels) {
    let Some(binary) = release.or_skip() else { return };
    let transport = if channels.tcp { "tcp, IPv4" } else { "unix" };
    let cell = Cell::new(binary.version(), machine, transport, channels.feature);
    with_a_source_that_keeps_track(|| attempt(&binary, machine, channels));
    cell.passed("works");
}

fn attempt(binary: &Binary, machine: &str, channels: Channels) -> Result<(), LostTrack> {
    let scratch = Scratch::new();
    let setup = Setup { binary, machine, scratch: &scratch, image: Image::Dirty };
    let saved = scratch.path("saved");
    let Channels { count, compression, tcp, .. } = channels;

    let mut source = setup.source("source");
    source.set_capability("return-path", true);
    source.set_capability("multifd", true);
    source.set_parameters(json!({
        "multifd-channels": count,
        "multifd-compression": compression,
    }));
    let uri = match tcp {
        true => "tcp:127.0.0.1:0".to_owned(),
        false => format!("unix:{}", text(&scratch.path("channels"))),
    };
    let count = count.to_string();
    let mut words = vec!["recv", &uri, "--save", text(&saved), "--json", "--multifd", &count];
    if compression != "none" {
        words.extend(["--compression", compression]);
    }
    let mut mig = Mig::start("mig recv", &words);
    source.migrate(&mig.listening());
    source.completed();
    mig.succeeds();
    source.reaches("postmigrate");
    source.kept_track()?;
    let seen = Seen::of(&mut source, &scratch);

    let mut third = setup.destination("third");
    third.incoming(&format!("exec:cat {}", text(&saved)));
    third.completed();
    seen.lives_on_in(&mut third, &scratch);
    let bytes = std::fs::read(&saved).expect("a QEMU has just read it");
    stream::assert_reencodes("the saved file", &bytes);
    Ok(())
}
