//! Arrays that numpy pickled (`ndarray.__reduce__`, protocols 2 to 5), as tensors over their own bytes.

use anyhow::{Context, Result, bail};

use super::dtype::Dtype;
use super::globals::{contiguous, inside};
use super::heap::{Object, ObjectArena, Storage, TensorInfo, Value};
use super::pickle::Unpickler;

impl Unpickler<'_> {
    /// The tensor that an array of class `class` with the state (version, shape, dtype, is_fortran, bytes)
    /// is; None for dtypes that no tensor has.
    pub(super) fn ndarray(&mut self, class: Value, state: Value) -> Result<Option<TensorInfo>> {
        if !is_array(&self.heap, class) {
            return Ok(None);
        }
        match self.heap.sequence(state) {
            Some(&[_, shape, dtype, fortran, raw] | &[shape, dtype, fortran, raw]) => {
                self.array(shape, dtype, fortran == Value::Bool(true), raw).context("a numpy array")
            }
            _ => Ok(None),
        }
    }

    /// The same of `_frombuffer(bytes, dtype, shape, order)`.
    pub(super) fn array_from_buffer(&mut self, args: Value) -> Result<Option<TensorInfo>> {
        let Some(&[raw, dtype, shape, order]) = self.heap.sequence(args) else { return Ok(None) };
        let fortran = self.heap.str(order) == Some("F");
        self.array(shape, dtype, fortran, raw).context("a numpy array")
    }

    fn array(&mut self, shape: Value, dtype: Value, fortran: bool, raw: Value) -> Result<Option<TensorInfo>> {
        let (Some((dtype, true)), Value::Ref(at)) = (numpy_dtype(&self.heap, dtype), raw) else {
            return Ok(None);
        };
        let Some(Object::Bytes(bytes)) = self.heap.object(raw) else { return Ok(None) };
        let bytes = bytes.len() as u64;
        let mut shape = self.dims(Some(shape)).context("its shape")?;
        let numel = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
        if numel.and_then(|n| n.checked_mul(dtype.size())) != Some(bytes) {
            bail!("its shape {shape:?} wants other than its {bytes} bytes");
        }
        if fortran {
            shape.reverse();
        }
        let mut strides = contiguous(&shape).context("its shape overflows")?;
        if fortran {
            shape.reverse();
            strides.reverse();
        }
        inside(dtype, &shape, &strides, 0, bytes / dtype.size())?;
        let storage = match self.by_object.get(&at) {
            Some(&storage) => storage,
            None => {
                self.budget.charge(2 * 64)?;
                let index = u32::try_from(self.storages.len())?;
                self.storages.push(Storage { key: "numpy".into(), bytes, unit: 1, inline: Some(at) });
                self.by_object.insert(at, index);
                index
            }
        };
        self.budget.charge(size_of::<TensorInfo>() as u64 + 16 * shape.len() as u64 + 96)?;
        Ok(Some(TensorInfo { storage, dtype, offset: 0, shape, strides, conj: false, neg: false }))
    }
}

/// Whether a record's class is numpy's array.
pub(super) fn is_array(heap: &ObjectArena, class: Value) -> bool {
    heap.global(class).is_some_and(|global| &*global.module == "numpy" && &*global.name == "ndarray")
}

/// The element type that a `numpy.dtype` is, and whether its bytes are little-endian; None for texts, objects
/// and records.
pub(super) fn numpy_dtype(heap: &ObjectArena, dtype: Value) -> Option<(Dtype, bool)> {
    let record = heap.record(dtype)?;
    let code = heap.str(*heap.sequence(record.args)?.first()?)?;
    let order = heap.sequence(record.state).and_then(|state| heap.str(*state.get(1)?));
    let dtype = match code {
        "b1" => Dtype::Bool,
        "u1" => Dtype::U8,
        "i1" => Dtype::I8,
        "i2" => Dtype::I16,
        "u2" => Dtype::U16,
        "i4" => Dtype::I32,
        "u4" => Dtype::U32,
        "i8" => Dtype::I64,
        "u8" => Dtype::U64,
        "f2" => Dtype::F16,
        "f4" => Dtype::F32,
        "f8" => Dtype::F64,
        "c8" => Dtype::C64,
        "c16" => Dtype::C128,
        _ => return None,
    };
    Some((dtype, order != Some(">")))
}
