//! A bare loop over a unix socket: the least that two processes can do to move bytes.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    time::Instant,
};

use serde::{Deserialize, Serialize};

use super::{Go, Ready, cpu, hear, meeting::PATIENCE, say};
use crate::failure::Result;

/// Bytes a system call.
const CHUNK: usize = 1 << 20;

/// Which memory the loop goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Walk {
    /// One buffer of 1 MiB at each end, over and over: it stays in the cache.
    Hot,
    /// All of the memory at both ends, touched before, as a migration must.
    Through,
}

/// One end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LoopRole {
    /// Where the reader listens; the writer is told where to go.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) walk: Walk,
}

/// What it measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LoopResult {
    /// From connect to the reader's acknowledgement, at the writer.
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

impl LoopRole {
    fn buffer(&self, contents: u8) -> Vec<u8> {
        vec![
            contents;
            match self.walk {
                Walk::Hot => CHUNK,
                Walk::Through => usize::try_from(self.bytes).unwrap_or(usize::MAX).max(CHUNK),
            }
        ]
    }
}

pub(super) fn write(role: &LoopRole) -> Result<()> {
    let buffer = role.buffer(0x5a);
    say(&Ready { address: None })?;
    let go: Go = hear()?;
    let (begun, used) = (Instant::now(), cpu());
    let mut stream = UnixStream::connect(go.address)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut left, mut at) = (role.bytes, 0);
    while left > 0 {
        let len = left.min(CHUNK as u64) as usize;
        stream.write_all(&buffer[at..at + len])?;
        left -= len as u64;
        at = if at + 2 * CHUNK <= buffer.len() { at + CHUNK } else { 0 };
    }
    stream.read_exact(&mut [0])?;
    let seconds = begun.elapsed().as_secs_f64();
    say(&LoopResult { seconds, cpu_seconds: (cpu() - used).as_secs_f64() })
}

pub(super) fn read(role: &LoopRole) -> Result<()> {
    let mut buffer = role.buffer(1);
    let listener = UnixListener::bind(&role.path)?;
    say(&Ready { address: Some(role.path.clone()) })?;
    let used = cpu();
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut left, mut at) = (role.bytes, 0);
    while left > 0 {
        let len = left.min(CHUNK as u64).min((buffer.len() - at) as u64) as usize;
        let got = stream.read(&mut buffer[at..at + len])?;
        if got == 0 {
            return Err("the writer ended too early".into());
        }
        left -= got as u64;
        at += got;
        if at == buffer.len() {
            at = 0;
        }
    }
    stream.write_all(&[1])?;
    say(&LoopResult { seconds: 0.0, cpu_seconds: (cpu() - used).as_secs_f64() })
}
