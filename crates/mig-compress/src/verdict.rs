//! Was compression in the way? Arithmetic on what a migration counted; nothing is measured here.
//!
//! ```text
//!   all channels together:   ├── compressing ──┼── waiting for the channel ──┤
//!   without compression:     ├── waiting, for `ratio` times the bytes ────────┼──▶ longer? then it was worth it
//! ```
//! Time spent elsewhere (copying, finding zero pages) is in neither and changes nothing.

use std::fmt;

use crate::method::{Level, Method};

/// Above this share of the time spent compressing, compression was what everything waited for.
const MOSTLY: f64 = 0.75;

/// Below this share the channel was.
const SELDOM: f64 = 0.4;

/// A suggestion has to promise this much.
const WORTH_SAYING: f64 = 0.95;

/// What a migration counted, over all its channels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observed {
    /// The method.
    pub method: Method,
    /// The level, of the last change if it changed.
    pub level: Level,
    /// Bytes of pages compressed.
    pub bytes_in: u64,
    /// Bytes they became.
    pub bytes_out: u64,
    /// Seconds spent in [`crate::Compressor`], summed over the channels.
    pub compress_seconds: f64,
    /// Seconds spent waiting for the channel to take them, summed over the channels.
    pub wait_seconds: f64,
    /// How many channels carried pages.
    pub channels: u32,
    /// How many processors compression may use.
    pub processors: u32,
}

/// What everything waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bottleneck {
    /// The processors that compressed; the link was idle meanwhile.
    Compression,
    /// The channel; processors were idle meanwhile.
    Link,
    /// Neither more than the other, or too little happened to tell.
    Balanced,
}

/// What would probably have been faster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Suggestion {
    /// Send the pages as they are.
    NoCompression {
        /// How long it would have taken.
        seconds: f64,
    },
    /// A cheaper level of the same method.
    LowerLevel,
    /// More channels, so that more processors compress.
    MoreChannels {
        /// So many.
        channels: u32,
        /// How long it would have taken.
        seconds: f64,
    },
    /// A level that saves more: there was time for it.
    HigherLevel,
}

/// Whether compression was the bottleneck, what would have been faster, and the numbers behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct CompressionVerdict {
    /// What everything waited for.
    pub bottleneck: Bottleneck,
    /// What would probably have been faster, the surest first; empty if nothing would.
    pub suggestions: Vec<Suggestion>,
    /// Bytes of pages for each byte sent.
    pub ratio: f64,
    /// Bytes of pages that one channel compressed in a second of compressing.
    pub compress_bytes_per_sec: f64,
    /// Bytes that all channels together sent in a second of waiting: about the link's rate. Infinite if nobody waited.
    pub link_bytes_per_sec: f64,
    /// Compressing, as a share of compressing and waiting.
    pub compressing_share: f64,
    /// How long compressing and waiting took, each channel doing one at a time.
    pub seconds: f64,
}

/// Judges what was observed.
pub fn judge(observed: &Observed) -> CompressionVerdict {
    let channels = f64::from(observed.channels.max(1));
    let compressing = observed.compress_seconds.max(0.0);
    let waiting = observed.wait_seconds.max(0.0);
    let ratio = observed.bytes_in as f64 / observed.bytes_out.max(1) as f64;
    let compressing_share = quotient(compressing, compressing + waiting, 0.0);
    let bottleneck = if observed.bytes_in == 0 || compressing + waiting == 0.0 {
        Bottleneck::Balanced
    } else if compressing_share >= MOSTLY {
        Bottleneck::Compression
    } else if compressing_share <= SELDOM {
        Bottleneck::Link
    } else {
        Bottleneck::Balanced
    };
    let mut verdict = CompressionVerdict {
        bottleneck,
        suggestions: Vec::new(),
        ratio,
        compress_bytes_per_sec: quotient(observed.bytes_in as f64, compressing, 0.0),
        link_bytes_per_sec: quotient(observed.bytes_out as f64, waiting / channels, f64::INFINITY),
        compressing_share,
        seconds: (compressing + waiting) / channels,
    };
    if observed.bytes_in > 0 && verdict.seconds > 0.0 {
        verdict.suggestions = suggest(observed, &verdict, channels);
    }
    verdict
}

fn suggest(observed: &Observed, verdict: &CompressionVerdict, channels: f64) -> Vec<Suggestion> {
    let mut suggestions = Vec::new();
    let worth = verdict.seconds * WORTH_SAYING;
    let without = verdict.ratio * observed.wait_seconds.max(0.0) / channels;
    if without < worth {
        suggestions.push(Suggestion::NoCompression { seconds: without });
    }
    if verdict.bottleneck == Bottleneck::Link {
        if observed.level.number() < *observed.method.levels().end() && verdict.ratio > 1.0 {
            suggestions.push(Suggestion::HigherLevel);
        }
        return suggestions;
    }
    // The link gives each channel less as there are more; only compressing is shared out.
    let more = observed.processors.max(1);
    let shared_out = observed.compress_seconds.max(0.0) / f64::from(more)
        + observed.wait_seconds.max(0.0) / channels;
    if more > observed.channels && shared_out < worth {
        suggestions.push(Suggestion::MoreChannels { channels: more, seconds: shared_out });
    }
    if verdict.bottleneck == Bottleneck::Compression
        && observed.level.number() > *observed.method.levels().start()
    {
        suggestions.push(Suggestion::LowerLevel);
    }
    suggestions
}

fn quotient(part: f64, of: f64, otherwise: f64) -> f64 {
    if of > 0.0 { part / of } else { otherwise }
}

impl fmt::Display for Suggestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCompression { seconds } => write!(f, "no compression (about {seconds:.1} s)"),
            Self::LowerLevel => f.write_str("a lower level"),
            Self::MoreChannels { channels, seconds } => {
                write!(f, "{channels} channels (about {seconds:.1} s)")
            }
            Self::HigherLevel => f.write_str("a higher level"),
        }
    }
}

impl fmt::Display for CompressionVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.bottleneck {
            Bottleneck::Compression => "compression was the bottleneck",
            Bottleneck::Link => "the link was the bottleneck",
            Bottleneck::Balanced => "compression and link were about even",
        };
        write!(
            f,
            "{what}: {:.0} % of {:.1} s went into compressing, at {:.0} MB/s a channel and {:.2}:1",
            self.compressing_share * 100.0,
            self.seconds,
            self.compress_bytes_per_sec / 1e6,
            self.ratio
        )?;
        for (at, suggestion) in self.suggestions.iter().enumerate() {
            let before = if at == 0 { "; probably faster: " } else { ", " };
            write!(f, "{before}{suggestion}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(compress_seconds: f64, wait_seconds: f64, ratio: u64) -> Observed {
        Observed {
            method: Method::Zstd,
            level: Level::DEFAULT,
            bytes_in: 4_000_000_000,
            bytes_out: 4_000_000_000 / ratio,
            compress_seconds,
            wait_seconds,
            channels: 2,
            processors: 2,
        }
    }

    #[test]
    fn a_fast_link_would_have_been_better_without() {
        let verdict = judge(&observed(10.0, 0.4, 4));
        assert_eq!(verdict.bottleneck, Bottleneck::Compression);
        assert_eq!(
            verdict.suggestions,
            [Suggestion::NoCompression { seconds: 0.8 }, Suggestion::LowerLevel]
        );
        assert_eq!(verdict.ratio, 4.0);
        assert_eq!(verdict.compress_bytes_per_sec, 400e6);
        assert_eq!(verdict.link_bytes_per_sec, 5e9);
        assert_eq!(
            verdict.to_string(),
            "compression was the bottleneck: 96 % of 5.2 s went into compressing, at 400 MB/s a channel and \
             4.00:1; probably faster: no compression (about 0.8 s), a lower level"
        );
    }

    #[test]
    fn a_slow_link_wants_a_higher_level() {
        let verdict = judge(&observed(4.0, 16.0, 4));
        assert_eq!(verdict.bottleneck, Bottleneck::Link);
        assert_eq!(verdict.suggestions, [Suggestion::HigherLevel]);
        assert_eq!(verdict.seconds, 10.0);
    }

    #[test]
    fn an_idle_processor_wants_more_channels() {
        let verdict = judge(&Observed { processors: 8, ..observed(12.0, 4.0, 4) });
        assert_eq!(verdict.bottleneck, Bottleneck::Compression);
        assert_eq!(
            verdict.suggestions,
            [Suggestion::MoreChannels { channels: 8, seconds: 3.5 }, Suggestion::LowerLevel]
        );
    }

    #[test]
    fn pages_that_do_not_compress_are_better_sent_as_they_are() {
        let verdict = judge(&observed(1.0, 16.0, 1));
        assert_eq!(verdict.suggestions, [Suggestion::NoCompression { seconds: 8.0 }]);
    }

    #[test]
    fn an_even_match_is_left_alone() {
        let verdict = judge(&observed(8.0, 8.0, 4));
        assert_eq!(verdict.bottleneck, Bottleneck::Balanced);
        assert!(verdict.suggestions.is_empty());
    }

    #[test]
    fn the_ends_of_the_scale_are_not_left() {
        let lowest = Level::new(Method::Zstd, -50).unwrap();
        let verdict = judge(&Observed { level: lowest, ..observed(10.0, 3.0, 4) });
        assert!(!verdict.suggestions.contains(&Suggestion::LowerLevel));
        let highest = Level::new(Method::Zstd, 20).unwrap();
        let verdict = judge(&Observed { level: highest, ..observed(1.0, 30.0, 4) });
        assert!(verdict.suggestions.is_empty());
    }

    #[test]
    fn nothing_observed_says_nothing() {
        for (bytes_in, seconds) in [(0, 0.0), (0, 5.0), (4096, 0.0)] {
            let verdict =
                judge(&Observed { bytes_in, bytes_out: 0, ..observed(seconds, seconds, 4) });
            assert_eq!(verdict.bottleneck, Bottleneck::Balanced);
            assert!(verdict.suggestions.is_empty());
            assert!(!verdict.to_string().contains("NaN"));
        }
    }
}
