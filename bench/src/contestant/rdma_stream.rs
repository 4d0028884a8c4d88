//! Stream bytes over `rdma:` between any two speakers.

use super::{Contestant, Turn};
use crate::{
    child::{Helper, STEP, TRANSFER},
    contest::Sample,
    failure::Result,
    rdma::Device,
    role::{Go, Ready, Role, Speaker, StreamResult, StreamRole},
};

/// One stream a turn.
#[derive(Clone, Debug)]
pub(crate) struct RdmaStream {
    pub(crate) sender: Speaker,
    pub(crate) reader: Speaker,
    /// A multiple of 4 MiB.
    pub(crate) bytes: usize,
}

impl Contestant for RdmaStream {
    fn name(&self) -> String {
        let name = |speaker| match speaker {
            Speaker::Mig => "mig",
            Speaker::Qemu => "as QEMU",
        };
        format!("{} to {}", name(self.sender), name(self.reader))
    }

    fn memory_bytes(&self) -> u64 {
        2 * self.bytes as u64
    }

    fn run(&mut self) -> Result<Turn> {
        let listen = format!("rdma:{}:0", Device::find()?.address);
        let role = |speaker| StreamRole { speaker, bytes: self.bytes, listen: listen.clone() };
        let mut sender = Helper::role("the sender", &Role::RdmaStreamSender(role(self.sender)))?;
        let _ready: Ready = sender.hear(STEP)?;
        let mut reader = Helper::role("the reader", &Role::RdmaStreamReader(role(self.reader)))?;
        let ready: Ready = reader.hear(STEP)?;
        let address = ready.address.ok_or("the reader does not say where it listens")?;
        sender.say(&Go { address })?;
        let sent: StreamResult = sender
            .hear(TRANSFER)
            .map_err(|error| reader.complaint(&format!("said nothing, but {error}")))?;
        let read: StreamResult = reader.hear(TRANSFER)?;
        if sent.checksum != read.checksum {
            return Err("what was read is not what was sent".into());
        }
        let sample = Sample {
            seconds: read.seconds,
            cpu_seconds: Some(sent.cpu_seconds + read.cpu_seconds),
            bytes: self.bytes as u64,
            ..Sample::default()
        };
        Ok(Turn { sample, remark: None })
    }
}
