//! `mig certs`.

use std::path::PathBuf;

use clap::Args;
use mig::tls::trial;

const EXAMPLES: &str = "\
Examples:
  For two ends on this machine:
      mig certs tls
  For a destination that sources reach as dest.example or 192.0.2.7:
      mig certs tls --host dest.example --host 192.0.2.7
      scp -pr tls dest.example:

The directory is laid out as QEMU's `tls-creds-x509` wants it, with files for both ends; what to
type at each end, for mig and for QEMU, is printed. A destination needs ca-cert.pem and
server-*.pem, a source ca-cert.pem and client-*.pem. For more than a trial take certificates of the
authority that you have.";

/// Make a set of certificates for a trial of TLS, and tell how to use them.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct CertsFlags {
    /// Where to put them; made if it is not there
    pub(crate) dir: PathBuf,

    /// A name or IP address by which sources reach the destination, for its certificate; may be repeated. This
    /// machine's name, localhost, 127.0.0.1 and ::1 are in it anyway
    #[arg(long, value_name = "NAME")]
    pub(crate) host: Vec<String>,

    /// How many days they are good for
    #[arg(long, value_name = "N", default_value_t = trial::DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,

    /// Replace files that are there
    #[arg(long)]
    pub(crate) force: bool,

    /// Only errors are told
    #[arg(short, long)]
    pub(crate) quiet: bool,
}
