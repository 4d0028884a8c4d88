//! Connecting.

use std::{io, time::Duration};

use async_trait::async_trait;
use mig_transport::{Channel, Connector, Endpoint, Error, Result, address::UnixAddress};
use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};

use crate::{
    options::UnixOptions,
    socket::{PeerCredentials, channel, open, sock_addr},
};

/// First and longest pause while the listener's queue is full: the kernel does not tell when there is room.
const PAUSE: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];

/// Opens channels to one unix socket.
#[derive(Clone, Debug)]
pub struct UnixConnector {
    address: UnixAddress,
    options: UnixOptions,
}

impl UnixConnector {
    /// A connector; nothing is opened yet.
    pub fn new(address: UnixAddress, options: UnixOptions) -> Self {
        Self { address, options }
    }

    /// # Cancel safety
    ///
    /// Dropping the future closes the socket.
    async fn wait_for_room(&self) -> io::Result<UnixStream> {
        let address = sock_addr(&self.address)?;
        let mut pause = PAUSE[0];
        loop {
            // A fresh socket each time: what state a failed one is in differs between kernels.
            let socket = open()?;
            match socket.connect(&address) {
                Ok(()) => return UnixStream::from_std(socket.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE[1]);
        }
    }

    fn explain(&self, source: io::Error) -> Error {
        let hint = match source.kind() {
            io::ErrorKind::NotFound => {
                " (there is no such socket yet: start the destination first)"
            }
            io::ErrorKind::ConnectionRefused => " (nobody listens there any more)",
            _ => "",
        };
        Error::io(format!("connecting to unix:{}{hint}", self.address), source)
    }
}

#[async_trait]
impl Connector for UnixConnector {
    async fn connect(&self) -> Result<Channel> {
        self.address.check()?;
        let stream = match timeout(self.options.deadline, self.wait_for_room()).await {
            Ok(stream) => stream.map_err(|source| self.explain(source))?,
            Err(_) => {
                return Err(Error::Deadline {
                    doing: format!("connecting to unix:{} (its queue stays full)", self.address),
                    after: self.options.deadline,
                });
            }
        };
        let peer = match PeerCredentials::of(&stream) {
            Ok(credentials) => format!("{} ({credentials})", self.address),
            Err(_) => self.address.to_string(),
        };
        let endpoint = Endpoint { transport: "unix", local: String::new(), peer };
        channel(stream, endpoint).map_err(|source| self.explain(source))
    }
}
