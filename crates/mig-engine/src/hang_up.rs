//! Cuts a channel that is given up.
//!
//! A channel that is dropped ends in its own time: the command behind `exec:` sees the end of its stdin and has a second to
//! pass on what it holds. Whoever gives a migration up has nothing to pass on and wants nothing left behind.

use mig_transport::ShutdownHandle;

/// Dropped, it cuts the channel, unless that was [spared](Self::spare).
#[derive(Debug)]
pub(crate) struct HangUp(Option<ShutdownHandle>);

impl HangUp {
    /// The channel of this handle is to be cut, whatever happens.
    pub(crate) fn on(channel: ShutdownHandle) -> Self {
        Self(Some(channel))
    }

    /// All went well: the channel ends in its orderly way.
    pub(crate) fn spare(mut self) {
        self.0 = None;
    }
}

impl Drop for HangUp {
    fn drop(&mut self) {
        if let Some(channel) = self.0.take() {
            channel.shutdown();
        }
    }
}
