//! How a QEMU and a `mig` are joined, transport by transport, in both roles.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use mig_tests::mig::{self, Mig};
use mig_tests::process::{Process, STEP};
use mig_tests::qemu::{Binary, Qemu, text};
use mig_tests::scratch::Scratch;

use crate::secured::Secured;

/// The rows of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// `tcp:127.0.0.1:…`
    TcpV4,
    /// `tcp:[::1]:…`
    TcpV6,
    /// `unix:…`
    Unix,
    /// QEMU starts us: `exec:mig recv fd:0`, `exec:mig send F fd:1`.
    ExecByQemu,
    /// Both ends have `exec:` start a `cat`, joined by FIFOs.
    ExecByBoth,
    /// A socket pair: one end by `getfd`, the other inherited.
    FdSocket,
    /// A pipe: one end by `getfd`, the other inherited.
    FdPipe,
    /// `file:…` both ways; QEMU before 8.2 has no `file:` and lets `cat` write and read.
    File,
}

impl Transport {
    /// The row's name in docs/interop.md.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::TcpV4 => "tcp, IPv4",
            Self::TcpV6 => "tcp, IPv6",
            Self::Unix => "unix",
            Self::ExecByQemu => "exec, QEMU starts mig",
            Self::ExecByBoth => "exec, both ends start a child",
            Self::FdSocket => "fd, a socket handed over with getfd",
            Self::FdPipe => "fd, a pipe handed over with getfd",
            Self::File => "file",
        }
    }

    /// Whether a source knows its destination's host by the address.
    pub(crate) fn names_a_host(self) -> bool {
        matches!(self, Self::TcpV4 | Self::TcpV6)
    }
}

/// Which way the stream goes over the link, seen from `mig`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    FromQemu,
    ToQemu,
}

/// Joins a source QEMU to `mig recv --save SAVED` and waits until both are through.
pub(crate) fn save(
    transport: Transport,
    binary: &Binary,
    source: &mut Qemu,
    scratch: &Scratch,
    saved: &Path,
    return_path: bool,
    secured: &Secured,
) {
    let saved = text(saved);
    secured.source(source, transport);
    let secured = secured.destination_flags();
    let secured = secured.iter().map(String::as_str);
    let recv = |uri: &str| {
        let words = ["recv", uri, "--save", saved, "--json"].into_iter();
        Mig::start("mig recv", &words.chain(secured.clone()).collect::<Vec<_>>())
    };
    // On sockets answering is the rule; through a child's pipes `recv` has to be told.
    let told = return_path.then_some("--return-path");
    match transport {
        Transport::TcpV4 | Transport::TcpV6 | Transport::Unix => {
            let mut mig = recv(&listening_uri(transport, scratch, "save"));
            source.migrate(&mig.listening());
            source.completed();
            received(&mut mig);
        }
        Transport::ExecByQemu => {
            let mig = mig::binary();
            let flags: Vec<&str> = told.into_iter().chain(secured).collect();
            let words = format!("{} recv fd:0 --save {saved} {}", text(&mig), flags.join(" "));
            source.migrate(&telling_its_end(&words));
            source.completed();
            child_ended_well(source);
        }
        Transport::ExecByBoth => {
            let fifos = Fifos::make(scratch, "save");
            let uri = fifos.mig_side(Direction::FromQemu, return_path);
            let mut words = vec!["recv", uri.as_str(), "--save", saved, "--json"];
            words.extend(told.into_iter().chain(secured));
            let mut mig = Mig::start("mig recv", &words);
            source.migrate(&fifos.qemu_side(Direction::FromQemu, return_path));
            source.completed();
            received(&mut mig);
        }
        Transport::FdSocket | Transport::FdPipe => {
            let (ours, qemus) = descriptors(transport, Direction::FromQemu);
            let mut command = mig::command(&["recv", "fd:0", "--save", saved, "--json"]);
            command.args(secured).stdin(ours);
            let mut mig = Mig { process: Process::start("mig recv", command, true) };
            source.hand_over("link", qemus.as_fd());
            drop(qemus);
            source.migrate("fd:link");
            source.completed();
            received(&mut mig);
        }
        Transport::File => {
            let between = scratch.path("between-save");
            source.migrate(&qemu_file_uri(binary, Direction::FromQemu, &between));
            source.completed();
            received(&mut recv(&format!("file:{}", text(&between))));
        }
    }
}

/// Joins `mig send SAVED` to a fresh QEMU and waits until both are through.
pub(crate) fn send(
    transport: Transport,
    binary: &Binary,
    destination: &mut Qemu,
    scratch: &Scratch,
    saved: &Path,
    return_path: bool,
    secured: &Secured,
) {
    let saved = text(saved);
    let flag = flag(return_path);
    secured.destination(destination);
    let secured = secured.source_flags(transport);
    let secured = secured.iter().map(String::as_str);
    let send = |uri: &str| {
        let words = ["send", saved, uri, flag, "--json"].into_iter();
        Mig::start("mig send", &words.chain(secured.clone()).collect::<Vec<_>>())
    };
    match transport {
        Transport::TcpV4 | Transport::TcpV6 => {
            destination.incoming(&listening_uri(transport, scratch, "send"));
            let mut mig = send(&format!("tcp:{}", destination.listening_address()));
            destination.completed();
            sent(&mut mig, return_path);
        }
        Transport::Unix => {
            let uri = listening_uri(transport, scratch, "send");
            destination.incoming(&uri);
            let mut mig = send(&uri);
            destination.completed();
            sent(&mut mig, return_path);
        }
        Transport::ExecByQemu => {
            let mig = mig::binary();
            let flags: Vec<&str> = secured.collect();
            // QEMU writes its answers, and its part of a handshake, into our stdin.
            let fds = if return_path || !flags.is_empty() { "fd:0,1" } else { "fd:1" };
            let words = format!("{} send {saved} {fds} {flag} {}", text(&mig), flags.join(" "));
            destination.incoming(&telling_its_end(&words));
            destination.completed();
            child_ended_well(destination);
        }
        Transport::ExecByBoth => {
            let fifos = Fifos::make(scratch, "send");
            destination.incoming(&fifos.qemu_side(Direction::ToQemu, return_path));
            let mut mig = send(&fifos.mig_side(Direction::ToQemu, return_path));
            destination.completed();
            sent(&mut mig, return_path);
        }
        Transport::FdSocket | Transport::FdPipe => {
            let (ours, qemus) = descriptors(transport, Direction::ToQemu);
            destination.hand_over("link", qemus.as_fd());
            drop(qemus);
            destination.incoming("fd:link");
            let mut command = mig::command(&["send", saved, "fd:1", flag]);
            command.args(secured).stdout(ours);
            let mut mig = Mig { process: Process::start("mig send", command, false) };
            destination.completed();
            mig.succeeds();
        }
        Transport::File => {
            let between = scratch.path("between-send");
            sent(&mut send(&format!("file:{}", text(&between))), false);
            destination.incoming(&qemu_file_uri(binary, Direction::ToQemu, &between));
            destination.completed();
        }
    }
}

/// `mig send`'s flag: explicit in both cells, whatever the transport's default is.
pub(crate) fn flag(return_path: bool) -> &'static str {
    if return_path { "--return-path" } else { "--no-return-path" }
}

#[track_caller]
fn received(mig: &mut Mig) {
    mig.succeeds();
    let told = mig.last_json();
    assert_eq!(told["status"], "completed", "{told}");
}

#[track_caller]
fn sent(mig: &mut Mig, confirmed: bool) {
    mig.succeeds();
    let told = mig.last_json();
    assert_eq!(told["status"], "completed", "{told}");
    assert_eq!(told["confirmed"], confirmed, "{told}");
}

/// An address that the listener completes (port 0) or that is fresh (path).
pub(crate) fn listening_uri(transport: Transport, scratch: &Scratch, leg: &str) -> String {
    match transport {
        Transport::TcpV4 => "tcp:127.0.0.1:0".to_owned(),
        Transport::TcpV6 => "tcp:[::1]:0".to_owned(),
        _ => format!("unix:{}", text(&scratch.path(&format!("{leg}.sock")))),
    }
}

/// QEMU's real `file:`, or what stands for it in a QEMU that has none.
fn qemu_file_uri(binary: &Binary, direction: Direction, file: &Path) -> String {
    match direction {
        _ if binary.is_at_least(8, 2) => format!("file:{}", text(file)),
        Direction::FromQemu => format!("exec:cat > {}", text(file)),
        Direction::ToQemu => format!("exec:cat {}", text(file)),
    }
}

/// An `exec:` whose child says on QEMU's stderr how it ended, which QEMU itself ignores.
pub(crate) fn telling_its_end(words: &str) -> String {
    format!("exec:{words}; echo \"child ended with $?\" >&2")
}

#[track_caller]
pub(crate) fn child_ended_well(qemu: &Qemu) {
    let stderr = qemu.process.stderr();
    let code = stderr.wait_for("word from the child", STEP, |line| {
        line.strip_prefix("child ended with ").map(str::to_owned)
    });
    assert_eq!(code, "0", "QEMU's child failed:\n{}", stderr.text());
}

/// (the end that `mig` inherits, the end that QEMU gets)
pub(crate) fn pipe_from_qemu() -> (OwnedFd, OwnedFd) {
    descriptors(Transport::FdPipe, Direction::FromQemu)
}

fn descriptors(transport: Transport, direction: Direction) -> (OwnedFd, OwnedFd) {
    if transport == Transport::FdSocket {
        return rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap_or_else(|error| panic!("socketpair: {error}"));
    }
    let (reader, writer) = std::io::pipe().unwrap_or_else(|error| panic!("pipe: {error}"));
    match direction {
        Direction::FromQemu => (reader.into(), writer.into()),
        Direction::ToQemu => (writer.into(), reader.into()),
    }
}

/// Two FIFOs between a child of QEMU's and a child of ours: the stream, and the answers.
struct Fifos {
    stream: String,
    answers: String,
}

impl Fifos {
    fn make(scratch: &Scratch, leg: &str) -> Self {
        let make = |what: &str| {
            let path = scratch.path(&format!("{leg}-{what}.fifo"));
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                .unwrap_or_else(|error| panic!("mkfifo {}: {error}", path.display()));
            text(&path).to_owned()
        };
        Self { stream: make("stream"), answers: make("answers") }
    }

    fn mig_side(&self, direction: Direction, return_path: bool) -> String {
        match direction {
            Direction::FromQemu => Self::reading(&self.stream, &self.answers, return_path),
            Direction::ToQemu => Self::writing(&self.stream, &self.answers, return_path),
        }
    }

    fn qemu_side(&self, direction: Direction, return_path: bool) -> String {
        match direction {
            Direction::FromQemu => Self::writing(&self.stream, &self.answers, return_path),
            Direction::ToQemu => Self::reading(&self.stream, &self.answers, return_path),
        }
    }

    /// A shell gives a background child /dev/null for stdin, so the one that reads its stdin stays in front.
    fn reading(stream: &str, answers: &str, return_path: bool) -> String {
        if return_path {
            format!("exec:cat {stream} & exec cat > {answers}")
        } else {
            format!("exec:cat {stream}")
        }
    }

    fn writing(stream: &str, answers: &str, return_path: bool) -> String {
        if return_path {
            format!("exec:cat {answers} & exec cat > {stream}")
        } else {
            format!("exec:cat > {stream}")
        }
    }
}

/// `mig` in a shell's words, for `exec:` of a QEMU.
pub(crate) fn mig_words(arguments: &[&str]) -> String {
    let mig = mig::binary();
    let mut words = vec![text(&mig)];
    words.extend(arguments);
    words.join(" ")
}

/// A plain stream of this source, written without us.
pub(crate) fn capture_without_us(source: &mut Qemu, file: &Path) {
    source.migrate(&format!("exec:cat > {}", text(file)));
    source.completed();
}

/// A `mig` whose stdout is `stdout`.
pub(crate) fn mig_writing_to(stdout: OwnedFd, name: &str, arguments: &[&str]) -> Mig {
    let mut command: Command = mig::command(arguments);
    command.stdout(stdout);
    Mig { process: Process::start(name, command, false) }
}
