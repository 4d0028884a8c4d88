//! Taking a descriptor over by its number: exactly once in a process.
//!
//! Rules of this room:
//!
//! 1. A number is adopted at most once in the life of the process; a process-wide list remembers.
//! 2. Only what was inherited is adopted. Whatever survives `execve` has no `FD_CLOEXEC`; the standard library, tokio and
//!    this project open everything with it. So a number that carries the flag belongs to somebody in this process and
//!    is refused. Adoption sets the flag, and no child inherits the descriptor again.
//! 3. The numbers 0, 1 and 2 are never closed, because the next descriptor opened would take their place and `println!`
//!    would write into it. They are duplicated, and `/dev/null` takes their place.

#![expect(
    unsafe_code,
    reason = "a descriptor given by number has no owner in Rust until it is adopted; rules in the module head"
)]

use std::{
    collections::BTreeSet,
    fs::OpenOptions,
    io,
    os::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
    sync::{Mutex, PoisonError},
};

use mig_transport::{Error, Result};
use rustix::io::{Errno, FdFlags};

use crate::descriptor::Descriptor;

static ADOPTED: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// See [`Descriptor::adopt`].
pub(crate) fn adopt(number: RawFd) -> Result<Descriptor> {
    let name = format!("fd:{number}");
    let misuse = |why: &str| Err(Error::Misuse { what: format!("{name}: {why}") });
    if number < 0 {
        return misuse("a descriptor number is 0 or more");
    }
    // Held to the end: two callers with the same number must not both pass.
    let mut adopted = ADOPTED.lock().unwrap_or_else(PoisonError::into_inner);
    if adopted.contains(&number) {
        return misuse("already adopted; a descriptor carries one channel, once");
    }
    // SAFETY: used only for fcntl and fstat during this call. If the number is closed they say so; if another thread
    // owns it, asking for flags does no harm.
    let seen = unsafe { BorrowedFd::borrow_raw(number) };
    match rustix::io::fcntl_getfd(seen) {
        Err(Errno::BADF) => {
            return misuse(
                "no such descriptor is open; the program that starts this one has to leave it open \
                 (in a shell: `… 3<PIPE` or `3>PIPE`)",
            );
        }
        Err(error) => return Err(Error::io(name, error.into())),
        Ok(flags) if flags.contains(FdFlags::CLOEXEC) => {
            return misuse(
                "this descriptor was not inherited, this process opened it for itself (it is close-on-exec); \
                 hand over an owned descriptor instead",
            );
        }
        Ok(_) => {}
    }
    let kind = Descriptor::kind_of(seen, &name)?;
    let fd = if number <= 2 {
        replace_standard(seen, number)
            .map_err(|error| Error::io(format!("{name}: moving it"), error))?
    } else {
        rustix::io::fcntl_setfd(seen, FdFlags::CLOEXEC)
            .map_err(|error| Error::io(name.clone(), error.into()))?;
        // SAFETY: open (checked above), inherited and not owned by anybody here (rule 2), and never adopted before
        // (rule 1, the lock is held).
        unsafe { OwnedFd::from_raw_fd(number) }
    };
    adopted.insert(number);
    Ok(Descriptor::checked(fd, kind, name))
}

/// Rule 3: a duplicate to own, and `/dev/null` where it was.
fn replace_standard(seen: BorrowedFd<'_>, number: RawFd) -> io::Result<OwnedFd> {
    let fd = rustix::io::fcntl_dupfd_cloexec(seen, 3)?;
    let null: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/null")?.into();
    // SAFETY: one of the three standard numbers, which nobody in a Rust program owns; turned back into a bare number
    // right below, so that it is never closed.
    let mut place = unsafe { OwnedFd::from_raw_fd(number) };
    let outcome = rustix::io::dup2(&null, &mut place);
    let _number = place.into_raw_fd();
    outcome?;
    Ok(fd)
}
