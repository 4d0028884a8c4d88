//! How long each wait may take: every deadline of a migration in one place, with its name, its default and what to do
//! when it ran out. `docs/deadlines.md` lists which wait is under which of them.

use std::{fmt, str::FromStr, time::Duration};

use serde::Serialize;

use crate::error::{Error, Result};

/// How often a source that has nothing to say says so, at least.
const LONGEST_PULSE: Duration = Duration::from_secs(10);
/// And at most: a deadline of nothing must not fill the link.
const SHORTEST_PULSE: Duration = Duration::from_millis(10);

/// A kind of wait, by the name that errors, flags and documents give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Wait {
    /// Until a channel is open at the source: name lookup and every address tried included.
    Connect,
    /// Until a source has connected.
    Accept,
    /// Until a connection is encrypted, once it is there.
    Handshake,
    /// From a connection to what it says it is; also for a data channel that the source has synchronised and that has
    /// not come.
    FirstByte,
    /// Without a byte on any channel, either way, and without any other sign of life.
    Idle,
    /// From a PING of an idle source to its PONG.
    Heartbeat,
    /// From the last byte sent to the destination's verdict.
    Acknowledgement,
    /// From the end of the stream to the end of the command that was given it.
    Exit,
    /// Until what was received is on the disk, and has its name.
    Storage,
}

impl Wait {
    /// All of them, in the order in which a migration meets them.
    pub const ALL: [Self; 9] = [
        Self::Connect,
        Self::Accept,
        Self::Handshake,
        Self::FirstByte,
        Self::Idle,
        Self::Heartbeat,
        Self::Acknowledgement,
        Self::Exit,
        Self::Storage,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Accept => "accept",
            Self::Handshake => "handshake",
            Self::FirstByte => "first-byte",
            Self::Idle => "idle",
            Self::Heartbeat => "heartbeat",
            Self::Acknowledgement => "acknowledgement",
            Self::Exit => "exit",
            Self::Storage => "storage",
        }
    }

    /// What to do when it ran out.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Connect => {
                "see whether the destination listens there and whether a firewall is between"
            }
            Self::Accept => "see whether the source was started, and with this address",
            Self::Handshake => {
                "see whether both ends have TLS on, and whether the other end is alive"
            }
            Self::FirstByte => "see whether it is a migration source that connects here",
            Self::Idle => "see whether the other end is alive and what it waits for",
            Self::Heartbeat => {
                "the destination is stopped, stuck or cut off: see its log and the network"
            }
            Self::Acknowledgement => "see the destination's log for what it is doing",
            Self::Exit => "see what the command waits for",
            Self::Storage => "see whether the disk or the server it is on answers",
        }
    }

    /// Whether it may be switched off.
    pub fn may_be_infinite(self) -> bool {
        matches!(self, Self::Accept | Self::Idle | Self::Heartbeat)
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Wait {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|wait| wait.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::misuse(format!("no wait is called {name:?}; there are: {names}"))
        })
    }
}

/// How long each wait may take. None is infinite by default (docs/wire/pain.md §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deadlines {
    /// [`Wait::Connect`], 30 s. Kept by whoever makes the connector.
    pub connect: Duration,
    /// [`Wait::Accept`], 5 min; `None` waits for ever.
    pub accept: Option<Duration>,
    /// [`Wait::Handshake`], 10 s. Kept by whoever makes the connector or the listener.
    pub handshake: Duration,
    /// [`Wait::FirstByte`], 10 s.
    pub first_byte: Duration,
    /// [`Wait::Idle`], 10 min: a guest may be paused before the switchover, where the wire is silent unless the source has
    /// a heartbeat.
    pub idle: Option<Duration>,
    /// [`Wait::Heartbeat`], 1 min. A source with a return path says PING whenever it has had nothing to say for a
    /// [while](Self::pulse); a destination that answers none of them for so long is dead. `None` says no PING.
    pub heartbeat: Option<Duration>,
    /// [`Wait::Acknowledgement`], 1 min.
    pub final_acknowledgement: Duration,
    /// [`Wait::Exit`], 10 s. Kept by whoever makes the connector or the listener.
    pub exit: Duration,
    /// [`Wait::Storage`], 5 min: a disk may have a whole guest in its queue.
    pub storage: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            accept: Some(Duration::from_secs(300)),
            handshake: Duration::from_secs(10),
            first_byte: Duration::from_secs(10),
            idle: Some(Duration::from_secs(600)),
            heartbeat: Some(Duration::from_secs(60)),
            final_acknowledgement: Duration::from_secs(60),
            exit: Duration::from_secs(10),
            storage: Duration::from_secs(300),
        }
    }
}

impl Deadlines {
    /// How long a wait may take; `None` is for ever.
    pub fn of(&self, wait: Wait) -> Option<Duration> {
        match wait {
            Wait::Connect => Some(self.connect),
            Wait::Accept => self.accept,
            Wait::Handshake => Some(self.handshake),
            Wait::FirstByte => Some(self.first_byte),
            Wait::Idle => self.idle,
            Wait::Heartbeat => self.heartbeat,
            Wait::Acknowledgement => Some(self.final_acknowledgement),
            Wait::Exit => Some(self.exit),
            Wait::Storage => Some(self.storage),
        }
    }

    /// Sets how long a wait may take; `None` is for ever.
    ///
    /// # Errors
    ///
    /// A wait that may not be infinite, or a limit of nothing.
    pub fn set(&mut self, wait: Wait, limit: Option<Duration>) -> Result<()> {
        let finite = || {
            limit.ok_or_else(|| {
                let names = Wait::ALL.into_iter().filter(|wait| wait.may_be_infinite());
                let names = names.map(Wait::name).collect::<Vec<_>>().join(", ");
                Error::misuse(format!(
                    "the wait {wait} cannot be for ever, only these can: {names}; give it a long time"
                ))
            })
        };
        if limit.is_some_and(|limit| limit.is_zero()) {
            return Err(Error::misuse(format!(
                "the wait {wait} cannot be over before it began; give it some time"
            )));
        }
        match wait {
            Wait::Connect => self.connect = finite()?,
            Wait::Accept => self.accept = limit,
            Wait::Handshake => self.handshake = finite()?,
            Wait::FirstByte => self.first_byte = finite()?,
            Wait::Idle => self.idle = limit,
            Wait::Heartbeat => self.heartbeat = limit,
            Wait::Acknowledgement => self.final_acknowledgement = finite()?,
            Wait::Exit => self.exit = finite()?,
            Wait::Storage => self.storage = finite()?,
        }
        Ok(())
    }

    /// How long a source with a return path is silent before it says PING: a quarter of what it is given for the answer
    /// and of what silence may last, and never more than 10 s, because the other end may be less patient.
    pub fn pulse(&self) -> Option<Duration> {
        let answer = self.heartbeat?;
        let least = self.idle.unwrap_or(answer).min(answer);
        Some((least / 4).clamp(SHORTEST_PULSE, LONGEST_PULSE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wait_is_found_by_its_name_and_set_by_it() {
        for wait in Wait::ALL {
            assert_eq!(wait.name().parse::<Wait>().unwrap(), wait);
            assert_eq!(serde_json::to_value(wait).unwrap(), wait.name());
            let mut deadlines = Deadlines::default();
            assert!(deadlines.of(wait).is_some(), "{wait} is infinite by default");
            deadlines.set(wait, Some(Duration::from_millis(1234))).unwrap();
            for other in Wait::ALL {
                let changed = deadlines.of(other) != Deadlines::default().of(other);
                assert_eq!(changed, wait == other, "{wait} set, {other} looked at");
            }
            assert_eq!(deadlines.set(wait, None).is_ok(), wait.may_be_infinite(), "{wait}");
            assert!(deadlines.set(wait, Some(Duration::ZERO)).is_err());
        }
        let error = "idel".parse::<Wait>().unwrap_err().to_string();
        assert!(error.contains("first-byte") && error.contains("idle"), "{error}");
    }

    #[test]
    fn a_pulse_comes_several_times_within_any_deadline() {
        let mut deadlines = Deadlines::default();
        assert_eq!(deadlines.pulse(), Some(LONGEST_PULSE));
        deadlines.idle = Some(Duration::from_secs(2));
        assert_eq!(deadlines.pulse(), Some(Duration::from_millis(500)));
        deadlines.idle = None;
        assert_eq!(deadlines.pulse(), Some(LONGEST_PULSE));
        deadlines.heartbeat = Some(Duration::from_millis(1));
        assert_eq!(deadlines.pulse(), Some(SHORTEST_PULSE));
        deadlines.heartbeat = None;
        assert_eq!(deadlines.pulse(), None);
    }
}
