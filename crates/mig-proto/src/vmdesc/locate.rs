//! Finding the VMDESC from the end of a stored stream. docs/wire/vmstate.md §8.4.

/// Bytes before the JSON: EOF, VMDESCRIPTION, be32 length.
const HEAD_LEN: usize = 6;

/// What [`locate`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Located {
    /// Here it is; positions count from the start of the stream.
    Found {
        /// Where the byte 06 is (the EOF is right before it).
        item_at: u64,
        /// Where the JSON begins; it ends with the stream.
        json_at: u64,
        /// Bytes of JSON.
        json_len: u32,
    },
    /// Not in this tail: it begins further ahead, or nowhere. Try a longer tail, up to
    /// [`MAX_JSON_LEN`](super::MAX_JSON_LEN) bytes.
    NotInTail,
    /// The whole stream was looked at: it has none (postcopy, old machine types).
    Absent,
}

/// Looks for `00 | 06 | be32 n | '{'` such that exactly n bytes remain, from the end.
///
/// `tail` is the end of a stream of `total_len` bytes. The first match from the end is the right
/// one: control characters do not occur inside JSON text.
pub fn locate(tail: &[u8], total_len: u64) -> Located {
    // usize is at most 64 bits wide on every target of Rust.
    let tail_at = total_len.saturating_sub(tail.len() as u64);
    let begins_here = |json: usize| -> Option<u32> {
        let json_len = u32::try_from(tail.len() - json).ok()?;
        let head = tail[..json].last_chunk::<HEAD_LEN>()?;
        let [eof, item, len @ ..] = *head;
        (tail[json] == b'{' && eof == 0 && item == 6 && u32::from_be_bytes(len) == json_len)
            .then_some(json_len)
    };
    for json in (HEAD_LEN..tail.len()).rev() {
        if let Some(json_len) = begins_here(json) {
            let json_at = tail_at + json as u64;
            return Located::Found { item_at: json_at - 5, json_at, json_len };
        }
    }
    if tail_at == 0 { Located::Absent } else { Located::NotInTail }
}
