//! What a guest costs for each GiB of it, and what memory its migration takes beside it, from small to large.

use std::fs;

use super::Plan;
use crate::{
    contest::{Entry, Sample},
    contestant::{Mig, Transport},
    failure::Result,
    memory,
    report::{Figure, Goal, Section},
    role::Multifd,
    statistics::Spread,
};

const GIB: f64 = (1u64 << 30) as f64;
const MIB: f64 = (1u64 << 20) as f64;

/// The largest guest, if nothing else was said; the others are a half, a quarter and an eighth of it.
const LARGEST: u64 = 8 << 30;

/// The machine needs some beside both ends.
const SPARE: u64 = 1 << 30;

/// What one size took, run by run.
struct Point {
    ram_bytes: u64,
    entry: Entry,
    /// Peak resident memory of the source and of the destination, in bytes, without the guest's.
    beside: [Vec<f64>; 2],
}

pub(super) fn run(plan: &Plan, section: &mut Section) -> Result<()> {
    let largest = plan.size.unwrap_or(LARGEST);
    let available = available().unwrap_or(u64::MAX);
    let mut points = Vec::new();
    for ram_bytes in [largest / 8, largest / 4, largest / 2, largest] {
        if 2 * ram_bytes + SPARE > available {
            section.notes.push(format!(
                "{} was left out: both ends together need {:.1} GiB and 1 GiB to spare, and {:.1} GiB are available.",
                size(ram_bytes),
                2.0 * ram_bytes as f64 / GIB,
                available as f64 / GIB
            ));
            continue;
        }
        let entry = Entry { name: size(ram_bytes), samples: Vec::new(), remark: None };
        points.push(Point { ram_bytes, entry, beside: [Vec::new(), Vec::new()] });
    }
    for run in 1..=plan.runs {
        for point in &mut points {
            point.measure(run, plan.runs)?;
        }
    }
    let (Some(small), Some(large)) = (points.first(), points.last()) else {
        return Err("not even the smallest guest fits into this machine's memory".into());
    };
    for point in &points {
        let what = |what: &str| format!("{}: {what}", point.entry.name);
        let [seconds, cpu] = point.costs()?.map(Spread::of);
        section.figures.push(Figure::told(what("seconds per GiB"), "", seconds));
        section.figures.push(Figure::told(what("CPU seconds per GiB"), "", cpu));
        for (end, beside) in ["source", "destination"].iter().zip(&point.beside) {
            let spread = Spread::of(beside.iter().map(|bytes| bytes / MIB));
            let what = what(&format!("peak of the {end} beside the guest"));
            section.figures.push(Figure::told(what, "MiB", spread));
        }
    }
    let what = format!("{} of {}", large.entry.name, small.entry.name);
    let goal = Goal::AtMost(1.1);
    for (name, (above, below)) in ["seconds per GiB", "CPU seconds per GiB"]
        .iter()
        .zip(large.costs()?.into_iter().zip(small.costs()?))
    {
        let ratio = Spread::of_ratios(above, below);
        section.figures.push(Figure::judged(format!("{what}: {name}"), "", ratio, goal));
    }
    for (end, (above, below)) in
        ["source", "destination"].iter().zip(large.beside.iter().zip(&small.beside))
    {
        let ratio = Spread::of_ratios(above.iter().copied(), below.iter().copied());
        let what = format!("{what}: peak of the {end} beside the guest");
        section.figures.push(Figure::judged(what, "", ratio, goal));
    }
    section.entries = points.into_iter().map(|point| point.entry).collect();
    section.notes.push(
        "2 data channels over tcp, noise, the receiver's memory untouched, huge pages off. Peaks are the processes' resident \
         memory (VmHWM) without guest memory; a dirty log of one bit a page is in them, 32 KiB for each GiB."
            .into(),
    );
    Ok(())
}

impl Point {
    fn measure(&mut self, run: u32, runs: u32) -> Result<()> {
        memory::prime(2 * self.ram_bytes);
        let multifd = Some(Multifd::plain(2));
        let mig = Mig { multifd, ..Mig::of_noise("mig", Transport::Tcp, self.ram_bytes) };
        let migrated = mig.migrate().map_err(|error| format!("{}: {error}", self.entry.name))?;
        let (source, destination) = (migrated.source, migrated.destination);
        let sample = Sample {
            seconds: source.seconds,
            cpu_seconds: Some(source.cpu_seconds + destination.cpu_seconds),
            bytes: self.ram_bytes,
            wire_bytes: Some(source.wire_bytes),
        };
        let name = &self.entry.name;
        eprintln!("multifd-curve {run}/{runs} {name}: {:.3} s", sample.seconds);
        self.entry.samples.push(sample);
        for (beside, peak) in self.beside.iter_mut().zip([source.peak_rss, destination.peak_rss]) {
            let peak = peak.ok_or("this kernel does not tell the peak of resident memory")?;
            beside.push(peak as f64 - self.ram_bytes as f64);
        }
        Ok(())
    }

    /// Seconds and CPU seconds for each GiB.
    fn costs(&self) -> Result<[Vec<f64>; 2]> {
        let gibs = self.ram_bytes as f64 / GIB;
        let cpu = self.entry.cpu_seconds().ok_or("processor time is missing")?;
        let seconds = self.entry.seconds().map(|seconds| seconds / gibs).collect();
        Ok([seconds, cpu.into_iter().map(|cpu| cpu / gibs).collect()])
    }
}

fn size(bytes: u64) -> String {
    match bytes.trailing_zeros() {
        30.. => format!("{} GiB", bytes >> 30),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// Memory that can be had without taking it from anybody, in bytes.
fn available() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
