//! What to run.

use std::{ffi::OsString, fmt, io, os::unix::process::CommandExt, process};

use mig_transport::{Error, Result};

/// Characters of a command shown in messages.
const SHOWN_CHARS: usize = 80;

/// What to run, in QEMU's two forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecCommand {
    /// The URI form: `/bin/sh -c CMD`.
    Shell(String),
    /// The JSON form: run directly. The first element is the program.
    Args(Vec<OsString>),
}

impl ExecCommand {
    /// Refuses what cannot be run, before anything is.
    pub(crate) fn check(&self) -> Result<()> {
        let empty = match self {
            Self::Shell(line) => line.trim().is_empty(),
            Self::Args(args) => args.first().is_none_or(|program| program.is_empty()),
        };
        if empty {
            return Err(Error::Misuse {
                what:
                    "exec: needs a command: exec:COMMAND for the shell, or \"args\": [PROGRAM, …]"
                        .into(),
            });
        }
        Ok(())
    }

    /// Starts it, in a process group of its own, with three pipes.
    pub(crate) fn spawn(&self) -> Result<process::Child> {
        self.check()?;
        let mut command = match self {
            Self::Shell(line) => {
                let mut command = process::Command::new("/bin/sh");
                command.arg("-c").arg(line);
                command
            }
            Self::Args(args) => {
                let mut command = process::Command::new(&args[0]);
                command.args(&args[1..]);
                command
            }
        };
        command
            .process_group(0)
            .stdin(process::Stdio::piped())
            .stdout(process::Stdio::piped())
            .stderr(process::Stdio::piped());
        command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidInput => Error::Misuse {
                what: format!(
                    "{self}: cannot be run: {error}; check the program's path and permissions"
                ),
            },
            _ => Error::io(format!("{self}: starting it"), error),
        })
    }

    /// The command for messages, shortened, without the scheme.
    pub(crate) fn shown(&self) -> String {
        let whole = match self {
            Self::Shell(line) => line.clone(),
            Self::Args(args) => {
                args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
            }
        };
        let mut shown: String = whole.chars().take(SHOWN_CHARS).collect();
        if shown.len() < whole.len() {
            shown.push('…');
        }
        shown
    }
}

impl fmt::Display for ExecCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exec:{}", self.shown())
    }
}
