//! What a run says of itself, judges and hands out: one set of weights, one moment, and an error where there
//! is nothing to say.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::{python, read_json, records, run, saved, succeeds, write_config};

const LINE: &str = "
device: cpu
threads: 1
model: {name: linear, args: {features: 10}}
task: {regression: {loss: half_mse}}
data:
  train: {linear: {features: 10, informative: 3, noise: 0.5, count: 80}}
  validation: {fraction: 0.25}
  batch_size: 20
  normalize: none
optimizer: {sgd: {lr: 0.05}}
train: {epochs: 4}
";

const PICTURES: &str = "
device: cpu
threads: 1
model: {name: small-cnn, args: {channels: 1, size: 20, classes: 10, width: 4}}
task: classification
data: {train: {shapes: {count: 400, size: 20}}, validation: {fraction: 0.25}, batch_size: 50}
optimizer: {sgd: {lr: 0.1, momentum: 0.9}}
train: {epochs: 3}
";

struct Place {
    home: tempfile::TempDir,
    config: String,
}

impl Place {
    fn new(text: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        Self { config: write_config(home.path(), text), home }
    }

    fn run(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// `train` into the run `name`: (exit code, stdout, stderr).
    fn train(&self, name: &str, sets: &[&str]) -> (i32, String, String) {
        let output = self.run(name);
        let mut args = vec!["train", &self.config, "--output", output.to_str().unwrap()];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        run(&args)
    }

    fn trained(&self, name: &str, sets: &[&str]) -> PathBuf {
        let (code, stdout, stderr) = self.train(name, sets);
        assert_eq!(code, 0, "{sets:?}\n{stdout}\n{stderr}");
        self.run(name)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The share of zeros in, and the norm of, `linear.weight` or whatever expression of `w`, a file's tensors.
fn of_file(file: &Path, expression: &str) -> Vec<f64> {
    let printed = python(&format!(
        "
from safetensors.numpy import load_file
import numpy as np, json
w = load_file({file:?})
print(json.dumps([float(x) for x in {expression}]))"
    ));
    serde_json::from_str(&printed).unwrap()
}

#[test]
fn averaged_weights_have_the_zeros_that_the_log_tells_wherever_they_are_judged_or_handed_out() {
    let place = Place::new(LINE);
    let sets = ["train.ema={decay: 0.9}", "train.epochs=10", "optimizer.sgd.momentum=0.5"];
    let by = |penalty: &'static str| [&sets[..], &[penalty]].concat();
    let preconditioned = place.trained("other", &by("penalty={l1: 0.4, l1_mode: preconditioned}"));
    let other = records(&preconditioned, "epoch").pop().unwrap();
    assert!(other["zeros"].as_f64().unwrap() > 0.1, "{other}");
    assert_eq!(other["averaged"]["zeros"], other["zeros"], "{other}");

    let run = place.trained("run", &by("penalty={l1: 0.4}"));
    let epoch = records(&run, "epoch").pop().unwrap();
    let zeros = epoch["zeros"].as_f64().unwrap();
    assert!(zeros > 0.1 && zeros < 1.0, "{epoch}");
    assert_eq!(epoch["averaged"]["zeros"], epoch["zeros"], "{epoch}");

    let file = run.join("net.safetensors");
    let expression =
        "[np.mean(w['linear.weight'] == 0), np.linalg.norm(w['linear.weight'].astype('float64'))]";
    succeeds(&["export", text(&run), "--to", "safetensors", "-o", text(&file)]);
    let [exported, norm] = of_file(&file, expression)[..] else { panic!("two numbers") };
    assert_eq!(exported, zeros);
    assert!((norm / epoch["averaged"]["weight_norm"].as_f64().unwrap() - 1.0).abs() < 1e-6);
    assert!(
        (norm / epoch["weight_norm"].as_f64().unwrap() - 1.0).abs() > 1e-6,
        "an average is another set of weights"
    );
    // The average itself stays what it was: a resume goes on from it.
    let [kept, _] = of_file(&run.join("checkpoints/last/ema.safetensors"), expression)[..] else {
        panic!("two numbers")
    };
    assert!(kept < zeros);

    let score = |more: &[&str]| -> Value {
        let args =
            [&["eval", text(&run), "--split", "validation", "--checkpoint", "last", "--json"], more].concat();
        serde_json::from_str(&succeeds(&args)).unwrap()
    };
    let (averaged, raw) = (score(&[]), score(&["--raw"]));
    assert_eq!((&averaged["averaged"], &raw["averaged"]), (&json!(true), &json!(false)));
    assert_eq!(averaged["scores"], epoch["validation"], "judged as handed out");
    assert_ne!(averaged["scores"], raw["scores"]);
    let told = succeeds(&["eval", text(&run), "--split", "validation"]);
    assert!(told.contains("(averaged weights)"), "{told}");
    let told = succeeds(&["eval", text(&run), "--split", "validation", "--raw"]);
    assert!(told.contains("(raw weights)"), "{told}");
}

#[test]
fn a_short_run_with_averaged_weights_is_judged_by_what_it_learnt() {
    let place = Place::new(PICTURES);
    let run = place.trained("run", &["train.ema={decay: 0.999}"]);
    let log = std::fs::read_to_string(run.join("log.txt")).unwrap();
    assert!(log.contains("validation (averaged weights) loss") && log.contains("(averaged "), "{log}");
    assert!(!log.contains("without `warmup`"), "{log}");
    let losses = |run: &Path| -> Vec<f64> {
        records(run, "epoch").iter().map(|epoch| epoch["validation"]["loss"].as_f64().unwrap()).collect()
    };
    let long = place.trained("long", &["train.ema={decay: 0.999, warmup: false}"]);
    let log = std::fs::read_to_string(long.join("log.txt")).unwrap();
    assert!(log.contains("hold 98 % of the weights that the run began with"), "{log}");
    let (warm, cold) = (losses(&run), losses(&long));
    let gain = |losses: &[f64]| 10f64.ln() - losses.last().unwrap();
    assert!(gain(&warm) > 3.0 * gain(&cold), "{warm:?} {cold:?}");
}

#[test]
fn a_config_whose_tensors_start_afresh_answers_nothing_and_names_the_run() {
    let place = Place::new(PICTURES);
    let base = place.trained("base", &["train.epochs=1"]);
    let from = format!("model.init_from={{file: {}, reset: ['fc.*']}}", text(&base));
    let tuned = place.run("tuned");
    let picture = place.run("x.png");
    python(&format!("from PIL import Image; Image.new('L', (20, 20)).save({picture:?})"));
    let output = format!("output={}", text(&tuned));
    let predict = || run(&["predict", &place.config, text(&picture), "--set", &from, "--set", &output]);
    let (code, _, stderr) = predict();
    assert!(
        code == 2 && stderr.contains("start afresh (such as fc.") && stderr.contains("train it first"),
        "{stderr}"
    );
    place.trained("tuned", &[&from, "train.epochs=1"]);
    let (code, stdout, stderr) = predict();
    assert!(
        code == 2 && stdout.is_empty() && stderr.contains(&format!("the run, {}", text(&tuned))),
        "{stderr}"
    );
    let (code, ..) = run(&["restore", &place.config, text(&picture), "-o", "/tmp/none.png", "--set", &from]);
    assert_eq!(code, 2);
    succeeds(&["predict", text(&tuned), text(&picture)]);
}

#[test]
fn an_epochs_record_is_of_one_moment() {
    let place = Place::new(LINE);
    // 12 steps: the last has 11/12 of the way.
    let run = place.trained(
        "run",
        &["penalty={l2: {start: 0, end: 0.6}}", "schedule={linear: {end_factor: 0}}", "train.log_every=1"],
    );
    let (step, epoch) = (records(&run, "step").pop().unwrap(), records(&run, "epoch").pop().unwrap());
    for key in ["lr", "lambda"] {
        assert_eq!(step[key], epoch[key], "{key}");
    }
    assert!((epoch["lambda"]["weights"]["l2"].as_f64().unwrap() - 0.55).abs() < 1e-12);
    let [squares] = of_file(
        &run.join("checkpoints/last/model.safetensors"),
        "[(w['linear.weight'].astype('float64')**2).sum()]",
    )[..] else {
        panic!("one number")
    };
    assert!((epoch["penalty"].as_f64().unwrap() / (0.275 * squares) - 1.0).abs() < 1e-6);
}

#[test]
fn runs_with_equal_weights_tell_equal_penalties_and_frozen_tensors_their_part() {
    let place = Place::new(LINE);
    let penalty = |name: &str, penalty: &str| {
        let run = place.trained(name, &[penalty, "dtype=float64"]);
        (saved(&run, "model"), records(&run, "epoch").pop().unwrap()["penalty"].as_f64().unwrap())
    };
    let plain = penalty("plain", "penalty={decoupled: 0.4}");
    let relative = penalty("relative", "penalty={decoupled: 0.02, decoupled_mode: relative}");
    assert!(
        plain.0 == relative.0 && (plain.1 / relative.1 - 1.0).abs() < 1e-12,
        "{} {}",
        plain.1,
        relative.1
    );

    let place = Place::new(PICTURES);
    let base = place.trained("base", &["train.epochs=1"]);
    let from = format!("model.init_from={{file: {}, freeze: ['fc.*']}}", text(&base));
    let frozen = place.trained("frozen", &[&from, "penalty={l2: 0.01}", "train.epochs=1"]);
    let log = std::fs::read_to_string(frozen.join("log.txt")).unwrap();
    let [part] = of_file(
        &base.join("checkpoints/best/model.safetensors"),
        "[0.005 * (w['fc.weight'].astype('float64')**2).sum()]",
    )[..] else {
        panic!("one number")
    };
    assert!(
        log.contains(&format!("penalty: the part of 1 frozen tensors, {part:.4}, is constant")),
        "{part} {log}"
    );
}

#[test]
fn scores_that_are_no_numbers_and_epochs_without_a_step_are_exit_5() {
    let place = Place::new(LINE);
    // The last step alone explodes: no later loss tells it.
    let sets = ["data.batch_size=60", "train.epochs=1", "optimizer.sgd.lr=1e30", "train.clip=null"];
    let (code, stdout, stderr) = place.train("infinite", &sets);
    assert_eq!(code, 5, "{stdout}{stderr}");
    assert!(
        stderr.contains("validation set, epoch 1: the loss over 20 samples became NaN or infinite"),
        "{stderr}"
    );
    assert!(!place.run("infinite").join("result.json").exists());

    let place = Place::new(PICTURES);
    let sets = ["train.amp=fp16", "optimizer.sgd.lr=1e8", "train.epochs=2", "train.clip=null"];
    let (code, stdout, stderr) = place.train("skipped", &sets);
    assert_eq!(code, 5, "{stdout}{stderr}");
    assert!(!stderr.contains("loss 0.0000") && stderr.contains("became NaN or infinite"), "{stderr}");
}

#[test]
fn a_penalty_that_overshoots_is_named() {
    let place = Place::new(LINE);
    for (name, penalty, word) in [
        ("l2", "penalty={l2: 300}", "η·λ of the penalty group `weights` was 15.000"),
        ("decoupled", "penalty={decoupled: 100}", "(`penalty`: decoupled 100)"),
    ] {
        let (code, _, stderr) = place.train(name, &[penalty, "train.epochs=100", "optimizer.sgd.lr=0.05"]);
        assert!(code == 5 && stderr.contains(word), "{code} {stderr}");
    }
    // Where the penalty is innocent it is not named.
    let (code, _, stderr) =
        place.train("rate", &["penalty={l2: 1e-9}", "train.epochs=100", "optimizer.sgd.lr=100"]);
    assert!(code == 5 && stderr.contains("Lower `optimizer` lr") && !stderr.contains("η·λ"), "{stderr}");
}

#[test]
fn settings_that_do_nothing_or_the_opposite_are_told_or_refused() {
    let place = Place::new(LINE);
    let log = |name: &str, sets: &[&str]| -> String {
        std::fs::read_to_string(place.trained(name, sets).join("log.txt")).unwrap()
    };
    let adamw = "optimizer=adamw";
    assert_eq!(log("adamw", &[adamw]).matches("adamw: no weight decays").count(), 1);
    assert!(!log("decays", &[adamw, "penalty={decoupled: 0.01}"]).contains("adamw"));
    let rounded = "decoupled decay of `weights`: η·λ is 1.0e-8 at most, 0.000 % of a weight";
    assert!(log("rounded", &[adamw, "penalty={decoupled: 1e-5}"]).contains(rounded));
    for (at, sets) in [
        [adamw, "penalty={decoupled: 1e-5, decoupled_mode: accumulated}"],
        ["dtype=float64", "penalty={decoupled: 1e-5}"],
        [adamw, "penalty={decoupled: 0.01}"],
    ]
    .iter()
    .enumerate()
    {
        assert!(!log(&format!("fine{at}"), sets).contains("decoupled decay of"), "{sets:?}");
    }
    assert!(
        log("l1", &["optimizer=adagrad", "penalty={l1: 0.1}"])
            .contains("`l1_mode: preconditioned` scales it")
    );
    assert!(!log("l1-sgd", &["penalty={l1: 0.1}"]).contains("l1_mode"));

    let (code, _, stderr) = place.train("plateau", &["schedule={plateau: {mode: max}}"]);
    assert!(
        code == 2 && stderr.contains("schedule.plateau.mode: `max` watches the main metric, mse"),
        "{stderr}"
    );
    let (code, _, stderr) = place.train("auto", &["penalty={l2: auto, l1: 0.1, l1_mode: preconditioned}"]);
    assert!(code == 2 && stderr.contains("penalty.l2"), "{stderr}");
}

#[test]
fn only_a_penalty_has_a_strongest_value_and_a_score_that_is_none_is_no_divergence() {
    let place = Place::new(LINE);
    let sweep = |name: &str, more: &[&str]| {
        let output = place.run(name);
        run(&[&["sweep", &place.config, "--jobs", "1", "--output", text(&output)], more].concat())
    };
    let epochs = ["--over", "train.epochs=1,2,3", "--folds", "3"];
    let (code, _, stderr) = sweep("refused", &[&epochs[..], &["--final-fit", "one-se"]].concat());
    assert!(
        code == 2 && stderr.contains("--final-fit one-se") && !place.run("refused").join("trials").exists(),
        "{stderr}"
    );
    let (code, stdout, stderr) = sweep("epochs", &[&epochs[..], &["--final-fit", "none"]].concat());
    assert!(code == 0 && !stdout.contains('+') && stdout.contains("* best"), "{stdout}{stderr}");
    assert_eq!(read_json(place.run("epochs").join("result.json"))["one_standard_error"], Value::Null);
    let (code, stdout, stderr) =
        sweep("l2", &["--over", "penalty.l2=0.01,0.1", "--folds", "3", "--final-fit", "one-se"]);
    assert!(code == 0 && stdout.contains("+ strongest within one standard error"), "{stdout}{stderr}");

    // Leave-one-out: R² of one sample is none.
    let loo = ["--over", "penalty.l2=0.01,0.1", "--folds", "80", "--metric", "r2", "--set", "train.epochs=1"];
    let (code, stdout, stderr) = sweep("loo", &loo);
    assert!(
        code == 2 && stderr.contains("no finite `r2`") && !stdout.contains("diverged"),
        "{code} {stdout}{stderr}"
    );
}

#[test]
fn a_preconditioned_soft_threshold_ends_at_the_lasso_with_every_optimizer() {
    let home = tempfile::tempdir().unwrap();
    let table = home.path().join("table.csv");
    let printed = python(&format!(
        "
import numpy as np, json
from sklearn.linear_model import Lasso
rng = np.random.default_rng(0)
x = rng.normal(size=(40, 10)); x -= x.mean(0); y = x @ [2, -1, .5, .2, 0, 0, 0, 0, .05, 0] + .5 * rng.normal(size=40); y -= y.mean()
np.savetxt({table:?}, np.c_[x, y], delimiter=',', header=','.join('abcdefghij') + ',y', comments='', fmt='%.17g')
models = [Lasso(alpha=a, fit_intercept=False, tol=1e-14, max_iter=100000).fit(x, y) for a in (.1, .5)]
print(json.dumps([[*m.coef_] for m in models]))"
    ));
    let solutions: Vec<Vec<f64>> = serde_json::from_str(&printed).unwrap();
    let place = Place::new(&format!(
        "
device: cpu
threads: 1
dtype: float64
model: {{input: [10], layers: {{linear: {{linear: {{out_features: 1, bias: false}}}}}}}}
task: {{regression: {{loss: half_mse}}}}
data: {{train: {{csv: {{file: {table:?}, target: y}}}}, batch_size: 40, normalize: none}}
optimizer: adam
train: {{epochs: 6000, eval_every: 6000, log_every: 6000, checkpoint: {{every_epochs: 6000}}}}
"
    ));
    for (at, optimizer) in [
        "{adam: {lr: 0.01}}",
        "{adam: {lr: 0.01, amsgrad: true}}",
        "{adagrad: {lr: 0.3}}",
        "{adagrad: {lr: 0.3, lr_decay: 1.0e-4}}",
        "{rmsprop: {lr: 0.01}}",
        "{rmsprop: {lr: 0.002, momentum: 0.9}}",
        "{sgd: {lr: 0.05, momentum: 0.9}}",
    ]
    .iter()
    .enumerate()
    {
        for (lambda, solution) in [0.1, 0.5].iter().zip(&solutions) {
            let penalty = format!("penalty={{l1: {lambda}, l1_mode: preconditioned}}");
            let run =
                place.trained(&format!("{at}-{lambda}"), &[&penalty, &format!("optimizer={optimizer}")]);
            let file = run.join("checkpoints/last/model.safetensors");
            let found = of_file(&file, "w['linear.weight'].ravel()");
            for (found, solution) in found.iter().zip(solution) {
                assert!((found - solution).abs() < 1e-6, "{optimizer} {lambda}: {found} against {solution}");
                assert_eq!(*found == 0.0, *solution == 0.0, "{optimizer} {lambda}: the same exact zeros");
            }
        }
    }
}

#[test]
fn accumulated_decay_takes_in_float32_what_is_meant_and_a_resume_goes_on_with_the_rest() {
    let place = Place::new(LINE);
    // Without a gradient: 3,000 steps of η·λ = 3e-8, of which float32 makes something else.
    let quiet = ["optimizer={sgd: {lr: 0}}", "data.batch_size=2"];
    let start = place.trained("start", &[&quiet[..], &["train.epochs=1"]].concat());
    let norm = |run: &Path| {
        of_file(
            &run.join("checkpoints/last/model.safetensors"),
            "[np.linalg.norm(w['linear.weight'].astype('float64'))]",
        )[0]
    };
    let before = norm(&start);
    // Data loss 0 times the rate: mae has the gradient sign(·)/n, so all of it is the penalty's only where
    // the targets are met.
    let decayed = |name: &str, mode: &str, more: &[&str]| {
        let penalty = format!("penalty={{decoupled: 1.0e+3, decoupled_mode: {mode}}}");
        let sets = [&penalty, "optimizer={sgd: {lr: 3.0e-11}}", "data.batch_size=2", "train.epochs=1000"];
        place.trained(
            name,
            &[&sets[..], &["train.eval_every=1000", "train.checkpoint.every_epochs=1000"], more].concat(),
        )
    };
    // 30,000 steps of 3e-8.
    let meant = 1.0 - (-30_000.0 * 3e-8f64).exp();
    let taken = |run: &Path| 1.0 - norm(run) / before;
    let accumulated = taken(&decayed("accumulated", "accumulated", &[]));
    // What is left to apply is below 2⁻¹².
    assert!(accumulated <= meant && meant - accumulated < 1.0 / 4096.0, "{accumulated} of {meant}");
    let plain = taken(&decayed("plain", "plain", &[]));
    assert!((plain / meant - 1.0).abs() > 0.5, "{plain} of {meant}: float32 rounds it");

    let mode = "penalty={decoupled: 0.5, decoupled_mode: accumulated}";
    let sets = ["--set", mode, "--set", "optimizer={adamw: {lr: 1.0e-4}}", "--set", "train.epochs=41"];
    let train = |name: &str, more: &[&str]| {
        let output = place.run(name);
        succeeds(&[&["train", &place.config, "--output", text(&output)], &sets[..], more].concat());
        output
    };
    let whole = train("whole", &[]);
    let state = read_json(whole.join("checkpoints/last/state.json"));
    assert!(state["decay"][0].as_f64().is_some_and(|left| left < 1.0), "{}", state["decay"]);
    train("cut", &["--set", "train.epochs=17"]);
    let cut = train("cut", &["--resume"]);
    assert_eq!(saved(&cut, "model"), saved(&whole, "model"));
    assert_eq!(read_json(cut.join("checkpoints/last/state.json"))["decay"], state["decay"]);
}
