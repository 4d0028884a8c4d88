//! A source that is a script: the exact bytes of a main channel and its data channels, and the memory they must give.

use std::os::fd::OwnedFd;

use mig_compress::{Compressor, Level};
use mig_engine::{
    Capabilities, Deadlines, Destination, Error, Guest, MultifdCompression, Outcome, Parameters,
};
use mig_proto::{
    Command, Configuration, Name, RamWord, SectionHeader, SectionKind,
    encode::{self, Block},
    globalstate::{GlobalState, RunState},
    multifd::{self, Hello, Method, PacketPages},
};
use mig_ram::RamBlocks;
use mig_transport::{Capabilities as Can, Channel, Endpoint, FdIo, FdKind};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest},
    net::{TcpListener, TcpStream, UnixStream},
    sync::mpsc,
};

use crate::support::{Arriving, Diary, TestGuest, whole};

pub(crate) const PAGE: usize = 4096;
/// Pages of the two blocks.
pub(crate) const PAGES: [usize; 2] = [600, 16];
pub(crate) const NAMES: [&str; 2] = ["test.ram", "test.rom"];
const RAM_ID: u32 = 2;

/// How rounds end on the main channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    PerRound,
    PerSection,
}

/// Everything that will be sent, and what memory must hold after it.
pub(crate) struct Script {
    pub(crate) main: Vec<u8>,
    /// Without the hello.
    pub(crate) data: Vec<Vec<u8>>,
    pub(crate) hellos: Vec<[u8; 64]>,
    pub(crate) memory: [Vec<u8>; 2],
    mode: Mode,
    method: Method,
    compressors: Vec<Option<Compressor>>,
    number: u64,
}

pub(crate) fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap()
}

pub(crate) fn page_bytes(seed: u8, page: usize) -> Vec<u8> {
    // Not all of it compresses.
    (0..PAGE).map(|at| if at % 3 == 0 { seed } else { (at * 31 + page * 7) as u8 }).collect()
}

fn method_of(compression: MultifdCompression) -> Method {
    match compression {
        MultifdCompression::Zlib => Method::Zlib,
        MultifdCompression::Zstd => Method::Zstd,
        _ => Method::None,
    }
}

impl Script {
    /// START, and what belongs to it on each channel.
    pub(crate) fn new(channels: u8, mode: Mode, compression: MultifdCompression) -> Self {
        let method = method_of(compression);
        let mut main = encode::FILE_HEADER.to_vec();
        encode::configuration(&mut main, &Configuration::new(b"test-1.0").unwrap());
        encode::command(&mut main, &Command::OpenReturnPath);
        encode::command(&mut main, &Command::Ping(1));
        let compressor = |_| {
            let method = match method {
                Method::Zlib => mig_compress::Method::Zlib,
                Method::Zstd => mig_compress::Method::Zstd,
                _ => return None,
            };
            Some(Compressor::new(method, Level::new(method, 1).unwrap()).unwrap())
        };
        let mut script = Self {
            main,
            data: vec![Vec::new(); usize::from(channels)],
            hellos: (0..channels).map(|id| Hello { uuid: [0; 16], id }.encode()).collect(),
            memory: PAGES.map(|pages| vec![0; pages * PAGE]),
            mode,
            method,
            compressors: (0..channels).map(compressor).collect(),
            number: 0,
        };
        script.section(SectionKind::Start, "ram");
        let blocks = NAMES.iter().zip(PAGES);
        encode::block_list(
            &mut script.main,
            blocks.map(|(text, pages)| Block::new(name(text), (pages * PAGE) as u64)),
        );
        script.synchronise();
        script.end_ram();
        script
    }

    pub(crate) fn section(&mut self, kind: SectionKind, idstr: &str) {
        let (section_id, version_id) = if idstr == "ram" { (RAM_ID, 4) } else { (7, 3) };
        let header =
            SectionHeader { kind, section_id, idstr: name(idstr), instance_id: 0, version_id };
        encode::section(&mut self.main, &header);
    }

    /// EOS and footer.
    pub(crate) fn end_ram(&mut self) {
        encode::ram_word(&mut self.main, RamWord::EOS);
        self.main.extend_from_slice(&encode::footer(RAM_ID));
    }

    /// SYNC on each channel, and the mark of it on main where that is not EOS.
    pub(crate) fn synchronise(&mut self) {
        for channel in 0..self.data.len() {
            self.sync_packet(channel);
        }
        self.flush();
    }

    pub(crate) fn sync_packet(&mut self, channel: usize) {
        multifd::encode::sync_packet(&mut self.data[channel], self.number);
        self.number += 1;
    }

    pub(crate) fn flush(&mut self) {
        if self.mode == Mode::PerRound {
            encode::ram_word(&mut self.main, RamWord::MULTIFD_FLUSH);
        }
    }

    /// A PART, in which a round ends.
    pub(crate) fn end_round(&mut self) {
        self.section(SectionKind::Part, "ram");
        self.synchronise();
        self.end_ram();
    }

    /// END, and a synchronisation in it.
    pub(crate) fn end(&mut self) {
        self.section(SectionKind::End, "ram");
        self.synchronise();
        self.end_ram();
        self.devices();
    }

    /// What follows END.
    pub(crate) fn devices(&mut self) {
        for idstr in ["clock", "disk"] {
            self.section(SectionKind::Full, idstr);
            self.main.extend_from_slice(idstr.repeat(50).as_bytes());
            self.main.extend_from_slice(&encode::footer(7));
        }
        let global =
            GlobalState { run_state: RunState::Running, vm_was_suspended: Some(false) }.encode();
        let header = SectionHeader {
            kind: SectionKind::Full,
            section_id: 8,
            idstr: name("globalstate"),
            instance_id: 0,
            version_id: 1,
        };
        encode::section(&mut self.main, &header);
        self.main.extend_from_slice(&global);
        self.main.extend_from_slice(&encode::footer(8));
        self.main.push(encode::EOF);
        self.main.extend_from_slice(&encode::vmdescription_header(2));
        self.main.extend_from_slice(b"{}");
    }

    /// A packet; its header's bytes may be changed before it goes.
    pub(crate) fn packet_with(
        &mut self,
        channel: usize,
        block: usize,
        normal: &[(usize, u8)],
        zero: &[usize],
        change: impl FnOnce(&mut [u8]),
    ) {
        let mut pages = PacketPages::new();
        let mut raw = Vec::new();
        for (page, seed) in normal {
            pages.push_normal((page * PAGE) as u64).unwrap();
            let bytes = page_bytes(*seed, *page);
            if let Some(place) = self.memory[block].get_mut(page * PAGE..(page + 1) * PAGE) {
                place.copy_from_slice(&bytes);
            }
            raw.extend_from_slice(&bytes);
        }
        for page in zero {
            pages.push_zero((page * PAGE) as u64).unwrap();
            if let Some(place) = self.memory[block].get_mut(page * PAGE..(page + 1) * PAGE) {
                place.fill(0);
            }
        }
        let payload = match &mut self.compressors[channel] {
            Some(compressor) if !raw.is_empty() => {
                let mut payload = Vec::new();
                compressor.compress(&raw, &mut payload).unwrap();
                payload
            }
            _ => raw,
        };
        let head = multifd::encode::RamHead {
            packet_num: self.number,
            block: name(NAMES[block]),
            method: self.method,
            compressed_len: payload.len() as u32,
        };
        self.number += 1;
        let out = &mut self.data[channel];
        let start = out.len();
        multifd::encode::ram_packet(out, &head, &pages);
        change(&mut out[start..]);
        out.extend_from_slice(&payload);
    }

    pub(crate) fn packet(
        &mut self,
        channel: usize,
        block: usize,
        normal: &[(usize, u8)],
        zero: &[usize],
    ) {
        self.packet_with(channel, block, normal, zero, |_| {});
    }

    /// All of memory once, then some of it again, and again: as a guest that writes.
    pub(crate) fn rounds(&mut self) {
        let channels = self.data.len();
        for (number, first) in (0..PAGES[0]).step_by(100).enumerate() {
            let normal: Vec<_> = (first..first + 100).filter(|page| page % 5 != 0).collect();
            let normal: Vec<_> = normal.into_iter().map(|page| (page, 1)).collect();
            let zero: Vec<_> = (first..first + 100).filter(|page| page % 5 == 0).rev().collect();
            self.packet(number % channels, 0, &normal, &zero);
        }
        let rom: Vec<_> = (0..PAGES[1]).map(|page| (page, 2)).collect();
        self.packet(channels - 1, 1, &rom, &[]);
        self.end_round();
        for round in 3..6u8 {
            // Pages that were there, that were zero, and that become zero, on other channels than before.
            for channel in 0..channels {
                let mine = |page: &usize| page % channels == channel;
                let normal: Vec<_> = (7..PAGES[0]).step_by(3).filter(mine).take(120).collect();
                let zero: Vec<_> = normal.iter().map(|page| page - 1).take(8).collect();
                let zero: Vec<_> = zero.into_iter().filter(|page| page % 3 != 1).collect();
                let normal: Vec<_> = normal.into_iter().map(|page| (page, round)).collect();
                self.packet(channel, 0, &normal, &zero);
            }
            self.end_round();
        }
        self.packet(0, 0, &[(3, 9), (2, 9)], &[599]);
        self.end();
    }
}

/// Both halves of what a test holds of a connection.
pub(crate) trait Far: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Far for T {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tcp,
    Unix,
}

pub(crate) fn channel(fd: OwnedFd, transport: &'static str) -> Channel {
    let endpoint = Endpoint { transport, ..Endpoint::default() };
    FdIo::new(fd, FdKind::Socket, Interest::READABLE | Interest::WRITABLE)
        .unwrap()
        .socket_channel(Can::socket(), endpoint)
}

pub(crate) async fn tcp_pair() -> (Channel, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (far, near) = tokio::join!(TcpStream::connect(address), listener.accept());
    let near = near.unwrap().0.into_std().unwrap();
    (channel(near.into(), "tcp"), far.unwrap())
}

/// A connection as a listening socket would give it, and its other end.
pub(crate) async fn connection(kind: Kind) -> (Channel, Box<dyn Far>) {
    match kind {
        Kind::Tcp => {
            let (near, far) = tcp_pair().await;
            (near, Box::new(far))
        }
        Kind::Unix => {
            let (near, far) = UnixStream::pair().unwrap();
            (channel(near.into_std().unwrap().into(), "unix"), Box::new(far))
        }
    }
}

/// A destination for scripts.
pub(crate) struct Receiving {
    pub(crate) destination: Destination,
    pub(crate) ram: std::sync::Arc<RamBlocks>,
    pub(crate) diary: Diary,
    pub(crate) listener: Arriving,
    pub(crate) door: mpsc::UnboundedSender<Channel>,
}

impl Receiving {
    pub(crate) fn new(channels: u8, compression: MultifdCompression) -> Self {
        let diary = Diary::default();
        Self::with_guest(channels, compression, TestGuest::new(&diary))
    }

    pub(crate) fn with_guest(
        channels: u8,
        compression: MultifdCompression,
        guest: TestGuest,
    ) -> Self {
        let diary = guest.diary.clone();
        Self::with_any_guest(channels, compression, Box::new(guest), diary)
    }

    /// `diary` is the guest's.
    pub(crate) fn with_any_guest(
        channels: u8,
        compression: MultifdCompression,
        guest: Box<dyn Guest>,
        diary: Diary,
    ) -> Self {
        let blocks = NAMES
            .iter()
            .zip(PAGES)
            .map(|(name, pages)| mig_ram::RamBlock::new(*name, (pages * PAGE) as u64).unwrap());
        let ram = std::sync::Arc::new(RamBlocks::new(blocks).unwrap());
        let mut capabilities = Capabilities::default();
        capabilities.multifd = true;
        let mut parameters = Parameters::default();
        parameters.multifd_channels = channels;
        parameters.multifd_compression = compression;
        let destination = Destination::new(ram.clone(), guest)
            .with_capabilities(capabilities)
            .with_parameters(parameters)
            .with_deadlines(deadlines());
        let listener = Arriving::new([]);
        let door = listener.door();
        Self { destination, ram, diary, listener, door }
    }

    /// Lets the script's channels come in this order, `None` being main, sends it, and reads what is said to that.
    pub(crate) async fn run(
        &mut self,
        script: &Script,
        order: &[Option<usize>],
        kind: Kind,
    ) -> (Result<Outcome, Error>, Option<u32>) {
        let source = play(script, self.door.clone(), order, kind);
        tokio::join!(self.destination.run(&mut self.listener), source)
    }

    /// Compares memory with what it must be.
    pub(crate) fn check(&self, script: &Script) {
        for (index, expected) in script.memory.iter().enumerate() {
            let mut now = vec![0; expected.len()];
            whole(&self.ram, index).copy_out(&mut now);
            let differ = now.chunks(PAGE).zip(expected.chunks(PAGE)).position(|(a, b)| a != b);
            assert_eq!(differ, None, "block {index}");
        }
    }
}

/// Lets the script's channels come in this order, `None` being main, sends it, and reads what is said to that.
pub(crate) async fn play(
    script: &Script,
    door: mpsc::UnboundedSender<Channel>,
    order: &[Option<usize>],
    kind: Kind,
) -> Option<u32> {
    let mut main = None;
    let mut data = Vec::new();
    for who in order {
        let (near, mut far) = connection(kind).await;
        door.send(near).unwrap();
        match who {
            None => main = Some(far),
            Some(id) => {
                far.write_all(&script.hellos[*id]).await.unwrap();
                data.push((*id, far));
            }
        }
    }
    let sending = data.into_iter().map(|(id, mut far)| {
        let bytes = script.data[id].clone();
        tokio::spawn(async move {
            // A destination that failed does not read on.
            let _sent = far.write_all(&bytes).await;
            far
        })
    });
    let sending: Vec<_> = sending.collect();
    let main = main.expect("a main channel");
    let said = talk(main, &script.main).await;
    for task in sending {
        drop(task.await.unwrap());
    }
    said
}

/// Writes to main and reads from it at the same time, to the verdict or the end; answers the verdict.
pub(crate) async fn talk(main: Box<dyn Far>, bytes: &[u8]) -> Option<u32> {
    let (reader, mut writer) = tokio::io::split(main);
    let bytes = bytes.to_vec();
    let writing = tokio::spawn(async move {
        let _sent = writer.write_all(&bytes).await;
        writer
    });
    let verdict = listen(reader).await;
    drop(writing.await.unwrap());
    verdict
}

/// Reads the way back to the verdict or to its end (docs/wire/stream.md §7).
pub(crate) async fn listen(mut reader: impl AsyncRead + Unpin) -> Option<u32> {
    const SHUT: u16 = 1;
    loop {
        let kind = reader.read_u16().await.ok()?;
        let mut body = vec![0; usize::from(reader.read_u16().await.ok()?)];
        reader.read_exact(&mut body).await.ok()?;
        if kind == SHUT {
            return Some(u32::from_be_bytes(body.try_into().unwrap()));
        }
    }
}

/// Short enough for a test of them, long enough for a slow machine.
pub(crate) fn deadlines() -> Deadlines {
    let mut deadlines = Deadlines::default();
    deadlines.idle = Some(std::time::Duration::from_secs(30));
    deadlines
}
