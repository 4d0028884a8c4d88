//! Who owns the guest when a migration ends: decided in one place, for a source with a guest and for a replayed one.
//!
//! The rule behind the table: a destination starts a guest only after it has everything and has said so (SHUT 0). So
//! the guest is the source's while the destination cannot have everything, or once it is certain that what the
//! destination had to say was heard to its end. Whatever leaves room for a yes that was lost on its way is
//! [`Owner::Unknown`], and the guest stands still at both ends rather than run at both.
//!
//! | the last item | what was heard | how writing went | owner |
//! |---|---|---|---|
//! | has not left | SHUT 0 | any | source; it is a lie |
//! | has not left | anything else | any | source |
//! | may have left | SHUT 0 | any | destination |
//! | may have left | another SHUT | any | source |
//! | may have left | an end that the destination announced (TLS: close_notify) | any | source |
//! | may have left | an end in order, of a socket | [well](Writing::Well) | source |
//! | may have left | an end in order, of a socket | [failed](Writing::Failed), with whatever error | unknown |
//! | may have left | an end in order, of a command or a pipe (`relayed`) | any | unknown |
//! | may have left | a failure of reading, an end that TLS calls unannounced | any | unknown |
//! | may have left | nothing: a deadline, a cancel, no return path | any | unknown |
//!
//! "Has left" counts bytes that the channel took, which is no fewer than the other end got, over TLS and RDMA too: those
//! count a byte as soon as they hold it. Data channels need no row. They end before the last item leaves, and a
//! failure of theirs says nothing about the main channel, whose own writing is what is asked.
//!
//! Why writing matters to what reading says: Linux tells of a connection that was reset, or that timed out (`ETIMEDOUT`),
//! once, to whichever call comes first. After that reading answers 0, as if the other end had ended the connection in
//! order. If the write took the error, that 0 is its echo: a SHUT 0 may have been lost with the connection. *Tried on
//! Linux 6 with tcp and unix sockets; `mig_testkit::Breaker` does the same without a kernel.*
//!
//! A first write that fails with `EPIPE` is no echo: then a FIN was there before it. It is trusted as little. A destination
//! that gives up says so before it hangs up on a source that is still writing, or is killed, and resets; what ends a
//! connection in order and takes no more of it is a proxy whose other side broke, with the verdict unread in it.

use mig_stream::StreamWriter;

use super::return_path::{End, Verdict};
use crate::error::Owner;

/// Whether the destination can have everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastItem {
    /// It lacks at least the end of the stream.
    NotSent,
    /// Some byte behind the last item was given to the channel.
    MayHaveLeft,
}

/// What the writing half of the main channel has met with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writing {
    /// Nothing so far.
    Well,
    /// An error. The reader may have been left without the reason.
    Failed,
}

impl Writing {
    /// Of this writer.
    pub(crate) fn of(writer: &StreamWriter) -> Self {
        if writer.error().is_some() { Self::Failed } else { Self::Well }
    }
}

/// See the module; `heard` is `None` where nothing was, for whatever reason.
pub(crate) fn owner(last_item: LastItem, writing: Writing, heard: Option<&Verdict>) -> Owner {
    match (last_item, heard) {
        (LastItem::NotSent, _) => Owner::Source,
        (LastItem::MayHaveLeft, Some(Verdict::Succeeded)) => Owner::Destination,
        (LastItem::MayHaveLeft, Some(Verdict::Failed(_))) => Owner::Source,
        (LastItem::MayHaveLeft, Some(Verdict::Ended(end))) => match (end, writing) {
            (End::Announced, _) => Owner::Source,
            (End::Orderly, Writing::Well) => Owner::Source,
            (End::Orderly, Writing::Failed) | (End::Relayed, _) => Owner::Unknown,
        },
        (LastItem::MayHaveLeft, None) => Owner::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row, in every way it can come about.
    #[test]
    fn the_table() {
        let heard = [
            None,
            Some(Verdict::Succeeded),
            Some(Verdict::Failed(1)),
            Some(Verdict::Ended(End::Announced)),
            Some(Verdict::Ended(End::Orderly)),
            Some(Verdict::Ended(End::Relayed)),
        ];
        let writing = [Writing::Well, Writing::Failed];
        for writing in writing {
            for heard in &heard {
                assert_eq!(owner(LastItem::NotSent, writing, heard.as_ref()), Owner::Source);
            }
        }
        let (source, unknown) = (Owner::Source, Owner::Unknown);
        let expected = [
            [unknown; 2],
            [Owner::Destination; 2],
            [source; 2],
            [source; 2],
            [source, unknown],
            [unknown; 2],
        ];
        for (heard, expected) in heard.iter().zip(expected) {
            let owners = writing.map(|w| owner(LastItem::MayHaveLeft, w, heard.as_ref()));
            assert_eq!(owners, expected, "{heard:?}");
        }
    }
}
