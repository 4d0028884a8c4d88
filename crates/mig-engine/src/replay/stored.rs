//! A stored stream that can be looked at before it is sent.

use std::io::{self, Read, Seek, SeekFrom};

use mig_proto::{
    Options, PayloadLength,
    vmdesc::{Located, MAX_JSON_LEN, VmDescription, locate, payload_len},
};

use crate::walk::{InputEnd, Piece, StreamWalk};

/// Bytes of the end that are looked at first; a machine with 30 devices has 42 to 98 KiB of VMDESC.
const TAIL_BYTES: u64 = 256 * 1024;
/// Bytes read at a time.
const READ_BYTES: usize = 1 << 20;

/// What the end of a stored stream says about the rest (docs/wire/vmstate.md §8.4).
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct StoredStream {
    /// Bytes of the stream.
    pub len: u64,
    /// Its VMDESC, if it ends in one that can be read. A stream without is of an old machine type, or cut.
    pub description: Option<VmDescription>,
    /// Payload lengths of its device sections, for [`Options::lengths`].
    pub lengths: Vec<PayloadLength>,
}

impl StoredStream {
    /// Looks at the end of `input`, from its present position on; leaves it at that position.
    ///
    /// # Errors
    ///
    /// The operating system's. A VMDESC that makes no sense is none.
    pub fn look<R: Read + Seek>(input: &mut R) -> io::Result<Self> {
        let start = input.stream_position()?;
        let len = input.seek(SeekFrom::End(0))?.saturating_sub(start);
        let mut stored = Self { len, ..Self::default() };
        // The head of VMDESCRIPTION before the JSON.
        let longest = len.min(MAX_JSON_LEN as u64 + 16);
        let mut tail_len = len.min(TAIL_BYTES);
        loop {
            input.seek(SeekFrom::Start(start + len - tail_len))?;
            let mut tail = Vec::new();
            (&mut *input).take(tail_len).read_to_end(&mut tail)?;
            match locate(&tail, len) {
                Located::Found { json_len, .. } => {
                    let json = &tail[tail.len() - json_len as usize..];
                    stored.understand(json);
                    break;
                }
                Located::NotInTail if tail_len < longest => {
                    tail_len = (4 * tail_len).min(longest);
                }
                Located::NotInTail | Located::Absent => break,
            }
        }
        input.seek(SeekFrom::Start(start))?;
        Ok(stored)
    }

    fn understand(&mut self, json: &[u8]) {
        let description = match VmDescription::parse(json) {
            Ok(description) => description,
            Err(error) => {
                tracing::warn!(%error, "the stream's VMDESC cannot be used");
                return;
            }
        };
        let lengths = description.devices.iter().map(|device| {
            let len = payload_len(device)?;
            let idstr = device.name.as_bytes().into();
            Ok(PayloadLength { idstr, instance_id: device.instance_id, len })
        });
        match lengths.collect::<Result<_, mig_proto::vmdesc::VmdescError>>() {
            Ok(lengths) => self.lengths = lengths,
            Err(error) => tracing::warn!(%error, "the stream's VMDESC contradicts itself"),
        }
        self.description = Some(description);
    }

    /// `options` with what was learnt.
    #[must_use]
    pub fn inform(&self, mut options: Options) -> Options {
        options.lengths.clone_from(&self.lengths);
        options
    }
}

/// Walks through a stored stream to its end, blocking.
///
/// # Errors
///
/// What `visit` answers, the decoder's error (a stream that ends too early included), and the operating system's.
pub fn walk_stored<E>(
    walk: &mut StreamWalk,
    mut input: impl Read,
    mut visit: impl FnMut(Piece<'_>) -> Result<(), E>,
) -> Result<(), E>
where
    E: From<mig_proto::DecodeError> + From<io::Error>,
{
    let mut buffer = vec![0; READ_BYTES];
    let mut filled = 0;
    loop {
        let n = match input.read(&mut buffer[filled..]) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        filled += n;
        let end = if n == 0 { InputEnd::Closed } else { InputEnd::Open };
        let walked = walk.walk(&buffer[..filled], end, &mut visit)?;
        if n == 0 {
            return Ok(());
        }
        // What is left is shorter than the decoder's largest need, so there is always room.
        buffer.copy_within(walked.consumed..filled, 0);
        filled -= walked.consumed;
    }
}
