//! Listening.

use async_trait::async_trait;
use mig_transport::{Channel, Error, Listener, Result, address::InetAddress};

use crate::options::RdmaOptions;

/// Waits for rdma channels at one address.
#[derive(Debug)]
pub struct RdmaListener {
    options: RdmaOptions,
}

impl RdmaListener {
    /// Begins to listen.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons the attempt; nothing stays bound.
    pub async fn bind(_address: &InetAddress, options: RdmaOptions) -> Result<Self> {
        crate::availability()?;
        Ok(Self { options })
    }
}

#[async_trait]
impl Listener for RdmaListener {
    async fn accept(&mut self) -> Result<Channel> {
        let _ = &self.options;
        Err(Error::Misuse { what: "not yet".into() })
    }

    fn local_addresses(&self) -> Vec<String> {
        Vec::new()
    }
}
