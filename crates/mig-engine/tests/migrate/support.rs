//! A guest that writes down what happens to it, and ways for two ends to meet.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use mig_engine::{
    Capabilities, Destination, DeviceSection, Error, Guest, GuestError, Outcome, Source,
};
use mig_proto::globalstate::RunState;
use mig_ram::{GuestMemory, RamBlock, RamBlocks};
use mig_testkit::{memory_pair, pattern};
use mig_transport::{Channel, Connector, Listener, RegionSlice};
use tokio::sync::mpsc;

pub(crate) const RAM_BYTES: u64 = 64 * 4096;

/// What happened to a guest, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    pub(crate) fn note(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    pub(crate) fn entries(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn has(&self, what: &str) -> bool {
        self.entries().iter().any(|entry| entry == what)
    }

    /// Whether the guest runs, by what happened to it last.
    pub(crate) fn runs(&self) -> bool {
        match self
            .entries()
            .iter()
            .rev()
            .find(|e| ["stop", "resume", "start"].contains(&e.as_str()))
        {
            Some(last) => last != "stop",
            None => false,
        }
    }
}

/// A guest with two devices, and more where they are wanted.
pub(crate) struct TestGuest {
    pub(crate) diary: Diary,
    pub(crate) machine: &'static str,
    pub(crate) refuses: Option<&'static str>,
    pub(crate) more_devices: usize,
}

impl TestGuest {
    pub(crate) fn new(diary: &Diary) -> Self {
        Self { diary: diary.clone(), machine: "test-1.0", refuses: None, more_devices: 0 }
    }
}

impl Guest for TestGuest {
    fn machine_type(&self) -> String {
        self.machine.into()
    }

    fn stop(&mut self) -> Result<(), GuestError> {
        self.diary.note("stop");
        Ok(())
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.diary.note("resume");
        Ok(())
    }

    fn save_devices(&mut self) -> Result<Vec<DeviceSection>, GuestError> {
        self.diary.note("save");
        let more = (0..self.more_devices).map(|number| format!("more-{number}"));
        Ok(["clock", "disk"]
            .map(String::from)
            .into_iter()
            .chain(more)
            .map(|idstr| DeviceSection {
                payload: idstr.repeat(50).into_bytes(),
                idstr,
                instance_id: 0,
                version_id: 3,
            })
            .collect())
    }

    fn load_device(&mut self, section: &DeviceSection) -> Result<(), GuestError> {
        if self.refuses == Some(section.idstr.as_str()) {
            return Err("it does not fit".into());
        }
        assert_eq!(section.payload, section.idstr.repeat(50).into_bytes());
        assert_eq!((section.instance_id, section.version_id), (0, 3));
        self.diary.note(format!("load {}", section.idstr));
        Ok(())
    }

    fn start(&mut self, state: RunState) -> Result<(), GuestError> {
        assert_eq!(state, RunState::Running);
        self.diary.note("start");
        Ok(())
    }
}

pub(crate) fn ram() -> Arc<RamBlocks> {
    let main = RamBlock::new("test.ram", RAM_BYTES).unwrap();
    let rom = RamBlock::new("test.rom", 4 * 4096).unwrap();
    Arc::new(RamBlocks::new([main, rom]).unwrap())
}

pub(crate) fn whole(ram: &RamBlocks, index: usize) -> RegionSlice {
    let block = ram.block(index).unwrap();
    block.slice(0, usize::try_from(block.used_length).unwrap()).unwrap()
}

/// Half of the main block and all of the ROM hold a pattern, the rest is zero.
pub(crate) fn fill(ram: &RamBlocks) {
    pattern::fill(&whole(ram, 0).sub(0, 32 * 4096).unwrap(), 1);
    pattern::fill(&whole(ram, 1), 2);
}

pub(crate) fn check(ram: &RamBlocks) {
    pattern::check(&whole(ram, 0).sub(0, 32 * 4096).unwrap(), 1).unwrap();
    pattern::check(&whole(ram, 1), 2).unwrap();
    let mut rest = vec![1; 32 * 4096];
    whole(ram, 0).sub(32 * 4096, 32 * 4096).unwrap().copy_out(&mut rest);
    assert!(rest.iter().all(|byte| *byte == 0), "the untouched half is zero");
}

/// Both ends of a migration, before it runs.
pub(crate) struct Pair {
    pub(crate) source: Source,
    pub(crate) destination: Destination,
    pub(crate) source_ram: Arc<RamBlocks>,
    pub(crate) destination_ram: Arc<RamBlocks>,
    pub(crate) source_diary: Diary,
    pub(crate) destination_diary: Diary,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let destination_diary = Diary::default();
        let guest = TestGuest::new(&destination_diary);
        Self::with_destination_guest(guest)
    }

    /// With so many devices beside the usual ones.
    pub(crate) fn with_more_devices(more_devices: usize) -> Self {
        let mut pair = Self::new();
        let guest = TestGuest { more_devices, ..TestGuest::new(&pair.source_diary) };
        pair.source = Source::new(pair.source_ram.clone(), Box::new(guest));
        pair
    }

    pub(crate) fn with_destination_guest(guest: TestGuest) -> Self {
        let (source_ram, destination_ram) = (ram(), ram());
        fill(&source_ram);
        let source_diary = Diary::default();
        let destination_diary = guest.diary.clone();
        let source = Source::new(source_ram.clone(), Box::new(TestGuest::new(&source_diary)));
        let destination = Destination::new(destination_ram.clone(), Box::new(guest));
        Self { source, destination, source_ram, destination_ram, source_diary, destination_diary }
    }

    /// Runs both ends over these channels.
    pub(crate) async fn run(
        &mut self,
        out: Channel,
        into: Channel,
    ) -> (Result<Outcome, Error>, Result<Outcome, Error>) {
        let connector = Ready::new(out);
        let mut listener = Arriving::new([into]);
        tokio::join!(self.source.run(&connector), self.destination.run(&mut listener))
    }
}

pub(crate) fn one_way() -> Capabilities {
    Capabilities::default()
}

/// Channels of a size that makes both ends wait for each other.
pub(crate) fn channels() -> (Channel, Channel) {
    memory_pair(8 * 1024)
}

/// Connects to a channel that is there.
pub(crate) struct Ready(Mutex<Option<Channel>>);

impl Ready {
    pub(crate) fn new(channel: Channel) -> Self {
        Self(Mutex::new(Some(channel)))
    }
}

#[async_trait]
impl Connector for Ready {
    async fn connect(&self) -> mig_transport::Result<Channel> {
        Ok(self.0.lock().unwrap().take().expect("connected once"))
    }
}

/// Never connects.
pub(crate) struct BlackHole;

#[async_trait]
impl Connector for BlackHole {
    async fn connect(&self) -> mig_transport::Result<Channel> {
        std::future::pending().await
    }
}

/// Accepts channels in order, then waits for ever.
pub(crate) struct Arriving(mpsc::UnboundedReceiver<Channel>, mpsc::UnboundedSender<Channel>);

impl Arriving {
    pub(crate) fn new(channels: impl IntoIterator<Item = Channel>) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        for channel in channels {
            sender.send(channel).unwrap();
        }
        Self(receiver, sender)
    }

    /// Lets another one arrive later.
    pub(crate) fn door(&self) -> mpsc::UnboundedSender<Channel> {
        self.1.clone()
    }
}

#[async_trait]
impl Listener for Arriving {
    async fn accept(&mut self) -> mig_transport::Result<Channel> {
        Ok(self.0.recv().await.expect("the door stays open"))
    }

    fn local_addresses(&self) -> Vec<String> {
        vec!["memory:test".into()]
    }
}

/// A half of one channel as a half of another.
pub(crate) struct Half<T>(pub(crate) T);

mod half {
    use std::{
        io,
        pin::Pin,
        task::{Context, Poll},
    };

    use mig_transport::{ReceiveHalf, Receiver, SendHalf, Sender};
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Half;

    impl AsyncRead for Half<Receiver> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    impl AsyncWrite for Half<Sender> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    impl ReceiveHalf for Half<Receiver> {}
    impl SendHalf for Half<Sender> {}
}

/// A zlib stream (RFC 1950) of these bytes as they are.
pub(crate) fn stored_zlib(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).unwrap();
    let (mut a, mut b) = (1u32, 0u32);
    for byte in bytes {
        a = (a + u32::from(*byte)) % 65521;
        b = (b + a) % 65521;
    }
    let mut out = vec![0x78, 0x01, 0x01];
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&(!len).to_le_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(&(b << 16 | a).to_be_bytes());
    out
}
