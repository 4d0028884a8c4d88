//! Waits that nobody ends: a cancel ends each at once, its deadline ends it by name, and nothing is left behind.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Listening, MIG, Scratch, assert_exit, corpus, finish, last_json, mig, signal, stderr,
};

/// Ten times the promise.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Interrupts what is stuck.
#[track_caller]
fn is_cancelled_at_once(child: Child) {
    signal(&child, "INT");
    let asked = Instant::now();
    let output = finish(child);
    assert_exit(&output, 4);
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    assert_eq!(last_json(&output)["status"], "cancelled");
}

/// `mig` in a network of its own, where nothing that is sent arrives anywhere.
fn stranded(scratch: &Scratch, arguments: &str) -> Child {
    let resolver = scratch.write("resolv.conf", b"nameserver 192.0.2.53\noptions timeout:30\n");
    let command = format!(
        "ip link set lo up && ip tuntap add dev mig0 mode tun && ip addr add 192.0.2.1/24 dev mig0 && \
         ip link set mig0 up && mount --bind {resolver} /etc/resolv.conf && \
         exec {MIG} {arguments} --json"
    );
    Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "sh", "-c", &command])
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Whether it is `mig` by now, and has said SYN, or has a thread that asks for the name.
fn waits(child: &Child, asks_for_a_name: bool) -> bool {
    let process = format!("/proc/{}", child.id());
    let name = fs::read_to_string(format!("{process}/comm")).unwrap_or_default();
    let threads = fs::read_dir(format!("{process}/task")).map_or(0, Iterator::count);
    let connections = fs::read_to_string(format!("{process}/net/tcp")).unwrap_or_default();
    // State 02 is SYN_SENT.
    let connects = connections.lines().any(|line| line.split_whitespace().nth(3) == Some("02"));
    name.trim() == "mig" && if asks_for_a_name { threads > 1 } else { connects }
}

#[test]
fn a_name_server_that_does_not_answer_and_a_host_that_is_not_there() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    for (command, asks_for_a_name) in [
        (format!("send {file} tcp:far.example:4444"), true),
        (format!("send {file} tcp:192.0.2.9:4444"), false),
        ("recv tcp:far.example:4444".into(), true),
        ("inspect tcp:far.example:4444".into(), true),
    ] {
        let mut child = stranded(&scratch, &command);
        while !waits(&child, asks_for_a_name) {
            assert!(child.try_wait().unwrap().is_none(), "{}", stderr(&finish(child)));
            thread::yield_now();
        }
        match command.starts_with("inspect") {
            false => is_cancelled_at_once(child),
            // What it prints is a report, whatever happened.
            true => {
                signal(&child, "INT");
                assert_exit(&finish(child), 4);
            }
        }
        for (limit, named) in
            [("--deadline connect=300ms", "--deadline connect="), ("--timeout 300ms", "--timeout")]
        {
            let output = finish(stranded(&scratch, &format!("{command} {limit}")));
            assert_exit(&output, 5);
            let said = stderr(&output);
            assert!(said.contains("300ms") && said.contains(named), "{command}: {said}");
        }
    }
}

/// Whoever should write the stored stream does not even open the pipe.
#[test]
fn a_stored_stream_that_cannot_be_opened() {
    let scratch = Scratch::new();
    let pipe = scratch.file("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let send = mig(&["send", &pipe, "tcp:127.0.0.1:1", "--json"]).spawn().unwrap();
    // The thread that opens it.
    while !waits(&send, true) {
        thread::yield_now();
    }
    is_cancelled_at_once(send);
    let arguments = ["send", &pipe, "tcp:127.0.0.1:1", "--json", "--timeout", "300ms"];
    let output = finish(mig(&arguments).spawn().unwrap());
    assert_exit(&output, 5);
    let said = stderr(&output);
    assert!(said.contains("--timeout") && said.contains("the stored stream"), "{said}");
}

/// It answers nobody's wish to end but the kernel's, and reads nothing, so that the pipe is full.
#[test]
fn a_command_that_ignores_signals_and_reads_nothing() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("q35"));
    let ready = scratch.file("ready");
    let command = format!(
        "exec:trap '' TERM INT HUP PIPE; echo $$ > '{ready}.tmp'; mv '{ready}.tmp' '{ready}'; \
         while :; do sleep 1000; done"
    );
    let send = mig(&["send", &file, &command, "--json"]).spawn().unwrap();
    let pid = loop {
        if let Ok(pid) = fs::read_to_string(&ready) {
            break pid.trim().to_owned();
        }
        thread::yield_now();
    };
    is_cancelled_at_once(send);
    let alive = fs::read_to_string(format!("/proc/{pid}/stat"));
    assert!(alive.is_err() || alive.is_ok_and(|stat| stat.contains(") Z ")), "the command lives");
}

/// It takes the whole stream and does not end: how long it may take for that has a name.
#[test]
fn a_command_that_does_not_end_runs_out_of_time() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    let command = "exec:cat > /dev/null; exec sleep 1000";
    let output = finish(
        mig(&["send", &file, command, "--deadline", "exit=300ms", "--json"]).spawn().unwrap(),
    );
    assert_exit(&output, 5);
    assert!(stderr(&output).contains("300ms"), "{}", stderr(&output));
}

/// Whoever reads stdout stopped reading: the disk of who saves to a pipe.
#[test]
fn a_sink_that_takes_nothing() {
    let scratch = Scratch::new();
    let socket = scratch.file("socket");
    let uri = format!("unix:{socket}");
    let mut recv = mig(&["recv", &uri, "--save", "-"]).spawn().unwrap();
    // Nobody reads it until the end.
    let mut stdout = recv.stdout.take().unwrap();
    let mut source = loop {
        match std::os::unix::net::UnixStream::connect(&socket) {
            Ok(source) => break source,
            Err(_not_yet) => thread::yield_now(),
        }
    };
    source.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    // Until nothing more fits anywhere.
    let _stuck = source.write_all(&[corpus("q35"), vec![0; 64 << 20]].concat());
    signal(&recv, "INT");
    let asked = Instant::now();
    let output = finish(recv);
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    assert!(matches!(output.status.code(), Some(3 | 4)), "{}", stderr(&output));
    stdout.read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn a_destination_that_gives_no_verdict() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    for by_deadline in [false, true] {
        let destination = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("tcp:{}", destination.local_addr().unwrap());
        let arguments = ["send", &file, &uri, "--json", "--deadline"];
        let limit = if by_deadline { "acknowledgement=300ms" } else { "acknowledgement=1h" };
        let send = mig(&[&arguments[..], &[limit]].concat()).spawn().unwrap();
        let (mut channel, _) = destination.accept().unwrap();
        // The end of the stream has come when nothing comes any more.
        channel.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let _silence = channel.read_to_end(&mut Vec::new());
        if by_deadline {
            let output = finish(send);
            assert_exit(&output, 5);
            let said = stderr(&output);
            assert!(said.contains("--deadline acknowledgement="), "{said}");
            assert!(said.contains("no verdict came"), "{said}");
        } else {
            is_cancelled_at_once(send);
        }
    }
}

/// Whoever pipes a stream in stopped: the destination is not to blame.
#[test]
fn an_input_that_gives_nothing_more() {
    let recv = Listening::start(&["recv", "tcp:127.0.0.1:0"]);
    let mut command = mig(&["send", "-", &recv.uri, "--deadline", "idle=300ms", "--json"]);
    let mut send = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut input = send.stdin.take().unwrap();
    input.write_all(&corpus("pc")[..100_000]).unwrap();
    let output = finish(send);
    assert_exit(&output, 5);
    assert!(stderr(&output).contains("waiting for stdin to give more"), "{}", stderr(&output));
    drop(input);
    assert_exit(&recv.finish(), 3);
}

/// Connected, and then not a word of TLS.
#[test]
fn a_handshake_that_nobody_answers() {
    let scratch = Scratch::new();
    let file = scratch.write("stored.mig", &corpus("pc"));
    let certificates = scratch.file("tls");
    assert_exit(&finish(mig(&["certs", &certificates]).spawn().unwrap()), 0);
    for by_deadline in [false, true] {
        let destination = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("tcp:localhost:{}", destination.local_addr().unwrap().port());
        let limit = if by_deadline { "handshake=300ms" } else { "handshake=1h" };
        let tls = ["--tls-creds", &certificates, "--json", "--deadline", limit];
        let send = mig(&[&["send", &file, &uri][..], &tls].concat()).spawn().unwrap();
        let (mut channel, _) = destination.accept().unwrap();
        // Its first word has come: the handshake is under way.
        channel.read_exact(&mut [0]).unwrap();
        if by_deadline {
            let output = finish(send);
            assert_exit(&output, 5);
            let said = stderr(&output);
            assert!(said.contains("handshake") && said.contains("--deadline handshake="), "{said}");
        } else {
            is_cancelled_at_once(send);
        }
    }
}

/// The other end: a stranger that begins no handshake is closed in time, and whoever waits may be cancelled.
#[test]
fn a_stranger_that_begins_no_handshake() {
    let scratch = Scratch::new();
    let certificates = scratch.file("tls");
    assert_exit(&finish(mig(&["certs", &certificates]).spawn().unwrap()), 0);
    let flags = ["--tls-creds", &certificates, "--json", "--deadline", "handshake=300ms"];
    let recv = Listening::start(&[&["recv", "tcp:127.0.0.1:0"][..], &flags].concat());
    let there = recv.uri.strip_prefix("tcp:").unwrap();
    let mut stranger = std::net::TcpStream::connect(there).unwrap();
    let begun = Instant::now();
    assert_eq!(stranger.read(&mut [0; 64]).unwrap_or(0), 0, "closed without a word");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let _another = std::net::TcpStream::connect(there).unwrap();
    is_cancelled_at_once(recv.child);
}

/// A stream without end of zero pages: nine bytes for each, and whoever takes them always has something to do.
fn flood(uri: &str) {
    const PAGES: u64 = 1 << 19;
    let word = |at: u64, flags: u64| ((at * 4096) | flags).to_be_bytes();
    let mut head = b"QEVM\x00\x00\x00\x03\x07\x00\x00\x00\x07rev-1.0".to_vec();
    head.extend(b"\x01\x00\x00\x00\x01\x03ram\x00\x00\x00\x00\x00\x00\x00\x04");
    head.extend([&word(PAGES, 0x04)[..], b"\x01r", &word(PAGES, 0)].concat());
    head.extend([&word(0, 0x10)[..], b"\x7e\x00\x00\x00\x01\x02\x00\x00\x00\x01"].concat());
    head.extend([&word(0, 0x02)[..], b"\x01r\x00"].concat());
    let zeros: Vec<u8> =
        (1..PAGES).flat_map(|page| word(page, 0x22).into_iter().chain([0])).collect();
    let mut link = TcpStream::connect(uri.strip_prefix("tcp:").unwrap()).unwrap();
    link.write_all(&head).unwrap();
    // It is under way once more is taken than the sockets hold.
    for _ in 0..4 {
        link.write_all(&zeros).unwrap();
    }
    thread::spawn(move || while link.write_all(&zeros).is_ok() {});
}

#[test]
fn a_flood_of_zero_pages() {
    for arguments in
        [["recv", "tcp:127.0.0.1:0", "--json"], ["inspect", "tcp:127.0.0.1:0", "--json"]]
    {
        let listening = Listening::start(&arguments);
        flood(&listening.uri);
        signal(&listening.child, "INT");
        let asked = Instant::now();
        assert_exit(&listening.finish(), 4);
        assert!(asked.elapsed() < AT_ONCE, "{arguments:?}: {:?}", asked.elapsed());
    }
    let listening = Listening::start(&["recv", "tcp:127.0.0.1:0", "--timeout", "1s"]);
    flood(&listening.uri);
    assert_exit(&listening.finish(), 5);
}
