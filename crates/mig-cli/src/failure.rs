//! Why a command failed, whatever crate the reason comes from.

use std::{error::Error, fmt::Write as _};

use mig::{engine::Wait, transport::Blame};
use serde_json::{Value, json};

use crate::exit;

/// A command's outcome.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// A failure: who is to blame, what happened where, why, and what to do next.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) blame: Blame,
    what: String,
    causes: Vec<String>,
    position: Option<u64>,
    opening: Option<Wait>,
    next: Next,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// What is usual for its blame.
    Usual,
    /// What went wrong says it.
    Said,
    This(String),
}

impl Failure {
    pub(crate) fn new(blame: Blame, what: impl Into<String>) -> Self {
        Self {
            blame,
            what: what.into(),
            causes: Vec::new(),
            position: None,
            opening: None,
            next: Next::Usual,
        }
    }

    pub(crate) fn misuse(what: impl Into<String>) -> Self {
        Self::new(Blame::Misuse, what)
    }

    /// From any error: its text and those of its causes, each said once.
    pub(crate) fn from_error(blame: Blame, error: &(dyn Error + 'static)) -> Self {
        let mut failure = Self::new(blame, error.to_string());
        failure.add_causes(error.source());
        failure
    }

    pub(crate) fn caused_by(mut self, error: &(dyn Error + 'static)) -> Self {
        self.add_causes(Some(error));
        self
    }

    pub(crate) fn at(mut self, position: Option<u64>) -> Self {
        self.position = position;
        self
    }

    /// Whether more than so many bytes of the stream were good.
    pub(crate) fn is_past(&self, position: u64) -> bool {
        self.position.is_some_and(|at| at > position)
    }

    /// At a source that could not open its main channel, which part of that failed.
    pub(crate) fn opening(&self) -> Option<Wait> {
        self.opening
    }

    pub(crate) fn next(mut self, advice: impl Into<String>) -> Self {
        self.next = Next::This(advice.into());
        self
    }

    /// What to do where a wait of this kind ran out of time.
    pub(crate) fn ran_out(self, wait: Wait) -> Self {
        self.next(format!(
            "{}, or allow more time: --deadline {wait}=DURATION of `mig recv` and `mig send`",
            wait.advice()
        ))
    }

    /// Its text says what to do: nothing is added to that.
    pub(crate) fn that_says_it_all(mut self) -> Self {
        self.next = Next::Said;
        self
    }

    /// Whether its text says what to do.
    pub(crate) fn says_it_all(&self) -> bool {
        self.next == Next::Said
    }

    fn advice(&self) -> Option<&str> {
        match &self.next {
            Next::Usual => exit::advice(self.blame),
            Next::Said => None,
            Next::This(next) => Some(next),
        }
    }

    fn add_causes(&mut self, mut cause: Option<&(dyn Error + 'static)>) {
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors repeat their cause in their own text.
            let said = self.what.contains(&text) || self.causes.iter().any(|c| c.contains(&text));
            if !said {
                self.causes.push(text);
            }
            cause = error.source();
        }
    }

    /// For people, on stderr.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("error: {}", self.what);
        for cause in &self.causes {
            let _infallible = write!(text, "\n  because: {cause}");
        }
        if self.blame != Blame::Cancelled {
            let _infallible = write!(text, "\n  to blame: {}", exit::culprit(self.blame));
        }
        if let Some(next) = self.advice() {
            let _infallible = write!(text, "\n  next: {next}");
        }
        text
    }

    /// For scripts: the `"error"` object of the last line.
    pub(crate) fn json(&self) -> Value {
        let mut message = self.what.clone();
        for cause in &self.causes {
            let _infallible = write!(message, ": {cause}");
        }
        let mut value = json!({ "kind": exit::kind(self.blame), "message": message });
        if let Some(position) = self.position {
            value["offset"] = position.into();
        }
        if let Some(next) = self.advice() {
            value["next"] = next.into();
        }
        value
    }
}

impl From<mig::transport::Error> for Failure {
    fn from(error: mig::transport::Error) -> Self {
        Self::from_error(error.blame(), &error)
    }
}

impl From<mig::engine::Error> for Failure {
    fn from(error: mig::engine::Error) -> Self {
        // Without what a deadline's text advises: the flag belongs to that here.
        let mut failure = Self::new(error.blame(), format!("{error:#}")).at(error.position());
        failure.add_causes(error.source());
        failure.opening = error.opening();
        match error.wait() {
            Some(wait) => failure.ran_out(wait),
            None if error.says_what_next() => failure.that_says_it_all(),
            None => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_what_why_who_and_next() {
        let inner = std::io::Error::other("no route to host");
        let failure = Failure::new(Blame::Io, "connecting to tcp:a:1").caused_by(&inner);
        let text = failure.text();
        assert!(text.starts_with("error: connecting to tcp:a:1\n  because: no route to host\n"));
        assert!(text.contains("to blame:") && text.contains("next:"), "{text}");
    }

    #[test]
    fn advice_is_given_once() {
        let failure = Failure::misuse("x.pem: cut short; write it anew").that_says_it_all();
        assert!(!failure.text().contains("next:"), "{}", failure.text());
        assert!(failure.json().get("next").is_none());
        let failure = Failure::misuse("--x").next("leave it out");
        assert!(failure.text().ends_with("next: leave it out"), "{}", failure.text());
        assert_eq!(failure.json()["next"], "leave it out");
    }

    #[test]
    fn a_cause_already_told_is_not_told_again() {
        let inner = std::io::Error::other("no route");
        let failure = Failure::new(Blame::Io, "connecting: no route").caused_by(&inner);
        assert!(!failure.text().contains("because"));
    }
}
