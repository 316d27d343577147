//! How long a run trains and when it is evaluated: steps, hours, evaluations within an epoch, decays that a longer
//! resume takes back; and the learning-rate range test.

use std::path::Path;

use serde_json::Value;

use crate::common::{python, read_json, records, run, saved, succeeds, write_config};

/// 5 steps an epoch.
fn config(folder: &Path, train: &str, schedule: &str) -> String {
    write_config(
        folder,
        &format!(
            "device: cpu\nthreads: 1\nseed: 3\nmodel: {{name: small-cnn, args: {{channels: 1, size: 28, classes: 10, width: 4}}}}\n\
             task: classification\ndata:\n  train: {{shapes: {{count: 160, size: 28}}}}\n  validation: {{fraction: 0.5}}\n  \
             batch_size: 16\n  augment: [{{affine: {{degrees: 10}}}}]\npenalty: {{l2: 1.0e-3}}\n\
             optimizer: {{sgd: {{lr: 0.05, momentum: 0.9}}}}\nschedule: {schedule}\ntrain: {train}\n"
        ),
    )
}

fn train(folder: &Path, name: &str, more: &[&str]) -> std::path::PathBuf {
    let out = folder.join(name);
    let config = folder.join("config-under-test.yaml");
    let base = ["train", config.to_str().unwrap(), "--output", out.to_str().unwrap(), "--quiet"];
    succeeds(&[&base, more].concat());
    out
}

/// (epoch, step) of each evaluation.
fn moments(run: &Path) -> Vec<(f64, u64)> {
    let of = |record: &Value| {
        let is_judged = !record["validation"].is_null();
        is_judged.then(|| (record["epoch"].as_f64().unwrap(), record["step"].as_u64().unwrap()))
    };
    records(run, "epoch").iter().filter_map(of).collect()
}

#[test]
fn a_run_of_so_many_steps_ends_within_an_epoch_and_goes_on_there_to_the_same_bits() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    config(folder, "{steps: 12}", "{warmup: {steps: 3}}");
    let whole = train(folder, "whole", &[]);
    let parts = train(folder, "parts", &["--set", "train.steps=7"]);
    assert_eq!(moments(&parts), [(1.0, 5), (1.4, 7)]);
    let result = read_json(parts.join("result.json"));
    assert_eq!((result["steps"].as_u64(), result["epochs"].as_u64()), (Some(7), Some(1)));
    assert_eq!(result["last"]["step"], 7);
    train(folder, "parts", &["--set", "train.steps=12", "--resume"]);
    assert_eq!(moments(&parts), [(1.0, 5), (1.4, 7), (2.0, 10), (2.4, 12)]);
    assert_eq!(moments(&whole), [(1.0, 5), (2.0, 10), (2.4, 12)]);
    for part in ["model", "optimizer"] {
        assert!(saved(&whole, part) == saved(&parts, part), "{part}");
    }
    let last = |run: &Path| records(run, "epoch").last().unwrap()["validation"].clone();
    assert_eq!(last(&whole), last(&parts));
    // Ten steps are two whole epochs.
    config(folder, "{steps: 10}", "cosine");
    let steps = train(folder, "steps", &[]);
    config(folder, "{epochs: 2}", "cosine");
    let epochs = train(folder, "epochs", &[]);
    assert!(saved(&steps, "model") == saved(&epochs, "model"));
    assert_eq!(moments(&steps), moments(&epochs));
}

#[test]
fn evaluations_by_steps_choose_the_best_within_epochs_and_resume_alike() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    config(
        folder,
        "{epochs: 4, eval_every: {steps: 3}, monitor: loss, checkpoint: {every_steps: 4}}",
        "constant",
    );
    let whole = train(folder, "whole", &[]);
    assert_eq!(moments(&whole), [(0.6, 3), (1.2, 6), (1.8, 9), (2.4, 12), (3.0, 15), (3.6, 18), (4.0, 20)]);
    let losses: Vec<f64> =
        records(&whole, "epoch").iter().filter_map(|record| record["validation"]["loss"].as_f64()).collect();
    let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let result = read_json(whole.join("result.json"));
    assert_eq!(result["best"]["validation"]["loss"].as_f64(), Some(least));
    let scores = succeeds(&["eval", whole.to_str().unwrap(), "--split", "validation", "--json"]);
    let scores: Value = serde_json::from_str(&scores).unwrap();
    assert!((scores["scores"]["loss"].as_f64().unwrap() - least).abs() < 1e-9);
    // Stopped in the middle, by a budget that a resume lifts.
    config(
        folder,
        "{steps: 8, eval_every: {steps: 3}, monitor: loss, checkpoint: {every_steps: 4}}",
        "constant",
    );
    let parts = train(folder, "parts", &[]);
    train(folder, "parts", &["--set", "train.steps=20", "--resume"]);
    assert!(saved(&whole, "model") == saved(&parts, "model"));
    let judged = |run: &Path| -> Vec<Value> {
        let all = records(run, "epoch");
        all.iter().filter(|r| r["step"].as_u64() != Some(8)).map(|r| r["validation"].clone()).collect()
    };
    assert_eq!(judged(&whole), judged(&parts));
    // A best within an epoch is kept, and found by name.
    config(folder, "{epochs: 3, eval_every: {steps: 4}, monitor: accuracy}", "{exponential: {gamma: 0.01}}");
    let kept = train(folder, "kept", &[]);
    let best = std::fs::read_link(kept.join("checkpoints/best")).unwrap();
    assert!(kept.join("checkpoints").join(&best).is_dir(), "{best:?}");
    let (code, _, told) =
        run(&["report", kept.to_str().unwrap(), "-o", folder.join("r.html").to_str().unwrap()]);
    assert_eq!(code, 0, "{told}");
}

#[test]
fn a_longer_resume_of_wsd_takes_its_decay_back() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    config(folder, "{steps: 12}", "{wsd: {decay: 0.25, shape: sqrt}, warmup: {steps: 2}}");
    let short = train(folder, "run", &[]);
    let lr = |run: &Path| records(run, "epoch").last().unwrap()["lr"].as_f64().unwrap();
    assert!(lr(&short) < 0.03, "{}", lr(&short));
    let stable = std::fs::read_link(short.join("checkpoints/stable")).unwrap();
    assert_eq!(stable.to_str(), Some("step-00000009"));
    let config_file = folder.join("config-under-test.yaml");
    let told = run(&[
        "train",
        config_file.to_str().unwrap(),
        "--output",
        short.to_str().unwrap(),
        "--resume",
        "--set",
        "train.steps=23",
    ]);
    assert!(told.0 == 0 && told.2.contains("going back to step 9, from where it fell"), "{}", told.2);
    let long = train(folder, "long", &["--set", "train.steps=23"]);
    assert!(saved(&short, "model") == saved(&long, "model"));
    assert_eq!(lr(&short), lr(&long));
    assert_eq!(moments(&short), moments(&long));
}

#[test]
fn a_run_of_so_many_hours_ends_in_time_with_its_schedule() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    config(folder, "{hours: 0.0008, eval_every: 1000}", "cosine");
    let out = train(folder, "run", &[]);
    let result = read_json(out.join("result.json"));
    let seconds = result["seconds"].as_f64().unwrap();
    assert!((2.88..6.0).contains(&seconds), "{seconds}");
    let lr = records(&out, "epoch").last().unwrap()["lr"].as_f64().unwrap();
    assert!(lr < 0.01, "the schedule is as far as the clock: {lr}");
    assert!(!records(&out, "epoch").last().unwrap()["validation"].is_null());
}

#[test]
fn a_run_says_once_how_long_it_is() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let wrong = [
        ("{log_every: 5}", "how long? Say `epochs`, `steps` or `hours`"),
        ("{epochs: 1, steps: 5}", "`epochs` and `steps` at once"),
        ("{hours: 0}", "is no time to train"),
        ("{steps: 0}", "must be 1 or more"),
        ("{epochs: 1, eval_every: {steps: 0}}", "must be 1 or more"),
        ("{epochs: 1, eval_every: often}", "a number of epochs, or `{steps: N}`"),
    ];
    for (train, why) in wrong {
        let config = config(folder, train, "constant");
        let (code, _, told) = run(&["summary", &config]);
        assert!(code == 2 && told.contains(why), "{train}: {told}");
    }
}

#[test]
fn the_range_test_plots_the_loss_over_a_rising_rate() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path();
    let config = config(folder, "{epochs: 4}", "one_cycle");
    let plot = folder.join("lr.png");
    let told = succeeds(&[
        "lr-find",
        &config,
        "-o",
        plot.to_str().unwrap(),
        "--min-lr",
        "1e-5",
        "--max-lr",
        "10",
        "--steps",
        "40",
    ]);
    assert!(told.contains("the loss falls most at a learning rate of"), "{told}");
    assert!(image::open(&plot).unwrap().width() > 300);
    // Lightning's numbers of the same losses.
    let table = folder.join("lr.csv");
    let script = format!(
        "import csv, numpy as np\nrows = list(csv.DictReader(open({table:?})))\n\
         lr, loss, smooth = (np.array([float(r[k]) for r in rows]) for k in ('lr', 'loss', 'smoothed'))\n\
         avg, mine, best = 0.0, [], 0.0\n\
         for i, l in enumerate(loss):\n    avg = 0.98 * avg + 0.02 * l\n    mine.append(avg / (1 - 0.98 ** (i + 1)))\n\
         assert np.allclose(mine, smooth, rtol=1e-12), (mine, smooth)\n\
         n = len(lr)\nassert np.allclose(lr, 1e-5 * (10 / 1e-5) ** (np.arange(n) / 39), rtol=1e-9)\n\
         assert n == 40 or smooth[-1] > 4 * min(smooth[:-1])\n\
         print(f'{{lr[10:-1][np.gradient(smooth[10:-1]).argmin()]:.2e}}')"
    );
    let theirs = python(&script);
    let (digits, exponent) = theirs.trim().split_once('e').unwrap();
    let ours = format!("{digits}e{}", exponent.parse::<i32>().unwrap());
    assert!(told.contains(&format!("learning rate of {ours}\n")), "{ours}: {told}");
    let (code, _, told) = run(&["lr-find", &config, "-o", plot.to_str().unwrap()]);
    assert!(code == 2 && told.contains("--force"), "{told}");
}
