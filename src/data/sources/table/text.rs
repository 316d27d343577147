//! Tables of text: delimited, and JSON Lines.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Result;
use csv::{ByteRecord, Reader as CsvReader};
use serde_json::{Map, Value};

use super::rows::{Cell, Columns, HEAD, Reader};
use crate::data::sources::cell::{reader, unreadable};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::{interrupt, regular_file};

/// Bytes that a line of JSON may have.
const MAX_LINE: u64 = 16 << 20;

/// Delimited text with a line of column names.
pub struct CsvTable {
    pub path: PathBuf,
    pub delimiter: char,
}

impl CsvTable {
    fn reader(&self) -> Result<CsvReader<File>> {
        reader(&self.path, self.delimiter, true)
    }
}

impl Reader for CsvTable {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Result<Vec<String>> {
        let mut reader = self.reader()?;
        let names = reader.byte_headers().map_err(|error| unreadable(&self.path, &error))?;
        Ok(names.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect())
    }

    fn read(&self, wanted: &[&str], most: usize) -> Result<Columns> {
        let (names, mut reader) = (self.names()?, self.reader()?);
        let find = |name: &&str| {
            let found = names.iter().position(|known| known == name);
            found.with_exit_code(ExitCode::Data, || {
                format!("{}: has no column `{name}` (there are {})", self.path.display(), names.join(", "))
            })
        };
        let wanted: Vec<usize> = wanted.iter().map(find).collect::<Result<_>>()?;
        let mut columns = Columns { cells: vec![Vec::new(); wanted.len()], ..Columns::default() };
        let mut record = ByteRecord::new();
        while columns.at.len() < most
            && reader.read_byte_record(&mut record).map_err(|error| unreadable(&self.path, &error))?
        {
            let at = record.position().map_or(0, csv::Position::byte);
            for (column, cells) in wanted.iter().zip(&mut columns.cells) {
                cells.push(match record.get(*column).unwrap_or_default() {
                    [] => Cell::Empty,
                    bytes => match std::str::from_utf8(bytes) {
                        Ok(text) => Cell::Text(text.into()),
                        Err(_) => {
                            let message = format!(
                                "{}: column `{}` is no UTF-8; save the table as UTF-8",
                                self.place(at),
                                names[*column]
                            );
                            return Err(fail(ExitCode::Data, message));
                        }
                    },
                });
            }
            columns.at.push(at);
            if columns.at.len().is_multiple_of(4096) && interrupt::is_requested() {
                break;
            }
        }
        Ok(columns)
    }

    /// By the byte that the row, or blank lines before it, start at.
    fn place(&self, at: u64) -> String {
        let count = || -> std::io::Result<u64> {
            let mut bytes = BufReader::new(regular_file::open(&self.path)?).bytes();
            let before =
                bytes.by_ref().take(at as usize).map_while(Result::ok).filter(|&byte| byte == b'\n').count();
            let blank = bytes.map_while(Result::ok).take_while(|byte| b"\r\n".contains(byte));
            Ok((1 + before + blank.filter(|&byte| byte == b'\n').count()) as u64)
        };
        format!("{}:{}", self.path.display(), count().unwrap_or(0))
    }
}

/// An object per line.
pub struct JsonLines {
    pub path: PathBuf,
}

impl JsonLines {
    /// Calls `take` with each object and its line until it answers false.
    fn each(&self, mut take: impl FnMut(u64, Map<String, Value>) -> bool) -> Result<()> {
        let unreadable = || format!("{}: cannot be read", self.path.display());
        let mut lines =
            BufReader::new(regular_file::open(&self.path).with_exit_code(ExitCode::Data, unreadable)?);
        let (mut line, mut bytes) = (0, Vec::new());
        loop {
            bytes.clear();
            let read = lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut bytes);
            if read.with_exit_code(ExitCode::Data, unreadable)? == 0 {
                return Ok(());
            }
            line += 1;
            let text = bytes.trim_ascii();
            let text = text.strip_prefix(b"\xef\xbb\xbf").filter(|_| line == 1).unwrap_or(text);
            if text.is_empty() {
                continue;
            }
            let refuse = |what: String| {
                let message = format!("{}:{line}: {what}; each line is one JSON object", self.path.display());
                fail(ExitCode::Data, message)
            };
            match serde_json::from_slice(text) {
                Ok(Value::Object(object)) => {
                    if !take(line, object) {
                        return Ok(());
                    }
                }
                Ok(_) => return Err(refuse("is no object".into())),
                Err(error) => return Err(refuse(error.to_string().replace(" at line 1", ""))),
            }
        }
    }
}

impl Reader for JsonLines {
    fn path(&self) -> &Path {
        &self.path
    }

    /// The keys of the first objects, in the order of their appearance; those of an object in an object as `a.b`.
    fn names(&self) -> Result<Vec<String>> {
        let (mut names, mut rows) = (Vec::new(), 0);
        self.each(|_, object| {
            for name in keys(&object) {
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            rows += 1;
            rows < HEAD
        })?;
        Ok(names)
    }

    fn read(&self, wanted: &[&str], most: usize) -> Result<Columns> {
        let mut columns = Columns { cells: vec![Vec::new(); wanted.len()], ..Columns::default() };
        self.each(|line, object| {
            for (name, cells) in wanted.iter().zip(&mut columns.cells) {
                cells.push(cell(&object, name));
            }
            columns.at.push(line);
            columns.at.len() < most && !(line.is_multiple_of(4096) && interrupt::is_requested())
        })?;
        Ok(columns)
    }

    fn place(&self, at: u64) -> String {
        format!("{}:{at}", self.path.display())
    }
}

/// The columns that an object fills.
pub fn keys(object: &Map<String, Value>) -> Vec<String> {
    let names = |(key, value): (&String, &Value)| match value {
        Value::Object(inner) => keys(inner).into_iter().map(|name| format!("{key}.{name}")).collect(),
        _ => vec![key.clone()],
    };
    object.iter().flat_map(names).collect()
}

/// What an object has under a name, or under `a.b`.
pub fn cell(object: &Map<String, Value>, name: &str) -> Cell {
    let value = object.get(name).or_else(|| {
        let (first, rest) = name.split_once('.')?;
        rest.split('.').try_fold(object.get(first)?, |value, key| value.get(key))
    });
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.as_str().into()),
        Value::Number(number) => Some(number.to_string().into()),
        Value::Bool(value) => Some(value.to_string().into()),
        _ => None,
    };
    match value {
        None | Some(Value::Null) => Cell::Empty,
        Some(Value::String(text)) if text.is_empty() => Cell::Empty,
        Some(Value::Array(items)) => {
            items.iter().map(text).collect::<Option<_>>().map_or(Cell::Other, Cell::List)
        }
        Some(value) => text(value).map_or(Cell::Other, Cell::Text),
    }
}
