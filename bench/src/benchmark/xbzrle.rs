//! Deltas of a guest that touches eight bytes a page, against QEMU.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use super::Plan;
use crate::{
    contest::{Entry, contest},
    contestant::{Binary, Contestant, QemuTouched, Touched},
    failure::Result,
    memory::plain_words,
    report::{Figure, Goal, Section},
    role::Touch,
    statistics::Spread,
};

/// Guest memory at least; half of it is touched, and the cache has room for all of it. A QEMU whose first pass takes less
/// than 100 ms has no bandwidth yet to judge by, and ends the migration whatever the downtime limit is.
const RAM: u64 = 512 << 20;

/// How much of a migration is measured.
const WINDOW: Duration = Duration::from_secs(4);

pub(super) fn run(plan: &Plan, section: &mut Section) -> Result<()> {
    // QEMU's cache takes powers of two only.
    let ram_bytes = plan.size.map_or(RAM, |size| size.max(RAM).next_power_of_two());
    let touch = Touch::half_of(ram_bytes);
    let mut contestants: Vec<Box<dyn Contestant>> =
        vec![Box::new(Touched { touch, window: WINDOW })];
    let binaries = Binary::all();
    if binaries.is_empty() {
        return Err(
            "no qemu-system-x86_64 runs here; `apt install qemu-system-x86` brings it".into()
        );
    }
    for binary in binaries {
        contestants.push(Box::new(QemuTouched { binary, touch, window: WINDOW }));
    }
    section.entries = contest("xbzrle", &mut contestants, plan.runs)?;
    let Some((mig, qemus)) = section.entries.split_first() else {
        return Err("nobody took part".into());
    };
    let limit = Spread::of(limit(&touch, plan.runs)?.into_iter().map(|rate| rate / 1e3));
    let (mut told, mut judged) = (Vec::new(), Vec::new());
    for entry in &section.entries {
        let thousands = Spread::of(rates(entry)?.into_iter().map(|rate| rate / 1e3));
        let what = format!("{}: thousand deltas a CPU second", entry.name);
        told.push(Figure::told(what, "", thousands));
    }
    for qemu in qemus {
        let ratio = Spread::of_ratios(rates(mig)?, rates(qemu)?);
        let what = format!("deltas a CPU second of {}'s", qemu.name);
        judged.push(Figure::judged(what, "", ratio, Goal::AtLeast(1.5)));
    }
    let seen = section
        .entries
        .iter()
        .filter_map(|entry| Some(format!("{}: {}", entry.name, entry.remark.as_deref()?)));
    let seen: Vec<_> = seen.collect();
    told.push(Figure::told("reading a page and its copy: thousand pages a second", "", limit));
    section.figures.extend(told.into_iter().chain(judged));
    section.notes.push(format!(
        "A running guest writes eight bytes, all of which change, in every page of {} MiB, over and over; the cache holds \
         all of its memory. What is counted are pages that went as XBZRLE records within {} s in the middle of a \
         migration, after a first pass of records; every pass is of all those pages: QEMU's guest is that fast, and mig waits, \
         asleep, until its own is, so that its seconds and GiB/s say nothing. CPU seconds are the source's without its guest: for mig the whole process but \
         the guest's thread, for QEMU (-accel tcg, a guest program of ours) its migration thread alone. That is finding the \
         pages, looking them up, encoding, sending; whoever receives only reads. To make a delta a page and the cached copy of it are read whole, and a working set does not fit into \
         the processor's cache: the C library's comparison of as many pages with their copies shows what that allows.",
        (u64::from(touch.pages) * mig_ram::PAGE_SIZE as u64) >> 20,
        WINDOW.as_secs()
    ));
    section.notes.push(format!("In the last round: {}.", seen.join("; ")));
    Ok(())
}

/// Pages a second that one thread can read together with a copy of each: what memory leaves to have.
fn limit(touch: &Touch, runs: u32) -> Result<Vec<f64>> {
    const WORDS: usize = mig_ram::PAGE_SIZE / 8;
    let bytes = touch.pages as usize * mig_ram::PAGE_SIZE;
    let (pages, copies) = (plain_words(bytes)?, plain_words(bytes)?);
    let rate = |_| {
        let begun = Instant::now();
        let both = black_box(&pages).chunks_exact(WORDS).zip(copies.chunks_exact(WORDS));
        let same = both.filter(|(page, copy)| page == copy).count();
        same as f64 / begun.elapsed().as_secs_f64()
    };
    Ok((0..runs).map(rate).collect())
}

/// Pages a second of processor time.
fn rates(entry: &Entry) -> Result<Vec<f64>> {
    let cpu = entry.cpu_seconds().ok_or("processor time is missing")?;
    let pages = entry.samples.iter().map(|sample| sample.bytes as f64 / mig_ram::PAGE_SIZE as f64);
    Ok(pages.zip(cpu).map(|(pages, cpu)| pages / cpu).collect())
}
