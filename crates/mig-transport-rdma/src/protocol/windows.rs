//! Which parts of the blocks are registered, here and there (docs/wire/rdma.md §9.3, §9.6).
//!
//! ```text
//!   block   |window 0      |window 1      |window 2      |w 3 |     equal powers of two, from the block's start
//!   remote  |key           |              |asked         |    |     one REGISTER_REQUEST for exactly one whole window
//!   local   |MR, 3 WRITEs  |              |              |MR  |     made when first written from
//! ```
//!
//! A WRITE needs both. [`Windows::plan`] says what is missing, one step at a time; what was carried out is reported back, and
//! only that changes anything. Both sides stay within [`Config::pinned_budget`] by giving up what was used longest ago and has
//! no WRITE in flight. Remote keys can be given up only where the UNREGISTER extension is in force: **towards QEMU they stay
//! for ever, and the budget holds for this side alone.** With pin-all a window is a whole block and nothing is given up.

use std::collections::{BTreeMap, HashMap};

use super::{
    CHUNK_BYTES,
    error::{Error, Result},
    span::Span,
};

/// How much is registered at a time, and in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bytes of a window: a power of two, at least 1 MiB. Made smaller where the budget holds fewer than two.
    pub window_bytes: u64,
    /// How many bytes may be registered for WRITEs at once, on each side. Control buffers are not counted.
    pub pinned_budget: u64,
}

impl Default for Config {
    /// 64 MiB at a time: one round trip for 64 of QEMU's, while a registration stays short. 1 GiB in all.
    fn default() -> Self {
        Self { window_bytes: 64 << 20, pinned_budget: 1 << 30 }
    }
}

impl Config {
    /// The window that is used: as asked, or the largest of which two fit the budget, so that one can be filled while the
    /// other is being given up.
    ///
    /// # Errors
    ///
    /// Not a power of two, below 1 MiB, or a budget that does not hold two windows of 1 MiB.
    pub fn effective_window(&self) -> Result<u64> {
        if !self.window_bytes.is_power_of_two() || self.window_bytes < CHUNK_BYTES {
            return Err(Error::misuse(format!(
                "a registration window of {} bytes: it must be a power of two, at least 1 MiB",
                self.window_bytes
            )));
        }
        if self.pinned_budget < 2 * CHUNK_BYTES {
            return Err(Error::misuse(format!(
                "a pinned-memory budget of {} bytes: at least 2 MiB (2097152 bytes) are needed",
                self.pinned_budget
            )));
        }
        let half = self.pinned_budget / 2;
        Ok(self.window_bytes.min(1 << half.ilog2()))
    }
}

/// How remote keys come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By REGISTER_REQUEST.
    Chunked {
        /// And back by UNREGISTER_REQUEST: both ends are ours.
        unregister: bool,
    },
    /// One key for each block, from RAM_BLOCKS_RESULT.
    PinAll {
        /// In the order of the blocks.
        keys: Vec<u32>,
    },
}

/// A window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WindowId {
    /// The block.
    pub block: u32,
    /// Which window of the block.
    pub index: u32,
}

/// The next step towards a WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Send UNREGISTER_REQUEST for this window, then [`Windows::unregister_sent`].
    EvictRemote(WindowId),
    /// Send REGISTER_REQUEST for this whole window, then [`Windows::register_sent`].
    RegisterRemote(WindowId),
    /// Drop this window's local registration, then [`Windows::local_dropped`].
    EvictLocal(WindowId),
    /// Register this window's memory here, then [`Windows::local_registered`].
    RegisterLocal(WindowId),
    /// A response must come first.
    AwaitResponse,
    /// A WRITE must complete first: every window that could be given up has some in flight.
    AwaitWrite,
    /// Write with this key.
    Ready {
        /// The remote key.
        rkey: u32,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Remote {
    #[default]
    Absent,
    Asked,
    Key(u32),
    Leaving,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    remote: Remote,
    local: bool,
    writes: u32,
    /// When it was last used; unique, and its place in both queues.
    used: u64,
}

/// The books.
#[derive(Clone, Debug)]
pub struct Windows {
    window_bytes: u64,
    budget: u64,
    mode: Mode,
    lens: Vec<u64>,
    /// Only windows that were ever planned: with the default window 16 384 entries for 1 TiB.
    windows: HashMap<WindowId, Window>,
    local_order: BTreeMap<u64, WindowId>,
    remote_order: BTreeMap<u64, WindowId>,
    local_bytes: u64,
    remote_bytes: u64,
    /// The one window whose key is asked for.
    asked: Option<WindowId>,
    /// The one window whose key is being given up.
    leaving: Option<WindowId>,
    writes: u64,
    clock: u64,
}

impl Windows {
    /// Books for blocks of these lengths.
    ///
    /// # Errors
    ///
    /// What [`Config::effective_window`] refuses; with pin-all another number of keys than blocks.
    pub fn new(config: Config, mode: Mode, lens: Vec<u64>) -> Result<Self> {
        let window_bytes = match &mode {
            Mode::Chunked { .. } => config.effective_window()?,
            Mode::PinAll { keys } if keys.len() != lens.len() => {
                return Err(Error::misuse(format!(
                    "{} whole-block keys for {} blocks",
                    keys.len(),
                    lens.len()
                )));
            }
            // One window holds any block.
            Mode::PinAll { .. } => 1 << 63,
        };
        Ok(Self {
            window_bytes,
            budget: config.pinned_budget,
            mode,
            lens,
            windows: HashMap::new(),
            local_order: BTreeMap::new(),
            remote_order: BTreeMap::new(),
            local_bytes: 0,
            remote_bytes: 0,
            asked: None,
            leaving: None,
            writes: 0,
            clock: 0,
        })
    }

    /// The window that a byte lies in.
    pub fn window_at(&self, block: u32, offset: u64) -> WindowId {
        let index = offset / self.window_bytes;
        WindowId { block, index: u32::try_from(index).expect("a block has fewer than 2^32 MiB") }
    }

    /// The bytes of a window; the last one of a block may be short.
    pub fn span(&self, window: WindowId) -> Span {
        let offset = u64::from(window.index) * self.window_bytes;
        let len = self.lens[window.block as usize] - offset;
        Span { block: window.block, offset, len: len.min(self.window_bytes) }
    }

    /// The chunk number that UNREGISTER_REQUEST names: that of the window's first MiB.
    pub fn chunk(&self, window: WindowId) -> u64 {
        self.span(window).offset / CHUNK_BYTES
    }

    /// Every window of every block: what pin-all registers here while the destination does the same.
    pub fn all(&self) -> impl Iterator<Item = WindowId> + '_ {
        (0u32..).zip(&self.lens).flat_map(|(block, len)| {
            let count = len.div_ceil(self.window_bytes);
            let count = u32::try_from(count).expect("a block has fewer than 2^32 MiB");
            (0..count).map(move |index| WindowId { block, index })
        })
    }

    /// Whether a WRITE into this window needs no more round trip, or its key is already asked for.
    pub fn has_key(&self, window: WindowId) -> bool {
        match self.remote(window) {
            Remote::Key(_) | Remote::Asked => true,
            Remote::Absent | Remote::Leaving => false,
        }
    }

    /// Bytes registered here.
    pub fn local_bytes(&self) -> u64 {
        self.local_bytes
    }

    /// Bytes the destination has registered for us, asked for included; 0 with pin-all, where it is everything.
    pub fn remote_bytes(&self) -> u64 {
        self.remote_bytes
    }

    /// WRITEs in flight in all windows.
    pub fn writes_in_flight(&self) -> u64 {
        self.writes
    }

    /// What a WRITE into `window` needs next. Changes nothing.
    pub fn plan(&self, window: WindowId) -> Plan {
        let len = self.span(window).len;
        let remote = self.remote(window);
        match remote {
            Remote::Leaving => return Plan::AwaitResponse,
            Remote::Absent if self.evicts_remote() && self.remote_bytes + len > self.budget => {
                // One at a time: whoever is leaving will make room.
                if self.leaving.is_some() {
                    return Plan::AwaitResponse;
                }
                return self.victim(&self.remote_order, window, Plan::EvictRemote);
            }
            Remote::Absent => return Plan::RegisterRemote(window),
            Remote::Asked | Remote::Key(_) => {}
        }
        // While the destination registers, so do we.
        if !self.windows.get(&window).is_some_and(|window| window.local) {
            if !self.is_pin_all() && self.local_bytes + len > self.budget {
                return self.victim(&self.local_order, window, Plan::EvictLocal);
            }
            return Plan::RegisterLocal(window);
        }
        match remote {
            Remote::Key(rkey) => Plan::Ready { rkey },
            _ => Plan::AwaitResponse,
        }
    }

    fn victim(
        &self,
        order: &BTreeMap<u64, WindowId>,
        wanted: WindowId,
        evict: fn(WindowId) -> Plan,
    ) -> Plan {
        let idle = |id: &&WindowId| {
            let window = self.windows[*id];
            **id != wanted && window.writes == 0 && window.remote != Remote::Asked
        };
        order.values().find(idle).map_or(Plan::AwaitWrite, |id| evict(*id))
    }

    /// REGISTER_REQUEST for a window goes out.
    ///
    /// # Errors
    ///
    /// It has a key or none is wanted: a mistake of the caller, like all errors below.
    pub fn register_sent(&mut self, window: WindowId) -> Result<()> {
        let free = self.asked.is_none() && self.remote(window) == Remote::Absent;
        self.expect(window, free, "or another one was asked for already")?;
        self.asked = Some(window);
        self.remote_bytes += self.span(window).len;
        self.touch(window, |window| window.remote = Remote::Asked);
        Ok(())
    }

    /// REGISTER_RESULT came: which window it is for.
    ///
    /// # Errors
    ///
    /// No key was asked for.
    pub fn register_answered(&mut self, rkey: u32) -> Result<WindowId> {
        let window = self.asked.take().ok_or_else(nobody_asked)?;
        self.touch(window, |window| window.remote = Remote::Key(rkey));
        Ok(window)
    }

    /// UNREGISTER_REQUEST for a window goes out.
    ///
    /// # Errors
    ///
    /// It has no key, WRITEs are in flight, or the other end does not know UNREGISTER.
    pub fn unregister_sent(&mut self, window: WindowId) -> Result<()> {
        let known = self.windows.get(&window).copied().unwrap_or_default();
        let may = self.evicts_remote() && known.writes == 0 && self.leaving.is_none();
        self.expect(window, may && matches!(known.remote, Remote::Key(_)), "cannot be given up")?;
        self.remote_order.remove(&known.used);
        self.entry(window).remote = Remote::Leaving;
        self.leaving = Some(window);
        Ok(())
    }

    /// UNREGISTER_FINISHED came.
    ///
    /// # Errors
    ///
    /// None was asked for.
    pub fn unregister_answered(&mut self) -> Result<WindowId> {
        let window = self.leaving.take().ok_or_else(nobody_asked)?;
        self.remote_bytes -= self.span(window).len;
        self.entry(window).remote = Remote::Absent;
        Ok(window)
    }

    /// A window's memory is registered here.
    ///
    /// # Errors
    ///
    /// It was already.
    pub fn local_registered(&mut self, window: WindowId) -> Result<()> {
        let known = self.windows.get(&window).is_some_and(|window| window.local);
        self.expect(window, !known, "is registered here already")?;
        self.local_bytes += self.span(window).len;
        self.touch(window, |window| window.local = true);
        Ok(())
    }

    /// A window's memory is no longer registered here.
    ///
    /// # Errors
    ///
    /// It was not, or WRITEs are in flight.
    pub fn local_dropped(&mut self, window: WindowId) -> Result<()> {
        let known = self.windows.get(&window).copied().unwrap_or_default();
        self.expect(window, known.local && known.writes == 0, "cannot be dropped here")?;
        self.local_bytes -= self.span(window).len;
        self.local_order.remove(&known.used);
        self.entry(window).local = false;
        Ok(())
    }

    /// A WRITE into a window is posted.
    ///
    /// # Errors
    ///
    /// The window is not ready.
    pub fn write_posted(&mut self, window: WindowId) -> Result<()> {
        let ready = matches!(self.plan(window), Plan::Ready { .. });
        self.expect(window, ready, "is not ready for a WRITE")?;
        self.touch(window, |window| window.writes += 1);
        self.writes += 1;
        Ok(())
    }

    /// A WRITE into a window completed.
    ///
    /// # Errors
    ///
    /// None was in flight.
    pub fn write_done(&mut self, window: WindowId) -> Result<()> {
        let writes = self.windows.get(&window).map_or(0, |window| window.writes);
        self.expect(window, writes > 0, "has no WRITE in flight")?;
        self.entry(window).writes -= 1;
        self.writes -= 1;
        Ok(())
    }

    fn is_pin_all(&self) -> bool {
        matches!(self.mode, Mode::PinAll { .. })
    }

    fn evicts_remote(&self) -> bool {
        matches!(self.mode, Mode::Chunked { unregister: true })
    }

    fn remote(&self, window: WindowId) -> Remote {
        match &self.mode {
            Mode::PinAll { keys } => Remote::Key(keys[window.block as usize]),
            Mode::Chunked { .. } => {
                self.windows.get(&window).map_or(Remote::Absent, |window| window.remote)
            }
        }
    }

    fn expect(&self, window: WindowId, holds: bool, otherwise: &str) -> Result<()> {
        if holds {
            return Ok(());
        }
        Err(Error::misuse(format!("window {} of block {} {otherwise}", window.index, window.block)))
    }

    fn entry(&mut self, window: WindowId) -> &mut Window {
        self.windows.entry(window).or_default()
    }

    /// Changes a window and makes it the one used last.
    fn touch(&mut self, id: WindowId, change: impl FnOnce(&mut Window)) {
        self.clock += 1;
        let now = self.clock;
        let window = self.windows.entry(id).or_default();
        let before = window.used;
        change(window);
        window.used = now;
        let (local, remote) =
            (window.local, matches!(window.remote, Remote::Asked | Remote::Key(_)));
        for (order, belongs) in [(&mut self.local_order, local), (&mut self.remote_order, remote)] {
            order.remove(&before);
            if belongs {
                order.insert(now, id);
            }
        }
    }
}

fn nobody_asked() -> Error {
    Error::misuse("an answer came for a window nobody asked about")
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn windows(window_mib: u64, budget_mib: u64, unregister: bool, lens: &[u64]) -> Windows {
        let config = Config { window_bytes: window_mib * MIB, pinned_budget: budget_mib * MIB };
        Windows::new(config, Mode::Chunked { unregister }, lens.to_vec()).unwrap()
    }

    /// Carries plans out, answers at once, until the window is ready or a WRITE must complete.
    fn acquire(windows: &mut Windows, window: WindowId) -> Result<u32, Plan> {
        for _ in 0..1000 {
            match windows.plan(window) {
                Plan::EvictRemote(id) => {
                    windows.unregister_sent(id).unwrap();
                    assert_eq!(windows.unregister_answered(), Ok(id));
                }
                Plan::RegisterRemote(id) => {
                    windows.register_sent(id).unwrap();
                    assert_eq!(windows.register_answered(7), Ok(id));
                }
                Plan::EvictLocal(id) => windows.local_dropped(id).unwrap(),
                Plan::RegisterLocal(id) => windows.local_registered(id).unwrap(),
                Plan::Ready { rkey } => return Ok(rkey),
                wait => return Err(wait),
            }
        }
        panic!("the plan does not end");
    }

    #[test]
    fn a_small_budget_makes_small_windows() {
        let effective = |window, budget| {
            Config { window_bytes: window, pinned_budget: budget }.effective_window()
        };
        assert_eq!(effective(64 * MIB, 1 << 40), Ok(64 * MIB));
        assert_eq!(effective(64 * MIB, 128 * MIB), Ok(64 * MIB));
        assert_eq!(effective(64 * MIB, 128 * MIB - 1), Ok(32 * MIB));
        assert_eq!(effective(64 * MIB, 2 * MIB), Ok(MIB));
        assert!(effective(64 * MIB, 2 * MIB - 1).unwrap_err().to_string().contains("2097152"));
        assert!(effective(3 * MIB, 1 << 40).is_err());
        assert!(effective(MIB / 2, 1 << 40).is_err());
    }

    #[test]
    fn windows_tile_the_blocks() {
        let windows = windows(4, 64, false, &[10 * MIB + 4096, 4 * MIB, 4096]);
        let spans: Vec<_> = windows.all().map(|id| windows.span(id)).collect();
        assert_eq!(spans.len(), 5);
        for (index, (block, len)) in
            [(0u32, 10 * MIB + 4096), (1, 4 * MIB), (2, 4096)].into_iter().enumerate()
        {
            let mine: Vec<_> = spans.iter().filter(|span| span.block == block).collect();
            assert_eq!(mine.iter().map(|span| span.len).sum::<u64>(), len, "{index}");
            assert!(mine.iter().all(|span| span.offset % (4 * MIB) == 0));
        }
        assert_eq!(windows.span(windows.window_at(0, 9 * MIB)).offset, 8 * MIB);
        assert_eq!(windows.chunk(WindowId { block: 0, index: 2 }), 8);
    }

    #[test]
    fn local_memory_is_registered_while_the_destination_registers() {
        let mut windows = windows(4, 64, false, &[8 * MIB]);
        let id = windows.window_at(0, 0);
        assert_eq!(windows.plan(id), Plan::RegisterRemote(id));
        windows.register_sent(id).unwrap();
        assert_eq!(windows.plan(id), Plan::RegisterLocal(id));
        windows.local_registered(id).unwrap();
        assert_eq!(windows.plan(id), Plan::AwaitResponse);
        windows.register_answered(5).unwrap();
        assert_eq!(windows.plan(id), Plan::Ready { rkey: 5 });
    }

    #[test]
    fn the_longest_unused_idle_window_goes_first() {
        let mut windows = windows(1, 3, true, &[8 * MIB]);
        let id = |index| WindowId { block: 0, index };
        for index in 0..3 {
            acquire(&mut windows, id(index)).unwrap();
        }
        windows.write_posted(id(0)).unwrap();
        windows.write_done(id(0)).unwrap();
        // 0 was used again, so 1 is the oldest.
        assert_eq!(windows.plan(id(5)), Plan::EvictRemote(id(1)));
        windows.write_posted(id(1)).unwrap();
        assert_eq!(windows.plan(id(5)), Plan::EvictRemote(id(2)));
        windows.write_posted(id(2)).unwrap();
        windows.write_posted(id(0)).unwrap();
        assert_eq!(windows.plan(id(5)), Plan::AwaitWrite);
        assert!(windows.local_dropped(id(2)).is_err());
        assert!(windows.unregister_sent(id(2)).is_err());
        windows.write_done(id(2)).unwrap();
        assert_eq!(acquire(&mut windows, id(5)), Ok(7));
        assert!(!windows.has_key(id(2)));
    }

    #[test]
    fn towards_qemu_keys_stay_and_the_local_budget_holds() {
        let mut windows = windows(1, 2, false, &[64 * MIB]);
        for index in 0..64 {
            acquire(&mut windows, WindowId { block: 0, index }).unwrap();
        }
        assert_eq!(windows.remote_bytes(), 64 * MIB);
        assert_eq!(windows.local_bytes(), 2 * MIB);
        assert!(windows.unregister_sent(WindowId { block: 0, index: 0 }).is_err());
    }

    #[test]
    fn pin_all_asks_for_nothing() {
        let mode = Mode::PinAll { keys: vec![11, 12] };
        let config = Config { window_bytes: MIB, pinned_budget: 0 };
        let mut windows = Windows::new(config, mode.clone(), vec![8 * MIB, 1 << 40]).unwrap();
        let all: Vec<_> = windows.all().collect();
        assert_eq!(all.len(), 2);
        let id = windows.window_at(1, (1 << 40) - 1);
        assert_eq!(id, all[1]);
        assert_eq!(windows.plan(id), Plan::RegisterLocal(id));
        assert_eq!(acquire(&mut windows, id), Ok(12));
        assert_eq!(windows.span(id).len, 1 << 40);
        assert!(Windows::new(config, mode, vec![1]).is_err());
    }

    #[test]
    fn reports_out_of_order_are_refused() {
        let mut windows = windows(1, 4, true, &[8 * MIB]);
        let id = windows.window_at(0, 0);
        assert!(windows.register_answered(1).is_err());
        assert!(windows.unregister_answered().is_err());
        assert!(windows.write_posted(id).is_err());
        assert!(windows.write_done(id).is_err());
        assert!(windows.local_dropped(id).is_err());
        windows.register_sent(id).unwrap();
        assert!(windows.register_sent(id).is_err());
        windows.local_registered(id).unwrap();
        assert!(windows.local_registered(id).is_err());
        assert!(windows.write_posted(id).is_err());
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_waits_end(
            budget in 2u64..9,
            window in 0u32..3,
            unregister: bool,
            uses in proptest::collection::vec((0u32..2, 0u64..16 * MIB, 0usize..4), 1..200),
        ) {
            let mut windows = windows(1 << window, budget, unregister, &[16 * MIB, 16 * MIB - 4096]);
            let mut flying = VecDeque::new();
            for (block, offset, complete) in uses {
                let id = windows.window_at(block, offset.min(windows.lens[block as usize] - 1));
                loop {
                    match acquire(&mut windows, id) {
                        Ok(_) => break,
                        Err(wait) => {
                            prop_assert_eq!(wait, Plan::AwaitWrite);
                            let done = flying.pop_front();
                            prop_assert!(done.is_some(), "nothing is in flight that could be waited for");
                            windows.write_done(done.unwrap()).unwrap();
                        }
                    }
                }
                windows.write_posted(id).unwrap();
                flying.push_back(id);
                for _ in 0..complete.min(flying.len()) {
                    windows.write_done(flying.pop_front().unwrap()).unwrap();
                }
                // The books against a recount.
                let sum = |keep: fn(&Window) -> bool| windows.windows.iter().filter(|(_, w)| keep(w)).map(|(id, _)| windows.span(*id).len).sum::<u64>();
                prop_assert_eq!(windows.local_bytes(), sum(|w| w.local));
                prop_assert_eq!(windows.remote_bytes(), sum(|w| w.remote != Remote::Absent));
                prop_assert!(windows.local_bytes() <= budget * MIB);
                prop_assert!(!unregister || windows.remote_bytes() <= budget * MIB);
                prop_assert_eq!(windows.writes_in_flight(), flying.len() as u64);
            }
        }
    }
}
