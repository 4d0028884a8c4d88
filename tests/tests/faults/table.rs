//! Counts of cases and what became of them, for docs/faults.md.

use std::collections::BTreeMap;

use mig_tests::report;

use crate::{cases::Trouble, judge::Word};

/// One transport in one mode.
#[derive(Debug)]
pub(crate) struct Tally {
    transport: &'static str,
    mode: &'static str,
    words: BTreeMap<(&'static str, &'static str), usize>,
    wrong: Vec<String>,
}

impl Tally {
    pub(crate) fn new(transport: &'static str, mode: &'static str) -> Self {
        Self { transport, mode, words: BTreeMap::new(), wrong: Vec::new() }
    }

    pub(crate) fn add(&mut self, trouble: &Trouble, word: Result<Word, String>) {
        if std::env::var_os("MIG_FAULTS_SHOW").is_some() {
            eprintln!("{}, {}: {trouble}: {word:?}", self.transport, self.mode);
        }
        let word = word.map(Word::name).map_err(|why| format!("{trouble}: {why}"));
        self.add_word(trouble.kind().name(), word);
    }

    /// A fault that is in no list of cases.
    pub(crate) fn add_word(&mut self, kind: &'static str, word: Result<&'static str, String>) {
        match word {
            Ok(word) => *self.words.entry((kind, word)).or_default() += 1,
            Err(why) => self.wrong.push(why),
        }
    }

    /// Writes the rows down.
    ///
    /// # Panics
    /// If a case went wrong, with all that did.
    pub(crate) fn conclude(self) {
        let Self { transport, mode, words, wrong } = self;
        let tried: usize = words.values().sum();
        eprintln!("{transport}, {mode}: {tried} cases as they should be, {} not", wrong.len());
        for ((kind, word), count) in &words {
            eprintln!("  {kind}: {word}: {count}");
        }
        assert!(
            wrong.is_empty(),
            "{transport}, {mode}: {} went wrong:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        for ((kind, word), count) in words {
            report::fault(transport, mode, kind, word, count);
        }
    }
}
