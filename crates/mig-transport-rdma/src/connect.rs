//! Connecting: every address that a name stands for, in order, inside one deadline.

use async_trait::async_trait;
use mig_transport::{Channel, Connector, Error, Result, address::InetAddress};

use crate::options::RdmaOptions;

/// Opens rdma channels to one address.
#[derive(Clone, Debug)]
pub struct RdmaConnector {
    address: InetAddress,
    options: RdmaOptions,
}

impl RdmaConnector {
    /// A connector; nothing is looked up or opened yet.
    pub fn new(address: InetAddress, options: RdmaOptions) -> Self {
        Self { address, options }
    }
}

#[async_trait]
impl Connector for RdmaConnector {
    async fn connect(&self) -> Result<Channel> {
        crate::availability()?;
        let _ = (&self.address, &self.options);
        Err(Error::Misuse { what: "not yet".into() })
    }

    fn is_two_way(&self) -> Option<bool> {
        Some(self.options.return_path)
    }
}
