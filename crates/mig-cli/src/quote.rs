//! Words of a line that is printed to be copied into a shell.

/// `word` as a shell takes it for one word and nothing else: in single quotes, which it takes literally to the last byte; bare
/// where it is plain.
pub(crate) fn shell(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+,:@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::shell;

    #[test]
    fn a_shell_takes_it_as_it_is() {
        for word in [
            "/tmp/mig-certs",
            "",
            " ",
            "a b",
            "$HOME",
            "it's",
            "'",
            "a;b",
            "we$ird;d'i\"r\\",
            "`id`",
            "*",
            "~",
            "#x",
            "a\nb",
            "[::1]",
            "tcp:[2001:db8::7]:4444",
            "Zürich",
            "-n",
            "a=b",
            "!x",
            "{a,b}",
            "dir,endpoint",
        ] {
            let script = format!("printf %s {}", shell(word));
            // printf takes a first dash for an option.
            let script = script.replace("printf %s -", "printf %s%s '' -");
            let output = Command::new("sh").args(["-c", &script]).output().expect("a shell");
            assert_eq!(String::from_utf8_lossy(&output.stdout), word, "{script}");
        }
        assert_eq!(shell("/tmp/mig-certs"), "/tmp/mig-certs");
    }
}
