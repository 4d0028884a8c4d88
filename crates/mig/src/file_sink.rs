//! A recording into a file that appears whole or not at all.

use std::{io, path::Path};

use mig_engine::StreamSink;
use mig_transport::Result;
use mig_transport_file::CommitFile;

/// A sink into the file at `path`, which is replaced when everything came.
///
/// # Errors
///
/// [`Error::Misuse`](mig_transport::Error::Misuse) if it cannot be created there.
pub fn file_sink(path: impl AsRef<Path>) -> Result<Box<dyn StreamSink>> {
    Ok(Box::new(FileSink(CommitFile::create(path)?)))
}

struct FileSink(CommitFile);

impl StreamSink for FileSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).map_err(mig_transport::Error::into_io)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync().map_err(mig_transport::Error::into_io)
    }

    fn commit(self: Box<Self>) -> io::Result<()> {
        self.0.commit().map(|_bytes| ()).map_err(mig_transport::Error::into_io)
    }

    fn name(&self) -> String {
        self.0.target().display().to_string()
    }
}
