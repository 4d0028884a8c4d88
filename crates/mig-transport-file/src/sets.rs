//! Sets of descriptors that were handed over, as QEMU's `add-fd` makes them: `/dev/fdset/N`.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::OwnedFd,
    sync::{Mutex, PoisonError},
};

use mig_transport::{Error, Result};
use rustix::fs::OFlags;

/// What a descriptor is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Sets of open files by number (docs/wire/transports.md §2.7). A set may hold several descriptors, open in different
/// ways; the one that fits is duplicated on use, so a set can be used again.
///
/// Outside of QEMU the path means nothing to the kernel: whoever embeds this library fills the sets.
#[derive(Debug, Default)]
pub struct DescriptorSets(Mutex<BTreeMap<u32, Vec<OwnedFd>>>);

impl DescriptorSets {
    /// No sets.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a descriptor to a set, which begins with its first one.
    pub fn add(&self, set: u32, fd: OwnedFd) {
        self.lock().entry(set).or_default().push(fd);
    }

    /// Closes a set's descriptors; channels that use one keep their duplicate. Answers whether there was such a set.
    pub fn remove(&self, set: u32) -> bool {
        self.lock().remove(&set).is_some()
    }

    /// A duplicate of the descriptor in `set` that is open the right way.
    pub(crate) fn open(&self, set: u32, access: Access) -> Result<File> {
        let name = format!("file:/dev/fdset/{set}");
        let sets = self.lock();
        let Some(fds) = sets.get(&set) else {
            return Err(Error::Misuse {
                what: format!(
                    "{name}: there is no such set; sets are filled by the program that embeds this one (QEMU: add-fd), \
                     for an inherited descriptor use file:/dev/fd/N"
                ),
            });
        };
        let wanted = match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::WRONLY,
        };
        // One opened just so is meant; one opened both ways does as well.
        for mode in [wanted, OFlags::RDWR] {
            for fd in fds {
                let flags = rustix::fs::fcntl_getfl(fd)
                    .map_err(|error| Error::io(name.clone(), error.into()))?;
                // An appending descriptor would write at the end, wherever it is told to.
                let usable = !flags.intersects(OFlags::PATH | OFlags::APPEND);
                if usable && flags & OFlags::RWMODE == mode {
                    let own = fd.try_clone().map_err(|error| Error::io(name.clone(), error))?;
                    return Ok(own.into());
                }
            }
        }
        let how = match access {
            Access::Read => "reading",
            Access::Write => "writing (without O_APPEND)",
        };
        Err(Error::Misuse {
            what: format!("{name}: none of its {} descriptors is open for {how}", fds.len()),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, Vec<OwnedFd>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
