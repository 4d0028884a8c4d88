//! Pieces of a stream that a script puts together: most orders are wrong, and some are right.

use mig_proto::{
    Advise, Command, Configuration, Deflated, Delta, Name, RamWord, SectionHeader, SectionKind,
    encode,
    globalstate::GlobalState,
    multifd::{
        Hello, Method, PacketPages,
        encode::{RamHead, ram_packet, sync_packet},
    },
    peer,
    return_path::Message,
};

use super::guest::{BLOCK, MACHINE, PAGE, PAGES};

const RAM_SECTION: u32 = 1;
const DESCRIPTION: &[u8] = br#"{"page_size":4096,"devices":[]}"#;

fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).expect("short")
}

fn section(out: &mut Vec<u8>, kind: SectionKind, id: u32, idstr: &str, version: u32) {
    let header = SectionHeader {
        kind,
        section_id: id,
        idstr: name(idstr),
        instance_id: 0,
        version_id: version,
    };
    encode::section(out, &header);
}

fn device(out: &mut Vec<u8>, id: u32, idstr: &str, payload: &[u8]) {
    section(out, SectionKind::Full, id, idstr, 1);
    out.extend_from_slice(payload);
    out.extend_from_slice(&encode::footer(id));
}

/// Appends piece number `which` of a main channel; `value` is a page, or what else varies.
pub(crate) fn main_channel(out: &mut Vec<u8>, which: u8, value: u8) {
    let offset = u64::from(value) % PAGES as u64 * PAGE as u64;
    match which % 24 {
        0 => preamble(out),
        1 => encode::command(out, &Command::OpenReturnPath),
        2 => encode::command(out, &Command::Ping(value.into())),
        3 => start(out),
        4 => section(out, SectionKind::Part, RAM_SECTION, "ram", 4),
        5 => section(out, SectionKind::End, RAM_SECTION, "ram", 4),
        6 => {
            encode::page_head(out, RamWord::page(offset), name(BLOCK));
            out.extend_from_slice(&[value; PAGE]);
        }
        7 => encode::zero_page(out, RamWord::zero(offset), name(BLOCK)),
        8 => {
            let delta = Delta::new(&[0x10, 1, 0x5a]).expect("short");
            encode::xbzrle_page(out, RamWord::xbzrle(offset), name(BLOCK), delta);
        }
        9 => {
            let data = Deflated::new(b"x\x9cnot one").expect("short");
            encode::compressed_page(out, RamWord::compressed(offset), name(BLOCK), data);
        }
        10 => end_of_records(out),
        11 => encode::ram_word(out, RamWord::MULTIFD_FLUSH),
        12 => device(out, 2, "clock", b"twelve bytes"),
        13 => device(out, 3, "globalstate", &GlobalState::default().encode()),
        14 => out.push(encode::EOF),
        15 => {
            out.extend_from_slice(&encode::vmdescription_header(DESCRIPTION.len() as u32));
            out.extend_from_slice(DESCRIPTION);
        }
        16 => encode::command(out, &Command::SwitchoverStart),
        17 => {
            let advise = Advise { page_sizes: 4096, target_page_size: 4096 };
            encode::command(out, &Command::PostcopyAdvise(Some(advise)));
        }
        18 => encode::command(out, &Command::PostcopyListen),
        19 => encode::command(out, &Command::Ping(peer::MAY_CHANNELS_CHANGE)),
        20 => encode::command(out, &Command::Ping(peer::channels_from_here(value % 4))),
        21 => encode::ram_word(out, RamWord::HOOK),
        // All of a migration up to its devices, and all of it.
        22 => {
            preamble(out);
            encode::command(out, &Command::OpenReturnPath);
            memory(out);
        }
        _ => {
            preamble(out);
            if value & 1 == 1 {
                encode::command(out, &Command::OpenReturnPath);
            }
            memory(out);
            device(out, 2, "clock", b"twelve bytes");
            device(out, 3, "globalstate", &GlobalState::default().encode());
            out.push(encode::EOF);
            out.extend_from_slice(&encode::vmdescription_header(DESCRIPTION.len() as u32));
            out.extend_from_slice(DESCRIPTION);
        }
    }
}

fn preamble(out: &mut Vec<u8>) {
    out.extend_from_slice(&encode::FILE_HEADER);
    encode::configuration(out, &Configuration::new(MACHINE.as_bytes()).expect("short"));
}

fn start(out: &mut Vec<u8>) {
    section(out, SectionKind::Start, RAM_SECTION, "ram", 4);
    let block = encode::Block::new(name(BLOCK), (PAGES * PAGE) as u64);
    encode::block_list(out, [block].into_iter());
    end_of_records(out);
}

fn end_of_records(out: &mut Vec<u8>) {
    encode::ram_word(out, RamWord::EOS);
    out.extend_from_slice(&encode::footer(RAM_SECTION));
}

fn memory(out: &mut Vec<u8>) {
    start(out);
    section(out, SectionKind::End, RAM_SECTION, "ram", 4);
    for page in 0..PAGES as u64 {
        encode::zero_page(out, RamWord::zero(page * PAGE as u64), name(BLOCK));
    }
    end_of_records(out);
}

/// Appends piece number `which` of a data channel.
pub(crate) fn data_channel(out: &mut Vec<u8>, which: u8, value: u8) {
    match which % 4 {
        0 => out.extend_from_slice(&Hello { uuid: [0; 16], id: value % 4 }.encode()),
        1 => sync_packet(out, value.into()),
        2 => {
            let mut pages = PacketPages::new();
            for page in 0..u64::from(value) % 3 {
                pages.push_normal(page * PAGE as u64).expect("there is room");
            }
            pages.push_zero(u64::from(value) % PAGES as u64 * PAGE as u64).expect("there is room");
            let head = RamHead {
                packet_num: 0,
                block: name(BLOCK),
                method: Method::None,
                compressed_len: 0,
            };
            ram_packet(out, &head, &pages);
            out.resize(out.len() + pages.raw_len() as usize, value);
        }
        _ => {
            let device = name("clock");
            let len = std::num::NonZeroU32::MIN.saturating_add(value.into());
            mig_proto::multifd::encode::device_state_packet(out, device, 0, len);
            out.resize(out.len() + 1 + usize::from(value), value);
        }
    }
}

/// Appends message number `which` of a return path.
pub(crate) fn answer(out: &mut Vec<u8>, which: u8, value: u8) {
    let message = match which % 6 {
        0 => Message::Pong { value: value.into() },
        1 => Message::Shut { status: 0 },
        2 => Message::Shut { status: value.into() },
        3 => Message::SwitchoverAck,
        4 => Message::Pong { value: peer::CHANNELS_MAY_CHANGE },
        _ => Message::ResumeAck { value: 1 },
    };
    message.encode(out);
}
