//! A man in the middle of real sockets: what only a network does to a connection.
//!
//! ```text
//!   source ── connects ──▶ Link ── connects ──▶ destination
//!                 bytes both ways, until the fault's turn comes
//! ```

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{Notify, mpsc},
    task::JoinSet,
};

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
    /// over both directions.
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
    address: LinkAddress,
    resetter: Resetter,
    _work: JoinSet<()>,
}

impl Link {
    /// Begins to listen beside `to`; `own_path` is for a unix socket.
    ///
    /// # Errors
    ///
    /// The system's, if it cannot listen.
    ///
    /// # Cancel safety
    ///
    /// Nothing stays open.
    pub async fn start(to: LinkAddress, own_path: PathBuf, fault: LinkFault) -> io::Result<Self> {
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
        let resetter = Resetter::default();
        work.spawn(carry_all(arrivals, to, fault, resetter.clone()));
        Ok(Self { address, resetter, _work: work })
    }

    /// Where the source is to connect.
    pub fn address(&self) -> &LinkAddress {
        &self.address
    }

    pub(super) fn resetter(&self) -> Resetter {
        self.resetter.clone()
    }
}

/// Asks for a reset and waits until it happened.
#[derive(Clone, Debug, Default)]
pub(super) struct Resetter(Arc<Reset>);

#[derive(Debug, Default)]
struct Reset {
    asked: Notify,
    done: AtomicBool,
    /// A fault of the link's own came to its turn.
    struck: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
}

impl Resetter {
    pub(super) fn is_done(&self) -> bool {
        self.0.done.load(Ordering::Acquire)
    }

    pub(super) fn has_struck(&self) -> bool {
        self.0.struck.load(Ordering::Acquire)
    }

    fn strike(&self) {
        self.0.struck.store(true, Ordering::Release);
    }

    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_done() {
            return Poll::Ready(());
        }
        waiting.push(cx.waker().clone());
        self.0.asked.notify_one();
        Poll::Pending
    }

    fn done(&self) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.done.store(true, Ordering::Release);
        waiting.drain(..).for_each(Waker::wake);
    }
}

enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
}

type Reading = Box<dyn AsyncRead + Send + Unpin>;
type Writing = Box<dyn AsyncWrite + Send + Unpin>;

impl Wire {
    /// # Cancel safety
    ///
    /// Nothing stays open.
    async fn connect(to: &LinkAddress) -> io::Result<Self> {
        Ok(match to {
            LinkAddress::Tcp(to) => Self::Tcp(TcpStream::connect(to).await?),
            LinkAddress::Unix(to) => Self::Unix(UnixStream::connect(to).await?),
        })
    }

    /// A connection that is closed like this resets its peer. A unix socket does so when something unread is in it.
    fn reset_when_closed(&self) {
        if let Self::Tcp(stream) = self {
            stream.set_zero_linger().expect("an open socket");
        }
    }

    /// Halves that end nothing in order when they are dropped: an end in order before a reset would be another fault.
    fn split(self) -> (Reading, Writing) {
        match self {
            Self::Tcp(stream) => boxed(tokio::io::split(stream)),
            Self::Unix(stream) => boxed(tokio::io::split(stream)),
        }
    }
}

fn boxed<R, W>((reader, writer): (R, W)) -> (Reading, Writing)
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    (Box::new(reader), Box::new(writer))
}

async fn carry_all(
    mut arrivals: mpsc::UnboundedReceiver<Wire>,
    to: LinkAddress,
    fault: LinkFault,
    resetter: Resetter,
) {
    let reset = Arc::new(Notify::new());
    let mut carried = JoinSet::new();
    if let LinkFault::Reorder(order) = &fault {
        let mut waiting = Vec::new();
        while waiting.len() < order.len() {
            let Some(wire) = arrivals.recv().await else { return };
            waiting.push(Some(wire));
        }
        for index in order {
            let near = waiting[*index].take().expect("each is named once");
            let Ok(far) = Wire::connect(&to).await else { return };
            carried.spawn(carry(near, far, None));
        }
        resetter.strike();
    }
    let mut count = 0;
    loop {
        tokio::select! {
            arrived = arrivals.recv() => {
                let Some(near) = arrived else { return };
                let Ok(far) = Wire::connect(&to).await else { return };
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
                        carried.spawn(carry(near, far, None));
                    }
                    LinkFault::Double { connection, bytes } if *connection == count => {
                        let Ok(twin) = Wire::connect(&to).await else { return };
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
                // Whoever was about to connect is not waited for.
                carried.shutdown().await;
                drop(std::mem::replace(&mut arrivals, mpsc::unbounded_channel().1));
                resetter.done();
                return;
            }
            Some(_ended) = carried.join_next() => {}
        }
    }
}

/// Both directions until both have ended; the twin hears the first bytes as well and is held until then.
async fn carry(near: Wire, far: Wire, twin: Option<(Wire, usize)>) {
    let (near_in, near_out) = near.split();
    let (far_in, far_out) = far.split();
    let (twin, bytes) = match twin {
        Some((twin, bytes)) => (Some(twin.split()), bytes),
        None => (None, 0),
    };
    let (twin_in, twin_out) = twin.map_or((None, None), |(input, out)| (Some(input), Some(out)));
    let forward = one_way(near_in, far_out, twin_out, bytes);
    let back = one_way(far_in, near_out, None, 0);
    tokio::join!(forward, back);
    drop(twin_in);
}

async fn one_way(mut from: Reading, mut to: Writing, mut twin: Option<Writing>, mut left: usize) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(got @ 1..) = from.read(&mut buffer).await {
        if let Some(twin) = &mut twin {
            let part = got.min(left);
            left -= part;
            // It may be thrown out, which is what is being tried.
            let _refused = twin.write_all(&buffer[..part]).await;
        }
        if to.write_all(&buffer[..got]).await.is_err() {
            return;
        }
    }
    let _gone = to.shutdown().await;
}

/// As [`carry`], until one connection has carried its number of bytes: then all of them are dropped as they are.
async fn carry_or_reset(
    near: Wire,
    far: Wire,
    after: Option<u64>,
    reset: Arc<Notify>,
    resetter: Resetter,
) {
    let mut notified = std::pin::pin!(reset.notified());
    notified.as_mut().enable();
    let (mut near_in, mut near_out) = near.split();
    let (mut far_in, mut far_out) = far.split();
    let (mut out, mut home) = (vec![0; 1024], vec![0; 64]);
    let mut carried = 0;
    let (mut open, mut back_open) = (true, true);
    while open || back_open {
        let room = match after {
            Some(after) if carried >= after => {
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
            got = near_in.read(&mut out[..out_room]), if open => match got {
                Ok(got @ 1..) => {
                    carried += got as u64;
                    if far_out.write_all(&out[..got]).await.is_err() {
                        return;
                    }
                }
                _ => {
                    open = false;
                    let _gone = far_out.shutdown().await;
                }
            },
            got = far_in.read(&mut home[..home_room]), if back_open => match got {
                Ok(got @ 1..) => {
                    carried += got as u64;
                    if near_out.write_all(&home[..got]).await.is_err() {
                        return;
                    }
                }
                _ => {
                    back_open = false;
                    let _gone = near_out.shutdown().await;
                }
            },
        }
    }
}
