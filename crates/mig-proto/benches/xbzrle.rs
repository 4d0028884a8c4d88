//! Rates of XBZRLE, in bytes of guest memory: `cargo bench -p mig-proto`. Prints figures, judges
//! nothing.

use std::hint::black_box;
use std::time::Instant;

use mig_proto::xbzrle::{Encoded, apply, encode};

const PAGE: usize = 4096;
/// Pages that are timed together.
const SLICE: usize = 16;
/// Slices in all.
const PASSES: usize = 4096;

/// What a guest did to a page.
type Change = fn(&mut [u8], &mut dyn FnMut() -> u64);

const CHANGES: [(&str, Change); 7] = [
    ("nothing", |_, _| {}),
    ("8 bytes", |page, random| {
        let at = random() as usize % (PAGE / 8) * 8;
        page[at..at + 8].iter_mut().for_each(|byte| *byte = !*byte);
    }),
    ("8 bytes in 8 places", |page, random| {
        for _ in 0..8 {
            let at = random() as usize % (PAGE / 8) * 8;
            page[at..at + 8].iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
        }
    }),
    ("half, at one end", |page, _| page[..PAGE / 2].iter_mut().for_each(|byte| *byte = !*byte)),
    ("half, random words", |page, random| {
        for word in page.chunks_mut(8) {
            if random() % 2 == 0 {
                word.iter_mut().for_each(|byte| *byte = !*byte);
            }
        }
    }),
    ("half, random bytes", |page, random| {
        page.iter_mut().for_each(|byte| *byte ^= u8::from(random() % 2 == 0));
    }),
    ("everything", |page, _| page.iter_mut().for_each(|byte| *byte = !*byte)),
];

fn main() {
    println!("{PAGE}-byte pages, MB/s of guest memory, median of slices of {SLICE} pages");
    for (pages, place) in [(SLICE, "in cache"), (16 << 10, "64 MiB twice")] {
        println!("{place}:");
        for (name, change) in CHANGES {
            measure(name, change, pages);
        }
    }
}

fn measure(name: &str, change: Change, pages: usize) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 16
    };
    let old: Vec<u8> = (0..pages * PAGE).map(|_| random() as u8).collect();
    let mut new = old.clone();
    new.chunks_mut(PAGE).for_each(|page| change(page, &mut random));

    let slices = || old.chunks(SLICE * PAGE).zip(new.chunks(SLICE * PAGE));
    let mut out = vec![0; PAGE];
    let mut deltas = Vec::new();
    for (old, new) in old.chunks(PAGE).zip(new.chunks(PAGE)) {
        match encode(old, new, &mut out) {
            Encoded::Delta(len) => deltas.push(out[..len].to_vec()),
            Encoded::Unchanged | Encoded::Overflow => {}
        }
    }

    let encoding = rate((0..PASSES * SLICE / pages).flat_map(|_| slices()), |(old, new)| {
        for (old, new) in old.chunks(PAGE).zip(new.chunks(PAGE)) {
            black_box(encode(black_box(old), black_box(new), &mut out));
        }
        SLICE
    });
    print!("  {name:20} encode {encoding:8.0}");
    if !deltas.is_empty() {
        let mut page = old[..PAGE].to_vec();
        let applying =
            rate((0..PASSES * SLICE / pages).flat_map(|_| deltas.chunks(SLICE)), |deltas| {
                for delta in deltas {
                    apply(black_box(&mut page), black_box(delta)).expect("a delta made above");
                }
                deltas.len()
            });
        let bytes: usize = deltas.iter().map(Vec::len).sum();
        let mean = bytes as f64 / deltas.len() as f64;
        print!("   apply {applying:8.0}   {mean:7.1} bytes a delta");
    }
    println!("   deltas for {} of {pages} pages", deltas.len());
}

/// MB/s of pages. A slice is so short that few are interrupted.
fn rate<T>(slices: impl Iterator<Item = T>, mut work: impl FnMut(T) -> usize) -> f64 {
    let mut rates: Vec<f64> = slices
        .map(|slice| {
            let begin = Instant::now();
            let pages = work(slice);
            (pages * PAGE) as f64 / begin.elapsed().as_secs_f64() / 1e6
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
