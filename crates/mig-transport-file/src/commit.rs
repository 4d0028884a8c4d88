//! A file that appears whole or not at all.
//!
//! ```text
//!   create ─▶ unnamed file (O_TMPFILE), or .NAME.PID.mig-partial where the filesystem has none
//!   write … │  (made durable behind the writing, window by window)
//!   commit ─▶ fsync ─▶ [link as .NAME.PID.mig-partial] ─▶ rename over NAME ─▶ fsync the folder
//!   drop without commit ─▶ nothing is left
//! ```
//!
//! Until the rename whatever was at the path before is untouched. A process that is killed leaves at most a temporary
//! name, whose process is dead and whose lock is free: the next [`CommitFile::create`] for the same path removes it. The
//! calls block; run them where that is allowed.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, IoSlice, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::FileExt,
        },
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use mig_transport::{Error, Gather, Result};
use rustix::{
    fs::{AtFlags, FlockOperation, Mode, OFlags},
    io::Errno,
    process::Pid,
};

use crate::{
    open::{PRIVATE_MODE, explain, unfit},
    write_behind::WriteBehind,
    writer::{BUFFER_BYTES, sync_open_folder},
};

/// How a temporary name ends.
const SUFFIX: &[u8] = b".mig-partial";
/// The longest name of a file, on every filesystem of Linux.
const NAME_MAX: usize = 255;
/// Room in a temporary name for the dots, a process number, a counter and the suffix.
const NAME_EXTRA: usize = 40;
/// Temporaries that one process may have for one path at a time.
const MAX_AT_ONCE: u32 = 1000;

/// Between its creation and its lock, a temporary of this process looks like a leftover to another thread.
static CREATING: Mutex<()> = Mutex::new(());

/// See the module.
#[derive(Debug)]
pub struct CommitFile {
    file: File,
    folder: OwnedFd,
    folder_path: PathBuf,
    name: OsString,
    /// The temporary's name, while it has one.
    temporary: Option<OsString>,
    buffer: Vec<u8>,
    /// Where the buffer belongs.
    position: u64,
    failed: bool,
    behind: WriteBehind,
}

impl CommitFile {
    /// Begins a replacement for `target`, which need not exist; a symbolic link is followed. The file is for its owner
    /// alone (0600). Leftovers of killed processes for the same path are removed.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] if something is there that is no plain file, or the folder cannot be written.
    pub fn create(target: impl AsRef<Path>) -> Result<Self> {
        Self::begin(target.as_ref(), create_unnamed)
    }

    fn begin(target: &Path, unnamed: impl FnOnce(&OwnedFd) -> Option<File>) -> Result<Self> {
        let target = resolve(target)?;
        let shown = target.display().to_string();
        let (Some(name), Some(folder_path)) = (target.file_name(), target.parent()) else {
            return Err(Error::Misuse { what: format!("{shown}: names no file") });
        };
        let folder_path =
            if folder_path.as_os_str().is_empty() { Path::new(".") } else { folder_path };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let folder = rustix::fs::open(folder_path, flags, Mode::empty())
            .map_err(|error| explain(&shown, "opening its folder", error.into()))?;
        let _one_at_a_time = CREATING.lock().unwrap_or_else(PoisonError::into_inner);
        remove_leftovers(&folder, folder_path, name);
        let (file, temporary) = unnamed(&folder)
            .map(|file| Ok((file, None)))
            .unwrap_or_else(|| create_named(&folder, name).map(|(file, name)| (file, Some(name))))
            .map_err(|error| {
                explain(&shown, "creating a temporary file beside it", error.into())
            })?;
        Ok(Self {
            file,
            folder,
            folder_path: folder_path.to_owned(),
            name: name.to_owned(),
            temporary,
            buffer: Vec::new(),
            position: 0,
            failed: false,
            behind: WriteBehind::default(),
        })
    }

    /// The path that [`commit`](Self::commit) will replace.
    pub fn target(&self) -> PathBuf {
        self.folder_path.join(&self.name)
    }

    /// Where the next byte goes.
    pub fn position(&self) -> u64 {
        self.position + self.buffer.len() as u64
    }

    /// Appends all of `bytes`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] with path and position; no later write or commit succeeds.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.usable()?;
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush_buffer()?;
        }
        if bytes.len() >= BUFFER_BYTES {
            return self.put(bytes);
        }
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(BUFFER_BYTES);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Appends all of every slice, in order.
    ///
    /// # Errors
    ///
    /// As for [`write_all`](Self::write_all).
    pub fn write_all_vectored(&mut self, slices: &[IoSlice<'_>]) -> Result<()> {
        slices.iter().try_for_each(|slice| self.write_all(slice))
    }

    /// Appends all that is left of `gather`, pages straight from their regions.
    ///
    /// # Errors
    ///
    /// As for [`write_all`](Self::write_all).
    pub fn write_gather(&mut self, gather: &mut Gather) -> Result<()> {
        self.usable()?;
        self.flush_buffer()?;
        // An allowance paces a channel; here all that is listed goes.
        gather.set_allowance(None);
        while !gather.is_empty() {
            let outcome = gather.write_at(self.file.as_fd(), self.position);
            self.advance(outcome)?;
        }
        Ok(())
    }

    /// Makes what was written so far durable. A [`commit`](Self::commit) right behind it is quick, so whoever can still
    /// change their mind does the waiting here.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn sync(&mut self) -> Result<()> {
        self.usable()?;
        self.flush_buffer()?;
        self.make_durable()
    }

    /// Makes what was written durable and puts it at the path, in place of whatever was there. Answers its length. When
    /// this returns, the file is there after a power failure too.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; what was at the path is then still there, unless the message says that the folder could not be
    /// made durable: nothing is there then.
    pub fn commit(mut self) -> Result<u64> {
        self.usable()?;
        self.flush_buffer()?;
        let shown = self.target().display().to_string();
        let doing = |what: &str| format!("{shown}: {what}");
        self.make_durable()?;
        if self.temporary.is_none() {
            let name = link(&self.file, &self.folder, &self.name)
                .map_err(|error| Error::io(doing("naming the finished file"), error.into()))?;
            self.temporary = Some(name);
        }
        let temporary = self.temporary.as_ref().expect("it was given a name above");
        rustix::fs::renameat(&self.folder, temporary, &self.folder, &self.name).map_err(
            |error| Error::io(doing("putting the finished file in its place"), error.into()),
        )?;
        self.temporary = None;
        sync_open_folder(&self.folder, &self.folder_path).map_err(|error| {
            // The source will be told that this failed: nothing may stay here that looks complete.
            let gone = rustix::fs::unlinkat(&self.folder, &self.name, AtFlags::empty());
            tracing::debug!(?gone, "taking back a file whose folder is not durable");
            Error::io(doing("its folder could not be made durable, so it was removed"), error)
        })?;
        Ok(self.position)
    }

    fn usable(&self) -> Result<()> {
        if self.failed {
            let what = format!("{}: an earlier write failed", self.target().display());
            return Err(Error::Io { doing: what, source: io::ErrorKind::BrokenPipe.into() });
        }
        Ok(())
    }

    fn make_durable(&mut self) -> Result<()> {
        let outcome = self.behind.settle().and_then(|()| self.file.sync_all());
        outcome.map_err(|error| {
            // The kernel tells of it once, and another try would seem to succeed.
            self.failed = true;
            Error::io(format!("{}: making it durable", self.target().display()), error)
        })
    }

    fn flush_buffer(&mut self) -> Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let outcome = self.put(&buffer);
        buffer.clear();
        self.buffer = buffer;
        outcome
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let outcome = self.file.write_at(bytes, self.position);
            bytes = &bytes[self.advance(outcome)?..];
        }
        Ok(())
    }

    fn advance(&mut self, outcome: io::Result<usize>) -> Result<usize> {
        let outcome = match outcome {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(0),
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            other => other,
        };
        let written = outcome.map_err(|source| {
            self.failed = true;
            let doing = format!("{}: writing at byte {}", self.target().display(), self.position);
            Error::Io { doing, source }
        })?;
        self.position += written as u64;
        let file = &self.file;
        let behind = self.behind.wrote(self.position, || {
            let file = file.try_clone()?;
            Ok(Box::new(move || file.sync_data()))
        });
        behind.map_err(|source| {
            self.failed = true;
            let doing = format!("{}: making it durable", self.target().display());
            Error::Io { doing, source }
        })?;
        Ok(written)
    }
}

impl Write for CommitFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map_err(Error::into_io)?;
        Ok(bytes.len())
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write_all_vectored(slices).map_err(Error::into_io)?;
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.usable().and_then(|()| self.flush_buffer()).map_err(Error::into_io)
    }
}

impl Drop for CommitFile {
    fn drop(&mut self) {
        if let Some(name) = &self.temporary
            && let Err(error) = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty())
        {
            tracing::warn!(%error, name = %name.display(), "a temporary file stays; the next run removes it");
        }
    }
}

/// Follows a symbolic link, so that the file is replaced and not the link.
fn resolve(target: &Path) -> Result<PathBuf> {
    let shown = target.display();
    let resolved = match target.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(target.to_owned()),
        Err(error) => return Err(explain(shown, "looking at it", error)),
        Ok(found) if found.is_symlink() => target
            .canonicalize()
            .map_err(|error| explain(shown, "following the symbolic link", error))?,
        Ok(_) => target.to_owned(),
    };
    let found =
        resolved.metadata().map_err(|error| explain(target.display(), "looking at it", error))?;
    if found.is_file() {
        return Ok(resolved);
    }
    let (is, instead) = unfit(found.file_type())
        .unwrap_or(("a block device", "a device cannot be replaced by a file; use file:PATH"));
    Err(Error::Misuse { what: format!("{} is {is}; {instead}", target.display()) })
}

/// A file without a name; `None` where the filesystem has none, or where it could not be named later.
fn create_unnamed(folder: &OwnedFd) -> Option<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file = rustix::fs::openat(folder, ".", flags, Mode::from_raw_mode(PRIVATE_MODE)).ok()?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    // Naming it goes through /proc, which a jail may lack.
    rustix::fs::stat(proc_path(&file)).ok()?;
    Some(file.into())
}

fn create_named(folder: &OwnedFd, name: &OsStr) -> std::result::Result<(File, OsString), Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let (file, name) = with_free_name(name, |temporary| {
        rustix::fs::openat(folder, temporary, flags, Mode::from_raw_mode(PRIVATE_MODE))
    })?;
    // The lock tells a living temporary from a leftover where process numbers cannot (containers). Without locks
    // (some network filesystems) the process number alone has to do.
    if let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        tracing::debug!(%error, "no lock on a temporary file");
    }
    Ok((file.into(), name))
}

fn link(file: &File, folder: &OwnedFd, name: &OsStr) -> std::result::Result<OsString, Errno> {
    let source = proc_path(file);
    let ((), name) = with_free_name(name, |temporary| {
        rustix::fs::linkat(rustix::fs::CWD, &source, folder, temporary, AtFlags::SYMLINK_FOLLOW)
    })?;
    Ok(name)
}

fn proc_path(file: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn with_free_name<T>(
    name: &OsStr,
    mut attempt: impl FnMut(&OsStr) -> std::result::Result<T, Errno>,
) -> std::result::Result<(T, OsString), Errno> {
    let own = std::process::id();
    for count in 0..MAX_AT_ONCE {
        let temporary = temporary_name(name, own, count);
        match attempt(&temporary) {
            Err(Errno::EXIST) => {}
            outcome => return outcome.map(|made| (made, temporary)),
        }
    }
    Err(Errno::EXIST)
}

/// `.NAME.PID.mig-partial`, or `.NAME.PID-COUNT.mig-partial` for the second of one process.
fn temporary_name(name: &OsStr, pid: u32, count: u32) -> OsString {
    let mut temporary = prefix(name);
    temporary.extend_from_slice(pid.to_string().as_bytes());
    if count > 0 {
        temporary.extend_from_slice(format!("-{count}").as_bytes());
    }
    temporary.extend_from_slice(SUFFIX);
    OsString::from_vec(temporary)
}

fn prefix(name: &OsStr) -> Vec<u8> {
    let name = name.as_bytes();
    [b".", &name[..name.len().min(NAME_MAX - NAME_EXTRA)], b"."].concat()
}

/// The process of a temporary for `name`.
fn temporary_of(found: &OsStr, name: &OsStr) -> Option<Pid> {
    let middle = found.as_bytes().strip_prefix(&*prefix(name))?.strip_suffix(SUFFIX)?;
    let middle = std::str::from_utf8(middle).ok()?;
    let (pid, count) = middle.split_once('-').unwrap_or((middle, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(pid) || !digits(count) {
        return None;
    }
    Pid::from_raw(pid.parse().ok()?)
}

/// Removes what killed processes left for the same path. Never fails: a leftover is untidy, not wrong.
fn remove_leftovers(folder: &OwnedFd, folder_path: &Path, name: &OsStr) {
    let Ok(entries) = std::fs::read_dir(folder_path) else { return };
    for found in entries.filter_map(|entry| Some(entry.ok()?.file_name())) {
        let Some(pid) = temporary_of(&found, name) else { continue };
        if is_leftover(folder, &found, pid) {
            match rustix::fs::unlinkat(folder, &found, AtFlags::empty()) {
                Ok(()) => tracing::info!(name = %found.display(), "removed what a killed run left"),
                Err(error) => tracing::debug!(%error, name = %found.display(), "a leftover stays"),
            }
        }
    }
}

fn is_leftover(folder: &OwnedFd, found: &OsStr, pid: Pid) -> bool {
    // Our own number with a free lock: an earlier life in another container.
    let dead = pid.as_raw_nonzero().get().unsigned_abs() == std::process::id()
        || rustix::process::test_kill_process(pid) == Err(Errno::SRCH);
    if !dead {
        return false;
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::openat(folder, found, flags, Mode::empty()) else { return false };
    let file = File::from(file);
    file.metadata().is_ok_and(|found| found.is_file())
        && rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_moved_meanwhile_keeps_its_file() {
        let dir = std::env::temp_dir().join(format!("mig-moved-{}", std::process::id()));
        let (before, after) = (dir.join("before"), dir.join("after"));
        std::fs::create_dir_all(&before).unwrap();
        let mut file = CommitFile::create(before.join("vm")).unwrap();
        file.write_all(b"whole").unwrap();
        std::fs::rename(&before, &after).unwrap();
        assert_eq!(file.commit().unwrap(), 5);
        assert_eq!(std::fs::read(after.join("vm")).unwrap(), b"whole");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_filesystem_without_unnamed_files_does_as_well() {
        let dir = std::env::temp_dir().join(format!("mig-named-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let names = || {
            let mut names: Vec<_> =
                std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let path = dir.join("vm");
        let mut file = CommitFile::begin(&path, |_| None).unwrap();
        let twin = CommitFile::begin(&path, |_| None).unwrap();
        let own = std::process::id();
        let expected = [0, 1].map(|count| temporary_name(OsStr::new("vm"), own, count));
        let mut sorted = expected.to_vec();
        sorted.sort();
        assert_eq!(names(), sorted, "the living are not taken for leftovers");
        drop(twin);
        file.write_all(b"whole").unwrap();
        assert_eq!(file.commit().unwrap(), 5);
        assert_eq!(names(), ["vm"]);
        drop(CommitFile::begin(&path, |_| None).unwrap());
        assert_eq!(names(), ["vm"]);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn temporary_names_are_recognised_and_nothing_else() {
        let name = OsStr::new("vm.mig");
        for count in [0, 3] {
            let temporary = temporary_name(name, 4711, count);
            assert_eq!(temporary_of(&temporary, name), Pid::from_raw(4711));
            assert_eq!(temporary_of(&temporary, OsStr::new("vm")), None);
        }
        assert_eq!(temporary_name(name, 4711, 0), ".vm.mig.4711.mig-partial");
        for other in [".vm.mig.4711", ".vm.mig.x.mig-partial", ".vm.mig..mig-partial", "vm.mig"] {
            assert_eq!(temporary_of(OsStr::new(other), name), None, "{other}");
        }
        let long = OsString::from("n".repeat(NAME_MAX));
        let temporary = temporary_name(&long, u32::MAX, MAX_AT_ONCE);
        assert!(temporary.len() <= NAME_MAX);
    }
}
