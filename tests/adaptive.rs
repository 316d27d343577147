//! λ that the validation set tunes, in whole runs. That its gradient is right is tested in `optim/decay.rs`.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tikhonov::util::rng::{CounterRng, RngStream};

use crate::common::{killed_at, read_json, records, run, succeeds, write_config};

/// 200 noisy samples to learn three overlapping classes from, and 200 to tune by: λ decides.
const OVERFITS: &str = "
device: cpu
threads: 1
model: {name: mlp, args: {shape: [20], classes: 3, hidden: 64}}
task: classification
data:
  train: {csv: {file: FOLDER/learn.csv, target: y, classes: true}}
  validation: {fraction: 0.5}
  test: {csv: {file: FOLDER/judge.csv, target: y, classes: true}}
  batch_size: 50
optimizer: {sgd: {lr: 0.05, momentum: 0.9}}
schedule: cosine
train: {epochs: 200, eval_every: 200, log_every: 50, checkpoint: {every_epochs: 200}}
";

/// Batch norm, dropout, augmentation, two tuned groups with their own rhythms, an average and clipping.
const EVERYTHING: &str = "
seed: 4
device: cpu
threads: 1
model: {name: small-cnn, args: {channels: 1, size: 28, classes: 10, width: 4, dropout: 0.2}}
task: {classification: {label_smoothing: 0.1}}
data:
  train: {shapes: {count: 1500, size: 28}}
  validation: {fraction: 0.2}
  batch_size: 25
  augment: [{flip: {horizontal: true}}]
penalty:
  l2: {auto: {start: 1.0e-2, every: 3}}
  groups: [{match: 'fc.*', decoupled: {auto: {start: 0.5, lr: 0.05, every: 4}}, decoupled_mode: cautious}]
optimizer: {adam: {lr: 0.003}}
schedule: cosine
train: {epochs: 3, clip: {norm: 1.0}, ema: {decay: 0.9}, log_every: 7, checkpoint: {every_steps: 5, keep: 2}}
";

/// Writes the tables that `OVERFITS` reads and returns its path.
fn write_overfits(folder: &Path) -> String {
    let mut draw = CounterRng::new(5, 0, 0, RngStream::Generate);
    let centres: Vec<f64> = (0..60).map(|_| 0.5 * draw.normal()).collect();
    for (name, rows) in [("learn.csv", 400), ("judge.csv", 2000)] {
        let mut text = (0..20).map(|column| format!("x{column},")).collect::<String>() + "y\n";
        for row in 0..rows {
            let class = row % 3;
            let cells = (0..20).map(|column| format!("{},", centres[20 * class + column] + draw.normal()));
            text += &(cells.collect::<String>() + ["a\n", "b\n", "c\n"][class]);
        }
        fs::write(folder.join(name), text).unwrap();
    }
    write_config(folder, &OVERFITS.replace("FOLDER", folder.to_str().unwrap()))
}

fn train(config: &str, output: &Path, sets: &[&str]) {
    let mut args = vec!["train", config, "--quiet", "--output", output.to_str().unwrap()];
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    succeeds(&args);
}

fn last(run: &Path, kind: &str, pointer: &str) -> f64 {
    let record = records(run, kind).pop().unwrap();
    record.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {pointer} in {record}"))
}

/// Weights, running statistics, optimiser, average, and the λs with what moves them.
fn state(run: &Path) -> (Vec<Vec<u8>>, Value) {
    let folder = run.join("checkpoints/last");
    let parts = ["model", "optimizer", "ema"].map(|part| folder.join(format!("{part}.safetensors")));
    let state: Value = read_json(folder.join("state.json"));
    (parts.iter().filter_map(|part| fs::read(part).ok()).collect(), state["tuned"].clone())
}

#[test]
fn a_lambda_that_starts_a_hundred_times_too_small_or_too_large_comes_home() {
    let home = tempfile::tempdir().unwrap();
    let config = write_overfits(home.path());
    let loss = |run: &Path| {
        let result: Value = read_json(run.join("result.json"));
        result.pointer("/last/test/loss").and_then(Value::as_f64).unwrap()
    };
    for (form, optimizer, starts) in [
        ("l2", "{sgd: {lr: 0.05, momentum: 0.9}}", [2e-4, 2e-2, 2.0]),
        ("decoupled", "{adamw: {lr: 0.003}}", [0.04, 4.0, 400.0]),
    ] {
        let optimizer = format!("optimizer={optimizer}");
        let run = |lambda: String| {
            let folder = tempfile::tempdir_in(home.path()).unwrap();
            train(&config, folder.path(), &[&optimizer, &format!("penalty.{form}={lambda}")]);
            (last(folder.path(), "epoch", &format!("/lambda/weights/{form}")), loss(folder.path()))
        };
        let ends = starts.map(|start| run(format!("{{auto: {{start: {start}}}}}")));
        let fixed = starts.map(|lambda| run(lambda.to_string()).1);
        println!("{form}: from {starts:?} to (λ, test loss) {ends:?}; with λ fixed there {fixed:?}");
        let lambdas = ends.map(|end| end.0);
        let (low, high) =
            (lambdas.into_iter().fold(f64::MAX, f64::min), lambdas.into_iter().fold(0.0, f64::max));
        assert!(high / low < 5.0, "{form}: {ends:?}");
        assert!(ends.iter().all(|end| end.1 < 1.2 * fixed[1]), "{form}: {ends:?}, {fixed:?}");
        assert!(fixed[0].min(fixed[2]) > 1.4 * fixed[1], "{form}: λ must matter here: {fixed:?}");
    }
}

#[test]
fn a_run_with_tuned_lambdas_that_is_killed_ends_bit_for_bit_as_one_that_is_not() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), EVERYTHING);
    let [whole, killed] = ["whole", "killed"].map(|name| home.path().join(name));
    train(&config, &whole, &[]);
    let resumed = ["train", &config, "--resume", "--output", killed.to_str().unwrap()];
    let kills = killed_at(&[0, 1, 5, 9, 13], &killed.join("metrics.jsonl"), &resumed);
    assert!(kills > 1, "the run ended before it was killed");
    assert_eq!(state(&killed), state(&whole));
    let lambdas = |run: &Path| -> Vec<_> {
        records(run, "step")
            .into_iter()
            .map(|record| [record["lambda"].clone(), record["loss"].clone()])
            .collect()
    };
    assert_eq!(lambdas(&killed), lambdas(&whole));
    // Both moved, each its own way, and every record says where they were.
    let of = |record: &Value, pointer: &str| record.pointer(pointer).and_then(Value::as_f64).unwrap();
    for (pointer, start) in [("/lambda/weights/l2", 1e-2), ("/lambda/fc.*/decoupled", 0.5)] {
        let curve: Vec<f64> = records(&whole, "step").iter().map(|record| of(record, pointer)).collect();
        let moved = curve.iter().map(|lambda| (lambda / start).ln().abs()).fold(0.0, f64::max);
        assert!(moved > 0.1, "{pointer}: {curve:?}");
        assert_ne!(last(&whole, "epoch", pointer), *curve.last().unwrap());
    }
    let log = fs::read_to_string(whole.join("log.txt")).unwrap();
    assert!(log.contains(" · λ fc.* ") && log.contains(", weights "), "{log}");
    assert!(log.contains("λ is tuned on the validation set: its scores are optimistic"), "{log}");
    let table = fs::read_to_string(whole.join("metrics.csv")).unwrap();
    assert!(table.contains("lambda.weights.l2"), "{table}");
}

#[test]
fn tuning_touches_nothing_but_lambda() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), EVERYTHING);
    let [tuned, fixed] = ["tuned", "fixed"].map(|name| home.path().join(name));
    // A λ that cannot move is a λ: weights, running statistics and all draws are those of a run that tunes
    // nothing.
    train(&config, &tuned, &["penalty={decoupled: {auto: {start: 1, lr: 1.0e-30, every: 2}}}"]);
    train(&config, &fixed, &["penalty={decoupled: 1}"]);
    assert_eq!(state(&tuned).0, state(&fixed).0);
    assert_ne!(state(&tuned).1, Value::Null);
    assert_eq!(state(&fixed).1, Value::Null);
}

#[test]
fn what_cannot_be_tuned_is_refused_with_the_key_and_the_remedy() {
    let home = tempfile::tempdir().unwrap();
    let config = write_overfits(home.path());
    for (sets, parts) in [
        (
            &["penalty.l2=auto", "data.validation=null"][..],
            &["penalty.l2", "data: {validation: {fraction: 0.1}}"][..],
        ),
        (
            &["penalty={groups: [{match: '*', decoupled: {auto: {}}}]}", "data.validation=null"],
            &["penalty.groups.0.decoupled", "validation"],
        ),
        (&["penalty.l1=auto"], &["penalty.l1", "only `l2`, `decoupled`"]),
        (&["penalty.l2={auto: {start: 0}}"], &["penalty.l2.auto.start", "above 0"]),
        (&["penalty.l2={auto: {every: 0}}"], &["penalty.l2.auto.every"]),
        (&["penalty.l2={auto: {rate: 1}}"], &["penalty.l2.auto.rate", "every"]),
        (&["penalty.l2={auto: {}, end: 1}"], &["penalty.l2", "stands alone"]),
        (&["penalty.l2=automatic"], &["penalty.l2", "auto"]),
        (&["penalty.l2=auto", "penalty.decoupled=auto"], &["penalty.decoupled", "choose one"]),
        (&["penalty={decoupled: 1, decoupled_mode: careful}"], &["penalty.decoupled_mode", "cautious"]),
    ] {
        let mut args = vec!["train", config.as_str(), "--dry-run"];
        args.extend(sets.iter().flat_map(|set| ["--set", *set]));
        let (code, _, stderr) = run(&args);
        assert_eq!(code, 2, "{sets:?}: {stderr}");
        assert!(parts.iter().all(|part| stderr.contains(part)), "{sets:?}: {stderr}");
    }
    let (code, stdout, _) = run(&["summary", &config, "--set", "penalty.l2=auto"]);
    assert!(code == 0 && stdout.contains("l2 tuned from 1e-4"), "{stdout}");
    // The resolved config reads as it was written.
    let stdout = succeeds(&["train", &config, "--dry-run", "--set", "penalty.l2={auto: {start: 3}}"]);
    let again = home.path().join("again.yaml");
    fs::write(&again, &stdout).unwrap();
    assert_eq!(run(&["train", again.to_str().unwrap(), "--dry-run"]).1, stdout);
    let message =
        run(&["sweep", &config, "--over", "train.epochs=1,2", "--folds", "3", "--set", "penalty.l2=auto"]);
    assert!(message.0 == 2 && message.2.contains("leave --folds out"), "{}", message.2);
}

#[test]
fn the_first_update_comes_after_every_steps_and_moves_lambda_by_lr_from_where_it_was_held_to() {
    let home = tempfile::tempdir().unwrap();
    let line = "line: {count: 60, slope: 10, intercept: 1, noise: 0.1, low: -2, high: 2";
    let config = format!(
        "device: cpu
model: {{name: linear, args: {{features: 1, outputs: 1}}}}
task: {{regression: {{loss: half_mse}}}}
data:
  train: {{{line}}}}}
  validation: {{{line}, seed: 2}}}}
  batch_size: 20
optimizer: {{sgd: {{lr: 0.1}}}}
penalty: {{decoupled: {{auto: {{start: 1000, lr: 0.125, every: 5}}}}}}
train: {{epochs: 4, log_every: 1}}
"
    );
    let run_folder = home.path().join("run");
    succeeds(&[
        "train",
        &write_config(home.path(), &config),
        "--quiet",
        "--output",
        run_folder.to_str().unwrap(),
    ]);
    let lambda = |record: &Value| record["lambda"]["weights"]["decoupled"].as_f64().unwrap();
    let all: Vec<f64> = records(&run_folder, "step").iter().map(lambda).collect();
    // Held to a tenth of a weight in 5 steps of 0.1·λ: λ ≤ 0.2. The slope wants no shrinking, and the first step of Adam is
    // `lr` long, whatever the gradient.
    let start = 0.1 / (5.0 * 0.1);
    assert_eq!(all.len(), 12);
    for (at, lambda) in all.iter().take(10).enumerate() {
        let wanted = if at < 5 { start } else { start * (-0.125f64).exp() };
        assert!((lambda / wanted - 1.0).abs() < 1e-9, "step {}: {lambda}, not {wanted}", at + 1);
    }
    assert!(all[10] < all[9], "{all:?}");
}
