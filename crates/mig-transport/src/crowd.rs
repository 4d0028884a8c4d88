//! Who makes room where strangers wait and one more comes: one rule for every door.
//!
//! ```text
//!   a b a c a a ──one more, and no place──▶ the oldest of the crowd with the most goes
//! ```
//!
//! A flood pushes out itself, and not somebody else. Where all are alone, whoever speaks is more likely to be meant than who
//! does not.

use std::{collections::HashMap, hash::Hash};

/// Which of those who wait goes, by its place among them, and how many its crowd has; `None` if nobody waits.
///
/// Each is its crowd, whether it has said something, and what orders it by age; of several equal ones the first goes.
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
