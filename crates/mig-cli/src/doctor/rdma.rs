//! RDMA in detail: every device with its ports and addresses, their limits, and how much memory may be locked.
//!
//! Shown whole where there are devices, also when something else keeps `rdma:` from working; the reason comes first.

use std::{
    fmt::Display,
    io::{self, Write},
};

use indicatif::BinaryBytes;
use mig::rdma::{
    self, Unavailable,
    verbs::{Device, Gid, MemoryLock, Port},
};
use serde::Serialize;

/// What there is.
#[derive(Debug, Serialize)]
pub(crate) struct Rdma {
    /// Whether `rdma:` can be tried here.
    available: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
    memory_lock: Lock,
    devices: Vec<DeviceReport>,
}

/// `null` is unlimited.
#[derive(Debug, Serialize)]
struct Lock {
    soft_bytes: Option<u64>,
    hard_bytes: Option<u64>,
    /// `CAP_IPC_LOCK` lifts the limit.
    exempt: bool,
}

#[derive(Debug, Serialize)]
struct DeviceReport {
    name: String,
    firmware: String,
    max_mr_size_bytes: u64,
    max_mr: u32,
    max_qp: u32,
    max_qp_wr: u32,
    max_cq: u32,
    max_cqe: u32,
    on_demand_paging: bool,
    ports: Vec<PortReport>,
}

#[derive(Debug, Serialize)]
struct PortReport {
    number: u8,
    state: String,
    link_layer: String,
    active_mtu_bytes: u32,
    max_message_bytes: u32,
    gids: Vec<GidReport>,
}

#[derive(Debug, Serialize)]
struct GidReport {
    index: u32,
    /// On Ethernet an IP address, IPv4 in mapped form.
    gid: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    interface: Option<String>,
}

/// Looks; nothing is changed.
pub(crate) fn look() -> Rdma {
    let why = rdma::availability().err();
    let lock = MemoryLock::current();
    Rdma {
        available: why.is_none(),
        reason: why.as_ref().map(told),
        remedy: why.as_ref().map(Unavailable::remedy),
        memory_lock: Lock { soft_bytes: lock.soft, hard_bytes: lock.hard, exempt: lock.exempt },
        // Without them the reason has been told.
        devices: rdma::devices().unwrap_or_default().into_iter().map(device).collect(),
    }
}

/// The reason with its cause, which some repeat in their own text.
fn told(why: &Unavailable) -> String {
    let mut text = why.to_string();
    if let Some(cause) = std::error::Error::source(why).map(ToString::to_string)
        && !text.contains(&cause)
    {
        text = format!("{text}: {cause}");
    }
    text
}

fn device(device: Device) -> DeviceReport {
    DeviceReport {
        name: device.name,
        firmware: device.firmware,
        max_mr_size_bytes: device.max_mr_size,
        max_mr: device.max_mr,
        max_qp: device.max_qp,
        max_qp_wr: device.max_qp_wr,
        max_cq: device.max_cq,
        max_cqe: device.max_cqe,
        on_demand_paging: device.on_demand_paging,
        ports: device.ports.into_iter().map(port).collect(),
    }
}

fn port(port: Port) -> PortReport {
    PortReport {
        number: port.number,
        state: port.state.to_string(),
        link_layer: port.link_layer.to_string(),
        active_mtu_bytes: port.active_mtu,
        max_message_bytes: port.max_message_size,
        gids: port.gids.into_iter().map(gid).collect(),
    }
}

fn gid(gid: Gid) -> GidReport {
    GidReport {
        index: gid.index,
        gid: gid.address.to_string(),
        kind: gid.kind,
        interface: gid.interface,
    }
}

/// For people.
pub(crate) fn list(out: &mut dyn Write, rdma: &Rdma) -> io::Result<()> {
    match &rdma.reason {
        None => entry(out, "ok     ", "rdma: can be used", "a device has an active port")?,
        Some(reason) => entry(out, "MISSING", "rdma: cannot be used", reason)?,
    }
    if let Some(remedy) = &rdma.remedy {
        entry(out, "       ", "", format!("remedy: {remedy}"))?;
    }
    let lock = &rdma.memory_lock;
    let limit = |bytes: Option<u64>| match bytes {
        Some(bytes) => BinaryBytes(bytes).to_string(),
        None => "unlimited".into(),
    };
    let exempt = if lock.exempt { ", lifted by CAP_IPC_LOCK" } else { "" };
    let (soft, hard) = (limit(lock.soft_bytes), limit(lock.hard_bytes));
    entry(
        out,
        "       ",
        "lockable memory",
        format!("RLIMIT_MEMLOCK {soft}, hard limit {hard}{exempt}"),
    )?;
    rdma.devices.iter().try_for_each(|device| list_device(out, device))
}

fn list_device(out: &mut dyn Write, device: &DeviceReport) -> io::Result<()> {
    let name = format!("device {}", device.name);
    let firmware = if device.firmware.is_empty() { "not told" } else { &device.firmware };
    let paging = if device.on_demand_paging { "yes" } else { "no" };
    entry(out, "       ", &name, format!("firmware {firmware}, on-demand paging: {paging}"))?;
    entry(
        out,
        "       ",
        "",
        format!(
            "at most {} memory regions of {}; {} queue pairs {} deep, {} completion queues {} deep",
            device.max_mr,
            size(device.max_mr_size_bytes),
            device.max_qp,
            device.max_qp_wr,
            device.max_cq,
            device.max_cqe
        ),
    )?;
    for port in &device.ports {
        let mark = if port.state.starts_with("active") { "ok     " } else { "limited" };
        entry(
            out,
            mark,
            &format!("  port {}", port.number),
            format!(
                "{}, {}, MTU {}, messages up to {}",
                port.state,
                port.link_layer,
                port.active_mtu_bytes,
                size(port.max_message_bytes.into())
            ),
        )?;
        for gid in &port.gids {
            let kind = gid.kind.as_deref().unwrap_or("of a type that is not told");
            let interface =
                gid.interface.as_deref().map(|name| format!(", {name}")).unwrap_or_default();
            let what = format!("{} ({kind}{interface})", gid.gid);
            entry(out, "       ", &format!("    GID {}", gid.index), what)?;
        }
    }
    Ok(())
}

/// Whatever a device says: some answer all ones for "no limit".
fn size(bytes: u64) -> String {
    if bytes == u64::MAX { "any size".into() } else { BinaryBytes(bytes).to_string() }
}

fn entry(out: &mut dyn Write, mark: &str, name: &str, detail: impl Display) -> io::Result<()> {
    writeln!(out, "  {mark} {name:<26} {detail}")
}

#[cfg(test)]
mod tests {
    use mig::rdma::verbs::{LinkLayer, PortState};

    use super::*;

    fn rxe(state: PortState) -> Rdma {
        let address = "::ffff:10.55.0.1".parse().unwrap();
        let kind = Some("RoCE v2".into());
        let gids = vec![Gid { index: 1, address, kind, interface: Some("dummy0".into()) }];
        let link_layer = LinkLayer::Ethernet;
        let (active_mtu, max_message_size) = (4096, 1 << 30);
        let one = Port { number: 1, state, link_layer, active_mtu, max_message_size, gids };
        let rxe = Device {
            name: "rxe0".into(),
            firmware: String::new(),
            max_mr_size: u64::MAX,
            max_mr: 4096,
            max_qp: 100,
            max_qp_wr: 1000,
            max_cq: 101,
            max_cqe: 32767,
            on_demand_paging: false,
            ports: vec![one],
        };
        let memory_lock = Lock { soft_bytes: Some(8 << 20), hard_bytes: None, exempt: true };
        Rdma {
            available: true,
            reason: None,
            remedy: None,
            memory_lock,
            devices: vec![device(rxe)],
        }
    }

    #[test]
    fn everything_of_a_device_is_told_to_people() {
        let mut out = Vec::new();
        list(&mut out, &rxe(PortState::Active)).unwrap();
        let text = String::from_utf8(out).unwrap();
        for part in [
            "RLIMIT_MEMLOCK 8.00 MiB, hard limit unlimited, lifted by CAP_IPC_LOCK",
            "device rxe0",
            "4096 memory regions of any size",
            "on-demand paging: no",
            "active, Ethernet, MTU 4096, messages up to 1.00 GiB",
            "::ffff:10.55.0.1 (RoCE v2, dummy0)",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
    }

    #[test]
    fn scripts_find_it_by_these_names() {
        let json = serde_json::to_value(rxe(PortState::Down)).unwrap();
        assert_eq!(json["available"], true);
        assert_eq!(json["memory_lock"]["hard_bytes"], serde_json::Value::Null);
        let port = &json["devices"][0]["ports"][0];
        assert_eq!(port["state"], "down");
        assert_eq!(port["active_mtu_bytes"], 4096);
        assert_eq!(port["gids"][0]["type"], "RoCE v2");
    }
}
