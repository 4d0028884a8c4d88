//! One channel out of one or two descriptors.

use std::{
    os::fd::RawFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use mig_transport::{
    Capabilities, Channel, ChannelParts, Connector, Endpoint, Error, FdIo, FdKind, ForceShutdown,
    Listener, Result,
};
use tokio::io::Interest;

use crate::descriptor::{Descriptor, DescriptorKind};

/// The descriptors of one channel: where bytes come from and where they go.
#[derive(Debug)]
pub enum FdEnds {
    /// `fd:N`. A socket carries bytes both ways, a pipe the way that it is open for.
    One(Descriptor),
    /// `fd:IN,OUT`, or stdin and stdout of a command that QEMU's `exec:` started.
    Two {
        /// Read from here.
        input: Descriptor,
        /// Written to here.
        output: Descriptor,
    },
}

impl FdEnds {
    /// Adopts the descriptor of `fd:N`; see [`Descriptor::adopt`].
    pub fn adopt(number: RawFd) -> Result<Self> {
        Descriptor::adopt(number).map(Self::One)
    }

    /// Adopts the descriptors of `fd:IN,OUT`. With 0 and 1 this is the destination that QEMU's `exec:` starts and that
    /// shall answer. If both numbers lead to one socket, it is used once.
    ///
    /// # Errors
    ///
    /// As for [`Descriptor::adopt`], and [`Error::Misuse`] if `input` cannot be read or `output` cannot be written. An
    /// adopted number whose partner was refused is closed.
    pub fn adopt_pair(input: RawFd, output: RawFd) -> Result<Self> {
        if input == output {
            return Err(Error::Misuse {
                what: format!(
                    "fd:{input},{output} names one descriptor twice; a socket is fd:{input}"
                ),
            });
        }
        Self::pair(Descriptor::adopt(input)?, Descriptor::adopt(output)?)
    }

    /// Two descriptors as one two-way channel; [`Error::Misuse`] if `input` cannot be read or `output` not written.
    pub fn pair(input: Descriptor, output: Descriptor) -> Result<Self> {
        if !input.kind().reads() {
            return Err(wrong_way(&input, "input", "read from"));
        }
        if !output.kind().writes() {
            return Err(wrong_way(&output, "output", "written to"));
        }
        if input.kind().is_socket() && input.is_same_file(&output) {
            // One open file under two numbers: its flags are shared, so two owners would undo each other's.
            return Ok(Self::One(input));
        }
        Ok(Self::Two { input, output })
    }

    /// Whether the channel will carry bytes both ways.
    pub fn is_two_way(&self) -> bool {
        match self {
            Self::One(one) => one.kind().is_socket(),
            Self::Two { .. } => true,
        }
    }

    /// Whether a pipe is part of it; a return path is then only opened on request.
    pub fn has_pipe(&self) -> bool {
        match self {
            Self::One(one) => !one.kind().is_socket(),
            Self::Two { input, output } => !input.kind().is_socket() || !output.kind().is_socket(),
        }
    }

    fn check(&self, role: Role) -> Result<()> {
        match (self, role) {
            (Self::One(one), Role::Source) if !one.kind().writes() => Err(Error::Misuse {
                what: format!(
                    "{} is {}, a source writes; name the writing end, or fd:IN,OUT for both ways",
                    one.name(),
                    one.kind()
                ),
            }),
            (Self::One(one), Role::Destination) if !one.kind().reads() => Err(Error::Misuse {
                what: format!(
                    "{} is {}, a destination reads; name the reading end, or fd:IN,OUT for both ways",
                    one.name(),
                    one.kind()
                ),
            }),
            _ => Ok(()),
        }
    }

    fn into_channel(self, role: Role) -> Result<Channel> {
        match self {
            Self::One(one) if one.kind().is_socket() => socket_channel(one),
            Self::One(one) => {
                let endpoint = endpoint(one.name());
                let parts = match role {
                    Role::Source => ChannelParts { send: Some(write_end(one)?), ..parts() },
                    Role::Destination => ChannelParts { receive: Some(read_end(one)?), ..parts() },
                };
                Ok(Channel::new(ChannelParts { endpoint, ..parts }))
            }
            Self::Two { input, output } => {
                let endpoint = endpoint(&format!("{} and {}", input.name(), output.name()));
                Ok(Channel::new(ChannelParts {
                    receive: Some(read_end(input)?),
                    send: Some(write_end(output)?),
                    capabilities: Capabilities::default().with(|known| {
                        known.return_path = true;
                        known.relayed = true;
                    }),
                    endpoint,
                    ..parts()
                }))
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Role {
    Source,
    Destination,
}

fn wrong_way(descriptor: &Descriptor, place: &str, verb: &str) -> Error {
    Error::Misuse {
        what: format!(
            "{} is {} and cannot be {verb}; the form is fd:IN,OUT, and this is the {place}",
            descriptor.name(),
            descriptor.kind()
        ),
    }
}

fn parts() -> ChannelParts {
    ChannelParts::default()
}

fn endpoint(local: &str) -> Endpoint {
    // Names read "fd:3"; the scheme is put in front again.
    let local = local.strip_prefix("fd:").unwrap_or(local).to_owned();
    Endpoint { transport: "fd", local, peer: String::new() }
}

fn register(descriptor: Descriptor, interest: Interest) -> Result<std::sync::Arc<FdIo>> {
    let doing = format!("{}: registering", descriptor.name());
    let (fd, kind) = descriptor.into_parts();
    let kind = if kind.is_socket() { FdKind::Socket } else { FdKind::Pipe };
    FdIo::new(fd, kind, interest).map_err(|error| Error::io(doing, error))
}

fn read_end(descriptor: Descriptor) -> Result<Box<dyn mig_transport::ReceiveHalf>> {
    Ok(Box::new(register(descriptor, Interest::READABLE)?.receive_half()))
}

fn write_end(descriptor: Descriptor) -> Result<Box<dyn mig_transport::SendHalf>> {
    Ok(Box::new(register(descriptor, Interest::WRITABLE)?.send_half()))
}

fn socket_channel(socket: Descriptor) -> Result<Channel> {
    let endpoint = endpoint(socket.name());
    let unix = socket.kind() == DescriptorKind::Socket { unix: true };
    let io = register(socket, Interest::READABLE | Interest::WRITABLE)?;
    let (receive, send) = io.split();
    let force: Box<dyn ForceShutdown> = Box::new(io);
    Ok(Channel::new(ChannelParts {
        receive: Some(Box::new(receive)),
        send: Some(Box::new(send)),
        force: Some(force),
        capabilities: Capabilities::default().with(|known| {
            known.return_path = true;
            known.forced_shutdown = true;
            known.fd_passing = unix;
        }),
        endpoint,
        ..parts()
    }))
}

/// The one channel, taken by whoever comes first.
#[derive(Debug)]
struct Once(Mutex<Option<FdEnds>>);

impl Once {
    fn new(ends: FdEnds, role: Role) -> Result<Self> {
        ends.check(role)?;
        Ok(Self(Mutex::new(Some(ends))))
    }

    fn ends(&self) -> MutexGuard<'_, Option<FdEnds>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` once the channel was taken: then it can tell itself.
    fn is_two_way(&self) -> Option<bool> {
        self.ends().as_ref().map(FdEnds::is_two_way)
    }

    fn take(&self, role: Role) -> Result<Channel> {
        let ends = self.ends().take();
        let ends = ends.ok_or_else(|| Error::Misuse {
            what: "fd: gives exactly one channel and it was taken; multifd and postcopy-preempt need a \
                   transport that can connect again (tcp:, unix:, vsock:)"
                .into(),
        })?;
        ends.into_channel(role)
    }
}

/// The source's side of `fd:`: one channel, once.
#[derive(Debug)]
pub struct FdConnector(Once);

impl FdConnector {
    /// A connector over `ends`; [`Error::Misuse`] if a single pipe is open the wrong way.
    pub fn new(ends: FdEnds) -> Result<Self> {
        Once::new(ends, Role::Source).map(Self)
    }
}

#[async_trait]
impl Connector for FdConnector {
    async fn connect(&self) -> Result<Channel> {
        self.0.take(Role::Source)
    }

    fn is_two_way(&self) -> Option<bool> {
        self.0.is_two_way()
    }
}

/// The destination's side of `fd:`: one channel, once. Nothing listens, the descriptor is connected already.
#[derive(Debug)]
pub struct FdListener(Once);

impl FdListener {
    /// A listener over `ends`; [`Error::Misuse`] if a single pipe is open the wrong way.
    pub fn new(ends: FdEnds) -> Result<Self> {
        Once::new(ends, Role::Destination).map(Self)
    }
}

#[async_trait]
impl Listener for FdListener {
    async fn accept(&mut self) -> Result<Channel> {
        self.0.take(Role::Destination)
    }

    fn local_addresses(&self) -> Vec<String> {
        Vec::new()
    }
}
