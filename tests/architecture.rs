//! The import table and the walks of ARCHITECTURE.md are true.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn architecture() -> String {
    std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is there")
}

/// The lines `room -> room, room` of the fenced block after the heading that contains `heading`.
fn fenced_block_after(heading: &str) -> Vec<String> {
    let text = architecture();
    let after = text.split_once(heading).unwrap_or_else(|| panic!("ARCHITECTURE.md has no '{heading}'")).1;
    let block = after.split("```").nth(1).unwrap_or_else(|| panic!("no fenced block after '{heading}'"));
    block.lines().skip(1).map(str::to_owned).filter(|line| !line.trim().is_empty()).collect()
}

fn manifest_of(room: &str) -> PathBuf {
    let folder = match room {
        "blocks" | "store" | "wire" | "hypervisor" | "server" => format!("engine/{room}"),
        "understudy" => String::new(),
        other => other.to_owned(),
    };
    root().join(folder).join("Cargo.toml")
}

const ROOMS: [&str; 10] = [
    "blocks",
    "store",
    "wire",
    "hypervisor",
    "server",
    "cbt",
    "nbd-server",
    "fuse-fs",
    "ublk-disk",
    "understudy",
];

/// The rooms that a room's manifest names under [dependencies].
fn imports_of(room: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(manifest_of(room)).unwrap_or_else(|error| panic!("{room}: {error}"));
    let section = text.split("\n[dependencies]").nth(1).unwrap_or("");
    let section = section.split("\n[").next().unwrap_or("");
    let names = section.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
    names.filter(|name| ROOMS.contains(name)).map(str::to_owned).collect()
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    let mut allowed = BTreeMap::new();
    for line in fenced_block_after("## The arrows") {
        let (room, imports) = line.split_once("->").unwrap_or_else(|| panic!("'{line}' is not an arrow"));
        let imports: BTreeSet<_> = imports.split(',').map(|name| name.trim().to_owned()).collect();
        allowed.insert(room.trim().to_owned(), imports);
    }
    for room in ROOMS {
        let imports = imports_of(room);
        let none = BTreeSet::new();
        let may = allowed.get(room).unwrap_or(&none);
        let beyond: Vec<_> = imports.difference(may).collect();
        assert!(beyond.is_empty(), "{room} imports {beyond:?}, which the table does not allow");
        let unused: Vec<_> = may.difference(&imports).collect();
        assert!(unused.is_empty(), "the table lets {room} import {unused:?}, which it does not");
    }
}

#[test]
fn every_member_of_the_workspace_is_a_room() {
    let text = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = text.split("members = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap();
    for member in
        members.split(',').map(|member| member.trim().trim_matches('"')).filter(|member| !member.is_empty())
    {
        let room = Path::new(member).file_name().unwrap().to_str().unwrap();
        assert!(ROOMS.contains(&room), "{member} is not in the table of rooms");
    }
}

#[test]
fn the_files_of_the_walks_exist() {
    let steps: Vec<_> =
        ["## A replicated write", "## A recovery read"].into_iter().flat_map(fenced_block_after).collect();
    assert!(steps.len() >= 10, "the walks are short: {}", steps.len());
    for step in steps {
        let path = step.split_whitespace().next().unwrap();
        assert!(root().join(path).is_file(), "a walk of ARCHITECTURE.md passes {path}, which does not exist");
    }
}

#[test]
fn the_readme_names_its_two_commands() {
    let text = std::fs::read_to_string(root().join("README.md")).unwrap();
    for script in ["scripts/quickstart", "scripts/test"] {
        assert!(text.contains(script), "README.md does not name {script}");
        assert!(root().join(script).is_file());
    }
}

/// Words in backquotes that name tests: `file::test`, `file::start_of_a_test_...`, `file::*`.
fn tests_named_in(manual: &str) -> BTreeSet<&str> {
    let quoted = manual.split('`').skip(1).step_by(2);
    let is_path = |word: &&str| {
        word.contains("::")
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:.*".contains(c))
    };
    quoted.filter(is_path).collect()
}

/// Every source and test file under the folders, by its name or its folder's for `mod.rs`.
fn rust_files(folders: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut left: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let name = if stem == "mod" {
                path.parent().unwrap().file_name().unwrap().to_str().unwrap()
            } else {
                stem
            };
            found.push((name.trim_end_matches("_tests").to_owned(), std::fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

#[test]
fn the_tests_that_the_nbd_manual_names_exist() {
    let manual = std::fs::read_to_string(root().join("docs/nbd.md")).unwrap();
    let files = rust_files(&["nbd-server/tests", "nbd-server/src", "engine/server/src/session"]);
    let named = tests_named_in(&manual);
    assert!(named.len() > 50, "only {} tests are named: are they still written so?", named.len());
    let mut missing = Vec::new();
    for test in named {
        let (file, test_name) = test.rsplit_once("::").unwrap();
        let file = file.rsplit("::").next().unwrap();
        let wanted = match test_name.strip_suffix("...") {
            Some(start) => format!("fn {start}"),
            None if test_name == "*" => "fn ".to_owned(),
            None => format!("fn {test_name}("),
        };
        let is_there = |(name, text): &(String, String)| {
            name == file && text.split("#[test]").skip(1).any(|test| test.trim_start().starts_with(&wanted))
        };
        if !files.iter().any(is_there) {
            missing.push(test);
        }
    }
    assert!(missing.is_empty(), "docs/nbd.md names what is no test: {missing:?}");
    // No row of a table leaves the question open; "the same" is the row above.
    let header = "| test |";
    let tables =
        manual.split("\n\n").filter(|part| part.lines().next().is_some_and(|line| line.ends_with(header)));
    for row in tables.flat_map(|table| table.lines().skip(2)) {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        assert!(last.contains('`') || last.starts_with("the same"), "a row without a test: {row}");
    }
}
