//! Five floors, arrows downward only: the house's plan, checked against `cargo metadata`.
//!
//! ```text
//!   floor 4  mig-cli, tests, bench, fuzz
//!   floor 3  mig
//!   floor 2  mig-engine, mig-transport-*
//!   floor 1  mig-vmstate, mig-ram, mig-stream, mig-compress, mig-testkit
//!   floor 0  mig-vmstate-derive, mig-proto, mig-transport
//! ```
//! Each crate may have exactly the arrows listed for its room. A line under `[dependencies]` that is not listed is an
//! architecture change and belongs here too, with its reason in the commit. Dev-dependencies may also point at
//! mig-testkit, and at anything on a lower floor.

use crate::repository::Repository;

/// A room: its floor, and what it may depend on.
struct Room {
    floor: u8,
    may: &'static [&'static str],
}

/// Everything below the front door, for those who stand above it.
const ALL_BELOW_FRONT_DOOR: &[&str] = &[
    "mig-proto",
    "mig-transport",
    "mig-vmstate",
    "mig-vmstate-derive",
    "mig-ram",
    "mig-stream",
    "mig-compress",
    "mig-testkit",
    "mig-engine",
    "mig-transport-tcp",
    "mig-transport-unix",
    "mig-transport-vsock",
    "mig-transport-fd",
    "mig-transport-exec",
    "mig-transport-file",
    "mig-transport-tls",
    "mig-transport-rdma",
    "mig",
];

fn room(crate_name: &str) -> Option<Room> {
    Some(match crate_name {
        "mig-proto" | "mig-transport" | "mig-vmstate-derive" => Room { floor: 0, may: &[] },
        "mig-compress" => Room { floor: 1, may: &[] },
        "mig-vmstate" => Room { floor: 1, may: &["mig-proto", "mig-vmstate-derive"] },
        "mig-ram" | "mig-stream" | "mig-testkit" => Room { floor: 1, may: &["mig-transport"] },
        "mig-engine" => Room {
            floor: 2,
            may: &[
                "mig-proto",
                "mig-transport",
                "mig-vmstate",
                "mig-ram",
                "mig-stream",
                "mig-compress",
            ],
        },
        // The one backend that carries pages itself: it finds out which are zero, and may know the protocol's hook records.
        "mig-transport-rdma" => Room { floor: 2, may: &["mig-transport", "mig-proto", "mig-ram"] },
        backend if backend.starts_with("mig-transport-") => {
            Room { floor: 2, may: &["mig-transport"] }
        }
        "mig" => Room { floor: 3, may: ALL_BELOW_FRONT_DOOR },
        "mig-cli" => Room { floor: 4, may: &["mig"] },
        "mig-tests" | "mig-bench" | "bench" | "mig-fuzz" => {
            Room { floor: 4, may: ALL_BELOW_FRONT_DOOR }
        }
        "xtask" => Room { floor: 4, may: &[] },
        _ => return None,
    })
}

/// Checks every arrow of every member; the error names all that are wrong.
pub(crate) fn check(repository: &Repository) -> Result<(), String> {
    let mut wrong = Vec::new();
    let mut arrows = 0;
    let members: Vec<&str> =
        repository.packages.iter().filter_map(|package| package["name"].as_str()).collect();
    for package in &repository.packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(from) = room(name) else {
            wrong.push(format!("{name} is on no floor: give it one in xtask/src/floors.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            if !members.contains(&to) {
                continue;
            }
            arrows += 1;
            let for_tests = dependency["kind"] == "dev";
            if let Some(why) = objection(name, &from, to, for_tests) {
                wrong.push(why);
            }
        }
    }
    if wrong.is_empty() {
        println!("floors: {} crates, {arrows} arrows, all downwards", members.len());
        Ok(())
    } else {
        Err(format!("the floor plan does not hold:\n  {}", wrong.join("\n  ")))
    }
}

fn objection(name: &str, from: &Room, to: &str, for_tests: bool) -> Option<String> {
    let to_floor = room(to)?.floor;
    // Tests may look down from anywhere; the testkit stands on floor 1 and serves floor 1's tests too.
    // A crate that names itself turns on a feature of its own for its tests.
    let allowed_for_tests =
        for_tests && (to == name || to == "mig-testkit" || to_floor < from.floor);
    if from.may.contains(&to) || allowed_for_tests {
        return None;
    }
    let kind = if for_tests { " (dev)" } else { "" };
    Some(format!(
        "{name} (floor {}) → {to} (floor {to_floor}){kind} is not in the plan",
        from.floor
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(name: &str, to: &str, for_tests: bool) -> bool {
        objection(name, &room(name).unwrap(), to, for_tests).is_none()
    }

    #[test]
    fn arrows_down_pass_and_arrows_up_or_sideways_do_not() {
        assert!(judged("mig-engine", "mig-ram", false));
        assert!(judged("mig-cli", "mig", false));
        assert!(judged("mig-stream", "mig-testkit", true));
        assert!(judged("mig-transport-rdma", "mig-proto", false));
        assert!(!judged("mig-transport-tcp", "mig-proto", false));
        assert!(!judged("mig-transport-tcp", "mig-transport-unix", false));
        assert!(!judged("mig-proto", "mig-stream", false));
        assert!(!judged("mig-engine", "mig-transport-tcp", false));
        assert!(!judged("mig-engine", "mig-testkit", false));
        assert!(!judged("mig-cli", "mig-engine", false));
        assert!(!judged("mig-proto", "mig", true));
    }

    #[test]
    fn an_unknown_crate_is_on_no_floor() {
        assert!(room("mig-attic").is_none());
    }
}
