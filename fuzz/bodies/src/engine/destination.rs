//! A destination against any source.
//!
//! ```text
//!   0 options │ then events: which, and what belongs to it
//! ```

use std::{cell::RefCell, sync::Arc, time::Duration};

use mig_engine::{Capabilities, Destination, Owner, Parameters};
use mig_proto::return_path::Message;
use mig_ram::{Copying, PlaceMechanism, PlacePolicy, PlacementOptions, RamBlocks, Warmth};
use mig_testkit::memory_pair;
use mig_transport::{Receiver, Sender};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::{
    Clock,
    guest::{Diary, FuzzGuest, Memory},
    meeting::Arriving,
    next, next16, pieces, take, wait,
};

const MULTIFD: u8 = 1;
const REFUSES: u8 = 2;
const NARROW: u8 = 4;

/// The target.
pub fn destination(data: &[u8]) {
    thread_local! {
        static RAM: RefCell<Arc<RamBlocks>> = RefCell::new(Memory::block());
    }
    let Some((&options, script)) = data.split_first() else { return };
    let memory = Memory::new(RAM.with_borrow(Arc::clone), &[]);
    let diary = Diary::default();
    let guest = FuzzGuest { diary: diary.clone(), refuses: options & REFUSES != 0 };
    let multifd = options & MULTIFD != 0;
    let clock = if multifd { Clock::Real } else { Clock::Paused };
    let mut capabilities = Capabilities::default();
    capabilities.multifd = multifd;
    let mut parameters = Parameters::default();
    parameters.multifd_channels = 2;
    let mut destination = Destination::new(memory, Box::new(guest))
        .with_capabilities(capabilities)
        .with_parameters(parameters)
        .with_placing(placing())
        .with_deadlines(clock.deadlines());
    let handle = destination.handle();
    let (mut listener, door) = Arriving::new();
    let longest_wait = match clock {
        Clock::Paused => Duration::from_secs(700),
        Clock::Real => Duration::from_millis(8),
    };
    let buffer_bytes = if options & NARROW == 0 { 64 * 1024 } else { 7 };
    let mut peer = Peer::new(door, buffer_bytes, longest_wait);
    let (outcome, said) = clock.run(async {
        let playing = async {
            peer.play(script, &handle).await;
            peer.wait_for_the_end(clock).await
        };
        let receiving = async {
            let outcome = destination.run(&mut listener).await;
            // Whoever was not accepted is hung up on.
            drop(listener);
            outcome
        };
        tokio::join!(receiving, playing)
    });
    let runs = diary.destination_runs();
    let said_yes = said.windows(8).any(|bytes| bytes == Message::Shut { status: 0 }.to_bytes());
    match outcome {
        Ok(outcome) => {
            assert!(runs, "a success without a guest that runs");
            assert!(!said.is_empty() || !outcome.confirmed || peer.deaf);
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(!runs, "the guest runs, and the migration failed: {error}");
            if error.owner() == Owner::Source {
                assert!(
                    !said_yes,
                    "SHUT 0 went out, and the guest is called the source's: {error}"
                );
            }
        }
    }
    assert!(handle.status().is_over());
}

pub(crate) fn placing() -> PlacementOptions {
    PlacementOptions {
        policy: PlacePolicy::Only(PlaceMechanism::Plain),
        copying: Copying::Inline,
        warmth: Warmth::Warm,
        staging_pages: 4,
    }
}

/// What plays the source.
struct Peer {
    door: mpsc::UnboundedSender<mig_transport::Channel>,
    buffer_bytes: usize,
    longest_wait: Duration,
    /// Channels it opened; a half that was given up is none.
    channels: Vec<(Option<Sender>, Option<Receiver>)>,
    said: Vec<u8>,
    /// It has closed its ear on some channel, so that it may have missed something.
    deaf: bool,
}

impl Peer {
    fn new(
        door: mpsc::UnboundedSender<mig_transport::Channel>,
        buffer_bytes: usize,
        longest_wait: Duration,
    ) -> Self {
        let (channels, said) = (Vec::new(), Vec::new());
        Self { door, buffer_bytes, longest_wait, channels, said, deaf: false }
    }

    fn open(&mut self) {
        let (mut ours, theirs) = memory_pair(self.buffer_bytes);
        self.channels.push((ours.take_sender().ok(), ours.take_receiver().ok()));
        // A destination that is done accepts nobody.
        let _ = self.door.send(theirs);
    }

    async fn play(&mut self, mut script: &[u8], handle: &mig_engine::MigrationHandle) {
        self.open();
        while let Some(event) = next(&mut script) {
            let at = usize::from(event >> 4) % self.channels.len();
            match event % 12 {
                0 => {
                    let len = usize::from(next(&mut script).unwrap_or(0));
                    let bytes = take(&mut script, len).to_vec();
                    self.send(at, &bytes).await;
                }
                1..=4 => {
                    let (which, value) = (next16(&mut script) >> 8, script.len() as u8);
                    let mut piece = Vec::new();
                    pieces::main_channel(&mut piece, which as u8, value);
                    self.send(at, &piece).await;
                }
                5 => {
                    let mut piece = Vec::new();
                    let which = next(&mut script).unwrap_or(0);
                    pieces::data_channel(&mut piece, which, next(&mut script).unwrap_or(0));
                    self.send(at, &piece).await;
                }
                6 => {
                    let wait = wait(next(&mut script).unwrap_or(0));
                    tokio::time::sleep(wait.min(self.longest_wait)).await;
                }
                7 if self.channels.len() < 6 => self.open(),
                8 => handle.cancel(),
                9 => self.channels[at].0 = None,
                10 => {
                    self.deaf = true;
                    self.channels[at].1 = None;
                }
                _ => {
                    let mut parameters = handle.parameters();
                    parameters.max_bandwidth = next16(&mut script).into();
                    handle.set_parameters(parameters);
                }
            }
        }
    }

    /// Sends while listening, as a real source does.
    async fn send(&mut self, at: usize, bytes: &[u8]) {
        let (Some(sender), receiver) = &mut self.channels[at] else { return };
        let mut answers = [0; 64];
        let mut left = bytes;
        while !left.is_empty() {
            let hearing = async {
                match receiver {
                    Some(receiver) => receiver.read(&mut answers).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                sent = sender.write(left) => match sent {
                    Ok(len) if len > 0 => left = &left[len..],
                    _ => return,
                },
                heard = hearing => match heard {
                    Ok(len) if len > 0 => self.said.extend_from_slice(&answers[..len]),
                    _ => *receiver = None,
                },
            }
        }
    }

    /// Listens until all hang up; where time is real, it hangs up first.
    async fn wait_for_the_end(&mut self, clock: Clock) -> Vec<u8> {
        for (sender, receiver) in &mut self.channels {
            if clock == Clock::Real {
                *sender = None;
            }
            if let Some(receiver) = receiver {
                let _ = receiver.read_to_end(&mut self.said).await;
            }
        }
        std::mem::take(&mut self.said)
    }
}
