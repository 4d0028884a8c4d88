//! Reading a migration from its first byte to its last, at an end with a guest.

use std::{sync::Arc, time::Duration};

use mig_proto::globalstate::RunState;
use mig_stream::{Stream, StreamReader};

use super::{ahead::Ahead, loader::Loader};
use crate::{
    answers::Answers,
    error::{Error, Result},
    handle::Shared,
    hooks::{Hooks, bytes_behind},
    multifd::receive::{Beside, DeviceState, DeviceStates},
    turn::Turn,
    walk::{InputEnd, StreamWalk},
};

/// Silence after which the decoder is asked whether the stream may have ended (docs/wire/stream.md §5).
const QUIET: Duration = Duration::from_secs(1);

/// The receiving half of a migration, with all it needs.
pub(super) struct Load<'a> {
    pub(super) stream: &'a mut Stream,
    pub(super) reader: &'a mut StreamReader,
    pub(super) answers: &'a mut Answers,
    pub(super) hooks: Hooks,
    pub(super) walk: StreamWalk,
    pub(super) shared: &'a Shared,
    /// Where data channels bring the pages.
    pub(super) data: Option<Beside>,
    pub(super) device_states: Option<DeviceStates>,
}

/// What a wait for the main channel brought.
enum Came {
    Input(InputEnd),
    State(DeviceState),
}

impl Load<'_> {
    /// Reads the stream to its end; answers the state the guest was in.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: bytes of the stream are lost.
    pub(super) async fn all(mut self, loader: &mut Loader<'_>) -> Result<RunState> {
        let mut registered = false;
        let mut ahead = Ahead::new();
        let mut end = InputEnd::Open;
        let mut turn = Turn::new();
        loop {
            let data = &mut self.data;
            let walked = self.walk.walk_while(self.reader.buffer(), end, |piece| {
                let go_on = match (data.as_mut(), &piece.event) {
                    (Some(data), Some(event)) => data.note(event),
                    _ => true,
                };
                loader.visit(&piece)?;
                Ok::<_, Error>(!turn.work(piece.cost()) && go_on)
            })?;
            self.reader.consume(walked.consumed);
            self.tell(loader);
            for ask in std::mem::take(&mut loader.asked) {
                self.answers.ask(ask);
            }
            self.answers.give(self.stream).await?;
            self.serve_window(loader, &mut registered).await?;
            if self.pass_mark(loader).await? {
                continue;
            }
            if walked.at_least == 0 {
                break;
            }
            if turn.is_over() {
                turn.give_way().await;
                continue;
            }
            if self.walk.is_complete() {
                break;
            }
            let (shared, counters) = (self.shared, self.reader.counters());
            let tell = |loader: &mut Loader<'_>| {
                loader.tell_statistics();
                shared.statistics.received(counters.bytes_received());
            };
            let straight = self.data.is_none()
                && ahead.receive(self.reader, &mut self.walk, loader, &mut turn, tell).await?;
            end = if straight { InputEnd::Open } else { self.more(loader).await? };
            if end == InputEnd::Quiet && self.walk.is_past_eof() {
                break;
            }
        }
        if let Some(data) = &self.data {
            data.check_closed()?;
        }
        self.last_states(loader).await?;
        let state = loader.finish()?;
        if self.hooks.active() {
            // The guest may only be started where nobody else writes (docs/wire/rdma.md §12).
            self.hooks.release().await?;
        }
        self.tell(loader);
        Ok(state)
    }

    fn tell(&self, loader: &mut Loader<'_>) {
        loader.tell_statistics();
        self.shared.statistics.received(self.reader.counters().bytes_received());
    }

    /// Lets the transport bring the pages of the window that was opened.
    async fn serve_window(&mut self, loader: &mut Loader<'_>, registered: &mut bool) -> Result<()> {
        // A receiver without RDMA ignores the record (docs/wire/ram.md §1).
        let Some(end) = loader.hook.take().filter(|_| self.hooks.active()) else { return Ok(()) };
        if !std::mem::replace(registered, true) {
            self.hooks.register(loader.hook_blocks()).await?;
        }
        let behind = bytes_behind(self.reader, end);
        self.hooks.serve(end, behind).await
    }

    /// Waits for the data channels, if main came to a mark; answers whether it did.
    async fn pass_mark(&mut self, loader: &mut Loader<'_>) -> Result<bool> {
        let Some(data) = &mut self.data else { return Ok(false) };
        let Some(stop) = data.take_due() else { return Ok(false) };
        data.tell_layout(loader.layout());
        // A page that came over main in this round may come over a data channel in the next.
        loader.flush()?;
        let mut passed = std::pin::pin!(data.pass(stop, self.reader));
        loop {
            tokio::select! {
                biased;
                outcome = &mut passed => return outcome.map(|()| true),
                state = next_state(&mut self.device_states) => loader.load_state(state)?,
            }
        }
    }

    /// Loads device state that still has to come.
    async fn last_states(&mut self, loader: &mut Loader<'_>) -> Result<()> {
        while let Some(Ok(state)) = self.device_states.as_mut().map(DeviceStates::try_recv) {
            loader.load_state(state)?;
        }
        while self.device_states.is_some() && loader.expects_state() {
            let hub = self.data.as_ref().map(|data| Arc::clone(data.hub()));
            let states = &mut self.device_states;
            let next = async {
                let ended = async {
                    match &hub {
                        Some(hub) => hub.all_ended_in_order().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    state = next_state(states) => Ok::<_, Error>(state),
                    () = ended => Err(Error::peer_misbehaved(
                        "all data channels have ended, and a device still waits for its state",
                    )),
                }
            };
            let state = match self.stream.idle() {
                Some(idle) => {
                    idle.attend("waiting for device state over the data channels", next).await
                }
                None => next.await,
            };
            loader.load_state(state?)?;
        }
        Ok(())
    }

    /// Waits for bytes, for the end, or for a silence that the decoder may make sense of: where no VMDESCRIPTION comes,
    /// nothing else tells that a device section was the last.
    async fn more(&mut self, loader: &mut Loader<'_>) -> Result<InputEnd> {
        loop {
            let came = tokio::select! {
                biased;
                state = next_state(&mut self.device_states) => Came::State(state),
                filled = tokio::time::timeout(QUIET, self.reader.fill()) => Came::Input(match filled {
                    Ok(Ok(0)) => InputEnd::Closed,
                    Ok(got) => got.map(|_| InputEnd::Open)?,
                    Err(_) => InputEnd::Quiet,
                }),
            };
            match came {
                Came::State(state) => loader.load_state(state)?,
                Came::Input(end) => return Ok(end),
            }
        }
    }
}

/// The next state that a data channel brings; never, where none can.
///
/// # Cancel safety
///
/// Cancel safe: nothing is lost.
async fn next_state(states: &mut Option<DeviceStates>) -> DeviceState {
    match states {
        Some(states) => match states.recv().await {
            Some(state) => state,
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}
