//! A soft-RoCE device of a test's own, to be broken: an interface with its address, and the device on it.
//!
//! ```text
//!   Spare::new ── spareN, 10.55.N.1/24 ── sprxeN ──▶ the test breaks it ──▶ drop: both are taken away again
//!                                                         │
//!                                                 remove, removed
//! ```
//! The lab's own device ([`lab::DEVICE`]) is every other test's, and removing a device is asking the kernel for
//! something that may take for ever: it waits until nobody uses the device, and what still uses it need not be a
//! process. Who asks cannot even be killed meanwhile. So nothing here waits for that without a bound; what the kernel does
//! not give up in time is left alone, with its interface, and the next [`Spare`] takes another number. If that happens,
//! it is said where the output of passed tests is seen too.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::lab;
use crate::process::{Process, SLOWNESS, STEP};

/// How long the kernel may take to let go of what nobody uses. In the lab it takes about a second.
const REMOVAL: Duration = Duration::from_secs(12 * SLOWNESS);

/// The device, its interface and its address.
#[derive(Debug)]
pub struct Spare {
    number: u8,
    /// `rdma link delete`, once it has been started.
    removal: Option<Process>,
    /// The kernel still has it in its hands: not to be touched.
    is_stuck: bool,
}

impl Spare {
    /// Makes them.
    ///
    /// # Panics
    /// If they cannot be made; what was made until then goes away again.
    #[must_use]
    #[track_caller]
    pub fn new() -> Self {
        let is_free = |number: &u8| !Path::new("/sys/class/net").join(interface(*number)).exists();
        // 10.55.0.0 is the lab's own.
        let number = (1..=250).find(is_free).expect("a boot of the lab has few tests");
        let spare = Self { number, removal: None, is_stuck: false };
        let (interface, address) = (spare.interface(), format!("{}/24", spare.ipv4()));
        succeeds("ip", &["link", "add", &interface, "type", "dummy"]);
        succeeds("ip", &["link", "set", &interface, "mtu", "4200", "up"]);
        succeeds("ip", &["address", "add", &address, "dev", &interface]);
        succeeds("rdma", &["link", "add", &spare.device(), "type", "rxe", "netdev", &interface]);
        spare
    }

    /// The device's name.
    #[must_use]
    pub fn device(&self) -> String {
        format!("sprxe{}", self.number)
    }

    /// The name of the interface below it.
    #[must_use]
    pub fn interface(&self) -> String {
        interface(self.number)
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn ipv4(&self) -> String {
        format!("10.55.{}.1", self.number)
    }

    /// Takes the interface down: whatever is sent is lost.
    #[track_caller]
    pub fn cut(&self) {
        succeeds("ip", &["link", "set", &self.interface(), "down"]);
    }

    /// Begins to remove the device, whoever uses it. Those who do are told at once; the kernel goes on when they have
    /// let go of it.
    pub fn remove(&mut self) {
        let device = self.device();
        self.removal.get_or_insert_with(|| start("rdma", &["link", "delete", &device]));
    }

    /// Waits until the device is removed, which no process may keep the kernel from. That the kernel does not come to an end
    /// with it for other reasons is said, with where it stands, and is no failure.
    ///
    /// # Panics
    /// If a process has an RDMA device open, or if removing fails.
    #[track_caller]
    pub fn removed(&mut self) {
        let holders = lab::holders(&self.device());
        assert!(holders.is_empty(), "still open: {holders:#?}");
        self.remove();
        self.wait_for_removal();
        let Some(removal) = &mut self.removal else { return };
        if let Some(status) = removal.try_wait() {
            assert!(status.success(), "{}: {status}\n{}", removal.name(), removal.stderr().text());
        }
    }

    /// Waits until it has ended, or marks this spare as stuck: once, since it then stays so.
    fn wait_for_removal(&mut self) {
        if self.is_stuck {
            return;
        }
        let device = self.device();
        if let Some(removal) = &mut self.removal
            && removal.ends_within(REMOVAL).is_none()
        {
            self.is_stuck = true;
            say_stuck(removal, &device);
        }
    }
}

impl Default for Spare {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.remove();
        self.wait_for_removal();
        if self.is_stuck {
            // Taking the interface away would wait for the device.
            if let Some(removal) = self.removal.take() {
                removal.abandon();
            }
            return;
        }
        let mut deleting = start("ip", &["link", "delete", &self.interface()]);
        if deleting.ends_within(REMOVAL).is_none() {
            say_stuck(&deleting, &self.device());
            deleting.abandon();
        }
    }
}

fn interface(number: u8) -> String {
    format!("spare{number}")
}

/// Its output goes into pipes of this process: anybody else who reads what it might write would wait as long as it does.
fn start(program: &str, words: &[&str]) -> Process {
    let mut command = Command::new(program);
    command.args(words).stdin(std::process::Stdio::null());
    Process::start(&format!("{program} {}", words.join(" ")), command, true)
}

#[track_caller]
fn succeeds(program: &str, words: &[&str]) {
    let mut process = start(program, words);
    let status = process.wait(STEP);
    assert!(status.success(), "{}: {status}\n{}", process.name(), process.stderr().text());
}

/// Says where the kernel stands.
fn say_stuck(process: &Process, device: &str) {
    let stack = std::fs::read_to_string(format!("/proc/{}/stack", process.id()));
    let stack = stack.unwrap_or_else(|error| format!("(unknown: {error})"));
    let holders = lab::holders(device);
    // Not `println!`: libtest shows that of failed tests only.
    let _ = writeln!(
        std::io::stderr().lock(),
        "note: `{}` has not ended within {REMOVAL:?}, what it was to remove is left alone; the device is open \
         in {holders:?}; the kernel stands in\n{stack}",
        process.name()
    );
}
