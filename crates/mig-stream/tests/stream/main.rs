//! The crate's own promises through its public API: nothing lost, nothing twice, exact positions, one error for ever,
//! every wait ends. Doubles chop and stall on purpose; real sockets come along where the kernel has a say.

#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions as such")]

mod cancelled;
mod failing;
mod hooked;
mod paced;
mod round_trip;
mod stopped;
mod support;
