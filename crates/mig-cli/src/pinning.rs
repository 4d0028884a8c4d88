//! `--rdma-pin-all` and `--rdma-pinned-memory`: how much of the guest's memory RDMA may pin.

use crate::{
    failure::{Failure, Outcome},
    flags::Size,
};

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pinning {
    /// All of it, up front.
    pub(crate) all: bool,
    /// The most at a time.
    pub(crate) at_most: Option<u64>,
}

/// Refuses the flags where nothing is pinned: who gives them expects an effect.
pub(crate) fn check(rdma: bool, all: bool, at_most: Option<Size>) -> Outcome<Pinning> {
    let given = [("--rdma-pin-all", all), ("--rdma-pinned-memory", at_most.is_some())];
    match given.iter().find(|(_, given)| *given && !rdma) {
        Some((flag, _)) => Err(Failure::misuse(format!(
            "{flag} is for rdma:, and nothing goes over it here: leave it out, or give an address like rdma:HOST:PORT"
        ))),
        None => Ok(Pinning { all, at_most: at_most.map(|size| size.0) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_want_rdma() {
        assert!(check(false, false, None).is_ok());
        assert!(check(false, true, None).is_err());
        assert!(check(false, false, Some(Size(1 << 30))).is_err());
        assert_eq!(
            check(true, false, Some(Size(1 << 30))).unwrap(),
            Pinning { all: false, at_most: Some(1 << 30) }
        );
    }
}
