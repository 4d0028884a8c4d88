//! A link with the delay and the rate of a distance: two network namespaces, a pair of virtual Ethernet devices, netem.
//!
//! ```text
//!   namespace, near ── veth ═══ delay, rate, each way ═══ veth ── namespace, far
//!    10.77.0.1                                                     10.77.0.2
//! ```
//!
//! Needs root, iproute2, and a kernel with veth and netem: the lab is one (docs/testing.md). The namespaces go with it.

use std::{
    net::Ipv4Addr,
    path::Path,
    process::{Command, id},
    time::Duration,
};

use crate::failure::Result;

/// Packets that the link holds: more than the windows of all streams, so that it drops none. netem's own 1000 would.
const QUEUE: u32 = 20_000;

/// A link of one's own.
#[derive(Debug)]
pub(crate) struct Link {
    ends: [LinkEnd; 2],
}

/// One end of it.
#[derive(Debug)]
pub(crate) struct LinkEnd {
    namespace: String,
    device: &'static str,
    pub(crate) address: Ipv4Addr,
}

impl Link {
    /// Makes it. `delay` is that of one way, `rate` in bits a second, as on the label of a cable.
    pub(crate) fn new(delay: Duration, rate: u64) -> Result<Self> {
        let end = |name: &str, device, host| LinkEnd {
            namespace: format!("mig-bench-{}-{name}", id()),
            device,
            address: Ipv4Addr::new(10, 77, 0, host),
        };
        // What was made goes with it, however far this comes.
        let link = Self { ends: [end("near", "near0", 1), end("far", "far0", 2)] };
        for end in &link.ends {
            run("ip", &["netns", "add", &end.namespace])?;
        }
        let [near, far] = &link.ends;
        run(
            "ip",
            &[
                "-n",
                &near.namespace,
                "link",
                "add",
                near.device,
                "type",
                "veth",
                "peer",
                "name",
                far.device,
            ],
        )?;
        run("ip", &["-n", &near.namespace, "link", "set", far.device, "netns", &far.namespace])?;
        let (delay, rate) = (format!("{}us", delay.as_micros()), format!("{rate}bit"));
        for end in &link.ends {
            let address = format!("{}/24", end.address);
            let (namespace, device) = (&*end.namespace, end.device);
            run("ip", &["-n", namespace, "address", "add", &address, "dev", device])?;
            run("ip", &["-n", namespace, "link", "set", "lo", "up"])?;
            run("ip", &["-n", namespace, "link", "set", device, "up"])?;
            let shape = format!(
                "qdisc add dev {device} root netem limit {QUEUE} delay {delay} rate {rate}"
            );
            let shape: Vec<&str> = shape.split(' ').collect();
            run("tc", &[&["-n", namespace], &shape[..]].concat())?;
        }
        Ok(link)
    }

    /// Where whoever connects is.
    pub(crate) fn near(&self) -> &LinkEnd {
        &self.ends[0]
    }

    /// Where whoever listens is.
    pub(crate) fn far(&self) -> &LinkEnd {
        &self.ends[1]
    }
}

impl LinkEnd {
    /// A program that will run there.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).arg(program);
        command
    }
}

impl Drop for LinkEnd {
    fn drop(&mut self) {
        // Fails only where it was never made.
        let _gone = run("ip", &["netns", "delete", &self.namespace]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let told = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("cannot run {program} (of iproute2): {error}"))?;
    if told.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&told.stderr);
    Err(format!(
        "{program} {} failed: {}; `--lab` measures in a virtual machine where it works",
        arguments.join(" "),
        complaint.trim()
    )
    .into())
}
