//! What TLS costs: one stream and two data channels, against plain, against QEMU with the same certificates, and against
//! what one core decrypts.

use std::rc::Rc;

use super::Plan;
use crate::{
    certificates::Certificates,
    contest::{Entry, contest},
    contestant::{Binary, Contestant, Decrypt, Mig, Qemu, Transport},
    failure::Result,
    memory::{FilledFile, Texture},
    report::{Figure, Goal, Section},
    role::Multifd,
    statistics::Spread,
};

/// Of the contestants that have data channels.
const CHANNELS: u8 = 2;
/// Of plain.
const OF_PLAIN: f64 = 0.8;
/// Of what one core decrypts: the same core reads and places, too.
const OF_DECRYPTING: f64 = 0.9;
/// Of QEMU's.
const OF_QEMU: f64 = 2.0;

pub(super) fn run(plan: &Plan, section: &mut Section) -> Result<()> {
    let certificates = Rc::new(Certificates::new()?);
    let mig = |name, multifd: Option<u8>, tls: bool| -> Box<dyn Contestant> {
        Box::new(Mig {
            warm: true,
            multifd: multifd.map(Multifd::plain),
            tls: tls.then(|| Rc::clone(&certificates)),
            ..Mig::of_noise(name, Transport::Tcp, plan.size())
        })
    };
    let mut contestants: Vec<Box<dyn Contestant>> = vec![
        mig("mig, TLS", None, true),
        mig("mig, plain", None, false),
        mig("mig, TLS, 2 channels", Some(CHANNELS), true),
        mig("mig, plain, 2 channels", Some(CHANNELS), false),
        Box::new(Decrypt { bytes: plan.size() }),
    ];
    let contents = Rc::new(FilledFile::new(plan.size(), 11, Texture::Noise)?);
    for binary in Binary::all() {
        contestants.push(Box::new(Qemu {
            binary,
            transport: Transport::Tcp,
            contents: Rc::clone(&contents),
            multifd: None,
            tls: Some(Rc::clone(&certificates)),
        }));
    }
    section.entries = contest("tls", &mut contestants, plan.runs)?;
    let [tls, plain, channels, plain_channels, decrypting, qemus @ ..] = &section.entries[..]
    else {
        return Err("five of ours took part".into());
    };
    let of = |ours: &Entry, other: &Entry| Spread::of_ratios(ours.rates(), other.rates());
    let of_plain = of(tls, plain);
    let of_decrypting = of(tls, decrypting);
    // What is less binds: no receiver is faster than its cipher.
    let cipher_binds = of(decrypting, plain).median < OF_PLAIN;
    section.figures.push(match cipher_binds {
        false => Figure::judged("rate of plain", "", of_plain, Goal::AtLeast(OF_PLAIN)),
        true => Figure::told("rate of plain", "", of_plain),
    });
    let most = most_of_plain(plain, decrypting);
    if let Some(most) = most {
        section.figures.push(Figure::told("rate of plain, with nothing but the cipher", "", most));
    }
    section.figures.push(match cipher_binds {
        true => {
            let goal = Goal::AtLeast(OF_DECRYPTING);
            Figure::judged("rate of decrypting alone", "", of_decrypting, goal)
        }
        false => Figure::told("rate of decrypting alone", "", of_decrypting),
    });
    let plain_of_decrypting = of(plain, decrypting).median;
    section.notes.push(binding(of_plain.median, plain_of_decrypting, most.map(|most| most.median)));
    for qemu in qemus {
        let what = format!("rate of that of {}", qemu.name);
        section.figures.push(Figure::judged(what, "", of(tls, qemu), Goal::AtLeast(OF_QEMU)));
    }
    section.figures.push(Figure::told("2 channels: rate of one stream's", "", of(channels, tls)));
    section.figures.push(Figure::told(
        "2 channels: rate of plain",
        "",
        of(channels, plain_channels),
    ));
    if qemus.is_empty() {
        section
            .notes
            .push("No qemu-system-x86_64 runs here, so nothing was compared with it.".into());
    }
    section.notes.push(
        "One stream over tcp into memory that was touched before, TLS 1.3 with AES-256-GCM at everybody, the same \
         certificates for all. mig's clock runs from connect, handshake included, to the destination's verdict, QEMU's from \
         the `migrate` command to its `completed` event, with a return path and no limit of bandwidth."
            .into(),
    );
    section.notes.push(
        "Decrypting alone is aws-lc-rs, mig's cipher, over records of 16 KiB in 16 MiB of memory, on one core: no socket, no \
         page to place."
            .into(),
    );
    Ok(())
}

/// What of plain's rate is left if both ends do what they did for plain and encrypt and decrypt, and nothing more, on all
/// processors at once: plain occupies some of them already.
fn most_of_plain(plain: &Entry, decrypting: &Entry) -> Option<Spread> {
    let processors = std::thread::available_parallelism().ok()?.get() as f64;
    let busy = plain.cpu_seconds()?.into_iter().zip(decrypting.cpu_seconds()?);
    // Encrypting takes as long as decrypting.
    let least = busy.map(|(plain, cipher)| (plain + 2.0 * cipher) / processors);
    let seconds = plain.seconds().zip(least).map(|(plain, least)| (plain, least.max(plain)));
    let (plain, least): (Vec<f64>, Vec<f64>) = seconds.unzip();
    Some(Spread::of_ratios(plain, least))
}

/// Says what holds TLS back.
fn binding(of_plain: f64, plain_of_decrypting: f64, most: Option<f64>) -> String {
    let plain = format!(
        "Plain moves {plain_of_decrypting:.2} of what one core decrypts; TLS has {of_plain:.2} of plain."
    );
    match most {
        Some(most) if most < OF_PLAIN => format!(
            "{plain} What binds are the processors, which plain fills already: with nothing but the cipher on top they would \
             allow {most:.2}."
        ),
        Some(most) => format!(
            "{plain} The processors would allow {most:.2} with nothing but the cipher on top."
        ),
        None => plain,
    }
}
