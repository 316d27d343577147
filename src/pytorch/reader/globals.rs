//! The few names that mean data here: tensors, storages, plain containers, numpy scalars. Everything else
//! becomes an inert [`Record`](super::heap::Record). Nothing is imported and nothing is called.

use anyhow::{Context, Result, bail};

use super::dtype::Dtype;
use super::heap::{Object, Storage, StorageRef, TensorInfo, Value};
use super::pickle::Unpickler;

/// As PyTorch's own limit for what its kernels iterate over.
const MAX_DIMS: usize = 64;

impl Unpickler<'_> {
    /// What `class(*args)` describes, pushed on the stack.
    pub(super) fn construct(&mut self, class: Value, args: Value) -> Result<()> {
        let Some(global) = self.heap.global(class) else {
            return self.record(class, args);
        };
        let first = self.argument(args, 0);
        match (&*global.module, &*global.name) {
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => {
                let value = self.tensor(args, None).context("a tensor")?;
                self.push(value)
            }
            ("torch._utils", "_rebuild_tensor_v3") => {
                let dtype = self.argument(args, 6).and_then(|value| self.dtype_of(value));
                let dtype = dtype.context("a tensor of a dtype that is not known")?;
                let value = self.tensor(args, Some(dtype)).context("a tensor")?;
                self.push(value)
            }
            // (tensor, requires_grad, hooks): a parameter is its tensor.
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state")
            | ("torch.nn.parameter", "Parameter" | "Buffer")
                if first.is_some_and(|value| self.heap.tensor(value).is_some()) =>
            {
                self.push(first.unwrap_or(Value::None))
            }
            // (function, class, args, state): the tensor without its subclass.
            ("torch._tensor", "_rebuild_from_type_v2" | "_rebuild_from_type") => {
                let inner = self.argument(args, 2);
                match (first.and_then(|f| self.heap.global(f)), first, inner) {
                    (Some(global), Some(function), Some(inner)) if &*global.module == "torch._utils" => {
                        self.construct(function, inner)
                    }
                    _ => self.record(class, args),
                }
            }
            ("torch.jit._pickle", name) if name != "build_tensor_from_id" => match first {
                Some(value) => self.push(value),
                None => self.record(class, args),
            },
            ("torch", "Size") => match first.and_then(|value| self.heap.sequence(value)) {
                Some(values) => self.fresh(Object::Tuple(values.to_vec())),
                None => self.fresh(Object::Tuple(Vec::new())),
            },
            ("collections", "OrderedDict" | "defaultdict" | "Counter") => self.dict(args),
            ("builtins" | "__builtin__", name) => match name {
                "set" | "frozenset" | "list" | "tuple" => {
                    let values =
                        first.and_then(|value| self.heap.sequence(value)).unwrap_or_default().to_vec();
                    self.fresh(match name {
                        "list" => Object::List(values),
                        "tuple" => Object::Tuple(values),
                        _ => Object::Set(values),
                    })
                }
                "dict" => self.dict(args),
                "bytearray" | "bytes" => match first {
                    None => self.fresh(Object::Bytes(Box::default())),
                    Some(value) => self.bytes_from(class, args, value),
                },
                "complex" => {
                    let part = |index| match self.argument(args, index) {
                        Some(Value::Float(x)) => Some(x),
                        Some(Value::Int(x)) => Some(x as f64),
                        _ => None,
                    };
                    match (part(0), part(1)) {
                        (Some(re), Some(im)) => self.fresh(Object::Complex(re, im)),
                        _ => self.record(class, args),
                    }
                }
                _ => self.record(class, args),
            },
            // Protocol 2 has no bytes: (latin-1 text, "latin1").
            ("_codecs", "encode") => match first {
                Some(value) => self.bytes_from(class, args, value),
                None => self.record(class, args),
            },
            // (class, …): what is rebuilt says more than who rebuilds it.
            ("copy_reg" | "copyreg", "_reconstructor")
            | ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => {
                self.record(first.unwrap_or(class), args)
            }
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => {
                match self.array_from_buffer(args)? {
                    Some(array) => {
                        let value = self.allocate(Object::Tensor(Box::new(array)), 0)?;
                        self.push(value)
                    }
                    None => self.record(class, args),
                }
            }
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => match self.numpy_scalar(args) {
                Some(value) => self.push(value),
                None => self.record(class, args),
            },
            _ => self.record(class, args),
        }
    }

    fn argument(&self, args: Value, index: usize) -> Option<Value> {
        self.heap.sequence(args)?.get(index).copied()
    }

    fn fresh(&mut self, object: Object) -> Result<()> {
        let payload = match &object {
            Object::Tuple(values) | Object::List(values) | Object::Set(values) => {
                (size_of::<Value>() * values.len()) as u64
            }
            Object::Bytes(bytes) => bytes.len() as u64,
            _ => 0,
        };
        let value = self.allocate(object, payload)?;
        self.push(value)
    }

    /// A dict from its constructor's arguments: nothing, a factory, another dict, or (Python 2) a list of
    /// pairs.
    fn dict(&mut self, args: Value) -> Result<()> {
        let mut items = Vec::new();
        let args = self.heap.sequence(args).unwrap_or_default();
        if let Some(other) = args.iter().find_map(|&value| self.heap.items(value)) {
            self.budget.charge(32 * other.len() as u64)?;
            items = other.to_vec();
        } else if let Some(pairs) = args.first().and_then(|&value| self.heap.sequence(value)) {
            self.budget.charge(32 * pairs.len() as u64)?;
            items.reserve_exact(pairs.len());
            for &pair in pairs {
                match self.heap.sequence(pair) {
                    Some(&[key, value]) => items.push((key, value)),
                    _ => bail!("a dict made of something that is no pair"),
                }
            }
        }
        self.fresh(Object::Dict(items))
    }

    fn bytes_from(&mut self, class: Value, args: Value, value: Value) -> Result<()> {
        let bytes: Box<[u8]> = match self.heap.object(value) {
            Some(Object::Bytes(bytes)) => {
                self.budget.charge(bytes.len() as u64)?;
                bytes.clone()
            }
            Some(Object::Str(text)) => {
                self.budget.charge(text.len() as u64)?;
                match text.chars().map(|c| u8::try_from(u32::from(c))).collect() {
                    Ok(bytes) => bytes,
                    Err(_) => return self.record(class, args),
                }
            }
            _ => return self.record(class, args),
        };
        self.fresh(Object::Bytes(bytes))
    }

    /// (numpy.dtype record, raw bytes) as a number.
    fn numpy_scalar(&self, args: Value) -> Option<Value> {
        let (dtype, raw) = (self.argument(args, 0)?, self.argument(args, 1)?);
        let record = self.heap.record(dtype)?;
        let code = self.heap.str(self.argument(record.args, 0)?)?;
        let big = self.argument(record.state, 1).and_then(|value| self.heap.str(value)) == Some(">");
        let Some(Object::Bytes(raw)) = self.heap.object(raw) else { return None };
        let mut word = [0u8; 8];
        let bytes = word.get_mut(..raw.len())?;
        bytes.copy_from_slice(raw);
        if big {
            bytes.reverse();
        }
        let bits = u64::from_le_bytes(word);
        let shift = 64 - 8 * raw.len() as u32;
        Some(match (code, raw.len()) {
            ("f8", 8) => Value::Float(f64::from_bits(bits)),
            ("f4", 4) => Value::Float(f32::from_bits(bits as u32).into()),
            ("f2", 2) => Value::Float(half(bits as u16)),
            ("b1", 1) => Value::Bool(bits != 0),
            ("i1" | "i2" | "i4" | "i8", 1..=8) => Value::Int((bits << shift) as i64 >> shift),
            ("u1" | "u2" | "u4", 1..=4) => Value::Int(bits as i64),
            ("u8", 8) => Value::Int(i64::try_from(bits).ok()?),
            _ => return None,
        })
    }

    /// `torch.float32` and its like.
    fn dtype_of(&self, value: Value) -> Option<Dtype> {
        let global = self.heap.global(value)?;
        (&*global.module == "torch").then(|| Dtype::from_name(&global.name)).flatten()
    }

    /// (storage, offset, size, stride, …) with every bound checked; the storage's own bytes are checked when
    /// it is read.
    fn tensor(&mut self, args: Value, dtype: Option<Dtype>) -> Result<Value> {
        let Some(Object::Storage(storage)) = self.argument(args, 0).and_then(|value| self.heap.object(value))
        else {
            bail!("its storage is missing");
        };
        let storage = storage.clone();
        let dtype = dtype.or(storage.dtype).context("its dtype is not known")?;
        let available = match storage.dtype {
            Some(own) if own != dtype => bail!("{} viewed in a storage of {}", dtype.name(), own.name()),
            Some(_) => storage.len,
            None => storage.len / dtype.size(),
        };
        if storage.dtype.is_none() && storage.offset != 0 {
            bail!("a view of an untyped storage");
        }
        let Some(Value::Int(offset)) = self.argument(args, 1) else {
            bail!("its storage offset is no integer")
        };
        let shape = self.dims(self.argument(args, 2)).context("its size")?;
        let strides = self.dims(self.argument(args, 3)).context("its stride")?;
        let offset = u64::try_from(offset).ok().context("a negative storage offset")?;
        inside(dtype, &shape, &strides, offset, available)?;
        let flag = |key| {
            let metadata = self.argument(args, if storage.dtype.is_none() { 7 } else { 6 });
            metadata.and_then(|dict| self.heap.get(dict, key)) == Some(Value::Bool(true))
        };
        let (conj, neg) = (flag("conj"), flag("neg"));
        let payload = (size_of::<TensorInfo>() + 16 * shape.len()) as u64 + 96;
        let offset = offset + storage.offset;
        let tensor = TensorInfo { storage: storage.index, dtype, offset, shape, strides, conj, neg };
        self.allocate(Object::Tensor(Box::new(tensor)), payload)
    }

    /// A tuple of integers, none negative.
    pub(super) fn dims(&self, value: Option<Value>) -> Result<Vec<i64>> {
        let values = value.and_then(|value| self.heap.sequence(value)).context("not a tuple")?;
        if values.len() > MAX_DIMS {
            bail!("{} dimensions", values.len());
        }
        values
            .iter()
            .map(|value| match value {
                Value::Int(d) if *d >= 0 => Ok(*d),
                Value::Int(d) => bail!("{d} is negative"),
                _ => bail!("not an integer"),
            })
            .collect()
    }

    /// What a persistent id refers to: a storage, or (legacy files of whole models) a class with its source.
    pub(super) fn persistent(&mut self, id: Value) -> Result<Value> {
        let parts = self.heap.sequence(id).context("a persistent id that is no tuple")?.to_vec();
        let text = |index: usize| parts.get(index).and_then(|&value| self.heap.str(value));
        match text(0) {
            Some("module") => return parts.get(1).copied().context("a class without a name"),
            Some("storage") => {}
            _ => bail!("a persistent id of a kind that is not known"),
        }
        let class =
            parts.get(1).and_then(|&value| self.heap.global(value)).context("a storage without a class")?;
        let dtype =
            match &*class.name {
                "UntypedStorage" => None,
                name => Some(Dtype::from_storage_class(name).with_context(|| {
                    format!("a storage of class {}, which is not known", class.full_name())
                })?),
            };
        let key = text(2).context("a storage without a key")?;
        if key.len() > 1024 {
            bail!("a storage key of {} bytes", key.len());
        }
        let Some(&Value::Int(len)) = parts.get(4) else { bail!("storage {key:?} without a size") };
        let len = u64::try_from(len).ok().with_context(|| format!("storage {key:?} of negative size"))?;
        let unit = dtype.map_or(1, Dtype::size);
        let bytes = len
            .checked_mul(unit)
            .filter(|&bytes| bytes <= i64::MAX as u64)
            .with_context(|| format!("storage {key:?}: {len} elements overflow"))?;

        let index = match self.by_key.get(key) {
            Some(&index) => {
                let known = &self.storages[index as usize];
                if (known.bytes, known.unit) != (bytes, unit) {
                    bail!("storage {key:?} is declared twice, with {} and with {bytes} bytes", known.bytes);
                }
                index
            }
            None => {
                self.budget.charge(2 * (key.len() as u64 + 32) + 3 * 40 + 3 * 24)?;
                let index = u32::try_from(self.storages.len())?;
                let key: Box<str> = key.into();
                self.storages.push(Storage { key: key.clone(), bytes, unit, inline: None });
                self.by_key.insert(key, index);
                index
            }
        };

        // Legacy files: (key, offset, size) of a storage that is a window into another.
        let (mut offset, mut window) = (0, len);
        if let Some(view) = parts.get(5).and_then(|&value| self.heap.sequence(value)) {
            let (Some(&Value::Int(start)), Some(&Value::Int(size))) = (view.get(1), view.get(2)) else {
                bail!("a storage view without offset and size");
            };
            (offset, window) = (u64::try_from(start)?, u64::try_from(size)?);
            if offset.checked_add(window).is_none_or(|end| end > len) {
                bail!("a storage view of {window} elements at {offset} in a storage of {len}");
            }
        }
        let storage = StorageRef { index, dtype, offset, len: window };
        self.allocate(Object::Storage(Box::new(storage)), size_of::<StorageRef>() as u64)
    }
}

/// Refuses a view whose extent leaves its storage of `available` elements.
pub(super) fn inside(
    dtype: Dtype,
    shape: &[i64],
    strides: &[i64],
    offset: u64,
    available: u64,
) -> Result<()> {
    if shape.len() != strides.len() {
        bail!("{} sizes and {} strides", shape.len(), strides.len());
    }
    // Zero-sized dimensions must not hide an overflow from those who multiply the sizes later.
    let numel = shape.iter().try_fold(1i64, |n, &d| n.checked_mul(d.max(1)));
    let too_large = || format!("its sizes {shape:?} overflow");
    numel.and_then(|n| n.checked_mul(dtype.size() as i64)).with_context(too_large)?;
    let last = shape.iter().zip(strides).try_fold(offset, |last, (&d, &stride)| {
        last.checked_add((d.max(1) as u64 - 1).checked_mul(stride as u64)?)
    });
    let empty = shape.contains(&0);
    let fits = |last: u64| if empty { offset <= available } else { last < available };
    if !last.is_some_and(fits) {
        bail!(
            "sizes {shape:?} with strides {strides:?} at {offset} reach outside its storage of {available} elements"
        );
    }
    Ok(())
}

/// The strides of a row-major tensor; None where they overflow.
pub(super) fn contiguous(shape: &[i64]) -> Option<Vec<i64>> {
    let mut strides = vec![1i64; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].checked_mul(shape[i].max(1))?;
    }
    Some(strides)
}

/// IEEE half precision, widened.
fn half(bits: u16) -> f64 {
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let fraction = f64::from(bits & 0x3ff) / 1024.0;
    sign * match (bits >> 10) & 0x1f {
        0 => fraction * 2f64.powi(-14),
        0x1f if fraction == 0.0 => f64::INFINITY,
        0x1f => f64::NAN,
        exponent => (1.0 + fraction) * 2f64.powi(i32::from(exponent) - 15),
    }
}
