//! Connectors, listeners and channels that ask before they do anything.

use std::{
    future::pending,
    sync::atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use mig_transport::{
    Channel, ChannelParts, Connector, Error, ForceShutdown, Listener, Result, ShutdownHandle,
};

use super::{
    halves::{FaultyReceive, FaultySend},
    plan::{Faults, Operation, Order},
};

/// A connector around another.
pub struct FaultyConnector {
    inner: Box<dyn Connector>,
    faults: Faults,
    opened: AtomicUsize,
}

impl FaultyConnector {
    /// Disturbs what `inner` opens.
    pub fn new(inner: Box<dyn Connector>, faults: &Faults) -> Self {
        Self { inner, faults: faults.clone(), opened: AtomicUsize::new(0) }
    }
}

#[async_trait]
impl Connector for FaultyConnector {
    async fn connect(&self) -> Result<Channel> {
        attempt(&self.faults, Operation::Connect, "connecting").await?;
        let channel = self.inner.connect().await?;
        self.faults.done(0, Operation::Connect, 0);
        Ok(wrap(channel, &self.faults, self.opened.fetch_add(1, Ordering::Relaxed)))
    }

    fn is_two_way(&self) -> Option<bool> {
        self.inner.is_two_way()
    }

    fn has_ram_hooks(&self) -> bool {
        self.inner.has_ram_hooks()
    }
}

/// A listener around another.
pub struct FaultyListener {
    inner: Box<dyn Listener>,
    faults: Faults,
    opened: usize,
}

impl FaultyListener {
    /// Disturbs what `inner` accepts.
    pub fn new(inner: Box<dyn Listener>, faults: &Faults) -> Self {
        Self { inner, faults: faults.clone(), opened: 0 }
    }
}

#[async_trait]
impl Listener for FaultyListener {
    async fn accept(&mut self) -> Result<Channel> {
        attempt(&self.faults, Operation::Accept, "accepting").await?;
        let channel = self.inner.accept().await?;
        self.faults.done(0, Operation::Accept, 0);
        self.opened += 1;
        Ok(wrap(channel, &self.faults, self.opened - 1))
    }

    fn local_addresses(&self) -> Vec<String> {
        self.inner.local_addresses()
    }

    fn last_dropped(&mut self) -> Option<Error> {
        self.inner.last_dropped()
    }

    fn nobody_is_missing(&mut self, nobody: bool) {
        self.inner.nobody_is_missing(nobody);
    }
}

/// # Cancel safety
///
/// Cancel safe; a failure that was given out is spent.
async fn attempt(faults: &Faults, operation: Operation, doing: &str) -> Result<()> {
    match faults.order(0, operation) {
        Order::Stall => pending().await,
        Order::Fail(error) => Err(Error::io(doing, error)),
        _ => Ok(()),
    }
}

/// A channel whose halves, hooks and shutdown are those of `inner`.
fn wrap(mut inner: Channel, faults: &Faults, number: usize) -> Channel {
    let capabilities = inner.capabilities();
    let identity = inner.identity().cloned();
    let receive = inner.take_receiver().ok();
    let send = inner.take_sender().ok();
    Channel::new(ChannelParts {
        receive: receive.map(|inner| FaultyReceive::boxed(inner, faults.clone(), number)),
        send: send.map(|inner| FaultySend::boxed(inner, faults.clone(), number)),
        force: Some(Box::new(Stop(inner.shutdown_handle()))),
        hooks: capabilities.direct_ram_writes.then(|| inner.take_ram_hooks()),
        capabilities,
        endpoint: inner.endpoint().clone(),
        peer: inner.peer(),
    })
    .with_identity(identity)
}

struct Stop(ShutdownHandle);

impl ForceShutdown for Stop {
    fn force_shutdown(&self) {
        self.0.shutdown();
    }
}
