//! Pictures that the rows of a table name, with what is to be predicted of them in its other columns.

mod choice;
mod labels;
mod parquet;
mod paths;
mod rows;
mod tar;
mod text;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::csv::Names;
use super::npy::TargetKind;
use super::pictures::{PictureFiles, Size};
use super::{ClassNames, FilePath, OpenOptions, Source, Split, is_yes, positive_limit, yes};
use crate::data::image::container::Entry;
use crate::data::image::picture::{ImageFile, Mode, Resize};
use crate::data::sources::path::FilePaths;
use crate::data::{Dataset, Targets};
use crate::util::exit_code::{ExitCode, fail};
use crate::util::yaml::Invalid;
use rows::{Cell, Rows, Table};

/// `{table: {file: labels.csv, size: 224}}`: a picture for each row of a .csv, .tsv, .jsonl or .parquet file, with its
/// class, its classes or its numbers; or for each sample of WebDataset's .tar shards, whose columns are the extensions.
///
/// Paths are relative to `root`; the pictures may also be in a .parquet file, as Hugging Face stores them. Columns that are not said are found where there is one choice, which the start of
/// a run says. Every picture that is missing is listed, and none is passed over.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping, such as `{file: labels.csv, size: 224}`")]
pub struct TableSpec {
    /// The table, or several that are read as one: a list, a pattern such as `train-*.parquet`, or numbers such as
    /// `train-{0000..0127}.tar`.
    pub file: FilePaths,
    /// The folder that the pictures' paths start at. When absent: that of the table, or the one folder in it that
    /// holds the first picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<FilePath>,
    /// The column that names the pictures, with or without the extension of their files. When absent: the one
    /// column that does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The column, or columns, to predict. When absent: the one column that is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<Names>,
    /// What `label` holds. When absent: text and whole numbers are classes, other numbers are values, several
    /// columns of zeros and ones, lists and cells with a `separator` say which of several classes there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<TargetKind>,
    /// What is between the labels of a cell that has several, as in `cat|dog`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// The classes in the order of their numbers: a list, or a file with one name per line. Names for labels that
    /// are numbers from 0. When absent, those that occur: by value where all are numbers, else by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<ClassNames>,
    /// The rows of this set: the column that says `train`, `val` or `test`, or the values of a column, as in
    /// `{fold: [0, 1, 2]}`. All rows when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<SplitColumn>,
    /// The character between two cells of a .csv file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<char>,
    /// The size of the samples in pixels, at most 8192: N for N × N, or [height, width].
    pub size: Size,
    /// The channels that every picture is converted to.
    #[serde(default)]
    pub mode: Mode,
    /// How a picture of another size becomes one of `size`.
    #[serde(default)]
    pub resize: Resize,
    /// Turn pictures as their EXIF orientation says; `false` leaves their pixels as they are stored.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    #[schemars(extend("default" = true))]
    pub exif: bool,
    /// Use only the first so many of these rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub limit: Option<usize>,
}

/// A column whose cells are `train`, `val` or `test`, or a column with the values that are taken.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(untagged, expecting = "expected a column, or its values, as in `{fold: [0, 1, 2]}`")]
pub enum SplitColumn {
    Column(String),
    Values(BTreeMap<String, OneOrMany>),
}

#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(untagged, expecting = "expected a value, or a list of values")]
pub enum OneOrMany {
    One(SplitValue),
    Many(Vec<SplitValue>),
}

#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(untagged, expecting = "expected text or a whole number")]
pub enum SplitValue {
    Number(i64),
    Text(String),
}

impl Source for TableSpec {
    fn finds_classes(&self) -> bool {
        true
    }

    fn fits_pictures(&self) -> bool {
        true
    }

    fn validate(&self) -> Result<(), Invalid> {
        self.paths()?;
        if let Some(root) = &self.root {
            root.folder("root")?;
        }
        self.size.validate()?;
        self.mode.validate("mode")?;
        positive_limit(self.limit)?;
        ClassNames::validate(&self.classes)?;
        if self.separator.as_deref() == Some("") {
            return Err(Invalid::new(
                "separator",
                "is empty; give the text between two labels, such as \"|\"",
            ));
        }
        if self.delimiter.is_some_and(|delimiter| !delimiter.is_ascii()) {
            return Err(Invalid::new("delimiter", "must be one ASCII character"));
        }
        if self.separator.is_some() && self.targets.is_some_and(|kind| kind != TargetKind::MultiLabel) {
            return Err(Invalid::new("separator", "is between several labels: `targets: multi_label`"));
        }
        // A file that cannot be read is an error of the data: `open` reports it.
        match self.table(0) {
            Ok(table) => self.named(&table),
            Err(_) => Ok(()),
        }
    }

    fn outline(&self) -> Option<(Vec<i64>, Option<usize>)> {
        let table = self.table(0).ok()?;
        let choice = self.choose(&table, &table.head().ok()?, &[]).ok()?;
        let wanted: Vec<_> = choice.labels.iter().chain(&choice.split).map(String::as_str).collect();
        let rows = table.read(&wanted).ok()?;
        let taken = self.taken(&rows, wanted.len() - 1, Split::Train).ok()?;
        let labels: Vec<usize> = (0..choice.labels.len()).collect();
        let (_, classes, _) = self.targets(&rows, &labels, &choice.labels, &taken).ok()?;
        Some((self.size.shape(self.mode), (!classes.is_empty()).then_some(classes.len())))
    }

    fn resize(&self) -> Resize {
        self.resize
    }

    fn mode(&self) -> Mode {
        self.mode
    }

    fn exif(&self) -> bool {
        self.exif
    }

    fn open(&self, options: &OpenOptions) -> Result<Dataset> {
        let table = self.table(options.memory)?;
        let folds = match options.part {
            Split::Train => self.fold_columns(&table, options)?,
            _ => Vec::new(),
        };
        let key = |invalid: Invalid| {
            fail(ExitCode::Usage, invalid.under("table").under(options.part.key()).under("data"))
        };
        let choice = self.choose(&table, &table.head()?, &folds).map_err(key)?;
        let wanted: Vec<&str> = [&choice.image]
            .into_iter()
            .chain(&choice.labels)
            .chain(&folds)
            .chain(&choice.split)
            .map(String::as_str)
            .collect();
        let rows = table.read(&wanted)?;
        let taken = self.taken(&rows, wanted.len() - 1, options.part)?;
        let (mut notes, count) = (choice.notes, choice.labels.len());
        let left = rows.len() - taken.len();
        if left > 0 && self.split.is_some() {
            notes.push(format!("{} of {} rows are of this set, by `split`", taken.len(), rows.len()));
        }
        let labels: Vec<usize> = (1..=count).collect();
        let (targets, classes, note) = self.targets(&rows, &labels, &choice.labels, &taken)?;
        notes.extend(note);
        let mut columns = BTreeMap::new();
        for (place, name) in folds.iter().enumerate() {
            let cells = taken.iter().map(|&row| rows.text(row, 1 + count + place, name));
            columns.insert(name.clone(), cells.collect::<Result<Vec<_>>>()?);
        }
        let (files, names, note) = self.pictures(&rows, &choice.image, &choice.root, &taken)?;
        notes.extend(note);
        let path = rows.path();
        drop(rows);
        let pictures = PictureFiles {
            place: &path,
            files,
            names,
            mode: self.mode,
            size: self.size,
            resize: self.resize,
        };
        let (mut set, kept) = pictures.read(options)?;
        set.targets = if kept.len() < taken.len() { targets.select(&kept)? } else { targets };
        set.classes = classes;
        for cells in columns.values_mut() {
            *cells = kept.iter().map(|&index| std::mem::take(&mut cells[index])).collect();
        }
        set.columns = columns;
        for (class, _) in set.classes.iter().zip(set.class_counts()).filter(|(_, count)| *count == 0) {
            notes.push(format!("class `{class}` has 0 samples: no row that can be read has it"));
        }
        notes.append(&mut set.notes);
        set.notes = notes;
        Ok(set)
    }
}

impl TableSpec {
    fn table(&self, memory: u64) -> Result<Table> {
        let paths = self.paths().map_err(|invalid| fail(ExitCode::Usage, invalid))?;
        Table::open(paths, self.delimiter, memory)
    }

    /// The files, patterns spelt out.
    fn paths(&self) -> Result<Vec<PathBuf>, Invalid> {
        let mut paths = Vec::new();
        for pattern in self.file.iter() {
            let pattern = pattern.resolve().map_err(|error| Invalid::new("file", format!("{error:#}")))?;
            let found = paths::expand(&pattern).map_err(|message| Invalid::new("file", message))?;
            for path in found {
                paths.push(FilePath(path.display().to_string()).file("file")?);
            }
        }
        match paths.is_empty() {
            true => Err(Invalid::new("file", "names no file")),
            false => Ok(paths),
        }
    }

    /// The files of the taken rows' pictures, a name for each, and what was found on the way.
    fn pictures(
        &self,
        rows: &Rows,
        image: &str,
        root: &paths::Root,
        taken: &[usize],
    ) -> Result<(Vec<ImageFile>, Vec<String>, Option<String>)> {
        if rows.picture(0).is_some() {
            return self.entries(rows, image, taken);
        }
        let (found, note) = paths::resolve(rows, image, root, taken)?;
        let file = |path: PathBuf| ImageFile { exif: self.exif, ..ImageFile::new(path, self.mode) };
        let names = taken.iter().map(|&row| rows.text(row, 0, image)).collect::<Result<_>>()?;
        Ok((found.into_iter().map(file).collect(), names, note))
    }
}

impl TableSpec {
    /// The same of pictures that the table itself holds.
    fn entries(
        &self,
        rows: &Rows,
        image: &str,
        taken: &[usize],
    ) -> Result<(Vec<ImageFile>, Vec<String>, Option<String>)> {
        let (mut files, mut names) = (Vec::with_capacity(taken.len()), Vec::with_capacity(taken.len()));
        let mut last: Option<Arc<Path>> = None;
        for &row in taken {
            let found = rows.picture(row).filter(|_| *rows.cell(row, 0) == Cell::Picture);
            let Some((path, container, index)) = found else {
                return Err(rows.refuse(
                    row,
                    image,
                    "holds no picture; remove the sample, or name its column",
                ));
            };
            let path = match last.take() {
                Some(last) if *last == *path => last,
                _ => path.into(),
            };
            let shard = path.file_stem().unwrap_or_default().to_string_lossy();
            names.push(format!("{shard}/{}", container.name(index)));
            let entry = Some(Entry { container, index });
            files.push(ImageFile { path: path.clone(), entry, mode: self.mode, exif: self.exif });
            last = Some(path);
        }
        Ok((files, names, None))
    }
}

impl Targets {
    /// Those of some samples.
    fn select(self, kept: &[usize]) -> Result<Self> {
        let index = || {
            let kept: Vec<i64> = kept.iter().map(|&index| index as i64).collect();
            tch::Tensor::f_from_slice(&kept)
        };
        Ok(match self {
            Self::Classes(labels) => Self::Classes(kept.iter().map(|&index| labels[index]).collect()),
            Self::Values(ys) => Self::Values(ys.f_index_select(0, &index()?)?),
            Self::MultiLabel(ys) => Self::MultiLabel(ys.f_index_select(0, &index()?)?),
            other => other,
        })
    }
}
