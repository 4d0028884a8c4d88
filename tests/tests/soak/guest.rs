//! A guest of 128 KiB and one device, which remembers whether it runs.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use mig::{
    engine::{DeviceSection, Guest, GuestError},
    proto::globalstate::RunState,
    ram::{GuestMemory, PAGE_SIZE, RamBlock, RamBlocks},
};

const PAGES: usize = 32;

/// Whether the guest runs at this end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs(Arc<AtomicBool>);

impl Runs {
    pub(crate) fn here(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    fn set(&self, runs: bool) {
        self.0.store(runs, Ordering::SeqCst);
    }
}

pub(crate) struct SmallGuest(Runs);

impl SmallGuest {
    /// The guest runs.
    pub(crate) fn at_source() -> (Self, Runs) {
        let runs = Runs::default();
        runs.set(true);
        (Self(runs.clone()), runs)
    }

    /// It does not yet.
    pub(crate) fn at_destination() -> (Self, Runs) {
        let runs = Runs::default();
        (Self(runs.clone()), runs)
    }
}

impl Guest for SmallGuest {
    fn machine_type(&self) -> String {
        "soak-1.0".into()
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        self.0.set(false);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.0.set(true);
        Ok(())
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, GuestError> {
        let payload = vec![7; 3000];
        Ok(vec![DeviceSection { idstr: "disk".into(), instance_id: 0, version_id: 1, payload }])
    }

    fn load_device(&mut self, section: &DeviceSection) -> Result<(), GuestError> {
        assert_eq!(section.payload, [7; 3000]);
        Ok(())
    }

    fn start(&mut self, _state: RunState) -> Result<(), GuestError> {
        self.0.set(true);
        Ok(())
    }
}

/// Memory as the guest's; filled, every other page has bytes in it.
pub(crate) fn memory(filled: bool) -> Arc<RamBlocks> {
    let block = RamBlock::new("soak.ram", (PAGES * PAGE_SIZE) as u64).unwrap();
    let ram = Arc::new(RamBlocks::new([block]).unwrap());
    if filled {
        let info = ram.block(0).unwrap();
        for page in (0..PAGES).step_by(2) {
            info.page((page * PAGE_SIZE) as u64).unwrap().copy_in(&[byte(page); PAGE_SIZE]);
        }
    }
    ram
}

/// # Panics
///
/// If memory is not what [`memory`] filled in.
pub(crate) fn check(ram: &RamBlocks) {
    let info = ram.block(0).unwrap();
    let mut seen = vec![0; PAGE_SIZE];
    for page in 0..PAGES {
        info.page((page * PAGE_SIZE) as u64).unwrap().copy_out(&mut seen);
        let expected = if page % 2 == 0 { byte(page) } else { 0 };
        assert!(seen.iter().all(|byte| *byte == expected), "page {page}");
    }
}

fn byte(page: usize) -> u8 {
    u8::try_from(page + 1).unwrap()
}
