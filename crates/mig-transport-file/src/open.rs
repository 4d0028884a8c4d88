//! Opening: what is at a path, whether it will do, and where to start in it.

use std::{
    fmt,
    fs::{File, FileType, Metadata, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use mig_transport::{Error, Result};
use rustix::fs::{Advice, OFlags};

use crate::sets::{Access, DescriptorSets};

/// Mode of what is created: a guest's memory is nobody else's to read.
pub(crate) const PRIVATE_MODE: u32 = 0o600;

/// A file, and where the stream starts in it: `file:PATH[,offset=N]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileTarget {
    /// The path. `/dev/fdset/N` names a set of descriptors that were handed over.
    pub path: PathBuf,
    /// Bytes before the stream.
    pub offset: u64,
}

impl FileTarget {
    /// `path` from its beginning.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), offset: 0 }
    }

    /// The same, starting at `offset`.
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }
}

impl fmt::Display for FileTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file:{}", self.path.display())?;
        if self.offset > 0 {
            write!(f, ",offset={}", self.offset)?;
        }
        Ok(())
    }
}

/// For a source: created 0600 if missing, cut or filled up with a hole to the offset.
pub(crate) fn for_writing(target: &FileTarget, sets: &DescriptorSets) -> Result<File> {
    check_offset(target)?;
    let file = match fdset(&target.path)? {
        Some(set) => sets.open(set, Access::Write)?,
        None => {
            if let Ok(found) = std::fs::metadata(&target.path) {
                check_kind(target, &found)?;
            }
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(PRIVATE_MODE)
                .custom_flags(never_wait())
                .open(&target.path)
                .map_err(|error| explain(target, "opening it for writing", error))?
        }
    };
    let found = file.metadata().map_err(|error| explain(target, "looking at it", error))?;
    check_kind(target, &found)?;
    if found.is_file() {
        // Longer: what follows the offset goes, what precedes it stays. Shorter: a hole of zeros.
        file.set_len(target.offset)
            .map_err(|error| explain(target, "cutting it to the offset", error))?;
    }
    Ok(file)
}

/// For a destination: there must be something to read at the offset.
pub(crate) fn for_reading(target: &FileTarget, sets: &DescriptorSets) -> Result<File> {
    check_offset(target)?;
    let file = match fdset(&target.path)? {
        Some(set) => sets.open(set, Access::Read)?,
        None => {
            let found = std::fs::metadata(&target.path)
                .map_err(|error| explain(target, "looking at it", error))?;
            check_kind(target, &found)?;
            OpenOptions::new()
                .read(true)
                .custom_flags(never_wait())
                .open(&target.path)
                .map_err(|error| explain(target, "opening it for reading", error))?
        }
    };
    let found = file.metadata().map_err(|error| explain(target, "looking at it", error))?;
    check_kind(target, &found)?;
    if found.is_file() && target.offset > found.len() {
        return Err(Error::Misuse {
            what: format!(
                "{target}: the offset is past the end, the file has {} bytes",
                found.len()
            ),
        });
    }
    if let Err(error) = rustix::fs::fadvise(&file, target.offset, None, Advice::Sequential) {
        tracing::debug!(%error, "no advice taken");
    }
    Ok(file)
}

/// The kind is looked at first, but it may change in between: an open must never wait for the other end of a FIFO.
fn never_wait() -> i32 {
    OFlags::NONBLOCK.bits() as i32
}

fn check_offset(target: &FileTarget) -> Result<()> {
    if i64::try_from(target.offset).is_ok() {
        return Ok(());
    }
    Err(Error::Misuse {
        what: format!("{target}: no file is that long, an offset is at most {}", i64::MAX),
    })
}

fn check_kind(target: &FileTarget, found: &Metadata) -> Result<()> {
    let Some((is, instead)) = unfit(found.file_type()) else { return Ok(()) };
    Err(Error::Misuse { what: format!("{target} is {is}; {instead}") })
}

/// What cannot be written and read at positions, and what to use for it.
pub(crate) fn unfit(kind: FileType) -> Option<(&'static str, &'static str)> {
    if kind.is_file() || kind.is_block_device() {
        None
    } else if kind.is_dir() {
        Some(("a directory", "name a file in it"))
    } else if kind.is_fifo() {
        Some(("a pipe or FIFO", "use exec:cat with it, or open it and use fd:N"))
    } else if kind.is_socket() {
        Some(("a socket", "use unix:PATH, or fd:N for an open one"))
    } else {
        Some((
            "a character device",
            "name a plain file, or use exec: with a command that uses the device",
        ))
    }
}

/// What the operating system's answer means for a path that the caller chose.
pub(crate) fn explain(target: impl fmt::Display, doing: &str, error: io::Error) -> Error {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "check the path, the folder must exist",
        io::ErrorKind::PermissionDenied => "check the permissions of the file and its folders",
        io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename => "check the path",
        _ => return Error::io(format!("{target}: {doing}"), error),
    };
    Error::Misuse { what: format!("{target}: {doing}: {error}; {hint}") }
}

/// The number in `/dev/fdset/N`.
fn fdset(path: &Path) -> Result<Option<u32>> {
    let Ok(number) = path.strip_prefix("/dev/fdset") else { return Ok(None) };
    let number = number.to_str().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| Error::Misuse {
        what: format!(
            "file:{}: the form is /dev/fdset/N, N being the set's number",
            path.display()
        ),
    })
}
