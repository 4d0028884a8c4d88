//! `mig certs`: certificates for a trial, and what to type at both ends.

use std::{
    io::{self, Write},
    path::Path,
};

use mig::{
    tls::trial::{self, TrialSet},
    transport::Blame,
};

use crate::{
    failure::{Failure, Outcome},
    flags::CertsFlags,
    quote::shell,
};

/// Runs the command.
pub(crate) fn run(flags: &CertsFlags) -> Outcome {
    let set = trial::make_for(flags.days, &flags.dir, &flags.host, flags.force)?;
    if flags.quiet {
        return Ok(());
    }
    // Lines to be copied work from any directory.
    let dir = std::path::absolute(&set.directory).unwrap_or_else(|_| set.directory.clone());
    let host = flags.host.first().map_or("localhost", String::as_str);
    let text = teach(&dir, &set, host);
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Blame::Io, "writing to stdout").caused_by(&error))
        }
        _ => Ok(()),
    }
}

/// What to do with them: lines to be copied, for mig and for QEMU.
fn teach(dir: &Path, set: &TrialSet, host: &str) -> String {
    let host = one_of(host);
    let (name, at) = (shell(&host), shell(&format!("tcp:{}:4444", in_uri(&host))));
    let shown = dir.display().to_string();
    let quoted = shell(&shown);
    // A comma ends an option of QEMU's, two are one.
    let in_option = shown.replace(',', ",,");
    let object = |kind: &str, rest: &str| {
        format!("-object {}", shell(&format!("{kind},id=tls0,dir={in_option}{rest}")))
    };
    let certificates =
        |endpoint| object("tls-creds-x509", &format!(",endpoint={endpoint},verify-peer=on"));
    let (server, client) = (certificates("server"), certificates("client"));
    format!(
        "\
Certificates for a trial are in {shown}, valid until {until}.
The destination's is for {names}.

At the destination, which needs ca-cert.pem, server-cert.pem and server-key.pem of them:
    mig recv tcp::4444 --tls-creds {quoted} --save vm.mig
or QEMU:
    qemu-system-x86_64 … {server} -incoming defer
    (qemu) migrate_set_parameter tls-creds tls0
    (qemu) migrate_incoming tcp::4444

At the source, which needs ca-cert.pem, client-cert.pem and client-key.pem:
    mig send vm.mig {at} --tls-creds {quoted}
or QEMU:
    qemu-system-x86_64 … {client}
    (qemu) migrate_set_parameter tls-creds tls0
    (qemu) migrate tcp:{monitor}:4444

The source must reach the destination by one of the names above. Where the address has none (unix:, vsock:, fd:, exec:),
say which it is: mig --tls-hostname {name}, QEMU migrate_set_parameter tls-hostname {host}.
A key instead of certificates is in keys.psk: mig --tls-psk, QEMU -object tls-creds-psk,id=tls0,dir=….

Who has this directory is both ends. The authority's own key was thrown away: for another name or another end make
a new set. At a destination whose authority has given certificates to others, too, let in a source by its name:
    --tls-authz 'dn:O=mig trial,CN=source'
",
        until = set.valid_until,
        monitor = in_uri(&host),
        names = set.names.join(", ")
    )
}

/// A name to connect to: one of a domain, where the certificate is for all of them; an address without its brackets.
fn one_of(host: &str) -> String {
    if let Some(domain) = host.strip_prefix("*.") {
        return format!("HOST.{domain}");
    }
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    bare.unwrap_or(host).to_owned()
}

/// An IPv6 address in a URI stands in brackets.
fn in_uri(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}
