//! A transport that carries pages itself: the order in which it is asked, and that nothing else carries them.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use mig_testkit::stream_channel;
use mig_transport::{
    Channel, ChannelParts, RamBlockInfo, RamHooks, RegionSlice, Result, SavePages, WindowReason,
};

use crate::support::{Diary, Pair, check};

/// Both ends of a transport that copies pages from one memory to the other at the end of each window, as RDMA writes do.
#[derive(Clone, Default)]
struct Mover(Arc<Mutex<Blocks>>);

#[derive(Default)]
struct Blocks {
    from: Vec<RamBlockInfo>,
    to: Vec<RamBlockInfo>,
    delayed: Vec<(usize, usize, usize)>,
}

struct SourceSide(Mover, Diary);
struct DestinationSide(Mover, Diary);

#[async_trait]
impl RamHooks for SourceSide {
    async fn register_block(&mut self, block: &RamBlockInfo) -> Result<()> {
        self.1.note(format!("register {}", block.idstr));
        self.0.0.lock().unwrap().from.push(block.clone());
        Ok(())
    }

    async fn before_iterate(&mut self, reason: WindowReason) -> Result<()> {
        self.1.note(format!("before {reason:?}"));
        Ok(())
    }

    async fn save_pages(&mut self, block: usize, offset: u64, len: u64) -> Result<SavePages> {
        // The ROM goes in the stream.
        if block == 1 {
            return Ok(SavePages::NotSupported);
        }
        self.0.0.lock().unwrap().delayed.push((
            block,
            usize::try_from(offset).unwrap(),
            usize::try_from(len).unwrap(),
        ));
        Ok(SavePages::Delayed { zero_pages: 0 })
    }

    async fn after_iterate(&mut self, reason: WindowReason) -> Result<()> {
        // The exchange of blocks that closes the first window.
        while self.0.0.lock().unwrap().to.len() < 2 {
            tokio::task::yield_now().await;
        }
        let mut blocks = self.0.0.lock().unwrap();
        self.1.note(format!("after {reason:?} with {} pages", blocks.delayed.len()));
        for (block, offset, len) in std::mem::take(&mut blocks.delayed) {
            let part = |blocks: &[RamBlockInfo]| {
                RegionSlice::new(Arc::clone(&blocks[block].region), offset, len).unwrap()
            };
            let mut page = vec![0; len];
            part(&blocks.from).copy_out(&mut page);
            part(&blocks.to).copy_in(&page);
        }
        Ok(())
    }

    async fn load_hook(&mut self) -> Result<()> {
        unreachable!("the source loads nothing")
    }
}

#[async_trait]
impl RamHooks for DestinationSide {
    async fn register_block(&mut self, block: &RamBlockInfo) -> Result<()> {
        self.1.note(format!("register {}", block.idstr));
        self.0.0.lock().unwrap().to.push(block.clone());
        Ok(())
    }

    async fn before_iterate(&mut self, _: WindowReason) -> Result<()> {
        unreachable!("the destination sends nothing")
    }

    async fn save_pages(&mut self, _: usize, _: u64, _: u64) -> Result<SavePages> {
        unreachable!("the destination sends nothing")
    }

    async fn after_iterate(&mut self, _: WindowReason) -> Result<()> {
        unreachable!("the destination sends nothing")
    }

    async fn load_hook(&mut self) -> Result<()> {
        self.1.note("load hook");
        Ok(())
    }
}

fn with_hooks(io: tokio::io::DuplexStream, hooks: Box<dyn RamHooks>) -> Channel {
    let (reader, writer) = tokio::io::split(io);
    let mut plain = stream_channel(Some(reader), Some(writer), Default::default());
    Channel::new(ChannelParts {
        receive: Some(Box::new(crate::support::Half(plain.take_receiver().unwrap()))),
        send: Some(Box::new(crate::support::Half(plain.take_sender().unwrap()))),
        hooks: Some(hooks),
        capabilities: plain.capabilities(),
        ..ChannelParts::default()
    })
}

#[tokio::test]
async fn pages_go_by_the_transport_and_the_hooks_are_asked_in_order() {
    let mut pair = Pair::new();
    let mover = Mover::default();
    let (source_diary, destination_diary) = (Diary::default(), Diary::default());
    let (near, far) = tokio::io::duplex(64 * 1024);
    let out = with_hooks(near, Box::new(SourceSide(mover.clone(), source_diary.clone())));
    let into = with_hooks(far, Box::new(DestinationSide(mover, destination_diary.clone())));
    let (sent, received) = pair.run(out, into).await;
    let (sent, received) = (sent.unwrap(), received.unwrap());
    check(&pair.destination_ram);
    assert_eq!(
        source_diary.entries(),
        [
            "register test.ram",
            "register test.rom",
            "before Setup",
            "after Setup with 0 pages",
            "before Round",
            "after Round with 64 pages",
            "before Finish",
            "after Finish with 0 pages",
        ]
    );
    assert_eq!(
        destination_diary.entries(),
        ["register test.ram", "register test.rom", "load hook", "load hook", "load hook"]
    );
    assert_eq!(received.info.ram.normal, 4, "only the ROM came in the stream");
    assert_eq!(sent.info.ram.normal, 68);
}
