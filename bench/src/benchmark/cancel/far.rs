//! Far ends: who takes nothing, says nothing, or does not even let anybody in.

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::PollFlags,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};

use crate::{
    child::STEP,
    failure::Result,
    watch::{Watch, until},
};

/// Somebody who can be connected to over tcp, and nothing else.
pub(super) struct Silent(TcpListener);

impl Silent {
    pub(super) fn new() -> Result<Self> {
        Ok(Self(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?))
    }

    /// Where it is.
    pub(super) fn uri(&self) -> Result<String> {
        Ok(format!("tcp:{}", self.0.local_addr()?))
    }

    /// By name, as certificates want it.
    pub(super) fn uri_by_name(&self) -> Result<String> {
        Ok(format!("tcp:localhost:{}", self.0.local_addr()?.port()))
    }

    /// Whoever connects next.
    pub(super) fn accept(&self) -> Result<TcpStream> {
        until(&self.0, PollFlags::IN, STEP)?;
        let (stream, _) = self.0.accept()?;
        stream.set_read_timeout(Some(STEP))?;
        stream.set_write_timeout(Some(STEP))?;
        Ok(stream)
    }
}

/// A unix socket whose queue of newcomers is full.
pub(super) fn full_queue(path: &Path) -> Result<Vec<OwnedFd>> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let open = || socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
    let address = SocketAddrUnix::new(path)?;
    let listener = open()?;
    bind(&listener, &address)?;
    listen(&listener, 0)?;
    let mut sockets = vec![listener];
    loop {
        let newcomer = open()?;
        match rustix::net::connect(&newcomer, &address) {
            Ok(()) => sockets.push(newcomer),
            Err(rustix::io::Errno::AGAIN) => return Ok(sockets),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A pipe with a name, which nobody reads, at both ends of which this process is.
pub(super) fn clogged(path: &Path) -> Result<File> {
    fifo(path)?;
    Ok(File::options().read(true).write(true).open(path)?)
}

/// A pipe with a name and without anybody at it.
pub(super) fn fifo(path: &Path) -> Result<()> {
    let made = std::process::Command::new("mkfifo").arg(path).status()?;
    if !made.success() {
        return Err(format!("mkfifo failed ({made})").into());
    }
    Ok(())
}

/// Writes to whoever listens there for as long as he lets it.
pub(super) struct Writer {
    written: Arc<AtomicUsize>,
    refused: Watch,
}

impl Writer {
    pub(super) fn start(
        mut to: impl Write + Send + 'static,
        head: Vec<u8>,
        again: Vec<u8>,
    ) -> Result<Self> {
        const PIECE: usize = 64 << 10;
        let written = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&written);
        let refused = Watch::start(move || {
            let mut pieces = head.chunks(PIECE).chain(again.chunks(PIECE).cycle());
            while let Some(piece) = pieces.next().filter(|piece| to.write_all(piece).is_ok()) {
                count.fetch_add(piece.len(), Ordering::Relaxed);
            }
            Ok(Instant::now())
        })?;
        Ok(Self { written, refused })
    }

    /// Waits until some of it was taken.
    pub(super) fn is_under_way(&self) -> Result<()> {
        still(|| Ok(self.written.load(Ordering::Relaxed)), |before, now| now > before + (1 << 20))
    }

    /// Waits until nothing more is taken.
    pub(super) fn is_stuck(&self) -> Result<()> {
        still(|| Ok(self.written.load(Ordering::Relaxed)), |before, now| now == before && now > 0)
    }

    /// When he did not let it any more.
    pub(super) fn refused(self) -> Watch {
        self.refused
    }
}

/// Waits until nothing more fits into a socket that nobody reads.
pub(super) fn fills(socket: &TcpStream) -> Result<()> {
    let waiting = || Ok(usize::try_from(rustix::io::ioctl_fionread(socket)?)?);
    still(waiting, |before, now| now == before && now > 0)
}

/// Looks at a number from time to time, until two looks are as they should be.
fn still(look: impl Fn() -> Result<usize>, so: impl Fn(usize, usize) -> bool) -> Result<()> {
    const BETWEEN: Duration = Duration::from_millis(20);
    let deadline = Instant::now() + STEP;
    let mut before = look()?;
    loop {
        thread::sleep(BETWEEN);
        let now = look()?;
        if so(before, now) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err("what should be written, or stuck, is not".into());
        }
        before = now;
    }
}

/// Reads on to the end, whatever comes.
pub(super) fn reads_on(mut from: TcpStream) -> Result<Watch> {
    Watch::start(move || {
        let mut bytes = vec![0; 1 << 20];
        while from.read(&mut bytes).is_ok_and(|read| read > 0) {}
        Ok(Instant::now())
    })
}
