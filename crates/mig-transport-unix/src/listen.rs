//! Listening, and the file that stands for the socket.
//!
//! ```text
//!   bind ── in use ──▶ is it a socket? ── no ──▶ refused
//!    │                    └ yes ─▶ does a process have it? ── yes ──▶ refused
//!    │                               └ no: stale ─▶ removed, bind again
//!    └─ ok ─▶ accept … ─▶ dropped ─▶ file removed, if it is still this one
//! ```

use std::{
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use mig_transport::{
    AcceptFailure, Address, Channel, Endpoint, Error, Listener, LogLimit, Peer, Result,
    address::UnixAddress,
};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    options::UnixOptions,
    socket::{PeerCredentials, channel, open, sock_addr},
};

/// Bits of a mode that a socket file can have.
const MODE_BITS: u32 = 0o777;

/// Accepts channels on one unix socket; its file goes when the listener is dropped.
#[derive(Debug)]
pub struct UnixListener {
    socket: tokio::net::UnixListener,
    address: UnixAddress,
    options: UnixOptions,
    _file: Option<SocketFile>,
    log: LogLimit,
}

impl UnixListener {
    /// Binds and listens. Must be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] if the name is taken by a living socket or by another kind of file, or cannot be created.
    pub fn bind(address: &UnixAddress, options: UnixOptions) -> Result<Self> {
        address.check()?;
        let cannot = |reason: String| Error::Misuse {
            what: format!("cannot listen on unix:{address}: {reason}"),
        };
        if let Some(mode) = options.mode {
            if address.is_abstract {
                return Err(cannot("an abstract name has no file, so no mode".to_owned()));
            }
            if mode & !MODE_BITS != 0 {
                return Err(cannot(format!("the mode {mode:o} is not between 0 and 777")));
            }
        }
        let (socket, file) = bind(address, options.mode).map_err(cannot)?;
        let doing = || format!("listening on unix:{address}");
        let backlog = options.backlog.clamp(1, i32::MAX as u32) as i32;
        let socket = socket
            .listen(backlog)
            .and_then(|()| tokio::net::UnixListener::from_std(socket.into()))
            .map_err(|source| Error::io(doing(), source))?;
        tracing::debug!(%address, "listening");
        Ok(Self {
            socket,
            address: address.clone(),
            options,
            _file: file,
            log: LogLimit::default(),
        })
    }

    fn make_channel(&self, stream: tokio::net::UnixStream) -> Result<Channel> {
        let doing = "preparing an accepted connection";
        let peer = PeerCredentials::of(&stream).map_err(|source| Error::io(doing, source))?;
        if let Some(allowed) = &self.options.allowed_uids
            && !allowed.contains(&peer.uid)
        {
            return Err(Error::Misuse { what: format!("{peer} is not allowed to connect") });
        }
        let endpoint =
            Endpoint { transport: "unix", local: self.address.to_string(), peer: peer.to_string() };
        let channel = channel(stream, endpoint).map_err(|source| Error::io(doing, source))?;
        Ok(channel.with_peer(Peer::User(peer.uid)))
    }
}

#[async_trait]
impl Listener for UnixListener {
    /// What goes wrong with one connection is logged and the next one awaited; only a broken socket of ours is an error.
    async fn accept(&mut self) -> Result<Channel> {
        loop {
            let stream = match self.socket.accept().await {
                Ok((stream, _unnamed)) => stream,
                Err(error) => {
                    AcceptFailure::get_over(error).await?;
                    continue;
                }
            };
            match self.make_channel(stream) {
                Ok(channel) => return Ok(channel),
                Err(error) => {
                    if let Some(unsaid) = self.log.say() {
                        tracing::warn!(
                            address = %self.address,
                            %error,
                            unsaid,
                            "a connection was dropped"
                        );
                    }
                }
            }
        }
    }

    fn local_addresses(&self) -> Vec<String> {
        Address::Unix(self.address.clone()).to_uri().into_iter().collect()
    }
}

/// Binds, taking the place of a stale file. The error is a reason for the caller's message.
fn bind(address: &UnixAddress, mode: Option<u32>) -> Result<(Socket, Option<SocketFile>), String> {
    let text = |error: io::Error| error.to_string();
    let name = sock_addr(address).map_err(text)?;
    let socket = open().map_err(text)?;
    if let Some(mode) = mode {
        // The file is born with these bits less the umask: never more open than asked, not even for a moment.
        let mode = rustix::fs::Mode::from_raw_mode(mode);
        rustix::fs::fchmod(&socket, mode).map_err(|error| error.to_string())?;
    }
    let path = Path::new(&address.path);
    match socket.bind(&name) {
        Ok(()) => {}
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            return Err(match error.kind() {
                io::ErrorKind::NotFound => "its folder does not exist".to_owned(),
                _ => text(error),
            });
        }
        Err(_) if address.is_abstract => {
            return Err("another process has that name".to_owned());
        }
        Err(_) => {
            remove_stale(path, &name)?;
            socket.bind(&name).map_err(text)?;
        }
    }
    if address.is_abstract {
        return Ok((socket, None));
    }
    let file = SocketFile::of(path).map_err(text)?;
    if let Some(mode) = mode {
        // What the umask took away.
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(text)?;
    }
    Ok((socket, Some(file)))
}

/// Removes a socket file that no process has; refuses, with the reason, anything else.
fn remove_stale(path: &Path, name: &SockAddr) -> Result<(), String> {
    let before = match std::fs::symlink_metadata(path) {
        // Gone meanwhile: there is nothing left to remove.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.to_string()),
        Ok(metadata) => metadata,
    };
    if !before.file_type().is_socket() {
        return Err("there is a file of that name, and it is not a socket; name another".to_owned());
    }
    // A datagram socket finds out without disturbing a stream listener: no connection reaches it (one that did could
    // end a QEMU that waits for its migration).
    let probe = Socket::new(Domain::UNIX, Type::DGRAM, None).map_err(|error| error.to_string())?;
    probe.set_nonblocking(true).map_err(|error| error.to_string())?;
    match probe.connect(name) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(format!(
                "there is a socket of that name, and it cannot be examined: {error}"
            ));
        }
        // Connected, or of another kind: a process has it.
        Ok(()) | Err(_) => {
            return Err("another process has that socket; stop it or name another".to_owned());
        }
    }
    let now = std::fs::symlink_metadata(path);
    if now.is_ok_and(|now| (now.dev(), now.ino()) != (before.dev(), before.ino())) {
        return Err("another process has just taken that name".to_owned());
    }
    tracing::info!(path = %path.display(), "removing a socket that no process has");
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("the stale socket of that name cannot be removed: {error}"))
        }
        _ => Ok(()),
    }
}

/// The file of a bound socket, removed with this value unless another took its place.
#[derive(Debug)]
struct SocketFile {
    /// Absolute: the process may change its folder.
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::symlink_metadata(path)?;
        let path = std::path::absolute(path)?;
        Ok(Self { path, device: metadata.dev(), inode: metadata.ino() })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = |metadata: std::fs::Metadata| {
            (metadata.dev(), metadata.ino()) == (self.device, self.inode)
        };
        if !std::fs::symlink_metadata(&self.path).is_ok_and(ours) {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file stays behind");
        }
    }
}
