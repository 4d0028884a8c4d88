//! What RDMA there is on this machine, and if none, which part is missing and what brings it.
//!
//! The parts are looked at in the order in which they need each other: library, kernel, device, its provider, permission,
//! connection manager, port. The event channel answers ENODEV for three of them alike, so it is not asked.

#![expect(unsafe_code, reason = "calls libibverbs; rules in `verbs`")]

use std::{
    ffi::CStr,
    fs, io,
    net::Ipv6Addr,
    path::{Path, PathBuf},
    ptr::NonNull,
    slice,
};

use libc::c_int;
use rustix::{
    process::{Resource, getrlimit},
    thread::{CapabilitySet, capabilities},
};

use super::{
    LinkLayer, LoadError, PortState,
    device::{self, count},
    error::Error,
    library::Library,
    sys::{ibv_context, ibv_device, ibv_gid},
};

/// Where the kernel lists devices.
const CLASS: &str = "/sys/class/infiniband";
/// Where programs reach them.
const DEVICE_FILES: &str = "/dev/infiniband";
/// Where the connection manager is reached.
const CONNECTION_MANAGER: &str = "/dev/infiniband/rdma_cm";

/// Which part is missing. Its text says what, [`Unavailable::remedy`] what would bring it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// rdma-core is not installed, or too old.
    #[error(transparent)]
    Library(LoadError),
    /// The kernel has no RDMA subsystem, or its modules are not loaded.
    #[error("this kernel has no RDMA support loaded")]
    Kernel,
    /// No RDMA device exists.
    #[error("no RDMA device on this machine")]
    NoDevice,
    /// The kernel has devices that no provider library knows.
    #[error("no user-space driver for RDMA device {devices}")]
    NoProvider {
        /// Their names.
        devices: String,
    },
    /// The kernel has the device, this process has no way to it.
    #[error("RDMA device without a device file ({}: {source})", .path.display())]
    DeviceFile {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A device file may not be opened.
    #[error("no permission for {}", .path.display())]
    Permission {
        /// Which.
        path: PathBuf,
    },
    /// The kernel's connection manager cannot be reached.
    #[error("no RDMA connection manager ({CONNECTION_MANAGER}: {source})")]
    ConnectionManager {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There are devices, none with an active port.
    #[error("no RDMA device has an active port ({ports})")]
    NoActivePort {
        /// Each port and its state.
        ports: String,
    },
    /// A call failed that does not on a sound machine.
    #[error(transparent)]
    Failed(Error),
}

impl Unavailable {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Library(LoadError::Open { .. }) => {
                "install rdma-core's librdmacm and libibverbs with its providers (Debian: librdmacm1 ibverbs-providers; \
                 Fedora: librdmacm libibverbs)"
                    .into()
            }
            Self::Library(LoadError::Function { .. }) => "install rdma-core 28 or newer".into(),
            Self::Kernel => "load ib_uverbs, rdma_ucm and the device's driver with modprobe, on a kernel that has them".into(),
            Self::NoDevice => {
                "add a device, or make one of a network interface: modprobe rdma_rxe; rdma link add rxe0 type rxe netdev IFACE"
                    .into()
            }
            Self::NoProvider { .. } => "install the providers of rdma-core (Debian: ibverbs-providers)".into(),
            Self::Permission { path } => {
                format!("give this user read and write access to {} (a group or a udev rule)", path.display())
            }
            Self::DeviceFile { .. } => {
                "modprobe ib_uverbs; in a container, pass /dev/infiniband in".into()
            }
            Self::ConnectionManager { .. } => {
                "modprobe rdma_ucm; in a container, pass /dev/infiniband in".into()
            }
            Self::NoActivePort { .. } => {
                "bring up the network interface behind it (ip link set IFACE up), or start a subnet manager on InfiniBand".into()
            }
            Self::Failed(_) => "look into the kernel's log (dmesg)".into(),
        }
    }
}

impl From<Unavailable> for mig_transport::Error {
    fn from(reason: Unavailable) -> Self {
        Self::Unavailable { what: reason.to_string(), remedy: reason.remedy() }
    }
}

/// A device, as it describes itself.
#[derive(Clone, Debug)]
pub struct Device {
    /// Its name, as in `/sys/class/infiniband`.
    pub name: String,
    /// Version of its firmware, as the device spells it.
    pub firmware: String,
    /// Bytes of the longest memory region.
    pub max_mr_size: u64,
    /// How many memory regions there can be.
    pub max_mr: u32,
    /// How many queue pairs there can be.
    pub max_qp: u32,
    /// How deep a queue of a queue pair can be.
    pub max_qp_wr: u32,
    /// How many completion queues there can be.
    pub max_cq: u32,
    /// How deep a completion queue can be.
    pub max_cqe: u32,
    /// Whether memory need not be pinned for the other end's RDMA WRITEs.
    pub on_demand_paging: bool,
    /// Its ports.
    pub ports: Vec<Port>,
}

/// A port of a device.
#[derive(Clone, Debug)]
pub struct Port {
    /// Counted from 1.
    pub number: u8,
    /// What it is doing.
    pub state: PortState,
    /// What it speaks.
    pub link_layer: LinkLayer,
    /// Bytes of a packet now.
    pub active_mtu: u32,
    /// Bytes of the longest message or RDMA WRITE.
    pub max_message_size: u32,
    /// Its addresses.
    pub gids: Vec<Gid>,
}

/// An address of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gid {
    /// Its place in the port's table.
    pub index: u32,
    /// The address; IPv4 in mapped form.
    pub address: Ipv6Addr,
    /// `RoCE v2`, `IB/RoCE v1`…, as the kernel calls it.
    pub kind: Option<String>,
    /// The network interface it belongs to.
    pub interface: Option<String>,
}

/// How much memory this process may lock; registering memory locks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLock {
    /// `RLIMIT_MEMLOCK` now, `None` for unlimited.
    pub soft: Option<u64>,
    /// How far this process may raise it.
    pub hard: Option<u64>,
    /// Whether `CAP_IPC_LOCK` lifts the limit.
    pub exempt: bool,
}

impl MemoryLock {
    /// Of this process, now.
    pub fn current() -> Self {
        let limit = getrlimit(Resource::Memlock);
        let exempt =
            capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
        Self { soft: limit.current, hard: limit.maximum, exempt }
    }

    /// The most that can be registered, `None` for no limit.
    pub fn allowed(&self) -> Option<u64> {
        self.soft.filter(|_| !self.exempt)
    }
}

/// Whether `rdma:` can work here: everything is there, and some port is active.
pub fn availability() -> Result<(), Unavailable> {
    let devices = devices()?;
    check_openable(Path::new(CONNECTION_MANAGER)).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => {
            Unavailable::Permission { path: CONNECTION_MANAGER.into() }
        }
        _ => Unavailable::ConnectionManager { source },
    })?;
    let ports =
        || devices.iter().flat_map(|device| device.ports.iter().map(move |port| (device, port)));
    if ports().any(|(_, port)| port.state == PortState::Active) {
        return Ok(());
    }
    let ports: Vec<_> = ports()
        .map(|(device, port)| format!("{} port {} {}", device.name, port.number, port.state))
        .collect();
    Err(Unavailable::NoActivePort { ports: ports.join(", ") })
}

/// The devices there are; never an empty list.
pub fn devices() -> Result<Vec<Device>, Unavailable> {
    let library = Library::get().map_err(Unavailable::Library)?;
    let list = DeviceList::new(library)?;
    let devices = list.devices();
    if devices.is_empty() {
        return Err(nothing_listed());
    }
    devices
        .iter()
        // SAFETY: the list is alive, and its devices with it.
        .map(|&device| unsafe { describe(library, device) })
        .collect()
}

/// Why the library lists nothing, though the kernel may have devices.
fn nothing_listed() -> Unavailable {
    let known = class_entries();
    if known.is_empty() {
        return Unavailable::NoDevice;
    }
    // Without a file for any device the library passes over all of them.
    let files = fs::read_dir(DEVICE_FILES).map(|entries| {
        entries.flatten().any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"uverbs"))
    });
    match files {
        Ok(true) => Unavailable::NoProvider { devices: known.join(", ") },
        Ok(false) => {
            let path = Path::new(DEVICE_FILES).join("uverbs0");
            Unavailable::DeviceFile { path, source: io::ErrorKind::NotFound.into() }
        }
        Err(source) => Unavailable::DeviceFile { path: DEVICE_FILES.into(), source },
    }
}

/// The kernel's own list.
fn class_entries() -> Vec<String> {
    let Ok(entries) = fs::read_dir(CLASS) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn check_openable(path: &Path) -> io::Result<()> {
    fs::File::options().read(true).write(true).open(path).map(drop)
}

/// The library's list, given back when it drops.
struct DeviceList {
    raw: NonNull<*mut ibv_device>,
    len: usize,
    library: &'static Library,
}

impl DeviceList {
    fn new(library: &'static Library) -> Result<Self, Unavailable> {
        let mut len: c_int = 0;
        // SAFETY: the library writes one number.
        let raw = unsafe { (library.ibv_get_device_list)(&raw mut len) };
        let Some(raw) = NonNull::new(raw) else {
            let error = Error::last("ibv_get_device_list");
            return Err(match error.raw_os_error() {
                Some(libc::ENOSYS) => Unavailable::Kernel,
                _ => Unavailable::Failed(error),
            });
        };
        Ok(Self { raw, len: usize::try_from(len).unwrap_or(0), library })
    }

    fn devices(&self) -> &[*mut ibv_device] {
        // SAFETY: the library's array of that many, which lives as long as this.
        unsafe { slice::from_raw_parts(self.raw.as_ptr(), self.len) }
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: from `ibv_get_device_list`, given back once; the contexts opened from it are closed.
        unsafe { (self.library.ibv_free_device_list)(self.raw.as_ptr()) }
    }
}

/// An open device, closed when it drops.
struct OpenDevice {
    raw: NonNull<ibv_context>,
    library: &'static Library,
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        // SAFETY: from `ibv_open_device`, closed once; nothing was made on it. Its answer would change nothing.
        unsafe { (self.library.ibv_close_device)(self.raw.as_ptr()) };
    }
}

/// # Safety
///
/// `device` is of a list that is alive.
unsafe fn describe(library: &'static Library, raw: *mut ibv_device) -> Result<Device, Unavailable> {
    // SAFETY: the caller's promise.
    let (name, opened) = unsafe { (device::name(library, raw), (library.ibv_open_device)(raw)) };
    let open_error = Error::last("ibv_open_device");
    let Some(opened) = NonNull::new(opened) else {
        // SAFETY: an array of text inside the device.
        let node = unsafe { CStr::from_ptr((&raw const (*raw).dev_name).cast()) };
        let path = Path::new(DEVICE_FILES).join(node.to_string_lossy().as_ref());
        // The library tries another place after the right one, and answers for that.
        return Err(match check_openable(&path) {
            Ok(()) => Unavailable::Failed(open_error),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Unavailable::Permission { path }
            }
            Err(source) => Unavailable::DeviceFile { path, source },
        });
    };
    let open = OpenDevice { raw: opened, library };
    // SAFETY: just opened.
    let all =
        unsafe { device::query_device(library, open.raw.as_ptr()) }.map_err(Unavailable::Failed)?;
    let own = &all.orig_attr;
    let ports = (1..=own.phys_port_cnt)
        .map(|number| describe_port(&open, &name, number))
        .collect::<Result<_, _>>()
        .map_err(Unavailable::Failed)?;
    let firmware: Vec<u8> =
        own.fw_ver.iter().map(|&byte| byte.cast_unsigned()).take_while(|&byte| byte != 0).collect();
    Ok(Device {
        name,
        firmware: String::from_utf8_lossy(&firmware).into_owned(),
        max_mr_size: own.max_mr_size,
        max_mr: count(own.max_mr),
        max_qp: count(own.max_qp),
        max_qp_wr: count(own.max_qp_wr),
        max_cq: count(own.max_cq),
        max_cqe: count(own.max_cqe),
        on_demand_paging: device::on_demand_paging(&all),
        ports,
    })
}

fn describe_port(open: &OpenDevice, device: &str, number: u8) -> Result<Port, Error> {
    // SAFETY: the device is open.
    let port = unsafe { device::query_port(open.library, open.raw.as_ptr(), number) }?;
    let attributes = PathBuf::from(format!("{CLASS}/{device}/ports/{number}/gid_attrs"));
    let gids = (0..count(port.gid_tbl_len))
        .filter_map(|index| {
            // SAFETY: zero is a value of the union.
            let mut gid: ibv_gid = unsafe { std::mem::zeroed() };
            // SAFETY: the device is open; the library writes one GID.
            let answer = unsafe {
                (open.library.ibv_query_gid)(
                    open.raw.as_ptr(),
                    number,
                    index as c_int,
                    &raw mut gid,
                )
            };
            // SAFETY: any bytes are valid ones.
            let address = Ipv6Addr::from(unsafe { gid.raw });
            if answer != 0 || address.is_unspecified() {
                return None;
            }
            Some(Gid {
                index,
                address,
                kind: attribute(&attributes.join(format!("types/{index}"))),
                interface: attribute(&attributes.join(format!("ndevs/{index}"))),
            })
        })
        .collect();
    Ok(Port {
        number,
        state: PortState::new(port.state),
        link_layer: LinkLayer::new(port.link_layer),
        active_mtu: device::mtu_bytes(port.active_mtu),
        max_message_size: port.max_msg_sz,
        gids,
    })
}

fn attribute(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wherever this runs: a list that is not empty, or a reason with a remedy.
    #[test]
    fn the_answer_is_devices_or_a_reason() {
        match devices() {
            Ok(devices) => assert!(!devices.is_empty()),
            Err(reason) => {
                assert!(!reason.remedy().is_empty());
                let error = mig_transport::Error::from(reason);
                assert_eq!(error.blame(), mig_transport::Blame::Unavailable);
            }
        }
        // What is missing for the list is missing for use.
        assert!(devices().is_ok() || availability().is_err());
    }

    #[test]
    fn a_capability_lifts_the_limit_on_locked_memory() {
        let limited = MemoryLock { soft: Some(8 << 20), hard: None, exempt: false };
        assert_eq!(limited.allowed(), Some(8 << 20));
        assert_eq!(MemoryLock { exempt: true, ..limited }.allowed(), None);
        assert_eq!(MemoryLock { soft: None, ..limited }.allowed(), None);
    }
}
