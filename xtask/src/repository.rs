//! Where things are, from `cargo metadata`, and how cargo is called.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The workspace this xtask belongs to.
#[derive(Debug)]
pub(crate) struct Repository {
    /// Root of the workspace.
    pub(crate) root: PathBuf,
    /// Cargo's target directory, wherever the user has put it.
    pub(crate) target: PathBuf,
    /// The members' entries of `cargo metadata`.
    pub(crate) packages: Vec<Value>,
}

impl Repository {
    /// Asks cargo.
    pub(crate) fn find() -> Result<Self, String> {
        let mut command = Command::new(cargo_program());
        command.args(["metadata", "--format-version", "1", "--no-deps"]);
        // `cargo run` says where xtask lives; from anywhere else the current directory must be inside.
        if let Some(own) = std::env::var_os("CARGO_MANIFEST_DIR") {
            command.current_dir(own);
        }
        let output = command.output().map_err(|error| format!("cannot run cargo: {error}"))?;
        if !output.status.success() {
            return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let metadata: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("cargo metadata is not JSON: {error}"))?;
        let path = |key: &str| {
            metadata[key]
                .as_str()
                .map(PathBuf::from)
                .ok_or_else(|| format!("cargo metadata has no {key}"))
        };
        Ok(Self {
            root: path("workspace_root")?,
            target: path("target_directory")?,
            packages: metadata["packages"].as_array().cloned().unwrap_or_default(),
        })
    }

    /// Runs cargo in the root with its output shown; an error if it fails.
    pub(crate) fn cargo(
        &self,
        arguments: &[&str],
        environment: &[(&str, &OsStr)],
    ) -> Result<(), String> {
        eprintln!("xtask: cargo {}", arguments.join(" "));
        let status = self
            .cargo_command(arguments, environment)
            .status()
            .map_err(|error| format!("cannot run cargo: {error}"))?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("cargo {} failed ({status})", arguments.join(" ")))
        }
    }

    /// The same, not yet run.
    pub(crate) fn cargo_command(
        &self,
        arguments: &[&str],
        environment: &[(&str, &OsStr)],
    ) -> Command {
        let mut command = Command::new(cargo_program());
        command.args(arguments).current_dir(&self.root).envs(environment.iter().copied());
        command
    }
}

/// Cargo itself, the one that runs us if one does.
fn cargo_program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Whether a program of this name is in `PATH`.
pub(crate) fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| is_executable(&directory.join(program)))
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}
