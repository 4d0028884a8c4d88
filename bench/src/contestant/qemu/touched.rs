//! Deltas of a guest that touches every page again and again, made by a QEMU.
//!
//! The guest runs [`firmware`] of our own under TCG. What counts is the processor time of the one
//! thread that looks for dirty pages, makes records of them and sends them; the guest has a thread of its own.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    super::{Contestant, Transport, Turn, touched::turn},
    Binary, Running, firmware,
};
use crate::{
    child::{Helper, STEP, TRANSFER},
    failure::Result,
    role::{Ready, Role, Touch, TouchedResult},
};

/// The names of the thread, up to 9.x and since.
const THREADS: [&str; 2] = ["live_migration", "mig/src/main"];

/// How often something is asked for while nothing is measured.
const TICK: Duration = Duration::from_millis(20);

/// One migration a turn, of which a window in the middle counts; it is cancelled behind it.
pub(crate) struct QemuTouched {
    pub(crate) binary: Binary,
    pub(crate) touch: Touch,
    pub(crate) window: Duration,
}

impl Contestant for QemuTouched {
    fn name(&self) -> String {
        format!("QEMU {}", self.binary.version())
    }

    fn memory_bytes(&self) -> u64 {
        2 * self.touch.ram_bytes
    }

    fn run(&mut self) -> Result<Turn> {
        let folder = tempfile::Builder::new().prefix("mig-bench-").tempdir()?;
        let image = folder.path().join("firmware");
        fs::write(&image, firmware::image(self.touch))?;
        let more = ["-bios".to_owned(), image.display().to_string()];
        let ram_bytes = self.touch.ram_bytes;
        let mut source =
            Running::start(&self.binary, Transport::Tcp, ram_bytes, "source", &folder, &more)?;
        let capabilities = [("xbzrle", true), ("return-path", false)]
            .map(|(capability, state)| json!({ "capability": capability, "state": state }));
        source.qmp.run("migrate-set-capabilities", json!({ "capabilities": capabilities }))?;
        // It is not to end before it is told to.
        let parameters = json!({ "xbzrle-cache-size": ram_bytes, "downtime-limit": 1 });
        source.qmp.run("migrate-set-parameters", parameters)?;
        source.qmp.run("cont", json!({}))?;
        self.wait_for_the_guest(&mut source)?;
        let mut sink = Helper::role("the sink", &Role::Sink)?;
        let ready: Ready = sink.hear(STEP)?;
        let uri = ready.address.ok_or("the sink does not say where it listens")?;
        source.qmp.run("migrate", json!({ "uri": uri }))?;
        let seen = self.watch(&mut source)?;
        source.qmp.run("migrate_cancel", json!({}))?;
        match source.qmp.migration_ended(STEP)?.as_str() {
            "cancelled" => turn(&seen),
            ended => Err(source.process.complaint(&format!("{ended} before its time")).into()),
        }
    }
}

impl QemuTouched {
    /// Until the last page was touched once.
    fn wait_for_the_guest(&self, source: &mut Running) -> Result<()> {
        let last = self.touch.start + (self.touch.pages - 1) * mig_ram::PAGE_SIZE as u32;
        let command = format!("xp /1xw {:#x}", last + u32::from(Touch::AT));
        let deadline = Instant::now() + STEP;
        loop {
            let told =
                source.qmp.run("human-monitor-command", json!({ "command-line": command }))?;
            let told = told.as_str().unwrap_or_default();
            let word = told.rsplit_once("0x").map(|(_, word)| word.trim());
            let word = word.and_then(|word| u32::from_str_radix(word, 16).ok());
            match word {
                Some(0 | Touch::FILL) if Instant::now() < deadline => thread::sleep(TICK),
                Some(word) if word != 0 && word != Touch::FILL => return Ok(()),
                _ => return Err(format!("the guest touches nothing ({told:?})").into()),
            }
        }
    }

    fn watch(&self, source: &mut Running) -> Result<TouchedResult> {
        let deadline = Instant::now() + TRANSFER;
        while told(source)?["xbzrle-cache"]["pages"].as_u64().unwrap_or(0)
            < u64::from(self.touch.pages)
        {
            if Instant::now() >= deadline {
                return Err(format!("no pass of deltas came: {}", told(source)?).into());
            }
            thread::sleep(TICK);
        }
        let (begun, before, used) =
            (Instant::now(), told(source)?, source.process.thread_seconds(&THREADS)?);
        thread::sleep(self.window);
        let (after, seconds) = (told(source)?, begun.elapsed().as_secs_f64());
        let cpu_seconds = source.process.thread_seconds(&THREADS)? - used;
        let counted = |path: &str| {
            let count = |told: &Value| told.pointer(path).and_then(Value::as_u64).unwrap_or(0);
            count(&after).saturating_sub(count(&before))
        };
        Ok(TouchedResult {
            seconds,
            cpu_seconds,
            deltas: counted("/xbzrle-cache/pages"),
            delta_bytes: counted("/xbzrle-cache/bytes"),
            whole_pages: counted("/ram/normal"),
            passes: counted("/ram/dirty-sync-count"),
        })
    }
}

fn told(source: &mut Running) -> Result<Value> {
    source.qmp.run("query-migrate", json!({}))
}
