//! Small streams that hold every kind of item and record, built with the encoder.
//!
//! Pages have 1 KiB, so that a stream with every record stays small enough to damage each bit.

use mig_proto::encode::{self, Block, ContinueMemory};
use mig_proto::{
    Advise, Command, Configuration, Deflated, Delta, DiscardRange, Name, Options, RamWord,
    SectionHeader, SectionKind,
};

pub(crate) const PAGE: usize = 1024;
pub(crate) const UUID: [u8; 16] = [0x5a; 16];
pub(crate) const RAM_ID: u32 = 2;
pub(crate) const JSON: &[u8] = br#"{"page_size": 1024, "devices": []}"#;

pub(crate) fn name(text: &str) -> Name<'_> {
    Name::try_from(text).expect("a name")
}

pub(crate) fn pc_ram() -> Name<'static> {
    name("pc.ram")
}

/// The options that the small streams need: none, CONFIGURATION says it all.
pub(crate) fn options() -> Options {
    Options::default()
}

pub(crate) fn preamble() -> Vec<u8> {
    let mut out = encode::FILE_HEADER.to_vec();
    let configuration = Configuration::new(b"pc-q35-10.0")
        .expect("short")
        .with_uuid(UUID)
        .with_capabilities([name("x-ignore-shared"), name("xbzrle")])
        .with_target_page_bits(10);
    encode::configuration(&mut out, &configuration);
    out
}

pub(crate) fn section(out: &mut Vec<u8>, kind: SectionKind, id: u32, idstr: &str, version: u32) {
    let header = SectionHeader {
        kind,
        section_id: id,
        idstr: name(idstr),
        instance_id: 0,
        version_id: version,
    };
    encode::section(out, &header);
}

pub(crate) fn ram(out: &mut Vec<u8>, kind: SectionKind) {
    section(out, kind, RAM_ID, "ram", 4);
}

pub(crate) fn end_of_records(out: &mut Vec<u8>) {
    encode::ram_word(out, RamWord::EOS);
    out.extend_from_slice(&encode::footer(RAM_ID));
}

pub(crate) fn device(out: &mut Vec<u8>, id: u32, idstr: &str, payload: &[u8]) {
    section(out, SectionKind::Full, id, idstr, 1);
    out.extend_from_slice(payload);
    out.extend_from_slice(&encode::footer(id));
}

/// START with the block list of two blocks, of 16 and 4 pages.
pub(crate) fn start(out: &mut Vec<u8>) {
    ram(out, SectionKind::Start);
    let block = |text, pages: usize, address| Block {
        address: Some(address),
        ..Block::new(name(text), (pages * PAGE) as u64)
    };
    let blocks = [block("pc.ram", 16, 0), block("/rom@etc/acpi/tables", 4, 0xc0000)];
    encode::block_list(out, blocks.into_iter());
    end_of_records(out);
}

/// Every record there is, over two PARTs, the second beginning with CONTINUE.
fn parts(out: &mut Vec<u8>) {
    let rom = name("/rom@etc/acpi/tables");
    let mut memory = ContinueMemory::new();
    ram(out, SectionKind::Part);
    encode::zero_page(out, memory.word(0, RamWord::zero(0)), pc_ram());
    encode::zero_page(out, memory.word(0, RamWord::zero(PAGE as u64)), pc_ram());
    encode::page_head(out, memory.word(1, RamWord::page(3 * PAGE as u64)), rom);
    out.extend((0..PAGE).map(|at| ((at * 7) & 0xff) as u8));
    encode::page_head(out, memory.word(1, RamWord::page(0)), rom);
    out.extend([0x7e; PAGE]);
    encode::ram_word(out, RamWord::HOOK);
    encode::ram_word(out, RamWord::MULTIFD_FLUSH);
    end_of_records(out);
    ram(out, SectionKind::Part);
    let delta = Delta::new(&[0x10, 0x01, 0x5a]).expect("short");
    encode::xbzrle_page(out, memory.word(1, RamWord::xbzrle(0)), rom, delta);
    encode::xbzrle_page(out, memory.word(0, RamWord::xbzrle(0)), pc_ram(), delta);
    let data = Deflated::new(b"x\x9cnot looked at").expect("short");
    encode::compressed_page(out, memory.word(0, RamWord::compressed(2048)), pc_ram(), data);
    // Tolerated oddity: EOS with CONTINUE and an offset.
    encode::ram_word(out, RamWord::from_raw(0x5000 | 0x30));
    out.extend_from_slice(&encode::footer(RAM_ID));
}

/// A payload full of what looks like the end of its own section, but is not.
fn misleading(id: u32) -> Vec<u8> {
    let marker = encode::footer(id);
    let mut payload = Vec::new();
    let decoys: [&[u8]; 12] = [
        b"",
        b"\x05",
        b"\x7e",
        // EOF with neither VMDESC nor the end behind it.
        b"\x00\x07",
        // A section without a name, or with one nobody would give.
        b"\x04\0\0\0\x01\x00",
        b"\x01\0\0\0\x01\x03\x01\x02\x03",
        // PART and END of ids that no START introduced.
        b"\x02\0\0\0\x63",
        b"\x03\0\0\0\x05",
        // Commands that do not exist, or not of that length.
        b"\x08\0\0\0\0",
        b"\x08\0\x0c\0\0",
        b"\x08\0\x02\0\x05",
        b"\x08\0\x03\0\x08",
    ];
    for decoy in decoys {
        payload.extend_from_slice(&marker);
        payload.extend_from_slice(decoy);
    }
    payload.extend_from_slice(&marker[..3]);
    payload
}

/// File header to VMDESC, with a return path and every item that precopy may have.
pub(crate) fn precopy() -> Vec<u8> {
    let mut out = preamble();
    for command in [
        Command::OpenReturnPath,
        Command::Ping(1),
        Command::PostcopyAdvise(Some(Advise { page_sizes: 4096, target_page_size: 1024 })),
    ] {
        encode::command(&mut out, &command);
    }
    start(&mut out);
    parts(&mut out);
    encode::command(&mut out, &Command::SwitchoverStart);
    ram(&mut out, SectionKind::End);
    end_of_records(&mut out);
    device(&mut out, 0, "timer", &[0; 24]);
    device(&mut out, 5, "misleading", &misleading(5));
    device(&mut out, 6, "empty", b"");
    device(&mut out, 38, "globalstate", &[0; 104]);
    // The decoys end where this one's footer begins with the rest of theirs.
    device(&mut out, 7, "last", &encode::footer(7)[..4]);
    out.push(encode::EOF);
    out.extend_from_slice(&encode::vmdescription_header(JSON.len() as u32));
    out.extend_from_slice(JSON);
    out
}

/// The postcopy stream of docs/wire/stream.md §8.3, with the commands of recovery thrown in.
pub(crate) fn postcopy() -> Vec<u8> {
    let mut out = preamble();
    encode::command(&mut out, &Command::OpenReturnPath);
    encode::command(&mut out, &Command::PostcopyAdvise(None));
    start(&mut out);
    let ranges: Vec<_> =
        (0..13).map(|page| DiscardRange { start: page * 1024, length: 1024 }).collect();
    encode::ram_discard(&mut out, pc_ram(), &ranges);
    encode::command(&mut out, &Command::RecvBitmap { block: pc_ram() });
    encode::command(&mut out, &Command::PostcopyResume);
    encode::command(&mut out, &Command::Ping(2));
    package(&mut out, true, b"");
    encode::command(&mut out, &Command::Ping(4));
    ram(&mut out, SectionKind::Part);
    encode::page_head(&mut out, RamWord::page(1024), pc_ram());
    out.extend([0xa5; PAGE]);
    encode::zero_page(&mut out, RamWord::zero(0).continued(), pc_ram());
    end_of_records(&mut out);
    ram(&mut out, SectionKind::End);
    end_of_records(&mut out);
    out.push(encode::EOF);
    out
}

/// A package that ends in POSTCOPY_RUN or EOF, with `tail` behind.
pub(crate) fn package(out: &mut Vec<u8>, run: bool, tail: &[u8]) {
    let mut blob = Vec::new();
    encode::command(&mut blob, &Command::PostcopyListen);
    device(&mut blob, 0, "timer", &[1; 24]);
    encode::command(&mut blob, &Command::Ping(3));
    device(&mut blob, 9, "cpu", b"\x7e\0\0\0\x09\x00\x06 still the payload");
    if run {
        encode::command(&mut blob, &Command::PostcopyRun);
    } else {
        blob.push(encode::EOF);
    }
    blob.extend_from_slice(tail);
    encode::command(out, &Command::Packaged { len: blob.len() as u32 });
    out.extend_from_slice(&blob);
}
