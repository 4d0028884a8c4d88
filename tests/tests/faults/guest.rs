//! A small guest that can say what happens to it.

use std::sync::{Arc, Mutex, PoisonError};

use mig::{
    engine::{DeviceSection, Guest, GuestError},
    proto::globalstate::RunState,
    ram::{GuestMemory, RamBlock, RamBlocks},
    transport::RegionSlice,
};
use mig_testkit::pattern;

/// What happened to a guest.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life(Arc<Mutex<State>>);

#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    pub(crate) stopped: bool,
    pub(crate) resumed: bool,
    pub(crate) started: bool,
    pub(crate) devices: Vec<DeviceSection>,
}

impl Life {
    pub(crate) fn state(&self) -> State {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A guest with two devices, which writes to its memory until it is stopped.
pub(crate) struct SmallGuest {
    pub(crate) life: Life,
    pub(crate) memory: Arc<RamBlocks>,
    /// Says what happens to it.
    pub(crate) says: Option<fn(&str)>,
}

const PAGE: usize = 4096;
/// Pages of the main block; every third is zero.
const PAGES: usize = 36;
const ROM_PAGES: usize = 2;

pub(crate) fn memory() -> Arc<RamBlocks> {
    let ram = RamBlock::new("small.ram", (PAGES * PAGE) as u64).expect("a block");
    let rom = RamBlock::new("small.rom", (ROM_PAGES * PAGE) as u64).expect("a block");
    Arc::new(RamBlocks::new([ram, rom]).expect("blocks"))
}

fn pages(memory: &RamBlocks, block: usize, first: usize, count: usize) -> RegionSlice {
    let block = memory.block(block).expect("it exists");
    block.slice((first * PAGE) as u64, count * PAGE).expect("within it")
}

pub(crate) fn fill(memory: &RamBlocks) {
    for page in (0..PAGES).filter(|page| page % 3 != 0) {
        pattern::fill(&pages(memory, 0, page, 1), page as u64);
    }
    pattern::fill(&pages(memory, 1, 0, ROM_PAGES), 1000);
}

/// What a stopping guest writes: pages that are sent already, and one that was zero.
fn last_words(memory: &RamBlocks) {
    for page in [1, 2, 3, 20] {
        pattern::fill(&pages(memory, 0, page, 1), 500 + page as u64);
    }
}

/// The memory of a guest that was filled and stopped.
pub(crate) fn final_contents() -> Vec<u8> {
    let memory = memory();
    fill(&memory);
    last_words(&memory);
    contents(&memory)
}

pub(crate) fn contents(memory: &RamBlocks) -> Vec<u8> {
    let mut all = Vec::new();
    for (block, count) in [(0, PAGES), (1, ROM_PAGES)] {
        let mut bytes = vec![0; count * PAGE];
        pages(memory, block, 0, count).copy_out(&mut bytes);
        all.extend(bytes);
    }
    all
}

pub(crate) fn devices() -> Vec<DeviceSection> {
    ["clock", "disk"]
        .map(|idstr| DeviceSection {
            idstr: idstr.into(),
            instance_id: 0,
            version_id: 3,
            payload: idstr.repeat(20).into_bytes(),
        })
        .into()
}

impl Guest for SmallGuest {
    fn machine_type(&self) -> String {
        "small-1.0".into()
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        last_words(&self.memory);
        self.life.change(|state| state.stopped = true);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.life.change(|state| state.resumed = true);
        Ok(())
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, GuestError> {
        Ok(devices())
    }

    fn load_device(&mut self, section: &DeviceSection) -> Result<(), GuestError> {
        self.life.change(|state| state.devices.push(section.clone()));
        Ok(())
    }

    fn start(&mut self, _state: RunState) -> Result<(), GuestError> {
        if let Some(say) = self.says {
            say("guest started");
        }
        self.life.change(|state| state.started = true);
        Ok(())
    }
}
