//! The library's own live ends with a guest that real QEMU understands: memory and devices of a captured stream.
//!
//! ```text
//!   stream of QEMU ──▶ Captured { machine, blocks with their pages, device sections }
//!        send_with_xbzrle: Source, memory written by a script between rounds ──▶ QEMU
//!        receive:          Destination with blocks of the same names ◀── QEMU's stream
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mig::engine::{
    Capabilities, Deadlines, Destination, DeviceSection, Error, Guest, GuestError, InputEnd,
    MigrationInfo, Outcome, Parameters, Source, StreamWalk,
};
use mig::ram::{
    BlockInfo, BlockOptions, DirtyBitmap, DirtyLogInfo, GuestMemory, RamBlock, RamBlocks,
};
use mig::transport::{MigrationAddress, RegionSlice};
use mig::{ConnectOptions, ListenOptions};
use mig_proto::globalstate::RunState;
use mig_proto::{Event, Options, SectionKind};
use mig_tests::paused::incompressible;

const PAGE: usize = 4096;

/// Rounds in which the live source's guest writes.
const ROUNDS: u64 = 12;

/// Where in `pc.ram` it writes: above what firmware has, 4 MiB on.
const WRITTEN: std::ops::Range<usize> = 1024..1152;

/// The guest in a stream.
#[derive(Debug)]
pub(crate) struct Captured {
    machine: String,
    /// In the order of the block list; each with its contents, as they were last stored in full.
    blocks: Vec<(String, Vec<u8>)>,
    devices: Vec<DeviceSection>,
}

impl Captured {
    /// Takes a complete stream apart. Deltas and compressed pages are passed over.
    #[must_use]
    #[track_caller]
    pub(crate) fn of(what: &str, stream: &[u8]) -> Self {
        let mut captured = Self { machine: String::new(), blocks: Vec::new(), devices: Vec::new() };
        let mut places = BTreeMap::new();
        let mut landing = None;
        let mut device = None;
        let mut walk = StreamWalk::new(Options::default());
        let walked = walk.walk::<mig_proto::DecodeError>(stream, InputEnd::Closed, |piece| {
            let Some(event) = &piece.event else { return Ok(()) };
            match event {
                Event::Configuration(configuration) => {
                    captured.machine =
                        String::from_utf8_lossy(configuration.machine()).into_owned();
                }
                Event::BlockList { entries, .. } => {
                    for entry in *entries {
                        places.insert(entry.id(), captured.blocks.len());
                        let len = usize::try_from(entry.used_length).expect("a few MiB");
                        captured.blocks.push((entry.name().to_string(), vec![0; len]));
                    }
                }
                Event::Page(page) => {
                    let at = usize::try_from(page.offset).expect("a few MiB");
                    landing = Some((places[&page.block], at));
                }
                Event::Payload(bytes) => {
                    let (block, at) = landing.expect("a payload comes behind its page");
                    captured.blocks[block].1[at..at + bytes.len()].copy_from_slice(bytes);
                    landing = Some((block, at + bytes.len()));
                }
                Event::Zero(page) => {
                    let at = usize::try_from(page.offset).expect("a few MiB");
                    captured.blocks[places[&page.block]].1[at..at + PAGE].fill(0);
                }
                Event::Section(header) if header.kind == SectionKind::Full => {
                    device = Some(DeviceSection {
                        idstr: String::from_utf8_lossy(header.idstr.as_bytes()).into_owned(),
                        instance_id: header.instance_id,
                        version_id: header.version_id,
                        payload: Vec::new(),
                    });
                }
                Event::SectionData(payload) => {
                    if let Some(mut device) = device.take() {
                        device.payload = payload.to_vec();
                        captured.devices.push(device);
                    }
                }
                _ => {}
            }
            Ok(())
        });
        if let Err(error) = walked {
            panic!("{what}: {error}");
        }
        // The engine's own.
        captured.devices.retain(|device| device.idstr != "globalstate");
        captured
    }

    /// Blocks of these names and lengths, with or without the contents.
    fn ram(&self, filled: bool) -> Arc<RamBlocks> {
        let blocks = self.blocks.iter().map(|(name, contents)| {
            let len = contents.len() as u64;
            let options = BlockOptions::default();
            RamBlock::with_options(name, len, &options).expect("the names of QEMU's blocks")
        });
        let ram = Arc::new(RamBlocks::new(blocks).expect("different names"));
        for (index, (_, contents)) in self.blocks.iter().enumerate().filter(|_| filled) {
            whole(&ram, index).copy_in(contents);
        }
        ram
    }
}

/// Memory at one of our ends.
#[derive(Debug)]
pub(crate) struct Ram(Arc<RamBlocks>);

impl Ram {
    /// What the block of this name holds.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub(crate) fn block(&self, name: &str) -> Vec<u8> {
        let index = self.0.find(name.as_bytes()).unwrap_or_else(|| panic!("no block {name}"));
        let ram = whole(&self.0, index);
        let mut bytes = vec![0; ram.len()];
        ram.copy_out(&mut bytes);
        bytes
    }
}

/// What a live source has sent.
#[derive(Debug)]
pub(crate) struct Sent {
    /// Whether the destination said that it has it.
    pub(crate) confirmed: bool,
    /// The last statistics.
    pub(crate) info: MigrationInfo,
    /// The memory as it was at the end.
    pub(crate) ram: Ram,
}

/// Sends the guest to `uri`, its memory being written round after round, with a cache that is smaller than what is
/// written at first and larger later.
#[must_use]
#[track_caller]
pub(crate) fn send_with_xbzrle(captured: &Captured, uri: &str, options: &ConnectOptions) -> Sent {
    let ram = captured.ram(true);
    let index = ram.find(b"pc.ram").expect("every PC has it");
    let pages = ram.block(index).expect("it was just found").pages();
    let memory = Arc::new(Scripted {
        ram: Arc::clone(&ram),
        index,
        dirty: DirtyBitmap::new(pages),
        round: AtomicU64::new(0),
    });
    let mut capabilities = Capabilities::default();
    (capabilities.return_path, capabilities.xbzrle) = (true, true);
    let mut parameters = Parameters::default();
    // Only an empty remainder ends the rounds.
    parameters.downtime_limit = 0;
    parameters.xbzrle_cache_size = (WRITTEN.len() / 2 * PAGE) as u64;
    let mut source = Source::new(memory, Box::new(Machine(captured_machine(captured))))
        .with_capabilities(capabilities)
        .with_parameters(parameters.clone());
    let handle = source.handle();
    let outcome = block_on(async {
        let at = MigrationAddress::parse(uri).expect("an address");
        let connector = mig::connector(&at, options).expect("a backend");
        let mut events = handle.subscribe();
        let grows = async {
            while let Ok(event) = events.recv().await {
                if matches!(event, mig::engine::Event::Pass { pass: 6, .. }) {
                    parameters.xbzrle_cache_size = (WRITTEN.len() * 2 * PAGE) as u64;
                    handle.set_parameters(parameters.clone());
                }
            }
        };
        tokio::select! {
            outcome = source.run(&*connector) => outcome,
            () = grows => panic!("the handle outlives the migration"),
        }
    });
    let outcome = outcome.unwrap_or_else(|error| panic!("sending to {uri}: {error}"));
    Sent { confirmed: outcome.confirmed, info: outcome.info, ram: Ram(ram) }
}

/// Sends the guest, which writes nothing, to `uri`, and stands still before the switchover until what `pause` makes there is
/// over.
#[track_caller]
pub(crate) fn send_paused<F: Future<Output = ()>>(
    captured: &Captured,
    uri: &str,
    deadlines: Deadlines,
    pause: impl FnOnce() -> F,
) -> (Result<Outcome, Error>, Ram) {
    let ram = captured.ram(true);
    let mut capabilities = Capabilities::default();
    (capabilities.return_path, capabilities.pause_before_switchover) = (true, true);
    let mut source =
        Source::new(Arc::clone(&ram) as _, Box::new(Machine(captured_machine(captured))))
            .with_capabilities(capabilities)
            .with_deadlines(deadlines);
    let handle = source.handle();
    let outcome = block_on(async {
        let at = MigrationAddress::parse(uri).expect("an address");
        let connector = mig::connector(&at, &ConnectOptions::default()).expect("a backend");
        let mut events = handle.subscribe();
        let operator = async {
            while let Ok(event) = events.recv().await {
                if matches!(event, mig::engine::Event::Status(status) if status.as_str() == "pre-switchover")
                {
                    pause().await;
                    handle.continue_switchover();
                    return std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            outcome = source.run(&*connector) => outcome,
            () = operator => panic!("the handle outlives the migration"),
        }
    });
    (outcome, Ram(ram))
}

/// Receives what is at `uri` into blocks like those of the captured guest.
#[must_use]
#[track_caller]
pub(crate) fn receive(captured: &Captured, uri: &str) -> Ram {
    receive_from(captured, uri, &ListenOptions::default(), |_| ())
}

/// The same; `listening` is told where, as soon as a source may come.
#[must_use]
#[track_caller]
pub(crate) fn receive_from(
    captured: &Captured,
    uri: &str,
    options: &ListenOptions,
    listening: impl FnOnce(&str),
) -> Ram {
    let ram = captured.ram(false);
    let machine = Machine(captured_machine(captured));
    let mut destination = Destination::new(Arc::clone(&ram) as _, Box::new(machine));
    let outcome = block_on(async {
        let at = MigrationAddress::parse(uri).expect("an address");
        let bound = mig::listener(&at, options).await;
        let mut listener = bound.unwrap_or_else(|error| panic!("{uri}: {error}"));
        listening(listener.local_addresses().first().map_or(uri, String::as_str));
        destination.run(&mut *listener).await
    });
    if let Err(error) = outcome {
        panic!("receiving from {uri}: {error}");
    }
    Ram(ram)
}

fn block_on<T>(job: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a test may have a runtime").block_on(job)
}

fn whole(ram: &RamBlocks, index: usize) -> RegionSlice {
    let block = ram.block(index).expect("the index was found");
    let len = usize::try_from(block.used_length).expect("a few MiB");
    block.slice(0, len).expect("all of it")
}

fn captured_machine(captured: &Captured) -> (String, Vec<DeviceSection>) {
    (captured.machine.clone(), captured.devices.clone())
}

/// The captured devices, and whatever comes.
struct Machine((String, Vec<DeviceSection>));

impl Guest for Machine {
    fn machine_type(&self) -> String {
        self.0.0.clone()
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, GuestError> {
        Ok(self.0.1.clone())
    }

    fn load_device(&mut self, _: &DeviceSection) -> Result<(), GuestError> {
        Ok(())
    }

    fn start(&mut self, _: RunState) -> Result<(), GuestError> {
        Ok(())
    }
}

/// Memory whose guest writes whenever the log is read.
struct Scripted {
    ram: Arc<RamBlocks>,
    /// The block that is written.
    index: usize,
    dirty: DirtyBitmap,
    round: AtomicU64,
}

impl Scripted {
    /// Of the pages that are written, most change a little, some wholly, one turns zero and back.
    fn write(&self, round: u64) {
        let ram = whole(&self.ram, self.index);
        for page in WRITTEN {
            let (at, bytes) = match page % 16 {
                0 => (0, noise(round ^ page as u64)),
                1 if round.is_multiple_of(3) => (0, vec![0; PAGE]),
                2 => (PAGE - 1, vec![round as u8]),
                3 => (0, vec![!(round as u8)]),
                // Nothing new in it.
                4 => (8, vec![7]),
                _ => ((page * 37 + round as usize * 101) % (PAGE - 300), vec![round as u8; 290]),
            };
            ram.sub(page * PAGE + at, bytes.len()).expect("within the page").copy_in(&bytes);
            self.dirty.set(page);
        }
    }
}

/// A page in which every second byte or so differs from that of another seed.
fn noise(seed: u64) -> Vec<u8> {
    incompressible(PAGE, seed)
}

impl GuestMemory for Scripted {
    fn block_count(&self) -> usize {
        self.ram.block_count()
    }

    fn block(&self, index: usize) -> Option<BlockInfo> {
        self.ram.block(index)
    }

    fn start_dirty_log(&self) -> mig::ram::Result<DirtyLogInfo> {
        Ok(DirtyLogInfo {
            mechanism: "script".into(),
            kernel_writes: true,
            passed_over: Vec::new(),
        })
    }

    fn sync_dirty(&self, index: usize, into: &DirtyBitmap) -> mig::ram::Result<u64> {
        if index != self.index {
            return Ok(0);
        }
        let round = self.round.fetch_add(1, Ordering::Relaxed) + 1;
        if round <= ROUNDS {
            self.write(round);
        }
        Ok(into.absorb(&self.dirty))
    }

    fn stop_dirty_log(&self) -> mig::ram::Result<()> {
        Ok(())
    }
}
