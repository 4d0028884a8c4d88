//! RDMA is optional at run time: the binary asks for no library of rdma-core when it starts, and works where none can be
//! loaded; only `rdma:` says then what is missing.

use std::fs;

use object::{
    NativeEndian as NE, elf,
    read::elf::{Dyn, FileHeader, ProgramHeader},
};
use serde_json::Value;

use crate::support::{MIG, Scratch, assert_exit, corpus, mig, run, stderr};

/// What the dynamic linker must find before `main`.
fn needed(binary: &[u8]) -> Vec<String> {
    let header = elf::FileHeader64::<NE>::parse(binary).unwrap();
    let segments = header.program_headers(NE, binary).unwrap();
    let dynamic = segments.iter().find_map(|segment| segment.dynamic(NE, binary).unwrap());
    let dynamic = dynamic.expect("a binary that is linked dynamically");
    let value = |tag: i64| {
        let entry = dynamic.iter().find(|entry| entry.d_tag(NE) == tag);
        entry.map(|entry| entry.d_val(NE)).unwrap()
    };
    let (at, len) = (value(elf::DT_STRTAB), value(elf::DT_STRSZ));
    let names =
        segments.iter().find_map(|segment| segment.data_range(NE, binary, at, len).unwrap());
    let names = names.expect("the names are loaded");
    let text = |from: u64| {
        let name = names[usize::try_from(from).unwrap()..].split(|&byte| byte == 0).next();
        String::from_utf8(name.unwrap().to_vec()).unwrap()
    };
    dynamic
        .iter()
        .filter(|entry| entry.d_tag(NE) == elf::DT_NEEDED)
        .map(|entry| text(entry.d_val(NE)))
        .collect()
}

#[test]
fn the_binary_needs_no_library_of_rdma_core() {
    let needed = needed(&fs::read(MIG).unwrap());
    assert!(needed.iter().any(|name| name.starts_with("libc.so")), "{needed:?}");
    for library in ["ibverbs", "rdmacm", "mlx", "rxe"] {
        assert!(!needed.iter().any(|name| name.contains(library)), "{needed:?}");
    }
}

/// A folder in which the dynamic linker, looking there first, finds files of the libraries' names that are none. It ends
/// its search at the first one, so that no machine has them, installed or not.
fn without_libraries() -> Scratch {
    let folder = Scratch::new();
    for library in ["librdmacm.so.1", "libibverbs.so.1"] {
        folder.write(library, b"");
    }
    folder
}

#[test]
fn without_the_libraries_everything_else_works() {
    let folder = without_libraries();
    let output = run(mig(&["doctor", "--json"]).env("LD_LIBRARY_PATH", folder.file("")));
    assert_exit(&output, 0);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["rdma"]["available"], false);
    let reason = report["rdma"]["reason"].as_str().unwrap();
    assert!(reason.contains("librdmacm.so.1") || reason.contains("libibverbs.so.1"), "{reason}");
    assert!(report["rdma"]["remedy"].as_str().unwrap().contains("rdma-core"));
    let checks = report["checks"].as_array().unwrap();
    let status = |name| &checks.iter().find(|check| check["name"] == name).unwrap()["status"];
    assert_eq!(status("unix"), "works");
    assert_eq!(status("rdma"), "missing");
}

#[test]
fn without_the_libraries_rdma_says_so_at_both_ends_and_in_a_benchmark() {
    let (folder, scratch) = (without_libraries(), Scratch::new());
    let file = scratch.write("stored.mig", &corpus("pc"));
    for arguments in [
        &["recv", "rdma:192.0.2.1:4444"][..],
        &["send", &file, "rdma:192.0.2.1:4444"],
        &["bench", "--transport", "rdma", "--size", "1MiB"],
    ] {
        let output = run(mig(arguments).env("LD_LIBRARY_PATH", folder.file("")));
        assert_exit(&output, 6);
        let said = stderr(&output);
        assert!(said.contains(".so.1") && said.contains("install rdma-core"), "{said}");
    }
}

#[test]
fn what_can_be_read_only_once_is_refused_with_the_reason() {
    let output = run(&mut mig(&["send", "-", "rdma:192.0.2.1:4444"]));
    assert_exit(&output, 2);
    let said = stderr(&output);
    assert!(said.contains("read twice") && said.contains("store the stream in a file"), "{said}");
}
