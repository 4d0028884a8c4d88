//! The promise in numbers: within 1 % of any second, bursts of at most 10 ms, whatever the timer does.

use super::*;

/// What left, when, with the rate saturated: the sender asks again as soon as its grant was used. The timer wakes it up
/// to `oversleep` late, by a seeded but irregular amount, and on whole milliseconds, as tokio's does.
fn run(
    pacer: &mut Pacer,
    start: Instant,
    time: Duration,
    wanted: usize,
    oversleep: Duration,
) -> Vec<(Duration, usize)> {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut now = start;
    let mut sent = Vec::new();
    while now.duration_since(start) < time {
        let grant = pacer.take(wanted, now);
        assert!(grant.bytes > 0 && grant.bytes <= wanted);
        if let Some(not_before) = grant.not_before {
            assert!(not_before > now);
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let late = oversleep.mul_f64((seed >> 40) as f64 / (1u64 << 24) as f64);
            let millis = not_before.duration_since(start).as_nanos().div_ceil(1_000_000);
            now = start + Duration::from_millis(millis as u64) + late;
        }
        sent.push((now.duration_since(start), grant.bytes));
    }
    sent
}

/// The most and the least that left in any window of this length within the run.
fn extremes(sent: &[(Duration, usize)], window: Duration) -> (usize, usize) {
    let mut sums = vec![0];
    sums.extend(sent.iter().scan(0, |sum, &(_, bytes)| {
        *sum += bytes;
        Some(*sum)
    }));
    let end = sent.last().unwrap().0;
    let (mut most, mut least) = (0, usize::MAX);
    for (i, &(at, _)) in sent.iter().enumerate() {
        // The window that starts with what left at `at` …
        let behind = sent.partition_point(|&(other, _)| other < at + window);
        most = most.max(sums[behind] - sums[i]);
        // … and the one that starts just after it, and so begins with silence.
        if at + window <= end {
            let next = sent.partition_point(|&(other, _)| other <= at);
            let behind = sent.partition_point(|&(other, _)| other <= at + window);
            least = least.min(sums[behind] - sums[next]);
        }
    }
    (most, least)
}

#[test]
fn any_second_is_within_one_percent_from_1_mb_to_1_gb() {
    let oversleep = Duration::from_micros(1500);
    for rate in [1_000_000u64, 10_000_000, 100_000_000, 134_217_728, 1_000_000_000] {
        for wanted in [4104, 1 << 20] {
            let start = Instant::now();
            let mut pacer = Pacer::new(rate, start);
            // A full burst first: the worst beginning.
            let start = start + Duration::from_secs(60);
            let sent = run(&mut pacer, start, Duration::from_millis(2500), wanted, oversleep);
            let (most, least) = extremes(&sent, Duration::from_secs(1));
            assert!(most as f64 <= rate as f64 * 1.01, "{rate} {wanted}: {most}");
            assert!(least as f64 >= rate as f64 * 0.99, "{rate} {wanted}: {least}");
        }
    }
}

#[test]
fn no_burst_is_longer_than_10_ms_of_the_rate() {
    for rate in [1_000_000u64, 134_217_728, 1_000_000_000] {
        let start = Instant::now();
        let mut pacer = Pacer::new(rate, start);
        let later = start + Duration::from_secs(5);
        let mut at_once = 0;
        loop {
            let grant = pacer.take(1 << 20, later);
            if grant.not_before.is_some() {
                break;
            }
            at_once += grant.bytes as u64;
        }
        assert!(at_once <= rate / 100, "{rate}: {at_once}");
        assert!(at_once >= rate / 200, "{rate}: {at_once}");
    }
}

#[test]
fn a_change_counts_at_once_in_both_directions() {
    let now = Instant::now();
    let mut pacer = Pacer::new(1_000_000, now);
    let slow = pacer.take(1 << 20, now);
    assert_eq!((slow.bytes, slow.not_before), (2000, Some(now + Duration::from_millis(2))));
    pacer.set_rate(100_000_000, now);
    let fast = pacer.take(1 << 20, now);
    assert_eq!((fast.bytes, fast.not_before), (200_000, Some(now + Duration::from_millis(2))));
    // A grant from before the change is void: giving it back changes nothing.
    pacer.give_back(slow, slow.bytes);
    pacer.set_rate(1_000_000, now);
    pacer.give_back(fast, fast.bytes);
    let slow = pacer.take(1 << 20, now);
    assert_eq!((slow.bytes, slow.not_before), (2000, Some(now + Duration::from_millis(2))));
    pacer.set_rate(0, now);
    assert_eq!(pacer.take(1 << 20, now).not_before, None);
}

#[test]
fn credit_of_a_high_rate_is_no_burst_of_a_low_one() {
    let start = Instant::now();
    let mut pacer = Pacer::new(1_000_000_000, start);
    let now = start + Duration::from_secs(1);
    pacer.set_rate(1_000_000, now);
    let grant = pacer.take(1 << 20, now);
    assert_eq!((grant.bytes, grant.not_before), (8000, None));
}

#[test]
fn what_the_channel_did_not_take_is_not_lost() {
    let start = Instant::now();
    let mut pacer = Pacer::new(1_000_000, start);
    let now = start + Duration::from_secs(1);
    let grant = pacer.take(8000, now);
    pacer.give_back(grant, 5000);
    let grant = pacer.take(8000, now);
    assert_eq!((grant.bytes, grant.not_before), (5000, None));
}

#[test]
fn askers_queue_behind_each_other() {
    let now = Instant::now();
    let mut pacer = Pacer::new(1_000_000, now);
    for channel in 1..=4 {
        let grant = pacer.take(1 << 20, now);
        assert_eq!(grant.bytes, 2000);
        assert_eq!(grant.not_before, Some(now + Duration::from_millis(2 * channel)));
    }
}

#[test]
fn urgent_bytes_push_the_others_back_but_not_for_ever() {
    let now = Instant::now();
    let mut pacer = Pacer::new(1_000_000, now);
    pacer.charge_urgent(10_000, now);
    let grant = pacer.take(2000, now);
    assert_eq!(grant.not_before, Some(now + Duration::from_millis(12)));
    pacer.charge_urgent(usize::MAX / 2, now);
    let grant = pacer.take(2000, now);
    assert_eq!(grant.not_before, Some(now + Duration::from_millis(102)));
}

#[test]
fn extreme_numbers_do_not_overflow() {
    let now = Instant::now();
    for rate in [1, u64::MAX] {
        let mut pacer = Pacer::new(rate, now);
        pacer.charge_urgent(usize::MAX, now);
        let grant = pacer.take(usize::MAX, now + Duration::from_secs(1 << 32));
        assert!(grant.bytes > 0);
        pacer.give_back(grant, grant.bytes);
    }
}
