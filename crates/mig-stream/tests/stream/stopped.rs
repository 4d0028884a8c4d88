//! A stop from another thread ends every wait there is.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
};

use mig_stream::{
    RateLimiter, Result, StopToken, Stream, StreamOptions, StreamReader, StreamWriter,
};
use mig_transport::{Blame, Capabilities, Channel, ChannelParts, FdIo, FdKind};
use tokio::io::Interest;

use crate::support::{HANG, socket_pair};

/// Makes sure that the future waits, stops, and gives what it answers.
async fn stop_while_waiting<T>(
    stop: &StopToken,
    future: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut future = pin!(future);
    let mut polled = false;
    std::future::poll_fn(|cx| {
        if !polled {
            polled = true;
            assert!(Pin::new(&mut future).poll(cx).is_pending(), "it should have waited");
            let stop = stop.clone();
            std::thread::spawn(move || stop.stop());
            return Poll::Pending;
        }
        future.as_mut().poll(cx)
    })
    .await
}

#[tokio::test]
async fn a_stop_wakes_a_blocked_read() {
    let (near, _far) = socket_pair();
    let mut stream = Stream::open(near, StreamOptions::default());
    let mut reader = stream.reader().unwrap();
    let stop = StopToken::new();
    stop.add(reader.shutdown_handle());
    let waited = tokio::time::timeout(HANG, stop_while_waiting(&stop, reader.fill()));
    assert_eq!(waited.await.unwrap().unwrap_err().blame(), Blame::Cancelled);
    assert_eq!(reader.read_u8().await.unwrap_err().blame(), Blame::Cancelled);
}

#[tokio::test]
async fn a_stop_wakes_a_blocked_flush() {
    let (near, _far) = socket_pair();
    let mut stream = Stream::open(near, StreamOptions::default());
    let mut writer = stream.writer().unwrap();
    let stop = StopToken::new();
    stop.add(stream.shutdown_handle());
    // Fills the kernel's buffer; virtual time ends that as soon as nothing moves.
    tokio::time::pause();
    let fill = async {
        loop {
            writer.write_all(&[0; 50_000]).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(HANG, fill).await.is_err());
    tokio::time::resume();
    writer.put(b"more").unwrap();
    let waited = tokio::time::timeout(HANG, stop_while_waiting(&stop, writer.flush()));
    assert_eq!(waited.await.unwrap().unwrap_err().blame(), Blame::Cancelled);
    assert_eq!(writer.put_u8(0).unwrap_err().blame(), Blame::Cancelled);
}

#[tokio::test]
async fn a_stop_wakes_a_writer_that_waits_for_its_rate() {
    let (near, _far) = socket_pair();
    let limiter = Arc::new(RateLimiter::new(1));
    let mut stream = Stream::open(near, StreamOptions::default().limiter(limiter));
    let mut writer = stream.writer().unwrap();
    let stop = StopToken::new();
    stop.add(stream.shutdown_handle());
    writer.put(&[0; 20_000]).unwrap();
    let waited = tokio::time::timeout(HANG, stop_while_waiting(&stop, writer.finish()));
    assert_eq!(waited.await.unwrap().unwrap_err().blame(), Blame::Cancelled);
}

#[tokio::test]
async fn both_halves_work_apart_from_each_other_and_stop_together() {
    let (near, far) = socket_pair();
    let mut source = Stream::open(near, StreamOptions::default());
    let mut destination = Stream::open(far, StreamOptions::default());
    let (mut main_out, mut back_in) = (source.writer().unwrap(), source.return_reader().unwrap());
    let (mut main_in, mut back_out) =
        (destination.reader().unwrap(), destination.return_writer().unwrap());
    let destination_task = tokio::spawn(async move {
        let question = main_in.read_be32().await?;
        back_out.put_be32(question + 1)?;
        back_out.flush().await?;
        // The main direction ends; the way back is still open.
        assert!(main_in.at_end().await?);
        back_out.put_str8(b"bye")?;
        back_out.finish().await
    });
    main_out.put_be32(41).unwrap();
    main_out.flush().await.unwrap();
    assert_eq!(back_in.read_be32().await.unwrap(), 42);
    main_out.finish().await.unwrap();
    assert_eq!(back_in.read_str8().await.unwrap(), b"bye");
    destination_task.await.unwrap().unwrap();
    assert_eq!(source.counters().bytes_sent(), 4);
    assert_eq!(source.counters().bytes_received(), 8);

    source.shutdown_handle().shutdown();
    assert_eq!(back_in.fill().await.unwrap_err().blame(), Blame::Cancelled);
}

#[tokio::test]
async fn a_return_path_on_a_one_way_channel_is_refused_before_a_byte_moves() {
    let (read_end, write_end) = std::io::pipe().unwrap();
    let write_end = FdIo::new(write_end.into(), FdKind::Pipe, Interest::WRITABLE).unwrap();
    let read_end = FdIo::new(read_end.into(), FdKind::Pipe, Interest::READABLE).unwrap();
    let near = Channel::new(ChannelParts {
        send: Some(Box::new(write_end.send_half())),
        // Whatever a backend claims, the halves decide.
        capabilities: Capabilities::socket(),
        ..ChannelParts::default()
    });
    let far = Channel::new(ChannelParts {
        receive: Some(Box::new(read_end.receive_half())),
        ..ChannelParts::default()
    });
    let mut source = Stream::open(near, StreamOptions::default());
    let mut destination = Stream::open(far, StreamOptions::default());
    let mut writer = source.writer().unwrap();
    let refused = source.return_reader().unwrap_err();
    assert_eq!(refused.blame(), Blame::Misuse);
    assert!(refused.to_string().contains("no return path"), "{refused}");
    assert_eq!(destination.return_writer().unwrap_err().blame(), Blame::Misuse);
    assert_eq!(destination.writer().unwrap_err().blame(), Blame::Misuse);
    writer.finish().await.unwrap();
    // The last holders of the pipe's end.
    drop((writer, source, write_end));
    assert!(destination.reader().unwrap().at_end().await.unwrap());
}

#[test]
fn halves_and_their_futures_may_move_between_threads() {
    fn send<T: Send>(_: &T) {}
    fn check(writer: &mut StreamWriter, reader: &mut StreamReader) {
        send(writer);
        send(reader);
        send(&writer.flush());
        send(&writer.finish());
        send(&writer.write_all(b""));
        send(&reader.fill());
        send(&reader.read_str8());
    }
    let _: fn(&mut StreamWriter, &mut StreamReader) = check;
}
