//! Over a link with the delay of a distance, in the lab: how much of it is filled.

use std::{rc::Rc, time::Duration};

use super::Plan;
use crate::{
    contest::contest,
    contestant::{Contestant, Iperf, Mig, Transport},
    failure::Result,
    link::Link,
    report::{Figure, Goal, Section},
    role::Multifd,
    statistics::Spread,
};

/// Bits a second.
const RATE: u64 = 1_000_000_000;

/// One way: 20 ms there and back.
const DELAY: Duration = Duration::from_millis(10);

/// Long enough that connecting and the slow start, a few tenths of a second, do not decide.
const SIZE: u64 = 512 << 20;

pub(super) fn run(plan: &Plan, section: &mut Section) -> Result<()> {
    let link = Rc::new(Link::new(DELAY, RATE)?);
    let bytes = plan.size.unwrap_or(SIZE);
    let mig = |name, channels: Option<u8>| -> Box<dyn Contestant> {
        let (multifd, link) = (channels.map(Multifd::plain), Some(Rc::clone(&link)));
        Box::new(Mig { warm: true, multifd, link, ..Mig::of_noise(name, Transport::Tcp, bytes) })
    };
    let iperf = Iperf { link: Some(Rc::clone(&link)), ..Iperf::find(bytes)? };
    let two = Iperf { streams: 2, ..iperf.clone() };
    let mut contestants = [
        mig("mig, one stream", None),
        mig("mig, 2 channels", Some(2)),
        mig("mig, 4 channels", Some(4)),
        Box::new(iperf),
        Box::new(two),
    ];
    section.entries = contest("multifd-netem", &mut contestants, plan.runs)?;
    let [ours @ .., one, two] = &section.entries[..] else {
        return Err("five contestants took part".into());
    };
    for entry in ours {
        let share = Spread::of(entry.rates().map(|rate| rate * 8.0 / RATE as f64));
        let what = format!("{}: share of the link", entry.name);
        section.figures.push(Figure::judged(what, "", share, Goal::AtLeast(0.9)));
    }
    for entry in [one, two] {
        let share = Spread::of(entry.rates().map(|rate| rate * 8.0 / RATE as f64));
        section.figures.push(Figure::told(format!("{}: share of the link", entry.name), "", share));
    }
    for entry in ours {
        let yardstick = if entry.name.contains("one") { one } else { two };
        let what = format!("{}: rate of {}'s", entry.name, yardstick.name);
        let ratio = Spread::of_ratios(entry.rates(), yardstick.rates());
        section.figures.push(Figure::told(what, "", ratio));
    }
    section.notes.push(format!(
        "Two network namespaces, a veth pair, netem with {} ms and 1 Gbit/s each way; {} MiB of noise into memory that was \
         touched before. The share is of guest memory: heads of packets, about 4 % of a link, are not in it, and \
         mig's clock includes connecting, the slow start and the verdict's way back.",
        DELAY.as_millis(),
        bytes >> 20
    ));
    section.notes.push(
        "iperf3 over the same link is the yardstick for what the machine can do: the lab's processors are emulated."
            .into(),
    );
    Ok(())
}
