//! A QMP client: JSON lines over a unix socket, replies told from events, descriptors by SCM_RIGHTS.
//!
//! ```text
//!   QEMU ── {"QMP": …}                    greeting
//!        ◀─ {"execute": "qmp_capabilities"}
//!        ── {"return": {}}
//!        ◀─ {"execute": …}
//!        ── {"event": …}                  any time; kept until somebody waits for it
//!        ── {"return": …} | {"error": …}
//! ```
//! One command at a time, so replies need no id. Every wait has a deadline; missing it panics.

use std::collections::VecDeque;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};

use crate::process::{STEP, wait_readable};

/// A line longer than this is no QMP: 16 MiB is a thousand times the longest reply we ask for.
const LINE_LIMIT: usize = 16 << 20;

/// One monitor connection.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    /// Bytes read, not yet a whole line.
    pending: Vec<u8>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Takes the connection through greeting and capabilities.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        let mut qmp = Self { stream, pending: Vec::new(), events: VecDeque::new() };
        let greeting = qmp.message(Instant::now() + STEP);
        assert!(greeting.get("QMP").is_some(), "not a QMP greeting: {greeting}");
        let _ = qmp.run("qmp_capabilities", json!({}));
        qmp
    }

    /// Runs a command that must succeed; gives what it returned.
    ///
    /// # Panics
    /// If QEMU answers with an error.
    #[track_caller]
    pub fn run(&mut self, command: &str, arguments: Value) -> Value {
        let told = arguments.clone();
        self.try_run(command, arguments)
            .unwrap_or_else(|error| panic!("QMP {command} {told} failed: {error}"))
    }

    /// Runs a command; `Err` is QEMU's description of why not.
    pub fn try_run(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        self.exchange(command, arguments, &[])
    }

    /// Hands a descriptor to QEMU under a name (`getfd`).
    #[track_caller]
    pub fn hand_over(&mut self, name: &str, fd: BorrowedFd<'_>) {
        self.exchange("getfd", json!({ "fdname": name }), &[fd])
            .unwrap_or_else(|error| panic!("QMP getfd {name} failed: {error}"));
    }

    /// A line of the human monitor, and what it printed.
    #[track_caller]
    pub fn human(&mut self, line: &str) -> String {
        let printed = self.run("human-monitor-command", json!({ "command-line": line }));
        printed.as_str().unwrap_or_else(|| panic!("{line}: not a text: {printed}")).to_owned()
    }

    /// Waits for an event of this name whose `data` passes `wanted`; earlier events of this name are dropped, the
    /// rest stay.
    #[track_caller]
    pub fn event(
        &mut self,
        name: &str,
        limit: Duration,
        mut wanted: impl FnMut(&Value) -> bool,
    ) -> Value {
        let deadline = Instant::now() + limit;
        let mut others = VecDeque::new();
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => {
                    let message = self.message(deadline);
                    assert!(message.get("event").is_some(), "unasked reply: {message}");
                    message
                }
            };
            if event["event"] != name {
                others.push_back(event);
            } else if wanted(&event["data"]) {
                others.append(&mut self.events);
                self.events = others;
                return event;
            }
        }
    }

    fn exchange(
        &mut self,
        command: &str,
        arguments: Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Value, String> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.send(line.as_bytes(), fds);
        let deadline = Instant::now() + STEP;
        loop {
            let mut message = self.message(deadline);
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if let Some(error) = message.get("error") {
                return Err(error["desc"].as_str().unwrap_or("(no description)").to_owned());
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// What a command returns, if QEMU answers in time: one whose main loop stands still does not, and nothing else can be
    /// asked of it then.
    pub fn ask(&mut self, command: &str, limit: Duration) -> Option<Value> {
        self.send(format!("{}\n", json!({ "execute": command })).as_bytes(), &[]);
        let deadline = Instant::now() + limit;
        loop {
            let mut message = self.next_message(deadline)?;
            if message.get("event").is_none() {
                return Some(message["return"].take());
            }
            self.events.push_back(message);
        }
    }

    fn send(&mut self, mut bytes: &[u8], mut fds: &[BorrowedFd<'_>]) {
        while !bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                let pushed = control.push(SendAncillaryMessage::ScmRights(fds));
                assert!(pushed, "more than one descriptor at a time");
            }
            let sent = rustix::net::sendmsg(
                &self.stream,
                &[IoSlice::new(bytes)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
            .unwrap_or_else(|error| panic!("the QMP socket is broken: {error}"));
            bytes = &bytes[sent..];
            fds = &[];
        }
    }

    /// The next message of any kind.
    #[track_caller]
    fn message(&mut self, deadline: Instant) -> Value {
        let message = self.next_message(deadline);
        message.unwrap_or_else(|| panic!("QEMU is silent on QMP; events kept: {:?}", self.events))
    }

    /// The next message of any kind, if there is one in time.
    #[track_caller]
    fn next_message(&mut self, deadline: Instant) -> Option<Value> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.pending[searched..].iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=searched + end).collect();
                return Some(serde_json::from_slice(&line).unwrap_or_else(|error| {
                    panic!("not QMP: {error}: {}", String::from_utf8_lossy(&line))
                }));
            }
            searched = self.pending.len();
            assert!(searched < LINE_LIMIT, "a QMP line of more than {LINE_LIMIT} bytes");
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            if wait_readable(&self.stream, left) {
                let mut chunk = [0; 16 << 10];
                let count = self
                    .stream
                    .read(&mut chunk)
                    .unwrap_or_else(|error| panic!("the QMP socket is broken: {error}"));
                assert!(count > 0, "QEMU closed QMP; events kept: {:?}", self.events);
                self.pending.extend_from_slice(&chunk[..count]);
            }
        }
    }
}
