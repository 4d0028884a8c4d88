//! The tiny guests, and how to know that all memory of `fw-dirty` arrived (tests/guests/README.md).
//!
//! `fw-dirty` fills 0x10000-0x7ffff, each 4 KiB page with the 16-bit word `page address / 16`, then for ever
//! increments the word at +0x10 and the byte at +0x800 of each of those 112 pages. A guest that merely goes on
//! counting proves little: with every page record removed from a stream it still counts. So the fill is checked at
//! each page, and the two counters of each page against each other.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use crate::process::STEP;
use crate::qmp::Qmp;
use crate::scratch::Scratch;

/// Start addresses of the pages that `fw-dirty` writes.
const PAGES: std::ops::Range<u64> = 0x10..0x80;

/// A guest image of `tests/guests`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// `cli; hlt` for ever.
    Idle,
    /// Fills 112 pages, then counts in each of them.
    Dirty,
}

impl Image {
    fn file_name(self) -> &'static str {
        match self {
            Self::Idle => "fw-idle.bin",
            Self::Dirty => "fw-dirty.bin",
        }
    }

    /// Unpacks the image into `scratch` (once) and gives its path.
    #[must_use]
    pub fn unpack(self, scratch: &Scratch) -> PathBuf {
        let unpacked = scratch.path(self.file_name());
        if !unpacked.exists() {
            let packed = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("guests")
                .join(format!("{}.zst", self.file_name()));
            let bytes = unpack(&packed);
            assert_eq!(bytes.len(), 64 << 10, "{} is not a 64 KiB image", packed.display());
            fs::write(&unpacked, bytes)
                .unwrap_or_else(|error| panic!("cannot write {}: {error}", unpacked.display()));
        }
        unpacked
    }
}

/// The contents of a zstd-compressed file of this repository.
#[must_use]
pub fn unpack(packed: &Path) -> Vec<u8> {
    fs::File::open(packed)
        .and_then(zstd::decode_all)
        .unwrap_or_else(|error| panic!("cannot unpack {}: {error}", packed.display()))
}

/// What the stopped guest's counters show, page by page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters(Vec<u16>);

/// Looks at every page of a **stopped** `fw-dirty`; `Err` names the first page that is wrong.
pub fn check(qmp: &mut Qmp) -> Result<Counters, String> {
    let mut counters = Vec::new();
    for number in PAGES {
        let page = number << 12;
        let fill = u16::try_from(page >> 4).expect("the last page is 0x7f000");
        let words = look(qmp, "2h", page);
        if words != [fill, fill] {
            return Err(format!("page {page:#x}: fill is {words:#x?}, not twice {fill:#x}"));
        }
        let word = look(qmp, "1h", page + 0x10)[0];
        let byte = look(qmp, "1b", page + 0x800)[0];
        let ahead = word.wrapping_sub(byte) & 0xff;
        if ahead > 1 {
            return Err(format!("page {page:#x}: the word says {word:#x}, the byte {byte:#x}"));
        }
        counters.push(word);
    }
    Ok(Counters(counters))
}

/// Waits until the running guest has filled its memory and gone once through all counters.
pub fn wait_until_counting(qmp: &mut Qmp) {
    let last = (PAGES.end - 1) << 12;
    let fill = u16::try_from(last >> 4).expect("the last page is 0x7f000");
    let deadline = Instant::now() + STEP;
    loop {
        if look(qmp, "2h", last) == [fill, fill] && look(qmp, "1h", last + 0x10) != [fill] {
            break;
        }
        assert!(Instant::now() < deadline, "the guest has not begun to count");
    }
}

/// Waits until every counter of the running guest has moved away from `before`.
pub fn wait_until_moved(qmp: &mut Qmp, before: &Counters) {
    let deadline = Instant::now() + STEP;
    for (number, old) in PAGES.zip(&before.0) {
        while look(qmp, "1h", (number << 12) + 0x10) == [*old] {
            assert!(Instant::now() < deadline, "page {:#x} no longer counts", number << 12);
        }
    }
}

/// All memory a guest of `bytes` bytes has, by QEMU's `pmemsave`.
#[must_use]
pub fn memory(qmp: &mut Qmp, bytes: usize, scratch: &Scratch, name: &str) -> Vec<u8> {
    let file = scratch.path(&format!("{name}.memory"));
    let _ = qmp.run("pmemsave", json!({ "val": 0, "size": bytes, "filename": file }));
    let contents = fs::read(&file)
        .unwrap_or_else(|error| panic!("no memory dump at {}: {error}", file.display()));
    // Some of these per test: not to be kept until its end.
    let _ = fs::remove_file(&file);
    assert_eq!(contents.len(), bytes, "a short memory dump");
    contents
}

/// Panics with the first address at which two memories differ.
#[track_caller]
pub fn assert_same_memory(what: &str, source: &[u8], destination: &[u8]) {
    assert_eq!(source.len(), destination.len(), "{what}: sizes differ");
    // At once before byte by byte: in the lab that is seconds.
    if source == destination {
        return;
    }
    if let Some(at) = source.iter().zip(destination).position(|(one, other)| one != other) {
        let differing = source.chunks(4096).zip(destination.chunks(4096)).filter(|(a, b)| a != b);
        panic!(
            "{what}: memory differs at {at:#x} ({:#x} at the source, {:#x} here), {} pages in all",
            source[at],
            destination[at],
            differing.count()
        );
    }
}

/// `xp /FORMATx ADDRESS`, parsed.
#[track_caller]
fn look(qmp: &mut Qmp, format: &str, address: u64) -> Vec<u16> {
    let printed = qmp.human(&format!("xp /{format}x {address:#x}"));
    let values =
        printed.lines().filter_map(|line| line.split_once(": ")).flat_map(|(_, values)| {
            values
                .split_whitespace()
                .map(|value| u16::from_str_radix(value.trim_start_matches("0x"), 16))
        });
    values.collect::<Result<_, _>>().unwrap_or_else(|_| panic!("not what xp prints: {printed:?}"))
}
