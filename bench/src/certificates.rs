//! Certificates for contests with TLS: the same for everybody, QEMU's layout, gone with this value.

use std::path::PathBuf;

use tempfile::TempDir;

use crate::failure::Result;

/// See the module.
#[derive(Debug)]
pub(crate) struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// The name of every destination.
    pub(crate) const NAME: &str = "localhost";

    /// Fresh ones.
    pub(crate) fn new() -> Result<Self> {
        let certificates =
            Self { folder: tempfile::Builder::new().prefix("mig-bench-").tempdir()? };
        mig_transport_tls::trial::make(&certificates.directory(), &[], false)?;
        Ok(certificates)
    }

    /// Where they are.
    pub(crate) fn directory(&self) -> PathBuf {
        self.folder.path().join("tls")
    }
}
