//! Tensors of kinds that cannot be read, quantized, sparse and the like: reported by name, never guessed at.

use super::PythonFile;
use super::dtype::Dtype;
use super::heap::{Object, Value};
use super::numpy::{is_array, numpy_dtype};

/// A tensor that is no view of one storage.
#[derive(Clone, Debug)]
pub struct UnsupportedTensor {
    pub name: String,
    /// Empty where the file does not say it.
    pub shape: Vec<i64>,
    pub dtype: Option<Dtype>,
    /// Such as `sparse tensor`.
    pub what: &'static str,
}

impl PythonFile {
    /// What kind of tensor a record is, where no other code knows it.
    pub(super) fn stranger(&self, value: Value) -> Option<&'static str> {
        let record = self.heap.record(value)?;
        if is_array(&self.heap, record.class) {
            let dtype = *self.heap.sequence(record.state)?.iter().rev().nth(2)?;
            return numpy_dtype(&self.heap, dtype).map(|_| "numpy array of another byte order");
        }
        let global = self.heap.global(record.class)?;
        let kind = global.name.strip_prefix("_rebuild_")?;
        (&*global.module == "torch._utils").then(|| unreadable(kind))
    }

    /// Shape and dtype of a tensor that cannot be read, as far as its arguments tell them.
    pub(super) fn shape_hint(&self, value: Value) -> (Vec<i64>, Option<Dtype>) {
        let heap = &self.heap;
        let args = heap.record(value).and_then(|record| heap.sequence(record.args)).unwrap_or_default();
        // Sparse tensors have (layout, their parts), the others their parts.
        let parts = args.get(1).and_then(|&parts| heap.sequence(parts));
        let is_numbers = |value: &Value| {
            let numbers = heap.sequence(*value).filter(|numbers| numbers.len() <= 64)?;
            let number = |value: &Value| if let Value::Int(number) = value { Some(*number) } else { None };
            numbers.iter().map(number).collect::<Option<Vec<i64>>>()
        };
        let of_tensor = |value: &Value| heap.tensor(*value).map(|tensor| tensor.dtype);
        match parts.filter(|parts| parts.iter().any(|part| of_tensor(part).is_some())) {
            Some(parts) => {
                let shape = parts.iter().find_map(is_numbers).unwrap_or_default();
                (shape, parts.iter().rev().find_map(of_tensor))
            }
            None => {
                let dtype = args.iter().find_map(|&value| match heap.object(value)? {
                    Object::Storage(storage) => storage.dtype,
                    Object::Global(global) => Dtype::from_name(&global.name),
                    _ => None,
                });
                (args.iter().find_map(is_numbers).unwrap_or_default(), dtype)
            }
        }
    }
}

fn unreadable(kind: &str) -> &'static str {
    match kind {
        "qtensor" => "quantized tensor",
        "sparse_tensor" | "sparse_csr_tensor" => "sparse tensor",
        "meta_tensor_no_storage" => "tensor without data (device meta)",
        "nested_tensor" => "nested tensor",
        _ => "tensor of a special kind",
    }
}
