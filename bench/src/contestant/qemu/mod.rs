//! QEMU migrating to QEMU: the same memory, the same clocks.
//!
//! Both guests are stopped (`-S`), so nothing is dirtied and one pass does it. The source's memory is a file in memory
//! filled beforehand, with page tables populated before the clock starts (`prealloc`); the destination's is what QEMU
//! makes by itself, untouched. Both have huge pages forbidden to the process. The return path is on, so that "completed"
//! at the source means loaded at the destination.

mod binary;
mod firmware;
mod running;
mod state;
mod touched;

use std::{path::Path, rc::Rc, time::Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use self::running::Running;
pub(crate) use self::{binary::Binary, state::QemuState, touched::QemuTouched};
use super::{Contestant, Transport, Turn};
use crate::{
    certificates::Certificates,
    child::TRANSFER,
    contest::Sample,
    failure::Result,
    memory::FilledFile,
    rdma,
    role::{Compression, Multifd},
};

/// One migration a turn.
pub(crate) struct Qemu {
    pub(crate) binary: Binary,
    pub(crate) transport: Transport,
    /// Its guest's memory.
    pub(crate) contents: Rc<FilledFile>,
    /// Data channels, if there are any.
    pub(crate) multifd: Option<Multifd>,
    /// TLS on every channel.
    pub(crate) tls: Option<Rc<Certificates>>,
}

impl Qemu {
    fn start(&self, name: &str, folder: &TempDir, more: &[String]) -> Result<Running> {
        let bytes = self.contents.bytes();
        let mut running = Running::start(&self.binary, self.transport, bytes, name, folder, more)?;
        if let Some(multifd) = self.multifd {
            running.use_multifd(multifd)?;
        }
        Ok(running)
    }

    /// The guest's memory, under the same name at both ends: that is the block's name on the wire.
    fn memory(&self, backend: &str) -> Vec<String> {
        let object = format!("{backend},id=ram,size={}", self.contents.bytes());
        ["-machine", "pc,memory-backend=ram", "-object", &object].map(str::to_owned).to_vec()
    }
}

impl Qemu {
    /// What went over the wire by its own counters; those of 7.2 count pages of data channels before they are compressed,
    /// and then it is what the loopback carried meanwhile.
    fn wire_bytes(&self, told: &Value, carried: u64) -> Option<u64> {
        let counted = told["ram"]["transferred"].as_u64()?;
        let compressed =
            self.multifd.is_some_and(|multifd| multifd.compression != Compression::None);
        match compressed && counted >= self.contents.bytes() {
            true if self.transport == Transport::Tcp && carried > 0 => Some(carried),
            true => None,
            false => Some(counted),
        }
    }
}

/// Bytes that the loopback has carried so far, heads of packets included; 0 where the kernel does not tell.
fn loopback_bytes() -> u64 {
    let told = std::fs::read_to_string("/sys/class/net/lo/statistics/tx_bytes");
    told.ok().and_then(|told| told.trim().parse().ok()).unwrap_or(0)
}

impl Contestant for Qemu {
    fn name(&self) -> String {
        let version = self.binary.version();
        match self.transport {
            _ if self.tls.is_some() => format!("QEMU {version}, TLS"),
            Transport::Rdma { pin_all: true } => format!("QEMU {version}, pin-all"),
            Transport::Rdma { pin_all: false } => format!("QEMU {version}, chunks"),
            Transport::Tcp | Transport::Unix => format!("QEMU {version}"),
        }
    }

    fn memory_bytes(&self) -> u64 {
        2 * self.contents.bytes()
    }

    fn run(&mut self) -> Result<Turn> {
        let folder = tempfile::Builder::new().prefix("mig-bench-").tempdir()?;
        let filled =
            format!("memory-backend-file,mem-path={},share=on,prealloc=on", self.contents.path());
        let mut source = self.start("source", &folder, &self.memory(&filled))?;
        // A contest with TLS is one of warm memory, which to QEMU is populated memory.
        let prealloc = if self.tls.is_some() { ",prealloc=on" } else { "" };
        let mut waiting = self.memory(&format!("memory-backend-ram{prealloc}"));
        waiting.extend(["-incoming".into(), "defer".into()]);
        let mut destination = self.start("destination", &folder, &waiting)?;
        if let Some(certificates) = &self.tls {
            source.use_tls(certificates, "client")?;
            destination.use_tls(certificates, "server")?;
        }
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
        let sent_before = loopback_bytes();
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
        if normal < self.contents.bytes() / 100 * 99 {
            return Err(format!("only {normal} bytes went as whole pages: {told}").into());
        }
        let total = told["total-time"].as_u64().map(|ms| format!("its own total-time {ms} ms"));
        let sample = Sample {
            seconds,
            cpu_seconds: Some(cpu_seconds),
            bytes: self.contents.bytes(),
            wire_bytes: self.wire_bytes(&told, loopback_bytes().saturating_sub(sent_before)),
        };
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
