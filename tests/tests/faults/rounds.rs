//! When a case is tried, how long its waits are, and when its end is believed.
//!
//! ```text
//!   round 1   many at once, few of them before their fault      ── no doubt ──▶ table
//!     │ an end failed before the fault's turn, or by a deadline
//!   round 2   some at once, longer waits   ── no doubt, or a deadline that is the fault's doing ──▶ table
//!     │ still
//!   round 3   each by itself, the longest waits                 ── still ──▶ the suite fails
//! ```
//! A machine without time to spare makes round 2 longer. It cannot make a case pass that did not meet its fault.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use mig_testkit::faults::Faults;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    cases::{End, Trouble},
    judge::{self, Doubt, Word},
    live::{Batch, PIECE},
    table::Tally,
};

/// How cases are tried.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// Under way at a time: most of them wait.
    at_once: usize,
    /// Of those, at a time before their fault's turn: they have work to do.
    beginning: usize,
    /// How many times the shortest waits.
    times: u32,
    /// Whether a doubt is the end of it.
    last: bool,
}

const ROUNDS: [Round; 3] = [
    Round { at_once: 128, beginning: 6, times: 1, last: false },
    Round { at_once: 32, beginning: 4, times: 2, last: false },
    Round { at_once: 1, beginning: 1, times: 6, last: true },
];

/// The same where the processor is emulated.
const AT_ONCE_SLOWLY: usize = 8;

/// What a case does right behind its fault happens within this, more or less.
const AFTERMATH: Duration = Duration::from_millis(50);

/// A word, and whether it may have another cause than the fault.
pub(crate) type Judged = (Result<Word, String>, Option<Doubt>);

/// Tries all of them, the doubtful ones again.
pub(crate) async fn all(batch: &Rc<Batch>, mut troubles: Vec<Trouble>, tally: Tally) -> Tally {
    let tally = Rc::new(RefCell::new(tally));
    for mut round in ROUNDS {
        if batch.way.is_slow() {
            round.at_once = round.at_once.min(AT_ONCE_SLOWLY);
        }
        let again = Rc::new(RefCell::new(Vec::new()));
        let room = Arc::new(Semaphore::new(round.at_once));
        let beginning = Arc::new(Semaphore::new(round.beginning));
        let mut running = JoinSet::new();
        let count = troubles.len();
        for trouble in troubles {
            let permit = Arc::clone(&room).acquire_owned().await.expect("never closed");
            let begins = Arc::clone(&beginning).acquire_owned().await.expect("never closed");
            let (batch, tally, again) = (Rc::clone(batch), Rc::clone(&tally), Rc::clone(&again));
            running.spawn_local(async move {
                let faults = faults_of(&trouble);
                let mut case = std::pin::pin!(batch.one(&trouble, &faults, round.times));
                let judged = tokio::select! {
                    judged = &mut case => judged,
                    () = struck(&trouble, &faults) => {
                        drop(begins);
                        case.await
                    }
                };
                match settled(judged, round, batch.way.is_slow()) {
                    Some(word) => tally.borrow_mut().add(&trouble, word),
                    None => again.borrow_mut().push(trouble.clone()),
                }
                drop(permit);
            });
        }
        while let Some(ended) = running.join_next().await {
            ended.expect("a case does not panic");
        }
        troubles = again.take();
        eprintln!("{count} cases, {} of them in doubt", troubles.len());
    }
    Rc::into_inner(tally).expect("all cases are over").into_inner()
}

fn faults_of(trouble: &Trouble) -> [Faults; 2] {
    [End::Source, End::Destination].map(|end| trouble.of(end).in_pieces(PIECE))
}

/// Returns when a case has met its fault and most of what comes of that.
async fn struck(trouble: &Trouble, faults: &[Faults; 2]) {
    while trouble.missed(faults) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(AFTERMATH).await;
}

/// What is written down; `None` is tried again.
fn settled(judged: Judged, round: Round, slow: bool) -> Option<Result<Word, String>> {
    match judged {
        (Ok(word), None) => Some(Ok(word)),
        // The lab has no time for second thoughts, and its first ones are long.
        (Ok(word), Some(Doubt::Due)) if round.times > 1 || slow => Some(Ok(word.waited())),
        (Ok(_), Some(Doubt::Early(told) | Doubt::Waited(told))) if round.last => Some(Err(told)),
        (Ok(_), Some(_)) => None,
        (Err(why), _) if why.starts_with(judge::LOST) && !round.last => None,
        (Err(why), _) => Some(Err(why)),
    }
}
