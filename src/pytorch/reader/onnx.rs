//! What an ONNX file holds: its initialisers, and what it says of itself. The graph is not read; the values
//! stay on disk.

use anyhow::{Context, Result, bail, ensure};

use super::dtype::Dtype;
use super::safetensors::Item;
use super::source::{Budget, Input, Source};

/// No name and no text of a model comes near it.
const MAX_TEXT: u64 = 1 << 20;

/// The initialisers in the order of the file, and what is said beside them.
pub struct Model {
    pub items: Vec<Item>,
    /// (initialiser without values that can be read, why).
    pub unreadable: Vec<(Item, String)>,
    /// Producer, opset, inputs, outputs, nodes, and the model's own properties.
    pub metadata: Vec<(String, String)>,
}

/// A field: its number, and a varint or the length of what follows.
struct Field {
    number: u64,
    value: u64,
    is_bytes: bool,
}

/// The next field before `end`, fixed-size ones passed over.
fn next(input: &mut Input, end: u64) -> Result<Option<Field>> {
    while input.position() < end {
        let key = varint(input)?;
        let number = key >> 3;
        ensure!(number > 0, "a field without a number at offset {}", input.position());
        match key & 7 {
            0 => return Ok(Some(Field { number, value: varint(input)?, is_bytes: false })),
            1 => input.skip(8)?,
            5 => input.skip(4)?,
            2 => {
                let value = varint(input)?;
                let is_inside = input.position().checked_add(value).is_some_and(|to| to <= end);
                ensure!(is_inside, "truncated: a field at offset {} has {value} bytes", input.position());
                return Ok(Some(Field { number, value, is_bytes: true }));
            }
            _ => bail!("no protocol buffer at offset {}", input.position()),
        }
    }
    Ok(None)
}

fn varint(input: &mut Input) -> Result<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = input.byte()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    bail!("an integer without an end at offset {}", input.position())
}

fn text(input: &mut Input, len: u64) -> Result<String> {
    ensure!(len <= MAX_TEXT, "a text of {len} bytes at offset {}", input.position());
    Ok(String::from_utf8_lossy(&input.take(len)?).into_owned())
}

/// Reads the file; `source` is one whose first bytes are those of a model.
pub fn read(source: &Source) -> Result<Model> {
    let budget = Budget::for_file(source.size());
    let mut input = Input::new(source, 0, &budget);
    read_model(&mut input, source.size(), &budget).context("as an ONNX model")
}

fn read_model(input: &mut Input, end: u64, budget: &Budget) -> Result<Model> {
    let (mut producer, mut opsets) = (Vec::new(), Vec::new());
    let (mut graph, mut properties) = (None, Vec::new());
    while let Some(field) = next(input, end)? {
        match (field.number, field.is_bytes) {
            (2 | 3, true) => producer.push(text(input, field.value)?),
            (7, true) => {
                let to = input.position() + field.value;
                graph = Some(read_graph(input, to, budget)?);
            }
            (8, true) => {
                let entry = fields(input, field.value)?;
                let version = entry.iter().rev().find(|(number, ..)| *number == 2).map_or(0, |(_, n, _)| *n);
                opsets.push(format!("{} {version}", found(&entry, 1)).trim().to_owned());
            }
            (14, true) => {
                let entry = fields(input, field.value)?;
                properties.push((found(&entry, 1), found(&entry, 2)));
            }
            (_, true) => input.skip(field.value)?,
            _ => {}
        }
    }
    let Graph { nodes, inputs, outputs, items, unreadable } = graph.context("it has no graph")?;
    let is_ours = producer.first().is_some_and(|name| name == "tikhonov");
    let is_constant = |item: &Item| {
        let number = item.name.strip_prefix("constant_");
        is_ours && number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    // What its initialisers are is no input, as files before IR version 4 list them.
    let is_input = |(name, _): &&(String, String)| !items.iter().any(|item| item.name == *name);
    let shown = |values: Vec<&(String, String)>| -> String {
        values.iter().map(|(name, what)| format!("{name}: {what}")).collect::<Vec<_>>().join("; ")
    };
    let mut metadata = vec![
        ("producer".to_owned(), producer.join(" ")),
        ("opset".to_owned(), opsets.join(", ")),
        ("inputs".to_owned(), shown(inputs.iter().filter(is_input).collect())),
        ("outputs".to_owned(), shown(outputs.iter().collect())),
        ("nodes".to_owned(), nodes.to_string()),
    ];
    metadata.extend(properties);
    let items = items.into_iter().filter(|item| !is_constant(item)).collect();
    Ok(Model { items, unreadable, metadata })
}

struct Graph {
    nodes: u64,
    /// Name, and dtype with extents.
    inputs: Vec<(String, String)>,
    outputs: Vec<(String, String)>,
    items: Vec<Item>,
    unreadable: Vec<(Item, String)>,
}

/// The fields of a small message of `len` bytes: number, varint, bytes.
fn fields(input: &mut Input, len: u64) -> Result<Vec<(u64, u64, Vec<u8>)>> {
    ensure!(len <= MAX_TEXT, "an entry of {len} bytes at offset {}", input.position());
    parsed(input.take(len)?)
}

fn parsed(message: Vec<u8>) -> Result<Vec<(u64, u64, Vec<u8>)>> {
    let (size, budget) = (message.len() as u64, Budget::for_file(MAX_TEXT));
    let source = Source::Bytes(message);
    let mut input = Input::new(&source, 0, &budget);
    let mut found = Vec::new();
    while let Some(Field { number, value, is_bytes }) = next(&mut input, size)? {
        let bytes = if is_bytes { input.take(value)? } else { Vec::new() };
        found.push((number, value, bytes));
    }
    Ok(found)
}

/// The bytes of the last field `wanted`, as text.
fn found(fields: &[(u64, u64, Vec<u8>)], wanted: u64) -> String {
    let last = fields.iter().rev().find(|(number, ..)| *number == wanted);
    last.map_or_else(String::new, |(.., bytes)| String::from_utf8_lossy(bytes).into_owned())
}

fn read_graph(input: &mut Input, end: u64, budget: &Budget) -> Result<Graph> {
    let mut graph = Graph {
        nodes: 0,
        inputs: Vec::new(),
        outputs: Vec::new(),
        items: Vec::new(),
        unreadable: Vec::new(),
    };
    while let Some(field) = next(input, end)? {
        if matches!(field.number, 5 | 11 | 12) {
            budget.charge(size_of::<Item>() as u64)?;
        }
        match (field.number, field.is_bytes) {
            (1, true) => {
                graph.nodes += 1;
                input.skip(field.value)?;
            }
            (5, true) => {
                let to = input.position() + field.value;
                match tensor(input, to)? {
                    (item, None) => graph.items.push(item),
                    (item, Some(reason)) => graph.unreadable.push((item, reason)),
                }
            }
            (11, true) => graph.inputs.push(value(fields(input, field.value)?)?),
            (12, true) => graph.outputs.push(value(fields(input, field.value)?)?),
            (_, true) => input.skip(field.value)?,
            _ => {}
        }
    }
    Ok(graph)
}

/// A `TensorProto`, and why its values cannot be read, if so.
fn tensor(input: &mut Input, end: u64) -> Result<(Item, Option<String>)> {
    let mut item = Item {
        name: String::new(),
        dtype: None,
        dtype_name: String::new(),
        shape: Vec::new(),
        start: 0,
        bytes: 0,
    };
    let (mut reason, mut place) = (None, String::new());
    while let Some(field) = next(input, end)? {
        ensure!(item.shape.len() <= 64, "a tensor of more than 64 dimensions at offset {}", input.position());
        match (field.number, field.is_bytes) {
            (1, false) => item.shape.push(field.value as i64),
            (1, true) => {
                let to = input.position() + field.value;
                while input.position() < to && item.shape.len() <= 64 {
                    item.shape.push(varint(input)? as i64);
                }
            }
            (2, false) => {
                item.dtype = dtype(field.value);
                item.dtype_name = dtype_name(field.value);
            }
            (8, true) => item.name = text(input, field.value)?,
            // Bytes, or floats and doubles that are packed, which is the same.
            (4 | 9 | 10, true) => {
                (item.start, item.bytes) = (input.position(), field.value);
                input.skip(field.value)?;
            }
            (5 | 7 | 11, _) => {
                reason = Some("has its integers as a list: save it with raw_data".to_owned());
                input.skip(if field.is_bytes { field.value } else { 0 })?;
            }
            (13, true) => {
                let entry = fields(input, field.value)?;
                if found(&entry, 1) == "location" {
                    place = found(&entry, 2);
                }
            }
            (14, false) if field.value == 1 => reason = Some("is in a file of its own".to_owned()),
            (_, true) => input.skip(field.value)?,
            _ => {}
        }
    }
    if !place.is_empty() {
        reason = Some(format!(
            "is in the file `{place}`, which is not read: take the weights that it was exported from"
        ));
    }
    let name = &item.name;
    let numel = item.shape.iter().try_fold(1u64, |n, &extent| n.checked_mul(u64::try_from(extent).ok()?));
    let numel =
        numel.filter(|_| item.shape.len() <= 64).with_context(|| format!("`{name}`: its sizes overflow"))?;
    if let (Some(dtype), None) = (item.dtype, &reason) {
        let wanted = numel.checked_mul(dtype.size()).context("its sizes overflow")?;
        ensure!(item.bytes == wanted, "`{name}` holds {} bytes, its shape wants {wanted}", item.bytes);
    }
    Ok((item, reason))
}

/// A `ValueInfoProto`: its name, and `float32 [batch, 3, height, width]`.
fn value(message: Vec<(u64, u64, Vec<u8>)>) -> Result<(String, String)> {
    let name = found(&message, 1);
    let inside = |message: Vec<(u64, u64, Vec<u8>)>, wanted: u64| {
        let field = message.into_iter().find(|(number, ..)| *number == wanted);
        parsed(field.map(|(.., bytes)| bytes).unwrap_or_default())
    };
    let tensor = inside(inside(message, 2)?, 1)?;
    let element = tensor.iter().find(|(number, ..)| *number == 1).map_or(0, |(_, element, _)| *element);
    let mut dims = Vec::new();
    for (.., dim) in inside(tensor, 2)?.into_iter().filter(|(number, ..)| *number == 1) {
        let dim = parsed(dim)?;
        let extent = dim.iter().find(|(number, ..)| *number == 1).map(|(_, extent, _)| extent.to_string());
        dims.push(extent.unwrap_or_else(|| found(&dim, 2)));
    }
    Ok((name, format!("{} [{}]", dtype_name(element), dims.join(", "))))
}

fn dtype_name(element: u64) -> String {
    dtype(element).map_or_else(|| format!("data type {element}"), |dtype| dtype.name().to_owned())
}

/// `TensorProto.DataType`; the rest is text or has fewer than eight bits.
fn dtype(element: u64) -> Option<Dtype> {
    Some(match element {
        1 => Dtype::F32,
        2 => Dtype::U8,
        3 => Dtype::I8,
        4 => Dtype::U16,
        5 => Dtype::I16,
        6 => Dtype::I32,
        7 => Dtype::I64,
        9 => Dtype::Bool,
        10 => Dtype::F16,
        11 => Dtype::F64,
        12 => Dtype::U32,
        13 => Dtype::U64,
        14 => Dtype::C64,
        15 => Dtype::C128,
        16 => Dtype::BF16,
        17 => Dtype::F8E4M3,
        18 => Dtype::F8E4M3Fnuz,
        19 => Dtype::F8E5M2,
        20 => Dtype::F8E5M2Fnuz,
        _ => return None,
    })
}
