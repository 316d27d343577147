//! Arrays saved by numpy: `.npy` files, and `.npz` archives of them (numpy.lib.format, versions 1 to 3).

use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use zip::ZipArchive;

use super::{
    ClassNames, FilePath, OpenOptions, Source, class_count, class_names, positive_limit, resident,
    try_with_capacity,
};
use crate::data::{Dataset, Targets};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::regular_file;
use crate::util::yaml::Invalid;

/// `{npy: {xs: FILE, ys: FILE}}` or `{npy: {file: FILE.npz, xs: KEY, ys: KEY}}`.
///
/// xs: uint8 images `[N, H, W]` or, as `layout` says, `[N, C, H, W]` or `[N, H, W, C]`; floating-point images
/// of the same shapes, taken as they are (16-bit floats and other integers become float32); rows `[N, F]` or
/// `[N]` of any number type. ys: integers `[N]` are classes, floats `[N]` or `[N, T]` values, unless
/// `targets` says otherwise.
#[derive(Deserialize, Serialize, Clone, Debug, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a mapping, such as `{xs: xs.npy, ys: ys.npy}`")]
pub struct NpySpec {
    /// An .npz archive; then `xs` and `ys` are names in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FilePath>,
    /// The inputs: an .npy file, or a name in `file`.
    pub xs: FilePath,
    /// The targets: an .npy file, or a name in `file`.
    pub ys: FilePath,
    /// The order of the dimensions of images with several channels.
    #[serde(default)]
    pub layout: Layout,
    /// What `ys` holds. By number type when absent: integers are classes, floats are values.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub targets: Option<TargetKind>,
    /// Class names: a list, or a file with one name per line. Numbers when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<ClassNames>,
    /// Use only the first so many samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub limit: Option<usize>,
}

/// The order of the dimensions of images with several channels.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    #[default]
    Nchw,
    Nhwc,
}

/// What the targets are.
#[derive(Deserialize, Serialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    /// One class: a name or a number from 0.
    Classes,
    Values,
    /// Any number of classes: a 0 or a 1 for each.
    MultiLabel,
}

impl Source for NpySpec {
    fn validate(&self) -> Result<(), Invalid> {
        match &self.file {
            Some(archive) => {
                archive.file("file")?;
            }
            None => {
                self.xs.file("xs")?;
                self.ys.file("ys")?;
            }
        }
        ClassNames::validate(&self.classes)?;
        positive_limit(self.limit)
    }

    fn open(&self, _: &OpenOptions) -> Result<Dataset> {
        let (xs, xs_name) = self.array(&self.xs)?;
        let (ys, ys_name) = self.array(&self.ys)?;
        let (count, named) = (xs.size().first().copied(), ys.size().first().copied());
        if count != named || count.is_none() {
            let message = format!(
                "{xs_name} is {:?} and {ys_name} is {:?}: both need one entry per sample in the first dimension",
                xs.size(),
                ys.size()
            );
            return Err(fail(ExitCode::Data, message));
        }
        let take = |array: Tensor| match self.limit {
            Some(limit) if (limit as i64) < array.size()[0] => array.f_narrow(0, 0, limit as i64),
            _ => Ok(array),
        };
        let xs = self.samples(take(xs)?, &xs_name)?;
        let (targets, classes) = self.targets(take(ys)?, &ys_name)?;
        Ok(resident(xs, targets, classes))
    }
}

impl NpySpec {
    /// One array, and how to name it in an error.
    fn array(&self, place: &FilePath) -> Result<(Tensor, String)> {
        let remedy = "save numbers with numpy.save or numpy.savez and try again";
        match &self.file {
            Some(archive) => {
                let path = archive.resolve()?;
                let name = format!("{}[{}]", path.display(), place.0);
                let array = from_archive(&path, &place.0)
                    .with_exit_code(ExitCode::Data, || format!("{name}: {remedy}"))?;
                Ok((array, name))
            }
            None => {
                let path = place.resolve()?;
                let name = path.display().to_string();
                let array =
                    from_file(&path).with_exit_code(ExitCode::Data, || format!("{name}: {remedy}"))?;
                Ok((array, name))
            }
        }
    }

    /// `[N, K]` of zeros and ones, and the names of the K classes.
    fn multi_label(&self, ys: &Tensor, name: &str) -> Result<(Targets, Vec<String>)> {
        let &[_, classes] = ys.size().as_slice() else {
            let message = format!("{name}: multi_label targets are [N, K], the array is {:?}", ys.size());
            return Err(fail(ExitCode::Data, message));
        };
        let ys = ys.f_to_kind(Kind::Float)?.f_contiguous()?;
        let wrong = ys.f_mul(&(&ys - 1.0))?.f_ne(0.0)?.f_view([-1])?;
        if bool::try_from(wrong.f_any()?)? {
            let row = i64::try_from(wrong.f_to_kind(Kind::Uint8)?.f_argmax(0, false)?)? / classes;
            let message =
                format!("{name}: entry {row} holds what is neither 0 nor 1, as multi_label targets are");
            return Err(fail(ExitCode::Data, message));
        }
        let names = class_names(&self.classes, classes as usize)?;
        if names.len() as i64 != classes {
            let message =
                format!("{name}: has {classes} columns, and {} class names are declared", names.len());
            return Err(fail(ExitCode::Data, message));
        }
        Ok((Targets::MultiLabel(ys), names))
    }

    fn samples(&self, xs: Tensor, name: &str) -> Result<Tensor> {
        let xs = match (xs.dim(), self.layout) {
            (1, _) => xs.f_unsqueeze(1)?,
            (2, _) => xs,
            (3, _) => xs.f_unsqueeze(1)?,
            (4, Layout::Nchw) => xs,
            (4, Layout::Nhwc) => xs.f_permute([0, 3, 1, 2])?,
            _ => {
                let message = format!("{name}: samples are images or rows, the array is {:?}", xs.size());
                return Err(fail(ExitCode::Data, message));
            }
        };
        if let [_, channels, height, width] = *xs.size()
            && channels > 4
            && ((height > 4 && [1, 3].contains(&width)) || (width > 4 && [1, 3].contains(&height)))
        {
            let message = format!(
                "{name}: read as {channels} channels of {height} x {width} pixels; declare the other layout (nchw or nhwc)"
            );
            return Err(fail(ExitCode::Data, message));
        }
        let kind = match (xs.kind(), xs.dim()) {
            (kind @ (Kind::Float | Kind::Double), _) | (kind @ Kind::Uint8, 4) => kind,
            (_, 4) | (Kind::Half, _) => Kind::Float,
            _ => Kind::Double,
        };
        let xs = xs.f_to_kind(kind)?.f_contiguous()?;
        finite(&xs, name)?;
        Ok(xs)
    }

    fn targets(&self, ys: Tensor, name: &str) -> Result<(Targets, Vec<String>)> {
        if self.targets == Some(TargetKind::MultiLabel) {
            return self.multi_label(&ys, name);
        }
        let is_float = matches!(ys.kind(), Kind::Half | Kind::Float | Kind::Double);
        let target = self.targets.unwrap_or(if is_float { TargetKind::Values } else { TargetKind::Classes });
        let size = ys.size();
        match (target, size.as_slice()) {
            (TargetKind::Values, [_] | [_, _]) => {
                let ys = if ys.dim() == 1 { ys.f_unsqueeze(1)? } else { ys };
                let ys = ys.f_to_kind(Kind::Double)?.f_contiguous()?;
                finite(&ys, name)?;
                Ok((Targets::Values(ys), Vec::new()))
            }
            (TargetKind::Classes, [_] | [_, 1]) if !is_float => {
                let labels = Vec::<i64>::try_from(ys.f_reshape([-1])?.f_to_kind(Kind::Int64)?)?;
                if let Some(index) = labels.iter().position(|&label| !(0..1 << 20).contains(&label)) {
                    let message = format!("{name}: entry {index} is {}, classes count from 0", labels[index]);
                    return Err(fail(ExitCode::Data, message));
                }
                let classes = class_names(&self.classes, class_count(&labels))?;
                Ok((Targets::Classes(labels), classes))
            }
            (TargetKind::Classes, _) => {
                let message =
                    format!("{name}: classes are integers [N], the array is {:?} {size:?}", ys.kind());
                Err(fail(ExitCode::Data, message))
            }
            (TargetKind::Values | TargetKind::MultiLabel, _) => {
                Err(fail(ExitCode::Data, format!("{name}: targets are [N] or [N, T], the array is {size:?}")))
            }
        }
    }
}

/// Refuses NaN and infinity.
fn finite(array: &Tensor, name: &str) -> Result<()> {
    if array.kind() == Kind::Uint8 {
        return Ok(());
    }
    let wrong = array.f_isfinite()?.f_logical_not()?.f_view([array.size()[0], -1])?.f_any_dim(1, false)?;
    if bool::try_from(wrong.f_any()?)? {
        let first = i64::try_from(wrong.f_to_kind(Kind::Uint8)?.f_argmax(0, false)?)?;
        return Err(fail(
            ExitCode::Data,
            format!("{name}: sample {first} holds NaN or infinity; mend or remove it"),
        ));
    }
    Ok(())
}

/// The array in a `.npy` file.
fn from_file(path: &Path) -> Result<Tensor> {
    let file = regular_file::open(path)?;
    let size = file.metadata()?.len();
    read_npy(BufReader::with_capacity(1 << 20, file), size)
}

/// The array called `key` in a `.npz` archive.
fn from_archive(path: &Path, key: &str) -> Result<Tensor> {
    let mut archive = ZipArchive::new(BufReader::new(regular_file::open(path)?))
        .context("is no .npz archive, or truncated")?;
    refuse_twins(path, archive.len())?;
    let keys: Vec<String> =
        archive.file_names().flatten().map(|name| name.trim_end_matches(".npy").to_owned()).collect();
    let entry = match archive.by_name(&format!("{key}.npy")) {
        Ok(entry) => entry,
        Err(zip::result::ZipError::FileNotFound) => {
            bail!("there is no array `{key}` (there are {})", keys.join(", "))
        }
        Err(error) => return Err(error.into()),
    };
    let size = entry.size();
    // Deflate packs at most 1032 to 1.
    ensure!(
        size <= entry.compressed_size().saturating_mul(1032) + 1024,
        "the archive promises more than it holds"
    );
    read_npy(entry, size)
}

/// Refuses an archive whose end record counts more entries than have names of their own: the zip crate takes
/// the last of two.
fn refuse_twins(path: &Path, names: usize) -> Result<()> {
    // The record has 22 bytes, the comment behind it at most 65535.
    let mut file = regular_file::open(path)?;
    let start = file.metadata()?.len().saturating_sub(22 + 0xffff);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(22 + 0xffff).read_to_end(&mut tail)?;
    let record = tail.windows(22).rev().find(|window| window.starts_with(b"PK\x05\x06"));
    let count = record.map_or(0, |record| usize::from(u16::from_le_bytes([record[10], record[11]])));
    // All ones: the number is in the ZIP64 record, as the archive is very large.
    ensure!(count <= names || count == 0xffff, "two arrays of the archive have one name; write it again");
    Ok(())
}

/// What a header says.
struct Header {
    descr: String,
    is_fortran: bool,
    shape: Vec<i64>,
}

/// Reads an array of `size` bytes, header included.
pub fn read_npy(mut reader: impl Read, size: u64) -> Result<Tensor> {
    let mut start = [0; 8];
    reader.read_exact(&mut start).context("ends within the header")?;
    ensure!(start[..6] == *b"\x93NUMPY", "is no .npy file (it starts with {:02x?})", &start[..6]);
    let length = match start[6] {
        1 => {
            let mut bytes = [0; 2];
            reader.read_exact(&mut bytes).context("ends within the header")?;
            u64::from(u16::from_le_bytes(bytes))
        }
        2 | 3 => {
            let mut bytes = [0; 4];
            reader.read_exact(&mut bytes).context("ends within the header")?;
            u64::from(u32::from_le_bytes(bytes))
        }
        version => bail!("has format version {version}, 1 to 3 are known"),
    };
    ensure!(length < 1 << 16 && length < size, "has a header of {length} bytes, which cannot be");
    let mut text = String::new();
    reader.by_ref().take(length).read_to_string(&mut text).context("has a header that is no text")?;
    ensure!(text.len() as u64 == length, "ends within the header");
    let header =
        Header::parse(&text).with_context(|| format!("has a header that cannot be read: {}", text.trim()))?;
    let offset = 8 + if start[6] == 1 { 2 } else { 4 } + length;
    header.read(reader, size - offset)
}

impl Header {
    /// Reads a header such as `{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }`.
    fn parse(text: &str) -> Result<Self> {
        let value = |key: &str| {
            let (_, rest) =
                text.split_once(&format!("'{key}'")).with_context(|| format!("`{key}` is missing"))?;
            Ok::<_, anyhow::Error>(
                rest.trim_start().strip_prefix(':').context("a colon is missing")?.trim_start(),
            )
        };
        let descr = value("descr")?;
        ensure!(!descr.starts_with('['), "it holds records; save one plain array");
        let descr = descr
            .strip_prefix('\'')
            .and_then(|rest| rest.split('\'').next())
            .context("`descr` is no text")?;
        let order = value("fortran_order")?;
        let is_fortran = order.starts_with("True");
        ensure!(is_fortran || order.starts_with("False"), "`fortran_order` is neither True nor False");
        let shape =
            value("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')')).context("no shape")?.0;
        let dims = shape.split(',').map(str::trim).filter(|dim| !dim.is_empty());
        let shape = dims
            .map(|dim| dim.parse::<u32>().map(i64::from))
            .collect::<Result<Vec<_>, _>>()
            .context("shape")?;
        Ok(Self { descr: descr.to_owned(), is_fortran, shape })
    }

    /// Reads the elements, `available` bytes.
    fn read(&self, mut reader: impl Read, available: u64) -> Result<Tensor> {
        let (order, code) = self.descr.split_at(self.descr.len().min(1));
        // (kind, bytes per element); wider unsigned integers travel as the next wider signed ones.
        let (kind, width) = match code {
            "b1" => (Kind::Bool, 1),
            "u1" => (Kind::Uint8, 1),
            "i1" => (Kind::Int8, 1),
            "i2" | "u2" => (Kind::Int16, 2),
            "i4" | "u4" => (Kind::Int, 4),
            "i8" | "u8" => (Kind::Int64, 8),
            "f2" => (Kind::Half, 2),
            "f4" => (Kind::Float, 4),
            "f8" => (Kind::Double, 8),
            "O" => {
                bail!("holds Python objects (dtype object), which are never unpickled; convert to numbers")
            }
            _ => bail!("has dtype {}, which is no number type that is read here", self.descr),
        };
        let count = self.shape.iter().try_fold(1u64, |count, &dim| count.checked_mul(dim as u64));
        let bytes = count
            .and_then(|count| count.checked_mul(width))
            .ok_or_else(|| anyhow!("has a shape beyond reason"))?;
        ensure!(bytes > 0, "is empty: shape {:?}", self.shape);
        ensure!(
            bytes == available,
            "is {}: shape {:?} of {} needs {bytes} bytes, there are {available}",
            if bytes > available { "truncated" } else { "longer than its header says" },
            self.shape,
            self.descr
        );
        let mut data = try_with_capacity(usize::try_from(bytes).ok(), "give a file with fewer samples")?;
        let read = reader.by_ref().take(bytes).read_to_end(&mut data).context("is damaged")?;
        ensure!(read as u64 == bytes, "ends after {read} of {bytes} bytes");
        // Past the end, an archive compares its checksum.
        reader.read(&mut [0]).context("is damaged")?;
        if order == ">" {
            data.chunks_exact_mut(width as usize).for_each(<[u8]>::reverse);
        }
        let sizes: Vec<i64> =
            if self.is_fortran { self.shape.iter().rev().copied().collect() } else { self.shape.clone() };
        let array = Tensor::f_from_data_size(&data, &sizes, kind)?;
        let array = match code {
            "u2" => array.f_to_kind(Kind::Int)?.f_bitwise_and(0xffff)?,
            "u8" => {
                let is_small = bool::try_from(array.f_ge(0)?.f_all()?)?;
                ensure!(is_small, "holds integers beyond 2^63; save it as float64");
                array
            }
            "u4" => array.f_to_kind(Kind::Int64)?.f_bitwise_and(0xffff_ffff)?,
            _ => array,
        };
        if self.is_fortran {
            let dims: Vec<i64> = (0..sizes.len() as i64).rev().collect();
            return Ok(array.f_permute(dims)?);
        }
        Ok(array)
    }
}
