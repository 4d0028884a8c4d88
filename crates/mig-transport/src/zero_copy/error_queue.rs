//! A TCP socket's switch for zero copy, and the queue on which the kernel answers.
//!
//! Rules of this room: every call is on a descriptor borrowed for it; what the kernel writes goes into buffers of this
//! file, of which nothing is believed beyond the length that the kernel says it wrote.

#![expect(unsafe_code, reason = "socket options and the error queue; see each block")]

use std::{
    io,
    mem::{MaybeUninit, size_of},
    os::fd::{AsRawFd, BorrowedFd},
};

use libc::{c_int, c_void, socklen_t};

use super::completion::Completion;
use crate::gather::moved;

/// `ee_origin` of a completion.
const ORIGIN_ZEROCOPY: u8 = 5;
/// `ee_code` of a completion whose bytes were copied.
const CODE_COPIED: u8 = 1;

/// Room for the control messages of one entry: one `sock_extended_err` with an address behind it takes 64 bytes.
const CONTROL_BYTES: usize = 256;

/// The buffer of control messages, aligned as their heads want it.
#[repr(C, align(8))]
struct Control([MaybeUninit<u8>; CONTROL_BYTES]);

/// Tells the kernel that sends without a copy will be asked for; the error says why it cannot be.
pub(super) fn enable(fd: BorrowedFd<'_>) -> Result<(), String> {
    let failed = |error: io::Error| format!("not here: asking the socket what it is: {error}");
    let domain = option(fd, libc::SO_DOMAIN).map_err(failed)?;
    let protocol = option(fd, libc::SO_PROTOCOL).map_err(failed)?;
    if !matches!(domain, libc::AF_INET | libc::AF_INET6) || protocol != libc::IPPROTO_TCP {
        return Err("not here: not a TCP socket".into());
    }
    let on: c_int = 1;
    // SAFETY: the value lives during the call and has the length that is said.
    let answer = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ZEROCOPY,
            (&raw const on).cast(),
            size_of::<c_int>() as socklen_t,
        )
    };
    if answer == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(format!("not here: SO_ZEROCOPY, which Linux has for TCP since 4.14, was refused: {error}"))
}

/// Lets the connection be reset, and what is unsent be forgotten, when its last descriptor is closed.
pub(super) fn reset_when_closed(fd: BorrowedFd<'_>) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the value lives during the call and has the length that is said.
    let answer = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as socklen_t,
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn option(fd: BorrowedFd<'_>, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as socklen_t;
    // SAFETY: value and length live during the call, and the length is that of the value.
    let answer = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast::<c_void>(),
            &raw mut len,
        )
    };
    if answer == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Takes the next completion off the queue, without waiting; `None` if there is none now.
pub(super) fn next(fd: BorrowedFd<'_>) -> io::Result<Option<Completion>> {
    loop {
        match take(fd) {
            Ok(Some(completion)) => return Ok(Some(completion)),
            // Something else was reported on this socket; its own calls tell of what matters.
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Takes the next entry off the queue; `None` if it is no completion.
fn take(fd: BorrowedFd<'_>) -> io::Result<Option<Completion>> {
    let mut control = Control([const { MaybeUninit::uninit() }; CONTROL_BYTES]);
    // SAFETY: all zeroes is a valid msghdr, without buffers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = CONTROL_BYTES as _;
    // SAFETY: the message describes one buffer, `control`, that is ours and lives during the call.
    moved(unsafe {
        libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
    })?;
    // SAFETY: the kernel has set the length of what it wrote into `control`.
    let mut head = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: not null, so it points to a whole head within what the kernel wrote.
    while let Some(found) = unsafe { head.as_ref() } {
        let of_errors = [(libc::SOL_IP, libc::IP_RECVERR), (libc::SOL_IPV6, libc::IPV6_RECVERR)];
        // SAFETY: arithmetic only.
        let whole = unsafe { libc::CMSG_LEN(size_of::<libc::sock_extended_err>() as u32) };
        if of_errors.contains(&(found.cmsg_level, found.cmsg_type)) && found.cmsg_len >= whole as _
        {
            // SAFETY: the kernel wrote at least that many bytes behind the head; they need not be aligned.
            let error =
                unsafe { libc::CMSG_DATA(head).cast::<libc::sock_extended_err>().read_unaligned() };
            if error.ee_origin == ORIGIN_ZEROCOPY && error.ee_errno == 0 {
                return Ok(Some(Completion {
                    first: error.ee_info,
                    last: error.ee_data,
                    copied: error.ee_code & CODE_COPIED != 0,
                }));
            }
        }
        // SAFETY: `head` came from this message, of which nothing has changed.
        head = unsafe { libc::CMSG_NXTHDR(&raw const message, head) };
    }
    Ok(None)
}
