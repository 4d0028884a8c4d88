//! What a hostile source may send, and how it is refused: one closed list for the tests without a device and with one.

use super::{
    blocks::DestinationBlock,
    header::{HEADER_LEN, Kind, MAX_PAYLOAD},
};

/// When the message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Where stream bytes are expected.
    Stream,
    /// In the first hook window, instead of RAM_BLOCKS_REQUEST.
    BeforeExchange,
    /// In a hook window, after the block exchange.
    Window,
}

/// One malformed message.
#[derive(Clone, Debug)]
pub struct Malformed {
    /// What is wrong with it.
    pub name: &'static str,
    /// When it is sent.
    pub moment: Moment,
    /// The bytes of the SEND.
    pub bytes: Vec<u8>,
    /// A part of the text it is refused with.
    pub error: &'static str,
}

fn raw(len: u32, kind: u32, repeat: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    for word in [len, kind, repeat, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(payload);
    bytes
}

fn message(kind: Kind, repeat: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a test's payload is short");
    raw(len, kind as u32, repeat, payload)
}

fn compress(value: u32, block: u32, ram_addr: u64, length: u64) -> Vec<u8> {
    let mut payload = Vec::new();
    payload.extend(value.to_be_bytes());
    payload.extend(block.to_be_bytes());
    payload.extend(ram_addr.to_be_bytes());
    payload.extend(length.to_be_bytes());
    message(Kind::Compress, 1, &payload)
}

fn request(kind: Kind, key: u64, block: u32, chunks: u64) -> Vec<u8> {
    let mut payload = Vec::new();
    payload.extend(key.to_be_bytes());
    payload.extend(block.to_be_bytes());
    payload.extend(0u32.to_be_bytes());
    payload.extend(chunks.to_be_bytes());
    message(kind, 1, &payload)
}

/// Every malformed message, made for a destination with these blocks: at least one, where nothing is registered yet.
pub fn malformed(blocks: &[DestinationBlock]) -> Vec<Malformed> {
    let mut list = headers();
    list.extend(moments());
    list.extend(payload_lengths());
    list.extend(fields(blocks));
    list
}

fn headers() -> Vec<Malformed> {
    let window = |name, bytes, error| Malformed { name, moment: Moment::Window, bytes, error };
    let stream = |name, bytes, error| Malformed { name, moment: Moment::Stream, bytes, error };
    vec![
        stream("shorter than a header", vec![0; 15], "byte count 15"),
        stream("no bytes at all", vec![], "byte count 0"),
        stream("payload shorter than len", raw(9, 3, 0, &[0; 8]), "8 bytes followed"),
        stream("payload longer than len", raw(7, 3, 0, &[0; 8]), "8 bytes followed"),
        stream("len past the buffer", raw(MAX_PAYLOAD as u32 + 1, 3, 0, &[0; 8]), "at most 524272"),
        stream("len of all ones", raw(u32::MAX, 3, 0, &[]), "at most 524272"),
        stream("the first unknown type", raw(0, 12, 1, &[]), "type 12"),
        stream(
            "little-endian header",
            vec![1, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7],
            "len 16777216",
        ),
        window("an unknown type in a window", raw(0, u32::MAX, 1, &[]), "type 4294967295"),
        window("repeat above 4096", raw(0, 9, 4097, &[]), "at most 4096"),
        window("repeat of all ones", raw(0, 9, u32::MAX, &[]), "at most 4096"),
    ]
}

fn moments() -> Vec<Malformed> {
    let mut list = Vec::new();
    let mut add = |name, moment, bytes, error| list.push(Malformed { name, moment, bytes, error });
    let compress = compress(0, 0, 0, 4096);
    let register = request(Kind::RegisterRequest, 0, 0, 0);
    let unregister = request(Kind::UnregisterRequest, 0, 0, 0);
    use Moment::{BeforeExchange, Stream, Window};
    add("no stream bytes", Stream, message(Kind::QemuFile, 0, &[]), "at least one stream byte");
    add("NONE", Stream, message(Kind::None, 1, &[]), "never sent");
    add("a COMPRESS in the stream", Stream, compress.clone(), "outside of a hook window");
    add("a REGISTER_REQUEST in the stream", Stream, register.clone(), "outside of a hook window");
    add(
        "a REGISTER_FINISHED in the stream",
        Stream,
        message(Kind::RegisterFinished, 1, &[]),
        "outside of a hook window",
    );
    add(
        "a RAM_BLOCKS_REQUEST in the stream",
        Stream,
        message(Kind::RamBlocksRequest, 1, &[]),
        "outside of a hook window",
    );
    add("COMPRESS first", BeforeExchange, compress, "before RAM_BLOCKS_REQUEST");
    add("REGISTER_REQUEST first", BeforeExchange, register, "before RAM_BLOCKS_REQUEST");
    add("UNREGISTER_REQUEST first", BeforeExchange, unregister, "before RAM_BLOCKS_REQUEST");
    add(
        "a second RAM_BLOCKS_REQUEST",
        Window,
        message(Kind::RamBlocksRequest, 1, &[]),
        "a second time",
    );
    add(
        "stream bytes in a window",
        Window,
        message(Kind::QemuFile, 0, &[1]),
        "inside a hook window",
    );
    add("NONE in a window", Window, message(Kind::None, 1, &[]), "never sent");
    add("READY to the receiver", Window, message(Kind::Ready, 1, &[]), "never gets one");
    add(
        "a RAM_BLOCKS_RESULT",
        Window,
        message(Kind::RamBlocksResult, 1, &[0; 32]),
        "never gets one",
    );
    add("a REGISTER_RESULT", Window, message(Kind::RegisterResult, 1, &[0; 16]), "never gets one");
    add(
        "an UNREGISTER_FINISHED",
        Window,
        message(Kind::UnregisterFinished, 1, &[]),
        "never gets one",
    );
    list
}

fn payload_lengths() -> Vec<Malformed> {
    let window = |name, bytes, error| Malformed { name, moment: Moment::Window, bytes, error };
    vec![
        window("a short COMPRESS", message(Kind::Compress, 1, &[0; 23]), "24 bytes"),
        window("a long COMPRESS", message(Kind::Compress, 1, &[0; 48]), "24 bytes"),
        window("an empty COMPRESS", message(Kind::Compress, 1, &[]), "24 bytes"),
        window(
            "a REGISTER_FINISHED with payload",
            message(Kind::RegisterFinished, 1, &[0]),
            "0 bytes",
        ),
        window("REGISTER_REQUEST of nothing", message(Kind::RegisterRequest, 0, &[]), "1 to 4096"),
        window(
            "REGISTER_REQUEST with too few elements",
            message(Kind::RegisterRequest, 4096, &[0; 24]),
            "98304 bytes",
        ),
        window(
            "REGISTER_REQUEST with too many elements",
            message(Kind::RegisterRequest, 1, &[0; 48]),
            "24 bytes",
        ),
        window("a cut REGISTER_REQUEST", message(Kind::RegisterRequest, 1, &[0; 16]), "24 bytes"),
        window(
            "UNREGISTER_REQUEST of nothing",
            message(Kind::UnregisterRequest, 0, &[]),
            "1 to 4096",
        ),
        window(
            "a cut UNREGISTER_REQUEST",
            message(Kind::UnregisterRequest, 2, &[0; 24]),
            "48 bytes",
        ),
    ]
}

fn fields(blocks: &[DestinationBlock]) -> Vec<Malformed> {
    let mut list = Vec::new();
    let mut window =
        |name, bytes, error| list.push(Malformed { name, moment: Moment::Window, bytes, error });
    let count = u32::try_from(blocks.len()).expect("a test has few blocks");
    let last = count - 1;
    let block = &blocks[last as usize];
    let (base, len) = (block.ram_offset, block.len);
    let (register, unregister) = (Kind::RegisterRequest, Kind::UnregisterRequest);

    window("COMPRESS of another value", compress(0xff, last, base, 4096), "only 0");
    window("COMPRESS of a block too many", compress(0, count, base, 4096), "block");
    window("COMPRESS of block 2^32-1", compress(0, u32::MAX, base, 4096), "block");
    window("COMPRESS at the block's end", compress(0, last, base + len, 1), "lies from");
    window("COMPRESS past the block's end", compress(0, last, base, len + 1), "left in block");
    window("COMPRESS that crosses the end", compress(0, last, base + len - 1, 2), "left in block");
    window("COMPRESS of nothing", compress(0, last, base, 0), "left in block");
    window("COMPRESS that wraps around", compress(0, last, base + 1, u64::MAX), "left in block");
    window("COMPRESS at the last address", compress(0, last, u64::MAX, 1), "lies from");
    window("REGISTER of a block too many", request(register, base, count, 0), "block");
    window("REGISTER of block 2^32-1", request(register, base, u32::MAX, 0), "block");
    window("REGISTER at the block's end", request(register, base + len, last, 0), "lies from");
    window(
        "REGISTER at the last address",
        request(register, u64::MAX, last, u64::MAX),
        "lies from",
    );
    window("UNREGISTER of a block too many", request(unregister, 0, count, 0), "block");
    window(
        "UNREGISTER of a chunk too many",
        request(unregister, len.div_ceil(1 << 20), last, 0),
        "chunks",
    );
    window("UNREGISTER of chunk 2^64-1", request(unregister, u64::MAX, last, 0), "chunks");
    window(
        "UNREGISTER of what is not registered",
        request(unregister, 0, last, 0),
        "no registration",
    );
    if base > 0 {
        window("COMPRESS before the block", compress(0, last, base - 1, 4096), "lies from");
        window("REGISTER before the block", request(register, base - 1, last, 0), "lies from");
    }
    list
}

#[cfg(test)]
mod tests {
    use super::{
        super::{blocks::DestinationBlocks, header::Frame, serve::Server, stream::StreamDrain},
        *,
    };

    #[test]
    fn each_is_refused_for_its_reason_and_changes_nothing() {
        let mut blocks = DestinationBlocks::new();
        blocks.register("pc.ram", 8 << 20, 1 << 40).unwrap();
        blocks.register("vga.vram", 3 << 20, 2 << 40).unwrap();
        let list = malformed(blocks.blocks());
        assert!(list.len() > 50);
        for bad in list {
            let error = match bad.moment {
                Moment::Stream => {
                    Frame::decode(&bad.bytes).and_then(|frame| StreamDrain::of(&frame)).err()
                }
                Moment::BeforeExchange | Moment::Window => {
                    let mut server = Server::new(blocks.clone(), false, 1 << 20).unwrap();
                    if bad.moment == Moment::Window {
                        server.serve(&message(Kind::RamBlocksRequest, 1, &[])).unwrap();
                    }
                    let error = server.serve(&bad.bytes).err();
                    assert_eq!(server.registered_bytes(), 0, "{}", bad.name);
                    error
                }
            };
            let error = error.unwrap_or_else(|| panic!("{}: accepted", bad.name));
            assert_eq!(error.blame(), mig_transport::Blame::PeerMisbehaved, "{}", bad.name);
            let text = error.to_string();
            assert!(text.contains(bad.error), "{}: {text}", bad.name);
        }
    }
}
