//! Each transport, tried: a channel is made, some bytes go over it, and back where it can carry answers.

use std::{
    os::fd::IntoRawFd,
    path::PathBuf,
    process,
    time::{Duration, Instant},
};

use mig::{
    ConnectOptions, ListenOptions,
    transport::{Channel, Error, MigrationAddress, Result},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::doctor::{
    report::{Check, Group},
    tls,
};

/// A loopback connection that takes longer does not work.
const PATIENCE: Duration = Duration::from_secs(5);
const HELLO: &[u8] = b"mig doctor";

/// All of them.
pub(crate) async fn checks() -> Vec<Check> {
    let folder = Folder::new();
    let path = |name: &str| folder.0.join(name).display().to_string();
    let mut checks = vec![
        check("tcp (IPv4)", both("tcp:127.0.0.1:0").await),
        check("tcp (IPv6)", both("tcp:[::1]:0").await),
        check("unix", both(&format!("unix:{}", path("socket"))).await),
        check("unix (abstract)", both(&abstract_name()).await),
        check("vsock", both("vsock:1:4294967295").await),
        check("fd (pipe)", pipe().await),
        check("exec", exec(&path("from-exec")).await),
        check("file", file(&path("stream")).await),
    ];
    checks.push(check("rdma", rdma().await));
    checks.push(check("tls (tcp)", tls::x509(&folder.0.join("tls")).await));
    checks
}

/// What went well is told as a sentence, what did not as the error itself.
fn check(name: &str, outcome: Result<String>) -> Check {
    match outcome {
        Ok(detail) => Check::works(Group::Transport, name, detail),
        Err(Error::Unavailable { what, remedy }) => {
            Check::missing(Group::Transport, name, what, remedy)
        }
        Err(error) => {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let mut detail = error.to_string();
            if let Some(source) = source.filter(|source| !detail.contains(source)) {
                detail = format!("{detail}: {source}");
            }
            Check::missing(Group::Transport, name, detail, remedy(name))
        }
    }
}

fn remedy(name: &str) -> &'static str {
    match name {
        "tcp (IPv4)" => "bring the loopback interface up (ip link set lo up)",
        "tcp (IPv6)" => "enable IPv6 on loopback (sysctl net.ipv6.conf.lo.disable_ipv6=0)",
        "vsock" => "modprobe vsock_loopback; to reach guests: modprobe vhost_vsock",
        "exec" => "install a shell as /bin/sh",
        "rdma" => "see the section RDMA below, and the firewall of the device's network interface",
        "file" => "set TMPDIR to a folder that can be written",
        _ => "see whether a sandbox forbids it",
    }
}

/// Listens, connects, and talks both ways.
async fn both(uri: &str) -> Result<String> {
    connected(uri, &ListenOptions::default(), &ConnectOptions::default()).await
}

pub(super) async fn connected(
    uri: &str,
    listen: &ListenOptions,
    connect: &ConnectOptions,
) -> Result<String> {
    let address = MigrationAddress::parse(uri)?;
    bounded(uri, async {
        let mut listener = mig::listener(&address, listen).await?;
        let at = listener.local_addresses().first().cloned().unwrap_or_else(|| uri.to_owned());
        let connector = mig::connector(&MigrationAddress::parse(&at)?, connect)?;
        let (source, destination) = tokio::join!(connector.connect(), listener.accept());
        let (mut source, mut destination) = (source?, destination?);
        talk(&mut source, &mut destination).await?;
        talk(&mut destination, &mut source).await?;
        let known = source.capabilities();
        let zero_copy = if known.zero_copy { ", zero copy" } else { "" };
        Ok(format!("connected over {at}, return path{zero_copy}"))
    })
    .await
}

async fn pipe() -> Result<String> {
    let failed = |error: rustix::io::Errno| Error::io("making a pipe", error.into());
    // Without close-on-exec, as if they had been inherited; they are adopted right away.
    let (reader, writer) = rustix::pipe::pipe().map_err(failed)?;
    let parse = |number: i32| MigrationAddress::parse(&format!("fd:{number}"));
    let from = parse(reader.into_raw_fd())?;
    let to = parse(writer.into_raw_fd())?;
    bounded("fd:", async {
        let connector = mig::connector(&to, &ConnectOptions::default())?;
        let mut listener = mig::listener(&from, &ListenOptions::default()).await?;
        let (mut source, mut destination) = (connector.connect().await?, listener.accept().await?);
        talk(&mut source, &mut destination).await?;
        Ok("one way; sockets as descriptors carry answers too".into())
    })
    .await
}

async fn exec(path: &str) -> Result<String> {
    let address = MigrationAddress::parse(&format!("exec:cat > '{path}'"))?;
    bounded("exec:", async {
        let connector = mig::connector(&address, &ConnectOptions::default())?;
        write(&mut connector.connect().await?).await?;
        expect_file(path)?;
        Ok("a command ran, took the bytes and ended in order".into())
    })
    .await
}

async fn file(path: &str) -> Result<String> {
    let address = MigrationAddress::parse(&format!("file:{path}"))?;
    bounded("file:", async {
        let connector = mig::connector(&address, &ConnectOptions::default())?;
        write(&mut connector.connect().await?).await?;
        expect_file(path)?;
        Ok(format!("written and read back in {}", std::env::temp_dir().display()))
    })
    .await
}

/// Over a device of this machine, with a return path: two connections.
async fn rdma() -> Result<String> {
    let Some(uri) = mig::rdma_loopback()? else {
        return Ok("a port is active; its IP address is not known, so it was not tried".into());
    };
    let (mut listen, mut connect) = (ListenOptions::default(), ConnectOptions::default());
    (listen.return_path, connect.return_path) = (true, true);
    connected(&uri, &listen, &connect).await
}

fn abstract_name() -> String {
    let name = format!("mig-doctor-{}", process::id());
    format!(
        r#"{{"channel-type":"main","addr":{{"transport":"socket","type":"unix","path":"{name}","abstract":true}}}}"#
    )
}

/// Both at once: over rdma nothing is sent before the other end waits for it.
async fn talk(from: &mut Channel, to: &mut Channel) -> Result<()> {
    let (mut sender, mut receiver) = (from.take_sender()?, to.take_receiver()?);
    let said = async {
        sender.write_all(HELLO).await?;
        sender.flush().await
    };
    let mut got = [0; HELLO.len()];
    let (said, heard) = tokio::join!(said, receiver.read_exact(&mut got));
    said.map_err(|error| Error::io("writing", error))?;
    heard.map_err(|error| Error::io("reading", error))?;
    if got != HELLO {
        return Err(Error::PeerMisbehaved { what: "other bytes came than were sent".into() });
    }
    Ok(())
}

async fn write(channel: &mut Channel) -> Result<()> {
    let failed = |error| Error::io("writing", error);
    let mut sender = channel.take_sender()?;
    sender.write_all(HELLO).await.map_err(failed)?;
    sender.shutdown().await.map_err(failed)
}

fn expect_file(path: &str) -> Result<()> {
    let got = std::fs::read(path).map_err(|error| Error::io(format!("reading {path}"), error))?;
    if got != HELLO {
        return Err(Error::PeerMisbehaved {
            what: format!("{path} has other bytes than were sent"),
        });
    }
    Ok(())
}

async fn bounded(doing: &str, attempt: impl Future<Output = Result<String>>) -> Result<String> {
    let begun = Instant::now();
    let outcome = tokio::time::timeout(PATIENCE, attempt).await;
    tracing::debug!(doing, elapsed = ?begun.elapsed(), "tried");
    outcome.unwrap_or_else(|_elapsed| {
        Err(Error::Deadline { doing: format!("trying {doing}"), after: PATIENCE })
    })
}

/// A folder for what is tried, gone with this value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("mig-doctor-{}", process::id()));
        if let Err(error) = std::fs::create_dir_all(&folder) {
            // The checks that need it will say so themselves.
            tracing::debug!(%error, folder = %folder.display(), "no folder to try things in");
        }
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::debug!(%error, folder = %self.0.display(), "the folder stays");
        }
    }
}
