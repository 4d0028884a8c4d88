//! `mig recv`: be a migration destination.

use std::{
    cell::OnceCell,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use mig::{
    ListenOptions,
    engine::{
        Deadlines, Discard, MigrationHandle, RecordOptions, Recorded, Recorder, StreamSink, Wait,
        WriteSink,
    },
    transport::{Address, AllowList, Blame, Listener, MigrationAddress},
};

use crate::{
    failure::{Failure, Outcome},
    flags::{DeadlineFlags, DoorFlags, Duration as DurationFlag, RecvFlags, TlsDestinationFlags},
    inspect::{self, Collector, Report},
    multifd, pinning, result,
    standard::{self, Wanted},
    supervise::{Limit, Signals, block_on, prepare, supervise},
    talk::Talk,
    tls,
};

/// What will be done.
struct Plan {
    address: MigrationAddress,
    keep: Keep,
    options: RecordOptions,
    listen: ListenOptions,
    timeout: Option<Duration>,
}

/// Where the stream goes.
enum Keep {
    Nowhere,
    Stdout,
    File(PathBuf),
}

/// Runs the command.
pub(crate) fn run(flags: &RecvFlags) -> Outcome {
    let talk = Talk::new(flags.quiet, flags.json);
    let begun = OnceCell::new();
    let outcome = plan(flags).and_then(|plan| block_on(record(plan, &talk, &begun)));
    if let Err(failure) = &outcome {
        talk.object(&result::failed(failure, begun.get()));
    }
    outcome
}

fn plan(flags: &RecvFlags) -> Outcome<Plan> {
    let address = parse(&flags.uri)?;
    let keep = match &flags.save {
        None => Keep::Nowhere,
        Some(path) if path == Path::new("-") => Keep::Stdout,
        Some(path) => Keep::File(path.clone()),
    };
    let stdout = match (&keep, flags.json) {
        (Keep::Stdout, true) => {
            return Err(Failure::misuse(
                "--save - and --json both want stdout: save to a file, or leave --json out",
            ));
        }
        (Keep::Stdout, false) => Some("--save -"),
        (_, true) => Some("--json"),
        _ => None,
    };
    standard::check(&address, Wanted { stdin: false, stdout })?;
    let rdma = address.address().scheme() == "rdma";
    let pinning = pinning::check(rdma, false, flags.rdma_pinned_memory)?;
    let allow = door(&flags.door, &flags.tls, &address)?;
    let mut options = RecordOptions::default();
    options.return_path = !flags.no_return_path;
    options.switchover_ack = flags.switchover_ack;
    options.deadlines = patient(&flags.deadlines)?;
    options.uuid = flags.uuid.map(|uuid| uuid.0);
    options.multifd = multifd::expect(&flags.multifd, &address)?;
    let mut listen = ListenOptions::default();
    listen.tls = tls::destination(&flags.tls)?;
    listen.set_deadlines(&options.deadlines);
    listen.allow = allow;
    listen.return_path = flags.return_path;
    listen.rdma_pinned_memory = pinning.at_most;
    // QEMU's exec: gives its command two pipes; stdout is free for answers unless something else was wanted there.
    listen.answer_on_stdout = stdout.is_none() && (!flags.no_return_path || listen.tls.is_some());
    Ok(Plan { address, keep, options, listen, timeout: flags.timeout.map(|limit| limit.0) })
}

/// Who may connect, once it is certain that such a door may be opened at all.
fn door(
    flags: &DoorFlags,
    tls: &TlsDestinationFlags,
    address: &MigrationAddress,
) -> Outcome<Option<AllowList>> {
    if flags.require_tls && address.address().scheme() == "rdma" {
        return Err(Failure::misuse(format!(
            "--require-tls: {address} carries the guest's memory in the clear, and TLS cannot change that; use tcp: with \
             --tls-creds, or a network that is trusted"
        )));
    }
    if flags.require_tls && tls.tls_creds.is_none() && is_plaintext_to_others(address.address()) {
        return Err(Failure::misuse(format!(
            "--require-tls: {address} can be reached by others and carries the guest's memory in the clear"
        ))
        .next("give --tls-creds DIR (`mig certs DIR` makes a trial set), or listen on 127.0.0.1 or [::1] and let a tunnel \
               (ssh, stunnel) bring the source there"));
    }
    if flags.allow.is_empty() {
        return Ok(None);
    }
    let allow = AllowList::new(flags.allow.iter().map(|allow| allow.0));
    allow.check(address.address().scheme())?;
    Ok(Some(allow))
}

pub(crate) fn parse(uri: &str) -> Outcome<MigrationAddress> {
    MigrationAddress::parse(uri).map_err(|error| Failure::misuse(error.to_string()))
}

/// A person or a script waits for the source; they have their own patience.
fn patient(flags: &DeadlineFlags) -> Outcome<Deadlines> {
    let mut deadlines = Deadlines::default();
    deadlines.accept = None;
    flags.apply(&mut deadlines)?;
    Ok(deadlines)
}

async fn record(plan: Plan, talk: &Talk, begun: &OnceCell<MigrationHandle>) -> Outcome {
    let mut signals = Signals::catch()?;
    let limit = Limit::from_now(plan.timeout);
    let recorder = Recorder::new(plan.options);
    let handle = begun.get_or_init(|| recorder.handle());
    let sink: Box<dyn StreamSink> = match &plan.keep {
        Keep::Nowhere => Box::new(Discard),
        Keep::Stdout => Box::new(WriteSink::new(io::stdout(), "stdout")),
        Keep::File(path) => mig::file_sink(path)?,
    };
    let mut listener = listen(&mut signals, limit, &plan.address, &plan.listen).await?;
    // Nobody is served yet.
    warn_if_open(&plan.address, &plan.listen, talk);
    let progress = talk.progress("receiving", None);
    let work = recorder.run(&mut *listener, sink, None);
    let recorded = supervise(talk, handle, &mut signals, limit, progress, work).await?;
    tell(&recorded, &plan.keep, talk);
    Ok(())
}

/// Opens the door; the name of where it is may have to be looked up.
async fn listen(
    signals: &mut Signals,
    limit: Limit,
    address: &MigrationAddress,
    options: &ListenOptions,
) -> Outcome<Box<dyn Listener>> {
    let work = async {
        mig::listener(address, options).await.map_err(|error| match Failure::from(error) {
            // Nothing else here has one.
            failure if failure.blame == Blame::Deadline => failure.ran_out(Wait::Connect),
            failure => failure,
        })
    };
    prepare(signals, limit, "its own address to be looked up and opened", work).await
}

fn tell(recorded: &Recorded, keep: &Keep, talk: &Talk) {
    let kept = match keep {
        Keep::Nowhere => "verified and discarded".to_owned(),
        Keep::Stdout => "written to stdout".to_owned(),
        Keep::File(path) => format!("kept in {}", path.display()),
    };
    let told = match recorded.confirmed {
        true => "the source was told",
        false => "the source could not be told (no return path)",
    };
    talk.say(&format!(
        "complete: {} bytes {kept}; {} pages, {} zero; {told}",
        recorded.bytes,
        recorded.pages.normal + recorded.pages.xbzrle + recorded.pages.compressed,
        recorded.pages.zero,
    ));
    talk.object(&result::completed(
        recorded.confirmed,
        recorded.bytes,
        &recorded.pages,
        &recorded.info,
    ));
}

/// How to look at a stream that comes.
pub(crate) struct Looking<'a> {
    pub(crate) tls: &'a TlsDestinationFlags,
    pub(crate) door: &'a DoorFlags,
    pub(crate) deadlines: &'a DeadlineFlags,
    pub(crate) timeout: Option<DurationFlag>,
}

/// Waits for a source, and looks at its stream instead of keeping it.
pub(crate) fn inspect(
    address: MigrationAddress,
    plan: &Looking<'_>,
    talk: &Talk,
) -> (Report, Outcome) {
    let mut collector = Collector::new(None);
    let outcome = block_on(async {
        let mut signals = Signals::catch()?;
        let limit = Limit::from_now(plan.timeout.map(|limit| limit.0));
        let mut options = RecordOptions::default();
        options.deadlines = patient(plan.deadlines)?;
        options.stream = inspect::options();
        let mut door_options = ListenOptions::default();
        door_options.allow = door(plan.door, plan.tls, &address)?;
        door_options.tls = tls::destination(plan.tls)?;
        door_options.set_deadlines(&options.deadlines);
        let mut listener = listen(&mut signals, limit, &address, &door_options).await?;
        warn_if_open(&address, &door_options, talk);
        let recorder = Recorder::new(options);
        let handle = recorder.handle();
        let progress = Talk::new(true, false).progress("reading", None);
        let work = recorder.run(&mut *listener, Box::new(Discard), Some(&mut collector));
        supervise(talk, &handle, &mut signals, limit, progress, work).await.map(|_recorded| ())
    });
    let report = collector.finish_live(outcome.as_ref().err());
    (report, outcome)
}

fn warn_if_open(address: &MigrationAddress, listen: &ListenOptions, talk: &Talk) {
    if let Address::Rdma(_) = address.address() {
        talk.warn(&format!(
            "{address} lets anybody who can reach it write the memory of the guest that is received; RDMA knows neither \
             encryption nor passwords, so use it on a network that is trusted"
        ));
    }
    if listen.tls.is_none() && is_plaintext_to_others(address.address()) {
        let (whom, where_else) = match address.address() {
            Address::Vsock(_) => (
                "any virtual machine of this host",
                "listen on vsock:1 where the source is on this machine,",
            ),
            _ => (
                "anybody who can reach this machine",
                "listen on 127.0.0.1 or [::1] and use a tunnel,",
            ),
        };
        talk.warn(&format!(
            "{address} takes a guest's whole memory, unencrypted, from {whom}; give --tls-creds DIR \
             (`mig certs DIR` makes a trial set), or {where_else} unless all of them are trusted; --allow says who may connect, and --require-tls makes this an error"
        ));
    }
}

/// RDMA is warned about in words of its own.
fn is_plaintext_to_others(address: &Address) -> bool {
    !matches!(address, Address::Rdma(_)) && mig::open_to(address).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_quiet() {
        for (uri, open) in [
            ("tcp:127.0.0.1:0", false),
            ("tcp:[::1]:0", false),
            ("tcp:localhost:0", false),
            ("unix:/x", false),
            ("tcp::4444", true),
            ("tcp:0.0.0.0:4444", true),
            ("tcp:[::]:4444", true),
            ("tcp:192.0.2.7:4444", true),
            ("vsock:1:4444", false),
            ("vsock:2:4444", true),
            ("vsock:4294967295:4444", true),
        ] {
            let address = MigrationAddress::parse(uri).unwrap();
            assert_eq!(is_plaintext_to_others(address.address()), open, "{uri}");
        }
    }
}
