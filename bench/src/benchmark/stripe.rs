//! Dirt in every second page: no two pages that follow each other.

use super::Plan;
use crate::{
    contest::contest,
    contestant::{Contestant, Mig, Transport},
    failure::Result,
    report::{Figure, Goal, Section},
    role::Pattern,
    statistics::Spread,
};

pub(super) fn run(plan: &Plan, section: &mut Section) -> Result<()> {
    let mig = |name, pattern| -> Box<dyn Contestant> {
        Box::new(Mig { warm: true, pattern, ..Mig::of_noise(name, Transport::Tcp, plan.size()) })
    };
    let mut contestants =
        [mig("every second page", Pattern::EverySecond), mig("contiguous", Pattern::FirstHalf)];
    section.entries = contest("stripe", &mut contestants, plan.runs)?;
    let [stripe, contiguous] = &section.entries[..] else {
        return Err("two contestants took part".into());
    };
    section.figures.push(Figure::judged(
        "rate of the contiguous",
        "",
        Spread::of_ratios(stripe.rates(), contiguous.rates()),
        Goal::AtLeast(0.7),
    ));
    section.notes.push(
        "Both send all memory once; then the dirty log names every second page, or the first half, and the second pass \
         sends exactly those. Only that pass is measured, from the end of one sync to the beginning of the next; the \
         destination's memory is warm."
            .into(),
    );
    Ok(())
}
