//! A source of the library, where the command line cannot be brought or a guest is needed.

use std::{path::PathBuf, rc::Rc, time::Duration};

use mig_engine::{Capabilities, Owner, Parameters};
use mig_proto::state::MigrationStatus;

use super::{
    migration::{Guests, Held, Running, as_usual},
    scene::Stage,
    situation::{Cancelled, Situation},
};
use crate::{
    failure::Result,
    role::{Compression, Multifd, connector},
};

const TCP: &str = "tcp:127.0.0.1:0";

/// Enough for all buffers between two ends to be in use.
const UNDER_WAY: u64 = 32 << 20;

pub(super) fn situations(guests: &Guests, stage: &Rc<Stage>) -> Vec<Situation> {
    let held = "held channels that are read again";
    let mut situations = vec![
        full("source: a full socket", held, guests, None, None),
        full("source: a full TLS channel", held, guests, Some(stage.certificates()), None),
        full("source: full data channels", held, guests, None, Some(Multifd::plain(4))),
    ];
    let compressed = Multifd { channels: 4, compression: Compression::ZstdLevel(20) };
    for (what, tls, multifd) in [
        ("source: at full speed", None, None),
        ("source: at full speed, TLS", Some(stage.certificates()), None),
        ("source: 4 data channels at full speed", None, Some(Multifd::plain(4))),
    ] {
        situations.push(both(
            what,
            guests,
            tls,
            move |capabilities, parameters| {
                if let Some(multifd) = multifd {
                    multifd.apply(capabilities, parameters);
                }
            },
            |source| source.until_sent(UNDER_WAY),
        ));
    }
    situations.push(both(
        "source: 4 data channels compress at zstd's level 20",
        guests,
        None,
        move |capabilities, parameters| {
            compressed.apply(capabilities, parameters);
        },
        |source| source.until_sent(1 << 20),
    ));
    situations.push(beginning(guests));
    situations.push(both("source: 1 byte/s", guests, None, as_usual, |source| {
        source.until_sent(UNDER_WAY)?;
        let mut parameters = source.handle.parameters();
        parameters.max_bandwidth = 1;
        source.handle.set_parameters(parameters);
        Ok(())
    }));
    situations.push(both(
        "source: in pre-switchover",
        guests,
        None,
        |capabilities, parameters| {
            capabilities.pause_before_switchover = true;
            // Whatever is left may be sent with the guest stopped.
            parameters.downtime_limit = u64::from(u32::MAX);
        },
        |source| source.until(|handle| handle.status() == MigrationStatus::PreSwitchover),
    ));
    situations.push(both(
        "source: an XBZRLE cache of 512 MiB is halved",
        guests,
        None,
        |capabilities, parameters| {
            capabilities.xbzrle = true;
            parameters.xbzrle_cache_size = Guests::BYTES;
        },
        |source| {
            source
                .until(|handle| handle.info().xbzrle_cache.is_some_and(|cache| cache.pages > 0))?;
            let mut parameters = source.handle.parameters();
            parameters.xbzrle_cache_size = Guests::BYTES / 2;
            source.handle.set_parameters(parameters);
            Ok(())
        },
    ));
    situations
}

/// A source that has only begun: the far end may not have seen it.
fn beginning(guests: &Guests) -> Situation {
    let guests = guests.clone();
    Situation::new("source: from the first moment on", "", move |stay| {
        let (source, destination) = meet(&guests, None, as_usual)?;
        source.cancelled(stay, Owner::Source, || {
            destination.handle.cancel();
            destination.ended()?;
            Ok(None)
        })
    })
}

/// A source whose far end reads nothing.
fn full(
    what: &'static str,
    far: &'static str,
    guests: &Guests,
    tls: Option<PathBuf>,
    multifd: Option<Multifd>,
) -> Situation {
    let guests = guests.clone();
    Situation::new(what, far, move |stay| {
        let channels = 1 + multifd.map_or(0, |multifd| usize::from(multifd.channels));
        let held = Held::open(TCP, tls.clone(), channels)?;
        let source = guests.source(|capabilities, parameters| {
            if let Some(multifd) = multifd {
                multifd.apply(capabilities, parameters);
            }
        });
        let connector = connector(&held.address, false, tls.as_deref())?;
        let source = Running::source(source, connector)?;
        held.arrived(channels)?;
        source.until_stuck()?;
        source.cancelled(stay, Owner::Source, || held.read_on())
    })
}

/// A source and a destination, of which the source is cancelled where `reach` brought it.
fn both(
    what: &'static str,
    guests: &Guests,
    tls: Option<PathBuf>,
    tell: impl Fn(&mut Capabilities, &mut Parameters) + 'static,
    reach: impl Fn(&Running) -> Result<()> + 'static,
) -> Situation {
    let guests = guests.clone();
    Situation::new(what, "a destination", move |stay| {
        let (source, destination) = meet(&guests, tls.clone(), &tell)?;
        reach(&source)?;
        cancel(source, &destination, stay)
    })
}

/// A source, and the destination to which it is on its way.
pub(super) fn meet(
    guests: &Guests,
    tls: Option<PathBuf>,
    tell: impl Fn(&mut Capabilities, &mut Parameters),
) -> Result<(Running, Running)> {
    let destination = guests.destination(|capabilities, parameters| {
        let mut told = Capabilities::default();
        tell(&mut told, parameters);
        capabilities.multifd = told.multifd;
    });
    let (destination, address) = Running::destination(destination, TCP.into(), tls.clone())?;
    let connector = connector(&address, false, tls.as_deref())?;
    let source = Running::source(guests.source(tell), connector)?;
    Ok((source, destination))
}

/// Cancels one of both.
pub(super) fn cancel(this: Running, other: &Running, stay: Duration) -> Result<Cancelled> {
    this.cancelled(stay, Owner::Source, || {
        let ended = other.ended()?;
        match ended.outcome {
            Ok(_) => Err("the far end completed".into()),
            Err(_) => Ok(Some(ended.at)),
        }
    })
}
