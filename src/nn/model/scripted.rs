//! Networks that a Python user scripted (`torch.jit.script(net).save(FILE)`) or [exported](super::exported):
//! their code is run as it is, their tensors train as ours do. Programs come in through `model: {torchscript:
//! FILE}` and `model: {exported: FILE}` and nowhere else.
//!
//! TorchScript does not keep which buffers were registered with `persistent=False`: to Python's
//! torch.jit.load and to us all are part of `state_dict()`. So exported weights contain them, and `init_from`
//! expects them in its file; the state_dict of the Python module lacks them
//! (load_state_dict(strict=False) there, or take its weights from the scripted module).

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::panic::panic_any;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tch::nn::ModuleT;
use tch::{Device, Kind, Tensor, no_grad};

use super::exported::{self, Archive};
use super::padding::Sides;
use super::spec::Language;
use crate::libtorch::is_recording;
use crate::libtorch::script::{Entry, Module};
use crate::nn::layers::{Param, ParamKind, Shape, Switch};
use crate::util::exit_code::{ExitCode, WithExitCode};
use crate::util::sha256;

/// What is known of a TorchScript file.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub language: Language,
    pub file: String,
    /// Which heights and widths it takes; None where that is not known.
    pub sides: Option<Sides>,
    pub params: Vec<Param>,
    /// (path, class) of the modules that have tensors of their own.
    pub modules: Vec<(String, String)>,
    /// The shape of one output for one sample of the declared input.
    pub output: Shape,
}

/// SHA-256 of a file, in hex. Exit 4 where it cannot be read.
pub(crate) fn fingerprint(file: &str) -> Result<String> {
    sha256::of_file(Path::new(file))
        .with_exit_code(ExitCode::Checkpoint, || format!("the program {file} cannot be read"))
}

/// Loads `file` on `device` with its floating-point tensors in `kind`. Checksums are verified first, because
/// libtorch does not. Exit 4.
pub(crate) fn load(language: Language, file: &str, device: Device, kind: Kind) -> Result<Module> {
    if language == Language::Exported {
        let module = || archive(file)?.module(device, kind);
        let load = || module().map_err(|error| short(&anyhow!("{error:#}")));
        return load().with_exit_code(ExitCode::Checkpoint, || unusable(file));
    }
    let load = || -> Result<Module> {
        if exported::is_archive(Path::new(file)) {
            bail!("it is an archive of torch.export: say `exported` in the place of `torchscript`");
        }
        whole(Path::new(file))?;
        let module = Module::load(Path::new(file), device)?;
        module.set_kind(kind)?;
        Ok(module)
    };
    load().with_exit_code(ExitCode::Checkpoint, || {
        format!("{file} is no TorchScript that can be used; write one with torch.jit.script(net).save(FILE)")
    })
}

fn archive(file: &str) -> Result<Archive> {
    let path = Path::new(file);
    if !exported::is_archive(path) {
        File::open(path)?;
        bail!("it is no archive of torch.export; what torch.jit.save wrote is for `torchscript`");
    }
    Archive::read(path)
}

fn unusable(file: &str) -> String {
    format!(
        "{file} is no exported program that can be trained; write one with torch.export.save(program, FILE)"
    )
}

/// The shape of one sample: `given`, or what the file says. Exit 4.
pub(super) fn input(language: Language, file: &str, given: &[i64]) -> Result<Vec<i64>> {
    match (language, given) {
        (Language::Exported, []) => {
            let known = || archive(file)?.input();
            known().with_exit_code(ExitCode::Checkpoint, || unusable(file))
        }
        _ => Ok(given.to_vec()),
    }
}

/// Reads every entry to its end, which verifies its checksum.
fn whole(path: &Path) -> Result<()> {
    let mut archive = exported::open(path)?;
    let mut has_code = false;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index)?;
        let name = entry.name()?.into_owned();
        has_code |= name.contains("/code/");
        io::copy(&mut entry, &mut io::sink()).with_context(|| format!("the entry {name}"))?;
    }
    ensure!(has_code, "it holds no code: weights alone go into `init_from`, beside a network of ours");
    Ok(())
}

impl Script {
    /// Inspects `file`: its tensors, and the shape of its output for one sample of shape `input`.
    pub fn open(language: Language, file: &str, input: &[i64]) -> Result<Self> {
        let module = load(language, file, Device::Cpu, Kind::Float)?;
        let describe = || -> Result<Self> {
            let modules = module.modules()?;
            let params = params(&module.tensors()?, &modules);
            ensure!(
                params.iter().any(Param::is_trainable),
                "it has no parameters to train; a frozen module keeps them as constants: export it without freezing"
            );
            module.set_training(false)?;
            let xs = Tensor::f_zeros([&[1], input].concat(), (Kind::Float, Device::Cpu))?;
            let ys = no_grad(|| module.forward(&xs)).map_err(|error| short(&error)).with_context(|| {
                format!("it does not take a sample of shape {input:?}, which `input` says")
            })?;
            let output = match ys.size().as_slice() {
                [1, output @ ..] if !output.is_empty() => output.to_vec(),
                other => bail!("it answers {other:?} to a batch of one sample; wanted [1, …]"),
            };
            let mut sides = None;
            if language == Language::Exported {
                let archive = archive(file)?;
                // Also where the batch is fixed, which a shape of the user's own does not show.
                archive.input()?;
                sides = archive.sides();
                exported::verify(Path::new(file), &archive, &module, input)?;
            }
            let owners: HashSet<&str> = params.iter().map(|param| owner(&param.name)).collect();
            let modules = modules.into_iter().filter(|(path, _)| owners.contains(path.as_str())).collect();
            Ok(Self { language, file: file.to_owned(), sides, params, modules, output })
        };
        describe().with_exit_code(ExitCode::Checkpoint, || file.to_owned())
    }
}

/// The path of the module that a tensor belongs to.
fn owner(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(path, _)| path)
}

/// The modules all of whose own tensors are frozen: they stay in evaluation mode, as a frozen layer of ours
/// does.
pub(super) fn frozen(params: &[Param]) -> Vec<String> {
    let mut owners: BTreeMap<&str, bool> = BTreeMap::new();
    for param in params {
        *owners.entry(owner(&param.name)).or_insert(true) &= param.frozen;
    }
    owners.into_iter().filter(|(_, frozen)| *frozen).map(|(path, _)| path.to_owned()).collect()
}

/// Whether the parameter `own` of a module of class `class` is a weight to the penalty. Of convolutions and
/// linear maps the class says it; of other modules (recurrent, attention, one's own) the shape: a matrix is
/// one, while scales and shifts, such as `[C, 1, 1]`, have one side. Embeddings are tables and no maps.
fn is_weight(class: &str, own: &str, shape: &[i64]) -> bool {
    let is = |words: &[&str]| words.iter().any(|word| class.contains(word));
    match own {
        "weight" if is(&["Linear", "Conv"]) => shape.len() >= 2,
        _ if is(&["Embedding", "Norm"]) => false,
        _ => shape.iter().filter(|&&side| side > 1).count() >= 2,
    }
}

/// The tensors as the penalty sees them. What `requires_grad` excludes is frozen; a second name of one tensor
/// counts as a buffer, so that it is learnt once.
fn params(entries: &[Entry], modules: &[(String, String)]) -> Vec<Param> {
    let classes: HashMap<&str, &str> =
        modules.iter().map(|(path, class)| (path.as_str(), class.as_str())).collect();
    let mut seen = HashSet::new();
    let param = |entry: &Entry| {
        let shape = entry.tensor.size();
        let is_first = entry.tensor.numel() == 0 || seen.insert(entry.tensor.data_ptr() as usize);
        let own = entry.name.rsplit('.').next().unwrap_or_default();
        let kind = match own {
            _ if !entry.is_parameter || !is_first || !entry.tensor.is_floating_point() => ParamKind::Buffer,
            _ if own.starts_with("bias") || own.ends_with("bias") => ParamKind::Bias,
            _ if is_weight(classes.get(owner(&entry.name)).unwrap_or(&""), own, &shape) => ParamKind::Weight,
            _ => ParamKind::Norm,
        };
        let frozen = kind != ParamKind::Buffer && !entry.tensor.requires_grad();
        Param { frozen, ..Param::new(&entry.name, shape, kind) }
    };
    entries.iter().map(param).collect()
}

/// The interpreter's error message without C++ stack frames: its first lines and its last error.
fn short(error: &anyhow::Error) -> anyhow::Error {
    const FEW: usize = 12;
    let text = error.to_string();
    let text = text.split("\nException raised from").next().unwrap_or_default();
    let lines: Vec<_> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("frame #"))
        .collect();
    match lines.len() > FEW {
        true => anyhow!("{}\n…\n{}", lines[..FEW / 2].join("\n"), lines[lines.len() - FEW / 2..].join("\n")),
        false => anyhow!("{}", lines.join("\n")),
    }
}

/// A scripted network that computes.
#[derive(Debug)]
pub(super) struct Scripted {
    file: String,
    module: Module,
    /// Buffers as the network's state knows them.
    buffers: Vec<Entry>,
    /// Paths of modules that never train.
    frozen: Vec<String>,
    /// Paths of modules with running statistics, what freezes them, and their tensors.
    switches: Vec<(String, Switch, Vec<Param>)>,
    /// As the modules were set last: training, and which of `switches` were frozen.
    mode: RefCell<Option<(bool, Vec<bool>)>>,
}

impl Scripted {
    /// The module, whose frozen parts stay in evaluation mode, and its tensors by name.
    pub fn new(file: &str, module: Module, params: &[Param]) -> Result<(Self, Vec<(String, Tensor)>)> {
        let entries = module.tensors()?;
        let named = entries.iter().map(|entry| (entry.name.clone(), entry.tensor.shallow_clone())).collect();
        let buffers = entries.into_iter().filter(|entry| !entry.is_parameter).collect();
        let (file, frozen) = (file.to_owned(), frozen(params));
        let mut switches: Vec<(String, Switch, Vec<Param>)> = Vec::new();
        for param in params.iter().filter(|param| !frozen.iter().any(|path| path == owner(&param.name))) {
            match switches.iter_mut().find(|(path, ..)| path == owner(&param.name)) {
                Some((.., own)) => own.push(param.clone()),
                None => {
                    let own = vec![param.clone()];
                    switches.push((owner(&param.name).to_owned(), Switch::default(), own));
                }
            }
        }
        switches.retain(|(.., own)| own.iter().any(|param| param.kind == ParamKind::Buffer));
        Ok((Self { file, module, buffers, frozen, switches, mode: RefCell::new(None) }, named))
    }

    /// What freezes its modules with running statistics, and their tensors.
    pub fn switches(&self) -> Vec<(Switch, Vec<Param>)> {
        self.switches.iter().map(|(_, switch, own)| (switch.clone(), own.clone())).collect()
    }

    fn answer(&self, xs: &Tensor, train: bool) -> Result<Tensor> {
        let mode = Some((train, self.switches.iter().map(|(_, switch, _)| switch.is_frozen()).collect()));
        if self.mode.replace(mode.clone()) != mode {
            self.module.set_training(train)?;
            let now = self.switches.iter().filter(|(_, switch, _)| switch.is_frozen());
            let mut frozen = self.frozen.iter().chain(now.map(|(path, ..)| path));
            frozen.try_for_each(|path| self.module.set_training_at(path, false))?;
        }
        let ys = self.module.forward(xs).map_err(|error| short(&error))?;
        if train && is_recording() && !ys.requires_grad() {
            let learns = |entry: &Entry| entry.is_parameter && entry.tensor.requires_grad();
            ensure!(
                !self.module.tensors()?.iter().any(learns),
                "its answer has no gradient: forward runs under torch.no_grad(), or detaches its answer"
            );
        }
        if train {
            self.follow_buffers()?;
        }
        Ok(ys)
    }

    /// Programs may replace a buffer (`self.n = self.n + 1`) instead of changing it.
    fn follow_buffers(&self) -> Result<()> {
        let now = self.module.tensors()?;
        for (known, now) in self.buffers.iter().zip(now.iter().filter(|entry| !entry.is_parameter)) {
            if known.tensor.data_ptr() != now.tensor.data_ptr() {
                no_grad(|| known.tensor.shallow_clone().f_copy_(&now.tensor))?;
            }
        }
        Ok(())
    }
}

impl ModuleT for Scripted {
    /// Panics, as tch's own modules do, with an error of exit 4 that [`crate::libtorch::catch_panics`] hands
    /// on.
    fn forward_t(&self, xs: &Tensor, train: bool) -> Tensor {
        let answer = self.answer(xs, train).with_exit_code(ExitCode::Checkpoint, || {
            let mode = if train { "training" } else { "evaluation" };
            format!(
                "the program {} fails in {mode} on a batch {:?}; mend it in Python, and write it again",
                self.file,
                xs.size()
            )
        });
        answer.unwrap_or_else(|error| panic_any(error))
    }
}
