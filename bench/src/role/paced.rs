//! A receiver that only notes when how much came, and what that says about a rate.

use std::{
    io::Read,
    net::TcpListener,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Ready, hear, meeting::PATIENCE, say};
use crate::failure::Result;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// The window in which the rate must hold.
const WINDOW: Duration = Duration::from_secs(1);

/// What to listen for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PacedRole {
    pub(crate) rate_bytes_per_sec: u64,
}

/// Asked once the stream has ended.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct PacedQuestion {
    /// Only so many bytes from the front count: what follows was sent with the guest stopped, unpaced.
    pub(crate) paced_bytes: u64,
}

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PacedResult {
    /// The fullest second, as a share of the rate.
    pub(crate) fullest: f64,
    /// The emptiest second, as a share of the rate.
    pub(crate) emptiest: f64,
    /// How far arrivals ran ahead of the rate at most, as milliseconds of it.
    pub(crate) burst_ms: f64,
    /// Seconds from the first byte that counted to the last.
    pub(crate) seconds: f64,
}

pub(super) fn live(role: &PacedRole) -> Result<()> {
    let mut buffer = vec![1; CHUNK];
    let listener = TcpListener::bind("127.0.0.1:0")?;
    say(&Ready { address: Some(format!("tcp:{}", listener.local_addr()?)) })?;
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let begun = Instant::now();
    let mut arrivals = Vec::with_capacity(1 << 20);
    loop {
        let got = stream.read(&mut buffer)?;
        if got == 0 {
            break;
        }
        arrivals.push((begun.elapsed(), got as u64));
    }
    let PacedQuestion { paced_bytes } = hear()?;
    let mut sum = 0;
    let paced: Vec<_> = arrivals
        .into_iter()
        .take_while(|(_, bytes)| {
            sum += bytes;
            sum <= paced_bytes
        })
        .collect();
    say(&judge(&paced, role.rate_bytes_per_sec)?)
}

/// Looks at every second there is in `arrivals`, wherever it begins.
fn judge(arrivals: &[(Duration, u64)], rate_bytes_per_sec: u64) -> Result<PacedResult> {
    let (Some(first), Some(last)) = (arrivals.first(), arrivals.last()) else {
        return Err("nothing arrived".into());
    };
    let (start, end) = (first.0, last.0);
    if end - start <= WINDOW {
        return Err(format!("only {:?} of arrivals: no second to look at", end - start).into());
    }
    let rate = rate_bytes_per_sec as f64;
    let (mut fullest, mut emptiest) = (0u64, u64::MAX);
    // A window is fullest when it begins with an arrival, and emptiest when it begins just behind one.
    let (mut until, mut within) = (0, 0u64);
    for (at, bytes) in arrivals {
        while let Some((time, more)) = arrivals.get(until).filter(|(time, _)| *time < *at + WINDOW)
        {
            let _ = time;
            within += more;
            until += 1;
        }
        if *at + WINDOW > end {
            break;
        }
        fullest = fullest.max(within);
        within -= bytes;
        emptiest = emptiest.min(within);
    }
    // The depth of a bucket that drains at the rate.
    let (mut depth, mut deepest, mut before) = (0.0f64, 0.0f64, start);
    for (at, bytes) in arrivals {
        depth = (depth - rate * (*at - before).as_secs_f64()).max(0.0) + *bytes as f64;
        deepest = deepest.max(depth);
        before = *at;
    }
    Ok(PacedResult {
        fullest: fullest as f64 / rate,
        emptiest: emptiest as f64 / rate,
        burst_ms: deepest / rate * 1e3,
        seconds: (end - start).as_secs_f64(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(millis: u64, bytes: u64, count: u64) -> Vec<(Duration, u64)> {
        (0..count).map(|number| (Duration::from_millis(number * millis), bytes)).collect()
    }

    #[test]
    fn an_even_stream_is_within_one_arrival_of_its_rate() {
        let seen = judge(&every(10, 10_000, 300), 1_000_000).unwrap();
        assert_eq!(seen.fullest, 1.0);
        assert_eq!(seen.emptiest, 0.99, "a window just behind an arrival lacks that one");
        assert!((seen.burst_ms - 10.0).abs() < 1e-6, "{seen:?}");
    }

    #[test]
    fn a_pause_that_is_made_good_is_a_burst_and_an_empty_second() {
        let mut arrivals = every(10, 10_000, 300);
        for arrival in &mut arrivals[150..170] {
            arrival.0 = Duration::from_millis(1700);
        }
        let seen = judge(&arrivals, 1_000_000).unwrap();
        assert!(seen.burst_ms > 190.0, "{seen:?}");
        assert!(seen.fullest > 1.1 && seen.emptiest < 0.9, "{seen:?}");
    }

    #[test]
    fn less_than_a_second_says_nothing() {
        assert!(judge(&every(10, 10_000, 50), 1_000_000).is_err());
        assert!(judge(&[], 1).is_err());
    }
}
