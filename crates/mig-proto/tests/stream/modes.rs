//! What options change: old machine types, schemas, raw iterables, quiet lines, other channels.

use mig_proto::encode::{self, Block};
use mig_proto::{
    Command, DecodeErrorKind as Kind, Decoder, Event, Options, PayloadLength, Presence, RamWord,
    SectionKind, Step, TargetPageSize, UnknownIterables,
};

use crate::small::{self, PAGE, pc_ram};
use crate::support::{run, run_whole};

/// The next event, and how much it took.
fn next<'a>(decoder: &'a mut Decoder, input: &'a [u8]) -> (usize, Event<'a>) {
    match decoder.decode(input).expect("right") {
        Step::Event { consumed, event } => (consumed, event),
        other => panic!("{other:?}"),
    }
}

/// A decoder that has seen the stream up to here and lies in the item loop.
fn after(stream: &[u8]) -> Decoder {
    let mut decoder = Decoder::new(small::options());
    let mut at = 0;
    while at < stream.len() {
        at += next(&mut decoder, &stream[at..]).0;
    }
    decoder
}

#[test]
fn machine_types_before_2_4_have_no_configuration_and_no_footers() {
    let mut stream = encode::FILE_HEADER.to_vec();
    small::ram(&mut stream, SectionKind::Start);
    encode::block_list(&mut stream, [Block::new(pc_ram(), 4096)].into_iter());
    encode::ram_word(&mut stream, RamWord::EOS);
    small::ram(&mut stream, SectionKind::End);
    encode::ram_word(&mut stream, RamWord::EOS);
    small::section(&mut stream, SectionKind::Full, 3, "timer", 2);
    stream.extend([0; 24]);
    stream.push(encode::EOF);

    let mut options = Options::default();
    options.configuration = Presence::Absent;
    options.footers = false;
    options.vmdescription = false;
    let without_schema = run(options.clone(), [&stream[..]]).error.expect("no length known");
    assert_eq!(without_schema.kind, Kind::PayloadLengthUnknown { idstr: "timer".into() });

    options.lengths = vec![PayloadLength { idstr: (*b"timer").into(), instance_id: 0, len: 24 }];
    assert_eq!(run_whole(options.clone(), &stream).bytes, stream);
    options.configuration = Presence::IfPresent;
    assert_eq!(run_whole(options, &stream).bytes, stream);
}

#[test]
fn what_follows_eof_is_never_an_error() {
    let mut stream = small::preamble();
    stream.push(encode::EOF);
    for tail in [&b"\x06\0\0\0\x09short"[..], b"\x06\0\0\0\0", b"\x06\0", b"\x07junk", b""] {
        let stream = [&stream[..], tail].concat();
        assert_eq!(run_whole(small::options(), &stream).bytes, stream);
    }
    // VMDESC that announces 4 GiB is passed through, not made room for.
    let stream = [&stream[..], b"\x06\xff\xff\xff\xff{}"].concat();
    assert_eq!(run_whole(small::options(), &stream).bytes, stream);
}

#[test]
fn unknown_iterables_are_kept_raw_if_asked() {
    let mut stream = small::preamble();
    for kind in [SectionKind::Start, SectionKind::Part, SectionKind::End] {
        small::section(&mut stream, kind, 4, "dirty-bitmap", 1);
        stream.extend_from_slice(b"\x01chunk");
        stream.extend_from_slice(&encode::footer(4));
    }
    stream.push(encode::EOF);
    let refused = run(small::options(), [&stream[..]]).error.expect("refused");
    assert_eq!(refused.kind, Kind::UnknownIterable { idstr: "dirty-bitmap".into() });
    let mut options = small::options();
    options.unknown_iterables = UnknownIterables::KeepRaw;
    let run = run_whole(options, &stream);
    assert_eq!(run.bytes, stream);
    assert_eq!(run.count("SectionData"), 3);
}

#[test]
fn only_silence_tells_a_last_device_without_vmdescription() {
    let mut stream = small::preamble();
    small::device(&mut stream, 3, "timer", &[0; 24]);
    stream.push(encode::EOF);
    let tail_at = stream.len() - (24 + 5 + 1);
    let mut decoder = after(&stream[..tail_at]);
    let tail = &stream[tail_at..];
    let Ok(Step::NeedMore { consumed: 24, at_least: 7 }) = decoder.decode(tail) else {
        panic!("the EOF could be payload")
    };
    let tail = &tail[24..];
    let Ok(Step::Event { consumed: 0, event: Event::SectionData(data) }) = decoder.settle(tail)
    else {
        panic!("nothing follows, so it is the end")
    };
    assert_eq!(data, [0; 24]);
    assert_eq!(next(&mut decoder, tail), (5, Event::Footer { section_id: 3 }));
    assert_eq!(next(&mut decoder, &tail[5..]), (1, Event::Eof { in_package: false }));
    assert_eq!(decoder.finish(b""), Ok(Step::Finished));
}

#[test]
fn a_caller_may_land_pages_itself() {
    let stream = small::precopy();
    let mut decoder = Decoder::new(small::options());
    let (mut at, mut pages) = (0, 0);
    loop {
        match decoder.finish(&stream[at..]).expect("right") {
            Step::Event { consumed, event } => {
                at += consumed;
                assert!(!matches!(event, Event::Payload(_)));
                if let Event::Page(page) = event {
                    assert_eq!(
                        (page.block.index(), page.name.as_ref()),
                        (1, &b"/rom@etc/acpi/tables"[..])
                    );
                    pages += 1;
                    let left = decoder.payload_left();
                    assert_eq!(left as usize, PAGE);
                    assert!(decoder.payload_landed(left + 1).is_err());
                    // In two steps, as a socket would have it.
                    decoder.payload_landed(1000).expect("that much is left");
                    decoder.payload_landed(left - 1000).expect("that much is left");
                    at += left as usize;
                    assert_eq!(decoder.position(), at as u64);
                }
            }
            Step::Finished => break,
            Step::NeedMore { .. } => panic!("finish asked for more"),
        }
    }
    assert_eq!((at, pages), (stream.len(), 2));
}

#[test]
fn packages_may_end_in_eof_and_have_a_tail_that_nobody_reads() {
    for (run_last, tail) in [(true, &b""[..]), (true, b"tail"), (false, b"")] {
        let mut stream = small::preamble();
        encode::command(&mut stream, &Command::OpenReturnPath);
        small::package(&mut stream, run_last, tail);
        stream.push(encode::EOF);
        let run = run_whole(small::options(), &stream);
        assert_eq!(run.bytes, stream);
        assert_eq!(run.count("PackageTail"), usize::from(!tail.is_empty()));
        assert_eq!(run.count("SectionData"), 2);
        assert_eq!(run.count("Eof { in_package: true }"), usize::from(!run_last));
    }
}

#[test]
fn what_lies_behind_a_package_is_not_asked_for() {
    let mut stream = small::preamble();
    encode::command(&mut stream, &Command::Packaged { len: 3 });
    let mut decoder = after(&stream);
    // A section header takes more than the package has: its 3 bytes decide, no others.
    assert_eq!(decoder.decode(b"\x04\0"), Ok(Step::NeedMore { consumed: 0, at_least: 3 }));
    let error = decoder.decode(b"\x04\0\0").expect_err("the package ends in a header");
    assert_eq!(error.kind, Kind::PackageTruncated { inside: "the items, before EOF" });
}

#[test]
fn a_resumed_channel_knows_sections_and_blocks_but_continues_none() {
    let mut stream = small::preamble();
    small::start(&mut stream);
    small::ram(&mut stream, SectionKind::Part);
    encode::zero_page(&mut stream, RamWord::zero(0), pc_ram());
    let cut = after(&stream);

    let mut resumed = Vec::new();
    encode::command(&mut resumed, &Command::RecvBitmap { block: pc_ram() });
    encode::command(&mut resumed, &Command::PostcopyResume);
    small::ram(&mut resumed, SectionKind::Part);
    let named = resumed.len();
    encode::zero_page(&mut resumed, RamWord::zero(0), pc_ram());
    let mut decoder = cut.resumed();
    let mut at = 0;
    while at < resumed.len() {
        at += next(&mut decoder, &resumed[at..]).0;
    }
    assert_eq!(decoder.position(), resumed.len() as u64);

    let mut decoder = cut.resumed();
    let mut at = 0;
    while at < named {
        at += next(&mut decoder, &resumed[at..]).0;
    }
    let continued = RamWord::zero(0).continued();
    let error = decoder.decode(&continued.to_be_bytes()).expect_err("no block to continue");
    assert_eq!(error.kind, Kind::ContinueWithoutBlock { word: continued.raw() });
}

#[test]
fn a_preempt_channel_is_records_alone_and_ends_between_two() {
    let mut stream = small::preamble();
    small::start(&mut stream);
    let main = after(&stream);
    let mut records = Vec::new();
    encode::page_head(&mut records, RamWord::page(1024), pc_ram());
    records.extend([1; PAGE]);
    encode::zero_page(&mut records, RamWord::zero(0).continued(), pc_ram());
    for eos in [false, true] {
        let mut input = records.clone();
        if eos {
            encode::ram_word(&mut input, RamWord::EOS);
        }
        let mut decoder = main.preempt_channel();
        let (mut at, mut again) = (0, Vec::new());
        while let Step::Event { consumed, event } = decoder.finish(&input[at..]).expect("right") {
            at += consumed;
            encode::event(&mut again, &event);
        }
        assert_eq!(again, input);
    }
    let mut decoder = main.preempt_channel();
    let error = decoder.finish(&records[..9]).expect_err("cut in a record");
    assert!(error.is_truncation());
}

#[test]
fn the_target_page_size_comes_from_the_options_or_configuration() {
    assert_eq!(TargetPageSize::from_bits(9), None);
    assert_eq!(TargetPageSize::from_bits(17), None);
    let decoder = after(&small::preamble()[..8]);
    assert_eq!(decoder.target_page_size().bytes(), 4096);
    let mut stream = small::preamble();
    encode::command(&mut stream, &Command::OpenReturnPath);
    assert_eq!(after(&stream).target_page_size().bytes(), 1024);
}
