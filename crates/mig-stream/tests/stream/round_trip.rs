//! Whatever is put, however it is cut on the way, comes out the same.

use std::{io::IoSliceMut, sync::Arc};

use mig_stream::{Result, Stream, StreamOptions, StreamReader, StreamWriter};
use mig_transport::{Region, RegionSlice, VecRegion};
use proptest::prelude::*;

use crate::support::{
    Pieces, Source, Then, contents, region, runtime, sink, socket_pair, source, source_channel,
};

#[derive(Clone, Debug)]
enum Item {
    U8(u8),
    Be16(u16),
    Be32(u32),
    Be64(u64),
    Str8(Vec<u8>),
    Bytes(Vec<u8>),
    Page { head: Vec<u8>, offset: usize, len: usize },
    Flush,
}

const REGION: usize = 300_000;

fn item() -> impl Strategy<Value = Item> {
    let bytes = |max: usize| proptest::collection::vec(any::<u8>(), 0..max);
    let page = (bytes(20), 0..REGION, prop_oneof![9 => 0usize..5000, 1 => 0usize..REGION]);
    prop_oneof![
        any::<u8>().prop_map(Item::U8),
        any::<u16>().prop_map(Item::Be16),
        any::<u32>().prop_map(Item::Be32),
        any::<u64>().prop_map(Item::Be64),
        bytes(256).prop_map(Item::Str8),
        prop_oneof![9 => bytes(300), 1 => bytes(40_000)].prop_map(Item::Bytes),
        page.prop_map(|(head, offset, len)| Item::Page {
            head,
            offset,
            len: len.min(REGION - offset)
        }),
        Just(Item::Flush),
    ]
}

fn pieces() -> impl Strategy<Value = Pieces> {
    let size =
        prop_oneof![3 => Just(0usize), 3 => 1usize..10, 3 => 1usize..10_000, 1 => Just(usize::MAX)];
    // Never tiny throughout: a case would take for ever.
    proptest::collection::vec(size, 1..8).prop_map(|mut sizes| {
        sizes.push(100_000);
        Pieces::new(sizes)
    })
}

async fn put(writer: &mut StreamWriter, items: &[Item], memory: &Arc<dyn Region>) -> Result<()> {
    for item in items {
        writer.make_room().await?;
        match item {
            Item::U8(value) => writer.put_u8(*value)?,
            Item::Be16(value) => writer.put_be16(*value)?,
            Item::Be32(value) => writer.put_be32(*value)?,
            Item::Be64(value) => writer.put_be64(*value)?,
            Item::Str8(bytes) => writer.put_str8(bytes)?,
            Item::Bytes(bytes) => writer.write_all(bytes).await?,
            Item::Page { head, offset, len } => {
                writer.put_head_and_region(head, memory, *offset, *len)?;
            }
            Item::Flush => writer.flush().await?,
        }
    }
    writer.finish().await
}

async fn check(reader: &mut StreamReader, items: &[Item], memory: &Arc<dyn Region>) -> Result<()> {
    for item in items {
        match item {
            Item::U8(value) => assert_eq!(reader.read_u8().await?, *value),
            Item::Be16(value) => assert_eq!(reader.read_be16().await?, *value),
            Item::Be32(value) => assert_eq!(reader.read_be32().await?, *value),
            Item::Be64(value) => assert_eq!(reader.read_be64().await?, *value),
            Item::Str8(bytes) => assert_eq!(&reader.read_str8().await?, bytes),
            Item::Bytes(bytes) => {
                let mut seen = vec![0; bytes.len()];
                reader.read_exact(&mut seen).await?;
                assert_eq!(&seen, bytes);
            }
            Item::Page { head, offset, len } => {
                let before = reader.position();
                if !head.is_empty() {
                    assert_eq!(&reader.peek(head.len()).await?[..head.len()], head);
                    reader.skip(head.len() as u64).await?;
                }
                let there: Arc<dyn Region> = VecRegion::zeroed(len + 2);
                reader.read_into(&RegionSlice::new(there.clone(), 1, *len).unwrap()).await?;
                assert_eq!(contents(&there, 1, *len), contents(memory, *offset, *len));
                assert_eq!(contents(&there, len + 1, 1), [0]);
                assert_eq!(reader.position(), before + (head.len() + len) as u64);
            }
            Item::Flush => {}
        }
    }
    assert!(reader.at_end().await?);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn through_doubles_that_chop_both_sides(
        items in proptest::collection::vec(item(), 0..40),
        out in pieces(),
        back in pieces(),
        buffer_bytes in prop_oneof![Just(1024usize), Just(5000), Just(1 << 20)],
    ) {
        let memory = region(REGION);
        runtime().block_on(async {
            let (mut stream, seen) = sink(out, None, StreamOptions::default());
            let mut writer = stream.writer().unwrap();
            put(&mut writer, &items, &memory).await.unwrap();
            assert!(seen.ended());
            let bytes = seen.bytes();
            assert_eq!(writer.position(), bytes.len() as u64);
            assert_eq!(stream.counters().bytes_sent(), bytes.len() as u64);

            let double = crate::support::Source { bytes: bytes.iter().copied().collect(), pieces: back, then: Then::End };
            let options = StreamOptions::default().buffer_bytes(buffer_bytes);
            let mut stream = Stream::open(crate::support::source_channel(double), options);
            let mut reader = stream.reader().unwrap();
            check(&mut reader, &items, &memory).await.unwrap();
            assert_eq!(reader.position(), bytes.len() as u64);
            assert_eq!(stream.counters().bytes_received(), bytes.len() as u64);
        });
    }

    #[test]
    fn through_a_real_socket(items in proptest::collection::vec(item(), 0..40)) {
        let memory = region(REGION);
        runtime().block_on(async {
            let (near, far) = socket_pair();
            let mut near = Stream::open(near, StreamOptions::default());
            let mut far = Stream::open(far, StreamOptions::default());
            let (mut writer, mut reader) = (near.writer().unwrap(), far.reader().unwrap());
            let (put, checked) = tokio::join!(
                put(&mut writer, &items, &memory),
                check(&mut reader, &items, &memory),
            );
            put.unwrap();
            checked.unwrap();
        });
    }
}

#[tokio::test]
async fn the_hot_loop_moves_many_pages_by_reference() {
    const PAGE: usize = 4096;
    const PAGES: usize = 4000;
    let memory = region(PAGE * PAGES);
    let (near, far) = socket_pair();
    let mut near = Stream::open(near, StreamOptions::default());
    let mut far = Stream::open(far, StreamOptions::default());
    let (mut writer, mut reader) = (near.writer().unwrap(), far.reader().unwrap());
    let send = async {
        for page in 0..PAGES {
            if writer.needs_flush() {
                writer.flush().await?;
            }
            let word = (page as u64).to_be_bytes();
            writer.put_head_and_region(&word, &memory, page * PAGE, PAGE)?;
        }
        writer.finish().await
    };
    let receive = async {
        let mut page = 0;
        while reader.fill().await? > 0 {
            // As a decoder does: all whole records, the tail stays.
            while reader.buffer().len() >= 8 + PAGE {
                let record = &reader.buffer()[..8 + PAGE];
                assert_eq!(record[..8], (page as u64).to_be_bytes());
                assert_eq!(record[8..], contents(&memory, page * PAGE, PAGE));
                reader.consume(8 + PAGE);
                page += 1;
            }
        }
        assert!(reader.buffer().is_empty() && reader.is_ended());
        assert_eq!(page, PAGES);
        Ok::<_, mig_stream::Error>(())
    };
    let (sent, received) = tokio::join!(send, receive);
    sent.unwrap();
    received.unwrap();
    assert_eq!(reader.position(), (PAGES * (8 + PAGE)) as u64);
}

#[tokio::test]
async fn a_classified_channel_goes_on_as_it_is() {
    let mut stream = source(b"QEVM\0\0\0\x03rest", Pieces::new([1]), Then::End);
    let mut reader = stream.reader().unwrap();
    assert_eq!(&reader.peek(4).await.unwrap()[..4], b"QEVM");
    assert_eq!(reader.position(), 0);
    assert_eq!(reader.read_be32().await.unwrap(), 0x5145_564d);
    assert_eq!(reader.read_be32().await.unwrap(), 3);
    let mut rest = [0; 4];
    reader.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"rest");
    assert!(reader.at_end().await.unwrap());
    assert_eq!(reader.fill().await.unwrap(), 0);
}

#[tokio::test]
async fn what_was_read_elsewhere_in_vain_is_given_back() {
    let mut stream = source(b"headAAAABBBBtail", Pieces::new([6, 3, 100]), Then::End);
    let mut reader = stream.reader().unwrap();
    assert_eq!(reader.fill_at_most(5).await.unwrap(), 5);
    assert_eq!(reader.buffer(), b"headA");
    let (mut first, mut second) = ([0; 4], [0; 8]);
    let misuse = mig_transport::Blame::Misuse;
    let refused = reader.read_vectored(&mut [IoSliceMut::new(&mut first)]).await;
    assert_eq!(refused.unwrap_err().blame(), misuse, "something is buffered");
    assert_eq!(reader.give_back([&b"x"[..]].into_iter()).unwrap_err().blame(), misuse);
    reader.consume(5);
    let mut pieces = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
    // The double fills the first piece only, as a channel may.
    let came = reader.read_vectored(&mut pieces).await.unwrap();
    assert_eq!((came, reader.position()), (3, 8));
    let pieces = [&first[..1], &first[1..3]];
    reader.give_back(pieces.into_iter()).unwrap();
    assert_eq!((reader.buffer(), reader.position()), (&b"AAA"[..], 5));
    let mut rest = [0; 11];
    reader.read_exact(&mut rest).await.unwrap();
    assert_eq!(&rest, b"AAABBBBtail");
    assert_eq!(reader.read_vectored(&mut [IoSliceMut::new(&mut second)]).await.unwrap(), 0);
    let more = [&[0; 17][..]].into_iter();
    assert_eq!(reader.give_back(more).unwrap_err().blame(), misuse, "more than ever came");
}

#[tokio::test]
async fn receiving_past_the_buffer_keeps_order() {
    let mut stream = source(b"headAAAABBBB", Pieces::new([6, 3, 100]), Then::End);
    let mut reader = stream.reader().unwrap();
    reader.peek(4).await.unwrap();
    let memory: Arc<dyn Region> = VecRegion::zeroed(8);
    let all = [RegionSlice::whole(memory.clone())];
    assert_eq!(reader.receive(&all).await.unwrap_err().blame(), mig_transport::Blame::Misuse);
    reader.skip(6).await.unwrap();
    assert_eq!(reader.receive(&all).await.unwrap(), 3);
    assert_eq!(contents(&memory, 0, 3), b"AAB");
    assert_eq!(reader.position(), 9);
    reader.read_into(&RegionSlice::new(memory.clone(), 3, 3).unwrap()).await.unwrap();
    assert_eq!(contents(&memory, 0, 6), b"AABBBB"[..6]);
    assert_eq!(reader.receive(&all).await.unwrap(), 0);
}

#[tokio::test]
async fn a_buffer_that_grows_keeps_what_is_in_it() {
    let least = StreamReader::LEAST_BUFFER_BYTES;
    let bytes: Vec<u8> = (0..4 * least).map(|at| (at % 251) as u8).collect();
    let half = Source { bytes: bytes.clone().into(), pieces: Pieces::new([100]), then: Then::End };
    let options = StreamOptions::default().buffer_bytes(least);
    let mut reader = Stream::open(source_channel(half), options).reader().unwrap();
    reader.peek(least).await.unwrap();
    reader.consume(100);
    reader.grow(least / 2);
    assert_eq!(reader.capacity(), least, "it never shrinks");
    reader.grow(8 * least);
    assert_eq!(reader.buffer(), &bytes[100..least]);
    reader.peek(4 * least - 100).await.unwrap();
    assert_eq!((reader.buffer(), reader.position()), (&bytes[100..], 100));
}
