//! perftest's `ib_write_bw`: RDMA WRITEs of 1 MiB from one hot buffer into another, many under way.

use super::{Contestant, Turn};
use crate::{
    child::{Helper, STEP, TRANSFER},
    contest::Sample,
    failure::Result,
    rdma::{self, Device},
    role::Foreign,
};

/// Bytes of a WRITE.
const MESSAGE: u64 = 1 << 20;

/// One test a turn.
#[derive(Clone, Debug)]
pub(crate) struct IbWriteBw {
    device: Device,
    bytes: u64,
}

impl IbWriteBw {
    /// Fails where there is no `ib_write_bw` or no device.
    pub(crate) fn find(bytes: u64) -> Result<Self> {
        let device = Device::find()?;
        let mut version = start("ib_write_bw", vec!["--version".into()])?;
        // Which it ends with a failure.
        let told = version.line(STEP);
        told.map_err(|error| format!("{error}; `apt install perftest` brings it"))?;
        Ok(Self { device, bytes: bytes.next_multiple_of(MESSAGE) })
    }
}

fn start(name: &str, arguments: Vec<String>) -> Result<Helper> {
    let program = "ib_write_bw".into();
    Helper::foreign(name, Foreign { program, arguments, ..Foreign::default() })
}

impl Contestant for IbWriteBw {
    fn name(&self) -> String {
        "ib_write_bw, 1 MiB".into()
    }

    fn memory_bytes(&self) -> u64 {
        // It needs none; the turn should begin like the others'.
        2 * self.bytes
    }

    fn run(&mut self) -> Result<Turn> {
        let port = rdma::port();
        let count = self.bytes / MESSAGE;
        let shared = format!("-R -d {} -s {MESSAGE} -n {count} -p {port} -F", self.device.name);
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let mut server = start("the ib_write_bw server", words(&shared))?;
        rdma::wait_for_listener(port, &mut server, STEP)?;
        let arguments = words(&format!("{shared} {}", self.device.address));
        let mut client = start("the ib_write_bw client", arguments)?;
        let told = client.rest(TRANSFER)?;
        server.rest(STEP)?;
        let bytes = count * MESSAGE;
        let sample =
            Sample { seconds: bytes as f64 / average(&told, count)?, bytes, ..Sample::default() };
        Ok(Turn { sample, remark: None })
    }
}

/// Bytes a second of its table's one line: `#bytes #iterations BW peak BW average MsgRate`. What it calls MB are MiB,
/// in every version: its rate times its clock is that.
fn average(told: &str, count: u64) -> Result<f64> {
    let (size, count) = (MESSAGE.to_string(), count.to_string());
    let line = told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut found = line.filter(|words| words.len() >= 4 && words[..2] == [&size[..], &count]);
    let words = found.next().ok_or_else(|| format!("ib_write_bw tells no rate: {told}"))?;
    let mib: f64 = words[3].parse()?;
    if mib > 0.0 {
        return Ok(mib * f64::from(1 << 20));
    }
    Err(format!("ib_write_bw tells no rate: {told}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_is_the_fourth_column() {
        let told = "\
 #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]
 1048576    128              50.00              40.00                0.000040
---------------------------------------------------------------------------------------\n";
        assert_eq!(average(told, 128).unwrap(), 40.0 * 1048576.0);
        assert!(average(told, 64).is_err());
        assert!(average("Completion with error", 128).is_err());
    }
}
