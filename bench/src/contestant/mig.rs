//! Ourselves: a source and a destination of `mig-engine`, in two processes.

use std::rc::Rc;

use tempfile::TempDir;

use super::{Contestant, Turn};
use crate::{
    certificates::Certificates,
    child::{Helper, STEP, TRANSFER},
    contest::Sample,
    failure::Result,
    link::Link,
    rdma,
    role::{
        Contents, DestinationResult, DestinationRole, Go, Multifd, Pattern, Ready, Role,
        SourceResult, SourceRole,
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
    /// Data channels, if there are any.
    pub(crate) multifd: Option<Multifd>,
    /// TLS on every channel.
    pub(crate) tls: Option<Rc<Certificates>>,
    /// Over this instead of the loopback, by tcp.
    pub(crate) link: Option<Rc<Link>>,
}

/// What both ends said after a migration.
#[derive(Clone, Debug)]
pub(crate) struct Migrated {
    pub(crate) source: SourceResult,
    pub(crate) destination: DestinationResult,
}

impl Mig {
    /// One pass over one channel into cold memory: what contests begin with.
    pub(crate) fn of_noise(name: &'static str, transport: Transport, ram_bytes: u64) -> Self {
        Self {
            name,
            transport,
            ram_bytes,
            warm: false,
            contents: Contents::NOISE,
            pattern: Pattern::Nothing,
            multifd: None,
            tls: None,
            link: None,
        }
    }

    /// Migrates once and compares memory.
    pub(crate) fn migrate(&self) -> Result<Migrated> {
        let (listen, _folder) = match &self.link {
            Some(link) => (format!("tcp:{}:0", link.far().address), None),
            None => self.transport.listen()?,
        };
        let mut role = SourceRole::idle(self.ram_bytes, self.contents);
        role.multifd = self.multifd;
        role.tls = self.tls.as_deref().map(Certificates::directory);
        if let Transport::Rdma { pin_all } = self.transport {
            role.rdma_pin_all = pin_all;
            role.return_path = false;
        }
        if self.pattern != Pattern::Nothing {
            role.pattern = self.pattern;
            // So that no pattern fits what may be sent with the guest stopped.
            role.downtime_limit_ms = 1;
        }
        let link = self.link.as_deref();
        let mut source = Helper::role_at(link.map(Link::near), "the source", &Role::Source(role))?;
        let _filled: Ready = source.hear(STEP)?;
        let mut destination = Helper::role_at(
            link.map(Link::far),
            "the destination",
            &Role::Destination(DestinationRole {
                listen,
                ram_bytes: self.ram_bytes,
                warm: self.warm,
                multifd: self.multifd,
                tls: self.tls.as_deref().map(Certificates::directory),
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
                wire_bytes: Some(source.wire_bytes),
            },
            (_, Some((seconds, pages))) => {
                Sample { seconds, bytes: pages * mig_ram::PAGE_SIZE as u64, ..Sample::default() }
            }
            (_, None) => return Err("there was no second pass".into()),
        };
        Ok(Turn { sample, remark: destination.placement })
    }
}
