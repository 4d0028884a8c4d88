//! Proves the harness before anything is proved with it: two QEMUs migrate into each other without us, everything
//! that the scenarios look at is right, and the memory check notices when it is not.

use mig_tests::guard::guarded;
use mig_tests::guest::{self, Image};
use mig_tests::qemu::{
    Binary, LostTrack, Release, Seen, Setup, text, with_a_source_that_keeps_track,
};
use mig_tests::scratch::Scratch;

/// How the two QEMUs are joined.
#[derive(Clone, Copy)]
enum Way {
    Tcp,
    Exec,
}

fn qemu_to_qemu(release: Release, machine: &str, way: Way) {
    let Some(binary) = release.or_skip() else { return };
    with_a_source_that_keeps_track(|| attempt(&binary, machine, way));
}

fn attempt(binary: &Binary, machine: &str, way: Way) -> Result<(), LostTrack> {
    let scratch = Scratch::new();
    let setup = Setup { binary, machine, scratch: &scratch, image: Image::Dirty };
    let mut source = setup.source("source");
    let mut destination = setup.destination("destination");
    match way {
        Way::Tcp => {
            destination.incoming("tcp:127.0.0.1:0");
            source.migrate(&format!("tcp:{}", destination.listening_address()));
            source.completed();
        }
        Way::Exec => {
            let file = scratch.path("stream");
            source.migrate(&format!("exec:cat > {}", text(&file)));
            source.completed();
            destination.incoming(&format!("exec:cat {}", text(&file)));
        }
    }
    destination.completed();
    source.kept_track()?;
    Seen::of(&mut source, &scratch).lives_on_in(&mut destination, &scratch);
    Ok(())
}

fn fresh_guest_fails_the_check(release: Release, machine: &str) {
    let Some(binary) = release.or_skip() else { return };
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine, scratch: &scratch, image: Image::Dirty };
    let mut fresh = setup.never_run("fresh");
    let wrong = guest::check(&mut fresh.qmp).expect_err("memory that nobody wrote passed");
    assert!(wrong.starts_with("page 0x10000: "), "{wrong}");
}

macro_rules! harness {
    ($($module:ident: $release:ident $machine:literal;)*) => { $(
        mod $module {
            use super::*;

            #[test]
            fn tcp() {
                guarded(|| qemu_to_qemu(Release::$release, $machine, Way::Tcp));
            }

            #[test]
            fn exec() {
                guarded(|| qemu_to_qemu(Release::$release, $machine, Way::Exec));
            }

            #[test]
            fn fresh_guest_fails() {
                guarded(|| fresh_guest_fails_the_check(Release::$release, $machine));
            }
        }
    )* };
}

harness! {
    installed_pc: Installed "pc";
    installed_q35: Installed "q35";
    unpacked_pc: Unpacked "pc";
    unpacked_q35: Unpacked "q35";
}
