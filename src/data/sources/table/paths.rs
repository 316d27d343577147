//! The files that the cells of a column name: as they are, or without their extension.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use wildmatch::WildMatch;

use super::rows::{Cell, Rows};
use crate::data::format::is_picture_name;
use crate::util::exit_code::{ExitCode, fail};

/// Missing files that a message lists.
const LISTED: usize = 100;
/// Rows that are looked at to find the column of the pictures.
const LOOKED_AT: usize = 8;

/// Where the paths of a table start.
#[derive(Clone, Debug, Default)]
pub struct Root {
    pub folder: PathBuf,
    pub is_declared: bool,
}

impl Root {
    /// The folder of a table, then the folders in it.
    pub fn near(table: &Path) -> Vec<Self> {
        let here = table.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut folders: Vec<PathBuf> = std::fs::read_dir(here)
            .map(|entries| entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
            .unwrap_or_default();
        folders.sort();
        folders.insert(0, here.to_owned());
        folders.into_iter().map(|folder| Self { folder, is_declared: false }).collect()
    }
}

/// How well the cells of a column name pictures in a folder: 3 for pictures themselves, 2 for files as they are, 1 for
/// their stems.
pub fn found_in(head: &Rows, column: usize, root: &Root) -> usize {
    let mut finder = Finder::default();
    let cells = (0..head.len().min(LOOKED_AT)).map(|row| head.cell(row, column));
    let scores = cells.map(|cell| match cell {
        Cell::Picture => 3,
        Cell::Text(text) => match finder.find(&root.folder, text) {
            Found::File(path) if is_picture_name(&path) => 2,
            Found::Stem(..) => 1,
            _ => 0,
        },
        _ => 0,
    });
    scores.max().unwrap_or(0)
}

/// The file of each taken row, by the cells of the first column, and how they were found. Exit 3 lists all that
/// are missing.
pub fn resolve(
    rows: &Rows,
    image: &str,
    root: &Root,
    taken: &[usize],
) -> Result<(Vec<PathBuf>, Option<String>)> {
    let mut finder = Finder::default();
    let (mut files, mut missing, mut stems) = (Vec::with_capacity(taken.len()), Vec::new(), 0);
    let mut extensions: Vec<String> = Vec::new();
    for &row in taken {
        let text = rows.text(row, 0, image)?;
        match finder.find(&root.folder, &text) {
            Found::File(path) => files.push(path),
            Found::Stem(path, extension) => {
                stems += 1;
                if !extensions.contains(&extension) {
                    extensions.push(extension);
                }
                files.push(path);
            }
            Found::Several(one, two) => {
                let what = format!(
                    "is `{text}`, and {one} and {two} both could be it; remove one, or write it in full"
                );
                return Err(rows.refuse(row, image, &what));
            }
            Found::None => missing.push((row, text)),
        }
    }
    if let Some((_, first)) = missing.first() {
        let shown: String = missing
            .iter()
            .take(LISTED)
            .map(|(row, text)| format!("\n  {}: {}", rows.place(*row), root.folder.join(text).display()))
            .collect();
        let more = match missing.len().checked_sub(LISTED) {
            Some(more @ 1..) => format!("\n  and {more} more"),
            _ => String::new(),
        };
        let remedy = if first.contains('\\') && missing.len() == taken.len() {
            "paths are written with `/`"
        } else if missing.len() == taken.len() {
            "say `root`, the folder that the paths start at"
        } else {
            "bring the files, or remove their rows"
        };
        let message =
            format!("{} of {} pictures are not there; {remedy}:{shown}{more}", missing.len(), taken.len());
        return Err(fail(ExitCode::Data, message));
    }
    extensions.sort();
    let note = (stems > 0).then(|| {
        format!(
            "column `{image}` names {stems} of {} files without their extension, {}",
            taken.len(),
            extensions.join(" or ")
        )
    });
    Ok((files, note))
}

/// The files that a pattern names: `*` and `?` in the last part of a path, and `{000..127}` anywhere.
pub fn expand(pattern: &Path) -> Result<Vec<PathBuf>, String> {
    let text = pattern.display().to_string();
    if let Some((before, rest)) = text.split_once('{')
        && let Some((range, after)) = rest.split_once('}')
        && let Some((first, last)) = range.split_once("..")
    {
        let number = |text: &str| {
            text.parse::<usize>()
                .map_err(|_| format!("{text} in {pattern:?} is no number, as in {{000..127}}"))
        };
        let (from, to) = (number(first)?, number(last)?);
        if from > to || to - from > 1_000_000 {
            return Err(format!("{{{range}}} counts no files: the first number comes first"));
        }
        let width = first.len();
        let name = |at: usize| expand(Path::new(&format!("{before}{at:0width$}{after}")));
        return Ok((from..=to).map(name).collect::<Result<Vec<_>, _>>()?.concat());
    }
    let name = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !name.contains(['*', '?']) || pattern.exists() {
        return Ok(vec![pattern.to_owned()]);
    }
    let folder = pattern.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (wanted, mut found) = (WildMatch::new(&name), Vec::new());
    for entry in
        std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?.flatten()
    {
        if wanted.matches(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    found.sort();
    match found.is_empty() {
        true => Err(format!("no file is called {name} in {}", folder.display())),
        false => Ok(found),
    }
}

/// What a cell names.
enum Found {
    File(PathBuf),
    /// A file, by its name without this extension.
    Stem(PathBuf, String),
    Several(String, String),
    None,
}

/// Folders with the pictures in them by their stems, once a stem was asked for.
#[derive(Default)]
struct Finder(HashMap<PathBuf, HashMap<String, Vec<String>>>);

impl Finder {
    fn find(&mut self, root: &Path, text: &str) -> Found {
        let path = root.join(text);
        if path.is_file() {
            return Found::File(path);
        }
        let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
        else {
            return Found::None;
        };
        if !self.0.contains_key(folder) {
            self.0.insert(folder.to_owned(), stems(folder));
        }
        match self.0[folder].get(name).map(Vec::as_slice) {
            None | Some([]) => Found::None,
            Some([one]) => Found::Stem(folder.join(one), one[name.len()..].to_owned()),
            Some([one, two, ..]) => Found::Several(one.clone(), two.clone()),
        }
    }
}

fn stems(folder: &Path) -> HashMap<String, Vec<String>> {
    let mut stems: HashMap<String, Vec<String>> = HashMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some((stem, _)) = name.rsplit_once('.')
            && is_picture_name(Path::new(&name))
        {
            stems.entry(stem.to_owned()).or_default().push(name);
        }
    }
    stems.values_mut().for_each(|names| names.sort());
    stems
}
