//! Ourselves: a source and a destination of `mig-engine`, in two processes.

use tempfile::TempDir;

use super::{Contestant, Turn};
use crate::{
    child::{Helper, STEP, TRANSFER},
    contest::Sample,
    failure::Result,
    rdma,
    role::{
        Contents, DestinationResult, DestinationRole, Go, Pattern, Ready, Role, SourceResult,
        SourceRole,
    },
};

/// Over what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Unix,
    /// Without a return path, as QEMU before 8.0 needs it.
    Rdma {
        pin_all: bool,
    },
}

impl Transport {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::Rdma { .. } => "rdma",
        }
    }

    /// Where a destination may listen; the folder lives as long as the address is good.
    pub(crate) fn listen(self) -> Result<(String, Option<TempDir>)> {
        match self {
            Self::Tcp => Ok(("tcp:127.0.0.1:0".into(), None)),
            Self::Unix => {
                let folder = tempfile::Builder::new().prefix("mig-bench-").tempdir()?;
                Ok((format!("unix:{}", folder.path().join("socket").display()), Some(folder)))
            }
            Self::Rdma { .. } => Ok((format!("rdma:{}:0", rdma::Device::find()?.address), None)),
        }
    }
}

/// One migration a turn.
#[derive(Clone, Debug)]
pub(crate) struct Mig {
    pub(crate) name: &'static str,
    pub(crate) transport: Transport,
    pub(crate) ram_bytes: u64,
    pub(crate) warm: bool,
    pub(crate) contents: Contents,
    /// With one, only the second pass is the turn.
    pub(crate) pattern: Pattern,
}

/// What both ends said after a migration.
#[derive(Clone, Debug)]
pub(crate) struct Migrated {
    pub(crate) source: SourceResult,
    pub(crate) destination: DestinationResult,
}

impl Mig {
    /// Migrates once and compares memory.
    pub(crate) fn migrate(&self) -> Result<Migrated> {
        let (listen, _folder) = self.transport.listen()?;
        let mut role = SourceRole::idle(self.ram_bytes, self.contents);
        if let Transport::Rdma { pin_all } = self.transport {
            role.rdma_pin_all = pin_all;
            role.return_path = false;
        }
        if self.pattern != Pattern::Nothing {
            role.pattern = self.pattern;
            // So that no pattern fits what may be sent with the guest stopped.
            role.downtime_limit_ms = 1;
        }
        let mut source = Helper::role("the source", &Role::Source(role))?;
        let _filled: Ready = source.hear(STEP)?;
        let mut destination = Helper::role(
            "the destination",
            &Role::Destination(DestinationRole {
                listen,
                ram_bytes: self.ram_bytes,
                warm: self.warm,
            }),
        )?;
        let ready: Ready = destination.hear(STEP)?;
        let address = ready.address.ok_or("the destination does not say where it listens")?;
        source.say(&Go { address })?;
        let sent: SourceResult = source
            .hear(TRANSFER)
            .map_err(|error| destination.complaint(&format!("said nothing, but {error}")))?;
        let received: DestinationResult = destination.hear(TRANSFER)?;
        if sent.checksum != received.checksum {
            return Err("memory differs between the two ends".into());
        }
        Ok(Migrated { source: sent, destination: received })
    }
}

impl Contestant for Mig {
    fn name(&self) -> String {
        self.name.into()
    }

    fn memory_bytes(&self) -> u64 {
        2 * self.ram_bytes
    }

    fn run(&mut self) -> Result<Turn> {
        let Migrated { source, destination } = self.migrate()?;
        let sample = match (self.pattern, source.second_pass) {
            (Pattern::Nothing, _) => Sample {
                seconds: source.seconds,
                cpu_seconds: Some(source.cpu_seconds + destination.cpu_seconds),
                bytes: self.ram_bytes,
            },
            (_, Some((seconds, pages))) => {
                Sample { seconds, cpu_seconds: None, bytes: pages * mig_ram::PAGE_SIZE as u64 }
            }
            (_, None) => return Err("there was no second pass".into()),
        };
        Ok(Turn { sample, remark: destination.placement })
    }
}
