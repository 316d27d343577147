//! A network as a flat list of ATen calls, which the formats beside TorchScript are written from.
//!
//! The program that [`torchscript`] builds is run once in evaluation on a sample, and every call of an ATen
//! operator on the way is noted: composites and layers come free, tensors carry the names of the state_dict.
//! Choices and loops that the sample's values or sizes decide are refused by name, because a flat list
//! would keep one outcome of them.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Deserializer, de};
use tch::{Kind, Tensor};

use super::torchscript::{self, FLOAT32, Preprocess, Wrapping};
use crate::data::Resize;
use crate::nn::model::{Model, Network, Sides};
use crate::pytorch::reader::dtype::Dtype;
use crate::pytorch::weights::kind;
use crate::util::exit_code::{ExitCode, WithExitCode};

/// The number of a tensor: an index into [`FlatGraph::values`].
pub type ValueId = usize;

/// A network in evaluation mode, from one tensor to one tensor.
#[derive(Debug, Deserialize)]
pub struct FlatGraph {
    pub input: ValueId,
    pub output: ValueId,
    /// In the order in which they run.
    pub nodes: Vec<FlatNode>,
    /// Of the input and of every tensor that a node makes.
    pub values: Vec<ValueInfo>,
    /// Tensors that the state_dict does not list: `constant_0`, …
    #[serde(skip)]
    pub constants: Vec<(String, Tensor)>,
    /// Which height and width the input may have; None where it has no sides, or only those of the sample.
    #[serde(skip)]
    pub sides: Option<Sides>,
}

/// A call of an ATen operator.
#[derive(Clone, Debug, Deserialize)]
pub struct FlatNode {
    /// Of the module that makes the call: `layer1.0`; empty at the root.
    pub path: String,
    /// `conv2d`; in-place operators are their functional counterparts.
    pub op: String,
    /// `Tensor` of `add.Tensor`; empty for the default overload.
    pub overload: String,
    /// All of the operator's schema, in its order, defaults included.
    pub args: Vec<FlatArg>,
    /// One for each tensor that it returns.
    pub outputs: Vec<ValueId>,
    /// Its one return is the list of the outputs, as `chunk` has it.
    pub is_list: bool,
}

/// An argument of a call.
#[derive(Clone, Debug, Deserialize)]
pub struct FlatArg {
    /// As the operator's schema calls it.
    pub name: String,
    pub value: FlatValue,
    /// Python wants it by its name.
    pub is_keyword: bool,
}

/// What an argument is.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum FlatValue {
    None,
    Bool(bool),
    Int(i64),
    #[serde(deserialize_with = "float")]
    Float(f64),
    Text(String),
    #[serde(deserialize_with = "kind_by_name")]
    Dtype(Kind),
    /// `strided`.
    Layout(String),
    /// `contiguous_format`, `preserve_format`, `channels_last`.
    MemoryFormat(String),
    /// `cpu`.
    Device(String),
    /// The input, or what a node made.
    Tensor(ValueId),
    /// A tensor of the state_dict, by its name.
    Weight(String),
    /// One of [`FlatGraph::constants`], by its name.
    Constant(String),
    /// An integer that follows the input's sizes: the extent of a tensor in a dimension from 0 on.
    Size(ValueId, usize),
    /// An integer that follows the input's sizes: `add`, `sub`, `mul`, `floordiv`, `mod`, `neg`, `min` or
    /// `max` of integers.
    Call(String, Vec<FlatValue>),
    Ints(Vec<i64>),
    #[serde(deserialize_with = "floats")]
    Floats(Vec<f64>),
    Bools(Vec<bool>),
    /// Tensors, some of which may be None; or integers, some of which follow sizes.
    List(Vec<FlatValue>),
}

/// A tensor as it was in the run on the sample.
#[derive(Clone, Debug, Deserialize)]
pub struct ValueInfo {
    /// The batch is [`BATCH`].
    pub shape: Vec<i64>,
    #[serde(deserialize_with = "kind_by_name")]
    pub dtype: Kind,
}

/// Samples in the run that tells the shapes.
pub const BATCH: i64 = 2;

impl FlatGraph {
    /// The calls of `network`, which was built of `model`, with what `options` put before and after it: with
    /// preprocessing the input is uint8 `[N, C, H, W]`. Exit 2 where they are no flat list.
    pub fn of(model: &Model, network: &Network, options: &torchscript::Options) -> Result<Self> {
        let wrapping =
            Wrapping { before: beginning(model, network, options)?, after: torchscript::ending(options) };
        let module = torchscript::program(model, network, &wrapping, &options.about)?;
        module.set_training(false)?;
        let kind = if options.preprocess.is_some() { Kind::Uint8 } else { network.kind() };
        let zeros = |batch: i64, shape: &[i64]| {
            let shape = [&[batch], shape].concat();
            Tensor::f_zeros(shape.as_slice(), (kind, network.device()))
        };
        let is_resized = options.preprocess.as_ref().is_some_and(|preprocess| preprocess.resize.is_some());
        let sides = match is_resized {
            true => Some(Sides { multiple: 1, least: [1, 1] }),
            false => model.sides(),
        };
        let trace = |sides: Option<Sides>| -> Result<Self> {
            let other = match (sides, model.input()) {
                (Some(sides), &[channels, height, width]) => {
                    vec![channels, sides.other(0, height), sides.other(1, width)]
                }
                _ => model.input().to_vec(),
            };
            let (json, constants) = module.flat(&zeros(BATCH, model.input())?, &zeros(BATCH + 1, &other)?)?;
            let graph: Self = serde_json::from_slice(&json).context("the list of its calls")?;
            let constants = constants
                .into_iter()
                .enumerate()
                .map(|(index, tensor)| (format!("constant_{index}"), tensor));
            Ok(Self { constants: constants.collect(), sides, ..graph })
        };
        // A program may be for one size although its layers are not.
        let traced = match trace(sides) {
            Err(_) if sides.is_some() => trace(None),
            traced => traced,
        };
        traced.with_exit_code(ExitCode::Usage, || "this network is no flat list of operators")
    }

    /// The tensor's extent in each dimension, and its dtype.
    pub fn info(&self, id: ValueId) -> Result<&ValueInfo> {
        self.values.get(id).context("a tensor without a number")
    }
}

impl FlatNode {
    /// The argument that the operator's schema calls `name`; None where there is no such, or it is None.
    pub fn arg(&self, name: &str) -> Option<&FlatValue> {
        let found = self.args.iter().find(|arg| arg.name == name);
        found.map(|arg| &arg.value).filter(|value| **value != FlatValue::None)
    }

    /// `conv2d`, or `add.Tensor`.
    pub fn target(&self) -> String {
        match self.overload.as_str() {
            "" => self.op.clone(),
            overload => format!("{}.{overload}", self.op),
        }
    }

    /// The names of the state_dict among its arguments.
    pub fn weights(&self) -> impl Iterator<Item = &str> {
        self.args.iter().flat_map(|arg| arg.value.weights())
    }
}

impl FlatValue {
    fn weights(&self) -> Vec<&str> {
        match self {
            Self::Weight(name) => vec![name],
            Self::List(values) => values.iter().flat_map(Self::weights).collect(),
            _ => Vec::new(),
        }
    }

    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(flag) = self { Some(*flag) } else { None }
    }

    pub fn as_int(&self) -> Option<i64> {
        if let Self::Int(number) = self { Some(*number) } else { None }
    }

    /// A number, whether it is written with a point or not.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(number) => Some(*number),
            Self::Int(number) => Some(*number as f64),
            _ => None,
        }
    }

    pub fn as_text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// A list of constant integers.
    pub fn as_ints(&self) -> Option<&[i64]> {
        if let Self::Ints(numbers) = self { Some(numbers) } else { None }
    }
}

/// The lines that make the network's input of uint8 pictures: [`torchscript`]'s, without choices.
fn beginning(model: &Model, network: &Network, options: &torchscript::Options) -> Result<String> {
    let Some(Preprocess { normalize, resize, .. }) = &options.preprocess else { return Ok(String::new()) };
    let mut lines = format!("x = x.to({FLOAT32}) / 255.0\n");
    let resize = resize.map(|resize| (resize, model.input()));
    match resize {
        Some((Resize::Squash, [_, height, width])) => {
            lines +=
                &format!("x = torch._upsample_bilinear2d_aa(x, [{height}, {width}], False, None, None)\n");
        }
        Some((Resize::Shorter(transform), [_, height, width])) => {
            lines += &torchscript::shorter(transform, *height, *width);
        }
        Some((Resize::Crop, [_, height, width])) => {
            // The larger of two integers takes the place of the choice; halves are rounded to even.
            lines += &format!(
                "\
h = x.size(2)
w = x.size(3)
rows = max(h * {width} // w, {height})
columns = max(w * {height} // h, {width})
x = torch._upsample_bilinear2d_aa(x, [rows, columns], False, None, None)
above = rows - {height}
before = columns - {width}
top = above // 2 + above % 2 * (above // 2 % 2)
left = before // 2 + before % 2 * (before // 2 % 2)
x = x[:, :, top : top + {height}, left : left + {width}]
"
            );
        }
        _ => {}
    }
    if let Some(normalize) = normalize {
        lines += &torchscript::normalizing(normalize, model.input().len());
    }
    match network.kind() {
        Kind::Float => {}
        Kind::Double => lines += "x = x.to(7)\n",
        Kind::Half => lines += "x = x.to(5)\n",
        Kind::BFloat16 => lines += "x = x.to(15)\n",
        kind => bail!("weights of {kind:?}"),
    }
    Ok(lines)
}

/// JSON has no infinity: floats come as text.
fn float<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    String::deserialize(from)?.parse().map_err(de::Error::custom)
}

fn floats<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f64>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    texts.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
}

fn kind_by_name<'de, D: Deserializer<'de>>(from: D) -> Result<Kind, D::Error> {
    let name = String::deserialize(from)?;
    let dtype = Dtype::from_name(&name).ok_or_else(|| de::Error::custom(format!("no dtype `{name}`")))?;
    kind(dtype).map_err(de::Error::custom)
}
