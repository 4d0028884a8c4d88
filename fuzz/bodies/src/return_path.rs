//! The return path: what the destination says to a source, and what the source makes of it.
//!
//! ```text
//!   0 seed of the cuts, highest bit: the source recovers │ messages
//! ```

use mig_proto::return_path::{
    BitmapLimit, BitmapRules, BlockName, MAX_BODY_LEN, Received, ReturnPathDecoder,
    ReturnPathError, SourceBlock, SourceEvent, SourceReturnPath,
};

use crate::{cuts::Cuts, told::told};

/// Pages of the source's only block.
const PAGES: u64 = 100;

/// The target.
pub fn return_path(data: &[u8]) {
    let Some((&seed, bytes)) = data.split_first() else { return };
    // An onlooker, who takes any bitmap: each message is the same however cut, and encodes to what it was.
    let onlooker = BitmapLimit::AtMost(64);
    let (whole, error) = decoded(bytes, Cuts::new(0), &onlooker);
    let cut = decoded(bytes, Cuts::new(seed | 1), &onlooker);
    assert_eq!((&whole, &error), (&cut.0, &cut.1), "the cuts made a difference");
    let mut again = Vec::new();
    for received in &whole {
        assert_eq!(received.at, again.len() as u64);
        received.message.encode(&mut again);
    }
    assert!(bytes.starts_with(&again), "not what was consumed");
    match &error {
        None => assert_eq!(again, bytes, "accepted, and not the same again"),
        Some(error) => told(error, bytes),
    }
    source(bytes, seed);
}

fn decoded(
    bytes: &[u8],
    mut cuts: Cuts,
    rules: &impl BitmapRules,
) -> (Vec<Received>, Option<ReturnPathError>) {
    let mut decoder = ReturnPathDecoder::new();
    let (mut all, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let mut piece;
        (piece, rest) = rest.split_at(cuts.next().min(rest.len()));
        loop {
            match decoder.next(&mut piece, rules) {
                Ok(Some(received)) => all.push(received),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next(&mut piece, rules), Err(error.clone()));
                    return (all, Some(error));
                }
            }
        }
        assert!(piece.is_empty(), "input is left over");
    }
    assert_eq!(decoder.position(), bytes.len() as u64);
    let end = decoder.finish();
    (all, end.err())
}

/// A source with one block: what it accepts lies in the block, and nothing counts after SHUT.
fn source(bytes: &[u8], seed: u8) {
    let name = BlockName::new("pc.ram").expect("short");
    let block = SourceBlock { name, used_length: PAGES * 4096, host_page_size: 4096 };
    let mut source = SourceReturnPath::new(vec![block], 4096).expect("one block");
    if seed & 0x80 != 0 {
        source.handle_reconnected();
    }
    let mut decoder = ReturnPathDecoder::new();
    let mut rest = bytes;
    let mut over = false;
    while let Ok(Some(received)) = decoder.next(&mut rest, &source) {
        assert!(received.message.encoded_len() <= 4 + MAX_BODY_LEN + 16 + PAGES as usize);
        match source.handle_message(received) {
            Ok(event) => {
                assert_eq!(over, event == SourceEvent::IgnoredAfterShut);
                if let SourceEvent::PagesRequested { block, start, length } = event {
                    assert!(block == 0 && start + u64::from(length) <= PAGES * 4096);
                }
            }
            Err(_) => break,
        }
        over = source.shut_status().is_some();
    }
    assert_eq!(source.handle_closed(decoder.position()).is_ok(), over);
}
