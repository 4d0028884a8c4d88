//! Strangers at a listener: however many, however slow, whatever they say, the right source is served, and whoever may
//! not connect is not listened to.

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Listening, MIG, Scratch, assert_exit, corpus, finish, mig, run, signal, stderr,
};

/// What a stranger may keep its place for. Whoever waits for that was held up.
const FIRST_BYTE: Duration = Duration::from_secs(10);

fn address(uri: &str) -> SocketAddr {
    uri.strip_prefix("tcp:").unwrap().parse().unwrap()
}

/// Whether it was hung up on, by whichever of the two ways.
fn closed(mut stream: impl Read) -> bool {
    match stream.read(&mut [0]) {
        Ok(read) => read == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// Sends a whole stored guest to where others are too.
#[track_caller]
fn sends(uri: &str, flags: &[&str]) {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    let begun = Instant::now();
    let sent = run(&mut mig(&[&["send", &file, uri][..], flags].concat()));
    assert_exit(&sent, 0);
    assert!(begun.elapsed() < FIRST_BYTE, "held up for {:?}", begun.elapsed());
}

#[test]
fn silent_ones_and_slow_ones_hold_nobody_up() {
    let recv = Listening::start(&["recv", "tcp:127.0.0.1:0"]);
    let there = address(&recv.uri);
    let mut strangers = Vec::new();
    let words: [&[u8]; 5] = [
        b"",
        b"Q",
        b"QEVM\0\0\0\x03",
        b"QEVM\0\0\0\x03\x07\0\0\0\x09pc",
        &[0x11, 0x22, 0x33, 0x44, 0],
    ];
    for at in 0..600 {
        let mut stranger = TcpStream::connect(there).unwrap();
        stranger.write_all(words[at % words.len()]).unwrap();
        strangers.push(stranger);
    }
    sends(&recv.uri, &[]);
    assert_exit(&recv.finish(), 0);
}

#[test]
fn a_flood_during_the_migration_harms_nobody() {
    let recv = Listening::start(&["recv", "tcp:127.0.0.1:0", "--multifd", "2"]);
    let there = address(&recv.uri);
    let (over, came) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let flood = {
        let (over, came) = (Arc::clone(&over), Arc::clone(&came));
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                if let Ok(mut stranger) = TcpStream::connect(there) {
                    let _hung_up = stranger.write_all(b"GET / HTTP/1.1\r\n\r\n");
                    came.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    };
    while came.load(Ordering::Relaxed) < 1000 {
        thread::yield_now();
    }
    sends(&recv.uri, &["--multifd", "2"]);
    over.store(true, Ordering::Relaxed);
    flood.join().unwrap();
    let received = recv.finish();
    assert_exit(&received, 0);
}

/// A listener that may open few files keeps some for the right source.
#[test]
fn strangers_do_not_take_all_descriptors() {
    let scratch = Scratch::new();
    let socket = format!("unix:{}", scratch.file("socket"));
    let limited = format!("ulimit -n 40; exec {MIG} recv {socket}");
    let mut command = Command::new("sh");
    command
        .args(["-c", &limited])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let recv = command.spawn().unwrap();
    let path = scratch.file("socket");
    let connect = || loop {
        match UnixStream::connect(&path) {
            Ok(stranger) => break stranger,
            Err(_not_yet) => thread::yield_now(),
        }
    };
    let strangers: Vec<_> = (0..200).map(|_| connect()).collect();
    sends(&socket, &[]);
    drop(strangers);
    let received = finish(recv);
    assert_exit(&received, 0);
    assert!(!stderr(&received).contains("Too many open files"), "{}", stderr(&received));
}

#[test]
fn only_who_is_allowed_is_listened_to() {
    let recv = Listening::start(&["recv", "tcp:127.0.0.1:0", "--allow", "127.0.0.2/32"]);
    let mut stranger = TcpStream::connect(address(&recv.uri)).unwrap();
    // Its words are those of a source, and nobody reads them.
    let _hung_up = stranger.write_all(&corpus("pc")[..1000]);
    assert!(closed(stranger));
    sends(&format!("{},bind=127.0.0.2", recv.uri), &[]);
    assert_exit(&recv.finish(), 0);
}

/// Looking takes a whole guest, too.
#[test]
fn only_who_is_allowed_is_looked_at() {
    let inspect = Listening::start(&["inspect", "tcp:127.0.0.1:0", "--allow", "127.0.0.2/32"]);
    let mut stranger = TcpStream::connect(address(&inspect.uri)).unwrap();
    let _hung_up = stranger.write_all(&corpus("pc")[..1000]);
    assert!(closed(stranger));
    signal(&inspect.child, "INT");
    assert_exit(&inspect.finish(), 4);
}

#[test]
fn users_are_told_apart_over_a_unix_socket() {
    let scratch = Scratch::new();
    let ours =
        fs::metadata(scratch.file(".")).map(|here| std::os::unix::fs::MetadataExt::uid(&here));
    let ours = ours.unwrap();
    let path = scratch.file("socket");
    let uri = format!("unix:{path}");
    let recv = Listening::start(&["recv", &uri, "--allow", &format!("uid:{}", ours + 1)]);
    assert!(closed(UnixStream::connect(&path).unwrap()));
    signal(&recv.child, "INT");
    assert_exit(&recv.finish(), 4);
    let recv = Listening::start(&["recv", &uri, "--allow", &format!("uid:{ours}")]);
    sends(&uri, &[]);
    assert_exit(&recv.finish(), 0);
}

#[test]
fn a_rule_that_lets_nobody_in_is_refused_before_anything_listens() {
    for (arguments, told) in [
        (["recv", "tcp:127.0.0.1:0", "--allow", "uid:0"], "192.0.2.0/24"),
        (["recv", "unix:/nonexistent/socket", "--allow", "10.0.0.0/8"], "uid:1000"),
        (["recv", "fd:0", "--allow", "10.0.0.0/8"], "leave the list out"),
        (["recv", "tcp:127.0.0.1:0", "--allow", "example.org"], "no address"),
        (["recv", "tcp:127.0.0.1:0", "--deadline", "idel=1h"], "first-byte"),
        (["recv", "tcp:127.0.0.1:0", "--deadline", "connect=never"], "heartbeat"),
    ] {
        let output = run(&mut mig(&arguments));
        assert_exit(&output, 2);
        assert!(stderr(&output).contains(told), "{arguments:?}: {}", stderr(&output));
    }
}

/// Whoever guesses the number of a data channel, and is there first, takes nobody's place: the right ones come from where
/// the main channel comes from.
#[test]
fn a_guessed_data_channel_takes_nobodys_place() {
    let recv = Listening::start(&["recv", "tcp:127.0.0.1:0", "--multifd", "2"]);
    let mut hello = [0; 64];
    hello[..8].copy_from_slice(&[0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1]);
    let strangers: Vec<_> = [0, 1]
        .map(|id| {
            hello[24] = id;
            let mut stranger = TcpStream::connect(address(&recv.uri)).unwrap();
            stranger.write_all(&hello).unwrap();
            stranger
        })
        .into();
    sends(&format!("{},bind=127.0.0.2", recv.uri), &["--multifd", "2"]);
    drop(strangers);
    assert_exit(&recv.finish(), 0);
}

#[test]
fn a_guest_that_was_not_expected_is_refused() {
    let expected = "00112233-4455-6677-8899-aabbccddeeff";
    let other = "00112233-4455-6677-8899-aabbccddee00";
    for (sent, completes) in [(expected, true), (other, false)] {
        let scratch = Scratch::new();
        let file = scratch.write("stored.mig", &corpus("pc"));
        let recv = ["recv", "tcp:127.0.0.1:0", "--multifd", "1", "--uuid", expected];
        let recv = Listening::start(&[&recv[..], &["--deadline", "first-byte=1s"]].concat());
        let send = ["send", &file, &recv.uri, "--multifd", "1", "--uuid", sent];
        let output = run(&mut mig(&send));
        assert_eq!(output.status.success(), completes, "{}", stderr(&output));
        assert_eq!(recv.finish().status.success(), completes);
    }
}

#[test]
fn the_time_limit_says_what_was_waited_for() {
    let output = run(&mut mig(&["recv", "tcp:127.0.0.1:0", "--timeout", "100ms"]));
    assert_exit(&output, 5);
    let said = stderr(&output);
    assert!(said.contains("waiting for a source to connect (state setup)"), "{said}");

    let recv = Listening::start(&["recv", "tcp:127.0.0.1:0", "--timeout", "1s", "--json"]);
    let mut source = TcpStream::connect(address(&recv.uri)).unwrap();
    source.write_all(&corpus("pc")[..100_000]).unwrap();
    let output = recv.finish();
    assert_exit(&output, 5);
    let said = crate::support::last_json(&output)["error"]["message"].to_string();
    assert!(said.contains("waiting for more from the source (state active)"), "{said}");
}

#[test]
fn a_deadline_is_named_with_its_flag() {
    let output = run(&mut mig(&["recv", "tcp:127.0.0.1:0", "--deadline", "accept=100ms"]));
    assert_exit(&output, 5);
    let said = stderr(&output);
    assert!(said.contains("100ms") && said.contains("--deadline accept="), "{said}");

    let recv = Listening::start(&["recv", "tcp:127.0.0.1:0", "--deadline", "idle=300ms", "--json"]);
    let mut source = TcpStream::connect(address(&recv.uri)).unwrap();
    source.write_all(&corpus("pc")[..100_000]).unwrap();
    let output = recv.finish();
    assert_exit(&output, 5);
    let said = crate::support::last_json(&output)["error"]["message"].to_string();
    assert!(said.contains("deadline idle") && said.contains("300ms"), "{said}");
}
