//! The thread that writes: a slow disk blocks it and nothing else.
//!
//! ```text
//!   driver ── full chunks (at most 4, of about 1 MiB) ──▶ thread ──▶ StreamSink
//!          ◀── empty chunks ───────────────────────────
//! ```
//!
//! On failure of the sink the thread ends, taking the sink along; the driver learns of it when it next wants a chunk.
//! The same happens to a writer that is dropped, as soon as the call in progress returns.

use std::{io, thread, time::Duration};

use mig_transport::{Blame, Error as TransportError};
use tokio::sync::mpsc;

use crate::{
    deadlines::Wait,
    error::{Error, Result},
    record::sink::StreamSink,
};

/// A chunk is passed on when it has this many bytes. Larger ones bring nothing, and four of them hide a hiccup of 4 ms
/// of a disk of 1 GiB/s.
const CHUNK_BYTES: usize = 1 << 20;
/// The least that is read at once, however little a chunk lacks: calls for less would cost more than they bring.
const LEAST_READ_BYTES: usize = 64 << 10;
/// The most that is read at once: as fast as 1 MiB, and the reader's buffer, of which only that much is ever touched,
/// stays in the processor's cache.
const MOST_READ_BYTES: usize = 256 << 10;
/// What one look into the reader's buffer can add to a chunk that is nearly full: the least read, and what the decoder
/// left there because it wanted more. Whatever exceeds that makes the chunk grow.
const SLACK_BYTES: usize = 4 * LEAST_READ_BYTES;
const CHUNKS: usize = 4;

const WRITING: &str = "writing";
const SYNCING: &str = "making the bytes durable";
const NAMING: &str = "giving the file its name";

enum Order {
    Write(Vec<u8>),
    Sync,
    Commit,
}

enum Report {
    Empty(Vec<u8>),
    Synced,
    Committed,
    Failed(&'static str, io::Error),
}

/// The driver's end.
#[derive(Debug)]
pub(super) struct SinkWriter {
    name: String,
    orders: mpsc::UnboundedSender<Order>,
    reports: mpsc::UnboundedReceiver<Report>,
    empty: Vec<Vec<u8>>,
    current: Vec<u8>,
    /// Bytes passed on.
    written: u64,
    /// How long the disk may take over one thing.
    patience: Duration,
}

impl SinkWriter {
    /// Starts the thread.
    pub(super) fn start(sink: Box<dyn StreamSink>, patience: Duration) -> Result<Self> {
        let name = sink.name();
        let (orders, inbox) = mpsc::unbounded_channel();
        let (outbox, reports) = mpsc::unbounded_channel();
        thread::Builder::new()
            .name("mig-sink".into())
            .spawn(move || serve(sink, inbox, &outbox))
            .map_err(|error| {
            Error::new(Blame::Io, "starting the thread that writes").caused_by(error)
        })?;
        Ok(Self {
            name,
            orders,
            reports,
            empty: (1..CHUNKS).map(|_| Vec::new()).collect(),
            current: Vec::new(),
            written: 0,
            patience,
        })
    }

    /// Where to append what shall be written.
    pub(super) fn chunk(&mut self) -> &mut Vec<u8> {
        if self.current.capacity() == 0 {
            self.current.reserve_exact(CHUNK_BYTES + SLACK_BYTES);
        }
        &mut self.current
    }

    /// How many bytes to read before [`pass_on`](Self::pass_on): what the chunk lacks, within bounds. Without them every
    /// buffer would in time have touched as much memory as the largest read ever brought.
    pub(super) fn wanted(&self) -> usize {
        CHUNK_BYTES.saturating_sub(self.current.len()).clamp(LEAST_READ_BYTES, MOST_READ_BYTES)
    }

    /// Passes the chunk on once it is worth it; waits while all chunks are in flight.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no byte is lost.
    pub(super) async fn pass_on(&mut self) -> Result<()> {
        if self.current.len() >= CHUNK_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Passes on whatever there is.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no byte is lost.
    pub(super) async fn flush(&mut self) -> Result<()> {
        if self.current.is_empty() {
            return Ok(());
        }
        let empty = match self.empty.pop() {
            Some(empty) => empty,
            None => match self.report(WRITING).await? {
                Report::Empty(chunk) => chunk,
                _ => Vec::new(),
            },
        };
        let full = std::mem::replace(&mut self.current, empty);
        self.written += full.len() as u64;
        self.order(Order::Write(full));
        Ok(())
    }

    /// Waits until everything is durable.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: drop the writer.
    pub(super) async fn sync(&mut self) -> Result<()> {
        self.flush().await?;
        self.order(Order::Sync);
        while !matches!(self.report(SYNCING).await?, Report::Synced) {}
        Ok(())
    }

    /// Makes it look complete; after [`sync`](Self::sync).
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: it happens or not.
    pub(super) async fn commit(mut self) -> Result<u64> {
        self.order(Order::Commit);
        while !matches!(self.report(NAMING).await?, Report::Committed) {}
        Ok(self.written)
    }

    /// Gives up: the sink is dropped uncommitted. Waits for that as long as `limit`; a call into the operating system
    /// that takes longer is left to end on its own.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the sink goes either way.
    pub(super) async fn abandon(self, limit: Duration) {
        let Self { orders, mut reports, .. } = self;
        drop(orders);
        let gone = async { while reports.recv().await.is_some() {} };
        if tokio::time::timeout(limit, gone).await.is_err() {
            tracing::warn!(sink = self.name, "still busy, left behind");
        }
    }

    fn order(&self, order: Order) {
        // A thread that is gone has reported why; the report is read next.
        let _gone = self.orders.send(order);
    }

    /// # Cancel safety
    ///
    /// Cancel safe: the report is the next one's.
    async fn report(&mut self, doing: &str) -> Result<Report> {
        let Ok(report) = tokio::time::timeout(self.patience, self.reports.recv()).await else {
            let doing = format!("{}: {doing}", self.name);
            return Err(Error::deadline(Wait::Storage, &doing, self.patience));
        };
        match report {
            Some(Report::Failed(doing, source)) => {
                Err(TransportError::io(format!("{}: {doing}", self.name), source).into())
            }
            Some(report) => Ok(report),
            None => Err(Error::new(Blame::Io, format!("{}: the writer is gone", self.name))),
        }
    }
}

fn serve(
    mut sink: Box<dyn StreamSink>,
    mut inbox: mpsc::UnboundedReceiver<Order>,
    outbox: &mpsc::UnboundedSender<Report>,
) {
    while let Some(order) = inbox.blocking_recv() {
        // The driver gave up: nobody wants the bytes that are still queued.
        if inbox.is_closed() || inbox.sender_strong_count() == 0 {
            return;
        }
        let (report, over) = match order {
            Order::Write(mut chunk) => match sink.write(&chunk) {
                Ok(()) => {
                    chunk.clear();
                    (Report::Empty(chunk), false)
                }
                Err(error) => (Report::Failed(WRITING, error), true),
            },
            Order::Sync => match sink.sync() {
                Ok(()) => (Report::Synced, false),
                Err(error) => (Report::Failed(SYNCING, error), true),
            },
            Order::Commit => {
                let outcome = sink.commit();
                // Nobody waiting any more is no reason to undo it.
                let _gone = outbox.send(match outcome {
                    Ok(()) => Report::Committed,
                    Err(error) => Report::Failed(NAMING, error),
                });
                return;
            }
        };
        if over {
            // First take back what was written, then tell.
            drop(sink);
            let _gone = outbox.send(report);
            return;
        }
        let _gone = outbox.send(report);
    }
}
