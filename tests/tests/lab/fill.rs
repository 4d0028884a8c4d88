//! Paused guests have exactly the memory they were given: proved before anything is proved with them.

use mig_tests::guest::assert_same_memory;
use mig_tests::paused::{FILLED_FROM, Paused, with_zero_pages};
use mig_tests::qemu::Release;
use mig_tests::scratch::Scratch;

use crate::in_the_lab;

fn memory_is_as_filled(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let scratch = Scratch::new();
    let paused = Paused { machine: "pc", ram_mib: 64, scratch: &scratch };
    let contents = with_zero_pages(paused.room(), 7, 4, 1);
    let mut source = paused.source(&binary, "source", &contents);
    let memory = paused.memory(&mut source);
    assert_same_memory("the filled guest", &contents, &memory[FILLED_FROM..]);

    let mut empty = paused.destination(&binary, "destination");
    let memory = paused.memory(&mut empty);
    assert!(memory[FILLED_FROM..].iter().all(|&byte| byte == 0), "a fresh guest is not empty");
}

#[test]
fn installed() {
    in_the_lab(|| memory_is_as_filled(Release::Installed));
}

#[test]
fn unpacked() {
    in_the_lab(|| memory_is_as_filled(Release::Unpacked));
}
