//! Element types as PyTorch names them.

/// An element type. `torch.dtype` names in [`Dtype::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    Bool,
    U8,
    I8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F16,
    BF16,
    F32,
    F64,
    C32,
    C64,
    C128,
    F8E4M3,
    F8E5M2,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    F8E8M0,
    QI8,
    QU8,
    QI32,
    QU4x2,
    QU2x4,
}

/// dtype, name, aliases of the name, name of its typed storage, bytes.
const TABLE: &[(Dtype, &str, &[&str], &str, u64)] = &[
    (Dtype::Bool, "bool", &[], "BoolStorage", 1),
    (Dtype::U8, "uint8", &[], "ByteStorage", 1),
    (Dtype::I8, "int8", &[], "CharStorage", 1),
    (Dtype::I16, "int16", &["short"], "ShortStorage", 2),
    (Dtype::U16, "uint16", &[], "", 2),
    (Dtype::I32, "int32", &["int"], "IntStorage", 4),
    (Dtype::U32, "uint32", &[], "", 4),
    (Dtype::I64, "int64", &["long"], "LongStorage", 8),
    (Dtype::U64, "uint64", &[], "", 8),
    (Dtype::F16, "float16", &["half"], "HalfStorage", 2),
    (Dtype::BF16, "bfloat16", &[], "BFloat16Storage", 2),
    (Dtype::F32, "float32", &["float"], "FloatStorage", 4),
    (Dtype::F64, "float64", &["double"], "DoubleStorage", 8),
    (Dtype::C32, "complex32", &["chalf"], "ComplexHalfStorage", 4),
    (Dtype::C64, "complex64", &["cfloat"], "ComplexFloatStorage", 8),
    (Dtype::C128, "complex128", &["cdouble"], "ComplexDoubleStorage", 16),
    (Dtype::F8E4M3, "float8_e4m3fn", &[], "", 1),
    (Dtype::F8E5M2, "float8_e5m2", &[], "", 1),
    (Dtype::F8E4M3Fnuz, "float8_e4m3fnuz", &[], "", 1),
    (Dtype::F8E5M2Fnuz, "float8_e5m2fnuz", &[], "", 1),
    (Dtype::F8E8M0, "float8_e8m0fnu", &[], "", 1),
    (Dtype::QI8, "qint8", &[], "QInt8Storage", 1),
    (Dtype::QU8, "quint8", &[], "QUInt8Storage", 1),
    (Dtype::QI32, "qint32", &[], "QInt32Storage", 4),
    (Dtype::QU4x2, "quint4x2", &[], "QUInt4x2Storage", 1),
    (Dtype::QU2x4, "quint2x4", &[], "QUInt2x4Storage", 1),
];

impl Dtype {
    fn row(self) -> &'static (Dtype, &'static str, &'static [&'static str], &'static str, u64) {
        // TABLE is in the order of the variants; a test holds it to that.
        &TABLE[self as usize]
    }

    /// `float32`, as in `torch.float32`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The typed storage class, such as `FloatStorage`; None where PyTorch has only untyped storage.
    pub fn storage_class(self) -> Option<&'static str> {
        Some(self.row().3).filter(|name| !name.is_empty())
    }

    /// Bytes of one element.
    pub fn size(self) -> u64 {
        self.row().4
    }

    pub fn from_name(name: &str) -> Option<Dtype> {
        TABLE.iter().find(|row| row.1 == name || row.2.contains(&name)).map(|row| row.0)
    }

    pub fn from_storage_class(class: &str) -> Option<Dtype> {
        TABLE.iter().find(|row| !class.is_empty() && row.3 == class).map(|row| row.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_variants() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, index);
        }
    }
}
