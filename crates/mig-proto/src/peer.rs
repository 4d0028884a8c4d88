//! What two ends of our own say to each other in the values of PING and PONG.
//!
//! ```text
//!   source ── PING "mig" 01: may the number of data channels change? ──▶ destination
//!   source ◀── PONG "mig" 02: it may ────────────────────────────────── ours; QEMU answers with the question
//!   source ── PING "mih" n: from here on there are n ──────────────────▶
//!   source ── PING "mii" n: are you alive? ────────────────────────────▶
//!   source ◀── PONG "mii" n: the question, from everybody ──────────────
//! ```
//!
//! QEMU sends every value back unchanged and looks at none (docs/wire/stream.md §6, §7), so asking harms nobody, and
//! nothing depends on an answer.

/// A PING that asks whether the number of data channels may change while the migration runs.
pub const MAY_CHANNELS_CHANGE: u32 = 0x6d69_6701;

/// The PONG of a destination that takes any number of them.
pub const CHANNELS_MAY_CHANGE: u32 = 0x6d69_6702;

const COUNT: u32 = 0x6d69_6800;

/// The PING that says: from this point of the main channel on, `channels` data channels take part in every SYNC. Where
/// their number is fixed it says that number once; only a destination that said that it may change hears another.
pub const fn channels_from_here(channels: u8) -> u32 {
    COUNT | channels as u32
}

/// The number of channels that a PING of that kind says.
pub const fn channels_said(value: u32) -> Option<u8> {
    if value & !0xff == COUNT { Some((value & 0xff) as u8) } else { None }
}

const HEARTBEAT: u32 = 0x6d69_6900;

/// The PING of a source that has had nothing to say for a while, counted.
pub const fn heartbeat(count: u8) -> u32 {
    HEARTBEAT | count as u32
}

/// Which of them a PONG answers.
pub const fn heartbeat_answered(value: u32) -> Option<u8> {
    if value & !0xff == HEARTBEAT { Some((value & 0xff) as u8) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_said_is_heard() {
        for channels in [1, 2, 255] {
            assert_eq!(channels_said(channels_from_here(channels)), Some(channels));
        }
        for value in [0, 1, MAY_CHANNELS_CHANGE, CHANNELS_MAY_CHANGE, u32::MAX] {
            assert_eq!(channels_said(value), None);
            assert_eq!(heartbeat_answered(value), None);
        }
        for count in 0..=255 {
            assert_eq!(heartbeat_answered(heartbeat(count)), Some(count));
            assert_eq!(channels_said(heartbeat(count)), None);
            assert_eq!(heartbeat_answered(channels_from_here(count)), None);
        }
    }
}
