//! `rdma:` where the ends do not agree, about a return path or about IPv6: nothing is negotiated, so one of them has to
//! find out. Ours says what is wrong, in bounded time, and leaves nothing that looks complete.

use std::path::PathBuf;

use mig_tests::lab;
use mig_tests::mig::Mig;
use mig_tests::paused::{Paused, incompressible};
use mig_tests::process::STEP;
use mig_tests::qemu::{Binary, Release, text};
use mig_tests::report::Cell;
use mig_tests::scratch::Scratch;

use crate::in_the_lab_without_a_trace;

/// Little: it is not the memory that is looked at here.
const FILLED: usize = 1 << 20;

/// Longer than any handshake, and the end of a `recv` that waits for somebody better.
const TIMEOUT: [&str; 2] = ["--timeout", "25s"];

fn uri() -> String {
    format!("rdma:{}:{}", lab::IPV4, lab::port())
}

fn paused(scratch: &Scratch) -> Paused<'_> {
    Paused { machine: "pc", ram_mib: 64, scratch }
}

/// A stored guest to send.
fn stored(binary: &Binary, scratch: &Scratch) -> PathBuf {
    let file = scratch.path("stored");
    let mut source = paused(scratch).source(binary, "stored", &incompressible(FILLED, 1));
    source.migrate(&format!("exec:cat > {}", text(&file)));
    source.completed();
    file
}

/// `mig` with `--return-path` or without.
fn start(name: &str, words: &[&str], return_path: bool) -> Mig {
    let more = return_path.then_some("--return-path");
    let words: Vec<&str> = words.iter().chain(&TIMEOUT).copied().chain(more).collect();
    Mig::start(name, &words)
}

/// Ends with one of these codes, and somewhere one of these words.
#[track_caller]
fn fails_saying(mut mig: Mig, codes: &[i32], any_of: &[&str]) {
    let status = mig.wait();
    let stderr = mig.process.stderr().all(STEP);
    let name = mig.process.name();
    assert!(status.code().is_some_and(|code| codes.contains(&code)), "{name}: {status}\n{stderr}");
    let said = any_of.iter().any(|word| stderr.contains(word));
    assert!(said, "{name} says none of {any_of:?}:\n{stderr}");
}

/// QEMU sends, and only one of the two wants answers.
fn from_qemu(release: Release, qemu_wants: bool) {
    let Some(binary) = release.or_skip() else { return };
    let scratch = Scratch::new();
    let mut source = paused(&scratch).source(&binary, "source", &incompressible(FILLED, 1));
    source.set_capability("return-path", qemu_wants);
    let (uri, saved) = (uri(), scratch.path("saved"));
    let recv = start("mig recv", &["recv", &uri, "--save", text(&saved)], !qemu_wants);
    source.migrate(&recv.listening());
    assert_eq!(source.ended(), "failed");
    // Where nobody has come whom it could take, it waits for somebody else until the end of its time. 7.2 may go away
    // before it has said anything: its own half of a return path outside postcopy does not work (docs/wire/rdma.md §11).
    let speechless = (!binary.is_at_least(8, 0) && qemu_wants).then_some("ended after 0 bytes");
    let any_of: Vec<&str> = ["return path"].into_iter().chain(speechless).collect();
    fails_saying(recv, &[1, 2, 3, 5], &any_of);
    assert!(!saved.exists(), "a file that looks complete");
}

/// `mig send` wants answers from a QEMU that gives none.
fn into_qemu_without_answers(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let scratch = Scratch::new();
    let stored = stored(&binary, &scratch);
    let mut destination = paused(&scratch).destination(&binary, "destination");
    let uri = uri();
    destination.incoming(&uri);
    let send = start("mig send", &["send", text(&stored), &uri], true);
    fails_saying(send, &[1], &["the return path, which the destination must want as well"]);
}

/// QEMU wants to answer a `mig send` that does not ask: it gets everything, and cannot tell its source.
fn into_qemu_with_answers(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let scratch = Scratch::new();
    let stored = stored(&binary, &scratch);
    let mut destination = paused(&scratch).destination(&binary, "destination");
    destination.set_capability("return-path", true);
    let uri = uri();
    destination.incoming(&uri);
    let mut send = start("mig send", &["send", text(&stored), &uri, "--json"], false);
    send.succeeds();
    assert_eq!(send.last_json()["confirmed"], false);
    destination.completed();
}

fn mig_to_mig(source_wants: bool) {
    let Some(binary) = Release::Installed.or_skip() else { return };
    let scratch = Scratch::new();
    let stored = stored(&binary, &scratch);
    let (uri, saved) = (uri(), scratch.path("saved"));
    let recv = start("mig recv", &["recv", &uri, "--save", text(&saved)], !source_wants);
    let send = start("mig send", &["send", text(&stored), &recv.listening()], source_wants);
    // Who comes to know first says it; the other one knows that it is alone, and a `recv` waits for somebody else.
    let [at_source, at_destination] = if source_wants {
        ["it wants no return path", "reports by an ERROR message"]
    } else {
        ["its own log has the reason", "no second connection for a return path"]
    };
    fails_saying(send, &[1], &[at_source]);
    fails_saying(recv, &[5], &[at_destination]);
    assert!(!saved.exists(), "a file that looks complete");
}

/// Through 10.0 QEMU refuses IPv6 on an Ethernet link (docs/wire/rdma.md §2.6), at either end.
fn ipv6(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), "pc", "rdma", "IPv6");
    assert!(
        !binary.is_at_least(10, 1),
        "the block was lifted in 10.1: make this a cell that works"
    );
    let scratch = Scratch::new();
    let mut source = paused(&scratch).source(&binary, "source", &incompressible(FILLED, 1));
    let (uri, saved) = (format!("rdma:[{}]:{}", lab::IPV6, lab::port()), scratch.path("saved"));
    let mut recv = Mig::start("mig recv", &["recv", &uri, "--save", text(&saved)]);
    let answer = source.qmp.try_run("migrate", serde_json::json!({ "uri": recv.listening() }));
    let why = answer.expect_err("IPv6 over soft-RoCE was refused until 10.1");
    assert!(why.contains("IPv6"), "{why}");
    assert_eq!(source.ended(), "failed");
    // Nobody came.
    recv.process.signal(rustix::process::Signal::INT);
    recv.exits_with(4);
    cell.passed("refused");
}

#[test]
fn mig_to_mig_only_the_source_wants_answers() {
    in_the_lab_without_a_trace(|| mig_to_mig(true));
}

#[test]
fn mig_to_mig_only_the_destination_wants_answers() {
    in_the_lab_without_a_trace(|| mig_to_mig(false));
}

macro_rules! each {
    ($($name:ident: $what:ident $release:ident $($wants:literal)?;)*) => { $(
        #[test]
        fn $name() {
            in_the_lab_without_a_trace(|| $what(Release::$release $(, $wants)?));
        }
    )* };
}

each! {
    from_installed_that_wants_answers: from_qemu Installed true;
    from_installed_to_one_that_wants_to_answer: from_qemu Installed false;
    from_unpacked_that_wants_answers: from_qemu Unpacked true;
    from_unpacked_to_one_that_wants_to_answer: from_qemu Unpacked false;
    into_installed_that_gives_no_answers: into_qemu_without_answers Installed;
    into_unpacked_that_gives_no_answers: into_qemu_without_answers Unpacked;
    into_unpacked_that_wants_to_answer: into_qemu_with_answers Unpacked;
    installed_ipv6: ipv6 Installed;
    unpacked_ipv6: ipv6 Unpacked;
}
