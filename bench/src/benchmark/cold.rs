//! Into memory that nobody has touched: first touch is the price.

use std::rc::Rc;

use super::Plan;
use crate::{
    contest::contest,
    contestant::{Binary, Contestant, Mig, Qemu, Transport},
    failure::Result,
    memory::{FilledFile, Texture},
    report::{Figure, Goal, Section},
    statistics::Spread,
};

pub(super) fn tcp(plan: &Plan, section: &mut Section) -> Result<()> {
    against_qemu(plan, section, Transport::Tcp, 0.45, 0.5)
}

pub(super) fn unix(plan: &Plan, section: &mut Section) -> Result<()> {
    against_qemu(plan, section, Transport::Unix, 0.55, 0.55)
}

fn against_qemu(
    plan: &Plan,
    section: &mut Section,
    transport: Transport,
    time_goal: f64,
    cpu_goal: f64,
) -> Result<()> {
    let binaries = Binary::all();
    if binaries.is_empty() {
        return Err(
            "no qemu-system-x86_64 runs here; `apt install qemu-system-x86` brings it".into()
        );
    }
    let contents = Rc::new(FilledFile::new(plan.size(), 11, Texture::Noise)?);
    let mig = Mig::of_noise("mig", transport, plan.size());
    let mut contestants: Vec<Box<dyn Contestant>> = vec![Box::new(mig)];
    let mut versions = Vec::new();
    for binary in binaries {
        versions.push(binary.version().to_owned());
        let contents = Rc::clone(&contents);
        contestants.push(Box::new(Qemu { binary, transport, contents, multifd: None, tls: None }));
    }
    let name = format!("{}-cold", transport.name());
    section.entries = contest(&name, &mut contestants, plan.runs)?;
    let Some((mig, qemus)) = section.entries.split_first() else {
        return Err("nobody took part".into());
    };
    for (version, qemu) in versions.iter().zip(qemus) {
        section.figures.push(Figure::judged(
            format!("time of QEMU {version}'s"),
            "",
            Spread::of_ratios(mig.seconds(), qemu.seconds()),
            Goal::AtMost(time_goal),
        ));
        let (Some(ours), Some(theirs)) = (mig.cpu_seconds(), qemu.cpu_seconds()) else {
            return Err("processor time is missing".into());
        };
        section.figures.push(Figure::judged(
            format!("CPU seconds of QEMU {version}'s"),
            "",
            Spread::of_ratios(ours, theirs),
            Goal::AtMost(cpu_goal),
        ));
    }
    let placed = mig.remark.as_deref().unwrap_or("unknown");
    section.notes.push(format!("mig brought pages into place by {placed}."));
    section.notes.push(
        "Both guests are stopped or idle, both migrate with a return path, huge pages are forbidden to all processes, \
         bandwidth is unlimited. QEMU's clock runs from the `migrate` command to its `completed` event; its CPU time is \
         that of both processes over the same span, in ticks of 10 ms."
            .into(),
    );
    Ok(())
}
