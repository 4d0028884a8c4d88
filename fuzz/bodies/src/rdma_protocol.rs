//! The protocol of `rdma:` without a device: a destination that any source asks, a source that any destination answers.
//!
//! ```text
//!   0 which end, options │ then events: one byte each, with what belongs to it
//! ```

use mig_transport_rdma::protocol::{
    Span,
    blocks::{DestinationBlocks, SourceBlocks},
    header::{Frame, Header, Kind},
    message::{Message, RegisterResult, RemoteBlock},
    private_data::{Agreed, Extensions},
    ready::{Receiver, Sender},
    runs::Policy,
    serve::{Action, Server},
    transfer::{Step, Transfer},
    windows::{Config, WindowId},
};

const MIB: u64 = 1 << 20;
const LENS: [u64; 2] = [4 * MIB, MIB + 8192];

/// The target.
pub fn rdma_protocol(data: &[u8]) {
    let Some((&options, events)) = data.split_first() else { return };
    if options & 1 == 0 { destination(options, events) } else { source(options, events) }
}

/// Takes bytes off the front; what is missing is zero.
fn word<const LEN: usize>(bytes: &mut &[u8]) -> [u8; LEN] {
    let taken = bytes.len().min(LEN);
    let (front, rest) = bytes.split_at(taken);
    let mut word = [0; LEN];
    word[..taken].copy_from_slice(front);
    *bytes = rest;
    word
}

fn next(bytes: &mut &[u8]) -> Option<u8> {
    let (&first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(first)
}

/// Messages of any type, with fields near the borders of what is there. What is granted lies in a block, and what is
/// held stays under its limit.
fn destination(options: u8, mut events: &[u8]) {
    let mut blocks = DestinationBlocks::new();
    blocks.register("pc.ram", LENS[0], 1 << 40).expect("short");
    blocks.register("vga.vram", LENS[1], 2 << 40).expect("short");
    let limit = 2 * blocks.total_bytes();
    let pin_all = options & 2 != 0;
    let mut server = Server::new(blocks, pin_all, MIB).expect("right limits");
    let mut receiver = Receiver::new(4);
    while let Some(kind) = next(&mut events) {
        let number = u32::from(kind) % 13;
        let message = made(number, kind, &mut events);
        if receiver.may_ready() {
            receiver.ready().expect("it may");
        }
        let Ok(known) = Kind::from_wire(number) else { continue };
        if receiver.received(known).is_err() {
            return;
        }
        receiver.reposted();
        let Ok(action) = server.serve(&message) else { return };
        assert!(server.registered_bytes() <= limit);
        match action {
            Action::ReplyBlocks => {
                let keys: &[u32] = if pin_all { &[1, 2] } else { &[] };
                assert_eq!(server.blocks_result(keys).expect("the right keys").len(), 2);
                receiver.respond(Kind::RamBlocksResult).expect("owed");
            }
            Action::Register { registrations, repeat } => {
                for registration in &registrations {
                    inside(&registration.span);
                }
                let _ = server.register_reply(&registrations[0], 7, repeat);
                receiver.respond(Kind::RegisterResult).expect("owed");
            }
            Action::Unregister { slots, .. } => {
                assert!(!slots.is_empty());
                receiver.respond(Kind::UnregisterFinished).expect("owed");
            }
            Action::Zero(span) => inside(&span),
            Action::Finished => {}
        }
        receiver.done().expect("a command was served");
    }
}

fn inside(span: &Span) {
    let len = LENS[span.block as usize];
    assert!(span.len > 0 && span.offset < len && span.len <= len - span.offset, "{span:?}");
}

/// A message whose fields are small numbers or anything.
fn made(number: u32, kind: u8, events: &mut &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    let mut repeat = 1_u32;
    let shape: &[u32] = match number {
        6 => &[4, 4, 8, 8],
        7 | 10 => &[8, 4, 4, 8],
        3 => &[1],
        _ => &[],
    };
    if kind >= 200 {
        // Several elements, or a number of them that is a lie.
        repeat = u32::from(next(events).unwrap_or(1));
    }
    for _ in 0..repeat.clamp(1, 8) {
        for &len in shape {
            let value = match next(events).unwrap_or(0) {
                small @ 0..=63 => u64::from(small),
                pages @ 64..=191 => u64::from(pages - 64) * 64 * 1024,
                _ => u64::from_be_bytes(word(events)),
            };
            payload.extend_from_slice(&value.to_be_bytes()[8 - len as usize..]);
        }
    }
    let len = payload.len() as u32;
    let mut message = Vec::new();
    for word in [len, number, repeat, 0] {
        message.extend_from_slice(&word.to_be_bytes());
    }
    message.extend_from_slice(&payload);
    message
}

/// A source that is answered anything. What it writes lies in the blocks that were exchanged, and only into windows that
/// it has a key for.
fn source(options: u8, mut events: &[u8]) {
    let mut blocks = SourceBlocks::new();
    blocks.register("pc.ram", LENS[0]).expect("short");
    blocks.register("vga.vram", LENS[1]).expect("short");
    let pin_all = options & 2 != 0;
    let mut remote: [RemoteBlock; 2] = [
        RemoteBlock { host_addr: 1 << 40, ram_offset: 0, length: LENS[0], rkey: 0 },
        RemoteBlock { host_addr: 2 << 40, ram_offset: LENS[0], length: LENS[1], rkey: 0 },
    ];
    if pin_all {
        remote[0].rkey = 3;
        remote[1].rkey = 4;
    }
    if options & 4 != 0 {
        // Not what was asked for: it is accepted only if it makes sense.
        remote[0].host_addr = u64::from_be_bytes(word(&mut events));
        remote[1].ram_offset = u64::from_be_bytes(word(&mut events));
        remote[1].length = u64::from(u32::from_be_bytes(word(&mut events)));
    }
    let mut buffer = [0; 16 + 2 * 32];
    let result = mig_transport_rdma::protocol::message::Outgoing::RamBlocksResult(&remote);
    let len = result.encode(&mut buffer).expect("two blocks fit");
    let Ok(Message::RamBlocksResult(elements)) = Message::decode(&buffer[..len]) else {
        panic!("our own message");
    };
    if blocks.accept_result(&elements).is_err() {
        return;
    }
    let unregister = options & 8 != 0;
    let agreed = Agreed { pin_all, ours: unregister, extensions: Extensions { unregister } };
    let config = Config { window_bytes: MIB, pinned_budget: 3 * MIB };
    let mut transfer = Transfer::new(blocks, agreed, config, Policy::default()).expect("exchanged");
    let mut sender = Sender::new(4);
    let mut writes: Vec<WindowId> = Vec::new();
    let mut written = 0_u64;
    while let Some(event) = next(&mut events) {
        match event % 4 {
            0 if transfer.has_room() => {
                let [block, page, pages, zeros] = word(&mut events);
                let span = Span {
                    block: u32::from(block % 3),
                    offset: u64::from(page) * 16 * 1024,
                    len: u64::from(pages) * 4096,
                };
                // Every second, or none, or all of its pages are zero.
                let zero = (0..u64::from(pages)).filter(|page| zeros >> (page % 8) & 1 == 1);
                let _ = transfer.offer(span, 4096, zero);
            }
            1 | 0 => {
                let Some(kind) = next(&mut events) else { return };
                let Ok(kind) = Kind::from_wire(u32::from(kind) % 12) else { return };
                let payload = match kind {
                    Kind::RegisterResult => {
                        let result = RegisterResult { rkey: 9, host_addr: 1 << 40 };
                        let mut payload = vec![0; 16];
                        mig_transport_rdma::protocol::message::Element::write(
                            &result,
                            &mut payload,
                        );
                        if event >= 128 {
                            payload[..8].copy_from_slice(&word::<8>(&mut events));
                        }
                        payload
                    }
                    _ => Vec::new(),
                };
                if sender.received(kind).is_err() {
                    return;
                }
                sender.reposted();
                let header = Header { kind, len: payload.len() as u32, repeat: 1 };
                let Ok(message) = Message::from_frame(&Frame { header, payload: &payload }) else {
                    return;
                };
                if kind != Kind::Ready && transfer.response(&message).is_err() {
                    return;
                }
            }
            2 => {
                let Some(window) = writes.pop() else { continue };
                transfer.write_done(window).expect("it was in flight");
            }
            _ => {
                for _ in 0..8 {
                    match transfer.poll(&mut sender, event >= 128) {
                        Ok(Step::Write { window, span, remote_addr, rkey: _ }) => {
                            inside(&span);
                            let base = remote[span.block as usize].host_addr;
                            assert_eq!(remote_addr.wrapping_sub(base), span.offset);
                            written += span.len;
                            writes.push(window);
                        }
                        Ok(Step::Wait { .. } | Step::Idle) => break,
                        Ok(Step::Send(_) | Step::RegisterLocal { .. } | Step::DropLocal { .. }) => {
                        }
                        Err(_) => return,
                    }
                }
            }
        }
    }
    assert_eq!(transfer.counters().written_bytes, written);
    assert!(!transfer.drained() || writes.is_empty());
}
