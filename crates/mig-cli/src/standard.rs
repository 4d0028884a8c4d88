//! Who may use stdin and stdout: the migration stream, or what is printed; never both.

use mig::transport::{Address, MigrationAddress, address::FdAddress};

use crate::failure::{Failure, Outcome};

/// What a command wants of the standard descriptors beside the migration.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    /// Data is read from stdin.
    pub(crate) stdin: bool,
    /// Data is written to stdout, or JSON lines.
    pub(crate) stdout: Option<&'static str>,
}

/// Refuses a command that would mix the migration with anything else.
pub(crate) fn check(address: &MigrationAddress, wanted: Wanted) -> Outcome {
    let Address::Fd(fd) = address.address() else { return Ok(()) };
    if wanted.stdin && uses(fd, 0) {
        return Err(Failure::misuse(format!(
            "{address} is the migration's channel, so the stored stream cannot come from stdin too: name a file, or use \
             another descriptor"
        )));
    }
    match wanted.stdout {
        Some(what) if uses(fd, 1) => Err(Failure::misuse(format!(
            "{address} is the migration's channel, so {what} cannot use stdout too: leave it out, or use another \
             descriptor"
        ))),
        _ => Ok(()),
    }
}

fn uses(fd: &FdAddress, number: i32) -> bool {
    match fd {
        FdAddress::Number(one) => *one == number,
        FdAddress::Pair { input, output } => *input == number || *output == number,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stdout_carries_one_thing() {
        let parse = |text| MigrationAddress::parse(text).unwrap();
        let json = Wanted { stdout: Some("--json"), ..Wanted::default() };
        assert!(check(&parse("fd:1"), json).is_err());
        assert!(check(&parse("fd:0,1"), json).is_err());
        assert!(check(&parse("fd:0"), json).is_ok());
        assert!(check(&parse("tcp:[::1]:1"), json).is_ok());
        let stdin = Wanted { stdin: true, ..Wanted::default() };
        assert!(check(&parse("fd:0"), stdin).is_err());
        assert!(check(&parse("fd:1"), stdin).is_ok());
    }
}
