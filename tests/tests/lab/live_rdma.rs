//! A guest that is written while it migrates over `rdma:`, by the library: round after round, with every hook of the
//! transport called in its order.
//!
//! ```text
//!   Source ── Recorded ── hooks of rdma: ──▶ hooks of rdma: ── Recorded ── Destination
//!                 └ writes guest memory: in the open window, behind what was just taken over, and between windows
//! ```
//! Nobody writes at any rate, so the number of rounds does not depend on how slow the lab is.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use async_trait::async_trait;
use mig::bench::{SyntheticGuest, Workload};
use mig::engine::{Capabilities, Destination, Outcome, Parameters, Source};
use mig::ram::{GuestMemory, RamBlock, RamBlocks};
use mig::transport::{
    Blame, Channel, ChannelParts, Connector, Listener, MigrationAddress, RamBlockInfo, RamHooks,
    ReceiveHalf, Receiver, Region, RegionSlice, Result, SavePages, SendHalf, Sender, WindowReason,
};
use mig::{ConnectOptions, ListenOptions};
use mig_tests::guest::assert_same_memory;
use mig_tests::lab;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::in_the_lab_without_a_trace;

const PAGE: usize = 4096;
const RAM: usize = 24 << 20;
/// Windows in which the guest is written, and behind each of which it is written.
const WRITTEN_ROUNDS: u64 = 4;

/// What both ends' hooks were asked, in order.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<String>>>);

impl Calls {
    fn note(&self, call: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }

    /// Of one end. Calls that are alike and follow each other are one.
    fn of(&self, end: &str) -> Vec<String> {
        let calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = calls.iter().filter_map(|call| call.strip_prefix(end).map(str::to_owned));
        let mut own: Vec<String> = own.collect();
        own.dedup();
        own
    }
}

/// The guest's hand in its memory.
struct Writer {
    ram: RegionSlice,
    rounds_left: u64,
    word: u64,
}

impl Writer {
    /// Changes a word in each page of a range.
    fn write(&mut self, from: usize, pages: usize) {
        for page in 0..pages {
            self.word += 1;
            let at = from + page * PAGE + (self.word as usize * 8) % PAGE;
            let word = self.ram.sub(at, 8).expect("the range lies in the guest");
            word.copy_in(&self.word.to_be_bytes());
        }
    }
}

/// A transport's hooks, and a note of each call.
struct Recorded {
    end: &'static str,
    hooks: Box<dyn RamHooks>,
    calls: Calls,
    /// At the source.
    writer: Option<Writer>,
}

impl Recorded {
    fn note(&self, call: &str) {
        self.calls.note(format!("{} {call}", self.end));
    }
}

#[async_trait]
impl RamHooks for Recorded {
    fn active(&self) -> bool {
        self.hooks.active()
    }

    fn report_life(&mut self, alive: Arc<dyn Fn() + Send + Sync>) {
        self.hooks.report_life(alive);
    }

    async fn register_block(&mut self, block: &RamBlockInfo) -> Result<()> {
        self.note(&format!("register {}", block.idstr));
        self.hooks.register_block(block).await
    }

    async fn before_iterate(&mut self, reason: WindowReason) -> Result<()> {
        self.note(&format!("before {reason:?}"));
        self.hooks.before_iterate(reason).await
    }

    async fn save_pages(&mut self, block: usize, offset: u64, len: u64) -> Result<SavePages> {
        self.note("save");
        let saved = self.hooks.save_pages(block, offset, len).await?;
        assert!(matches!(saved, SavePages::Delayed { .. }), "rdma: takes every page: {saved:?}");
        if let Some(writer) = self.writer.as_mut().filter(|writer| writer.rounds_left > 0) {
            // What is perhaps under way right now.
            writer.write(offset as usize, (len as usize / PAGE).min(64));
        }
        Ok(saved)
    }

    async fn after_iterate(&mut self, reason: WindowReason) -> Result<()> {
        self.note(&format!("after {reason:?}"));
        self.hooks.after_iterate(reason).await?;
        if let Some(writer) = self.writer.as_mut().filter(|_| reason == WindowReason::Round)
            && writer.rounds_left > 0
        {
            writer.rounds_left -= 1;
            // Here and there, zero pages and others.
            for part in 0..64 {
                writer.write(part * RAM / 64, 7);
            }
        }
        Ok(())
    }

    async fn load_hook(&mut self) -> Result<()> {
        self.note("load");
        self.hooks.load_hook().await
    }

    async fn release(&mut self) -> Result<()> {
        self.note("release");
        self.hooks.release().await
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.note("dropped");
    }
}

/// The halves of a channel as parts of another.
struct In(Receiver);
struct Out(Sender);

impl AsyncRead for In {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl ReceiveHalf for In {}

impl AsyncWrite for Out {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl SendHalf for Out {}

/// Channels with recorded hooks.
struct Recording<T> {
    end: &'static str,
    inner: T,
    calls: Calls,
    ram: RegionSlice,
}

impl<T> Recording<T> {
    fn wrap(&self, mut channel: Channel) -> Channel {
        let writes = self.end == "source";
        let writer = Writer { ram: self.ram.clone(), rounds_left: WRITTEN_ROUNDS, word: 0 };
        let hooks = Recorded {
            end: self.end,
            hooks: channel.take_ram_hooks(),
            calls: self.calls.clone(),
            writer: writes.then_some(writer),
        };
        Channel::new(ChannelParts {
            receive: channel.take_receiver().ok().map(|half| Box::new(In(half)) as _),
            send: channel.take_sender().ok().map(|half| Box::new(Out(half)) as _),
            force: None,
            hooks: Some(Box::new(hooks)),
            capabilities: channel.capabilities(),
            endpoint: channel.endpoint().clone(),
            peer: channel.peer(),
        })
    }
}

#[async_trait]
impl Connector for Recording<Box<dyn Connector>> {
    async fn connect(&self) -> Result<Channel> {
        Ok(self.wrap(self.inner.connect().await?))
    }

    fn is_two_way(&self) -> Option<bool> {
        self.inner.is_two_way()
    }

    fn has_ram_hooks(&self) -> bool {
        self.inner.has_ram_hooks()
    }
}

#[async_trait]
impl Listener for Recording<Box<dyn Listener>> {
    async fn accept(&mut self) -> Result<Channel> {
        let channel = self.inner.accept().await?;
        Ok(self.wrap(channel))
    }

    fn local_addresses(&self) -> Vec<String> {
        self.inner.local_addresses()
    }
}

/// How a live migration is set up.
#[derive(Clone, Copy, Default)]
struct Plan {
    ipv6: bool,
    pin_all: bool,
    budget: Option<u64>,
    return_path: bool,
}

fn memory() -> (Arc<RamBlocks>, RegionSlice) {
    let block = RamBlock::new("live.ram", RAM as u64).expect("the lab has the memory");
    let ram = Arc::new(RamBlocks::new([block]).expect("one block"));
    let region: Arc<dyn Region> = ram.block(0).expect("one block was made").region;
    (ram, RegionSlice::whole(region))
}

fn bytes(ram: &RegionSlice) -> Vec<u8> {
    let mut all = vec![0; ram.len()];
    ram.copy_out(&mut all);
    all
}

/// Migrates, and demands the same memory and the right order; gives what the source says.
fn arrives(plan: Plan) -> std::result::Result<Outcome, mig::engine::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a test may have a runtime").block_on(async {
        let ((source_ram, from), (destination_ram, to)) = (memory(), memory());
        let fill = Workload {
            dirty_rate: 0,
            working_set: 0,
            zero_percent: 30,
            compressible_percent: 10,
            seed: 17,
        };
        let region = |ram: &RegionSlice| Arc::clone(ram.region());
        let guest = SyntheticGuest::running(region(&from), fill);
        let mut capabilities = Capabilities::default();
        capabilities.return_path = plan.return_path;
        // Nothing that was written fits: the guest is stopped when it writes no more.
        let mut parameters = Parameters::default();
        parameters.downtime_limit = 1;
        let mut source = Source::new(source_ram, Box::new(guest))
            .with_capabilities(capabilities)
            .with_parameters(parameters);
        let incoming = Box::new(SyntheticGuest::incoming(region(&to)));
        let mut destination = Destination::new(destination_ram, incoming);

        let host = if plan.ipv6 { format!("[{}]", lab::IPV6) } else { lab::IPV4.into() };
        let at = MigrationAddress::parse(&format!("rdma:{host}:{}", lab::port()));
        let at = at.expect("an address of the lab");
        let (mut listen, mut connect) = (ListenOptions::default(), ConnectOptions::default());
        (listen.return_path, connect.return_path) = (plan.return_path, plan.return_path);
        (listen.rdma_pinned_memory, connect.rdma_pinned_memory) = (plan.budget, plan.budget);
        connect.rdma_pin_all = plan.pin_all;
        let calls = Calls::default();
        let listener = mig::listener(&at, &listen).await.expect("the lab has the address");
        let mut listener = Recording {
            end: "destination",
            inner: listener,
            calls: calls.clone(),
            ram: to.clone(),
        };
        let connector = mig::connector(&at, &connect).expect("the lab has a device");
        let connector =
            Recording { end: "source", inner: connector, calls: calls.clone(), ram: from.clone() };
        let (sent, received) = tokio::join!(source.run(&connector), destination.run(&mut listener));
        let sent = sent?;
        received.expect("the destination has the guest");
        drop((source, destination, connector, listener));

        assert_same_memory("live", &bytes(&from), &bytes(&to));
        assert_eq!(sent.confirmed, plan.return_path);
        check_order(&calls);
        if let Some(budget) = plan.budget {
            for (end, counters) in
                [("source", &connect.rdma_counters), ("destination", &listen.rdma_counters)]
            {
                let peak = counters.registered_peak_bytes();
                assert!((1..=budget).contains(&peak), "{end} had {peak} bytes registered");
            }
        }
        Ok(sent)
    })
}

/// Every hook, as docs/wire/rdma.md §6 has them: one window for the setup, one or more a round, one at the end. Pages only
/// inside windows; a window without any is as good as another.
fn check_order(calls: &Calls) {
    let mut windows = calls.of("source ");
    let mut open = false;
    for call in &windows {
        match call.as_str() {
            "before Round" | "before Finish" => open = true,
            "save" => assert!(open, "pages outside of a window: {windows:?}"),
            _ => open = false,
        }
    }
    windows.retain(|call| call != "save");
    let rounds = windows.iter().filter(|call| *call == "before Round").count();
    assert!(rounds as u64 > WRITTEN_ROUNDS, "{windows:?}");
    let mut expected = vec!["register live.ram", "before Setup", "after Setup"];
    expected.extend(["before Round", "after Round"].repeat(rounds));
    expected.extend(["before Finish", "after Finish", "dropped"]);
    assert_eq!(windows, expected);

    let destination = calls.of("destination ");
    assert_eq!(destination, ["register live.ram", "load", "release", "dropped"]);
    let loads = calls.0.lock().unwrap_or_else(PoisonError::into_inner);
    let loads = loads.iter().filter(|call| *call == "destination load").count();
    assert_eq!(loads, rounds + 2, "one a window");
}

/// Kernels before 6.2 do not pin what the dirty log write-protects, so there memory cannot be pinned piece by piece.
fn pins_what_is_protected() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux has it");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 2)
}

fn works(plan: Plan) {
    let outcome = arrives(plan);
    if plan.budget.is_some() && !pins_what_is_protected() {
        let refused = outcome.expect_err("the kernel lets nobody do it");
        assert_eq!(refused.blame(), Blame::Unavailable, "{refused}");
        return;
    }
    let sent = outcome.expect("the source has given the guest away");
    // A round may have more than one window.
    assert!(sent.info.ram.dirty_sync_count > 2, "{:?}", sent.info.ram);
    // Everything once, and what was written again.
    assert!(sent.info.ram.normal > (RAM / PAGE) as u64 * 6 / 10, "{:?}", sent.info.ram);
    assert!(sent.info.ram.duplicate > 0, "{:?}", sent.info.ram);
}

macro_rules! each {
    ($($name:ident: $plan:expr;)*) => { $(
        #[test]
        fn $name() {
            in_the_lab_without_a_trace(|| works($plan));
        }
    )* };
}

each! {
    chunked: Plan::default();
    chunked_return_path: Plan { return_path: true, ..Plan::default() };
    pin_all_return_path: Plan { pin_all: true, return_path: true, ..Plan::default() };
    small_budget: Plan { budget: Some(4 << 20), ..Plan::default() };
    small_budget_return_path_ipv6:
        Plan { budget: Some(4 << 20), return_path: true, ipv6: true, ..Plan::default() };
    pin_all_ipv6: Plan { pin_all: true, ipv6: true, ..Plan::default() };
}
