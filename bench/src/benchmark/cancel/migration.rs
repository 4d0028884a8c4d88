//! Migrations of the library in this process, each end on a thread of its own.
//!
//! The guest's memory says at every look that all of it was written, and the guest may not stand still: a migration that
//! nobody cancels does not end.

use std::{
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use mig_engine::{Capabilities, Destination, MigrationHandle, Outcome, Owner, Parameters, Source};
use mig_proto::state::MigrationStatus;
use mig_ram::{GuestMemory, RamBlocks};
use mig_transport::{Blame, Connector, Receiver};
use tokio::{io::AsyncReadExt, runtime::Runtime, sync::oneshot, task::JoinSet};

use super::situation::Cancelled;
use crate::{
    child::STEP,
    failure::Result,
    memory::guest_ram,
    role::{Contents, IdleGuest, Pattern, Patterned, listener},
};

/// The memory of both guests, for as many migrations as one likes, one after the other.
#[derive(Clone)]
pub(super) struct Guests {
    source: Arc<Patterned>,
    destination: Arc<RamBlocks>,
}

impl Guests {
    pub(super) const BYTES: u64 = 512 << 20;

    pub(super) fn new() -> Result<Self> {
        let source = Patterned::new(guest_ram(Self::BYTES)?, Pattern::Everything(u32::MAX));
        Contents::Quarter(11).put_into(source.ram())?;
        let destination = Arc::new(guest_ram(Self::BYTES)?);
        Ok(Self { source: Arc::new(source), destination })
    }

    /// A source that would go on for ever, with a return path.
    pub(super) fn source(&self, tell: impl FnOnce(&mut Capabilities, &mut Parameters)) -> Source {
        let (mut capabilities, mut parameters) = <(Capabilities, Parameters)>::default();
        capabilities.return_path = true;
        parameters.downtime_limit = 0;
        tell(&mut capabilities, &mut parameters);
        Source::new(Arc::clone(&self.source) as _, Box::new(IdleGuest))
            .with_capabilities(capabilities)
            .with_parameters(parameters)
    }

    /// A destination.
    pub(super) fn destination(
        &self,
        tell: impl FnOnce(&mut Capabilities, &mut Parameters),
    ) -> Destination {
        let (mut capabilities, mut parameters) = <(Capabilities, Parameters)>::default();
        tell(&mut capabilities, &mut parameters);
        let memory = Arc::clone(&self.destination) as Arc<dyn GuestMemory>;
        Destination::new(memory, Box::new(IdleGuest))
            .with_capabilities(capabilities)
            .with_parameters(parameters)
    }
}

/// Nothing else than usual.
pub(super) fn as_usual(_: &mut Capabilities, _: &mut Parameters) {}

/// One end of a migration, under way.
pub(super) struct Running {
    pub(super) handle: MigrationHandle,
    ended: mpsc::Receiver<Ended>,
}

/// How it ended.
pub(super) struct Ended {
    pub(super) at: Instant,
    pub(super) outcome: mig_engine::Result<Outcome>,
}

impl Running {
    /// Lets a source run.
    pub(super) fn source(mut source: Source, connector: Box<dyn Connector>) -> Result<Self> {
        let (to, ended) = mpsc::channel();
        let handle = source.handle();
        on_a_thread(move |runtime| {
            let outcome = runtime.block_on(source.run(&*connector));
            let _nobody = to.send(Ended { at: Instant::now(), outcome });
            Ok(())
        })?;
        Ok(Self { handle, ended })
    }

    /// Lets a destination listen and run; answers where, too.
    pub(super) fn destination(
        mut destination: Destination,
        uri: String,
        tls: Option<PathBuf>,
    ) -> Result<(Self, String)> {
        let (to, ended) = mpsc::channel();
        let (addresses, address) = mpsc::channel();
        let handle = destination.handle();
        on_a_thread(move |runtime| {
            let mut listener = runtime.block_on(listener(&uri, tls.as_deref()))?;
            addresses.send(listener.local_addresses())?;
            let outcome = runtime.block_on(destination.run(&mut *listener));
            let _nobody = to.send(Ended { at: Instant::now(), outcome });
            Ok(())
        })?;
        let address = first_address(&address)?;
        Ok((Self { handle, ended }, address))
    }

    /// Waits until something is so.
    pub(super) fn until(&self, so: impl Fn(&MigrationHandle) -> bool) -> Result<()> {
        let deadline = Instant::now() + STEP;
        while !so(&self.handle) {
            self.still_runs()?;
            if Instant::now() >= deadline {
                let info = serde_json::to_string(&self.handle.info())?;
                return Err(
                    format!("it did not come to where it is to be cancelled: {info}").into()
                );
            }
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }

    /// Waits until this many bytes were sent.
    pub(super) fn until_sent(&self, bytes: u64) -> Result<()> {
        self.until(|handle| handle.info().ram.transferred >= bytes)
    }

    /// Waits until nothing more is sent.
    pub(super) fn until_stuck(&self) -> Result<()> {
        const STILL: Duration = Duration::from_millis(20);
        self.until(|handle| {
            let before = handle.info().ram.transferred;
            thread::sleep(STILL);
            handle.status() == MigrationStatus::Active && handle.info().ram.transferred == before
        })
    }

    /// How it ended.
    pub(super) fn ended(&self) -> Result<Ended> {
        self.ended.recv_timeout(STEP).map_err(|_| "one end does not end".into())
    }

    /// Cancels it; who else is to hear of it is asked for when this end has ended.
    pub(super) fn cancelled(
        self,
        stay: Duration,
        owner: Owner,
        far: impl FnOnce() -> Result<Option<Instant>>,
    ) -> Result<Cancelled> {
        thread::sleep(stay);
        self.still_runs()?;
        let asked = Instant::now();
        self.handle.cancel();
        let ended = self.ended()?;
        let Err(error) = ended.outcome else { return Err("it was completed instead".into()) };
        let status = self.handle.status();
        if error.blame() != Blame::Cancelled
            || error.owner() != owner
            || status != MigrationStatus::Cancelled
        {
            let whose = error.owner();
            return Err(format!("it is {status:?}, the guest is {whose:?}'s: {error}").into());
        }
        Ok(Cancelled::between(asked, ended.at, far()?))
    }

    fn still_runs(&self) -> Result<()> {
        match self.ended.try_recv() {
            Ok(Ended { outcome: Err(error), .. }) => Err(format!("it ended early: {error}").into()),
            Ok(Ended { outcome: Ok(_), .. }) => Err("it was completed".into()),
            Err(mpsc::TryRecvError::Empty) => Ok(()),
            Err(mpsc::TryRecvError::Disconnected) => Err("it could not begin".into()),
        }
    }
}

/// A far end that opens its door, reads nothing, and reads on when it is told.
pub(super) struct Held {
    pub(super) address: String,
    arrived: mpsc::Receiver<()>,
    read_on: oneshot::Sender<()>,
    ended: mpsc::Receiver<Instant>,
}

impl Held {
    /// One that takes so many channels.
    pub(super) fn open(uri: &'static str, tls: Option<PathBuf>, channels: usize) -> Result<Self> {
        let (addresses, address) = mpsc::channel();
        let (arrivals, arrived) = mpsc::channel();
        let (read_on, told) = oneshot::channel();
        let (to, ended) = mpsc::channel();
        on_a_thread(move |runtime| {
            runtime.block_on(async {
                let mut listener = listener(uri, tls.as_deref()).await?;
                addresses.send(listener.local_addresses())?;
                let mut held = Vec::new();
                for _ in 0..channels {
                    held.push(listener.accept().await?);
                    arrivals.send(())?;
                }
                // Whoever never asks for it to be read on has failed.
                if told.await.is_err() {
                    return Ok(());
                }
                let mut readers = JoinSet::new();
                for channel in &mut held {
                    readers.spawn(to_its_end(channel.take_receiver()?));
                }
                readers.join_all().await;
                to.send(Instant::now())?;
                Ok(())
            })
        })?;
        Ok(Self { address: first_address(&address)?, arrived, read_on, ended })
    }

    /// Waits for so many channels.
    pub(super) fn arrived(&self, channels: usize) -> Result<()> {
        for _ in 0..channels {
            self.arrived.recv_timeout(STEP).map_err(|_| "a channel does not come")?;
        }
        Ok(())
    }

    /// Reads on; answers when all channels were at their end.
    pub(super) fn read_on(self) -> Result<Option<Instant>> {
        self.read_on.send(()).map_err(|()| "the far end is gone")?;
        Ok(Some(self.ended.recv_timeout(STEP).map_err(|_| "the far end hears nothing")?))
    }
}

async fn to_its_end(mut from: Receiver) {
    let mut bytes = vec![0; 1 << 20];
    while from.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
}

fn first_address(addresses: &mpsc::Receiver<Vec<String>>) -> Result<String> {
    let addresses = addresses.recv_timeout(STEP).map_err(|_| "nobody listens")?;
    Ok(addresses.into_iter().next().ok_or("a listener without an address")?)
}

/// Runs something on a thread and a runtime of its own, as the tool does.
fn on_a_thread(job: impl FnOnce(&Runtime) -> Result<()> + Send + 'static) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("migration".into()).spawn(move || {
        if let Err(error) = job(&runtime) {
            eprintln!("{}", crate::failure::chain(&*error));
        }
        // What hangs in the operating system is left behind.
        runtime.shutdown_background();
    })?;
    Ok(())
}
