//! The binary, streams to feed it, and folders that go away.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// A hang guard, generous: nothing here takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The path of the binary under test.
pub(crate) const MIG: &str = env!("CARGO_BIN_EXE_mig");

/// `mig` with arguments, its output collected, nothing on stdin.
pub(crate) fn mig(arguments: &[&str]) -> Command {
    let mut command = Command::new(MIG);
    command
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs a command to its end.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Output {
    finish(command.spawn().unwrap())
}

/// Waits for a child with a hang guard.
#[track_caller]
pub(crate) fn finish(mut child: Child) -> Output {
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("the command hangs");
        }
        thread::sleep(Duration::from_millis(2));
    };
    let text = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
        reader.map(|reader| reader.join().unwrap()).unwrap_or_default()
    };
    Output { status, stdout: text(stdout), stderr: text(stderr) }
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        pipe.read_to_end(&mut all).unwrap();
        all
    })
}

/// Sends a signal by its name without `SIG`.
#[track_caller]
pub(crate) fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// What an output says, for messages and for looking into.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The last line on stdout, as JSON.
#[track_caller]
pub(crate) fn last_json(output: &Output) -> Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let line = text.lines().last().unwrap_or_else(|| panic!("no JSON; {}", stderr(output)));
    serde_json::from_str(line).unwrap()
}

#[track_caller]
pub(crate) fn assert_exit(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}: {}", output.status, stderr(output));
}

/// A `mig recv` that listens; its stderr is read until it says where, and then beside it.
pub(crate) struct Listening {
    pub(crate) child: Child,
    pub(crate) uri: String,
    rest: thread::JoinHandle<Vec<u8>>,
}

impl Listening {
    #[track_caller]
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut child = mig(arguments).spawn().unwrap();
        let mut reader = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        let uri = loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap() == 0 {
                panic!("it ended: {said}");
            }
            if let Some(uri) = line.trim().strip_prefix("mig: listening on ") {
                break uri.to_owned();
            }
            said.push_str(&line);
        };
        Self { child, uri, rest: collect(reader) }
    }

    /// With what it said after that.
    #[track_caller]
    pub(crate) fn finish(self) -> Output {
        let mut output = finish(self.child);
        output.stderr = self.rest.join().unwrap();
        output
    }
}

/// A folder of its own, gone with this value.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("mig-cli-test-{}-{count}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.file(name);
        fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    }

    /// Names of everything in it, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.0)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _left_behind = fs::remove_dir_all(&self.0);
    }
}

/// Every stream of a real QEMU that the repository keeps, with its name.
pub(crate) fn all_streams() -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut streams = Vec::new();
    for folder in ["../mig-proto/tests/data", "../../tests/data"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "zst") {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                streams.push((name, zstd::decode_all(fs::File::open(path).unwrap()).unwrap()));
            }
        }
    }
    streams
}

/// A stream that a real QEMU wrote: `pc` or `q35`.
pub(crate) fn corpus(machine: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../mig-proto/tests/data")
        .join(format!("{machine}-10.0.2-precopy.bin.zst"));
    zstd::decode_all(fs::File::open(path).unwrap()).unwrap()
}
