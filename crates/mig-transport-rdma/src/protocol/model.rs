//! Source and destination against each other in memory: any delay the rules allow, and the memory must come out right.
//!
//! ```text
//!   guest memory ─▶ Transfer ─ WRITEs and SENDs, in order ─▶ wire ─▶ WRITE: lands at once, if its key is valid
//!                   Sender                                          SEND: waits for the destination's CPU
//!                      ▲                                                     │ Receiver, Server, then the effect
//!                      └──────────── READY, responses ◀──────────────────────┘
//! ```
//!
//! A WRITE reads the source's memory when it lands, as a device may, and the guest goes on writing meanwhile. What is checked
//! all the time: a RECV for every SEND, a live key and a local registration for every WRITE, both budgets. At the end: equal
//! memory.

use std::collections::{HashMap, HashSet, VecDeque};

use proptest::prelude::*;

use super::{
    Span,
    blocks::{DestinationBlocks, SourceBlocks},
    header::{Frame, Kind},
    message::{Message, Outgoing},
    private_data::{Agreed, Extensions},
    ready::{Cleared, Receiver, Sender},
    runs::Policy,
    serve::{Action, Server, Slot},
    transfer::{Step, Transfer},
    windows::{Config, WindowId},
};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const RECVS: usize = 3;
const BLOCKS: [u64; 2] = [3 * MIB + 5 * PAGE, 700 * PAGE];

/// One number for each page: its content, 0 for zero.
type Memory = Vec<Vec<u32>>;

fn memory(value: u32) -> Memory {
    BLOCKS.iter().map(|len| vec![value; (len / PAGE) as usize]).collect()
}

enum OnWire {
    Write { window: WindowId, span: Span, remote_addr: u64, rkey: u32 },
    Send(Vec<u8>),
}

struct World {
    // the source
    guest: Memory,
    dirty: HashSet<(u32, u64)>,
    version: u32,
    transfer: Transfer,
    sender: Sender,
    local: HashSet<WindowId>,
    // between
    wire: VecDeque<OnWire>,
    completions: VecDeque<WindowId>,
    back: VecDeque<Vec<u8>>,
    // the destination
    there: Memory,
    server: Server,
    receiver: Receiver,
    arrived: VecDeque<Vec<u8>>,
    effect: Option<Action>,
    keys: HashMap<Slot, u32>,
    live: HashMap<u32, Span>,
    next_key: u32,
    unregister: bool,
    budget: u64,
}

impl World {
    fn new(pin_all: bool, unregister: bool, budget: u64) -> Self {
        let (mut source, mut destination) = (SourceBlocks::new(), DestinationBlocks::new());
        for (index, len) in BLOCKS.into_iter().enumerate() {
            source.register("block", len).unwrap();
            destination.register("block", len, (index as u64 + 1) << 40).unwrap();
        }
        let mut server = Server::new(destination, pin_all, MIB).unwrap();
        server.serve(&Outgoing::RamBlocksRequest.to_vec().unwrap()).unwrap();
        let whole = if pin_all { vec![1001, 1002] } else { vec![] };
        let result = server.blocks_result(&whole).unwrap();
        let bytes = Outgoing::RamBlocksResult(&result).to_vec().unwrap();
        let Message::RamBlocksResult(elements) = Message::decode(&bytes).unwrap() else { panic!() };
        source.accept_result(&elements).unwrap();

        let agreed = Agreed { pin_all, ours: unregister, extensions: Extensions { unregister } };
        let config = Config { window_bytes: 64 * MIB, pinned_budget: budget };
        let policy = Policy { max_write: 8 * PAGE, short_zero: 4 * PAGE, max_compress: 100 * PAGE };
        let mut transfer = Transfer::new(source, agreed, config, policy).unwrap();
        let mut local = HashSet::new();
        if pin_all {
            transfer.pinned_here().unwrap();
            local.extend(transfer.windows().all());
        }
        let live = whole
            .iter()
            .zip(0u32..)
            .map(|(key, block)| (*key, Span { block, offset: 0, len: BLOCKS[block as usize] }));
        Self {
            guest: memory(0),
            dirty: HashSet::new(),
            version: 0,
            transfer,
            sender: Sender::new(RECVS),
            local,
            wire: VecDeque::new(),
            completions: VecDeque::new(),
            back: VecDeque::new(),
            // Not zero: what is never sent as zero must be noticed.
            there: memory(u32::MAX),
            server,
            receiver: Receiver::new(RECVS),
            arrived: VecDeque::new(),
            effect: None,
            keys: HashMap::new(),
            live: live.collect(),
            next_key: 1,
            unregister,
            budget,
        }
    }

    /// The guest writes pages; some become zero.
    fn guest_writes(&mut self, run: Span, zero: u64) {
        for page in run.offset / PAGE..run.end() / PAGE {
            self.version += 1;
            let value = if zero >> (page % 64) & 1 == 1 { 0 } else { self.version };
            self.guest[run.block as usize][page as usize] = value;
            self.dirty.insert((run.block, page));
        }
    }

    /// The engine offers pages as they are now.
    fn offer(&mut self, run: Span) -> bool {
        if !self.transfer.has_room() {
            return false;
        }
        let pages: Vec<u64> = (run.offset / PAGE..run.end() / PAGE).collect();
        let masks: Vec<u64> = pages
            .chunks(64)
            .map(|pages| {
                let zero = |page: &u64| self.guest[run.block as usize][*page as usize] == 0;
                (0..).zip(pages).map(|(bit, page)| u64::from(zero(page)) << bit).sum()
            })
            .collect();
        for page in pages {
            self.dirty.remove(&(run.block, page));
        }
        self.transfer.offer(run, PAGE, masks).unwrap();
        true
    }

    fn step_source(&mut self, flush: bool) -> bool {
        match self.transfer.poll(&mut self.sender, flush).unwrap() {
            Step::Send(message) => self.wire.push_back(OnWire::Send(message.to_vec().unwrap())),
            Step::RegisterLocal { window, span } => {
                assert_eq!(span, self.transfer.windows().span(window));
                assert!(self.local.insert(window));
                let bytes: u64 =
                    self.local.iter().map(|id| self.transfer.windows().span(*id).len).sum();
                assert!(bytes <= self.budget, "{bytes} bytes are registered here");
            }
            Step::DropLocal { window } => assert!(self.local.remove(&window)),
            Step::Write { window, span, remote_addr, rkey } => {
                assert!(span.len <= 8 * PAGE);
                self.wire.push_back(OnWire::Write { window, span, remote_addr, rkey });
            }
            Step::Wait { .. } | Step::Idle => return false,
        }
        true
    }

    fn step_wire(&mut self) -> bool {
        match self.wire.pop_front() {
            None => return false,
            Some(OnWire::Send(bytes)) => {
                assert!(self.arrived.len() < RECVS, "no RECV is posted: the connection would die");
                self.arrived.push_back(bytes);
            }
            Some(OnWire::Write { window, span, remote_addr, rkey }) => {
                let region = self.live[&rkey];
                let base = self.server.blocks().get(region.block).unwrap().host_addr;
                let offset = remote_addr - base;
                assert_eq!((region.block, offset), (span.block, span.offset));
                assert!(
                    offset >= region.offset && offset + span.len <= region.end(),
                    "past its key"
                );
                let own = self.transfer.windows().span(window);
                assert!(self.local.contains(&window) && own.block == span.block);
                assert!(own.offset <= span.offset && span.end() <= own.end());
                for page in span.offset / PAGE..span.end() / PAGE {
                    let (block, page) = (span.block as usize, page as usize);
                    self.there[block][page] = self.guest[block][page];
                }
                self.completions.push_back(window);
            }
        }
        true
    }

    fn step_back(&mut self) -> bool {
        let Some(bytes) = self.back.pop_front() else { return false };
        let message = Message::decode(&bytes).unwrap();
        let cleared = self.sender.received(message.kind()).unwrap();
        self.sender.reposted();
        if let Cleared::Response(_) = cleared {
            self.transfer.response(&message).unwrap();
        }
        true
    }

    fn step_completion(&mut self) -> bool {
        let Some(window) = self.completions.pop_front() else { return false };
        self.transfer.write_done(window).unwrap();
        true
    }

    /// The destination's CPU takes a message, and some time later has done what it says.
    fn step_destination(&mut self) -> bool {
        let Some(action) = self.effect.take() else {
            let Some(bytes) = self.arrived.pop_front() else { return false };
            self.receiver.received(Frame::decode(&bytes).unwrap().header.kind).unwrap();
            self.receiver.reposted();
            self.effect = Some(self.server.serve(&bytes).unwrap());
            return true;
        };
        match action {
            Action::Zero(span) => {
                for page in span.offset / PAGE..span.end() / PAGE {
                    self.there[span.block as usize][page as usize] = 0;
                }
            }
            Action::Register { registrations, repeat } => {
                let first = registrations[0];
                if !first.exists {
                    self.next_key += 1;
                    self.keys.insert(first.slot, self.next_key);
                    self.live.insert(self.next_key, first.span);
                }
                let reply = self.server.register_reply(&first, self.keys[&first.slot], repeat);
                self.answer(reply);
            }
            Action::Unregister { slots, repeat } => {
                let key = self.keys.remove(&slots[0]).unwrap();
                self.live.remove(&key).unwrap();
                self.answer(Outgoing::UnregisterFinished { repeat });
            }
            Action::Finished => {}
            Action::ReplyBlocks => panic!("only once"),
        }
        if self.unregister {
            assert!(self.server.registered_bytes() <= self.budget);
        }
        self.receiver.done().unwrap();
        true
    }

    fn answer(&mut self, message: Outgoing<'_>) {
        self.receiver.respond(message.kind()).unwrap();
        self.push_back(message);
    }

    fn push_back(&mut self, message: Outgoing<'_>) {
        assert!(self.back.len() < RECVS);
        self.back.push_back(message.to_vec().unwrap());
    }

    fn step_ready(&mut self) -> bool {
        if !self.receiver.may_ready() {
            return false;
        }
        self.receiver.ready().unwrap();
        self.push_back(Outgoing::Ready);
        true
    }

    fn step(&mut self, which: u8, flush: bool) -> bool {
        match which {
            0 | 1 => self.step_source(flush),
            2 | 3 => self.step_wire(),
            4 => self.step_back(),
            5 => self.step_completion(),
            6 => self.step_destination(),
            _ => self.step_ready(),
        }
    }

    /// One move of everybody; says whether any was possible.
    fn step_all(&mut self) -> bool {
        (0..8).filter(|which| self.step(*which, true)).count() > 0
    }

    /// Closes the window: everything goes out and is handled.
    fn close(&mut self) {
        for _ in 0..200_000 {
            let any = self.step_all();
            if self.transfer.drained() && self.sender.may_send() {
                self.sender.send(Kind::RegisterFinished).unwrap();
                let message = Outgoing::RegisterFinished.to_vec().unwrap();
                self.wire.push_back(OnWire::Send(message));
                while self.step_all() {}
                return;
            }
            assert!(any, "deadlock: {:?}", self.transfer);
        }
        panic!("never drained");
    }
}

#[derive(Clone, Debug)]
enum Event {
    Steps(Vec<(u8, bool)>),
    /// The guest writes a run; it is offered now, or only when a round ends.
    Write {
        run: Span,
        zero: u64,
        offered: bool,
    },
    Close,
}

fn run() -> impl Strategy<Value = Span> {
    (0u32..2, any::<u64>(), prop_oneof![4 => 1u64..6, 2 => 1u64..80, 1 => 1u64..600]).prop_map(
        |(block, at, pages)| {
            let all = BLOCKS[block as usize] / PAGE;
            // Often in the same few places, so that things happen to the same bytes.
            let first = if at % 3 == 0 { at % all } else { (250 + at % 16) % all };
            Span { block, offset: first * PAGE, len: pages.min(all - first) * PAGE }
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let zero = prop_oneof![
        3 => Just(0),
        3 => Just(u64::MAX),
        2 => any::<u64>(),
        1 => Just(0xffff_0000_00ff_0000),
    ];
    prop_oneof![
        6 => proptest::collection::vec((0u8..8, prop::bool::weighted(0.2)), 1..30).prop_map(Event::Steps),
        6 => (run(), zero, prop::bool::weighted(0.9))
            .prop_map(|(run, zero, offered)| Event::Write { run, zero, offered }),
        1 => Just(Event::Close),
    ]
}

proptest! {
    #[test]
    fn memory_comes_out_right(
        mode in 0u8..3,
        // Windows of 1 or 2 MiB, and not all of them fit.
        budget in 2u64..5,
        events in proptest::collection::vec(event(), 1..60),
    ) {
        let mut world = World::new(mode == 0, mode == 1, budget * MIB);
        if mode == 0 {
            // With pin-all the budget is not ours to keep.
            prop_assert_eq!(world.local.len(), BLOCKS.len());
        }
        for (block, len) in (0u32..).zip(BLOCKS) {
            let whole = Span { block, offset: 0, len };
            prop_assert!(world.offer(whole));
        }
        for event in events {
            match event {
                Event::Steps(steps) => {
                    for (which, flush) in steps {
                        world.step(which, flush);
                    }
                }
                Event::Write { run, zero, offered } => {
                    world.guest_writes(run, zero);
                    if offered {
                        world.offer(run);
                    }
                }
                Event::Close => world.close(),
            }
        }
        world.close();
        let mut left: Vec<_> = world.dirty.iter().copied().collect();
        left.sort_unstable();
        for (block, page) in left {
            let run = Span { block, offset: page * PAGE, len: PAGE };
            if !world.offer(run) {
                world.close();
                prop_assert!(world.offer(run));
            }
        }
        world.close();
        prop_assert!(world.there == world.guest, "the memories differ");
        prop_assert_eq!(world.transfer.windows().writes_in_flight(), 0);
    }
}
