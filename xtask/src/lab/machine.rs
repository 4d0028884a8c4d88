//! The lab's virtual machine: QEMU under emulation, its streams, its end.
//!
//! ```text
//!   command's stdout ─ virtio port ─ socket ─┐
//!   command's stderr ─ virtio port ─ socket ─┴▶ two readers ─▶ caller's Sink     (each until its marker)
//!   exit status      ─ file in the run's directory
//! ```
//! QEMU ends when we end it: when both streams have had their markers, when time is up, when it has itself ended
//! before the command; and `setpriv --pdeathsig` has the kernel end it if we are killed.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use rustix::io::FdFlags;

use super::Lab;
use super::files;
use super::marker::UntilMarker;
use super::run_directory::{Order, RunDirectory};
use crate::repository::in_path;

/// How large the machine is and how long it may live.
#[derive(Clone, Debug)]
pub(crate) struct Size {
    pub(crate) memory: String,
    pub(crate) cpus: u32,
    pub(crate) timeout: Duration,
}

/// One of the command's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Takes what the command writes, as it comes.
pub(crate) type Sink<'a> = dyn FnMut(Stream, &[u8]) + 'a;

/// How a run ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The command's exit status.
    With(u8),
    /// Killed after the time allowed.
    TimedOut,
}

/// What a reader tells.
enum Event {
    Piece(Stream, Vec<u8>),
    /// The marker has come.
    Complete,
    /// The machine has let go of the stream without it.
    Broken,
}

/// How often a machine may fail to boot: now and then a kernel under emulation trips over its own patching of code.
const BOOTS: usize = 3;
/// How long booting may take, ten times what it does on a busy machine.
const BOOT_TIME: Duration = Duration::from_secs(120);

/// Boots, runs the order, ends the machine. A machine that does not come up is given up and another one booted.
pub(crate) fn run(
    lab: &Lab,
    order: &Order<'_>,
    size: &Size,
    sink: &mut Sink<'_>,
) -> Result<Ended, String> {
    for _ in 1..BOOTS {
        if let Some(ended) = attempt(lab, order, size, sink, true)? {
            return Ok(ended);
        }
        eprintln!("xtask: the virtual machine did not come up; once more");
    }
    let ended = attempt(lab, order, size, sink, false)?;
    ended.ok_or_else(|| "the virtual machine does not come up".to_owned())
}

/// `None` if the command was never begun and `may_fail`.
fn attempt(
    lab: &Lab,
    order: &Order<'_>,
    size: &Size,
    sink: &mut Sink<'_>,
    may_fail: bool,
) -> Result<Option<Ended>, String> {
    let directory = RunDirectory::create(&lab.directory, order)?;
    let (ours, theirs): (Vec<_>, Vec<_>) = [pair()?, pair()?].into_iter().unzip();
    let machine = Machine::start(lab, &directory, size, theirs)?;

    let (sender, events) = sync_channel(64);
    for (stream, socket) in [Stream::Stdout, Stream::Stderr].into_iter().zip(ours) {
        let (sender, until) = (sender.clone(), UntilMarker::new(directory.marker()));
        std::thread::spawn(move || read(stream, socket, until, &sender));
    }
    drop(sender);
    let ended = follow(&events, size.timeout, &directory, sink);
    drop(machine);
    if may_fail && matches!(ended, Some(Followed::Broken)) && !directory.begun() {
        directory.conclude(false)?;
        return Ok(None);
    }
    let ended = match ended {
        Some(Followed::Complete) => directory.status().map(Ended::With),
        Some(Followed::Broken) => Err(format!(
            "the virtual machine has ended before the command; {}",
            directory.last_words()
        )),
        None => {
            let seconds = size.timeout.as_secs();
            eprintln!(
                "xtask: the command has not ended within {seconds} s; the virtual machine was killed"
            );
            eprintln!("xtask: (--timeout SECONDS allows more) {}", directory.last_words());
            Ok(Ended::TimedOut)
        }
    };
    let keep = !matches!(ended, Ok(Ended::With(_)));
    directory.conclude(keep)?;
    ended.map(Some)
}

enum Followed {
    Complete,
    Broken,
}

/// Hands pieces to the sink until both streams have ended; `None` when time is up.
fn follow(
    events: &Receiver<Event>,
    timeout: Duration,
    directory: &RunDirectory,
    sink: &mut Sink<'_>,
) -> Option<Followed> {
    const LOOK: Duration = Duration::from_secs(5);
    let started = Instant::now();
    let deadline = started + timeout;
    let (mut complete, mut broken) = (0, 0);
    while complete + broken < 2 {
        let left = deadline.saturating_duration_since(Instant::now());
        match events.recv_timeout(left.min(LOOK)) {
            Ok(Event::Piece(stream, piece)) => sink(stream, &piece),
            Ok(Event::Complete) => complete += 1,
            Ok(Event::Broken) | Err(RecvTimeoutError::Disconnected) => broken += 1,
            Err(RecvTimeoutError::Timeout) if left <= LOOK => return None,
            Err(RecvTimeoutError::Timeout) => {
                if started.elapsed() > BOOT_TIME && !directory.begun() {
                    return Some(Followed::Broken);
                }
            }
        }
    }
    Some(if broken == 0 { Followed::Complete } else { Followed::Broken })
}

fn read(
    stream: Stream,
    mut socket: UnixStream,
    mut until: UntilMarker,
    events: &SyncSender<Event>,
) {
    let mut buffer = vec![0; 64 << 10];
    let last = loop {
        let (piece, ended) = match socket.read(&mut buffer) {
            Ok(0) => break Event::Broken,
            Ok(count) => until.push(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => break Event::Broken,
        };
        // Nobody listens any more: then there is nothing to read for.
        if !piece.is_empty() && events.send(Event::Piece(stream, piece)).is_err() {
            return;
        }
        if ended {
            break Event::Complete;
        }
    };
    if matches!(last, Event::Broken) {
        let _ = events.send(Event::Piece(stream, until.rest()));
    }
    let _ = events.send(last);
}

/// (ours, QEMU's)
fn pair() -> Result<(UnixStream, OwnedFd), String> {
    let (ours, theirs) = UnixStream::pair().map_err(|error| format!("socketpair: {error}"))?;
    Ok((ours, theirs.into()))
}

/// The running QEMU; dropping it ends it.
struct Machine {
    child: Child,
}

impl Machine {
    fn start(
        lab: &Lab,
        directory: &RunDirectory,
        size: &Size,
        streams: Vec<OwnedFd>,
    ) -> Result<Self, String> {
        let log = |name: &str| {
            let file = directory.path().join(name);
            fs::File::create(&file)
                .map_err(|error| format!("cannot write {}: {error}", file.display()))
        };
        let log = log("qemu.log")?;
        let copy = log.try_clone().map_err(|error| format!("cannot duplicate: {error}"))?;
        let arguments = arguments(lab, directory.path(), size, &streams);
        for stream in &streams {
            rustix::io::fcntl_setfd(stream, FdFlags::empty())
                .map_err(|error| format!("cannot hand a socket to QEMU: {error}"))?;
        }
        let mut command = if in_path("setpriv") {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", PROGRAM]);
            command
        } else {
            Command::new(PROGRAM)
        };
        command.args(arguments).current_dir(directory.path());
        command.stdin(Stdio::null()).stdout(log).stderr(copy);
        let child = command.spawn().map_err(|error| format!("cannot run {PROGRAM}: {error}"))?;
        // With QEMU's ends open in it alone, its death ends the streams.
        drop(streams);
        Ok(Self { child })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const PROGRAM: &str = "qemu-system-x86_64";

fn arguments(lab: &Lab, run: &Path, size: &Size, streams: &[OwnedFd]) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |option: &str, value: OsString| arguments.extend([option.into(), value]);
    add("-accel", "tcg,thread=multi".into());
    add("-cpu", "max".into());
    add("-M", "q35".into());
    add("-m", size.memory.clone().into());
    add("-smp", size.cpus.to_string().into());
    add("-display", "none".into());
    add("-monitor", "none".into());
    add("-serial", "file:console.log".into());
    add("-kernel", lab.kernel.image.clone().into());
    add("-initrd", lab.initramfs.clone().into());
    // No mitigations: this machine has no secrets, and each costs emulated instructions. No timer
    // check: it counts ticks during a few milliseconds, and panics on a host too busy to deliver them.
    let words = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on no_timer_check";
    add("-append", words.into());
    add("-device", "virtio-rng-pci".into());
    add("-device", "virtio-serial-pci".into());
    for (name, stream) in ["stdout", "stderr"].into_iter().zip(streams) {
        add("-chardev", format!("socket,id={name},fd={}", stream.as_raw_fd()).into());
        add("-device", format!("virtserialport,chardev={name},name=lab.{name}").into());
    }
    for (tag, path, options) in [
        // Below the root there may be other file systems.
        ("host", Path::new("/"), ",readonly=on,multidevs=remap"),
        ("modules", &lab.kernel.modules, ",readonly=on"),
        ("exchange", run, ""),
    ] {
        let mut share =
            OsString::from(format!("local,mount_tag={tag},security_model=none{options},path="));
        share.push(files::doubled_commas(path));
        add("-virtfs", share);
    }
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        arguments.push(flag.into());
    }
    arguments
}
