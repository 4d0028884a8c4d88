//! Into memory that was touched before: what the loop itself costs.

use super::Plan;
use crate::{
    contest::contest,
    contestant::{Iperf, Mig, PlainLoop, Transport},
    failure::Result,
    report::{Figure, Goal, Section},
    role::Walk,
    statistics::Spread,
};

fn mig(plan: &Plan, transport: Transport) -> Box<Mig> {
    Box::new(Mig { warm: true, ..Mig::of_noise("mig", transport, plan.size()) })
}

pub(super) fn tcp(plan: &Plan, section: &mut Section) -> Result<()> {
    let iperf = Iperf::find(plan.size())?;
    let reno = Iperf { congestion: Some("reno"), ..iperf.clone() };
    let mut contestants: [Box<dyn crate::contestant::Contestant>; 3] =
        [mig(plan, Transport::Tcp), Box::new(iperf), Box::new(reno)];
    section.entries = contest("tcp-warm", &mut contestants, plan.runs)?;
    let [mig, iperf, reno] = &section.entries[..] else {
        return Err("three contestants took part".into());
    };
    section.figures.push(Figure::judged(
        "rate of iperf3's",
        "",
        Spread::of_ratios(mig.rates(), iperf.rates()),
        Goal::AtLeast(0.9),
    ));
    section.figures.push(Figure::told(
        "rate of iperf3's with reno",
        "",
        Spread::of_ratios(mig.rates(), reno.rates()),
    ));
    section.notes.push(
        "iperf3 uses the system's congestion control; mig chooses reno from a machine to itself, where nothing is to be \
         paced, so iperf3 runs a second time with reno."
            .into(),
    );
    section.notes.push(
        "mig's clock runs from connect to the destination's verdict and includes its dirty log and the final sync; \
         iperf3's is its own, of the transfer alone. Pages are noise, none is zero."
            .into(),
    );
    Ok(())
}

pub(super) fn unix(plan: &Plan, section: &mut Section) -> Result<()> {
    let plain = |walk| Box::new(PlainLoop { bytes: plan.size(), walk });
    let mut contestants: [Box<dyn crate::contestant::Contestant>; 3] =
        [mig(plan, Transport::Unix), plain(Walk::Hot), plain(Walk::Through)];
    section.entries = contest("unix-warm", &mut contestants, plan.runs)?;
    let [mig, hot, through] = &section.entries[..] else {
        return Err("three contestants took part".into());
    };
    section.figures.push(Figure::judged(
        "rate of the bare loop's, hot buffers",
        "",
        Spread::of_ratios(mig.rates(), hot.rates()),
        Goal::AtLeast(0.75),
    ));
    section.figures.push(Figure::told(
        "rate of the bare loop's, through memory",
        "",
        Spread::of_ratios(mig.rates(), through.rates()),
    ));
    section.notes.push(
        "The bare loop writes 1 MiB a call. With hot buffers each end uses one buffer again and again, which no \
         migration can: that is the stricter comparison, and the goal is held against it."
            .into(),
    );
    Ok(())
}
