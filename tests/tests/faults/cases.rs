//! What is tried: from the counts of a run without faults.

use std::{collections::BTreeSet, fmt};

use mig_testkit::faults::{Act, ByteAct, Fault, Faults, LinkFault, Operation};

use crate::{mode::Mode, way::Way};

/// Which end's transport is disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// One thing that goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    At(End, Fault),
    Link(LinkFault),
}

/// Kinds of trouble, as the table's columns have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Fails,
    Stalls,
    Truncated,
    HalfClosed,
    Flipped,
    Reset,
    Reordered,
    Doubled,
    Killed,
    FullDisk,
}

impl Kind {
    pub(crate) const ALL: [Self; 10] = [
        Self::Fails,
        Self::Stalls,
        Self::Truncated,
        Self::HalfClosed,
        Self::Flipped,
        Self::Reset,
        Self::Reordered,
        Self::Doubled,
        Self::Killed,
        Self::FullDisk,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Fails => "the N-th operation fails",
            Self::Stalls => "stalls for ever",
            Self::Truncated => "truncated",
            Self::HalfClosed => "half-closed",
            Self::Flipped => "one bit flipped",
            Self::Reset => "reset",
            Self::Reordered => "channels reordered",
            Self::Doubled => "a channel doubled",
            Self::Killed => "killed (SIGKILL)",
            Self::FullDisk => "full disk (ENOSPC)",
        }
    }
}

/// Errors that an operation fails with, one after the other.
const ERRNOS: [i32; 5] = [
    5,   // EIO
    104, // ECONNRESET
    32,  // EPIPE
    12,  // ENOMEM
    113, // EHOSTUNREACH
];

impl Trouble {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::At(_, Fault::Operation { act: Act::Fail(_), .. }) => Kind::Fails,
            Self::At(_, Fault::Operation { act: Act::Stall, .. }) => Kind::Stalls,
            Self::At(_, Fault::Byte { act, .. }) => match act {
                ByteAct::Truncate => Kind::Truncated,
                ByteAct::HalfClose => Kind::HalfClosed,
                ByteAct::Stall => Kind::Stalls,
                ByteAct::Flip(_) => Kind::Flipped,
                ByteAct::Reset => Kind::Reset,
            },
            Self::Link(LinkFault::Reorder(_)) => Kind::Reordered,
            Self::Link(LinkFault::Double { .. }) => Kind::Doubled,
            Self::Link(_) => Kind::Reset,
        }
    }

    /// The error that was put in, and where.
    pub(crate) fn errno(&self) -> Option<(End, i32)> {
        match self {
            Self::At(end, Fault::Operation { act: Act::Fail(errno), .. }) => Some((*end, *errno)),
            _ => None,
        }
    }

    /// Whose transport is disturbed.
    pub(crate) fn end(&self) -> Option<End> {
        match self {
            Self::At(end, _) => Some(*end),
            Self::Link(_) => None,
        }
    }

    /// A connection that breaks before it said who it is may be anybody's: the destination goes on waiting for its
    /// source. It also listens on when it has all that it needs.
    pub(crate) fn is_a_strangers(&self, mode: Mode) -> bool {
        let Self::At(end, Fault::Operation { operation, nth, .. }) = self else { return false };
        // The words of TLS, or the 64 bytes of a data channel. A main channel that never came has the reason in the
        // deadline that ran out.
        let handshake = match (mode.has_tls(), mode.has_data_channels()) {
            (true, _) => 4,
            (false, true) => 2,
            (false, false) => 0,
        };
        *end == End::Destination
            && match operation {
                Operation::Read => *nth < handshake,
                Operation::Write => mode.has_tls() && *nth < handshake,
                Operation::Accept => true,
                _ => false,
            }
    }

    /// Whether a data channel is lost before the destination knows whose it is, and the source may not notice: it has
    /// nothing to read there.
    pub(crate) fn hides_a_data_channel(&self, mode: Mode) -> bool {
        // Behind the words of TLS, at most.
        let greeting = if mode.has_tls() { 2048 } else { 64 };
        match self {
            Self::At(
                End::Source,
                Fault::Byte { channel: 1.., position, act: ByteAct::Truncate },
            ) => *position < greeting,
            Self::At(_, Fault::Operation { channel: 1.., .. }) => self.is_a_strangers(mode),
            _ => false,
        }
    }

    /// Whether who stands between the ends may be gone with the destination's verdict unread, and the source sees an end in
    /// order: a unix socket that is closed resets only who has written what nobody read.
    pub(crate) fn swallows_the_verdict(&self, way: Way) -> bool {
        let resets = match self {
            Self::At(End::Destination, Fault::Byte { act: ByteAct::Reset, .. }) => true,
            Self::Link(LinkFault::Reset { .. }) => true,
            Self::At(..) | Self::Link(_) => false,
        };
        resets && way != Way::Tcp
    }

    pub(crate) fn is_an_opening(&self) -> bool {
        let Self::At(_, Fault::Operation { operation, .. }) = self else { return false };
        matches!(operation, Operation::Connect | Operation::Accept)
    }

    pub(crate) fn is_on_a_data_channel(&self) -> bool {
        matches!(self, Self::At(_, Fault::Operation { channel: 1.., .. }))
    }

    /// Whether it never came to its turn.
    pub(crate) fn missed(&self, faults: &[Faults; 2]) -> bool {
        match self {
            Self::At(end, _) => !faults[usize::from(*end == End::Destination)].struck(),
            Self::Link(_) => !faults[0].link_struck(),
        }
    }

    /// The faults of one end.
    pub(crate) fn of(&self, end: End) -> Faults {
        match self {
            Self::At(where_, fault) if *where_ == end => Faults::with(*fault),
            _ => Faults::counting(),
        }
    }

    /// The link's own socket may stay where it was.
    pub(crate) fn leaves(&self, name: &str) -> bool {
        name == "l" && !matches!(self.link(), LinkFault::None)
    }

    pub(crate) fn link(&self) -> LinkFault {
        match self {
            Self::Link(fault) => fault.clone(),
            Self::At(_, Fault::Byte { act: ByteAct::Reset, .. }) => LinkFault::OnDemand,
            Self::At(..) => LinkFault::None,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(end, Fault::Operation { channel, operation, nth, act }) => {
                let operation = format!("{operation:?}").to_lowercase();
                write!(f, "{end}: {operation} {nth} of channel {channel}: {act:?}")
            }
            Self::At(end, Fault::Byte { channel, position, act }) => {
                write!(f, "{end}: byte {position} written to channel {channel}: {act:?}")
            }
            Self::Link(fault) => write!(f, "link: {fault:?}"),
        }
    }
}

/// Everything of these kinds that is tried, given what both ends did without trouble; one in `thin` of what is only a
/// sample anyway.
pub(crate) fn all(
    source: &Faults,
    destination: &Faults,
    kinds: &BTreeSet<Kind>,
    thin: u64,
) -> Vec<Trouble> {
    let mut all = Vec::new();
    for (end, faults) in [(End::Source, source), (End::Destination, destination)] {
        operations(&mut all, end, faults, thin);
        bytes(&mut all, end, faults, thin);
    }
    links(&mut all, source, thin);
    for (end, faults) in [(End::Source, source), (End::Destination, destination)] {
        resets(&mut all, end, faults, thin);
    }
    all.retain(|trouble| kinds.contains(&trouble.kind()));
    let only = only();
    all.retain(|trouble| trouble.to_string().contains(&only));
    all
}

/// Only cases whose names have these words are wanted.
pub(crate) fn only() -> String {
    std::env::var("MIG_FAULTS_ONLY").unwrap_or_default()
}

/// Whether every byte is to be tried.
pub(crate) fn long() -> bool {
    std::env::var_os("MIG_FAULTS").is_some_and(|word| word == "all")
}

fn operations(all: &mut Vec<Trouble>, end: End, faults: &Faults, thin: u64) {
    for ((channel, operation), count) in faults.counts() {
        // The words at the beginning and the end are in the first and last ones; between them are pages.
        let between = 8..count.saturating_sub(8);
        let step = if long() { 1 } else { thin as usize };
        for nth in (0..count).filter(|nth| !between.contains(nth) || nth % step == 0) {
            let errno = ERRNOS[all.len() % ERRNOS.len()];
            for act in [Act::Fail(errno), Act::Stall] {
                // A connector has a deadline of its own: that it returns is its promise.
                if operation == Operation::Connect && act == Act::Stall {
                    continue;
                }
                all.push(Trouble::At(end, Fault::Operation { channel, operation, nth, act }));
            }
        }
        // Listening goes on after the last channel that is needed.
        if operation == Operation::Accept {
            let act = Act::Fail(ERRNOS[0]);
            all.push(Trouble::At(end, Fault::Operation { channel, operation, nth: count, act }));
        }
    }
}

fn bytes(all: &mut Vec<Trouble>, end: End, faults: &Faults, thin: u64) {
    for (channel, total) in faults.written() {
        let acts = [ByteAct::Truncate, ByteAct::HalfClose, ByteAct::Stall];
        for (index, position) in positions(total, 23, 8, thin).into_iter().enumerate() {
            let act = acts[index % acts.len()];
            all.push(Trouble::At(end, Fault::Byte { channel, position, act }));
        }
        for (index, position) in positions(total, 5, 64, thin).into_iter().enumerate() {
            let bit = (index % 8) as u8;
            let act = ByteAct::Flip(bit);
            all.push(Trouble::At(end, Fault::Byte { channel, position, act }));
        }
    }
}

/// Every `step`-th of the first and last bytes, where the words are, all of the last sixteen, and `between` of the
/// pages in the middle.
fn positions(total: u64, step: u64, between: u64, thin: u64) -> Vec<u64> {
    const WORDS: u64 = 400;
    let (step, between) = match long() {
        true => (1, 8 * between),
        false => (step * thin, (between / thin).max(1)),
    };
    let (head, tail) = (WORDS.min(total), total.saturating_sub(2 * WORDS));
    let middle = (tail.saturating_sub(head) / between).max(1) as usize;
    let mut all: Vec<u64> = (0..head).step_by(step as usize).collect();
    all.extend((head..tail).step_by(middle));
    all.extend((tail..total).step_by(step as usize));
    all.extend(total.saturating_sub(16)..total);
    all.sort_unstable();
    all.dedup();
    all
}

/// When an end has written a certain byte, and nobody has read it, all its connections are reset.
fn resets(all: &mut Vec<Trouble>, end: End, faults: &Faults, thin: u64) {
    for (channel, total) in faults.written() {
        for position in positions(total, 37, 32, thin) {
            all.push(Trouble::At(end, Fault::Byte { channel, position, act: ByteAct::Reset }));
        }
    }
}

fn links(all: &mut Vec<Trouble>, source: &Faults, thin: u64) {
    let written = source.written();
    for (connection, total) in &written {
        for after in positions(*total, 101, 8, thin) {
            all.push(Trouble::Link(LinkFault::Reset { connection: *connection, after }));
        }
        if written.len() > 1 {
            let data = [63, 64, 65, 600, usize::MAX];
            // A main channel that is there twice, whole, is two sources.
            let doubled: &[usize] = if *connection == 0 { &[1, 16, 100] } else { &data };
            for &bytes in doubled {
                all.push(Trouble::Link(LinkFault::Double { connection: *connection, bytes }));
            }
        }
    }
    if written.len() == 3 {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            all.push(Trouble::Link(LinkFault::Reorder(order.to_vec())));
        }
    }
}
