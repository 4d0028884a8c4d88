//! The first error sticks, names its place and keeps its cause; the end of a stream is an error only inside something.

use std::error::Error as _;

use mig_stream::{Error, IdleClock, Stream, StreamOptions};
use mig_transport::{Blame, RegionSlice};
use std::time::Duration;

use crate::support::{
    HANG, Pieces, Source, Then, region, sink, socket_pair, source, source_channel,
};

#[tokio::test]
async fn a_broken_link_breaks_at_its_byte_and_stays_broken() {
    let memory = region(64);
    for fail_at in 0..40 {
        let (mut stream, seen) =
            sink(Pieces::new([3, 0, 5]), Some(fail_at), StreamOptions::default());
        let mut writer = stream.writer().unwrap();
        writer.put(b"12345678").unwrap();
        writer.put_region(&memory, 0, 64).unwrap();
        let error = writer.flush().await.unwrap_err();
        assert_eq!(error.blame(), Blame::Io);
        assert_eq!(error.place().unwrap().at, fail_at as u64);
        assert_eq!(error.to_string(), format!("double, byte {fail_at}: writing: broken pipe"));
        assert!(error.source().unwrap().is::<std::io::Error>());
        assert_eq!(writer.unsent(), 0, "the regions are let go");
        for again in [
            writer.put(b"x"),
            writer.put_head_and_region(b"x", &memory, 0, 1),
            writer.flush().await,
            writer.write_all(&[0; 100_000]).await,
            writer.finish().await,
        ] {
            assert_eq!(again.unwrap_err().to_string(), error.to_string());
        }
        assert_eq!(seen.bytes().len(), fail_at);
        assert!(!seen.ended(), "a broken stream must not look finished");
    }
}

#[tokio::test]
async fn what_came_before_an_error_is_delivered_and_then_the_error_sticks() {
    let mut stream = source(b"12345", Pieces::new([2]), Then::Fail);
    let mut reader = stream.reader().unwrap();
    assert_eq!(reader.read_be16().await.unwrap(), 0x3132);
    let error = reader.read_be32().await.unwrap_err();
    assert_eq!((error.blame(), error.place().unwrap().at), (Blame::Io, 5));
    assert_eq!(reader.position(), 2);
    assert_eq!(reader.buffer(), b"345");
    // Three bytes are there, and still: no read after the first error.
    assert_eq!(reader.read_u8().await.unwrap_err().to_string(), error.to_string());
    assert_eq!(reader.fill().await.unwrap_err().to_string(), error.to_string());
    assert_eq!(reader.skip(1).await.unwrap_err().to_string(), error.to_string());
    assert_eq!(reader.error().unwrap().to_string(), error.to_string());
}

#[tokio::test]
async fn every_truncation_names_the_end_and_blames_the_peer() {
    let whole = b"\x01\x00\x02\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x04\x03abcMEMO";
    for len in 0..whole.len() {
        let mut stream = source(&whole[..len], Pieces::new([1, 4]), Then::End);
        let mut reader = stream.reader().unwrap();
        let memory = RegionSlice::whole(region(4));
        let all = async {
            reader.read_u8().await?;
            reader.read_be16().await?;
            reader.read_be32().await?;
            reader.read_be64().await?;
            reader.read_str8().await?;
            reader.read_into(&memory).await
        };
        let error = all.await.unwrap_err();
        assert_eq!((error.blame(), error.place().unwrap().at), (Blame::PeerMisbehaved, len as u64));
        assert!(error.to_string().contains("ended where"), "{error}");
        assert_eq!(reader.read_u8().await.unwrap_err().to_string(), error.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_read_and_a_write() {
    let idle = IdleClock::new(Duration::from_secs(600));
    let options = StreamOptions::default().idle(idle);
    let double = Source {
        bytes: b"ab".iter().copied().collect(),
        pieces: Pieces::whole(),
        then: Then::Silence,
    };
    let mut reader = Stream::open(source_channel(double), options.clone()).reader().unwrap();
    let start = tokio::time::Instant::now();
    let error = reader.read_be32().await.unwrap_err();
    assert_eq!(start.elapsed().as_secs(), 600);
    assert_eq!((error.blame(), error.place().unwrap().at), (Blame::Deadline, 2));
    assert!(matches!(reader.fill().await, Err(Error::Deadline { .. })));

    // A peer that does not read: the kernel's buffer fills up.
    let (near, _far) = socket_pair();
    let mut writer = Stream::open(near, options).writer().unwrap();
    let error = loop {
        if let Err(error) = writer.write_all(&[0; 50_000]).await {
            break error;
        }
    };
    assert_eq!(error.blame(), Blame::Deadline);
    assert!(writer.finish().await.is_err());
}

#[tokio::test]
async fn misuse_is_refused_and_changes_nothing() {
    let memory = region(8192);
    let (mut stream, seen) = sink(Pieces::whole(), None, StreamOptions::default());
    let mut writer = stream.writer().unwrap();
    assert_eq!(stream.writer().unwrap_err().blame(), Blame::Misuse);
    for refused in [
        writer.put_region(&memory, 8000, 193),
        writer.put_head_and_region(b"head", &memory, usize::MAX, 2),
        writer.put_str8(&[0; 256]),
        writer.put(&vec![0; 1 << 20]),
    ] {
        assert_eq!(refused.unwrap_err().blame(), Blame::Misuse);
    }
    assert_eq!((writer.position(), writer.unsent()), (0, 0));
    while writer.put_head_and_region(b"word", &memory, 0, 4096).is_ok() {}
    let full = writer.unsent();
    assert!(writer.needs_flush());
    assert_eq!(full % 4100, 0, "both or neither");
    writer.finish().await.unwrap();
    writer.finish().await.unwrap();
    assert_eq!(seen.bytes().len(), full);
    assert_eq!(writer.put_u8(0).unwrap_err().blame(), Blame::Misuse);

    let mut stream = source(&[1; 2000], Pieces::whole(), Then::End);
    let mut reader = stream.reader().unwrap();
    let too_much = reader.capacity() + 1;
    assert_eq!(reader.peek(too_much).await.unwrap_err().blame(), Blame::Misuse);
    assert_eq!(reader.read_u8().await.unwrap(), 1);
}

#[tokio::test]
async fn a_full_buffer_is_said_not_spun_on() {
    let options = StreamOptions::default().buffer_bytes(1024);
    let double = Source { bytes: vec![5; 3000].into(), pieces: Pieces::whole(), then: Then::End };
    let mut reader = Stream::open(source_channel(double), options).reader().unwrap();
    assert_eq!(reader.fill().await.unwrap(), 1024);
    assert_eq!(reader.fill().await.unwrap_err().blame(), Blame::Misuse);
    reader.consume(1);
    assert_eq!(reader.fill().await.unwrap(), 1);
    assert_eq!(reader.buffer().len(), 1024);
}

#[tokio::test]
async fn a_reset_by_the_peer_is_an_io_error() {
    let (near, far) = socket_pair();
    let mut near = Stream::open(near, StreamOptions::default());
    let mut writer = near.writer().unwrap();
    drop(far);
    let outcome = tokio::time::timeout(HANG, async {
        loop {
            writer.put_be64(1)?;
            writer.flush().await?;
        }
    });
    let outcome: Result<(), Error> = outcome.await.unwrap();
    assert_eq!(outcome.unwrap_err().blame(), Blame::Io);
}
