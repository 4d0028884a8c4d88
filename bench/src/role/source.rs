//! One end of a migration: the source.

use std::{path::PathBuf, sync::Arc};

use mig_engine::{Capabilities, Parameters, Source};
use serde::{Deserialize, Serialize};

use super::{
    Contents, Go, Multifd, Pattern, Ready, cpu, guest::IdleGuest, hear, meeting::connector,
    on_runtime, patterned::Patterned, say,
};
use crate::{
    child::peak_rss,
    failure::Result,
    memory::{checksum, guest_ram, whole},
};

/// What to send, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SourceRole {
    pub(crate) ram_bytes: u64,
    pub(crate) pattern: Pattern,
    pub(crate) return_path: bool,
    pub(crate) max_bandwidth: u64,
    pub(crate) downtime_limit_ms: u64,
    pub(crate) contents: Contents,
    /// Over `rdma:`, register all memory of both ends up front.
    pub(crate) rdma_pin_all: bool,
    /// Data channels, if there are any.
    pub(crate) multifd: Option<Multifd>,
    /// TLS, with the certificates of this directory.
    pub(crate) tls: Option<PathBuf>,
}

impl SourceRole {
    /// An idle guest of so many bytes, everything at its default.
    pub(crate) fn idle(ram_bytes: u64, contents: Contents) -> Self {
        let Parameters { max_bandwidth, downtime_limit, .. } = Parameters::default();
        Self {
            ram_bytes,
            pattern: Pattern::Nothing,
            return_path: true,
            max_bandwidth,
            downtime_limit_ms: downtime_limit,
            contents,
            rdma_pin_all: false,
            multifd: None,
            tls: None,
        }
    }
}

/// What it measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SourceResult {
    /// From the beginning of the connect to the destination's verdict.
    pub(crate) seconds: f64,
    /// Processor time of this process in between.
    pub(crate) cpu_seconds: f64,
    /// As the engine reports it.
    pub(crate) downtime_ms: f64,
    /// Bytes on the wire.
    pub(crate) wire_bytes: u64,
    /// Of those, the ones sent while the guest ran.
    pub(crate) precopy_bytes: u64,
    /// Whole pages sent.
    pub(crate) normal_pages: u64,
    /// Seconds and pages of the second pass, if there was one.
    pub(crate) second_pass: Option<(f64, u64)>,
    /// The most memory this process ever had in use, guest memory included, in bytes.
    pub(crate) peak_rss: Option<u64>,
    /// Of guest memory.
    pub(crate) checksum: u64,
}

pub(super) fn live(role: &SourceRole) -> Result<()> {
    let memory = Arc::new(Patterned::new(guest_ram(role.ram_bytes)?, role.pattern));
    role.contents.put_into(memory.ram())?;
    say(&Ready { address: None })?;
    let go: Go = hear()?;
    let connector = connector(&go.address, role.rdma_pin_all, role.tls.as_deref())?;
    let mut capabilities = Capabilities::default();
    capabilities.return_path = role.return_path;
    let mut parameters = Parameters::default();
    parameters.max_bandwidth = role.max_bandwidth;
    parameters.downtime_limit = role.downtime_limit_ms;
    if let Some(multifd) = role.multifd {
        multifd.apply(&mut capabilities, &mut parameters);
    }
    let mut source = Source::new(Arc::clone(&memory) as _, Box::new(IdleGuest))
        .with_capabilities(capabilities)
        .with_parameters(parameters);
    let (outcome, cpu_seconds) = on_runtime(async {
        let used = cpu();
        let outcome = source.run(&*connector).await?;
        Ok((outcome, (cpu() - used).as_secs_f64()))
    })?;
    let ram = &outcome.info.ram;
    say(&SourceResult {
        // The clock stops at the verdict; ending the dirty log afterwards counts as CPU time.
        seconds: outcome.total.as_secs_f64(),
        cpu_seconds,
        downtime_ms: outcome.info.downtime.unwrap_or(f64::NAN),
        wire_bytes: ram.transferred,
        precopy_bytes: ram.precopy_bytes,
        normal_pages: ram.normal,
        second_pass: memory.second_pass(),
        peak_rss: peak_rss(std::process::id()),
        checksum: checksum(&whole(memory.ram())),
    })
}
