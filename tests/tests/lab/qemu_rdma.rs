//! QEMU to QEMU over `rdma:`, without us: which pairs and modes work in the lab at all.
//!
//! The other tests with QEMU over RDMA are read against this: where two QEMUs fail, ours need not work.

use mig_tests::guest::assert_same_memory;
use mig_tests::lab;
use mig_tests::paused::{Paused, with_zero_pages};
use mig_tests::qemu::{Binary, Release};
use mig_tests::report::Cell;
use mig_tests::scratch::Scratch;

use crate::in_the_lab;

/// The newest machine that both releases have.
const MACHINE: &str = "pc-i440fx-7.2";
const RAM_MIB: usize = 64;
/// A quarter of the memory, every fourth page of it zero: enough chunks of each kind.
const FILLED: usize = 16 << 20;

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
const ACROSS: Mode = Mode { feature: "chunked, into the other QEMU", ..CHUNKED };

/// On a busy machine QEMU loses patience with the emulated device now and then, without any mig in sight.
const ATTEMPTS: u32 = 3;

fn works(from: Release, into: Release, mode: Mode) {
    let (Some(from), Some(into)) = (from.or_skip(), into.or_skip()) else { return };
    let cell = Cell::new(from.version(), "pc", "rdma, QEMU to QEMU without mig", mode.feature);
    for attempt in 1..=ATTEMPTS {
        match migrates(&from, &into, mode) {
            Ok(outcome) => return cell.passed(outcome),
            Err(why) if attempt < ATTEMPTS => println!("attempt {attempt}: {why}"),
            Err(why) => panic!("{ATTEMPTS} attempts: {why}"),
        }
    }
}

fn migrates(from: &Binary, into: &Binary, mode: Mode) -> Result<&'static str, String> {
    let scratch = Scratch::new();
    let paused = Paused { machine: MACHINE, ram_mib: RAM_MIB, scratch: &scratch };
    let mut source = paused.source(from, "source", &with_zero_pages(FILLED, 1, 4, 1));
    let mut destination = paused.destination(into, "destination");
    for end in [&mut source, &mut destination] {
        end.set_capability("rdma-pin-all", mode.pin_all);
        end.set_capability("return-path", mode.return_path);
    }
    let uri = format!("rdma:{}:{}", lab::IPV4, lab::port());
    destination.incoming(&uri);
    source.migrate(&uri);
    // Until 8.0 the second connection was for postcopy only, and a source that wants answers gives up without it
    // (docs/wire/rdma.md §13).
    if mode.return_path && !from.is_at_least(8, 0) {
        return match source.ended().as_str() {
            "failed" => Ok("fails"),
            other => panic!("{other}: without the second connection"),
        };
    }
    match source.ended().as_str() {
        "completed" => destination.completed(),
        other => return Err(format!("the source {other}")),
    }
    let (sent, received) = (paused.memory(&mut source), paused.memory(&mut destination));
    assert_same_memory("destination", &sent, &received);
    Ok("works")
}

/// Through 10.0 QEMU refuses IPv6 on an Ethernet link (docs/wire/rdma.md §2.6).
fn ipv6(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), "pc", "rdma, QEMU to QEMU without mig", "IPv6");
    let scratch = Scratch::new();
    let paused = Paused { machine: MACHINE, ram_mib: RAM_MIB, scratch: &scratch };
    let mut destination = paused.destination(&binary, "destination");
    let uri = format!("rdma:[{}]:{}", lab::IPV6, lab::port());
    let answer = destination.qmp.try_run("migrate-incoming", serde_json::json!({ "uri": uri }));
    assert!(
        !binary.is_at_least(10, 1),
        "the block was lifted in 10.1: make this a cell that works"
    );
    let why = answer.expect_err("IPv6 over soft-RoCE was refused until 10.1");
    assert!(why.contains("IPv6"), "{why}");
    cell.passed("refused");
}

macro_rules! baseline {
    ($($name:ident: $from:ident $into:ident $mode:ident;)*) => { $(
        #[test]
        fn $name() {
            in_the_lab(|| works(Release::$from, Release::$into, $mode));
        }
    )* };
}

baseline! {
    installed_chunked: Installed Installed CHUNKED;
    installed_pin_all: Installed Installed PIN_ALL;
    installed_return_path: Installed Installed RETURN_PATH;
    installed_pin_all_return_path: Installed Installed PIN_ALL_RETURN_PATH;
    installed_into_unpacked: Installed Unpacked ACROSS;
    unpacked_chunked: Unpacked Unpacked CHUNKED;
    unpacked_pin_all: Unpacked Unpacked PIN_ALL;
    unpacked_return_path: Unpacked Unpacked RETURN_PATH;
    unpacked_pin_all_return_path: Unpacked Unpacked PIN_ALL_RETURN_PATH;
    unpacked_into_installed: Unpacked Installed ACROSS;
}

#[test]
fn installed_ipv6() {
    in_the_lab(|| ipv6(Release::Installed));
}

#[test]
fn unpacked_ipv6() {
    in_the_lab(|| ipv6(Release::Unpacked));
}
