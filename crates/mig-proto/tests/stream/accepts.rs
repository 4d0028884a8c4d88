//! The rows of the tables of docs/wire/stream.md and docs/wire/ram.md that say "accepted", "harmless" or "tolerated":
//! a decoder that is stricter than a real destination refuses streams that real sources send.

use mig_proto::encode::{self, Block};
use mig_proto::{Command, Configuration, Delta, Options, RamWord, SectionHeader, SectionKind};

use crate::small::{self, PAGE, end_of_records, name, pc_ram};
use crate::support::{Run, run_whole};

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

#[test]
fn a_configuration_may_be_nothing_but_an_empty_name() {
    let mut stream = encode::FILE_HEADER.to_vec();
    encode::configuration(&mut stream, &Configuration::new(b"").expect("short"));
    stream.push(encode::EOF);
    assert_eq!(run_whole(Options::default(), &stream).bytes, stream);
}
