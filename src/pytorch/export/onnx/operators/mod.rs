//! ATen operators in ONNX's words: a function each, and a row of the table. What cannot be said exactly is
//! refused by name, exit 2.

mod arithmetic;
mod convolution;
mod normalization;
mod pooling;
mod resize;
mod shape;

use anyhow::Result;
use tch::{Kind, Tensor};

use super::graph::Graph;
use super::proto::{Attribute, Element};
use crate::pytorch::export::flat::{FlatGraph, FlatNode, FlatValue, ValueId};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};

pub use Attribute::{Float, Int, Ints, Text};

/// The largest integer, which as the end of a slice means the end of the tensor.
pub const END: i64 = i64::MAX;

/// Writes the nodes of a flat graph.
pub struct Writer<'a> {
    pub graph: Graph,
    flat: &'a FlatGraph,
    /// The tensors of the state_dict, of the dtypes that the file is to have.
    tensors: &'a [(String, Tensor)],
    /// The ONNX name of each value that there is already.
    values: Vec<Option<String>>,
}

/// One call of an operator, and what its arguments are.
pub struct Call<'w, 'a> {
    pub writer: &'w mut Writer<'a>,
    pub node: &'a FlatNode,
}

/// Adds the nodes for a call; the names of what it returns.
type Write = fn(&mut Call) -> Result<Vec<String>>;

/// Of operators with one return.
macro_rules! one {
    ($function:path) => {
        |call: &mut Call| Ok(vec![$function(call)?])
    };
}

fn find(target: &str) -> Option<Write> {
    Some(match target {
        "conv2d" | "conv2d.padding" => one!(convolution::convolution),
        "conv_transpose2d.input" => one!(convolution::transposed),
        "linear" => one!(convolution::linear),
        "matmul" | "bmm" | "mv" | "dot" => one!(convolution::matmul),
        "_weight_norm" => one!(normalization::weight_norm),
        "batch_norm" => one!(normalization::batch_norm),
        "instance_norm" => one!(normalization::instance_norm),
        "group_norm" => one!(normalization::group_norm),
        "layer_norm" => one!(normalization::layer_norm),
        "max_pool2d" => one!(pooling::max_pool2d),
        "avg_pool2d" => one!(pooling::avg_pool2d),
        "adaptive_avg_pool2d" => one!(pooling::adaptive_avg_pool2d),
        "adaptive_max_pool2d" => one!(pooling::adaptive_max_pool2d),
        "upsample_nearest2d" | "upsample_nearest2d.vec" => one!(resize::nearest),
        "upsample_bilinear2d" | "upsample_bilinear2d.vec" => one!(resize::bilinear),
        "upsample_bicubic2d" | "upsample_bicubic2d.vec" => one!(resize::bicubic),
        "_upsample_bilinear2d_aa" | "_upsample_bilinear2d_aa.vec" => one!(resize::bilinear_antialiased),
        "_upsample_bicubic2d_aa" | "_upsample_bicubic2d_aa.vec" => one!(resize::bicubic_antialiased),
        "pixel_shuffle" => one!(shape::pixel_shuffle),
        "pixel_unshuffle" => one!(shape::pixel_unshuffle),
        "channel_shuffle" => one!(shape::channel_shuffle),
        "flatten.using_ints" => one!(shape::flatten),
        "unflatten.int" => one!(shape::unflatten),
        "reshape" | "view" => one!(shape::reshape),
        "expand" => one!(shape::expand),
        "permute" => one!(shape::permute),
        "transpose.int" | "t" => one!(shape::transpose),
        "unsqueeze" => one!(shape::unsqueeze),
        "squeeze.dim" => one!(shape::squeeze),
        "cat" => one!(shape::cat),
        "chunk" => shape::chunk,
        "split.Tensor" => shape::split,
        "slice.Tensor" => one!(shape::slice),
        "narrow" => one!(shape::narrow),
        "select.int" => one!(shape::select),
        "pad" | "constant_pad_nd" | "reflection_pad2d" | "replication_pad2d" => one!(shape::pad),
        "dropout" | "feature_dropout" | "contiguous" | "clone" | "detach" | "alias" => {
            one!(arithmetic::identity)
        }
        _ => return arithmetic::find(target),
    })
}

impl<'a> Writer<'a> {
    /// Adds the nodes of the whole graph behind `input`; returns the name of what it answers.
    pub fn write(
        graph: Graph,
        flat: &'a FlatGraph,
        tensors: &'a [(String, Tensor)],
        input: String,
    ) -> Result<(Graph, String)> {
        let mut writer = Self { graph, flat, tensors, values: vec![None; flat.values.len()] };
        writer.values[flat.input] = Some(input);
        for node in &flat.nodes {
            let write = find(&node.target()).with_exit_code(ExitCode::Usage, || {
                format!(
                    "--to onnx: there is no exact counterpart of `aten::{}`{} in ONNX's operators of opset {}; export to \
                     torchscript instead",
                    node.target(),
                    place(node),
                    super::proto::OPSET
                )
            })?;
            let made = write(&mut Call { writer: &mut writer, node })?;
            for (id, name) in node.outputs.iter().zip(made) {
                writer.values[*id] = Some(name);
            }
        }
        let output = writer.name(flat.output)?;
        Ok((writer.graph, output))
    }

    fn name(&self, id: ValueId) -> Result<String> {
        let found = self.values.get(id).cloned().flatten();
        found.with_exit_code(
            ExitCode::Usage,
            || "--to onnx: the network uses a result that ONNX's operator does not have, such as the indices of a pooling",
        )
    }
}

/// ` of layer1.0.conv1`, where the tensors tell it.
fn place(node: &FlatNode) -> String {
    label(node).map_or_else(String::new, |label| format!(" of `{label}`"))
}

/// The module that the call belongs to.
fn label(node: &FlatNode) -> Option<String> {
    let (module, _) = node.weights().next()?.rsplit_once('.')?;
    Some(module.to_owned())
}

impl Call<'_, '_> {
    /// Why the call cannot be said.
    pub fn refuse(&self, why: &str) -> anyhow::Error {
        let message = format!(
            "--to onnx: {}{}: {why}; export to torchscript instead",
            self.node.target(),
            place(self.node)
        );
        fail(ExitCode::Usage, message)
    }

    fn arg(&self, name: &str) -> Option<&FlatValue> {
        self.node.arg(name)
    }

    /// The first argument, which every operator takes.
    pub fn x(&mut self) -> Result<String> {
        let first = self.node.args.first().map(|arg| arg.value.clone());
        let first = first.ok_or_else(|| self.refuse("it takes no tensor"))?;
        self.value(&first)
    }

    /// The extents of the first argument in the run on the sample.
    pub fn shape(&self) -> Result<Vec<i64>> {
        let first = self.node.args.first().ok_or_else(|| self.refuse("it takes no tensor"))?;
        self.shape_of(&first.value)
    }

    pub fn shape_of(&self, value: &FlatValue) -> Result<Vec<i64>> {
        match value {
            FlatValue::Tensor(id) => Ok(self.writer.flat.info(*id)?.shape.clone()),
            FlatValue::Weight(name) | FlatValue::Constant(name) => Ok(self.find(name)?.size()),
            _ => Err(self.refuse("no tensor where one belongs")),
        }
    }

    fn find(&self, name: &str) -> Result<Tensor> {
        let all = self.writer.tensors.iter().chain(&self.writer.flat.constants);
        let found = all.into_iter().find(|(known, _)| known == name);
        found
            .map(|(_, tensor)| tensor.shallow_clone())
            .ok_or_else(|| self.refuse(&format!("no tensor `{name}`")))
    }

    /// The ONNX name of a tensor; one of the state_dict becomes an initialiser.
    pub fn value(&mut self, value: &FlatValue) -> Result<String> {
        match value {
            FlatValue::Tensor(id) => self.writer.name(*id),
            FlatValue::Weight(name) => {
                let tensor = self.find(name)?;
                self.writer.graph.tensor(name, &tensor)?;
                Ok(name.clone())
            }
            FlatValue::Constant(name) => {
                let tensor = self.find(name)?;
                let kind = if tensor.is_floating_point() { self.writer.graph.kind } else { tensor.kind() };
                self.writer.graph.tensor(name, &tensor.f_to_kind(kind)?)?;
                Ok(name.clone())
            }
            _ => Err(self.refuse("no tensor where one belongs")),
        }
    }

    /// A tensor argument; None where it is None.
    pub fn tensor(&mut self, name: &str) -> Result<Option<String>> {
        let value = self.arg(name).cloned();
        value.map(|value| self.value(&value)).transpose()
    }

    pub fn required(&mut self, name: &str) -> Result<String> {
        self.tensor(name)?.ok_or_else(|| self.refuse(&format!("it has no {name}")))
    }

    pub fn int(&self, name: &str) -> Result<i64> {
        let found = self.arg(name).and_then(FlatValue::as_int);
        found.ok_or_else(|| self.refuse(&format!("its {name} is no constant integer")))
    }

    pub fn float(&self, name: &str) -> Result<f64> {
        let found = self.arg(name).and_then(FlatValue::as_float);
        found.ok_or_else(|| self.refuse(&format!("its {name} is no constant number")))
    }

    pub fn flag(&self, name: &str) -> bool {
        self.arg(name).and_then(FlatValue::as_bool).unwrap_or_default()
    }

    pub fn text(&self, name: &str) -> Option<String> {
        self.arg(name).and_then(FlatValue::as_text).map(str::to_owned)
    }

    /// A list of constant integers; one alone stands for both sides.
    pub fn pair(&self, name: &str) -> Result<[i64; 2]> {
        match *self.ints(name)? {
            [both] => Ok([both; 2]),
            [height, width] => Ok([height, width]),
            _ => Err(self.refuse(&format!("its {name} is not of two sides"))),
        }
    }

    pub fn ints(&self, name: &str) -> Result<Vec<i64>> {
        let found = self.arg(name).and_then(FlatValue::as_ints);
        found.map(<[i64]>::to_vec).ok_or_else(|| self.refuse(&format!("its {name} are no constant integers")))
    }

    /// The dimension `name`, counted from 0, of a tensor of `rank`.
    pub fn dim(&self, name: &str, rank: usize) -> Result<usize> {
        let dim = self.int(name)?;
        let from_front = if dim < 0 { dim + rank as i64 } else { dim };
        let found = usize::try_from(from_front).ok().filter(|dim| *dim < rank.max(1));
        found.ok_or_else(|| self.refuse(&format!("its {name} is beyond {rank} dimensions")))
    }

    /// Whether an extent follows the input's; of a network that takes images of several sizes that may be any
    /// but the channels'.
    pub fn is_free(&self, dim: usize) -> bool {
        dim == 0 || (dim > 1 && self.writer.flat.sides.is_some())
    }

    /// A node of one output.
    pub fn add(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.writer.graph.node(op, inputs, attributes)
    }

    /// The same under the name of the module whose work it is.
    pub fn main(&mut self, op: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        match label(self.node) {
            Some(label) => self.writer.graph.named(&label, op, inputs, attributes),
            None => self.add(op, inputs, attributes),
        }
    }

    pub fn list(&mut self, values: &[i64]) -> String {
        self.writer.graph.ints(values)
    }

    pub fn scalar(&mut self, value: f64) -> String {
        self.writer.graph.scalar(value)
    }

    /// `ones` or the like where the call leaves a vector out.
    pub fn or_filled(&mut self, name: &str, shape: &[i64], value: f64) -> Result<String> {
        let kind = self.writer.graph.kind;
        Ok(match self.tensor(name)? {
            Some(tensor) => tensor,
            None => self.writer.graph.filled(shape, value, kind),
        })
    }

    /// A vector over the channels, made to meet them in a tensor of `rank`.
    pub fn over_channels(&mut self, vector: &str, rank: usize) -> String {
        if rank <= 2 {
            return vector.to_owned();
        }
        let axes: Vec<i64> = (1..rank as i64 - 1).collect();
        let axes = self.list(&axes);
        self.add("Unsqueeze", &[vector, &axes], &[])
    }

    /// The element type that stands for `kind` in this file.
    pub fn element(&self, kind: Kind) -> Result<Element> {
        let kind = if kind == Kind::Float { self.writer.graph.kind } else { kind };
        super::graph::element(kind).ok_or_else(|| self.refuse(&format!("the dtype {kind:?}")))
    }
}
