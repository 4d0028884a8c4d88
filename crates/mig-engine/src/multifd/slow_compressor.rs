//! A compressor that takes longer than a cancel may wait, on a thread of its own.
//!
//! ```text
//!   lane ── pages, a buffer ──▶ thread: piece by piece, as long as somebody waits for it
//!        ◀── pages, payload ──
//! ```
//! The highest levels of zstd take most of a second for a packet, and before the first one up to 0.3 s to set up 640 MiB of
//! tables, which cannot be interrupted. Whoever waits may stop waiting at any moment: the thread is left behind, sees
//! that after the piece it is at, and takes its memory along.

use std::{sync::mpsc, thread, time::Duration};

use mig_compress::Compressor;
use mig_ram::PAGE_SIZE;
use mig_transport::Blame;
use tokio::sync::oneshot;

use super::lane::thread_cpu;
use crate::error::{Error, Result};

/// So much is compressed at a time: about 20 ms at the highest level.
const PIECE: usize = 8 * PAGE_SIZE;

/// Pages to be compressed, and what they become.
#[derive(Debug, Default)]
pub(super) struct Packet {
    pub(super) pages: Vec<u8>,
    pub(super) payload: Vec<u8>,
    /// Processor time that it took.
    pub(super) cpu: Duration,
}

/// The lane's end. Dropped, it ends the thread, without waiting for that.
#[derive(Debug)]
pub(super) struct SlowCompressor {
    jobs: mpsc::Sender<Job>,
}

struct Job {
    packet: Packet,
    reply: oneshot::Sender<Result<Packet, mig_compress::Error>>,
}

/// What compresses: `mig-compress`, except in tests.
trait Packs: Send + 'static {
    fn feed(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), mig_compress::Error>;
    fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), mig_compress::Error>;
}

impl Packs for Compressor {
    fn feed(&mut self, piece: &[u8], out: &mut Vec<u8>) -> Result<(), mig_compress::Error> {
        self.feed_through(piece, out)
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), mig_compress::Error> {
        Self::flush(self, out)
    }
}

impl SlowCompressor {
    /// Starts the thread.
    pub(super) fn start(compressor: Compressor) -> Result<Self> {
        Self::of(compressor)
    }

    fn of(compressor: impl Packs) -> Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        thread::Builder::new()
            .name("mig-pack".into())
            .spawn(move || serve(compressor, &inbox))
            .map_err(|error| {
                Error::new(Blame::Io, "starting a thread that compresses").caused_by(error)
            })?;
        Ok(Self { jobs })
    }

    /// The packet with its payload.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the packet is lost, and the stream of payloads with it.
    pub(super) async fn pack(&mut self, packet: Packet) -> Result<Packet> {
        let broken = || Error::misuse("the thread that compresses broke down");
        let (reply, packed) = oneshot::channel();
        self.jobs.send(Job { packet, reply }).map_err(|_gone| broken())?;
        let packed = packed.await.map_err(|_gone| broken())?;
        packed.map_err(|error| Error::misuse("compressing pages").caused_by(error))
    }
}

/// Compresses for as long as anybody asks.
fn serve(mut compressor: impl Packs, jobs: &mpsc::Receiver<Job>) {
    for Job { mut packet, reply } in jobs {
        let begun = thread_cpu();
        packet.payload.clear();
        let mut packed = Ok(());
        for piece in packet.pages.chunks(PIECE) {
            // The rest of a packet that nobody wants is no use, and neither are further ones.
            if reply.is_closed() {
                return;
            }
            packed = packed.and_then(|()| compressor.feed(piece, &mut packet.payload));
        }
        packed = packed.and_then(|()| compressor.flush(&mut packet.payload));
        packet.cpu = thread_cpu().saturating_sub(begun);
        // Nobody waits any more if the migration is over.
        let _nobody = reply.send(packed.map(|()| packet));
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// Says that it is at a piece, and stays there until it is told to go on.
    struct Deaf {
        at_a_piece: mpsc::Sender<()>,
        go_on: mpsc::Receiver<()>,
    }

    impl Packs for Deaf {
        fn feed(&mut self, _piece: &[u8], _: &mut Vec<u8>) -> Result<(), mig_compress::Error> {
            self.at_a_piece.send(()).expect("the test hears it");
            self.go_on.recv().expect("the test says so");
            Ok(())
        }

        fn flush(&mut self, _: &mut Vec<u8>) -> Result<(), mig_compress::Error> {
            panic!("a packet that nobody wants is not finished")
        }
    }

    #[test]
    fn whoever_ends_does_not_wait_for_what_is_being_compressed_and_it_ends_behind() {
        let (at_a_piece, reached) = mpsc::channel();
        let (tell, go_on) = mpsc::channel();
        let mut compressor = SlowCompressor::of(Deaf { at_a_piece, go_on }).unwrap();
        {
            let packet = Packet { pages: vec![0; 4 * PIECE], ..Packet::default() };
            let mut packing = std::pin::pin!(compressor.pack(packet));
            let mut context = Context::from_waker(Waker::noop());
            assert!(matches!(packing.as_mut().poll(&mut context), Poll::Pending));
            reached.recv().unwrap();
        }
        drop(compressor);
        // Only now: if anything above had waited for it this would not be reached.
        tell.send(()).unwrap();
        // The thread drops what it has: no further piece was begun.
        assert!(reached.recv().is_err());
    }
}
