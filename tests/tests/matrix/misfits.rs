//! Ends that do not agree about data channels: each says what does not fit, soon, and the guest stays where it is.
//!
//! ```text
//!   source QEMU ══▶ mig recv      mig refuses; QEMU hears of it on its return path, its guest runs on, no file is left
//!   mig send ══▶ QEMU             QEMU says why on its stderr, and mig which channel broke; or nobody ever answers
//! ```

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use mig_tests::guest::Image;
use mig_tests::mig::Mig;
use mig_tests::process::STEP;
use mig_tests::qemu::{Qemu, Release, Setup, text};
use mig_tests::scratch::Scratch;
use rustix::process::Signal;

use crate::cell::nothing_temporary_left;
use crate::link;
use crate::multifd::set_multifd;

/// What a QEMU is told: so many channels, packed so; or no multifd.
type Told = Option<(u8, &'static str)>;

/// A source and a `mig recv` with these flags: exit 1, nobody alone is to blame, and the words say what to change.
///
/// A QEMU 7.2 that is refused while it connects its data channels stands still for ever now and then, its sockets closed and
/// its threads waiting for each other (docs/testing.md). That is its own; another one is asked then.
fn refused_by_recv(release: Release, told: Told, flags: &[&str], words: &str) {
    const TRIES: usize = 4;
    const STANDS_STILL: Duration = Duration::from_secs(20);
    let Some(binary) = release.or_skip() else { return };
    for attempt in 1..=TRIES {
        let scratch = Scratch::new();
        let setup =
            Setup { binary: &binary, machine: "pc", scratch: &scratch, image: Image::Dirty };
        let mut source = source(&setup, told);
        let saved = scratch.path("saved");
        let mut recv = receiving(&saved, flags);
        source.migrate(&recv.listening());
        refused(&mut recv, words);
        assert!(!saved.exists(), "a refused migration has left {}", saved.display());
        nothing_temporary_left(&scratch, &saved);
        if source.lives_through_a_failure(STANDS_STILL) {
            return stays(&mut source);
        }
        eprintln!("attempt {attempt}: the source QEMU stands still after it was refused");
    }
    panic!("{TRIES} sources have stood still after they were refused");
}

fn source(setup: &Setup<'_>, told: Told) -> Qemu {
    let mut source = setup.source("source");
    if let Some((channels, compression)) = told {
        set_multifd(&mut source, channels, compression);
    }
    source.set_capability("return-path", true);
    source
}

fn receiving(saved: &Path, flags: &[&str]) -> Mig {
    let mut words = vec!["recv", "tcp:127.0.0.1:0", "--save", text(saved), "--json"];
    words.extend(flags);
    Mig::start("mig recv", &words)
}

#[track_caller]
fn refused(mig: &mut Mig, words: &str) {
    mig.exits_with(1);
    let said = mig.process.stderr().all(STEP);
    assert!(said.contains(words), "not {words:?}: {said}");
    let told = mig.last_json();
    assert_eq!((&told["status"], &told["confirmed"]), (&json!("failed"), &json!(false)), "{told}");
}

/// The migration has failed, and the guest counts on.
#[track_caller]
fn stays(source: &mut Qemu) {
    assert_eq!(source.ended(), "failed", "{}", source.query());
    source.reaches("running");
    source.stop();
    let counters = source.counters();
    source.cont();
    source.counts_on_from(&counters);
}

pub(crate) fn more_channels_than_expected(release: Release) {
    let flags = ["--multifd", "2"];
    refused_by_recv(release, Some((4, "none")), &flags, "multifd-channels the same at both ends");
}

pub(crate) fn fewer_channels_than_expected(release: Release) {
    let words = "2 of 4 have come, not connected: 2, 3";
    refused_by_recv(release, Some((2, "none")), &["--multifd", "4"], words);
}

pub(crate) fn other_compression(release: Release) {
    let words = "packed with method zlib, expected none: set multifd-compression the same";
    refused_by_recv(release, Some((2, "zlib")), &["--multifd", "2"], words);
}

/// Only a mig says how many channels it has.
pub(crate) fn any_number_from_qemu(release: Release) {
    let words = "say the number (multifd-channels) at this end too";
    refused_by_recv(release, Some((2, "none")), &["--multifd", "auto"], words);
}

pub(crate) fn single_stream_where_channels_are_expected(release: Release) {
    let words = "0 of 2 have come, not connected: 0, 1";
    refused_by_recv(release, None, &["--multifd", "2"], words);
}

/// A single stream is expected. The main channel alone looks like a whole stream, with hardly a page in it, and here all of
/// it has come before `mig` looks for the first time: it must not be taken for one.
pub(crate) fn channels_where_a_single_stream_is_expected(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine: "pc", scratch: &scratch, image: Image::Dirty };
    let mut source = source(&setup, Some((2, "none")));
    // Little enough for the sockets' buffers, and no more of it.
    source.stop();
    let saved = scratch.path("saved");
    let mut recv = receiving(&saved, &[]);
    let uri = recv.listening();
    recv.process.signal(Signal::STOP);
    source.migrate(&uri);
    source.reaches("finish-migrate");
    source.qmp.event("STOP", STEP, |_| true);
    recv.process.signal(Signal::CONT);
    refused(&mut recv, "turn multifd off at the source, or on here");
    assert_eq!(source.ended(), "failed", "{}", source.query());
    assert!(!saved.exists(), "a refused migration has left {}", saved.display());
    nothing_temporary_left(&scratch, &saved);
}

/// What a `mig send` with these flags says to a QEMU that was told something else.
fn sent_into(release: Release, told: Told, flags: &[&str], code: i32, words: &str) {
    let Some(binary) = release.or_skip() else { return };
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine: "pc", scratch: &scratch, image: Image::Dirty };
    let file = scratch.path("plain");
    link::capture_without_us(&mut setup.source("source"), &file);
    let mut destination = setup.destination("destination");
    if let Some((channels, compression)) = told {
        set_multifd(&mut destination, channels, compression);
    }
    destination.incoming("tcp:127.0.0.1:0");
    let uri = format!("tcp:{}", destination.listening_address());
    let mut arguments = vec!["send", text(&file), &uri, "--json"];
    arguments.extend(flags);
    let mut send = Mig::start("mig send", &arguments);
    send.exits_with(code);
    let said = send.process.stderr().all(STEP);
    assert!(said.contains(words), "not {words:?}: {said}");
    let told = send.last_json();
    assert_eq!((&told["status"], &told["confirmed"]), (&json!("failed"), &json!(false)), "{told}");
}

/// What `mig send` advises where QEMU closes channels without a word.
const ALIKE: &str = "must be the same at both ends";
/// For a QEMU that waits for more channels, for ever.
const PATIENCE: [&str; 2] = ["--timeout", "3s"];

pub(crate) fn more_channels_than_qemu_expects(release: Release) {
    sent_into(release, Some((2, "none")), &["--multifd", "4"], 1, ALIKE);
}

pub(crate) fn fewer_channels_than_qemu_expects(release: Release) {
    let flags = ["--multifd", "2", PATIENCE[0], PATIENCE[1]];
    sent_into(release, Some((4, "none")), &flags, 5, ALIKE);
}

pub(crate) fn another_compression_than_qemu_expects(release: Release) {
    let flags = ["--multifd", "2", "--compression", "zlib"];
    sent_into(release, Some((2, "none")), &flags, 1, ALIKE);
}

pub(crate) fn another_uuid_than_qemu_expects(release: Release) {
    let flags = ["--multifd", "2", "--uuid", "00112233-4455-6677-8899-aabbccddeeff"];
    sent_into(release, Some((2, "none")), &flags, 1, ALIKE);
}

pub(crate) fn channels_where_qemu_expects_a_single_stream(release: Release) {
    sent_into(release, None, &["--multifd", "2"], 1, ALIKE);
}

pub(crate) fn single_stream_where_qemu_expects_channels(release: Release) {
    sent_into(release, Some((2, "none")), &PATIENCE, 5, "--timeout");
}
