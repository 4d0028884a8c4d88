//! What a VMM implements to be migrated: run control and device state. Its memory is `mig_ram::GuestMemory`.

use mig_proto::globalstate::RunState;

/// What a VMM says when it cannot do what is asked.
pub type GuestError = Box<dyn std::error::Error + Send + Sync>;

/// One device's saved state: a FULL section (docs/wire/stream.md §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSection {
    /// QEMU's identity of the state, 1 to 255 bytes: `timer`, `0000:00:1f.2/ich9_ahci`.
    pub idstr: String,
    /// Which of several with the same idstr.
    pub instance_id: u32,
    /// Version of the state's layout; a destination refuses newer ones than its own.
    pub version_id: u32,
    /// The state, opaque to the transport.
    pub payload: Vec<u8>,
}

/// A guest's run control and device state, on either side.
///
/// All methods are called from the migration's task, one at a time. They may block for as long as the VMM needs to
/// pause its vCPUs or save a device; that time counts as downtime.
pub trait Guest: Send {
    /// The resolved, versioned machine type that goes into CONFIGURATION, at most 255 bytes: `pc-q35-10.0`.
    fn machine_type(&self) -> String;

    /// Source: how the guest stands before it is stopped for the migration; travels in `globalstate`.
    fn run_state(&self) -> RunState {
        RunState::Running
    }

    /// Source: stops the guest. On return nobody writes its memory any more.
    fn stop(&mut self) -> Result<(), GuestError>;

    /// Source, capability `auto-converge`: slows the running guest down, so that its processors stand still for
    /// `percent` percent of the time; 0 lets them run freely, 99 is the most that is asked for. Answers whether this
    /// guest can be slowed down at all; the default cannot, and a migration with the capability on is then refused.
    ///
    /// Called while the guest runs, once with 0 before anything is sent, then whenever the percentage changes, and with
    /// 0 again as soon as the guest stands still, or before [`resume`](Guest::resume) where the migration ends without.
    /// It is to set the pace and return: the migration waits for it.
    fn throttle(&mut self, percent: u8) -> bool {
        let _ = percent;
        false
    }

    /// Source: gives the guest back to its user after a failure or a cancel: it runs again if it ran before.
    fn resume(&mut self) -> Result<(), GuestError>;

    /// Source: every device's state, in the order in which it must be loaded. The guest is stopped.
    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, GuestError>;

    /// Destination: loads one device's state, in stream order. Refusing it fails the migration, and the source keeps
    /// the guest.
    fn load_device(&mut self, section: &DeviceSection) -> Result<(), GuestError>;

    /// Destination: loads a part of a device's state that came over a data channel (docs/wire/ram.md §9.7), after
    /// SWITCHOVER_START. Parts may come in any order, also before the device's section.
    fn load_device_state(
        &mut self,
        idstr: &str,
        instance_id: u32,
        state: Vec<u8>,
    ) -> Result<(), GuestError> {
        let bytes = state.len();
        Err(format!(
            "no device here takes state over data channels: {bytes} bytes for '{idstr}', instance {instance_id}"
        )
        .into())
    }

    /// Destination: whether there is device state to come over data channels that must be there before the guest may
    /// start. Asked at the end of the stream, and again after each part that comes.
    fn expects_device_state(&self) -> bool {
        false
    }

    /// Destination: the guest is now owned by this side: the verdict went out. `state` is what the source was in.
    fn start(&mut self, state: RunState) -> Result<(), GuestError>;
}
