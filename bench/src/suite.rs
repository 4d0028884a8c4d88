//! Runs what was asked for, and puts the findings where they were wanted.

use std::{fs, path::Path};

use crate::{
    benchmark::{self, Plan},
    failure::{Result, chain},
    flags::Flags,
    machine::{self, Machine},
    markdown,
    report::{Report, Section},
};

/// Everything.
pub(crate) fn run(flags: &Flags) -> Result<()> {
    let machine = Machine::here();
    let command = command(flags);
    let plan = Plan {
        runs: flags.runs,
        size: flags.size.as_u64().next_multiple_of(1 << 20).max(64 << 20),
    };
    println!("{}\n{command}\n", machine.describe());
    let load = machine::load().filter(|load| *load > 0.5);
    if let Some(load) = load {
        eprintln!(
            "something else runs on this machine (load {load:.1}): trust ratios, and those only a little"
        );
    }
    let wanted =
        |name: &str| flags.names.is_empty() || flags.names.iter().any(|wanted| wanted == name);
    let mut benchmarks = Vec::new();
    for benchmark in benchmark::ALL.iter().filter(|benchmark| wanted(benchmark.name)) {
        let mut section =
            Section { name: benchmark.name, title: benchmark.title, ..Section::default() };
        if let Err(error) = (benchmark.run)(&plan, &mut section) {
            section.problem = Some(chain(&*error));
        }
        if let Some(load) = load {
            section.notes.push(format!(
                "Something else ran on the machine when this was measured (load {load:.1} at the beginning)."
            ));
        }
        println!("## {}: {}\n\n{}", section.name, section.title, section.render());
        benchmarks.push(section);
    }
    if let Some(path) = &flags.markdown {
        write_markdown(path, &machine, &command, &benchmarks)?;
    }
    if let Some(path) = &flags.json {
        let report = Report { machine, command, runs: plan.runs, benchmarks };
        let mut text = serde_json::to_string_pretty(&report)?;
        text.push('\n');
        fs::write(path, text)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}

/// How to do it again.
fn command(flags: &Flags) -> String {
    let mut command = String::from("cargo run --release -p mig-bench --");
    for name in &flags.names {
        command = format!("{command} {name}");
    }
    let bytes = flags.size.as_u64();
    let size = match bytes.trailing_zeros() {
        30.. => format!("{}GiB", bytes >> 30),
        20.. => format!("{}MiB", bytes >> 20),
        _ => bytes.to_string(),
    };
    format!("{command} --runs {} --size {size}", flags.runs)
}

fn write_markdown(
    path: &Path,
    machine: &Machine,
    command: &str,
    benchmarks: &[Section],
) -> Result<()> {
    let mut blocks = Vec::new();
    let stamp = format!("`{command}`\n\n{}.\n", machine.describe());
    for section in benchmarks {
        // What could not be measured here leaves what was measured elsewhere alone.
        if section.problem.is_none() {
            blocks.push((section.name, format!("{stamp}\n{}", section.render())));
        }
    }
    markdown::update(path, &blocks)
}
