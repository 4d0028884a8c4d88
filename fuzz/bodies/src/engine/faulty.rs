//! What lies between two ends: it carries bytes, and does to them what a script says.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use mig_engine::MigrationHandle;
use mig_testkit::Breaker;
use mig_transport::{Channel, Endpoint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};

/// What happens when so many bytes have passed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    /// This direction breaks: its reader gets what had come, then an error. An end in good order is not a fault of a link:
    /// only the other end can say it, or who stands between them and could as well say anything else.
    Break,
    /// The source's connection is reset, as Linux shows it: the reason once, to whichever half asks first, then an end as if
    /// in order. Nothing passes any more, either way, and the destination's connection stays.
    ResetSource,
    /// The same with the ends exchanged.
    ResetDestination,
    /// Nothing passes for a while.
    Stall(Duration),
    /// The next byte is changed. Only towards the destination: what it answers decides who owns the guest, and nobody could
    /// tell a changed answer from a true one.
    Flip(u8),
    /// The source's user cancels.
    CancelSource,
    /// The destination's user cancels.
    CancelDestination,
}

/// An event of a direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) after: u64,
    pub(crate) what: What,
}

/// Both users' hands.
#[derive(Clone, Debug)]
pub(crate) struct Handles {
    pub(crate) source: MigrationHandle,
    pub(crate) destination: MigrationHandle,
}

/// A channel for each end, and what carries the bytes between them, to be run beside both.
pub(crate) fn link(
    buffer_bytes: usize,
    there: Vec<Fault>,
    back: Vec<Fault>,
    handles: Handles,
) -> (Channel, Channel, impl Future<Output = ()> + use<>) {
    let [there_broken, back_broken] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
    // Four one-way pipes: each half is closed by dropping it.
    let (near_in, source_out) = duplex(buffer_bytes);
    let (destination_in, far_out) = duplex(buffer_bytes);
    let (far_in, destination_out) = duplex(buffer_bytes);
    let (source_in, near_out) = duplex(buffer_bytes);
    let breakers = [Breaker::default(), Breaker::default()];
    let end = |reader, broken: &Arc<AtomicBool>, writer, breaker: &Breaker| {
        let reader = Breaking { reader, broken: Arc::clone(broken) };
        let endpoint = Endpoint { transport: "memory", ..Endpoint::default() };
        breaker.channel(reader, writer, endpoint)
    };
    let source = end(source_in, &back_broken, source_out, &breakers[0]);
    let destination = end(destination_in, &there_broken, destination_out, &breakers[1]);
    let carrying = async move {
        let link = Between { handles, breakers, reset: AtomicBool::new(false) };
        tokio::join!(
            carry(near_in, far_out, there, &there_broken, &link),
            carry(far_in, near_out, back, &back_broken, &link)
        );
    };
    (source, destination, carrying)
}

/// What both directions of a link can reach.
struct Between {
    handles: Handles,
    /// The source's, the destination's.
    breakers: [Breaker; 2],
    reset: AtomicBool,
}

impl Between {
    fn reset(&self, end: usize) {
        self.breakers[end].reset();
        self.reset.store(true, Ordering::Relaxed);
    }
}

/// A reader whose connection may break.
struct Breaking {
    reader: DuplexStream,
    broken: Arc<AtomicBool>,
}

impl AsyncRead for Breaking {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(cx, buffer))?;
        let ended = buffer.filled().len() == before && buffer.remaining() > 0;
        if ended && self.broken.load(Ordering::Relaxed) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

/// One direction, until it ends. The reader is kept: who writes into it waits, as into a network that swallows.
async fn carry(
    mut from: DuplexStream,
    to: DuplexStream,
    faults: Vec<Fault>,
    broken: &AtomicBool,
    link: &Between,
) {
    let mut to = Some(to);
    let mut faults = faults.into_iter().peekable();
    let mut passed = 0_u64;
    let mut buffer = [0; 2048];
    loop {
        while let Some(fault) = faults.next_if(|fault| fault.after <= passed) {
            match fault.what {
                What::Break => {
                    broken.store(true, Ordering::Relaxed);
                    to = None;
                }
                What::Stall(wait) => tokio::time::sleep(wait).await,
                What::Flip(_) => {}
                What::ResetSource => link.reset(0),
                What::ResetDestination => link.reset(1),
                What::CancelSource => link.handles.source.cancel(),
                What::CancelDestination => link.handles.destination.cancel(),
            }
        }
        let room = faults.peek().map_or(buffer.len() as u64, |fault| fault.after - passed);
        let room = (room as usize).min(buffer.len());
        let read = from.read(&mut buffer[..room]).await;
        if link.reset.load(Ordering::Relaxed) {
            // Neither bytes nor an end.
            return std::future::pending().await;
        }
        let Ok(len @ 1..) = read else { return };
        passed += len as u64;
        // The last byte before the event is the one that changes.
        if let Some(Fault { after, what: What::Flip(bits) }) = faults.peek()
            && *after == passed
        {
            buffer[len - 1] ^= bits;
        }
        if let Some(writer) = &mut to
            && writer.write_all(&buffer[..len]).await.is_err()
        {
            return;
        }
        if to.is_none() {
            return;
        }
    }
}
