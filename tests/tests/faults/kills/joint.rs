//! Two processes and what joins them: an address, or descriptors that they inherit.

use std::{
    fs,
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use mig_tests::{lab, mig, process::Process, scratch::Scratch};

use super::{ACCEPT, BOUND, Kit, PATIENCE, SLOWLY, child, display};
use crate::{
    cases::End,
    mode::Mode,
    way::{VSOCK, Way, commands, fifos},
};

/// Names a case in the environment of its processes, and of all that they start.
const CASE: &str = "MIG_FAULTS_CASE";

/// One case's place.
pub(super) struct Joint<'a> {
    pub(super) way: Way,
    pub(super) mode: Mode,
    pub(super) kit: &'a Kit,
    pub(super) scratch: Scratch,
    /// Of RDMA.
    port: u16,
    /// How many times the shortest waits.
    times: u32,
}

/// How one end is reached.
pub(super) struct Plug {
    uri: String,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
}

impl Plug {
    fn address(uri: String) -> Self {
        Self { uri, stdin: None, stdout: None }
    }

    /// The same with what the other end says about itself.
    pub(super) fn at(self, uri: Option<String>) -> Self {
        Self { uri: uri.unwrap_or(self.uri), ..self }
    }
}

impl<'a> Joint<'a> {
    pub(super) fn new(way: Way, mode: Mode, kit: &'a Kit, times: u32) -> Self {
        let scratch = Scratch::new();
        if way == Way::Exec {
            fifos(scratch.root());
        }
        let port = if way == Way::Rdma { lab::port() } else { 0 };
        Self { way, mode, kit, scratch, port, times }
    }

    /// For the source and for the destination; descriptors are fresh ones.
    pub(super) fn plugs(&self) -> [Plug; 2] {
        let dir = self.scratch.root();
        let both = |uri: String| [(); 2].map(|()| Plug::address(uri.clone()));
        match self.way {
            Way::Tcp => both("tcp:127.0.0.1:0".to_owned()),
            Way::Unix => both(format!("unix:{}", display(&dir.join("s")))),
            Way::File => both(format!("file:{}", display(&dir.join("f")))),
            Way::Vsock => both(VSOCK.to_owned()),
            Way::Rdma => both(format!("rdma:{}:{}", lab::IPV4, self.port)),
            Way::Exec => commands(dir, self.mode).map(Plug::address),
            Way::FdSocket => {
                let (near, far) = UnixStream::pair().expect("a pair of sockets");
                [near, far].map(|socket| Plug {
                    uri: "fd:3".to_owned(),
                    stdin: Some(socket.into()),
                    stdout: None,
                })
            }
            Way::FdPipe | Way::FdPipes => {
                let (there, out) = std::io::pipe().expect("a pipe");
                let (home, back) = std::io::pipe().expect("a pipe");
                let answered = self.way == Way::FdPipes;
                let [from, to] = if answered { ["fd:3,4"; 2] } else { ["fd:4", "fd:3"] };
                let only = |end: OwnedFd| answered.then_some(end);
                [
                    Plug {
                        uri: from.to_owned(),
                        stdin: only(home.into()),
                        stdout: Some(out.into()),
                    },
                    Plug {
                        uri: to.to_owned(),
                        stdin: Some(there.into()),
                        stdout: only(back.into()),
                    },
                ]
            }
        }
    }

    /// Starts an end in a process of its own, no faster than `rate` bytes a second if it sends. All it says is on stderr.
    pub(super) fn start(&self, end: End, plug: Plug, rate: Option<u32>) -> Process {
        let Plug { uri, stdin, stdout } = plug;
        // Descriptors of ours become 3 and 4: a test's own stdout has more on it than its migration.
        let script = match stdin.is_some() || stdout.is_some() {
            true => "exec 3<&0 4>&1 </dev/null >&2; exec \"$@\"",
            false => "exec \"$@\" </dev/null >&2",
        };
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]);
        match self.mode.is_stored() {
            true => self.tool(&mut command, end, &uri, rate),
            false => child::of(&mut command, end, &uri, self, rate),
        }
        command
            .env(CASE, self.scratch.root())
            .stdin(stdin.map_or_else(Stdio::null, Stdio::from))
            .stdout(stdout.map_or_else(Stdio::null, Stdio::from));
        Process::start(&end.to_string(), command, false)
    }

    fn tool(&self, command: &mut Command, end: End, uri: &str, rate: Option<u32>) {
        let mode = self.mode;
        command.arg(mig::binary());
        match end {
            End::Source => {
                command.args(["send", &display(&self.kit.stored()), uri]);
                command.args(
                    rate.iter().flat_map(|rate| ["--max-bandwidth".into(), rate.to_string()]),
                );
            }
            End::Destination => {
                command.args(["recv", uri, "--save", &display(&self.scratch.path("FILE"))]);
            }
        }
        command.arg("--json");
        match (mode.has_return_path(), end) {
            (true, _) => _ = command.arg("--return-path"),
            (false, End::Source) => _ = command.arg("--no-return-path"),
            (false, End::Destination) => {}
        }
        if mode.has_data_channels() {
            command.args(["--multifd", "2"]);
        }
        if mode.has_tls() {
            command.args(["--tls-creds", &display(&self.kit.certificates())]);
            if end == End::Source {
                command.args(["--tls-hostname", "localhost"]);
            }
        }
        let patient = ["handshake", "first-byte", "idle", "acknowledgement", "exit"];
        let [accept, patience] = self.waits();
        let waits = patient.iter().map(|wait| (*wait, patience)).chain([("accept", accept)]);
        for (wait, limit) in waits {
            command.args(["--deadline", &format!("{wait}={}s", limit.as_secs())]);
        }
    }

    /// How long a destination waits for a source, and everybody for anything else.
    pub(super) fn waits(&self) -> [Duration; 2] {
        let slowly = if self.way.is_slow() { SLOWLY } else { 1 };
        [ACCEPT, PATIENCE].map(|wait| self.times * slowly * wait)
    }

    /// Where a destination can be reached, if that is for it to say.
    pub(super) fn listening(&self, destination: &Process) -> Option<String> {
        self.way
            .listens()
            .then(|| destination.stderr().wait_for("`listening on URI`", BOUND, mig::listening_in))
    }

    /// Whether the survivor of a kill may have to wait for its deadline: a destination for a source that never came, or a
    /// command for the other end of its fifo.
    pub(super) fn may_wait(&self, killed: Option<End>, for_a_source: bool) -> bool {
        let never_came = killed == Some(End::Source) && for_a_source && self.way.listens();
        killed.is_some() && (never_came || self.way == Way::Exec)
    }

    /// Waits until everything that this case has started is gone.
    pub(super) fn nobody_is_left(&self) -> Result<(), String> {
        let mark = format!("{CASE}={}\0", self.scratch.root().display());
        let deadline = Instant::now() + BOUND;
        loop {
            let left: Vec<_> = processes().filter(|pid| is_of(*pid, &mark)).collect();
            if left.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                let what =
                    left.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/cmdline")));
                return Err(format!("processes are left: {:?}", what.collect::<Vec<_>>()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").expect("it is mounted");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Whether a process was started by the case of this mark. One of another user, or that is gone, was not.
fn is_of(pid: u32, mark: &str) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.windows(mark.len()).any(|part| part == mark.as_bytes())
}
