//! Who makes room where strangers wait and one more comes: one rule for every door.
//!
//! ```text
//!   places, full:  a a a b a c │ a a a           fewer than half are newcomers: the oldest of the largest crowd goes, an `a`
//!                  a a b │ a a a a a a           half of them are: nobody goes, and nobody comes, until one is no newcomer
//!                  ───────┴─ within the grace
//! ```
//!
//! See [`who_makes_room`].

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    time::Duration,
};

use tokio::time::Instant;

/// How long whoever has connected keeps a place, whoever else comes.
///
/// A source says its first words with its connection: they are a millisecond behind it, and some tens of them where its
/// machine is busy. Not longer, because a flood that is as fast as it likes gets half of all places for this time, and behind
/// them fills the kernel's queue (`net.core.somaxconn`, 4096 and more): with this, a door of 320 places takes 1600 a second and is
/// through a full queue in 2.6 s, one of 128 places takes 640 a second and needs 6.4 s; with a second it would be 26 s and 64 s,
/// longer than the source's deadline for its handshake.
pub const NEWCOMER_GRACE: Duration = Duration::from_millis(100);

/// One who waits where [`who_makes_room`] is asked.
#[derive(Clone, Copy, Debug)]
pub struct AtTheDoor<C, A> {
    /// With whom it came, as far as anybody can tell.
    pub crowd: C,
    /// Whether it has said something.
    pub spoke: bool,
    /// What orders it by when it got on last, the least first.
    pub age: A,
    /// When it connected, where it is safe for [`NEWCOMER_GRACE`] from then on; `None` where nobody is.
    pub newcomer_since: Option<Instant>,
}

/// What [`who_makes_room`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MakesRoom {
    /// Whose place it is, by its place among those who wait.
    pub at: usize,
    /// How many its crowd has.
    pub crowd: usize,
    /// Not before then: nobody who connects is to be accepted before.
    pub not_before: Option<Instant>,
}

/// Which of those who wait, and take all places, goes for one more; `None` if nobody waits.
///
/// 1. If newcomers, who connected less than [`NEWCOMER_GRACE`] ago, have half of the places or more, nobody goes before the
///    first of them is none any more.
/// 2. Otherwise one who is no newcomer goes: of the largest crowd that has one, the oldest; of several equal ones the first.
///    Where several crowds are equally large, who has said nothing goes before who has.
///
/// Why the largest crowd: a flood pushes out itself, and not somebody else. Where crowds are equal, all alone for one, whoever
/// speaks is more likely to be meant than who does not. Within one crowd words do not count, for otherwise who once said a
/// byte would keep its place from all who come later.
///
/// Why the grace: a flood from the source's own address (one machine, a NAT, a tunnel) is a crowd with the source in it until the
/// source has spoken.
///
/// Why half: the pause is for a source among newcomers, but it is the flood that decides when there is one. If it were there
/// whenever it would be a newcomer's turn, then one newcomer at a time would do to stop the door for a grace, as it would
/// where no crowd is larger than its own. With half, whoever stops the door for a grace has to fill half of it in that grace:
/// whatever addresses they come from and whatever they say, **at least half of the places are given out in each
/// grace**, and who is behind `n` others in the kernel's queue waits for `n / (places / 2)` graces at most. More than half
/// would leave fewer places to those who are past their grace and in the midst of a handshake. And while fewer than half
/// are newcomers, there is always one who may go.
pub fn who_makes_room<C: Eq + Hash, A: Ord>(
    waiting: impl IntoIterator<Item = AtTheDoor<C, A>>,
    now: Instant,
) -> Option<MakesRoom> {
    let waiting: Vec<_> = waiting.into_iter().collect();
    let safe_until = |one: &AtTheDoor<C, A>| {
        one.newcomer_since.map(|since| since + NEWCOMER_GRACE).filter(|until| *until > now)
    };
    let mut crowds = HashMap::new();
    for one in &waiting {
        *crowds.entry(&one.crowd).or_insert(0_usize) += 1;
    }
    let newcomers = waiting.iter().enumerate().filter_map(|(at, one)| Some((safe_until(one)?, at)));
    let first_newcomer = newcomers.clone().min();
    if let Some((until, at)) = first_newcomer
        && newcomers.count() * 2 >= waiting.len()
    {
        return Some(MakesRoom { at, crowd: crowds[&waiting[at].crowd], not_before: Some(until) });
    }
    let may_go = || waiting.iter().enumerate().filter(|(_, one)| safe_until(one).is_none());
    let largest = may_go().map(|(_, one)| crowds[&one.crowd]).max()?;
    let of_largest = || may_go().filter(|(_, one)| crowds[&one.crowd] == largest);
    let are_equal = of_largest().map(|(_, one)| &one.crowd).collect::<HashSet<_>>().len() > 1;
    let (at, _) = of_largest().min_by_key(|(_, one)| (are_equal && one.spoke, &one.age))?;
    Some(MakesRoom { at, crowd: largest, not_before: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goes(waiting: &[(char, bool, u64)]) -> Option<(usize, usize)> {
        let waiting = waiting.iter().map(|&(crowd, spoke, age)| AtTheDoor {
            crowd,
            spoke,
            age,
            newcomer_since: None,
        });
        let goes = who_makes_room(waiting, Instant::now())?;
        assert_eq!(goes.not_before, None);
        Some((goes.at, goes.crowd))
    }

    #[test]
    fn the_oldest_of_the_largest_crowd_goes() {
        assert_eq!(goes(&[]), None);
        // Of equal ones the first.
        let equal = [('a', true, 0), ('b', false, 0), ('b', true, 0), ('c', false, 0)];
        assert_eq!(goes(&equal), Some((1, 2)));
        // Words do not count within a crowd.
        assert_eq!(goes(&[('b', true, 1), ('b', false, 2), ('a', false, 0)]), Some((0, 2)));
        // They do between equal ones.
        assert_eq!(goes(&[('a', true, 0), ('b', false, 2), ('c', false, 1)]), Some((2, 1)));
        assert_eq!(goes(&[('a', true, 1), ('b', true, 0)]), Some((1, 1)));
        let pairs = [('a', true, 0), ('a', true, 1), ('b', false, 3), ('b', true, 2)];
        assert_eq!(goes(&pairs), Some((2, 2)));
    }

    const MS: Duration = Duration::from_millis(1);

    /// By crowd, and how many milliseconds ago each has connected.
    fn after(waiting: &[(char, u32)]) -> MakesRoom {
        let now = Instant::now();
        let waiting = waiting.iter().map(|&(crowd, ago)| {
            let since = now - MS * ago;
            AtTheDoor { crowd, spoke: false, age: since, newcomer_since: Some(since) }
        });
        who_makes_room(waiting, now).expect("somebody waits")
    }

    #[test]
    fn a_newcomer_is_passed_over_while_they_are_fewer_than_half() {
        // All alone, and the youngest is new: it is not waited for.
        let goes = after(&[('a', 100), ('b', 200), ('c', 0)]);
        assert_eq!((goes.at, goes.crowd, goes.not_before), (1, 1, None));
        // The largest crowd counts its newcomers, too, but only who is none goes.
        let goes =
            after(&[('a', 500), ('a', 400), ('a', 300), ('b', 150), ('b', 1), ('b', 2), ('b', 3)]);
        assert_eq!((goes.at, goes.crowd, goes.not_before), (3, 4, None));
        // A crowd of newcomers only has nobody who may go.
        let goes = after(&[('a', 500), ('c', 400), ('c', 300), ('b', 1), ('b', 2)]);
        assert_eq!((goes.at, goes.crowd, goes.not_before), (1, 2, None));
    }

    #[test]
    fn nobody_goes_while_newcomers_have_half() {
        let now = Instant::now();
        let one = |ago: u32, safe: bool| {
            let since = now - MS * ago;
            AtTheDoor { crowd: (), spoke: false, age: since, newcomer_since: safe.then_some(since) }
        };
        let until = |waiting: &[u32]| {
            let goes = who_makes_room(waiting.iter().map(|ago| one(*ago, true)), now);
            let goes = goes.expect("somebody waits");
            (goes.at, goes.not_before.map(|until| until - now))
        };
        assert_eq!(until(&[99]), (0, Some(MS)));
        assert_eq!(until(&[100]), (0, None));
        assert_eq!(until(&[500, 30, 70, 400]), (2, Some(30 * MS)));
        assert_eq!(until(&[500, 30, 70]), (2, Some(30 * MS)));
        assert_eq!(until(&[500, 30, 170]), (0, None));
        // Where nobody is missing, nobody is safe.
        let goes = who_makes_room([10, 20].map(|ago| one(ago, false)), now);
        assert_eq!(goes, Some(MakesRoom { at: 1, crowd: 2, not_before: None }));
    }

    /// How long a door of so many places, all taken for long by `held`, takes for so many that come at once.
    fn drains(
        places: usize,
        held: &[(usize, bool)],
        queue: usize,
        from: usize,
        spoke: bool,
    ) -> Duration {
        let start = Instant::now() + NEWCOMER_GRACE;
        let mut now = start;
        let come = |crowd, spoke, since| AtTheDoor {
            crowd,
            spoke,
            age: since,
            newcomer_since: Some(since),
        };
        let long_ago = now - NEWCOMER_GRACE;
        let mut all: Vec<_> =
            held.iter().map(|&(crowd, spoke)| come(crowd, spoke, long_ago)).collect();
        assert_eq!(all.len(), places);
        for number in 0..queue {
            let mut goes = who_makes_room(all.iter().copied(), now).expect("all places are taken");
            if let Some(until) = goes.not_before {
                assert!(until > now);
                now = until;
                goes = who_makes_room(all.iter().copied(), now).expect("all places are taken");
            }
            assert_eq!(goes.not_before, None, "at that time somebody may go");
            let gone = all.remove(goes.at);
            assert!(gone.age + NEWCOMER_GRACE <= now, "never a newcomer");
            all.push(come(number % from, spoke, now));
        }
        now - start
    }

    /// Who held the places, from how many addresses the queue is and what it said make no difference.
    #[test]
    fn a_queue_is_through_at_half_of_the_places_in_each_grace() {
        for (places, queue) in [(64_usize, 300_usize), (13, 90), (3, 20), (1, 5)] {
            let rounds = queue.div_ceil(places.div_ceil(2)) - 1;
            let expected = NEWCOMER_GRACE * u32::try_from(rounds).expect("few");
            for from in [1, 2, 7, places, queue] {
                for (held_spoke, spoke) in
                    [(true, false), (false, false), (false, true), (true, true)]
                {
                    let held: Vec<_> = (0..places).map(|at| (at % from, held_spoke)).collect();
                    let took = drains(places, &held, queue, from, spoke);
                    assert_eq!(took, expected, "{places} places, {queue} from {from}: {spoke}");
                }
            }
        }
    }
}
