//! How long an idle guest stands still.

use super::Plan;
use crate::{
    contestant::{Mig, Transport},
    failure::Result,
    memory,
    report::{Figure, Goal, Section},
    statistics::Spread,
};

const RAM: u64 = 1 << 30;

pub(super) fn run(plan: &Plan, section: &mut Section) -> Result<()> {
    for (name, warm) in [("warm memory", true), ("cold memory", false)] {
        let mig = Mig { warm, ..Mig::of_noise(name, Transport::Tcp, RAM) };
        let mut downtimes = Vec::new();
        for run in 1..=plan.runs {
            memory::prime(2 * RAM);
            let downtime = mig.migrate()?.source.downtime_ms;
            eprintln!("idle-downtime {run}/{} {name}: {downtime:.2} ms", plan.runs);
            downtimes.push(downtime);
        }
        section.figures.push(Figure::judged(
            format!("downtime, {name}"),
            "ms",
            Spread::of(downtimes),
            Goal::AtMost(10.0),
        ));
    }
    section.notes.push(
        "1 GiB of noise, a guest that writes nothing. As the source counts it: from asking the guest to stop, over the \
         last look at the dirty log, to the destination's verdict."
            .into(),
    );
    Ok(())
}
