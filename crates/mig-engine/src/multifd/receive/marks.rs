//! Which records of the main channel are marks: places where it waits for the data channels (docs/wire/ram.md §9.5).
//!
//! ```text
//!   per round:    START list FLUSH EOS     PART … EOS     PART … FLUSH … EOS     END … FLUSH EOS
//!                            ▲ mark                              ▲ mark                ▲ mark  ▲ last
//!   per section:  START list EOS           PART … EOS            PART … EOS      END … EOS
//!                            ▲ mark               ▲ mark                ▲ mark         ▲ mark, last
//! ```
//!
//! Which of the two it is START tells: it carries MULTIFD_FLUSH before its EOS, or it does not.

use mig_proto::{Command, Event, SectionKind, multifd::SyncMode, peer::channels_said};

use super::hub::Hub;

/// What main has to do before it goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stop {
    /// Pass a mark.
    pub(crate) mark: bool,
    /// Nothing of `ram` comes after it.
    pub(crate) last: bool,
}

/// Reads along with the main channel.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// The `ram` section that is being read.
    section: Option<SectionKind>,
    flushed: bool,
    mode: Option<SyncMode>,
    due: Option<Stop>,
}

impl Marks {
    /// Notes an event; answers whether main may go on reading.
    pub(crate) fn note(&mut self, event: &Event<'_>, hub: &Hub) -> bool {
        match event {
            Event::Section(header) => {
                self.section = header.is_ram().then_some(header.kind);
                self.flushed = false;
                if self.section == Some(SectionKind::End) {
                    hub.end_began();
                }
            }
            Event::Command(Command::SwitchoverStart) => hub.switchover_began(),
            Event::Command(Command::Ping(value)) => {
                if let Some(channels) = channels_said(*value) {
                    hub.join(channels);
                }
            }
            Event::MultifdFlush(_) => {
                self.flushed = true;
                self.due = Some(Stop { mark: true, last: false });
            }
            Event::EndOfRecords(_) => {
                if self.section == Some(SectionKind::Start) && self.mode.is_none() {
                    let per_round = self.flushed;
                    self.mode =
                        Some(if per_round { SyncMode::PerRound } else { SyncMode::PerSection });
                }
                self.due = Some(Stop {
                    mark: self.mode == Some(SyncMode::PerSection),
                    last: self.section == Some(SectionKind::End),
                });
            }
            _ => {}
        }
        self.due.is_none()
    }

    /// What is to be done now.
    pub(crate) fn take_due(&mut self) -> Option<Stop> {
        self.due.take()
    }
}
