//! Tables, and their place between the markers of a document.
//!
//! ```text
//!   prose, kept
//!   <!-- bench:tcp-warm -->
//!   everything here is replaced
//!   <!-- /bench:tcp-warm -->
//!   prose, kept
//! ```

use std::{fs, path::Path};

use crate::failure::Result;

/// A table whose columns line up.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self { rows: vec![head.map(str::to_owned).to_vec()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0).max(3)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            text.push('|');
            for (cell, width) in row.iter().zip(&widths) {
                text.push_str(&format!(" {cell:<width$} |"));
            }
            text.push('\n');
            if number == 0 {
                let rules: Vec<_> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
                text.push_str(&format!("|{}|\n", rules.join("|")));
            }
        }
        text
    }
}

/// Replaces what is between the markers of each name.
pub(crate) fn update(path: &Path, blocks: &[(String, String)]) -> Result<()> {
    let mut text = fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    for (name, block) in blocks {
        text = replaced(&text, name, block).map_err(|why| format!("{}: {why}", path.display()))?;
    }
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    Ok(())
}

fn replaced(text: &str, name: &str, block: &str) -> std::result::Result<String, String> {
    let (begin, end) = (format!("<!-- bench:{name} -->"), format!("<!-- /bench:{name} -->"));
    let missing =
        |marker: &str| format!("there is no line `{marker}`; put one where the table belongs");
    let start = text.find(&begin).ok_or_else(|| missing(&begin))? + begin.len();
    let len = text[start..].find(&end).ok_or_else(|| missing(&end))?;
    Ok(format!("{}\n{}\n{}", &text[..start], block.trim_end(), &text[start + len..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        let text =
            "a\n<!-- bench:x -->\nold\n<!-- /bench:x -->\nb\n<!-- bench:y -->\n<!-- /bench:y -->\n";
        let once = replaced(text, "x", "new\n").unwrap();
        assert_eq!(
            once,
            "a\n<!-- bench:x -->\nnew\n<!-- /bench:x -->\nb\n<!-- bench:y -->\n<!-- /bench:y -->\n"
        );
        assert_eq!(replaced(&once, "x", "new\n").unwrap(), once, "twice is once");
        assert!(replaced(text, "z", "").unwrap_err().contains("<!-- bench:z -->"));
        assert!(replaced("<!-- bench:x -->", "x", "").unwrap_err().contains("<!-- /bench:x -->"));
    }

    #[test]
    fn columns_line_up_also_with_letters_of_several_bytes() {
        let mut table = Table::new(["a", "goal"]);
        table.row(["long cell".into(), "≤ 1".into()]);
        assert_eq!(
            table.render(),
            "| a         | goal |\n|-----------|------|\n| long cell | ≤ 1  |\n"
        );
    }
}
