//! The RDMA device of this machine, and who listens on it.

use std::{
    net::Ipv4Addr,
    process::Command,
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use mig_transport_rdma::verbs::PortState;

use crate::{child::Helper, failure::Result};

/// How often a listener is looked for.
const TICK: Duration = Duration::from_millis(20);

/// An active device that IPv4 reaches.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
}

impl Device {
    /// The first one there is.
    pub(crate) fn find() -> Result<Self> {
        let devices = mig_transport_rdma::devices().map_err(|error| no_device(&error))?;
        for device in devices {
            let active = device.ports.iter().filter(|port| port.state == PortState::Active);
            let mut gids = active.flat_map(|port| &port.gids);
            if let Some(address) = gids.find_map(|gid| gid.address.to_ipv4_mapped()) {
                return Ok(Self { name: device.name, address });
            }
        }
        Err(no_device(&"none has an active port with an IPv4 address"))
    }
}

fn no_device(why: &dyn std::fmt::Display) -> crate::failure::Failure {
    format!("no RDMA device: {why}; `--lab` measures in a virtual machine that has one").into()
}

/// A port that no other contestant of this process was given.
pub(crate) fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(18_500);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Waits until somebody listens on this port of the RDMA connection manager: `who`, if that is alive.
pub(crate) fn wait_for_listener(port: u16, who: &mut Helper, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    let wanted = format!(":{port} ");
    loop {
        let told = Command::new("rdma")
            .args(["resource", "show", "cm_id"])
            .output()
            .map_err(|error| format!("cannot run rdma (of iproute2): {error}"))?;
        let told = String::from_utf8_lossy(&told.stdout);
        if told.lines().any(|line| line.contains("state LISTEN") && line.contains(&wanted)) {
            return Ok(());
        }
        if who.ended()?.is_some() || Instant::now() >= deadline {
            return Err(who.complaint(&format!("does not listen on port {port}")).into());
        }
        std::thread::sleep(TICK);
    }
}
