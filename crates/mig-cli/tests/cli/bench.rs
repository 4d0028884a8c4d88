//! `mig bench`: what scripts read, and that nothing is lost or ignored on the way.

use std::{
    io::{BufRead, BufReader},
    thread,
};

use serde_json::Value;

use crate::support::{assert_exit, finish, mig, run, signal, stderr};

#[test]
fn json_has_what_scripts_rely_on() {
    let output = run(&mut mig(&[
        "bench",
        "--size",
        "1MiB",
        "--json",
        "-",
        "--transport",
        "tcp",
        "--transport",
        "file",
    ]));
    assert_exit(&output, 0);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["machine"].is_object(), "{report}");
    let runs = report["runs"].as_array().unwrap();
    let transports: Vec<_> = runs.iter().map(|run| run["transport"].as_str().unwrap()).collect();
    assert_eq!(transports, ["tcp", "file"]);
    for run in runs {
        assert_eq!(run["status"], "completed", "{run}");
        assert_eq!(run["verified"], true, "{run}");
        assert_eq!(run["ram_bytes"], 1 << 20);
        for number in [
            "channels",
            "wire_bytes",
            "seconds",
            "throughput_bytes_per_sec",
            "source_cpu_seconds",
            "destination_cpu_seconds",
            "rounds",
            "downtime_ms",
            "downtime_limit_ms",
        ] {
            assert!(run[number].is_number(), "{number}: {run}");
        }
        assert!(run["uri"].is_string(), "{run}");
    }
}

#[test]
fn a_signal_between_two_cancels_ends_it_too() {
    // Runs so short that most of the time there is nothing to cancel: the signal counts all the same.
    let arguments = ["bench", "--transport", "fd", "--size", "4MiB", "--runs", "1000"];
    let mut child = mig(&arguments).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut first = String::new();
    said.read_line(&mut first).unwrap();
    assert!(first.starts_with("mig: fd:"), "{first}");
    signal(&child, "INT");
    let rest = thread::spawn(move || said.lines().map(Result::unwrap).collect::<Vec<_>>());
    let output = finish(child);
    assert_exit(&output, 4);
    assert!(output.stdout.is_empty(), "no table of half a benchmark");
    assert!(rest.join().unwrap().last().unwrap().ends_with("cancelled"));
}

#[test]
fn a_file_that_cannot_be_written_does_not_cost_the_results() {
    let arguments =
        ["bench", "--transport", "fd", "--size", "1MiB", "--json", "/nonexistent/results"];
    let output = run(&mut mig(&arguments));
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("/nonexistent/results"));
    assert!(String::from_utf8_lossy(&output.stdout).contains("verified"), "the table");
}
