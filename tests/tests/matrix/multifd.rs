//! Pages over data channels (`multifd`), between real QEMU and `mig`, and between two migs.
//!
//! ```text
//!   source QEMU ══▶ mig recv --multifd --save F ──▶ F ──exec:cat──▶ QEMU without multifd     all memory right,
//!                                                   F ──▶ mig send --multifd                 still counting
//!                                                              ╚══▶ mig recv --multifd --save G
//!                        G ──▶ mig send --multifd ══▶ QEMU     F and G bring the same
//! ```
//! What both ends must agree on: the number of channels, how pages are packed, and, by the machine type, where the main
//! channel marks a synchronisation: at the end of each section (8.0 and older) or once a round (docs/wire/ram.md §9.5).
//! Each wish below is one combination; together they have every value beside every other kind of source.

use std::path::Path;

use serde_json::{Value, json};

use mig_tests::guest::Image;
use mig_tests::mig::Mig;
use mig_tests::process::STEP;
use mig_tests::qemu::{
    Binary, LostTrack, Qemu, Release, Seen, Setup, text, with_a_source_that_keeps_track,
};
use mig_tests::report::{self, Cell};
use mig_tests::scratch::Scratch;
use mig_tests::stream;

use crate::cell::{loads_without_us, nothing_temporary_left};
use crate::link::{self, Transport};
use crate::secured::{Secured, Security};

/// One row of docs/interop.md.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    /// The row's name.
    pub(crate) feature: &'static str,
    pub(crate) transport: Transport,
    pub(crate) channels: u8,
    pub(crate) compression: &'static str,
    pub(crate) return_path: bool,
    pub(crate) source: Kind,
    pub(crate) security: Security,
}

/// What is particular about the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: its newest machine type.
    Usual,
    /// The machine type of 7.2 in a newer QEMU: marks at the end of each section, zero pages on the main channel.
    OldMachine,
    /// `zero-page-detection` legacy: zero pages on the main channel.
    LegacyZeroPages,
}

pub(crate) const PLAIN: Wish = Wish {
    feature: "multifd, 2 channels",
    transport: Transport::TcpV4,
    channels: 2,
    compression: "none",
    return_path: false,
    source: Kind::Usual,
    security: Security::Plain,
};

pub(crate) const ZLIB: Wish = Wish {
    feature: "multifd, 4 channels, zlib, return path",
    transport: Transport::Unix,
    channels: 4,
    compression: "zlib",
    return_path: true,
    ..PLAIN
};

pub(crate) const ZSTD: Wish = Wish {
    feature: "multifd, 4 channels, zstd, return path",
    transport: Transport::TcpV6,
    compression: "zstd",
    ..ZLIB
};

pub(crate) const OLD_MACHINE: Wish = Wish {
    feature: "multifd, 2 channels, zstd, machine type 7.2",
    transport: Transport::Unix,
    compression: "zstd",
    source: Kind::OldMachine,
    ..PLAIN
};

pub(crate) const LEGACY_ZERO_PAGES: Wish = Wish {
    feature: "multifd, 4 channels, zero pages on the main channel, return path",
    channels: 4,
    return_path: true,
    source: Kind::LegacyZeroPages,
    ..PLAIN
};

/// Each channel with TLS.
pub(crate) const TLS: Wish =
    Wish { feature: "multifd, 2 channels, TLS", security: Security::X509, ..PLAIN };

pub(crate) const TLS_ZSTD: Wish = Wish {
    feature: "multifd, 4 channels, zstd, TLS, return path",
    transport: Transport::Unix,
    security: Security::X509,
    ..ZSTD
};

impl Wish {
    /// The flags of `mig`.
    fn flags(&self) -> [String; 4] {
        [
            "--multifd".into(),
            self.channels.to_string(),
            "--compression".into(),
            self.compression.into(),
        ]
    }

    /// Turns it on in a QEMU, at either end.
    fn set(&self, qemu: &mut Qemu) {
        set_multifd(qemu, self.channels, self.compression);
        qemu.set_capability("return-path", self.return_path);
    }

    fn machine(&self, machine: &'static str) -> &'static str {
        match (self.source, machine) {
            (Kind::OldMachine, "pc") => "pc-i440fx-7.2",
            (Kind::OldMachine, _) => "pc-q35-7.2",
            _ => machine,
        }
    }
}

/// Capability and parameters of a QEMU.
pub(crate) fn set_multifd(qemu: &mut Qemu, channels: u8, compression: &str) {
    qemu.set_capability("multifd", true);
    qemu.set_parameters(json!({
        "multifd-channels": channels, "multifd-compression": compression,
    }));
}

/// See the module.
pub(crate) fn works(release: Release, machine: &'static str, wish: Wish) {
    let Some(binary) = release.or_skip() else { return };
    if wish.source != Kind::Usual && !binary.is_at_least(9, 0) {
        let reason = format!("QEMU {} knows no other way", binary.version());
        return report::not_applicable("older-multifd", &reason);
    }
    let cell = Cell::new(binary.version(), machine, wish.transport.name(), wish.feature);
    with_a_source_that_keeps_track(|| attempt(&binary, machine, wish));
    cell.passed("works");
}

fn attempt(binary: &Binary, machine: &'static str, wish: Wish) -> Result<(), LostTrack> {
    let scratch = Scratch::new();
    let machine = wish.machine(machine);
    let setup = Setup { binary, machine, scratch: &scratch, image: Image::Dirty };
    let (saved, again) = (scratch.path("saved"), scratch.path("again"));
    let secured = wish.security.arranged(&scratch);

    let mut source = setup.source("source");
    wish.set(&mut source);
    secured.source(&mut source, wish.transport);
    if wish.source == Kind::LegacyZeroPages {
        source.set_parameters(json!({ "zero-page-detection": "legacy" }));
    }
    let mut recv = receiving(&wish, &secured, &scratch, Some(&saved));
    source.migrate(&recv.listening());
    source.completed();
    received(&mut recv, wish.return_path);
    source.reaches("postmigrate");
    let told = source.query();
    went_beside(&told);
    if wish.source != Kind::Usual {
        // A record of at least eight bytes for each of some 2000 zero pages.
        assert!(told["ram"]["precopy-bytes"].as_u64() > Some(16_000), "{told}");
    }
    source.kept_track()?;
    let seen = Seen::of(&mut source, &scratch);

    is_complete(&saved);
    nothing_temporary_left(&scratch, &saved);
    loads_without_us(&setup, &seen, "without", &format!("exec:cat {}", text(&saved)));

    from_mig_to_mig(&wish, &secured, &scratch, &saved, &again);
    let mut destination = setup.destination("destination");
    into_qemu(&wish, &secured, &scratch, &again, &mut destination);
    seen.lives_on_in(&mut destination, &scratch);
    Ok(())
}

/// What QEMU wrote as a single stream, over data channels into QEMU.
pub(crate) fn plain_file(release: Release, machine: &'static str) {
    let Some(binary) = release.or_skip() else { return };
    let wish = Wish { feature: "multifd, 4 channels, of a plain file", channels: 4, ..PLAIN };
    let cell = Cell::new(binary.version(), machine, wish.transport.name(), wish.feature);
    with_a_source_that_keeps_track(|| {
        let scratch = Scratch::new();
        let setup = Setup { binary: &binary, machine, scratch: &scratch, image: Image::Dirty };
        let file = scratch.path("plain");
        let mut source = setup.source("source");
        source.migrate(&link::telling_its_end(&format!("cat > {}", text(&file))));
        source.completed();
        link::child_ended_well(&source);
        source.kept_track()?;
        let seen = Seen::of(&mut source, &scratch);
        let mut destination = setup.destination("destination");
        let secured = wish.security.arranged(&scratch);
        into_qemu(&wish, &secured, &scratch, &file, &mut destination);
        seen.lives_on_in(&mut destination, &scratch);
        Ok(())
    });
    cell.passed("works");
}

/// `mig recv` without `--save`: it reads everything, and QEMU is told that all is well.
pub(crate) fn verified_and_discarded(release: Release, machine: &'static str) {
    let Some(binary) = release.or_skip() else { return };
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine, scratch: &scratch, image: Image::Dirty };
    let wish = Wish { return_path: true, ..PLAIN };
    let mut source = setup.source("source");
    wish.set(&mut source);
    let secured = wish.security.arranged(&scratch);
    let mut recv = receiving(&wish, &secured, &scratch, None);
    source.migrate(&recv.listening());
    source.completed();
    received(&mut recv, true);
}

/// A `mig recv` that expects this, kept in `save` or not at all.
fn receiving(wish: &Wish, secured: &Secured, scratch: &Scratch, save: Option<&Path>) -> Mig {
    let uri = link::listening_uri(wish.transport, scratch, "recv");
    let flags = wish.flags();
    let mut words = vec!["recv", uri.as_str(), "--json"];
    words.extend(flags.iter().map(String::as_str));
    let secured = secured.destination_flags();
    words.extend(secured.iter().map(String::as_str));
    if let Some(save) = save {
        words.extend(["--save", text(save)]);
    }
    Mig::start("mig recv", &words)
}

#[track_caller]
fn received(recv: &mut Mig, confirmed: bool) {
    recv.succeeds();
    let told = recv.last_json();
    assert_eq!((&told["status"], &told["confirmed"]), (&json!("completed"), &json!(confirmed)));
    went_beside(&told);
    // The guest has filled 112 pages, each with something in it; the rest of its memory is zero.
    assert!(told["pages"]["normal"].as_u64() >= Some(112), "{told}");
    assert!(told["pages"]["zero"].as_u64() >= Some(1000), "{told}");
}

fn sending(wish: &Wish, secured: &Secured, file: &Path, uri: &str) -> Mig {
    let flags = wish.flags();
    let mut words = vec!["send", text(file), uri, "--json", link::flag(wish.return_path)];
    words.extend(flags.iter().map(String::as_str));
    let secured = secured.source_flags(wish.transport);
    words.extend(secured.iter().map(String::as_str));
    Mig::start("mig send", &words)
}

#[track_caller]
fn sent(send: &mut Mig, confirmed: bool) {
    send.succeeds();
    let told = send.last_json();
    assert_eq!((&told["status"], &told["confirmed"]), (&json!("completed"), &json!(confirmed)));
    went_beside(&told);
}

/// The pages did take the data channels, also by this end's own statistics.
#[track_caller]
fn went_beside(told: &Value) {
    // At least a packet with its header; well packed pages take little more.
    assert!(told["ram"]["multifd-bytes"].as_u64() > Some(1344), "{told}");
}

/// The same guest in `to` as in `from`, page by page and device by device.
fn from_mig_to_mig(wish: &Wish, secured: &Secured, scratch: &Scratch, from: &Path, to: &Path) {
    let mut recv = receiving(wish, secured, scratch, Some(to));
    let mut send = sending(wish, secured, from, &recv.listening());
    sent(&mut send, wish.return_path);
    received(&mut recv, wish.return_path);
    is_complete(to);
    let read = |file: &Path| std::fs::read(file).expect("recv has said that it is there");
    let brought = |file: &Path| stream::brought(text(file), &read(file));
    stream::assert_brings_the_same("from mig to mig", &brought(from), &brought(to));
}

fn into_qemu(
    wish: &Wish,
    secured: &Secured,
    scratch: &Scratch,
    file: &Path,
    destination: &mut Qemu,
) {
    wish.set(destination);
    secured.destination(destination);
    let mut uri = link::listening_uri(wish.transport, scratch, "into-qemu");
    destination.incoming(&uri);
    if wish.transport != Transport::Unix {
        uri = format!("tcp:{}", destination.listening_address());
    }
    let mut send = sending(wish, secured, file, &uri);
    destination.completed();
    sent(&mut send, wish.return_path);
}

/// `mig inspect` finds a whole plain stream, each page once.
#[track_caller]
fn is_complete(file: &Path) {
    let bytes = std::fs::read(file).expect("recv has said that it is there");
    stream::assert_reencodes("the saved file", &bytes);
    let mut inspect = Mig::start("mig inspect", &["inspect", text(file), "--json"]);
    inspect.succeeds();
    let all = inspect.process.stdout().all(STEP);
    let told: Value = serde_json::from_str(&all)
        .unwrap_or_else(|error| panic!("inspect says what is no JSON ({error}): {all:?}"));
    assert_eq!(told["complete"], true, "{}", told["error"]);
    let pages = &told["ram"]["pages"];
    let total = pages["normal"].as_u64().unwrap_or(0) + pages["zero"].as_u64().unwrap_or(0);
    let blocks = told["ram"]["blocks"].as_array().expect("the stream has a block list");
    let bytes: u64 = blocks.iter().filter_map(|block| block["used_length"].as_u64()).sum();
    assert_eq!(total, bytes >> 12, "every page once: {pages}");
}
