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

/// Bits a second of the link that is judged.
const RATE: u64 = 1_000_000_000;

/// One way: 20 ms there and back.
const DELAY: Duration = Duration::from_millis(10);

/// Long enough that connecting and the slow start, a few tenths of a second, do not decide.
const SIZE: u64 = 512 << 20;

/// So much slower is a link that emulated processors can fill whatever else they do; and so much less goes over it.
const EASIER: u64 = 10;

pub(super) fn run(plan: &Plan, section: &mut Section) -> Result<()> {
    let bytes = plan.size.unwrap_or(SIZE);
    over(RATE, bytes, plan.runs, Some(Goal::AtLeast(0.9)), section)?;
    let less = (bytes / EASIER).next_multiple_of(1 << 20);
    over(RATE / EASIER, less, plan.runs, None, section)?;
    section.notes.push(format!(
        "Two network namespaces, a veth pair, netem with {} ms and the rate each way; {} MiB of noise, over the slower link a \
         tenth of that, into memory that was touched before. The share is of guest memory: heads of packets, about 4 % of a link, are not in it, and \
         mig's clock includes connecting, the slow start and the verdict's way back.",
        DELAY.as_millis(),
        bytes >> 20
    ));
    section.notes.push(
        "iperf3 over the same link is the yardstick for what the machine can do: the lab's processors are emulated, and may not \
         fill 1 Gbit/s. The slower link, which they can, shows what delay alone costs."
            .into(),
    );
    Ok(())
}

/// All contestants over one link.
fn over(rate: u64, bytes: u64, runs: u32, goal: Option<Goal>, section: &mut Section) -> Result<()> {
    let link = Rc::new(Link::new(DELAY, rate)?);
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
    let megabits = rate / 1_000_000;
    let mut entries = contest(&format!("multifd-netem {megabits} Mbit/s"), &mut contestants, runs)?;
    let [ours @ .., one, two] = &entries[..] else {
        return Err("five contestants took part".into());
    };
    for entry in ours.iter().chain([one, two]) {
        let share = Spread::of(entry.rates().map(|bytes| bytes * 8.0 / rate as f64));
        let what = format!("{}: share of {megabits} Mbit/s", entry.name);
        section.figures.push(match goal.filter(|_| entry.name.starts_with("mig")) {
            Some(goal) => Figure::judged(what, "", share, goal),
            None => Figure::told(what, "", share),
        });
    }
    for entry in ours {
        let yardstick = if entry.name.contains("one") { one } else { two };
        let what = format!("{}, {megabits} Mbit/s: rate of {}", entry.name, yardstick.name);
        let ratio = Spread::of_ratios(entry.rates(), yardstick.rates());
        section.figures.push(Figure::told(what, "", ratio));
    }
    for entry in &mut entries {
        entry.name = format!("{}, {megabits} Mbit/s", entry.name);
    }
    section.entries.extend(entries);
    Ok(())
}
