//! A guest that remembers who let it run, and memory that is written while it is sent.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use mig_engine::{DeviceSection, Guest, GuestError};
use mig_proto::globalstate::RunState;
use mig_ram::{BlockInfo, DirtyBitmap, DirtyLogInfo, GuestMemory, RamBlock, RamBlocks};

pub(crate) const MACHINE: &str = "fuzz-1.0";
pub(crate) const BLOCK: &str = "f.ram";
pub(crate) const PAGES: usize = 8;
pub(crate) const PAGE: usize = 4096;

/// What happened to a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) stopped: u32,
    pub(crate) resumed: u32,
    pub(crate) started: u32,
}

/// What both the test and the guest hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Diary(Arc<Mutex<Life>>);

impl Diary {
    pub(crate) fn life(&self) -> Life {
        *self.0.lock().expect("nobody panics while holding it")
    }

    fn note(&self, change: impl FnOnce(&mut Life)) {
        change(&mut self.0.lock().expect("nobody panics while holding it"));
    }

    /// Whether the guest of a source runs.
    pub(crate) fn source_runs(&self) -> bool {
        let life = self.life();
        assert!(life.stopped <= 1 && life.resumed <= life.stopped && life.started == 0, "{life:?}");
        life.stopped == life.resumed
    }

    /// Whether the guest of a destination runs.
    pub(crate) fn destination_runs(&self) -> bool {
        let life = self.life();
        assert!(life.started <= 1 && life.stopped == 0 && life.resumed == 0, "{life:?}");
        life.started == 1
    }
}

/// A guest with one device that is loaded whatever it holds, unless it refuses.
pub(crate) struct FuzzGuest {
    pub(crate) diary: Diary,
    pub(crate) refuses: bool,
}

impl FuzzGuest {
    pub(crate) fn new(diary: &Diary) -> Box<Self> {
        Box::new(Self { diary: diary.clone(), refuses: false })
    }
}

impl Guest for FuzzGuest {
    fn machine_type(&self) -> String {
        MACHINE.into()
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        self.diary.note(|life| life.stopped += 1);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.diary.note(|life| life.resumed += 1);
        Ok(())
    }

    fn throttle(&mut self, percent: u8) -> bool {
        assert!(percent <= 99);
        true
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, GuestError> {
        if self.refuses {
            return Err("it does not want to".into());
        }
        Ok(vec![DeviceSection {
            idstr: "clock".into(),
            instance_id: 0,
            version_id: 1,
            payload: b"twelve bytes".to_vec(),
        }])
    }

    fn load_device(&mut self, section: &DeviceSection) -> Result<(), GuestError> {
        assert!(!section.idstr.is_empty());
        if self.refuses { Err("it does not fit".into()) } else { Ok(()) }
    }

    fn start(&mut self, _: RunState) -> Result<(), GuestError> {
        self.diary.note(|life| life.started += 1);
        Ok(())
    }
}

/// Memory of one block, and which pages are written between rounds.
pub(crate) struct Memory {
    ram: Arc<RamBlocks>,
    /// A bit for each page, for each round; none afterwards.
    writes: Vec<u8>,
    round: AtomicUsize,
}

impl Memory {
    pub(crate) fn new(ram: Arc<RamBlocks>, writes: &[u8]) -> Arc<Self> {
        Arc::new(Self { ram, writes: writes.to_vec(), round: AtomicUsize::new(0) })
    }

    /// A block that later inputs use again: mapping memory costs more than a migration of it.
    pub(crate) fn block() -> Arc<RamBlocks> {
        let block = RamBlock::new(BLOCK, (PAGES * PAGE) as u64).expect("there is memory");
        Arc::new(RamBlocks::new([block]).expect("one block"))
    }

    pub(crate) fn content(ram: &RamBlocks) -> Vec<u8> {
        let mut content = vec![0; PAGES * PAGE];
        let block = ram.block(0).expect("one block");
        block.slice(0, PAGES * PAGE).expect("all of it").copy_out(&mut content);
        content
    }

    /// Page p is full of p: the first is a page of zeros.
    pub(crate) fn fill(ram: &RamBlocks) {
        let block = ram.block(0).expect("one block");
        for page in 0..PAGES {
            let slice = block.slice((page * PAGE) as u64, PAGE).expect("a page");
            slice.copy_in(&[page as u8; PAGE]);
        }
    }
}

impl GuestMemory for Memory {
    fn block_count(&self) -> usize {
        self.ram.block_count()
    }

    fn block(&self, index: usize) -> Option<BlockInfo> {
        self.ram.block(index)
    }

    fn start_dirty_log(&self) -> mig_ram::Result<DirtyLogInfo> {
        Ok(DirtyLogInfo {
            mechanism: "script".into(),
            kernel_writes: true,
            passed_over: Vec::new(),
        })
    }

    fn sync_dirty(&self, _: usize, into: &DirtyBitmap) -> mig_ram::Result<u64> {
        let round = self.round.fetch_add(1, Ordering::Relaxed);
        let written = self.writes.get(round).copied().unwrap_or(0);
        Ok((0..PAGES)
            .filter(|page| written >> page & 1 == 1)
            .fold(0, |new, page| new + u64::from(into.set(page))))
    }

    fn stop_dirty_log(&self) -> mig_ram::Result<()> {
        Ok(())
    }
}
