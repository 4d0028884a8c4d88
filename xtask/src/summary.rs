//! Counting: what the runners print, and what the tests say about skips.

use std::fs;
use std::path::Path;

/// What a run of tests came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// `#[ignore]`d: nobody ran them, so they are skips.
    pub(crate) ignored: usize,
}

impl Counts {
    /// Adds what one line of output says, if it is a summary line of libtest or of nextest.
    pub(crate) fn add_line(&mut self, line: &str) {
        let line = without_colours(line);
        // At the margin only: nextest shows a failed test's own libtest output, indented, and counts it itself.
        if let Some(rest) = line.trim_end().strip_prefix("test result: ") {
            // "ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s"
            let rest = rest.split_once(". ").map_or(rest, |(_, numbers)| numbers);
            for part in rest.split(';') {
                self.add_part(part, "ignored");
            }
        } else if line.trim_start().starts_with("Summary [") {
            // "Summary [   3.402s] 12 tests run: 11 passed (1 slow), 1 failed, 1 timed out, 0 skipped"
            let Some((_, parts)) = line.split_once(" run: ") else { return };
            for part in parts.split(',') {
                self.add_part(part, "skipped");
            }
        }
    }

    /// Adds another run's counts.
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    fn add_part(&mut self, part: &str, unrun: &str) {
        let mut words = part.split_whitespace();
        let Some(number) = words.next().and_then(|number| number.parse::<usize>().ok()) else {
            return;
        };
        match words.next() {
            Some("passed") => self.passed += number,
            Some("failed" | "timed" | "exec") => self.failed += number,
            Some(word) if word == unrun => self.ignored += number,
            _ => {}
        }
    }
}

/// The line without terminal colour sequences.
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(start) = rest.find("\u{1b}[") {
        plain.push_str(&rest[..start]);
        let sequence = &rest[start + 2..];
        rest = sequence.find('m').map_or("", |end| &sequence[end + 1..]);
    }
    plain + rest
}

/// What tests said of themselves: lines `KIND<TAB>TEST<TAB>REASON` (tests/src/report.rs).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Notes {
    /// (test, reason)
    pub(crate) skipped: Vec<(String, String)>,
    /// (test, id: reason)
    pub(crate) not_applicable: Vec<(String, String)>,
}

impl Notes {
    /// Reads the file; none means that nobody had anything to say. `listed` is tests/not-applicable.toml: a cause
    /// that is not in it makes a skip.
    pub(crate) fn read(file: &Path, listed: &Path) -> Self {
        let listed = fs::read_to_string(listed).unwrap_or_default();
        Self::parse(&fs::read_to_string(file).unwrap_or_default(), &listed)
    }

    fn parse(text: &str, listed: &str) -> Self {
        let is_listed = |reason: &str| {
            let id = reason.split(':').next().unwrap_or_default();
            listed.lines().any(|line| line.trim() == format!("[{id}]"))
        };
        let mut notes = Self::default();
        for line in text.lines() {
            let mut fields = line.splitn(3, '\t').map(str::to_owned);
            let (Some(kind), Some(test), Some(reason)) =
                (fields.next(), fields.next(), fields.next())
            else {
                // A line nobody can read is better shown than lost.
                notes.skipped.push((line.to_owned(), "unreadable note".to_owned()));
                continue;
            };
            match kind.as_str() {
                "not-applicable" if is_listed(&reason) => notes.not_applicable.push((test, reason)),
                _ => notes.skipped.push((test, reason)),
            }
        }
        notes.sort();
        notes
    }

    /// Adds what others said.
    pub(crate) fn add(&mut self, other: Self) {
        self.skipped.extend(other.skipped);
        self.not_applicable.extend(other.not_applicable);
        self.sort();
    }

    fn sort(&mut self) {
        for list in [&mut self.skipped, &mut self.not_applicable] {
            list.sort();
            list.dedup();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_runners_summaries_are_counted() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 71 filtered out",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.0s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
            "     Summary [   3.402s] 12 tests run: 9 passed (1 slow, 2 flaky), 2 failed, 1 timed out, 4 skipped",
            "\u{1b}[32;1m     Summary\u{1b}[0m [   0.1s] \u{1b}[1m5\u{1b}[0m tests run: \u{1b}[1m5\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, 0 skipped",
        ] {
            counts.add_line(line);
        }
        assert_eq!(counts, Counts { passed: 18, failed: 5, ignored: 5 });
    }

    #[test]
    fn notes_are_sorted_and_told_apart() {
        let text = "skip\tb\tno x\nnot-applicable\tc\tvsock: y\nskip\ta\tno x\nskip\ta\tno x\n\
                    not-applicable\tz\tlazy: y\n";
        let notes = Notes::parse(text, "# [lazy]\n[vsock]\nwhy = \"[lazy]\"\n");
        let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        assert_eq!(notes.skipped, [pair("a", "no x"), pair("b", "no x"), pair("z", "lazy: y")]);
        assert_eq!(notes.not_applicable, [pair("c", "vsock: y")]);
    }
}
