//! `--deadline`: how long each wait may take.

use std::str::FromStr;

use clap::Args;
use mig::engine::{Deadlines, Wait};

use crate::flags::Duration;

/// Deadlines that differ from the usual ones.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct DeadlineFlags {
    /// How long one kind of wait may take; again for another kind. WAIT is connect (30s), accept (never), handshake (10s),
    /// first-byte (10s), idle (10m), heartbeat (1m), acknowledgement (1m), exit (10s) or storage (5m); accept, idle and
    /// heartbeat may be `never`
    #[arg(long = "deadline", value_name = "WAIT=DURATION")]
    deadlines: Vec<Deadline>,
}

impl DeadlineFlags {
    /// Changes those that were named; of two for the same wait the later counts.
    pub(crate) fn apply(&self, deadlines: &mut Deadlines) -> Result<(), mig::engine::Error> {
        self.deadlines.iter().try_for_each(|Deadline(wait, limit)| deadlines.set(*wait, *limit))
    }
}

/// One of them.
#[derive(Clone, Copy, Debug)]
struct Deadline(Wait, Option<std::time::Duration>);

impl FromStr for Deadline {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write WAIT=DURATION, like idle=1h";
        let (wait, limit) = text.split_once('=').ok_or(form)?;
        let wait: Wait = wait.parse().map_err(|error: mig::engine::Error| error.to_string())?;
        let limit = match limit {
            "never" => None,
            limit => Some(limit.parse::<Duration>()?.0),
        };
        // What cannot be is refused here, where the flag is named.
        let refused = |error: mig::engine::Error| error.to_string();
        Deadlines::default().set(wait, limit).map_err(refused)?;
        Ok(Self(wait, limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Deadlines, String> {
        let mut deadlines = Deadlines::default();
        let flags = DeadlineFlags { deadlines: vec![text.parse()?] };
        flags.apply(&mut deadlines).unwrap();
        Ok(deadlines)
    }

    #[test]
    fn a_wait_is_set_by_its_name() {
        assert_eq!(parsed("connect=5s").unwrap().connect.as_secs(), 5);
        assert_eq!(parsed("idle=1h").unwrap().idle.unwrap().as_secs(), 3600);
        assert_eq!(parsed("idle=never").unwrap().idle, None);
        assert_eq!(parsed("exit=1500").unwrap().exit.as_millis(), 1500);
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        for (text, told) in [
            ("idle", "idle=1h"),
            ("idel=1h", "first-byte"),
            ("idle=soon", "300ms"),
            ("idle=0", "some time"),
            ("connect=never", "accept, idle, heartbeat"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    /// The help names them all, with their defaults.
    #[test]
    fn the_help_has_every_wait() {
        #[derive(Debug, clap::Parser)]
        struct Cli {
            #[command(flatten)]
            flags: DeadlineFlags,
        }
        let help = <Cli as clap::CommandFactory>::command().render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for wait in Wait::ALL {
            let limit = match wait {
                Wait::Accept => "never".to_owned(),
                _ => humantime::format_duration(Deadlines::default().of(wait).unwrap()).to_string(),
            };
            assert!(help.contains(&format!("{wait} ({limit})")), "{wait} ({limit}) in {help}");
        }
    }
}
