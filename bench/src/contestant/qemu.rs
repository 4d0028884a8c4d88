//! QEMU migrating to QEMU: the same memory, the same clocks.
//!
//! Both guests are stopped (`-S`), so nothing is dirtied and one pass does it. The source's memory is a file in memory
//! filled beforehand, with page tables populated before the clock starts (`prealloc`); the destination's is what QEMU
//! makes by itself, untouched. Both have huge pages forbidden to the process. The return path is on, so that "completed"
//! at the source means loaded at the destination.

use std::{
    collections::BTreeMap,
    env,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;

use super::{Contestant, Transport, Turn};
use crate::{
    child::{Helper, STEP, TRANSFER},
    contest::Sample,
    failure::Result,
    memory::FilledFile,
    qmp::Qmp,
    rdma,
    role::Foreign,
};

/// More than any machine moves: QEMU's own default would be the limit.
const MAX_BANDWIDTH: u64 = 1 << 40;

/// A QEMU that can be started.
#[derive(Clone, Debug)]
pub(crate) struct Binary {
    program: PathBuf,
    /// Root of one that was unpacked without being installed: its libraries and data are below.
    root: Option<PathBuf>,
    version: String,
}

impl Binary {
    /// Those on this machine: the installed one, and the newer one that `cargo xtask test` unpacks.
    pub(crate) fn all() -> Vec<Self> {
        let unpacked = env::var_os("MIG_SECOND_QEMU").map(PathBuf::from).or_else(|| {
            let program = env::current_exe().ok()?;
            // target/release/mig-bench
            Some(program.ancestors().nth(2)?.join("qemu-10"))
        });
        let second = unpacked.map(|root| (root.join("usr/bin/qemu-system-x86_64"), Some(root)));
        let first = ("qemu-system-x86_64".into(), None);
        let found = [Some(first), second].into_iter().flatten();
        found.filter_map(|(program, root)| Self::look(program, root).ok()).collect()
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    fn look(program: PathBuf, root: Option<PathBuf>) -> Result<Self> {
        let mut binary = Self { program, root, version: String::new() };
        let mut asked = binary.start("QEMU", vec!["--version".into()])?;
        let text = asked.rest(STEP)?;
        let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1);
        binary.version = version.ok_or("QEMU does not tell its version")?.to_owned();
        Ok(binary)
    }

    fn start(&self, name: &str, mut arguments: Vec<String>) -> Result<Helper> {
        let mut environment = BTreeMap::new();
        if let Some(root) = &self.root {
            let mut libraries = root.join("usr/lib/x86_64-linux-gnu").display().to_string();
            if let Ok(already) = env::var("LD_LIBRARY_PATH") {
                libraries = format!("{libraries}:{already}");
            }
            environment.insert("LD_LIBRARY_PATH".into(), libraries);
            for data in ["usr/share/qemu", "usr/share/seabios"] {
                arguments.extend(["-L".into(), root.join(data).display().to_string()]);
            }
        }
        let program = self.program.display().to_string();
        Helper::foreign(name, Foreign { program, arguments, environment, no_huge_pages: true })
    }
}

/// One migration a turn.
pub(crate) struct Qemu {
    pub(crate) binary: Binary,
    pub(crate) transport: Transport,
    pub(crate) ram_bytes: u64,
    pub(crate) contents: Rc<FilledFile>,
}

/// A running one, and its monitor.
struct Running {
    process: Helper,
    qmp: Qmp,
}

impl Running {
    /// A stopped guest of so much memory, waiting for commands; capabilities and parameters are set.
    fn start(
        binary: &Binary,
        transport: Transport,
        ram_bytes: u64,
        name: &str,
        folder: &TempDir,
        more: &[String],
    ) -> Result<Self> {
        let socket = folder.path().join(format!("{name}.qmp"));
        let listener = UnixListener::bind(&socket)?;
        let mib = ram_bytes >> 20;
        let mut arguments: Vec<String> = format!(
            "-name {name} -no-user-config -nodefaults -display none -accel tcg -S -m {mib} \
             -chardev socket,id=qmp,path={} -mon chardev=qmp,mode=control",
            socket.display()
        )
        .split_whitespace()
        .map(str::to_owned)
        .collect();
        arguments.extend_from_slice(more);
        let mut process = binary.start(&format!("QEMU's {name}"), arguments)?;
        listener.set_nonblocking(true)?;
        let deadline = Instant::now() + STEP;
        let stream = loop {
            match listener.accept() {
                Ok((stream, _)) => break stream,
                Err(_) if process.ended()?.is_some() || Instant::now() >= deadline => {
                    return Err(process.complaint("did not come up").into());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        stream.set_nonblocking(false)?;
        let mut qmp = Qmp::new(stream)?;
        // Over rdma 7.2 has no return path outside of postcopy.
        let return_path = !matches!(transport, Transport::Rdma { .. });
        let capabilities = [("events", true), ("return-path", return_path)]
            .map(|(capability, state)| json!({ "capability": capability, "state": state }));
        qmp.run("migrate-set-capabilities", json!({ "capabilities": capabilities }))?;
        qmp.run("migrate-set-parameters", json!({ "max-bandwidth": MAX_BANDWIDTH }))?;
        if let Transport::Rdma { pin_all } = transport {
            let capability = json!({ "capability": "rdma-pin-all", "state": pin_all });
            qmp.run("migrate-set-capabilities", json!({ "capabilities": [capability] }))?;
        }
        Ok(Self { process, qmp })
    }
}

impl Qemu {
    fn start(&self, name: &str, folder: &TempDir, more: &[String]) -> Result<Running> {
        Running::start(&self.binary, self.transport, self.ram_bytes, name, folder, more)
    }

    /// The guest's memory, under the same name at both ends: that is the block's name on the wire.
    fn memory(&self, backend: &str) -> Vec<String> {
        let object = format!("{backend},id=ram,size={}", self.ram_bytes);
        ["-machine", "pc,memory-backend=ram", "-object", &object].map(str::to_owned).to_vec()
    }
}

impl Contestant for Qemu {
    fn name(&self) -> String {
        let version = &self.binary.version;
        match self.transport {
            Transport::Rdma { pin_all: true } => format!("QEMU {version}, pin-all"),
            Transport::Rdma { pin_all: false } => format!("QEMU {version}, chunks"),
            Transport::Tcp | Transport::Unix => format!("QEMU {version}"),
        }
    }

    fn memory_bytes(&self) -> u64 {
        2 * self.ram_bytes
    }

    fn run(&mut self) -> Result<Turn> {
        let folder = tempfile::Builder::new().prefix("mig-bench-").tempdir()?;
        let filled =
            format!("memory-backend-file,mem-path={},share=on,prealloc=on", self.contents.path());
        let mut source = self.start("source", &folder, &self.memory(&filled))?;
        let mut waiting = self.memory("memory-backend-ram");
        waiting.extend(["-incoming".into(), "defer".into()]);
        let mut destination = self.start("destination", &folder, &waiting)?;
        let listen = match self.transport {
            Transport::Tcp => "tcp:127.0.0.1:0".to_owned(),
            Transport::Unix => socket_uri(folder.path()),
            Transport::Rdma { .. } => rdma_uri()?,
        };
        destination.qmp.run("migrate-incoming", json!({ "uri": listen }))?;
        let uri = match self.transport {
            Transport::Tcp => {
                let told = destination.qmp.run("query-migrate", json!({}))?;
                let address = &told["socket-address"][0];
                match (address["host"].as_str(), address["port"].as_str()) {
                    (Some(host), Some(port)) => format!("tcp:{host}:{port}"),
                    _ => return Err(format!("no socket-address in {told}").into()),
                }
            }
            Transport::Unix | Transport::Rdma { .. } => listen,
        };
        let used = source.process.cpu_seconds()? + destination.process.cpu_seconds()?;
        let begun = Instant::now();
        source.qmp.run("migrate", json!({ "uri": uri }))?;
        let ended = source.qmp.migration_ended(TRANSFER)?;
        let seconds = begun.elapsed().as_secs_f64();
        let loaded = destination.qmp.migration_ended(TRANSFER)?;
        let cpu_seconds = source.process.cpu_seconds()? + destination.process.cpu_seconds()? - used;
        let told = source.qmp.run("query-migrate", json!({}))?;
        let normal = told["ram"]["normal-bytes"].as_u64().unwrap_or(0);
        if (ended.as_str(), loaded.as_str()) != ("completed", "completed") {
            let what = format!("{loaded} and the source {ended}: {told}");
            return Err(destination.process.complaint(&what).into());
        }
        if normal < self.ram_bytes / 100 * 99 {
            return Err(format!("only {normal} bytes went as whole pages: {told}").into());
        }
        let total = told["total-time"].as_u64().map(|ms| format!("its own total-time {ms} ms"));
        let sample = Sample { seconds, cpu_seconds: Some(cpu_seconds), bytes: self.ram_bytes };
        Ok(Turn { sample, remark: total })
    }
}

fn socket_uri(folder: &Path) -> String {
    let path = folder.join("migration");
    format!("unix:{}", path.display())
}

fn rdma_uri() -> Result<String> {
    Ok(format!("rdma:{}:{}", rdma::Device::find()?.address, rdma::port()))
}

/// Device state of a QEMU: many network cards, each of which saves its 128 KiB of registers.
pub(crate) struct QemuState {
    binary: Binary,
    transport: Transport,
    /// Of all cards in the stream.
    bytes: u64,
}

/// The memory of a guest that is there for its devices.
const STATE_RAM: u64 = 16 << 20;

/// 7.2 sometimes tells a downtime of 0.
const STATE_TRIES: u32 = 3;

/// Slots of the machine's bus that are used, each with eight cards.
const STATE_SLOTS: std::ops::Range<u32> = 3..8;

impl QemuState {
    /// Sees how much the cards save, by saving a guest with and one without them.
    pub(crate) fn new(binary: Binary, transport: Transport) -> Result<Self> {
        let with = saved_bytes(&binary, &cards())?;
        let without = saved_bytes(&binary, &[])?;
        let bytes = with.checked_sub(without).ok_or("network cards save less than nothing")?;
        Ok(Self { binary, transport, bytes })
    }
}

fn cards() -> Vec<String> {
    let functions = STATE_SLOTS.flat_map(|slot| (0..8).map(move |function| (slot, function)));
    functions
        .flat_map(|(slot, function)| {
            let card = format!("e1000,addr={slot}.{function},multifunction=on,romfile=");
            ["-device".to_owned(), card]
        })
        .collect()
}

fn saved_bytes(binary: &Binary, devices: &[String]) -> Result<u64> {
    let folder = tempfile::Builder::new().prefix("mig-bench-").tempdir()?;
    let mut source = Running::start(binary, Transport::Unix, STATE_RAM, "saved", &folder, devices)?;
    let file = folder.path().join("stream");
    // Nobody answers there.
    let no_return_path = json!([{ "capability": "return-path", "state": false }]);
    source.qmp.run("migrate-set-capabilities", json!({ "capabilities": no_return_path }))?;
    let uri = format!("exec:cat > {}", file.display());
    source.qmp.run("migrate", json!({ "uri": uri }))?;
    match source.qmp.migration_ended(TRANSFER)?.as_str() {
        "completed" => Ok(std::fs::metadata(&file)?.len()),
        ended => Err(source.process.complaint(&format!("saving {ended}")).into()),
    }
}

impl Contestant for QemuState {
    fn name(&self) -> String {
        format!("QEMU {}, cards over {}", self.binary.version, self.transport.name())
    }

    fn memory_bytes(&self) -> u64 {
        2 * (STATE_RAM + self.bytes)
    }

    fn run(&mut self) -> Result<Turn> {
        for _ in 0..STATE_TRIES {
            let seconds = self.downtime()?;
            if seconds > 0.0 {
                let sample = Sample { seconds, cpu_seconds: None, bytes: self.bytes };
                return Ok(Turn { sample, remark: None });
            }
        }
        Err("QEMU tells a downtime of 0".into())
    }
}

impl QemuState {
    /// Migrates once, and asks.
    fn downtime(&self) -> Result<f64> {
        let folder = tempfile::Builder::new().prefix("mig-bench-").tempdir()?;
        let start = |name: &str, more: &[&str]| {
            let mut arguments = cards();
            // A block's name on the wire; both ends must agree.
            let object = format!("memory-backend-ram,id=ram,size={STATE_RAM}");
            arguments.extend(
                ["-machine", "pc,memory-backend=ram", "-object", &object].map(str::to_owned),
            );
            arguments.extend(more.iter().map(|word| (*word).to_owned()));
            Running::start(&self.binary, self.transport, STATE_RAM, name, &folder, &arguments)
        };
        let mut source = start("source", &[])?;
        let mut destination = start("destination", &["-incoming", "defer"])?;
        let uri = match self.transport {
            Transport::Rdma { .. } => rdma_uri()?,
            Transport::Tcp | Transport::Unix => socket_uri(folder.path()),
        };
        destination.qmp.run("migrate-incoming", json!({ "uri": uri }))?;
        source.qmp.run("migrate", json!({ "uri": uri }))?;
        let ended = source.qmp.migration_ended(TRANSFER)?;
        let loaded = destination.qmp.migration_ended(TRANSFER)?;
        let told = source.qmp.run("query-migrate", json!({}))?;
        if (ended.as_str(), loaded.as_str()) != ("completed", "completed") {
            let what = format!("{loaded} and the source {ended}: {told}");
            return Err(destination.process.complaint(&what).into());
        }
        let downtime = told["downtime"].as_f64().ok_or("QEMU does not tell its downtime")?;
        Ok(downtime / 1e3)
    }
}
