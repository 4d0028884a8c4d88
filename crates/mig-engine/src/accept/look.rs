//! What a connection says it is, by its first bytes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mig_proto::{FirstBytes, classify, multifd::Hello};
use mig_stream::{IdleClock, Stream, StreamOptions, StreamReader, within};
use mig_transport::Channel;

use crate::{
    deadlines::Wait,
    error::{Error, Result},
};

/// As much of a stranger's words is held. A hello and the longest head fit.
const FIRST_LOOK_BYTES: usize = 1024;

/// A channel whose first bytes were seen.
pub(crate) type Accepted = (Stream, StreamReader);

/// A channel that said what it is.
pub(super) enum Arrival {
    /// Nothing of it was consumed.
    Main(Accepted),
    /// Its hello was consumed.
    Data(Hello, Accepted),
}

impl Arrival {
    /// From here on its bytes are the migration's, and silence on it counts. Its buffer stays small until it is let in.
    pub(super) fn under(self, idle: Option<&Arc<IdleClock>>) -> Self {
        let under = |(mut stream, mut reader): Accepted| {
            stream.set_idle(idle.cloned());
            reader.set_idle(idle.cloned());
            (stream, reader)
        };
        match self {
            Self::Main(accepted) => Self::Main(under(accepted)),
            Self::Data(hello, accepted) => Self::Data(hello, under(accepted)),
        }
    }
}

/// Reads the first bytes of a channel and decides what it is; `spoke` is set once there are any.
///
/// # Cancel safety
///
/// Dropping the future closes the channel.
pub(super) async fn look_at(
    channel: Channel,
    first_byte: Duration,
    spoke: Arc<AtomicBool>,
) -> Result<Arrival> {
    let name = channel.endpoint().to_string();
    let options = StreamOptions::default().buffer_bytes(FIRST_LOOK_BYTES);
    let mut stream = Stream::open(channel, options);
    let mut reader = stream.reader()?;
    // A single-channel transport is connected before its far end exists: only several channels can hold strangers.
    let strangers = stream.capabilities().several_channels;
    let deadline = strangers.then_some(first_byte);
    let first = within::<_, Error>("waiting for the first bytes", deadline, async {
        loop {
            spoke.store(!reader.buffer().is_empty(), Ordering::Relaxed);
            match classify(reader.buffer()) {
                FirstBytes::TooFew if reader.fill().await? == 0 => return Ok(FirstBytes::TooFew),
                FirstBytes::TooFew => {}
                FirstBytes::Multifd => {
                    reader.peek(Hello::LEN).await?;
                    return Ok(FirstBytes::Multifd);
                }
                // Over its only channel a stream that ends in its head is cut, and its decoder says so. Of several, whoever
                // hangs up there is not the one that is waited for, or comes again.
                FirstBytes::Main if strangers && !has_head(reader.buffer()) => {
                    if reader.fill().await? == 0 {
                        return Ok(FirstBytes::TooFew);
                    }
                }
                decided => return Ok(decided),
            }
        }
    })
    .await
    .map_err(|error| error.ran_out(Wait::FirstByte).on(name.as_str()))?;
    match first {
        FirstBytes::Main => Ok(Arrival::Main((stream, reader))),
        FirstBytes::TooFew => Err(Error::peer_misbehaved(format!(
            "the stream ended after {} bytes, inside its header",
            reader.buffer().len()
        ))),
        FirstBytes::Multifd => hello(&mut reader).map(|hello| {
            reader.consume(Hello::LEN);
            Arrival::Data(hello, (stream, reader))
        }),
        FirstBytes::Other => Err(no_stream(reader.buffer())),
    }
    .map_err(|error| error.on(name.as_str()).at(0))
}

/// Whether the file header and the machine's name are there, or something that no more bytes make sound (docs/wire/stream.md §2,
/// §3): who says four letters and hangs up must not end the listening. More is not waited for: a source with data channels
/// and without a return path says no more until it has connected all of them, and a stranger that says so much can as well
/// say more.
fn has_head(bytes: &[u8]) -> bool {
    const VERSION: &[u8] = &[0, 0, 0, 3];
    const CONFIGURATION: u8 = 7;
    const LONGEST_NAME: u32 = 255;
    let Some((version, rest)) = bytes.get(4..).and_then(|rest| rest.split_at_checked(4)) else {
        return false;
    };
    if version != VERSION {
        return true;
    }
    match rest {
        [] => false,
        [CONFIGURATION, rest @ ..] => match rest.split_first_chunk() {
            Some((len, behind)) => {
                let len = u32::from_be_bytes(*len);
                len > LONGEST_NAME || behind.len() >= len as usize
            }
            None => false,
        },
        _ => true,
    }
}

/// What comes is neither a main channel nor a data channel. One stranger is worth knowing: the source that is set to TLS, whose
/// first record is a handshake (22) of version 3.x.
fn no_stream(first: &[u8]) -> Error {
    match first {
        [0x16, 0x03, ..] => Error::peer_incompatible(
            "the source speaks TLS, and a plain stream is expected here: give this end credentials too (tls-creds, \
             --tls-creds DIR), or turn TLS off at the source",
        ),
        _ => Error::peer_misbehaved(format!(
            "not a migration stream: it begins with {:02x?} instead of \"QEVM\"",
            &first[..first.len().min(4)]
        )),
    }
}

fn hello(reader: &mut StreamReader) -> Result<Hello> {
    let bytes = reader.buffer().first_chunk().expect("as many were waited for");
    Hello::decode(bytes).map_err(|error| match error.blame() {
        mig_proto::Fault::PeerMisbehaved => Error::peer_misbehaved(error.to_string()),
        _ => Error::peer_incompatible(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use mig_transport::Blame;

    use super::*;

    #[test]
    fn a_source_that_speaks_tls_is_recognised() {
        let error = no_stream(&[0x16, 0x03, 0x01, 0x02, 0x00]);
        assert_eq!(error.blame(), Blame::PeerIncompatible);
        assert!(error.to_string().contains("the source speaks TLS"), "{error}");
        let error = no_stream(b"GET / HTTP/1.1");
        assert_eq!(error.blame(), Blame::PeerMisbehaved);
        assert!(error.to_string().contains("it begins with [47, 45, 54, 20]"), "{error}");
    }

    #[test]
    fn a_head_is_whole_with_the_name_of_the_machine() {
        let head = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc";
        for len in 0..head.len() {
            assert!(!has_head(&head[..len]), "{len} bytes");
        }
        assert!(has_head(head), "a source may say no more for as long as its data channels take");
        assert!(has_head(b"QEVM\0\0\0\x02"), "a version of which the decoder tells more");
        assert!(has_head(b"QEVM\0\0\0\x03\x01"), "no configuration");
        assert!(has_head(b"QEVM\0\0\0\x03\x07\0\0\x01\0"), "a name that cannot be");
    }
}
