//! What a device can do.

#![expect(unsafe_code, reason = "calls libibverbs; rules in `verbs`")]

use std::{
    ffi::CStr,
    fmt,
    mem::{MaybeUninit, offset_of},
    ptr,
};

use super::{
    bindings::{IBV_LINK_LAYER_ETHERNET, IBV_LINK_LAYER_INFINIBAND},
    error::{Result, check_code},
    library::Library,
    sys::{
        ibv_context, ibv_device, ibv_device_attr_ex, ibv_mtu, ibv_odp_general_caps,
        ibv_odp_transport_cap_bits, ibv_port_attr, ibv_port_state, verbs_context,
    },
};

/// The limits that bound a connection: of one device, and of the port it uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// The device's name, as in `/sys/class/infiniband`.
    pub device: String,
    /// The port, counted from 1.
    pub port: u8,
    /// Bytes of the longest message or RDMA WRITE.
    pub max_message_size: u32,
    /// Bytes of the longest memory region.
    pub max_mr_size: u64,
    /// How many memory regions there can be.
    pub max_mr: u32,
    /// How deep a queue of a queue pair can be.
    pub max_qp_wr: u32,
    /// How deep a completion queue can be.
    pub max_cqe: u32,
    /// What kind of link it is.
    pub link_layer: LinkLayer,
    /// Whether memory need not be pinned for RDMA WRITEs of the other end (on-demand paging).
    pub on_demand_paging: bool,
}

/// What a port speaks below RDMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LinkLayer {
    /// InfiniBand.
    InfiniBand,
    /// Ethernet: RoCE or iWARP.
    Ethernet,
    /// The device does not say.
    Unspecified,
}

impl fmt::Display for LinkLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InfiniBand => "InfiniBand",
            Self::Ethernet => "Ethernet",
            Self::Unspecified => "unspecified",
        })
    }
}

impl LinkLayer {
    pub(super) fn new(raw: u8) -> Self {
        match u32::from(raw) {
            IBV_LINK_LAYER_INFINIBAND => Self::InfiniBand,
            IBV_LINK_LAYER_ETHERNET => Self::Ethernet,
            _ => Self::Unspecified,
        }
    }
}

/// What a port is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PortState {
    /// No link, or the interface is down.
    Down,
    /// Coming up; on InfiniBand, waiting for a subnet manager.
    Initializing,
    /// Almost there.
    Armed,
    /// Usable.
    Active,
    /// Usable, the link is failing.
    ActiveDeferred,
    /// The device does not say.
    Unknown,
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Down => "down",
            Self::Initializing => "initializing",
            Self::Armed => "armed",
            Self::Active => "active",
            Self::ActiveDeferred => "active, deferred",
            Self::Unknown => "unknown",
        })
    }
}

impl PortState {
    pub(super) fn new(raw: ibv_port_state::Type) -> Self {
        match raw {
            ibv_port_state::IBV_PORT_DOWN => Self::Down,
            ibv_port_state::IBV_PORT_INIT => Self::Initializing,
            ibv_port_state::IBV_PORT_ARMED => Self::Armed,
            ibv_port_state::IBV_PORT_ACTIVE => Self::Active,
            ibv_port_state::IBV_PORT_ACTIVE_DEFER => Self::ActiveDeferred,
            _ => Self::Unknown,
        }
    }
}

/// Bytes of an MTU; 0 when the number means nothing known.
pub(super) fn mtu_bytes(raw: ibv_mtu::Type) -> u32 {
    match raw {
        ibv_mtu::IBV_MTU_256..=ibv_mtu::IBV_MTU_4096 => 128 << raw,
        _ => 0,
    }
}

/// A count that C keeps in an int.
pub(super) fn count(raw: libc::c_int) -> u32 {
    u32::try_from(raw).unwrap_or(0)
}

/// The name of a device.
///
/// # Safety
///
/// `device` is alive.
pub(super) unsafe fn name(library: &Library, device: *mut ibv_device) -> String {
    // SAFETY: the caller's promise; the answer is text that lives with the device.
    let name = unsafe { (library.ibv_get_device_name)(device) };
    match name.is_null() {
        true => String::from("?"),
        // SAFETY: as above.
        false => unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned(),
    }
}

/// The extended part of a context, when it reaches as far as the field at `offset`: providers fill it from the end.
///
/// # Safety
///
/// `context` is an open device.
unsafe fn extended(context: *mut ibv_context, offset: usize) -> Option<*mut verbs_context> {
    // SAFETY: the context is open; this mark says that it is the last field of a `verbs_context`.
    unsafe {
        if (*context).abi_compat.addr() != usize::MAX {
            return None;
        }
        let extended = context.byte_sub(offset_of!(verbs_context, context)).cast::<verbs_context>();
        ((*extended).sz >= size_of::<verbs_context>() - offset).then_some(extended)
    }
}

/// All that the device says about itself.
///
/// # Safety
///
/// `context` is an open device.
pub(super) unsafe fn query_device(
    library: &Library,
    context: *mut ibv_context,
) -> Result<ibv_device_attr_ex> {
    // SAFETY: zero is a value of every field.
    let mut all: ibv_device_attr_ex = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the context is open, the table reaches to this field.
    let query = unsafe {
        extended(context, offset_of!(verbs_context, query_device_ex))
            .and_then(|extended| (*extended).query_device_ex)
    };
    if let Some(query) = query {
        // SAFETY: the provider's own function; the size says how much it may write.
        let answer = unsafe { query(context, ptr::null(), &raw mut all, size_of_val(&all)) };
        if !matches!(answer, libc::EOPNOTSUPP | libc::ENOSYS) {
            return check_code("ibv_query_device_ex", answer).map(|()| all);
        }
    }
    // SAFETY: the context is open, the structure the one this function writes.
    check_code("ibv_query_device", unsafe {
        (library.ibv_query_device)(context, &raw mut all.orig_attr)
    })?;
    Ok(all)
}

/// All that a port says about itself.
///
/// # Safety
///
/// `context` is an open device.
pub(super) unsafe fn query_port(
    library: &Library,
    context: *mut ibv_context,
    port: u8,
) -> Result<ibv_port_attr> {
    // SAFETY: zero is a value of every field.
    let mut all: ibv_port_attr = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the context is open, the table reaches to this field.
    let query = unsafe {
        extended(context, offset_of!(verbs_context, query_port))
            .and_then(|extended| (*extended).query_port)
    };
    let answer = match query {
        // SAFETY: the provider's own function; the size says how much it may write.
        Some(query) => unsafe { query(context, port, &raw mut all, size_of_val(&all)) },
        // SAFETY: the old function writes a shorter form of the same structure.
        None => unsafe { (library.ibv_query_port)(context, port, (&raw mut all).cast()) },
    };
    check_code("ibv_query_port", answer)?;
    Ok(all)
}

/// Whether the other end may WRITE to memory that is not pinned.
pub(super) fn on_demand_paging(device: &ibv_device_attr_ex) -> bool {
    let general = device.odp_caps.general_caps & u64::from(ibv_odp_general_caps::IBV_ODP_SUPPORT.0);
    let write = device.odp_caps.per_transport_caps.rc_odp_caps
        & ibv_odp_transport_cap_bits::IBV_ODP_SUPPORT_WRITE.0;
    general != 0 && write != 0
}

/// The limits of a connection.
///
/// # Safety
///
/// `context` is an open device.
pub(super) unsafe fn limits(
    library: &Library,
    context: *mut ibv_context,
    port: u8,
) -> Result<DeviceLimits> {
    // SAFETY: the caller's promise.
    let (all, port_attributes, device) = unsafe {
        (
            query_device(library, context)?,
            query_port(library, context, port)?,
            name(library, (*context).device),
        )
    };
    Ok(DeviceLimits {
        device,
        port,
        max_message_size: port_attributes.max_msg_sz,
        max_mr_size: all.orig_attr.max_mr_size,
        max_mr: count(all.orig_attr.max_mr),
        max_qp_wr: count(all.orig_attr.max_qp_wr),
        max_cqe: count(all.orig_attr.max_cqe),
        link_layer: LinkLayer::new(port_attributes.link_layer),
        on_demand_paging: on_demand_paging(&all),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mtus_are_told_in_bytes() {
        assert_eq!(mtu_bytes(ibv_mtu::IBV_MTU_256), 256);
        assert_eq!(mtu_bytes(ibv_mtu::IBV_MTU_4096), 4096);
        assert_eq!(mtu_bytes(0), 0);
        assert_eq!(mtu_bytes(99), 0);
    }
}
