//! Making channels: by connecting, or by listening.

use async_trait::async_trait;

use crate::{
    channel::Channel,
    error::{Error, Result},
};

/// Opens channels to one address. A migration with several channels calls it several times.
#[async_trait]
pub trait Connector: Send + Sync {
    /// Opens one channel.
    ///
    /// Every address that a name stands for is tried in order; the error tells of each. The wait is bounded by the
    /// deadline the connector was made with.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons the attempt; nothing stays open. A name lookup that the system does not let
    /// itself be interrupted ends behind the caller's back.
    async fn connect(&self) -> Result<Channel>;

    /// Whether its channels carry bytes both ways; `None` where only connecting can tell. A return path that cannot be
    /// is refused by this before anything is opened, run or cut to length.
    fn is_two_way(&self) -> Option<bool> {
        None
    }

    /// Whether its channels come with RAM hooks. Who sends stored pages through hooks needs them in memory first, and
    /// does that before the other end waits for it.
    fn has_ram_hooks(&self) -> bool {
        false
    }
}

/// Waits for channels at one address. What comes is raw: whoever accepts classifies a channel by its first bytes.
#[async_trait]
pub trait Listener: Send {
    /// The next channel. After the last one a single-channel transport (fd, exec, file) can give, it fails with
    /// [`Error::Misuse`](crate::Error::Misuse).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no channel.
    async fn accept(&mut self) -> Result<Channel>;

    /// Where it listens, as URIs with the port that was really bound (QEMU's `socket-address`). Empty where nobody
    /// needs to find it.
    fn local_addresses(&self) -> Vec<String>;

    /// Everybody who is expected has come, or somebody is missing again, as at first. A hint: whoever still comes is a stranger
    /// most likely, and a listener that does work for each may do less. A listener around another one hands it on.
    fn nobody_is_missing(&mut self, _nobody: bool) {}

    /// Why the last one was turned away whom this listener did not give out; told once. It may have been the one who is waited
    /// for, so it belongs to the error of who gives up waiting. A listener around another one that knows of nobody asks that
    /// one.
    fn last_dropped(&mut self) -> Option<Error> {
        None
    }
}
