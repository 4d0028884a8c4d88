//! Over `rdma:`, on soft-RoCE in the lab (docs/testing.md) or on a real device.

use std::rc::Rc;

use super::Plan;
use crate::{
    contest::{Entry, contest},
    contestant::{Binary, Contestant, IbWriteBw, Mig, Qemu, QemuState, RdmaStream, Transport},
    failure::Result,
    memory::{FilledFile, Texture},
    rdma::Device,
    report::{Figure, Goal, Section},
    role::{Contents, Speaker},
    statistics::Spread,
};

/// Zero pages go that much faster, so there are more of them: a contest of milliseconds measures the connecting.
const ZERO_FACTOR: u64 = 4;

/// Of ours; a message at a time gets a part of it.
const STREAM_BYTES: usize = 64 << 20;

fn mig(
    name: &'static str,
    pin_all: bool,
    warm: bool,
    contents: Contents,
    ram_bytes: u64,
) -> Box<dyn Contestant> {
    let transport = Transport::Rdma { pin_all };
    Box::new(Mig { warm, contents, ..Mig::of_noise(name, transport, ram_bytes) })
}

pub(super) fn throughput(plan: &Plan, section: &mut Section) -> Result<()> {
    let bare = IbWriteBw::find(plan.rdma_size())?;
    let noise = |name, pin_all, warm| mig(name, pin_all, warm, Contents::NOISE, plan.rdma_size());
    let mut contestants: Vec<Box<dyn Contestant>> = vec![
        Box::new(bare),
        noise("mig, chunks, warm", false, true),
        noise("mig, pin-all, warm", true, true),
        noise("mig, chunks, cold", false, false),
        noise("mig, pin-all, cold", true, false),
    ];
    let contents = Rc::new(FilledFile::new(plan.rdma_size(), 11, Texture::Noise)?);
    let mut qemus = Vec::new();
    for binary in Binary::all() {
        for pin_all in [false, true] {
            let (binary, contents) = (binary.clone(), Rc::clone(&contents));
            let transport = Transport::Rdma { pin_all };
            let qemu = Qemu { binary, transport, contents, multifd: None, tls: None };
            qemus.push((pin_all, qemu.name()));
            contestants.push(Box::new(qemu));
        }
    }
    section.entries = contest("rdma-throughput", &mut contestants, plan.runs)?;
    let [bare, warm, warm_pinned, cold, cold_pinned, theirs @ ..] = &section.entries[..] else {
        return Err("five of ours took part".into());
    };
    let rate = |ours: &Entry, other: &Entry| Spread::of_ratios(ours.rates(), other.rates());
    for ours in [warm, warm_pinned] {
        let what = format!("{}: rate of ib_write_bw's", ours.name);
        section.figures.push(Figure::judged(what, "", rate(ours, bare), Goal::AtLeast(0.9)));
    }
    for ours in [cold, cold_pinned] {
        let what = format!("{}: rate of ib_write_bw's", ours.name);
        section.figures.push(Figure::told(what, "", rate(ours, bare)));
    }
    for ((pinned, name), theirs) in qemus.iter().zip(theirs) {
        let ours = if *pinned { cold_pinned } else { cold };
        let what = format!("{}: rate of {name}'s", ours.name);
        section.figures.push(Figure::judged(what, "", rate(ours, theirs), Goal::AtLeast(2.5)));
    }
    if qemus.is_empty() {
        section
            .notes
            .push("No qemu-system-x86_64 runs here: mig was not measured against it.".into());
    }
    section.notes.push(
        "ib_write_bw -R -d DEVICE -s 1048576, as many bytes, from one hot buffer into one that is registered already. \
         Its clock is its own: connecting, registering and reading memory count for mig only."
            .into(),
    );
    section.notes.push(
        "Nobody has a return path. QEMU's guests never run, their memory is all noise, bandwidth is unlimited; its clock \
         runs from `migrate` to `completed`, its destination is cold, and so is the mig it is compared with."
            .into(),
    );
    Ok(())
}

pub(super) fn zero(plan: &Plan, section: &mut Section) -> Result<()> {
    Device::find()?;
    let more = plan.rdma_size() * ZERO_FACTOR;
    let mut contestants = vec![
        mig("noise", false, false, Contents::NOISE, plan.rdma_size()),
        mig("zeros that were written", false, false, Contents::Zeros, more),
        mig("never touched", false, false, Contents::Nothing, more),
    ];
    section.entries = contest("rdma-zero", &mut contestants, plan.runs)?;
    let [noise, zeros, untouched] = &section.entries[..] else {
        return Err("three took part".into());
    };
    for entry in [zeros, untouched] {
        section.figures.push(Figure::judged(
            format!("{}: rate of noise", entry.name),
            "",
            Spread::of_ratios(entry.rates(), noise.rates()),
            Goal::AtLeast(10.0),
        ));
    }
    section.notes.push(format!(
        "Guest bytes per second, chunks, the destination cold. The zero guests are {ZERO_FACTOR} times as large."
    ));
    Ok(())
}

pub(super) fn stream(plan: &Plan, section: &mut Section) -> Result<()> {
    Device::find()?;
    let pair = |sender, reader, bytes| -> Box<dyn Contestant> {
        Box::new(RdmaStream { sender, reader, bytes })
    };
    let (ours, theirs) = (Speaker::Mig, Speaker::Qemu);
    let mut contestants = vec![
        pair(ours, ours, STREAM_BYTES),
        pair(ours, theirs, STREAM_BYTES),
        pair(theirs, ours, STREAM_BYTES / 4),
        pair(theirs, theirs, STREAM_BYTES / 4),
    ];
    for binary in Binary::all() {
        for transport in [Transport::Rdma { pin_all: false }, Transport::Unix] {
            contestants.push(Box::new(QemuState::new(binary.clone(), transport)?));
        }
    }
    section.entries = contest("rdma-stream", &mut contestants, plan.runs)?;
    let [both, to_them, from_them, neither, qemus @ ..] = &section.entries[..] else {
        return Err("four took part".into());
    };
    let rate = |above: &Entry| Spread::of_ratios(above.rates(), neither.rates());
    section.figures.push(Figure::told("mig to mig: rate of QEMU's way", "", rate(both)));
    // Every second one is over rdma.
    for qemu in qemus.iter().step_by(2) {
        let spread = Spread::of_ratios(both.rates(), qemu.rates());
        let what = format!("mig to mig: rate of {}", qemu.name);
        section.figures.push(Figure::judged(what, "", spread, Goal::AtLeast(8.0)));
    }
    section.figures.push(Figure::told("mig to a QEMU: rate of QEMU's way", "", rate(to_them)));
    section.figures.push(Figure::told("a QEMU to mig: rate of QEMU's way", "", rate(from_them)));
    section.notes.push(
        "Device state without memory, by the reader's clock. As QEMU: messages of 32 KiB, one at a time, READY only when \
         everything was read (docs/wire/rdma.md §4, §5), spoken by a few lines over the same verbs, which do nothing else: \
         a QEMU is not faster."
            .into(),
    );
    section.notes.push(
        "A real QEMU's: 40 stopped e1000 cards, what they add to the stream, over the downtime it tells, in which its \
         devices are walked as well: over a unix socket little else is in it. Bytes that ours sent were not walked."
            .into(),
    );
    Ok(())
}
