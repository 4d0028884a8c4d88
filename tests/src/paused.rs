//! Guests that never run: their memory is what the test says it is, before and after.
//!
//! ```text
//!   Paused ── fill: pattern ─ file ─ -device loader ──▶ source, -S     memory() ── pmemsave
//!          └─ the same machine, empty ────────────────▶ destination, -S, -incoming defer
//! ```
//! QEMU's generic loader writes a file into guest memory at reset, and a guest started with `-S` has been reset and
//! has run nothing, so the source holds exactly that. All memory is one `memory-backend-ram` by the name of the RAM
//! block, `pc.ram`: over `rdma:` QEMU finds a block by its name, and both ends must have the same.

use std::fs;

use serde_json::json;

use crate::guest::{self, Image};
use crate::qemu::{Binary, Qemu, text};
use crate::scratch::Scratch;

/// Where [`Paused::source`] puts its contents: above everything that firmware and machine use.
pub const FILLED_FROM: usize = 1 << 20;

/// A pair of guests that stay stopped.
#[derive(Debug)]
pub struct Paused<'a> {
    /// `-M`; both ends of a migration between two releases need the same versioned one, "pc-i440fx-7.2" say.
    pub machine: &'a str,
    /// Guest RAM in MiB: 64 to 256, since the lab is slow.
    pub ram_mib: usize,
    /// Where sockets and files go.
    pub scratch: &'a Scratch,
}

impl Paused<'_> {
    /// How many bytes [`Paused::source`] can be given at most.
    #[must_use]
    pub fn room(&self) -> usize {
        (self.ram_mib << 20) - FILLED_FROM
    }

    /// A stopped guest whose memory from [`FILLED_FROM`] on begins with `contents`; the rest is zero, but for what
    /// firmware lies below.
    ///
    /// # Panics
    /// If `contents` are longer than [`Paused::room`].
    #[must_use]
    pub fn source(&self, binary: &Binary, name: &str, contents: &[u8]) -> Qemu {
        self.source_with(binary, name, contents, &[])
    }

    /// [`Paused::source`] with more arguments: devices, say, which the destination must have too.
    ///
    /// # Panics
    /// If `contents` are longer than [`Paused::room`].
    #[must_use]
    pub fn source_with(&self, binary: &Binary, name: &str, contents: &[u8], more: &[&str]) -> Qemu {
        assert!(contents.len() <= self.room(), "{} bytes do not fit", contents.len());
        if contents.is_empty() {
            return self.start(binary, name, more);
        }
        let file = self.scratch.path(&format!("{name}.contents"));
        fs::write(&file, contents)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
        let loader = format!("loader,file={},addr={FILLED_FROM:#x},force-raw=on", text(&file));
        let qemu = self.start(binary, name, &[&["-device", &loader], more].concat());
        // It has been read, and the lab's files are in memory.
        let _ = fs::remove_file(&file);
        qemu
    }

    /// The same machine, waiting for [`Qemu::incoming`]; stopped after loading.
    #[must_use]
    pub fn destination(&self, binary: &Binary, name: &str) -> Qemu {
        self.destination_with(binary, name, &[])
    }

    /// [`Paused::destination`] with more arguments.
    #[must_use]
    pub fn destination_with(&self, binary: &Binary, name: &str, more: &[&str]) -> Qemu {
        self.start(binary, name, &[&["-incoming", "defer"], more].concat())
    }

    /// All memory of a stopped guest, from address 0 on.
    #[must_use]
    pub fn memory(&self, qemu: &mut Qemu) -> Vec<u8> {
        let name = qemu.process.name().to_owned();
        guest::memory(&mut qemu.qmp, self.ram_mib << 20, self.scratch, &name)
    }

    /// Writes all memory of a stopped guest into the file `name` of the scratch directory, for comparing without holding it.
    pub fn dump(&self, qemu: &mut Qemu, name: &str) {
        let file = self.scratch.path(name);
        let arguments = json!({ "val": 0, "size": self.ram_mib << 20, "filename": file });
        let _ = qemu.qmp.run("pmemsave", arguments);
    }

    fn start(&self, binary: &Binary, name: &str, more: &[&str]) -> Qemu {
        let image = Image::Idle.unpack(self.scratch);
        let machine = format!("{},memory-backend=pc.ram", self.machine);
        let backend = format!("memory-backend-ram,id=pc.ram,size={}M", self.ram_mib);
        let memory = self.ram_mib.to_string();
        let mut arguments = vec!["-M", &machine, "-object", &backend, "-m", &memory];
        arguments.extend(["-bios", text(&image), "-S"]);
        arguments.extend(more);
        binary.start(name, self.scratch, &arguments)
    }
}

/// `bytes` bytes that no page shares with another and nothing compresses; the same for the same `seed`.
#[must_use]
pub fn incompressible(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut contents = Vec::with_capacity(bytes.next_multiple_of(8));
    while contents.len() < bytes {
        // xorshift64: never zero once it is not.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        contents.extend_from_slice(&state.to_le_bytes());
    }
    contents.truncate(bytes);
    contents
}

/// [`incompressible`] pages with zero pages among them: of every `period` pages the last `zeros` are zero.
#[must_use]
pub fn with_zero_pages(bytes: usize, seed: u64, period: usize, zeros: usize) -> Vec<u8> {
    let mut contents = incompressible(bytes, seed);
    for (number, page) in contents.chunks_mut(4096).enumerate() {
        if number % period >= period - zeros {
            page.fill(0);
        }
    }
    contents
}
