//! The folders of src/ and what they may import: the table in src/lib.rs is the list, from the highest to the
//! lowest.

use std::fs;
use std::path::{Path, PathBuf};

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Names in the table of src/lib.rs, the highest folder first.
fn floors() -> Vec<String> {
    let text = fs::read_to_string(source().join("lib.rs")).unwrap();
    let name = |line: &str| Some(line.strip_prefix("//! | [`")?.split('`').next()?.to_owned());
    text.lines().filter_map(name).collect()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The folders named by `crate::folder` in a line of code.
fn imported(line: &str) -> impl Iterator<Item = &str> {
    let code = if line.trim_start().starts_with("//") { "" } else { line };
    code.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

#[test]
fn every_folder_of_the_source_is_in_the_table_of_floors() {
    let mut folders: Vec<String> = fs::read_dir(source())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    let mut floors = floors();
    folders.sort();
    floors.sort();
    assert_eq!(folders, floors);
}

/// fuzz/ compiles the folder by its path, without the rest of the program.
#[test]
fn the_reader_of_pytorch_files_imports_nothing_of_the_crate() {
    let folder = source().join("pytorch/reader");
    let mut files = Vec::new();
    rust_files(&folder, &mut files);
    assert!(files.len() > 10);
    for file in files {
        let upward = if file == folder.join("mod.rs") { "super::" } else { "super::super::" };
        for (number, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let is_inside = !code.contains("crate::") && !code.contains(upward);
            assert!(is_inside, "{}:{}: {line}", file.display(), number + 1);
        }
    }
}

#[test]
fn no_folder_imports_one_above_it() {
    let floors = floors();
    let floor = |name: &str| floors.iter().position(|folder| folder == name);
    let mut files = Vec::new();
    rust_files(&source(), &mut files);
    let mut upward = Vec::new();
    let mut imports = 0;
    for file in files {
        let relative = file.strip_prefix(source()).unwrap();
        let folder = relative.iter().next().unwrap().to_str().unwrap();
        let Some(own) = floor(folder) else { continue };
        for (number, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            for name in imported(line) {
                imports += 1;
                // A path that begins with no folder would be hidden from this test.
                assert!(!name.is_empty(), "{}:{}: one path per `use crate::`", file.display(), number + 1);
                if floor(name).is_some_and(|other| other < own) {
                    upward.push(format!("src/{}:{}: {}", relative.display(), number + 1, line.trim()));
                }
            }
        }
    }
    assert!(imports > 500, "only {imports} imports were found");
    assert!(upward.is_empty(), "imports of a higher folder:\n{}", upward.join("\n"));
}
