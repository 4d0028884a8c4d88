//! When no address of a name worked.

use std::{fmt, io, net::SocketAddr, time::Duration};

use mig_transport::Error;

/// Every address that was tried, with its own reason, in the order of trying.
#[derive(Debug)]
pub struct AddressesFailed(Vec<(SocketAddr, io::Error)>);

impl AddressesFailed {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn push(&mut self, address: SocketAddr, error: io::Error) {
        tracing::debug!(%address, %error, "an address failed");
        self.0.push((address, error));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The addresses and their reasons.
    pub fn failures(&self) -> impl Iterator<Item = (SocketAddr, &io::Error)> {
        self.0.iter().map(|(address, error)| (*address, error))
    }

    pub(crate) fn first_kind(&self) -> Option<io::ErrorKind> {
        self.0.first().map(|(_, error)| error.kind())
    }

    /// What a connector answers: a deadline if time was all that was wrong, otherwise the reasons.
    pub(crate) fn into_error(mut self, doing: String, deadline: Duration) -> Error {
        if self.0.iter().all(|(_, error)| is_share_used_up(error)) {
            let tried: Vec<_> = self.0.iter().map(|(address, _)| address.to_string()).collect();
            let doing = match tried.is_empty() {
                true => doing,
                false => format!("{doing} (tried {})", tried.join(", ")),
            };
            return Error::Deadline { doing, after: deadline };
        }
        let source = match self.0.len() {
            1 => self.0.remove(0).1,
            _ => {
                // The kind of the last one, as QEMU reports it, unless that only ran out of time.
                let telling = self.0.iter().rev().find(|(_, error)| !is_share_used_up(error));
                let kind = telling.map_or(io::ErrorKind::Other, |(_, error)| error.kind());
                io::Error::new(kind, self)
            }
        };
        Error::io(doing, source)
    }
}

impl fmt::Display for AddressesFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (address, error)) in self.0.iter().enumerate() {
            write!(f, "{}{address}: {error}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for AddressesFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.last().map(|(_, error)| error as _)
    }
}

/// An address that used up its share of the deadline.
pub(crate) fn share_used_up(share: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, ShareUsedUp(share))
}

fn is_share_used_up(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<ShareUsedUp>())
}

#[derive(Debug)]
struct ShareUsedUp(Duration);

impl fmt::Display for ShareUsedUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no answer within {:?}", self.0)
    }
}

impl std::error::Error for ShareUsedUp {}
