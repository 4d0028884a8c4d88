//! What the hub knows, and what follows from it: no waiting, no sharing.

use std::{fmt::Write as _, sync::Arc};

use super::super::layout::Layout;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct State {
    /// By channel number; as many as are expected.
    pub(super) channels: Vec<Progress>,
    pub(super) layout: Option<Arc<Layout>>,
    /// Channels may come that are not yet among them, and each counts once main spoke of it.
    pub(super) any_number: bool,
    /// Marks that were passed.
    pub(super) released: u64,
    /// Main waits at a mark.
    pub(super) at_mark: bool,
    /// The stream is over, and the guest waits for device state.
    pub(super) wants_state: bool,
    /// SWITCHOVER_START came.
    pub(super) switchover: bool,
    /// The last section of `ram` began: there may be no further mark.
    pub(super) end_began: bool,
    /// Nothing more may land, but for what channels have begun.
    pub(super) closed: bool,
    pub(super) failed: bool,
}

/// How far one channel is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    pub(super) here: bool,
    /// Marks that had been passed when main spoke of it: it takes part in those that follow. `None` before.
    pub(super) joined: Option<u64>,
    /// SYNCs that came.
    pub(super) delivered: u64,
    /// Pages came since the last of them.
    pub(super) unsynced: bool,
    pub(super) ended: bool,
}

impl Progress {
    /// Whether the mark after `released` others has to wait for its SYNC.
    pub(super) fn is_late(&self, released: u64) -> bool {
        self.joined.is_some_and(|joined| joined + self.delivered <= released)
    }
}

impl State {
    /// Has places for so many channels, at least.
    pub(super) fn make_room(&mut self, channels: usize) {
        let channels = channels.max(self.channels.len());
        self.channels.resize(channels, Progress::default());
    }

    /// Whether all those have come of which main spoke.
    pub(super) fn all_are_here(&self) -> bool {
        self.channels.iter().all(|channel| channel.here || channel.joined.is_none())
    }

    /// Whether all those that came have ended.
    pub(super) fn nobody_is_left(&self) -> bool {
        self.channels.iter().all(|channel| channel.ended || !channel.here)
    }

    /// Whether the next mark can be passed, or the channel because of which it never can.
    pub(super) fn mark_is_due(&self) -> Option<Result<(), usize>> {
        let mut all = true;
        for (id, channel) in self.channels.iter().enumerate() {
            if channel.is_late(self.released) {
                if channel.ended {
                    return Some(Err(id));
                }
                all = false;
            }
        }
        all.then_some(Ok(()))
    }

    /// Who keeps the next mark waiting, in words.
    pub(super) fn missing(&self) -> Option<String> {
        let late: Vec<_> = (0..)
            .zip(&self.channels)
            .filter(|(_, channel)| channel.is_late(self.released))
            .collect();
        let absent = late.iter().filter(|(_, channel)| !channel.here).count();
        let mut words = String::new();
        if absent > 0 {
            let all = self.channels.len();
            // Writing to a string cannot fail.
            let _written = write!(words, "{} of {all} have come", all - absent);
        }
        let mut list = |what: &str, here: bool| {
            let ids: Vec<String> = late
                .iter()
                .filter(|(_, channel)| channel.here == here)
                .map(|(id, _): &(usize, _)| id.to_string())
                .collect();
            if !ids.is_empty() {
                let comma = if words.is_empty() { "" } else { ", " };
                let _written = write!(words, "{comma}{what} {}", ids.join(", "));
            }
        };
        list("not connected:", false);
        list("no SYNC from", true);
        (!words.is_empty()).then_some(words)
    }
}
