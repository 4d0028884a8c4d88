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
//! line, and nothing else happens: it may be a stranger's. One hello ends the migration, that of a channel beyond the
//! expected ones: the source has more, and would lose the pages it sends there.
//!
//! When main has read the last section of `ram`, memory is closed: no channel writes there any more, whatever comes.

mod beside;
mod channel;
mod device_state;
mod hub;
mod landing;
mod layout;
mod marks;

use std::{sync::Arc, time::Duration};

use mig_proto::multifd::{Hello, Method};
use mig_ram::{Copying, PlacementOptions};
use mig_stream::{Stream, StreamReader};

pub(crate) use self::{
    beside::Beside,
    device_state::{DeviceState, DeviceStates},
    hub::Hub,
    layout::{Layout, LayoutBlock},
};
use self::{
    channel::DataChannel,
    device_state::{DeviceStateSender, device_states},
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
    method: Method,
    device_states: Option<DeviceStateSender>,
    /// Those that came before main.
    waiting: Vec<(u8, Stream, StreamReader)>,
    started: bool,
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
            method,
            device_states: None,
            waiting: Vec::new(),
            started: false,
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
        let name = stream.endpoint().to_string();
        if !self.uuid_is_told && self.hub.arrived() == 0 {
            // Whoever named another was no part of this migration.
            self.uuid = None;
        }
        let expected = self.uuid.unwrap_or(hello.uuid);
        if hello.uuid != expected {
            tracing::warn!(
                channel = name,
                "a data channel of another guest was dropped: its UUID is {:032x}, not {:032x}",
                u128::from_be_bytes(hello.uuid),
                u128::from_be_bytes(expected)
            );
            return Ok(());
        }
        let channels = self.hub.expected();
        if !self.hub.takes_any_number() && usize::from(hello.id) >= channels {
            tracing::warn!(
                channel = name,
                id = hello.id,
                "a data channel beyond the expected was dropped"
            );
            self.surplus.get_or_insert_with(|| {
                Error::peer_incompatible(format!(
                    "the source opened data channel {}, and {channels} are expected here, numbered from 0: what it sends \
                     there would be lost; set multifd-channels the same at both ends",
                    hello.id
                ))
                .on(name)
            });
            return Ok(());
        }
        if self.hub.is_here(hello.id)
            && !self.forget_if_gone(hello.id).await
            && !(self.started && !self.hub.is_closed() && self.hub.becomes_vacant(hello.id).await)
        {
            tracing::warn!(
                channel = name,
                id = hello.id,
                "a second data channel of this number was dropped"
            );
            return Ok(());
        }
        self.uuid = Some(expected);
        self.hub.set_here(hello.id, true);
        tracing::debug!(channel = name, id = hello.id, "a data channel");
        if self.started {
            return self.start_one(hello.id, stream, reader);
        }
        self.waiting.push((hello.id, stream, reader));
        Ok(())
    }

    /// Whether a channel beyond the expected ones came.
    pub(crate) fn has_surplus(&self) -> bool {
        self.surplus.is_some()
    }

    /// Waits until nothing came anywhere for `limit` while pages are missing: then that channel was the source's.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; the wait begins anew.
    pub(crate) async fn stalled_by_surplus(&mut self, limit: Duration) -> Error {
        loop {
            let statistics = &self.shared.statistics;
            // Main counts what it read when it comes to it, the lanes at once.
            let came = || statistics.transferred.value() + statistics.multifd_bytes.value();
            let before = came();
            tokio::time::sleep(limit).await;
            let moved = came() != before;
            if !moved
                && self.hub.lacks_pages()
                && let Some(surplus) = self.surplus.take()
            {
                return surplus;
            }
        }
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
            Some(surplus)
                if error.blame() != mig_transport::Blame::Cancelled && self.hub.lacks_pages() =>
            {
                surplus.caused_by(error)
            }
            _ => error,
        }
    }

    /// Main has come: the channels are served from now on.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: channels may be dropped.
    pub(crate) async fn start(&mut self) -> Result<()> {
        // Of a source that gave up before its main channel came.
        for id in self.waiting.iter().map(|(id, ..)| *id).collect::<Vec<_>>() {
            self.forget_if_gone(id).await;
        }
        self.started = true;
        for (id, stream, reader) in std::mem::take(&mut self.waiting) {
            self.start_one(id, stream, reader)?;
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

    /// Drops a channel that waits for main and has ended meanwhile; answers whether it did.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what came stays in its reader.
    async fn forget_if_gone(&mut self, id: u8) -> bool {
        let Some(at) = self.waiting.iter().position(|(waiting, ..)| *waiting == id) else {
            return false;
        };
        let (.., reader) = &mut self.waiting[at];
        // A source may have sent everything and left before we look. No longer than one look.
        let gone = reader.buffer().is_empty()
            && match tokio::time::timeout(Duration::ZERO, reader.fill()).await {
                Ok(Ok(came)) => came == 0,
                Ok(Err(_)) => true,
                Err(_nothing) => false,
            };
        if gone {
            tracing::warn!(id, "a data channel ended before its main channel came");
            self.waiting.remove(at);
            self.hub.set_here(id, false);
        }
        gone
    }
}

impl Drop for DataChannels {
    fn drop(&mut self) {
        // Each lane is waited for, and looks here between two packets.
        self.hub.stop();
    }
}
