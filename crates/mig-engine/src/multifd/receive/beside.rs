//! The main channel where data channels run beside it: it reads as far as a mark, and waits there.

use std::{sync::Arc, time::Duration};

use mig_proto::Event;
use mig_stream::{IdleClock, StreamReader};

use super::{
    hub::Hub,
    layout::Layout,
    marks::{Marks, Stop},
};
use crate::error::{Error, Result};

/// See the module.
#[derive(Debug)]
pub(crate) struct Beside {
    hub: Arc<Hub>,
    marks: Marks,
    idle: Option<Arc<IdleClock>>,
    /// How long channels may take to come that must have been connected.
    arrival: Duration,
}

impl Beside {
    /// Waits are bounded by `idle`, those for a channel to come by `arrival`.
    pub(crate) fn new(hub: &Arc<Hub>, idle: Option<Arc<IdleClock>>, arrival: Duration) -> Self {
        Self { hub: Arc::clone(hub), marks: Marks::default(), idle, arrival }
    }

    /// Where main and the data channels meet.
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Tells the data channels where pages belong, once that is known.
    pub(crate) fn tell_layout(&self, layout: Option<&Arc<Layout>>) {
        if let Some(layout) = layout {
            self.hub.set_layout(layout);
        }
    }

    /// Notes an event; answers whether main may go on reading.
    pub(crate) fn note(&mut self, event: &Event<'_>) -> bool {
        self.marks.note(event, &self.hub)
    }

    /// What main has to do before it goes on; what it brought must be in memory first.
    pub(crate) fn take_due(&mut self) -> Option<Stop> {
        self.marks.take_due()
    }

    /// Does it. The channel is watched meanwhile, so that its end is noticed.
    ///
    /// # Errors
    ///
    /// A data channel ended too early, main broke, or nothing moved anywhere for the idle deadline.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: a mark may have been passed.
    pub(crate) async fn pass(&self, stop: Stop, reader: &mut StreamReader) -> Result<()> {
        let passed = async {
            if stop.mark {
                self.hub.pass_mark(self.arrival).await?;
            }
            if stop.last {
                self.hub.close().await;
            }
            Ok(())
        };
        let passed = async {
            match &self.idle {
                Some(idle) => {
                    idle.attend("waiting for the data channels to synchronise", passed).await
                }
                None => passed.await,
            }
        };
        let mut passed = std::pin::pin!(passed);
        // Without room for more it has said enough for now.
        loop {
            let watch = !reader.is_ended() && reader.buffer().len() < reader.capacity() / 2;
            tokio::select! {
                biased;
                outcome = &mut passed => return outcome,
                came = reader.fill(), if watch => {
                    came?;
                }
            }
        }
    }

    /// The stream is over: memory must be closed.
    pub(crate) fn check_closed(&self) -> Result<()> {
        if self.hub.is_closed() {
            return Ok(());
        }
        Err(Error::peer_misbehaved(
            "the stream ended without a last section of ram: pages of the data channels may be missing",
        ))
    }
}
