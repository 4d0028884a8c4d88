//! Which level costs no time: a sample is compressed at a few levels, and arithmetic picks one.
//!
//! ```text
//!   sample ─▶ level 1 ─▶ faster ones ─▶ slower ones, if the link leaves time ─▶ decide
//!                        a level gives  min(workers × its rate, link × its ratio)  bytes of pages a second
//! ```
//! What takes longer than the budget is not tried further; then the choice is among what was tried, level 1 at worst.
//! The receiver is not measured: at these levels it unpacks several times as fast as the source packs.

use std::time::{Duration, Instant};

use crate::{
    compressor::{Compressor, payload_bound},
    error::Result,
    method::{Level, Method},
};

/// The most of a sample that is looked at.
pub const MAX_SAMPLE_BYTES: usize = 1024 * 1024;

/// Between two looks at the clock. Eight packets' worth of the shortest useful history.
const PIECE_BYTES: usize = 64 * 1024;

/// A level whose ratio is this much of level 1's counts as its equal: 5 % on the wire.
const SAME_RATIO: f64 = 0.95;

/// A gain below this is noise of the clock: the cheaper level wins.
const WORTH_IT: f64 = 1.02;

/// What compression has to work with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// What the link carries, of all channels together. `None` if nobody knows: then a level is chosen that gives level
    /// 1's ratio for the least processor time.
    pub link_bytes_per_sec: Option<u64>,
    /// How many compress at the same time: the lesser of channels and processors.
    pub workers: u32,
    /// How long the choice itself may take; the piece that is being compressed then is still finished.
    pub time: Duration,
}

impl Default for Budget {
    /// An unknown link, one worker, 50 ms.
    fn default() -> Self {
        Self { link_bytes_per_sec: None, workers: 1, time: Duration::from_millis(50) }
    }
}

/// One level, tried.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trial {
    /// The level.
    pub level: Level,
    /// Bytes of pages for each byte of payload.
    pub ratio: f64,
    /// Bytes of pages that one worker compresses in a second.
    pub compress_bytes_per_sec: f64,
}

/// The level chosen, and from what.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The level.
    pub level: Level,
    /// Bytes of pages for each byte of payload, in the sample; 1 if nothing was tried.
    pub ratio: f64,
    /// Bytes of pages that one worker compresses in a second; 0 if nothing was tried.
    pub compress_bytes_per_sec: f64,
    /// A link slower than this is made faster by compressing; any other one is better off without. 0 for pages that do
    /// not compress.
    pub pays_below_bytes_per_sec: f64,
    /// Everything that was tried, in order.
    pub tried: Vec<Trial>,
}

impl Choice {
    /// Whether compressing is faster than not, over a link of this rate.
    pub fn pays(&self, link_bytes_per_sec: u64) -> bool {
        (link_bytes_per_sec as f64) < self.pays_below_bytes_per_sec
    }
}

/// Tries levels on `sample` (pages as they would be sent; the first [`MAX_SAMPLE_BYTES`] count) and picks one so that
/// compression is never what the link waits for, if any level can do that; else the fastest.
///
/// # Errors
/// [`crate::Error::Library`] if there is no memory for a stream.
pub fn choose_level(method: Method, sample: &[u8], budget: Budget) -> Result<Choice> {
    let start = Instant::now();
    let mut clock = || start.elapsed();
    let tried = try_levels(method, sample, budget, &mut clock)?;
    Ok(decide(tried, budget))
}

/// Levels faster than 1, then slower ones, from near to far. Those left out are never best on pages: zstd's between
/// these, and below -7, where even zeros begin to be overlooked.
fn candidates(method: Method) -> (&'static [i32], &'static [i32]) {
    match method {
        Method::Zlib => (&[0], &[2, 3, 4, 6]),
        Method::Zstd => (&[-1, -3, -7], &[2, 3, 5]),
    }
}

fn try_levels(
    method: Method,
    sample: &[u8],
    budget: Budget,
    clock: &mut dyn FnMut() -> Duration,
) -> Result<Vec<Trial>> {
    let sample = &sample[..sample.len().min(MAX_SAMPLE_BYTES)];
    let mut pieces: Vec<&[u8]> = sample.chunks(PIECE_BYTES).collect();
    let mut tried = Vec::new();
    if pieces.is_empty() {
        return Ok(tried);
    }
    // Level 1 says how much of the sample the others can be given: seven of them may follow.
    let Some((first, measured)) =
        try_level(method, Level::DEFAULT, &pieces, budget.time / 8, true, clock)?
    else {
        return Ok(tried);
    };
    pieces.truncate(measured);
    tried.push(first);
    let (faster, slower) = candidates(method);
    let room = budget.link_bytes_per_sec.is_some_and(|link| {
        f64::from(budget.workers.max(1)) * first.compress_bytes_per_sec > link as f64 * first.ratio
    });
    // A link that level 1 can fill wants better levels; one that it cannot, or nobody knows, wants faster ones.
    for &number in if room { slower } else { faster } {
        let level = Level::new(method, number)?;
        let left = budget.time.saturating_sub(clock());
        match try_level(method, level, &pieces, left, false, clock)? {
            Some((trial, _)) => tried.push(trial),
            None => break,
        }
    }
    Ok(tried)
}

/// Compresses the pieces at one level. `None` if they took longer than `limit`, unless a part of them will do.
fn try_level(
    method: Method,
    level: Level,
    pieces: &[&[u8]],
    limit: Duration,
    part_will_do: bool,
    clock: &mut dyn FnMut() -> Duration,
) -> Result<Option<(Trial, usize)>> {
    let start = clock();
    let mut stream = Compressor::new(method, level)?;
    let mut out = Vec::with_capacity(payload_bound(PIECE_BYTES));
    // The first piece pays for touching the stream's memory; if there are others it is not counted.
    let uncounted = usize::from(pieces.len() > 1);
    let (mut bytes_in, mut bytes_out, mut done) = (0, 0, 0);
    let mut timed_from = start;
    let mut now = start;
    for piece in pieces {
        if now.saturating_sub(start) >= limit && (done <= uncounted || !part_will_do) {
            return Ok(None);
        }
        if now.saturating_sub(start) >= limit {
            break;
        }
        out.clear();
        stream.compress(piece, &mut out)?;
        now = clock();
        done += 1;
        if done <= uncounted {
            timed_from = now;
        } else {
            bytes_in += piece.len();
            bytes_out += out.len();
        }
    }
    let seconds = now.saturating_sub(timed_from).as_secs_f64().max(1e-9);
    let trial = Trial {
        level,
        ratio: bytes_in as f64 / bytes_out.max(1) as f64,
        compress_bytes_per_sec: bytes_in as f64 / seconds,
    };
    Ok(Some((trial, done)))
}

/// The arithmetic of the choice, without a clock.
fn decide(tried: Vec<Trial>, budget: Budget) -> Choice {
    let workers = f64::from(budget.workers.max(1));
    let best = match budget.link_bytes_per_sec {
        Some(link) => fastest_over(&tried, workers, link as f64),
        None => cheapest_of_equals(&tried),
    };
    let Some(best) = best else {
        return Choice {
            level: Level::DEFAULT,
            ratio: 1.0,
            compress_bytes_per_sec: 0.0,
            pays_below_bytes_per_sec: 0.0,
            tried,
        };
    };
    Choice {
        level: best.level,
        ratio: best.ratio,
        compress_bytes_per_sec: best.compress_bytes_per_sec,
        pays_below_bytes_per_sec: if best.ratio > WORTH_IT {
            workers * best.compress_bytes_per_sec
        } else {
            0.0
        },
        tried,
    }
}

/// The level that moves most bytes of pages a second; of equals, the one that costs least.
fn fastest_over(tried: &[Trial], workers: f64, link: f64) -> Option<Trial> {
    let moved = |trial: &Trial| (workers * trial.compress_bytes_per_sec).min(link * trial.ratio);
    let most = tried.iter().map(moved).fold(0.0, f64::max);
    cheapest(tried.iter().filter(|trial| moved(trial) * WORTH_IT >= most))
}

/// The cheapest level of those that compress as well as level 1, which was tried first.
fn cheapest_of_equals(tried: &[Trial]) -> Option<Trial> {
    let enough = tried.first()?.ratio * SAME_RATIO;
    cheapest(tried.iter().filter(|trial| trial.ratio >= enough))
}

fn cheapest<'t>(tried: impl Iterator<Item = &'t Trial>) -> Option<Trial> {
    tried.copied().max_by(|a, b| a.compress_bytes_per_sec.total_cmp(&b.compress_bytes_per_sec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(level: i32, ratio: f64, rate: f64) -> Trial {
        let level = Level::new(Method::Zstd, level).unwrap();
        Trial { level, ratio, compress_bytes_per_sec: rate }
    }

    /// Roughly what a machine of 2026 gives for programs in memory.
    fn tried() -> Vec<Trial> {
        vec![
            trial(1, 2.3, 350e6),
            trial(-1, 2.0, 430e6),
            trial(-7, 1.6, 600e6),
            trial(3, 2.6, 170e6),
        ]
    }

    fn over(link: u64, workers: u32) -> Choice {
        let budget = Budget { link_bytes_per_sec: Some(link), workers, ..Budget::default() };
        decide(tried(), budget)
    }

    #[test]
    fn a_slow_link_gets_the_level_that_saves_most() {
        assert_eq!(over(60_000_000, 1).level.number(), 3);
        assert_eq!(over(60_000_000, 1).ratio, 2.6);
    }

    #[test]
    fn a_middling_link_gets_what_one_worker_keeps_up_with() {
        assert_eq!(over(125_000_000, 1).level.number(), 1);
        assert_eq!(over(200_000_000, 1).level.number(), -1);
        // Two workers keep up with a better level.
        assert_eq!(over(125_000_000, 2).level.number(), 3);
    }

    #[test]
    fn a_link_faster_than_any_level_gets_the_cheapest_and_is_told_so() {
        let choice = over(5_000_000_000, 2);
        assert_eq!(choice.level.number(), -7);
        assert_eq!(choice.pays_below_bytes_per_sec, 1200e6);
        assert!(!choice.pays(5_000_000_000));
        assert!(choice.pays(125_000_000));
    }

    #[test]
    fn an_unknown_link_gets_the_ratio_of_level_1_for_the_least() {
        assert_eq!(decide(tried(), Budget::default()).level.number(), 1);
        let zeros = vec![trial(1, 4.0, 1e9), trial(-1, 3.99, 2e9), trial(-7, 3.7, 3e9)];
        assert_eq!(decide(zeros, Budget::default()).level.number(), -1);
    }

    #[test]
    fn pages_that_do_not_compress_never_pay() {
        let noise = vec![trial(1, 1.0, 3e9), trial(-7, 1.0, 4e9)];
        let choice = decide(noise, Budget::default());
        assert_eq!(choice.level.number(), -7);
        assert!(!choice.pays(1));
    }

    #[test]
    fn no_sample_and_no_time_give_level_1() {
        for method in [Method::Zlib, Method::Zstd] {
            let choice = choose_level(method, &[], Budget::default()).unwrap();
            assert_eq!((choice.level, choice.tried.len()), (Level::DEFAULT, 0));
            let budget = Budget { time: Duration::ZERO, ..Budget::default() };
            let choice = choose_level(method, &[7; PIECE_BYTES], budget).unwrap();
            assert_eq!((choice.level, choice.tried.len()), (Level::DEFAULT, 0));
        }
    }

    #[test]
    fn trials_stop_when_the_time_is_used_up() {
        // A clock that takes a millisecond for each look at it.
        let sample = vec![3; MAX_SAMPLE_BYTES];
        for method in [Method::Zlib, Method::Zstd] {
            for limit in [8, 50, 500] {
                let (mut now, budget) =
                    (0, Budget { time: Duration::from_millis(limit), ..Budget::default() });
                let tried = try_levels(method, &sample, budget, &mut || {
                    now += 1;
                    Duration::from_millis(now)
                })
                .unwrap();
                assert!(now <= limit + 4, "{method}: {now} of {limit} ms");
                assert!(limit < 500 || tried.len() == 1 + candidates(method).0.len());
            }
        }
    }

    #[test]
    fn slower_levels_are_tried_where_the_link_leaves_time() {
        let sample: Vec<u8> = (0..4 * PIECE_BYTES as u32).map(|at| (at / 7 % 251) as u8).collect();
        let budget =
            Budget { link_bytes_per_sec: Some(1000), workers: 1, time: Duration::from_secs(3600) };
        let choice = choose_level(Method::Zlib, &sample, budget).unwrap();
        let levels: Vec<i32> = choice.tried.iter().map(|trial| trial.level.number()).collect();
        assert_eq!(levels, [1, 2, 3, 4, 6]);
        let best = choice.tried.iter().map(|trial| trial.ratio).fold(0.0, f64::max);
        assert!(choice.ratio * WORTH_IT >= best);
    }
}
