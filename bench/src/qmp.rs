//! As much QMP as a benchmark needs: JSON lines over a unix socket, one command at a time.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{child::STEP, failure::Result};

/// One monitor connection.
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Takes the connection through greeting and capabilities.
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        stream.set_write_timeout(Some(STEP))?;
        let mut qmp = Self { reader: BufReader::new(stream), events: VecDeque::new() };
        let greeting = qmp.message(Instant::now() + STEP)?;
        if greeting.get("QMP").is_none() {
            return Err(format!("not a QMP greeting: {greeting}").into());
        }
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command; gives what it returned.
    pub(crate) fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.reader.get_mut().write_all(line.as_bytes())?;
        let deadline = Instant::now() + STEP;
        loop {
            let mut message = self.message(deadline)?;
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if let Some(error) = message.get("error") {
                return Err(format!("QMP {command}: {}", error["desc"]).into());
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// Waits until this end's migration has ended, however; gives its last status.
    pub(crate) fn migration_ended(&mut self, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let event = match self.events.pop_front() {
                Some(event) => event,
                None => self.message(deadline)?,
            };
            let status = event["data"]["status"].as_str().unwrap_or_default();
            if event["event"] == "MIGRATION"
                && matches!(status, "completed" | "failed" | "cancelled")
            {
                return Ok(status.to_owned());
            }
        }
    }

    fn message(&mut self, deadline: Instant) -> Result<Value> {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.reader.get_mut().set_read_timeout(Some(left))?;
        let mut line = String::new();
        let got = self.reader.read_line(&mut line).map_err(|error| format!("QMP: {error}"))?;
        if got == 0 {
            return Err("QEMU closed QMP".into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}
