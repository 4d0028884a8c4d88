//! Real QEMU as a child: which ones there are, how they start, how they migrate.
//!
//! ```text
//!   Release ──find──▶ Binary ──Setup::source / destination──▶ Qemu { process, qmp }
//! ```
//! Always `-accel tcg` (the same everywhere, KVM or not), `-nodefaults`, and a monitor that connects to a socket of
//! ours, so that nobody polls for its appearance. Destinations start with `-S -incoming defer`: they stay stopped
//! after loading, which is when their memory can be compared.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::guest::{self, Counters, Image};
use crate::process::{Process, STEP, wait_readable};
use crate::qmp::Qmp;
use crate::report;
use crate::scratch::Scratch;

/// Guest RAM of every scenario, in MiB: all that `fw-dirty` touches and room for zero pages.
pub const RAM_MIB: usize = 8;

/// Which QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The distribution's, installed: `qemu-system-x86_64` of `PATH`.
    Installed,
    /// A newer one that `cargo xtask test` unpacked (without installing it) under `target/`.
    Unpacked,
}

/// A QEMU that can be started.
#[derive(Clone, Debug)]
pub struct Binary {
    program: PathBuf,
    /// Root of an unpacked QEMU: libraries and data are below it.
    root: Option<PathBuf>,
    version: String,
}

impl Release {
    /// Finds this QEMU, or reports that the running test cannot have it.
    #[must_use]
    pub fn or_skip(self) -> Option<Binary> {
        let (program, root) = match self {
            Self::Installed => ("qemu-system-x86_64".into(), None),
            Self::Unpacked => {
                if let Ok(reason) = std::env::var("MIG_NO_SECOND_QEMU") {
                    report::not_applicable("second-qemu", &reason);
                    return None;
                }
                let root = match std::env::var_os("MIG_SECOND_QEMU") {
                    Some(root) => PathBuf::from(root),
                    None => target_directory().join("qemu-10"),
                };
                (root.join("usr/bin/qemu-system-x86_64"), Some(root))
            }
        };
        let mut binary = Binary { program, root, version: String::new() };
        let Ok(output) = binary.command().arg("--version").output() else {
            report::skip(&format!("no {}: `cargo xtask test` brings it", binary.program.display()));
            return None;
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1);
        let Some(version) = version.filter(|_| output.status.success()) else {
            panic!("{} does not tell its version: {output:?}", binary.program.display());
        };
        binary.version = version.to_owned();
        Some(binary)
    }
}

/// Cargo's target directory, found from where the running test was built: `…/debug/deps/test-hash`.
#[must_use]
pub fn target_directory() -> PathBuf {
    let exe = std::env::current_exe().expect("Linux tells a process its executable");
    let target = exe.ancestors().nth(3).expect("cargo builds tests three levels below its target");
    target.to_path_buf()
}

impl Binary {
    /// "7.2.22", say.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether this QEMU is `major.minor` or newer.
    #[must_use]
    pub fn is_at_least(&self, major: u32, minor: u32) -> bool {
        let mut numbers = self.version.split('.').map(|part| part.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(root) = &self.root {
            let mut libraries = OsString::from(root.join("usr/lib/x86_64-linux-gnu"));
            if let Some(already) = std::env::var_os("LD_LIBRARY_PATH") {
                libraries.push(":");
                libraries.push(already);
            }
            command.env("LD_LIBRARY_PATH", libraries);
            for data in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(data));
            }
        }
        command
    }
}

/// What all QEMUs of one scenario share.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The QEMU to start.
    pub binary: &'a Binary,
    /// `-M`: "pc" or "q35".
    pub machine: &'a str,
    /// Where sockets and files go.
    pub scratch: &'a Scratch,
    /// What the guest runs.
    pub image: Image,
}

impl Setup<'_> {
    /// A running guest. With [`Image::Dirty`] it is counting when this returns.
    #[must_use]
    pub fn source(&self, name: &str) -> Qemu {
        let mut qemu = self.start(name, &[]);
        if self.image == Image::Dirty {
            guest::wait_until_counting(&mut qemu.qmp);
        }
        qemu
    }

    /// A fresh QEMU that waits for [`Qemu::incoming`] and stays stopped after loading.
    #[must_use]
    pub fn destination(&self, name: &str) -> Qemu {
        self.start(name, &["-S", "-incoming", "defer"])
    }

    /// A QEMU whose guest has never run an instruction.
    #[must_use]
    pub fn never_run(&self, name: &str) -> Qemu {
        self.start(name, &["-S"])
    }

    fn start(&self, name: &str, more: &[&str]) -> Qemu {
        let image = self.image.unpack(self.scratch);
        let mut arguments = vec!["-M", self.machine, "-bios", text(&image)];
        let memory = RAM_MIB.to_string();
        arguments.extend(["-m", &memory]);
        arguments.extend(more);
        self.binary.start(name, self.scratch, &arguments)
    }
}

impl Binary {
    /// Starts this QEMU with a monitor of ours and `arguments`, which have machine, memory and what the guest runs.
    #[must_use]
    pub fn start(&self, name: &str, scratch: &Scratch, arguments: &[&str]) -> Qemu {
        let socket = scratch.path(&format!("{name}.qmp"));
        let listener = UnixListener::bind(&socket)
            .unwrap_or_else(|error| panic!("cannot listen on {}: {error}", socket.display()));
        let mut command = self.command();
        command
            .args(["-name", name, "-no-user-config", "-nodefaults", "-display", "none"])
            .args(["-accel", "tcg"])
            .args(["-chardev", &format!("socket,id=qmp,path={}", text(&socket))])
            .args(["-mon", "chardev=qmp,mode=control"])
            .args(arguments)
            .stdin(std::process::Stdio::null());
        let mut process = Process::start(name, command, true);
        let deadline = Instant::now() + STEP;
        while !wait_readable(&listener, Duration::from_millis(100)) {
            let ended = process.try_wait();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{name} does not come up ({ended:?}):\n{}",
                process.stderr().text()
            );
        }
        let (stream, _) = listener.accept().expect("poll has said that somebody is there");
        let mut qmp = Qmp::new(stream);
        set_capability(&mut qmp, "events", true);
        // 10.0 is the oldest seen to be right.
        Qemu { process, qmp, tracks_writes: self.is_at_least(10, 0) }
    }
}

/// A running QEMU.
#[derive(Debug)]
pub struct Qemu {
    /// The child: its stderr is also that of the children it starts for `exec:`.
    pub process: Process,
    /// Its monitor.
    pub qmp: Qmp,
    tracks_writes: bool,
}

/// The source has lost track of its guest's writes; the scenario says nothing about anybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostTrack {
    syncs: u64,
}

/// Runs `scenario`, again if its source lost track of its guest.
#[track_caller]
pub fn with_a_source_that_keeps_track(mut scenario: impl FnMut() -> Result<(), LostTrack>) {
    const ATTEMPTS: usize = 8;
    for _ in 0..ATTEMPTS {
        match scenario() {
            Ok(()) => return,
            Err(lost) => eprintln!("once more: {lost:?}"),
        }
    }
    panic!(
        "the source lost track of its guest's writes {ATTEMPTS} times: is the machine that slow?"
    );
}

impl Qemu {
    /// Turns a migration capability on or off.
    pub fn set_capability(&mut self, name: &str, on: bool) {
        set_capability(&mut self.qmp, name, on);
    }

    /// Sets migration parameters (QEMU's names and units).
    #[track_caller]
    pub fn set_parameters(&mut self, parameters: Value) {
        let _ = self.qmp.run("migrate-set-parameters", parameters);
    }

    /// Hands over a descriptor for `fd:name`.
    pub fn hand_over(&mut self, name: &str, fd: BorrowedFd<'_>) {
        self.qmp.hand_over(name, fd);
    }

    /// Starts migrating to `uri`; does not wait for the end.
    #[track_caller]
    pub fn migrate(&mut self, uri: &str) {
        let _ = self.qmp.run("migrate", json!({ "uri": uri }));
    }

    /// Starts receiving from `uri`; does not wait for the end.
    #[track_caller]
    pub fn incoming(&mut self, uri: &str) {
        let _ = self.qmp.run("migrate-incoming", json!({ "uri": uri }));
    }

    /// Where a destination listens after [`Qemu::incoming`] with port 0: `host:port`, IPv6 in brackets.
    #[must_use]
    #[track_caller]
    pub fn listening_address(&mut self) -> String {
        let told = self.qmp.run("query-migrate", json!({}));
        let address = &told["socket-address"][0];
        match (address["host"].as_str(), address["port"].as_str()) {
            (Some(host), Some(port)) if host.contains(':') => format!("[{host}]:{port}"),
            (Some(host), Some(port)) => format!("{host}:{port}"),
            _ => panic!("no socket-address in {told}"),
        }
    }

    /// Waits until this end's migration has ended, however; gives its last status.
    #[track_caller]
    pub fn ended(&mut self) -> String {
        let last = |data: &Value| {
            matches!(data["status"].as_str(), Some("completed" | "failed" | "cancelled"))
        };
        let event = self.qmp.event("MIGRATION", STEP, last);
        event["data"]["status"].as_str().expect("the closure above saw a text").to_owned()
    }

    /// Waits for the end, which must be "completed", also for `query-migrate`.
    #[track_caller]
    pub fn completed(&mut self) {
        let ended = self.ended();
        let told = self.query();
        assert_eq!(ended, "completed", "{}: {told}", self.process.name());
        assert_eq!(told["status"], "completed", "{}: {told}", self.process.name());
    }

    /// `query-migrate`.
    #[must_use]
    #[track_caller]
    pub fn query(&mut self) -> Value {
        self.qmp.run("query-migrate", json!({}))
    }

    /// Waits until a migration that fails has, and the guest runs on. False if QEMU stands still meanwhile: it answers
    /// nothing for so long.
    pub fn lives_through_a_failure(&mut self, limit: Duration) -> bool {
        let deadline = Instant::now() + STEP;
        while Instant::now() < deadline {
            let Some(migration) = self.qmp.ask("query-migrate", limit) else { return false };
            let Some(guest) = self.qmp.ask("query-status", limit) else { return false };
            if migration["status"] == "failed" && guest["status"] == "running" {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.qmp.ask("query-status", limit).is_some()
    }

    /// Whether a source that migrated while its guest ran has sent all its memory, by its own standards.
    ///
    /// QEMU 7.2 under TCG forgets to watch the guest's writes after its second sync of the dirty bitmap: whatever a
    /// running guest writes between that and its stop is never sent, to another QEMU neither (docs/testing.md). A
    /// migration that takes less than 100 ms has its second sync after the stop; a loaded machine may need longer.
    pub fn kept_track(&mut self) -> Result<(), LostTrack> {
        let told = self.query();
        let syncs = told["ram"]["dirty-sync-count"].as_u64();
        let syncs = syncs.unwrap_or_else(|| panic!("no dirty-sync-count in {told}"));
        if self.tracks_writes || syncs <= 2 { Ok(()) } else { Err(LostTrack { syncs }) }
    }

    /// Waits for a run state: the last word about the guest comes some moments after the one about the migration.
    #[track_caller]
    pub fn reaches(&mut self, run_state: &str) {
        let deadline = Instant::now() + STEP;
        loop {
            let told = self.qmp.run("query-status", json!({}));
            if told["status"] == run_state {
                break;
            }
            let name = self.process.name();
            assert!(Instant::now() < deadline, "{name} is not {run_state} but {told}");
        }
    }

    /// Stops the guest.
    #[track_caller]
    pub fn stop(&mut self) {
        let _ = self.qmp.run("stop", json!({}));
    }

    /// Lets the guest run.
    #[track_caller]
    pub fn cont(&mut self) {
        let _ = self.qmp.run("cont", json!({}));
    }

    /// The whole memory of the guest.
    #[must_use]
    pub fn memory(&mut self, scratch: &Scratch) -> Vec<u8> {
        let name = self.process.name().to_owned();
        guest::memory(&mut self.qmp, RAM_MIB << 20, scratch, &name)
    }

    /// What the stopped `fw-dirty` shows, which must be right at every page.
    #[must_use]
    #[track_caller]
    pub fn counters(&mut self) -> Counters {
        match guest::check(&mut self.qmp) {
            Ok(counters) => counters,
            Err(wrong) => panic!("{}: {wrong}", self.process.name()),
        }
    }

    /// Waits until each counter of the running `fw-dirty` has left `before`, stops the guest and demands that
    /// every page is right again.
    #[track_caller]
    pub fn counts_on_from(&mut self, before: &Counters) {
        guest::wait_until_moved(&mut self.qmp, before);
        self.stop();
        let _ = self.counters();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = self.process.name();
            eprintln!("stderr of {name}:\n{}", self.process.stderr().text());
        }
    }
}

fn set_capability(qmp: &mut Qmp, name: &str, on: bool) {
    let list = json!({ "capabilities": [{ "capability": name, "state": on }] });
    let _ = qmp.run("migrate-set-capabilities", list);
}

/// A path as text; those of the tests are ASCII.
#[must_use]
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_else(|| panic!("not a text: {}", path.display()))
}

/// What a guest looked like when its source had stopped for good.
#[derive(Debug)]
pub struct Seen {
    counters: Counters,
    memory: Vec<u8>,
}

impl Seen {
    /// Looks at a stopped guest.
    #[must_use]
    #[track_caller]
    pub fn of(source: &mut Qemu, scratch: &Scratch) -> Self {
        Self { counters: source.counters(), memory: source.memory(scratch) }
    }

    /// Demands that a stopped destination shows exactly this, then lets it run and demands that each page goes on
    /// counting and is consistent again after another stop.
    #[track_caller]
    pub fn lives_on_in(&self, destination: &mut Qemu, scratch: &Scratch) {
        let name = destination.process.name().to_owned();
        assert_eq!(destination.counters(), self.counters, "{name}: counters moved on the way");
        guest::assert_same_memory(&name, &self.memory, &destination.memory(scratch));
        destination.cont();
        destination.counts_on_from(&self.counters);
    }
}
