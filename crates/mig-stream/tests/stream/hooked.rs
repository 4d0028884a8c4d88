//! A transport that carries pages itself: the hooks reach the stream's user through the channel, and a page that is
//! delayed is in place when the window closes.

use std::sync::Arc;

use async_trait::async_trait;
use mig_stream::{Stream, StreamOptions};
use mig_transport::{
    Channel, ChannelParts, NoRamHooks, RamBlockInfo, RamHooks, Region, RegionSlice, Result,
    SavePages, VecRegion, WindowReason,
};

use crate::support::{contents, region};

/// Writes pages into the other end's memory, as RDMA does, but not before the window closes.
struct DirectWrites {
    near: Vec<RamBlockInfo>,
    far: Vec<Arc<dyn Region>>,
    window: Option<WindowReason>,
    delayed: Vec<(usize, usize, usize)>,
}

#[async_trait]
impl RamHooks for DirectWrites {
    async fn register_block(&mut self, block: &RamBlockInfo) -> Result<()> {
        self.near.push(block.clone());
        Ok(())
    }

    async fn before_iterate(&mut self, reason: WindowReason) -> Result<()> {
        assert_eq!(self.window.replace(reason), None, "one window at a time");
        Ok(())
    }

    async fn save_pages(&mut self, block: usize, offset: u64, len: u64) -> Result<SavePages> {
        // Blocks it does not know go in the stream.
        if block >= self.far.len() || self.window.is_none() {
            return Ok(SavePages::NotSupported);
        }
        self.delayed.push((block, usize::try_from(offset).unwrap(), usize::try_from(len).unwrap()));
        Ok(SavePages::Delayed { zero_pages: 0 })
    }

    async fn after_iterate(&mut self, reason: WindowReason) -> Result<()> {
        assert_eq!(self.window.take(), Some(reason));
        for (block, offset, len) in self.delayed.drain(..) {
            let bytes = contents(&self.near[block].region, offset, len);
            RegionSlice::new(Arc::clone(&self.far[block]), offset, len).unwrap().copy_in(&bytes);
        }
        Ok(())
    }

    async fn load_hook(&mut self) -> Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn delayed_pages_are_in_place_when_the_window_closes() {
    let near = region(3 * 4096);
    let far: Arc<dyn Region> = VecRegion::zeroed(3 * 4096);
    let hooks =
        DirectWrites { near: vec![], far: vec![far.clone()], window: None, delayed: vec![] };
    let channel =
        Channel::new(ChannelParts { hooks: Some(Box::new(hooks)), ..ChannelParts::default() });
    let mut stream = Stream::open(channel, StreamOptions::default());

    let mut hooks = stream.take_ram_hooks();
    assert!(hooks.active());
    let info = |idstr: &str| RamBlockInfo {
        idstr: idstr.into(),
        used_length: 3 * 4096,
        region: near.clone(),
    };
    hooks.register_block(&info("pc.ram")).await.unwrap();
    hooks.register_block(&info("rom")).await.unwrap();
    assert_eq!(hooks.save_pages(0, 0, 4096).await.unwrap(), SavePages::NotSupported);
    hooks.before_iterate(WindowReason::Round).await.unwrap();
    assert_eq!(
        hooks.save_pages(0, 4096, 4096).await.unwrap(),
        SavePages::Delayed { zero_pages: 0 }
    );
    assert_eq!(hooks.save_pages(1, 0, 4096).await.unwrap(), SavePages::NotSupported);
    assert_eq!(contents(&far, 0, 3 * 4096), vec![0; 3 * 4096]);
    hooks.after_iterate(WindowReason::Round).await.unwrap();
    assert_eq!(contents(&far, 4096, 4096), contents(&near, 4096, 4096));
    assert_eq!(contents(&far, 0, 4096), vec![0; 4096]);
}

#[tokio::test]
async fn other_transports_answer_not_supported() {
    let mut stream = Stream::open(Channel::new(ChannelParts::default()), StreamOptions::default());
    let mut hooks = stream.take_ram_hooks();
    assert_eq!(hooks.active(), NoRamHooks.active());
    assert_eq!(hooks.save_pages(0, 0, 4096).await.unwrap(), SavePages::NotSupported);
}
