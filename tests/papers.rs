//! README.md, CONTRIBUTING.md and docs/: links lead somewhere, configs and commands in them are accepted, the
//! README is short.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{outcome, succeeds, tikhonov};

/// The sections that a run config has to have, for a snippet that is a part of one.
const BASE: &str = "{model: {name: small-cnn, args: {channels: 1, size: 28, classes: 10}}, task: classification, \
    data: {train: {shapes: {count: 100}}, validation: {fraction: 0.2}}, optimizer: {sgd: {lr: 0.1}}, train: {epochs: 1}}";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// (path from the root, text) of every page.
fn pages() -> Vec<(PathBuf, String)> {
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> =
        docs.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    paths.extend(
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "fuzz/README.md"].map(|name| root().join(name)),
    );
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.strip_prefix(root()).unwrap().to_owned(), text)
    };
    paths.into_iter().map(read).collect()
}

/// (line, text) of each fenced block of a page whose fence says `language`.
fn blocks(page: &str, language: &str) -> Vec<(usize, String)> {
    let (mut found, mut open): (Vec<(usize, String)>, Option<bool>) = (Vec::new(), None);
    for (index, line) in page.lines().enumerate() {
        match (line.strip_prefix("```"), open) {
            (Some(fence), None) => {
                open = Some(fence == language);
                if fence == language {
                    found.push((index + 1, String::new()));
                }
            }
            (Some(_), Some(_)) => open = None,
            (None, Some(true)) => {
                let text = &mut found.last_mut().unwrap().1;
                text.push_str(line);
                text.push('\n');
            }
            _ => {}
        }
    }
    assert_eq!(open, None, "a fence is left open");
    found
}

/// The page without its fenced blocks.
fn prose(page: &str) -> String {
    let mut fenced = false;
    let keep = |line: &&str| {
        let fence = line.starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    };
    page.lines().filter(keep).collect::<Vec<_>>().join("\n")
}

/// The anchors that GitHub gives to the headings of a page.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = prose(page);
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| -> String {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn the_readme_has_at_most_130_lines_of_100_columns() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(text.lines().count() <= 130, "{} lines", text.lines().count());
    for (index, line) in text.lines().enumerate() {
        assert!(line.chars().count() <= 100, "README.md:{}: {} columns", index + 1, line.chars().count());
    }
}

#[test]
fn every_link_between_the_pages_leads_to_a_file_and_a_heading() {
    let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
    let mut wrong = Vec::new();
    for (page, text) in pages() {
        for found in link.captures_iter(&prose(&text)) {
            let target = &found[1];
            if target.contains("://") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = match file {
                "" => root().join(&page),
                _ => root().join(&page).parent().unwrap().join(file),
            };
            let is_there = path.exists()
                && (heading.is_empty() || anchors(&fs::read_to_string(&path).unwrap()).contains(heading));
            if !is_there {
                wrong.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "links to nothing:\n{}", wrong.join("\n"));
}

#[test]
fn the_readme_links_to_every_page() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for (page, _) in pages() {
        let name = page.to_str().unwrap();
        let linked = readme.contains(&format!("({name})")) || name == "README.md" || name == "fuzz/README.md";
        assert!(linked, "README.md does not link to {name}");
    }
}

/// A YAML block is a whole config, some sections of one, or a model file. All else carries another language.
#[test]
fn every_yaml_block_in_the_pages_is_accepted() {
    let folder = TempDir::new().unwrap();
    let inside = |name: &str| folder.path().join(name);
    fs::create_dir(inside("models")).unwrap();
    fs::copy(root().join("models/small-cnn.yaml"), inside("models/mine.yaml")).unwrap();
    fs::write(inside("flats.csv"), "price;area;city;id\n").unwrap();
    fs::write(inside("patients.csv"), "y,age,patient\n").unwrap();
    let base: Value = serde_yaml::from_str(BASE).unwrap();
    let mut seen = 0;
    for (page, text) in pages() {
        for (line, block) in blocks(&text, "yaml") {
            let place = format!("{}:{line}", page.display());
            let value: Value =
                serde_yaml::from_str(&block).unwrap_or_else(|error| panic!("{place}: {error}"));
            let mut config = base.clone();
            let sections = config.as_object_mut().unwrap();
            if value.get("layers").is_some() {
                fs::write(inside("model.yaml"), &block).unwrap();
                sections.insert("model".into(), "model.yaml".into());
                sections.insert("task".into(), "classification".into());
            } else {
                sections.extend(value.as_object().unwrap_or_else(|| panic!("{place}: no mapping")).clone());
            }
            fs::write(inside("config.yaml"), serde_json::to_string(&config).unwrap()).unwrap();
            if let Err(message) = accepted_but_for_its_files(folder.path()) {
                panic!("{place}\n{block}\n{message}");
            }
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen} blocks");
}

/// Checks `config.yaml` in `folder`, and makes the files and folders that it names as they are missed.
fn accepted_but_for_its_files(folder: &Path) -> Result<(), String> {
    let missing = Regex::new(r"there is no (file|folder) ([\w./-]+);").unwrap();
    for _ in 0..10 {
        let command = ["train", "config.yaml", "--dry-run"];
        let (code, _, stderr) = outcome(tikhonov().args(command).current_dir(folder).output().unwrap());
        match missing.captures(&stderr) {
            _ if code == 0 => return Ok(()),
            // Weights are read last, after all that the config says.
            _ if code == 4 && stderr.contains("colleague.pth") && stderr.contains("No such file") => {
                return Ok(());
            }
            Some(found) if code == 2 && &found[1] == "folder" => {
                fs::create_dir_all(folder.join(&found[2])).unwrap();
            }
            Some(found) if code == 2 => fs::write(folder.join(&found[2]), "").unwrap(),
            _ => return Err(stderr),
        }
    }
    Err("names more files than there are tries".to_owned())
}

#[test]
fn every_command_in_the_pages_exists_with_its_options() {
    let mut helps: BTreeMap<String, String> = BTreeMap::new();
    let commands = succeeds(&["--help"]);
    let inline = Regex::new(r"`((?:scripts/)?tikhonov [^`]+)`").unwrap();
    let option = Regex::new(r"(?:^|[\s\[])(--[a-z][a-z-]*|-[a-z]\b)").unwrap();
    let mut wrong = Vec::new();
    // The changelog may name what is gone.
    for (page, text) in pages().into_iter().filter(|(page, _)| page != Path::new("CHANGELOG.md")) {
        let fenced = blocks(&text, "sh").into_iter().flat_map(|(_, block)| {
            block.lines().map(str::to_owned).filter(|line| line.contains("tikhonov ")).collect::<Vec<_>>()
        });
        let quoted = inline.captures_iter(&prose(&text)).map(|found| found[1].to_owned()).collect::<Vec<_>>();
        for command in fenced.chain(quoted) {
            let command = command.split('#').next().unwrap();
            let Some((_, arguments)) = command.split_once("tikhonov ") else { continue };
            let Some(name) = arguments.split_whitespace().find(|word| !word.starts_with('-')) else {
                continue;
            };
            let known = commands.lines().any(|line| line.split_whitespace().next() == Some(name));
            if !known {
                wrong.push(format!("{}: no command `{name}`: {command}", page.display()));
                continue;
            }
            let help = helps.entry(name.to_owned()).or_insert_with(|| succeeds(&[name, "--help"]));
            for found in option.captures_iter(arguments) {
                let words = help.split(|c: char| c.is_whitespace() || [',', '='].contains(&c));
                if !words.into_iter().any(|word| word == &found[1]) {
                    wrong.push(format!("{}: {name} has no {}: {command}", page.display(), &found[1]));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_readme_names_every_command() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let commands = succeeds(&["--help"]);
    let listed = commands.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    for line in listed.take_while(|line| !line.is_empty()) {
        let Some(name) = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')) else { continue };
        let name = name.split_whitespace().next().unwrap();
        assert!(name == "help" || readme.contains(&format!("`{name}`")), "README.md does not name `{name}`");
    }
}

#[test]
fn the_architecture_lists_the_floors_of_the_source() {
    let page = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let table: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `").and_then(|rest| rest.split_once("/` |")))
        .map(|(folder, _)| folder)
        .collect();
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let floors: Vec<&str> = library
        .lines()
        .filter_map(|line| line.strip_prefix("//! | [`").and_then(|rest| rest.split_once("`] |")))
        .map(|(folder, _)| folder)
        .collect();
    assert!(floors.len() > 10, "src/lib.rs lists {} folders", floors.len());
    assert_eq!(table, floors);
}

/// A row that begins with `` `folder/file.rs`: `Type::method`, … `` says where something is, one that ends with
/// `` `table!` in `folder/mod.rs` `` in which table.
#[test]
fn the_architecture_names_files_and_items_that_are_there() {
    let page = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let code = Regex::new("`([^`]+)`").unwrap();
    let table = Regex::new(r"`(\w+!)` in `([\w/]+\.rs)` \|$").unwrap();
    let read = |name: &str| {
        let text = fs::read_to_string(root().join("src").join(name));
        text.unwrap_or_else(|error| panic!("docs/ARCHITECTURE.md: src/{name}: {error}"))
    };
    let mut seen = 0;
    for row in page.lines().filter_map(|line| line.strip_prefix("| ")) {
        if let Some(found) = table.captures(row) {
            seen += 1;
            assert!(read(&found[2]).contains(&format!("\n{} {{\n", &found[1])), "no table there: {row}");
            continue;
        }
        let place = row.split(" | ").next().unwrap();
        let mut source = String::new();
        for found in code.captures_iter(place) {
            let name = &found[1];
            if [".rs", ".cpp"].iter().any(|end| name.ends_with(end)) {
                source = read(name);
                seen += 1;
            } else if !source.is_empty() {
                for word in name.split("::") {
                    let is_there = Regex::new(&format!(r"\b{}\b", regex::escape(word))).unwrap();
                    assert!(is_there.is_match(&source), "docs/ARCHITECTURE.md: no `{word}` there: {place}");
                }
            }
        }
    }
    assert!(seen > 30, "{seen} places");
}
