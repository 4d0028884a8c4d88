//! A live source that has nothing to say, and a real QEMU at the other end.
//!
//! ```text
//!   Source ── pages ──▶ QEMU          pre-switchover: ── PING ──▶ ◀── PONG ── …
//!                                     a QEMU that is stopped: ── PING ──▶        and no PONG
//! ```

use std::time::Duration;

use mig::engine::{Deadlines, Owner, Wait};
use mig::transport::Blame;
use mig_tests::guest::Image;
use mig_tests::qemu::{Release, Setup};
use mig_tests::report::Cell;
use mig_tests::scratch::Scratch;
use rustix::process::Signal;

use crate::encoded::{assert_same_ram, capture};
use crate::live;

/// Neither end of ours allows silence or an answer that is late for longer.
const PATIENCE: Duration = Duration::from_secs(1);

/// So many times longer is the pause.
const PAUSE: u32 = 3;

fn impatient() -> Deadlines {
    let mut deadlines = Deadlines::default();
    (deadlines.idle, deadlines.heartbeat) = (Some(PATIENCE), Some(PATIENCE));
    deadlines
}

/// QEMU answers every PING, and loads the guest behind them.
pub(crate) fn a_long_pause(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), "pc", "tcp, IPv4, from a live source", "heartbeat");
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine: "pc", scratch: &scratch, image: Image::Dirty };
    let captured = capture(&setup, &scratch.path("captured"));

    let mut destination = setup.destination("destination");
    destination.incoming("tcp:127.0.0.1:0");
    let uri = format!("tcp:{}", destination.listening_address());
    // Time itself is what is tried.
    let operator = tokio::time::sleep;
    let (sent, ram) =
        live::send_paused(&captured, &uri, impatient(), || operator(PATIENCE * PAUSE));
    let outcome = sent.unwrap_or_else(|error| panic!("a long pause: {error}"));
    assert!(outcome.confirmed, "the destination has said so");
    destination.completed();
    assert_same_ram("QEMU", &destination.memory(&scratch), &ram.block("pc.ram"));
    cell.passed("works");
}

/// Its kernel takes what is sent, and QEMU itself says nothing any more.
pub(crate) fn a_stopped_destination(release: Release) {
    let Some(binary) = release.or_skip() else { return };
    let cell = Cell::new(binary.version(), "pc", "tcp, IPv4, from a live source", "stopped QEMU");
    let scratch = Scratch::new();
    let setup = Setup { binary: &binary, machine: "pc", scratch: &scratch, image: Image::Dirty };
    let captured = capture(&setup, &scratch.path("captured"));

    let mut destination = setup.destination("destination");
    destination.incoming("tcp:127.0.0.1:0");
    let uri = format!("tcp:{}", destination.listening_address());
    let (sent, _) = live::send_paused(&captured, &uri, impatient(), || {
        destination.process.signal(Signal::STOP);
        std::future::pending()
    });
    let error = sent.expect_err("nobody answers");
    assert_eq!((error.blame(), error.wait()), (Blame::Deadline, Some(Wait::Heartbeat)), "{error}");
    assert_eq!(error.owner(), Owner::Source);
    destination.process.signal(Signal::CONT);
    cell.passed("found out");
}
