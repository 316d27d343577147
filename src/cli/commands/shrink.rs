//! `tikhonov shrink`: a trained network without the channels that do nothing, as a run of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use serde_json::json;
use tch::{Device, Kind, Tensor, no_grad};

use super::TrainedOptions;
use crate::checkpoint::{Snapshot, State};
use crate::config::{CONFIG_FILE, RunConfig};
use crate::inference::loaded_model::Weights;
use crate::libtorch::catch_panics;
use crate::libtorch::script::Module;
use crate::nn::model::{Model, ModelSource, ModelSpec, Network, Node, thousands};
use crate::nn::shrink::{Shrunk, Slices, shrink};
use crate::pytorch::export::{About, Export, ExportOptions, TrainedNetwork};
use crate::tasks::TaskSpec;
use crate::train::run_folder::LockedFolder;
use crate::util::console::{print_err, print_out};
use crate::util::exit_code::{ExitCode, WithExitCode, fail};
use crate::util::terminal::table;
use crate::util::yaml;

/// How far outputs may be apart, relative to the largest.
const TOLERANCE: f64 = 1e-5;

/// Remove the channels of a trained network that do nothing, such as those that `group_lasso` made 0.
///
/// A channel goes where no output depends on it, or where it is a constant that a bias or one other channel says as
/// well; through batch norms, residual sums, concats, groups, pooling and flattening. The smaller network answers as
/// the one before does: both are compared before anything is written. OUT is a run: with its network in model.yaml
/// and config.yaml, to be evaluated, used, exported or trained further.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    trained: TrainedOptions,
    /// The run folder to write; RUN-small where absent
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// Replace the run that is in OUT
    #[arg(long)]
    force: bool,
    /// Samples at once in the measurement of speed
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(i64).range(1..=65_536))]
    batch_size: i64,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// A network in figures.
#[derive(Debug, Serialize)]
struct Figures {
    parameters: i64,
    /// Of one sample.
    multiply_adds: u64,
    /// Of its weights.
    bytes: i64,
    /// Of forward passes, in evaluation.
    images_per_s: f64,
    /// The same as TorchScript; None where the network cannot be written so.
    torchscript_images_per_s: Option<f64>,
}

/// The channels after a layer.
#[derive(Debug, Serialize)]
struct LayerRow {
    layer: String,
    before: i64,
    after: i64,
}

pub fn run(options: &Options) -> Result<()> {
    let run = &options.trained.run;
    let output = output(options)?;
    let trained = options.trained.open()?;
    works_as_one(&trained.config.spec.task)?;
    let network = trained.network()?;
    let weights: BTreeMap<_, _> = (network.state().into_iter())
        .map(|(name, tensor)| Ok((name, tensor.f_to_device(Device::Cpu)?.f_detach()?)))
        .collect::<Result<_>>()?;
    let shrunk = catch_panics(|| shrink(&trained.plan.model, &weights)).and_then(|shrunk| shrunk)?;
    let smaller = shrunk.model.build(trained.device, trained.config.spec.dtype.kind())?;
    smaller.load_state(&shrunk.weights)?;
    let (difference, largest) = compare(&trained.plan.model, &network, &smaller)?;

    let layers = rows(&trained.plan.model, &shrunk.model);
    let model = ModelSpec { source: ModelSource::Inline(shrunk.description.clone()), init_from: None };
    let candidates = [(&trained.plan.model, &network, &weights), (&shrunk.model, &smaller, &shrunk.weights)];
    let (before, after) = measure(candidates, [&trained.config.spec.model, &model], options)?;
    let config = RunConfig { model, output: output.clone(), ..trained.config.spec.clone() };
    write(options, &config, &trained.weights, &shrunk)?;
    if options.json {
        let line = json!({
            "run": run, "output": output, "before": before, "after": after, "layers": layers,
            "largest_difference": difference, "largest_output": largest,
        });
        print_out!("{line}");
        return Ok(());
    }
    print_err!("{}", trained.weights.on(run));
    print_out!("{}", text(&layers, &before, &after, options.batch_size));
    print_out!("outputs differ by {difference:.1e} at most, the largest is {largest:.3}");
    print_out!("{}: the smaller network as a run", output.display());
    Ok(())
}

/// The folder to write; exit 2 where something is there that is not to be replaced, or that is the source.
fn output(options: &Options) -> Result<PathBuf> {
    let run = &options.trained.run;
    let output = match &options.output {
        Some(output) => output.clone(),
        None => {
            let name = run.file_name().with_exit_code(ExitCode::Usage, || {
                format!("{} has no name to derive one from: say -o OUT", run.display())
            })?;
            run.with_file_name(format!("{}-small", name.to_string_lossy()))
        }
    };
    if let (Ok(from), Ok(to)) = (run.canonicalize(), output.canonicalize())
        && (from == to || from.starts_with(&to))
    {
        return Err(fail(ExitCode::Usage, "the output would replace the run itself: give it another folder"));
    }
    Ok(output)
}

/// Exit 2 for tasks that run a network in parts, whose ends must stay as they are.
fn works_as_one(task: &TaskSpec) -> Result<()> {
    let task = task.task();
    if task.runs_parts() {
        let message = format!(
            "shrink: the task {} uses parts of its network apart; their sizes must stay",
            task.name()
        );
        return Err(fail(ExitCode::Usage, message));
    }
    Ok(())
}

/// The largest difference between the answers of both on random inputs small and large, and the largest answer. Exit
/// 4 where they are more than rounding apart.
fn compare(model: &Model, network: &Network, smaller: &Network) -> Result<(f64, f64)> {
    let (mut difference, mut largest) = (0f64, 0f64);
    for (batch, scale) in [(1, 1.0), (3, 0.1), (2, 10.0), (1, 0.0)] {
        let size = [&[batch], model.input()].concat();
        let xs = Tensor::f_randn(size, (network.kind(), network.device()))?.f_mul_scalar(scale)?;
        let [a, b] =
            [network, smaller].map(|network| catch_panics(|| no_grad(|| network.forward(&xs, false))));
        let (a, b) = (a?.f_to_kind(Kind::Double)?, b?.f_to_kind(Kind::Double)?);
        difference = difference.max(a.f_sub(&b)?.f_abs()?.f_max()?.f_double_value(&[])?);
        largest = largest.max(a.f_abs()?.f_max()?.f_double_value(&[])?);
    }
    // Also where something is NaN.
    let is_equal = difference <= TOLERANCE * largest.max(1.0);
    is_equal.then_some((difference, largest)).with_exit_code(ExitCode::Checkpoint, || {
        format!("the smaller network answers otherwise: {difference:e} apart, the largest answer is {largest:e}; nothing was written")
    })
}

/// The layers with weights whose number of channels changed.
fn rows(before: &Model, after: &Model) -> Vec<LayerRow> {
    let width = |model: &Model| -> Vec<(String, i64)> {
        let leaves = model.root().leaves().into_iter().filter(|leaf| leaf.multiply_adds() > 0);
        leaves.map(|leaf| (leaf.path.clone(), leaf.output[0])).collect()
    };
    width(before)
        .into_iter()
        .zip(width(after))
        .map(|((layer, before), (_, after))| LayerRow { layer, before, after })
        .collect()
}

type Candidate<'a> = (&'a Model, &'a Network, &'a BTreeMap<String, Tensor>);

/// Both in figures; they take turns in the measurement.
fn measure(
    candidates: [Candidate; 2],
    specs: [&ModelSpec; 2],
    options: &Options,
) -> Result<(Figures, Figures)> {
    let (_, network, _) = candidates[0];
    let size = [&[options.batch_size], candidates[0].0.input()].concat();
    let xs = Tensor::f_randn(size, (network.kind(), network.device()))?;
    let own = candidates.map(|(_, network, _)| {
        Box::new(|| catch_panics(|| no_grad(|| network.forward(&xs, false))))
            as Box<dyn Fn() -> Result<Tensor>>
    });
    let own = rates(&own, options.batch_size, network.device())?;
    let scripts = [0, 1].map(|index| scripted(specs[index], candidates[index].2, candidates[index].1));
    let scripts = match scripts {
        [Ok(before), Ok(after)] => {
            let passes = [before, after].map(|module| {
                let xs = xs.shallow_clone();
                Box::new(move || no_grad(|| module.forward(&xs))) as Box<dyn Fn() -> Result<Tensor>>
            });
            Some(rates(&passes, options.batch_size, network.device())?)
        }
        _ => None,
    };
    let figures = |index: usize| {
        let (model, _, weights) = candidates[index];
        let bytes =
            weights.values().map(|tensor| tensor.numel() as i64 * tensor.kind().elt_size_in_bytes() as i64);
        Figures {
            parameters: model.parameter_count(),
            multiply_adds: model.root().leaves().into_iter().map(Node::multiply_adds).sum(),
            bytes: bytes.sum(),
            images_per_s: own[index],
            torchscript_images_per_s: scripts.map(|rates| rates[index]),
        }
    };
    Ok((figures(0), figures(1)))
}

/// The network as Python would load it, its batch norms folded.
fn scripted(spec: &ModelSpec, weights: &BTreeMap<String, Tensor>, network: &Network) -> Result<Module> {
    let export = Export::find("torchscript").context("no TorchScript")?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("network.pt");
    let weights = weights.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    let model = Model::from_spec(spec)?;
    let trained = TrainedNetwork {
        name: "network".into(),
        model,
        weights,
        kind: network.kind(),
        task: None,
        data: None,
        about: About::default(),
        metadata: Vec::new(),
        origin: Vec::new(),
    };
    export.exporter.write(&trained, &ExportOptions { freeze: true, ..ExportOptions::default() }, &file)?;
    Module::load(&file, network.device())
}

/// Samples per second of each of `passes`: medians of passes in turn, over a second or so.
fn rates(passes: &[Box<dyn Fn() -> Result<Tensor> + '_>; 2], batch: i64, device: Device) -> Result<[f64; 2]> {
    let timed = |pass: &dyn Fn() -> Result<Tensor>| -> Result<f64> {
        let start = Instant::now();
        let ys = pass()?;
        if device != Device::Cpu {
            // Waits for the device.
            ys.f_sum(Kind::Float)?.f_double_value(&[])?;
        }
        Ok(start.elapsed().as_secs_f64())
    };
    let mut seconds = [Vec::new(), Vec::new()];
    let begin = Instant::now();
    let mut round = 0;
    while round < 7 || (begin.elapsed() < Duration::from_secs(2) && round < 101) {
        for (pass, seconds) in passes.iter().zip(&mut seconds) {
            let taken = timed(pass)?;
            // The first passes allocate.
            if round >= 2 {
                seconds.push(taken);
            }
        }
        round += 1;
    }
    Ok(seconds.map(|mut seconds| {
        seconds.sort_by(f64::total_cmp);
        batch as f64 / seconds[seconds.len() / 2]
    }))
}

/// Writes the run folder: config, description and one checkpoint.
fn write(options: &Options, run: &RunConfig, weights: &Weights, shrunk: &Shrunk) -> Result<()> {
    let output = &run.output;
    let config = serde_json::to_value(run)?;
    let model = || -> Vec<(String, Tensor)> {
        let named = |name: &str| Some((name.to_owned(), shrunk.weights.get(name)?.shallow_clone()));
        shrunk.model.params().iter().filter_map(|param| named(&param.name)).collect()
    };
    let snapshot = match weights {
        Weights::Checkpoint(loaded) => {
            let best = loaded.state.best.clone().filter(|best| best.epoch == loaded.state.epoch);
            let ema = loaded.ema.as_ref().map(|ema| {
                let counters = ema.iter().filter(|(name, _)| !shrunk.weights.contains_key(*name));
                let counters = counters.map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
                model().into_iter().chain(counters).collect()
            });
            let optimizer = sliced(&loaded.optimizer, &loaded.model, &shrunk.slices)?;
            Snapshot {
                state: State { config: config.clone(), best, ..loaded.state.clone() },
                model: model(),
                optimizer,
                ema,
            }
        }
        Weights::File(_, state) => {
            let state = state.as_ref().map_or_else(|| State::new(String::new()), |state| (**state).clone());
            Snapshot {
                state: State { config: config.clone(), ..state },
                model: model(),
                optimizer: Vec::new(),
                ema: None,
            }
        }
    };
    let folder = LockedFolder::take(output)?;
    if folder.holds_run() {
        if !options.force {
            let message = format!("there is a run in {} already; --force replaces it", output.display());
            return Err(fail(ExitCode::Usage, message));
        }
        print_err!("{}", folder.clear()?);
    }
    let folder = folder.begin(None)?;
    folder.write("model.yaml", &yaml::to_string(&json!(shrunk.description))?)?;
    folder.checkpoints().save(snapshot, true)?;
    // The last: without it this is no run.
    folder.write(CONFIG_FILE, &yaml::to_string(&config)?)
}

/// The state of an optimiser for what is left of its parameters.
fn sliced(
    state: &BTreeMap<String, Tensor>,
    model: &BTreeMap<String, Tensor>,
    slices: &BTreeMap<String, Slices>,
) -> Result<Vec<(String, Tensor)>> {
    let slice = |(key, tensor): (&String, &Tensor)| {
        let name = key.rsplit_once('.').map_or(key.as_str(), |(name, _)| name);
        let is_whole = model.get(name).is_some_and(|param| param.size() == tensor.size());
        let mut tensor = tensor.shallow_clone();
        if let (true, Some(slices)) = (is_whole, slices.get(name)) {
            for (dim, indices) in slices {
                tensor = tensor.f_index_select(*dim, indices)?;
            }
        }
        Ok((key.clone(), tensor))
    };
    state.iter().map(slice).collect()
}

fn text(layers: &[LayerRow], before: &Figures, after: &Figures, batch: i64) -> String {
    let changed = layers.iter().filter(|row| row.before != row.after);
    let rows = changed.map(|row| vec![row.layer.clone(), row.before.to_string(), row.after.to_string()]);
    let mut text = table(&["layer", "channels", "left"], 1, rows.collect());
    let ratio = |a: f64, b: f64| format!("{:.2}", a / b);
    let whole = |name: &str, a: u64, b: u64| {
        vec![name.to_owned(), thousands(a), thousands(b), ratio(a as f64, b as f64)]
    };
    let mut rows = vec![whole("parameters", before.parameters as u64, after.parameters as u64)];
    rows.push(whole("multiply-adds", before.multiply_adds, after.multiply_adds));
    rows.push(whole("bytes of weights", before.bytes as u64, after.bytes as u64));
    let rate = |name: String, a: f64, b: f64| vec![name, format!("{a:.0}"), format!("{b:.0}"), ratio(b, a)];
    rows.push(rate(format!("images/s, {batch} at once"), before.images_per_s, after.images_per_s));
    if let (Some(a), Some(b)) = (before.torchscript_images_per_s, after.torchscript_images_per_s) {
        rows.push(rate("images/s as TorchScript".into(), a, b));
    }
    text.push('\n');
    text + &table(&["", "before", "after", "factor"], 1, rows)
}
