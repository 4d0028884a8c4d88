//! The zero test of memory that is nothing but zeros, against reading as much.

use std::{hint::black_box, time::Instant};

use mig_ram::{MAX_ZERO_PAGES, PAGE_SIZE, is_zero, zero_pages};
use mig_transport::Region;

use super::Plan;
use crate::{
    failure::Result,
    memory::{guest_ram, plain_words, whole},
    report::{Figure, Goal, Section},
    statistics::Spread,
};

const BYTES: usize = 1 << 30;

/// Bytes that are compared at a time: they and what they are compared with stay in the first cache.
const COMPARED: usize = 8 << 10;

pub(super) fn run(plan: &Plan, section: &mut Section) -> Result<()> {
    let ram = guest_ram(BYTES as u64)?;
    let region = whole(&ram);
    // Present, and zero: the whole page must be read to know.
    for offset in (0..BYTES).step_by(PAGE_SIZE) {
        region.sub(offset, 1)?.copy_in(&[0]);
    }
    let region: &dyn Region = &**region.region();
    let plain = Plain::new()?;
    let mut rates: [Vec<f64>; 4] = Default::default();
    for run in 1..=plan.runs {
        let [scans, pages, words, compared] = &mut rates;
        scans.push(rate(|| scan(region))?);
        words.push(rate(|| plain.or())?);
        pages.push(rate(|| page_by_page(region))?);
        compared.push(rate(|| plain.compare())?);
        let last = |rates: &[f64]| rates.last().copied().unwrap_or(f64::NAN);
        eprintln!(
            "zero-scan {run}/{}: {:.1} GB/s, reading {:.1} and {:.1} GB/s",
            plan.runs,
            last(scans),
            last(words),
            last(compared)
        );
    }
    let [scans, pages, words, compared] = rates;
    let fastest: Vec<f64> =
        words.iter().zip(&compared).map(|(words, compared)| words.max(*compared)).collect();
    let scan_of_reading = Spread::of_ratios(scans.iter().copied(), fastest.iter().copied());
    let page_of_reading = Spread::of_ratios(pages.iter().copied(), fastest);
    for (what, rates) in [
        ("zero test, 64 pages a call", scans),
        ("zero test, page by page", pages),
        ("reading: OR of all words", words),
        ("reading: the C library's comparison with zeros", compared),
    ] {
        section.figures.push(Figure::told(what, "GB/s", Spread::of(rates)));
    }
    section.figures.push(Figure::judged(
        "zero test of reading, 64 pages a call",
        "",
        scan_of_reading,
        Goal::AtLeast(0.8),
    ));
    section.figures.push(Figure::told("zero test of reading, page by page", "", page_of_reading));
    section.notes.push(
        "1 GiB of zeros, present, without huge pages, one thread. A source tests 64 pages a call. Reading is the faster of two ways \
         in each round: words ORed together, and memcmp with a buffer of 8 KiB, for which the C library takes the widest \
         loads that the processor has."
            .into(),
    );
    Ok(())
}

/// GB/s of something that goes through all of it.
fn rate(through: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    through()?;
    Ok(BYTES as f64 / 1e9 / begun.elapsed().as_secs_f64())
}

fn scan(region: &dyn Region) -> Result<()> {
    for offset in (0..BYTES).step_by(MAX_ZERO_PAGES * PAGE_SIZE) {
        if zero_pages(region, offset, MAX_ZERO_PAGES)? != u64::MAX {
            return Err("a page that was never written is not zero".into());
        }
    }
    Ok(())
}

fn page_by_page(region: &dyn Region) -> Result<()> {
    for offset in (0..BYTES).step_by(PAGE_SIZE) {
        if !is_zero(region, offset, PAGE_SIZE)? {
            return Err("a page that was never written is not zero".into());
        }
    }
    Ok(())
}

/// As much memory of our own, of which references may be made.
struct Plain(Vec<u64>);

impl Plain {
    fn new() -> Result<Self> {
        Ok(Self(plain_words(BYTES)?))
    }

    fn or(&self) -> Result<()> {
        let lines = self.0.chunks_exact(32);
        let all = lines.fold([0u64; 32], |mut all, line| {
            for (all, word) in all.iter_mut().zip(line) {
                *all |= word;
            }
            all
        });
        match black_box(all).iter().all(|word| *word == 0) {
            true => Ok(()),
            false => Err("memory that was never written is not zero".into()),
        }
    }

    fn compare(&self) -> Result<()> {
        let zeros = black_box([0u64; COMPARED / 8]);
        match self.0.chunks_exact(zeros.len()).all(|chunk| *chunk == zeros) {
            true => Ok(()),
            false => Err("memory that was never written is not zero".into()),
        }
    }
}
