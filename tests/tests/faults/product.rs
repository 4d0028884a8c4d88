//! Every transport in every mode with every kind of fault: each combination is tried, or a rule here says why it is not.
//!
//! ```text
//!   Way::ALL × Mode::ALL × Kind::ALL ──▶ the first rule that fits ──▶ not tried, and why ──▶ docs/faults.md
//!                                    └─▶ no rule ──▶ a batch of main.rs, or kills, or full disks
//! ```
//! A batch that tries a kind that has a rule against it, or none of one that has not, fails ([`Tally`](crate::table::Tally)); a
//! combination that no test is for fails [`complete`].

use std::collections::BTreeSet;

use mig_tests::report;

use crate::{cases::Kind, mode::Mode, way::Way};

/// What is not tried: every combination of these; an empty list is all there are.
struct Rule {
    ways: &'static [Way],
    modes: &'static [Mode],
    kinds: &'static [Kind],
    why: &'static str,
}

impl Rule {
    fn fits(&self, way: Way, mode: Mode, kind: Kind) -> bool {
        fn has<T: PartialEq>(list: &[T], one: &T) -> bool {
            list.is_empty() || list.contains(one)
        }
        has(self.ways, &way) && has(self.modes, &mode) && has(self.kinds, &kind)
    }
}

/// All but those without one.
const WITH_RETURN_PATH: &[Mode] = &[
    Mode::ReturnPath,
    Mode::Multifd,
    Mode::MultifdZlib,
    Mode::Tls,
    Mode::TlsMultifd,
    Mode::Stored,
    Mode::StoredMultifd,
    Mode::StoredTls,
    Mode::StoredTlsMultifd,
];

const WITH_DATA_CHANNELS: &[Mode] = &[
    Mode::Multifd,
    Mode::MultifdZlib,
    Mode::TlsMultifd,
    Mode::StoredMultifd,
    Mode::StoredTlsMultifd,
];

const WITH_TLS: &[Mode] = &[Mode::Tls, Mode::TlsMultifd, Mode::StoredTls, Mode::StoredTlsMultifd];

/// What happens to both ends in one process.
const IN_PROCESS: &[Kind] = &[
    Kind::Fails,
    Kind::Stalls,
    Kind::Truncated,
    Kind::HalfClosed,
    Kind::Flipped,
    Kind::Reset,
    Kind::Reordered,
    Kind::Doubled,
];

/// The first that fits counts.
const RULES: &[Rule] = &[
    Rule {
        ways: &[Way::FdPipe, Way::File],
        modes: WITH_RETURN_PATH,
        kinds: &[],
        why: "goes one way: no answer, no handshake, no second channel",
    },
    Rule {
        ways: &[Way::FdSocket, Way::FdPipes, Way::Exec],
        modes: WITH_DATA_CHANNELS,
        kinds: &[],
        why: "is one channel",
    },
    Rule {
        ways: &[Way::FdPipes],
        modes: &[Mode::Plain, Mode::StoredPlain],
        kinds: &[],
        why: "without the way back it is fd, a pipe",
    },
    Rule {
        ways: &[Way::Rdma],
        modes: WITH_DATA_CHANNELS,
        kinds: &[],
        why: "has no data channels: the device carries the pages",
    },
    Rule { ways: &[Way::Rdma], modes: WITH_TLS, kinds: &[], why: "has no TLS" },
    Rule {
        ways: &[Way::Vsock],
        modes: WITH_TLS,
        kinds: &[],
        why: "runs where the processor is emulated, too slow for thousands of handshakes; TLS knows no transport",
    },
    Rule {
        ways: &[],
        modes: &[Mode::MultifdZlib],
        kinds: &[Kind::Killed],
        why: "who dies while it compresses is as dead as in multifd",
    },
    Rule {
        ways: &[Way::Unix, Way::Vsock],
        modes: &[Mode::MultifdZlib],
        kinds: &[],
        why: "compression is above the channel and knows no transport; tried over tcp",
    },
    Rule {
        ways: &[
            Way::Unix,
            Way::FdSocket,
            Way::FdPipe,
            Way::FdPipes,
            Way::Exec,
            Way::File,
            Way::Vsock,
            Way::Rdma,
        ],
        modes: &[Mode::Stored, Mode::StoredMultifd],
        kinds: IN_PROCESS,
        why: "a recorder reads a channel as a live destination does, which is tried; its own part, the disk, is tried over tcp",
    },
    Rule {
        ways: &[],
        modes: &[Mode::StoredPlain, Mode::StoredTls, Mode::StoredTlsMultifd],
        kinds: IN_PROCESS,
        why: "what is below a recorder is tried with a live guest, and its disk with a return path",
    },
    Rule {
        ways: &[],
        modes: &[
            Mode::Plain,
            Mode::ReturnPath,
            Mode::Tls,
            Mode::Stored,
            Mode::StoredPlain,
            Mode::StoredTls,
        ],
        kinds: &[Kind::Reordered, Kind::Doubled],
        why: "has one channel",
    },
    Rule {
        ways: &[],
        modes: &[Mode::TlsMultifd],
        kinds: &[Kind::Reordered],
        why: "a channel shakes hands before the next one comes, so nobody can make it wait for that",
    },
    Rule {
        ways: &[Way::Vsock],
        modes: &[],
        kinds: &[Kind::Reordered, Kind::Doubled],
        why: "the order and number of channels is told above the transport; tried over tcp and unix",
    },
    Rule {
        ways: &[Way::FdPipe, Way::FdPipes, Way::Exec],
        modes: &[],
        kinds: &[Kind::Reset],
        why: "a pipe knows no reset: when its other end dies there is an end (truncated) or EPIPE (half-closed)",
    },
    Rule { ways: &[Way::File], modes: &[], kinds: &[Kind::Reset], why: "a file has no other end" },
    Rule {
        ways: &[Way::Vsock],
        modes: &[],
        kinds: &[Kind::Reset],
        why: "an open connection knows no reset (Linux 6.12): closed with bytes unread, with no time to linger, or by a killed process, \
              it is at its end, or gives EPIPE",
    },
    Rule {
        ways: &[Way::Rdma],
        modes: &[],
        kinds: &[Kind::Reset],
        why: "a connection ends in one way only, both directions at once, and so it does for a process that is killed",
    },
    Rule {
        ways: &[
            Way::Tcp,
            Way::FdSocket,
            Way::FdPipe,
            Way::FdPipes,
            Way::Exec,
            Way::Vsock,
            Way::Rdma,
        ],
        modes: &[],
        kinds: &[Kind::FullDisk],
        why: "a disk does not know what came over which transport; tried with unix and file",
    },
    Rule {
        ways: &[],
        modes: &[
            Mode::Plain,
            Mode::ReturnPath,
            Mode::Multifd,
            Mode::MultifdZlib,
            Mode::Tls,
            Mode::TlsMultifd,
        ],
        kinds: &[Kind::FullDisk],
        why: "a live destination writes nothing to a disk; what writes to file: is tried with send",
    },
    Rule {
        ways: &[Way::Unix],
        modes: &[Mode::StoredPlain, Mode::StoredMultifd, Mode::StoredTls, Mode::StoredTlsMultifd],
        kinds: &[Kind::FullDisk],
        why: "what is written to the disk does not depend on the mode; tried with one channel and a return path",
    },
];

/// Why this is not tried; `None` if it is.
pub(crate) fn excluded(way: Way, mode: Mode, kind: Kind) -> Option<&'static str> {
    RULES.iter().find(|rule| rule.fits(way, mode, kind)).map(|rule| rule.why)
}

/// The kinds that a batch tries.
pub(crate) fn kinds(way: Way, mode: Mode) -> BTreeSet<Kind> {
    IN_PROCESS.iter().copied().filter(|&kind| excluded(way, mode, kind).is_none()).collect()
}

/// In which modes the ends of these transports are killed.
pub(crate) fn killed(ways: &[Way]) -> Vec<(Way, Mode)> {
    let all = ways.iter().flat_map(|&way| Mode::ALL.map(|mode| (way, mode)));
    all.filter(|&(way, mode)| excluded(way, mode, Kind::Killed).is_none()).collect()
}

/// Demands that `batches`, `killed` and `full_disks` are all that no rule excludes, and that each rule has a use; writes the rules down.
pub(crate) fn complete(batches: &[(Way, Mode)], killed: &[Way], full_disks: &[(Way, Mode)]) {
    let mut used = BTreeSet::new();
    let mut wrong = Vec::new();
    for way in Way::ALL {
        for mode in Mode::ALL {
            for kind in Kind::ALL {
                let rule = RULES.iter().position(|rule| rule.fits(way, mode, kind));
                used.extend(rule);
                let tried = match kind {
                    Kind::Killed => rule.is_none() && killed.contains(&way),
                    Kind::FullDisk => full_disks.contains(&(way, mode)),
                    _ => rule.is_none() && batches.contains(&(way, mode)),
                };
                if tried != rule.is_none() {
                    let so =
                        if tried { "tried, and a rule is against it" } else { "nobody tries it" };
                    wrong.push(format!("{}, {}, {}: {so}", way.name(), mode.name(), kind.name()));
                }
            }
        }
    }
    let twice = batches.iter().filter(|batch| kinds(batch.0, batch.1).is_empty());
    wrong.extend(twice.map(|batch| format!("a batch of nothing: {batch:?}")));
    let useless = RULES.iter().enumerate().filter(|(index, _)| !used.contains(index));
    wrong.extend(useless.map(|(_, rule)| format!("a rule without a use: {}", rule.why)));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for rule in RULES {
        let ways: Vec<_> = rule.ways.iter().map(|way| way.name()).collect();
        let modes: Vec<_> = rule.modes.iter().map(|mode| mode.name()).collect();
        let kinds: Vec<_> = rule.kinds.iter().map(|kind| kind.name()).collect();
        report::no_fault([&ways, &modes, &kinds], rule.why);
    }
}
