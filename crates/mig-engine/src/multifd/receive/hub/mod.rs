//! Where the main channel and the data channels of a destination meet.
//!
//! ```text
//!   data channel k:  pages … SYNC ── delivered += 1 ──┐                ┌── released? ── pages …
//!                                                     ▼                │
//!   main:                          mark: everybody delivered so many? ─┴─▶ released += 1
//! ```
//!
//! One small state that all threads watch; nothing in it is touched more often than once a channel and round. Marks and
//! SYNCs are counted, so it does not matter which comes first, and a SYNC without a mark hurts nobody: its channel waits
//! until main says that memory is closed.
//!
//! The first failure of any channel is kept, wakes everybody, and ends the migration.

#[cfg(all(test, modelled))]
mod models;
mod state;

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use mig_ram::PAGE_SIZE;
use mig_transport::Blame;

use self::state::{Progress, State};
use super::layout::Layout;
use crate::{
    error::{Error, Result},
    sync::{Mutex, timeout, watch},
};

/// How long a thread may take to notice what the kernel knows already.
const NOTICE: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub(crate) struct Hub {
    state: watch::Sender<State>,
    failure: Mutex<Option<Error>>,
}

impl Hub {
    /// Expects `channels` channels.
    pub(super) fn new(channels: u8) -> Self {
        let expected = Progress { joined: Some(0), ..Progress::default() };
        let channels = vec![expected; usize::from(channels)];
        Self {
            state: watch::Sender::new(State { channels, ..State::default() }),
            failure: Mutex::default(),
        }
    }

    /// Expects as many as main [speaks of](Self::join).
    pub(super) fn any_number() -> Self {
        let state = State { any_number: true, ..State::default() };
        Self { state: watch::Sender::new(state), failure: Mutex::default() }
    }

    /// Whether channels may come beyond those that are expected now.
    pub(crate) fn takes_any_number(&self) -> bool {
        self.state.borrow().any_number
    }

    /// Main says that from here on there are `channels` channels. Means nothing where their number is fixed.
    pub(super) fn join(&self, channels: u8) {
        self.state.send_if_modified(|state| {
            if !state.any_number {
                return false;
            }
            state.make_room(usize::from(channels));
            let released = state.released;
            for channel in state.channels.iter_mut().take(usize::from(channels)) {
                channel.joined.get_or_insert(released);
            }
            true
        });
    }

    /// How many channels there are to be.
    pub(crate) fn expected(&self) -> usize {
        self.state.borrow().channels.len()
    }

    /// How many have come.
    pub(crate) fn arrived(&self) -> usize {
        self.state.borrow().channels.iter().filter(|channel| channel.here).count()
    }

    /// Whether one that is expected has not come.
    pub(super) fn misses_any(&self) -> bool {
        self.arrived() < self.expected()
    }

    /// A channel came, or went before anything began.
    pub(super) fn set_here(&self, id: u8, here: bool) {
        self.state.send_if_modified(|state| {
            if state.any_number {
                state.make_room(usize::from(id) + 1);
            }
            false
        });
        self.change(id, |channel| channel.here = here);
    }

    pub(super) fn is_here(&self, id: u8) -> bool {
        self.state.borrow().channels.get(usize::from(id)).is_some_and(|channel| channel.here)
    }

    /// Gives the thread of a channel a moment to notice that its source has gone; answers whether it did.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn becomes_vacant(&self, id: u8) -> bool {
        let mut watching = self.state.subscribe();
        let vacant = watching.wait_for(|state| {
            state.channels.get(usize::from(id)).is_some_and(|channel| !channel.here)
        });
        timeout(NOTICE, vacant).await.is_ok()
    }

    // What main says.

    /// Whether pages of the block list never came; true also before it.
    pub(super) fn lacks_pages(&self) -> bool {
        let state = self.state.borrow();
        let Some(layout) = &state.layout else { return true };
        layout.blocks.iter().any(|block| {
            let received = layout.placement.received(block.local).map_or(0, |pages| pages.count());
            received < block.length / PAGE_SIZE as u64
        })
    }

    /// Whether main spoke of this channel.
    pub(super) fn is_joined(&self, id: u8) -> bool {
        let state = self.state.borrow();
        state.channels.get(usize::from(id)).is_some_and(|channel| channel.joined.is_some())
    }

    /// The block list came: pages can land.
    pub(crate) fn set_layout(&self, layout: &Arc<Layout>) {
        self.state.send_if_modified(|state| {
            let new = state.layout.is_none();
            state.layout.get_or_insert_with(|| Arc::clone(layout));
            new
        });
    }

    pub(super) fn switchover_began(&self) {
        self.state.send_modify(|state| state.switchover = true);
    }

    /// The stream is over, and the guest waits for device state.
    pub(crate) fn wants_state(&self) {
        self.state.send_modify(|state| state.wants_state = true);
    }

    pub(super) fn end_began(&self) {
        self.state.send_modify(|state| state.end_began = true);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state.borrow().closed
    }

    /// Passes the next mark: waits until each channel delivered its SYNC, then lets all go on. A source has connected its
    /// channels before it marks anything, so one that is not here within `arrival` does not exist.
    ///
    /// # Errors
    ///
    /// A channel does not come, or ended without its SYNC.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the mark is not passed.
    pub(crate) async fn pass_mark(&self, arrival: Duration) -> Result<()> {
        if self.state.borrow().channels.iter().all(|channel| channel.joined.is_none()) {
            return Err(Error::peer_incompatible(
                "the source does not say how many data channels it has: only one of our own with a return path does; say \
                 the number (multifd-channels) at this end too",
            ));
        }
        let mut watching = self.state.subscribe();
        self.state.send_modify(|state| state.at_mark = true);
        let all_here = watching.wait_for(State::all_are_here);
        if timeout(arrival, all_here).await.is_err() {
            let missing = self.state.borrow().missing().unwrap_or_default();
            return Err(Error::peer_incompatible(format!(
                "the source goes on, and of its data channels {missing}, after {arrival:?}: set multifd, and the same \
                 multifd-channels, at both ends"
            )));
        }
        let passed = {
            // The sender is in `self`.
            let state = watching.wait_for(|state| state.mark_is_due().is_some()).await;
            state.ok().and_then(|state| state.mark_is_due()).unwrap_or(Ok(()))
        };
        self.state.send_modify(|state| {
            state.at_mark = false;
            state.released += u64::from(passed.is_ok());
        });
        passed.map_err(|id| {
            Error::peer_misbehaved(format!(
                "data channel {id} ended, and the main channel goes on: its pages since the last synchronisation may \
                 be missing"
            ))
        })
    }

    /// Closes memory behind the last mark: waits for channels that have pages which no SYNC followed, then nothing may
    /// land any more.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn close(&self) {
        let mut watching = self.state.subscribe();
        self.state.send_modify(|state| state.closed = true);
        let _state = watching
            .wait_for(|state| {
                state.channels.iter().all(|channel| !channel.unsynced || channel.ended)
            })
            .await;
    }

    /// Waits until all channels have ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn all_ended(&self) {
        let mut watching = self.state.subscribe();
        let _state = watching.wait_for(|state| state.failed || state.nobody_is_left()).await;
    }

    /// Waits until all channels have ended in order; for ever, if everybody has to stop: that has a reason, which whoever
    /// waits for [`failure`](Self::failure) hears.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn all_ended_in_order(&self) {
        let mut watching = self.state.subscribe();
        let _state = watching.wait_for(|state| !state.failed && state.nobody_is_left()).await;
    }

    // What channels say.

    /// Waits for the block list.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn layout(&self) -> Result<Arc<Layout>> {
        let mut watching = self.state.subscribe();
        let state = watching.wait_for(|state| state.layout.is_some()).await;
        state.ok().and_then(|state| state.layout.clone()).ok_or_else(Error::cancelled)
    }

    /// Waits until device state may come on channel `id`; false if it may not: the last section of `ram` began without
    /// SWITCHOVER_START, or main waits for a SYNC that can only be behind this state, and was said before
    /// SWITCHOVER_START.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn switchover(&self, id: u8) -> bool {
        let mut watching = self.state.subscribe();
        let known = |state: &State| {
            let keeps_main =
                || state.channels.get(usize::from(id)).is_some_and(|c| c.is_late(state.released));
            state.switchover || state.end_began || (state.at_mark && keeps_main())
        };
        watching.wait_for(known).await.is_ok_and(|state| state.switchover)
    }

    /// Waits until main spoke of the channel. One that was opened while the migration ran may be far ahead of main: until
    /// then others may still bring what an earlier pass had for the same pages.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn joined(&self, id: u8) {
        let mut watching = self.state.subscribe();
        let joined = |state: &State| {
            state.channels.get(usize::from(id)).is_some_and(|channel| channel.joined.is_some())
        };
        let _state = watching.wait_for(joined).await;
    }

    /// Pages are about to land, the first since the last SYNC.
    ///
    /// # Errors
    ///
    /// Memory is closed, or everybody is to stop: a channel with much in its buffer looks nowhere else.
    pub(super) fn begin_pages(&self, id: u8) -> Result<()> {
        let (mut late, mut stopped) = (false, false);
        self.state.send_if_modified(|state| {
            (late, stopped) = (state.closed, state.failed);
            if let Some(channel) = state.channels.get_mut(usize::from(id)).filter(|_| !late) {
                channel.unsynced = true;
            }
            // Nobody waits for this.
            false
        });
        if stopped {
            return Err(Error::cancelled());
        }
        if late {
            return Err(Error::peer_misbehaved("pages after the last section of ram had ended"));
        }
        Ok(())
    }

    /// A SYNC came, and everything before it is in memory. Waits until all channels have theirs and main passed the mark,
    /// or until no mark can come.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the SYNC is delivered.
    pub(super) async fn synchronise(&self, id: u8) {
        let mut mine = 0;
        let mut watching = self.state.subscribe();
        self.change(id, |channel| {
            channel.delivered += 1;
            channel.unsynced = false;
            mine = channel.delivered;
        });
        let passed = |state: &State| {
            let joined = state.channels.get(usize::from(id)).and_then(|channel| channel.joined);
            state.closed || joined.is_some_and(|joined| state.released >= joined + mine)
        };
        let _state = watching.wait_for(passed).await;
    }

    /// The channel ended between two packets, and everything is in memory.
    pub(super) fn end(&self, id: u8) -> Result<()> {
        let mut early = false;
        self.state.send_modify(|state| {
            early = !state.end_began;
            if let Some(channel) = state.channels.get_mut(usize::from(id)) {
                channel.ended = true;
            }
        });
        if early {
            return Err(Error::peer_misbehaved(
                "it ended before the last section of ram: the source is gone, or gave up",
            ));
        }
        Ok(())
    }

    // Failing.

    /// Something broke: the first failure is kept, and everybody stops.
    pub(crate) fn fail(&self, error: Error) {
        {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            let already = self.state.borrow().failed;
            if already {
                tracing::debug!(%error, "after the first failure");
            } else {
                failure.get_or_insert(error);
            }
        }
        self.stop();
    }

    /// Everybody stops; nothing is wrong with the channels.
    pub(crate) fn stop(&self) {
        self.state.send_modify(|state| state.failed = true);
    }

    /// Waits until everybody has to stop.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn stopped(&self) {
        let mut watching = self.state.subscribe();
        let _state = watching.wait_for(|state| state.failed).await;
    }

    /// Waits for the first failure of a channel.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe until it answers: the failure is handed out once.
    pub(crate) async fn failure(&self) -> Error {
        self.stopped().await;
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.explain(failure.unwrap_or_else(Error::cancelled))
    }

    /// Adds to a wait that was too long what was being waited for.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let state = self.state.borrow();
        if error.blame() != Blame::Deadline {
            return error;
        }
        let mut unsynced = (0..).zip(&state.channels).filter(|(_, channel)| channel.unsynced);
        let unsynced: Option<(usize, _)> = unsynced.next();
        match (state.missing(), unsynced) {
            (_, Some((id, _))) if state.closed => error.noting(format!(
                "data channel {id} brought pages after the last mark, and no SYNC follows them"
            )),
            (Some(missing), _) if state.at_mark => {
                error.noting(format!("the main channel waits for the data channels: {missing}"))
            }
            _ if state.wants_state => error.noting(
                "the stream is over, and a device waits for more of its state over the data channels".to_owned(),
            ),
            _ => error,
        }
    }

    fn change(&self, id: u8, change: impl FnOnce(&mut Progress)) {
        self.state.send_modify(|state| {
            if let Some(channel) = state.channels.get_mut(usize::from(id)) {
                change(channel);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All are here.
    const ARRIVAL: Duration = Duration::from_secs(60);

    /// A channel with hundreds of packets in its buffer looks nowhere else between them.
    #[test]
    fn no_page_lands_after_a_stop() {
        let hub = Hub::new(1);
        hub.begin_pages(0).unwrap();
        hub.stop();
        assert_eq!(hub.begin_pages(0).unwrap_err().blame(), Blame::Cancelled);
    }

    #[tokio::test]
    async fn only_channels_that_main_spoke_of_are_waited_for_and_missed() {
        let hub = Hub::any_number();
        hub.join(1);
        hub.set_here(0, true);
        // Opened, and not yet spoken of.
        hub.set_here(1, true);
        let round = async {
            tokio::join!(hub.synchronise(0), async { hub.pass_mark(ARRIVAL).await.unwrap() });
        };
        round.await;
        hub.join(2);
        let waiting = tokio::time::timeout(Duration::ZERO, hub.pass_mark(ARRIVAL));
        assert!(waiting.await.is_err(), "neither has a SYNC for it");
        let missing = || {
            hub.explain(Error::deadline(crate::deadlines::Wait::Idle, "a mark", Duration::ZERO))
                .to_string()
        };
        assert!(missing().contains("no SYNC from 0, 1;"), "{}", missing());
        let delivered = tokio::time::timeout(Duration::ZERO, hub.synchronise(1));
        assert!(delivered.await.is_err(), "the mark is not passed");
        assert!(missing().contains("no SYNC from 0;"), "{}", missing());
    }
}
