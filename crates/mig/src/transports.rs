//! From an address to a connector or a listener: the one place that knows every backend.
//!
//! ```text
//!   MigrationAddress ─┬─ tcp ──▶ mig-transport-tcp        each behind the cargo feature of its name;
//!                     ├─ unix ─▶ mig-transport-unix       one that is not built in answers Unavailable
//!                     └─ …
//! ```

#[cfg(feature = "rdma")]
use std::sync::Arc;
use std::{net::IpAddr, time::Duration};

use mig_engine::Deadlines;
use mig_transport::{
    Address, AllowList, AllowingListener, Connector, Error, Listener, MigrationAddress, Result,
    address::VsockAddress,
};

#[cfg(feature = "rdma")]
use crate::rdma_end;
#[cfg(feature = "tls")]
use crate::tls_end::{ConnectTls, ListenTls};

/// What an address does not say, for a source. Start from `ConnectOptions::default()` and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectOptions {
    /// How long connecting may take, name lookup and every address tried included. Default 30 s.
    pub deadline: Duration,
    /// How long a command may take to end after the end of the stream. Default 10 s.
    pub exit_deadline: Duration,
    /// TLS around every channel. Default: none.
    #[cfg(feature = "tls")]
    pub tls: Option<ConnectTls>,
    /// Use what `exec:` and `rdma:` have for a return path: both pipes of the command, a second connection. Both ends must
    /// agree, so it is off by default.
    pub return_path: bool,
    /// `fd:1`: if stdin is a pipe as well, answers come from there. QEMU's `exec:` starts a command like that. Only for
    /// a process whose stdin is nobody else's, so off by default.
    pub answer_on_stdin: bool,
    /// `rdma:` register all memory of both ends up front (QEMU's `rdma-pin-all`). Off by default: only the memory that is
    /// being written is registered.
    pub rdma_pin_all: bool,
    /// `rdma:` the most bytes of guest memory registered at a time, at each end that can be kept to it. `None`, the
    /// default, takes a part of what this process may lock. Not with `rdma_pin_all`.
    pub rdma_pinned_memory: Option<u64>,
    /// `rdma:` where to count; keep a clone to read it.
    #[cfg(feature = "rdma")]
    pub rdma_counters: Arc<mig_transport_rdma::RdmaCounters>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(30),
            exit_deadline: EXIT_DEADLINE,
            #[cfg(feature = "tls")]
            tls: None,
            return_path: false,
            answer_on_stdin: false,
            rdma_pin_all: false,
            rdma_pinned_memory: None,
            #[cfg(feature = "rdma")]
            rdma_counters: Arc::default(),
        }
    }
}

impl ConnectOptions {
    /// Takes over the deadlines that a connector keeps: [`Wait::Connect`], [`Wait::Exit`], and of `tls`, if it is
    /// there already, [`Wait::Handshake`].
    ///
    /// [`Wait::Connect`]: mig_engine::Wait::Connect
    /// [`Wait::Exit`]: mig_engine::Wait::Exit
    /// [`Wait::Handshake`]: mig_engine::Wait::Handshake
    pub fn set_deadlines(&mut self, deadlines: &Deadlines) {
        self.deadline = deadlines.connect;
        self.exit_deadline = deadlines.exit;
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            tls.options.handshake = deadlines.handshake;
        }
    }
}

/// What an address does not say, for a destination. Start from `ListenOptions::default()` and change fields.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ListenOptions {
    /// Who may connect; others are closed before a byte is read, with a few log lines. Default: anybody who can reach the
    /// address. Only where those who connect can be told apart: tcp and rdma by address, unix by user, vsock by context id.
    pub allow: Option<AllowList>,
    /// How long the name of the address may take to be looked up. Default 30 s.
    pub deadline: Duration,
    /// How long a command may take to end after the end of the stream. Default 10 s.
    pub exit_deadline: Duration,
    /// TLS around every channel. Default: none.
    #[cfg(feature = "tls")]
    pub tls: Option<ListenTls>,
    /// Use what `exec:` and `rdma:` have for a return path: both pipes of the command, a second connection. Both ends must
    /// agree, so it is off by default.
    pub return_path: bool,
    /// `fd:0`: if stdout is a pipe as well, answers go there. QEMU's `exec:` starts a command like that. Only for a
    /// process whose stdout is nobody else's, so off by default.
    pub answer_on_stdout: bool,
    /// `rdma:` the most bytes of guest memory registered at a time, where the source leaves the choice: not with its
    /// `rdma-pin-all`. `None`, the default, takes a part of what this process may lock.
    pub rdma_pinned_memory: Option<u64>,
    /// `rdma:` where to count; keep a clone to read it.
    #[cfg(feature = "rdma")]
    pub rdma_counters: Arc<mig_transport_rdma::RdmaCounters>,
}

impl ListenOptions {
    /// Takes over the deadlines that a listener keeps: [`Wait::Connect`], for names, [`Wait::Exit`], and of
    /// `tls`, if it is there already, [`Wait::Handshake`].
    ///
    /// [`Wait::Connect`]: mig_engine::Wait::Connect
    /// [`Wait::Exit`]: mig_engine::Wait::Exit
    /// [`Wait::Handshake`]: mig_engine::Wait::Handshake
    pub fn set_deadlines(&mut self, deadlines: &Deadlines) {
        self.deadline = deadlines.connect;
        self.exit_deadline = deadlines.exit;
        #[cfg(feature = "tls")]
        if let Some(tls) = &mut self.tls {
            tls.options.handshake = deadlines.handshake;
        }
    }
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            allow: None,
            deadline: Duration::from_secs(30),
            exit_deadline: EXIT_DEADLINE,
            #[cfg(feature = "tls")]
            tls: None,
            return_path: false,
            answer_on_stdout: false,
            rdma_pinned_memory: None,
            #[cfg(feature = "rdma")]
            rdma_counters: Arc::default(),
        }
    }
}

#[cfg(feature = "exec")]
impl ConnectOptions {
    /// Whether both pipes of a command are wanted: a handshake takes them, too.
    fn both_ways(&self) -> bool {
        #[cfg(feature = "tls")]
        let tls = self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        let tls = false;
        self.return_path || tls
    }
}

#[cfg(feature = "exec")]
impl ListenOptions {
    /// See [`ConnectOptions::both_ways`].
    fn both_ways(&self) -> bool {
        #[cfg(feature = "tls")]
        let tls = self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        let tls = false;
        self.return_path || tls
    }
}

/// docs/wire/transports.md §2.6 has none; a command that hangs must not hang the migration.
const EXIT_DEADLINE: Duration = Duration::from_secs(10);

/// How a source reaches `address`. Nothing is connected yet, but inherited descriptors are adopted.
///
/// # Errors
///
/// [`Error::Unavailable`] if the transport is not built in or this machine lacks what it stands on,
/// [`Error::Misuse`] if the address cannot be connected to, or cannot have TLS that is asked for.
pub fn connector(
    address: &MigrationAddress,
    options: &ConnectOptions,
) -> Result<Box<dyn Connector>> {
    #[cfg(feature = "tls")]
    if let Some(tls) = &options.tls {
        return tls.around(address.address(), || bare_connector(address, options));
    }
    bare_connector(address, options)
}

fn bare_connector(
    address: &MigrationAddress,
    options: &ConnectOptions,
) -> Result<Box<dyn Connector>> {
    let _all_backends_may_be_off = options;
    match address.address() {
        #[cfg(feature = "tcp")]
        Address::Inet(inet) => {
            Ok(Box::new(mig_transport_tcp::TcpConnector::new(inet.clone(), tcp(options.deadline))))
        }
        #[cfg(feature = "unix")]
        Address::Unix(unix) => {
            let options =
                mig_transport_unix::UnixOptions::with(|unix| unix.deadline = options.deadline);
            Ok(Box::new(mig_transport_unix::UnixConnector::new(unix.clone(), options)))
        }
        #[cfg(feature = "vsock")]
        Address::Vsock(vsock) => {
            let options =
                mig_transport_vsock::VsockOptions::with(|vsock| vsock.deadline = options.deadline);
            Ok(Box::new(mig_transport_vsock::VsockConnector::new(*vsock, options)))
        }
        #[cfg(feature = "fd")]
        Address::Fd(fd) => {
            let ends = fd::ends(fd, options.answer_on_stdin.then_some(fd::Pairing::Stdin))?;
            Ok(Box::new(mig_transport_fd::FdConnector::new(ends)?))
        }
        #[cfg(feature = "exec")]
        Address::Exec(exec) => {
            let connector = mig_transport_exec::ExecConnector::new(
                exec::command(exec),
                exec::options(options.both_ways(), options.exit_deadline),
            )?;
            Ok(Box::new(connector))
        }
        #[cfg(feature = "file")]
        Address::File(file) => Ok(Box::new(mig_transport_file::FileConnector::new(target(file)))),
        #[cfg(feature = "rdma")]
        Address::Rdma(inet) => Ok(Box::new(rdma_end::connector(inet, options)?)),
        other => Err(not_built_in(other)),
    }
}

/// Begins to listen at `address`; [`Listener::local_addresses`] tells where it can be reached.
///
/// # Errors
///
/// [`Error::Unavailable`] if the transport is not built in or this machine lacks what it stands on,
/// [`Error::Misuse`] if the address cannot be bound, or cannot have TLS that is asked for.
///
/// # Cancel safety
///
/// Dropping the future abandons the attempt; nothing stays bound.
pub async fn listener(
    address: &MigrationAddress,
    options: &ListenOptions,
) -> Result<Box<dyn Listener>> {
    let (listener, door) = guarded_listener(address, options).await?;
    if let Some(warning) = open_door(address, door) {
        tracing::warn!(target: OPEN_DOOR, "{warning}");
    }
    Ok(listener)
}

/// What a listener does before it takes a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Plain,
    /// TLS, with anybody.
    #[cfg_attr(not(any(feature = "tls", test)), expect(dead_code, reason = "TLS is not built in"))]
    Encrypts,
    /// TLS, with who shows a certificate or has a key.
    #[cfg_attr(not(any(feature = "tls", test)), expect(dead_code, reason = "TLS is not built in"))]
    Asks,
}

async fn guarded_listener(
    address: &MigrationAddress,
    options: &ListenOptions,
) -> Result<(Box<dyn Listener>, Door)> {
    #[cfg(feature = "tls")]
    if let Some(tls) = &options.tls {
        let door = if tls.credentials.verifies_peer() { Door::Asks } else { Door::Encrypts };
        let listener = tls.around(address.address(), allowed_listener(address, options)).await?;
        return Ok((listener, door));
    }
    Ok((allowed_listener(address, options).await?, Door::Plain))
}

/// What there is to be said about such a listener there.
fn open_door(address: &MigrationAddress, door: Door) -> Option<String> {
    let whom = open_to(address.address())?;
    let (how, or) = match door {
        Door::Plain => ("unencrypted and without asking who it is from", "use TLS"),
        Door::Encrypts => (
            "encrypted, but without asking who it is from",
            "ask for certificates (verify-peer) or keys",
        ),
        Door::Asks => return None,
    };
    Some(format!(
        "{address} takes a guest's whole memory, {how}, from {whom} that connects; listen where only the source can reach, \
         bring it there through a tunnel, or {or}"
    ))
}

/// Who may not connect is closed before TLS begins.
async fn allowed_listener(
    address: &MigrationAddress,
    options: &ListenOptions,
) -> Result<Box<dyn Listener>> {
    let Some(allow) = &options.allow else {
        return bare_listener(address, options).await;
    };
    allow.check(address.address().scheme())?;
    let listener = bare_listener(address, options).await?;
    Ok(Box::new(AllowingListener::new(listener, allow.clone())))
}

/// The target of the warning about a listener that takes others' word for who they are, for who says it in words of their own.
pub const OPEN_DOOR: &str = "mig::open_door";

/// Whom a listener at this address is open to, beside processes of this machine that may reach it anyway. What an
/// inherited descriptor or a command leads to is not known: nobody, as far as this can tell.
pub fn open_to(address: &Address) -> Option<&'static str> {
    match address {
        Address::Inet(inet) | Address::Rdma(inet) => {
            // Only an address that certainly stays on this machine is safe; a name may stand for any.
            let host = inet.host.split('%').next().unwrap_or_default();
            let here = match host.parse::<IpAddr>() {
                Ok(ip) => ip.to_canonical().is_loopback(),
                Err(_) => host == "localhost",
            };
            (!here).then_some("any machine")
        }
        Address::Vsock(vsock) if vsock.cid != VsockAddress::CID_LOCAL => {
            Some("any virtual machine")
        }
        _ => None,
    }
}

async fn bare_listener(
    address: &MigrationAddress,
    options: &ListenOptions,
) -> Result<Box<dyn Listener>> {
    let _all_backends_may_be_off = options;
    match address.address() {
        #[cfg(feature = "tcp")]
        Address::Inet(inet) => {
            Ok(Box::new(mig_transport_tcp::TcpListener::bind(inet, tcp(options.deadline)).await?))
        }
        #[cfg(feature = "unix")]
        Address::Unix(unix) => {
            let options = mig_transport_unix::UnixOptions::default();
            Ok(Box::new(mig_transport_unix::UnixListener::bind(unix, options)?))
        }
        #[cfg(feature = "vsock")]
        Address::Vsock(vsock) => {
            let options = mig_transport_vsock::VsockOptions::default();
            Ok(Box::new(mig_transport_vsock::VsockListener::bind(*vsock, options)?))
        }
        #[cfg(feature = "fd")]
        Address::Fd(fd) => {
            let ends = fd::ends(fd, options.answer_on_stdout.then_some(fd::Pairing::Stdout))?;
            Ok(Box::new(mig_transport_fd::FdListener::new(ends)?))
        }
        #[cfg(feature = "exec")]
        Address::Exec(exec) => {
            let listener = mig_transport_exec::ExecListener::new(
                exec::command(exec),
                exec::options(options.both_ways(), options.exit_deadline),
            )?;
            Ok(Box::new(listener))
        }
        #[cfg(feature = "file")]
        Address::File(file) => Ok(Box::new(mig_transport_file::FileListener::new(target(file)))),
        #[cfg(feature = "rdma")]
        Address::Rdma(inet) => Ok(Box::new(rdma_end::listener(inet, options).await?)),
        other => Err(not_built_in(other)),
    }
}

fn not_built_in(address: &Address) -> Error {
    let scheme = address.scheme();
    Error::Unavailable {
        what: format!("{scheme}: is not built into this program"),
        remedy: format!("build it with the cargo feature \"{scheme}\""),
    }
}

#[cfg(feature = "tcp")]
fn tcp(deadline: Duration) -> mig_transport_tcp::TcpOptions {
    mig_transport_tcp::TcpOptions::with(|tcp| tcp.deadline = deadline)
}

#[cfg(feature = "file")]
fn target(file: &mig_transport::address::FileAddress) -> mig_transport_file::FileTarget {
    mig_transport_file::FileTarget::new(&file.path).at(file.offset)
}

#[cfg(feature = "exec")]
mod exec {
    use std::time::Duration;

    use mig_transport::address::ExecAddress;
    use mig_transport_exec::{ExecCommand, ExecOptions};

    pub(super) fn command(address: &ExecAddress) -> ExecCommand {
        match address {
            ExecAddress::Shell(line) => ExecCommand::Shell(line.clone()),
            _ => ExecCommand::Args(address.argv().into_iter().map(Into::into).collect()),
        }
    }

    pub(super) fn options(return_path: bool, exit_deadline: Duration) -> ExecOptions {
        ExecOptions::default().return_path(return_path).exit_deadline(exit_deadline)
    }
}

#[cfg(feature = "fd")]
mod fd {
    use mig_transport::{Error, Result, address::FdAddress};
    use mig_transport_fd::{Descriptor, FdEnds};

    /// The other of stdin and stdout, for the other direction.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) enum Pairing {
        Stdin,
        Stdout,
    }

    pub(super) fn ends(address: &FdAddress, pairing: Option<Pairing>) -> Result<FdEnds> {
        match address {
            FdAddress::Number(number) => {
                let one = Descriptor::adopt(*number)?;
                match (number, pairing) {
                    (0, Some(Pairing::Stdout)) => with_output(one),
                    (1, Some(Pairing::Stdin)) => with_input(one),
                    _ => Ok(FdEnds::One(one)),
                }
            }
            FdAddress::Pair { input, output } => FdEnds::adopt_pair(*input, *output),
            FdAddress::Name(name) => Err(Error::Misuse {
                what: format!(
                    "fd:{name}: names are for descriptors handed over through a control socket; a command line can only \
                     name an inherited number, like fd:5"
                ),
            }),
            _ => Err(Error::Misuse { what: "this form of fd: is not known here".into() }),
        }
    }

    /// stdin came; answers go to stdout if that is a pipe or a socket.
    fn with_output(input: Descriptor) -> Result<FdEnds> {
        if input.kind().is_socket() {
            return Ok(FdEnds::One(input));
        }
        match Descriptor::adopt(1) {
            Ok(output) if output.kind().writes() => FdEnds::pair(input, output),
            // A terminal, a file, nothing at all: then nobody wants an answer there.
            Ok(_) | Err(_) => Ok(FdEnds::One(input)),
        }
    }

    /// stdout came; answers come from stdin if that is a pipe or a socket.
    fn with_input(output: Descriptor) -> Result<FdEnds> {
        if output.kind().is_socket() {
            return Ok(FdEnds::One(output));
        }
        match Descriptor::adopt(0) {
            Ok(input) if input.kind().reads() => FdEnds::pair(input, output),
            Ok(_) | Err(_) => Ok(FdEnds::One(output)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_asks_nobody_who_it_is_is_loud_with_tls_too() {
        let warned = |uri: &str, door| {
            open_door(&MigrationAddress::parse(uri).expect("an address"), door).unwrap_or_default()
        };
        let open = "tcp:0.0.0.0:4444";
        assert!(warned(open, Door::Plain).contains("unencrypted and without asking"));
        let encrypted = warned(open, Door::Encrypts);
        assert!(encrypted.contains("encrypted, but without asking who it is from"), "{encrypted}");
        assert!(encrypted.contains("from any machine"), "{encrypted}");
        assert_eq!(warned(open, Door::Asks), "");
        for door in [Door::Plain, Door::Encrypts, Door::Asks] {
            assert_eq!(warned("tcp:127.0.0.1:4444", door), "");
        }
    }

    #[cfg(all(feature = "bench", feature = "tls", feature = "tcp"))]
    #[tokio::test]
    async fn a_listener_knows_whether_it_asks() {
        let dir = tempfile::tempdir().expect("a directory");
        mig_transport_tls::trial::make(dir.path(), &[], true).expect("a trial set");
        let address = MigrationAddress::parse("tcp:127.0.0.1:0").expect("an address");
        for (verify_peer, expected) in [(true, Door::Asks), (false, Door::Encrypts)] {
            let credentials = mig_transport_tls::ServerCredentials::x509(dir.path(), verify_peer)
                .expect("a server's");
            let options = ListenOptions {
                tls: Some(ListenTls::new(credentials)),
                ..ListenOptions::default()
            };
            let (_listener, door) = guarded_listener(&address, &options).await.expect("it listens");
            assert_eq!(door, expected);
        }
    }
}
