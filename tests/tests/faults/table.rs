//! Counts of cases and what became of them, for docs/faults.md.

use std::collections::{BTreeMap, BTreeSet};

use mig_tests::report;

use crate::{
    cases::{Kind, Trouble, only},
    judge::Word,
    mode::Mode,
    way::Way,
};

/// One transport in one mode.
#[derive(Debug)]
pub(crate) struct Tally {
    way: Way,
    mode: Mode,
    words: BTreeMap<(Kind, Word), usize>,
    wrong: Vec<String>,
}

impl Tally {
    pub(crate) fn new(way: Way, mode: Mode) -> Self {
        Self { way, mode, words: BTreeMap::new(), wrong: Vec::new() }
    }

    /// As the table has it.
    pub(crate) fn name(&self) -> String {
        format!("{}, {}", self.way.name(), self.mode.name())
    }

    pub(crate) fn add(&mut self, trouble: &Trouble, word: Result<Word, String>) {
        if std::env::var_os("MIG_FAULTS_SHOW").is_some() {
            eprintln!("{}: {trouble}: {word:?}", self.name());
        }
        self.add_word(trouble.kind(), word.map_err(|why| format!("{trouble}: {why}")));
    }

    /// A fault that is in no list of cases.
    pub(crate) fn add_word(&mut self, kind: Kind, word: Result<Word, String>) {
        match word {
            Ok(word) => *self.words.entry((kind, word)).or_default() += 1,
            Err(why) => self.wrong.push(why),
        }
    }

    /// Every one of these kinds was tried, or of a sample some, and no other.
    pub(crate) fn demand(&mut self, kinds: &BTreeSet<Kind>, sample: bool) {
        let tried: BTreeSet<Kind> = self.words.keys().map(|(kind, _)| *kind).collect();
        let all = sample || !only().is_empty() || !self.wrong.is_empty() || tried == *kinds;
        if !(all && tried.is_subset(kinds)) {
            self.wrong.push(format!("{tried:?} was tried, and is to be {kinds:?}"));
        }
    }

    /// Writes the rows down.
    ///
    /// # Panics
    /// If a case went wrong, with all that did.
    pub(crate) fn conclude(all: impl IntoIterator<Item = Self>) {
        let mut all_wrong = String::new();
        for tally in all {
            let (name, Self { way, mode, words, wrong }) = (tally.name(), tally);
            let tried: usize = words.values().sum();
            eprintln!("{name}: {tried} cases as they should be, {} not", wrong.len());
            for ((kind, word), count) in words {
                let (kind, word) = (kind.name(), word.name());
                eprintln!("  {kind}: {word}: {count}");
                if wrong.is_empty() {
                    report::fault(way.name(), mode.name(), kind, word, count);
                }
            }
            if !wrong.is_empty() {
                let told = wrong.join("\n");
                all_wrong.push_str(&format!("{name}: {} went wrong:\n{told}\n", wrong.len()));
            }
        }
        assert!(all_wrong.is_empty(), "{all_wrong}");
    }
}
