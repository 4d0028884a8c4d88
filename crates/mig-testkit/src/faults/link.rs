//! A man in the middle of real sockets: what only a network, or a peer that dies, does to a connection.
//!
//! ```text
//!   source ── connects ──▶ Link ── connects ──▶ destination
//!                 bytes both ways, until the fault's turn comes
//! ```
//!
//! A reset is the kernel's own. A TCP connection that is closed with no time to linger (`SO_LINGER` 0) sends an RST. A unix socket,
//! one of a pair included, has no such packet: the kernel tells an end ECONNRESET when the other one is closed with
//! something unread in it, as a process that dies leaves it. So the link stops reading first, lets the byte come whose turn it is, and
//! closes then. What that leaves to the other end is an end in order, or a reset if it has written, too.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::net,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    sync::{Notify, mpsc},
    task::JoinSet,
};

use super::wire::Wire;

/// Where the destination listens; the link listens at the same kind of address.
#[derive(Clone, Debug)]
pub enum LinkAddress {
    /// A TCP port of this machine.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// What the link does wrong.
#[derive(Clone, Debug)]
pub enum LinkFault {
    /// Nothing.
    None,
    /// All connections are reset, both ways (TCP: a real RST), when so many bytes went through one of them, counted
    /// over both directions. Where only unread bytes make a reset, the next one is awaited and left.
    Reset {
        /// Which connection, in the order of their coming.
        connection: usize,
        /// How many bytes.
        after: u64,
    },
    /// All connections are reset when an end says so ([`ByteAct::Reset`](super::ByteAct::Reset)).
    OnDemand,
    /// So many connections are awaited, and go on in this order.
    Reorder(Vec<usize>),
    /// What the source says on a connection is said on a second one as well, up to so many bytes; that one stays open.
    Double {
        /// Which connection.
        connection: usize,
        /// How many bytes.
        bytes: usize,
    },
}

/// The link. Dropping it ends everything that goes through it.
pub struct Link {
    resetter: Resetter,
    _work: JoinSet<()>,
}

impl Link {
    /// Begins to listen beside `to`, and says where; `own_path` is for a unix socket.
    ///
    /// # Errors
    ///
    /// The system's, if it cannot listen.
    ///
    /// # Cancel safety
    ///
    /// Nothing stays open.
    pub async fn start(
        to: LinkAddress,
        own_path: PathBuf,
        fault: LinkFault,
    ) -> io::Result<(Self, LinkAddress)> {
        let mut work = JoinSet::new();
        let (arrive, arrivals) = mpsc::unbounded_channel();
        let address = match &to {
            LinkAddress::Tcp(_) => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
                let address = listener.local_addr()?;
                work.spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        let _gone = arrive.send(Wire::Tcp(stream));
                    }
                });
                LinkAddress::Tcp(address)
            }
            LinkAddress::Unix(_) => {
                let listener = UnixListener::bind(&own_path)?;
                work.spawn(async move {
                    while let Ok((stream, _)) = listener.accept().await {
                        let _gone = arrive.send(Wire::Unix(stream));
                    }
                });
                LinkAddress::Unix(own_path)
            }
        };
        Ok((Self::carrying(work, arrivals, Far::At(to), fault), address))
    }

    /// Stands between two sockets that are connected already, whose other ends the source and the destination have. It
    /// is one connection, so it cannot be [doubled](LinkFault::Double) or come [in another order](LinkFault::Reorder).
    ///
    /// # Errors
    ///
    /// The system's, if they cannot be waited for.
    ///
    /// # Panics
    ///
    /// Without a tokio runtime, and if the fault is for several connections.
    pub fn between(
        near: net::UnixStream,
        far: net::UnixStream,
        fault: LinkFault,
    ) -> io::Result<Self> {
        let one = !matches!(fault, LinkFault::Double { .. } | LinkFault::Reorder(_));
        assert!(one, "one connection: {fault:?}");
        let (arrive, arrivals) = mpsc::unbounded_channel();
        for socket in [&near, &far] {
            socket.set_nonblocking(true)?;
        }
        let (near, far) = (UnixStream::from_std(near)?, UnixStream::from_std(far)?);
        arrive.send(Wire::Unix(near)).expect("its receiver is here");
        // Nobody else comes, and yet a fault's turn may.
        let mut work = JoinSet::new();
        work.spawn(async move { arrive.closed().await });
        Ok(Self::carrying(work, arrivals, Far::Here(Some(Wire::Unix(far))), fault))
    }

    fn carrying(
        mut work: JoinSet<()>,
        arrivals: mpsc::UnboundedReceiver<Wire>,
        to: Far,
        fault: LinkFault,
    ) -> Self {
        let resetter = Resetter::default();
        work.spawn(carry_all(arrivals, to, fault, resetter.clone()));
        Self { resetter, _work: work }
    }

    pub(super) fn resetter(&self) -> Resetter {
        self.resetter.clone()
    }
}

/// Stops the link, and resets it.
#[derive(Clone, Debug, Default)]
pub(super) struct Resetter(Arc<Reset>);

#[derive(Debug, Default)]
struct Reset {
    /// Something was asked for.
    asked: Notify,
    /// Nothing is read any more.
    held: AtomicBool,
    /// The byte is there, so everything may be closed.
    close: AtomicBool,
    done: AtomicBool,
    /// A fault of the link's own came to its turn.
    struck: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl Resetter {
    pub(super) fn is_held(&self) -> bool {
        self.0.held.load(Ordering::Acquire)
    }

    pub(super) fn is_done(&self) -> bool {
        self.0.done.load(Ordering::Acquire)
    }

    pub(super) fn has_struck(&self) -> bool {
        self.0.struck.load(Ordering::Acquire)
    }

    fn strike(&self) {
        self.0.struck.store(true, Ordering::Release);
    }

    /// Until nothing is read any more.
    pub(super) fn poll_held(&self, cx: &Context<'_>) -> Poll<()> {
        self.poll(&self.0.held, cx)
    }

    /// Until everything is closed.
    pub(super) fn poll_done(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.close.store(true, Ordering::Release);
        self.poll(&self.0.done, cx)
    }

    fn poll(&self, reached: &AtomicBool, cx: &Context<'_>) -> Poll<()> {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if reached.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        waiting.push(cx.waker().clone());
        self.0.asked.notify_one();
        Poll::Pending
    }

    fn reach(&self, reached: &AtomicBool) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        reached.store(true, Ordering::Release);
        waiting.drain(..).for_each(Waker::wake);
    }

    /// Until an end has written what is to be lost.
    async fn close_asked(&self) {
        while !self.0.close.load(Ordering::Acquire) {
            self.0.asked.notified().await;
        }
    }
}

/// Where connections go on.
enum Far {
    At(LinkAddress),
    /// The only one.
    Here(Option<Wire>),
}

impl Far {
    async fn next(&mut self) -> io::Result<Wire> {
        match self {
            Self::At(address) => Wire::connect(address).await,
            Self::Here(wire) => wire.take().ok_or_else(|| io::Error::other("one connection")),
        }
    }
}

async fn carry_all(
    mut arrivals: mpsc::UnboundedReceiver<Wire>,
    mut to: Far,
    fault: LinkFault,
    resetter: Resetter,
) {
    let reset = Arc::new(Notify::new());
    let mut carried = JoinSet::new();
    // To be kept open when they are not read any more.
    let mut known: Vec<Weak<Wire>> = Vec::new();
    if let LinkFault::Reorder(order) = &fault {
        let Some(wires) = reordered(&mut arrivals, &mut to, order).await else { return };
        for (near, far) in wires {
            carried.spawn(carry(near.into(), far.into(), None));
        }
        resetter.strike();
    }
    let mut count = 0;
    loop {
        tokio::select! {
            arrived = arrivals.recv() => {
                let Some(near) = arrived else { return };
                let Ok(far) = to.next().await else { return };
                let (near, far) = (Arc::new(near), Arc::new(far));
                match &fault {
                    LinkFault::Reset { connection, after } => {
                        near.reset_when_closed();
                        far.reset_when_closed();
                        let after = (*connection == count).then_some(*after);
                        let (reset, resetter) = (Arc::clone(&reset), resetter.clone());
                        carried.spawn(carry_or_reset(near, far, after, reset, resetter));
                    }
                    LinkFault::OnDemand => {
                        near.reset_when_closed();
                        far.reset_when_closed();
                        known.extend([Arc::downgrade(&near), Arc::downgrade(&far)]);
                        carried.spawn(carry(near, far, None));
                    }
                    LinkFault::Double { connection, bytes } if *connection == count => {
                        let Ok(twin) = to.next().await else { return };
                        resetter.strike();
                        carried.spawn(carry(near, far, Some((twin, *bytes))));
                    }
                    _ => {
                        carried.spawn(carry(near, far, None));
                    }
                }
                count += 1;
            }
            () = resetter.0.asked.notified() => {
                let held: Vec<_> = known.iter().filter_map(Weak::upgrade).collect();
                carried.shutdown().await;
                resetter.reach(&resetter.0.held);
                resetter.close_asked().await;
                // Whoever was about to connect is not waited for.
                drop(held);
                drop(std::mem::replace(&mut arrivals, mpsc::unbounded_channel().1));
                resetter.reach(&resetter.0.done);
                return;
            }
            Some(_ended) = carried.join_next() => {}
        }
    }
}

/// Awaits as many connections as are to be reordered, and goes on with them in that order; `None` if nobody comes any more.
async fn reordered(
    arrivals: &mut mpsc::UnboundedReceiver<Wire>,
    to: &mut Far,
    order: &[usize],
) -> Option<Vec<(Wire, Wire)>> {
    let mut waiting = Vec::new();
    while waiting.len() < order.len() {
        waiting.push(Some(arrivals.recv().await?));
    }
    let mut wires = Vec::new();
    for index in order {
        let near = waiting[*index].take().expect("each is named once");
        wires.push((near, to.next().await.ok()?));
    }
    Some(wires)
}

/// Both directions until both have ended; the twin hears the first bytes as well and is held until then.
async fn carry(near: Arc<Wire>, far: Arc<Wire>, twin: Option<(Wire, usize)>) {
    let (twin, bytes) = twin.map_or((None, 0), |(twin, bytes)| (Some(twin), bytes));
    tokio::join!(one_way(&near, &far, twin.as_ref(), bytes), one_way(&far, &near, None, 0),);
}

async fn one_way(from: &Wire, to: &Wire, twin: Option<&Wire>, mut left: usize) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(got @ 1..) = from.read(&mut buffer).await {
        if let Some(twin) = twin {
            let part = got.min(left);
            left -= part;
            // It may be thrown out, which is what is being tried.
            let _refused = twin.write_all(&buffer[..part]).await;
        }
        if to.write_all(&buffer[..got]).await.is_err() {
            return;
        }
    }
    to.end();
}

/// As [`carry`], until one connection has carried its number of bytes: then all of them are dropped as they are.
async fn carry_or_reset(
    near: Arc<Wire>,
    far: Arc<Wire>,
    after: Option<u64>,
    reset: Arc<Notify>,
    resetter: Resetter,
) {
    let mut notified = std::pin::pin!(reset.notified());
    notified.as_mut().enable();
    let (mut out, mut home) = (vec![0; 1024], vec![0; 64]);
    let mut carried = 0;
    let (mut open, mut back_open) = (true, true);
    while open || back_open {
        let room = match after {
            Some(after) if carried >= after => {
                tokio::select! {
                    () = near.resets_now(), if open => {}
                    () = far.resets_now(), if back_open => {}
                }
                resetter.strike();
                reset.notify_waiters();
                return;
            }
            Some(after) => usize::try_from(after - carried).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        let (out_room, home_room) = (out.len().min(room), home.len().min(room));
        tokio::select! {
            biased;
            () = notified.as_mut() => return,
            got = near.read(&mut out[..out_room]), if open => match got {
                Ok(got @ 1..) => {
                    carried += got as u64;
                    if far.write_all(&out[..got]).await.is_err() {
                        return;
                    }
                }
                _ => {
                    open = false;
                    far.end();
                }
            },
            got = far.read(&mut home[..home_room]), if back_open => match got {
                Ok(got @ 1..) => {
                    carried += got as u64;
                    if near.write_all(&home[..got]).await.is_err() {
                        return;
                    }
                }
                _ => {
                    back_open = false;
                    near.end();
                }
            },
        }
    }
}
