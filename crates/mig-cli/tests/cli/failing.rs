//! What goes wrong: exit codes by blame, errors that name the place, and nothing left that looks complete.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
};

use serde_json::Value;

use crate::support::{
    Listening, MIG, Scratch, assert_exit, corpus, last_json, mig, run, signal, stderr,
};

/// What every last line has, however it ended.
#[track_caller]
fn has_the_numbers(last: &Value) {
    assert!(last["ram"]["transferred"].is_u64(), "{last}");
    assert!(last["total-time"].is_u64() && last["downtime"].is_number(), "{last}");
    assert_eq!(last["confirmed"], false);
    assert!(last["error"]["kind"].is_string(), "{last}");
}

#[test]
fn the_last_line_has_the_numbers_where_nothing_began_too() {
    for arguments in [&["recv", "tcp:["][..], &["send", "/nonexistent", "exec:cat"]] {
        let output = run(mig(arguments).arg("--json"));
        assert_exit(&output, 2);
        let last = last_json(&output);
        has_the_numbers(&last);
        assert_eq!(last["total-time"], 0);
    }
}

#[test]
fn a_recording_that_fails_tells_how_far_it_came() {
    let stored = corpus("pc");
    let recv = Listening::start(&["recv", "tcp:127.0.0.1:0", "--json"]);
    let address = recv.uri.strip_prefix("tcp:").unwrap().to_owned();
    TcpStream::connect(address).unwrap().write_all(&stored[..100_000]).unwrap();
    let output = recv.finish();
    assert_exit(&output, 3);
    let last = last_json(&output);
    assert_eq!(last["status"], "failed");
    has_the_numbers(&last);
    assert!(last["ram"]["total"].as_u64().unwrap() >= 32 << 20, "{last}");
    assert!(last["ram"]["transferred"].as_u64().unwrap() > 50_000, "{last}");
}

#[test]
fn a_signal_while_waiting_leaves_nothing() {
    for name in ["INT", "TERM"] {
        let scratch = Scratch::new();
        let kept = scratch.file("kept.mig");
        let recv = Listening::start(&["recv", "tcp:127.0.0.1:0", "--save", &kept, "--json"]);
        signal(&recv.child, name);
        let output = recv.finish();
        assert_exit(&output, 4);
        let last = last_json(&output);
        assert_eq!(last["status"], "cancelled");
        has_the_numbers(&last);
        assert!(scratch.names().is_empty(), "{:?}", scratch.names());
    }
}

#[test]
fn a_signal_in_the_middle_leaves_nothing_and_unblocks_the_source() {
    let scratch = Scratch::new();
    let kept = scratch.write("kept.mig", b"what was there before");
    let recv = Listening::start(&["recv", "tcp:127.0.0.1:0", "--save", &kept]);
    let mut source = TcpStream::connect(recv.uri.strip_prefix("tcp:").unwrap()).unwrap();
    let mut stream = corpus("q35");
    // OPEN_RETURN_PATH and PING behind CONFIGURATION, so that there is an answer to wait for.
    stream.splice(24..24, [8, 0, 1, 0, 0, 8, 0, 2, 0, 4, 0, 0, 0, 9]);
    source.write_all(&stream[..100_000]).unwrap();
    let mut pong = [0; 8];
    source.read_exact(&mut pong).unwrap();
    assert_eq!(pong, [0, 2, 0, 4, 0, 0, 0, 9]);
    signal(&recv.child, "INT");
    let mut shut = [0; 8];
    source.read_exact(&mut shut).unwrap();
    assert_eq!(shut, [0, 1, 0, 4, 0, 0, 0, 1], "SHUT 1: the guest stays at the source");
    assert_exit(&recv.finish(), 4);
    assert_eq!(fs::read(&kept).unwrap(), b"what was there before");
    assert_eq!(scratch.names(), ["kept.mig"]);
}

#[test]
fn a_signal_ends_a_sender_and_its_command() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("q35"));
    let ready = scratch.file("ready");
    // A command that never reads: it says that it runs, and waits to be ended.
    let command = format!("exec:echo $$ > '{ready}.tmp'; mv '{ready}.tmp' '{ready}'; sleep 1000");
    let send = mig(&["send", &file, &command, "--json"]).spawn().unwrap();
    let pid = loop {
        if let Ok(pid) = fs::read_to_string(&ready) {
            break pid.trim().to_owned();
        }
        std::thread::yield_now();
    };
    signal(&send, "INT");
    let output = crate::support::finish(send);
    assert_exit(&output, 4);
    let last = last_json(&output);
    assert_eq!(last["status"], "cancelled");
    has_the_numbers(&last);
    let alive = fs::read_to_string(format!("/proc/{pid}/stat"));
    assert!(alive.is_err() || alive.is_ok_and(|stat| stat.contains(") Z ")), "the command lives");
}

#[test]
fn the_time_limit_is_a_deadline() {
    let scratch = Scratch::new();
    let kept = scratch.file("kept.mig");
    let arguments = ["recv", "tcp:127.0.0.1:0", "--save", &kept, "--timeout", "100ms", "--json"];
    let output = run(&mut mig(&arguments));
    assert_exit(&output, 5);
    assert!(stderr(&output).contains("--timeout"), "{}", stderr(&output));
    assert_eq!(last_json(&output)["error"]["kind"], "deadline");
    assert!(scratch.names().is_empty());
}

#[test]
fn nobody_there_is_the_links_fault() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    let output = run(&mut mig(&["send", &file, &format!("tcp:127.0.0.1:{port}")]));
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("refused"), "{}", stderr(&output));
}

#[test]
fn an_address_in_use_is_the_callers_fault() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("tcp:{}", taken.local_addr().unwrap());
    assert_exit(&run(&mut mig(&["recv", &uri])), 2);
}

#[test]
fn a_stream_cut_on_the_way_is_told_with_its_position() {
    let stored = corpus("pc");
    for cut in [0, 2, 8, 17, 30, 5_000, 100_000] {
        let scratch = Scratch::new();
        let kept = scratch.file("kept.mig");
        // Before the end of its head it was a stranger, and the right source may still come; nobody does.
        let (limit, code) = if cut < 18 { ("500ms", 5) } else { ("60s", 3) };
        let arguments = ["recv", "tcp:127.0.0.1:0", "--save", &kept, "--timeout", limit];
        let recv = Listening::start(&arguments);
        let address = recv.uri.strip_prefix("tcp:").unwrap().to_owned();
        TcpStream::connect(address).unwrap().write_all(&stored[..cut]).unwrap();
        let output = recv.finish();
        assert_exit(&output, code);
        assert!(scratch.names().is_empty(), "cut at {cut}: {:?}", scratch.names());
    }
}

#[test]
fn a_truncated_file_is_not_sent() {
    let scratch = Scratch::new();
    let stored = corpus("pc");
    for cut in [0, 3, 8, 30, 50_000, 100_000] {
        let file = scratch.write("cut.mig", &stored[..cut]);
        let sent = scratch.file("sent.mig");
        let output = run(&mut mig(&["send", &file, &format!("exec:cat > '{sent}'")]));
        assert_exit(&output, 3);
        let said = stderr(&output);
        assert!(said.contains(&format!("byte {cut} ")), "{said}");
        assert!(said.contains("nothing was sent"), "{said}");
        assert_eq!(scratch.names(), ["cut.mig"]);
    }
}

#[test]
fn a_truncated_pipe_never_looks_complete() {
    let scratch = Scratch::new();
    let cut = scratch.write("cut.mig", &corpus("pc")[..100_000]);
    let kept = scratch.file("kept.mig");
    let recv = Listening::start(&["recv", "tcp:127.0.0.1:0", "--save", &kept]);
    let mut send = mig(&["send", "-", &recv.uri]);
    assert_exit(&run(send.stdin(File::open(&cut).unwrap())), 3);
    // The cut comes as an end of stream or, when our PONG was not read yet, as a reset.
    let output = recv.finish();
    assert!(matches!(output.status.code(), Some(1 | 3)), "{}", output.status);
    assert_eq!(scratch.names(), ["cut.mig"]);
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    let kept = scratch.file("kept.mig");
    // Blocks of 512 bytes.
    let script = format!("ulimit -f 100; exec '{MIG}' recv 'exec:cat {file}' --save '{kept}'");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).stderr(std::process::Stdio::piped());
    let output = run(&mut shell);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("kept.mig"), "{}", stderr(&output));
    assert_eq!(scratch.names(), ["stored.mig"]);
}

#[test]
fn a_full_stdout_is_told() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    let mut recv = mig(&["recv", &format!("exec:cat '{file}'"), "--save", "-"]);
    let output = run(recv.stdout(File::create("/dev/full").unwrap()));
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("stdout"), "{}", stderr(&output));
}

#[test]
fn a_command_that_fails_behind_its_last_byte_leaves_no_file() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    let kept = scratch.file("kept.mig");
    let uri = format!("exec:cat '{file}'; echo it broke >&2; exit 7");
    let output = run(&mut mig(&["recv", &uri, "--save", &kept]));
    assert_exit(&output, 1);
    let said = stderr(&output);
    assert!(said.contains("status 7") && said.contains("it broke"), "{said}");
    assert_eq!(scratch.names(), ["stored.mig"]);
}

#[test]
fn a_return_path_where_there_is_no_way_back_is_refused() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    let target = scratch.file("target.mig");
    let output = run(&mut mig(&["send", &file, &format!("file:{target}"), "--return-path"]));
    assert_exit(&output, 2);
    assert_eq!(fs::metadata(&target).map_or(0, |found| found.len()), 0, "nothing was sent");
}

#[test]
fn a_destination_that_gives_up_fails_the_send() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let uri = format!("tcp:{}", listener.local_addr().unwrap());
    let send = mig(&["send", &file, &uri, "--json"]).spawn().unwrap();
    let (mut destination, _) = listener.accept().unwrap();
    let mut head = [0; 10_000];
    destination.read_exact(&mut head).unwrap();
    destination.write_all(&[0, 1, 0, 4, 0, 0, 0, 1]).unwrap();
    let output = crate::support::finish(send);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("SHUT 1"), "{}", stderr(&output));
    let last = last_json(&output);
    assert_eq!(last["error"]["kind"], "peer-incompatible");
    has_the_numbers(&last);
    assert!(last["ram"]["transferred"].as_u64().unwrap() >= 10_000, "{last}");
}
