//! `mig send` into `mig recv` over every local transport: what was stored arrives as it was, and both ends say so.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::net::UnixStream,
    process::Stdio,
};

use crate::support::{
    Listening, MIG, Scratch, assert_exit, corpus, finish, last_json, mig, run, stderr,
};

/// Over a listener: sends, and compares what was kept.
#[track_caller]
fn over(listen: &str, machine: &str) {
    let scratch = Scratch::new();
    let stored = corpus(machine);
    let file = scratch.write("stored.mig", &stored);
    let kept = scratch.file("kept.mig");
    let recv = Listening::start(&["recv", listen, "--save", &kept, "--json"]);
    let sent = run(&mut mig(&["send", &file, &recv.uri, "--json"]));
    assert_exit(&sent, 0);
    let received = recv.finish();
    assert_exit(&received, 0);
    assert_eq!(fs::read(&kept).unwrap(), stored);
    for output in [&sent, &received] {
        let json = last_json(output);
        assert_eq!(json["status"], "completed");
        assert_eq!(json["confirmed"], true);
        assert!(json["ram"]["total"].as_u64().unwrap() > 0);
        assert!(json["total-time"].is_u64() && json["downtime"].is_number());
    }
    let first = String::from_utf8(received.stdout).unwrap();
    let setup: serde_json::Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert_eq!(setup["status"], "setup");
    assert!(setup["socket-address"][0].is_string());
}

#[test]
fn over_tcp_v4() {
    over("tcp:127.0.0.1:0", "q35");
}

#[test]
fn over_tcp_v6() {
    over("tcp:[::1]:0", "pc");
}

#[test]
fn over_unix() {
    let scratch = Scratch::new();
    over(&format!("unix:{}", scratch.file("socket")), "pc");
    assert!(scratch.names().is_empty(), "the socket file is gone");
}

#[test]
fn over_exec_at_either_end() {
    let scratch = Scratch::new();
    let stored = corpus("pc");
    let file = scratch.write("stored.mig", &stored);
    let kept = scratch.file("kept.mig");
    let sent = run(&mut mig(&["send", &file, &format!("exec:cat > '{kept}'"), "--json"]));
    assert_exit(&sent, 0);
    assert_eq!(last_json(&sent)["confirmed"], false);
    assert_eq!(fs::read(&kept).unwrap(), stored);
    let again = scratch.file("again.mig");
    let received = run(&mut mig(&["recv", &format!("exec:cat '{kept}'"), "--save", &again]));
    assert_exit(&received, 0);
    assert_eq!(fs::read(&again).unwrap(), stored);
}

#[test]
fn as_the_command_that_qemu_would_start() {
    let scratch = Scratch::new();
    let stored = corpus("pc");
    let file = scratch.write("stored.mig", &stored);
    let kept = scratch.file("kept.mig");
    let command = format!("exec:'{MIG}' recv fd:0 --quiet --save '{kept}'");
    let sent = run(&mut mig(&["send", &file, &command, "--return-path", "--json"]));
    assert_exit(&sent, 0);
    assert_eq!(last_json(&sent)["confirmed"], true, "answered on fd 1");
    assert_eq!(fs::read(&kept).unwrap(), stored);

    let again = scratch.file("again.mig");
    let command = format!("exec:'{MIG}' send '{file}' fd:1 --quiet --return-path");
    let received = run(&mut mig(&["recv", &command, "--return-path", "--save", &again, "--json"]));
    assert_exit(&received, 0);
    assert_eq!(last_json(&received)["confirmed"], true);
    assert_eq!(fs::read(&again).unwrap(), stored);
}

#[test]
fn over_file() {
    let scratch = Scratch::new();
    let stored = corpus("q35");
    let file = scratch.write("stored.mig", &stored);
    let target = scratch.write("target.mig", b"a prefix");
    let uri = format!("file:{target},offset=0x8");
    assert_exit(&run(&mut mig(&["send", &file, &uri])), 0);
    assert_eq!(fs::read(&target).unwrap(), [b"a prefix", &stored[..]].concat());
    let kept = scratch.file("kept.mig");
    assert_exit(&run(&mut mig(&["recv", &uri, "--save", &kept])), 0);
    assert_eq!(fs::read(&kept).unwrap(), stored);
}

#[test]
fn over_a_socket_descriptor() {
    let scratch = Scratch::new();
    let stored = corpus("pc");
    let file = scratch.write("stored.mig", &stored);
    let kept = scratch.file("kept.mig");
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut recv = mig(&["recv", "fd:0", "--save", &kept, "--json"]);
    let recv = recv.stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs))).spawn().unwrap();
    let mut send = mig(&["send", &file, "fd:0", "--json"]);
    let send = send.stdin(Stdio::from(std::os::fd::OwnedFd::from(ours))).spawn().unwrap();
    let (sent, received) = (finish(send), finish(recv));
    assert_exit(&sent, 0);
    assert_exit(&received, 0);
    assert_eq!(last_json(&sent)["confirmed"], true);
    assert_eq!(fs::read(&kept).unwrap(), stored);
}

#[test]
fn from_stdin_and_to_stdout() {
    let scratch = Scratch::new();
    let stored = corpus("pc");
    let file = scratch.write("stored.mig", &stored);
    let recv = Listening::start(&["recv", "tcp:127.0.0.1:0", "--save", "-"]);
    let mut send = mig(&["send", "-", &recv.uri]);
    let send = send.stdin(File::open(&file).unwrap()).spawn().unwrap();
    let received = recv.finish();
    assert_exit(&received, 0);
    assert_exit(&finish(send), 0);
    assert_eq!(received.stdout, stored, "stdout carries the stream and nothing else");
}

#[test]
fn a_source_that_may_switch_to_postcopy_is_warned_about_in_time() {
    let scratch = Scratch::new();
    let stored = corpus("q35");
    // POSTCOPY_ADVISE in its long form behind CONFIGURATION.
    let mut advise = vec![8, 0, 3, 0, 16];
    advise.extend([0x1000_u64.to_be_bytes(), 0x1000_u64.to_be_bytes()].concat());
    let mut stream = stored.clone();
    stream.splice(24..24, advise);
    let file = scratch.write("advised.mig", &stream);
    let kept = scratch.file("kept.mig");
    let output = run(&mut mig(&["recv", &format!("exec:cat '{file}'"), "--save", &kept]));
    assert_exit(&output, 0);
    let said = stderr(&output);
    assert!(said.contains("WARN") && said.contains("migrate-start-postcopy"), "{said}");
    assert_eq!(fs::read(&kept).unwrap(), stored);
    let output = run(&mut mig(&["recv", &format!("exec:cat '{file}'"), "--quiet"]));
    assert_exit(&output, 0);
    assert_eq!(stderr(&output), "");
}

#[test]
fn quiet_says_nothing() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    let sent = run(&mut mig(&["send", &file, "exec:cat > /dev/null", "--quiet"]));
    assert_exit(&sent, 0);
    assert_eq!(stderr(&sent), "");
    assert!(sent.stdout.is_empty());
}

#[test]
fn strangers_do_not_stop_the_right_source() {
    let scratch = Scratch::new();
    let stored = corpus("pc");
    let file = scratch.write("stored.mig", &stored);
    let kept = scratch.file("kept.mig");
    let recv = Listening::start(&["recv", "tcp:127.0.0.1:0", "--save", &kept]);
    let address = recv.uri.strip_prefix("tcp:").unwrap();
    let _silent = std::net::TcpStream::connect(address).unwrap();
    let mut rude = std::net::TcpStream::connect(address).unwrap();
    std::io::Write::write_all(&mut rude, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    // Dropped: in order or with a reset.
    let _ended = rude.read_to_end(&mut rest);
    assert!(rest.is_empty());
    assert_exit(&run(&mut mig(&["send", &file, &recv.uri])), 0);
    assert_exit(&recv.finish(), 0);
    assert_eq!(fs::read(&kept).unwrap(), stored);
}

#[test]
fn the_rate_is_kept() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("q35"));
    let begun = std::time::Instant::now();
    let arguments = ["send", &file, "exec:cat > /dev/null", "--max-bandwidth", "500kB/s"];
    assert_exit(&run(&mut mig(&arguments)), 0);
    // 252 kB at 500 kB/s: a lower bound on a duration cannot fail on a slow machine.
    assert!(begun.elapsed().as_millis() > 400);
}
