//! A running QEMU and its monitor.

use std::{
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;

use super::{super::Transport, Binary};
use crate::{
    certificates::Certificates,
    child::{Helper, STEP},
    failure::Result,
    qmp::Qmp,
    role::Multifd,
};

/// More than any machine moves: QEMU's own default would be the limit.
const MAX_BANDWIDTH: u64 = 1 << 40;

/// A running one, and its monitor.
pub(super) struct Running {
    pub(super) process: Helper,
    pub(super) qmp: Qmp,
}

impl Running {
    /// A stopped guest of so much memory, waiting for commands; capabilities and parameters are set.
    pub(super) fn start(
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
            "-name {name},debug-threads=on -no-user-config -nodefaults -display none -accel tcg -S -m {mib} \
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

    /// Both ends are told; the source is the client.
    pub(super) fn use_tls(&mut self, certificates: &Certificates, endpoint: &str) -> Result<()> {
        let object = json!({
            "qom-type": "tls-creds-x509", "id": "tls0", "endpoint": endpoint,
            "dir": certificates.directory(), "verify-peer": true,
        });
        self.qmp.run("object-add", object)?;
        let name = if endpoint == "client" { Certificates::NAME } else { "" };
        let parameters = json!({ "tls-creds": "tls0", "tls-hostname": name });
        self.qmp.run("migrate-set-parameters", parameters)?;
        Ok(())
    }

    /// Nothing of it is negotiated: both ends are told.
    pub(super) fn use_multifd(&mut self, multifd: Multifd) -> Result<()> {
        let capability = json!({ "capability": "multifd", "state": true });
        self.qmp.run("migrate-set-capabilities", json!({ "capabilities": [capability] }))?;
        let mut parameters = json!({
            "multifd-channels": multifd.channels,
            "multifd-compression": multifd.method(),
        });
        if let Some(level) = multifd.level() {
            parameters["multifd-zstd-level"] = level.into();
        }
        self.qmp.run("migrate-set-parameters", parameters)?;
        Ok(())
    }
}
