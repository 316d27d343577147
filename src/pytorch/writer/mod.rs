//! Writes what `torch.save` writes: a zip that `torch.load(weights_only=True)` opens, a state_dict as an
//! OrderedDict.
//!
//! Nothing is buffered but the pickle: each storage goes from the tensor's memory to the file, aligned to 64
//! bytes.

mod pickle;
pub mod safetensors;
mod zip;

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

use super::weights::dtype;
use crate::libtorch::bytes;
use crate::pytorch::reader::dtype::Dtype;
use crate::util::atomic_file;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
pub(crate) use zip::Zip;

/// An object to be saved: what Python's plain data consists of.
#[derive(Debug)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Tensor(Tensor),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    OrderedDict(Vec<(Value, Value)>),
    /// An [`OrderedDict`](Value::OrderedDict) with the attribute `metadata`.
    Described(Vec<(Value, Value)>, Box<Value>),
}

impl Value {
    /// A dict with text for keys.
    pub fn dict<'a>(items: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
        Value::Dict(items.into_iter().map(|(key, value)| (Value::Str(key.into()), value)).collect())
    }

    /// Named tensors as Python's `state_dict()` returns them.
    pub fn state_dict(tensors: &[(String, Tensor)]) -> Value {
        let item = |(name, tensor): &(String, Tensor)| {
            (Value::Str(name.clone()), Value::Tensor(tensor.shallow_clone()))
        };
        Value::OrderedDict(tensors.iter().map(item).collect())
    }

    /// The tensors inside, in the order in which they are written, each with the key that is nearest to it.
    fn tensors<'a>(&'a self, name: &'a str, into: &mut Vec<(&'a str, &'a Tensor)>) {
        match self {
            Value::Tensor(tensor) => into.push((name, tensor)),
            Value::List(values) | Value::Tuple(values) => {
                values.iter().for_each(|value| value.tensors(name, into));
            }
            Value::Dict(items) | Value::OrderedDict(items) | Value::Described(items, _) => {
                for (key, value) in items {
                    key.tensors(name, into);
                    value.tensors(if let Value::Str(key) = key { key } else { name }, into);
                }
            }
            _ => {}
        }
    }
}

/// Writes `tensors` to `path` as a bare state_dict: see [`save`].
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    save(path, &Value::state_dict(tensors))
}

/// The same with an attribute beside the tensors, which `load_state_dict` passes over:
/// `torch.load(path).metadata`.
pub fn write_with(path: &Path, tensors: &[(String, Tensor)], metadata: Value) -> Result<()> {
    match Value::state_dict(tensors) {
        Value::OrderedDict(items) => save(path, &Value::Described(items, Box::new(metadata))),
        plain => save(path, &plain),
    }
}

/// Converts the floating-point tensors; tied ones stay tied. Exit 4 where finite values would become
/// infinite.
pub fn narrow(tensors: Vec<(String, Tensor)>, kind: Kind) -> Result<Vec<(String, Tensor)>> {
    let overflows = |(_, tensor): &&(String, Tensor)| -> bool {
        let lost = || -> Result<bool, tch::TchError> {
            let infinite = tensor.f_to_kind(kind)?.f_isfinite()?.f_logical_not()?;
            Ok(tensor.f_isfinite()?.f_logical_and(&infinite)?.f_any()?.int64_value(&[]) != 0)
        };
        // What cannot be converted at all is reported below.
        tensor.is_floating_point() && lost().unwrap_or(false)
    };
    let names: Vec<_> = tensors.iter().filter(overflows).map(|(name, _)| format!("`{name}`")).collect();
    if !names.is_empty() {
        let (dtype, remedy) = match kind {
            Kind::Half => ("float16, which ends at 65504", "say --bf16, or leave --half out"),
            Kind::BFloat16 => ("bfloat16", "leave --bf16 out"),
            _ => ("float32", "export to a format that has float64"),
        };
        let message = format!("{} hold values too large for {dtype}: {remedy}", names.join(", "));
        return Err(fail(ExitCode::Checkpoint, message));
    }
    let mut done: HashMap<_, Tensor> = HashMap::new();
    tensors
        .into_iter()
        .map(|(name, tensor)| {
            if !tensor.is_floating_point() {
                return Ok((name, tensor));
            }
            let place = (tensor.data_ptr() as usize, tensor.size(), tensor.stride());
            let narrowed = match done.get(&place) {
                Some(twin) => twin.shallow_clone(),
                None => {
                    tensor.f_to_kind(kind).with_exit_code(ExitCode::Checkpoint, || format!("`{name}`"))?
                }
            };
            done.insert(place, narrowed.shallow_clone());
            Ok((name, narrowed))
        })
        .collect()
}

/// Writes `value` to `path`, atomically. Tensors whose memory overlaps share a storage, with their strides;
/// the others are stored contiguously. Any device; quantized tensors are refused.
pub fn save(path: &Path, value: &Value) -> Result<()> {
    let parts = Parts::of(value)?;
    atomic_file::write(path, |file| parts.write(file))
}

/// The bytes of the file that [`save`] would write.
pub(crate) fn to_bytes(value: &Value) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    Parts::of(value)?.write(&mut bytes)?;
    Ok(bytes)
}

/// The pickle, and the memory that it refers to.
struct Parts {
    pickle: Vec<u8>,
    plan: Plan,
}

impl Parts {
    fn of(value: &Value) -> Result<Self> {
        let mut tensors = Vec::new();
        value.tensors("the tensor", &mut tensors);
        let plan = Plan::new(&tensors)?;
        Ok(Self { pickle: pickle::pickle(value, &plan)?, plan })
    }

    fn write(&self, file: &mut impl Write) -> Result<()> {
        let mut zip = Zip::new(file, "archive");
        zip.entry("data.pkl", &self.pickle)?;
        zip.entry("byteorder", b"little")?;
        for (index, storage) in self.plan.storages.iter().enumerate() {
            let cpu = storage.memory()?;
            bytes::with(&cpu, |bytes| zip.entry(&format!("data/{index}"), bytes))??;
        }
        zip.entry("version", b"3\n")?;
        zip.finish()
    }
}

/// Which storages there are and which part of them each tensor is.
struct Plan {
    storages: Vec<Store>,
    views: Vec<View>,
}

struct View {
    storage: usize,
    dtype: Dtype,
    /// In elements.
    offset: i64,
    shape: Vec<i64>,
    strides: Vec<i64>,
}

/// The memory behind one or several tensors.
struct Store {
    tensor: Tensor,
    /// Set where several tensors share it: the elements from the tensor's first on, to be taken as they lie.
    extent: Option<i64>,
    /// Elements.
    len: i64,
}

impl Store {
    fn memory(&self) -> Result<Tensor> {
        let flat = match self.extent {
            Some(len) => self.tensor.f_as_strided([len], [1i64], None)?,
            None => self.tensor.f_contiguous()?,
        };
        Ok(flat.f_to_device(Device::Cpu)?.f_contiguous()?)
    }
}

impl Plan {
    fn new(tensors: &[(&str, &Tensor)]) -> Result<Plan> {
        // Address ranges, by start: overlapping ones belong to one storage, and what lies between their ends
        // does too.
        struct Span {
            index: usize,
            device: Device,
            start: usize,
            end: usize,
        }
        let mut spans = Vec::with_capacity(tensors.len());
        for (index, (name, tensor)) in tensors.iter().enumerate() {
            let size =
                dtype(tensor.kind()).with_context(|| format!("`{name}` is quantized"))?.size() as usize;
            let last: i64 =
                tensor.size().iter().zip(tensor.stride()).map(|(&d, stride)| (d - 1) * stride).sum();
            let start = if tensor.numel() == 0 { 0 } else { tensor.data_ptr() as usize };
            let end = if tensor.numel() == 0 { 0 } else { start + (last as usize + 1) * size };
            spans.push(Span { index, device: tensor.device(), start, end });
        }
        spans.sort_by_key(|span| (device_key(span.device), span.start, std::cmp::Reverse(span.end)));

        let mut groups: Vec<Vec<Span>> = Vec::new();
        let mut reach = 0;
        for span in spans {
            let joins = groups.last().and_then(|group| group.first()).is_some_and(|first| {
                let same = tensors[first.index].1.kind() == tensors[span.index].1.kind();
                same && first.device == span.device && span.start < reach && span.start != 0
            });
            reach = if joins { reach.max(span.end) } else { span.end };
            match groups.last_mut().filter(|_| joins) {
                Some(group) => group.push(span),
                None => groups.push(vec![span]),
            }
        }
        // Storages are numbered in the order of their first tensor, as PyTorch does.
        groups.sort_by_key(|group| group.iter().map(|span| span.index).min());

        let mut storages = Vec::with_capacity(groups.len());
        let mut views: Vec<Option<View>> = tensors.iter().map(|_| None).collect();
        for group in &groups {
            let shared = group.len() > 1;
            let base = &group[0];
            let first = tensors[base.index].1;
            let kind = dtype(first.kind()).context("a quantized tensor")?;
            let size = kind.size() as usize;
            let end = group.iter().map(|span| span.end).max().unwrap_or(base.end);
            let extent = shared.then_some(((end - base.start) / size) as i64);
            let len = extent.unwrap_or(first.numel() as i64);
            for span in group {
                let tensor = tensors[span.index].1;
                let shape = tensor.size();
                let strides = if shared { tensor.stride() } else { contiguous(&shape) };
                let offset = ((span.start - base.start) / size) as i64;
                views[span.index] =
                    Some(View { storage: storages.len(), dtype: kind, offset, shape, strides });
            }
            storages.push(Store { tensor: first.detach(), extent, len });
        }
        Ok(Plan { storages, views: views.into_iter().flatten().collect() })
    }
}

fn device_key(device: Device) -> (u8, usize) {
    match device {
        Device::Cpu => (0, 0),
        Device::Cuda(index) => (1, index),
        _ => (2, 0),
    }
}

fn contiguous(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1);
    }
    strides
}
