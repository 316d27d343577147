//! `torch.export` archives (`.pt2`, "PT2 Archive Spec"), as `torch.export.save` of PyTorch 2.11 writes them.
//!
//! PyTorch guarantees the format to none but itself, so every field is written that it writes. The file is
//! run by libtorch's own interpreter and compared with the network before it appears.

mod extent;
mod program;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value as Json, json};
use tch::{Device, Tensor};

use super::flat::FlatGraph;
use super::torchscript::{EXTRA, Options, compare};
use super::{ExportOptions, Exporter, TrainedNetwork};
use crate::libtorch::bytes;
use crate::libtorch::nativert::ExportedProgram;
use crate::libtorch::script::Role;
use crate::nn::layers::{Param, ParamKind};
use crate::nn::model::{Model, Network, Sides};
use crate::pytorch::writer::{Value, Zip, to_bytes};
use crate::util::atomic_file;
use crate::util::exit_code::{ExitCode, WithExitCode};
use extent::meta;
use program::{Stored, program};

/// `--to pt2`.
pub struct Pt2;

impl Exporter for Pt2 {
    fn extension(&self) -> &'static str {
        "pt2"
    }

    fn help(&self) -> &'static str {
        "The whole network for torch.export.load (torch >= 2.11), AOTInductor and C++, for any batch and image size that it takes"
    }

    fn options(&self) -> &'static [&'static str] {
        &["--half", "--bf16", "--preprocess", "--softmax", "--sigmoid"]
    }

    fn write(&self, from: &TrainedNetwork, options: &ExportOptions, path: &Path) -> Result<String> {
        let (network, options) = from.prepare(options)?;
        let (apart, sides) = write(path, &from.model, &network, &options)?;
        let shapes = match sides {
            Some(Sides { multiple: 1, .. }) => "any batch, height and width".to_owned(),
            Some(Sides { multiple, .. }) => {
                format!("any batch, height and width that are multiples of {multiple}")
            }
            None => "any batch".to_owned(),
        };
        let used = |param: &&Param| !from.model.is_auxiliary(&param.name);
        let count = from.model.params().iter().filter(used).count();
        Ok(format!("torch.export of {count} tensors for {shapes}, {apart:.0e} apart from the network"))
    }

    fn notes(&self, from: &TrainedNetwork, options: &ExportOptions) -> Vec<String> {
        from.program_notes(options)
    }
}

/// Writes `network` to `path`, and compares what the file answers on random input with the network: exit 4
/// where they differ by more than rounding does, and no file. Returns the difference, relative to the largest
/// value, and the sides that the file takes.
pub fn write(
    path: &Path,
    model: &Model,
    network: &Network,
    options: &Options,
) -> Result<(f64, Option<Sides>)> {
    let graph = FlatGraph::of(model, network, options)?;
    let state = network.state();
    let mut stored = Vec::new();
    let named = model.params().iter().zip(&state);
    for (param, (name, tensor)) in named.filter(|(param, _)| !model.is_auxiliary(&param.name)) {
        let role = if param.kind == ParamKind::Buffer { Role::Buffer } else { Role::Parameter };
        stored.push(Stored { name, tensor, role });
    }
    stored.extend(graph.constants.iter().map(|(name, tensor)| Stored { name, tensor, role: Role::Constant }));
    let program = program(&graph, model, &stored)
        .with_exit_code(ExitCode::Usage, || "this network cannot be written as .pt2")?;
    let write = |temporary: &Path| {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(temporary)?);
        archive(&mut file, &program, &stored, &graph, options)?;
        Ok(file.flush()?)
    };
    let check = |temporary: &Path| check(temporary, model, network, options, graph.sides);
    let apart = atomic_file::write_checked(path, write, check)?;
    Ok((apart, graph.sides))
}

/// How far the file's answers are from those of `network`. Exit 4 where it does not load or differs by more
/// than rounding does.
pub fn check(
    path: &Path,
    model: &Model,
    network: &Network,
    options: &Options,
    sides: Option<Sides>,
) -> Result<f64> {
    let program = ExportedProgram::load(path)
        .with_exit_code(ExitCode::Checkpoint, || "the file does not load again; nothing was written")?;
    compare::flat(&|xs| program.run(xs), model, network, options, sides)
}

/// The entries, in the order of PyTorch's own writer.
fn archive(
    file: &mut impl Write,
    program: &Json,
    stored: &[Stored],
    graph: &FlatGraph,
    options: &Options,
) -> Result<()> {
    let mut zip = Zip::new(file, "archive");
    let is_constant = |stored: &&Stored| stored.role == Role::Constant;
    for (folder, stem, table, constants) in
        [("weights", "weight", "model_weights", false), ("constants", "tensor", "model_constants", true)]
    {
        let mut config = Map::new();
        for (index, Stored { name, tensor, role }) in
            stored.iter().filter(|one| is_constant(one) == constants).enumerate()
        {
            let path = format!("{stem}_{index}");
            let cpu = tensor.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
            bytes::with(&cpu, |bytes| zip.entry(&format!("data/{folder}/{path}"), bytes))??;
            let is_param = *role == Role::Parameter;
            let meta = meta(&tensor.size(), tensor.kind(), is_param)?;
            let row =
                json!({"path_name": path, "is_param": is_param, "use_pickle": false, "tensor_meta": meta});
            config.insert((*name).to_owned(), row);
        }
        let config = serde_json::to_vec(&json!({"config": config}))?;
        zip.entry(&format!("data/{folder}/{table}_config.json"), &config)?;
    }
    let program = serde_json::to_vec(program)?;
    zip.entry("models/model.json", &program)?;
    zip.entry("data/sample_inputs/model.pt", &sample(graph)?)?;
    zip.entry(&format!("extra/{EXTRA}"), &serde_json::to_vec(&options.about.json())?)?;
    for (name, text) in [("archive_format", "pt2"), ("archive_version", "0"), (".data/version", "6\n")] {
        zip.entry(name, text.as_bytes())?;
    }
    zip.entry("byteorder", b"little")?;
    // PyTorch's is a hash of everything; nothing reads it.
    let id = format!("{:020}{:020}", crc32fast::hash(&program), program.len());
    zip.entry(".data/serialization_id", id.as_bytes())?;
    zip.finish()
}

/// What AOTInductor compiles for: `((x,), {})` with zeros, as `torch.save` writes it.
fn sample(graph: &FlatGraph) -> Result<Vec<u8>> {
    let info = graph.info(graph.input)?;
    let xs = Tensor::f_zeros(&info.shape, (info.dtype, Device::Cpu)).context("the sample")?;
    let arguments = Value::Tuple(vec![Value::Tensor(xs)]);
    to_bytes(&Value::Tuple(vec![arguments, Value::Dict(Vec::new())]))
}
