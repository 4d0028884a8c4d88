//! Paused guests have exactly the memory they were given: proved before anything is proved with them.

use mig_tests::guest::assert_same_memory;
use mig_tests::paused::{FILLED_FROM, Paused, with_zero_pages};
use mig_tests::qemu::Release;
use mig_tests::scratch::Scratch;

use crate::in_the_lab;

/// Not a whole number of MiB, let alone of the memory.
const FILLED: usize = (12 << 20) + 4096 + 100;

fn memory_is_as_filled(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let scratch = Scratch::new();
    let paused = Paused { machine: "pc", ram_mib: 64, scratch: &scratch };
    let contents = with_zero_pages(FILLED, 7, 4, 1);
    let mut source = paused.source(&binary, "source", &contents);
    let memory = paused.memory(&mut source);
    let filled_to = FILLED_FROM + FILLED;
    assert_same_memory("the filled guest", &contents, &memory[FILLED_FROM..filled_to]);
    assert_same_memory("above", &vec![0; memory.len() - filled_to], &memory[filled_to..]);

    let mut empty = paused.destination(&binary, "destination");
    let memory = paused.memory(&mut empty);
    let empty = vec![0; paused.room()];
    assert_same_memory("a fresh guest", &empty, &memory[FILLED_FROM..]);
}

#[test]
fn installed() {
    in_the_lab(|| memory_is_as_filled(Release::Installed));
}

#[test]
fn unpacked() {
    in_the_lab(|| memory_is_as_filled(Release::Unpacked));
}
