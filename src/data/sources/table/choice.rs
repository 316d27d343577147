//! Which column is what, and which rows are of which set.

use anyhow::Result;

use super::paths::{Root, found_in};
use super::rows::{Cell, Rows, Table};
use super::{OneOrMany, SplitColumn, SplitValue, TableSpec};
use crate::data::Split;
use crate::data::sources::OpenOptions;
use crate::data::sources::cell::delimiter_of;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::{Invalid, nearest};

/// The columns of a table that are used.
pub struct Choice {
    pub image: String,
    pub root: Root,
    pub labels: Vec<String>,
    pub split: Option<String>,
    /// What was found where nothing was said.
    pub notes: Vec<String>,
}

impl TableSpec {
    /// Refuses a column that is named and not there.
    pub fn named(&self, table: &Table) -> Result<(), Invalid> {
        if let Some(image) = &self.image {
            find(table, "image", image)?;
        }
        for label in self.label.as_ref().map_or(&[][..], |names| names.as_slice()) {
            find(table, "label", label)?;
        }
        if let Some(split) = &self.split {
            find(table, "split", split.column()?)?;
        }
        match &self.label {
            Some(names) if names.as_slice().is_empty() => Err(Invalid::new("label", "names no column")),
            Some(names) if names.as_slice().len() > 1 && self.classes.is_some() => {
                Err(Invalid::new("classes", "several label columns have their names: leave it out"))
            }
            _ => Ok(()),
        }
    }

    /// The columns that are used, by the first rows; `folds` are those that the folds go by.
    pub fn choose(&self, table: &Table, head: &Rows, folds: &[String]) -> Result<Choice, Invalid> {
        self.named(table)?;
        let mut notes = Vec::new();
        let split = self.split.as_ref().map(|split| split.column().map(str::to_owned)).transpose()?;
        let labels = self.label.as_ref().map_or(Vec::new(), |names| names.as_slice().to_vec());
        let is_free =
            |name: &&String| !labels.contains(name) && !folds.contains(name) && split.as_ref() != Some(*name);
        let (image, root) = match &self.image {
            Some(image) => (image.clone(), self.root(head, table, image)?),
            None => {
                let free: Vec<_> = table.names.iter().filter(is_free).collect();
                let (image, root) = self.find_image(head, table, &free)?;
                notes.push(match head.cell(0, table.column(&image)) {
                    Cell::Picture => format!("column `{image}` holds the pictures"),
                    _ => format!("column `{image}` names the pictures, in {}", root.folder.display()),
                });
                (image, root)
            }
        };
        let labels = if labels.is_empty() {
            let left: Vec<_> = table.names.iter().filter(is_free).filter(|name| **name != image).collect();
            let [label] = left.as_slice() else {
                let message = match left.as_slice() {
                    [] => format!("no column is left beside `{image}`: there is nothing to predict"),
                    left => format!(
                        "say which column to predict, as in `label: {}`: there are {}",
                        left[0],
                        list(left.iter().map(|name| name.as_str()))
                    ),
                };
                return Err(Invalid::new("label", message));
            };
            notes.push(format!("column `{label}` is what is predicted"));
            vec![(*label).clone()]
        } else {
            labels
        };
        if let (Some(_), Cell::Picture) = (&self.root, head.cell(0, table.column(&image))) {
            let message = format!("column `{image}` holds the pictures themselves: leave it out");
            return Err(Invalid::new("root", message));
        }
        if labels.contains(&image) {
            return Err(Invalid::new("label", format!("`{image}` names the pictures")));
        }
        Ok(Choice { image, root, labels, split, notes })
    }

    /// Where the pictures of a column are.
    fn root(&self, head: &Rows, table: &Table, image: &str) -> Result<Root, Invalid> {
        let column = table.column(image);
        let roots = self.roots(head)?;
        let found = roots.iter().find(|root| found_in(head, column, root) > 0);
        Ok(found.or(roots.first()).cloned().unwrap_or_default())
    }

    /// The folders that the paths may start at, the likeliest first.
    fn roots(&self, head: &Rows) -> Result<Vec<Root>, Invalid> {
        match &self.root {
            Some(root) => Ok(vec![Root { folder: root.folder("root")?, is_declared: true }]),
            None => Ok(Root::near(&head.path())),
        }
    }

    /// The one column whose cells name pictures.
    fn find_image(&self, head: &Rows, table: &Table, free: &[&String]) -> Result<(String, Root), Invalid> {
        let mut folders = Vec::new();
        for root in self.roots(head)? {
            let mut found: Vec<(&String, usize)> = Vec::new();
            for name in free {
                found.push((name, found_in(head, table.column(name), &root)));
            }
            // A number may be the stem of a file by chance: what names files as they are comes first.
            let most = found.iter().map(|(_, score)| *score).max().unwrap_or(0);
            let best: Vec<_> = found.iter().filter(|(_, score)| *score == most).collect();
            match best.as_slice() {
                _ if most == 0 => folders.push(root.folder.display().to_string()),
                [(name, _)] => return Ok(((*name).clone(), root)),
                several => {
                    let names = list(several.iter().map(|(name, _)| name.as_str()));
                    let message =
                        format!("{names} all name pictures in {}: say which", root.folder.display());
                    return Err(Invalid::new("image", message));
                }
            }
        }
        let hint = match table.names.as_slice() {
            [only] => delimiter_of(only),
            _ => String::new(),
        };
        folders.truncate(3);
        let message = format!(
            "no column of {} holds pictures or names some in {}{hint} (there are {}); say `image`, and `root`, the folder that its \
             paths start at",
            head.path().display(),
            folders.join(" or "),
            list(table.names.iter().map(String::as_str))
        );
        Err(Invalid::new("image", message))
    }

    /// The columns that the folds go by. Exit 2 where a name is mistaken.
    pub(super) fn fold_columns(&self, table: &Table, options: &OpenOptions) -> Result<Vec<String>> {
        let mut columns = Vec::new();
        for (key, name) in [("group", &options.group), ("stratify", &options.stratify)] {
            let Some(name) = name else { continue };
            // Otherwise a group is an expression on the names of files.
            let is_word = name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
            if table.names.contains(name) {
                columns.push(name.clone());
            } else if is_word || key == "stratify" {
                let invalid = missing(table, key, name).under("fold").under("validation").under("data");
                return Err(fail(ExitCode::Usage, invalid));
            }
        }
        columns.dedup();
        Ok(columns)
    }

    /// The rows of the set `part`; `column` is where the cells of `split` are.
    pub fn taken(&self, rows: &Rows, column: usize, part: Split) -> Result<Vec<usize>> {
        let mut taken = Vec::new();
        let limit = self.limit.unwrap_or(usize::MAX);
        let Some(split) = &self.split else { return Ok((0..rows.len().min(limit)).collect()) };
        let wanted: Vec<String> = split.values(part);
        let mut others: Vec<String> = Vec::new();
        for row in 0..rows.len() {
            let value = match rows.cell(row, column) {
                Cell::Text(text) => text.to_lowercase(),
                _ => String::new(),
            };
            if wanted.contains(&value) {
                taken.push(row);
            } else if others.len() < 8 && !others.contains(&value) {
                others.push(value);
            }
        }
        if taken.is_empty() {
            let message = format!(
                "{}: no row of column `{}` says {}, there are {}; say which are of this set, as in `split: {{COLUMN: \
                 [VALUE, …]}}`",
                rows.path().display(),
                split.column().unwrap_or_default(),
                list(wanted.iter().map(String::as_str)),
                list(others.iter().map(String::as_str))
            );
            return Err(fail(ExitCode::Data, message));
        }
        taken.truncate(limit);
        Ok(taken)
    }
}

impl SplitColumn {
    fn column(&self) -> Result<&str, Invalid> {
        match self {
            Self::Column(column) => Ok(column),
            Self::Values(values) => match values.keys().collect::<Vec<_>>().as_slice() {
                [column] => Ok(column),
                _ => Err(Invalid::new("split", "goes by one column, as in `{fold: [0, 1, 2]}`")),
            },
        }
    }

    /// What the cells of the set `part` say, in lower case.
    fn values(&self, part: Split) -> Vec<String> {
        let usual = match part {
            Split::Train => &["train", "training"][..],
            Split::Validation => &["val", "valid", "validation", "dev"],
            Split::Test => &["test", "testing"],
        };
        let text = |value: &SplitValue| match value {
            SplitValue::Number(number) => number.to_string(),
            SplitValue::Text(text) => text.to_lowercase(),
        };
        match self {
            Self::Column(_) => usual.iter().map(|&word| word.to_owned()).collect(),
            Self::Values(values) => values
                .values()
                .flat_map(|values| match values {
                    OneOrMany::One(value) => vec![text(value)],
                    OneOrMany::Many(values) => values.iter().map(text).collect(),
                })
                .collect(),
        }
    }
}

fn find(table: &Table, key: &str, name: &str) -> Result<(), Invalid> {
    match table.names.iter().filter(|known| *known == name).count() {
        1 => Ok(()),
        0 => Err(missing(table, key, name)),
        _ => Err(Invalid::new(key, format!("two columns are called `{name}`; rename one"))),
    }
}

fn missing(table: &Table, key: &str, name: &str) -> Invalid {
    let hint = match (table.names.as_slice(), nearest(name, table.names.iter().map(String::as_str))) {
        ([only], _) if !delimiter_of(only).is_empty() => delimiter_of(only),
        (_, Some(near)) => format!("; did you mean `{near}`?"),
        (_, None) => String::new(),
    };
    let known = list(table.names.iter().map(String::as_str));
    Invalid::new(key, format!("there is no column `{name}`{hint} (there are {known})"))
}

/// Some names, and how many more there are.
fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    const FEW: usize = 12;
    let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    match names.get(..FEW) {
        Some(few) if names.len() > FEW => format!("{} and {} more", few.join(", "), names.len() - FEW),
        _ => names.join(", "),
    }
}
