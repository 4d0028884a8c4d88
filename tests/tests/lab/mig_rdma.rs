//! QEMU and `mig` over `rdma:`, in both directions.
//!
//! ```text
//!   source QEMU ──rdma──▶ mig recv --save ─ file ─ mig send ──rdma──▶ destination QEMU
//!                                            └─────── exec:cat ─────▶ a QEMU without RDMA
//! ```
//! A cell that works has shown that both QEMUs hold, byte for byte, the memory of the source, that both real ends say
//! completed, that the devices arrived (the guest runs), and that nothing of it is left on the device.

use rustix::process::Signal;
use serde_json::{Value, json};

use mig_tests::guest::assert_same_memory;
use mig_tests::lab;
use mig_tests::mig::Mig;
use mig_tests::paused::{Paused, with_zero_pages};
use mig_tests::process::STEP;
use mig_tests::qemu::{Binary, Qemu, Release, text};
use mig_tests::report::Cell;
use mig_tests::scratch::Scratch;

use crate::in_the_lab_without_a_trace;

const MACHINE: &str = "pc";
const RAM_MIB: usize = 64;
/// A quarter of the memory, every fourth page of it zero: chunks of each kind.
const FILLED: usize = 16 << 20;
/// The row of docs/interop.md.
const TRANSPORT: &str = "rdma";

/// One way of migrating.
#[derive(Clone, Copy)]
struct Mode {
    feature: &'static str,
    pin_all: bool,
    return_path: bool,
}

const CHUNKED: Mode = Mode { feature: "chunked", pin_all: false, return_path: false };
const PIN_ALL: Mode = Mode { feature: "pin-all", pin_all: true, return_path: false };
const RETURN_PATH: Mode =
    Mode { feature: "chunked, return path", pin_all: false, return_path: true };
const PIN_ALL_RETURN_PATH: Mode =
    Mode { feature: "pin-all, return path", pin_all: true, return_path: true };

fn uri() -> String {
    format!("rdma:{}:{}", lab::IPV4, lab::port())
}

/// Both directions.
fn works(release: Release, mode: Mode) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), "pc", TRANSPORT, mode.feature);
    let scratch = Scratch::new();
    let paused = Paused { machine: MACHINE, ram_mib: RAM_MIB, scratch: &scratch };
    let saved = scratch.path("saved");
    let sent = out_of_qemu(&binary, &paused, mode, text(&saved));
    into_qemu(&binary, &paused, mode, text(&saved), &sent);

    let mut third = paused.destination(&binary, "third");
    third.incoming(&format!("exec:cat {}", text(&saved)));
    arrived(&paused, &mut third, &sent);
    cell.passed("works");
}

/// Into `mig recv --save`; gives the memory that the source had.
fn out_of_qemu(binary: &Binary, paused: &Paused<'_>, mode: Mode, saved: &str) -> Vec<u8> {
    let mut source = paused.source(binary, "source", &with_zero_pages(FILLED, 3, 4, 1));
    source.set_capability("rdma-pin-all", mode.pin_all);
    source.set_capability("return-path", mode.return_path);
    let uri = uri();
    let mut words = vec!["recv", &uri, "--save", saved, "--json"];
    words.extend(mode.return_path.then_some("--return-path"));
    let mut recv = Mig::start("mig recv", &words);
    source.migrate(&recv.listening());
    source.completed();
    recv.succeeds();
    let told = recv.last_json();
    assert_eq!(told["status"], "completed", "{told}");
    assert_eq!(told["confirmed"], mode.return_path, "{told}");
    paused.memory(&mut source)
}

/// By `mig send`.
fn into_qemu(binary: &Binary, paused: &Paused<'_>, mode: Mode, saved: &str, sent: &[u8]) {
    let mut destination = paused.destination(binary, "destination");
    // What a destination wants pinned is its source's word, which is why it is not set here (docs/wire/rdma.md §2.3).
    destination.set_capability("return-path", mode.return_path);
    let uri = uri();
    destination.incoming(&uri);
    let flag = if mode.return_path { "--return-path" } else { "--no-return-path" };
    let mut words = vec!["send", saved, &uri, flag, "--json"];
    words.extend(mode.pin_all.then_some("--rdma-pin-all"));
    let mut send = Mig::start("mig send", &words);
    arrived(paused, &mut destination, sent);
    send.succeeds();
    let told = send.last_json();
    assert_eq!(told["status"], "completed", "{told}");
    assert_eq!(told["confirmed"], mode.return_path, "{told}");
}

/// A destination has everything: memory as it was, and devices with which the guest runs.
#[track_caller]
fn arrived(paused: &Paused<'_>, destination: &mut Qemu, sent: &[u8]) {
    destination.completed();
    let name = destination.process.name().to_owned();
    assert_same_memory(&name, sent, &paused.memory(destination));
    destination.cont();
    destination.reaches("running");
}

/// As much of the device state as makes more than one message of the longest kind.
const MUCH_STATE: [&str; 8] = [
    "-device",
    "e1000,romfile=",
    "-device",
    "e1000,romfile=",
    "-device",
    "e1000,romfile=",
    "-device",
    "e1000,romfile=",
];

/// What this end does that QEMU's own source never would: each is legal, and is seen to be taken.
fn longest_of_everything(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let scratch = Scratch::new();
    let paused = Paused { machine: MACHINE, ram_mib: 128, scratch: &scratch };
    // What comes behind this is zero, and longer than a window.
    let contents = with_zero_pages(FILLED, 9, 4, 1);
    let mut source = paused.source_with(&binary, "source", &contents, &MUCH_STATE);
    let saved = scratch.path("saved");
    source.migrate(&format!("exec:cat > {}", text(&saved)));
    source.completed();
    let sent = paused.memory(&mut source);
    drop(source);

    let mut destination = paused.destination_with(&binary, "destination", &MUCH_STATE);
    let uri = uri();
    destination.incoming(&uri);
    let mut send = Mig::traced(
        "mig send",
        "mig_transport_rdma=trace",
        &["send", text(&saved), &uri, "--json"],
    );
    arrived(&paused, &mut destination, &sent);
    send.succeeds();
    let trace = send.process.stderr().text();
    let longest = |message: &str, number: &str| {
        let lines = trace.lines().filter(|line| line.contains(message));
        lines.filter_map(|line| number_after(line, number)).max().unwrap_or_default()
    };
    assert!(longest("sending stream bytes", "len=") >= 256 << 10, "{trace}");
    assert_eq!(longest("Register(", "chunks: "), 63, "{trace}");
    assert_eq!(longest("Compress(", "length: "), 64 << 20, "{trace}");
    assert!(longest("writing", "len: ") >= 1 << 20, "{trace}");
}

/// The decimal number behind `word`.
fn number_after(line: &str, word: &str) -> Option<u64> {
    let (_, after) = line.split_once(word)?;
    let digits = after.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Waits until a silent connection was asked twice whether it still stands, and answered.
fn is_probed(mig: &Mig) {
    let mut probes = 0;
    mig.process.stderr().wait_for("second answered probe", STEP, |line| {
        probes += usize::from(line.contains("the probe came through"));
        (probes == 2).then_some(())
    });
}

/// A source that is told to wait before it switches over says nothing for as long as it likes.
fn silent_source(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let scratch = Scratch::new();
    let paused = Paused { machine: MACHINE, ram_mib: RAM_MIB, scratch: &scratch };
    let mut source = paused.source(&binary, "source", &with_zero_pages(FILLED, 11, 4, 1));
    source.set_capability("pause-before-switchover", true);
    let (uri, saved) = (uri(), scratch.path("saved"));
    let words = ["recv", &uri, "--save", text(&saved), "--json"];
    let mut recv = Mig::traced("mig recv", "mig_transport_rdma=trace", &words);
    source.migrate(&recv.listening());
    let waits = |data: &Value| data["status"] == "pre-switchover";
    let _ = source.qmp.event("MIGRATION", STEP, waits);
    is_probed(&recv);
    let _ = source.qmp.run("migrate-continue", json!({ "state": "pre-switchover" }));
    source.completed();
    recv.succeeds();
}

/// A destination that does not get to run for a while: its device answers for it.
fn silent_destination(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let scratch = Scratch::new();
    let paused = Paused { machine: MACHINE, ram_mib: RAM_MIB, scratch: &scratch };
    let mut source = paused.source(&binary, "source", &with_zero_pages(FILLED, 13, 4, 1));
    let saved = scratch.path("saved");
    source.migrate(&format!("exec:cat > {}", text(&saved)));
    source.completed();
    let sent = paused.memory(&mut source);

    let mut destination = paused.destination(&binary, "destination");
    let uri = uri();
    destination.incoming(&uri);
    // Slow enough to be met in the middle.
    let words = ["send", text(&saved), &uri, "--json", "--max-bandwidth", "4MiB"];
    let mut send = Mig::traced("mig send", "mig_transport_rdma=trace", &words);
    send.process
        .stderr()
        .wait_for("first WRITE", STEP, |line| line.contains("writing").then_some(()));
    destination.process.signal(Signal::STOP);
    is_probed(&send);
    destination.process.signal(Signal::CONT);
    arrived(&paused, &mut destination, &sent);
    send.succeeds();
}

macro_rules! cells {
    ($($name:ident: $release:ident $mode:ident;)*) => { $(
        #[test]
        fn $name() {
            in_the_lab_without_a_trace(|| works(Release::$release, $mode));
        }
    )* };
}

cells! {
    installed_chunked: Installed CHUNKED;
    installed_pin_all: Installed PIN_ALL;
    unpacked_chunked: Unpacked CHUNKED;
    unpacked_pin_all: Unpacked PIN_ALL;
    unpacked_return_path: Unpacked RETURN_PATH;
    unpacked_pin_all_return_path: Unpacked PIN_ALL_RETURN_PATH;
}

macro_rules! each {
    ($($name:ident: $what:ident $release:ident;)*) => { $(
        #[test]
        fn $name() {
            in_the_lab_without_a_trace(|| $what(Release::$release));
        }
    )* };
}

each! {
    installed_takes_the_longest_of_everything: longest_of_everything Installed;
    unpacked_takes_the_longest_of_everything: longest_of_everything Unpacked;
    installed_is_probed_while_it_waits_to_switch_over: silent_source Installed;
    unpacked_is_probed_while_it_waits_to_switch_over: silent_source Unpacked;
    installed_is_probed_while_it_does_not_run: silent_destination Installed;
    unpacked_is_probed_while_it_does_not_run: silent_destination Unpacked;
}
