//! `mig inspect`: the object that scripts rely on, and streams that are wrong.

use std::{fs::File, io::Write, net::TcpStream};

use crate::support::{Listening, Scratch, all_streams, assert_exit, corpus, mig, run, stderr};
use serde_json::{Value, json};

#[track_caller]
fn object(arguments: &[&str], code: i32) -> Value {
    let output = run(&mut mig(arguments));
    assert_exit(&output, code);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_object_has_the_promised_shape() {
    let scratch = Scratch::new();
    let file = scratch.write("q35.mig", &corpus("q35"));
    let report = object(&["inspect", &file, "--json"], 0);
    assert_eq!(report["bytes"], 252_055);
    assert_eq!(report["complete"], true);
    assert!(report.get("error").is_none());
    assert_eq!(report["file_header"], json!({ "version": 3 }));
    let configuration = &report["configuration"];
    assert_eq!(configuration["machine"], "pc-q35-10.0");
    assert_eq!(configuration["capabilities"], json!([]));
    assert_eq!(configuration["uuid"], Value::Null);
    assert_eq!(configuration["target_page_bits"], Value::Null);
    let items = report["items"].as_array().unwrap();
    let start = &items[0];
    assert_eq!(start["kind"], "start");
    assert_eq!(start["offset"], 24);
    assert_eq!(start["idstr"], "ram");
    assert_eq!((&start["section_id"], &start["version_id"]), (&json!(1), &json!(4)));
    let commands: Vec<_> = items.iter().filter(|item| item["kind"] == "command").collect();
    assert_eq!(commands.len(), 1);
    assert_eq!(commands[0]["command"], "SWITCHOVER_START");
    let timer = items.iter().find(|item| item["idstr"] == "timer").unwrap();
    assert_eq!(timer["kind"], "full");
    assert!(timer["fields"]["cpu_clock_offset"].is_u64());
    let last_two: Vec<_> = items[items.len() - 2..].iter().map(|item| &item["kind"]).collect();
    assert_eq!(last_two, ["eof", "vmdescription"]);
    let block = &report["ram"]["blocks"][0];
    assert_eq!((&block["idstr"], &block["used_length"]), (&json!("pc.ram"), &json!(67_108_864)));
    let pages = &report["ram"]["pages"];
    assert_eq!(*pages, json!({ "normal": 7, "zero": 16_459, "xbzrle": 0, "compressed": 0 }));
}

#[test]
fn every_device_of_a_file_is_explained() {
    let scratch = Scratch::new();
    for machine in ["pc", "q35"] {
        let file = scratch.write("stored.mig", &corpus(machine));
        let report = object(&["inspect", &file, "--json"], 0);
        for item in report["items"].as_array().unwrap() {
            if item["kind"] == "full" {
                assert!(item["fields"].is_object(), "{item}");
                assert!(item.get("fields_error").is_none(), "{item}");
            }
        }
    }
}

#[test]
fn items_follow_each_other_without_a_gap() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    let report = object(&["inspect", &file, "--json"], 0);
    let items = report["items"].as_array().unwrap();
    let number = |item: &Value, key: &str| item[key].as_u64().unwrap();
    for pair in items.windows(2) {
        assert_eq!(
            number(&pair[0], "offset") + number(&pair[0], "size"),
            number(&pair[1], "offset")
        );
    }
    let last = items.last().unwrap();
    assert_eq!(number(last, "offset") + number(last, "size"), number(&report, "bytes"));
}

/// The bytes at an item's offset are what the item says, and its end is where its footer ends.
#[track_caller]
fn is_there(item: &Value, stream: &[u8]) {
    let number = |key: &str| item[key].as_u64().unwrap();
    let offset = usize::try_from(number("offset")).unwrap();
    let end = offset + usize::try_from(number("size")).unwrap();
    let bytes = &stream[offset..end];
    let kind = item["kind"].as_str().unwrap();
    let types = ["eof", "start", "part", "end", "full", "", "vmdescription", "", "command"];
    assert_eq!(types[usize::from(bytes[0])], kind, "{item}");
    if matches!(kind, "start" | "part" | "end" | "full") {
        let id = u32::try_from(number("section_id")).unwrap().to_be_bytes();
        assert_eq!(bytes[1..5], id, "{item}");
        assert_eq!(bytes[bytes.len() - 5], 0x7e, "{item}");
        assert_eq!(bytes[bytes.len() - 4..], id, "{item}");
    }
    if matches!(kind, "start" | "full") {
        let idstr = item["idstr"].as_str().unwrap().as_bytes();
        assert_eq!(usize::from(bytes[5]), idstr.len(), "{item}");
        assert_eq!(&bytes[6..6 + idstr.len()], idstr, "{item}");
    }
    if kind == "command" {
        let numbers = [(1, "OPEN_RETURN_PATH"), (2, "PING"), (11, "SWITCHOVER_START")];
        let expected = (bytes[2], item["command"].as_str().unwrap());
        assert!(numbers.contains(&expected), "{item}");
    }
}

#[test]
fn every_stored_stream_is_complete_and_its_items_are_where_they_say() {
    let scratch = Scratch::new();
    let streams = all_streams();
    assert!(streams.len() >= 6);
    for (name, stream) in streams {
        let file = scratch.write(&name, &stream);
        let report = object(&["inspect", &file, "--json"], 0);
        assert_eq!(report["complete"], true, "{name}");
        assert_eq!(report["bytes"], stream.len(), "{name}");
        let items = report["items"].as_array().unwrap();
        assert!(items.len() > 20, "{name}");
        items.iter().for_each(|item| is_there(item, &stream));
    }
}

#[test]
fn stdin_and_a_listener_tell_the_same_as_the_file() {
    let scratch = Scratch::new();
    let stored = corpus("pc");
    let file = scratch.write("stored.mig", &stored);
    let expected = object(&["inspect", &file, "--json"], 0);
    let mut command = mig(&["inspect", "-", "--json"]);
    let output = run(command.stdin(File::open(&file).unwrap()));
    assert_exit(&output, 0);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), expected);

    let listening = Listening::start(&["inspect", "tcp:127.0.0.1:0", "--json"]);
    let mut source = TcpStream::connect(listening.uri.strip_prefix("tcp:").unwrap()).unwrap();
    source.write_all(&stored).unwrap();
    drop(source);
    let output = listening.finish();
    assert_exit(&output, 0);
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), expected);
}

#[test]
fn a_cut_stream_is_told_as_far_as_it_goes() {
    let scratch = Scratch::new();
    let stored = corpus("pc");
    for cut in [0, 4, 8, 20, 100, 50_000, 100_000] {
        let file = scratch.write("cut.mig", &stored[..cut]);
        let output = run(&mut mig(&["inspect", &file, "--json"]));
        assert_exit(&output, 3);
        assert!(stderr(&output).contains(&format!("byte {cut} ")), "{}", stderr(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["complete"], false);
        assert_eq!(report["error"]["kind"], "peer-misbehaved");
        assert_eq!(report["error"]["offset"], cut);
        assert!(report["error"]["message"].is_string());
        assert_eq!(report["file_header"].is_object(), cut >= 8);
    }
}

#[test]
fn a_cut_description_is_no_error() {
    let scratch = Scratch::new();
    let stored = corpus("pc");
    let file = scratch.write("cut.mig", &stored[..stored.len() - 1]);
    assert_eq!(object(&["inspect", &file, "--json"], 0)["complete"], true);
}

#[test]
fn what_is_no_stream_is_exit_code_3() {
    let scratch = Scratch::new();
    for (bytes, word) in [
        (&b"GET / HTTP/1.1"[..], "byte 0 "),
        (b"QEVM\0\0\0\x02", "byte 4 "),
        (b"QEVM\0\0\0\x03\x07\xff\xff\xff\xff", "byte 9 "),
    ] {
        let file = scratch.write("bad.mig", bytes);
        let output = run(&mut mig(&["inspect", &file]));
        assert_exit(&output, 3);
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
}

#[test]
fn the_listing_stays_as_it_is() {
    let scratch = Scratch::new();
    let file = scratch.write("pc.mig", &corpus("pc"));
    let output = run(&mut mig(&["inspect", &file]));
    assert_exit(&output, 0);
    insta::assert_snapshot!(String::from_utf8(output.stdout).unwrap());
}
