//! Cells in which the transport has no way back: asking for a return path is refused, and the guest stays.

use std::io::Read;
use std::os::fd::AsFd;

use serde_json::json;

use mig_tests::guest::Image;
use mig_tests::mig::{self, Mig};
use mig_tests::process::Process;
use mig_tests::qemu::{Binary, Qemu, Release, Setup, text};
use mig_tests::report::Cell;
use mig_tests::scratch::Scratch;

use crate::cell::nothing_temporary_left;
use crate::link::{self, Transport};

/// Both ends refuse a return path over a pipe or a file.
pub(crate) fn return_path(
    release: Release,
    machine: &'static str,
    transport: Transport,
    _asked: bool,
) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), machine, transport.name(), "return path");
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine, scratch: &scratch, image: Image::Dirty };
    let mut source = setup.source("source");
    source.set_capability("return-path", true);
    match transport {
        Transport::FdPipe => source_refuses_pipe(&mut source, &scratch),
        _ => source_refuses_file(&mut source, &binary, &scratch),
    }
    // The guest stays with its source.
    source.reaches("running");

    // Another source, so as not to meet the first one while it still tidies up ("duplicate yank instance").
    let stream = scratch.path("stream");
    link::capture_without_us(&mut setup.source("other"), &stream);
    match transport {
        Transport::FdPipe => mig_refuses_pipe(text(&stream)),
        _ => mig_refuses_file(text(&stream), &scratch),
    }
    cell.passed("refused");
}

/// QEMU fails; what reached `mig recv` by then does not become a file.
fn source_refuses_pipe(source: &mut Qemu, scratch: &Scratch) {
    let saved = scratch.path("saved");
    let (ours, qemus) = link::pipe_from_qemu();
    let mut command = mig::command(&["recv", "fd:0", "--save", text(&saved), "--json"]);
    command.stdin(ours);
    let mut mig = Mig { process: Process::start("mig recv", command, true) };
    source.hand_over("link", qemus.as_fd());
    drop(qemus);
    source.migrate("fd:link");
    assert_eq!(source.ended(), "failed", "{}", source.query());
    // 1: a peer that wants what the channel cannot do. 3: QEMU (7.2) has given up before its first byte.
    let status = mig.wait();
    assert!(matches!(status.code(), Some(1 | 3)), "{status}: {}", mig.process.stderr().text());
    assert_eq!(mig.last_json()["status"], "failed");
    assert!(!saved.exists(), "a refused migration has left {}", saved.display());
    nothing_temporary_left(scratch, &saved);
}

fn source_refuses_file(source: &mut Qemu, binary: &Binary, scratch: &Scratch) {
    let uri = format!("file:{}", text(&scratch.path("refused")));
    if binary.is_at_least(8, 2) {
        source.migrate(&uri);
        assert_eq!(source.ended(), "failed", "{}", source.query());
    } else {
        // No `file:` at all there. (`exec:cat > FILE` would wait for ever for an answer.)
        let refused = source.qmp.try_run("migrate", json!({ "uri": uri }));
        assert!(refused.is_err(), "QEMU {} took {uri}", binary.version());
        assert_eq!(source.ended(), "failed");
    }
}

/// Misuse, before anything is sent.
fn mig_refuses_pipe(stream: &str) {
    let (mut reader, writer) = std::io::pipe().unwrap_or_else(|error| panic!("pipe: {error}"));
    let mut mig =
        link::mig_writing_to(writer.into(), "mig send", &["send", stream, "fd:1", "--return-path"]);
    mig.exits_with(2);
    let mut written = Vec::new();
    let _ = reader.read_to_end(&mut written).unwrap_or_else(|error| panic!("pipe: {error}"));
    assert_eq!(written, b"", "sent before it refused");
}

fn mig_refuses_file(stream: &str, scratch: &Scratch) {
    let file = scratch.path("never");
    let uri = format!("file:{}", text(&file));
    Mig::start("mig send", &["send", stream, &uri, "--return-path"]).exits_with(2);
    assert!(!file.exists(), "created before it refused");
}
