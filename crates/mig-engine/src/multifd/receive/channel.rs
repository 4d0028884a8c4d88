//! One data channel at the destination: header, payload, header, payload, to its end.

use std::{pin::pin, sync::Arc};

use mig_proto::multifd::{
    DEVICE_STATE_HEADER_LEN, DeviceStatePacket, HEADER_LEN, HeadKind, Hello, Method, MultifdError,
    RamPacket, head_kind,
};
use mig_ram::PAGE_SIZE;
use mig_stream::{Stream, StreamReader};
use mig_transport::Blame;

use super::{
    device_state::{DeviceStateSender, MAX_DEVICE_STATE},
    hub::Hub,
    landing::Landing,
    layout::Layout,
};
use crate::{
    error::{Error, Result},
    handle::Shared,
    turn::Turn,
};

/// See the module.
pub(super) struct DataChannel {
    pub(super) id: u8,
    /// Kept for its unused half: it would end one direction of the connection when it goes.
    pub(super) stream: Stream,
    pub(super) reader: StreamReader,
    pub(super) hub: Arc<Hub>,
    pub(super) shared: Arc<Shared>,
    pub(super) method: Method,
    /// `None` where nobody could load it.
    pub(super) device_states: Option<DeviceStateSender>,
}

/// What a channel has once it knows the memory.
struct Memory {
    layout: Arc<Layout>,
    landing: Landing,
    /// The block of the last packet; the next one's is the same, nearly always.
    hint: usize,
}

/// Offsets of a packet's pages, kept while its header's place in the buffer is used for other things.
#[derive(Default)]
struct Pages {
    normal: Vec<u64>,
    zero: Vec<u64>,
}

impl DataChannel {
    /// Serves the channel until it is dropped: the connection must stay until the source heard how the migration ended.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: pages are lost.
    pub(super) async fn serve(mut self) -> Result<()> {
        let hub = Arc::clone(&self.hub);
        let _told = TellOfPanic(&hub);
        let outcome = tokio::select! {
            biased;
            () = hub.stopped() => None,
            outcome = self.receive() => Some(outcome),
        };
        let said_nothing = self.reader.position() == Hello::LEN as u64;
        match outcome {
            Some(Ok(())) if said_nothing => {
                self.forget();
                return Ok(());
            }
            // Of a channel that main never spoke of, anything may come.
            Some(Err(error))
                if said_nothing && (error.blame() == Blame::Io || !hub.is_joined(self.id)) =>
            {
                tracing::debug!(%error, id = self.id, "a data channel's first packet");
                self.forget();
                return Ok(());
            }
            Some(Err(error)) => {
                let name = self.stream.endpoint().to_string();
                hub.fail(error.in_front(&format!("data channel {}", self.id)).on(name));
            }
            Some(Ok(())) | None => {}
        }
        std::future::pending().await
    }

    /// Whoever that was, it was no part of this migration: its number is free again.
    fn forget(&self) {
        tracing::warn!(id = self.id, "a data channel ended before its first packet");
        self.hub.set_here(self.id, false);
    }

    /// Takes packets to the end of the channel.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: pages are lost.
    async fn receive(&mut self) -> Result<()> {
        self.reader.rehome()?;
        let mut memory = None;
        let mut pages = Pages::default();
        // The hello was read before.
        let mut counted = 0;
        let mut turn = Turn::new();
        while let Some(kind) = self.next_head().await? {
            match kind {
                HeadKind::Ram => self.ram_packet(&mut memory, &mut pages, &mut counted).await?,
                HeadKind::DeviceState => self.device_state(&mut counted).await?,
            }
            // A MiB of packets with nothing but zero pages waits for nothing.
            turn.pause().await;
        }
        if self.reader.position() == Hello::LEN as u64 {
            return Ok(());
        }
        if let Some(memory) = &mut memory {
            memory.landing.flush()?;
        }
        self.count(&mut counted);
        self.hub.end(self.id)
    }

    fn count(&self, counted: &mut u64) {
        let position = self.reader.position();
        self.shared.statistics.multifd_bytes.add(position - *counted);
        *counted = position;
    }

    /// Waits for a whole header and tells which it is; nothing at the end of the channel.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what came stays in the reader.
    async fn next_head(&mut self) -> Result<Option<HeadKind>> {
        loop {
            let buffer = self.reader.buffer();
            let have = buffer.len();
            // Unless its beginning tells otherwise.
            let mut whole = HEADER_LEN;
            if let Some(common) = buffer.first_chunk() {
                let kind = head_kind(common).map_err(|e| self.bad(e))?;
                whole = kind.header_len();
                if have >= whole {
                    return Ok(Some(kind));
                }
            }
            let came = if self.method == Method::None {
                // What follows the header is read to its place.
                self.reader.fill_at_most(whole - have).await?
            } else {
                self.reader.fill().await?
            };
            match (came, have) {
                (0, 0) => return Ok(None),
                (0, _) => return Err(self.truncated("a packet's header", have, whole)),
                _ => {}
            }
        }
    }

    /// Pages, a SYNC, or both (docs/wire/ram.md §9.3, §9.4); `counted` bytes of the channel are in the statistics.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: pages are lost.
    async fn ram_packet(
        &mut self,
        memory: &mut Option<Memory>,
        pages: &mut Pages,
        counted: &mut u64,
    ) -> Result<()> {
        let position = self.reader.position();
        let header: &[u8; HEADER_LEN] =
            self.reader.buffer().first_chunk().expect("the whole header came");
        let packet = RamPacket::parse(header, self.method).map_err(|e| bad(position, e))?;
        let (is_sync, payload_len) = (packet.is_sync(), packet.payload_len());
        let mut place = None;
        if let Some(name) = packet.block() {
            let memory = match memory {
                Some(memory) => memory,
                None => {
                    let layout = self.hub.layout().await?;
                    self.hub.joined(self.id).await;
                    let landing = Landing::new(layout.placement.placer()?, self.method)?;
                    memory.insert(Memory { layout, landing, hint: 0 })
                }
            };
            let found = memory.layout.find(name.as_bytes(), memory.hint);
            let (hint, block) = found.ok_or_else(|| bad(position, packet.unknown_block()))?;
            packet.check_offsets(block.length).map_err(|e| bad(position, e))?;
            let local = block.local;
            memory.hint = hint;
            pages.normal.clear();
            pages.normal.extend(packet.normal());
            pages.zero.clear();
            pages.zero.extend(packet.zero());
            place = Some((memory, local, packet.packet_num()));
        }
        self.reader.consume(HEADER_LEN);
        if let Some((memory, block, number)) = place {
            self.hub.begin_pages(self.id).map_err(|error| error.at(position))?;
            let landing = &mut memory.landing;
            let landed = landing.land(&mut self.reader, block, &pages.normal, payload_len).await;
            let landed = landed.and_then(|()| landing.zero(block, &pages.zero));
            landed.map_err(|error| {
                error.in_front(&format!("packet {number} at byte {position:#x}")).at(position)
            })?;
            let statistics = &self.shared.statistics;
            statistics.normal.add(pages.normal.len() as u64);
            statistics.duplicate.add(pages.zero.len() as u64);
        }
        self.count(counted);
        if is_sync {
            if let Some(memory) = memory {
                memory.landing.flush()?;
            }
            self.synchronise().await?;
        }
        Ok(())
    }

    /// Delivers a SYNC and waits until all channels may go on. Meanwhile the channel is watched, so that its end is
    /// noticed.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the SYNC is delivered.
    async fn synchronise(&mut self) -> Result<()> {
        let hub = Arc::clone(&self.hub);
        let mut released = pin!(hub.synchronise(self.id));
        loop {
            let have = self.reader.buffer().len();
            let watch = have < HEADER_LEN && !self.reader.is_ended();
            tokio::select! {
                biased;
                () = &mut released => return Ok(()),
                came = self.reader.fill_at_most(HEADER_LEN.saturating_sub(have)), if watch => {
                    came?;
                }
            }
        }
    }

    /// A device's state (docs/wire/ram.md §9.7).
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: some of it is lost.
    async fn device_state(&mut self, counted: &mut u64) -> Result<()> {
        let position = self.reader.position();
        let header: &[u8; DEVICE_STATE_HEADER_LEN] =
            self.reader.buffer().first_chunk().expect("the whole header came");
        let packet =
            DeviceStatePacket::parse(header, MAX_DEVICE_STATE).map_err(|e| bad(position, e))?;
        let idstr = String::from_utf8_lossy(packet.idstr.as_bytes()).into_owned();
        let (instance_id, len) = (packet.instance_id, packet.payload_len);
        let Some(sender) = &self.device_states else {
            return Err(Error::peer_incompatible(format!(
                "state of device '{idstr}' came over a data channel, which has no place in a stream that is stored or \
                 verified without a guest: switch that off at the source (for vfio, x-migration-multifd-transfer=off)"
            ))
            .at(position));
        };
        if self.method != Method::None {
            return Err(Error::peer_misbehaved(format!(
                "state of device '{idstr}' over channels that compress, which no source may do"
            ))
            .at(position));
        }
        if !self.hub.switchover(self.id).await {
            return Err(Error::peer_misbehaved(format!(
                "state of device '{idstr}' came before SWITCHOVER_START"
            ))
            .at(position));
        }
        let room = sender.room_for(len).await?;
        self.reader.consume(DEVICE_STATE_HEADER_LEN);
        // The length is within its limit, and there is room for it.
        let mut bytes = vec![0; len as usize];
        let mut filled = 0;
        while filled < bytes.len() {
            let ready = self.reader.buffer().len().min(bytes.len() - filled);
            if ready > 0 {
                bytes[filled..filled + ready].copy_from_slice(&self.reader.buffer()[..ready]);
                self.reader.consume(ready);
                filled += ready;
            } else if self.reader.fill_at_most(bytes.len() - filled).await? == 0 {
                return Err(Error::peer_misbehaved(format!(
                    "it ended inside the state of device '{idstr}': {} of {len} bytes are missing",
                    bytes.len() - filled
                ))
                .at(self.reader.position()));
            }
        }
        self.count(counted);
        sender.send(room, idstr, instance_id, bytes).await
    }

    fn bad(&self, error: MultifdError) -> Error {
        bad(self.reader.position(), error)
    }

    fn truncated(&self, what: &str, have: usize, of: usize) -> Error {
        Error::peer_misbehaved(format!("it ended inside {what}: {have} of {of} bytes came"))
            .at(self.reader.position())
    }
}

/// A packet at `position` that breaks a rule.
fn bad(position: u64, error: MultifdError) -> Error {
    let at = position + u64::from(error.at);
    let text = format!("byte {at} ({at:#x}), in {}: {}", error.message, error.kind);
    let blamed = match error.blame() {
        mig_proto::Fault::PeerMisbehaved => Error::peer_misbehaved(text),
        _ => Error::peer_incompatible(text),
    };
    blamed.at(at)
}

/// A thread that breaks down must not leave the others waiting.
struct TellOfPanic<'a>(&'a Hub);

impl Drop for TellOfPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Error::misuse("the thread of a data channel broke down"));
        }
    }
}

const _: () = assert!(PAGE_SIZE == mig_proto::multifd::PAGE_LEN);
