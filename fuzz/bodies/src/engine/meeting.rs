//! How the ends meet: channels that are there, or that come one after the other.

use std::sync::Mutex;

use async_trait::async_trait;
use mig_transport::{Channel, Connector, Error, Listener, Result};
use tokio::sync::mpsc;

/// Connects to the channels that are there, in order.
pub(crate) struct Ready(Mutex<Vec<Channel>>);

impl Ready {
    pub(crate) fn new(mut channels: Vec<Channel>) -> Self {
        channels.reverse();
        Self(Mutex::new(channels))
    }
}

#[async_trait]
impl Connector for Ready {
    async fn connect(&self) -> Result<Channel> {
        let next = self.0.lock().expect("nobody panics while holding it").pop();
        next.ok_or_else(|| Error::Misuse { what: "nobody listens any more".into() })
    }
}

/// Accepts channels as they come; nobody comes any more once the door is gone.
pub(crate) struct Arriving(mpsc::UnboundedReceiver<Channel>);

impl Arriving {
    pub(crate) fn new() -> (Self, mpsc::UnboundedSender<Channel>) {
        let (door, arrivals) = mpsc::unbounded_channel();
        (Self(arrivals), door)
    }
}

#[async_trait]
impl Listener for Arriving {
    async fn accept(&mut self) -> Result<Channel> {
        match self.0.recv().await {
            Some(channel) => Ok(channel),
            None => std::future::pending().await,
        }
    }

    fn local_addresses(&self) -> Vec<String> {
        vec!["memory:fuzz".into()]
    }
}
