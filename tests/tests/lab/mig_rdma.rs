//! QEMU and `mig` over `rdma:`, in both directions.
//!
//! ```text
//!   source QEMU ──rdma──▶ mig recv --save ─ file ─ mig send ──rdma──▶ destination QEMU
//!                                            └─────── exec:cat ─────▶ a QEMU without RDMA
//! ```
//! A cell that works has shown that both QEMUs hold, byte for byte, the memory of the source, that both real ends say
//! completed, that the devices arrived (the guest runs), and that nothing of it is left on the device.

use mig_tests::guest::assert_same_memory;
use mig_tests::lab;
use mig_tests::mig::Mig;
use mig_tests::paused::{Paused, with_zero_pages};
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
