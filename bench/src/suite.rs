//! Runs what was asked for, and puts the findings where they were wanted.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    benchmark::{self, Benchmark, Plan},
    failure::{Result, chain},
    flags::Flags,
    lab,
    machine::{self, Machine},
    markdown,
    report::{Report, Section},
};

/// What was found, ready to be written.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Findings {
    /// Name and text of each table; what could not be measured here leaves what was measured elsewhere alone.
    blocks: Vec<(String, String)>,
    /// For `--json`.
    report: serde_json::Value,
}

/// Everything.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    if flags.in_lab {
        let findings = measure(flags)?;
        println!("{}", serde_json::to_string(&findings)?);
        return Ok(());
    }
    let findings = if flags.lab { lab::measure(flags)? } else { measure(flags)? };
    if let Some(path) = &flags.markdown {
        markdown::update(path, &findings.blocks)?;
    }
    if let Some(path) = &flags.json {
        write_json(path, &findings.report)?;
    }
    Ok(())
}

/// What to run: what is named, else everything, else everything for which one would go into the lab.
pub(crate) fn wanted(flags: &Flags) -> impl Iterator<Item = &'static Benchmark> {
    let lab = flags.lab || flags.in_lab;
    benchmark::ALL.iter().filter(move |benchmark| match &flags.names[..] {
        [] => benchmark.lab || !lab,
        names => names.iter().any(|wanted| wanted == benchmark.name),
    })
}

fn measure(flags: &Flags) -> Result<Findings> {
    let machine = Machine::here();
    let command = command(flags);
    let size = flags.size.map(|size| size.as_u64().next_multiple_of(1 << 20).max(64 << 20));
    let plan = Plan { runs: flags.runs, size };
    // In the lab stdout is for the findings.
    let show = |text: &str| if flags.in_lab { eprintln!("{text}") } else { println!("{text}") };
    show(&format!("{}\n{command}\n", machine.describe()));
    // The lab's own load says nothing of the machine below; whoever started it has looked.
    let load = machine::load().filter(|load| !flags.in_lab && *load > machine::IDLE);
    if let Some(load) = load {
        machine::warn_of(load);
    }
    let stamp = format!("`{command}`\n\n{}.\n", machine.describe());
    let (mut benchmarks, mut blocks) = (Vec::new(), Vec::new());
    for benchmark in wanted(flags) {
        let mut section =
            Section { name: benchmark.name, title: benchmark.title, ..Section::default() };
        if let Err(error) = (benchmark.run)(&plan, &mut section) {
            section.problem = Some(chain(&*error));
        }
        if let Some(load) = load {
            section.notes.push(machine::note_of(load));
        }
        show(&format!("## {}: {}\n\n{}", section.name, section.title, section.render()));
        if section.problem.is_none() {
            blocks.push((section.name.to_owned(), format!("{stamp}\n{}", section.render())));
        }
        benchmarks.push(section);
    }
    let report = Report { machine, command, runs: plan.runs, benchmarks };
    Ok(Findings { blocks, report: serde_json::to_value(report)? })
}

impl Findings {
    /// Adds a line below each table.
    pub(crate) fn note(&mut self, note: &str) {
        for (_, block) in &mut self.blocks {
            block.push_str(&format!("- {note}\n"));
        }
    }
}

/// How to do it again.
fn command(flags: &Flags) -> String {
    let mut command = String::from("cargo run --release -p mig-bench --");
    if flags.in_lab {
        command.push_str(" --lab");
    }
    for name in &flags.names {
        command = format!("{command} {name}");
    }
    command = format!("{command} --runs {}", flags.runs);
    let Some(bytes) = flags.size.map(|size| size.as_u64()) else { return command };
    let size = match bytes.trailing_zeros() {
        30.. => format!("{}GiB", bytes >> 30),
        20.. => format!("{}MiB", bytes >> 20),
        _ => bytes.to_string(),
    };
    format!("{command} --size {size}")
}

fn write_json(path: &Path, report: &serde_json::Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    Ok(fs::write(path, text)
        .map_err(|error| format!("cannot write {}: {error}", path.display()))?)
}
