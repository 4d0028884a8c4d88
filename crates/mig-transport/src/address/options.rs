//! The option syntax of `tcp:` and `rdma:` addresses, and the numbers all forms share.
//!
//! QEMU 10.1's generic form (docs/wire/transports.md §2.1): words between commas, a literal comma doubled.

/// A word and where it started.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) start: usize,
    pub(super) text: String,
}

/// Splits at single commas; a doubled one is a comma of the word.
pub(super) fn split_words(text: &str) -> Vec<Word> {
    let mut words = vec![Word { start: 0, text: String::new() }];
    let mut characters = text.char_indices().peekable();
    while let Some((position, character)) = characters.next() {
        let word = words.last_mut().expect("starts with one word and only grows");
        if character != ',' {
            word.text.push(character);
        } else if characters.next_if(|&(_, next)| next == ',').is_some() {
            word.text.push(',');
        } else {
            words.push(Word { start: position + 1, text: String::new() });
        }
    }
    words
}

/// The inverse for one word.
pub(super) fn double_commas(word: &str) -> String {
    word.replace(',', ",,")
}

/// A decimal number up to `max`: digits only, no sign.
pub(super) fn parse_decimal(text: &str, max: u64) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|&number| number <= max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_split_and_doubled_commas_do_not() {
        let words = split_words("h:1,a=b,,c,,,d");
        let seen: Vec<_> = words.iter().map(|word| (word.start, word.text.as_str())).collect();
        assert_eq!(seen, [(0, "h:1"), (4, "a=b,c,"), (13, "d")]);
        assert_eq!(split_words(",").len(), 2);
        assert_eq!(split_words("").len(), 1);
    }

    #[test]
    fn numbers_are_digits_only() {
        assert_eq!(parse_decimal("0042", 100), Some(42));
        for bad in ["", "+1", "-1", " 1", "1 ", "0x1", "101", "99999999999999999999999"] {
            assert_eq!(parse_decimal(bad, 100), None, "{bad}");
        }
    }
}
