//! One end of a live migration in a process of its own, which somebody kills: it says on stderr what happens to it.

use std::{
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use mig::{
    ConnectOptions, ConnectTls, ListenOptions, ListenTls,
    engine::{Deadlines, Destination, Error, Outcome, Owner, Source},
    ram::RamBlocks,
    transport::{Blame, MigrationAddress},
};
use mig_transport_tls::{ClientCredentials, ServerCredentials};

use super::{BOUND, joint::Joint};
use crate::{
    cases::End,
    guest::{Life, SmallGuest, contents, devices, fill, final_contents, memory},
    judge,
    leaks::Held,
    mode::Mode,
};

/// Says in this process's environment that it is to be an end; the rest says which.
pub(crate) const END: &str = "MIG_FAULTS_END";
/// What a source says at its end if nothing of its guest's last state can have left.
pub(super) const NEVER_STOPPED: &str = "guest never stopped";
const URI: &str = "MIG_FAULTS_END_URI";
const MODE: &str = "MIG_FAULTS_END_MODE";
const RATE: &str = "MIG_FAULTS_END_RATE";
const WAITS: &str = "MIG_FAULTS_END_WAITS";
const CERTIFICATES: &str = "MIG_FAULTS_END_CERTIFICATES";

/// This binary again, as one end.
pub(super) fn of(command: &mut Command, end: End, uri: &str, joint: &Joint<'_>, rate: Option<u32>) {
    command
        .arg(std::env::current_exe().expect("this binary"))
        .args(["--exact", "an_end_in_a_process_of_its_own", "--nocapture", "--test-threads=1"])
        .env(END, end.to_string())
        .env(URI, uri)
        .env(MODE, joint.mode.name())
        .env(RATE, rate.unwrap_or(0).to_string())
        .env(WAITS, joint.waits().map(|wait| wait.as_secs().to_string()).join(" "))
        .env(CERTIFICATES, joint.kit.certificates());
}

/// What this process is told to be.
struct Orders {
    address: MigrationAddress,
    mode: Mode,
    max_bandwidth: u64,
    certificates: PathBuf,
    deadlines: Deadlines,
}

/// Is that end.
pub(crate) fn end() {
    let told = |name: &str| std::env::var(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    let waits = told(WAITS);
    let mut waits =
        waits.split(' ').map(|wait| Duration::from_secs(wait.parse().expect("seconds")));
    let [accept, patience] = [(); 2].map(|()| waits.next().expect("two waits"));
    let mut deadlines = Deadlines::default();
    deadlines.connect = patience;
    deadlines.accept = Some(accept);
    deadlines.handshake = patience;
    deadlines.first_byte = patience;
    deadlines.idle = Some(patience);
    deadlines.final_acknowledgement = patience;
    deadlines.exit = patience;
    let mode = Mode::ALL.into_iter().find(|mode| mode.name() == told(MODE)).expect("a mode");
    let orders = Orders {
        address: told(URI).parse().expect("an address"),
        mode,
        max_bandwidth: told(RATE).parse().expect("a number"),
        certificates: told(CERTIFICATES).into(),
        deadlines,
    };
    let memory = memory();
    let life = Life::default();
    let guest = SmallGuest { life: life.clone(), memory: Arc::clone(&memory), says: Some(say) };
    let runtime = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime")
    };
    // The first one in a process opens what stays open.
    drop(runtime());
    let held = Held::now();
    // librdmacm has a device open for as long as its process lives.
    let rdma = orders.address.to_string().starts_with("rdma:");
    let keeps: &[&str] =
        if rdma { &["descriptor of /dev/infiniband/", "descriptor of anon_inode"] } else { &[] };
    let sends = told(END) == End::Source.to_string();
    let outcome = runtime().block_on(async {
        match sends {
            true => source(orders, Arc::clone(&memory), guest).await,
            false => destination(orders, Arc::clone(&memory), guest).await,
        }
    });
    if life.state().started
        && (contents(&memory) != final_contents() || life.state().devices != devices())
    {
        say("wrong: another guest arrived");
    }
    let state = life.state();
    if sends && !state.stopped {
        say(NEVER_STOPPED);
    }
    let is_its_owner = outcome.as_ref().is_err_and(|error| error.owner() == Owner::Source);
    if sends && is_its_owner != (!state.stopped || state.resumed) {
        say("wrong: the guest runs where it should not, or does not where it should");
    }
    match outcome {
        Ok(outcome) if outcome.confirmed || !sends => say("ended: completed"),
        Ok(_) => say("ended: sent, not confirmed"),
        Err(error) => {
            if error.blame() == Blame::Deadline || error.wait().is_some() {
                let wait = error.wait().map_or("an unnamed one", |wait| wait.name());
                say(&format!("waited: {wait}"));
            }
            say(&format!("ended: owner {:?}: {}", error.owner(), judge::chain(&error)));
        }
    }
    let deadline = Instant::now() + BOUND / 4;
    while let Some(more) = held.left_behind(keeps) {
        if Instant::now() > deadline {
            return say(&format!("wrong: left behind: {more}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

async fn source(
    orders: Orders,
    memory: Arc<RamBlocks>,
    guest: SmallGuest,
) -> Result<Outcome, Error> {
    fill(&memory);
    let mut options = ConnectOptions::default();
    options.return_path = orders.mode.has_return_path();
    if orders.mode.has_tls() {
        let credentials = ClientCredentials::x509(&orders.certificates).expect("a client");
        let mut tls = ConnectTls::new(credentials);
        tls.hostname = Some("localhost".to_owned());
        options.tls = Some(tls);
    }
    options.set_deadlines(&orders.deadlines);
    let mut parameters = orders.mode.parameters();
    parameters.max_bandwidth = orders.max_bandwidth;
    let connector = mig::connector(&orders.address, &options).expect("an address");
    let mut source = Source::new(memory, Box::new(guest))
        .with_capabilities(orders.mode.capabilities())
        .with_parameters(parameters)
        .with_deadlines(orders.deadlines);
    source.run(&*connector).await
}

async fn destination(
    orders: Orders,
    memory: Arc<RamBlocks>,
    guest: SmallGuest,
) -> Result<Outcome, Error> {
    let mut options = ListenOptions::default();
    options.return_path = orders.mode.has_return_path();
    if orders.mode.has_tls() {
        let credentials = ServerCredentials::x509(&orders.certificates, true).expect("a server");
        options.tls = Some(ListenTls::new(credentials));
    }
    options.set_deadlines(&orders.deadlines);
    let mut listener = mig::listener(&orders.address, &options).await.expect("it listens");
    for address in listener.local_addresses() {
        say(&format!("listening on {address}"));
    }
    let mut destination = Destination::new(memory, Box::new(guest))
        .with_capabilities(orders.mode.capabilities())
        .with_parameters(orders.mode.parameters())
        .with_deadlines(orders.deadlines);
    destination.run(&mut *listener).await
}

/// A line at once, whatever becomes of this process; whoever reads them may be gone.
fn say(what: &str) {
    eprintln!("\n{what}");
}
