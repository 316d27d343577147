//! The weights of one file of Python's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use tch::{Device, Kind, Tensor};

use super::named_weights::{Part, Unreadable, Weights};
use crate::libtorch::bytes;
use crate::pytorch::reader::dtype::Dtype;
use crate::pytorch::reader::heap::TensorInfo;
use crate::pytorch::reader::source::Source;
use crate::pytorch::reader::{Container, Found, PythonFile, detect, onnx, read_source, safetensors};

/// Reads a zip, legacy, TorchScript, .pt2, safetensors or ONNX file, recognised by content.
pub fn read(path: &Path, part: &Part) -> Result<(Weights, Vec<Unreadable>)> {
    let source = Source::open(path)?;
    let container = detect(&source)?;
    if let Container::Safetensors | Container::Onnx = container {
        if let Some(key) = part.keys.first() {
            bail!("of the format {} a file has no keys such as `{key}`: leave the key out", container.name());
        }
        return match container {
            Container::Onnx => read_onnx(&source),
            _ => read_safetensors(&source),
        };
    }
    let file = read_source(source)?;
    let mut found = find(&file, part)?;
    let mut unreadable = Vec::new();
    for stranger in &found.strangers {
        unreadable.push(Unreadable {
            name: stranger.name.clone(),
            shape: stranger.shape.clone(),
            dtype: stranger.dtype.map_or("", Dtype::name).to_owned(),
            reason: format!("is a {}: make it a plain one in Python first", stranger.what),
        });
    }
    found.tensors.retain(|(name, info)| match stored(info.dtype) {
        Ok(_) => true,
        Err(error) => {
            let (name, shape, dtype) = (name.clone(), info.shape.clone(), info.dtype.name().to_owned());
            unreadable.push(Unreadable { name, shape, dtype, reason: error.to_string() });
            false
        }
    });
    let mut metadata = file.metadata(found.value);
    metadata.retain(|key, _| !part.keys.contains(key));
    let weights = Weights {
        key: found.path.clone(),
        others: found.others.clone(),
        widened: widened(found.tensors.iter().map(|(name, info)| (name, info.dtype))),
        modules: file.modules(&found)?,
        metadata,
        ..Weights::new(file.container, found.describe(), tensors(&file, &found.tensors)?)
    };
    Ok((weights, unreadable))
}

fn find(file: &PythonFile, part: &Part) -> Result<Found> {
    let [first, rest @ ..] = part.keys.as_slice() else { return file.find_raw(None, part.raw) };
    let mut found = file.find(Some(first))?;
    for key in rest {
        found.join(file.find(Some(key))?)?;
    }
    Ok(found)
}

/// The tensors whose dtype in memory is wider than the file's.
fn widened<'a>(tensors: impl Iterator<Item = (&'a String, Dtype)>) -> Vec<(String, Dtype)> {
    tensors.filter(|(_, dtype)| is_unsigned(*dtype)).map(|(name, dtype)| (name.clone(), dtype)).collect()
}

fn is_unsigned(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::U16 | Dtype::U32 | Dtype::U64)
}

/// Loads tensors of a `torch.save` file. Each storage is read once and shared by its views.
pub fn tensors(file: &PythonFile, wanted: &[(String, TensorInfo)]) -> Result<Vec<(String, Tensor)>> {
    let mut bools = BTreeSet::new();
    let mut jobs = BTreeMap::new();
    for (name, info) in wanted {
        let context = || format!("`{name}`");
        stored(info.dtype).with_context(context)?;
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
    let kind = stored(info.dtype)?;
    let Some(storage) = storage.filter(|_| info.numel() > 0) else {
        return widen(Tensor::f_zeros(&info.shape, (kind, Device::Cpu))?, info.dtype);
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
    widen(tensor, info.dtype)
}

fn read_onnx(source: &Source) -> Result<(Weights, Vec<Unreadable>)> {
    let onnx::Model { items, unreadable, metadata } = onnx::read(source)?;
    let header = safetensors::Header { items, metadata };
    let (weights, mut all) = read_items(source, header, Container::Onnx, "initialisers")?;
    all.extend(unreadable.into_iter().map(|(item, reason)| Unreadable {
        name: item.name,
        shape: item.shape,
        dtype: item.dtype_name,
        reason,
    }));
    Ok((weights, all))
}

fn read_safetensors(source: &Source) -> Result<(Weights, Vec<Unreadable>)> {
    read_items(source, safetensors::header(source)?, Container::Safetensors, "named tensors")
}

/// The tensors whose bytes the file has as they are.
fn read_items(
    source: &Source,
    mut header: safetensors::Header,
    container: Container,
    structure: &str,
) -> Result<(Weights, Vec<Unreadable>)> {
    let (mut kinds, mut unreadable) = (Vec::new(), Vec::new());
    header.items.retain(|item| {
        match item.dtype.context("is of a dtype that libtorch does not have").and_then(stored) {
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
    let dtypes = header.items.iter().filter_map(|item| Some((&item.name, item.dtype?)));
    let widened = widened(dtypes);
    let mut tensors = Vec::with_capacity(raw.len());
    for ((item, kind), raw) in header.items.into_iter().zip(kinds).zip(raw) {
        let tensor = raw.f_view_dtype(kind)?.f_reshape(&item.shape)?;
        let tensor = item.dtype.map_or(Ok(tensor.shallow_clone()), |dtype| widen(tensor, dtype));
        tensors.push((item.name.clone(), tensor.with_context(|| format!("`{}`", item.name))?));
    }
    let weights = Weights {
        widened,
        metadata: header.metadata.into_iter().map(|(key, value)| (key, value.into())).collect(),
        ..Weights::new(container, structure, tensors)
    };
    Ok((weights, unreadable))
}

/// The tch kind whose bytes a file's dtype has; of unsigned integers that of the same size, to be
/// [widened](widen).
fn stored(dtype: Dtype) -> Result<Kind> {
    match dtype {
        Dtype::U16 => Ok(Kind::Int16),
        Dtype::U32 => Ok(Kind::Int),
        Dtype::U64 => Ok(Kind::Int64),
        _ => kind(dtype),
    }
}

/// Unsigned integers as the next wider signed ones; those of 64 bits must fit.
fn widen(tensor: Tensor, dtype: Dtype) -> Result<Tensor> {
    Ok(match dtype {
        Dtype::U16 => tensor.f_to_kind(Kind::Int)?.f_bitwise_and(0xffff)?,
        Dtype::U32 => tensor.f_to_kind(Kind::Int64)?.f_bitwise_and(0xffff_ffff)?,
        Dtype::U64 if tensor.numel() > 0 && tensor.f_min()?.f_int64_value(&[])? < 0 => {
            bail!("holds values beyond {}, which int64 cannot hold: convert it in Python first", i64::MAX)
        }
        _ => tensor,
    })
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
