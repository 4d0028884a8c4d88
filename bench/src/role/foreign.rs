//! Somebody else's program, started with the ties of a child of ours.

use std::{collections::BTreeMap, os::unix::process::CommandExt, process::Command};

use serde::{Deserialize, Serialize};

use crate::failure::Result;

/// What to become.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Foreign {
    pub(crate) program: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
    /// Forbid transparent huge pages to the whole process, whatever it advises.
    pub(crate) no_huge_pages: bool,
}

impl Foreign {
    pub(super) fn live(self) -> Result<()> {
        if self.no_huge_pages {
            rustix::thread::disable_transparent_huge_pages(true)?;
        }
        // On success the other program is this process now, and there is nobody to return to.
        let error =
            Command::new(&self.program).args(&self.arguments).envs(&self.environment).exec();
        Err(format!("cannot run {}: {error}", self.program).into())
    }
}
