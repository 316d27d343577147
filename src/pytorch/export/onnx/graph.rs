//! A graph that is being built, and how it becomes a file: the weights go from the tensors' memory to the
//! disk, beyond the 2 GB that a protocol buffer may hold into a file of their own.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tch::{Kind, Tensor};

use super::proto::{self, Attribute, Dim, Element};
use crate::libtorch::bytes;
use crate::util::atomic_file;
use crate::util::exit_code::{ExitCode, WithExitCode};
use crate::util::protobuf::Message;

/// What a protocol buffer may hold, less a part for what is not weights.
pub const LARGEST: u64 = (2 << 30) - (64 << 20);
/// Tensors of fewer bytes stay in the model: shapes and scalars, which runtimes read before they run.
const SMALL: u64 = 1024;
/// Of the offsets in the file of weights, so that runtimes can map them.
const ALIGNMENT: u64 = 4096;

/// Nodes and initialisers, in the order in which they were added.
pub struct Graph {
    /// What the network computes with: Float or Half.
    pub kind: Kind,
    nodes: Message,
    count: usize,
    initialisers: Vec<Initialiser>,
    /// Names of values, and of the tensors that are to come.
    taken: HashSet<String>,
    constants: HashMap<(Element, Vec<i64>, Vec<u8>), String>,
    inputs: Message,
    outputs: Message,
}

struct Initialiser {
    name: String,
    element: Element,
    dims: Vec<i64>,
    /// Contiguous, on the CPU.
    data: Tensor,
}

impl Initialiser {
    fn bytes(&self) -> u64 {
        (self.data.numel() * self.data.kind().elt_size_in_bytes()) as u64
    }
}

/// The element type of a tensor; None where ONNX or its runtimes have none.
pub fn element(kind: Kind) -> Option<Element> {
    Some(match kind {
        Kind::Float => Element::Float,
        Kind::Half => Element::Half,
        Kind::Double => Element::Double,
        Kind::Int64 => Element::Int64,
        Kind::Uint8 => Element::Uint8,
        Kind::Bool => Element::Bool,
        _ => return None,
    })
}

impl Graph {
    /// An empty graph, in which `names` are kept for the tensors.
    pub fn new(kind: Kind, names: impl IntoIterator<Item = String>) -> Self {
        Self {
            kind,
            nodes: Message::default(),
            count: 0,
            initialisers: Vec::new(),
            taken: names.into_iter().chain(["input".into(), "output".into()]).collect(),
            constants: HashMap::new(),
            inputs: Message::default(),
            outputs: Message::default(),
        }
    }

    /// `label`, or the first free one of `label_2`, `label_3` …
    fn fresh(&mut self, label: &str) -> String {
        let mut name = label.to_owned();
        let mut number = 1;
        while !self.taken.insert(name.clone()) {
            number += 1;
            name = format!("{label}_{number}");
        }
        name
    }

    /// Adds a node of one output and returns the output's name.
    pub fn node(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.named(&op.to_lowercase(), op, inputs, attributes)
    }

    /// The same under a name of its own, as far as that is free.
    pub fn named(
        &mut self,
        label: &str,
        op: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
    ) -> String {
        let name = self.fresh(label);
        self.push(op, &name, inputs, &name, attributes);
        name
    }

    fn push(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&str],
        output: &str,
        attributes: &[(&str, Attribute)],
    ) {
        self.nodes.bytes(1, proto::node(op, name, inputs, &[output], attributes));
        self.count += 1;
    }

    pub fn input(&mut self, element: Element, dims: &[Dim]) -> String {
        self.inputs.bytes(11, proto::value("input", element, dims));
        "input".into()
    }

    /// Makes `value` the output.
    pub fn output(&mut self, value: &str, element: Element, dims: &[Dim]) {
        self.push("Identity", "output", &[value], "output", &[]);
        self.outputs.bytes(12, proto::value("output", element, dims));
    }

    /// Adds a tensor under `name`, once.
    pub fn tensor(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        if self.initialisers.iter().any(|known| known.name == name) {
            return Ok(());
        }
        let element = element(tensor.kind()).with_exit_code(ExitCode::Usage, || {
            format!("`{name}` is of {:?}, which the ONNX file cannot hold", tensor.kind())
        })?;
        let data = tensor.detach().f_to_device(tch::Device::Cpu)?.f_contiguous()?;
        self.initialisers.push(Initialiser { name: name.into(), element, dims: tensor.size(), data });
        Ok(())
    }

    fn constant(&mut self, tensor: &Tensor) -> String {
        // Small tensors of three kinds: what fails here fails in the file too.
        let raw = bytes::with(tensor, <[u8]>::to_vec).unwrap_or_default();
        let element = element(tensor.kind()).unwrap_or(Element::Float);
        let key = (element, tensor.size(), raw);
        if let Some(known) = self.constants.get(&key) {
            return known.clone();
        }
        // Past the network's own constants, which have such names too.
        let names = (self.constants.len()..).map(|number| format!("constant_{number}"));
        let name = names.into_iter().find(|name| self.taken.insert(name.clone())).unwrap_or_default();
        let (dims, data) = (tensor.size(), tensor.shallow_clone());
        self.initialisers.push(Initialiser { name: name.clone(), element, dims, data });
        self.constants.insert(key, name.clone());
        name
    }

    /// A list of integers.
    pub fn ints(&mut self, values: &[i64]) -> String {
        self.constant(&Tensor::from_slice(values))
    }

    /// An integer that is no list.
    pub fn integer(&mut self, value: i64) -> String {
        self.constant(&Tensor::from(value))
    }

    /// A number of the kind that the network computes with.
    pub fn scalar(&mut self, value: f64) -> String {
        self.number(value, self.kind)
    }

    /// A number of `kind`.
    pub fn number(&mut self, value: f64, kind: Kind) -> String {
        self.constant(&Tensor::from(value).to_kind(kind))
    }

    /// A list of numbers of `kind`.
    pub fn floats(&mut self, values: &[f64], kind: Kind) -> String {
        self.constant(&Tensor::from_slice(values).to_kind(kind))
    }

    /// `count` times `value`, of the kind that the network computes with.
    pub fn filled(&mut self, shape: &[i64], value: f64, kind: Kind) -> String {
        self.constant(&Tensor::full(shape, value, (kind, tch::Device::Cpu)))
    }

    pub fn nodes(&self) -> usize {
        self.count
    }

    /// Writes the file at `path`, atomically; beyond `largest` bytes of tensors those that are not small go
    /// into the file NAME.data beside it, which appears first. Returns that file, where there is one.
    pub fn write(
        self,
        path: &Path,
        name: &str,
        metadata: &[(String, String)],
        largest: u64,
    ) -> Result<Option<PathBuf>> {
        let total: u64 = self.initialisers.iter().map(Initialiser::bytes).sum();
        let beside = if total > largest { Some(beside(path)?) } else { None };
        let mut offsets = vec![None; self.initialisers.len()];
        if let Some(beside) = &beside {
            let mut at = 0u64;
            for (tensor, offset) in self.initialisers.iter().zip(&mut offsets) {
                if tensor.bytes() >= SMALL {
                    at = at.next_multiple_of(ALIGNMENT);
                    *offset = Some(at);
                    at += tensor.bytes();
                }
            }
            atomic_file::write(beside, |file| {
                let mut at = 0u64;
                for (tensor, offset) in self.initialisers.iter().zip(&offsets) {
                    let Some(offset) = *offset else { continue };
                    file.write_all(&vec![0; (offset - at) as usize])?;
                    bytes::with(&tensor.data, |bytes| file.write_all(bytes))??;
                    at = offset + tensor.bytes();
                }
                Ok(())
            })?;
        }
        let file =
            beside.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        // Each initialiser up to its values, and how many bytes of them follow.
        let heads = self.initialisers.iter().zip(&offsets).map(|(tensor, offset)| {
            let Initialiser { name, element, dims, .. } = tensor;
            let (message, raw) = match (offset, &file) {
                (Some(offset), Some(file)) => {
                    (proto::external(name, *element, dims, file, *offset, tensor.bytes()), 0)
                }
                _ => (proto::tensor(name, *element, dims, tensor.bytes()), tensor.bytes()),
            };
            let mut head = Message::default();
            head.header(5, message.0.len() as u64 + raw).0.extend(message.0);
            (head, raw)
        });
        let heads: Vec<_> = heads.collect();
        let mut before = self.nodes.clone();
        before.bytes(2, name);
        let mut after = self.inputs.clone();
        after.0.extend(&self.outputs.0);
        let inside: u64 = heads.iter().map(|(head, raw)| head.0.len() as u64 + raw).sum();
        let len = before.0.len() as u64 + inside + after.0.len() as u64;
        let mut start = Message::default();
        start
            .integer(1, proto::IR_VERSION)
            .bytes(2, "tikhonov")
            .bytes(3, env!("CARGO_PKG_VERSION"))
            .header(7, len);
        let (mut end, mut opset) = (Message::default(), Message::default());
        opset.bytes(1, "").integer(2, proto::OPSET);
        end.bytes(8, opset);
        for (key, value) in metadata {
            end.bytes(14, proto::pair(key, value));
        }
        let size = len + (start.0.len() + end.0.len()) as u64;
        ensure!(size < 2 << 30, "the model without its weights has {size} bytes, more than a file may");
        atomic_file::write(path, |out| {
            out.write_all(&start.0)?;
            out.write_all(&before.0)?;
            for (tensor, (head, raw)) in self.initialisers.iter().zip(&heads) {
                out.write_all(&head.0)?;
                if *raw > 0 {
                    bytes::with(&tensor.data, |bytes| out.write_all(bytes))??;
                }
            }
            out.write_all(&after.0)?;
            Ok(out.write_all(&end.0)?)
        })?;
        Ok(beside)
    }
}

/// NAME.data beside the file. Exit 2 where it is there and belongs to no file of this name.
fn beside(path: &Path) -> Result<PathBuf> {
    let mut name = OsString::from(path.file_name().context("a file's name")?);
    name.push(".data");
    let beside = path.with_file_name(name);
    let is_free = !beside.exists() || path.exists();
    is_free.then_some(()).with_exit_code(ExitCode::Usage, || {
        format!(
            "{} exists, and the weights beyond 2 GB would go there: give another -o OUT",
            beside.display()
        )
    })?;
    Ok(beside)
}
