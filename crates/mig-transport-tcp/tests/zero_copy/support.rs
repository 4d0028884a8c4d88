//! Sockets, memory that tells when it goes, and lists of many shapes.

use std::{
    future::poll_fn,
    io,
    net::{TcpListener, TcpStream},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use mig_testkit::pattern;
use mig_transport::{
    Capabilities, Channel, Endpoint, FdIo, FdKind, Gather, Region, RegionSlice, Sender, VecRegion,
};
use tokio::io::Interest;

/// Two ends of a connection over loopback, not yet known to any runtime.
pub(crate) fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (ours, listener.accept().unwrap().0)
}

/// A channel over one of them.
pub(crate) fn channel(socket: TcpStream) -> Channel {
    let io = FdIo::new(socket.into(), FdKind::Socket, Interest::READABLE | Interest::WRITABLE);
    io.unwrap().socket_channel(Capabilities::socket(), Endpoint::default())
}

/// How many regions have gone.
#[derive(Clone, Default)]
pub(crate) struct Gone(Arc<AtomicUsize>);

impl Gone {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// Memory with a pattern that tells when it goes.
struct Watched {
    bytes: Arc<VecRegion>,
    gone: Gone,
}

#[expect(unsafe_code, reason = "wraps a region")]
// SAFETY: the wrapped region keeps the promises, and lives as long.
unsafe impl Region for Watched {
    fn as_ptr(&self) -> NonNull<u8> {
        self.bytes.as_ptr()
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.gone.0.fetch_add(1, Ordering::SeqCst);
    }
}

pub(crate) fn region(seed: u64, len: usize, gone: &Gone) -> Arc<dyn Region> {
    let bytes = VecRegion::zeroed(len);
    let whole: Arc<dyn Region> = bytes.clone();
    pattern::fill(&RegionSlice::whole(whole), seed);
    Arc::new(Watched { bytes, gone: gone.clone() })
}

/// Sends what the allowance permits, or all of the list, and counts the polls it takes.
pub(crate) async fn send(
    sender: &mut Sender,
    gather: &mut Gather,
    polls: &AtomicUsize,
) -> io::Result<()> {
    while gather.sendable() > 0 {
        poll_fn(|cx| {
            polls.fetch_add(1, Ordering::SeqCst);
            sender.poll_send(cx, gather)
        })
        .await?;
    }
    Ok(())
}
