//! Writing into a pipe that nobody reads any more, without the signal.
//!
//! A socket can be told not to raise SIGPIPE, a pipe cannot. Rust's own programs ignore the signal; another host of this
//! library may have left it at its default, which ends the process. Then, and only then, the signal is blocked for this
//! thread around the write, and taken back if the write raised it: a broken pipe is an error and nothing else.

#![expect(unsafe_code, reason = "signal masks; each call is on memory of this frame or asks only")]

use std::{io, mem::MaybeUninit, ptr};

/// Makes one `write` call into a pipe.
pub(crate) fn without_sigpipe<T>(write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if !is_deadly() {
        return write();
    }
    let only_sigpipe = only_sigpipe();
    let mut before = MaybeUninit::uninit();
    // SAFETY: both sets are valid for the call, which fills the second.
    if unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &only_sigpipe, before.as_mut_ptr()) } != 0 {
        return write();
    }
    // SAFETY: filled by the successful call above.
    let before = unsafe { before.assume_init() };
    let was_pending = is_pending();
    let outcome = write();
    let raised = matches!(&outcome, Err(error) if error.kind() == io::ErrorKind::BrokenPipe);
    if raised && !was_pending {
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the set and the time are valid for the call, nothing is asked about the signal. A write raises the
        // signal for its own thread, so it is pending here, or was delivered to nobody.
        unsafe { libc::sigtimedwait(&only_sigpipe, ptr::null_mut(), &at_once) };
    }
    // SAFETY: the mask that was in force before.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut()) };
    outcome
}

/// Whether SIGPIPE would end the process.
fn is_deadly() -> bool {
    let mut now = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: asks only; the record is filled on success and read only then.
    unsafe {
        libc::sigaction(libc::SIGPIPE, ptr::null(), now.as_mut_ptr()) == 0
            && now.assume_init().sa_sigaction == libc::SIG_DFL
    }
}

fn only_sigpipe() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set; SIGPIPE is a signal, so both succeed.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE);
        set.assume_init()
    }
}

/// Whether SIGPIPE waits already, for somebody else to take.
fn is_pending() -> bool {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the set is filled on success and read only then.
    unsafe {
        libc::sigpending(set.as_mut_ptr()) == 0
            && libc::sigismember(set.as_ptr(), libc::SIGPIPE) == 1
    }
}
