//! Capability `zero-copy-send` over real sockets of the loopback, where the kernel copies whatever it is asked: the guest
//! arrives whole, and everybody is told.

use std::{
    fmt::Debug,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use mig_engine::{
    Capabilities, Destination, Error, MultifdCompression, Outcome, Parameters, Source,
};
use mig_ram::{RamBlock, RamBlocks};
use mig_testkit::pattern;
use mig_transport::{
    Blame, Capabilities as Can, Channel, Connector, Endpoint, FdIo, FdKind, Listener,
};
use tokio::{
    io::Interest,
    net::{TcpListener, TcpStream},
};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::support::{BlackHole, Diary, TestGuest, whole};

const RAM_BYTES: usize = 24 << 20;

fn channel(socket: TcpStream) -> Channel {
    let socket: OwnedFd = socket.into_std().unwrap().into();
    let interest = Interest::READABLE | Interest::WRITABLE;
    let io = FdIo::new(socket, FdKind::Socket, interest).unwrap();
    io.socket_channel(Can::socket(), Endpoint::default())
}

struct Towards(SocketAddr);

#[async_trait]
impl Connector for Towards {
    async fn connect(&self) -> mig_transport::Result<Channel> {
        Ok(channel(TcpStream::connect(self.0).await.unwrap()))
    }
}

struct At(TcpListener);

#[async_trait]
impl Listener for At {
    async fn accept(&mut self) -> mig_transport::Result<Channel> {
        Ok(channel(self.0.accept().await.unwrap().0))
    }

    fn local_addresses(&self) -> Vec<String> {
        vec!["tcp:test".into()]
    }
}

/// Keeps the warnings of this thread.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Visit for Warnings {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.lock().unwrap().push(format!("{field}: {value:?}"));
    }
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

fn ram() -> Arc<RamBlocks> {
    Arc::new(RamBlocks::new([RamBlock::new("test.ram", RAM_BYTES as u64).unwrap()]).unwrap())
}

fn asked() -> Capabilities {
    let mut capabilities = Capabilities::default();
    (capabilities.return_path, capabilities.multifd) = (true, true);
    capabilities.zero_copy_send = true;
    capabilities
}

async fn migrate(
    source: &mut Source,
    destination: &mut Destination,
) -> (Result<Outcome, Error>, Result<Outcome, Error>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let towards = Towards(listener.local_addr().unwrap());
    let mut at = At(listener);
    tokio::join!(source.run(&towards), destination.run(&mut at))
}

#[tokio::test]
async fn a_kernel_that_copies_is_found_out_and_told_of() {
    let (from, to) = (ram(), ram());
    pattern::fill(&whole(&from, 0), 5);
    let (here, there) = (Diary::default(), Diary::default());
    let mut source = Source::new(from, Box::new(TestGuest::new(&here))).with_capabilities(asked());
    let mut capabilities = Capabilities::default();
    capabilities.multifd = true;
    let mut destination = Destination::new(to.clone(), Box::new(TestGuest::new(&there)))
        .with_capabilities(capabilities);

    let warnings = Warnings::default();
    let heard = tracing::subscriber::set_default(warnings.clone());
    let (sent, received) = migrate(&mut source, &mut destination).await;
    drop(heard);
    let info = sent.unwrap().info;
    received.unwrap();
    pattern::check(&whole(&to, 0), 5).unwrap();

    let told = info.zero_copy_send.as_ref().unwrap();
    assert!(!told.in_force, "{told:?}");
    let reason = told.reason.as_deref().unwrap();
    assert!(reason.starts_with("data channel ") && reason.contains("copied all"), "{reason}");
    assert_eq!(told.zero_copied_bytes, 0);
    // Each of two channels finds out for itself, and the last completions were waited for.
    assert!(told.copied_bytes >= 4 << 20, "{told:?}");
    assert_eq!(told.copied_bytes + told.ordinary_bytes, info.ram.normal_bytes, "{told:?}");
    let missed = info.ram.dirty_sync_missed_zero_copy;
    assert!(missed >= 1 && missed <= info.ram.dirty_sync_count, "{:?}", info.ram);
    let json = serde_json::to_value(&info).unwrap();
    assert_eq!(json["zero-copy-send"]["in-force"], false);
    let warnings = warnings.0.lock().unwrap();
    let about = warnings.iter().filter(|text| text.contains("zero-copy-send is not in force"));
    assert_eq!(about.count(), 1, "told once: {warnings:?}");
}

#[tokio::test]
async fn where_it_cannot_be_nothing_is_sent() {
    for (multifd, compression) in
        [(false, MultifdCompression::None), (true, MultifdCompression::Zlib)]
    {
        let mut capabilities = asked();
        capabilities.multifd = multifd;
        let mut parameters = Parameters::default();
        parameters.multifd_compression = compression;
        let diary = Diary::default();
        let mut source = Source::new(ram(), Box::new(TestGuest::new(&diary)))
            .with_capabilities(capabilities)
            .with_parameters(parameters);
        // Never connects: it is not even tried.
        let error = source.run(&BlackHole).await.unwrap_err();
        assert_eq!(error.blame(), Blame::Misuse);
        assert!(error.to_string().contains("zero-copy-send"), "{error}");
    }
}
