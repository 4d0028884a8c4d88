//! `mig` in a wait, with everything around it that keeps it there.

use std::{
    any::Any,
    env, fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::ChildStdin,
    rc::Rc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    far,
    situation::{Cancelled, Situation},
};
use crate::{
    certificates::Certificates,
    child::{Helper, STEP},
    failure::Result,
    role::Foreign,
    stream::Stream,
    watch::Watch,
};

/// The exit code of a command that was cancelled.
const CANCELLED: i32 = 4;

/// What all scenes share.
pub(super) struct Stage {
    pub(super) program: PathBuf,
    folder: TempDir,
    certificates: Certificates,
}

impl Stage {
    /// A stream that fits into any socket's buffers.
    pub(super) const SHORT: Stream = Stream::of_pages(16);
    /// One that fits into none.
    pub(super) const LONG: Stream = Stream::of_pages(16 << 10);

    pub(super) fn new() -> Result<Rc<Self>> {
        let program = env::current_exe()?.with_file_name("mig");
        if !program.exists() {
            return Err(
                "there is no mig beside this program; `cargo build --release -p mig-cli` makes it"
                    .into(),
            );
        }
        let folder = tempfile::Builder::new().prefix("mig-bench-").tempdir()?;
        for (name, stream) in [("short", Self::SHORT), ("long", Self::LONG)] {
            let whole = [stream.head(), stream.round(1), Stream::tail()].concat();
            fs::write(folder.path().join(name), whole)?;
        }
        Ok(Rc::new(Self { program, folder, certificates: Certificates::new()? }))
    }

    pub(super) fn short(&self) -> String {
        self.folder.path().join("short").display().to_string()
    }

    pub(super) fn long(&self) -> String {
        self.folder.path().join("long").display().to_string()
    }

    pub(super) fn certificates(&self) -> PathBuf {
        self.certificates.directory()
    }

    /// A situation of the command line.
    pub(super) fn situation(
        self: &Rc<Self>,
        what: &'static str,
        far: &'static str,
        enter: impl Fn(&Self, &mut Scene) -> Result<()> + 'static,
    ) -> Situation {
        let stage = Rc::clone(self);
        Situation::new(what, far, move |stay| {
            let mut scene = Scene::new()?;
            enter(&stage, &mut scene)?;
            scene.interrupted(stay)
        })
    }
}

/// See the module.
pub(super) struct Scene {
    folder: TempDir,
    mig: Option<Helper>,
    far: Option<Watch>,
    unread: Option<TcpStream>,
    /// Names in the folder that belong there.
    props: Vec<&'static str>,
    /// Whether the last line of its stdout tells how it ended.
    pub(super) tells: bool,
    kept: Vec<Box<dyn Any>>,
}

impl Scene {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("mig-bench-").tempdir()?;
        Ok(Self {
            folder,
            mig: None,
            far: None,
            unread: None,
            props: Vec::new(),
            tells: true,
            kept: Vec::new(),
        })
    }

    /// A path in its folder, of something that is there before and afterwards.
    pub(super) fn prop(&mut self, name: &'static str) -> PathBuf {
        self.props.push(name);
        self.folder.path().join(name)
    }

    /// A path in its folder, of something that must not stay.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Keeps something to the end.
    pub(super) fn keep(&mut self, what: impl Any) {
        self.kept.push(Box::new(what));
    }

    /// Who finds out at the far end.
    pub(super) fn watched(&mut self, far: Watch) {
        self.far = Some(far);
    }

    /// Nobody reads this until it is cancelled, and then somebody does, who finds out.
    pub(super) fn is_read_again_afterwards(&mut self, channel: TcpStream) {
        self.unread = Some(channel);
    }

    /// The standard input of `mig`.
    pub(super) fn stdin(&mut self) -> Result<ChildStdin> {
        Ok(self.mig()?.take_stdin().ok_or("its stdin was taken before")?)
    }

    /// Starts `mig`.
    pub(super) fn start(&mut self, program: &Path, arguments: &[&str]) -> Result<()> {
        self.start_as(&program.display().to_string(), arguments)
    }

    /// Starts what will be `mig`.
    pub(super) fn start_as(&mut self, program: &str, arguments: &[&str]) -> Result<()> {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let foreign = Foreign { program: program.into(), arguments, ..Foreign::default() };
        self.mig = Some(Helper::foreign("mig", foreign)?);
        Ok(())
    }

    pub(super) fn mig(&mut self) -> Result<&mut Helper> {
        Ok(self.mig.as_mut().ok_or("nothing was started")?)
    }

    /// Where a `mig recv --json` listens.
    pub(super) fn listening(&mut self) -> Result<String> {
        let said: Value = self.mig()?.hear(STEP)?;
        let address = said["socket-address"][0].as_str();
        Ok(address.ok_or_else(|| format!("no address in {said}"))?.to_owned())
    }

    /// Waits until something is so.
    pub(super) fn until(&mut self, mut so: impl FnMut(&Path) -> bool) -> Result<()> {
        let mig = self.mig()?;
        let process = PathBuf::from(format!("/proc/{}", mig.id()));
        let deadline = Instant::now() + STEP;
        while !so(&process) {
            if mig.ended()?.is_some() {
                return Err(mig.complaint("ended too early").into());
            }
            if Instant::now() >= deadline {
                return Err(mig.complaint("did not come to where it is to be cancelled").into());
            }
            thread::sleep(Duration::from_micros(500));
        }
        Ok(())
    }

    /// Waits until signals are its own business.
    pub(super) fn until_it_listens_to_signals(&mut self) -> Result<()> {
        self.until(catches_interrupts)
    }

    /// Interrupts it.
    fn interrupted(mut self, stay: Duration) -> Result<Cancelled> {
        thread::sleep(stay);
        let tells = self.tells;
        let mig = self.mig()?;
        if mig.ended()?.is_some() {
            return Err(mig.complaint("ended before it was cancelled").into());
        }
        let interrupted = mig.interrupt(STEP)?;
        if interrupted.status.code() != Some(CANCELLED) {
            return Err(mig
                .complaint(&format!("was not cancelled ({})", interrupted.status))
                .into());
        }
        if let Some(line) = mig.last_line().filter(|_| tells) {
            let last: Value = serde_json::from_str(&line)?;
            if last["status"] != "cancelled" {
                return Err(format!("it says of itself {line}").into());
            }
        }
        if let Some(unread) = self.unread.take() {
            self.far = Some(far::reads_on(unread)?);
        }
        let far = self.far.take().map(Watch::seen).transpose()?;
        let mut cancelled = Cancelled::between(interrupted.asked, interrupted.ended, far);
        for entry in fs::read_dir(self.folder.path())? {
            let name = entry?.file_name().display().to_string();
            if !self.props.iter().any(|prop| *prop == name) {
                cancelled.files.push(format!("file {name}"));
            }
        }
        Ok(cancelled)
    }
}

/// Whether a process catches SIGINT and is `mig` by now.
pub(super) fn catches_interrupts(process: &Path) -> bool {
    let status = fs::read_to_string(process.join("status")).unwrap_or_default();
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let caught = field("SigCgt:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    field("Name:") == Some("mig") && caught.is_some_and(|mask| mask & 1 << 1 != 0)
}
