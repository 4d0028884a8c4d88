//! What is typed: help that teaches, wrong usage, wrong addresses.

use crate::support::{Scratch, assert_exit, corpus, mig, run, stderr};

#[track_caller]
fn help(arguments: &[&str]) -> String {
    let output = run(mig(arguments).env("COLUMNS", "100"));
    assert_exit(&output, 0);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_of_the_tool() {
    insta::assert_snapshot!(help(&["--help"]));
}

#[test]
fn help_of_bench() {
    insta::assert_snapshot!(help(&["bench", "--help"]));
}

#[test]
fn help_of_recv() {
    insta::assert_snapshot!(help(&["recv", "--help"]));
}

#[test]
fn help_of_send() {
    insta::assert_snapshot!(help(&["send", "--help"]));
}

#[test]
fn help_of_inspect() {
    insta::assert_snapshot!(help(&["inspect", "--help"]));
}

#[test]
fn help_of_certs() {
    insta::assert_snapshot!(help(&["certs", "--help"]));
}

#[test]
fn help_of_doctor() {
    insta::assert_snapshot!(help(&["doctor", "--help"]));
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for arguments in [
        &[][..],
        &["fly"],
        &["recv"],
        &["recv", "tcp:127.0.0.1:0", "--save"],
        &["send", "only-a-file"],
        &["recv", "tcp:127.0.0.1:0", "--timeout", "soon"],
        &["recv", "tcp:127.0.0.1:0", "--save", "-", "--json"],
        &["recv", "fd:0,1", "--json"],
        &["recv", "tcp:0.0.0.0:0", "--require-tls"],
        &["inspect", "tcp:0.0.0.0:0", "--require-tls"],
        &["inspect", "rdma:192.0.2.1:0", "--require-tls"],
        &["inspect", "tcp:127.0.0.1:0", "--allow", "uid:0"],
        &["inspect", "-", "--allow", "127.0.0.1"],
        &["inspect", "/dev/null", "--require-tls"],
        &["send", "-", "fd:0"],
        &["send", "-", "rdma:192.0.2.1:4444"],
        &["send", "a.mig", "tcp:127.0.0.1:1", "--rdma-pin-all"],
        &["send", "a.mig", "tcp:127.0.0.1:1", "--rdma-pinned-memory", "1GiB"],
        &["send", "a.mig", "rdma:192.0.2.1:1", "--rdma-pin-all", "--rdma-pinned-memory", "1GiB"],
        &["send", "a.mig", "rdma:192.0.2.1:1", "--rdma-pinned-memory", "4KiB"],
        &["recv", "rdma:192.0.2.1:0", "--rdma-pinned-memory", "4KiB"],
        &["recv", "rdma:192.0.2.1:0", "--require-tls"],
        &["recv", "tcp:127.0.0.1:0", "--rdma-pinned-memory", "1GiB"],
        &["bench", "--transport", "unix", "--rdma-pin-all"],
        &["send", "/nonexistent/a.mig", "exec:cat"],
        &["send", "/", "exec:cat"],
        &["inspect", "/nonexistent/a.mig"],
        &["recv", "tcp:127.0.0.1:0", "--save", "/nonexistent/a.mig"],
    ] {
        let output = run(&mut mig(arguments));
        assert_exit(&output, 2);
        assert!(!stderr(&output).is_empty(), "{arguments:?}");
    }
}

#[test]
fn wrong_addresses_show_the_right_form() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    for (uri, hint) in [
        ("tpc:localhost:1", "tcp:"),
        ("tcp:localhost", "tcp:"),
        ("tcp:::1:4444", "["),
        ("unix:", "unix:/"),
        ("vsock:3", "vsock:"),
        ("fd:-1", "fd:"),
        ("exec:", "exec:"),
        ("file:", "file:"),
        ("localhost:4444", "tcp:"),
    ] {
        let output = run(&mut mig(&["send", &file, uri]));
        assert_exit(&output, 2);
        let said = stderr(&output);
        assert!(said.contains(hint), "{uri}: {said}");
    }
}

#[test]
fn an_open_address_is_warned_about() {
    let arguments = ["recv", "tcp:0.0.0.0:0", "--timeout", "1ms", "--quiet"];
    let output = run(&mut mig(&arguments));
    assert_exit(&output, 5);
    assert!(stderr(&output).contains("WARNING"), "{}", stderr(&output));
}
