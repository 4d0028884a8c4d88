//! One handle that stops every channel of a migration.

use std::sync::{Arc, PoisonError};

use mig_transport::ShutdownHandle;

use crate::sync::{Mutex, MutexGuard};

/// Stops a set of channels: from any task, any number of times. A channel that joins later is stopped on joining, so
/// a stop can never be missed. Cheap to clone; clones share the set.
#[derive(Clone, Debug, Default)]
pub struct StopToken(Arc<Mutex<Set>>);

#[derive(Debug, Default)]
struct Set {
    stopped: bool,
    channels: Vec<ShutdownHandle>,
}

impl StopToken {
    /// A token of no channels yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a channel; it is stopped at once if the token already was.
    pub fn add(&self, channel: ShutdownHandle) {
        let stopped = {
            let mut set = self.set();
            if !set.stopped {
                // A set grows by each channel of a migration, few; the dead ones of a paused one go here.
                set.channels.retain(|known| !known.is_shutdown());
                set.channels.push(channel.clone());
            }
            set.stopped
        };
        if stopped {
            channel.shutdown();
        }
    }

    /// Stops every channel: each read and write that waits, and every later one, fails at once with
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn stop(&self) {
        let channels = {
            let mut set = self.set();
            set.stopped = true;
            std::mem::take(&mut set.channels)
        };
        for channel in channels {
            channel.shutdown();
        }
    }

    /// Whether somebody stopped.
    pub fn is_stopped(&self) -> bool {
        self.set().stopped
    }

    fn set(&self) -> MutexGuard<'_, Set> {
        // Nothing panics while holding the lock, and the set is valid at every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mig_transport::{Channel, ChannelParts};

    #[test]
    fn a_stop_reaches_channels_before_and_after() {
        let token = StopToken::new();
        let early = Channel::new(ChannelParts::default()).shutdown_handle();
        token.add(early.clone());
        assert!(!early.is_shutdown());
        token.clone().stop();
        token.stop();
        assert!(early.is_shutdown() && token.is_stopped());
        let late = Channel::new(ChannelParts::default()).shutdown_handle();
        token.add(late.clone());
        assert!(late.is_shutdown());
    }
}

#[cfg(all(test, modelled))]
mod models {
    use loom::thread;
    use mig_transport::{Channel, ChannelParts};

    use super::*;
    use crate::sync::model;

    /// Seen to fail with `stopped` looked at under another lock than the one under which the channel is added.
    #[test]
    fn loom_a_channel_that_joins_is_stopped() {
        model(|| {
            let token = StopToken::new();
            let other = token.clone();
            let stopping = thread::spawn(move || other.stop());
            let channel = Channel::new(ChannelParts::default()).shutdown_handle();
            token.add(channel.clone());
            stopping.join().unwrap();
            assert!(channel.is_shutdown());
        });
    }
}
