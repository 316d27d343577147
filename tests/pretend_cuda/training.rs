//! Training on the pretend device beside the CPU, in one process: whatever the program's own tables list of optimisers,
//! penalties, losses, degradations and augmentations; eager and as a CUDA graph. In float64, so that only what is
//! computed counts and not the order in which it is added.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::Kind;
use tikhonov::config::{Config, Override};
use tikhonov::data::{DatasetCache, Split};
use tikhonov::train::run::{RunOptions, train_run};
use tikhonov::train::training_loop::NeverPrune;
use tikhonov::util::exit_code;
use tikhonov::util::signals::Stop;

use super::{Counts, difference, inside};
use crate::common::{noise, succeeds};

/// Dropout, noise and degradations as on the CPU.
const SHARED: [(&str, &str); 1] = [("PRETEND_CUDA_GENERATOR", "cpu")];
/// The graph is recorded after 5 of the 8 steps.
const SAMPLES: u64 = 64;
/// As λ below a power of 2: a recorded step reads both in float32.
const LR: f64 = 0.0078125;

/// Runs in a folder that goes when this does.
struct Lab {
    home: tempfile::TempDir,
    stop: Stop,
    data: DatasetCache,
    runs: usize,
}

/// A run that is over.
struct Run {
    folder: PathBuf,
    /// What it added to the counters.
    syncs: i64,
    replays: i64,
}

impl Lab {
    fn new() -> Self {
        // In memory where the system has such a folder: a thousand checkpoints are synchronised with the disk.
        let memory = Path::new("/dev/shm");
        let home = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        Self { home, stop: Stop::default(), data: DatasetCache::default(), runs: 0 }
    }

    /// `config` on a device, with keys set; its exit code and message where that fails.
    fn train(&mut self, config: &Value, device: &str, sets: &[String]) -> Result<Run, (u8, String)> {
        self.runs += 1;
        let folder = self.home.path().join(self.runs.to_string());
        let file = self.home.path().join("config.yaml");
        fs::write(&file, config.to_string()).unwrap();
        let before = Counts::now();
        let mut train = || {
            let output = Override::new("--output", "output", folder.to_str().unwrap());
            let device = Override::new("--device", "device", device);
            let config = Config::load(file.to_str().unwrap(), sets, [output, device])?;
            config.validate_data(&Split::ALL)?;
            let options = RunOptions { resume: false, force: false, quiet: true, plots: false };
            train_run(config, options, &mut self.data, &self.stop, &mut NeverPrune)
        };
        train().map_err(|error| (exit_code::code(&error), format!("{error:#}")))?;
        let now = Counts::now();
        assert_eq!(now.operators > before.operators, device != "cpu", "{config}: not where it belongs");
        now.check(&config.to_string());
        assert_eq!(now.kept_pools, 0, "{config}: memory of a graph is kept");
        Ok(Run { folder, syncs: now.syncs - before.syncs, replays: now.replays - before.replays })
    }

    /// The same on the CPU, on the device and as a graph there; what the CPU refuses the device refuses in the same
    /// words. Whether there was a graph, or the reason why not; None where the config is refused.
    fn compare(&mut self, config: &Value, what: &dyn Display) -> Option<Result<(), String>> {
        let cpu = self.train(config, "cpu", &["train.kernels=libtorch".into()]);
        let eager = self.train(config, "cuda", &["train.cuda_graph=false".into()]);
        let (cpu, eager) = match (cpu, eager) {
            (Ok(cpu), Ok(eager)) => (cpu, eager),
            (Err(cpu), Err(eager)) => {
                assert!(cpu == eager && cpu.0 == 2, "{what}: {cpu:?} {eager:?}");
                return None;
            }
            (cpu, eager) => panic!("{what}: {:?} on the CPU, {:?} on the device", cpu.err(), eager.err()),
        };
        let apart = difference(&eager.folder, &cpu.folder);
        assert!(apart < 1e-9, "{what}: {apart:e} from the CPU");
        let graph = match self.train(config, "cuda", &["train.cuda_graph=true".into()]) {
            Ok(graph) => graph,
            Err((code, message)) => {
                assert!(code == 2 && message.contains("train.cuda_graph:"), "{what}: {message}");
                assert!(!message.contains("cannot be recorded"), "{what}: {message}");
                return Some(Err(message));
            }
        };
        assert!(graph.replays > 0, "{what}: not replayed");
        let apart = difference(&graph.folder, &eager.folder);
        assert!(apart < 1e-9, "{what}: {apart:e} from the eager run");
        for run in [cpu, eager, graph] {
            fs::remove_dir_all(run.folder).unwrap();
        }
        Some(Ok(()))
    }

    /// That no step of `config` waits for the device: with 20 steps as often as with 8.
    fn never_waits(&mut self, config: &Value, graph: bool, what: &dyn Display) {
        let mut longer = config.clone();
        let train = &mut longer["data"]["train"];
        if train.get("shapes").is_some() {
            train["shapes"]["count"] = json!(SAMPLES / 8 * 20);
        } else {
            train["cifar10"]["files"] = json!([self.colours(SAMPLES / 8 * 20)]);
        }
        let mut waits = |config: &Value| {
            let run = self.train(config, "cuda", &[format!("train.cuda_graph={graph}")]).unwrap();
            fs::remove_dir_all(run.folder).unwrap();
            run.syncs
        };
        assert_eq!(waits(&longer), waits(config), "{what}, graph {graph}: steps wait for the device");
    }

    /// A file of so many colour pictures, 32 by 32, of 10 classes, as CIFAR-10 has them.
    fn colours(&self, count: u64) -> PathBuf {
        let file = self.home.path().join(format!("{count}.bin"));
        let picture =
            |i: u64| (0..3073).map(move |k| if k == 0 { i % 10 } else { (k * 7 + i * 31) % 256 } as u8);
        fs::write(&file, (0..count).flat_map(picture).collect::<Vec<_>>()).unwrap();
        file
    }

    /// A config of a task, with the data that it needs.
    fn of_task(&self, task: &str) -> Value {
        let yaml = |text: &str| -> Value { serde_yaml::from_str(text).unwrap() };
        let file = |name: &str| self.home.path().join(name);
        let mut config = match task {
            "classification" | "multi_label" => classifier(None),
            _ => of_images(json!(task)),
        };
        config["task"] = json!(task);
        match task {
            "classification" => {}
            "multi_label" => {
                noise(&[SAMPLES as i64, 1, 16, 16], 0.5).write_npy(file("xs.npy")).unwrap();
                let ys = noise(&[SAMPLES as i64, 4], 0.25).gt(0.0).to_kind(Kind::Float);
                ys.write_npy(file("ys.npy")).unwrap();
                let train = json!({"xs": file("xs.npy"), "ys": file("ys.npy"), "targets": "multi_label"});
                config["data"]["train"] = json!({"npy": train});
            }
            "regression" => {
                config["model"] = json!({"name": "linear", "args": {"features": 4, "outputs": 1}});
                config["data"]["train"] =
                    json!({"linear": {"features": 4, "informative": 2, "noise": 0.1, "count": SAMPLES}});
            }
            "reconstruction" => config["task"] = json!({"reconstruction": {"degrade": "none"}}),
            "segmentation" => {
                for (name, shades) in [("pictures", 200), ("masks", 3)] {
                    fs::create_dir_all(file(name)).unwrap();
                    for at in 0..SAMPLES as u32 {
                        let pixel = |x: u32, y: u32| image::Luma([((x * 7 + y * 3 + at) % shades) as u8]);
                        let path = file(name).join(format!("{at}.png"));
                        image::GrayImage::from_fn(16, 16, pixel).save(path).unwrap();
                    }
                }
                config["model"]["layers"][2]["conv2d"]["out_channels"] = json!(3);
                let masks = json!({"root": file("masks"), "classes": ["a", "b", "c"]});
                let train = json!({"root": file("pictures"), "mode": "grey", "patch": 16, "mask": masks});
                config["data"]["train"] = json!({"images": train});
            }
            "generation" => {
                config["model"] = json!({"name": "vae", "args": {"size": 16, "hidden": 8, "code": 2}});
            }
            "compression" => {
                config["model"] = yaml(
                    "{input: [1, 16, 16], layers: {encoder: {conv2d: {out_channels: 2, kernel_size: 2, stride: 2}}, \
                     decoder: {conv_transpose2d: {out_channels: 1, kernel_size: 2, stride: 2}}}}",
                );
            }
            _ => panic!("{task}: a new task needs a config here"),
        }
        config
    }

    /// The first of `configs` that is accepted.
    fn accepted(&mut self, configs: Vec<Value>) -> Value {
        let mut refused = String::new();
        for config in configs {
            match self.train(&config, "cpu", &[]) {
                Ok(_) => return config,
                Err((_, message)) => refused = message,
            }
        }
        panic!("{refused}")
    }
}

/// A small network with the kinds of parameter that penalties and optimisers tell apart.
fn classifier(init_from: Option<&str>) -> Value {
    let model = "{input: [1, 16, 16], layers: {conv1: {conv2d: {out_channels: 4, kernel_size: 3, stride: 2}}, \
                 bn: batch_norm2d, act: relu, conv2: {conv2d: {out_channels: 4, kernel_size: 3, stride: 2}}, \
                 flat: flatten, fc: {linear: {out_features: 4}}}}";
    let mut model: Value = serde_yaml::from_str(model).unwrap();
    if let Some(file) = init_from {
        model["init_from"] = json!({"file": file});
    }
    json!({
        "seed": 1, "threads": 1, "dtype": "float64", "model": model, "task": "classification",
        "data": {"train": {"shapes": {"count": SAMPLES, "size": 16, "classes": 4}}, "batch_size": SAMPLES / 8},
        "optimizer": {"sgd": {"lr": 0.0625, "momentum": 0.9}},
        "train": {"epochs": 1, "log_every": 1000},
    })
}

fn schema() -> Value {
    serde_json::from_str(&succeeds(&["explain", "--json-schema"])).unwrap()
}

/// The members of a family: those of its alternatives that are mappings of one key.
fn members(schema: &Value, family: &str) -> Vec<String> {
    let one = schema["$defs"][family]["oneOf"].as_array().unwrap_or_else(|| panic!("no family {family}"));
    let keys =
        one.iter().filter_map(|each| each["required"][0].as_str()).map(str::to_owned).collect::<Vec<_>>();
    assert!(!keys.is_empty(), "{family}: {one:?}");
    keys
}

/// A value that the schema allows: what is required, and of each the least.
fn least(schema: &Value, node: &Value) -> Value {
    if let Some(name) = node["$ref"].as_str() {
        return least(schema, &schema["$defs"][name.rsplit('/').next().unwrap()]);
    }
    for key in ["default", "const"] {
        if let Some(value) = node.get(key) {
            return value.clone();
        }
    }
    for key in ["oneOf", "anyOf"] {
        if let Some(one) = node[key].as_array() {
            return least(schema, &one[0]);
        }
    }
    if let Some(words) = node["enum"].as_array() {
        return words[0].clone();
    }
    let kind = node["type"].as_str().or_else(|| node["type"][0].as_str());
    match kind {
        Some("object") => {
            let required = node["required"].as_array().cloned().unwrap_or_default();
            let entry = |key: &Value| {
                let key = key.as_str().unwrap();
                (key.to_owned(), least(schema, &node["properties"][key]))
            };
            Value::Object(required.iter().map(entry).collect())
        }
        Some("integer") => json!(node["minimum"].as_i64().unwrap_or(1).max(1)),
        Some("number") => json!(node["maximum"].as_f64().map_or(0.5, |most| most / 2.0)),
        Some("array") => {
            let count = node["minItems"].as_u64().unwrap_or(1);
            Value::Array((0..count).map(|_| least(schema, &node["items"])).collect())
        }
        _ => panic!("no value for {node}"),
    }
}

/// Every member of a family as a config has it.
fn all(schema: &Value, family: &str) -> Vec<Value> {
    let one = schema["$defs"][family]["oneOf"].as_array().unwrap();
    let plain = one.iter().filter(|each| each["const"].is_string()).map(|each| each["const"].clone());
    let keyed = members(schema, family).into_iter().map(|name| {
        let member = one.iter().find(|each| each["required"][0] == name).unwrap();
        let value = least(schema, &member["properties"][&name]);
        json!({name: if value.is_null() { json!({}) } else { value }})
    });
    plain.chain(keyed).collect()
}

/// Members that do nothing by default, doing something: with one more key each, a switch that is on or what may be null.
fn more(schema: &Value, family: &str, member: &Value) -> Vec<Value> {
    let (name, given) = member.as_object().unwrap().iter().next().unwrap();
    let one = schema["$defs"][family]["oneOf"].as_array().unwrap();
    let node = &one.iter().find(|each| each["required"][0] == *name).unwrap()["properties"][name];
    let node =
        node["$ref"].as_str().map_or(node, |place| &schema["$defs"][place.rsplit('/').next().unwrap()]);
    let Some(properties) = node["properties"].as_object() else { return Vec::new() };
    let with = |(key, property): (&String, &Value)| {
        let value = match property["default"].as_bool() {
            Some(_) => json!(true),
            None if property["default"] == 0 => json!(1),
            None => least(schema, property),
        };
        let mut given = given.clone();
        given[key] = value;
        json!({name: given})
    };
    properties.iter().map(with).collect()
}

/// The penalties of the table, with its row.
fn penalties() -> Vec<(Value, String)> {
    let table = succeeds(&["explain", "--penalties"]);
    let rows = table.lines().skip(2).map(|row| {
        let yaml = row.split('`').nth(1).unwrap().replace('λ', "0.0009765625").replace(": c}", ": 0.5}");
        (serde_yaml::from_str(&yaml).unwrap_or_else(|error| panic!("{yaml}: {error}")), row.to_owned())
    });
    let rows: Vec<_> = rows.collect();
    assert!(rows.len() > 20, "{table}");
    rows
}

#[test]
fn every_optimiser_with_every_penalty_is_that_of_the_cpu_eager_and_recorded() {
    if !inside("training::every_optimiser_with_every_penalty_is_that_of_the_cpu_eager_and_recorded", &SHARED)
    {
        return;
    }
    let mut lab = Lab::new();
    let start =
        lab.train(&classifier(None), "cpu", &[]).unwrap().folder.join("checkpoints/last/model.safetensors");
    let config = classifier(start.to_str());
    let optimizers = members(&schema(), "OptimizerSpec");
    let (mut compared, mut refused) = (0, 0);
    for (penalty, row) in penalties() {
        let no_graph = row.contains("no CUDA graph");
        let mut config = config.clone();
        config["penalty"] = penalty.clone();
        for name in &optimizers {
            config["optimizer"] = json!({name: {"lr": LR}});
            let what = format!("{name} with {penalty}");
            match lab.compare(&config, &what) {
                Some(Ok(())) => {
                    assert!(!no_graph, "{what}: the table says that there is no graph");
                    compared += 1;
                }
                Some(Err(reason)) => {
                    assert!(no_graph || reason.contains(name.as_str()), "{what}: {reason}");
                    compared += 1;
                }
                None => refused += 1,
            }
        }
    }
    println!("{compared} compared, {refused} refused");
    assert!(compared > 3 * refused, "{compared} {refused}");
}

#[test]
fn no_step_of_any_optimiser_or_penalty_waits_for_the_device() {
    if !inside("training::no_step_of_any_optimiser_or_penalty_waits_for_the_device", &[]) {
        return;
    }
    let mut lab = Lab::new();
    let start =
        lab.train(&classifier(None), "cpu", &[]).unwrap().folder.join("checkpoints/last/model.safetensors");
    let plain = classifier(start.to_str());
    let mut configs = Vec::new();
    for name in members(&schema(), "OptimizerSpec") {
        let mut config = plain.clone();
        config["optimizer"] = json!({name: {"lr": LR}});
        configs.push(config);
    }
    for (penalty, row) in penalties() {
        // Whether a matrix is finite is looked at before it is decomposed, which would abort.
        if row.contains("singular value") && row.contains("no CUDA graph") {
            continue;
        }
        let mut config = plain.clone();
        config["penalty"] = penalty;
        configs.push(config);
    }
    for config in configs {
        let what = format!("{} {}", config["optimizer"], config["penalty"]);
        lab.never_waits(&config, false, &what);
        if lab.train(&config, "cuda", &["train.cuda_graph=true".into()]).is_ok() {
            lab.never_waits(&config, true, &what);
        }
    }
}

/// A config of a task whose input and target are images.
fn of_images(task: Value) -> Value {
    let mut config = classifier(None);
    let layers = "{input: [1, 16, 16], layers: [{conv2d: {out_channels: 4, kernel_size: 3, padding: 1}}, relu, \
                  {conv2d: {out_channels: 1, kernel_size: 3, padding: 1}}]}";
    config["model"] = serde_yaml::from_str(layers).unwrap();
    config["task"] = task;
    config["data"]["normalize"] = json!("none");
    config["optimizer"] = json!({"adam": {"lr": LR}});
    config
}

#[test]
fn every_task_loss_degradation_and_augmentation_is_that_of_the_cpu_and_no_step_waits() {
    let name = "training::every_task_loss_degradation_and_augmentation_is_that_of_the_cpu_and_no_step_waits";
    if !inside(name, &SHARED) {
        return;
    }
    let (mut lab, schema) = (Lab::new(), schema());
    let tasks = members(&schema, "TaskSpec");
    let mut configs: Vec<_> = tasks.iter().map(|task| lab.of_task(task)).collect();
    for loss in all(&schema, "RegressionLoss") {
        configs.push(of_images(json!({"reconstruction": {"degrade": "none", "loss": loss}})));
        let mut compression = lab.of_task("compression");
        compression["task"] = json!({"compression": {"loss": loss}});
        configs.push(compression);
    }
    for degrade in all(&schema, "DegradeSpec") {
        configs.push(of_images(json!({"reconstruction": {"degrade": degrade}})));
    }
    let mut colours = classifier(None);
    colours["data"]["train"] = json!({"cifar10": {"files": [lab.colours(SAMPLES)]}});
    colours["model"]["input"] = json!([3, 32, 32]);
    colours["model"]["layers"]["fc"]["linear"]["out_features"] = json!(10);
    for augment in all(&schema, "Augment") {
        let mut augments = vec![augment];
        augments.extend(more(&schema, "Augment", &augments[0]));
        let with = |augment: Value| {
            let mut config = colours.clone();
            config["data"]["augment"] = json!([augment]);
            config
        };
        configs.push(lab.accepted(augments.into_iter().map(with).collect()));
    }
    for likelihood in all(&schema, "Likelihood") {
        let mut config = lab.of_task("generation");
        config["task"] = json!({"generation": {"likelihood": likelihood}});
        configs.push(config);
    }
    for config in configs {
        let what = format!("{} {}", config["task"], config["data"]["augment"]);
        match lab.compare(&config, &what) {
            Some(Ok(())) => {}
            Some(Err(reason)) => panic!("{what}: no graph: {reason}"),
            None => panic!("{what}: refused: {:?}", lab.train(&config, "cpu", &[]).err()),
        }
        // libjpeg encodes on the host.
        let on_host = config["task"]["reconstruction"]["degrade"].get("jpeg").is_some();
        let train = &config["data"]["train"];
        if (train.get("shapes").is_some() || train.get("cifar10").is_some()) && !on_host {
            lab.never_waits(&config, true, &what);
        }
    }
}
