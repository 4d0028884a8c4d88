//! What a benchmark found: contestants, figures, goals, verdicts.

use serde::Serialize;

use crate::{contest::Entry, markdown::Table, statistics::Spread};

const GIB: f64 = (1u64 << 30) as f64;

/// Everything, for `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: crate::machine::Machine,
    pub(crate) command: String,
    pub(crate) runs: u32,
    pub(crate) benchmarks: Vec<Section>,
}

/// One benchmark's findings.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// Who took turns.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) entries: Vec<Entry>,
    pub(crate) figures: Vec<Figure>,
    /// What a reader must know to believe it.
    pub(crate) notes: Vec<String>,
    /// Why it could not be measured here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
}

/// A number with, perhaps, a goal.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) spread: Spread,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) goal: Option<Goal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) verdict: Option<Verdict>,
}

/// What the number should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// Every single one, not the median.
    NeverAbove(f64),
}

/// How the figure stands to the goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    Met,
    Missed,
}

impl Goal {
    fn verdict(self, spread: Spread) -> Verdict {
        let met = match self {
            Self::AtLeast(goal) => spread.median >= goal,
            Self::AtMost(goal) => spread.median <= goal,
            Self::NeverAbove(goal) => spread.max <= goal,
        };
        if met { Verdict::Met } else { Verdict::Missed }
    }
}

impl Figure {
    /// A number to know.
    pub(crate) fn told(what: impl Into<String>, unit: &'static str, spread: Spread) -> Self {
        Self { what: what.into(), unit, spread, goal: None, verdict: None }
    }

    /// A number to be judged.
    pub(crate) fn judged(
        what: impl Into<String>,
        unit: &'static str,
        spread: Spread,
        goal: Goal,
    ) -> Self {
        let verdict = Some(goal.verdict(spread));
        Self { goal: Some(goal), verdict, ..Self::told(what, unit, spread) }
    }
}

impl Section {
    /// As Markdown, which is readable as text.
    pub(crate) fn render(&self) -> String {
        let mut parts = Vec::new();
        if let Some(problem) = &self.problem {
            parts.push(format!("Not measured: {problem}\n"));
        }
        if !self.entries.is_empty() {
            let mut table = Table::new(["contestant", "seconds", "CPU seconds", "GiB/s"]);
            for entry in &self.entries {
                let seconds = Spread::of(entry.samples.iter().map(|sample| sample.seconds));
                let cpu = entry
                    .cpu_seconds()
                    .map_or_else(|| "-".into(), |cpu| with_extremes(Spread::of(cpu)));
                let rate = Spread::of(
                    entry.samples.iter().map(|sample| sample.bytes as f64 / GIB / sample.seconds),
                );
                table.row([entry.name.clone(), with_extremes(seconds), cpu, number(rate.median)]);
            }
            parts.push(table.render());
        }
        if !self.figures.is_empty() {
            let mut table = Table::new(["figure", "median", "min-max", "goal", "verdict"]);
            for figure in &self.figures {
                let (goal, verdict) = match (figure.goal, figure.verdict) {
                    (Some(Goal::AtLeast(goal)), verdict) => {
                        (format!("≥ {}", number(goal)), verdict)
                    }
                    (Some(Goal::AtMost(goal)), verdict) => (format!("≤ {}", number(goal)), verdict),
                    (Some(Goal::NeverAbove(goal)), verdict) => {
                        (format!("all ≤ {}", number(goal)), verdict)
                    }
                    (None, _) => ("-".into(), None),
                };
                let verdict = match verdict {
                    Some(Verdict::Met) => "met",
                    Some(Verdict::Missed) => "missed",
                    None => "-",
                };
                let Spread { median, min, max } = figure.spread;
                table.row([
                    figure.what.clone(),
                    format!("{} {}", number(median), figure.unit).trim_end().to_owned(),
                    format!("{}-{}", number(min), number(max)),
                    goal,
                    verdict.into(),
                ]);
            }
            parts.push(table.render());
        }
        if !self.notes.is_empty() {
            parts.push(self.notes.iter().map(|note| format!("- {note}\n")).collect());
        }
        parts.join("\n")
    }
}

fn with_extremes(spread: Spread) -> String {
    format!("{} ({}-{})", number(spread.median), number(spread.min), number(spread.max))
}

/// Three digits that matter.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_judged_by_the_median() {
        let spread = Spread { median: 0.5, min: 0.1, max: 9.0 };
        let met = Figure::judged("a", "", spread, Goal::AtMost(0.5));
        assert_eq!(met.verdict, Some(Verdict::Met));
        let missed = Figure::judged("a", "", spread, Goal::AtLeast(0.51));
        assert_eq!(missed.verdict, Some(Verdict::Missed));
        // What could not be computed does not pass.
        let nothing = Figure::judged("a", "", Spread::of([]), Goal::AtMost(0.5));
        assert_eq!(nothing.verdict, Some(Verdict::Missed));
    }

    #[test]
    fn a_problem_and_the_verdicts_are_in_the_text() {
        let spread = Spread::of([0.4, 0.41, 0.42]);
        let section = Section {
            problem: Some("no iperf3".into()),
            figures: vec![Figure::judged("time of QEMU's", "", spread, Goal::AtMost(0.45))],
            ..Section::default()
        };
        let text = section.render();
        assert!(text.contains("Not measured: no iperf3"), "{text}");
        assert!(
            text.contains("| time of QEMU's | 0.41   | 0.40-0.42 | ≤ 0.45 | met     |"),
            "{text}"
        );
    }
}
