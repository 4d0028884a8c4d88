//! A destination that is a script: it takes whatever a source with data channels says, and keeps it for a test to look at.

use std::{
    collections::HashSet,
    fs,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use mig_compress::Decompressor;
use mig_engine::{Capabilities, Deadlines, InputEnd, Parameters, Source, StreamWalk};
use mig_proto::{
    Command, DecodeError, Event, Name, Options, SectionKind, UnknownIterables,
    multifd::{HEADER_LEN, Hello, Method, RamPacket},
    peer::channels_from_here,
};
use mig_ram::{PAGE_SIZE, RamBlocks};
use mig_testkit::stream_channel;
use mig_transport::{Capabilities as Can, Channel, Connector, Endpoint, Error, FdIo, FdKind};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{TcpSocket, UnixStream},
    sync::mpsc,
    task::JoinSet,
};

use crate::{
    multifd_wire::Far,
    scripted::Writes,
    support::{TestGuest, whole},
};

/// What a migration that ends at once may take on a machine that is busy.
pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) const NAMES: [&[u8]; 2] = [b"test.ram", b"test.rom"];

/// What connections are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Unix,
    /// With buffers of 64 KiB; dropped, the far end resets it.
    Tcp,
    /// Holds so many bytes on the way, exactly.
    Memory(usize),
}

impl Line {
    async fn pair(self) -> (Channel, Box<dyn Far>) {
        match self {
            Self::Unix => {
                let (near, far) = UnixStream::pair().unwrap();
                (socket(near.into_std().unwrap().into(), "unix"), Box::new(far))
            }
            Self::Tcp => {
                let listener = TcpSocket::new_v4().unwrap();
                listener.set_recv_buffer_size(64 * 1024).unwrap();
                listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
                let listener = listener.listen(1).unwrap();
                let near = TcpSocket::new_v4().unwrap();
                near.set_send_buffer_size(64 * 1024).unwrap();
                let connect = near.connect(listener.local_addr().unwrap());
                let (near, far) = tokio::join!(connect, listener.accept());
                let (near, far) = (near.unwrap(), far.unwrap().0);
                far.set_zero_linger().unwrap();
                (socket(near.into_std().unwrap().into(), "tcp"), Box::new(far))
            }
            Self::Memory(bytes) => {
                let (near, far) = tokio::io::duplex(bytes);
                let (reader, writer) = tokio::io::split(near);
                let endpoint = Endpoint { transport: "memory", ..Endpoint::default() };
                (stream_channel(Some(reader), Some(writer), endpoint), Box::new(far))
            }
        }
    }
}

fn socket(fd: OwnedFd, transport: &'static str) -> Channel {
    let endpoint = Endpoint { transport, ..Endpoint::default() };
    FdIo::new(fd, FdKind::Socket, Interest::READABLE | Interest::WRITABLE)
        .unwrap()
        .socket_channel(Can::socket(), endpoint)
}

/// What happens to an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Taken,
    Refused,
    /// The connector's own deadline ends it.
    TimedOut,
    Never,
}

/// Connects to the script: the far end of each connection goes to `door`.
pub(crate) struct Dialling {
    main: Line,
    data: Line,
    /// By the number of the attempt; main is 0.
    answer: Box<dyn Fn(usize) -> Answer + Send + Sync>,
    dialled: Arc<AtomicUsize>,
    door: mpsc::UnboundedSender<Box<dyn Far>>,
}

pub(crate) type Arrivals = mpsc::UnboundedReceiver<Box<dyn Far>>;

impl Dialling {
    pub(crate) fn new(line: Line) -> (Self, Arrivals) {
        Self::answering(line, |_| Answer::Taken)
    }

    pub(crate) fn answering(
        line: Line,
        answer: impl Fn(usize) -> Answer + Send + Sync + 'static,
    ) -> (Self, Arrivals) {
        let (door, arrivals) = mpsc::unbounded_channel();
        let answer = Box::new(answer);
        (Self { main: line, data: line, answer, dialled: Arc::default(), door }, arrivals)
    }

    /// The same with another kind of main channel.
    pub(crate) fn with_main(mut self, main: Line) -> Self {
        self.main = main;
        self
    }

    pub(crate) fn dialled(&self) -> usize {
        self.counter()()
    }

    /// Tells how often somebody has tried to connect.
    pub(crate) fn counter(&self) -> impl Fn() -> usize + use<> {
        let dialled = Arc::clone(&self.dialled);
        move || dialled.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Connector for Dialling {
    async fn connect(&self) -> mig_transport::Result<Channel> {
        let nth = self.dialled.fetch_add(1, Ordering::SeqCst);
        match (self.answer)(nth) {
            Answer::Taken => {}
            Answer::Refused => {
                let refused = std::io::ErrorKind::ConnectionRefused.into();
                return Err(Error::io("connecting to the script", refused));
            }
            Answer::TimedOut => {
                let after = Duration::from_millis(20);
                tokio::time::sleep(after).await;
                return Err(Error::Deadline { doing: "connecting to the script".into(), after });
            }
            Answer::Never => std::future::pending().await,
        }
        let (near, far) = if nth == 0 { self.main } else { self.data }.pair().await;
        let _gone = self.door.send(far);
        Ok(near)
    }
}

/// What main said, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Ping(u32),
    Section(SectionKind, String),
    List,
    Page,
    Zero(usize, usize),
    Flush,
    Eos,
    Eof,
}

/// A packet of a data channel.
pub(crate) struct Packet {
    pub(crate) header: Box<[u8; HEADER_LEN]>,
    pub(crate) sync: bool,
    pub(crate) number: u64,
    pub(crate) block: usize,
    pub(crate) normal: Vec<(usize, Vec<u8>)>,
    pub(crate) zero: Vec<usize>,
}

/// What a data channel said, to its end at a packet's boundary.
pub(crate) struct Data {
    pub(crate) hello: [u8; Hello::LEN],
    pub(crate) packets: Vec<Packet>,
}

/// Everything that was heard.
pub(crate) struct Heard {
    pub(crate) main: Vec<Said>,
    pub(crate) data: Vec<Data>,
}

/// How the script answers a PING.
pub(crate) type Pong = fn(u32) -> Option<u32>;

pub(crate) fn echo(value: u32) -> Option<u32> {
    Some(value)
}

pub(crate) fn mute(_value: u32) -> Option<u32> {
    None
}

/// Takes a whole migration: main is the first to come. The verdict is said when all data channels have ended.
pub(crate) async fn hear(mut arrivals: Arrivals, method: Method, pong: Pong) -> Heard {
    let mut main = arrivals.recv().await.expect("main comes");
    let mut listening = JoinSet::new();
    let said = {
        let mut hearing = std::pin::pin!(hear_main(&mut main, pong));
        loop {
            tokio::select! {
                biased;
                far = arrivals.recv() => {
                    listening.spawn(hear_data(far.expect("the connector lives"), method));
                }
                said = &mut hearing => break said,
            }
        }
    };
    let mut data: Vec<_> = listening.join_all().await;
    data.sort_by_key(|data| data.hello[24]);
    // Nobody listens where there is no way back.
    let _deaf = main.write_all(&shut(0)).await;
    // The end of main comes last.
    let mut rest = Vec::new();
    main.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "{} bytes behind the end", rest.len());
    Heard { main: said, data }
}

pub(crate) fn shut(status: u32) -> Vec<u8> {
    [&[0, 1, 0, 4], &status.to_be_bytes()[..]].concat()
}

/// Reads main to the end of the description.
async fn hear_main(main: &mut Box<dyn Far>, pong: Pong) -> Vec<Said> {
    let mut options = Options::default();
    options.unknown_iterables = UnknownIterables::KeepRaw;
    let mut walk = StreamWalk::new(options);
    let (mut input, mut said) = (Vec::new(), Vec::new());
    while !walk.is_complete() {
        let end = match main.read_buf(&mut input).await.unwrap() {
            0 => InputEnd::Closed,
            _ => InputEnd::Open,
        };
        let mut pongs = Vec::new();
        let walked = walk.walk::<DecodeError>(&input, end, |piece| {
            let Some(event) = piece.event else { return Ok(()) };
            match event {
                Event::Command(Command::Ping(value)) => {
                    said.push(Said::Ping(value));
                    pongs.extend(pong(value));
                }
                Event::Section(header) => {
                    said.push(Said::Section(header.kind, header.idstr.to_string()));
                }
                Event::BlockList { .. } => said.push(Said::List),
                Event::Page(_) => said.push(Said::Page),
                Event::Zero(page) => {
                    said.push(Said::Zero(block_of(page.name), page.offset as usize / PAGE_SIZE));
                }
                Event::MultifdFlush(_) => said.push(Said::Flush),
                Event::EndOfRecords(_) => said.push(Said::Eos),
                Event::Eof { .. } => said.push(Said::Eof),
                _ => {}
            }
            Ok(())
        });
        let consumed = walked.expect("a sound stream").consumed;
        input.drain(..consumed);
        for value in pongs {
            let message = [&[0, 2, 0, 4], &value.to_be_bytes()[..]].concat();
            main.write_all(&message).await.unwrap();
        }
    }
    said
}

fn block_of(name: Name<'_>) -> usize {
    NAMES.iter().position(|known| *known == name.as_bytes()).expect("a block that was listed")
}

async fn hear_data(mut far: Box<dyn Far>, method: Method) -> Data {
    let mut hello = [0; Hello::LEN];
    far.read_exact(&mut hello).await.unwrap();
    let compression = match method {
        Method::Zlib => Some(mig_compress::Method::Zlib),
        Method::Zstd => Some(mig_compress::Method::Zstd),
        _ => None,
    };
    let mut decompressor = compression.map(|method| Decompressor::new(method).unwrap());
    let mut packets = Vec::new();
    while let Some(packet) = hear_packet(&mut far, method, decompressor.as_mut()).await {
        packets.push(packet);
    }
    Data { hello, packets }
}

/// The next packet; none at the end.
async fn hear_packet(
    far: &mut Box<dyn Far>,
    method: Method,
    decompressor: Option<&mut Decompressor>,
) -> Option<Packet> {
    let mut header = Box::new([0; HEADER_LEN]);
    if far.read(&mut header[..1]).await.unwrap() == 0 {
        return None;
    }
    far.read_exact(&mut header[1..]).await.unwrap();
    let packet = RamPacket::parse(&header, method).unwrap();
    let mut payload = vec![0; packet.payload_len()];
    far.read_exact(&mut payload).await.unwrap();
    let mut pages = vec![0; packet.normal().len() * PAGE_SIZE];
    match decompressor {
        Some(decompressor) if !pages.is_empty() => {
            decompressor.decompress(&payload, &mut pages).unwrap();
        }
        _ => pages.copy_from_slice(&payload),
    }
    let page = |offset: u64| offset as usize / PAGE_SIZE;
    let normal = packet.normal().zip(pages.chunks(PAGE_SIZE));
    Some(Packet {
        sync: packet.is_sync(),
        number: packet.packet_num(),
        block: packet.block().map_or(0, block_of),
        normal: normal.map(|(offset, bytes)| (page(offset), bytes.to_vec())).collect(),
        zero: packet.zero().map(page).collect(),
        header,
    })
}

/// What came between two marks.
#[derive(Default)]
pub(crate) struct Round<'a> {
    pub(crate) packets: Vec<&'a Packet>,
    /// Records on main.
    pub(crate) zeros: Vec<(usize, usize)>,
}

impl Heard {
    /// What came before each mark on main, which is `mark`. Every channel has one SYNC for each, and nothing behind the
    /// last; one that came later, and was announced, begins later.
    pub(crate) fn rounds(&self, mark: &Said) -> Vec<Round<'_>> {
        let mut rounds = vec![Round::default()];
        for said in &self.main {
            match said {
                Said::Zero(block, page) => {
                    rounds.last_mut().unwrap().zeros.push((*block, *page));
                }
                said if said == mark => rounds.push(Round::default()),
                _ => {}
            }
        }
        assert!(rounds.pop().unwrap().zeros.is_empty(), "zero pages behind the last mark");
        for data in &self.data {
            let id = data.hello[24];
            let said = |count| self.main.contains(&Said::Ping(channels_from_here(count)));
            let announced = id > 0 && said(id) && said(id + 1);
            let syncs = data.packets.iter().filter(|packet| packet.sync).count();
            let late = if announced { rounds.len().saturating_sub(syncs) } else { 0 };
            let mut round = rounds[late..].iter_mut();
            let mut now = round.next();
            for packet in &data.packets {
                let Some(open) = &mut now else { panic!("a packet behind the last mark") };
                match packet.sync {
                    true => now = round.next(),
                    false => open.packets.push(packet),
                }
            }
            assert!(now.is_none(), "SYNC is missing");
        }
        rounds
    }

    /// The memory that the destination has then. No page came twice between two marks.
    pub(crate) fn memory(&self, mark: &Said, pages: [usize; 2]) -> [Vec<u8>; 2] {
        let mut memory = pages.map(|pages| vec![0; pages * PAGE_SIZE]);
        for (number, round) in self.rounds(mark).iter().enumerate() {
            let mut came = HashSet::new();
            let mut land = |block: usize, page: usize, bytes: Option<&[u8]>| {
                assert!(came.insert((block, page)), "round {number}: {block}, {page} twice");
                let place = &mut memory[block][page * PAGE_SIZE..][..PAGE_SIZE];
                match bytes {
                    Some(bytes) => place.copy_from_slice(bytes),
                    None => place.fill(0),
                }
            };
            for packet in &round.packets {
                packet.normal.iter().for_each(|(page, b)| land(packet.block, *page, Some(b)));
                packet.zero.iter().for_each(|page| land(packet.block, *page, None));
            }
            round.zeros.iter().for_each(|(block, page)| land(*block, *page, None));
        }
        memory
    }

    /// Pages that came in packets: normal ones and zero ones.
    pub(crate) fn in_packets(&self) -> (usize, usize) {
        let packets = self.data.iter().flat_map(|data| &data.packets);
        packets.fold((0, 0), |(n, z), packet| (n + packet.normal.len(), z + packet.zero.len()))
    }

    /// ZERO records on main.
    pub(crate) fn zeros_on_main(&self) -> usize {
        self.main.iter().filter(|said| matches!(said, Said::Zero(..))).count()
    }
}

#[track_caller]
pub(crate) fn same_memory(here: &RamBlocks, there: &[Vec<u8>; 2]) {
    for (index, there) in there.iter().enumerate() {
        let mut now = vec![0; there.len()];
        whole(here, index).copy_out(&mut now);
        let differ = now.chunks(PAGE_SIZE).zip(there.chunks(PAGE_SIZE)).position(|(a, b)| a != b);
        assert_eq!(differ, None, "block {index}");
    }
}

/// Each fifth page is zero, the others are not, and half of each compresses.
pub(crate) fn populate(memory: &Writes, pages: [usize; 2]) {
    for (index, pages) in pages.into_iter().enumerate() {
        let block = whole(&memory.ram, index);
        let mut page = vec![0; PAGE_SIZE];
        for number in (0..pages).filter(|number| number % 5 != 0) {
            let mut state = (number as u32 + 1).wrapping_mul(0x9e37_79b9) | 1;
            for word in page[..PAGE_SIZE / 2].chunks_mut(4) {
                state = state.wrapping_mul(0x915f_77f5).wrapping_add(0x3039);
                word.copy_from_slice(&state.to_le_bytes());
            }
            block.sub(number * PAGE_SIZE, PAGE_SIZE).unwrap().copy_in(&page);
        }
    }
}

/// A guest of so many pages that writes nothing.
pub(crate) fn still_guest(pages: [usize; 2]) -> Arc<Writes> {
    let memory = Writes::with_pages(pages, |_, _| {}, None);
    populate(&memory, pages);
    memory
}

/// A source with data channels, a way back, and nothing but an empty remainder to end the passes.
pub(crate) fn source(
    memory: &Arc<Writes>,
    machine: &'static str,
    parameters: Parameters,
) -> Source {
    let guest = TestGuest { machine, ..TestGuest::new(&memory.diary) };
    Source::new(Arc::clone(memory) as _, Box::new(guest))
        .with_capabilities(multifd())
        .with_parameters(parameters)
}

pub(crate) fn multifd() -> Capabilities {
    let mut capabilities = Capabilities::default();
    capabilities.return_path = true;
    capabilities.multifd = true;
    capabilities
}

pub(crate) fn channels(count: u8) -> Parameters {
    let mut parameters = Parameters::default();
    parameters.downtime_limit = 0;
    parameters.multifd_channels = count;
    parameters
}

pub(crate) fn idle(limit: Duration) -> Deadlines {
    let mut deadlines = Deadlines::default();
    deadlines.idle = Some(limit);
    deadlines
}

/// Fails if a thread of a data channel that is there now stays.
pub(crate) fn no_lane_stays() {
    let begun = Instant::now();
    // Those of other tests in this process go as well.
    let mut there = lanes();
    while !there.is_empty() {
        assert!(begun.elapsed() < 6 * SOON, "left behind: {there:?}");
        std::thread::sleep(Duration::from_millis(5));
        let now = lanes();
        there.retain(|lane| now.contains(lane));
    }
}

fn lanes() -> Vec<PathBuf> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let tasks = tasks.map(|task| task.unwrap().path());
    tasks
        .filter(|task| {
            // It may be gone by now.
            fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("mig-send-"))
        })
        .collect()
}

/// Reads to the end, whatever comes; every connection of a source that is gone ends.
pub(crate) async fn drain(mut far: Box<dyn Far>) {
    let mut bytes = vec![0; 1 << 20];
    while far.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
}
