//! The messages of an ONNX file: onnx.proto3, IR version 8.

use crate::util::protobuf::Message;

/// The version of the format, and of the operators of the default domain: ONNX 1.13, which onnxruntime reads
/// from 1.14 on.
pub const IR_VERSION: i64 = 8;
pub const OPSET: i64 = 18;

/// `TensorProto.DataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    Float = 1,
    Uint8 = 2,
    Int64 = 7,
    Bool = 9,
    Half = 10,
    Double = 11,
}

/// The value of a node's attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    Int(i64),
    Float(f64),
    Text(&'static str),
    Ints(Vec<i64>),
}

impl Attribute {
    fn message(&self, name: &str) -> Message {
        // `AttributeProto.AttributeType`
        const FLOAT: i64 = 1;
        const INT: i64 = 2;
        const STRING: i64 = 3;
        const INTS: i64 = 7;
        let mut message = Message::default();
        message.bytes(1, name);
        match self {
            Self::Float(value) => message.float(2, *value as f32).integer(20, FLOAT),
            Self::Int(value) => message.integer(3, *value).integer(20, INT),
            Self::Text(value) => message.bytes(4, value).integer(20, STRING),
            Self::Ints(values) => {
                // Not packed: the field is one of proto2.
                for value in values {
                    message.integer(8, *value);
                }
                message.integer(20, INTS)
            }
        };
        message
    }
}

/// `NodeProto`; an input that is left out is an empty name.
pub fn node(
    op: &str,
    name: &str,
    inputs: &[&str],
    outputs: &[&str],
    attributes: &[(&str, Attribute)],
) -> Message {
    let mut message = Message::default();
    for (field, names) in [(1, inputs), (2, outputs)] {
        for name in names {
            message.bytes(field, name);
        }
    }
    message.bytes(3, name).bytes(4, op);
    for (name, value) in attributes {
        message.bytes(5, value.message(name));
    }
    message
}

/// One extent of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    Fixed(i64),
    /// Free, under this name.
    Named(String),
}

/// `ValueInfoProto` of a tensor.
pub fn value(name: &str, element: Element, dims: &[Dim]) -> Message {
    let mut shape = Message::default();
    for dim in dims {
        let mut extent = Message::default();
        match dim {
            Dim::Fixed(extent_of) => extent.integer(1, *extent_of),
            Dim::Named(name) => extent.bytes(2, name),
        };
        shape.bytes(1, extent);
    }
    let (mut tensor, mut kind, mut message) = (Message::default(), Message::default(), Message::default());
    tensor.integer(1, element as i64).bytes(2, shape);
    kind.bytes(1, tensor);
    message.bytes(1, name).bytes(2, kind);
    message
}

/// `TensorProto` up to its values, which `raw` bytes follow in field 9.
pub fn tensor(name: &str, element: Element, dims: &[i64], raw: u64) -> Message {
    let mut message = head(name, element, dims);
    message.header(9, raw);
    message
}

/// `TensorProto` whose values are in a file beside the model.
pub fn external(name: &str, element: Element, dims: &[i64], file: &str, offset: u64, raw: u64) -> Message {
    const EXTERNAL: i64 = 1;
    let mut message = head(name, element, dims);
    for (key, value) in [("location", file), ("offset", &offset.to_string()), ("length", &raw.to_string())] {
        message.bytes(13, pair(key, value));
    }
    message.integer(14, EXTERNAL);
    message
}

fn head(name: &str, element: Element, dims: &[i64]) -> Message {
    let mut message = Message::default();
    if !dims.is_empty() {
        message.integers(1, dims);
    }
    message.integer(2, element as i64).bytes(8, name);
    message
}

/// `StringStringEntryProto`.
pub fn pair(key: &str, value: &str) -> Message {
    let mut message = Message::default();
    message.bytes(1, key).bytes(2, value);
    message
}
