//! TLS as it is typed: certificates of a trial, the lines that are printed, and what is said where it cannot be.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use serde_json::Value;

use crate::support::{Listening, Scratch, assert_exit, corpus, finish, mig, run, signal, stderr};

/// The lines that follow a heading, as they are printed to be copied.
fn lines_for(printed: &str, program: &str) -> Vec<String> {
    let lines = printed.lines().map(str::trim);
    lines.filter(|line| line.starts_with(program)).map(str::to_owned).collect()
}

#[test]
fn certs_prints_what_works() {
    let scratch = Scratch::new();
    let dir = scratch.file("tls");
    let output = run(&mut mig(&["certs", &dir, "--host", "localhost", "--host", "127.0.0.1"]));
    assert_exit(&output, 0);
    let printed = String::from_utf8(output.stdout).unwrap();
    let [recv, send] = &lines_for(&printed, "mig ")[..] else { panic!("{printed}") };
    assert!(printed.contains("tls-creds-x509,id=tls0,") && printed.contains("endpoint=server"));
    let key = fs::metadata(format!("{dir}/server-key.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);

    // The lines themselves, but for a free port and real files.
    let (stored, saved) = (scratch.write("vm.mig", &corpus("pc")), scratch.file("saved"));
    let words = |line: &str| -> Vec<String> {
        let words = line.split_whitespace().skip(1);
        words.map(|word| word.trim_matches('\'').to_owned()).collect()
    };
    let mut receiving = words(recv);
    receiving[1] = "tcp:127.0.0.1:0".into();
    let at = receiving.iter().position(|word| word == "--save").expect("it saves") + 1;
    receiving[at] = saved.clone();
    let receiving: Vec<&str> = receiving.iter().map(String::as_str).collect();
    let recv = Listening::start(&receiving);
    let uri = recv.uri.replace("127.0.0.1", "localhost");
    let mut sending = words(send);
    (sending[1], sending[2]) = (stored.clone(), uri);
    let sending: Vec<&str> = sending.iter().map(String::as_str).collect();
    assert_exit(&run(&mut mig(&sending)), 0);
    assert_exit(&recv.finish(), 0);
    assert!(fs::metadata(saved).unwrap().len() > 0);
}

#[test]
fn certs_replaces_nothing_by_itself() {
    let scratch = Scratch::new();
    let dir = scratch.file("tls");
    assert_exit(&run(&mut mig(&["certs", &dir])), 0);
    let key = || fs::read(format!("{dir}/server-key.pem")).unwrap();
    let first = key();
    let again = run(&mut mig(&["certs", &dir]));
    assert_exit(&again, 2);
    assert!(stderr(&again).contains("--force"), "{}", stderr(&again));
    assert_eq!(key(), first);
    assert_exit(&run(&mut mig(&["certs", &dir, "--force"])), 0);
    assert_ne!(key(), first);
}

#[test]
fn tls_is_refused_where_it_cannot_be() {
    let scratch = Scratch::new();
    let dir = scratch.file("tls");
    assert_exit(&run(&mut mig(&["certs", &dir])), 0);
    let stored = scratch.write("vm.mig", &corpus("pc"));
    let file = format!("file:{}", scratch.file("out"));
    for (words, why) in [
        (&["recv", "rdma:192.0.2.1:0"][..], "rdma"),
        (&["send", &stored, "rdma:192.0.2.1:1"], "rdma"),
        (&["send", &stored, &file], "pointless"),
        (&["send", &stored, "unix:/nonexistent/socket"], "--tls-hostname"),
        (&["inspect", &stored], "--tls-creds"),
    ] {
        let output = run(&mut mig(&[words, &["--tls-creds", &dir]].concat()));
        assert_exit(&output, 2);
        assert!(stderr(&output).contains(why), "{words:?}: {}", stderr(&output));
    }
    assert!(fs::metadata(scratch.file("out")).is_err(), "nothing was opened");
}

#[test]
fn wrong_credentials_are_named_before_anything_is_bound() {
    let scratch = Scratch::new();
    let missing = scratch.file("missing");
    let output = run(&mut mig(&["recv", "tcp:127.0.0.1:0", "--tls-creds", &missing]));
    assert_exit(&output, 2);
    assert!(stderr(&output).contains("mig certs"), "{}", stderr(&output));
    let dir = scratch.file("tls");
    assert_exit(&run(&mut mig(&["certs", &dir])), 0);
    for rule in ["CN=source", "dn:", "san:source"] {
        let words = ["recv", "tcp:127.0.0.1:0", "--tls-creds", &dir, "--tls-authz", rule];
        let output = run(&mut mig(&words));
        assert_exit(&output, 2);
        assert!(stderr(&output).contains("dn:"), "{rule}: {}", stderr(&output));
    }
}

#[test]
fn a_stream_under_tls_can_be_looked_into() {
    let scratch = Scratch::new();
    let dir = scratch.file("tls");
    assert_exit(&run(&mut mig(&["certs", &dir, "--days", "1", "--quiet"])), 0);
    let stored = scratch.write("vm.mig", &corpus("pc"));
    let at = format!("unix:{}", scratch.file("socket"));
    let words = ["inspect", &at, "--json", "--tls-creds", &dir, "--timeout", "60s"];
    let inspecting = mig(&words).spawn().unwrap();
    while fs::metadata(scratch.file("socket")).is_err() {
        std::thread::yield_now();
    }
    let sending = ["send", &stored, &at, "--tls-creds", &dir, "--tls-hostname", "localhost"];
    assert_exit(&run(&mut mig(&sending)), 0);
    let output = finish(inspecting);
    assert_exit(&output, 0);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["complete"], true, "{report}");
}

#[test]
fn with_tls_an_open_address_is_no_matter() {
    let scratch = Scratch::new();
    let dir = scratch.file("tls");
    assert_exit(&run(&mut mig(&["certs", &dir])), 0);
    let words = ["recv", "tcp:0.0.0.0:0", "--timeout", "1ms", "--require-tls"];
    let output = run(&mut mig(&[&words[..], &["--tls-creds", &dir]].concat()));
    assert_exit(&output, 5);
    assert!(!stderr(&output).contains("WARNING"), "{}", stderr(&output));
    let output = run(&mut mig(&words));
    assert_exit(&output, 2);
    assert!(stderr(&output).contains("--tls-creds"), "{}", stderr(&output));
}

/// What is printed to be copied is one word to a shell, whatever the directory is called, and a name that one can connect to.
#[test]
fn certs_prints_lines_that_a_shell_takes_as_they_are_meant() {
    let scratch = Scratch::new();
    let dir = scratch.file("we$ird;d'i r, `x`");
    for (host, at, name) in [
        ("[2001:db8::7]", "tcp:[2001:db8::7]:4444", "2001:db8::7"),
        ("2001:db8::7", "tcp:[2001:db8::7]:4444", "2001:db8::7"),
        ("*.pool.example", "tcp:HOST.pool.example:4444", "HOST.pool.example"),
        ("dst.example", "tcp:dst.example:4444", "dst.example"),
    ] {
        let output = run(&mut mig(&["certs", &dir, "--force", "--host", host]));
        assert_exit(&output, 0);
        let printed = String::from_utf8(output.stdout).unwrap();
        let [recv, send] = &lines_for(&printed, "mig ")[..] else { panic!("{printed}") };
        let receiving = ["mig", "recv", "tcp::4444", "--tls-creds", &dir, "--save", "vm.mig"];
        assert_eq!(taken(recv), receiving);
        assert_eq!(taken(send), ["mig", "send", "vm.mig", at, "--tls-creds", &dir]);
        let [server, client] = &lines_for(&printed, "qemu-system")[..] else { panic!("{printed}") };
        let in_option = dir.replace(',', ",,");
        for (line, endpoint) in [(server, "server"), (client, "client")] {
            let object = format!(
                "tls-creds-x509,id=tls0,dir={in_option},endpoint={endpoint},verify-peer=on"
            );
            assert!(taken(line).contains(&object), "{line}");
        }
        assert!(printed.contains(&format!("mig --tls-hostname {name},")), "{printed}");
        assert!(printed.contains(&format!("(qemu) migrate {at}\n")), "{printed}");
    }
}

/// The words of a line, as a shell hands them to a command.
fn taken(line: &str) -> Vec<String> {
    let output = Command::new("sh").args(["-c", &format!("printf '%s\\n' {line}")]).output();
    let said = String::from_utf8(output.unwrap().stdout).unwrap();
    said.lines().map(str::to_owned).collect()
}

/// A destination that turns a source away says so in its log only; what the source says must not lead elsewhere.
#[test]
fn who_is_turned_away_is_told_what_that_can_be() {
    let scratch = Scratch::new();
    let stored = scratch.write("vm.mig", &corpus("pc"));
    let recv =
        Listening::start(&["recv", "tcp:127.0.0.1:0", "--allow", "192.0.2.1", "--timeout", "60s"]);
    let output = run(&mut mig(&["send", &stored, &recv.uri]));
    assert_exit(&output, 1);
    let told = stderr(&output);
    assert!(told.contains("--allow") && !told.contains("of an old machine type"), "{told}");
    signal(&recv.child, "INT");
    assert_exit(&recv.finish(), 4);

    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let at = format!("tcp:{closed}");
    let dir = scratch.file("tls");
    assert_exit(&run(&mut mig(&["certs", &dir, "--quiet"])), 0);
    for flags in [&[][..], &["--tls-creds", &dir], &["--multifd", "2"]] {
        let output = run(&mut mig(&[&["send", &stored, &at], flags].concat()));
        assert_exit(&output, 1);
        let next =
            "\n  next: see whether the destination listens there and whether a firewall is between";
        assert!(stderr(&output).ends_with(&format!("{next}\n")), "{}", stderr(&output));
    }
}

/// The reason for which a source was refused is in the error that its destination ends with; each error says once
/// what to do.
#[test]
fn a_destination_that_gives_up_names_whom_it_refused() {
    let scratch = Scratch::new();
    let dir = scratch.file("tls");
    assert_exit(&run(&mut mig(&["certs", &dir, "--quiet"])), 0);
    let stored = scratch.write("vm.mig", &corpus("pc"));
    let words =
        ["recv", "tcp:127.0.0.1:0", "--tls-creds", &dir, "--tls-authz", "dn:CN=else", "--json"];
    let recv = Listening::start(&[&words[..], &["--deadline", "accept=2s"]].concat());
    let uri = recv.uri.replace("127.0.0.1", "localhost");
    let output = run(&mut mig(&["send", &stored, &uri, "--tls-creds", &dir]));
    assert_exit(&output, 1);
    let told = stderr(&output);
    assert_eq!(told.matches("tcp 127").count(), 1, "{told}");
    assert!(told.contains("access_denied") && !told.contains("next:"), "{told}");
    let output = recv.finish();
    assert_exit(&output, 5);
    let told = stderr(&output);
    assert!(told.contains("because: not authorised: O=mig trial,CN=source"), "{told}");
    assert_eq!(told.matches("allow more time").count(), 1, "{told}");
    assert!(!told.contains("unsaid"), "{told}");
}

#[cfg(not(feature = "tls-psk"))]
#[test]
fn keys_need_another_build() {
    let scratch = Scratch::new();
    let dir = scratch.file("keys");
    fs::create_dir(&dir).unwrap();
    let words = ["recv", "tcp:127.0.0.1:0", "--tls-creds", &dir, "--tls-psk"];
    let output = run(&mut mig(&words));
    assert_exit(&output, 6);
    assert!(stderr(&output).contains("tls-psk"), "{}", stderr(&output));
}

#[test]
fn bench_shows_tls_beside_plain() {
    let words = ["bench", "--transport", "tcp", "--transport", "unix", "--tls"];
    let output = run(&mut mig(&[&words[..], &["--size", "1MiB", "--json", "-"]].concat()));
    assert_exit(&output, 0);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let runs = report["runs"].as_array().unwrap();
    let seen: Vec<_> = runs
        .iter()
        .map(|run| (run["transport"].as_str().unwrap(), run["tls"].as_bool().unwrap()))
        .collect();
    assert_eq!(seen, [("tcp", false), ("tcp", true), ("unix", false), ("unix", true)]);
    assert!(runs.iter().all(|run| run["verified"] == true && run["confirmed"] == true), "{report}");
    assert!(stderr(&output).contains("tcp + TLS"), "{}", stderr(&output));

    let named = run(&mut mig(&["bench", "--transport", "file", "--tls", "--size", "1MiB"]));
    assert_exit(&named, 2);
}
