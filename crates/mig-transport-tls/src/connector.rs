//! The source's end: a channel is opened, then TLS is agreed on over it, as the TLS client.

use std::sync::{Arc, atomic::AtomicBool};

use async_trait::async_trait;
use mig_transport::{Channel, Connector, Error, Result};

use crate::{
    credentials::{ClientCredentials, ExpectedName},
    options::TlsOptions,
    session::{self, Progress, Role, Terms},
};

/// Opens channels with another connector and puts TLS around each, with a handshake of its own.
pub struct TlsConnector {
    inner: Box<dyn Connector>,
    credentials: ClientCredentials,
    name: ExpectedName,
    options: TlsOptions,
    /// The destination has said something, so it has taken our certificate: an end is about something else.
    heard: Arc<AtomicBool>,
}

impl TlsConnector {
    /// TLS around the channels of `inner`, towards a destination that proves to be `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Misuse`] if its channels cannot have TLS: they carry bytes one way only, or pages beside the bytes.
    pub fn new(
        inner: Box<dyn Connector>,
        credentials: ClientCredentials,
        name: ExpectedName,
        options: TlsOptions,
    ) -> Result<Self> {
        let cannot = |what: &str| Err(Error::Misuse { what: what.to_owned() });
        if inner.has_ram_hooks() {
            return cannot(
                "no TLS over this transport: it moves pages beside the stream, where nothing would encrypt them (rdma); \
                 use tcp, or leave TLS out",
            );
        }
        if inner.is_two_way() == Some(false) {
            return cannot(
                "no TLS over a one-way channel: the handshake needs both directions (fd: a socket or IN,OUT; exec: a \
                 command that reads and writes)",
            );
        }
        Ok(Self { inner, credentials, name, options, heard: Arc::default() })
    }
}

#[async_trait]
impl Connector for TlsConnector {
    /// The inner channel, and TLS agreed on over it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection; nothing stays open.
    async fn connect(&self) -> Result<Channel> {
        let channel = self.inner.connect().await?;
        let terms = Terms {
            role: Role::Source,
            deadline: self.options.handshake,
            // Who the destination must be is part of its certificate's verification.
            admit: TlsOptions::default().admit(),
            heard: Arc::clone(&self.heard),
            progress: Progress::default(),
            key_update_after: self.options.key_update_after,
        };
        let begin = |endpoint: &_| session::source(&self.credentials, &self.name, endpoint);
        session::negotiate(channel, begin, terms).await
    }

    fn is_two_way(&self) -> Option<bool> {
        self.inner.is_two_way()
    }
}
