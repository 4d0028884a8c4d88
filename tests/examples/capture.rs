//! Records a migration stream of a real QEMU for `tests/data` (docs/testing.md says how to go on from there).
//!
//! ```text
//! cargo run -p mig-tests --example capture -- installed|unpacked pc|q35 idle|dirty plain|return-path OUT
//! ```
//! Writes OUT.bin.zst (source to destination) and, with a return path, OUT.answers.bin (the other direction). The
//! guest is stopped before it migrates to a second QEMU of the same kind; the tap between them does the recording.

use std::path::Path;
use std::process::ExitCode;

use mig_tests::guest::Image;
use mig_tests::qemu::{Release, Setup, text};
use mig_tests::scratch::Scratch;
use mig_tests::tap::Tap;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let &[release, machine @ ("pc" | "q35"), image, path, out] = words.as_slice() else {
        return usage();
    };
    let release = match release {
        "installed" => Release::Installed,
        "unpacked" => Release::Unpacked,
        _ => return usage(),
    };
    let image = match image {
        "idle" => Image::Idle,
        "dirty" => Image::Dirty,
        _ => return usage(),
    };
    let return_path = match path {
        "plain" => false,
        "return-path" => true,
        _ => return usage(),
    };
    let Some(binary) = release.or_skip() else { return ExitCode::FAILURE };
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine, scratch: &scratch, image };
    let (at_tap, at_destination) = (scratch.path("tap"), scratch.path("destination"));

    let mut destination = setup.destination("to");
    destination.incoming(&format!("unix:{}", text(&at_destination)));
    let tap = Tap::between(&at_tap, &at_destination);
    let mut source = setup.source("from");
    source.stop();
    source.set_capability("return-path", return_path);
    source.migrate(&format!("unix:{}", text(&at_tap)));
    source.completed();
    destination.completed();
    let recording = tap.recording();

    let packed = zstd::encode_all(recording.stream.as_slice(), 19).expect("packing into memory");
    write(&format!("{out}.bin.zst"), &packed);
    if return_path {
        write(&format!("{out}.answers.bin"), &recording.answers);
    }
    println!(
        "QEMU {}: {} bytes, packed {}; {} bytes of answers",
        binary.version(),
        recording.stream.len(),
        packed.len(),
        recording.answers.len()
    );
    ExitCode::SUCCESS
}

fn write(file: &str, bytes: &[u8]) {
    std::fs::write(Path::new(file), bytes)
        .unwrap_or_else(|error| panic!("cannot write {file}: {error}"));
}

fn usage() -> ExitCode {
    eprintln!("usage: capture installed|unpacked pc|q35 idle|dirty plain|return-path OUT");
    ExitCode::from(2)
}
