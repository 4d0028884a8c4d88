//! Device state on its way from a data channel to the guest (docs/wire/ram.md §9.7).
//!
//! ```text
//!   channels ── room? ── read ── queue, 256 MiB at most ──▶ engine task ── Guest::load_device_state
//! ```

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::error::{Error, Result};

/// The longest state that one packet may bring.
pub(super) const MAX_DEVICE_STATE: u32 = 64 << 20;

/// What all channels together may hold, in KiB: four of the longest.
const ROOM_KIB: usize = 4 * (MAX_DEVICE_STATE as usize >> 10);

/// State that came.
#[derive(Debug)]
pub(crate) struct DeviceState {
    pub(crate) idstr: String,
    pub(crate) instance_id: u32,
    pub(crate) bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

/// A channel's end of the queue.
#[derive(Clone, Debug)]
pub(super) struct DeviceStateSender {
    room: Arc<Semaphore>,
    queue: mpsc::UnboundedSender<DeviceState>,
}

/// The engine's end.
pub(crate) type DeviceStates = mpsc::UnboundedReceiver<DeviceState>;

/// A queue whose bytes are bounded.
pub(super) fn device_states() -> (DeviceStateSender, DeviceStates) {
    let (queue, states) = mpsc::unbounded_channel();
    (DeviceStateSender { room: Arc::new(Semaphore::new(ROOM_KIB)), queue }, states)
}

impl DeviceStateSender {
    /// Waits until `len` bytes may be held.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(super) async fn room_for(&self, len: u32) -> Result<OwnedSemaphorePermit> {
        let room = Arc::clone(&self.room).acquire_many_owned(len.div_ceil(1024));
        room.await.map_err(|_closed| Error::cancelled())
    }

    /// Hands it to the engine.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it is handed over or not.
    pub(super) async fn send(
        &self,
        room: OwnedSemaphorePermit,
        idstr: String,
        instance_id: u32,
        bytes: Vec<u8>,
    ) -> Result<()> {
        let state = DeviceState { idstr, instance_id, bytes, _room: room };
        self.queue.send(state).map_err(|_gone| Error::cancelled())
    }
}
