//! What each piece of the stream means to a destination with a guest.

use std::sync::Arc;

use mig_proto::{
    BlockEntry, BlockId, Command, Event, SectionHeader, SectionKind,
    globalstate::{GlobalState, RunState},
};
use mig_ram::{GuestMemory, PAGE_SIZE, Placement, PlacementOptions, Placer};
use mig_transport::RamBlockInfo;

use super::encoded::EncodedPages;
use crate::{
    answers::Ask,
    error::{Error, Result},
    guest::{DeviceSection, Guest},
    multifd::receive::{DeviceState, Hub, Layout, LayoutBlock},
    statistics::Statistics,
    walk::Piece,
};

/// Lands pages and loads devices.
pub(super) struct Loader<'a> {
    memory: &'a dyn GuestMemory,
    guest: &'a mut dyn Guest,
    placing: PlacementOptions,
    placed: Option<(Arc<Placement>, Placer)>,
    /// Where data channels are told of memory.
    data: Option<Arc<Hub>>,
    layout: Option<Arc<Layout>>,
    statistics: &'a Statistics,
    /// The local index of each block of the stream.
    blocks: Vec<usize>,
    page: PageInFlight,
    encoded: EncodedPages,
    /// Pages and zero pages since the statistics were last told: an atomic addition a page would cost as much as
    /// decoding it.
    counted: (u64, u64),
    /// Pages that came one after the other, with no other record between them.
    row: u64,
    device: Option<DeviceSection>,
    state: Option<RunState>,
    /// What the source wants to hear.
    pub(super) asked: Vec<Ask>,
    /// Where the first HOOK record ends that came since this was taken: a window of the transport is to be served there.
    pub(super) hook: Option<u64>,
    /// MULTIFD_FLUSH came.
    flushed: bool,
}

/// A page whose bytes did not all come at once.
struct PageInFlight {
    block: usize,
    offset: u64,
    filled: usize,
    bytes: Box<[u8; PAGE_SIZE]>,
}

impl<'a> Loader<'a> {
    pub(super) fn new(
        memory: &'a dyn GuestMemory,
        guest: &'a mut dyn Guest,
        placing: PlacementOptions,
        statistics: &'a Statistics,
    ) -> Self {
        let page = PageInFlight { block: 0, offset: 0, filled: 0, bytes: Box::new([0; PAGE_SIZE]) };
        Self {
            memory,
            guest,
            placing,
            placed: None,
            data: None,
            layout: None,
            statistics,
            blocks: Vec::new(),
            page,
            encoded: EncodedPages::new(),
            counted: (0, 0),
            row: 0,
            device: None,
            state: None,
            asked: Vec::new(),
            hook: None,
            flushed: false,
        }
    }

    /// Pages come over data channels too.
    pub(super) fn with_data_channels(mut self, hub: &Arc<Hub>) -> Self {
        self.data = Some(Arc::clone(hub));
        self
    }

    /// The block list, as data channels need it, once it came.
    pub(super) fn layout(&self) -> Option<&Arc<Layout>> {
        self.layout.as_ref()
    }

    /// What came over the main channel is in memory when this returns.
    pub(super) fn flush(&mut self) -> Result<()> {
        match &mut self.placed {
            Some((_, placer)) => Ok(placer.flush()?),
            None => Ok(()),
        }
    }

    /// A part of a device's state came over a data channel.
    pub(super) fn load_state(&mut self, state: DeviceState) -> Result<()> {
        let DeviceState { idstr, instance_id, bytes, .. } = state;
        self.guest.load_device_state(&idstr, instance_id, bytes).map_err(|refused| {
            Error::peer_incompatible(format!(
                "the state of device {idstr} (instance {instance_id}) that came over a data channel could not be loaded"
            ))
            .caused_by(refused)
        })
    }

    /// Whether the guest waits for more of that, with nothing else to come.
    pub(super) fn expects_state(&self) -> bool {
        let expects = self.guest.expects_device_state();
        if let Some(data) = self.data.as_ref().filter(|_| expects) {
            data.wants_state();
        }
        expects
    }

    /// Acts on one piece of the stream.
    #[inline]
    pub(super) fn visit(&mut self, piece: &Piece<'_>) -> Result<()> {
        match piece.event {
            Some(Event::Page(page)) => {
                self.page.block = self.local(page.block)?;
                self.page.offset = page.offset;
                self.page.filled = 0;
                Ok(())
            }
            Some(Event::Payload(bytes)) => self.land(bytes),
            Some(Event::Zero(page)) => {
                let block = self.local(page.block)?;
                self.counted.1 += 1;
                self.row = 0;
                Ok(self.placer()?.place_zero(block, page.offset)?)
            }
            Some(event) => {
                self.row = 0;
                self.visit_other(event, piece.position)
            }
            None => {
                // The beginning of another record.
                self.row = 0;
                Ok(())
            }
        }
    }

    /// How many pages came one after the other, with no other record between them.
    pub(super) fn row(&self) -> u64 {
        self.row
    }

    /// Whether it looks as if pages went elsewhere: a mark for data channels came, or no page at all.
    pub(super) fn lacks_pages(&self) -> bool {
        self.flushed || self.statistics.normal.value() + self.counted.0 == 0
    }

    /// Counts pages in a row anew.
    pub(super) fn end_row(&mut self) {
        self.row = 0;
    }

    /// Memory to receive pages in; see [`Placer::lend`].
    pub(super) fn lend(&mut self) -> Option<&mut [u8]> {
        self.placed.as_mut().and_then(|(_, placer)| placer.lend())
    }

    /// The page that was announced last is the first one in what was lent; see [`Placer::take_lent`].
    pub(super) fn take_lent(&mut self) -> Result<bool> {
        let PageInFlight { block, offset, .. } = self.page;
        let taken = self.placer()?.take_lent(block, offset)?;
        self.count_page(taken);
        Ok(taken)
    }

    fn count_page(&mut self, landed: bool) {
        self.counted.0 += u64::from(landed);
        self.row += u64::from(landed);
    }

    fn visit_other(&mut self, event: Event<'_>, position: u64) -> Result<()> {
        match event {
            Event::BlockList { entries, .. } => {
                self.know_blocks(entries).map_err(|error| error.at(position))?;
            }
            Event::Section(header) if header.kind == SectionKind::Full => self.begin(&header),
            Event::SectionData(payload) => {
                self.load(payload).map_err(|error| error.at(position))?
            }
            Event::Command(command) => self.obey(&command).map_err(|error| error.at(position))?,
            Event::MultifdFlush(_) => self.flushed = true,
            Event::Hook(word) => {
                self.hook.get_or_insert(position + word.to_be_bytes().len() as u64);
            }
            Event::Xbzrle { page, delta } => {
                let block = self.local(page.block)?;
                let Some((_, placer)) = &mut self.placed else { return Err(no_list()) };
                self.encoded.apply(placer, block, &page, delta, position)?;
            }
            Event::CompressedPage { page, data } => {
                let block = self.local(page.block)?;
                let Some((_, placer)) = &mut self.placed else { return Err(no_list()) };
                self.encoded.inflate(placer, block, &page, data, position)?;
                self.counted.0 += 1;
            }
            // Headers, footers and ends are checked by the decoder; MULTIFD_FLUSH means nothing on a single stream
            // (docs/wire/ram.md §1), and VMDESCRIPTION is informative.
            _ => {}
        }
        Ok(())
    }

    /// The rest of the page goes to its place; nearly always it is all there.
    #[inline]
    fn land(&mut self, bytes: &[u8]) -> Result<()> {
        let Some((_, placer)) = &mut self.placed else { return Err(no_list()) };
        let page = &mut self.page;
        if page.filled == 0 && bytes.len() == PAGE_SIZE {
            placer.place_page(page.block, page.offset, bytes)?;
        } else {
            // The decoder gives no more than the page's bytes.
            page.bytes[page.filled..page.filled + bytes.len()].copy_from_slice(bytes);
            page.filled += bytes.len();
            if page.filled < PAGE_SIZE {
                return Ok(());
            }
            placer.place_page(page.block, page.offset, &page.bytes[..])?;
        }
        self.count_page(true);
        Ok(())
    }

    #[inline]
    fn placer(&mut self) -> Result<&mut Placer> {
        self.placed.as_mut().map(|(_, placer)| placer).ok_or_else(no_list)
    }

    #[inline]
    fn local(&self, block: BlockId) -> Result<usize> {
        self.blocks.get(block.index()).copied().ok_or_else(no_list)
    }

    /// The block list: every block must be here, with its length or one it can take (docs/wire/ram.md §2).
    fn know_blocks(&mut self, entries: &[BlockEntry]) -> Result<()> {
        let mut blocks = Vec::with_capacity(entries.len());
        for entry in entries {
            let name = entry.name();
            let Some(local) = self.memory.find(name.as_bytes()) else {
                return Err(Error::peer_incompatible(format!(
                    "the source has a RAM block '{}' and this machine has none: configure both alike",
                    name.as_bytes().escape_ascii()
                )));
            };
            self.memory.resize(local, entry.used_length)?;
            let index = entry.id().index();
            if index >= self.blocks.len() {
                self.blocks.resize(index + 1, usize::MAX);
            }
            self.blocks[index] = local;
            blocks.push(LayoutBlock {
                name: name.as_bytes().into(),
                local,
                length: entry.used_length,
            });
        }
        self.statistics.total.set(self.memory.total_bytes());
        if self.placed.is_none() {
            let placement = Placement::new(self.memory, self.placing)?;
            let placer = placement.placer()?;
            self.layout = Some(Arc::new(Layout { placement: Arc::clone(&placement), blocks }));
            self.placed = Some((placement, placer));
        }
        Ok(())
    }

    /// Brings the statistics up to date.
    pub(super) fn tell_statistics(&mut self) {
        let (normal, zero) = std::mem::take(&mut self.counted);
        self.statistics.normal.add(normal);
        self.statistics.duplicate.add(zero);
    }

    /// The blocks as a transport's hooks want them, in the source's order.
    pub(super) fn hook_blocks(&self) -> Vec<RamBlockInfo> {
        let known = self.blocks.iter().filter_map(|local| self.memory.block(*local));
        known
            .map(|block| RamBlockInfo {
                idstr: block.name(),
                used_length: block.used_length,
                region: block.region,
            })
            .collect()
    }

    fn begin(&mut self, header: &SectionHeader<'_>) {
        self.device = Some(DeviceSection {
            idstr: String::from_utf8_lossy(header.idstr.as_bytes()).into_owned(),
            instance_id: header.instance_id,
            version_id: header.version_id,
            payload: Vec::new(),
        });
    }

    fn load(&mut self, payload: &[u8]) -> Result<()> {
        let Some(mut device) = self.device.take() else { return Ok(()) };
        if device.idstr == "globalstate" {
            let state = GlobalState::decode(payload)
                .map_err(|error| Error::peer_misbehaved(error.to_string()))?;
            self.state = Some(state.run_state);
            return Ok(());
        }
        if self.data.as_ref().is_some_and(|data| !data.is_closed()) {
            return Err(Error::peer_incompatible(format!(
                "device {} comes before the last section of ram, while data channels bring pages: its state cannot be \
                 loaded beside them",
                device.idstr
            )));
        }
        // Devices may look at guest memory while they load, also at pages that never came.
        self.memory_is_whole()?;
        device.payload = payload.to_vec();
        self.guest.load_device(&device).map_err(|refused| {
            Error::peer_incompatible(format!(
                "device {} (instance {}, version {}) could not be loaded",
                device.idstr, device.instance_id, device.version_id
            ))
            .caused_by(refused)
        })
    }

    fn obey(&mut self, command: &Command<'_>) -> Result<()> {
        match command {
            Command::OpenReturnPath => self.asked.push(Ask::OpenReturnPath),
            Command::Ping(value) => self.asked.push(Ask::Pong(*value)),
            // Dirty bitmaps alone, or postcopy that never starts: the stream then ends as precopy
            // (docs/wire/stream.md §8.4). Its sections are refused where they come.
            Command::PostcopyAdvise(_) | Command::SwitchoverStart | Command::PostcopyResume => {}
            other => {
                return Err(Error::peer_incompatible(format!(
                    "the source sent {}: postcopy is not supported by this destination; turn postcopy-ram off at the \
                     source",
                    other.name()
                )));
            }
        }
        Ok(())
    }

    /// Everything that came so far is in place, and all of memory may be touched.
    fn memory_is_whole(&mut self) -> Result<()> {
        if let Some((placement, placer)) = &mut self.placed {
            placer.flush()?;
            placement.finish()?;
        }
        Ok(())
    }

    /// How pages are being placed, and what that cost.
    pub(super) fn placement(&self) -> Option<&Arc<Placement>> {
        self.placed.as_ref().map(|(placement, _)| placement)
    }

    /// Everything is in place; answers the state the guest was in.
    pub(super) fn finish(&mut self) -> Result<RunState> {
        self.memory_is_whole()?;
        // A stream without the section comes from a running guest (docs/wire/stream.md §10).
        Ok(self.state.unwrap_or(RunState::Running))
    }
}

fn no_list() -> Error {
    Error::peer_misbehaved("a page of a block that no list named")
}
