//! The rows of the tables of docs/wire/stream.md and docs/wire/ram.md that say "accepted", "harmless" or "tolerated":
//! a decoder that is stricter than a real destination refuses streams that real sources send.

use mig_proto::encode::{self, Block};
use mig_proto::{
    Advise, Command, Configuration, DecodeErrorKind as Kind, Delta, Options, RamWord,
    SectionHeader, SectionKind,
};

use crate::small::{self, PAGE, end_of_records, name, pc_ram};
use crate::support::{Run, run, run_whole};

/// The stream is right, and comes back to the byte.
#[track_caller]
fn accepted(stream: &[u8]) -> Run {
    let run = run_whole(small::options(), stream);
    assert_eq!(run.bytes, stream);
    run
}

fn commands(out: &mut Vec<u8>, commands: &[Command<'_>]) {
    commands.iter().for_each(|command| encode::command(out, command));
}

#[test]
fn a_second_open_return_path_is_harmless() {
    let mut stream = small::preamble();
    commands(&mut stream, &[Command::OpenReturnPath, Command::OpenReturnPath, Command::Ping(7)]);
    stream.push(encode::EOF);
    accepted(&stream);
}

#[test]
fn switchover_start_may_be_absent_repeated_or_anywhere() {
    for count in 0..3 {
        let mut stream = small::preamble();
        commands(&mut stream, &vec![Command::SwitchoverStart; count]);
        small::start(&mut stream);
        stream.push(encode::EOF);
        assert_eq!(accepted(&stream).count("Command(SwitchoverStart)"), count);
    }
}

#[test]
fn a_full_section_may_come_twice_or_with_version_0_and_ids_have_gaps() {
    let mut stream = small::preamble();
    for id in [0xffff_fff0, 0xffff_fff0, 3] {
        small::section(&mut stream, SectionKind::Full, id, "timer", 0);
        stream.extend([0; 24]);
        stream.extend_from_slice(&encode::footer(id));
    }
    stream.push(encode::EOF);
    assert_eq!(accepted(&stream).count("SectionData"), 3);
}

#[test]
fn one_name_may_have_several_instances() {
    let mut stream = small::preamble();
    for instance_id in [0, 1] {
        let section_id = 7 + instance_id;
        let (kind, version_id) = (SectionKind::Full, 1);
        let header =
            SectionHeader { kind, section_id, idstr: name("dma"), instance_id, version_id };
        encode::section(&mut stream, &header);
        stream.extend_from_slice(&encode::footer(section_id));
    }
    stream.push(encode::EOF);
    assert_eq!(accepted(&stream).count("SectionData"), 2);
}

/// Background snapshots have no END; the destination misses no section that is not there.
#[test]
fn sections_may_be_missing() {
    let mut stream = small::preamble();
    small::start(&mut stream);
    small::ram(&mut stream, SectionKind::Part);
    encode::zero_page(&mut stream, RamWord::zero(0), pc_ram());
    end_of_records(&mut stream);
    stream.push(encode::EOF);
    accepted(&stream);
    // Nor anything else.
    let mut stream = small::preamble();
    stream.push(encode::EOF);
    accepted(&stream);
}

/// Syntactically accepted before postcopy; the last length of a block counts.
#[test]
fn a_later_block_list_changes_lengths() {
    let mut stream = small::preamble();
    small::start(&mut stream);
    small::ram(&mut stream, SectionKind::Part);
    let longer = Block { address: Some(0), ..Block::new(pc_ram(), 32 * PAGE as u64) };
    encode::block_list(&mut stream, [longer].into_iter());
    encode::zero_page(&mut stream, RamWord::zero(31 * PAGE as u64), pc_ram());
    end_of_records(&mut stream);
    stream.push(encode::EOF);
    assert_eq!(accepted(&stream).count("BlockList"), 2);
}

#[test]
fn an_empty_delta_and_a_page_of_zeros_are_valid() {
    let mut stream = small::preamble();
    small::start(&mut stream);
    small::ram(&mut stream, SectionKind::Part);
    encode::page_head(&mut stream, RamWord::page(0), pc_ram());
    stream.extend([0; PAGE]);
    let nothing = Delta::new(b"").expect("short");
    encode::xbzrle_page(&mut stream, RamWord::xbzrle(0).continued(), pc_ram(), nothing);
    // The same page any number of times.
    encode::zero_page(&mut stream, RamWord::zero(0).continued(), pc_ram());
    end_of_records(&mut stream);
    stream.push(encode::EOF);
    accepted(&stream);
}

/// ADVISE without ever going further: the stream ends as precopy.
#[test]
fn postcopy_may_be_advised_and_never_come() {
    let mut stream = small::preamble();
    commands(&mut stream, &[Command::PostcopyAdvise(None)]);
    small::start(&mut stream);
    stream.push(encode::EOF);
    stream.extend_from_slice(&encode::vmdescription_header(2));
    stream.extend_from_slice(b"{}");
    assert_eq!(accepted(&stream).count("VmDescription"), 2);
}

/// Up to a START section in which `list` is the block list; ADVISE names pages of 4 KiB and 2 MiB.
fn advised(list: &[u8]) -> Vec<u8> {
    let mut stream = encode::FILE_HEADER.to_vec();
    encode::configuration(&mut stream, &Configuration::new(b"pc").expect("short"));
    let advise = Advise { page_sizes: 0x20_1000, target_page_size: 0x1000 };
    commands(&mut stream, &[Command::PostcopyAdvise(Some(advise))]);
    small::ram(&mut stream, SectionKind::Start);
    stream.extend_from_slice(list);
    stream
}

/// What a source with huge pages says to one that was told nothing about them.
#[test]
fn a_host_page_size_that_nobody_announced_is_told_by_its_value() {
    let list = b"\
        \0\0\0\0\0\x60\x10\x04\
        \x01a\0\0\0\0\0\x20\0\0\0\0\0\0\0\x20\0\0\
        \x01b\0\0\0\0\0\0\x10\0\
        \x01c\0\0\0\0\0\x40\0\0\0\0\0\0\0\x20\0\0";
    for flush in [&b""[..], b"\0\0\0\0\0\0\x02\0", b"\0\0\0\0\0\0\0\x80"] {
        let mut stream = advised(&[&list[..], flush].concat());
        end_of_records(&mut stream);
        stream.push(encode::EOF);
        let whole = run_whole(Options::default(), &stream);
        assert_eq!(whole.bytes, stream);
        let list = whole.events.iter().find(|event| event.starts_with("BlockList")).expect("one");
        assert_eq!(list.matches("host_page_size: Some(2097152)").count(), 2, "{list}");
        assert_eq!(list.matches("host_page_size: None").count(), 1, "{list}");
        for cut in 0..stream.len() {
            let (front, back) = stream.split_at(cut);
            assert_eq!(run(Options::default(), [front, back]), whole, "cut at {cut}");
        }
        assert_eq!(run(Options::default(), stream.chunks(1)), whole);
    }
}

/// Only what ADVISE names is such a word; anything else is what it would be without ADVISE.
#[test]
fn what_advise_does_not_name_is_no_host_page_size() {
    for word in [0, 0x1000, 0x2000, 0x4000_0000, 0x20_1000, 0x20_0010, 1 << 63] {
        let mut list = b"\0\0\0\0\0\x20\x10\x04\x01a\0\0\0\0\0\x20\0\0".to_vec();
        list.extend_from_slice(&u64::to_be_bytes(word));
        list.extend_from_slice(b"\x01b\0\0\0\0\0\0\x10\0");
        let mut stream = advised(&list);
        end_of_records(&mut stream);
        let at = advised(&list[..18]).len() as u64;
        let error = run(Options::default(), [&stream[..]]).error.expect("rejected");
        if word < 1 << 56 {
            assert_eq!((error.position, error.kind), (at, Kind::EmptyBlockName), "{word:#x}");
        }
    }
    // And without ADVISE none is.
    let mut stream = small::preamble();
    small::ram(&mut stream, SectionKind::Start);
    let block = Block { host_page_size: Some(0x20_0000), ..Block::new(pc_ram(), 0x20_0000) };
    encode::block_list(&mut stream, [block].into_iter());
    end_of_records(&mut stream);
    assert!(run(Options::default(), [&stream[..]]).error.is_some());
}

#[test]
fn a_configuration_may_be_nothing_but_an_empty_name() {
    let mut stream = encode::FILE_HEADER.to_vec();
    encode::configuration(&mut stream, &Configuration::new(b"").expect("short"));
    stream.push(encode::EOF);
    assert_eq!(run_whole(Options::default(), &stream).bytes, stream);
}
