//! What a data channel carries: hellos, headers of packets about pages and about devices.
//!
//! ```text
//!   0 which │ 1 … the bytes of the message; what is missing of a header is zero
//!             or, for a header that is right to begin with, patches: be16 offset │ byte │ …
//! ```

use std::num::NonZeroU32;

use mig_proto::multifd::{
    COMMON_LEN, DEVICE_STATE_HEADER_LEN, DeviceStatePacket, HEADER_LEN, HeadKind, Hello, Hellos,
    Method, PACKET_PAGES, PAGE_LEN, PacketPages, RamPacket,
    encode::{self, RamHead},
    head_kind,
};
use mig_proto::{FirstBytes, Name, classify};

use crate::told::told;

/// Length of the block that offsets are checked against.
const BLOCK_LEN: u64 = 1 << 20;

/// The target.
pub fn multifd(data: &[u8]) {
    let Some((&which, bytes)) = data.split_first() else { return };
    match which % 5 {
        0 => hellos(which / 5, bytes),
        1 => any_packet(bytes),
        2 => {
            let mut header = padded::<HEADER_LEN>(&[]);
            let pages = usize::from(which) % 8;
            example_packet(&mut header, pages);
            patch(&mut header, bytes);
            ram(&header);
        }
        3 => {
            let mut out = Vec::new();
            let name = Name::new(b"vfio").expect("short");
            encode::device_state_packet(&mut out, name, 1, NonZeroU32::MIN);
            let mut header = padded::<DEVICE_STATE_HEADER_LEN>(&out);
            patch(&mut header, bytes);
            device_state(&header);
        }
        _ => drop(classify(bytes)),
    }
}

fn padded<const LEN: usize>(bytes: &[u8]) -> [u8; LEN] {
    let mut header = [0; LEN];
    let taken = bytes.len().min(LEN);
    header[..taken].copy_from_slice(&bytes[..taken]);
    header
}

fn patch(header: &mut [u8], patches: &[u8]) {
    for patch in patches.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([patch[0], patch[1]]));
        if let Some(byte) = header.get_mut(at) {
            *byte = patch[2];
        }
    }
}

fn example_packet(header: &mut [u8; HEADER_LEN], pages: usize) {
    let mut list = PacketPages::new();
    for page in 0..pages as u64 {
        let offset = page * PAGE_LEN as u64;
        let pushed = if page % 2 == 0 { list.push_normal(offset) } else { list.push_zero(offset) };
        pushed.expect("eight pages fit");
    }
    let block = Name::new(b"pc.ram").expect("short");
    let head = RamHead { packet_num: 7, block, method: Method::Zstd, compressed_len: 100 };
    let mut out = Vec::with_capacity(HEADER_LEN);
    encode::ram_packet(&mut out, &head, &list);
    header.copy_from_slice(&out);
}

/// Channels that introduce themselves: no more are admitted than are expected, none twice, all of one machine.
fn hellos(channels: u8, bytes: &[u8]) {
    let channels = channels % 8;
    let mut hellos = Hellos::new(channels, None);
    let mut admitted = Vec::new();
    for message in bytes.chunks(Hello::LEN) {
        let message = padded::<{ Hello::LEN }>(message);
        let Ok(hello) = Hello::decode(&message) else { continue };
        assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        assert_eq!(message[..25], hello.encode()[..25]);
        assert!(matches!(classify(&message), FirstBytes::Multifd));
        let was_complete = hellos.is_complete();
        if hellos.admit(&hello).is_ok() {
            assert!(!was_complete && hello.id < channels && !admitted.contains(&hello.id));
            admitted.push(hello.id);
            assert_eq!(hellos.uuid(), Some(hello.uuid));
        }
        assert_eq!(hellos.missing().count() + admitted.len(), usize::from(channels));
    }
}

fn any_packet(bytes: &[u8]) {
    let common = padded::<COMMON_LEN>(bytes);
    match head_kind(&common) {
        Ok(HeadKind::Ram) => ram(&padded(bytes)),
        Ok(HeadKind::DeviceState) => device_state(&padded(bytes)),
        Err(error) => told(&error, bytes),
    }
}

/// What is accepted says the same when it is sent again.
fn ram(header: &[u8; HEADER_LEN]) {
    for method in [Method::None, Method::Zstd] {
        let packet = match RamPacket::parse(header, method) {
            Ok(packet) => packet,
            Err(error) => {
                told(&error, &header[..usize::from(header[31] % 16)]);
                continue;
            }
        };
        assert!(packet.normal().len() + packet.zero().len() <= PACKET_PAGES);
        match packet.check_offsets(BLOCK_LEN) {
            Ok(()) => {
                let mut all = packet.normal().chain(packet.zero());
                assert!(all.all(|offset| offset <= BLOCK_LEN - PAGE_LEN as u64));
            }
            Err(error) => told(&error, &header[..usize::from(header[31] % 16)]),
        }
        told(&packet.unknown_block(), &header[..usize::from(header[31] % 16)]);
        let Some(block) = packet.block() else {
            assert_eq!(packet.payload_len(), 0);
            continue;
        };
        let mut pages = PacketPages::new();
        for offset in packet.normal() {
            pages.push_normal(offset).expect("it came in a packet");
        }
        for offset in packet.zero() {
            pages.push_zero(offset).expect("it came in a packet");
        }
        let compressed_len = packet.payload_len() as u32;
        let head = RamHead { packet_num: packet.packet_num(), block, method, compressed_len };
        let mut again = Vec::with_capacity(HEADER_LEN);
        encode::ram_packet(&mut again, &head, &pages);
        let again = padded::<HEADER_LEN>(&again);
        let back = RamPacket::parse(&again, method).expect("what was accepted is accepted again");
        assert_eq!(back.block(), packet.block());
        assert_eq!(back.payload_len(), packet.payload_len());
        assert!(back.normal().eq(packet.normal()));
        assert!(back.zero().rev_eq(packet.zero()));
    }
}

/// The same pages; which end of the list is filled first is the sender's.
trait SameSet {
    fn rev_eq(self, other: impl Iterator<Item = u64>) -> bool;
}

impl<I: Iterator<Item = u64>> SameSet for I {
    fn rev_eq(self, other: impl Iterator<Item = u64>) -> bool {
        let (mut one, mut other): (Vec<_>, Vec<_>) = (self.collect(), other.collect());
        one.sort_unstable();
        other.sort_unstable();
        one == other
    }
}

fn device_state(header: &[u8; DEVICE_STATE_HEADER_LEN]) {
    match DeviceStatePacket::parse(header, 1 << 20) {
        Ok(packet) => {
            assert!((1..=1 << 20).contains(&packet.payload_len));
            let len = NonZeroU32::new(packet.payload_len).expect("checked above");
            let mut again = Vec::new();
            encode::device_state_packet(&mut again, packet.idstr, packet.instance_id, len);
            let again = padded(&again);
            assert_eq!(DeviceStatePacket::parse(&again, 1 << 20), Ok(packet));
        }
        Err(error) => told(&error, &header[..usize::from(header[31] % 16)]),
    }
}
