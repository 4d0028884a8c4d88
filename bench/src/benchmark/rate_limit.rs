//! A limited rate, as the receiver sees it.

use std::time::Duration;

use super::Plan;
use crate::{
    child::{Helper, STEP},
    failure::Result,
    report::{Figure, Goal, Section},
    role::{
        Contents, Go, PacedQuestion, PacedResult, PacedRole, Pattern, Ready, Role, SourceResult,
        SourceRole,
    },
    statistics::Spread,
};

const MB: u64 = 1_000_000;
const RATES: [(u64, &str); 4] =
    [(MB, "1 MB/s"), (10 * MB, "10 MB/s"), (100 * MB, "100 MB/s"), (1000 * MB, "1 GB/s")];

/// Seconds of stream at the rate, all of which count.
const SECONDS: u64 = 4;

/// Guest memory at most; it is sent again and again.
const MOST_RAM: u64 = 256 << 20;

pub(super) fn run(plan: &Plan, section: &mut Section) -> Result<()> {
    for (rate, name) in RATES {
        let mut errors = Vec::new();
        let mut bursts = Vec::new();
        for run in 1..=plan.runs {
            let seen = paced(rate)?;
            let error = (seen.fullest - 1.0).abs().max((1.0 - seen.emptiest).abs()) * 100.0;
            eprintln!(
                "rate-limit {run}/{} {name}: seconds between {:.2} % and {:.2} % of it, burst {:.2} ms",
                plan.runs,
                seen.emptiest * 100.0,
                seen.fullest * 100.0,
                seen.burst_ms
            );
            errors.push(error);
            bursts.push(seen.burst_ms);
        }
        let off = format!("{name}: the second farthest off");
        section.figures.push(Figure::judged(off, "%", Spread::of(errors), Goal::AtMost(1.0)));
        let burst = format!("{name}: longest burst");
        section.figures.push(Figure::judged(burst, "ms", Spread::of(bursts), Goal::AtMost(10.0)));
    }
    section.notes.push(format!(
        "A receiver that only reads notes when how much arrives. Every second that lies within the {SECONDS} seconds \
         of a run counts, wherever it begins, the very first included; what is sent with the guest stopped is not \
         paced and does not count. A figure is the worst second of a run, its median that of the runs. A burst is how \
         far arrivals ever run ahead of the rate, as time at the rate: a delay of the receiver's own counts as one."
    ));
    Ok(())
}

fn paced(rate: u64) -> Result<PacedResult> {
    let page = mig_ram::PAGE_SIZE as u64;
    let ram_bytes = (rate / page * page).min(MOST_RAM);
    let rounds = u32::try_from((rate * SECONDS).div_ceil(ram_bytes))?;
    let mut role = SourceRole::idle(ram_bytes, Contents::Noise(3));
    role.pattern = Pattern::Everything(rounds);
    role.return_path = false;
    role.max_bandwidth = rate;
    role.downtime_limit_ms = 1;
    let mut source = Helper::role("the source", &Role::Source(role))?;
    let _filled: Ready = source.hear(STEP)?;
    let receiver = Role::Paced(PacedRole { rate_bytes_per_sec: rate });
    let mut receiver = Helper::role("the receiver", &receiver)?;
    let ready: Ready = receiver.hear(STEP)?;
    let address = ready.address.ok_or("the receiver does not say where it listens")?;
    source.say(&Go { address })?;
    let sent: SourceResult = source.hear(Duration::from_secs(20 * SECONDS))?;
    receiver.say(&PacedQuestion { paced_bytes: sent.precopy_bytes })?;
    receiver.hear(STEP)
}
