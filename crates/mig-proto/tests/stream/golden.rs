//! Bytes captured from QEMU 10.0.2, docs/wire/stream.md §15 and ram.md §3, §4: decoded to the
//! values that the pages give, and encoded back.

use mig_proto::encode::{self, Block};
use mig_proto::{
    Advise, Command, Configuration, ConfigurationSubsection, Decoder, Event, Options, RamWord,
    SectionKind, Step,
};

use crate::small::name;
use crate::support::run_whole;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pair = |pair: &[u8]| {
        u8::from_str_radix(core::str::from_utf8(pair).expect("ASCII"), 16).expect("hex")
    };
    digits.chunks(2).map(pair).collect()
}

/// The one command in the stream `08 …`, decoded.
fn with_command<T>(hex: &str, look: impl FnOnce(Command<'_>) -> T) -> T {
    let raw = bytes(hex);
    let mut decoder = Decoder::new(Options::default()).resumed();
    let Ok(Step::Event { consumed, event }) = decoder.decode(&raw) else { panic!("no command") };
    assert_eq!(consumed, raw.len());
    let mut again = Vec::new();
    encode::event(&mut again, &event);
    assert_eq!(again, raw);
    let Event::Command(command) = event else { panic!("{event:?}") };
    look(command)
}

#[test]
fn the_beginning_of_a_stream_with_a_return_path() {
    let raw = bytes(
        "51 45 56 4d 00 00 00 03 07 00 00 00 0b 70 63 2d 71 33 35 2d 31 30 2e 30
         08 00 01 00 00 08 00 02 00 04 00 00 00 01
         01 00 00 00 01 03 72 61 6d 00 00 00 00 00 00 00 04
         00 00 00 00 04 00 00 04 06 70 63 2e 72 61 6d 00 00 00 00 04 00 00 00
         00 00 00 00 00 00 00 10 7e 00 00 00 01
         02 00 00 00 01 00 00 00 00 00 00 00 02 06 70 63 2e 72 61 6d 00
         00 00 00 00 00 00 10 22 00
         00 00 00 00 00 01 00 60 01 00 07 10 01 28 ef 0f 01 28
         00 00 00 00 00 00 00 10 7e 00 00 00 01
         08 00 0b 00 00
         03 00 00 00 01 00 00 00 00 00 00 00 10 7e 00 00 00 01 00",
    );
    let run = run_whole(Options::default(), &raw);
    assert_eq!(run.bytes, raw);
    assert_eq!(run.count("Section(SectionHeader { kind: Start, section_id: 1, idstr: \"ram\""), 1);
    assert_eq!(run.count("Zero"), 2);
    assert_eq!(run.count("Xbzrle"), 1);

    let mut out = encode::FILE_HEADER.to_vec();
    encode::configuration(&mut out, &Configuration::new(b"pc-q35-10.0").expect("short"));
    encode::command(&mut out, &Command::OpenReturnPath);
    encode::command(&mut out, &Command::Ping(1));
    let mut header = mig_proto::SectionHeader {
        kind: SectionKind::Start,
        section_id: 1,
        idstr: name("ram"),
        instance_id: 0,
        version_id: 4,
    };
    encode::section(&mut out, &header);
    encode::block_list(&mut out, [Block::new(name("pc.ram"), 0x400_0000)].into_iter());
    encode::ram_word(&mut out, RamWord::EOS);
    out.extend_from_slice(&encode::footer(1));
    header.kind = SectionKind::Part;
    encode::section(&mut out, &header);
    encode::zero_page(&mut out, RamWord::zero(0), name("pc.ram"));
    encode::zero_page(&mut out, RamWord::zero(0x1000).continued(), name("pc.ram"));
    assert!(raw.starts_with(&out));
}

#[test]
fn configuration_with_subsections() {
    let raw = bytes(
        "51 45 56 4d 00 00 00 03 07 00 00 00 0b 70 63 2d 71 33 35 2d 31 30 2e 30
         05 1a 63 6f 6e 66 69 67 75 72 61 74 69 6f 6e 2f 63 61 70 61 62 69 6c 69 74 69 65 73
         00 00 00 01 00 00 00 01 0f 78 2d 69 67 6e 6f 72 65 2d 73 68 61 72 65 64
         05 12 63 6f 6e 66 69 67 75 72 61 74 69 6f 6e 2f 75 75 69 64 00 00 00 01
         00 11 22 33 44 55 66 77 88 99 aa bb cc dd ee ff",
    );
    let mut stream = raw.clone();
    stream.push(encode::EOF);
    let mut decoder = Decoder::new(Options::default());
    let Ok(Step::Event { consumed: 8, event: Event::FileHeader }) = decoder.decode(&stream) else {
        panic!("no file header")
    };
    let step = decoder.decode(&stream[8..]).expect("right");
    let Step::Event { consumed, event: Event::Configuration(found) } = step else {
        panic!("{step:?}")
    };
    assert_eq!(consumed, raw.len() - 8);
    assert_eq!(found.machine(), b"pc-q35-10.0");
    assert!(found.ignore_shared());
    let uuid = *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";
    assert_eq!(found.uuid(), Some(uuid));
    assert!(matches!(found.subsections()[1], ConfigurationSubsection::Uuid(_)));
    let built = Configuration::new(b"pc-q35-10.0")
        .expect("short")
        .with_uuid(uuid)
        .with_capabilities([name("x-ignore-shared")]);
    assert_eq!(&built, found);
    let mut out = encode::FILE_HEADER.to_vec();
    encode::configuration(&mut out, &built);
    assert_eq!(out, raw);
}

#[test]
fn postcopy_commands() {
    with_command("08 00 03 00 10 00 00 00 00 00 00 10 00 00 00 00 00 00 00 10 00", |command| {
        let advise = Advise { page_sizes: 0x1000, target_page_size: 0x1000 };
        assert_eq!(command, Command::PostcopyAdvise(Some(advise)));
    });
    with_command(
        "08 00 06 00 19 00 06 70 63 2e 72 61 6d 00 00 00 00 00 00 01 00 00 00 00 00 00 03 ff 00 00",
        |command| {
            let Command::RamDiscard(discard) = command else { panic!("{command:?}") };
            assert_eq!(discard.block(), name("pc.ram"));
            let ranges: Vec<_> = discard.ranges().collect();
            assert_eq!(ranges.len(), 1);
            assert_eq!((ranges[0].start, ranges[0].length), (0x10000, 0x3ff_0000));
        },
    );
    with_command("08 00 07 00 04 00 00 7e 80", |command| {
        assert_eq!(command, Command::Packaged { len: 0x7e80 });
    });
    with_command("08 00 0a 00 07 06 70 63 2e 72 61 6d", |command| {
        assert_eq!(command, Command::RecvBitmap { block: name("pc.ram") });
    });
    with_command("08 00 09 00 00", |command| assert_eq!(command, Command::PostcopyResume));
    with_command("08 00 04 00 00", |command| assert_eq!(command, Command::PostcopyListen));
    with_command("08 00 05 00 00", |command| assert_eq!(command, Command::PostcopyRun));
    with_command("08 00 03 00 00", |command| assert_eq!(command, Command::PostcopyAdvise(None)));
}
