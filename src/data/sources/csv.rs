//! Tables of numbers in delimited text, for regression or for classes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::Result;
use csv::{ByteRecord, Reader, ReaderBuilder, Trim};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{FilePath, Opening, Source, Split, positive_limit, resident};
use crate::data::{Dataset, Targets};
use crate::exit::{Exit, OrExit, fail};
use crate::yaml::{Invalid, nearest};

/// `{csv: {file: FILE, target: price}}`: inputs `[N, F]`, targets `[N, T]` or classes. Every cell that is used must
/// hold a finite number; nothing is filled in.
#[derive(Deserialize, Serialize, Clone, Debug)]
#[serde(deny_unknown_fields, expecting = "a mapping, such as `{file: table.csv, target: price}`")]
pub struct CsvSpec {
    pub file: FilePath,
    /// The column, or columns, to predict.
    pub target: Names,
    /// The input columns in this order; all others in the file's order where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Vec<String>>,
    /// Whether the first line names the columns; otherwise their names are "0", "1", …
    #[serde(default = "yes")]
    pub header: bool,
    #[serde(default = "comma")]
    pub delimiter: char,
    /// Whether the target names classes. They are put in order: by value where all are numbers, else by name.
    #[serde(default)]
    pub classes: bool,
    /// Only the first rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// One column name or several.
#[derive(Deserialize, Serialize, Clone, Debug)]
#[serde(
    untagged,
    expecting = "expected a column name, or a list of column names (quote names that are numbers)"
)]
pub enum Names {
    One(String),
    Several(Vec<String>),
}

impl Names {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }
}

fn yes() -> bool {
    true
}

fn comma() -> char {
    ','
}

/// Which columns of the file are used.
struct Columns {
    names: Vec<String>,
    features: Vec<usize>,
    targets: Vec<usize>,
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
        // What cannot be read is a matter of data, told at opening.
        match self.reader(&path).and_then(|mut reader| self.names(&mut reader, &path)) {
            Ok(names) => self.columns(names, None).map(|_| ()),
            Err(_) => Ok(()),
        }
    }

    fn open(&self, opening: &Opening) -> Result<Dataset> {
        let path = self.file.resolve()?;
        // A name that is mistaken must not show as a column of groups that is no number.
        if let (Split::Train, Some(group)) = (opening.part, &opening.group) {
            let mut reader = self.reader(&path)?;
            let names = self.names(&mut reader, &path)?;
            group_column(&names, group, &path)?;
        }
        self.read(&path, opening.group.as_deref())
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
    names.iter().position(|name| name == group).or_exit(Exit::Usage, || {
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
            .map_err(|error| fail(Exit::Data, format!("{}: {error}", path.display())))?;
        let (mut xs, mut ys, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        let (mut record, mut rows) = (ByteRecord::new(), 0);
        while rows < self.limit.unwrap_or(usize::MAX)
            && reader.read_byte_record(&mut record).map_err(|error| unreadable(path, &error))?
        {
            xs.try_reserve(columns.features.len())
                .or_exit(Exit::Memory, || format!("out of memory after {rows} rows; set `csv.limit`"))?;
            for &column in &columns.features {
                xs.push(number(&record, column, &columns.names, path, "mend or remove the row")?);
            }
            for &column in &columns.targets {
                if self.classes {
                    labels.push(label(&record, column, &columns.names, path)?);
                } else {
                    let remedy =
                        "mend or remove the row, or say `classes: true` where the target names classes";
                    ys.push(number(&record, column, &columns.names, path, remedy)?);
                }
            }
            rows += 1;
        }
        if rows == 0 {
            return Err(fail(Exit::Data, format!("{}: has no rows", path.display())));
        }
        let xs = Tensor::f_from_slice(&xs)?.f_view([rows as i64, columns.features.len() as i64])?;
        let mut set = if self.classes {
            let classes = ordered_classes(&labels);
            let index: HashMap<&str, i64> = classes.iter().map(String::as_str).zip(0..).collect();
            let labels = labels.iter().map(|label| index[label.as_str()]).collect();
            resident(xs, Targets::Classes(labels), classes)
        } else {
            let ys = Tensor::f_from_slice(&ys)?.f_view([rows as i64, columns.targets.len() as i64])?;
            resident(xs, Targets::Values(ys), Vec::new())
        };
        set.features = columns.features.iter().map(|&column| columns.names[column].clone()).collect();
        Ok(set)
    }

    fn reader(&self, path: &Path) -> Result<Reader<File>> {
        let file = File::open(path).or_exit(Exit::Data, || format!("{}: cannot be read", path.display()))?;
        Ok(ReaderBuilder::new()
            .has_headers(self.header)
            .delimiter(u8::try_from(self.delimiter).unwrap_or(b','))
            .trim(Trim::All)
            .buffer_capacity(1 << 18)
            .from_reader(file))
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

    fn columns(&self, names: Vec<String>, group: Option<&str>) -> Result<Columns, Invalid> {
        if names.is_empty() {
            return Err(Invalid::new(
                "file",
                "is empty; give a table with a line of column names above its rows",
            ));
        }
        let find = |key: String, wanted: &String| {
            let mut found = names.iter().enumerate().filter(|(_, name)| *name == wanted);
            match (found.next(), found.next()) {
                (Some((column, _)), None) => Ok(column),
                (Some(_), Some(_)) => {
                    Err(Invalid::new(key, format!("two columns are called `{wanted}`; rename one")))
                }
                (None, _) => {
                    let hint = nearest(wanted, names.iter().map(String::as_str));
                    let hint = hint.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                    Err(Invalid::new(
                        key,
                        format!("there is no column `{wanted}`{hint} (there are {})", names.join(", ")),
                    ))
                }
            }
        };
        let key = |list: bool, key: &str, index: usize| {
            if list { format!("{key}.{index}") } else { key.to_owned() }
        };
        let several = matches!(self.target, Names::Several(_));
        let mut targets = Vec::new();
        for (index, name) in self.target.as_slice().iter().enumerate() {
            targets.push(find(key(several, "target", index), name)?);
        }
        let mut features = Vec::new();
        match &self.features {
            Some(wanted) => {
                for (index, name) in wanted.iter().enumerate() {
                    features.push(find(key(true, "features", index), name)?);
                }
            }
            None => {
                let is_group = |column: usize| group == Some(names[column].as_str());
                features.extend(
                    (0..names.len()).filter(|column| !targets.contains(column) && !is_group(*column)),
                );
            }
        }
        if features.is_empty() {
            return Err(Invalid::new("target", "leaves no column to predict from"));
        }
        if let Some(&both) = features.iter().find(|column| targets.contains(column)) {
            return Err(Invalid::new("features", format!("`{}` is the target too", names[both])));
        }
        Ok(Columns { names, features, targets })
    }
}

/// The class names that `labels` hold, in their order.
fn ordered_classes(labels: &[String]) -> Vec<String> {
    let mut classes = labels.to_vec();
    classes.sort();
    classes.dedup();
    let values: Option<Vec<f64>> = classes.iter().map(|class| class.parse().ok()).collect();
    if let Some(values) = values {
        let mut order: Vec<usize> = (0..classes.len()).collect();
        order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
        classes = order.iter().map(|&index| classes[index].clone()).collect();
    }
    classes
}

fn number(record: &ByteRecord, column: usize, names: &[String], path: &Path, remedy: &str) -> Result<f64> {
    let cell = record.get(column).unwrap_or_default();
    let value = std::str::from_utf8(cell).ok().and_then(|text| text.parse::<f64>().ok());
    value.filter(|value| value.is_finite()).ok_or_else(|| {
        let found = match cell {
            [] => "is empty".to_owned(),
            _ => format!("holds `{}`", String::from_utf8_lossy(cell)),
        };
        refuse(record, &names[column], path, &format!("{found}, not a finite number; {remedy}"))
    })
}

fn label(record: &ByteRecord, column: usize, names: &[String], path: &Path) -> Result<String> {
    let cell = record.get(column).unwrap_or_default();
    if cell.is_empty() {
        return Err(refuse(record, &names[column], path, "is empty; mend or remove the row"));
    }
    Ok(String::from_utf8_lossy(cell).into_owned())
}

fn refuse(record: &ByteRecord, column: &str, path: &Path, what: &str) -> anyhow::Error {
    let line = record.position().map_or(0, |position| line(position, path));
    fail(Exit::Data, format!("{}:{line}: column `{column}` {what}", path.display()))
}

/// The line that a record starts on. The reader's position is where it began to look, before any blank lines.
fn line(position: &csv::Position, path: &Path) -> u64 {
    let blank = File::open(path).and_then(|mut file| {
        file.seek(SeekFrom::Start(position.byte()))?;
        let before =
            BufReader::new(file).bytes().map_while(Result::ok).take_while(|byte| b"\r\n".contains(byte));
        Ok(before.filter(|&byte| byte == b'\n').count() as u64)
    });
    position.line() + blank.unwrap_or(0)
}

fn unreadable(path: &Path, error: &csv::Error) -> anyhow::Error {
    let message = match error.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = pos.as_ref().map_or(0, |position| line(position, path));
            format!("{}:{line}: has {len} columns, the lines before have {expected_len}", path.display())
        }
        _ => format!("{}: {error}", path.display()),
    };
    fail(Exit::Data, message)
}
