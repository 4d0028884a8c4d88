//! A batch of records of which the first left and the next did not. Whoever wrote must not hear "nothing was written": if the
//! stream's last byte was in the first, the destination has the whole guest.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use mig_testkit::stream_channel;
use mig_transport::{Channel, Endpoint, Gather};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

use super::doubles::Ends;

const RECORD: usize = 1 << 14;

/// Takes so many writes, at most so much of each that there is one whole record in it, and then no more.
struct Breaks {
    inner: DuplexStream,
    left: Arc<AtomicUsize>,
}

impl AsyncWrite for Breaks {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.left.load(Ordering::Relaxed) {
            0 => return Poll::Ready(Err(io::Error::from_raw_os_error(broken_pipe()))),
            usize::MAX => return Pin::new(&mut self.inner).poll_write(cx, bytes),
            left => self.left.store(left - 1, Ordering::Relaxed),
        }
        Pin::new(&mut self.inner).poll_write(cx, &bytes[..bytes.len().min(RECORD + 1000)])
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn broken_pipe() -> i32 {
    rustix::io::Errno::PIPE.raw_os_error()
}

async fn breakable() -> (Channel, Channel, Arc<AtomicUsize>) {
    let left = Arc::new(AtomicUsize::new(usize::MAX));
    let (there, from_source) = tokio::io::duplex(1 << 20);
    let (back, from_destination) = tokio::io::duplex(1 << 20);
    let writer = Breaks { inner: there, left: Arc::clone(&left) };
    let source = stream_channel(Some(from_destination), Some(writer), Endpoint::default());
    let destination = stream_channel(Some(from_source), Some(back), Endpoint::default());
    let (source, destination) = Ends::new().pair((source, destination)).await;
    (source, destination, left)
}

#[tokio::test]
async fn what_left_is_counted_and_the_error_comes_with_the_next_call() {
    for next in ["write", "flush", "shutdown"] {
        let (mut source, mut destination, left) = breakable().await;
        let mut sender = source.take_sender().expect("fresh");
        left.store(1, Ordering::Relaxed);
        let wrote = sender.write(&[7; 3 * RECORD]).await.expect("a record of it has left");
        assert_eq!(wrote, 3 * RECORD);
        let error = match next {
            "write" => sender.write(b"more").await.map(drop),
            "flush" => sender.flush().await,
            _ => sender.shutdown().await,
        };
        let error = error.expect_err(next);
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{next}: {error}");
        assert!(error.to_string().contains("right after the TLS handshake"), "{next}: {error}");
        let again = sender.flush().await.expect_err("for good").to_string();
        assert!(again.contains("failed before"), "{again}");

        // The destination has a whole record: nobody may say that nothing was written.
        let mut receiver = destination.take_receiver().expect("fresh");
        let mut heard = vec![0; RECORD];
        receiver.read_exact(&mut heard).await.expect("it has left");
        assert!(heard == [7; RECORD]);
    }
}

/// The same for pages, which is how an engine writes.
#[tokio::test]
async fn what_left_of_gathered_pieces_is_counted_too() {
    let (mut source, _destination, left) = breakable().await;
    let mut sender = source.take_sender().expect("fresh");
    left.store(1, Ordering::Relaxed);
    let mut gather = Gather::new();
    gather.push_head(&[7; 3 * RECORD]).expect("there is room");
    let sent = poll_fn(|cx| sender.poll_send(cx, &mut gather)).await;
    assert_eq!(sent.expect("a record of it has left"), 3 * RECORD);
    sender.flush().await.expect_err("the next record did not leave");
}
