//! Every row of the reject tables of docs/wire/stream.md and docs/wire/ram.md: the kind of the
//! error, whose fault it is, and at which byte.

use mig_proto::encode::{self, Block};
use mig_proto::{
    Advise, Command, Configuration, DecodeErrorKind as Kind, Deflated, Delta, Fault, LocalMachine,
    LocalPostcopy, Options, PayloadLength, RamWord, SectionKind,
};

use crate::small::{self, RAM_ID, UUID, end_of_records, name, pc_ram};
use crate::support::run;

/// `stream[..at]` is right, and what begins at `at` is wrong in this way.
#[track_caller]
fn rejected(options: &Options, stream: &[u8], at: usize, fault: Fault, kind: &Kind) {
    for piece in [stream.len().max(1), 1] {
        let run = run(options.clone(), stream.chunks(piece));
        let error = run.error.unwrap_or_else(|| panic!("accepted: {:#?}", run.events));
        assert_eq!(&error.kind, kind, "{error}");
        assert_eq!(error.position, at as u64, "{error}");
        assert_eq!(error.blame(), fault, "{error}");
        assert!(stream.starts_with(&run.bytes));
        assert!(error.to_string().starts_with(&format!("byte {at} ")), "{error}");
    }
}

/// `right` is right, and the first byte of `wrong` plus `offset` is where it is wrong.
#[track_caller]
fn rejected_after(right: &[u8], wrong: &[u8], offset: usize, fault: Fault, kind: &Kind) {
    let stream = [right, wrong].concat();
    rejected(&small::options(), &stream, right.len() + offset, fault, kind);
}

use Fault::{PeerIncompatible, PeerMisbehaved, Unsupported};

#[test]
fn file_header() {
    let found = *b"QEVL";
    let kind = Kind::NotAMigrationStream { found };
    rejected_after(b"", b"QEVL\0\0\0\x03", 0, PeerMisbehaved, &kind);
    for found in [0_u32, 2, 4] {
        let wrong = [&b"QEVM"[..], &found.to_be_bytes()].concat();
        let kind = Kind::UnsupportedVersion { found };
        rejected_after(b"", &wrong, 4, PeerIncompatible, &kind);
    }
}

#[test]
fn configuration_must_be_there_and_be_short() {
    let right = encode::FILE_HEADER;
    let kind = Kind::ConfigurationMissing { found: 1 };
    rejected_after(&right, b"\x01\0\0\0\x01\x03ram", 0, PeerIncompatible, &kind);
    let kind = Kind::MachineNameTooLong { len: u32::MAX, limit: 255 };
    rejected_after(&right, b"\x07\xff\xff\xff\xff", 1, PeerMisbehaved, &kind);
}

#[test]
fn configuration_subsections() {
    let mut right = encode::FILE_HEADER.to_vec();
    right.extend_from_slice(b"\x07\0\0\0\x02pc");
    let subsection = |name: &str, version: u32, fields: &[u8]| {
        let len = [5, u8::try_from(name.len()).expect("short")];
        [&len, name.as_bytes(), &version.to_be_bytes(), fields].concat()
    };
    let unknown = subsection("configuration/x", 1, b"");
    let kind = Kind::UnknownConfigurationSubsection { name: "configuration/x".into() };
    rejected_after(&right, &unknown, 2, PeerIncompatible, &kind);
    // One that is not CONFIGURATION's ends CONFIGURATION, and begins no item.
    let foreign = subsection("timer/xxxxxxxxxxxxxxx", 1, b"");
    rejected_after(&right, &foreign, 0, PeerMisbehaved, &Kind::BadItem { found: 5 });

    let uuid = "configuration/uuid";
    let kind = Kind::ConfigurationSubsectionVersion { name: uuid.into(), found: 2 };
    let wrong = subsection(uuid, 2, &UUID);
    rejected_after(&right, &wrong, 2 + uuid.len(), PeerIncompatible, &kind);
    let many: Vec<u8> = (0..9).flat_map(|_| subsection(uuid, 1, &UUID)).collect();
    let kind = Kind::TooManyConfigurationSubsections { limit: 8 };
    rejected_after(&right, &many, many.len() / 9 * 8, PeerMisbehaved, &kind);

    let bits = "configuration/target-page-bits";
    let field = 6 + bits.len();
    for found in [0, 9, 17, 64] {
        let kind = Kind::TargetPageBitsOutOfRange { found };
        let wrong = subsection(bits, 1, &found.to_be_bytes());
        rejected_after(&right, &wrong, field, Unsupported, &kind);
    }
    let capabilities = "configuration/capabilities";
    let field = 6 + capabilities.len();
    let kind = Kind::TooManyCapabilities { count: u32::MAX, limit: 64 };
    let wrong = subsection(capabilities, 1, &[0xff; 4]);
    rejected_after(&right, &wrong, field, PeerMisbehaved, &kind);
    let wrong = subsection(capabilities, 1, b"\0\0\0\x02\x06xbzrle\x05wrong");
    let kind = Kind::UnknownCapability { name: "wrong".into() };
    rejected_after(&right, &wrong, field + 4 + 7 + 1, PeerIncompatible, &kind);
    let wrong = subsection(capabilities, 1, b"\0\0\0\x01\x0amapped-ram");
    rejected_after(&right, &wrong, field + 4 + 1, Unsupported, &Kind::MappedRam);
}

fn with_configuration(configuration: &Configuration) -> Vec<u8> {
    let mut stream = encode::FILE_HEADER.to_vec();
    encode::configuration(&mut stream, configuration);
    stream.push(encode::EOF);
    stream
}

#[test]
fn configuration_against_the_local_machine() {
    let mut options = Options::default();
    options.local = Some(LocalMachine { uuid: Some(UUID), ..LocalMachine::new(b"pc-q35-10.0") });
    let plain = |machine: &[u8]| Configuration::new(machine).expect("short");
    for accepted in [
        plain(b"pc-q35-10.0"),
        plain(b"pc-q35"),
        plain(b""),
        plain(b"pc-q35-10.0").with_uuid(UUID),
        plain(b"pc-q35-10.0").with_target_page_bits(12),
        plain(b"pc-q35-10.0").with_capabilities([name("postcopy-ram")]),
    ] {
        let run = run(options.clone(), [&with_configuration(&accepted)[..]]);
        assert_eq!(run.error, None);
    }
    for machine in ["pc-q35-10.0x", "pc-q35-9.2"] {
        let stream = with_configuration(&plain(machine.as_bytes()));
        let kind = Kind::MachineMismatch { found: machine.into(), local: "pc-q35-10.0".into() };
        rejected(&options, &stream, 8 + 5, PeerIncompatible, &kind);
    }
    let after_name = 8 + 5 + 6;
    let other = [1; 16];
    let stream = with_configuration(&plain(b"pc-q35").with_uuid(other));
    let kind = Kind::UuidMismatch { found: other, local: UUID };
    rejected(&options, &stream, after_name + 6 + 18, PeerIncompatible, &kind);
    let stream = with_configuration(&plain(b"pc-q35").with_target_page_bits(14));
    let kind = Kind::TargetPageBitsMismatch { found: 14, local: 12 };
    rejected(&options, &stream, after_name + 6 + 30, PeerIncompatible, &kind);
    let shared = plain(b"pc-q35").with_capabilities([name("x-ignore-shared")]);
    let mismatch = |source_on| Kind::CapabilityMismatch { name: "x-ignore-shared", source_on };
    let at = after_name + 6 + 26 + 4 + 1;
    rejected(&options, &with_configuration(&shared), at, PeerIncompatible, &mismatch(true));

    // What is missing shows where CONFIGURATION ends.
    if let Some(local) = &mut options.local {
        local.ignore_shared = true;
    }
    let stream = with_configuration(&plain(b"pc-q35"));
    rejected(&options, &stream, after_name, PeerIncompatible, &mismatch(false));
    if let Some(local) = &mut options.local {
        local.minimum_page_bits = 10;
    }
    let kind = Kind::TargetPageBitsMismatch { found: 10, local: 12 };
    rejected(&options, &stream, after_name, PeerIncompatible, &kind);
}

#[test]
fn a_local_machine_without_a_uuid_accepts_any() {
    let mut options = Options::default();
    options.local = Some(LocalMachine::new(b"pc"));
    let stream = with_configuration(&Configuration::new(b"pc").expect("short").with_uuid(UUID));
    assert_eq!(run(options, [&stream[..]]).error, None);
}

#[test]
fn item_types() {
    let right = small::preamble();
    for found in [5, 6, 7, 9, 0x7d, 0x7e, 0xff] {
        // A long tail, so that CONFIGURATION's end never waits for a name.
        let wrong = [&[found][..], &[1; 300]].concat();
        rejected_after(&right, &wrong, 0, PeerMisbehaved, &Kind::BadItem { found });
    }
}

#[test]
fn section_headers_and_footers() {
    let mut right = small::preamble();
    let kind = Kind::EmptySectionName;
    rejected_after(&right, b"\x04\0\0\0\x01\0\0\0\0\0\0\0\0\0", 5, PeerMisbehaved, &kind);
    for found in [3, 5] {
        let mut wrong = Vec::new();
        small::section(&mut wrong, SectionKind::Start, 1, "ram", found);
        rejected_after(&right, &wrong, 13, PeerIncompatible, &Kind::RamVersion { found });
    }
    let wrong = b"\x01\0\0\0\x01\x03ram\0\0\0\x01\0\0\0\x04";
    rejected_after(&right, wrong, 9, PeerIncompatible, &Kind::RamInstance { found: 1 });
    let mut wrong = Vec::new();
    small::section(&mut wrong, SectionKind::Start, 1, "vfio", 1);
    let kind = Kind::UnknownIterable { idstr: "vfio".into() };
    rejected_after(&right, &wrong, 5, Unsupported, &kind);
    for item in [2, 3] {
        let kind = Kind::UnknownSectionId { section_id: 9 };
        rejected_after(&right, &[item, 0, 0, 0, 9], 1, PeerMisbehaved, &kind);
    }
    small::start(&mut right);
    small::ram(&mut right, SectionKind::Part);
    encode::ram_word(&mut right, RamWord::EOS);
    let kind = Kind::FooterMissing { found: 3 };
    rejected_after(&right, &[3, 0, 0, 0, 2], 0, PeerMisbehaved, &kind);
    let kind = Kind::FooterMismatch { found: 3, expected: RAM_ID };
    rejected_after(&right, &encode::footer(3), 1, PeerMisbehaved, &kind);
}

#[test]
fn section_bounds() {
    let mut stream = small::preamble();
    let mut options = small::options();
    options.limits.sections = 1;
    small::device(&mut stream, 1, "a", b"");
    small::device(&mut stream, 1, "a", b"");
    let at = stream.len() + 1;
    small::device(&mut stream, 2, "b", b"");
    stream.push(encode::EOF);
    let kind = Kind::TooManySections { limit: 1 };
    rejected(&options, &stream, at, PeerMisbehaved, &kind);

    let mut stream = small::preamble();
    small::section(&mut stream, SectionKind::Full, 1, "a", 1);
    let payload_at = stream.len();
    stream.extend([0x7e; 101]);
    options.limits.section_bytes = 100;
    let kind = Kind::SectionTooLong { limit: 100 };
    // Of the last bytes it could not be told yet whether they belong to the payload.
    stream.extend([0; 8]);
    rejected(&options, &stream, payload_at + 100, PeerMisbehaved, &kind);
    options.lengths = vec![PayloadLength { idstr: (*b"a").into(), instance_id: 0, len: u64::MAX }];
    rejected(&options, &stream, payload_at, PeerMisbehaved, &kind);
}

#[test]
fn commands() {
    let mut right = small::preamble();
    for number in [0_u16, 12, 0xffff] {
        let wrong = [&[8], &number.to_be_bytes()[..]].concat();
        rejected_after(&right, &wrong, 1, PeerMisbehaved, &Kind::UnknownCommand { number });
    }
    for (number, found, command, expected) in [
        (1, 1, "OPEN_RETURN_PATH", "0"),
        (2, 0, "PING", "4"),
        (2, 5, "PING", "4"),
        (3, 8, "POSTCOPY_ADVISE", "16 or 0"),
        (3, 17, "POSTCOPY_ADVISE", "16 or 0"),
        (4, 1, "POSTCOPY_LISTEN", "0"),
        (5, 1, "POSTCOPY_RUN", "0"),
        (6, 19, "RAM_DISCARD", "at least 20"),
        (7, 3, "PACKAGED", "4"),
        (8, 1, "ENABLE_COLO", "0"),
        (9, 1, "POSTCOPY_RESUME", "0"),
        (10, 1, "RECV_BITMAP", "2 to 256"),
        (10, 257, "RECV_BITMAP", "2 to 256"),
        (11, 1, "SWITCHOVER_START", "0"),
    ] {
        let wrong = [8, 0, number, (found >> 8) as u8, found as u8];
        let kind = Kind::CommandLength { command, found, expected };
        rejected_after(&right, &wrong, 3, PeerMisbehaved, &kind);
    }
    let mut ping = Vec::new();
    encode::command(&mut ping, &Command::Ping(1));
    rejected_after(&right, &ping, 0, PeerMisbehaved, &Kind::PingWithoutReturnPath);
    rejected_after(&right, &[8, 0, 8, 0, 0], 0, Unsupported, &Kind::ColoUnsupported);
    encode::command(&mut right, &Command::OpenReturnPath);
    let kind = Kind::CommandBlockName {
        command: "RECV_BITMAP",
        found: 5,
        expected: "the payload length minus 1",
    };
    rejected_after(&right, b"\x08\0\x0a\0\x07\x05pc.ra.", 5, PeerMisbehaved, &kind);
}

#[test]
fn ram_discard() {
    let right = small::preamble();
    let command = |payload: &[u8]| {
        let len = u16::try_from(payload.len()).expect("short").to_be_bytes();
        [&[8, 0, 6], &len[..], payload].concat()
    };
    let range = [0; 16];
    let discard = |payload: &[&[u8]]| command(&payload.concat());
    let kind = Kind::DiscardVersion { found: 1 };
    rejected_after(&right, &discard(&[b"\x01\x01a\0", &range]), 5, PeerMisbehaved, &kind);
    let name_error =
        |found, expected| Kind::CommandBlockName { command: "RAM_DISCARD", found, expected };
    let wrong = discard(&[b"\0\0\0\0", &range]);
    rejected_after(&right, &wrong, 6, PeerMisbehaved, &name_error(0, "1 to 255"));
    let wrong = discard(&[b"\0\x40a\0", &range]);
    let kind = name_error(0x40, "a name that fits the payload");
    rejected_after(&right, &wrong, 6, PeerMisbehaved, &kind);
    let kind = Kind::DiscardNotTerminated { found: 7 };
    rejected_after(&right, &discard(&[b"\0\x01a\x07", &range]), 8, PeerMisbehaved, &kind);
    let kind = Kind::DiscardRanges { found: 17 };
    rejected_after(&right, &discard(&[b"\0\x01a\0", &range, b"\0"]), 9, PeerMisbehaved, &kind);
    let kind = Kind::DiscardRanges { found: 0 };
    let name_fills_all = discard(&[b"\0\x11", &[b'a'; 17], b"\0"]);
    rejected_after(&right, &name_fills_all, 5 + 20, PeerMisbehaved, &kind);
}

#[test]
fn advise_against_the_local_machine() {
    let advise = |advise| {
        let mut stream = encode::FILE_HEADER.to_vec();
        encode::configuration(&mut stream, &Configuration::new(b"pc").expect("short"));
        let at = stream.len() + 5;
        encode::command(&mut stream, &Command::PostcopyAdvise(advise));
        stream.push(encode::EOF);
        (stream, at)
    };
    let long = |page_sizes, target_page_size| Some(Advise { page_sizes, target_page_size });
    let mut options = Options::default();
    for (postcopy_ram, form, offset, kind) in [
        (false, long(0x1000, 0x1000), 0, Some(Kind::AdviseWithoutPostcopyRam)),
        (false, None, 0, None),
        (true, None, 0, Some(Kind::AdviseWithoutPageSizes)),
        (true, long(0x1000, 0x1000), 0, None),
        (
            true,
            long(0x20_1000, 0x1000),
            0,
            Some(Kind::AdvisePageSizes { found: 0x20_1000, local: 0x1000 }),
        ),
        (
            true,
            long(0x1000, 0x2000),
            8,
            Some(Kind::AdviseTargetPageSize { found: 0x2000, local: 0x1000 }),
        ),
    ] {
        options.postcopy =
            Some(LocalPostcopy { postcopy_ram, page_sizes: 0x1000, unusual_blocks: Vec::new() });
        let (stream, at) = advise(form);
        match kind {
            Some(kind) => rejected(&options, &stream, at + offset, PeerIncompatible, &kind),
            None => assert_eq!(run(options.clone(), [&stream[..]]).error, None),
        }
    }
}

#[test]
fn packages() {
    let mut right = small::preamble();
    encode::command(&mut right, &Command::OpenReturnPath);
    let packaged = |len| {
        let mut out = Vec::new();
        encode::command(&mut out, &Command::Packaged { len });
        out
    };
    rejected_after(&right, &packaged(0), 5, PeerMisbehaved, &Kind::PackageEmpty);
    let mut options = small::options();
    options.limits.package_bytes = 100;
    let kind = Kind::PackageTooLong { len: 101, limit: 100 };
    let stream = [&right[..], &packaged(101)].concat();
    rejected(&options, &stream, right.len() + 5, PeerMisbehaved, &kind);
    let nested = [packaged(30), packaged(9)].concat();
    rejected_after(&right, &nested, 9, PeerMisbehaved, &Kind::PackageNested);

    // Out of bytes without EOF or RUN, though the channel goes on.
    let mut blob = Vec::new();
    encode::command(&mut blob, &Command::PostcopyListen);
    encode::command(&mut blob, &Command::Ping(3));
    let len = blob.len();
    blob.push(encode::EOF);
    let inside = "the items, before EOF";
    let mut cut = [packaged(len as u32), blob.clone()].concat();
    let kind = Kind::PackageTruncated { inside };
    rejected_after(&right, &cut, 9 + len, PeerMisbehaved, &kind);
    cut = [packaged(len as u32 - 2), blob].concat();
    rejected_after(&right, &cut, 9 + len - 2, PeerMisbehaved, &kind);
}

/// Preamble, START with the block list, and the header of a PART.
fn in_part() -> Vec<u8> {
    let mut stream = small::preamble();
    encode::command(&mut stream, &Command::OpenReturnPath);
    small::start(&mut stream);
    small::ram(&mut stream, SectionKind::Part);
    stream
}

fn word(word: u64) -> [u8; 8] {
    word.to_be_bytes()
}

#[test]
fn record_flags() {
    let right = in_part();
    for flags in [0x001, 0x003, 0x021] {
        let kind = Kind::ObsoleteFlag { word: flags };
        rejected_after(&right, &word(flags), 0, PeerMisbehaved, &kind);
    }
    for flags in [0x000, 0x020, 0x00a, 0x018, 0x042, 0x180, 0x210] {
        let kind = Kind::FlagCombination { word: 0x400 | flags, flags };
        let wrong = [&word(0x400 | flags)[..], b"\x06pc.ram\0"].concat();
        rejected_after(&right, &wrong, 0, PeerMisbehaved, &kind);
    }
}

#[test]
fn record_blocks_and_offsets() {
    let right = in_part();
    for flags in [0x22, 0x28, 0x60, 0x120] {
        let kind = Kind::ContinueWithoutBlock { word: flags };
        rejected_after(&right, &word(flags), 0, PeerMisbehaved, &kind);
    }
    let wrong = [&word(2)[..], b"\x06pc.rom\0"].concat();
    let kind = Kind::UnknownBlock { name: "pc.rom".into() };
    rejected_after(&right, &wrong, 8, PeerIncompatible, &kind);
    let wrong = [&word(2)[..], b"\0\0"].concat();
    rejected_after(&right, &wrong, 8, PeerIncompatible, &Kind::UnknownBlock { name: "".into() });
    for offset in [0x4000, 0x8000_0000_0000_0000] {
        let kind = Kind::OffsetOutOfRange { block: "pc.ram".into(), offset, length: 0x4000 };
        for flags in [0x02, 0x08, 0x40, 0x100] {
            let wrong = [&word(offset | flags)[..], b"\x06pc.ram\0"].concat();
            rejected_after(&right, &wrong, 0, PeerMisbehaved, &kind);
        }
    }
}

#[test]
fn record_bodies() {
    let right = in_part();
    let record = |flags, body: &[u8]| [&word(flags)[..], b"\x06pc.ram", body].concat();
    let body = 8 + 7;
    let kind = Kind::ZeroFill { fill: 1 };
    rejected_after(&right, &record(0x02, b"\x01"), body, PeerMisbehaved, &kind);
    let kind = Kind::XbzrleEncoding { found: 2 };
    rejected_after(&right, &record(0x40, b"\x02\0\0"), body, PeerMisbehaved, &kind);
    let kind = Kind::XbzrleLength { found: 1025, limit: 1024 };
    rejected_after(&right, &record(0x40, b"\x01\x04\x01"), body + 1, PeerMisbehaved, &kind);
    for found in [0_u32, 2049, u32::MAX] {
        let kind = Kind::CompressedLength { found, limit: 2048 };
        let wrong = record(0x100, &found.to_be_bytes());
        rejected_after(&right, &wrong, body, PeerMisbehaved, &kind);
    }
}

#[test]
fn block_lists() {
    let mut right = small::preamble();
    small::ram(&mut right, SectionKind::Start);
    let entry = |name: &[u8], length: u64| {
        let len = [u8::try_from(name.len()).expect("short")];
        [&len, name, &length.to_be_bytes(), &[0; 8]].concat()
    };
    let list = |total: u64, entries: &[Vec<u8>]| [&word(total | 4)[..], &entries.concat()].concat();
    let wrong = list(0x800, &[entry(b"a", 0x400), entry(b"b", 0x800)]);
    let kind = Kind::BlockListOvershoot { block: "b".into(), length: 0x800, left: 0x400 };
    rejected_after(&right, &wrong, 8 + 18 + 2, PeerMisbehaved, &kind);
    let kind = Kind::BlockLengthUnaligned { block: "a".into(), length: 0x401, page_size: 0x400 };
    rejected_after(&right, &list(0x800, &[entry(b"a", 0x401)]), 10, PeerMisbehaved, &kind);
    let wrong = list(0x800, &[entry(b"", 0x400)]);
    rejected_after(&right, &wrong, 8, PeerMisbehaved, &Kind::EmptyBlockName);

    // Blocks without length make no progress towards the total, for ever.
    let mut options = small::options();
    options.limits.blocks = 3;
    let kind = Kind::TooManyBlocks { limit: 3 };
    let wrong = list(0x400, &vec![entry(b"a", 0); 10]);
    let stream = [&right[..], &wrong].concat();
    rejected(&options, &stream, right.len() + 8 + 3 * 18, PeerMisbehaved, &kind);
    // And several lists count together.
    let first = list(0x800, &[entry(b"a", 0x400), entry(b"b", 0x400)]);
    let second = list(0x800, &[entry(b"c", 0x400), entry(b"d", 0x400)]);
    let stream = [&right[..], &first, &second].concat();
    let at = right.len() + first.len() + 8 + 18;
    rejected(&options, &stream, at, PeerMisbehaved, &kind);
}

#[test]
fn host_page_sizes_in_the_block_list() {
    let mut options = Options::default();
    options.postcopy = Some(LocalPostcopy {
        postcopy_ram: true,
        page_sizes: 0x20_1000,
        unusual_blocks: vec![((*b"huge").into(), 0x20_0000)],
    });
    let stream = |host_page_size| {
        let mut stream = encode::FILE_HEADER.to_vec();
        encode::configuration(&mut stream, &Configuration::new(b"pc").expect("short"));
        let advise = Advise { page_sizes: 0x20_1000, target_page_size: 0x1000 };
        encode::command(&mut stream, &Command::PostcopyAdvise(Some(advise)));
        small::ram(&mut stream, SectionKind::Start);
        let word_at = stream.len() + 8 + 5 + 8;
        let huge = Block { host_page_size, ..Block::new(name("huge"), 0x20_0000) };
        encode::block_list(&mut stream, [huge, Block::new(pc_ram(), 0x1000)].into_iter());
        end_of_records(&mut stream);
        stream.push(encode::EOF);
        (stream, word_at)
    };
    let (right, _) = stream(Some(0x20_0000));
    let run = run(options.clone(), [&right[..]]);
    assert_eq!(run.error, None);
    assert_eq!(run.bytes, right);
    let (wrong, at) = stream(Some(0x1000));
    let kind = Kind::HostPageSize { block: "huge".into(), found: 0x1000, local: 0x20_0000 };
    rejected(&options, &wrong, at, PeerIncompatible, &kind);
}

#[test]
fn postcopy_restricts_records() {
    let mut right = small::preamble();
    small::start(&mut right);
    small::ram(&mut right, SectionKind::Part);
    encode::zero_page(&mut right, RamWord::zero(0), pc_ram());
    end_of_records(&mut right);
    encode::command(&mut right, &Command::PostcopyListen);
    small::ram(&mut right, SectionKind::Part);
    // Entry into postcopy forgets the block.
    let kind = Kind::ContinueWithoutBlock { word: 0x22 };
    rejected_after(&right, &word(0x22), 0, PeerMisbehaved, &kind);
    let delta = Delta::new(b"").expect("short");
    let data = Deflated::new(b"x").expect("short");
    let mut xbzrle = Vec::new();
    encode::xbzrle_page(&mut xbzrle, RamWord::xbzrle(0), pc_ram(), delta);
    let mut compressed = Vec::new();
    encode::compressed_page(&mut compressed, RamWord::compressed(0), pc_ram(), data);
    for (flags, wrong) in [
        (0x40, &xbzrle[..]),
        (0x100, &compressed),
        (0x04, &word(0x404)),
        (0x80, &word(0x80)),
        (0x200, &word(0x200)),
        (0x01, &word(0x01)),
    ] {
        rejected_after(&right, wrong, 0, PeerMisbehaved, &Kind::NotInPostcopy { flags });
    }
}

#[test]
fn vmdescription_bound() {
    let mut options = small::options();
    options.limits.vmdescription_bytes = 9;
    let mut stream = small::preamble();
    stream.push(encode::EOF);
    let at = stream.len() + 1;
    stream.extend_from_slice(&encode::vmdescription_header(10));
    let kind = Kind::VmdescriptionTooLong { len: 10, limit: 9 };
    rejected(&options, &stream, at, PeerMisbehaved, &kind);
}

#[test]
fn messages_name_the_section_and_both_values() {
    let mut stream = in_part();
    let at = stream.len() + 15;
    stream.extend_from_slice(&word(2));
    stream.extend_from_slice(b"\x06pc.ram\x07");
    let error = run(small::options(), [&stream[..]]).error.expect("rejected");
    let text = format!(
        "byte {at} ({at:#x}), section 2 \"ram\" instance 0: ZERO record with fill byte 0x07, \
         expected 0"
    );
    assert_eq!(error.to_string(), text);
}
