//! Tables as rows of cells, whatever their format.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;

use super::parquet::{PageBudget, ParquetTable};
use super::tar::TarShard;
use super::text::{CsvTable, JsonLines};
use crate::data::image::container::Container;
use crate::libtorch::device::cores;
use crate::util::exit_code::{ExitCode, fail};
use crate::util::threads::each;

/// Rows that are looked at to find out which column is what.
pub const HEAD: usize = 64;

#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    Empty,
    /// Text, or a number as it is written.
    Text(Box<str>),
    List(Vec<Box<str>>),
    /// The picture itself.
    Picture,
    /// Neither text, nor a number, nor a list of those.
    Other,
}

/// Cells column by column, and where each row is.
#[derive(Default)]
pub struct Columns {
    pub cells: Vec<Vec<Cell>>,
    /// What [`Reader::place`] takes.
    pub at: Vec<u64>,
    /// The pictures, by row, where a column holds them.
    pub pictures: Option<Arc<dyn Container>>,
}

/// A table of one format.
pub trait Reader: Send + Sync {
    fn path(&self) -> &Path;
    /// The names of the columns.
    fn names(&self) -> Result<Vec<String>>;
    /// The cells of the columns `wanted`, of the first `most` rows.
    fn read(&self, wanted: &[&str], most: usize) -> Result<Columns>;
    /// The file and the row, for messages.
    fn place(&self, at: u64) -> String;
    /// The names of the classes that numbers in a column stand for.
    fn class_names(&self, _column: &str) -> Option<Vec<String>> {
        None
    }
}

/// Several files that are read as one table.
pub struct Table {
    readers: Vec<Box<dyn Reader>>,
    /// The columns of the first file.
    pub names: Vec<String>,
}

/// Some columns of all rows.
pub struct Rows<'a> {
    table: &'a Table,
    parts: Vec<Columns>,
    /// The first row of each part, and the number of all rows.
    starts: Vec<usize>,
}

impl Table {
    /// `memory`: bytes that pages of compressed tables may fill.
    pub fn open(paths: Vec<PathBuf>, delimiter: Option<char>, memory: u64) -> Result<Self> {
        let budget = Arc::new(PageBudget::new(memory));
        let reader = |path: PathBuf| -> Result<Box<dyn Reader>> {
            let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
            Ok(match extension.as_str() {
                "csv" | "txt" | "tsv" | "tab" => {
                    let tab = if extension.starts_with('t') && extension != "txt" { '\t' } else { ',' };
                    Box::new(CsvTable { path, delimiter: delimiter.unwrap_or(tab) })
                }
                "jsonl" | "ndjson" => Box::new(JsonLines { path }),
                "parquet" | "pq" => Box::new(ParquetTable::open(path, budget.clone())?),
                "tar" => Box::new(TarShard { path }),
                _ => {
                    let packed = ["gz", "tgz", "zst", "bz2", "xz"].contains(&extension.as_str());
                    let remedy = if packed { "unpack it" } else { "convert it to one" };
                    let message = format!(
                        "{}: is no .csv, .tsv, .jsonl, .parquet or .tar file; {remedy}",
                        path.display()
                    );
                    return Err(fail(ExitCode::Data, message));
                }
            })
        };
        let readers: Vec<_> = paths.into_iter().map(reader).collect::<Result<_>>()?;
        let names = readers.first().map_or_else(|| Ok(Vec::new()), |first| first.names())?;
        if let (Some(first), []) = (readers.first(), names.as_slice()) {
            let message = format!(
                "{}: is empty; give a table with a line of column names above its rows",
                first.path().display()
            );
            return Err(fail(ExitCode::Data, message));
        }
        Ok(Self { readers, names })
    }

    /// The place of a column.
    pub fn column(&self, name: &str) -> usize {
        self.names.iter().position(|known| known == name).unwrap_or_default()
    }

    /// The cells of these columns.
    pub fn read(&self, wanted: &[&str]) -> Result<Rows<'_>> {
        let read = |reader: &dyn Reader| reader.read(wanted, usize::MAX);
        let parts: Vec<_> = each(cores(), self.readers.iter().map(|reader| &**reader).collect(), read)
            .into_iter()
            .collect::<Result<_>>()?;
        self.rows(parts)
    }

    /// The first rows of the first file, all columns.
    pub fn head(&self) -> Result<Rows<'_>> {
        let wanted: Vec<_> = self.names.iter().map(String::as_str).collect();
        let part =
            self.readers.first().map_or_else(|| Ok(Columns::default()), |first| first.read(&wanted, HEAD))?;
        self.rows(vec![part])
    }

    fn rows(&self, parts: Vec<Columns>) -> Result<Rows<'_>> {
        let mut starts = vec![0];
        for part in &parts {
            starts.push(starts.last().unwrap_or(&0) + part.at.len());
        }
        let rows = Rows { table: self, parts, starts };
        match rows.len() {
            0 => Err(fail(ExitCode::Data, format!("{}: has no rows", rows.path().display()))),
            _ => Ok(rows),
        }
    }
}

impl Rows<'_> {
    pub fn len(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The first file.
    pub fn path(&self) -> PathBuf {
        self.table.readers.first().map_or_else(PathBuf::new, |first| first.path().to_owned())
    }

    fn part(&self, row: usize) -> (usize, usize) {
        let part = self.starts.partition_point(|&start| start <= row) - 1;
        (part, row - self.starts[part])
    }

    pub fn cell(&self, row: usize, column: usize) -> &Cell {
        let (part, row) = self.part(row);
        &self.parts[part].cells[column][row]
    }

    /// The file of a row's picture, the pictures in it and the row's number there; None where a column names files.
    pub fn picture(&self, row: usize) -> Option<(&Path, Arc<dyn Container>, u32)> {
        let (part, row) = self.part(row);
        let pictures = self.parts[part].pictures.clone()?;
        Some((self.table.readers[part].path(), pictures, row as u32))
    }

    /// The names of the classes that the numbers in a column stand for.
    pub fn class_names(&self, column: &str) -> Option<Vec<String>> {
        self.table.readers.first()?.class_names(column)
    }

    /// The file and the row, for messages.
    pub fn place(&self, row: usize) -> String {
        let (part, row) = self.part(row);
        self.table.readers[part].place(self.parts[part].at[row])
    }

    /// The text in a column called `name`; exit 3 where there is none.
    pub fn text(&self, row: usize, column: usize, name: &str) -> Result<String> {
        match self.cell(row, column) {
            Cell::Text(text) => Ok(text.to_string()),
            Cell::Empty => Err(self.refuse(row, name, "is empty; mend or remove the row")),
            Cell::List(_) => Err(self.refuse(row, name, "holds a list, and one value is wanted")),
            Cell::Picture => Err(self.refuse(row, name, "holds a picture")),
            Cell::Other => Err(self.refuse(row, name, "holds neither text nor a number")),
        }
    }

    /// Exit 3 on a cell.
    pub fn refuse(&self, row: usize, name: &str, what: &str) -> anyhow::Error {
        fail(ExitCode::Data, format!("{}: column `{name}` {what}", self.place(row)))
    }
}
