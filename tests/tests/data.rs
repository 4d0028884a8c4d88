//! The captured streams of tests/data are what their names say: real QEMU loads each of them, also a newer QEMU that
//! plays the older machine, and the guest in it lives on. Without this, a decoder that agrees with a broken capture
//! would look right.

use std::path::Path;

use mig_tests::guard::guarded;
use mig_tests::guest::{Image, unpack};
use mig_tests::qemu::{Release, Setup, text};
use mig_tests::report;
use mig_tests::scratch::Scratch;

/// A captured stream, and the oldest QEMU that knows its machine.
struct Captured {
    name: &'static str,
    machine: &'static str,
    image: Image,
    since: (u32, u32),
}

const PC_7_2: Captured = Captured {
    name: "pc-7.2.22-idle-return-path",
    machine: "pc-i440fx-7.2",
    image: Image::Idle,
    since: (7, 2),
};
const Q35_7_2: Captured = Captured {
    name: "q35-7.2.22-dirty-plain",
    machine: "pc-q35-7.2",
    image: Image::Dirty,
    since: (7, 2),
};
const PC_10_0: Captured = Captured {
    name: "pc-10.0.2-dirty-plain",
    machine: "pc-i440fx-10.0",
    image: Image::Dirty,
    since: (10, 0),
};
const Q35_10_0: Captured = Captured {
    name: "q35-10.0.2-dirty-return-path",
    machine: "pc-q35-10.0",
    image: Image::Dirty,
    since: (10, 0),
};

fn loads(captured: &Captured, release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let (major, minor) = captured.since;
    if !binary.is_at_least(major, minor) {
        let reason = format!("QEMU {} has no {}", binary.version(), captured.machine);
        return report::not_applicable("older-qemu", &reason);
    }
    let packed = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("data")
        .join(format!("{}.bin.zst", captured.name));
    let scratch = Scratch::new();
    let stream = scratch.path("stream");
    std::fs::write(&stream, unpack(&packed)).expect("the scratch directory is writable");
    let setup = Setup {
        binary: &binary,
        machine: captured.machine,
        scratch: &scratch,
        image: captured.image,
    };
    let mut destination = setup.destination("destination");
    destination.incoming(&format!("exec:cat {}", text(&stream)));
    destination.completed();
    if captured.image == Image::Dirty {
        let before = destination.counters();
        destination.cont();
        destination.counts_on_from(&before);
    }
}

macro_rules! captures {
    ($($test:ident: $captured:ident $release:ident;)*) => { $(
        #[test]
        fn $test() {
            guarded(|| loads(&$captured, Release::$release));
        }
    )* };
}

captures! {
    pc_7_2_into_installed: PC_7_2 Installed;
    pc_7_2_into_unpacked: PC_7_2 Unpacked;
    q35_7_2_into_installed: Q35_7_2 Installed;
    q35_7_2_into_unpacked: Q35_7_2 Unpacked;
    pc_10_0_into_installed: PC_10_0 Installed;
    pc_10_0_into_unpacked: PC_10_0 Unpacked;
    q35_10_0_into_installed: Q35_10_0 Installed;
    q35_10_0_into_unpacked: Q35_10_0 Unpacked;
}
