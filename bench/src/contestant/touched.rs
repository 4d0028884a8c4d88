//! Deltas of a guest that touches every page again and again, made by our source.

use std::time::Duration;

use super::{Contestant, Turn};
use crate::{
    child::{Helper, STEP, TRANSFER},
    contest::Sample,
    failure::Result,
    role::{Go, Ready, Role, Touch, TouchedResult, TouchedRole},
};

/// One migration a turn, of which a window in the middle counts; it is cancelled behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touched {
    pub(crate) touch: Touch,
    pub(crate) window: Duration,
}

impl Contestant for Touched {
    fn name(&self) -> String {
        "mig".into()
    }

    fn memory_bytes(&self) -> u64 {
        // The guest's, and the cache's.
        2 * self.touch.ram_bytes
    }

    fn run(&mut self) -> Result<Turn> {
        let role = TouchedRole { touch: self.touch, window: self.window };
        let mut source = Helper::role("the source", &Role::Touched(role))?;
        let _filled: Ready = source.hear(STEP)?;
        let mut sink = Helper::role("the sink", &Role::Sink)?;
        let ready: Ready = sink.hear(STEP)?;
        let address = ready.address.ok_or("the sink does not say where it listens")?;
        source.say(&Go { address })?;
        let seen: TouchedResult = source.hear(TRANSFER + self.window)?;
        turn(&seen)
    }
}

/// What one window says, whoever was watched.
pub(super) fn turn(seen: &TouchedResult) -> Result<Turn> {
    if seen.deltas == 0 {
        return Err(format!("no deltas were made: {seen:?}").into());
    }
    let sample = Sample {
        seconds: seen.seconds,
        cpu_seconds: Some(seen.cpu_seconds),
        bytes: seen.deltas * mig_ram::PAGE_SIZE as u64,
        ..Sample::default()
    };
    let remark = format!(
        "{} passes, {:.1} bytes a delta, {} whole pages beside {} deltas",
        seen.passes,
        seen.delta_bytes as f64 / seen.deltas as f64,
        seen.whole_pages,
        seen.deltas
    );
    Ok(Turn { sample, remark: Some(remark) })
}
