//! The suite runs against a channel that is known to be simple, so that a failure elsewhere is the backend's.

use mig_testkit::{conformance, memory_pair, stream_channel};
use mig_transport::Endpoint;

#[tokio::test]
async fn memory_keeps_every_promise_of_a_two_way_channel() {
    for buffer_bytes in [1 << 10, 1 << 20] {
        conformance::two_way(|| async { memory_pair(buffer_bytes) }).await;
    }
}

#[tokio::test]
async fn memory_keeps_every_promise_of_a_one_way_channel() {
    conformance::one_way(|| async {
        let (writer, reader) = tokio::io::duplex(4096);
        let endpoint = Endpoint { transport: "memory", ..Endpoint::default() };
        let nothing = None::<tokio::io::DuplexStream>;
        let writing = stream_channel(nothing, Some(writer), endpoint.clone());
        let nothing = None::<tokio::io::DuplexStream>;
        (writing, stream_channel(Some(reader), nothing, endpoint))
    })
    .await;
}

/// The suite can fail: a channel that swaps two bytes is noticed.
#[tokio::test]
#[should_panic = "stream: byte 0x"]
async fn a_channel_that_changes_a_byte_breaks_a_promise() {
    conformance::one_way(|| async {
        let (writer, mut from_writer) = tokio::io::duplex(4096);
        let (mut to_reader, reader) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let (mut buffer, mut position) = ([0; 4096], 0);
            while let Ok(got @ 1..) = from_writer.read(&mut buffer).await {
                if (position..position + got).contains(&100_000) {
                    buffer[100_000 - position] ^= 1;
                }
                position += got;
                if to_reader.write_all(&buffer[..got]).await.is_err() {
                    return;
                }
            }
        });
        let endpoint = Endpoint { transport: "memory", ..Endpoint::default() };
        let nothing = None::<tokio::io::DuplexStream>;
        let writing = stream_channel(nothing, Some(writer), endpoint.clone());
        let nothing = None::<tokio::io::DuplexStream>;
        (writing, stream_channel(Some(reader), nothing, endpoint))
    })
    .await;
}
