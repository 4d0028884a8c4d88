//! Capability `zero-copy-send`: what became of it on the data channels (docs/wire/transports.md §4).
//!
//! ```text
//!   every lane ── asks its channel ──▶ joined ──▶ watch: a channel that cannot is told of once, as a warning
//!                                            └──▶ synced: a round with copies counts in `dirty-sync-missed-zero-copy`
//! ```
//!
//! Nothing here ends a migration: where the kernel copies, pages arrive all the same.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use mig_transport::ZeroCopy;
use serde::Serialize;

use crate::{
    error::{Error, Result},
    parameters::{Capabilities, MultifdCompression, Parameters},
    statistics::Statistics,
};

/// What became of capability `zero-copy-send`, part of [`MigrationInfo`](crate::MigrationInfo); the sums of all data
/// channels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct ZeroCopyInfo {
    /// On every channel, as far as is known.
    pub in_force: bool,
    /// Why not, and on which channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes of pages that were sent without a copy.
    pub zero_copied_bytes: u64,
    /// Bytes of pages that the kernel was asked not to copy, and copied.
    pub copied_bytes: u64,
    /// Bytes of pages for which it was not asked: runs that are too short, and all once it was found to copy.
    pub ordinary_bytes: u64,
    /// Times the kernel had no room for another send in flight.
    pub enobufs: u64,
}

/// Refuses the capability where it cannot be, before anything is sent.
pub(crate) fn check(capabilities: Capabilities, parameters: &Parameters) -> Result<()> {
    if !capabilities.zero_copy_send {
        return Ok(());
    }
    if !capabilities.multifd {
        return Err(Error::misuse(
            "zero-copy-send is for the pages of data channels: turn multifd on, or it off",
        ));
    }
    if parameters.multifd_compression != MultifdCompression::None {
        return Err(Error::misuse(
            "zero-copy-send cannot be together with multifd-compression, which sends what is not guest memory: turn one \
             of them off",
        ));
    }
    Ok(())
}

/// The channels of a migration that were asked; see the module.
#[derive(Debug, Default)]
pub(crate) struct ZeroCopySends {
    wanted: AtomicBool,
    warned: AtomicBool,
    channels: Mutex<Vec<Asked>>,
}

#[derive(Debug)]
struct Asked {
    name: String,
    told: ZeroCopy,
    /// What the kernel had copied at the last sync.
    copied: u64,
}

impl ZeroCopySends {
    pub(crate) fn want(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    fn channels(&self) -> MutexGuard<'_, Vec<Asked>> {
        // Whole between any two statements.
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more was asked, and this is its answer.
    pub(crate) fn joined(&self, name: String, told: ZeroCopy) {
        self.channels().push(Asked { name, told, copied: 0 });
    }

    /// Warns, once, if it is not what was asked for.
    pub(crate) fn watch(&self) {
        if !self.is_wanted() || self.warned.load(Ordering::Relaxed) {
            return;
        }
        if let Some(reason) = self.reason()
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                reason,
                "zero-copy-send is not in force: pages are copied by the kernel"
            );
        }
    }

    fn reason(&self) -> Option<String> {
        self.channels().iter().find_map(|asked| {
            asked.told.report().reason.map(|reason| format!("{}: {reason}", asked.name))
        })
    }

    /// The dirty log was read: counts if the kernel has copied since the last time.
    pub(crate) fn synced(&self, statistics: &Statistics) {
        let mut missed = false;
        for asked in self.channels().iter_mut() {
            let report = asked.told.report();
            missed |= !report.in_force || report.bytes_copied_by_kernel > asked.copied;
            asked.copied = report.bytes_copied_by_kernel;
        }
        statistics.dirty_sync_missed_zero_copy.add(missed.into());
    }

    /// Only with the capability.
    pub(crate) fn info(&self) -> Option<ZeroCopyInfo> {
        if !self.is_wanted() {
            return None;
        }
        let reason = self.reason();
        let mut info =
            ZeroCopyInfo { in_force: reason.is_none(), reason, ..ZeroCopyInfo::default() };
        for asked in self.channels().iter() {
            let report = asked.told.report();
            info.zero_copied_bytes += report.bytes_zero_copied;
            info.copied_bytes += report.bytes_copied_by_kernel;
            info.ordinary_bytes += report.bytes_ordinary;
            info.enobufs += report.enobufs;
        }
        Some(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_with_plain_data_channels_only() {
        let mut capabilities = Capabilities { zero_copy_send: true, ..Capabilities::default() };
        let mut parameters = Parameters::default();
        let refused = check(capabilities, &parameters).unwrap_err();
        assert!(refused.to_string().contains("turn multifd on"), "{refused}");
        capabilities.multifd = true;
        check(capabilities, &parameters).unwrap();
        parameters.multifd_compression = MultifdCompression::Zstd;
        let refused = check(capabilities, &parameters).unwrap_err();
        assert!(refused.to_string().contains("multifd-compression"), "{refused}");
        capabilities.zero_copy_send = false;
        check(capabilities, &parameters).unwrap();
    }

    #[test]
    fn a_channel_that_cannot_is_named_and_counted_at_each_sync() {
        let (sends, statistics) = (ZeroCopySends::default(), Statistics::default());
        sends.synced(&statistics);
        assert_eq!((sends.info(), statistics.dirty_sync_missed_zero_copy.value()), (None, 0));
        sends.want();
        sends.joined("data channel 0".into(), ZeroCopy::unavailable("not here: a pipe"));
        for syncs in 1..4 {
            sends.synced(&statistics);
            assert_eq!(statistics.dirty_sync_missed_zero_copy.value(), syncs);
        }
        let json = serde_json::to_value(sends.info()).unwrap();
        assert_eq!(json["in-force"], false);
        assert_eq!(json["reason"], "data channel 0: not here: a pipe");
        assert_eq!(json["zero-copied-bytes"], 0);
    }
}
