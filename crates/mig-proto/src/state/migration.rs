//! The migration status of both ends, with QEMU's names. docs/wire/transports.md §7.
//!
//! ```text
//! source       none → setup → active → [pre-switchover →] device → completed
//!                       └ wait-unplug ┘    device → [postcopy-device →] postcopy-active → completed
//!              postcopy-active → postcopy-paused → postcopy-recover-setup → postcopy-recover ┐
//!                     └────────────────────────────────────────────────────────────────────┘
//!              before postcopy: cancel → cancelling → cancelled.   anywhere: fail → failing → failed
//!
//! destination  none → setup → active → completed
//!                               └→ postcopy-active ⇄ (paused, recover-setup, recover) → completed
//! ```
//!
//! One status type serves both ends because it is one field of `query-migrate`; the two tables
//! differ, so each end has its own event type and its own `next`.

use super::{BadMove, Machine};

/// `status` of `query-migrate`: where a migration is. docs/wire/transports.md §7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MigrationStatus {
    /// Nothing was started yet.
    #[default]
    None,
    /// Connecting, handshakes, first bytes.
    Setup,
    /// The source waits for the guest to give up a device (failover NIC).
    WaitUnplug,
    /// Pages flow, the guest runs at the source.
    Active,
    /// The guest is stopped; the source waits for `migrate-continue`.
    PreSwitchover,
    /// The guest is stopped; the last pages and the devices are on their way.
    Device,
    /// Postcopy chosen, the device package not yet confirmed (10.2 and later).
    PostcopyDevice,
    /// The guest runs at the destination, pages follow.
    PostcopyActive,
    /// The link broke during postcopy; both ends hold their half of the guest and wait.
    PostcopyPaused,
    /// Recovery asked for, new channels not connected yet (9.1 and later).
    PostcopyRecoverSetup,
    /// New channels connected, bitmaps are being exchanged.
    PostcopyRecover,
    /// Over, and the destination owns the guest.
    Completed,
    /// Failed, cleaning up (11.0 and later).
    Failing,
    /// Over without success.
    Failed,
    /// Cancel asked for, cleaning up.
    Cancelling,
    /// Over, by request.
    Cancelled,
    /// Continuous checkpointing took over. Never entered by us, named because QEMU reports it.
    Colo,
}

/// What moves the status at the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// `migrate` was asked for.
    Start,
    /// A device must be unplugged by the guest first.
    AwaitUnplug,
    /// Channels are up (and unplugging is done): pages may flow.
    Ready,
    /// Few enough pages are left and the guest is stopped; `pause-before-switchover` is on.
    ConvergedPausing,
    /// Few enough pages are left and the guest is stopped.
    Converged,
    /// `migrate-continue` in pre-switchover.
    Continue,
    /// Postcopy was asked for and the guest is stopped.
    StartPostcopy,
    /// The device package was written; its confirmation is awaited (10.2 and later, return path).
    PackageSent,
    /// The destination may run the guest.
    PostcopyRunning,
    /// `x-colo` takes over.
    EnterColo,
    /// The link broke, or `migrate-pause` was asked for.
    Interrupted,
    /// `migrate` with `resume` was asked for.
    Resume,
    /// The new channels are connected.
    Reconnected,
    /// The destination acknowledged the resume.
    Resumed,
    /// The destination confirmed that it has everything (or nothing can: a one-way channel).
    Complete,
    /// `migrate_cancel` was asked for.
    Cancel,
    /// Everything is closed after a cancel (in setup without a channel: at once).
    Cancelled,
    /// An error that ends the migration; cleaning up starts.
    Fail,
    /// Cleaning up after an error is done (or there was nothing to clean).
    Failed,
}

/// What moves the status at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationEvent {
    /// `migrate-incoming` was asked for.
    Listen,
    /// Every channel expected before the first byte is connected.
    Connected,
    /// The source sent POSTCOPY_LISTEN, later RUN: pages follow the devices.
    PostcopyRunning,
    /// The link broke, or `migrate-pause` was asked for.
    Interrupted,
    /// `migrate-recover` was asked for.
    Recover,
    /// The new channels are connected.
    Reconnected,
    /// The resume was acknowledged.
    Resumed,
    /// Everything is loaded.
    Complete,
    /// The operator gave up. QEMU has no such command at this end; a library user and Ctrl-C do.
    Cancel,
    /// Everything is closed after a cancel.
    Cancelled,
    /// An error that ends the migration; cleaning up starts.
    Fail,
    /// Cleaning up after an error is done (or there was nothing to clean).
    Failed,
}

impl MigrationStatus {
    /// Every status, in the order of the documentation above.
    pub const ALL: [Self; 17] = [
        Self::None,
        Self::Setup,
        Self::WaitUnplug,
        Self::Active,
        Self::PreSwitchover,
        Self::Device,
        Self::PostcopyDevice,
        Self::PostcopyActive,
        Self::PostcopyPaused,
        Self::PostcopyRecoverSetup,
        Self::PostcopyRecover,
        Self::Completed,
        Self::Failing,
        Self::Failed,
        Self::Cancelling,
        Self::Cancelled,
        Self::Colo,
    ];

    /// QEMU's name, as `query-migrate` and the MIGRATION event have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Setup => "setup",
            Self::WaitUnplug => "wait-unplug",
            Self::Active => "active",
            Self::PreSwitchover => "pre-switchover",
            Self::Device => "device",
            Self::PostcopyDevice => "postcopy-device",
            Self::PostcopyActive => "postcopy-active",
            Self::PostcopyPaused => "postcopy-paused",
            Self::PostcopyRecoverSetup => "postcopy-recover-setup",
            Self::PostcopyRecover => "postcopy-recover",
            Self::Completed => "completed",
            Self::Failing => "failing",
            Self::Failed => "failed",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Colo => "colo",
        }
    }

    /// Whether the migration is over, well or badly.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Whether an error may still turn into `failed` from here: something has begun, nothing has
    /// ended, and no cancel is under way (whose side effects look like errors).
    const fn can_fail(self) -> bool {
        !self.is_over() && !matches!(self, Self::None | Self::Cancelling | Self::Failing)
    }

    /// The same for the destination, which knows fewer states.
    const fn can_fail_at_destination(self) -> bool {
        matches!(
            self,
            Self::Setup
                | Self::Active
                | Self::PostcopyActive
                | Self::PostcopyPaused
                | Self::PostcopyRecoverSetup
                | Self::PostcopyRecover
        )
    }

    /// The next status at the source. docs/wire/transports.md §7.1.
    ///
    /// A cancel wins over the errors it provokes: in `cancelling`, `Fail` and `Failed` change
    /// nothing. But `Complete` there is `completed`: a destination that has confirmed may run the
    /// guest, and one guest must not run twice. Once postcopy has begun `Cancel` is refused, as QEMU 10 refuses it: the guest is
    /// split over both ends and only pause and recovery can save it.
    ///
    /// # Errors
    ///
    /// [`BadMove`] for every pair the table does not list.
    pub fn next_at_source(self, event: SourceEvent) -> Result<Self, BadMove> {
        use SourceEvent as E;
        Ok(match (self, event) {
            (Self::None | Self::Completed | Self::Failed | Self::Cancelled, E::Start) => {
                Self::Setup
            }
            (Self::Setup, E::AwaitUnplug) => Self::WaitUnplug,
            (Self::Setup | Self::WaitUnplug, E::Ready) => Self::Active,

            (Self::Active, E::ConvergedPausing) => Self::PreSwitchover,
            (Self::Active, E::Converged) => Self::Device,
            (Self::PreSwitchover, E::Continue) => Self::Device,
            (Self::Active, E::StartPostcopy) => Self::Device,
            (Self::Active, E::EnterColo) => Self::Colo,
            (Self::Device, E::PackageSent) => Self::PostcopyDevice,
            (Self::Device | Self::PostcopyDevice, E::PostcopyRunning) => Self::PostcopyActive,

            (
                Self::PostcopyActive | Self::PostcopyRecoverSetup | Self::PostcopyRecover,
                E::Interrupted,
            ) => Self::PostcopyPaused,
            (Self::PostcopyPaused, E::Resume) => Self::PostcopyRecoverSetup,
            (Self::PostcopyRecoverSetup, E::Reconnected) => Self::PostcopyRecover,
            (Self::PostcopyRecover, E::Resumed) => Self::PostcopyActive,

            (Self::Device | Self::PostcopyActive | Self::Cancelling, E::Complete) => {
                Self::Completed
            }

            (
                Self::Setup | Self::WaitUnplug | Self::Active | Self::PreSwitchover | Self::Device,
                E::Cancel,
            ) => Self::Cancelling,
            (Self::Cancelling, E::Cancel | E::Fail | E::Failed) => Self::Cancelling,
            (Self::Cancelling | Self::Setup, E::Cancelled) => Self::Cancelled,

            (from, E::Fail) if from.can_fail() => Self::Failing,
            (from, E::Failed) if from.can_fail() => Self::Failed,
            (Self::Failing, E::Failed) => Self::Failed,

            (from, event) => {
                return Err(BadMove {
                    machine: Machine::Source,
                    from: from.as_str(),
                    event: event.as_str(),
                });
            }
        })
    }

    /// The next status at the destination. docs/wire/transports.md §7.2.
    ///
    /// `Cancel` is possible as long as the source still owns the whole guest.
    ///
    /// # Errors
    ///
    /// [`BadMove`] for every pair the table does not list.
    pub fn next_at_destination(self, event: DestinationEvent) -> Result<Self, BadMove> {
        use DestinationEvent as E;
        Ok(match (self, event) {
            (Self::None | Self::Failed | Self::Cancelled, E::Listen) => Self::Setup,
            (Self::Setup, E::Connected) => Self::Active,
            (Self::Active, E::PostcopyRunning) => Self::PostcopyActive,

            (
                Self::PostcopyActive | Self::PostcopyRecoverSetup | Self::PostcopyRecover,
                E::Interrupted,
            ) => Self::PostcopyPaused,
            (Self::PostcopyPaused, E::Recover) => Self::PostcopyRecoverSetup,
            (Self::PostcopyRecoverSetup, E::Reconnected) => Self::PostcopyRecover,
            (Self::PostcopyRecover, E::Resumed) => Self::PostcopyActive,

            (Self::Active | Self::PostcopyActive, E::Complete) => Self::Completed,

            (Self::Setup | Self::Active, E::Cancel) => Self::Cancelling,
            (Self::Cancelling, E::Cancel | E::Fail | E::Failed) => Self::Cancelling,
            (Self::Cancelling | Self::Setup, E::Cancelled) => Self::Cancelled,

            (from, E::Fail) if from.can_fail_at_destination() => Self::Failing,
            (from, E::Failed) if from.can_fail_at_destination() => Self::Failed,
            (Self::Failing, E::Failed) => Self::Failed,

            (from, event) => {
                return Err(BadMove {
                    machine: Machine::Destination,
                    from: from.as_str(),
                    event: event.as_str(),
                });
            }
        })
    }
}

impl core::fmt::Display for MigrationStatus {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.as_str())
    }
}

impl serde::Serialize for MigrationStatus {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl SourceEvent {
    /// Every event of the source.
    pub const ALL: [Self; 19] = [
        Self::Start,
        Self::AwaitUnplug,
        Self::Ready,
        Self::ConvergedPausing,
        Self::Converged,
        Self::Continue,
        Self::StartPostcopy,
        Self::PackageSent,
        Self::PostcopyRunning,
        Self::EnterColo,
        Self::Interrupted,
        Self::Resume,
        Self::Reconnected,
        Self::Resumed,
        Self::Complete,
        Self::Cancel,
        Self::Cancelled,
        Self::Fail,
        Self::Failed,
    ];

    /// The name used in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::AwaitUnplug => "await-unplug",
            Self::Ready => "ready",
            Self::ConvergedPausing => "converged-pausing",
            Self::Converged => "converged",
            Self::Continue => "continue",
            Self::StartPostcopy => "start-postcopy",
            Self::PackageSent => "package-sent",
            Self::PostcopyRunning => "postcopy-running",
            Self::EnterColo => "enter-colo",
            Self::Interrupted => "interrupted",
            Self::Resume => "resume",
            Self::Reconnected => "reconnected",
            Self::Resumed => "resumed",
            Self::Complete => "complete",
            Self::Cancel => "cancel",
            Self::Cancelled => "cancelled",
            Self::Fail => "fail",
            Self::Failed => "failed",
        }
    }
}

impl DestinationEvent {
    /// Every event of the destination.
    pub const ALL: [Self; 12] = [
        Self::Listen,
        Self::Connected,
        Self::PostcopyRunning,
        Self::Interrupted,
        Self::Recover,
        Self::Reconnected,
        Self::Resumed,
        Self::Complete,
        Self::Cancel,
        Self::Cancelled,
        Self::Fail,
        Self::Failed,
    ];

    /// The name used in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Listen => "listen",
            Self::Connected => "connected",
            Self::PostcopyRunning => "postcopy-running",
            Self::Interrupted => "interrupted",
            Self::Recover => "recover",
            Self::Reconnected => "reconnected",
            Self::Resumed => "resumed",
            Self::Complete => "complete",
            Self::Cancel => "cancel",
            Self::Cancelled => "cancelled",
            Self::Fail => "fail",
            Self::Failed => "failed",
        }
    }
}
