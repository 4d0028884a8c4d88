//! A library must not end its host by a signal that the host never asked for: the test program gives up what Rust does
//! about SIGPIPE, as a host in another language would have it, and breaks pipes. Alone in its process for that reason.

#![expect(unsafe_code, reason = "restores the default action of a signal, asks for the mask")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{future::poll_fn, io, mem::MaybeUninit, pin::Pin, ptr};

use mig_transport::{FdIo, FdKind, FdSendHalf, Gather, SendHalf};
use tokio::io::{AsyncWrite, Interest};

/// The writing end of a pipe that nobody reads.
fn broken_pipe() -> FdSendHalf {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    FdIo::new(writer.into(), FdKind::Pipe, Interest::WRITABLE).unwrap().send_half()
}

fn is_blocked() -> bool {
    let mut mask = MaybeUninit::uninit();
    // SAFETY: asks only; the mask is filled on success.
    unsafe {
        assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr()), 0);
        libc::sigismember(mask.as_ptr(), libc::SIGPIPE) == 1
    }
}

fn is_pending() -> bool {
    let mut set = MaybeUninit::uninit();
    // SAFETY: asks only; the set is filled on success.
    unsafe {
        assert_eq!(libc::sigpending(set.as_mut_ptr()), 0);
        libc::sigismember(set.as_ptr(), libc::SIGPIPE) == 1
    }
}

async fn break_both_ways() {
    let mut half = broken_pipe();
    let written = poll_fn(|cx| Pin::new(&mut half).poll_write(cx, b"x")).await;
    assert_eq!(written.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    let mut gather = Gather::new();
    gather.push_head(b"x").unwrap();
    let sent = poll_fn(|cx| Pin::new(&mut half).poll_send(cx, &mut gather)).await;
    assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn a_broken_pipe_is_an_error_and_not_the_end_of_the_process() {
    // SAFETY: the default action is no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    break_both_ways().await;
    assert!(!is_blocked() && !is_pending(), "the thread is as it was");

    // A signal that waits for somebody else is left to them.
    let mut only = MaybeUninit::uninit();
    // SAFETY: the set is initialised by the first call; the thread signals itself, blocked.
    unsafe {
        libc::sigemptyset(only.as_mut_ptr());
        libc::sigaddset(only.as_mut_ptr(), libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_BLOCK, only.as_ptr(), ptr::null_mut());
        libc::raise(libc::SIGPIPE);
    }
    break_both_ways().await;
    assert!(is_blocked() && is_pending(), "the thread is as it was");
    // SAFETY: ignored from now on, which also discards what is pending.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
