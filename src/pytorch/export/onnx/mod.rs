//! ONNX: the whole network for onnxruntime, TensorRT, OpenVINO and others, written without the onnx package.
//!
//! The flat list of ATen calls ([`super::flat`]) becomes a graph of ONNX's operators
//! (<https://github.com/onnx/onnx/blob/v1.13.0/docs/Operators.md>). Initialisers have the state_dict's names and
//! shapes, batch norms stay, and the batch, the height and the width are free as far as the network is.

mod graph;
mod operators;
mod pictures;
mod proto;

use std::path::Path;

use anyhow::Result;
use tch::{Kind, Tensor};

use super::flat::FlatGraph;
use super::{ExportOptions, Exporter, TrainedNetwork, narrowed, torchscript};
use crate::nn::model::{Model, Network};
use graph::Graph;
use operators::Writer;
use proto::{Dim, Element};

pub use graph::LARGEST;

/// `--to onnx`.
pub struct Onnx;

impl Exporter for Onnx {
    fn extension(&self) -> &'static str {
        "onnx"
    }

    fn help(&self) -> &'static str {
        "The whole network for onnxruntime and others (opset 18), its weights under PyTorch's names"
    }

    fn options(&self) -> &'static [&'static str] {
        &["--half", "--preprocess", "--softmax", "--sigmoid"]
    }

    fn refusal(&self, option: &str) -> Option<&'static str> {
        match option {
            "--bf16" => {
                Some("--to onnx has no bfloat16, which onnxruntime does not run: say --half, or leave it out")
            }
            "--freeze" | "--optimize" => {
                Some("runtimes fold batch norms of an ONNX file as they load it: leave it out")
            }
            _ => None,
        }
    }

    fn write(&self, from: &TrainedNetwork, options: &ExportOptions, path: &Path) -> Result<String> {
        from.takes_probabilities(options)?;
        let preprocess = options.preprocess.then(|| from.preprocess()).transpose()?;
        let network = from.network(Some(Kind::Float))?;
        let what = Options {
            preprocess,
            softmax: options.softmax,
            sigmoid: options.sigmoid,
            temperature: from.about.temperature.filter(|_| options.softmax || options.sigmoid),
            half: options.half,
            largest: LARGEST,
            name: from.name.clone(),
            metadata: from.metadata.clone(),
        };
        write(path, &from.model, &network, &what)
    }

    fn notes(&self, from: &TrainedNetwork, options: &ExportOptions) -> Vec<String> {
        let mut notes = torchscript::TorchScript.notes(from, options);
        if from.kind != Kind::Float && !options.half {
            notes.push(format!("the weights, of {:?}, are written as float32", from.kind));
        }
        notes
    }
}

/// How a network becomes an ONNX file.
#[derive(Clone, Debug)]
pub struct Options {
    /// Takes pictures as uint8 `[N, C, H, W]`: see [`torchscript::Preprocess`].
    pub preprocess: Option<torchscript::Preprocess>,
    /// Answers probabilities: softmax over the channels.
    pub softmax: bool,
    /// The same of classes of which a sample may have any number.
    pub sigmoid: bool,
    /// Probabilities are those of logits that are divided by it.
    pub temperature: Option<f64>,
    /// float16, but for batch norms.
    pub half: bool,
    /// Bytes of tensors beyond which they go into a file of their own: [`LARGEST`].
    pub largest: u64,
    /// Of the graph.
    pub name: String,
    /// What `metadata_props` say.
    pub metadata: Vec<(String, String)>,
}

/// Writes `network`, which was built of `model` in float32, to `path`. Exit 2 where it has no exact
/// counterpart in ONNX, exit 4 where `half` would make finite weights infinite; then nothing is written.
/// Returns what the file holds.
pub fn write(path: &Path, model: &Model, network: &Network, options: &Options) -> Result<String> {
    let &Options { softmax, sigmoid, temperature, .. } = options;
    let script = torchscript::Options { softmax, sigmoid, temperature, ..Default::default() };
    let flat = FlatGraph::of(model, network, &script)?;
    let tensors = network.state();
    let tensors = if options.half { narrowed(tensors, Kind::Half)? } else { tensors };
    let (kind, element) =
        if options.half { (Kind::Half, Element::Half) } else { (Kind::Float, Element::Float) };
    let mut graph = Graph::new(kind, tensors.iter().map(|(name, _)| name.clone()).chain(constants(&flat)));
    let is_free = flat.sides.is_some();
    let resizes = options.preprocess.as_ref().is_some_and(|preprocess| preprocess.resize.is_some());
    let mut x = graph.input(given(options, model, element), &input_dims(model, is_free || resizes));
    if let Some(preprocess) = &options.preprocess {
        x = pictures::prepare(&mut graph, x, preprocess, model.input())?;
    }
    let (mut graph, mut y) = Writer::write(graph, &flat, &tensors, x)?;
    let target = options.preprocess.as_ref().and_then(|preprocess| preprocess.normalize_target.as_ref());
    if let (Some(target), false) = (target, softmax || sigmoid) {
        y = pictures::restore(&mut graph, y, target);
    }
    graph.output(&y, element, &output_dims(model, &flat, resizes)?);
    let mut metadata = options.metadata.clone();
    if options.preprocess.is_some() {
        // They are in the graph, and must not be applied once more.
        metadata.retain(|(key, _)| !["mean", "std", "target_mean", "target_std"].contains(&key.as_str()));
    }
    if temperature.is_some() {
        metadata.retain(|(key, _)| key != "temperature");
    }
    if let (Some(sides), false) = (&flat.sides, resizes) {
        metadata.push(("size_multiple".into(), sides.multiple.to_string()));
        metadata.push(("least_size".into(), format!("{:?}", sides.least)));
    }
    let nodes = graph.nodes();
    let beside = graph.write(path, &options.name, &metadata, options.largest)?;
    let used = format!("ONNX of {nodes} nodes and {} tensors, opset {}", model.params().len(), proto::OPSET);
    Ok(match beside {
        Some(beside) => format!("{used}, the weights in {}", beside.display()),
        None => used,
    })
}

fn constants(flat: &FlatGraph) -> impl Iterator<Item = String> {
    flat.constants.iter().map(|(name, _): &(String, Tensor)| name.clone())
}

/// Pictures are bytes where the graph prepares them.
fn given(options: &Options, model: &Model, element: Element) -> Element {
    match (&options.preprocess, model.input()) {
        (Some(_), [_, _, _]) => Element::Uint8,
        (Some(_), _) => Element::Float,
        (None, _) => element,
    }
}

fn batch() -> Dim {
    Dim::Named("batch".into())
}

fn input_dims(model: &Model, is_free: bool) -> Vec<Dim> {
    match (model.input(), is_free) {
        (&[channels, _, _], true) => {
            vec![batch(), Dim::Fixed(channels), Dim::Named("height".into()), Dim::Named("width".into())]
        }
        (fixed, _) => std::iter::once(batch()).chain(fixed.iter().copied().map(Dim::Fixed)).collect(),
    }
}

/// Those that follow the input's sides are named: `height` and `width` where they are the input's own.
fn output_dims(model: &Model, flat: &FlatGraph, resizes: bool) -> Result<Vec<Dim>> {
    let shape = &flat.info(flat.output)?.shape;
    let mut dims = vec![batch()];
    // The shapes for other heights, and for other widths.
    let other = |height: i64, width: i64| match (model.input(), &flat.sides, resizes) {
        (&[channels, ..], Some(_), false) => model.root().output_of(&[channels, height, width]),
        _ => None,
    };
    let sides = match *model.input() {
        [_, height, width] => [height, width],
        _ => [0; 2],
    };
    let (taller, wider) = (other(2 * sides[0], sides[1]), other(sides[0], 2 * sides[1]));
    let names = [("height", &taller, sides[0]), ("width", &wider, sides[1])];
    for (index, &extent) in shape.iter().enumerate().skip(1) {
        let follows = names.iter().find(|(_, changed, _)| {
            changed.as_ref().is_some_and(|changed| changed.get(index - 1) != Some(&extent))
        });
        dims.push(match follows {
            None => Dim::Fixed(extent),
            Some((name, changed, side)) => {
                let now = changed.as_ref().and_then(|changed| changed.get(index - 1)).copied();
                let is_same = extent == *side && now == Some(2 * side) && index > 1;
                Dim::Named(if is_same { (*name).to_owned() } else { format!("output_{name}") })
            }
        });
    }
    Ok(dims)
}
