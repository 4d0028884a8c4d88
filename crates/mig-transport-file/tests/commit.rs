//! A saved file appears whole or not at all, and nothing else stays beside it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{IoSlice, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use mig_transport::{Blame, Gather, Region, RegionSlice, VecRegion};
use mig_transport_file::CommitFile;

fn scene(name: &str, play: impl FnOnce(&Path)) {
    let dir = std::env::temp_dir().join(format!("mig-commit-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    play(&dir);
    std::fs::remove_dir_all(dir).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn all_ways_of_writing_end_in_one_file() {
    scene("write", |dir| {
        let path = dir.join("vm.mig");
        std::fs::write(&path, b"old and much longer than what replaces it?").unwrap();
        let mut file = CommitFile::create(&path).unwrap();
        file.write_all(b"head ").unwrap();
        file.write_all_vectored(&[IoSlice::new(b"a"), IoSlice::new(b""), IoSlice::new(b"b ")])
            .unwrap();
        let region: Arc<dyn Region> = VecRegion::zeroed(4096);
        RegionSlice::whole(Arc::clone(&region)).copy_in(&[b'p'; 4096]);
        let mut gather = Gather::new();
        gather.push_head(b"page ").unwrap();
        gather.push_page(&region, 0, 4096).unwrap().unwrap();
        // What a channel may send now is no matter here.
        gather.set_allowance(Some(7));
        file.write_gather(&mut gather).unwrap();
        let big = vec![b'x'; 3 << 20];
        file.write_all(&big).unwrap();
        Write::write_all(&mut file, b"tail").unwrap();
        let expected = [b"head ab page ", &[b'p'; 4096][..], &big, b"tail"].concat();
        assert_eq!(file.position(), expected.len() as u64);
        assert_eq!(std::fs::read(&path).unwrap()[..3], *b"old", "untouched until the commit");
        assert_eq!(file.target(), path);
        assert_eq!(file.commit().unwrap(), expected.len() as u64);
        assert!(std::fs::read(&path).unwrap() == expected);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(dir), ["vm.mig"]);
    });
}

#[test]
fn without_a_commit_nothing_stays() {
    scene("drop", |dir| {
        let path = dir.join("vm.mig");
        for _ in 0..2 {
            let mut file = CommitFile::create(&path).unwrap();
            let mut twin = CommitFile::create(&path).unwrap();
            file.write_all(b"half").unwrap();
            twin.write_all(b"other half").unwrap();
            drop(file);
            drop(twin);
            assert_eq!(names(dir), Vec::<String>::new());
        }
        // Two at once for one path: the later commit wins, whole.
        let (mut one, mut two) =
            (CommitFile::create(&path).unwrap(), CommitFile::create(&path).unwrap());
        one.write_all(b"one").unwrap();
        two.write_all(b"two").unwrap();
        two.commit().unwrap();
        one.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(names(dir), ["vm.mig"]);
    });
}

#[test]
fn leftovers_of_the_dead_go_and_those_of_the_living_stay() {
    scene("leftovers", |dir| {
        let mut child = Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        let mine = std::process::id();
        let goes = [
            format!(".vm.mig.{dead}.mig-partial"),
            format!(".vm.mig.{dead}-2.mig-partial"),
            // A container's process 1 dies and comes again under its number.
            format!(".vm.mig.{mine}.mig-partial"),
        ];
        let stays = [
            ".vm.mig.1.mig-partial".into(),
            format!(".other.{dead}.mig-partial"),
            format!(".vm.mig.{dead}.txt"),
            ".vm.mig.x.mig-partial".into(),
        ];
        for name in goes.iter().chain(&stays) {
            std::fs::write(dir.join(name), b"half").unwrap();
        }
        // One whose writer lives where we cannot see it: the lock says so.
        let locked = format!(".vm.mig.{dead}-7.mig-partial");
        let lock = std::fs::File::create(dir.join(&locked)).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        drop(CommitFile::create(dir.join("vm.mig")).unwrap());
        let mut expected = stays.to_vec();
        expected.push(locked);
        expected.sort();
        assert_eq!(names(dir), expected);
    });
}

#[test]
fn a_link_is_followed_and_what_is_no_file_is_refused() {
    scene("kinds", |dir| {
        let (path, link) = (dir.join("real"), dir.join("link"));
        std::fs::write(&path, b"old").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut file = CommitFile::create(&link).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read(&path).unwrap(), b"new");

        std::os::unix::fs::symlink(dir.join("nowhere"), dir.join("dangling")).unwrap();
        let cases: [(PathBuf, &str); 5] = [
            (dir.into(), "a directory"),
            ("/dev/null".into(), "a character device"),
            (dir.join("no/such/file"), "folder"),
            (dir.join("dangling"), "symbolic link"),
            ("/".into(), ""),
        ];
        for (path, is) in cases {
            let error = CommitFile::create(&path).unwrap_err();
            assert_eq!(error.blame(), Blame::Misuse, "{error}");
            assert!(error.to_string().contains(is), "{error}");
        }
        let relative = CommitFile::create("just-a-name").unwrap();
        assert_eq!(relative.target(), Path::new("./just-a-name"));
    });
}

#[test]
fn a_long_name_finds_room() {
    scene("long", |dir| {
        let path = dir.join("n".repeat(255));
        let mut file = CommitFile::create(&path).unwrap();
        file.write_all(b"x").unwrap();
        file.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    });
}

/// More than two windows of what becomes durable behind the writing, so that the thread for that and the waits for it are real.
#[test]
fn a_long_one_arrives_whole_and_leaves_nothing_when_it_is_dropped() {
    const MIB: usize = 1 << 20;
    let chunk = vec![7; MIB];
    scene("long", |dir| {
        let path = dir.join("vm.mig");
        let mut dropped = CommitFile::create(&path).unwrap();
        for _ in 0..65 {
            dropped.write_all(&chunk).unwrap();
        }
        drop(dropped);
        assert!(names(dir).is_empty());
        let mut file = CommitFile::create(&path).unwrap();
        for _ in 0..200 {
            file.write_all(&chunk).unwrap();
        }
        file.sync().unwrap();
        assert_eq!(file.commit().unwrap(), 200 * MIB as u64);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 200 * MIB as u64);
        assert_eq!(names(dir), ["vm.mig"]);
    });
}
