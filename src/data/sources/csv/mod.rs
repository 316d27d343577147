//! Tables of numbers in delimited text, for regression or for classes.

mod columns;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::Path;

use anyhow::Result;
use csv::{ByteRecord, Reader};
use image::ImageFormat;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::cell::{label, number, ordered_classes, reader, refuse, unreadable};
use super::{FilePath, OpenOptions, Source, Split, positive_limit, resident, yes};
use crate::data::{Dataset, Targets};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::interrupt;
use crate::util::yaml::{Invalid, nearest};
use columns::Feature;

/// `{csv: {file: FILE, target: price}}`: inputs `[N, F]`, targets `[N, T]` or classes. Every cell that is
/// used must hold a finite number; nothing is filled in.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping, such as `{file: table.csv, target: price}`")]
pub struct CsvSpec {
    /// The table.
    pub file: FilePath,
    /// The column, or columns, to predict.
    pub target: Names,
    /// The input columns in this order; all others in the file's order when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<String>>,
    /// Whether the first line names the columns. Otherwise their names are "0", "1", …
    #[serde(default = "yes")]
    pub header: bool,
    /// The character between two cells.
    #[serde(default = "comma")]
    pub delimiter: char,
    /// The decimal separator: `.` (the default) or `,`.
    #[serde(default = "point", skip_serializing_if = "is_point")]
    pub decimal: char,
    /// Columns that are neither inputs nor targets, where `features` does not list the inputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// Columns of text with the values that occur in them: each value is an input, called `column=value`,
    /// that is 1 in its rows and 0 in the others.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub one_hot: BTreeMap<String, Vec<String>>,
    /// Whether the target names classes. They are sorted: by value where all are numbers, else by name.
    #[serde(default)]
    pub classes: bool,
    /// Use only the first so many rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub limit: Option<usize>,
}

/// One column name or several.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a column name, or a list of column names (quote names that are numbers)"
)]
pub enum Names {
    One(String),
    Several(Vec<String>),
}

impl Names {
    pub fn as_slice(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }
}

fn comma() -> char {
    ','
}

fn point() -> char {
    '.'
}

fn is_point(decimal: &char) -> bool {
    *decimal == '.'
}

impl Source for CsvSpec {
    fn finds_classes(&self) -> bool {
        true
    }

    fn validate(&self) -> Result<(), Invalid> {
        let path = self.file.file("file")?;
        positive_limit(self.limit)?;
        if !self.delimiter.is_ascii() {
            return Err(Invalid::new(
                "delimiter",
                format!("must be one ASCII character, not {:?}", self.delimiter),
            ));
        }
        if !['.', ','].contains(&self.decimal) || self.decimal == self.delimiter {
            let message = format!("must be `.` or `,`, and not the delimiter, not {:?}", self.decimal);
            return Err(Invalid::new("decimal", message));
        }
        for (column, values) in &self.one_hot {
            if values.is_empty() {
                let message = "lists no value; give those that occur, as in `one_hot: {city: [Graz, Linz]}`";
                return Err(Invalid::new(format!("one_hot.{column}"), message));
            }
        }
        if self.features.is_some() && !self.exclude.is_empty() {
            return Err(Invalid::new(
                "exclude",
                "leaves out of all columns: give it or `features`, not both",
            ));
        }
        match self.target.as_slice() {
            [] => return Err(Invalid::new("target", "names no column")),
            [_, _, ..] if self.classes => {
                return Err(Invalid::new("target", "classes stand in one column, not several"));
            }
            _ => {}
        }
        if self.features.as_ref().is_some_and(Vec::is_empty) {
            return Err(Invalid::new("features", "names no column; leave it out for all other columns"));
        }
        // A file that cannot be read is an error of the data: `open` reports it.
        match self.reader(&path).and_then(|mut reader| self.names(&mut reader, &path)) {
            Ok(names) => self.columns(names, None).map(|_| ()),
            Err(_) => Ok(()),
        }
    }

    fn open(&self, options: &OpenOptions) -> Result<Dataset> {
        let path = self.file.resolve()?;
        // A name that is mistaken must not show as a column of groups that is no number.
        if let (Split::Train, Some(group)) = (options.part, &options.group) {
            let mut reader = self.reader(&path)?;
            let names = self.names(&mut reader, &path)?;
            group_column(&names, group, &path)?;
        }
        self.read(&path, options.group.as_deref())
    }

    fn groups(&self, _: &Dataset, what: &str) -> Result<Vec<String>> {
        let path = self.file.resolve()?;
        let mut reader = self.reader(&path)?;
        let names = self.names(&mut reader, &path)?;
        let column = group_column(&names, what, &path)?;
        let (mut record, mut groups) = (ByteRecord::new(), Vec::new());
        while groups.len() < self.limit.unwrap_or(usize::MAX)
            && reader.read_byte_record(&mut record).map_err(|error| unreadable(&path, &error))?
        {
            groups.push(label(&record, column, &names, &path)?);
        }
        Ok(groups)
    }
}

fn group_column(names: &[String], group: &str, path: &Path) -> Result<usize> {
    names.iter().position(|name| name == group).with_exit_code(ExitCode::Usage, || {
        let (file, known) = (path.display(), names.join(", "));
        format!("data.validation.fold.group: {file} has no column `{group}` (there are {known})")
    })
}

impl CsvSpec {
    /// The rows of another table for prediction: `features` are the columns that the network was trained on.
    pub fn rows(&self, path: &Path, features: &[String]) -> Result<Dataset> {
        let table = Self {
            features: Some(features.to_vec()),
            target: Names::Several(Vec::new()),
            classes: false,
            limit: None,
            ..self.clone()
        };
        let mut set = table.read(path, None)?;
        set.targets = Targets::Unknown;
        Ok(set)
    }

    /// The column `group` is no feature.
    fn read(&self, path: &Path, group: Option<&str>) -> Result<Dataset> {
        let mut reader = self.reader(path)?;
        let names = self.names(&mut reader, path)?;
        let columns = self
            .columns(names, group)
            .map_err(|error| fail(ExitCode::Data, format!("{}: {error}", path.display())))?;
        let (mut xs, mut ys, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        let (mut record, mut rows) = (ByteRecord::new(), 0);
        while rows < self.limit.unwrap_or(usize::MAX)
            && reader.read_byte_record(&mut record).map_err(|error| unreadable(path, &error))?
        {
            xs.try_reserve(columns.features.len()).with_exit_code(ExitCode::Memory, || {
                format!("out of memory after {rows} rows; set `csv.limit`")
            })?;
            for feature in &columns.features {
                xs.push(self.input(&record, feature, &columns.names, path)?);
            }
            for &column in &columns.targets {
                if self.classes {
                    labels.push(label(&record, column, &columns.names, path)?);
                } else {
                    let remedy =
                        "mend or remove the row, or say `classes: true` where the target names classes";
                    ys.push(number(&record, column, &columns.names, path, self.decimal, remedy)?);
                }
            }
            rows += 1;
            if rows % 4096 == 0 && interrupt::is_requested() {
                break;
            }
        }
        if rows == 0 {
            return Err(fail(ExitCode::Data, format!("{}: has no rows", path.display())));
        }
        let xs = Tensor::f_from_slice(&xs)?.f_view([rows as i64, columns.features.len() as i64])?;
        let mut set = if self.classes {
            let classes = ordered_classes(&labels, path)?;
            let index: HashMap<&str, i64> = classes.iter().map(String::as_str).zip(0..).collect();
            let labels = labels.iter().map(|label| index[label.as_str()]).collect();
            resident(xs, Targets::Classes(labels), classes)
        } else {
            let ys = Tensor::f_from_slice(&ys)?.f_view([rows as i64, columns.targets.len() as i64])?;
            resident(xs, Targets::Values(ys), Vec::new())
        };
        set.features = columns.features.iter().map(|feature| feature.name(&columns.names)).collect();
        Ok(set)
    }

    fn reader(&self, path: &Path) -> Result<Reader<File>> {
        reader(path, self.delimiter, self.header)
    }

    /// The names of the file's columns.
    fn names(&self, reader: &mut Reader<File>, path: &Path) -> Result<Vec<String>> {
        // Without a header line this is the first row, which stays to be read.
        let first = reader.byte_headers().map_err(|error| unreadable(path, &error))?;
        Ok(if self.header {
            first.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
        } else {
            (0..first.len()).map(|column| column.to_string()).collect()
        })
    }

    fn input(&self, record: &ByteRecord, feature: &Feature, names: &[String], path: &Path) -> Result<f64> {
        let (column, name) = (feature.column, &names[feature.column]);
        let Some(value) = &feature.value else {
            let cell = record.get(column).map(|cell| String::from_utf8_lossy(cell).into_owned());
            let is_picture = cell.is_some_and(|cell| ImageFormat::from_path(cell).is_ok());
            let remedy = match is_picture {
                true => {
                    "pictures that a table names are another source, as in `table: {file: FILE, size: 64}`"
                        .to_owned()
                }
                false => format!(
                    "mend or remove the row; where the column holds text, `exclude: [{name}]` leaves it out and \
                     `one_hot: {{{name}: [VALUE, …]}}` makes inputs of its values"
                ),
            };
            return number(record, column, names, path, self.decimal, &remedy);
        };
        let (found, known) = (label(record, column, names, path)?, &self.one_hot[name]);
        if !known.contains(&found) {
            let near = nearest(&found, known.iter().map(String::as_str));
            let hint = near.map_or(String::new(), |near| format!(" (did you mean `{near}`?)"));
            let what =
                format!("holds `{found}`, which `one_hot` does not list{hint}; add it, or mend the row");
            return Err(refuse(record, name, path, &what));
        }
        Ok(f64::from(u8::from(found == *value)))
    }
}
