//! The reading half: a thread of its own reads ahead into buffers, at most four of them.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    thread,
};

use mig_transport::{Error, ReceiveHalf, RegionSlice};
use tokio::io::{AsyncRead, ReadBuf};

use crate::writer::BUFFER_BYTES;

/// Buffers read ahead: enough to keep the disk busy while one is decoded.
const AHEAD_LIMIT: usize = 4;

#[derive(Default)]
struct State {
    ahead: VecDeque<Chunk>,
    spare: Vec<Box<[u8]>>,
    /// The end of the file, or the failure, that comes after what was read ahead.
    end: Option<End>,
    abandoned: bool,
    waker: Option<Waker>,
}

#[derive(Clone)]
enum End {
    File,
    Failed { doing: String, os_error: Option<i32>, kind: io::ErrorKind },
}

struct Chunk {
    bytes: Box<[u8]>,
    next: usize,
    end: usize,
}

impl Chunk {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.next..self.end]
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    room: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub(crate) struct FileReceiveHalf {
    shared: Arc<Shared>,
    current: Option<Chunk>,
}

impl FileReceiveHalf {
    /// Starts the thread. `name` is for messages.
    pub(crate) fn start(file: File, position: u64, name: String) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        thread::Builder::new()
            .name("mig-file-read".into())
            .spawn(move || read_ahead(&theirs, &file, position, &name))?;
        Ok(Self { shared, current: None })
    }

    /// Until there are bytes; `None` at the end.
    fn poll_chunk(&mut self, cx: &Context<'_>) -> Poll<io::Result<Option<&mut Chunk>>> {
        let used = self.current.take_if(|chunk| chunk.rest().is_empty());
        if let Some(used) = used {
            self.shared.lock().spare.push(used.bytes);
            self.shared.room.notify_one();
        }
        if self.current.is_none() {
            let mut state = self.shared.lock();
            match (state.ahead.pop_front(), &state.end) {
                (Some(chunk), _) => {
                    self.current = Some(chunk);
                    self.shared.room.notify_one();
                }
                (None, Some(End::File)) => return Poll::Ready(Ok(None)),
                (None, Some(End::Failed { doing, os_error, kind })) => {
                    let source = os_error.map_or((*kind).into(), io::Error::from_raw_os_error);
                    let error = Error::Io { doing: doing.clone(), source };
                    return Poll::Ready(Err(error.into_io()));
                }
                (None, None) => {
                    state.waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(self.current.as_mut()))
    }
}

impl AsyncRead for FileReceiveHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(chunk) = ready!(self.poll_chunk(cx))? {
            let n = chunk.rest().len().min(buffer.remaining());
            buffer.put_slice(&chunk.rest()[..n]);
            chunk.next += n;
        }
        Poll::Ready(Ok(()))
    }
}

impl ReceiveHalf for FileReceiveHalf {
    fn poll_receive(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &[RegionSlice],
    ) -> Poll<io::Result<usize>> {
        if into.iter().all(RegionSlice::is_empty) {
            return Poll::Ready(Ok(0));
        }
        let Some(chunk) = ready!(self.poll_chunk(cx))? else { return Poll::Ready(Ok(0)) };
        let before = chunk.next;
        for slice in into {
            let n = chunk.rest().len().min(slice.len());
            if n > 0 {
                slice.copy_in(&chunk.rest()[..n]);
                chunk.next += n;
            }
        }
        Poll::Ready(Ok(chunk.next - before))
    }
}

impl Drop for FileReceiveHalf {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.abandoned = true;
        state.waker = None;
        drop(state);
        self.shared.room.notify_one();
    }
}

fn read_ahead(shared: &Shared, file: &File, mut position: u64, name: &str) {
    while let Some(mut bytes) = next_buffer(shared) {
        let outcome = loop {
            match file.read_at(&mut bytes, position) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => break outcome,
            }
        };
        let mut state = shared.lock();
        match outcome {
            Ok(0) => state.end = Some(End::File),
            Ok(n) => {
                position += n as u64;
                state.ahead.push_back(Chunk { bytes, next: 0, end: n });
            }
            Err(error) => {
                state.end = Some(End::Failed {
                    doing: format!("{name}: reading at byte {position}"),
                    os_error: error.raw_os_error(),
                    kind: error.kind(),
                });
            }
        }
        let (waker, ended) = (state.waker.take(), state.end.is_some());
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        if ended {
            return;
        }
    }
}

/// Waits for room; `None` when nobody reads any more.
fn next_buffer(shared: &Shared) -> Option<Box<[u8]>> {
    let mut state = shared.lock();
    while !state.abandoned && state.ahead.len() >= AHEAD_LIMIT {
        state = shared.room.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    if state.abandoned {
        return None;
    }
    let spare = state.spare.pop();
    drop(state);
    Some(spare.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice()))
}
