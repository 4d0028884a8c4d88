//! Test doubles: channels that chop, stall, fail and remember.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use mig_stream::{Stream, StreamOptions};
use mig_transport::{
    Capabilities, Channel, ChannelParts, Endpoint, FdIo, FdKind, ReceiveHalf, Region, RegionSlice,
    SendHalf, VecRegion,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    time::Instant,
};

/// Long enough that only a hang reaches it.
pub(crate) const HANG: Duration = Duration::from_secs(20);

/// A receiving half that gives `bytes` in pieces of the given sizes, in turn; 0 is a `Pending` that wakes at once. Then
/// it ends, fails, or says nothing more.
pub(crate) struct Source {
    pub(crate) bytes: VecDeque<u8>,
    pub(crate) pieces: Pieces,
    pub(crate) then: Then,
}

#[derive(Clone, Copy)]
pub(crate) enum Then {
    End,
    Fail,
    Silence,
}

impl AsyncRead for Source {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let piece = self.pieces.next();
        if piece == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.bytes.is_empty() {
            return match self.then {
                Then::End => Poll::Ready(Ok(())),
                Then::Fail => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                Then::Silence => Poll::Pending,
            };
        }
        let n = piece.min(self.bytes.len()).min(into.remaining());
        let piece: Vec<u8> = self.bytes.drain(..n).collect();
        into.put_slice(&piece);
        Poll::Ready(Ok(()))
    }
}

impl ReceiveHalf for Source {}

/// A sending half that takes bytes in pieces, as `Source` gives them, and keeps them with the time they came.
pub(crate) struct Sink {
    pub(crate) seen: Seen,
    pub(crate) pieces: Pieces,
    /// Fails when this many bytes have come.
    pub(crate) fail_at: Option<usize>,
}

#[derive(Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<SeenInner>>);

#[derive(Default)]
struct SeenInner {
    bytes: Vec<u8>,
    at: Vec<(Instant, usize)>,
    ended: bool,
}

impl Seen {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().bytes.clone()
    }

    pub(crate) fn at(&self) -> Vec<(Instant, usize)> {
        self.0.lock().unwrap().at.clone()
    }

    pub(crate) fn ended(&self) -> bool {
        self.0.lock().unwrap().ended
    }
}

impl AsyncWrite for Sink {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let piece = self.pieces.next();
        if piece == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut seen = self.seen.0.lock().unwrap();
        let room = self.fail_at.map_or(usize::MAX, |at| at - seen.bytes.len());
        if room == 0 {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = piece.min(bytes.len()).min(room);
        seen.bytes.extend_from_slice(&bytes[..n]);
        seen.at.push((Instant::now(), n));
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.seen.0.lock().unwrap().ended = true;
        Poll::Ready(Ok(()))
    }
}

impl SendHalf for Sink {}

/// Sizes that repeat.
#[derive(Clone, Debug)]
pub(crate) struct Pieces {
    sizes: Vec<usize>,
    next: usize,
}

impl Pieces {
    pub(crate) fn new(sizes: impl Into<Vec<usize>>) -> Self {
        let mut sizes = sizes.into();
        // A double that never does anything would be a hang.
        if sizes.iter().all(|&size| size == 0) {
            sizes.push(1);
        }
        Self { sizes, next: 0 }
    }

    pub(crate) fn whole() -> Self {
        Self::new([usize::MAX])
    }

    fn next(&mut self) -> usize {
        let size = self.sizes[self.next % self.sizes.len()];
        self.next += 1;
        size
    }
}

pub(crate) fn source(bytes: &[u8], pieces: Pieces, then: Then) -> Stream {
    let half = Source { bytes: bytes.iter().copied().collect(), pieces, then };
    Stream::open(source_channel(half), StreamOptions::default())
}

pub(crate) fn source_channel(half: Source) -> Channel {
    let endpoint = Endpoint { transport: "double", ..Endpoint::default() };
    Channel::new(ChannelParts {
        receive: Some(Box::new(half)),
        endpoint,
        ..ChannelParts::default()
    })
}

pub(crate) fn sink(
    pieces: Pieces,
    fail_at: Option<usize>,
    options: StreamOptions,
) -> (Stream, Seen) {
    let seen = Seen::default();
    let half = Sink { seen: seen.clone(), pieces, fail_at };
    let endpoint = Endpoint { transport: "double", ..Endpoint::default() };
    let channel = Channel::new(ChannelParts {
        send: Some(Box::new(half)),
        endpoint,
        ..ChannelParts::default()
    });
    (Stream::open(channel, options), seen)
}

/// Two ends of a real socket. Needs a runtime.
pub(crate) fn socket_pair() -> (Channel, Channel) {
    let (a, b) = std::os::unix::net::UnixStream::pair().unwrap();
    (socket(a), socket(b))
}

fn socket(socket: std::os::unix::net::UnixStream) -> Channel {
    let io =
        FdIo::new(socket.into(), FdKind::Socket, Interest::READABLE | Interest::WRITABLE).unwrap();
    let (receive, send) = io.split();
    Channel::new(ChannelParts {
        receive: Some(Box::new(receive)),
        send: Some(Box::new(send)),
        force: Some(Box::new(io)),
        peer: Default::default(),
        hooks: None,
        capabilities: Capabilities::socket(),
        endpoint: Endpoint { transport: "unix", ..Endpoint::default() },
    })
}

/// A region that counts up, so that a byte in the wrong place shows.
pub(crate) fn region(len: usize) -> Arc<dyn Region> {
    let region: Arc<dyn Region> = VecRegion::zeroed(len);
    let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    RegionSlice::whole(Arc::clone(&region)).copy_in(&bytes);
    region
}

pub(crate) fn contents(region: &Arc<dyn Region>, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    RegionSlice::new(Arc::clone(region), offset, len).unwrap().copy_out(&mut bytes);
    bytes
}

/// Polls a future a number of times, then drops it; `Some` if it was done by then.
pub(crate) fn poll_times<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..times {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return Some(output);
        }
    }
    None
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
