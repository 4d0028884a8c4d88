//! Two data channels: into cold memory against QEMU's, into warm memory against iperf3, and compressed.

use std::rc::Rc;

use super::Plan;
use crate::{
    contest::{Entry, contest},
    contestant::{Binary, Contestant, Iperf, Mig, Qemu, Transport},
    failure::Result,
    memory::{FilledFile, Texture},
    report::{Figure, Goal, Section},
    role::{Compression, Contents, Multifd},
    statistics::Spread,
};

/// Of all contests here but those that ask for more.
const CHANNELS: u8 = 2;

/// Of what is compressed.
const SEED: u64 = 7;

/// QEMU's default, and so the level that its contestants compress at.
const QEMU_LEVEL: i8 = 1;

/// Ratios that differ by less are the same: packets have heads, and a level's choice is made on a sample.
const SAME_RATIO: f64 = 0.98;

fn mig(name: &'static str, transport: Transport, ram_bytes: u64) -> Mig {
    let multifd = Some(Multifd::plain(CHANNELS));
    Mig { multifd, ..Mig::of_noise(name, transport, ram_bytes) }
}

/// Every QEMU there is, with the same memory.
fn qemus(contents: &Rc<FilledFile>, multifd: Multifd) -> Result<Vec<Box<dyn Contestant>>> {
    let binaries = Binary::all();
    if binaries.is_empty() {
        return Err(
            "no qemu-system-x86_64 runs here; `apt install qemu-system-x86` brings it".into()
        );
    }
    let qemu = |binary| -> Box<dyn Contestant> {
        let (transport, contents) = (Transport::Tcp, Rc::clone(contents));
        Box::new(Qemu { binary, transport, contents, multifd: Some(multifd), tls: None })
    };
    Ok(binaries.into_iter().map(qemu).collect())
}

pub(super) fn cold(plan: &Plan, section: &mut Section) -> Result<()> {
    let contents = Rc::new(FilledFile::new(plan.size(), 11, Texture::Noise)?);
    let mut contestants: Vec<Box<dyn Contestant>> =
        vec![Box::new(mig("mig", Transport::Tcp, plan.size()))];
    contestants.extend(qemus(&contents, Multifd::plain(CHANNELS))?);
    section.entries = contest("multifd-cold", &mut contestants, plan.runs)?;
    let Some((mig, qemus)) = section.entries.split_first() else {
        return Err("nobody took part".into());
    };
    for qemu in qemus {
        section.figures.push(Figure::judged(
            format!("time of {}'s", qemu.name),
            "",
            Spread::of_ratios(mig.seconds(), qemu.seconds()),
            Goal::AtMost(0.6),
        ));
        section.figures.push(Figure::judged(
            format!("CPU seconds of {}'s", qemu.name),
            "",
            Spread::of_ratios(cpu(mig)?, cpu(qemu)?),
            Goal::AtMost(0.7),
        ));
    }
    section.notes.push(placed(mig));
    section.notes.push(format!(
        "{CHANNELS} data channels over tcp, no compression, zero pages looked for by whoever sends, the receiver's memory \
         untouched. {QEMUS}"
    ));
    Ok(())
}

/// What holds for every contest against QEMU.
const QEMUS: &str = "Both guests are stopped or idle, both migrate with a return path, huge pages are forbidden to all \
                     processes, bandwidth is unlimited. QEMU's clock runs from the `migrate` command to its `completed` \
                     event; its CPU time is that of both processes over the same span, in ticks of 10 ms.";

pub(super) fn warm(plan: &Plan, section: &mut Section) -> Result<()> {
    let iperf = Iperf { streams: CHANNELS, ..Iperf::find(plan.size())? };
    let reno = Iperf { congestion: Some("reno"), ..iperf.clone() };
    let warm = |name, transport| Mig { warm: true, ..mig(name, transport, plan.size()) };
    let mut contestants: [Box<dyn Contestant>; 4] = [
        Box::new(warm("mig, tcp", Transport::Tcp)),
        Box::new(iperf),
        Box::new(reno),
        Box::new(warm("mig, unix", Transport::Unix)),
    ];
    section.entries = contest("multifd-warm", &mut contestants, plan.runs)?;
    let [tcp, iperf, reno, unix] = &section.entries[..] else {
        return Err("four contestants took part".into());
    };
    let rate = |ours: &Entry, other: &Entry| Spread::of_ratios(ours.rates(), other.rates());
    section.figures.push(Figure::judged(
        "rate of iperf3's",
        "",
        rate(tcp, iperf),
        Goal::AtLeast(1.0),
    ));
    section.figures.push(Figure::told("rate of iperf3's with reno", "", rate(tcp, reno)));
    section.figures.push(Figure::told(
        "over unix: rate of iperf3's over tcp",
        "",
        rate(unix, iperf),
    ));
    section.notes.push(placed(tcp));
    section.notes.push(format!(
        "{CHANNELS} data channels, as many streams of iperf3 with writes of 1 MiB; memory at both ends was touched before. \
         iperf3 uses the system's congestion control; mig chooses reno from a machine to itself, so iperf3 runs a second \
         time with reno. Up to 3.15 one thread of iperf3 serves all streams of an end. mig's clock runs from connect to \
         the destination's verdict and includes its dirty log and the final sync; iperf3's is its own, of the transfer \
         alone."
    ));
    Ok(())
}

pub(super) fn zstd(plan: &Plan, section: &mut Section) -> Result<()> {
    let with = |name, compression| -> Box<dyn Contestant> {
        let multifd = Some(Multifd { channels: CHANNELS, compression });
        let contents = Contents::Quarter(SEED);
        Box::new(Mig { contents, multifd, ..mig(name, Transport::Tcp, plan.size()) })
    };
    let mut contestants =
        vec![with("mig", Compression::Zstd), with("mig, level 1", Compression::ZstdLevel(1))];
    let contents = Rc::new(FilledFile::new(plan.size(), SEED, Texture::Quarter)?);
    let compression = Compression::ZstdLevel(QEMU_LEVEL);
    contestants.extend(qemus(&contents, Multifd { channels: CHANNELS, compression })?);
    section.entries = contest("multifd-zstd", &mut contestants, plan.runs)?;
    let [chosen, level_1, qemus @ ..] = &section.entries[..] else {
        return Err("two of ours took part".into());
    };
    for entry in &section.entries {
        let what = format!("{}: compressed by", entry.name);
        section.figures.push(Figure::told(what, ": 1", Spread::of(entry.compression())));
    }
    for qemu in qemus {
        section.figures.push(Figure::judged(
            format!("mig: rate of {}'s", qemu.name),
            "",
            Spread::of_ratios(chosen.rates(), qemu.rates()),
            Goal::AtLeast(1.5),
        ));
        section.figures.push(Figure::judged(
            format!("mig: compression of {}'s", qemu.name),
            "",
            Spread::of_ratios(chosen.compression(), qemu.compression()),
            Goal::AtLeast(SAME_RATIO),
        ));
        section.figures.push(Figure::told(
            format!("mig, level 1: rate of {}'s", qemu.name),
            "",
            Spread::of_ratios(level_1.rates(), qemu.rates()),
        ));
    }
    section.notes.push(placed(chosen));
    section.notes.push(format!(
        "{CHANNELS} data channels over tcp, zstd, the receiver's memory untouched. Every page is a quarter noise and three \
         quarters one byte, the same bytes for all; QEMU compresses at level {QEMU_LEVEL}, its default, mig at the level \
         that it chooses by a sample, and a second time at 1. Compression is guest memory by what each source says it \
         transferred (QEMU 7.2 counts pages before they are compressed: there it is what the loopback carried); ratios are the same if they differ by less than {:.0} %. {QEMUS}",
        (1.0 - SAME_RATIO) * 100.0
    ));
    Ok(())
}

fn cpu(entry: &Entry) -> Result<Vec<f64>> {
    Ok(entry.cpu_seconds().ok_or("processor time is missing")?)
}

fn placed(mig: &Entry) -> String {
    format!("mig brought pages into place by {}.", mig.remark.as_deref().unwrap_or("unknown"))
}
