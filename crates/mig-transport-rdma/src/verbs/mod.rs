//! librdmacm and libibverbs behind safe types, loaded when first needed.
//!
//! ```text
//!   EventChannel ◀─ CmId ◀─┬─ ProtectionDomain ◀─┬─ MemoryRegion ─▶ guest memory     ◀─ keeps alive
//!                          ├─ CompletionQueue ◀─┐ ├─ Buffer
//!                          └────────────────────┴─┴─ QueuePair
//! ```
//!
//! Each object keeps what it stands on, so any order of dropping is right. What is posted is held by the table of its
//! completion queue (`outstanding`): a [`Buffer`] moves to the device and comes back with its [`WorkCompletion`], a
//! [`MemoryRegion`] stays registered while a WRITE reads it. Calls do not block, except registering and giving back memory,
//! which run on threads that may.
//!
//! Rules of this room:
//!
//! 1. Raw pointers of the libraries stay in the type that destroys them.
//! 2. Ids of the connection manager are touched under their channel's lock only (`event`).
//! 3. Memory is known to a device from before posting until after its completion was taken, or its queue pair destroyed.
//!    If it cannot be deregistered it is leaked, not unmapped.
//! 4. Only types, constants and signatures come from `sys`; functions are called through `Library`, never linked.

#[cfg(all(test, feature = "rdma-sys"))]
mod abi;
mod address;
#[expect(
    dead_code,
    non_camel_case_types,
    non_snake_case,
    unreachable_pub,
    unsafe_code,
    unused_imports,
    reason = "generated from the headers of rdma-core"
)]
mod bindings;
mod buffer;
mod cq;
mod device;
mod doctor;
mod error;
mod event;
mod id;
mod library;
mod mr;
mod outstanding;
mod pd;
mod qp;

#[cfg(not(feature = "rdma-sys"))]
use bindings as sys;
#[cfg(feature = "rdma-sys")]
use rdma_sys as sys;

pub use buffer::Buffer;
pub use cq::{CompletionQueue, WorkCompletion, WorkKind, WorkStatus};
pub use device::{DeviceLimits, LinkLayer, PortState};
pub use doctor::{Device, Gid, MemoryLock, Port, Unavailable, availability, devices};
pub use error::{Error, Result};
pub use event::{CmEvent, CmEventKind, EventChannel};
pub use id::{CmId, ConnectParameters, IdKey};
pub use library::LoadError;
pub use mr::{Access, MemoryRegion, NotGivenBack};
pub use pd::ProtectionDomain;
pub use qp::{NotPosted, PostError, QueueDepths, QueuePair, RemoteMemory};
