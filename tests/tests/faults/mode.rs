//! What a migration is made with.

use mig::engine::{Capabilities, MultifdCompression, Parameters};

/// Live, of a small guest; or of a stored stream that is replayed and recorded, as `mig send` and `mig recv --save` do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    Plain,
    ReturnPath,
    Multifd,
    MultifdZlib,
    Tls,
    TlsMultifd,
    StoredPlain,
    Stored,
    StoredMultifd,
    StoredTls,
    StoredTlsMultifd,
}

impl Mode {
    pub(crate) const ALL: [Self; 11] = [
        Self::Plain,
        Self::ReturnPath,
        Self::Multifd,
        Self::MultifdZlib,
        Self::Tls,
        Self::TlsMultifd,
        Self::StoredPlain,
        Self::Stored,
        Self::StoredMultifd,
        Self::StoredTls,
        Self::StoredTlsMultifd,
    ];

    /// As the table has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::ReturnPath => "return path",
            Self::Multifd => "multifd, 2 channels",
            Self::MultifdZlib => "multifd, 2 channels, zlib",
            Self::Tls => "TLS, return path",
            Self::TlsMultifd => "TLS, multifd, 2 channels",
            Self::StoredPlain => "send to recv --save, no return path",
            Self::Stored => "send to recv --save",
            Self::StoredMultifd => "send to recv --save, multifd, 2 channels",
            Self::StoredTls => "send to recv --save, TLS",
            Self::StoredTlsMultifd => "send to recv --save, TLS, multifd, 2 channels",
        }
    }

    /// How much the sample of cases is thinned out where there are many bytes.
    pub(crate) fn thin(self) -> u64 {
        match self {
            Self::Plain | Self::ReturnPath => 1,
            Self::Stored | Self::StoredPlain | Self::Tls => 2,
            Self::Multifd => 3,
            Self::MultifdZlib | Self::StoredMultifd | Self::StoredTls => 6,
            Self::TlsMultifd | Self::StoredTlsMultifd => 8,
        }
    }

    pub(crate) fn has_tls(self) -> bool {
        matches!(self, Self::Tls | Self::TlsMultifd | Self::StoredTls | Self::StoredTlsMultifd)
    }

    pub(crate) fn has_data_channels(self) -> bool {
        matches!(
            self,
            Self::Multifd
                | Self::MultifdZlib
                | Self::TlsMultifd
                | Self::StoredMultifd
                | Self::StoredTlsMultifd
        )
    }

    pub(crate) fn has_return_path(self) -> bool {
        !matches!(self, Self::Plain | Self::StoredPlain)
    }

    /// The same without TLS, if it has any.
    pub(crate) fn without_tls(self) -> Option<Self> {
        match self {
            Self::Tls => Some(Self::ReturnPath),
            Self::TlsMultifd => Some(Self::Multifd),
            Self::StoredTls => Some(Self::Stored),
            Self::StoredTlsMultifd => Some(Self::StoredMultifd),
            _ => None,
        }
    }

    pub(crate) fn is_stored(self) -> bool {
        matches!(
            self,
            Self::StoredPlain
                | Self::Stored
                | Self::StoredMultifd
                | Self::StoredTls
                | Self::StoredTlsMultifd
        )
    }

    /// Of a live migration.
    pub(crate) fn capabilities(self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.return_path = self.has_return_path();
        capabilities.multifd = self.has_data_channels();
        capabilities
    }

    /// Of a live migration.
    pub(crate) fn parameters(self) -> Parameters {
        let mut parameters = Parameters::default();
        if self == Self::MultifdZlib {
            parameters.multifd_compression = MultifdCompression::Zlib;
            parameters.multifd_zlib_level = Some(1);
        }
        parameters
    }
}
