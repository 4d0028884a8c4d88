//! Whose a channel is: whether two are of one and the same source.
//!
//! ```text
//!   proven (TLS: certificate, key) ──▶ who it is counts, from whatever address: a source may have several
//!   nothing proven                 ──▶ the machine, user or virtual machine counts that the kernel tells
//! ```

use mig_stream::Stream;
use mig_transport::{Identity, Peer};

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    peer: Peer,
    identity: Option<Identity>,
}

impl Origin {
    /// Of who is at the other end.
    pub(crate) fn of(stream: &Stream) -> Self {
        Self { peer: stream.peer(), identity: stream.identity().cloned() }
    }

    /// Whether both are of one source.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (&self.identity, &other.identity) {
            (None, None) => self.peer == other.peer,
            (one, another) => one == another,
        }
    }

    /// What several channels of one end have in common, whoever it is.
    pub(super) fn crowd(self) -> (Peer, Option<Identity>) {
        match self.identity {
            Some(proven) => (Peer::Unknown, Some(proven)),
            None => (self.peer.neighbourhood(), None),
        }
    }

    /// Why `channel` is no data channel of this main channel's source, with what to do if it is after all.
    pub(super) fn refuses(&self, channel: &Stream) -> Option<String> {
        let from = Self::of(channel);
        if self.is_same(&from) {
            return None;
        }
        Some(match self.identity {
            Some(_) => "its source has not proven to be the one of the main channel; all channels of a source need the \
                        same certificate, or user of keys.psk"
                .into(),
            None => format!(
                "it is from {}, and the main channel from {}; let all channels of a source come from one address, or use \
                 TLS with certificates or keys, where the address does not count",
                from.peer, self.peer
            ),
        })
    }
}
