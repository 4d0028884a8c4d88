//! One run's exchange directory: what goes into the virtual machine and what comes out.
//!
//! ```text
//!   target/lab/run-PID-N/
//!     run, marker, session.sh, command.sh     in: the directory's own path, the end of a stream, what to do
//!     begun                                   out: there once the command runs
//!     status                                  out: the exit status, or "setup"
//!     console.log, qemu.log                   for a look when something went wrong
//!     out/                                    out: MIG_LAB_OUT, whatever the command leaves there
//! ```
//! Inside it is mounted, writable, at the very same path.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::files;

/// Files that tests append to: inside they are files of the run, whose contents are appended to the caller's after it.
const APPENDED: &[&str] = &["MIG_TEST_SKIPS", "MIG_INTEROP_RESULTS", "MIG_FAULT_RESULTS"];

/// Variables of the caller that the command gets, besides those that begin with `MIG_`.
const PASSED_ON: &[&str] =
    &["CI", "RUST_BACKTRACE", "RUST_LOG", "HOME", "USER", "LANG", "NO_COLOR"];

/// Where administrators' programs are, after the caller's own path.
const ADMINISTRATORS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to run.
#[derive(Debug)]
pub(crate) struct Order<'a> {
    /// Program and arguments.
    pub(crate) command: &'a [OsString],
    /// Where.
    pub(crate) directory: &'a Path,
    /// Variables on top of the caller's.
    pub(crate) environment: &'a [(&'a str, &'a OsStr)],
}

/// The directory.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    path: PathBuf,
    marker: Vec<u8>,
    /// (a file of the caller's, the file inside that is appended to it)
    appended: Vec<(PathBuf, PathBuf)>,
}

impl RunDirectory {
    /// Makes the directory, with everything in it that the virtual machine needs.
    pub(crate) fn create(lab: &Path, order: &Order<'_>) -> Result<Self, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        remove_abandoned(lab);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = lab.join(format!("run-{}-{number}", std::process::id()));
        // Of an earlier process with our id.
        files::remove(&path)?;
        files::create(&path.join("out"))?;
        let mut run = Self { path, marker: marker()?, appended: Vec::new() };
        let script = run.script(order);
        for (name, contents) in [
            ("run", run.path.as_os_str().as_bytes()),
            ("marker", &run.marker[..]),
            ("session.sh", include_bytes!("session.sh")),
            ("command.sh", &script[..]),
        ] {
            files::write(&run.path.join(name), contents)?;
        }
        Ok(run)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the command's two streams end with.
    pub(crate) fn marker(&self) -> &[u8] {
        &self.marker
    }

    /// Whether the command was begun; if not, it may be tried again.
    pub(crate) fn begun(&self) -> bool {
        self.path.join("begun").exists()
    }

    /// How the command ended.
    pub(crate) fn status(&self) -> Result<u8, String> {
        let text = files::read_text(&self.path.join("status"))?;
        if text.trim() == "setup" {
            return Err("the virtual machine could not be set up (see above)".to_owned());
        }
        text.trim().parse().map_err(|_| format!("not an exit status: {text:?}"))
    }

    /// The end of the console, or of what QEMU said if there is none.
    pub(crate) fn last_words(&self) -> String {
        let tail = |name: &str| {
            let bytes = fs::read(self.path.join(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).replace('\r', "");
            let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
            lines[lines.len().saturating_sub(40)..].join("\n  ")
        };
        format!("QEMU said:\n  {}\nconsole:\n  {}", tail("qemu.log"), tail("console.log"))
    }

    /// Hands out what was recorded; removes the directory unless the command left something in it.
    pub(crate) fn conclude(self, keep: bool) -> Result<(), String> {
        for (outside, inside) in &self.appended {
            let contents = fs::read(inside).unwrap_or_default();
            let appended = fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(outside)
                .and_then(|mut file| file.write_all(&contents));
            appended.map_err(|error| format!("cannot append to {}: {error}", outside.display()))?;
            let _ = fs::remove_file(inside);
        }
        let left = files::names(&self.path.join("out"))?;
        if !left.is_empty() {
            eprintln!("xtask: what the command left is in {}", self.path.join("out").display());
        } else if keep {
            eprintln!("xtask: kept for a look: {}", self.path.display());
        } else {
            files::remove(&self.path)?;
        }
        Ok(())
    }

    /// A shell script that does nothing but set the stage and become the command.
    fn script(&mut self, order: &Order<'_>) -> Vec<u8> {
        let mut variables: Vec<(OsString, OsString)> = std::env::vars_os()
            .filter(|(name, _)| {
                let name = name.to_string_lossy();
                name.starts_with("MIG_") || PASSED_ON.contains(&&*name)
            })
            .collect();
        variables.extend(order.environment.iter().map(|(name, value)| (name.into(), value.into())));
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        path.push(":");
        path.push(ADMINISTRATORS);
        variables.push(("PATH".into(), path));
        variables.push(("MIG_LAB_OUT".into(), self.path.join("out").into()));

        let mut script = Vec::new();
        for (name, mut value) in variables {
            let name = name.to_string_lossy().into_owned();
            if APPENDED.contains(&name.as_str()) {
                let inside = self.path.join("out").join(&name);
                let outside =
                    order.directory.join(std::mem::replace(&mut value, inside.clone().into()));
                self.appended.retain(|(_, other)| *other != inside);
                self.appended.push((outside, inside));
            }
            script.extend_from_slice(b"export ");
            script.extend_from_slice(name.as_bytes());
            script.push(b'=');
            script.extend(quoted(&value));
            script.push(b'\n');
        }
        script.extend_from_slice(b"cd ");
        script.extend(quoted(order.directory.as_os_str()));
        script.extend_from_slice(b" || exit 125\nexec");
        for word in order.command {
            script.push(b' ');
            script.extend(quoted(word));
        }
        script.push(b'\n');
        script
    }
}

/// In single quotes, which a shell takes literally to the last byte.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => quoted.extend_from_slice(br"'\''"),
            byte => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

/// A line that nobody writes by accident.
fn marker() -> Result<Vec<u8>, String> {
    let mut random = [0; 16];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut random))
        .map_err(|error| format!("no random bytes: {error}"))?;
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("\u{1e}lab {digits} ended\n").into_bytes())
}

/// Directories of runs that were killed and left nothing for anybody.
fn remove_abandoned(lab: &Path) {
    for name in files::names(lab).unwrap_or_default() {
        let Some(process) = name.strip_prefix("run-").and_then(|rest| rest.split('-').next())
        else {
            continue;
        };
        let run = lab.join(&name);
        let left = files::names(&run.join("out")).unwrap_or_default();
        let only_records = left.iter().all(|file| APPENDED.contains(&file.as_str()));
        if !Path::new("/proc").join(process).exists() && only_records {
            // Somebody else may be doing the same.
            let _ = files::remove(&run);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn every_word_survives_the_shell() {
        let words = ["", "a b", "it's", r#""$HOME" \ `x` $(y)"#, "two\nlines", "ä", "'"];
        let mut script = b"printf '%s\\0'".to_vec();
        for word in words {
            script.push(b' ');
            script.extend(quoted(OsStr::new(word)));
        }
        let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script)).output().unwrap();
        let mut wanted = words.join("\0");
        wanted.push('\0');
        assert_eq!(String::from_utf8(output.stdout).unwrap(), wanted);
    }
}
