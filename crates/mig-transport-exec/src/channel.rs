//! One channel out of a command's pipes.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use mig_transport::{
    Capabilities, Channel, ChannelParts, Connector, Endpoint, Error, FdIo, FdKind, Listener,
    ReceiveHalf, Result, SendHalf,
};
use tokio::{io::Interest, task::JoinSet};

use crate::{
    command::ExecCommand,
    group::{Group, Lease, Stop},
    leader::Leader,
    receive::ExecReceiveHalf,
    send::ExecSendHalf,
    stderr::{Output, drain},
    supervise::supervise,
};

/// Wanted size of the pipes. A best effort: the kernel's `fs.pipe-max-size` is 1 MiB for ordinary users.
const PIPE_BYTES: usize = 1024 * 1024;

/// How to run a command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecOptions {
    /// Use both pipes, for a return path. Only for commands that forward both directions (`socat`, `ssh`), and both ends
    /// of the migration must agree. Off by default.
    pub return_path: bool,
    /// How long the command may take to end after the end of the stream. 10 s by default.
    pub exit_deadline: Duration,
}

impl Default for ExecOptions {
    fn default() -> Self {
        Self { return_path: false, exit_deadline: Duration::from_secs(10) }
    }
}

impl ExecOptions {
    /// The same with a return path, or without.
    pub fn return_path(mut self, wanted: bool) -> Self {
        self.return_path = wanted;
        self
    }

    /// The same with another deadline for the command's end.
    pub fn exit_deadline(mut self, deadline: Duration) -> Self {
        self.exit_deadline = deadline;
        self
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Source,
    Destination,
}

/// A command that is run at most once.
#[derive(Debug)]
struct Once {
    command: ExecCommand,
    options: ExecOptions,
    started: AtomicBool,
}

impl Once {
    fn new(command: ExecCommand, options: ExecOptions) -> Result<Self> {
        command.check()?;
        Ok(Self { command, options, started: AtomicBool::new(false) })
    }

    fn start(&self, role: Role) -> Result<Channel> {
        if self.started.swap(true, Ordering::AcqRel) {
            return Err(Error::Misuse {
                what: format!(
                    "{}: a command gives exactly one channel and it was taken; multifd and postcopy-preempt need \
                     a transport that can connect again (tcp:, unix:, vsock:)",
                    self.command
                ),
            });
        }
        start(&self.command, &self.options, role).inspect_err(|_| {
            // Nothing runs, so another attempt is no second channel.
            self.started.store(false, Ordering::Release);
        })
    }
}

fn start(command: &ExecCommand, options: &ExecOptions, role: Role) -> Result<Channel> {
    let mut child = command.spawn()?;
    let name = command.to_string();
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // From here on whatever fails kills the group.
    let leader = Leader::new(child, &name)?;
    let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
        unreachable!("all three were asked for");
    };
    let (stdin, stdout, stderr) =
        (OwnedFd::from(stdin), OwnedFd::from(stdout), OwnedFd::from(stderr));
    for pipe in [&stdin, &stdout] {
        if let Err(error) = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_BYTES) {
            tracing::debug!(%error, "a pipe stays small");
        }
    }
    let register = |fd, interest| {
        FdIo::new(fd, FdKind::Pipe, interest)
            .map_err(|error| Error::io(format!("{name}: registering a pipe"), error))
    };
    let stdout = register(stdout, Interest::READABLE)?.receive_half();
    let stderr = register(stderr, Interest::READABLE)?.receive_half();

    let group = Arc::new(Group::new(name.clone()));
    let mut drains = JoinSet::new();
    drains.spawn(drain(stderr, Output::Stderr, Arc::clone(&group)));

    let lease = Arc::new(Lease(Arc::clone(&group)));
    let deadline = options.exit_deadline;
    let mut receive: Option<Box<dyn ReceiveHalf>> = None;
    let mut send: Option<Box<dyn SendHalf>> = None;
    if options.return_path || role == Role::Source {
        let stdin = register(stdin, Interest::WRITABLE)?.send_half();
        let two_way = options.return_path;
        send = Some(Box::new(ExecSendHalf::new(stdin, Arc::clone(&lease), deadline, two_way)));
        if two_way {
            receive = Some(Box::new(ExecReceiveHalf::new(stdout, None, lease, deadline)));
        } else {
            drains.spawn(drain(stdout, Output::Stdout, Arc::clone(&group)));
        }
    } else {
        receive = Some(Box::new(ExecReceiveHalf::new(stdout, Some(stdin), lease, deadline)));
    }
    tokio::spawn(supervise(leader, drains, Arc::clone(&group)));
    Ok(Channel::new(ChannelParts {
        receive,
        send,
        force: Some(Box::new(Stop(group))),
        capabilities: Capabilities::default().with(|known| {
            known.return_path = options.return_path;
            // A relay that lost its connection may exit as if nothing had been on its way.
            known.relayed = true;
        }),
        endpoint: Endpoint { transport: "exec", local: command.shown(), peer: String::new() },
        ..ChannelParts::default()
    }))
}

/// The source's side of `exec:`: writes into the command.
#[derive(Debug)]
pub struct ExecConnector(Once);

impl ExecConnector {
    /// A connector that will run `command`, once; [`Error::Misuse`] if there is nothing to run.
    pub fn new(command: ExecCommand, options: ExecOptions) -> Result<Self> {
        Once::new(command, options).map(Self)
    }
}

#[async_trait]
impl Connector for ExecConnector {
    async fn connect(&self) -> Result<Channel> {
        self.0.start(Role::Source)
    }

    fn is_two_way(&self) -> Option<bool> {
        Some(self.0.options.return_path)
    }
}

/// The destination's side of `exec:`: reads from the command.
#[derive(Debug)]
pub struct ExecListener(Once);

impl ExecListener {
    /// A listener that will run `command`, once; [`Error::Misuse`] if there is nothing to run.
    pub fn new(command: ExecCommand, options: ExecOptions) -> Result<Self> {
        Once::new(command, options).map(Self)
    }
}

#[async_trait]
impl Listener for ExecListener {
    async fn accept(&mut self) -> Result<Channel> {
        self.0.start(Role::Destination)
    }

    fn local_addresses(&self) -> Vec<String> {
        Vec::new()
    }
}
