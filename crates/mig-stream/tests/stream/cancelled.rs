//! Futures dropped at every await: what was promised to be cancel safe goes on as if nothing had happened.

use std::sync::Arc;

use mig_stream::{RateLimiter, StreamOptions};

use crate::support::{Pieces, Then, contents, poll_times, region, sink, source};

/// Stalls before each piece, so that there are many awaits.
fn stalling() -> Pieces {
    Pieces::new([0, 3, 0, 0, 5000, 0, 1])
}

#[tokio::test]
async fn a_flush_dropped_anywhere_goes_on_where_it_was() {
    let memory = region(20_000);
    for polls in 1..40 {
        let (mut stream, seen) = sink(stalling(), None, StreamOptions::default());
        let mut writer = stream.writer().unwrap();
        writer.put(b"begin").unwrap();
        writer.put_head_and_region(b"word", &memory, 10, 9000).unwrap();
        let _dropped = poll_times(polls, writer.flush());
        let before = writer.unsent();
        writer.put_head_and_region(b"more", &memory, 500, 4096).unwrap();
        assert_eq!(writer.unsent(), before + 4100);
        let _dropped = poll_times(polls, writer.finish());
        writer.finish().await.unwrap();
        let expected = [
            &b"begin"[..],
            b"word",
            &contents(&memory, 10, 9000),
            b"more",
            &contents(&memory, 500, 4096),
        ]
        .concat();
        assert!(seen.bytes() == expected, "after {polls} polls");
        assert_eq!(writer.position(), expected.len() as u64);
    }
}

#[tokio::test(start_paused = true)]
async fn a_paced_flush_dropped_anywhere_loses_neither_bytes_nor_rate() {
    let memory = region(20_000);
    for polls in 1..20 {
        let limiter = Arc::new(RateLimiter::new(1_000_000));
        let options = StreamOptions::default().limiter(Arc::clone(&limiter));
        let (mut stream, seen) = sink(stalling(), None, options);
        let mut writer = stream.writer().unwrap();
        let start = tokio::time::Instant::now();
        writer.put_region(&memory, 0, 20_000).unwrap();
        // Each drop gives its place in the queue back.
        for _ in 0..50 {
            let _dropped = poll_times(polls, writer.flush());
        }
        writer.flush().await.unwrap();
        assert!(seen.bytes() == contents(&memory, 0, 20_000), "after {polls} polls");
        let millis = start.elapsed().as_millis();
        assert!((12..=30).contains(&millis), "20 kB at 1 MB/s took {millis} ms of virtual time");
    }
}

#[tokio::test]
async fn a_long_write_dropped_anywhere_tells_how_far_it_came() {
    let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 253) as u8).collect();
    for polls in 1..40 {
        let (mut stream, seen) = sink(stalling(), None, StreamOptions::default());
        let mut writer = stream.writer().unwrap();
        writer.put(b"ab").unwrap();
        let _dropped = poll_times(polls, writer.write_all(&bytes));
        let accepted = usize::try_from(writer.position() - 2).unwrap();
        writer.write_all(&bytes[accepted..]).await.unwrap();
        writer.finish().await.unwrap();
        assert!(seen.bytes() == [b"ab", &bytes[..]].concat(), "after {polls} polls");
    }
}

#[tokio::test]
async fn reads_dropped_anywhere_consume_whole_or_not_at_all() {
    let mut bytes = vec![7];
    bytes.extend(0x0102_u16.to_be_bytes());
    bytes.extend(0x0304_0506_u32.to_be_bytes());
    bytes.extend(0x0708_090a_0b0c_0d0e_u64.to_be_bytes());
    bytes.extend(b"\x05hello");
    bytes.extend([9; 600]);
    bytes.extend(b"end");
    for polls in 1..20 {
        let mut stream = source(&bytes, Pieces::new([0, 1, 0, 0, 2, 0]), Then::End);
        let mut reader = stream.reader().unwrap();
        macro_rules! until_done {
            ($call:expr) => {
                loop {
                    let before = reader.position();
                    if let Some(output) = poll_times(polls, $call) {
                        break output.unwrap();
                    }
                    assert_eq!(reader.position(), before);
                }
            };
        }
        assert_eq!(until_done!(reader.read_u8()), 7);
        assert_eq!(until_done!(reader.read_be16()), 0x0102);
        assert_eq!(until_done!(reader.read_be32()), 0x0304_0506);
        assert_eq!(until_done!(reader.read_be64()), 0x0708_090a_0b0c_0d0e);
        assert_eq!(until_done!(reader.read_str8()), b"hello");
        let mut run = [0; 600];
        until_done!(reader.read_exact(&mut run));
        assert_eq!(run, [9; 600]);
        while reader.buffer().len() < 3 {
            let _dropped = poll_times(polls, reader.fill());
        }
        assert_eq!(reader.buffer(), b"end");
        assert_eq!(reader.position(), bytes.len() as u64 - 3);
    }
}
