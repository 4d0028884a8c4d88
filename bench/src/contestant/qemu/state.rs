//! Device state of a QEMU.

use serde_json::json;

use super::{
    super::{Contestant, Transport, Turn},
    Binary, Running, rdma_uri, socket_uri,
};
use crate::{child::TRANSFER, contest::Sample, failure::Result};

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
        format!("QEMU {}, cards over {}", self.binary.version(), self.transport.name())
    }

    fn memory_bytes(&self) -> u64 {
        2 * (STATE_RAM + self.bytes)
    }

    fn run(&mut self) -> Result<Turn> {
        for _ in 0..STATE_TRIES {
            let seconds = self.downtime()?;
            if seconds > 0.0 {
                let sample = Sample { seconds, bytes: self.bytes, ..Sample::default() };
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
