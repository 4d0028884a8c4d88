//! What a source reports about its data channels.

use serde::Serialize;

use mig_compress::{CompressionVerdict, Observed};

/// The data channels of a source, part of [`MigrationInfo`](crate::MigrationInfo). QEMU has no such object; what QEMU
/// reports as well is in the `ram` object under QEMU's names.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct MultifdInfo {
    /// How many carry pages.
    pub channels: usize,
    /// Why so many, where the number was not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels_chosen: Option<String>,
    /// Where pages are compressed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<CompressionInfo>,
}

/// What compression did.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct CompressionInfo {
    /// `multifd-compression`.
    pub method: &'static str,
    /// The level it began with.
    pub level: i32,
    /// Bytes of pages that were compressed.
    pub bytes_in: u64,
    /// Bytes they became.
    pub bytes_out: u64,
    /// Seconds spent compressing, summed over the channels.
    pub compress_seconds: f64,
    /// Seconds spent waiting for the channels, summed over them.
    pub wait_seconds: f64,
    /// Whether compression was in the way, and what would have been faster, in words.
    pub verdict: String,
}

impl CompressionInfo {
    pub(super) fn new(observed: &Observed, verdict: &CompressionVerdict) -> Self {
        Self {
            method: observed.method.name(),
            level: observed.level.number(),
            bytes_in: observed.bytes_in,
            bytes_out: observed.bytes_out,
            compress_seconds: observed.compress_seconds,
            wait_seconds: observed.wait_seconds,
            verdict: verdict.to_string(),
        }
    }
}
