//! Why a migration ended badly: who is to blame, where it was, and who owns the guest now.

use std::{error, fmt, time::Duration};

use mig_transport::Blame;

use crate::deadlines::Wait;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Box<dyn error::Error + Send + Sync>;

/// Who may run the guest after a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Owner {
    /// The source: the destination never got so far as to say yes.
    Source,
    /// The destination: it said so.
    Destination,
    /// Everything was sent and no verdict came: ask the destination before starting the guest anywhere.
    Unknown,
}

/// A failed migration.
///
/// A struct, not an enum of variants: what a caller decides by is the [`Blame`] and the [`Owner`]; everything else is
/// for people, and the cause is kept as a source.
#[derive(Debug)]
pub struct Error {
    blame: Blame,
    what: String,
    phase: Option<&'static str>,
    channel: Option<String>,
    position: Option<u64>,
    owner: Owner,
    wait: Option<Wait>,
    opening: Option<Wait>,
    says_what_next: bool,
    cause: Option<Cause>,
}

impl Error {
    pub(crate) fn new(blame: Blame, what: impl Into<String>) -> Self {
        Self {
            blame,
            what: what.into(),
            phase: None,
            channel: None,
            position: None,
            owner: Owner::Source,
            wait: None,
            opening: None,
            says_what_next: false,
            cause: None,
        }
    }

    pub(crate) fn misuse(what: impl Into<String>) -> Self {
        Self::new(Blame::Misuse, what)
    }

    pub(crate) fn peer_misbehaved(what: impl Into<String>) -> Self {
        Self::new(Blame::PeerMisbehaved, what)
    }

    pub(crate) fn peer_incompatible(what: impl Into<String>) -> Self {
        Self::new(Blame::PeerIncompatible, what)
    }

    pub(crate) fn cancelled() -> Self {
        Self::new(Blame::Cancelled, "cancelled")
    }

    pub(crate) fn deadline(wait: Wait, doing: &str, after: Duration) -> Self {
        Self::new(Blame::Deadline, format!("{doing}: nothing within {after:?}")).ran_out(wait)
    }

    /// Names the wait, if a deadline is what it is. The first, most precise name stays; silence is the least precise.
    pub(crate) fn ran_out(mut self, wait: Wait) -> Self {
        if self.blame == Blame::Deadline && matches!(self.wait, None | Some(Wait::Idle)) {
            self.wait = Some(wait);
        }
        self
    }

    /// Of a connector, which has two parts, each with a deadline, and says in words in which of them it failed.
    pub(crate) fn of_connecting(error: mig_transport::Error) -> Self {
        let wait = part_of_connecting(&error);
        Self::from(error).ran_out(wait)
    }

    /// The same for the main channel: nothing was there before.
    pub(crate) fn of_opening(error: mig_transport::Error) -> Self {
        let opening = part_of_connecting(&error);
        Self { opening: Some(opening), ..Self::of_connecting(error) }
    }

    /// Its text says what to do.
    pub(crate) fn with_advice(mut self) -> Self {
        self.says_what_next = true;
        self
    }

    pub(crate) fn caused_by(mut self, cause: impl Into<Cause>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    pub(crate) fn at(mut self, position: u64) -> Self {
        self.position.get_or_insert(position);
        self
    }

    pub(crate) fn on(mut self, channel: impl Into<String>) -> Self {
        self.channel.get_or_insert_with(|| channel.into());
        self
    }

    pub(crate) fn during(mut self, phase: &'static str) -> Self {
        self.phase.get_or_insert(phase);
        self
    }

    /// Names what it happened to.
    pub(crate) fn in_front(mut self, what: &str) -> Self {
        self.what = format!("{what}: {}", self.what);
        self
    }

    /// Adds something that went wrong on top.
    pub(crate) fn noting(mut self, what: String) -> Self {
        self.what = format!("{}; {what}", self.what);
        self
    }

    pub(crate) fn owned_by(mut self, owner: Owner) -> Self {
        self.owner = owner;
        self
    }

    /// Who has to act.
    pub fn blame(&self) -> Blame {
        self.blame
    }

    /// Who may run the guest.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Which of the [deadlines](crate::Deadlines) ran out, if one of the engine's own did.
    pub fn wait(&self) -> Option<Wait> {
        self.wait
    }

    /// At a source that could not open its main channel, which part of that failed: [`Wait::Connect`], or
    /// [`Wait::Handshake`] once somebody was there.
    pub fn opening(&self) -> Option<Wait> {
        self.opening
    }

    /// Whether its text says what to do next. A deadline's text does; `{:#}` leaves it out, for who says that in another place.
    pub fn says_what_next(&self) -> bool {
        self.says_what_next
    }

    /// The byte position in the stream, where it is known.
    pub fn position(&self) -> Option<u64> {
        self.position
    }

    /// What the migration was doing, by QEMU's name of the state.
    pub fn phase(&self) -> Option<&'static str> {
        self.phase
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        let mut details = Vec::new();
        if let Some(phase) = self.phase {
            details.push(format!("state {phase}"));
        }
        // The stream's own errors begin with it.
        if let Some(channel) = &self.channel
            && !self.what.contains(channel)
        {
            details.push(channel.clone());
        }
        // Causes that name the position in their own text need no second one.
        if let Some(position) = self.position
            && !self.what.contains("byte")
        {
            details.push(format!("byte {position:#x}"));
        }
        if let Some(wait) = self.wait
            && f.alternate()
        {
            details.push(format!("deadline {wait}"));
        }
        if !details.is_empty() {
            write!(f, " ({})", details.join(", "))?;
        }
        if let Some(wait) = self.wait
            && !f.alternate()
        {
            write!(f, "; {}, or allow more time (deadline {wait})", wait.advice())?;
        }
        if self.owner == Owner::Unknown {
            f.write_str(
                "; everything was sent and no verdict came: ask the destination before starting the guest",
            )?;
        }
        Ok(())
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.cause.as_ref().map(|cause| &**cause as &(dyn error::Error + 'static))
    }
}

impl From<mig_transport::Error> for Error {
    fn from(error: mig_transport::Error) -> Self {
        let mut what = error.to_string();
        let mut cause = None;
        if let mig_transport::Error::Io { doing, source } = error {
            what = doing;
            cause = Some(source);
            return Self { cause: cause.map(Into::into), ..Self::new(Blame::Io, what) };
        }
        let blame = error.blame();
        drop(cause);
        Self { says_what_next: blame == Blame::PeerIncompatible, ..Self::new(blame, what) }
    }
}

fn part_of_connecting(error: &mig_transport::Error) -> Wait {
    let doing = match error {
        mig_transport::Error::Deadline { doing, .. } | mig_transport::Error::Io { doing, .. } => {
            doing
        }
        mig_transport::Error::PeerIncompatible { .. }
        | mig_transport::Error::PeerMisbehaved { .. } => {
            return Wait::Handshake;
        }
        _ => return Wait::Connect,
    };
    // At the beginning: the name of a host or of a socket may have any word in it.
    if doing.starts_with("TLS handshake") { Wait::Handshake } else { Wait::Connect }
}

impl From<mig_stream::Error> for Error {
    fn from(error: mig_stream::Error) -> Self {
        // The stream's own text names channel and byte.
        let blame = error.blame();
        let own = matches!(error, mig_stream::Error::Deadline { .. });
        let mut told = Self::new(blame, error.to_string());
        told.says_what_next = matches!(error, mig_stream::Error::Transport { .. })
            && blame == Blame::PeerIncompatible;
        let is_told = match &error {
            // All of its word is in the stream's.
            mig_stream::Error::Transport { source, .. } => error::Error::source(source).is_none(),
            _ => false,
        };
        if !is_told {
            told = told.caused_by_source_of(error);
        }
        // Whoever waited for something else than bytes says so.
        told.wait = own.then_some(Wait::Idle);
        told
    }
}

impl From<mig_ram::Error> for Error {
    fn from(error: mig_ram::Error) -> Self {
        let blame = error.blame();
        Self::new(blame, error.to_string()).caused_by_source_of(error)
    }
}

impl From<mig_proto::DecodeError> for Error {
    fn from(error: mig_proto::DecodeError) -> Self {
        let blame = match error.blame() {
            mig_proto::Fault::PeerMisbehaved => Blame::PeerMisbehaved,
            // A stream that only a newer version of this library could read fits this end as little as another
            // machine's does.
            _ => Blame::PeerIncompatible,
        };
        let position = error.position;
        Self::new(blame, error.to_string()).at(position)
    }
}

impl From<mig_proto::return_path::ReturnPathError> for Error {
    fn from(error: mig_proto::return_path::ReturnPathError) -> Self {
        Self::peer_misbehaved(format!("return path: {error}"))
    }
}

impl Error {
    /// Keeps the cause beneath `error`, whose own text is already in ours.
    fn caused_by_source_of<E: error::Error + Send + Sync + 'static>(mut self, error: E) -> Self {
        if error.source().is_some() {
            self.cause = Some(Box::new(Beneath(Box::new(error))));
        }
        self
    }
}

/// Shows the cause of an error instead of the error.
#[derive(Debug)]
struct Beneath(Cause);

impl fmt::Display for Beneath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.source() {
            Some(cause) => write!(f, "{cause}"),
            None => write!(f, "{}", self.0),
        }
    }
}

impl error::Error for Beneath {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.0.source().and_then(error::Error::source)
    }
}
