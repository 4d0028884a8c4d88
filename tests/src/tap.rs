//! A tap on the wire between two real ends: forwards both directions and keeps what went over.
//!
//! ```text
//!   source QEMU ── unix ──▶ tap ── unix ──▶ destination QEMU
//!                    ◀── answers ──
//! ```
//! The recording shows what QEMU itself says, return path and all, with no end of ours taking part.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

use crate::process::{STEP, wait_readable};

/// A tap that has been set up; it works in threads of its own.
#[derive(Debug)]
pub struct Tap {
    running: JoinHandle<Recording>,
}

/// What went over the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// Source to destination: the stream.
    pub stream: Vec<u8>,
    /// Destination to source: the return path, empty without one.
    pub answers: Vec<u8>,
}

impl Tap {
    /// Listens at `from`; whoever connects there is joined with the listener at `to`.
    #[must_use]
    pub fn between(from: &Path, to: &Path) -> Self {
        let listener = UnixListener::bind(from)
            .unwrap_or_else(|error| panic!("cannot listen on {}: {error}", from.display()));
        let to = to.to_path_buf();
        let running = std::thread::spawn(move || {
            assert!(wait_readable(&listener, STEP), "no source has come to the tap");
            let (source, _) = listener.accept().expect("poll has said that somebody is there");
            let destination = UnixStream::connect(&to)
                .unwrap_or_else(|error| panic!("cannot connect to {}: {error}", to.display()));
            let back = (clone(&destination), clone(&source));
            let backward = std::thread::spawn(move || forward(back.0, back.1));
            let stream = forward(source, destination);
            let answers = backward.join().expect("forwarding does not panic");
            Recording { stream, answers }
        });
        Self { running }
    }

    /// Waits until both ends have closed.
    #[must_use]
    pub fn recording(self) -> Recording {
        match self.running.join() {
            Ok(recording) => recording,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn clone(stream: &UnixStream) -> UnixStream {
    stream.try_clone().unwrap_or_else(|error| panic!("cannot duplicate a socket: {error}"))
}

/// Copies until the end of either; an error of a socket is its end, as the two QEMUs will tell.
fn forward(mut from: UnixStream, mut to: UnixStream) -> Vec<u8> {
    let mut seen = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => {
                seen.extend_from_slice(&chunk[..count]);
                if to.write_all(&chunk[..count]).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    seen
}
