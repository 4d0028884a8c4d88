//! The zero test against reading the same amount of memory.

use std::{hint::black_box, time::Instant};

use mig_ram::{PAGE_SIZE, is_zero};
use mig_transport::Region;

use super::Plan;
use crate::{
    failure::Result,
    memory::{guest_ram, whole},
    report::{Figure, Section},
    statistics::Spread,
};

const BYTES: usize = 1 << 30;

pub(super) fn run(plan: &Plan, section: &mut Section) -> Result<()> {
    let ram = guest_ram(BYTES as u64)?;
    let region = whole(&ram);
    // Present, and zero: the whole page must be read to know.
    for offset in (0..BYTES).step_by(PAGE_SIZE) {
        region.sub(offset, 1)?.copy_in(&[0]);
    }
    let words = vec![1u64; BYTES / 8];
    let (mut tests, mut reads) = (Vec::new(), Vec::new());
    for _ in 0..plan.runs {
        let begun = Instant::now();
        let region: &dyn Region = &**region.region();
        for offset in (0..BYTES).step_by(PAGE_SIZE) {
            if !is_zero(region, offset, PAGE_SIZE)? {
                return Err("a page that was never written is not zero".into());
            }
        }
        tests.push(BYTES as f64 / 1e9 / begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        black_box(
            words
                .chunks(8)
                .map(|line| line.iter().fold(0, |all, word| all | word))
                .fold(0, |all, word| all | word),
        );
        reads.push(BYTES as f64 / 1e9 / begun.elapsed().as_secs_f64());
    }
    section.figures.push(Figure::told("zero test", "GB/s", Spread::of(tests.iter().copied())));
    section.figures.push(Figure::told("reading", "GB/s", Spread::of(reads.iter().copied())));
    section.figures.push(Figure::told("zero test of reading", "", Spread::of_ratios(tests, reads)));
    section.notes.push(
        "1 GiB of present pages without huge pages, page by page; to know, not to judge.".into(),
    );
    Ok(())
}
