//! The data channels of a destination.
//!
//! ```text
//!   Acceptor ── hello ──▶ DataChannels ── a Lane each ──▶ DataChannel ── Landing ──▶ guest memory
//!                              │                               │
//!                              └──────────── Hub ◀─────────────┘ SYNC, end, failure
//!                                             ▲
//!                     main channel ── Marks ──┘ block list, marks, end of ram
//! ```
//!
//! Channels come in any order, before main, after it, and while it is being read; whatever needs one that has not come
//! waits for it under the migration's deadline on silence. A connection whose hello is no good is dropped, with a log
//! line, and nothing else happens: it may be a stranger's. So is one that is not of whom main is of, by its [`Origin`]:
//! whoever guesses the number of a channel takes nobody's place. Until main is here each has a place of its own, and then only its source's are kept. One hello ends the migration, that of a channel beyond the
//! expected ones: the source has more, and would lose the pages it sends there.
//!
//! When main has read the last section of `ram`, memory is closed: no channel writes there any more, whatever comes.

mod beside;
mod channel;
mod device_state;
mod early;
mod hub;
mod landing;
mod layout;
mod marks;
mod origin;

use std::{sync::Arc, time::Duration};

use mig_proto::multifd::{Hello, Method};
use mig_ram::{Copying, PlacementOptions};
use mig_stream::{Stream, StreamReader};
use mig_transport::{Blame, LogLimit};
use tokio::time::Instant;

pub(crate) use self::{
    beside::Beside,
    device_state::{DeviceState, DeviceStates},
    hub::Hub,
    layout::{Layout, LayoutBlock},
    origin::Origin,
};
use self::{
    channel::DataChannel,
    device_state::{DeviceStateSender, device_states},
    early::{Early, MOST_EARLY, Waiting},
};
use super::lane::{Lane, processors};
use crate::{
    error::{Error, Result},
    handle::Shared,
    parameters::{MultifdCompression, MultifdOptions},
};

/// See the module. Dropped, it closes all channels and ends their threads.
pub(crate) struct DataChannels {
    hub: Arc<Hub>,
    shared: Arc<Shared>,
    uuid: Option<[u8; 16]>,
    /// What the first channel says counts, for nobody told us.
    uuid_is_told: bool,
    /// About a channel beyond the expected ones.
    surplus: Option<Error>,
    /// Since when nothing came, and how much had come by then, while somebody waits for that to end.
    quiet: Option<(Instant, u64)>,
    method: Method,
    device_states: Option<DeviceStateSender>,
    /// Those that came before main.
    waiting: Waiting,
    /// Whose main is; `None` before it came.
    main: Option<Origin>,
    /// About a channel of somebody else.
    foreign: Option<String>,
    log: LogLimit,
    lanes: Vec<Lane<()>>,
}

impl DataChannels {
    /// Expects the channels of the guest `uuid`; without one, of that which the first channel names.
    pub(crate) fn new(
        options: &MultifdOptions,
        uuid: Option<[u8; 16]>,
        shared: &Arc<Shared>,
    ) -> Result<Self> {
        let hub = match options.channels {
            Some(0) => {
                return Err(Error::misuse(
                    "multifd needs 1 to 255 data channels (multifd-channels)",
                ));
            }
            Some(channels) => Hub::new(channels),
            None => Hub::any_number(),
        };
        let method = match options.compression {
            MultifdCompression::None => Method::None,
            MultifdCompression::Zlib => Method::Zlib,
            MultifdCompression::Zstd => Method::Zstd,
        };
        Ok(Self {
            hub: Arc::new(hub),
            shared: Arc::clone(shared),
            uuid,
            uuid_is_told: uuid.is_some(),
            surplus: None,
            quiet: None,
            method,
            device_states: None,
            waiting: Waiting::default(),
            main: None,
            foreign: None,
            log: LogLimit::default(),
            lanes: Vec::new(),
        })
    }

    /// Takes device state too, and hands it out here.
    pub(crate) fn accept_device_states(&mut self) -> DeviceStates {
        let (sender, states) = device_states();
        self.device_states = Some(sender);
        states
    }

    /// Where the channels meet.
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// `placing`, as it is right for so many channels: with a thread each, they need no others for copying.
    pub(crate) fn placing(&self, placing: PlacementOptions) -> PlacementOptions {
        let processors = processors();
        if placing.copying == Copying::Auto
            && (self.hub.takes_any_number() || self.hub.expected() >= processors)
        {
            return PlacementOptions { copying: Copying::Inline, ..placing };
        }
        placing
    }

    /// Takes a channel in, or drops it with a log line.
    ///
    /// # Errors
    ///
    /// No thread could be started.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the channel may be dropped.
    pub(crate) async fn admit(
        &mut self,
        hello: Hello,
        stream: Stream,
        reader: StreamReader,
    ) -> Result<()> {
        match self.main {
            None => {
                self.wait_for_main(Early { hello, stream, reader }).await;
                Ok(())
            }
            Some(_) => self.join(Early { hello, stream, reader }).await,
        }
    }

    /// Whether the hello is of another guest than ours.
    fn is_another_guests(&mut self, hello: &Hello, stream: &Stream) -> bool {
        let Some(uuid) = self.uuid.filter(|uuid| *uuid != hello.uuid) else {
            return false;
        };
        if let Some(unsaid) = self.log.say() {
            tracing::warn!(
                channel = %stream.endpoint(),
                unsaid,
                "a data channel of another guest was dropped: its UUID is {:032x}, not {:032x}",
                u128::from_be_bytes(hello.uuid),
                u128::from_be_bytes(uuid)
            );
        }
        true
    }

    /// What is to be known about a channel beyond the expected ones, if this is one.
    fn beyond_the_expected(&mut self, hello: &Hello, stream: &Stream) -> Option<Error> {
        let channels = self.hub.expected();
        if self.hub.takes_any_number() || usize::from(hello.id) < channels {
            return None;
        }
        let name = stream.endpoint().to_string();
        if let Some(unsaid) = self.log.say() {
            tracing::warn!(
                channel = name,
                id = hello.id,
                unsaid,
                "a data channel beyond the expected was dropped"
            );
        }
        let surplus = Error::peer_incompatible(format!(
            "the source opened data channel {}, and {channels} are expected here, numbered from 0: what it sends there \
             would be lost; set multifd-channels the same at both ends",
            hello.id
        ));
        Some(surplus.on(name))
    }

    /// Keeps a channel until it is known where main comes from. Only of one and the same end there is but one of a number.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the channel may be dropped.
    async fn wait_for_main(&mut self, early: Early) {
        let (hello, from) = (early.hello, Origin::of(&early.stream));
        // Before main only what we were told is known.
        if self.is_another_guests(&hello, &early.stream) {
            return;
        }
        if let Some(surplus) = self.beyond_the_expected(&hello, &early.stream) {
            self.waiting.remember_surplus(from, hello.uuid, surplus);
            return;
        }
        self.forget_the_gone().await;
        if let Some(why) = self.waiting.refuses(&hello, &from) {
            if let Some(unsaid) = self.log.say() {
                let channel = early.stream.endpoint();
                tracing::warn!(%channel, id = hello.id, unsaid, "a data channel {why} was dropped");
            }
            return;
        }
        while self.waiting.len() >= self.hub.expected() + MOST_EARLY
            && let Some(dropped) = self.waiting.make_room()
        {
            self.is_gone(dropped.hello.id);
            if let Some(unsaid) = self.log.say() {
                let channel = dropped.stream.endpoint();
                tracing::warn!(
                    %channel,
                    id = dropped.hello.id,
                    unsaid,
                    "many data channels and no main channel: the oldest from where most of them are was dropped"
                );
            }
        }
        tracing::debug!(channel = %early.stream.endpoint(), id = hello.id, "a data channel before main");
        self.hub.set_here(hello.id, true);
        self.waiting.push(early);
    }

    /// Takes a channel in, now that main is here.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the channel may be dropped.
    async fn join(&mut self, early: Early) -> Result<()> {
        let Early { hello, stream, mut reader } = early;
        let name = stream.endpoint().to_string();
        if let Some(why) = self.main.as_ref().and_then(|main| main.refuses(&stream)) {
            if let Some(unsaid) = self.log.say() {
                tracing::warn!(channel = name, unsaid, "a data channel was dropped: {why}");
            }
            self.foreign.get_or_insert_with(|| format!("data channel {name} was dropped: {why}"));
            return Ok(());
        }
        if !self.uuid_is_told && self.hub.arrived() == 0 {
            // Whoever named another was no part of this migration.
            self.uuid = None;
        }
        if self.is_another_guests(&hello, &stream) {
            return Ok(());
        }
        if let Some(surplus) = self.beyond_the_expected(&hello, &stream) {
            self.surplus.get_or_insert(surplus);
            return Ok(());
        }
        if self.hub.is_here(hello.id)
            && (self.hub.is_closed() || !self.hub.becomes_vacant(hello.id).await)
        {
            if let Some(unsaid) = self.log.say() {
                tracing::warn!(
                    channel = name,
                    id = hello.id,
                    unsaid,
                    "a second data channel of this number was dropped"
                );
            }
            return Ok(());
        }
        self.uuid = Some(hello.uuid);
        self.hub.set_here(hello.id, true);
        tracing::debug!(channel = name, id = hello.id, "a data channel");
        // Only now: whoever is not let in costs no more than its hello.
        reader.grow(StreamReader::BUFFER_BYTES);
        self.start_one(hello.id, stream, reader)
    }

    /// Whether a channel beyond the expected ones came.
    pub(crate) fn has_surplus(&self) -> bool {
        self.surplus.is_some()
    }

    /// Waits until nothing came anywhere for `limit` while pages are missing: then that channel was the source's.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: called again, it goes on where it was, so that nobody who connects meanwhile makes it any longer.
    pub(crate) async fn stalled_by_surplus(&mut self, limit: Duration) -> Error {
        loop {
            let came = self.came();
            let (since, before) = *self.quiet.get_or_insert_with(|| (Instant::now(), came));
            if before == came {
                tokio::time::sleep_until(since + limit).await;
                if self.came() == before
                    && self.hub.lacks_pages()
                    && let Some(surplus) = self.surplus.take()
                {
                    return surplus;
                }
            }
            self.quiet = None;
        }
    }

    /// Main counts what it read when it comes to it, the lanes at once.
    fn came(&self) -> u64 {
        let statistics = &self.shared.statistics;
        statistics.transferred.value() + statistics.multifd_bytes.value()
    }

    /// The stream is over. A channel beyond the expected ones matters if pages are missing: anybody can say a hello.
    pub(crate) fn none_is_too_many(&mut self) -> Result<()> {
        match self.surplus.take() {
            Some(surplus) if self.hub.lacks_pages() => Err(surplus),
            _ => Ok(()),
        }
    }

    /// The migration failed: if pages are missing and the source had more channels, that is the reason, for it has been hung
    /// up on there.
    pub(crate) fn explain(&mut self, error: Error) -> Error {
        match self.surplus.take() {
            Some(surplus) if error.blame() != Blame::Cancelled && self.hub.lacks_pages() => {
                surplus.caused_by(error)
            }
            _ if error.blame() == Blame::PeerIncompatible
                || (error.blame() != Blame::Cancelled && self.hub.misses_any()) =>
            {
                match self.foreign.take() {
                    Some(dropped) => error.noting(dropped),
                    None => error,
                }
            }
            _ => error,
        }
    }

    /// Main has come, and is of this origin: the channels are served from now on.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: channels may be dropped.
    pub(crate) async fn start(&mut self, main: Origin) -> Result<()> {
        // Of a source that gave up before its main channel came.
        self.forget_the_gone().await;
        self.main = Some(main.clone());
        let early = self.waiting.take();
        for one in &early {
            self.hub.set_here(one.hello.id, false);
        }
        for one in early {
            self.join(one).await?;
        }
        if let Some(surplus) = self.waiting.take_surplus(&main, self.uuid) {
            self.surplus.get_or_insert(surplus);
        }
        Ok(())
    }

    fn start_one(&mut self, id: u8, stream: Stream, reader: StreamReader) -> Result<()> {
        let channel = DataChannel {
            id,
            stream,
            reader,
            hub: Arc::clone(&self.hub),
            shared: Arc::clone(&self.shared),
            method: self.method,
            device_states: self.device_states.clone(),
        };
        // Strangers that came and went leave no threads behind.
        self.lanes.retain(|lane| !lane.is_over());
        let name = format!("mig-receive-{id}");
        self.lanes.push(Lane::spawn(name, &self.shared, move || channel.serve())?);
        Ok(())
    }

    /// Drops channels that wait for main and have ended meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what came stays in its reader.
    async fn forget_the_gone(&mut self) {
        for id in self.waiting.forget_the_gone().await {
            if let Some(unsaid) = self.log.say() {
                tracing::warn!(id, unsaid, "a data channel ended before its main channel came");
            }
            self.is_gone(id);
        }
    }

    /// One of those that wait for main is not there any more; another one may have its number.
    fn is_gone(&self, id: u8) {
        if !self.waiting.has(id) {
            self.hub.set_here(id, false);
        }
    }
}

impl Drop for DataChannels {
    fn drop(&mut self) {
        // Each lane is waited for, and looks here between two packets.
        self.hub.stop();
    }
}
