//! iperf3: 1 MiB writes, one stream or several.

use std::{net::TcpListener, rc::Rc, time::Instant};

use serde_json::Value;

use super::{Contestant, Turn};
use crate::{
    child::{Helper, STEP, TRANSFER},
    contest::Sample,
    failure::Result,
    link::{Link, LinkEnd},
    role::{Foreign, Role},
};

/// Another process may take the port between our looking and iperf3's binding.
const PORT_TRIES: usize = 5;

/// One test a turn.
#[derive(Clone, Debug)]
pub(crate) struct Iperf {
    pub(crate) bytes: u64,
    /// `None` is the system's.
    pub(crate) congestion: Option<&'static str>,
    /// Side by side. Up to 3.15 one thread serves all of them.
    pub(crate) streams: u8,
    /// Over this instead of the loopback.
    pub(crate) link: Option<Rc<Link>>,
}

impl Iperf {
    /// Fails where there is no iperf3.
    pub(crate) fn find(bytes: u64) -> Result<Self> {
        let mut version = start(None, "iperf3", "--version")?;
        version.rest(STEP).map_err(|error| format!("{error}; `apt install iperf3` brings it"))?;
        Ok(Self { bytes, congestion: None, streams: 1, link: None })
    }

    fn address(&self) -> String {
        self.link.as_ref().map_or_else(|| "127.0.0.1".into(), |link| link.far().address.to_string())
    }

    fn server(&self) -> Result<(Helper, u16)> {
        let mut last = None;
        for _ in 0..PORT_TRIES {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let arguments = format!("-s -1 --forceflush -B {} -p {port}", self.address());
            let far = self.link.as_deref().map(Link::far);
            let mut server = start(far, "the iperf3 server", &arguments)?;
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

fn start(at: Option<&LinkEnd>, name: &str, arguments: &str) -> Result<Helper> {
    let arguments = arguments.split(' ').map(str::to_owned).collect();
    let foreign = Foreign { program: "iperf3".into(), arguments, ..Foreign::default() };
    Helper::role_at(at, name, &Role::Foreign(foreign))
}

impl Contestant for Iperf {
    fn name(&self) -> String {
        let streams = match self.streams {
            1 => String::new(),
            streams => format!(" -P {streams}"),
        };
        let congestion = self.congestion.map_or_else(String::new, |name| format!(", {name}"));
        format!("iperf3{streams}, 1 MiB writes{congestion}")
    }

    fn memory_bytes(&self) -> u64 {
        // It needs none; the turn should begin like the others'.
        2 * self.bytes
    }

    fn run(&mut self) -> Result<Turn> {
        let (_server, port) = self.server()?;
        let mut arguments = format!(
            "-c {} -p {port} -l 1M -P {} -n {} -J",
            self.address(),
            self.streams,
            self.bytes
        );
        if let Some(congestion) = self.congestion {
            arguments.push_str(&format!(" -C {congestion}"));
        }
        let near = self.link.as_deref().map(Link::near);
        let mut client = start(near, "the iperf3 client", &arguments)?;
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
            ..Sample::default()
        };
        let congestion = told["end"]["sender_tcp_congestion"].as_str();
        Ok(Turn { sample, remark: congestion.map(|name| format!("congestion control {name}")) })
    }
}
