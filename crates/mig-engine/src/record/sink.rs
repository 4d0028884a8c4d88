//! Where a recorded stream goes.

use std::io::{self, Write};

/// Takes a stream, byte by byte in order, on a thread of its own: every call may block for as long as the disk or the
/// reader at the other end takes.
///
/// [`commit`](Self::commit) is the only way to success. A sink that is dropped without it must leave nothing that looks
/// complete: the source will be told that it keeps its guest.
pub trait StreamSink: Send + 'static {
    /// Takes the next bytes, all of them.
    ///
    /// # Errors
    ///
    /// The operating system's; the recording then fails and nothing more is written.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Everything came: waits until it cannot be lost. May take long, and a cancel still counts behind it.
    ///
    /// # Errors
    ///
    /// The operating system's; as for `write`.
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// Makes it look complete. Quick, and not to be taken back: the source is told next.
    ///
    /// # Errors
    ///
    /// The operating system's; nothing then looks complete.
    fn commit(self: Box<Self>) -> io::Result<()>;

    /// What it is called in messages.
    fn name(&self) -> String;
}

/// Throws everything away: for a stream that is only to be verified.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard;

impl StreamSink for Discard {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn commit(self: Box<Self>) -> io::Result<()> {
        Ok(())
    }

    fn name(&self) -> String {
        "nowhere".into()
    }
}

/// A pipe or anything else that can only be written to. Nothing it got can be taken back, so whoever reads it must
/// notice a stream that is cut.
#[derive(Debug)]
pub struct WriteSink<W> {
    writer: W,
    name: String,
}

impl<W: Write + Send + 'static> WriteSink<W> {
    /// Writes to `writer`; `name` is for messages.
    pub fn new(writer: W, name: impl Into<String>) -> Self {
        Self { writer, name: name.into() }
    }
}

impl<W: Write + Send + 'static> StreamSink for WriteSink<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.writer.flush()
    }

    fn commit(self: Box<Self>) -> io::Result<()> {
        Ok(())
    }

    fn name(&self) -> String {
        self.name.clone()
    }
}
