//! A destination of the library: with a source of ours at the far end, and with one that does not listen.

use std::net::TcpStream;

use mig_engine::Owner;
use mig_proto::{Command, encode, state::MigrationStatus};

use super::{
    far::{self, Writer},
    migration::{Guests, Running, as_usual},
    situation::Situation,
    source::{cancel, meet},
};
use crate::{child::STEP, role::Multifd, stream::beginning};

pub(super) fn situations(guests: &Guests) -> Vec<Situation> {
    let plain = guests.clone();
    let several = guests.clone();
    let paused = guests.clone();
    let deaf = guests.clone();
    vec![
        Situation::new("destination: at full speed", "a source", move |stay| {
            let (source, destination) = meet(&plain, None, as_usual)?;
            source.until_sent(32 << 20)?;
            cancel(destination, &source, stay)
        }),
        Situation::new("destination: 4 data channels at full speed", "a source", move |stay| {
            let channels = Multifd::plain(4);
            let (source, destination) = meet(&several, None, |capabilities, parameters| {
                channels.apply(capabilities, parameters);
            })?;
            source.until_sent(32 << 20)?;
            cancel(destination, &source, stay)
        }),
        Situation::new("destination: its source is in pre-switchover", "a source", move |stay| {
            let (source, destination) = meet(&paused, None, |capabilities, parameters| {
                capabilities.pause_before_switchover = true;
                parameters.downtime_limit = u64::from(u32::MAX);
            })?;
            source.until(|handle| handle.status() == MigrationStatus::PreSwitchover)?;
            cancel(destination, &source, stay)
        }),
        Situation::new(
            "destination: nobody reads its answers",
            "a socket that is read again",
            move |stay| {
                let destination = deaf.destination(as_usual);
                let (destination, address) =
                    Running::destination(destination, "tcp:127.0.0.1:0".into(), None)?;
                let there = address.strip_prefix("tcp:").ok_or("it listens on tcp")?;
                let source = TcpStream::connect(there)?;
                source.set_write_timeout(Some(STEP))?;
                let mut head = beginning();
                encode::command(&mut head, &Command::OpenReturnPath);
                let mut pings = Vec::new();
                for number in 0..4096 {
                    encode::command(&mut pings, &Command::Ping(number));
                }
                let writer = Writer::start(source.try_clone()?, head, pings)?;
                writer.is_stuck()?;
                destination
                    .cancelled(stay, Owner::Source, || Ok(Some(far::reads_on(source)?.seen()?)))
            },
        ),
    ]
}
