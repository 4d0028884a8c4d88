//! How long a cancel takes: each wait of docs/deadlines.md is entered, cancelled at some moment, and timed.
//!
//! ```text
//!   enter ── stay, each time a little differently ── cancel ──▶ this end unblocked ──▶ nothing left behind?
//!                                                         └───▶ the far end knows
//! ```
//! Where the tool can be brought there it is `mig` under SIGINT, to the end of its process; elsewhere a migration of the
//! library in this process, to the end of its `run`. Anything but the state `cancelled` fails the benchmark.

mod destination;
mod far;
mod migration;
mod namespace;
mod recv;
mod residue;
mod scene;
mod send;
mod situation;
mod source;

use std::time::Duration;

use self::{
    migration::Guests,
    residue::Residue,
    scene::Stage,
    situation::{Cancelled, Situation},
};
use super::Plan;
use crate::{
    failure::{Result, chain},
    report::{Figure, Goal, Section},
    statistics::Spread,
};

/// Cancels of each situation in a round.
const TIMES: u32 = 5;
/// How long what is being taken down may take for that: a killed process dies soon, a thread that is left behind ends
/// with the system call it is in.
const GRACE: Duration = Duration::from_secs(3);
/// Milliseconds, at either end.
const GOAL: f64 = 100.0;

pub(super) fn run(plan: &Plan, section: &mut Section) -> Result<()> {
    let stage = Stage::new()?;
    let guests = Guests::new()?;
    let _orphans_are_ours = residue::Guardian::new()?;
    let mut situations = send::situations(&stage);
    situations.extend(recv::situations(&stage));
    situations.extend(source::situations(&guests, &stage));
    situations.extend(destination::situations(&guests));
    let times = TIMES * plan.runs;
    let (mut left, mut problems) = (0.0, Vec::new());
    for situation in &mut situations {
        let what = situation.what;
        let measured = match several(situation, times, &mut left) {
            Ok(measured) => measured,
            Err(error) if situation.may_be_missing && error.first => {
                section.notes.push(format!("Left out, {what}: {}", chain(&*error.why)));
                continue;
            }
            Err(error) => {
                problems.push(format!("{what}: {}", chain(&*error.why)));
                continue;
            }
        };
        let here = Spread::of(measured.iter().map(|one| millis(one.here)));
        let far: Vec<f64> = measured.iter().filter_map(|one| Some(millis(one.far?))).collect();
        eprintln!("cancel {what}: {:.1} ms, at most {:.1}", here.median, here.max);
        section.figures.push(Figure::judged(what, "ms", here, Goal::NeverAbove(GOAL)));
        if !far.is_empty() {
            let far = Spread::of(far);
            eprintln!("cancel {what}, far end: {:.1} ms, at most {:.1}", far.median, far.max);
            let what = format!("- the far end of it, {}", situation.far);
            section.figures.push(Figure::judged(what, "ms", far, Goal::NeverAbove(GOAL)));
        }
    }
    let nothing = Spread::of([left]);
    let what = "children, files, descriptors and threads left behind by all of them";
    section.figures.push(Figure::judged(what, "", nothing, Goal::NeverAbove(0.0)));
    section.notes.push(format!(
        "Each situation {times} times, cancelled 0 to {} ms after it was entered. The longest is judged, not the median. \
         `mig` is interrupted (SIGINT), and has ended when its process has; what is not of the command line is a source \
         or destination of the library with {} MiB of guest, cancelled by its handle, and has ended when `run` has. A far \
         end knows when its own `run` has ended, or its socket says that nobody is there any more.",
        situation::LONGEST_STAY.as_millis(),
        Guests::BYTES >> 20,
    ));
    match &problems[..] {
        [] => Ok(()),
        problems => Err(problems.join("; ").into()),
    }
}

/// Why a situation could not be measured, and whether it was never entered.
struct Unmeasured {
    first: bool,
    why: crate::failure::Failure,
}

fn several(
    situation: &mut Situation,
    times: u32,
    left: &mut f64,
) -> std::result::Result<Vec<Cancelled>, Unmeasured> {
    let mut measured = Vec::new();
    // The first is a rehearsal: what one keeps from then on is no residue.
    for time in 0..=times {
        let before = Residue::now();
        let one = before
            .and_then(|before| {
                let one = (situation.enter_and_cancel)(situation::stay(time))?;
                let remains = one.files.iter().cloned().chain(before.left_since(if time > 0 {
                    GRACE
                } else {
                    GRACE / 10
                })?);
                for remaining in remains.filter(|_| time > 0) {
                    eprintln!("cancel {}: left behind: {remaining}", situation.what);
                    *left += 1.0;
                }
                Ok(one)
            })
            .map_err(|why| Unmeasured { first: time == 0, why })?;
        if time > 0 {
            measured.push(one);
        }
    }
    Ok(measured)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
