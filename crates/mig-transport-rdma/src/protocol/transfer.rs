//! The source inside a hook window: which WRITE, message or registration is next (docs/wire/rdma.md §8, §9).
//!
//! ```text
//!   offer ─▶ runs ─▶ poll ─▶ Step ─▶ carried out by the connection, in order
//!                     ▲
//!                     └── response · Sender (READY) · write_done
//! ```
//!
//! The driver loops: [`Transfer::poll`], carry the step out, again; on [`Step::Wait`] it waits for a message or a completion
//! and reports it. A step counts as done when it is returned, so the next one may be asked for only after it was carried
//! out, and an error of carrying it out ends the migration.
//!
//! The ordering rule of §8.6 is kept here and cannot be broken by the driver: a COMPRESS remembers its number at the
//! [`Sender`], and no WRITE to any of its bytes is returned before a READY or a response proves that message handled.

use super::{
    blocks::SourceBlocks,
    error::{Error, Result},
    message::{Message, Outgoing},
    private_data::Agreed,
    ready::Sender,
    runs::{Policy, Runs},
    span::Span,
    windows::{Config, Mode, Plan, WindowId, Windows},
};

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// SEND this message; the [`Sender`] has been told.
    Send(Outgoing<'static>),
    /// Register this memory here, for reading by the device.
    RegisterLocal {
        /// Under this name.
        window: WindowId,
        /// The memory.
        span: Span,
    },
    /// Deregister it; no WRITE from it is in flight.
    DropLocal {
        /// The name.
        window: WindowId,
    },
    /// Post this WRITE, signalled, and report its completion by [`Transfer::write_done`].
    Write {
        /// Whose local registration covers `span`.
        window: WindowId,
        /// What to write.
        span: Span,
        /// Where to.
        remote_addr: u64,
        /// With which key.
        rkey: u32,
    },
    /// Nothing until one of these has come.
    Wait {
        /// A control message helps.
        control: bool,
        /// A completion of a WRITE helps.
        write: bool,
    },
    /// Nothing until more is offered or the window closes.
    Idle,
}

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// WRITEs.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// COMPRESS messages.
    pub compresses: u64,
    /// Their bytes, which cost none on the wire.
    pub compressed_bytes: u64,
    /// REGISTER_REQUESTs, each a round trip.
    pub registers: u64,
    /// UNREGISTER_REQUESTs, each a round trip.
    pub unregisters: u64,
    /// Local registrations.
    pub local_registers: u64,
}

/// The source's page transfer, from the block exchange to the end.
#[derive(Clone, Debug)]
pub struct Transfer {
    blocks: SourceBlocks,
    windows: Windows,
    runs: Runs,
    /// The last COMPRESS and its number at the sender. Earlier ones are handled: this one could not be sent otherwise.
    fence: Option<(Span, u64)>,
    counters: Counters,
}

impl Transfer {
    /// After the exchange.
    ///
    /// # Errors
    ///
    /// No exchange, or limits that cannot be.
    pub fn new(
        blocks: SourceBlocks,
        agreed: Agreed,
        config: Config,
        policy: Policy,
    ) -> Result<Self> {
        if !blocks.exchanged() {
            return Err(Error::misuse("pages cannot be sent before the block exchange"));
        }
        let lens: Vec<u64> = blocks.local().iter().map(|block| block.len).collect();
        let mode = if agreed.pin_all {
            let keys = (0u32..).take(lens.len()).map(|block| blocks.whole_key(block));
            Mode::PinAll { keys: keys.collect::<Result<_>>()? }
        } else {
            Mode::Chunked { unregister: agreed.extensions.unregister }
        };
        Ok(Self {
            windows: Windows::new(config, mode, lens)?,
            blocks,
            runs: Runs::new(policy)?,
            fence: None,
            counters: Counters::default(),
        })
    }

    /// With pin-all: everything is registered here already, under one name for each block ([`WindowId::index`] 0), since that
    /// is done while the destination registers too (docs/wire/rdma.md §7).
    ///
    /// # Errors
    ///
    /// Something was registered before.
    pub fn pinned_here(&mut self) -> Result<()> {
        let all: Vec<_> = self.windows.all().collect();
        all.into_iter().try_for_each(|window| self.windows.local_registered(window))
    }

    /// The blocks.
    pub fn blocks(&self) -> &SourceBlocks {
        &self.blocks
    }

    /// The registrations.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Whether [`Self::offer`] may be called. If not, poll and wait.
    pub fn has_room(&self) -> bool {
        self.runs.has_room()
    }

    /// Takes over a run of pages; see [`Runs::offer`].
    ///
    /// # Errors
    ///
    /// Not a run of a block, and what [`Runs::offer`] refuses.
    pub fn offer(
        &mut self,
        run: Span,
        page_bytes: u64,
        zero: impl IntoIterator<Item = u64>,
    ) -> Result<()> {
        self.blocks.check(&run)?;
        self.runs.offer(run, page_bytes, zero, &self.windows)
    }

    /// The next step. With `flush` nothing is kept back for what may still be offered: the window is closing.
    ///
    /// # Errors
    ///
    /// Too few RECVs are posted for what must come back.
    pub fn poll(&mut self, sender: &mut Sender, flush: bool) -> Result<Step> {
        // Whoever cannot offer more must not wait for more.
        let flush = flush || !self.runs.has_room();
        if flush {
            self.runs.flush(&self.windows);
        }
        let (mut control, mut write) = (false, false);
        let mut blocked = false;
        if let Some(piece) = self.runs.next_data(&self.windows, flush) {
            let window = self.windows.window_at(piece.span.block, piece.span.offset);
            blocked = self.runs.blocked(&piece, false);
            if blocked || self.fenced(&piece.span, sender) {
                control = true;
            } else {
                match self.windows.plan(window) {
                    Plan::Ready { rkey } => {
                        let remote_addr = self.blocks.remote_address(&piece.span)?;
                        self.windows.write_posted(window)?;
                        self.runs.took_data(&piece);
                        self.counters.writes += 1;
                        self.counters.written_bytes += piece.span.len;
                        return Ok(Step::Write { window, span: piece.span, remote_addr, rkey });
                    }
                    Plan::AwaitResponse => control = true,
                    Plan::AwaitWrite => write = true,
                    Plan::RegisterRemote(_) | Plan::EvictRemote(_) if !sender.may_send() => {
                        control = true;
                    }
                    // Before a COMPRESS has its turn: all later WRITEs wait for this one.
                    plan => return self.prepare(plan, sender),
                }
            }
        }
        if let Some(piece) = self.runs.next_zero(flush || blocked)
            && !self.runs.blocked(&piece, true)
        {
            if sender.may_send() {
                let message = Outgoing::Compress(self.blocks.compress(&piece.span)?);
                sender.send(message.kind())?;
                self.fence = Some((piece.span, sender.sent()));
                self.runs.took_zero(&piece);
                self.counters.compresses += 1;
                self.counters.compressed_bytes += piece.span.len;
                return Ok(Step::Send(message));
            }
            control = true;
        }
        Ok(if control || write { Step::Wait { control, write } } else { Step::Idle })
    }

    fn prepare(&mut self, plan: Plan, sender: &mut Sender) -> Result<Step> {
        Ok(match plan {
            Plan::RegisterRemote(window) => {
                let request = self.blocks.register_request(&self.windows.span(window))?;
                let message = Outgoing::Register(request);
                sender.send(message.kind())?;
                self.windows.register_sent(window)?;
                self.counters.registers += 1;
                Step::Send(message)
            }
            Plan::EvictRemote(window) => {
                let key = self.windows.chunk(window);
                let message = Outgoing::Unregister(super::message::Register {
                    key,
                    block: window.block,
                    chunks: 0,
                });
                sender.send(message.kind())?;
                self.windows.unregister_sent(window)?;
                self.counters.unregisters += 1;
                Step::Send(message)
            }
            Plan::RegisterLocal(window) => {
                self.windows.local_registered(window)?;
                self.counters.local_registers += 1;
                Step::RegisterLocal { window, span: self.windows.span(window) }
            }
            Plan::EvictLocal(window) => {
                self.windows.local_dropped(window)?;
                Step::DropLocal { window }
            }
            Plan::AwaitResponse | Plan::AwaitWrite | Plan::Ready { .. } => {
                return Err(Error::misuse("nothing to prepare"));
            }
        })
    }

    /// A response came: the [`Sender`] has judged that it is due.
    ///
    /// # Errors
    ///
    /// Not an answer to what [`Step::Send`] sent, or one that contradicts the block exchange.
    pub fn response(&mut self, message: &Message<'_>) -> Result<()> {
        match message {
            Message::RegisterResult(result) => {
                let window = self.windows.register_answered(result.rkey)?;
                self.blocks.check_register_result(window.block, result)
            }
            Message::UnregisterFinished => self.windows.unregister_answered().map(|_| ()),
            other => Err(Error::unexpected(other.kind(), "inside a hook window")),
        }
    }

    /// A WRITE completed.
    ///
    /// # Errors
    ///
    /// None was in flight for this window.
    pub fn write_done(&mut self, window: WindowId) -> Result<()> {
        self.windows.write_done(window)
    }

    /// Whether all offered was sent and all WRITEs have completed: the window may be closed by REGISTER_FINISHED.
    pub fn drained(&self) -> bool {
        self.runs.is_empty() && self.windows.writes_in_flight() == 0
    }

    fn fenced(&self, span: &Span, sender: &Sender) -> bool {
        self.fence.is_some_and(|(fence, number)| sender.handled() < number && fence.overlaps(span))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            header::Kind,
            message::{RegisterResult, RemoteBlock},
            private_data::Extensions,
        },
        *,
    };

    const MIB: u64 = 1 << 20;
    const PAGE: u64 = 4096;

    fn transfer(pin_all: bool, unregister: bool) -> Transfer {
        let mut blocks = SourceBlocks::new();
        blocks.register("pc.ram", 64 * MIB).unwrap();
        let there =
            RemoteBlock { host_addr: 1 << 40, ram_offset: 1 << 20, length: 64 * MIB, rkey: 77 };
        let bytes = Outgoing::RamBlocksResult(&[there]).to_vec().unwrap();
        let Message::RamBlocksResult(result) = Message::decode(&bytes).unwrap() else { panic!() };
        blocks.accept_result(&result).unwrap();
        let agreed = Agreed { pin_all, ours: unregister, extensions: Extensions { unregister } };
        let config = Config { window_bytes: 4 * MIB, pinned_budget: 8 * MIB };
        Transfer::new(blocks, agreed, config, Policy::default()).unwrap()
    }

    fn ready(sender: &mut Sender) {
        sender.received(Kind::Ready).unwrap();
        sender.reposted();
    }

    fn span(page: u64, pages: u64) -> Span {
        Span { block: 0, offset: page * PAGE, len: pages * PAGE }
    }

    const WAIT_CONTROL: Step = Step::Wait { control: true, write: false };

    #[test]
    fn a_first_write_registers_both_sides_at_once() {
        let (mut transfer, mut sender) = (transfer(false, false), Sender::new(4));
        transfer.offer(span(1030, 1), PAGE, []).unwrap();
        assert_eq!(transfer.poll(&mut sender, true), Ok(WAIT_CONTROL));
        ready(&mut sender);
        let Step::Send(Outgoing::Register(request)) = transfer.poll(&mut sender, true).unwrap()
        else {
            panic!()
        };
        assert_eq!((request.key, request.block, request.chunks), (5 * MIB, 0, 3));
        let window = WindowId { block: 0, index: 1 };
        assert_eq!(
            transfer.poll(&mut sender, true),
            Ok(Step::RegisterLocal { window, span: span(1024, 1024) })
        );
        assert_eq!(transfer.poll(&mut sender, true), Ok(WAIT_CONTROL));
        sender.received(Kind::RegisterResult).unwrap();
        let result = RegisterResult { rkey: 5, host_addr: 1 << 40 };
        transfer.response(&Message::RegisterResult(result)).unwrap();
        // No READY is needed to write.
        assert_eq!(
            transfer.poll(&mut sender, true),
            Ok(Step::Write {
                window,
                span: span(1030, 1),
                remote_addr: (1 << 40) + 1030 * PAGE,
                rkey: 5
            })
        );
        assert_eq!(transfer.poll(&mut sender, true), Ok(Step::Idle));
        assert!(!transfer.drained());
        transfer.write_done(window).unwrap();
        assert!(transfer.drained());
    }

    #[test]
    fn no_write_into_a_compressed_range_before_it_is_handled() {
        let (mut transfer, mut sender) = (transfer(true, false), Sender::new(4));
        transfer.pinned_here().unwrap();
        ready(&mut sender);
        transfer.offer(span(0, 64), PAGE, [u64::MAX]).unwrap();
        let Step::Send(Outgoing::Compress(compress)) = transfer.poll(&mut sender, true).unwrap()
        else {
            panic!()
        };
        assert_eq!((compress.ram_addr, compress.length), (MIB, 64 * PAGE));
        transfer.offer(span(63, 2), PAGE, []).unwrap();
        for _ in 0..3 {
            assert_eq!(transfer.poll(&mut sender, true), Ok(WAIT_CONTROL));
        }
        ready(&mut sender);
        let step = transfer.poll(&mut sender, true).unwrap();
        assert!(matches!(step, Step::Write { rkey: 77, .. }), "{step:?}");
    }

    #[test]
    fn a_write_elsewhere_passes_a_waiting_compress() {
        let (mut transfer, mut sender) = (transfer(true, false), Sender::new(4));
        transfer.pinned_here().unwrap();
        transfer.offer(span(0, 64), PAGE, [u64::MAX]).unwrap();
        transfer.offer(span(100, 1), PAGE, []).unwrap();
        let step = transfer.poll(&mut sender, true).unwrap();
        assert!(matches!(step, Step::Write { .. }), "{step:?}");
        assert_eq!(transfer.poll(&mut sender, true), Ok(WAIT_CONTROL));
        ready(&mut sender);
        let step = transfer.poll(&mut sender, true).unwrap();
        assert!(matches!(step, Step::Send(Outgoing::Compress(_))), "{step:?}");
    }

    #[test]
    fn a_compress_waits_for_older_writes_of_its_bytes() {
        let (mut transfer, mut sender) = (transfer(true, false), Sender::new(4));
        transfer.pinned_here().unwrap();
        ready(&mut sender);
        transfer.offer(span(63, 1), PAGE, []).unwrap();
        transfer.offer(span(0, 64), PAGE, [u64::MAX]).unwrap();
        let step = transfer.poll(&mut sender, true).unwrap();
        assert!(matches!(step, Step::Write { .. }), "{step:?}");
        let step = transfer.poll(&mut sender, true).unwrap();
        assert!(matches!(step, Step::Send(Outgoing::Compress(_))), "{step:?}");
    }

    #[test]
    fn a_zero_range_in_the_way_of_a_write_does_not_wait_to_grow() {
        let (mut transfer, mut sender) = (transfer(true, false), Sender::new(4));
        transfer.pinned_here().unwrap();
        transfer.offer(span(0, 64), PAGE, [u64::MAX]).unwrap();
        transfer.offer(span(5, 256), PAGE, []).unwrap();
        transfer.offer(span(64, 16), PAGE, [u64::MAX]).unwrap();
        ready(&mut sender);
        let step = transfer.poll(&mut sender, false).unwrap();
        assert!(matches!(step, Step::Send(Outgoing::Compress(_))), "{step:?}");
        ready(&mut sender);
        let step = transfer.poll(&mut sender, false).unwrap();
        assert!(matches!(step, Step::Write { .. }), "{step:?}");
    }

    #[test]
    fn a_registration_has_the_first_ready() {
        let (mut transfer, mut sender) = (transfer(false, false), Sender::new(4));
        transfer.offer(span(0, 64), PAGE, [u64::MAX]).unwrap();
        transfer.offer(span(100, 1), PAGE, []).unwrap();
        ready(&mut sender);
        let step = transfer.poll(&mut sender, true).unwrap();
        assert!(matches!(step, Step::Send(Outgoing::Register(_))), "{step:?}");
    }

    #[test]
    fn zero_memory_registers_nothing() {
        let (mut transfer, mut sender) = (transfer(false, false), Sender::new(4));
        for offer in 0..16 {
            transfer.offer(span(offer * 1024, 1024), PAGE, [u64::MAX; 16]).unwrap();
        }
        ready(&mut sender);
        let step = transfer.poll(&mut sender, true).unwrap();
        assert!(matches!(step, Step::Send(Outgoing::Compress(_))), "{step:?}");
        assert!(transfer.drained());
        let counters = transfer.counters();
        assert_eq!(
            (counters.registers, counters.compresses, counters.compressed_bytes),
            (0, 1, 64 * MIB)
        );
    }

    #[test]
    fn strangers_and_wrong_bases_are_refused() {
        let mut transfer = transfer(false, false);
        assert!(transfer.response(&Message::Ready).is_err());
        assert!(transfer.response(&Message::UnregisterFinished).is_err());
        assert!(transfer.offer(span(64 * 256, 1), PAGE, []).is_err());
        let outside = Span { block: 1, offset: 0, len: PAGE };
        assert!(transfer.offer(outside, PAGE, []).is_err());
        let blocks = SourceBlocks::new();
        let made = Transfer::new(blocks, Agreed::default(), Config::default(), Policy::default());
        assert!(made.is_err());
    }
}
