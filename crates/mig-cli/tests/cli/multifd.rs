//! Data channels: flags that make no sense, what both ends tell, and a cancel in the middle.

use std::fs;

use serde_json::Value;

use crate::support::{
    Listening, Scratch, assert_exit, corpus, finish, last_json, mig, run, signal, stderr,
};

#[test]
fn flags_that_do_not_fit_are_usage_errors_that_name_the_flag() {
    let scratch = Scratch::new();
    let stored = scratch.write("stored.mig", &corpus("pc"));
    let file = stored.as_str();
    let target = scratch.file("target.mig");
    let to_file = format!("file:{target}");
    let tcp = "tcp:127.0.0.1:1";
    for (arguments, flag) in [
        (&["send", file, tcp, "--multifd", "0"][..], "--multifd 0"),
        (&["recv", "tcp:127.0.0.1:0", "--multifd", "0"], "--multifd 0"),
        (&["send", file, tcp, "--multifd", "256"], "1 to 255"),
        (&["send", file, "fd:1", "--multifd", "2"], "--multifd"),
        (&["send", file, "exec:cat", "--multifd", "2"], "--multifd"),
        (&["send", file, &to_file, "--multifd", "2"], "--multifd"),
        (&["send", file, "rdma:192.0.2.1:4444", "--multifd", "2"], "--multifd"),
        (&["recv", "fd:0", "--multifd", "2"], "--multifd"),
        (&["recv", "exec:true", "--multifd", "2"], "--multifd"),
        (&["recv", &to_file, "--multifd", "2"], "--multifd"),
        (&["recv", "rdma:192.0.2.1:4444", "--multifd", "2"], "--multifd"),
        (&["send", "-", tcp, "--multifd", "2"], "--multifd"),
        (&["send", file, tcp, "--compression", "zstd"], "--multifd"),
        (&["recv", "tcp:127.0.0.1:0", "--compression", "zstd"], "--multifd"),
        (&["send", file, tcp, "--multifd", "2", "--compression", "lz4"], "zstd"),
        (&["send", file, tcp, "--uuid", "00112233445566778899aabbccddeeff"], "--multifd"),
        (&["send", file, tcp, "--multifd", "2", "--uuid", "0011"], "32 hexadecimal"),
        (&["send", file, tcp, "--cpu-budget", "50%"], "--multifd"),
        (&["send", file, tcp, "--multifd", "2", "--cpu-budget", "50%"], "auto"),
        (&["bench", "--transport", "file", "--channels", "2"], "--channels"),
    ] {
        let output = run(&mut mig(arguments));
        assert_exit(&output, 2);
        let said = stderr(&output);
        assert!(said.contains(flag), "{arguments:?}: {said}");
    }
    assert_eq!(scratch.names(), ["stored.mig"], "nothing was begun");
}

/// Sends over data channels and compares what both ends tell.
#[track_caller]
fn over(recv_flags: &[&str], send_flags: &[&str]) -> [Value; 2] {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("q35"));
    let kept = scratch.file("kept.mig");
    let recv = ["recv", "tcp:127.0.0.1:0", "--save", &kept, "--json"];
    let recv = Listening::start(&[&recv[..], recv_flags].concat());
    let send = ["send", &file, &recv.uri, "--json"];
    let sent = run(&mut mig(&[&send[..], send_flags].concat()));
    assert_exit(&sent, 0);
    let received = recv.finish();
    assert_exit(&received, 0);
    assert_exit(&run(&mut mig(&["inspect", &kept])), 0);
    let told = [last_json(&sent), last_json(&received)];
    for json in &told {
        assert_eq!(json["status"], "completed");
        assert_eq!(json["confirmed"], true);
        let ram = &json["ram"];
        let (beside, all) = (ram["multifd-bytes"].as_u64(), ram["transferred"].as_u64());
        assert!(beside > Some(1344) && beside < all, "{json}");
        assert_eq!(json["pages"]["normal"], ram["normal"], "{json}");
        let pages = ram["normal"].as_u64().unwrap() + ram["duplicate"].as_u64().unwrap();
        assert_eq!(pages * 4096, ram["total"].as_u64().unwrap(), "each page once: {json}");
    }
    assert_eq!(told[0]["ram"]["multifd-bytes"], told[1]["ram"]["multifd-bytes"]);
    told
}

#[test]
fn the_last_line_of_both_ends_tells_of_data_channels() {
    let [sent, _] = over(&["--multifd", "3"], &["--multifd", "3"]);
    assert_eq!(sent["multifd"]["channels"], 3);
}

#[test]
fn compressed_pages_are_told_of_with_what_became_of_them() {
    let flags = ["--multifd", "2", "--compression", "zlib"];
    let [sent, _] = over(&flags, &flags);
    let packed = &sent["multifd"]["compression"];
    assert_eq!(packed["method"], "zlib", "{sent}");
    assert!(packed["bytes-out"].as_u64() < packed["bytes-in"].as_u64(), "{sent}");
}

#[test]
fn two_migs_find_the_number_by_themselves() {
    over(&["--multifd", "auto"], &["--multifd", "auto", "--cpu-budget", "200%"]);
}

/// It would take minutes; it ends at both ends, and nothing is left.
#[test]
fn a_signal_in_the_middle_of_a_throttled_send_ends_both_ends() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("q35"));
    let kept = scratch.file("kept.mig");
    let flags = ["--multifd", "2", "--json"];
    let recv = ["recv", "tcp:127.0.0.1:0", "--save", &kept];
    let recv = Listening::start(&[&recv[..], &flags].concat());
    let send = ["send", &file, &recv.uri, "--max-bandwidth", "1kB/s"];
    let send = mig(&[&send[..], &flags].concat()).spawn().unwrap();
    // Both channels are there, served by a thread each.
    while threads(recv.child.id(), "mig-receive") < 2 {
        std::thread::yield_now();
    }
    signal(&send, "INT");
    let sent = finish(send);
    assert_exit(&sent, 4);
    let told = last_json(&sent);
    assert_eq!((told["status"].as_str(), &told["confirmed"]), (Some("cancelled"), &false.into()));
    let received = recv.finish();
    assert!(matches!(received.status.code(), Some(1 | 3)), "{}", received.status);
    assert_eq!(last_json(&received)["status"], "failed");
    assert_eq!(scratch.names(), ["stored.mig"]);
}

/// How many threads of a process have a name that begins so.
fn threads(process: u32, name: &str) -> usize {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|comm| comm.starts_with(name)).count()
}
