//! What a command says on stderr, and on stdout when nobody reads the stream there: logged line by line, its end kept.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use mig_transport::FdReceiveHalf;
use tokio::io::AsyncReadExt;

use crate::group::Group;

/// Bytes kept: as much as a shell pipeline usually says before it dies, many times over.
const TAIL_BYTES: usize = 64 * 1024;
/// A line longer than this is logged in pieces.
const LINE_BYTES: usize = 1024;
/// Bytes read at a time.
const READ_BYTES: usize = 8 * 1024;

/// The last bytes of an output.
#[derive(Default)]
pub(crate) struct Tail(Mutex<VecDeque<u8>>);

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = &bytes[bytes.len().saturating_sub(TAIL_BYTES)..];
        let excess = (kept.len() + bytes.len()).saturating_sub(TAIL_BYTES);
        kept.drain(..excess);
        kept.extend(bytes);
    }

    /// The last `max` bytes as text that a terminal can show.
    pub(crate) fn last(&self, max: usize) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().skip(kept.len().saturating_sub(max)).copied().collect();
        printable(&bytes)
    }
}

fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim()
        .chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c })
        .collect()
}

/// Which output is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// Logged and kept.
    Stderr,
    /// Logged: a destination's side of the pipes that a one-way source does not listen to.
    Stdout,
}

/// Reads an output to its end and tells the group.
///
/// # Cancel safety
///
/// What was read so far is kept; the group is not told that the output ended.
pub(crate) async fn drain(mut pipe: FdReceiveHalf, output: Output, group: Arc<Group>) {
    let mut buffer = vec![0; READ_BYTES];
    let mut line = Vec::new();
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                if output == Output::Stderr {
                    group.stderr.push(&buffer[..n]);
                }
                log(&buffer[..n], &mut line, output, &group.name);
            }
        }
    }
    log(b"\n", &mut line, output, &group.name);
    match output {
        Output::Stderr => group.stderr_closed(),
        Output::Stdout => group.stdout_closed(),
    }
}

fn log(bytes: &[u8], line: &mut Vec<u8>, output: Output, command: &str) {
    for &byte in bytes {
        if byte != b'\n' {
            line.push(byte);
        }
        if (byte == b'\n' || line.len() == LINE_BYTES) && !line.is_empty() {
            let text = printable(line);
            match output {
                Output::Stderr => tracing::info!(command, "stderr: {text}"),
                Output::Stdout => tracing::debug!(command, "stdout: {text}"),
            }
            line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_is_kept() {
        let tail = Tail::default();
        for _ in 0..100 {
            tail.push(&[b'a'; 1000]);
        }
        tail.push(b"the end\x1b[31m");
        assert_eq!(tail.0.lock().unwrap().len(), TAIL_BYTES);
        assert_eq!(tail.last(12), "the end\u{fffd}[31m");
        tail.push(&vec![b'b'; TAIL_BYTES + 5]);
        assert_eq!(tail.last(TAIL_BYTES * 2), "b".repeat(TAIL_BYTES));
    }
}
