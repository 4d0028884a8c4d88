//! Files and directories, with errors that name them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Removes a directory with all in it, if it is there.
pub(crate) fn remove(directory: &Path) -> Result<(), String> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Creates a directory and its parents.
pub(crate) fn create(directory: &Path) -> Result<(), String> {
    fs::create_dir_all(directory)
        .map_err(|error| format!("cannot create {}: {error}", directory.display()))
}

/// The names in a directory.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(directory)
        .map_err(|error| format!("cannot list {}: {error}", directory.display()))?;
    let names = entries.filter_map(Result::ok);
    Ok(names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

/// A text file.
pub(crate) fn read_text(file: &Path) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
}

/// Writes a file whole.
pub(crate) fn write(file: &Path, contents: &[u8]) -> Result<(), String> {
    fs::write(file, contents).map_err(|error| format!("cannot write {}: {error}", file.display()))
}

/// An administrator's program, which is not in every user's `PATH`.
pub(crate) fn program(name: &str) -> PathBuf {
    let candidates = ["/usr/sbin", "/sbin"].map(|directory| Path::new(directory).join(name));
    candidates.into_iter().find(|file| file.is_file()).unwrap_or_else(|| name.into())
}

/// A path as a value of a QEMU option, in which a comma is written twice.
pub(crate) fn doubled_commas(path: &Path) -> OsString {
    let mut value = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        value.push(byte);
        if byte == b',' {
            value.push(byte);
        }
    }
    OsString::from_vec(value)
}
