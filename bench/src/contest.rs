//! Turns: A B A B …, each after the memory it needs was touched and freed.

use serde::Serialize;

use crate::{contestant::Contestant, failure::Result, memory};

/// One turn of one contestant.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Sample {
    /// Wall time of the transfer.
    pub(crate) seconds: f64,
    /// Processor time of both ends, where it could be had.
    pub(crate) cpu_seconds: Option<f64>,
    /// Payload.
    pub(crate) bytes: u64,
    /// What went over the wire for it, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) wire_bytes: Option<u64>,
}

/// A contestant and all its turns.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) samples: Vec<Sample>,
    /// What it said of itself, if that was the same in all turns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remark: Option<String>,
}

impl Entry {
    pub(crate) fn seconds(&self) -> impl Iterator<Item = f64> + '_ {
        self.samples.iter().map(|sample| sample.seconds)
    }

    pub(crate) fn rates(&self) -> impl Iterator<Item = f64> + '_ {
        self.samples.iter().map(|sample| sample.bytes as f64 / sample.seconds)
    }

    /// Payload for each byte on the wire, of the turns that know.
    pub(crate) fn compression(&self) -> impl Iterator<Item = f64> + '_ {
        let known =
            self.samples.iter().filter_map(|sample| Some((sample.bytes, sample.wire_bytes?)));
        known.map(|(bytes, wire)| bytes as f64 / wire as f64)
    }

    /// Of every turn, or none at all.
    pub(crate) fn cpu_seconds(&self) -> Option<Vec<f64>> {
        self.samples.iter().map(|sample| sample.cpu_seconds).collect()
    }
}

/// Lets them take turns.
pub(crate) fn contest(
    benchmark: &str,
    contestants: &mut [Box<dyn Contestant>],
    runs: u32,
) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = contestants
        .iter()
        .map(|contestant| Entry { name: contestant.name(), samples: Vec::new(), remark: None })
        .collect();
    for run in 1..=runs {
        for (contestant, entry) in contestants.iter_mut().zip(&mut entries) {
            memory::prime(contestant.memory_bytes());
            let turn = contestant.run().map_err(|error| format!("{}: {error}", entry.name))?;
            let sample = turn.sample;
            let cpu =
                sample.cpu_seconds.map_or_else(String::new, |cpu| format!(", {cpu:.2} CPU s"));
            eprintln!("{benchmark} {run}/{runs} {}: {:.3} s{cpu}", entry.name, sample.seconds);
            entry.samples.push(sample);
            if turn.remark.is_some() {
                entry.remark = turn.remark;
            }
        }
    }
    Ok(entries)
}
