//! Who makes room where strangers wait and one more comes: one rule for every door.
//!
//! ```text
//!   a b a c a a ──one more, and no place──▶ the oldest of the crowd with the most goes
//! ```
//!
//! A flood pushes out itself, and not somebody else. Where all are alone, whoever speaks is more likely to be meant than who
//! does not.
//!
//! A flood from the source's own address (one machine, a NAT, a tunnel) is a crowd with the source in it until the source
//! has spoken. So nobody goes within [`NEWCOMER_GRACE`] of connecting: where it would be the turn of one who is that new, the
//! door accepts nobody for as long, and whoever comes waits in the kernel's queue. A caller puts how new somebody is first in
//! what orders them by age, so that this happens only where all others of the crowd are new too.

use std::{collections::HashMap, hash::Hash, time::Duration};

/// How long whoever has connected keeps a place, whoever else comes.
///
/// A source says its first words with its connection: they are a millisecond behind it, and some tens of them where its
/// machine is busy. Not longer, because a flood that is as fast as it likes gets all places for this time, and behind them fills
/// the kernel's queue (`net.core.somaxconn`, 4096 and more): with this, 320 places in a handshake go round 3200 times a second
/// and a full queue is through in 1.3 s, 128 places without TLS in 3.2 s; with a second it would be 13 s and 32 s, longer than the source's
/// deadline for its handshake, and for every flood above 320 a second new connections would find the queue full.
pub const NEWCOMER_GRACE: Duration = Duration::from_millis(100);

/// Which of those who wait goes, by its place among them, and how many its crowd has; `None` if nobody waits.
///
/// Each is its crowd, whether it has said something, and what orders it by age, the least first; of several equal ones the first
/// goes.
pub fn who_makes_room<C: Eq + Hash, A: Ord>(
    waiting: impl IntoIterator<Item = (C, bool, A)>,
) -> Option<(usize, usize)> {
    let waiting: Vec<_> = waiting.into_iter().collect();
    let mut crowds = HashMap::new();
    for (crowd, ..) in &waiting {
        *crowds.entry(crowd).or_insert(0_usize) += 1;
    }
    let largest = crowds.values().copied().max()?;
    let of_largest = waiting.iter().enumerate().filter(|(_, (crowd, ..))| crowds[crowd] == largest);
    let (at, _) = of_largest.min_by_key(|(_, (_, spoke, age))| (largest == 1 && *spoke, age))?;
    Some((at, largest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_of_the_largest_crowd_goes() {
        assert_eq!(who_makes_room(Vec::<(u8, bool, ())>::new()), None);
        let first_is_oldest = [('a', true), ('b', false), ('b', true), ('c', false)];
        let waiting = first_is_oldest.map(|(crowd, spoke)| (crowd, spoke, ()));
        assert_eq!(who_makes_room(waiting), Some((1, 2)));
        // Words count among those who are alone only.
        assert_eq!(
            who_makes_room([('b', true, 1), ('b', false, 2), ('a', false, 0)]),
            Some((0, 2))
        );
        assert_eq!(
            who_makes_room([('a', true, 0), ('b', false, 2), ('c', false, 1)]),
            Some((2, 1))
        );
        assert_eq!(who_makes_room([('a', true, 1), ('b', true, 0)]), Some((1, 1)));
    }
}
