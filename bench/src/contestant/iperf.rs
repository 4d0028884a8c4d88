//! iperf3: one stream, 1 MiB writes.

use std::{net::TcpListener, time::Instant};

use serde_json::Value;

use super::{Contestant, Turn};
use crate::{
    child::{Helper, STEP, TRANSFER},
    contest::Sample,
    failure::Result,
    role::Foreign,
};

/// Another process may take the port between our looking and iperf3's binding.
const PORT_TRIES: usize = 5;

/// One test a turn.
#[derive(Clone, Debug)]
pub(crate) struct Iperf {
    pub(crate) bytes: u64,
    /// `None` is the system's.
    pub(crate) congestion: Option<&'static str>,
}

impl Iperf {
    /// Fails where there is no iperf3.
    pub(crate) fn find(bytes: u64) -> Result<Self> {
        let mut version = start("iperf3", vec!["--version".into()])?;
        version.rest(STEP).map_err(|error| format!("{error}; `apt install iperf3` brings it"))?;
        Ok(Self { bytes, congestion: None })
    }

    fn server() -> Result<(Helper, u16)> {
        let mut last = None;
        for _ in 0..PORT_TRIES {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let arguments = format!("-s -1 --forceflush -B 127.0.0.1 -p {port}");
            let mut server =
                start("the iperf3 server", arguments.split(' ').map(str::to_owned).collect())?;
            let deadline = Instant::now() + STEP;
            last = loop {
                match server.line(deadline.saturating_duration_since(Instant::now())) {
                    Ok(line) if line.contains("listening") => return Ok((server, port)),
                    Ok(_) => {}
                    Err(error) => break Some(error),
                }
            };
        }
        Err(last.unwrap_or_else(|| "no port for iperf3".into()))
    }
}

fn start(name: &str, arguments: Vec<String>) -> Result<Helper> {
    Helper::foreign(name, Foreign { program: "iperf3".into(), arguments, ..Foreign::default() })
}

impl Contestant for Iperf {
    fn name(&self) -> String {
        match self.congestion {
            None => "iperf3, 1 MiB writes".into(),
            Some(congestion) => format!("iperf3, 1 MiB writes, {congestion}"),
        }
    }

    fn memory_bytes(&self) -> u64 {
        // It needs none; the turn should begin like the others'.
        2 * self.bytes
    }

    fn run(&mut self) -> Result<Turn> {
        let (_server, port) = Self::server()?;
        let mut arguments = format!("-c 127.0.0.1 -p {port} -l 1M -n {} -J", self.bytes);
        if let Some(congestion) = self.congestion {
            arguments.push_str(&format!(" -C {congestion}"));
        }
        let mut client =
            start("the iperf3 client", arguments.split(' ').map(str::to_owned).collect())?;
        let told: Value = serde_json::from_str(&client.rest(TRANSFER)?)?;
        let number = |path: &str| -> Result<f64> {
            let missing = || format!("iperf3 does not tell {path}: {}", told["error"]);
            Ok(told.pointer(path).and_then(Value::as_f64).ok_or_else(missing)?)
        };
        let seconds = number("/end/sum_received/seconds")?;
        let percent = number("/end/cpu_utilization_percent/host_total")?
            + number("/end/cpu_utilization_percent/remote_total")?;
        let sample = Sample {
            seconds,
            cpu_seconds: Some(percent / 100.0 * seconds),
            bytes: number("/end/sum_received/bytes")? as u64,
        };
        let congestion = told["end"]["sender_tcp_congestion"].as_str();
        Ok(Turn { sample, remark: congestion.map(|name| format!("congestion control {name}")) })
    }
}
