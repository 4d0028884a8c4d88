//! The state machines of both ends, driven by any list of events.
//!
//! ```text
//!   script ─▶ a peer: bytes in pieces, silence, end, reset, cancel, parameters ──▶ Source, Destination, Recorder, Replayer
//!   script ─▶ what goes wrong between them: cuts, stalls, flipped bytes ─────────▶ Source and Destination
//! ```
//! Channels are in memory. Time is paused and moves by itself when nobody can go on, so that an hour of silence costs
//! nothing and every wait has to end. Where an end has threads of its own (data channels, a recorder's disk) it is real, the
//! deadlines are a few milliseconds, and the peer hangs up when its script is over.
//!
//! What is promised: it ends, nothing panics, and no two ends own the guest.

mod destination;
mod faulty;
mod guest;
mod meeting;
mod pair;
mod pieces;
mod record;
mod replay;
mod source;

pub use self::{
    destination::destination, pair::pair, record::recorder, replay::replayer, source::source,
};

#[cfg(feature = "tls")]
pub(crate) use self::meeting::Arriving;

use std::{future::Future, time::Duration};

use mig_engine::Deadlines;

/// More than any list of deadlines adds up to.
const DAY: Duration = Duration::from_secs(86_400);

/// The same where time is real; far more than any deadline there.
const HANG_GUARD: Duration = Duration::from_secs(60);

/// Whose time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    Paused,
    Real,
}

impl Clock {
    /// Runs to the end, which must come.
    fn run<T>(self, future: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(self == Self::Paused);
        let runtime = builder.build().expect("a runtime");
        let limit = if self == Self::Paused { DAY } else { HANG_GUARD };
        let done = runtime.block_on(async { tokio::time::timeout(limit, future).await });
        done.unwrap_or_else(|_| panic!("no end within {limit:?}"))
    }

    fn deadlines(self) -> Deadlines {
        let mut deadlines = Deadlines::default();
        if self == Self::Real {
            deadlines.first_byte = Duration::from_millis(5);
            deadlines.idle = Some(Duration::from_millis(20));
            deadlines.final_acknowledgement = Duration::from_millis(5);
            deadlines.accept = Some(Duration::from_millis(5));
        }
        deadlines
    }
}

/// Runs under paused time to the end, which must come.
#[cfg(feature = "tls")]
pub(crate) fn paused<T>(future: impl Future<Output = T>) -> T {
    Clock::Paused.run(future)
}

/// The front of a script.
fn next(script: &mut &[u8]) -> Option<u8> {
    let (&first, rest) = script.split_first()?;
    *script = rest;
    Some(first)
}

/// The next two bytes, big-endian; zero where there are none.
fn next16(script: &mut &[u8]) -> u16 {
    let high = next(script).unwrap_or(0);
    u16::from_be_bytes([high, next(script).unwrap_or(0)])
}

/// The next bytes, up to `len` of them.
fn take<'s>(script: &mut &'s [u8], len: usize) -> &'s [u8] {
    let (front, rest) = script.split_at(len.min(script.len()));
    *script = rest;
    front
}

/// A time: 0 to 15 are powers of four, in milliseconds, the longest eight hours.
fn wait(byte: u8) -> Duration {
    Duration::from_millis(1 << (2 * u32::from(byte % 13)))
}
