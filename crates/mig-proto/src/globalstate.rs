//! The `globalstate` section: what the guest was doing before it was stopped.
//! docs/wire/stream.md §10.
//!
//! ```text
//!    0          4                               36    37    38                104
//!    ├ be32 len ┼ run state name, NUL padded ────┼ has ┼ was ┼ zeros ──────────┤
//!    len = strlen + 1, informational              └─ vm_was_suspended, 9.0 and later
//! ```
//!
//! Before 9.0 bytes 4–103 were one zero-padded string, which reads the same because no name is
//! longer than 31 characters. A payload of any other length or with an unknown name is an error
//! that names the byte; nothing else in it can be wrong.

use alloc::string::String;

use thiserror::Error;

/// Bytes of the payload, always.
pub const GLOBAL_STATE_LEN: usize = 104;

/// Where the name starts.
const NAME_AT: usize = 4;
/// Bytes of the name, padding included.
const NAME_LEN: usize = 32;
/// Where the flag "the next byte means something" is.
const HAS_SUSPENDED_AT: usize = 36;
/// Where the flag itself is.
const SUSPENDED_AT: usize = 37;

macro_rules! run_states {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A run state of the guest, with QEMU's names.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum RunState {
            $($(#[$doc])* $variant,)*
        }

        impl RunState {
            /// Every run state.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// QEMU's name, as it is on the wire.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The state of that name.
            pub fn from_name(name: &[u8]) -> Option<Self> {
                Self::ALL.iter().copied().find(|state| state.as_str().as_bytes() == name)
            }
        }
    };
}

run_states! {
    /// The guest runs.
    Running = "running",
    /// Stopped by the operator.
    Paused = "paused",
    /// Suspended by the guest (S3).
    Suspended = "suspended",
    /// Not started yet.
    Prelaunch = "prelaunch",
    /// Was migrated away.
    PostMigrate = "postmigrate",
    /// Waits for a migration to arrive.
    InMigrate = "inmigrate",
    /// Stopped by an internal error.
    InternalError = "internal-error",
    /// Stopped by an I/O error of a disk.
    IoError = "io-error",
    /// Loading a snapshot.
    RestoreVm = "restore-vm",
    /// Saving a snapshot.
    SaveVm = "save-vm",
    /// Shut down.
    Shutdown = "shutdown",
    /// Stopped by its watchdog.
    Watchdog = "watchdog",
    /// The guest reported a panic.
    GuestPanicked = "guest-panicked",
    /// Stopped for a checkpoint.
    Colo = "colo",
    /// Stopped by a debugger.
    Debug = "debug",
    /// Stopped to finish a migration.
    FinishMigrate = "finish-migrate",
}

impl RunState {
    /// Whether the destination starts the guest after loading, unless told to stay paused.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Running | Self::Suspended)
    }
}

impl core::fmt::Display for RunState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.as_str())
    }
}

impl serde::Serialize for RunState {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The payload of a `globalstate` section, version 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
pub struct GlobalState {
    /// The run state before the source stopped the guest for migration.
    pub run_state: RunState,
    /// Whether the guest was suspended before it was paused; `None` from sources before 9.0.
    pub vm_was_suspended: Option<bool>,
}

impl Default for GlobalState {
    /// What a destination assumes when the section never arrives: a running guest.
    fn default() -> Self {
        Self { run_state: RunState::Running, vm_was_suspended: None }
    }
}

/// A `globalstate` payload that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GlobalStateError {
    /// The payload is not 104 bytes.
    #[error("globalstate payload is {actual} bytes, must be {GLOBAL_STATE_LEN}")]
    WrongLength {
        /// Bytes received.
        actual: usize,
    },
    /// The name is none of QEMU's.
    #[error("globalstate byte {at}: unknown run state {name:?}")]
    UnknownRunState {
        /// Byte position inside the payload.
        at: usize,
        /// The name, not-UTF-8 replaced, at most 31 characters.
        name: String,
    },
}

impl GlobalStateError {
    /// Whether the source is to blame: always, this payload has no local input.
    pub const fn peer_is_to_blame(&self) -> bool {
        true
    }

    /// The byte position inside the payload.
    pub const fn at(&self) -> usize {
        match self {
            Self::WrongLength { actual } => *actual,
            Self::UnknownRunState { at, .. } => *at,
        }
    }
}

impl GlobalState {
    /// The payload, for a FULL section `globalstate`, instance 0, version 1.
    pub fn encode(&self) -> [u8; GLOBAL_STATE_LEN] {
        let mut out = [0; GLOBAL_STATE_LEN];
        let name = self.run_state.as_str().as_bytes();
        let size = u32::try_from(name.len() + 1).expect("the longest name has 14 characters");
        out[..NAME_AT].copy_from_slice(&size.to_be_bytes());
        out[NAME_AT..NAME_AT + name.len()].copy_from_slice(name);
        if let Some(suspended) = self.vm_was_suspended {
            out[HAS_SUSPENDED_AT] = 1;
            out[SUSPENDED_AT] = suspended.into();
        }
        out
    }

    /// Reads a payload. The size field and the padding are not looked at, as QEMU does not; a name
    /// that fills all 32 bytes is cut to 31 first.
    ///
    /// # Errors
    ///
    /// [`GlobalStateError`]: wrong length, or a name that is not QEMU's.
    pub fn decode(payload: &[u8]) -> Result<Self, GlobalStateError> {
        let payload: &[u8; GLOBAL_STATE_LEN] = payload
            .try_into()
            .map_err(|_| GlobalStateError::WrongLength { actual: payload.len() })?;
        let field = &payload[NAME_AT..NAME_AT + NAME_LEN - 1];
        let name = field.split(|&byte| byte == 0).next().unwrap_or_default();
        let run_state = RunState::from_name(name).ok_or_else(|| {
            let name = String::from_utf8_lossy(name).into_owned();
            GlobalStateError::UnknownRunState { at: NAME_AT, name }
        })?;
        let vm_was_suspended =
            (payload[HAS_SUSPENDED_AT] != 0).then_some(payload[SUSPENDED_AT] != 0);
        Ok(Self { run_state, vm_was_suspended })
    }
}
