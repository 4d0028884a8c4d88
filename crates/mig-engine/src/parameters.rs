//! Parameters and capabilities, under QEMU's names and in QEMU's units (docs/wire/transports.md §9, §10).

use serde::Serialize;

use crate::multifd::AutoChannels;

/// What a migration is asked to do and to keep to. All of it may be read at any time; the fields marked *live* may be
/// changed while it runs, through [`MigrationHandle::set_parameters`](crate::MigrationHandle::set_parameters).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Parameters {
    /// Bytes a second over all channels of the migration; 0 is unlimited, which is our default (QEMU's is 128 MiB/s).
    /// *Live.*
    pub max_bandwidth: u64,
    /// The longest time the guest may stand still, in milliseconds; QEMU's default of 300. *Live.*
    pub downtime_limit: u64,
    /// Bytes a second to assume when deciding to switch over; 0 means the measured ones. *Live.*
    pub avail_switchover_bandwidth: u64,
    /// Data channels beside the main one, 1 to 255, the same at both ends; QEMU's default of 2.
    pub multifd_channels: u8,
    /// A source finds the number of data channels by itself: one more for as long as one more brings something. Only a
    /// destination of our own that was told so as well takes any number; towards others it is QEMU's default.
    pub multifd_auto: Option<AutoChannels>,
    /// How the pages of the data channels are compressed, the same at both ends.
    pub multifd_compression: MultifdCompression,
    /// zlib's level, 0 to 9; `None`, our default, chooses it by a sample of the guest's memory (QEMU's default is 1).
    pub multifd_zlib_level: Option<u8>,
    /// zstd's level, up to 20; negative ones, which QEMU does not offer, are faster than 1. `None`, our default, chooses
    /// it by a sample of the guest's memory (QEMU's default is 1).
    pub multifd_zstd_level: Option<i8>,
    /// Who looks for zero pages. Means something with multifd only: a single stream always has ZERO records.
    pub zero_page_detection: ZeroPageDetection,
    /// Bytes of the cache of capability `xbzrle`, 64 MiB as in QEMU; rounded down to a power of two of pages, and never
    /// larger than the guest. It is memory the source takes beside the guest's; while it is changed, up to both sizes.
    /// *Live.*
    pub xbzrle_cache_size: u64,
    /// Capability `auto-converge`: bytes that the guest may write while so many are sent before it is slowed down, in
    /// percent, 1 to 100. *Live, as are the following four.*
    pub throttle_trigger_threshold: u8,
    /// By how much it is slowed down first, in percent of its processors' time, 1 to 99.
    pub cpu_throttle_initial: u8,
    /// By how much more each time that was not enough.
    pub cpu_throttle_increment: u8,
    /// Takes smaller steps where they are enough, near the end.
    pub cpu_throttle_tailslow: bool,
    /// By how much at most.
    pub max_cpu_throttle: u8,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            max_bandwidth: 0,
            downtime_limit: 300,
            avail_switchover_bandwidth: 0,
            multifd_channels: Self::QEMU_MULTIFD_CHANNELS,
            multifd_auto: None,
            multifd_compression: MultifdCompression::None,
            multifd_zlib_level: None,
            multifd_zstd_level: None,
            zero_page_detection: ZeroPageDetection::Multifd,
            xbzrle_cache_size: 64 << 20,
            throttle_trigger_threshold: 50,
            cpu_throttle_initial: 20,
            cpu_throttle_increment: 10,
            cpu_throttle_tailslow: false,
            max_cpu_throttle: 99,
        }
    }
}

/// How the pages of data channels are compressed (docs/wire/ram.md §9.6). Not negotiated: both ends are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MultifdCompression {
    /// Not at all.
    #[default]
    None,
    /// One zlib stream a channel.
    Zlib,
    /// One zstd frame a channel.
    Zstd,
}

/// Who looks for zero pages (docs/wire/ram.md §11); a destination takes them from anybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ZeroPageDetection {
    /// Nobody: they are sent as what they are.
    None,
    /// Their records go over the main channel, which destinations before 9.0 need.
    Legacy,
    /// The data channels; without multifd as `Legacy`.
    #[default]
    Multifd,
}

/// The data channels that an end without a guest expects (docs/wire/ram.md §9). Nothing of it is negotiated: the source
/// must be told the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MultifdOptions {
    /// How many, 1 to 255; `None` takes any number, from a source of our own that [finds it by
    /// itself](Parameters::multifd_auto) and says so.
    pub channels: Option<u8>,
    /// How their pages are compressed.
    pub compression: MultifdCompression,
}

impl MultifdOptions {
    /// So many channels without compression.
    pub fn new(channels: u8) -> Self {
        Self { channels: Some(channels), compression: MultifdCompression::None }
    }

    /// Any number of them, without compression.
    pub fn any_number() -> Self {
        Self { channels: None, compression: MultifdCompression::None }
    }

    /// Sets how pages are compressed.
    #[must_use]
    pub fn compression(mut self, compression: MultifdCompression) -> Self {
        self.compression = compression;
        self
    }
}

/// What a migration can be told to do differently, by QEMU's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Capabilities {
    /// The destination answers on the same channel; the source reports success only after it said so.
    pub return_path: bool,
    /// Stop in `pre-switchover`, with the guest stopped, until told to continue.
    pub pause_before_switchover: bool,
    /// Pages go over [data channels](Parameters::multifd_channels) of their own; both ends must have it on.
    pub multifd: bool,
    /// Long runs of pages leave the data channels without the kernel copying them, where it really does that: over TCP, through
    /// a network device that gathers (docs/wire/transports.md §4). Where it does not, pages are sent as without it, which
    /// is told; on the loopback it never does. Source only; with `multifd`, without its compression.
    pub zero_copy_send: bool,
    /// Pages that the destination has already are sent as the difference (docs/wire/ram.md §4), for guests that change
    /// little of each page they write, over slow links. Source only; not with `multifd` nor over `rdma:`.
    pub xbzrle: bool,
    /// A guest that writes faster than it can be sent is slowed down until it is not; see
    /// [`Guest::throttle`](crate::Guest::throttle). Source only.
    pub auto_converge: bool,
}

impl Parameters {
    /// What QEMU takes where nothing else is said.
    pub const QEMU_MULTIFD_CHANNELS: u8 = 2;

    /// QEMU's defaults of release 10, for those who want to compare like with like.
    pub fn qemu() -> Self {
        Self { max_bandwidth: 134_217_728, ..Self::default() }
    }

    /// Bytes that may be sent with the guest stopped at `bandwidth` bytes a second (docs/wire/transports.md §6).
    pub(crate) fn switchover_threshold(&self, measured_bytes_per_sec: u64) -> u64 {
        let bandwidth = match self.avail_switchover_bandwidth {
            0 => measured_bytes_per_sec,
            assumed => assumed,
        };
        (bandwidth / 1000).saturating_mul(self.downtime_limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_is_bandwidth_times_downtime() {
        let mut parameters = Parameters::default();
        assert_eq!(parameters.switchover_threshold(1_000_000_000), 300_000_000);
        parameters.avail_switchover_bandwidth = 10_000_000;
        assert_eq!(parameters.switchover_threshold(1_000_000_000), 3_000_000);
        parameters.downtime_limit = 0;
        assert_eq!(parameters.switchover_threshold(u64::MAX), 0);
    }

    #[test]
    fn names_are_those_of_qemu() {
        let json = serde_json::to_value(Parameters::default()).unwrap();
        assert_eq!(json["max-bandwidth"], 0);
        assert_eq!(json["downtime-limit"], 300);
        let json = serde_json::to_value(Capabilities::default()).unwrap();
        assert_eq!(json["pause-before-switchover"], false);
        assert_eq!(json["auto-converge"], false);
        assert_eq!(json["xbzrle"], false);
        let json = serde_json::to_value(Parameters::default()).unwrap();
        let defaults = [
            ("xbzrle-cache-size", 67_108_864),
            ("throttle-trigger-threshold", 50),
            ("cpu-throttle-initial", 20),
            ("cpu-throttle-increment", 10),
            ("max-cpu-throttle", 99),
        ];
        for (name, default) in defaults {
            assert_eq!(json[name], default, "{name}");
        }
        assert_eq!(json["cpu-throttle-tailslow"], false);
    }
}
