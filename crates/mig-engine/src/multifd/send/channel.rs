//! One data channel of a source, on its lane.
//!
//! ```text
//!   unsent pages ──batch of one block──▶ zero test ──▶ header │ pages by reference ──▶ one sendmsg
//!                                                  └─▶ header │ compressed copy
//! ```

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mig_proto::multifd::{Hello, Method, PACKET_PAGES, PacketPages, encode};
use mig_ram::PAGE_SIZE;
use mig_stream::{Stream, StreamWriter};
use tokio::sync::mpsc;

use super::{Common, Order};
use crate::{
    error::{Error, Result},
    multifd::{
        lane::{micros, thread_cpu},
        packer::Packer,
    },
    parameters::ZeroPageDetection,
    source::pages::{Batch, Block},
    turn::Turn,
};

struct SendChannel {
    out: StreamWriter,
    /// Kept, because the channel ends with its last half.
    _stream: Stream,
    common: Arc<Common>,
    packer: Packer,
    batch: Batch,
    pages: PacketPages,
    head: Vec<u8>,
    cpu: ThreadClock,
}

/// Says hello, and carries out orders until there are no more.
///
/// # Cancel safety
///
/// Not cancel safe: a packet may be cut.
pub(super) async fn serve(
    id: u8,
    stream: Stream,
    mut out: StreamWriter,
    common: Arc<Common>,
    mut orders: mpsc::Receiver<Order>,
    done: mpsc::UnboundedSender<()>,
) -> Result<()> {
    out.rehome()?;
    let sends = &common.migration.zero_copy;
    if sends.is_wanted() {
        sends.joined(format!("data channel {id}"), out.request_zero_copy());
    }
    out.write_all(&Hello { uuid: common.uuid, id }.encode()).await?;
    out.flush().await?;
    let mut channel = SendChannel {
        out,
        _stream: stream,
        packer: Packer::new(&common.packing)?,
        common,
        batch: Batch::default(),
        pages: PacketPages::new(),
        head: Vec::new(),
        cpu: ThreadClock::default(),
    };
    while let Some(order) = orders.recv().await {
        match order {
            Order::Pass => channel.pass().await?,
            Order::Sync => channel.sync().await?,
            Order::End => channel.out.finish().await?,
        }
        // Nobody waits any more if the migration is over.
        let _nobody = done.send(());
    }
    Ok(())
}

impl SendChannel {
    async fn pass(&mut self) -> Result<()> {
        let common = Arc::clone(&self.common);
        self.out.set_urgent(common.is_urgent());
        let mut turn = Turn::new();
        while !common.is_held() && common.pages.take_batch(&mut self.batch, PACKET_PAGES) {
            self.send_batch(&common.pages.blocks()[self.batch.block]).await?;
            common.add_cpu(self.cpu.more());
            // A batch of zero pages waits for nothing.
            turn.pause().await;
        }
        Ok(())
    }

    async fn sync(&mut self) -> Result<()> {
        self.head.clear();
        encode::sync_packet(&mut self.head, self.common.next_packet());
        self.out.write_all(&self.head).await?;
        Ok(self.out.flush().await?)
    }

    async fn send_batch(&mut self, block: &Block) -> Result<()> {
        self.sort(block)?;
        if !self.pages.is_empty() {
            self.send_packet(block).await?;
        }
        let (normal, zero) = (self.pages.normal().len() as u64, self.pages.zero().len() as u64);
        let statistics = &self.common.migration.statistics;
        statistics.normal.add(normal);
        statistics.duplicate.add(zero);
        self.common.pages.sent(normal + zero);
        Ok(())
    }

    /// Sorts the pages of the batch into normal and zero ones. The test brings a page into the cache, from where it is
    /// sent.
    fn sort(&mut self, block: &Block) -> Result<()> {
        self.pages.clear();
        for run in &self.batch.runs {
            let zeros = match self.common.zeros {
                ZeroPageDetection::None => 0,
                _ => block.zero_pages(*run)?,
            };
            for page in run.start..run.end() {
                let offset = (page * PAGE_SIZE) as u64;
                let pushed = if zeros >> (page - run.start) & 1 == 0 {
                    self.pages.push_normal(offset)
                } else if self.common.zeros == ZeroPageDetection::Legacy {
                    block.leave_zero(page);
                    Ok(())
                } else {
                    self.pages.push_zero(offset)
                };
                pushed.map_err(|full| Error::misuse(full.to_string()))?;
            }
        }
        Ok(())
    }

    async fn send_packet(&mut self, block: &Block) -> Result<()> {
        let Self { common, packer, pages, head, out, .. } = self;
        let (packed, mut spent) = packer.pack(block, pages.normal()).await?;
        let ram = encode::RamHead {
            packet_num: common.next_packet(),
            block: block.name(),
            method: common.packing.method,
            compressed_len: u32::try_from(packed.len()).unwrap_or(u32::MAX),
        };
        head.clear();
        encode::ram_packet(head, &ram, pages);
        out.write_all(head).await?;
        match common.packing.method {
            Method::None => {
                for (start, len) in contiguous(pages.normal()) {
                    out.put_region(&block.region, start, len)?;
                }
            }
            _ => {
                let begun = Instant::now();
                out.write_all(packed).await?;
                out.flush().await?;
                spent.waiting = begun.elapsed();
                common.add_spent(&spent);
                common.add_cpu(spent.aside);
                common.migration.statistics.lanes_cpu_us.add(micros(spent.aside));
                packer.sent(&spent)?;
            }
        }
        Ok(out.flush().await?)
    }
}

/// The processor time of the thread that asks.
#[derive(Debug, Default)]
struct ThreadClock(Duration);

impl ThreadClock {
    /// How much it is since the last question.
    fn more(&mut self) -> Duration {
        let now = thread_cpu();
        now.saturating_sub(std::mem::replace(&mut self.0, now))
    }
}

/// Offset and length of each run of pages that follow each other.
fn contiguous(offsets: &[u64]) -> impl Iterator<Item = (usize, usize)> + '_ {
    let runs = offsets.chunk_by(|a, b| a + PAGE_SIZE as u64 == *b);
    // Offsets within a mapped block fit.
    runs.map(|run| (usize::try_from(run[0]).unwrap_or(usize::MAX), run.len() * PAGE_SIZE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_follow_each_other_are_one_piece() {
        let offsets = [0u64, 4096, 8192, 16384, 40960, 45056];
        let runs: Vec<_> = contiguous(&offsets).collect();
        assert_eq!(runs, [(0, 12288), (16384, 4096), (40960, 8192)]);
        assert_eq!(contiguous(&[]).count(), 0);
    }
}
