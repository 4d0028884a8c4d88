//! A source against any destination.
//!
//! ```text
//!   0 options │ 1 rounds of writes │ … │ then events
//! ```

use std::{cell::RefCell, sync::Arc};

use mig_engine::{Capabilities, MigrationHandle, Owner, Parameters, Source};
use mig_proto::return_path::Message;
use mig_ram::RamBlocks;
use mig_testkit::memory_pair;
use mig_transport::{Receiver, Sender};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    Clock,
    guest::{Diary, FuzzGuest, Memory},
    meeting::Ready,
    next, next16, pieces, take, wait,
};

/// The target.
pub fn source(data: &[u8]) {
    thread_local! {
        static RAM: RefCell<Arc<RamBlocks>> = RefCell::new({
            let ram = Memory::block();
            Memory::fill(&ram);
            ram
        });
    }
    let Some((&[options, rounds], mut script)) = data.split_first_chunk() else { return };
    let writes = take(&mut script, usize::from(rounds % 16));
    let memory = Memory::new(RAM.with_borrow(Arc::clone), writes);
    let diary = Diary::default();
    let guest = FuzzGuest { diary: diary.clone(), refuses: options & 64 != 0 };
    let mut capabilities = Capabilities::default();
    capabilities.return_path = options & 1 != 0;
    capabilities.pause_before_switchover = options & 2 != 0;
    capabilities.xbzrle = options & 4 != 0;
    capabilities.auto_converge = options & 8 != 0;
    let mut parameters = Parameters::default();
    if options & 16 != 0 {
        // Slow enough that rounds take their time.
        parameters.max_bandwidth = 1 << 20;
        parameters.downtime_limit = 1;
    }
    parameters.xbzrle_cache_size = 16 * 1024;
    let mut source = Source::new(memory, Box::new(guest))
        .with_capabilities(capabilities)
        .with_parameters(parameters)
        .with_deadlines(Clock::Paused.deadlines());
    if options & 32 != 0 {
        source = source.with_switchover_start();
    }
    let handle = source.handle();
    let (mut ours, theirs) = memory_pair(if options & 128 == 0 { 64 * 1024 } else { 100 });
    let connector = Ready::new(vec![theirs]);
    let mut peer = Peer {
        sender: ours.take_sender().ok(),
        receiver: ours.take_receiver().ok(),
        said: Vec::new(),
    };
    drop(ours);
    let outcome = Clock::Paused.run(async {
        let playing = async {
            peer.play(script, &handle).await;
            peer.listen(usize::MAX, &handle).await;
            // Both halves stay open: who waits for more has only his deadline.
            std::future::pending::<()>().await;
        };
        // What waits for a user has no deadline; he comes back after an hour.
        let user = async {
            tokio::time::sleep(super::DAY / 24).await;
            handle.continue_switchover();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = user => unreachable!("it waits for ever"),
            outcome = source.run(&connector) => outcome,
            () = playing => unreachable!("it waits for ever"),
        }
    });
    let runs = diary.source_runs();
    let shut = Message::Shut { status: 0 }.to_bytes();
    let confirmed = peer.said.windows(shut.len()).any(|bytes| bytes == shut);
    match outcome {
        Ok(outcome) => {
            assert!(!runs, "the guest was given away and runs");
            assert_eq!(outcome.confirmed, capabilities.return_path);
            assert!(confirmed || !outcome.confirmed, "a yes that nobody said");
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            match error.owner() {
                Owner::Source => {
                    assert!(runs, "the source has the guest, which does not run: {error}")
                }
                _ => assert!(!runs, "the guest runs without an owner: {error}"),
            }
        }
    }
    assert!(handle.status().is_over());
}

/// What plays the destination.
struct Peer {
    sender: Option<Sender>,
    receiver: Option<Receiver>,
    said: Vec<u8>,
}

impl Peer {
    async fn play(&mut self, mut script: &[u8], handle: &MigrationHandle) {
        while let Some(event) = next(&mut script) {
            match event % 10 {
                0 => {
                    let len = usize::from(next(&mut script).unwrap_or(0));
                    let bytes = take(&mut script, len).to_vec();
                    self.say(&bytes).await;
                }
                1 | 2 => {
                    let (which, value) = (next(&mut script), next(&mut script));
                    let mut answer = Vec::new();
                    pieces::answer(&mut answer, which.unwrap_or(0), value.unwrap_or(0));
                    self.say(&answer).await;
                }
                3 => self.listen(usize::from(next16(&mut script)), handle).await,
                4 => tokio::time::sleep(wait(next(&mut script).unwrap_or(0))).await,
                5 => handle.cancel(),
                6 => self.sender = None,
                7 => self.receiver = None,
                8 => handle.continue_switchover(),
                _ => {
                    let mut parameters = handle.parameters();
                    parameters.max_bandwidth = u64::from(next16(&mut script)) << 6;
                    parameters.downtime_limit = u64::from(next(&mut script).unwrap_or(0)) << 4;
                    parameters.xbzrle_cache_size = u64::from(next(&mut script).unwrap_or(0)) << 10;
                    handle.set_parameters(parameters);
                }
            }
        }
    }

    async fn say(&mut self, bytes: &[u8]) {
        let Some(sender) = &mut self.sender else { return };
        match sender.write_all(bytes).await {
            Ok(()) => self.said.extend_from_slice(bytes),
            Err(_) => self.sender = None,
        }
    }

    /// Reads so many bytes, or until there are none.
    async fn listen(&mut self, bytes: usize, handle: &MigrationHandle) {
        let mut left = bytes;
        let mut buffer = [0; 4096];
        while left > 0 {
            let Some(receiver) = &mut self.receiver else { return };
            let room = left.min(buffer.len());
            match receiver.read(&mut buffer[..room]).await {
                Ok(len) if len > 0 => left -= len,
                _ => self.receiver = None,
            }
            let _ = handle.status();
        }
    }
}
