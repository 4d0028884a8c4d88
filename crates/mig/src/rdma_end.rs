//! From options to an end of `rdma:`, refused early where this machine cannot be one.
//!
//! ```text
//!   options ─▶ sound together? ─▶ library, kernel, device, permission, port? ─▶ end
//! ```
//! A source looks before anything is read or connected: a stored stream is brought into memory first, and a machine that
//! can never send it should say so at once.

use mig_transport::{Error, Result, address::InetAddress};
use mig_transport_rdma::{
    RdmaConnector, RdmaListener, RdmaOptions,
    verbs::{Device, LinkLayer, PortState},
};

use crate::transports::{ConnectOptions, ListenOptions};

/// Two windows of the least size (docs/wire/rdma.md §9.3): one is filled while the other is given up.
const LEAST_BUDGET: u64 = 2 << 20;

/// A source's end.
pub(crate) fn connector(address: &InetAddress, options: &ConnectOptions) -> Result<RdmaConnector> {
    if let (true, Some(budget)) = (options.rdma_pin_all, options.rdma_pinned_memory) {
        return Err(Error::Misuse {
            what: format!(
                "rdma-pin-all and at most {budget} bytes of pinned memory exclude each other: pin-all pins all of it"
            ),
        });
    }
    check_budget(options.rdma_pinned_memory)?;
    mig_transport_rdma::availability()?;
    let rdma = RdmaOptions::with(|rdma| {
        rdma.deadline = options.deadline;
        rdma.pin_all = options.rdma_pin_all;
        rdma.return_path = options.return_path;
        rdma.pinned_memory = options.rdma_pinned_memory;
        rdma.counters = options.rdma_counters.clone();
    });
    Ok(RdmaConnector::new(address.clone(), rdma))
}

/// A destination's end.
///
/// # Cancel safety
///
/// Dropping the future abandons the attempt; nothing stays bound.
pub(crate) async fn listener(
    address: &InetAddress,
    options: &ListenOptions,
) -> Result<RdmaListener> {
    check_budget(options.rdma_pinned_memory)?;
    let rdma = RdmaOptions::with(|rdma| {
        rdma.allow = options.allow.clone();
        rdma.deadline = options.deadline;
        rdma.return_path = options.return_path;
        rdma.pinned_memory = options.rdma_pinned_memory;
        rdma.counters = options.rdma_counters.clone();
    });
    RdmaListener::bind(address, rdma).await
}

/// Where this machine can meet itself over RDMA: an address of an active port, with any port number. `None` where no
/// address can be told: only Ethernet's GIDs are IP addresses, who has InfiniBand must say that of its IP interface.
///
/// # Errors
///
/// [`Error::Unavailable`] if there is no RDMA here.
pub fn rdma_loopback() -> Result<Option<String>> {
    mig_transport_rdma::availability()?;
    let host = local_address(&mig_transport_rdma::devices()?);
    Ok(host.map(|host| format!("rdma:{host}:0")))
}

/// IPv4 where there is one, and no link-local one, which needs a scope.
fn local_address(devices: &[Device]) -> Option<String> {
    let addresses = || {
        devices
            .iter()
            .flat_map(|device| &device.ports)
            .filter(|port| {
                port.state == PortState::Active && port.link_layer == LinkLayer::Ethernet
            })
            .flat_map(|port| port.gids.iter().map(|gid| gid.address))
    };
    let v4 = addresses().find_map(|address| address.to_ipv4_mapped());
    v4.map(|v4| v4.to_string()).or_else(|| {
        addresses()
            .find(|v6| v6.to_ipv4_mapped().is_none() && !v6.is_unicast_link_local())
            .map(|v6| format!("[{v6}]"))
    })
}

/// A budget through which anything fits. Whether so much may be locked is found out where the guest's size is known.
fn check_budget(budget: Option<u64>) -> Result<()> {
    match budget {
        Some(budget) if budget < LEAST_BUDGET => Err(Error::Misuse {
            what: format!(
                "{budget} bytes of pinned memory are too few: memory is registered by the MiB, so at least \
                 {LEAST_BUDGET} are needed"
            ),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use mig_transport_rdma::verbs::{Gid, Port};

    use super::*;

    const ADDRESS: &str = "rdma:192.0.2.1:4444";

    fn inet() -> InetAddress {
        match mig_transport::MigrationAddress::parse(ADDRESS).unwrap().into_address() {
            mig_transport::Address::Rdma(inet) => inet,
            other => panic!("{other:?}"),
        }
    }

    /// A device whose only port has these addresses.
    fn device(state: PortState, addresses: &[&str]) -> Device {
        let gids = addresses.iter().zip(0..).map(|(address, index)| Gid {
            index,
            address: address.parse().unwrap(),
            kind: Some("RoCE v2".into()),
            interface: None,
        });
        let port = Port {
            number: 1,
            state,
            link_layer: LinkLayer::Ethernet,
            active_mtu: 4096,
            max_message_size: 1 << 30,
            gids: gids.collect(),
        };
        Device {
            name: "rxe0".into(),
            firmware: String::new(),
            max_mr_size: u64::MAX,
            max_mr: 1,
            max_qp: 1,
            max_qp_wr: 1,
            max_cq: 1,
            max_cqe: 1,
            on_demand_paging: false,
            ports: vec![port],
        }
    }

    #[test]
    fn an_address_that_needs_no_scope_is_chosen() {
        let active = |addresses| [device(PortState::Active, addresses)];
        assert_eq!(
            local_address(&active(&["fe80::1", "fd55::1", "::ffff:10.55.0.1"])).unwrap(),
            "10.55.0.1"
        );
        assert_eq!(local_address(&active(&["fe80::1", "fd55::1"])).unwrap(), "[fd55::1]");
        assert_eq!(local_address(&active(&["fe80::1"])), None);
        assert_eq!(local_address(&[device(PortState::Down, &["::ffff:10.55.0.1"])]), None);
    }

    #[test]
    fn contradictions_are_misuse_whatever_the_machine_has() {
        let with = |all, budget| ConnectOptions {
            rdma_pin_all: all,
            rdma_pinned_memory: budget,
            ..ConnectOptions::default()
        };
        let options = with(true, Some(64 << 20));
        let refused = connector(&inet(), &options).unwrap_err();
        assert!(matches!(refused, Error::Misuse { .. }), "{refused}");
        let options = with(false, Some(4096));
        let refused = connector(&inet(), &options).unwrap_err();
        assert!(matches!(refused, Error::Misuse { .. }), "{refused}");
    }
}
