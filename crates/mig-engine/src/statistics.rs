//! The one statistics type: QEMU's names and units, updated atomically, readable at any time.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde::Serialize;

use crate::{multifd::MultifdInfo, zero_copy::ZeroCopyInfo};

/// Counters of a running migration. Writers are the driver's tasks, readers anybody.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    pub(crate) transferred: Counter,
    pub(crate) remaining: Counter,
    pub(crate) total: Counter,
    pub(crate) duplicate: Counter,
    pub(crate) normal: Counter,
    pub(crate) dirty_sync_count: Counter,
    pub(crate) dirty_pages_rate: Counter,
    pub(crate) bandwidth_bytes_per_sec: Counter,
    pub(crate) pages_per_second: Counter,
    pub(crate) precopy_bytes: Counter,
    pub(crate) downtime_bytes: Counter,
    pub(crate) expected_downtime_ms: Counter,
    pub(crate) downtime_us: Counter,
    pub(crate) setup_us: Counter,
    pub(crate) total_us: Counter,
    /// Processor time of the data channels' threads that have ended.
    pub(crate) lanes_cpu_us: Counter,
    pub(crate) multifd_bytes: Counter,
    pub(crate) postcopy_bytes: Counter,
    pub(crate) postcopy_requests: Counter,
    pub(crate) dirty_sync_missed_zero_copy: Counter,
    /// 0 while the guest is not slowed down.
    pub(crate) cpu_throttle_percentage: Counter,
    pub(crate) xbzrle: XbzrleCounters,
}

/// Capability `xbzrle`; `pass_*` are those of the last pass alone.
#[derive(Debug, Default)]
pub(crate) struct XbzrleCounters {
    /// 0 where the capability is off.
    pub(crate) cache_size: Counter,
    pub(crate) bytes: Counter,
    pub(crate) pages: Counter,
    pub(crate) cache_miss: Counter,
    pub(crate) overflow: Counter,
    pub(crate) pass_looked_up: Counter,
    pub(crate) pass_missed: Counter,
    pub(crate) pass_raw: Counter,
    pub(crate) pass_encoded: Counter,
}

/// An atomic number; relaxed, because a statistic orders nothing.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set_micros(&self, value: Duration) {
        self.set(u64::try_from(value.as_micros()).unwrap_or(u64::MAX));
    }
}

/// The `ram` object of `query-migrate` (docs/wire/transports.md §7.3).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct RamStatistics {
    /// Bytes that went over the channels so far.
    pub transferred: u64,
    /// Bytes of guest memory known to be still unsent; 0 when finished.
    pub remaining: u64,
    /// Bytes of guest memory that migrate.
    pub total: u64,
    /// Zero pages sent, as pages.
    pub duplicate: u64,
    /// Whole pages sent, as pages.
    pub normal: u64,
    /// Whole pages sent, as bytes.
    pub normal_bytes: u64,
    /// Pages the guest dirtied a second, between the last two syncs.
    pub dirty_pages_rate: u64,
    /// Megabits (10⁶) a second in the last window.
    pub mbps: f64,
    /// Times the dirty log was read: rounds.
    pub dirty_sync_count: u64,
    /// Bytes of a page.
    pub page_size: u64,
    /// Pages a second in the last window.
    pub pages_per_second: u64,
    /// Bytes sent while the guest ran.
    pub precopy_bytes: u64,
    /// Bytes sent while it stood still.
    pub downtime_bytes: u64,
    /// Bytes sent after it ran at the destination.
    pub postcopy_bytes: u64,
    /// Pages that the destination asked for.
    pub postcopy_requests: u64,
    /// Bytes that went over data channels.
    pub multifd_bytes: u64,
    /// Rounds in which the kernel copied what it was to send without a copy.
    pub dirty_sync_missed_zero_copy: u64,
}

/// The `xbzrle-cache` object of `query-migrate` (docs/wire/transports.md §7.3).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct XbzrleStatistics {
    /// Bytes of the cache, as large as it really is.
    pub cache_size: u64,
    /// Bytes of XBZRLE records sent, without the word before each.
    pub bytes: u64,
    /// Pages sent as XBZRLE records, and those found unchanged, which cost no record.
    pub pages: u64,
    /// Pages that were looked for in the cache and not there.
    pub cache_miss: u64,
    /// Their share of the pages looked for in the last round, 0 to 1.
    pub cache_miss_rate: f64,
    /// How many times longer than their deltas the pages sent as such were in the last round; 0 before the first.
    pub encoding_rate: f64,
    /// Pages sent whole because the delta would have been too long.
    pub overflow: u64,
}

impl XbzrleCounters {
    fn told(&self) -> Option<XbzrleStatistics> {
        (self.cache_size.value() > 0).then(|| XbzrleStatistics {
            cache_size: self.cache_size.value(),
            bytes: self.bytes.value(),
            pages: self.pages.value(),
            cache_miss: self.cache_miss.value(),
            cache_miss_rate: ratio(&self.pass_missed, &self.pass_looked_up),
            encoding_rate: ratio(&self.pass_raw, &self.pass_encoded),
            overflow: self.overflow.value(),
        })
    }
}

/// 0 of nothing.
fn ratio(part: &Counter, whole: &Counter) -> f64 {
    match whole.value() {
        0 => 0.0,
        whole => part.value() as f64 / whole as f64,
    }
}

impl Statistics {
    /// So many bytes came over the main channel; what came over data channels is counted there.
    pub(crate) fn received(&self, main: u64) {
        self.transferred.set(main + self.multifd_bytes.value());
    }

    pub(crate) fn ram(&self, page_size: u64) -> RamStatistics {
        let normal = self.normal.value();
        RamStatistics {
            transferred: self.transferred.value(),
            remaining: self.remaining.value(),
            total: self.total.value(),
            duplicate: self.duplicate.value(),
            normal,
            normal_bytes: normal * page_size,
            dirty_pages_rate: self.dirty_pages_rate.value(),
            mbps: self.bandwidth_bytes_per_sec.value() as f64 * 8.0 / 1e6,
            dirty_sync_count: self.dirty_sync_count.value(),
            page_size,
            pages_per_second: self.pages_per_second.value(),
            precopy_bytes: self.precopy_bytes.value(),
            downtime_bytes: self.downtime_bytes.value(),
            postcopy_bytes: self.postcopy_bytes.value(),
            postcopy_requests: self.postcopy_requests.value(),
            multifd_bytes: self.multifd_bytes.value(),
            dirty_sync_missed_zero_copy: self.dirty_sync_missed_zero_copy.value(),
        }
    }

    /// Only with the capability.
    pub(crate) fn xbzrle_cache(&self) -> Option<XbzrleStatistics> {
        self.xbzrle.told()
    }

    /// Only while the guest is slowed down.
    pub(crate) fn cpu_throttle_percentage(&self) -> Option<u64> {
        Some(self.cpu_throttle_percentage.value()).filter(|percent| *percent > 0)
    }
}

/// What `query-migrate` would answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct MigrationInfo {
    /// QEMU's name of the state.
    pub status: &'static str,
    /// Guest memory.
    pub ram: RamStatistics,
    /// Milliseconds since the start, or from start to end.
    pub total_time: u64,
    /// Milliseconds the guest stood still; only when finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime: Option<f64>,
    /// Milliseconds it would stand still if it were stopped now; only while active.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_downtime: Option<u64>,
    /// Milliseconds before the first page could go.
    pub setup_time: u64,
    /// Capability `xbzrle`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub xbzrle_cache: Option<XbzrleStatistics>,
    /// Capability `multifd`, at the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd: Option<MultifdInfo>,
    /// Seconds of processor time that the threads of data channels took, once they ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub multifd_cpu_seconds: Option<f64>,
    /// Capability `zero-copy-send`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero_copy_send: Option<ZeroCopyInfo>,
    /// How much the guest is slowed down, in percent; only while it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_throttle_percentage: Option<u64>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_desc: Option<String>,
    /// What forbids a migration now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocked_reasons: Vec<String>,
    /// Where a destination listens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub socket_address: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_statistics_carry_the_names_of_query_migrate() {
        let statistics = Statistics::default();
        statistics.normal.set(3);
        statistics.bandwidth_bytes_per_sec.set(1_000_000);
        let json = serde_json::to_value(statistics.ram(4096)).unwrap();
        assert_eq!(json["normal-bytes"], 3 * 4096);
        assert_eq!(json["mbps"], 8.0);
        let names = [
            "dirty-sync-count",
            "dirty-pages-rate",
            "precopy-bytes",
            "downtime-bytes",
            "postcopy-bytes",
            "postcopy-requests",
            "multifd-bytes",
            "dirty-sync-missed-zero-copy",
            "pages-per-second",
            "page-size",
        ];
        for name in names {
            assert!(json.get(name).is_some(), "{name}");
        }
    }

    #[test]
    fn the_cache_is_told_of_where_there_is_one_and_rates_divide_by_no_zero() {
        let statistics = Statistics::default();
        assert_eq!(statistics.xbzrle_cache(), None);
        statistics.xbzrle.cache_size.set(1 << 20);
        let json = serde_json::to_value(statistics.xbzrle_cache().unwrap()).unwrap();
        assert_eq!(json["cache-miss-rate"], 0.0);
        assert_eq!(json["encoding-rate"], 0.0);
        statistics.xbzrle.pass_looked_up.set(8);
        statistics.xbzrle.pass_missed.set(2);
        statistics.xbzrle.pass_raw.set(8192);
        statistics.xbzrle.pass_encoded.set(64);
        let json = serde_json::to_value(statistics.xbzrle_cache().unwrap()).unwrap();
        assert_eq!(
            (&json["cache-miss-rate"], &json["encoding-rate"]),
            (&0.25.into(), &128.0.into())
        );
        for name in ["cache-size", "bytes", "pages", "cache-miss", "overflow"] {
            assert!(json.get(name).is_some(), "{name}");
        }
    }
}
