//! What doctor tells.

use serde::Serialize;

use crate::doctor::rdma::Rdma;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) checks: Vec<Check>,
    pub(crate) rdma: Rdma,
}

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) mig: &'static str,
    pub(crate) kernel: String,
    pub(crate) architecture: &'static str,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
}

/// One thing that was tried.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    pub(crate) group: Group,
    pub(crate) name: String,
    pub(crate) status: Status,
    /// What was found; the exact reason where something does not work.
    pub(crate) detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Group {
    Transport,
    Memory,
    System,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    Works,
    /// It works, and could be better.
    Limited,
    Missing,
}

impl Group {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Transport => "transports (tried over loopback)",
            Self::Memory => "guest memory",
            Self::System => "system",
        }
    }
}

impl Status {
    pub(crate) fn mark(self) -> &'static str {
        match self {
            Self::Works => "ok     ",
            Self::Limited => "limited",
            Self::Missing => "MISSING",
        }
    }
}

impl Check {
    pub(crate) fn works(group: Group, name: &str, detail: impl Into<String>) -> Self {
        Self {
            group,
            name: name.into(),
            status: Status::Works,
            detail: detail.into(),
            remedy: None,
        }
    }

    pub(crate) fn limited(
        group: Group,
        name: &str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Limited,
            remedy: Some(remedy.into()),
            ..Self::works(group, name, detail)
        }
    }

    pub(crate) fn missing(
        group: Group,
        name: &str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { status: Status::Missing, ..Self::limited(group, name, detail, remedy) }
    }
}
