//! The other end of a migration: the destination.

use std::{path::PathBuf, sync::Arc};

use mig_engine::{Capabilities, Destination, Parameters};
use mig_ram::GuestMemory;
use serde::{Deserialize, Serialize};

use super::{Multifd, Ready, cpu, guest::IdleGuest, meeting::listener, on_runtime, say};
use crate::{
    child::peak_rss,
    failure::Result,
    memory::{checksum, guest_ram, whole},
};

/// Where to listen, and what for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DestinationRole {
    pub(crate) listen: String,
    pub(crate) ram_bytes: u64,
    /// Memory is touched before it listens.
    pub(crate) warm: bool,
    /// Data channels, if there are any.
    pub(crate) multifd: Option<Multifd>,
    /// TLS, with the certificates of this directory.
    pub(crate) tls: Option<PathBuf>,
}

/// What it measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DestinationResult {
    /// Processor time of this process from listening to the end of the migration.
    pub(crate) cpu_seconds: f64,
    /// How pages were brought into place.
    pub(crate) placement: Option<String>,
    /// The most memory this process ever had in use, guest memory included, in bytes.
    pub(crate) peak_rss: Option<u64>,
    /// Of guest memory.
    pub(crate) checksum: u64,
}

pub(super) fn live(role: &DestinationRole) -> Result<()> {
    let memory = Arc::new(guest_ram(role.ram_bytes)?);
    if role.warm {
        for block in memory.set().as_slice() {
            block.populate()?;
        }
    }
    let mut destination =
        Destination::new(Arc::clone(&memory) as Arc<dyn GuestMemory>, Box::new(IdleGuest));
    if let Some(multifd) = role.multifd {
        let (mut capabilities, mut parameters) = (Capabilities::default(), Parameters::default());
        multifd.apply(&mut capabilities, &mut parameters);
        destination = destination.with_capabilities(capabilities).with_parameters(parameters);
    }
    let cpu_seconds = on_runtime(async {
        let mut listener = listener(&role.listen, role.tls.as_deref()).await?;
        say(&Ready { address: listener.local_addresses().into_iter().next() })?;
        let used = cpu();
        destination.run(&mut *listener).await?;
        Ok((cpu() - used).as_secs_f64())
    })?;
    let placement = destination.placement().map(|placement| {
        let passed_over = placement.info().passed_over.iter().map(|over| format!("; {over}"));
        format!("{}{}", placement.info().mechanism, passed_over.collect::<String>())
    });
    let peak_rss = peak_rss(std::process::id());
    let checksum = checksum(&whole(&memory));
    say(&DestinationResult { cpu_seconds, placement, peak_rss, checksum })
}
