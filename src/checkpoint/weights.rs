//! Weights from any file that Python users have: named tensors and what stands beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value as Json};
use tch::{Device, Kind, Tensor};

use super::python::dtype::Dtype;
use super::python::heap::TensorInfo;
use super::python::source::Source;
use super::python::{Container, PythonFile, detect, read_source, safetensors};
use crate::exit::{Exit, OrExit, fail};
use crate::libtorch::bytes;

/// What a file holds.
pub struct Weights {
    pub container: Container,
    /// For people: which part of the file the tensors are, such as "state_dict under `net`".
    pub structure: String,
    /// Dotted path of that part; empty for the whole file.
    pub key: String,
    /// What else could have been meant: path and number of tensors.
    pub others: Vec<(String, usize)>,
    /// In the file's order, on the CPU, in the file's dtypes. Tied tensors share their memory, strides are the file's.
    pub tensors: Vec<(String, Tensor)>,
    /// Epoch, accuracy and the like; objects by their class name.
    pub metadata: Map<String, Json>,
}

/// A tensor that a file lists and nobody here can load.
#[derive(Debug)]
pub struct Unreadable {
    pub name: String,
    /// Empty where the file does not say it.
    pub shape: Vec<i64>,
    pub dtype: String,
    pub reason: String,
}

/// Reads the weights of a zip, legacy, TorchScript or safetensors file, told by content. `key` forces a dotted path.
/// Errors exit with 4 and name the file and the entry.
pub fn read_weights(path: &Path, key: Option<&str>) -> Result<Weights> {
    let (weights, unreadable) = survey(path, key)?;
    match unreadable.first() {
        None => Ok(weights),
        Some(first) => Err(fail(Exit::Checkpoint, format!("`{}` {}", first.name, first.reason)))
            .or_exit(Exit::Checkpoint, || path.display()),
    }
}

/// The same, for a look into the file: tensors of kinds that cannot be loaded are listed apart instead of being an error.
pub fn survey(path: &Path, key: Option<&str>) -> Result<(Weights, Vec<Unreadable>)> {
    read_any(path, key).or_exit(Exit::Checkpoint, || path.display())
}

/// Opens a `torch.save` file for its other parts, such as an optimiser's state: see [`PythonFile::lookup`] and [`tensors`].
pub fn open_python(path: &Path) -> Result<PythonFile> {
    super::python::read(path).or_exit(Exit::Checkpoint, || path.display())
}

fn read_any(path: &Path, key: Option<&str>) -> Result<(Weights, Vec<Unreadable>)> {
    let source = Source::open(path)?;
    if detect(&source)? == Container::Safetensors {
        if let Some(key) = key {
            bail!("a safetensors file has no keys such as `{key}`: leave the key out");
        }
        return read_safetensors(&source);
    }
    let file = read_source(source)?;
    let mut found = file.find(key)?;
    let mut unreadable = Vec::new();
    for stranger in &found.strangers {
        unreadable.push(Unreadable {
            name: stranger.name.clone(),
            shape: stranger.shape.clone(),
            dtype: stranger.dtype.map_or("", Dtype::name).to_owned(),
            reason: format!("is a {}: make it a plain one in Python first", stranger.what),
        });
    }
    found.tensors.retain(|(name, info)| match kind(info.dtype) {
        Ok(_) => true,
        Err(error) => {
            let (name, shape, dtype) = (name.clone(), info.shape.clone(), info.dtype.name().to_owned());
            unreadable.push(Unreadable { name, shape, dtype, reason: error.to_string() });
            false
        }
    });
    let weights = Weights {
        container: file.container,
        structure: found.describe(),
        tensors: tensors(&file, &found.tensors)?,
        metadata: file.metadata(found.value),
        key: found.path,
        others: found.others,
    };
    Ok((weights, unreadable))
}

/// Loads tensors of a `torch.save` file. Each storage is read once and shared by its views.
pub fn tensors(file: &PythonFile, wanted: &[(String, TensorInfo)]) -> Result<Vec<(String, Tensor)>> {
    let mut bools = BTreeSet::new();
    let mut jobs = BTreeMap::new();
    for (name, info) in wanted {
        let context = || format!("`{name}`");
        kind(info.dtype).with_context(context)?;
        if info.dtype == Dtype::Bool {
            bools.insert(info.storage);
        }
        if info.numel() > 0 && !jobs.contains_key(&info.storage) {
            jobs.insert(info.storage, file.check_storage(info.storage).with_context(context)?);
        }
    }
    let (jobs, lens): (Vec<u32>, Vec<u64>) = jobs.into_iter().unzip();
    let storages = bytes::filled(&lens, |at, buffer| {
        file.read_storage(jobs[at], buffer)?;
        if bools.contains(&jobs[at]) {
            plain_bools(buffer);
        }
        Ok(())
    })?;
    let storages: BTreeMap<u32, Tensor> = jobs.into_iter().zip(storages).collect();
    wanted
        .iter()
        .map(|(name, info)| {
            let tensor = view(info, storages.get(&info.storage)).with_context(|| format!("`{name}`"))?;
            Ok((name.clone(), tensor))
        })
        .collect()
}

fn view(info: &TensorInfo, storage: Option<&Tensor>) -> Result<Tensor> {
    let kind = kind(info.dtype)?;
    let Some(storage) = storage.filter(|_| info.numel() > 0) else {
        return Ok(Tensor::f_zeros(&info.shape, (kind, Device::Cpu))?);
    };
    let size = info.dtype.size() as i64;
    let whole = storage.f_narrow(0, 0, storage.size1()? / size * size)?;
    let mut tensor =
        whole.f_view_dtype(kind)?.f_as_strided(&info.shape, &info.strides, i64::try_from(info.offset)?)?;
    if info.conj {
        tensor = tensor.f_conj_physical()?;
    }
    if info.neg {
        tensor = tensor.f_neg()?;
    }
    Ok(tensor)
}

fn read_safetensors(source: &Source) -> Result<(Weights, Vec<Unreadable>)> {
    let mut header = safetensors::header(source)?;
    let (mut kinds, mut unreadable) = (Vec::new(), Vec::new());
    header.items.retain(|item| {
        match item.dtype.context("is of a dtype that libtorch does not have").and_then(kind) {
            Ok(kind) => {
                kinds.push(kind);
                true
            }
            Err(error) => {
                unreadable.push(Unreadable {
                    name: item.name.clone(),
                    shape: item.shape.clone(),
                    dtype: item.dtype_name.clone(),
                    reason: error.to_string(),
                });
                false
            }
        }
    });
    let lens: Vec<u64> = header.items.iter().map(|item| item.bytes).collect();
    let raw = bytes::filled(&lens, |at, buffer| {
        let item = &header.items[at];
        source.read_at(buffer, item.start).with_context(|| format!("`{}`", item.name))?;
        if item.dtype == Some(Dtype::Bool) {
            plain_bools(buffer);
        }
        Ok(())
    })?;
    let mut tensors = Vec::with_capacity(raw.len());
    for ((item, kind), raw) in header.items.into_iter().zip(kinds).zip(raw) {
        let tensor = raw.f_view_dtype(kind)?.f_reshape(&item.shape);
        tensors.push((item.name, tensor?));
    }
    let weights = Weights {
        container: Container::Safetensors,
        structure: "named tensors".into(),
        key: String::new(),
        others: Vec::new(),
        tensors,
        metadata: header.metadata.into_iter().map(|(key, value)| (key, value.into())).collect(),
    };
    Ok((weights, unreadable))
}

/// The tch kind of a file's dtype, or an error that names it.
pub fn kind(dtype: Dtype) -> Result<Kind> {
    Ok(match dtype {
        Dtype::Bool => Kind::Bool,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::C32 => Kind::ComplexHalf,
        Dtype::C64 => Kind::ComplexFloat,
        Dtype::C128 => Kind::ComplexDouble,
        Dtype::F8E4M3 => Kind::Float8e4m3fn,
        Dtype::F8E5M2 => Kind::Float8e5m2,
        Dtype::F8E4M3Fnuz => Kind::Float8e4m3fnuz,
        Dtype::F8E5M2Fnuz => Kind::Float8e5m2fnuz,
        Dtype::QI8 | Dtype::QU8 | Dtype::QI32 | Dtype::QU4x2 | Dtype::QU2x4 => {
            bail!("is quantized ({}): dequantize it in Python first", dtype.name())
        }
        Dtype::U16 | Dtype::U32 | Dtype::U64 | Dtype::F8E8M0 => {
            bail!("is of dtype {}, which cannot be read: convert it in Python first", dtype.name())
        }
    })
}

/// The file's name of a tch kind; None for quantized kinds.
pub fn dtype(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Bool => Dtype::Bool,
        Kind::Uint8 => Dtype::U8,
        Kind::Int8 => Dtype::I8,
        Kind::Int16 => Dtype::I16,
        Kind::Int => Dtype::I32,
        Kind::Int64 => Dtype::I64,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::ComplexHalf => Dtype::C32,
        Kind::ComplexFloat => Dtype::C64,
        Kind::ComplexDouble => Dtype::C128,
        Kind::Float8e4m3fn => Dtype::F8E4M3,
        Kind::Float8e5m2 => Dtype::F8E5M2,
        Kind::Float8e4m3fnuz => Dtype::F8E4M3Fnuz,
        Kind::Float8e5m2fnuz => Dtype::F8E5M2Fnuz,
        Kind::QInt8 | Kind::QUInt8 | Kind::QInt32 => return None,
    })
}

/// Any other byte in a bool is undefined behaviour in libtorch's kernels.
fn plain_bools(bytes: &mut [u8]) {
    bytes.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
}
