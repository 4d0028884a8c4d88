//! A small migration between two of our own ends, step by step.

use std::sync::Arc;

use mig_transport::{
    Channel, Connector, Error, Listener, RamBlockInfo, RamHooks, Receiver, Region, Result, Sender,
    VecRegion, WindowReason, address::InetAddress,
};
use mig_transport_rdma::{RdmaConnector, RdmaListener, RdmaOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::guarded;

pub(crate) const MIB: usize = 1 << 20;
pub(crate) const HEAD: &[u8] = b"before the pages";
const TAIL: &[u8] = b"after the pages";

/// Guest memory of two blocks.
pub(crate) struct Guest {
    pub(crate) memory: Vec<Arc<VecRegion>>,
}

impl Guest {
    /// All zero.
    pub(crate) fn empty() -> Self {
        Self { memory: vec![VecRegion::zeroed(3 * MIB), VecRegion::zeroed(2 * MIB)] }
    }

    /// No two pages alike, and a few zero.
    pub(crate) fn full() -> Self {
        let guest = Self::empty();
        for (block, region) in guest.memory.iter().enumerate() {
            let region: &dyn Region = &**region;
            for page in (0..region.len() / 4096).filter(|page| page % 16 != 3) {
                let mut bytes = vec![page as u8 | 1; 4096];
                bytes[..16].copy_from_slice(&((block << 32 | page) as u128).to_le_bytes());
                region.copy_in_at(page * 4096, &bytes).unwrap();
            }
        }
        guest
    }

    pub(crate) fn blocks(&self) -> Vec<RamBlockInfo> {
        let block = |(index, region): (usize, &Arc<VecRegion>)| RamBlockInfo {
            idstr: format!("block{index}"),
            used_length: region.len() as u64,
            region: Arc::clone(region) as Arc<dyn Region>,
        };
        self.memory.iter().enumerate().map(block).collect()
    }

    pub(crate) fn bytes(&self) -> Vec<Vec<u8>> {
        let read = |region: &Arc<VecRegion>| {
            let region: &dyn Region = &**region;
            let mut bytes = vec![0; region.len()];
            region.copy_out_at(0, &mut bytes).unwrap();
            bytes
        };
        self.memory.iter().map(read).collect()
    }

    /// Whether nobody but the guest has its memory, so that no device can.
    pub(crate) fn is_free(&self) -> bool {
        self.memory.iter().all(|region| Arc::strong_count(region) == 1)
    }
}

/// What the tests start from: everything quick to notice.
pub(crate) fn options() -> RdmaOptions {
    RdmaOptions::with(|options| options.closing_grace = std::time::Duration::from_secs(2))
}

pub(crate) async fn listener(options: RdmaOptions) -> (RdmaListener, InetAddress) {
    let address = InetAddress::new(crate::address().to_string(), 0);
    let listener = RdmaListener::bind(&address, options).await.unwrap();
    let at = listener.local_addresses().remove(0);
    let port = at.rsplit_once(':').unwrap().1.parse().unwrap();
    (listener, InetAddress::new(crate::address().to_string(), port))
}

/// A channel's parts.
pub(crate) struct Ends {
    pub(crate) hooks: Box<dyn RamHooks>,
    pub(crate) receiver: Option<Receiver>,
    pub(crate) sender: Option<Sender>,
}

impl Ends {
    pub(crate) fn of(mut channel: Channel) -> Self {
        Self {
            hooks: channel.take_ram_hooks(),
            receiver: channel.take_receiver().ok(),
            sender: channel.take_sender().ok(),
        }
    }

    pub(crate) async fn register_blocks(&mut self, guest: &Guest) -> Result<()> {
        for block in guest.blocks() {
            self.hooks.register_block(&block).await?;
        }
        Ok(())
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let sender = self.sender.as_mut().expect("an end that writes");
        let doing = |source| Error::io("writing", source);
        sender.write_all(bytes).await.map_err(doing)?;
        sender.flush().await.map_err(doing)
    }

    pub(crate) async fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        let receiver = self.receiver.as_mut().expect("an end that reads");
        receiver.read_exact(bytes).await.map_err(|source| Error::io("reading", source))?;
        Ok(())
    }

    /// Head, blocks and the first window.
    pub(crate) async fn set_up(&mut self, guest: &Guest) -> Result<()> {
        self.write(HEAD).await?;
        self.register_blocks(guest).await?;
        self.hooks.before_iterate(WindowReason::Setup).await?;
        self.hooks.after_iterate(WindowReason::Setup).await
    }

    /// What a source does before its first byte leaves.
    pub(crate) async fn set_up_only(mut self, guest: &Guest) -> Result<()> {
        self.register_blocks(guest).await?;
        self.hooks.before_iterate(WindowReason::Setup).await
    }

    /// All memory.
    pub(crate) async fn round(&mut self, guest: &Guest) -> Result<()> {
        self.hooks.before_iterate(WindowReason::Round).await?;
        for (index, block) in guest.memory.iter().enumerate() {
            self.hooks.save_pages(index, 0, block.len() as u64).await?;
        }
        self.hooks.after_iterate(WindowReason::Round).await
    }

    pub(crate) async fn finish(&mut self) -> Result<()> {
        self.write(TAIL).await?;
        let sender = self.sender.as_mut().expect("an end that writes");
        sender.shutdown().await.map_err(|source| Error::io("closing", source))
    }

    /// What a source does, from beginning to end.
    pub(crate) async fn source(mut self, guest: &Guest) -> Result<()> {
        self.set_up(guest).await?;
        self.round(guest).await?;
        self.finish().await
    }

    /// What a destination does, from beginning to end.
    pub(crate) async fn destination(mut self, guest: &Guest) -> Result<()> {
        let mut head = vec![0; HEAD.len()];
        self.read(&mut head).await?;
        assert_eq!(head, HEAD);
        self.register_blocks(guest).await?;
        self.hooks.load_hook().await?;
        self.hooks.load_hook().await?;
        let mut tail = vec![0; TAIL.len()];
        self.read(&mut tail).await?;
        assert_eq!(tail, TAIL);
        self.hooks.release().await
    }
}

/// One whole migration through this listener, checked byte by byte.
pub(crate) async fn migrate(
    listener: &mut RdmaListener,
    address: &InetAddress,
    options: RdmaOptions,
) {
    let (from, into) = (Guest::full(), Guest::empty());
    let connector = RdmaConnector::new(address.clone(), options);
    guarded("a sound migration", async {
        let (source, destination) = tokio::join!(
            async { Ends::of(connector.connect().await.unwrap()).source(&from).await },
            async { Ends::of(listener.accept().await.unwrap()).destination(&into).await },
        );
        source.unwrap();
        destination.unwrap();
    })
    .await;
    assert!(from.bytes() == into.bytes(), "memory differs");
    guarded("letting go of the memory", async {
        while !(from.is_free() && into.is_free()) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}
