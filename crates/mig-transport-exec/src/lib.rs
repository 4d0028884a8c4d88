//! Migration through the pipes of a command (docs/wire/transports.md §2.6).
//!
//! ```text
//!   source ──▶ stdin ┌─────────────┐ stdout ──▶ destination          (other direction: only with `return_path`)
//!                    │ command and │
//!                    │ its group   │ stderr ──▶ log, and the last 64 KiB into the error text
//!                    └─────────────┘
//!                          ▲ one task supervises: waits, signals, reaps
//! ```
//!
//! An orderly end waits for the command within a deadline; unlike QEMU we call a status other than 0, or a signal, a
//! failure. A command that ends early is named as the reason of the broken pipe, with its status and its last words.
//! Cancelling sends SIGTERM to the whole process group and SIGKILL 50 ms later; dropping both halves closes the pipes
//! and does the same a second later. A process that left the group (`setsid`) is out of reach.
//!
//! Where this process itself is killed by SIGKILL, nobody is left to signal the group. The kernel closes the pipes: a command
//! that reads its stdin finds its end, one that writes to stdout or stderr gets SIGPIPE; one that does neither lives on. It is not asked to
//! end the command with its parent (`PR_SET_PDEATHSIG`): that signal comes when the *thread* ends that started the command,
//! and threads of a runtime come and go while a migration runs.

mod channel;
mod command;
mod group;
mod leader;
mod receive;
mod send;
mod stderr;
mod supervise;

pub use crate::{
    channel::{ExecConnector, ExecListener, ExecOptions},
    command::ExecCommand,
    group::{CommandFailed, Ending},
};
