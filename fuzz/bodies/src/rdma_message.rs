//! Control messages of `rdma:` and what connect and accept carry: decoded, and encoded to the same bytes.
//!
//! ```text
//!   0 what │ the message; the length in its header is put right in three of four
//! ```

use mig_transport_rdma::protocol::{
    header::{Frame, HEADER_LEN, MAX_PAYLOAD, MAX_REPEAT},
    message::{Message, Outgoing, RemoteBlock},
    private_data::{Agreed, Extensions, Reply, Request},
    stream::StreamDrain,
};

use crate::told::told;

/// The target.
pub fn rdma_message(data: &[u8]) {
    let Some((&what, bytes)) = data.split_first() else { return };
    if what % 4 == 3 {
        return private_data(what, bytes);
    }
    let mut bytes = bytes.to_vec();
    if what % 4 != 0
        && let Some(len) = bytes.len().checked_sub(HEADER_LEN)
    {
        bytes[..4].copy_from_slice(&(len as u32).to_be_bytes());
    }
    let frame = match Frame::decode(&bytes) {
        Ok(frame) => frame,
        Err(error) => return told(&error, &bytes),
    };
    assert!(frame.payload.len() <= MAX_PAYLOAD);
    assert_eq!(frame.check_repeat().is_ok(), frame.header.repeat <= MAX_REPEAT);
    if let Ok(mut drain) = StreamDrain::of(&frame) {
        let mut read = vec![0; drain.unread()];
        assert_eq!(drain.read(&bytes, &mut read), read.len());
        assert_eq!(read, frame.payload);
        assert_eq!(drain.unread(), 0);
    }
    let message = match Message::from_frame(&frame) {
        Ok(message) => message,
        Err(error) => return told(&error, &bytes),
    };
    assert_eq!(message.kind(), frame.header.kind);
    let mut blocks: Vec<RemoteBlock> = Vec::new();
    let Some(outgoing) = outgoing(&message, frame.header.repeat, &mut blocks) else { return };
    let mut again = vec![0; outgoing.encoded_len()];
    let len = outgoing.encode(&mut again).expect("what came fits a message");
    let back = Message::decode(&again[..len]).expect("what was accepted is accepted again");
    match (back, message) {
        // Only the padding of its elements may differ.
        (Message::RamBlocksResult(back), Message::RamBlocksResult(came)) => {
            assert!(back.iter().eq(came.iter()));
        }
        (Message::RegisterRequest(back), Message::RegisterRequest(came))
        | (Message::UnregisterRequest(back), Message::UnregisterRequest(came)) => {
            assert!(back.iter().eq(came.iter()));
        }
        (back, came) => assert_eq!(back, came),
    }
}

/// The same to be sent, where it can be: we send no register requests of several elements.
fn outgoing<'a>(
    message: &Message<'a>,
    repeat: u32,
    blocks: &'a mut Vec<RemoteBlock>,
) -> Option<Outgoing<'a>> {
    Some(match message {
        Message::Error => Outgoing::Error,
        Message::Ready => Outgoing::Ready,
        Message::QemuFile(bytes) => Outgoing::QemuFile(bytes),
        Message::RamBlocksRequest => Outgoing::RamBlocksRequest,
        Message::RamBlocksResult(elements) => {
            assert_eq!(elements.iter().len(), elements.len());
            blocks.extend(elements.iter());
            Outgoing::RamBlocksResult(blocks)
        }
        Message::Compress(compress) => Outgoing::Compress(*compress),
        Message::RegisterRequest(all) | Message::UnregisterRequest(all) if all.len() != 1 => {
            assert!(!all.is_empty() && all.len() == repeat as usize);
            return None;
        }
        Message::RegisterRequest(one) => Outgoing::Register(one.iter().next()?),
        Message::UnregisterRequest(one) => Outgoing::Unregister(one.iter().next()?),
        Message::RegisterResult(result) => Outgoing::RegisterResult { result: *result, repeat },
        Message::RegisterFinished => Outgoing::RegisterFinished,
        Message::UnregisterFinished => Outgoing::UnregisterFinished { repeat },
    })
}

/// Both ends come to the same, and no extension is in force that one of them does not know.
fn private_data(what: u8, bytes: &[u8]) {
    let known = Extensions { unregister: what & 4 != 0 };
    let (asked, told) = bytes.split_at(bytes.len() / 2);
    let Ok(request) = Request::decode(asked) else { return };
    assert_eq!(Request::decode(&request.encode()), Ok(request));
    let reply = request.answer(what & 8 != 0, known);
    let answered = Reply::decode(&reply.encode()).expect("our own");
    assert_eq!(request.settle(&answered), reply.agreed());
    let agreed = reply.agreed();
    assert!(!agreed.extensions.unregister || known.unregister);
    // Any other end's answer gives nothing that was not asked for.
    let Ok(foreign) = Reply::decode(told) else { return };
    let Agreed { pin_all, ours, extensions } = request.settle(&foreign);
    assert!(!pin_all || request.pin_all);
    assert!(!ours || request.extensions.is_some());
    assert!(!extensions.unregister || request.extensions.is_some_and(|asked| asked.unregister));
}
