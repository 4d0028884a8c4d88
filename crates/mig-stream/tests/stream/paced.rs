//! The rate as a channel sees it, in virtual time.

use std::{sync::Arc, time::Duration};

use mig_stream::{RateLimiter, StreamOptions, StreamWriter};
use mig_transport::Region;
use tokio::time::Instant;

use crate::support::{Pieces, region, sink};

const PAGE: usize = 4096;

async fn send_for(writer: &mut StreamWriter, memory: &Arc<dyn Region>, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        while !writer.needs_flush() {
            writer.put_head_and_region(b"12345678", memory, 0, PAGE).unwrap();
        }
        // Long lists take seconds at low rates.
        if let Ok(flushed) = tokio::time::timeout_at(end, writer.flush()).await {
            flushed.unwrap();
        }
    }
}

fn in_window(at: &[(Instant, usize)], from: Instant, window: Duration) -> usize {
    at.iter().filter(|(when, _)| (from..from + window).contains(when)).map(|&(_, n)| n).sum()
}

#[tokio::test(start_paused = true)]
async fn any_second_of_two_channels_together_is_within_one_percent() {
    let memory = region(PAGE);
    for rate in [1_000_000, 30_000_000] {
        let limiter = Arc::new(RateLimiter::new(rate));
        let options = StreamOptions::default().limiter(Arc::clone(&limiter));
        let (mut first, first_seen) = sink(Pieces::whole(), None, options.clone());
        let (mut second, second_seen) = sink(Pieces::whole(), None, options);
        let (mut first, mut second) = (first.writer().unwrap(), second.writer().unwrap());
        let start = Instant::now();
        let time = Duration::from_secs(3);
        tokio::join!(send_for(&mut first, &memory, time), send_for(&mut second, &memory, time));

        let (first, second) = (first_seen.at(), second_seen.at());
        let mut all = [first.clone(), second.clone()].concat();
        all.sort();
        for &(from, _) in all.iter().take_while(|at| at.0 < start + Duration::from_millis(1990)) {
            let sent = in_window(&all, from, Duration::from_secs(1)) as f64;
            assert!((0.99..=1.01).contains(&(sent / rate as f64)), "{rate}: {sent}");
            let burst = in_window(&all, from, Duration::from_nanos(1));
            assert!(burst as u64 <= rate / 100, "{rate}: {burst} at once");
        }
        // Nobody starves.
        let share = in_window(&first, start, time) as f64 / in_window(&all, start, time) as f64;
        assert!((0.4..=0.6).contains(&share), "{rate}: {share}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_sleeper_under_the_old_rate_is_woken_by_the_new_one() {
    let memory = region(PAGE);
    let limiter = Arc::new(RateLimiter::new(1));
    let options = StreamOptions::default().limiter(Arc::clone(&limiter));
    let (mut stream, seen) = sink(Pieces::whole(), None, options);
    let mut writer = stream.writer().unwrap();
    let start = Instant::now();
    let change = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(seen.bytes().len(), 0, "the least piece takes 512 s at one byte a second");
        limiter.set_rate_bytes_per_sec(4_000_000);
        tokio::time::sleep(Duration::from_millis(2)).await;
        limiter.set_rate_bytes_per_sec(0);
    };
    let send = async {
        for _ in 0..200 {
            writer.put_region(&memory, 0, PAGE).unwrap();
        }
        writer.flush().await.unwrap();
    };
    tokio::join!(change, send);
    assert!(start.elapsed() < Duration::from_millis(5005), "{:?}", start.elapsed());
    assert_eq!(seen.bytes().len(), 200 * PAGE);
    assert_eq!(limiter.rate_bytes_per_sec(), 0);
}

#[tokio::test(start_paused = true)]
async fn urgent_bytes_do_not_wait_but_count() {
    let memory = region(PAGE);
    let limiter = Arc::new(RateLimiter::new(1_000_000));
    let options = StreamOptions::default().limiter(Arc::clone(&limiter));
    let (mut preempt, _) = sink(Pieces::whole(), None, options.clone());
    let (mut main, _) = sink(Pieces::whole(), None, options);
    let (mut preempt, mut main) = (preempt.writer().unwrap(), main.writer().unwrap());
    let start = Instant::now();
    preempt.set_urgent(true);
    for _ in 0..10 {
        preempt.put_region(&memory, 0, PAGE).unwrap();
    }
    preempt.flush().await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    main.put_region(&memory, 0, 1000).unwrap();
    main.flush().await.unwrap();
    let millis = start.elapsed().as_millis();
    assert!((41..=43).contains(&millis), "40 960 bytes are ahead of it: {millis} ms");
}

#[tokio::test(start_paused = true)]
async fn bytes_of_the_caller_are_paced_too() {
    let limiter = Arc::new(RateLimiter::new(1_000_000));
    let (mut stream, seen) = sink(Pieces::whole(), None, StreamOptions::default().limiter(limiter));
    let mut writer = stream.writer().unwrap();
    let start = Instant::now();
    writer.write_all(&vec![1; 500_000]).await.unwrap();
    let millis = start.elapsed().as_millis();
    assert!((490..=501).contains(&millis), "{millis}");
    assert!(seen.at().iter().all(|at| at.1 <= 10_000));
}

#[tokio::test(start_paused = true)]
async fn a_blocked_channel_does_not_keep_the_rate_from_the_others() {
    let limiter = Arc::new(RateLimiter::new(1_000_000));
    let options = StreamOptions::default().limiter(Arc::clone(&limiter));
    // A peer that never reads: once the kernel's buffer is full this one only waits.
    let (near, _far) = crate::support::socket_pair();
    let mut blocked = mig_stream::Stream::open(near, options.clone()).writer().unwrap();
    let (mut stream, _) = sink(Pieces::whole(), None, options);
    let mut free = stream.writer().unwrap();
    let fill = async {
        loop {
            blocked.write_all(&[0; 50_000]).await.unwrap();
        }
    };
    let _full = tokio::time::timeout(Duration::from_secs(5), fill).await;
    let start = Instant::now();
    let stuck = blocked.write_all(&[0; 50_000]);
    tokio::select! {
        _ = stuck => panic!("it should be stuck"),
        sent = free.write_all(&[1; 1_000_000]) => sent.unwrap(),
    }
    let millis = start.elapsed().as_millis();
    assert!((985..=1001).contains(&millis), "{millis}");
}

#[tokio::test(start_paused = true)]
async fn bytes_beside_the_stream_are_paced_in_small_steps() {
    let rate = 10_000_000;
    let limiter = Arc::new(RateLimiter::new(rate));
    let options = StreamOptions::default().limiter(limiter);
    let (mut stream, _seen) = sink(Pieces::whole(), None, options);
    let mut writer = stream.writer().unwrap();
    let counters = writer.counters();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        let step = writer.step_beside(1 << 24);
        assert!(step as u64 <= rate / 100, "{step} at once");
        writer.pay_beside(step).await.unwrap();
    }
    let sent = counters.bytes_beside() as f64 / rate as f64;
    assert!((0.99..=1.01).contains(&sent), "{sent}");
    assert_eq!((counters.bytes_sent(), counters.bytes_out()), (0, counters.bytes_beside()));
    // With the guest stopped nothing waits.
    writer.set_urgent(true);
    let start = Instant::now();
    assert_eq!(writer.step_beside(1 << 24), 1 << 24);
    writer.pay_beside(1 << 24).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
}
