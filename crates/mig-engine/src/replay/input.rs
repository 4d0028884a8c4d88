//! The thread that reads: a slow disk or an empty pipe blocks it and nothing else.
//!
//! ```text
//!   thread ── [ room for the front | bytes read ] ──▶ driver    at most 3 buffers in flight
//!          ◀── used buffers ─────────────────────────
//! ```

use std::{io, io::Read, thread};

use mig_proto::MAX_NEED;
use mig_transport::{Blame, Error as TransportError};
use tokio::sync::mpsc;

use crate::error::{Error, Result};

/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;
/// Room in front of them for what the decoder left of the buffer before.
const FRONT_BYTES: usize = MAX_NEED;
const BUFFERS: usize = 3;

/// Bytes of the input, with those the decoder has not taken yet in front.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    fn new() -> Self {
        Self {
            bytes: vec![0; FRONT_BYTES + READ_BYTES].into_boxed_slice(),
            start: FRONT_BYTES,
            end: FRONT_BYTES,
        }
    }

    /// What is in it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn fill(&mut self, input: &mut dyn Read) -> io::Result<()> {
        self.start = FRONT_BYTES;
        self.end = FRONT_BYTES;
        // One read is enough of a pipe: what came shall go on.
        loop {
            match input.read(&mut self.bytes[FRONT_BYTES..]) {
                Ok(n) => {
                    self.end = FRONT_BYTES + n;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts `front` before what is in it.
    fn prepend(&mut self, front: &[u8]) {
        self.start -= front.len();
        self.bytes[self.start..self.start + front.len()].copy_from_slice(front);
    }
}

/// The driver's end.
#[derive(Debug)]
pub(super) struct InputReader {
    name: String,
    full: mpsc::Receiver<io::Result<Buffer>>,
    used: mpsc::UnboundedSender<Buffer>,
    front: Vec<u8>,
}

impl InputReader {
    /// Starts the thread. It ends with the input, with the first error, and with this value once the read in progress
    /// returns.
    pub(super) fn start(mut input: Box<dyn Read + Send>, name: String) -> Result<Self> {
        let (outbox, full) = mpsc::channel(BUFFERS);
        let (used, mut inbox) = mpsc::unbounded_channel::<Buffer>();
        for _ in 0..BUFFERS {
            // The other end is right here.
            let _open = used.send(Buffer::new());
        }
        let serve = move || {
            while let Some(mut buffer) = inbox.blocking_recv() {
                let outcome = buffer.fill(&mut *input);
                let over = outcome.is_err() || buffer.bytes().is_empty();
                if outbox.blocking_send(outcome.map(|()| buffer)).is_err() || over {
                    return;
                }
            }
        };
        thread::Builder::new().name("mig-input".into()).spawn(serve).map_err(|error| {
            Error::new(Blame::Io, "starting the thread that reads").caused_by(error)
        })?;
        Ok(Self { name, full, used, front: Vec::new() })
    }

    /// The next bytes of the input, behind what [`used`](Self::used) left; only that, and true, at the end.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no byte is lost.
    pub(super) async fn next(&mut self) -> Result<(Buffer, bool)> {
        let mut buffer = match self.full.recv().await {
            Some(Ok(buffer)) => buffer,
            Some(Err(error)) => {
                return Err(TransportError::io(format!("reading {}", self.name), error).into());
            }
            None => {
                return Err(Error::new(Blame::Io, format!("{}: the reader is gone", self.name)));
            }
        };
        let ended = buffer.bytes().is_empty();
        buffer.prepend(&self.front);
        self.front.clear();
        Ok((buffer, ended))
    }

    /// Gives a buffer back, of which the decoder took `consumed` bytes.
    pub(super) fn used(&mut self, buffer: Buffer, consumed: usize) {
        // The decoder never leaves more than it may ask for.
        self.front.extend_from_slice(&buffer.bytes()[consumed..]);
        // A thread that has ended needs no buffers.
        let _ended = self.used.send(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_left_comes_first_and_the_end_is_told() {
        let input: Box<dyn Read + Send> = Box::new(io::Cursor::new(b"abcdef".to_vec()));
        let mut reader = InputReader::start(input, "x".into()).unwrap();
        let (buffer, ended) = reader.next().await.unwrap();
        assert_eq!((buffer.bytes(), ended), (&b"abcdef"[..], false));
        reader.used(buffer, 4);
        let (buffer, ended) = reader.next().await.unwrap();
        assert_eq!((buffer.bytes(), ended), (&b"ef"[..], true));
    }

    #[tokio::test]
    async fn an_error_names_the_input() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::from_raw_os_error(5))
            }
        }
        let mut reader = InputReader::start(Box::new(Broken), "a.mig".into()).unwrap();
        let error = reader.next().await.unwrap_err();
        assert_eq!(error.blame(), Blame::Io);
        assert!(error.to_string().contains("a.mig"), "{error}");
    }
}
