//! Source and destination against each other, over channels in memory and under paused time: who owns the guest when
//! something goes wrong, what is said in which order, and what a transport with hooks is asked for.

#![expect(clippy::unwrap_used, reason = "a test says what it expects")]

mod ahead;
mod arrival;
mod cancelled;
mod cut;
mod given_up;
mod heartbeat;
mod hooks;
mod multifd_arrival;
mod multifd_device_state;
mod multifd_failures;
mod multifd_origin;
mod multifd_packets;
mod multifd_recorder;
mod multifd_source;
mod multifd_source_auto;
mod multifd_source_balance;
mod multifd_source_cancel;
mod multifd_source_far;
mod multifd_source_faults;
mod multifd_source_stored;
mod multifd_source_wire;
mod multifd_wire;
mod reset;
mod scripted;
mod spawned;
mod stored;
mod strangers;
mod support;
mod throttle;
mod turns;
mod verdicts;
mod xbzrle;
mod zero_copy;
