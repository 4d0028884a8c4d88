//! What a stranger costs a listener: the processor time of `mig recv` for each, and whether it grows.

use std::{
    env,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use mig_transport::{Connector, MigrationAddress};
use mig_transport_tcp::{TcpConnector, TcpOptions};
use mig_transport_tls::{ClientCredentials, TlsConnector, TlsOptions};

use super::Plan;
use crate::{
    certificates::Certificates,
    child::{Helper, STEP},
    failure::Result,
    report::{Figure, Goal, Section},
    role::Foreign,
    statistics::Spread,
};

/// In each round; the memory is looked at after a tenth of them and at the end.
const STRANGERS: u32 = 10_000;
/// A handshake is dear to the stranger as well.
const HANDSHAKES: u32 = 1_000;
/// Milliseconds.
const GOAL: f64 = 1.0;
const FLAT: f64 = 1.1;

/// What strangers do.
enum Stranger {
    /// They say this and wait to be hung up on.
    Says(Vec<u8>),
    /// They say nothing and stay until they are pushed out.
    Stays,
    /// They begin a TLS handshake, and trust another authority.
    Shakes(TlsConnector),
}

/// One kind of them.
struct Kind {
    what: &'static str,
    arguments: Vec<String>,
    count: u32,
    stranger: Box<dyn Fn(SocketAddr) -> Result<Stranger>>,
}

pub(super) fn run(plan: &Plan, section: &mut Section) -> Result<()> {
    let program = env::current_exe()?.with_file_name("mig");
    if !program.exists() {
        return Err(
            "there is no mig beside this program; `cargo build --release -p mig-cli` makes it"
                .into(),
        );
    }
    let (ours, others) = (Certificates::new()?, Certificates::new()?);
    for kind in kinds(&ours, others.directory()) {
        let (mut costs, mut growths) = (Vec::new(), Vec::new());
        for run in 1..=plan.runs {
            let (cost, growth) = round(&program, &kind)?;
            eprintln!("door {run}/{} {}: {cost:.4} ms, memory {growth:.3}", plan.runs, kind.what);
            costs.push(cost);
            growths.push(growth);
        }
        let what = format!("processor time for each that {}", kind.what);
        section.figures.push(Figure::judged(what, "ms", Spread::of(costs), Goal::AtMost(GOAL)));
        let what = format!("memory after all of a tenth of them, that {}", kind.what);
        section.figures.push(Figure::judged(what, "", Spread::of(growths), Goal::AtMost(FLAT)));
    }
    section.notes.push(format!(
        "Strangers at `mig recv` on a tcp port of the loopback, one after the other, {STRANGERS} of each kind a round and \
         {HANDSHAKES} of those that shake hands or begin to. Processor time of all its threads, peak resident memory."
    ));
    Ok(())
}

fn kinds(ours: &Certificates, others: PathBuf) -> Vec<Kind> {
    let says = |bytes: &'static [u8]| -> Box<dyn Fn(SocketAddr) -> Result<Stranger>> {
        Box::new(move |_| Ok(Stranger::Says(bytes.to_vec())))
    };
    let tls = vec!["--tls-creds".to_owned(), ours.directory().display().to_string()];
    // A hello of version 2.
    const HELLO: &[u8] = &{
        let mut hello = [0; 64];
        let begin = [0x11, 0x22, 0x33, 0x44, 0, 0, 0, 2];
        let mut at = 0;
        while at < begin.len() {
            hello[at] = begin[at];
            at += 1;
        }
        hello
    };
    let plain = |what, bytes, arguments: &[&str]| Kind {
        what,
        arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        count: STRANGERS,
        stranger: says(bytes),
    };
    vec![
        plain("says what no source says", b"GET / HTTP/1.1\r\n\r\n", &[]),
        plain("says a hello of another version", HELLO, &["--multifd", "2"]),
        plain("is not allowed", b"", &["--allow", "192.0.2.0/24"]),
        Kind {
            what: "says nothing and stays",
            arguments: Vec::new(),
            count: STRANGERS,
            stranger: Box::new(|_| Ok(Stranger::Stays)),
        },
        Kind {
            what: "says no TLS where TLS is",
            arguments: tls.clone(),
            count: STRANGERS,
            stranger: says(b"GET / HTTP/1.1\r\n\r\n"),
        },
        Kind {
            what: "says a TLS hello without an end in records of one byte",
            arguments: tls.clone(),
            count: HANDSHAKES,
            stranger: Box::new(|_| Ok(Stranger::Says(endless_hello()))),
        },
        Kind {
            what: "shakes hands under another authority",
            arguments: tls,
            count: HANDSHAKES,
            stranger: Box::new(move |there| Ok(Stranger::Shakes(shaking(&others, there)?))),
        },
    ]
}

/// The beginning of a hello of 65 000 bytes, 20 000 of them.
fn endless_hello() -> Vec<u8> {
    let hello = [1, 0, 0xfd, 0xe8, 3, 3].into_iter().chain(std::iter::repeat(0));
    hello.take(20_000).flat_map(|byte| [0x16, 3, 1, 0, 1, byte]).collect()
}

fn shaking(certificates: &Path, there: SocketAddr) -> Result<TlsConnector> {
    let address = MigrationAddress::parse(&format!("tcp:{there}"))?;
    let mig_transport::Address::Inet(inet) = address.address() else {
        return Err("tcp is an internet address".into());
    };
    let credentials = ClientCredentials::x509(certificates)?;
    let name = credentials.expected_name(address.address(), Some(Certificates::NAME))?;
    let bare = Box::new(TcpConnector::new(inet.clone(), TcpOptions::default()));
    Ok(TlsConnector::new(bare, credentials, name, TlsOptions::default())?)
}

/// Milliseconds of processor time for each, and the peak of memory at the end of what it was after a tenth.
fn round(program: &Path, kind: &Kind) -> Result<(f64, f64)> {
    let mut arguments = vec!["recv".to_owned(), "tcp:127.0.0.1:0".into(), "--json".into()];
    arguments.push("--quiet".into());
    arguments.extend(kind.arguments.iter().cloned());
    let program = program.display().to_string();
    let foreign = Foreign { program, arguments, ..Foreign::default() };
    let mut receiver = Helper::foreign("mig recv", foreign)?;
    let told: serde_json::Value = receiver.hear(STEP)?;
    let there: SocketAddr = told["socket-address"][0]
        .as_str()
        .and_then(|uri| uri.strip_prefix("tcp:")?.parse().ok())
        .ok_or_else(|| format!("mig recv listens at {told}"))?;
    let stranger = (kind.stranger)(there)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut staying = std::collections::VecDeque::new();
    let mut early = 0;
    let before = receiver.cpu_seconds()?;
    for at in 0..kind.count {
        if at == kind.count / 10 {
            early = receiver.peak_rss().unwrap_or(0);
        }
        match &stranger {
            Stranger::Says(bytes) => says(there, bytes)?,
            Stranger::Stays => {
                staying.push_back(TcpStream::connect(there)?);
                // More than may stay.
                if staying.len() > 500 {
                    staying.pop_front();
                }
            }
            Stranger::Shakes(connector) => {
                if runtime.block_on(connector.connect()).is_ok() {
                    return Err("a stranger was let in".into());
                }
            }
        }
    }
    // The last ones too: once nobody is served any more the clock stands still.
    let mut spent = receiver.cpu_seconds()?;
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let now = receiver.cpu_seconds()?;
        if now <= spent {
            break;
        }
        spent = now;
    }
    let late = receiver.peak_rss().unwrap_or(0);
    if let Some(status) = receiver.ended()? {
        return Err(receiver.complaint(&format!("did not survive ({status})")).into());
    }
    Ok(((spent - before) * 1e3 / f64::from(kind.count), late as f64 / early.max(1) as f64))
}

fn says(there: SocketAddr, bytes: &[u8]) -> Result<()> {
    let mut stream = TcpStream::connect(there)?;
    stream.set_read_timeout(Some(STEP))?;
    // It may be closed already, with a reset for what was not read.
    let _closed = stream.write_all(bytes);
    match stream.read(&mut [0; 256]) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            Err("a stranger is not hung up on".into())
        }
        _ => Ok(()),
    }
}
