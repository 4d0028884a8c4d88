//! RDMA is optional at run time: the binary asks for no library of rdma-core when it starts, and works where none can be
//! loaded; only `rdma:` says then what is missing.

use std::fs;

use object::{
    NativeEndian as NE, elf,
    read::elf::{Dyn, FileHeader, ProgramHeader},
};
use serde_json::Value;

use crate::support::{Listening, MIG, Scratch, assert_exit, corpus, last_json, mig, run, stderr};

/// What the dynamic linker must find before `main`.
fn needed(binary: &[u8]) -> Vec<String> {
    let header = elf::FileHeader64::<NE>::parse(binary).unwrap();
    let segments = header.program_headers(NE, binary).unwrap();
    let dynamic = segments.iter().find_map(|segment| segment.dynamic(NE, binary).unwrap());
    let dynamic = dynamic.expect("a binary that is linked dynamically");
    let value = |tag: i64| {
        let entry = dynamic.iter().find(|entry| entry.d_tag(NE) == tag);
        entry.map(|entry| entry.d_val(NE)).unwrap()
    };
    let (at, len) = (value(elf::DT_STRTAB), value(elf::DT_STRSZ));
    let names =
        segments.iter().find_map(|segment| segment.data_range(NE, binary, at, len).unwrap());
    let names = names.expect("the names are loaded");
    let text = |from: u64| {
        let name = names[usize::try_from(from).unwrap()..].split(|&byte| byte == 0).next();
        String::from_utf8(name.unwrap().to_vec()).unwrap()
    };
    dynamic
        .iter()
        .filter(|entry| entry.d_tag(NE) == elf::DT_NEEDED)
        .map(|entry| text(entry.d_val(NE)))
        .collect()
}

#[test]
fn the_binary_needs_no_library_of_rdma_core() {
    let needed = needed(&fs::read(MIG).unwrap());
    assert!(needed.iter().any(|name| name.starts_with("libc.so")), "{needed:?}");
    for library in ["ibverbs", "rdmacm", "mlx", "rxe"] {
        assert!(!needed.iter().any(|name| name.contains(library)), "{needed:?}");
    }
}

/// A folder in which the dynamic linker, looking there first, finds files of the libraries' names that are none. It ends
/// its search at the first one, so that no machine has them, installed or not.
fn without_libraries() -> Scratch {
    let folder = Scratch::new();
    for library in ["librdmacm.so.1", "libibverbs.so.1"] {
        folder.write(library, b"");
    }
    folder
}

#[test]
fn without_the_libraries_everything_else_works() {
    let folder = without_libraries();
    let output = run(mig(&["doctor", "--json"]).env("LD_LIBRARY_PATH", folder.file("")));
    assert_exit(&output, 0);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["rdma"]["available"], false);
    let reason = report["rdma"]["reason"].as_str().unwrap();
    assert!(reason.contains("librdmacm.so.1") || reason.contains("libibverbs.so.1"), "{reason}");
    assert!(report["rdma"]["remedy"].as_str().unwrap().contains("rdma-core"));
    let checks = report["checks"].as_array().unwrap();
    let status = |name| &checks.iter().find(|check| check["name"] == name).unwrap()["status"];
    assert_eq!(status("unix"), "works");
    assert_eq!(status("rdma"), "missing");
}

#[test]
fn without_the_libraries_rdma_says_so_at_both_ends_and_in_a_benchmark() {
    let (folder, scratch) = (without_libraries(), Scratch::new());
    let file = scratch.write("stored.mig", &corpus("pc"));
    for arguments in [
        &["recv", "rdma:192.0.2.1:4444"][..],
        &["send", &file, "rdma:192.0.2.1:4444"],
        &["bench", "--transport", "rdma", "--size", "1MiB"],
    ] {
        let output = run(mig(arguments).env("LD_LIBRARY_PATH", folder.file("")));
        assert_exit(&output, 6);
        let said = stderr(&output);
        assert!(!said.contains("WARNING"), "nothing was opened: {said}");
        assert!(said.contains(".so.1") && said.contains("install rdma-core"), "{said}");
    }
}

#[test]
fn what_can_be_read_only_once_is_refused_with_the_reason() {
    let output = run(&mut mig(&["send", "-", "rdma:192.0.2.1:4444"]));
    assert_exit(&output, 2);
    let said = stderr(&output);
    assert!(said.contains("read twice") && said.contains("store the stream in a file"), "{said}");
}

/// What `inspect` finds, but for places in the file: over rdma every page comes once, in the order of memory.
fn contents(file: &str) -> (Value, Vec<Value>) {
    let output = run(&mut mig(&["inspect", file, "--json"]));
    assert_exit(&output, 0);
    let mut report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut devices = report["items"].as_array().unwrap().clone();
    devices.retain(|item| item["kind"] == "full");
    for device in &mut devices {
        device["offset"] = Value::Null;
    }
    (report["ram"].take(), devices)
}

/// Of this machine's device; `None` says that there is none.
fn address() -> Option<String> {
    match mig::rdma_loopback() {
        Ok(uri) => uri,
        Err(reason) => {
            mig_testkit::not_applicable("rdma-device", &reason.to_string());
            None
        }
    }
}

#[test]
fn a_stored_stream_arrives_however_memory_is_pinned() {
    let Some(uri) = address() else { return };
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    let stored = contents(&file);
    for (source, destination, confirmed) in [
        (&[][..], &[][..], false),
        (&["--rdma-pin-all"], &[], false),
        (&["--rdma-pinned-memory", "2MiB"], &["--rdma-pinned-memory", "2MiB"], false),
        (&["--return-path"], &["--return-path"], true),
        (&["--return-path", "--rdma-pin-all"], &["--return-path"], true),
    ] {
        let kept = scratch.file("kept.mig");
        let mut recv = vec!["recv", &uri, "--save", &kept, "--json"];
        recv.extend(destination);
        let recv = Listening::start(&recv);
        let sent = run(mig(&["send", &file, &recv.uri, "--json"]).args(source));
        assert_exit(&sent, 0);
        let received = recv.finish();
        assert_exit(&received, 0);
        for output in [&sent, &received] {
            let json = last_json(output);
            assert_eq!(json["status"], "completed");
            assert_eq!(json["confirmed"], confirmed, "{source:?}");
        }
        assert_eq!(contents(&kept), stored, "{source:?}");
        fs::remove_file(&kept).unwrap();
    }
}

#[test]
fn a_destination_that_anybody_may_write_to_is_warned_about() {
    let Some(uri) = address() else { return };
    let output = run(&mut mig(&["recv", &uri, "--timeout", "1ms", "--quiet"]));
    assert_exit(&output, 5);
    assert!(stderr(&output).contains("WARNING"), "{}", stderr(&output));
}

#[test]
fn a_pipe_by_name_is_refused_before_anybody_is_called() {
    let Some(uri) = address() else { return };
    let uri = uri.replace(":0", ":9");
    // A process substitution, as shells make it.
    let script = format!("cat /dev/null | '{MIG}' send /proc/self/fd/0 {uri}");
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script]).stderr(std::process::Stdio::piped());
    let output = run(&mut shell);
    assert_exit(&output, 2);
    assert!(stderr(&output).contains("read only once"), "{}", stderr(&output));
}

#[test]
fn ends_that_disagree_about_a_return_path_fail_both() {
    let Some(uri) = address() else { return };
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    let kept = scratch.file("kept.mig");
    let recv = Listening::start(&["recv", &uri, "--save", &kept, "--timeout", "20s"]);
    let sent = run(&mut mig(&["send", &file, &recv.uri, "--return-path", "--timeout", "15s"]));
    assert_ne!(sent.status.code(), Some(0), "{}", stderr(&sent));
    let received = recv.finish();
    assert_ne!(received.status.code(), Some(0), "{}", stderr(&received));
    assert_eq!(scratch.names(), ["stored.mig"]);
}

#[test]
fn the_doctor_and_the_benchmark_use_the_device() {
    if address().is_none() {
        return;
    }
    let output = run(&mut mig(&["doctor", "--json"]));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let rdma = checks.iter().find(|check| check["name"] == "rdma").unwrap();
    assert_eq!(rdma["status"], "works", "{rdma}");
    let ports = report["rdma"]["devices"][0]["ports"].as_array().unwrap();
    let active = ports.iter().find(|port| port["state"] == "active").unwrap();
    assert!(active["active_mtu_bytes"].as_u64().unwrap() >= 256, "{active}");
    assert!(active["gids"][0]["gid"].is_string(), "{active}");

    let arguments = ["bench", "--transport", "tcp", "--transport", "rdma", "--size", "8MiB"];
    let quiet = ["--dirty-rate", "0", "--json", "-"];
    let output = run(mig(&arguments).args(quiet));
    assert_exit(&output, 0);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (tcp, rdma) = (&report["runs"][0], &report["runs"][1]);
    for number in ["source_registered_bytes", "destination_registered_bytes", "control_round_trips"]
    {
        assert!(rdma[number].as_u64().unwrap() > 0, "{number}: {rdma}");
        assert!(tcp.get(number).is_none(), "{number}: {tcp}");
    }
    assert!(stderr(&output).contains("round trips"), "{}", stderr(&output));
}
