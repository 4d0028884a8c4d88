//! A bare loop of 1 MiB writes over a unix socket.

use super::{Contestant, Turn};
use crate::{
    child::{Helper, STEP, TRANSFER},
    contest::Sample,
    failure::Result,
    role::{Go, LoopResult, LoopRole, Ready, Role, Walk},
};

/// One loop a turn.
#[derive(Clone, Debug)]
pub(crate) struct PlainLoop {
    pub(crate) bytes: u64,
    pub(crate) walk: Walk,
}

impl Contestant for PlainLoop {
    fn name(&self) -> String {
        match self.walk {
            Walk::Hot => "bare loop, hot buffers".into(),
            Walk::Through => "bare loop, through memory".into(),
        }
    }

    fn memory_bytes(&self) -> u64 {
        2 * self.bytes
    }

    fn run(&mut self) -> Result<Turn> {
        let folder = tempfile::Builder::new().prefix("mig-bench-").tempdir()?;
        let path = folder.path().join("socket").display().to_string();
        let role = LoopRole { path, bytes: self.bytes, walk: self.walk };
        let mut writer = Helper::role("the writer", &Role::LoopWriter(role.clone()))?;
        let _ready: Ready = writer.hear(STEP)?;
        let mut reader = Helper::role("the reader", &Role::LoopReader(role))?;
        let ready: Ready = reader.hear(STEP)?;
        let address = ready.address.ok_or("the reader does not say where it listens")?;
        writer.say(&Go { address })?;
        let written: LoopResult = writer.hear(TRANSFER)?;
        let read: LoopResult = reader.hear(TRANSFER)?;
        let sample = Sample {
            seconds: written.seconds,
            cpu_seconds: Some(written.cpu_seconds + read.cpu_seconds),
            bytes: self.bytes,
            ..Sample::default()
        };
        Ok(Turn { sample, remark: None })
    }
}
