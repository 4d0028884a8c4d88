//! The writing half: small writes gather in a buffer, pages stay where they are, a thread of its own writes both.
//!
//! ```text
//!   poll_write ─▶ buffer ─full─▶┐
//!   poll_send  ─▶ gather list ─▶├─▶ queue, at most 4 ─▶ thread: pwrite / pwritev at the position ─▶ file
//!   poll_shutdown ─▶ sync ─────▶┘
//! ```
//!
//! A gather list that may leave at once is taken over whole: the kernel copies each page once, from guest memory to the
//! page cache. (One that is paced is copied into the buffer, piece by piece.) That happens after `poll_send` returned, so
//! a page may hold a later state of the guest than when it was queued; whoever wrote it has marked it dirty again. A flush
//! waits until everything queued is written.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileExt},
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    thread,
};

use mig_transport::{Error, Gather, SendHalf};
use tokio::io::AsyncWrite;

/// Bytes of a buffer, and of one system call for buffered bytes.
pub(crate) const BUFFER_BYTES: usize = 1024 * 1024;
/// Things that may wait for the thread: enough to keep it busy, few enough to bound memory (4 MiB of buffers).
const QUEUE_LIMIT: usize = 4;
/// A gather list with fewer bytes is copied: a system call for it alone would cost more.
const SMALL_GATHER_BYTES: usize = 64 * 1024;

enum Job {
    Bytes(Vec<u8>),
    Pages(Gather),
    Sync,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    busy: bool,
    synced: bool,
    failed: Option<Failure>,
    spare_buffers: Vec<Vec<u8>>,
    spare_lists: Vec<Gather>,
    waker: Option<Waker>,
}

/// The first failure, told to everybody who asks.
#[derive(Clone)]
struct Failure {
    doing: String,
    os_error: Option<i32>,
    kind: io::ErrorKind,
}

impl Failure {
    fn error(&self) -> io::Error {
        let source = self.os_error.map_or(self.kind.into(), io::Error::from_raw_os_error);
        Error::Io { doing: self.doing.clone(), source }.into_io()
    }
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    /// The half is gone: nobody wants the rest.
    abandoned: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub(crate) struct FileSendHalf {
    shared: Arc<Shared>,
    buffer: Vec<u8>,
    sync_asked: bool,
}

impl FileSendHalf {
    /// Starts the thread. `name` is for messages, `folder` is made durable with the file.
    pub(crate) fn start(
        file: File,
        position: u64,
        name: String,
        folder: Option<PathBuf>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            abandoned: AtomicBool::new(false),
        });
        let mut worker = Worker { shared: Arc::clone(&shared), file, position, name, folder };
        thread::Builder::new().name("mig-file-write".into()).spawn(move || worker.run())?;
        Ok(Self { shared, buffer: Vec::new(), sync_asked: false })
    }

    /// Until the queue has room for one thing more.
    fn poll_room(&self, cx: &Context<'_>) -> Poll<io::Result<MutexGuard<'_, State>>> {
        let mut state = self.shared.lock();
        if let Some(failure) = &state.failed {
            return Poll::Ready(Err(failure.error()));
        }
        if self.sync_asked {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if state.queue.len() >= QUEUE_LIMIT {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(state))
    }

    /// Hands the buffer over, if there is anything in it.
    fn poll_submit(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if self.buffer.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut state = ready!(self.poll_room(cx))?;
        let fresh = state.spare_buffers.pop().unwrap_or_default();
        drop(state);
        let full = std::mem::replace(&mut self.buffer, fresh);
        self.push(Job::Bytes(full));
        Poll::Ready(Ok(()))
    }

    fn push(&self, job: Job) {
        self.shared.lock().queue.push_back(job);
        self.shared.work.notify_one();
    }

    /// Until the buffer has room; answers how much, at least one byte.
    fn poll_buffer(&mut self, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        // Also asks for a failure, so that a writer learns of it before its buffer is full.
        if self.buffer.len() == BUFFER_BYTES {
            ready!(self.poll_submit(cx))?;
        } else if let Some(failure) = &self.shared.lock().failed {
            return Poll::Ready(Err(failure.error()));
        }
        if self.sync_asked {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(BUFFER_BYTES);
        }
        Poll::Ready(Ok(BUFFER_BYTES - self.buffer.len()))
    }

    /// Until everything queued was written.
    fn poll_idle(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        if let Some(failure) = &state.failed {
            return Poll::Ready(Err(failure.error()));
        }
        if state.queue.is_empty() && !state.busy {
            return Poll::Ready(Ok(()));
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for FileSendHalf {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let room = ready!(self.poll_buffer(cx))?;
        let n = room.min(bytes.len());
        self.buffer.extend_from_slice(&bytes[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_submit(cx))?;
        self.poll_idle(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.sync_asked {
            ready!(self.poll_submit(cx))?;
            drop(ready!(self.poll_room(cx))?);
            self.push(Job::Sync);
            self.sync_asked = true;
        }
        ready!(self.poll_idle(cx))?;
        debug_assert!(self.shared.lock().synced, "idle without a failure after the last job");
        Poll::Ready(Ok(()))
    }
}

impl SendHalf for FileSendHalf {
    fn poll_send(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        gather: &mut Gather,
    ) -> Poll<io::Result<usize>> {
        let len = gather.sendable();
        // A list that may go only in part is copied too: its rest stays with the caller.
        if len < SMALL_GATHER_BYTES || len < gather.remaining() {
            let room = ready!(self.poll_buffer(cx))?;
            let n = room.min(len);
            let end = self.buffer.len();
            self.buffer.resize(end + n, 0);
            let copied = gather.copy_next(&mut self.buffer[end..]);
            gather.advance(copied);
            return Poll::Ready(Ok(copied));
        }
        ready!(self.poll_submit(cx))?;
        let mut state = ready!(self.poll_room(cx))?;
        let fresh = state.spare_lists.pop().unwrap_or_default();
        drop(state);
        // All of it may go, which is the caller's last word on it.
        gather.set_allowance(None);
        self.push(Job::Pages(std::mem::replace(gather, fresh)));
        Poll::Ready(Ok(len))
    }
}

impl Drop for FileSendHalf {
    fn drop(&mut self) {
        self.shared.abandoned.store(true, Ordering::Release);
        let mut state = self.shared.lock();
        state.queue.clear();
        state.waker = None;
        drop(state);
        self.shared.work.notify_one();
    }
}

struct Worker {
    shared: Arc<Shared>,
    file: File,
    position: u64,
    name: String,
    folder: Option<PathBuf>,
}

impl Worker {
    fn run(&mut self) {
        while let Some(mut job) = self.next() {
            let outcome = self.perform(&mut job);
            let mut state = self.shared.lock();
            state.busy = false;
            match (outcome, job) {
                (Err((doing, error)), _) => {
                    state.queue.clear();
                    state.failed =
                        Some(Failure { doing, os_error: error.raw_os_error(), kind: error.kind() });
                }
                (Ok(()), Job::Sync) => state.synced = true,
                (Ok(()), Job::Bytes(mut buffer)) => {
                    buffer.clear();
                    state.spare_buffers.push(buffer);
                }
                (Ok(()), Job::Pages(list)) => state.spare_lists.push(list),
            }
            let waker = state.waker.take();
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.shared.lock();
        loop {
            if self.abandoned() {
                return None;
            }
            if let Some(job) = state.queue.pop_front() {
                state.busy = true;
                return Some(job);
            }
            state = self.shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn abandoned(&self) -> bool {
        self.shared.abandoned.load(Ordering::Acquire)
    }

    /// On failure, what was being done.
    fn perform(&mut self, job: &mut Job) -> Result<(), (String, io::Error)> {
        match job {
            Job::Bytes(bytes) => {
                let mut done = 0;
                while done < bytes.len() && !self.abandoned() {
                    done += self.step(|file, at| file.write_at(&bytes[done..], at))?;
                }
            }
            Job::Pages(list) => {
                while !list.is_empty() && !self.abandoned() {
                    self.step(|file, at| list.write_at(file.as_fd(), at))?;
                }
                // The pages are guest memory, which others may be waiting to let go.
                list.clear();
            }
            Job::Sync => {
                self.file
                    .sync_all()
                    .map_err(|error| (format!("{}: making it durable", self.name), error))?;
                if let Some(folder) = &self.folder {
                    sync_folder(folder).map_err(|error| {
                        (format!("{}: making its folder durable", self.name), error)
                    })?;
                }
            }
        }
        Ok(())
    }

    fn step(
        &mut self,
        write: impl FnOnce(&File, u64) -> io::Result<usize>,
    ) -> Result<usize, (String, io::Error)> {
        let outcome = match write(&self.file, self.position) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(0),
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            other => other,
        };
        let written = outcome.map_err(|error| {
            (format!("{}: writing at byte {}", self.name, self.position), error)
        })?;
        self.position += written as u64;
        Ok(written)
    }
}

/// Makes a created or renamed name durable. A folder that we may not read, or a filesystem that cannot, is let pass.
pub(crate) fn sync_folder(folder: &std::path::Path) -> io::Result<()> {
    let_pass(folder, File::open(folder).and_then(|folder| folder.sync_all()))
}

/// The same for a folder that is open already, wherever it has been moved to since.
pub(crate) fn sync_open_folder(
    open: impl std::os::fd::AsFd,
    folder: &std::path::Path,
) -> io::Result<()> {
    let_pass(folder, rustix::fs::fsync(open).map_err(io::Error::from))
}

fn let_pass(folder: &std::path::Path, synced: io::Result<()>) -> io::Result<()> {
    match synced {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::Unsupported
            ) =>
        {
            tracing::debug!(%error, folder = %folder.display(), "a folder cannot be made durable");
            Ok(())
        }
        other => other,
    }
}
