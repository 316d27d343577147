//! TorchScript without Python: one module per segment of the parameter names, compiled from text, never
//! traced, so that nothing is baked in but what was asked for.

pub(super) mod compare;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::{Device, Tensor, no_grad};

use super::about::Fact;
use super::plan::{self, Module, Words, attribute, method_name};
use super::{About, ExportOptions, Exporter, TrainedNetwork};
use crate::data::normalize::Normalize;
use crate::data::{EvalTransform, Interpolation, Resize};
use crate::libtorch::script::{self, Role};
use crate::nn::layers::{ParamKind, Upsample};
use crate::nn::model::{Model, Network, Node, Op, join, scripted};
use crate::util::atomic_file;
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use compare::compare;

/// `--to torchscript`.
pub struct TorchScript;

impl Exporter for TorchScript {
    fn extension(&self) -> &'static str {
        "torchscript.pt"
    }

    fn help(&self) -> &'static str {
        "The whole network for torch.jit.load, its weights in state_dict(), for any batch and image size that it takes"
    }

    fn options(&self) -> &'static [&'static str] {
        &["--half", "--bf16", "--freeze", "--optimize", "--preprocess", "--softmax", "--sigmoid"]
    }

    fn write(&self, from: &TrainedNetwork, options: &ExportOptions, path: &Path) -> Result<String> {
        let (network, options) = from.prepare(options)?;
        let agreement = write(path, &from.model, &network, &options)?;
        let train =
            agreement.train.map(|apart| format!(", {apart:.0e} in training (float64)")).unwrap_or_default();
        Ok(format!(
            "TorchScript of {} tensors, {:.0e} apart from the network in evaluation{train}",
            from.model.params().iter().filter(|param| !from.model.is_auxiliary(&param.name)).count(),
            agreement.eval
        ))
    }

    fn notes(&self, from: &TrainedNetwork, options: &ExportOptions) -> Vec<String> {
        from.program_notes(options)
    }
}

/// What is done to the network on its way into the file.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Takes pictures as they are: see [`Preprocess`].
    pub preprocess: Option<Preprocess>,
    /// Answers probabilities: softmax over the channels.
    pub softmax: bool,
    /// The same of classes of which a sample may have any number.
    pub sigmoid: bool,
    /// Probabilities are those of logits that are divided by it.
    pub temperature: Option<f64>,
    /// Weights as constants, evaluation only, batch norms folded into convolutions.
    pub freeze: bool,
    /// Of `torch.jit.optimize_for_inference` what a file can hold: freezing, and linear weights transposed.
    /// Its oneDNN weights cannot be saved.
    pub optimize: bool,
    /// Becomes attributes of the module, as far as no layer has the name, and the extra file [`EXTRA`].
    pub about: About,
}

/// The file inside that says what is known of the network, as JSON: `torch.jit.load(file,
/// _extra_files={...})` reads it.
pub const EXTRA: &str = "metadata.json";

/// Input in 0..1 as floating-point numbers, or in 0..255 as uint8, images of any size: scaled to 0..1,
/// resized to the network's input (bilinear with antialiasing), normalised, and brought to the kind of the
/// weights.
#[derive(Clone, Debug)]
pub struct Preprocess {
    pub normalize: Option<Normalize>,
    /// None leaves the size alone, as networks that answer images want it.
    pub resize: Option<Resize>,
    /// The answers `[N, T]` are brought back to the units of the targets.
    pub normalize_target: Option<Normalize>,
}

/// How far the file's answers were from the network's, relative to the largest value.
#[derive(Clone, Copy, Debug)]
pub struct Agreement {
    pub eval: f64,
    /// In float64; None where training draws random numbers, or the module is frozen.
    pub train: Option<f64>,
}

/// Writes `network` to `path` as TorchScript, loads the file again and compares the two on random input: exit
/// 4 where they differ by more than rounding does, and no file.
pub fn write(path: &Path, model: &Model, network: &Network, options: &Options) -> Result<Agreement> {
    let built = program(model, network, &wrapping(model, options), &options.about)?;
    let built = match options.freeze || options.optimize {
        true => {
            let kept: Vec<&str> = options.about.facts().into_iter().map(|(name, _)| name).collect();
            let frozen = built.frozen(options.optimize, &kept);
            frozen.with_exit_code(ExitCode::Checkpoint, || "freezing the TorchScript")?
        }
        false => {
            built.set_training(false)?;
            built
        }
    };
    let extra = serde_json::to_string(&options.about.json())?;
    let bytes = built
        .to_bytes(EXTRA, &extra)
        .with_exit_code(ExitCode::Checkpoint, || "making the TorchScript file")?;
    atomic_file::write_checked(
        path,
        |temporary| Ok(std::fs::write(temporary, &bytes)?),
        |temporary| check(temporary, model, network, options),
    )
}

/// How far the answers of the file at `path`, written with `options`, are from those of `network`, which was
/// built of `model`. Exit 4 where it does not load or differs by more than rounding does.
pub fn check(path: &Path, model: &Model, network: &Network, options: &Options) -> Result<Agreement> {
    let written = script::Module::load(path, network.device())
        .with_exit_code(ExitCode::Checkpoint, || "the file does not load again; nothing was written")?;
    compare(&written, model, network, options)
}

/// Lines of the program around the network's own.
#[derive(Clone, Debug, Default)]
pub(super) struct Wrapping {
    pub before: String,
    pub after: String,
}

/// The module of `network`, with its weights, in training mode. Exit 2 where it cannot be said.
pub(super) fn program(
    model: &Model,
    network: &Network,
    wrapping: &Wrapping,
    about: &About,
) -> Result<script::Module> {
    match &model.root().op {
        Op::Script(script) => filled(script, network, wrapping),
        _ => build(&Module::of(model.root(), false), network, wrapping, about)
            .with_exit_code(ExitCode::Usage, || "this network cannot be written as TorchScript"),
    }
}

/// The program that the network came from, with the network's weights.
fn filled(script: &scripted::Script, network: &Network, wrapping: &Wrapping) -> Result<script::Module> {
    if !wrapping.before.is_empty() || !wrapping.after.is_empty() {
        let message = "--preprocess, --softmax and --sigmoid would change the program of a scripted or exported model; leave them out";
        return Err(fail(ExitCode::Usage, message));
    }
    let module = scripted::load(script.language, &script.file, Device::Cpu, network.kind())?;
    let state = network.state();
    for entry in module.tensors()? {
        let found = state.iter().find(|(name, _)| *name == entry.name);
        let (_, tensor) = found.with_context(|| format!("`{}` is not in the network", entry.name))?;
        let mut target = entry.tensor;
        if target.kind() != tensor.kind() {
            let converted = target.to_kind(tensor.kind());
            target.set_data(&converted);
        }
        no_grad(|| target.f_copy_(tensor))?;
    }
    Ok(module)
}

fn build(root: &Module, network: &Network, wrapping: &Wrapping, about: &About) -> Result<script::Module> {
    let state = network.state();
    let mut peer = None;
    let mut builder = Builder { state: &state, peer: &mut peer };
    let mut made = builder.module(root, &wrapping.before, &wrapping.after)?;
    let is_taken = |name: &str| {
        root.tensors().iter().any(|param| param.name == name)
            || root.children.iter().any(|child| child.name == name)
    };
    for (name, fact) in about.facts().into_iter().filter(|(name, _)| !is_taken(name)) {
        match fact {
            Fact::Texts(texts) => made.add_texts(name, texts)?,
            Fact::Numbers(numbers) => made.add_numbers(name, numbers)?,
            Fact::Integers(numbers) => made.add_integers(name, numbers)?,
            // Attributes are lists.
            Fact::Number(number) => made.add_numbers(name, &[number])?,
        }
    }
    Ok(made)
}

struct Builder<'a> {
    state: &'a [(String, Tensor)],
    /// Any module that is made already: all share its compilation unit.
    peer: &'a mut Option<script::Module>,
}

impl Builder<'_> {
    /// Children first: a method is compiled against what it calls.
    fn module(&mut self, module: &Module, before: &str, after: &str) -> Result<script::Module> {
        let mut made = script::Module::new(&class(module), self.peer.as_ref())?;
        if self.peer.is_none() {
            *self.peer = Some(script::Module::new("__torch__.tikhonov.Peer", Some(&made))?);
        }
        let mut names = vec!["training".to_owned()];
        names.extend((0..module.methods.len()).map(method_name));
        let place = match module.path.as_str() {
            "" => "at the top of the network".to_owned(),
            path => format!("in `{path}`"),
        };
        let mut fresh = |name: &str| {
            ensure!(
                !names.iter().any(|known| known == name),
                "two things called `{name}` {place}; rename the layer"
            );
            // libtorch writes the name into the file bare, and does not read it again.
            ensure!(!plan::is_keyword(name), "`{name}` {place} is a word of Python; rename the layer");
            // The file would call the layer where it means the library.
            ensure!(name != "torch", "`torch` {place} is the name of Python's torch; rename the layer");
            names.push(name.to_owned());
            Ok(())
        };
        let tensors: Vec<_> = module.tensors().into_iter().map(|param| (param.name, param.kind)).collect();
        let mut firsts: Vec<&str> =
            tensors.iter().map(|(name, _)| name.split('.').next().unwrap_or(name)).collect();
        firsts.dedup();
        firsts.into_iter().try_for_each(&mut fresh)?;
        self.add_tensors(&mut made, &module.path, &tensors)?;
        for child in &module.children {
            fresh(&child.name)?;
            made.add_child(&child.name, &self.module(child, "", "")?)?;
        }
        for (index, steps) in module.methods.iter().enumerate() {
            let lines = plan::lines(module, steps, &mut Script);
            let mut source = format!("def {}(self, x: Tensor) -> Tensor:\n", method_name(index));
            for line in before.lines().chain(lines.iter().map(String::as_str)).chain(after.lines()) {
                source += &format!("    {line}\n");
            }
            source += "    return x\n";
            made.define(&source).with_context(|| format!("the forward {place}"))?;
        }
        Ok(made)
    }
}

impl Builder<'_> {
    /// Adds the tensors at `path` to `made`, those with dots in their names to modules below it.
    fn add_tensors(
        &mut self,
        made: &mut script::Module,
        path: &str,
        tensors: &[(String, ParamKind)],
    ) -> Result<()> {
        let mut below: Vec<(&str, Vec<(String, ParamKind)>)> = Vec::new();
        for (name, kind) in tensors {
            if let Some((first, rest)) = name.split_once('.') {
                let entry = (rest.to_owned(), *kind);
                match below.iter_mut().find(|(known, _)| *known == first) {
                    Some((_, entries)) => entries.push(entry),
                    None => below.push((first, vec![entry])),
                }
                continue;
            }
            let full = join(path, name);
            let found = self.state.iter().find(|(name, _)| *name == full);
            let (_, tensor) = found.with_context(|| format!("`{full}` is not in the network"))?;
            let role = if *kind == ParamKind::Buffer { Role::Buffer } else { Role::Parameter };
            made.add_tensor(name, &tensor.to_device(Device::Cpu), role)?;
        }
        for (name, entries) in below {
            let mut child = script::Module::new("__torch__.tikhonov.Parametrization", self.peer.as_ref())?;
            self.add_tensors(&mut child, &join(path, name), &entries)?;
            made.add_child(name, &child)?;
        }
        Ok(())
    }
}

/// The dotted class name; Python shows the last part, as it shows `Conv2d` for its own.
fn class(module: &Module) -> String {
    let shown = match module.own.map(|node| &node.op) {
        Some(Op::Layer(spec)) => super::camel_case(spec.kind()),
        _ if module.path.is_empty() => "Net".into(),
        _ if module.slots().is_some() => "Sequential".into(),
        _ => "Module".into(),
    };
    format!("__torch__.tikhonov.{shown}")
}

struct Script;

impl Words for Script {
    fn own(&mut self, node: &Node) -> String {
        match &node.op {
            Op::Layer(spec) => spec.layer().torchscript(&node.input),
            _ => String::new(),
        }
    }

    fn plain(&mut self, node: &Node) -> String {
        self.own(node)
    }

    fn call(&mut self, child: &Module, method: &str) -> String {
        format!("x = {}.{method}(x)", attribute(&child.name))
    }

    fn resize(&mut self, upsample: &Upsample, size: &str) -> String {
        upsample.torchscript_to(size)
    }
}

// The numbers by which TorchScript's own files call the dtypes.
const UINT8: i64 = 0;
pub(super) const FLOAT32: i64 = 6;
const FLOAT64: i64 = 7;

/// The lines before and after the network's own.
fn wrapping(model: &Model, options: &Options) -> Wrapping {
    let mut before = String::new();
    if let Some(Preprocess { normalize, resize, .. }) = &options.preprocess {
        before += &format!(
            "if x.dtype == {UINT8}:\n    x = x.to({FLOAT32}) / 255.0\nelse:\n    x = x.to({FLOAT32})\n"
        );
        if let (Some(resize), [_, height, width]) = (resize, model.input()) {
            before += &resizing(*resize, *height, *width);
        }
        if let Some(normalize) = normalize {
            before += &normalizing(normalize, model.input().len());
        }
        // Rather not of a batch norm, which is float32 where the rest is float16.
        let of = |kinds: &[ParamKind]| model.params().iter().find(|param| kinds.contains(&param.kind));
        let wanted = of(&[ParamKind::Weight, ParamKind::Bias]).or_else(|| of(&[ParamKind::Norm]));
        if let Some(param) = wanted {
            let mut place = "self".to_owned();
            for segment in param.name.split('.') {
                place = match plan::is_plain(segment) {
                    true => format!("{place}.{segment}"),
                    false => format!("getattr({place}, \"{segment}\")"),
                };
            }
            before += &format!("x = x.to({place}.dtype)\n");
        }
    }
    Wrapping { before, after: ending(options) }
}

/// The lines that normalise samples of `rank` dimensions.
pub(super) fn normalizing(Normalize { mean, std }: &Normalize, rank: usize) -> String {
    let mut shape = vec![1; rank + 1];
    shape[1] = mean.len();
    let mut lines = String::new();
    for (name, values) in [("mean", mean), ("std", std)] {
        lines += &format!(
            "{name} = torch.tensor({values:?}, dtype={FLOAT32}, device=x.device).reshape({shape:?})\n"
        );
    }
    lines + "x = (x - mean) / std\n"
}

/// The lines after the network's own.
pub(super) fn ending(options: &Options) -> String {
    let scaled =
        options.temperature.map_or_else(String::new, |temperature| format!("x = x / {temperature:?}\n"));
    match &options.preprocess {
        _ if options.softmax => scaled + "x = torch.softmax(x, 1)",
        _ if options.sigmoid => scaled + "x = torch.sigmoid(x)",
        Some(Preprocess { normalize_target: Some(Normalize { mean, std }), .. }) => {
            // As scalars: a list of numbers passes through float32 on its way into a tensor.
            let column = |(at, (mean, std))| format!("x[:, {at}:{}] * {std:?} + {mean:?}", at + 1);
            let columns: Vec<_> = mean.iter().zip(std).enumerate().map(column).collect();
            format!(
                "kind = x.dtype\nx = x.to({FLOAT64})\nx = torch.cat([{}], 1).to(kind)",
                columns.join(", ")
            )
        }
        _ => String::new(),
    }
}

/// As [`EvalTransform`] brings pictures to the size of the samples.
pub(super) fn shorter(transform: EvalTransform, height: i64, width: i64) -> String {
    let side = transform.resize;
    let scaled = match transform.interpolation {
        Interpolation::Bilinear => "torch._upsample_bilinear2d_aa(x, [rows, columns], False, None, None)",
        // It overshoots, where Pillow's 8 bits end.
        Interpolation::Bicubic => {
            "torch.clamp(torch._upsample_bicubic2d_aa(x, [rows, columns], False, None, None), 0.0, 1.0)"
        }
    };
    // Halves are rounded to even.
    format!(
        "\
rows = max(x.size(2) * {side} // x.size(3), {side})
columns = max(x.size(3) * {side} // x.size(2), {side})
x = {scaled}
above = rows - {height}
before = columns - {width}
top = above // 2 + above % 2 * (above // 2 % 2)
left = before // 2 + before % 2 * (before // 2 % 2)
x = x[:, :, top : top + {height}, left : left + {width}]
"
    )
}

/// As [`crate::data::Fit`] brings pictures to the size of the samples.
fn resizing(resize: Resize, height: i64, width: i64) -> String {
    let to = |size: &str| format!("torch._upsample_bilinear2d_aa(x, {size}, False, None, None)");
    let squash = format!(
        "if x.size(2) != {height} or x.size(3) != {width}:\n    x = {}\n",
        to(&format!("[{height}, {width}]"))
    );
    match resize {
        Resize::Squash => squash,
        Resize::Shorter(transform) => shorter(transform, height, width),
        Resize::Crop => format!(
            "\
h = x.size(2)
w = x.size(3)
if h * {width} <= w * {height}:
    rows = {height}
    columns = max(w * {height} // h, {width})
else:
    rows = max(h * {width} // w, {height})
    columns = {width}
if rows != h or columns != w:
    x = {}
top = int(round((rows - {height}) / 2.0))
left = int(round((columns - {width}) / 2.0))
x = x[:, :, top : top + {height}, left : left + {width}]
",
            to("[rows, columns]")
        ),
    }
}
