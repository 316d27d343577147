//! Hugging Face's parquet files: an image is a struct of bytes and path, or plain bytes. Columns of text and numbers
//! are read whole, pictures page by page when their turn comes.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::column::page::PageReader;
use parquet::column::reader::{ColumnReader, get_column_reader};
use parquet::data_type::ByteArray;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader, SerializedPageReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::Value;

use super::rows::{Cell, Columns, Reader};
use crate::data::image::container::Container;
use crate::util::exit_code::{ExitCode, Failure, fail};
use crate::util::threads::unpoisoned;
use crate::util::{interrupt, regular_file};

pub struct ParquetTable {
    path: PathBuf,
    file: SerializedFileReader<Positioned>,
    budget: Arc<PageBudget>,
}

/// A file that any thread reads at any place.
struct Positioned {
    file: Arc<File>,
    len: u64,
    /// Where a reader began last: at the header of a page while pages are counted.
    last: AtomicU64,
}

/// Reads on from a place.
pub struct From {
    file: Arc<File>,
    at: u64,
}

impl Read for From {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Positioned {
    fn open(path: &Path) -> io::Result<Self> {
        let file = regular_file::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), len, last: AtomicU64::new(0) })
    }
}

impl Length for Positioned {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Positioned {
    type T = BufReader<From>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        self.last.store(start, Ordering::Relaxed);
        Ok(BufReader::with_capacity(1 << 10, From { file: self.file.clone(), at: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        if start.checked_add(length as u64).is_none_or(|end| end > self.len) {
            return Err(ParquetError::EOF(format!(
                "{length} bytes at {start} are behind the end of the file"
            )));
        }
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

/// Decompressed pages that are kept: as many as the memory holds, and the last few.
pub struct PageBudget {
    left: AtomicI64,
    recent: Mutex<VecDeque<(usize, usize, Arc<Values>)>>,
}

/// The values of a page.
type Values = Vec<Option<ByteArray>>;

impl PageBudget {
    const RECENT: usize = 8;

    pub fn new(memory: u64) -> Self {
        Self { left: AtomicI64::new(i64::try_from(memory).unwrap_or(i64::MAX)), recent: Mutex::default() }
    }
}

/// The pictures in one column of a file.
struct Pictures {
    path: PathBuf,
    file: Arc<Positioned>,
    metadata: Arc<parquet::file::metadata::ParquetMetaData>,
    column: usize,
    pages: Vec<Page>,
    kept: Mutex<HashMap<usize, Arc<Values>>>,
    budget: Arc<PageBudget>,
}

impl std::fmt::Debug for Pictures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} pages", self.path.display(), self.pages.len())
    }
}

struct Page {
    /// Its row group, and the first page of that.
    group: usize,
    first_of_group: usize,
    first_row: u64,
    rows: u64,
    start: u64,
    len: u64,
}

impl ParquetTable {
    pub fn open(path: PathBuf, budget: Arc<PageBudget>) -> Result<Self> {
        let file = guarded(&path, || Ok(SerializedFileReader::new(Positioned::open(&path)?)?))?;
        Ok(Self { path, file, budget })
    }

    fn root(&self) -> &Type {
        self.file.metadata().file_metadata().schema()
    }

    /// The leaf that holds the bytes of a column of pictures.
    fn leaf(&self, name: &str) -> Option<usize> {
        let schema = self.file.metadata().file_metadata().schema_descr();
        let is_bytes = |leaf: &usize| {
            let column = schema.column(*leaf);
            let is_text = column.converted_type() == ConvertedType::UTF8
                || matches!(column.logical_type_ref(), Some(LogicalType::String));
            let path = column.path().parts();
            column.physical_type() == Physical::BYTE_ARRAY
                && column.max_rep_level() == 0
                && !is_text
                && (path == [name] || path == [name, "bytes"])
        };
        (0..schema.num_columns()).find(is_bytes)
    }

    fn cells(&self, wanted: &[&str], most: usize, columns: &mut Columns) -> Result<()> {
        let roots: Vec<_> = self.root().get_fields().iter().collect();
        let mut fields = Vec::new();
        for name in wanted.iter().filter(|name| self.leaf(name).is_none()) {
            let root = name.split('.').next().unwrap_or(name);
            let field = roots.iter().find(|field| field.name() == *name || field.name() == root);
            let field = field.with_context(|| format!("has no column `{name}`"))?;
            if !fields.contains(*field) {
                fields.push((*field).clone());
            }
        }
        let count = self.file.metadata().file_metadata().num_rows();
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(most);
        let none = fields.is_empty();
        let projection = Type::group_type_builder(self.root().name()).with_fields(fields).build()?;
        let mut rows = match none {
            true => None,
            false => Some(self.file.get_row_iter(Some(projection))?),
        };
        for at in 0..count {
            let row = match &mut rows {
                Some(rows) => rows.next().with_context(|| format!("ends before row {at} of {count}"))??,
                None => Row::new(Vec::new()),
            };
            for (name, cells) in wanted.iter().zip(&mut columns.cells) {
                cells.push(match self.leaf(name) {
                    Some(_) => Cell::Picture,
                    None => find(&row, name).map_or(Cell::Empty, cell),
                });
            }
            columns.at.push(at as u64);
            if at.is_multiple_of(4096) && interrupt::is_requested() {
                break;
            }
        }
        Ok(())
    }

    /// Where the pages of a column are, by their headers.
    fn pages(&self, column: usize, file: &Arc<Positioned>) -> Result<Vec<Page>> {
        let (mut pages, mut first_row) = (Vec::<Page>::new(), 0);
        for (group, metadata) in self.file.metadata().row_groups().iter().enumerate() {
            let (chunk, first_of_group) = (metadata.column(column), pages.len());
            let (start, len) = chunk.byte_range();
            let rows = usize::try_from(metadata.num_rows())?;
            let mut reader = SerializedPageReader::new(file.clone(), chunk, rows, None)?;
            let mut of_group = 0;
            while let Some(page) = reader.peek_next_page()? {
                let at = file.last.load(Ordering::Relaxed);
                if let Some(last) = pages.get_mut(first_of_group..).and_then(<[Page]>::last_mut) {
                    last.len = at - last.start;
                }
                if !page.is_dict {
                    let rows = page
                        .num_rows
                        .or(page.num_levels)
                        .context("a page does not say how many rows it has")?;
                    let rows = rows as u64;
                    pages.push(Page { group, first_of_group, first_row, rows, start: at, len: 0 });
                    first_row += rows;
                    of_group += rows;
                }
                reader.skip_next_page()?;
            }
            if let Some(last) = pages.get_mut(first_of_group..).and_then(<[Page]>::last_mut) {
                last.len =
                    (start + len).checked_sub(last.start).context("a page lies outside of its column")?;
            }
            ensure!(
                of_group == rows as u64,
                "the pages of row group {group} have {of_group} rows, not {rows}"
            );
        }
        Ok(pages)
    }
}

impl Reader for ParquetTable {
    fn path(&self) -> &Path {
        &self.path
    }

    /// Those of a struct as `a.b`; a picture is one.
    fn names(&self) -> Result<Vec<String>> {
        fn names(field: &Type, prefix: &str, found: &mut Vec<String>) {
            let name = format!("{prefix}{}", field.name());
            let is_struct =
                field.is_group() && field.get_basic_info().converted_type() == ConvertedType::NONE;
            match is_struct {
                true => field.get_fields().iter().for_each(|inner| names(inner, &format!("{name}."), found)),
                false => found.push(name),
            }
        }
        let mut found = Vec::new();
        for field in self.root().get_fields() {
            match self.leaf(field.name()) {
                Some(_) => found.push(field.name().to_owned()),
                None => names(field, "", &mut found),
            }
        }
        Ok(found)
    }

    fn read(&self, wanted: &[&str], most: usize) -> Result<Columns> {
        let mut columns = Columns { cells: vec![Vec::new(); wanted.len()], ..Columns::default() };
        guarded(&self.path, || self.cells(wanted, most, &mut columns))?;
        if let Some(column) = wanted.iter().find_map(|name| self.leaf(name)) {
            let file = Arc::new(Positioned::open(&self.path)?);
            // Of the head alone nothing is decoded.
            let pages = match most {
                usize::MAX => guarded(&self.path, || self.pages(column, &file))?,
                _ => Vec::new(),
            };
            columns.pictures = Some(Arc::new(Pictures {
                path: self.path.clone(),
                file,
                metadata: Arc::new(self.file.metadata().clone()),
                column,
                pages,
                kept: Mutex::default(),
                budget: self.budget.clone(),
            }));
        }
        Ok(columns)
    }

    fn place(&self, at: u64) -> String {
        format!("{}: row {at} (counted from 0)", self.path.display())
    }

    /// Those that Hugging Face's `ClassLabel` has, also within a list.
    fn class_names(&self, column: &str) -> Option<Vec<String>> {
        let metadata = self.file.metadata().file_metadata().key_value_metadata()?;
        let info = metadata.iter().find(|pair| pair.key == "huggingface")?.value.as_deref()?;
        let info: Value = serde_json::from_str(info).ok()?;
        let feature = info.get("info")?.get("features")?.get(column)?;
        let names = feature.get("names").or_else(|| feature.get("feature")?.get("names"))?;
        names.as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect()
    }
}

/// What `read` gives; exit 3 where the file is damaged, which may make its reader panic.
fn guarded<T>(path: &Path, read: impl FnOnce() -> Result<T>) -> Result<T> {
    let read =
        catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| Err(anyhow!("its reader gave up on it")));
    read.map_err(|error| match error.is::<Failure>() {
        true => error,
        false => fail(
            ExitCode::Data,
            format!(
                "{}: {error:#}; write the file again, compressed by snappy, zstd, gzip or not at all",
                path.display()
            ),
        ),
    })
}

/// What a row has under a name, or under `a.b`.
fn find<'a>(row: &'a Row, name: &str) -> Option<&'a Field> {
    let mut columns = row.get_column_iter();
    if let Some((_, field)) = columns.find(|(column, _)| *column == name) {
        return Some(field);
    }
    let (first, rest) = name.split_once('.')?;
    match row.get_column_iter().find(|(column, _)| *column == first)?.1 {
        Field::Group(inner) => find(inner, rest),
        _ => None,
    }
}

fn cell(field: &Field) -> Cell {
    let text = |field: &Field| -> Option<Box<str>> {
        Some(match field {
            Field::Bool(value) => value.to_string().into(),
            Field::Byte(value) => value.to_string().into(),
            Field::Short(value) => value.to_string().into(),
            Field::Int(value) => value.to_string().into(),
            Field::Long(value) => value.to_string().into(),
            Field::UByte(value) => value.to_string().into(),
            Field::UShort(value) => value.to_string().into(),
            Field::UInt(value) => value.to_string().into(),
            Field::ULong(value) => value.to_string().into(),
            Field::Float16(value) => format!("{:?}", f32::from(*value)).into(),
            Field::Float(value) => format!("{value:?}").into(),
            Field::Double(value) => format!("{value:?}").into(),
            Field::Str(text) => text.as_str().into(),
            _ => return None,
        })
    };
    match field {
        Field::Null => Cell::Empty,
        Field::Str(text) if text.is_empty() => Cell::Empty,
        Field::ListInternal(list) => {
            list.elements().iter().map(text).collect::<Option<_>>().map_or(Cell::Other, Cell::List)
        }
        field => text(field).map_or(Cell::Other, Cell::Text),
    }
}

impl Pictures {
    /// The values of page `index`, decompressed once as long as the memory lasts.
    fn page(&self, index: usize) -> Result<Arc<Values>> {
        if let Some(values) = unpoisoned(&self.kept).get(&index) {
            return Ok(values.clone());
        }
        let id = std::ptr::from_ref(self) as usize;
        let known = |(owner, page, _): &&(usize, usize, Arc<Values>)| (*owner, *page) == (id, index);
        if let Some((.., values)) = unpoisoned(&self.budget.recent).iter().find(known) {
            return Ok(values.clone());
        }
        let values = catch_unwind(AssertUnwindSafe(|| self.decompress(index)))
            .unwrap_or_else(|_| Err(anyhow!("the reader of its page gave up on it")))?;
        let values = Arc::new(values);
        let bytes = values.iter().flatten().map(ByteArray::len).sum::<usize>() as i64;
        if self.budget.left.fetch_sub(bytes, Ordering::Relaxed) >= bytes {
            unpoisoned(&self.kept).insert(index, values.clone());
        } else {
            self.budget.left.fetch_add(bytes, Ordering::Relaxed);
            let mut recent = unpoisoned(&self.budget.recent);
            if recent.len() == PageBudget::RECENT {
                recent.pop_front();
            }
            recent.push_back((id, index, values.clone()));
        }
        Ok(values)
    }

    fn decompress(&self, index: usize) -> Result<Values> {
        let page = &self.pages[index];
        let first = &self.pages[page.first_of_group];
        let chunk = self.metadata.row_group(page.group).column(self.column);
        // The first data page tells where a dictionary ends; it is passed over unread.
        let location = |page: &Page, first_row: u64| -> Result<PageLocation> {
            Ok(PageLocation {
                offset: i64::try_from(page.start)?,
                compressed_page_size: i32::try_from(page.len)?,
                first_row_index: i64::try_from(first_row)?,
            })
        };
        let (skipped, locations) = match index == page.first_of_group {
            true => (0, vec![location(page, 0)?]),
            false => (first.rows, vec![location(first, 0)?, location(page, first.rows)?]),
        };
        let rows = page.rows as usize;
        let reader =
            SerializedPageReader::new(self.file.clone(), chunk, skipped as usize + rows, Some(locations))?;
        let descriptor = chunk.column_descr_ptr();
        let deepest = descriptor.max_def_level();
        let ColumnReader::ByteArrayColumnReader(mut reader) = get_column_reader(descriptor, Box::new(reader))
        else {
            bail!("its column holds no bytes");
        };
        ensure!(reader.skip_records(skipped as usize)? == skipped as usize, "its page cannot be found");
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let wants_levels = (deepest > 0).then_some(&mut levels);
        let (read, ..) = reader.read_records(rows, wants_levels, None, &mut values)?;
        ensure!(read == rows, "its page has {read} rows, not {rows}");
        if deepest == 0 {
            return Ok(values.into_iter().map(Some).collect());
        }
        let mut values = values.into_iter();
        Ok(levels.iter().map(|&level| if level == deepest { values.next() } else { None }).collect())
    }
}

impl Container for Pictures {
    fn read(&self, index: u32, most: u64) -> Result<Vec<u8>> {
        let row = u64::from(index);
        let page = self.pages.partition_point(|page| page.first_row <= row).checked_sub(1);
        let page = page.context("has no row")?;
        let values = self.page(page)?;
        let value = values.get((row - self.pages[page].first_row) as usize).context("is not in its page")?;
        let Some(bytes) = value else { bail!("holds no bytes of a picture") };
        let bytes = bytes.data();
        Ok(bytes[..bytes.len().min(usize::try_from(most).unwrap_or(usize::MAX))].to_vec())
    }

    fn name(&self, index: u32) -> String {
        format!("row {index}")
    }
}
