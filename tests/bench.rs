//! The bench as a user drives it: what it reports adds up, and it leaves nothing behind.

use std::fs;

use serde_json::Value;

use crate::common::{read_json, run, succeeds};

const CONFIG: &str = "
seed: 1
device: cpu
threads: 1
model: {name: small-cnn, args: {channels: 1, size: 16, classes: 10, width: 4}}
task: classification
data:
  train: {shapes: {count: 100, size: 16}}
  validation: {fraction: 0.25}
  batch_size: 20
penalty: {l2: 1.0e-3}
optimizer: {sgd: {lr: 0.05}}
train: {epochs: 3, accumulate: 2}
";

const PHASES: [&str; 6] = ["data", "prepare", "forward", "backward", "optimizer", "other"];

/// The report of a bench of `CONFIG` with `args`, and the folder that it ran in.
fn bench(args: &[&str]) -> (Value, tempfile::TempDir) {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("tiny.yaml"), CONFIG).unwrap();
    let (config, output, trace) =
        (at("tiny.yaml"), format!("output={}", at("the-run")), format!("--profile={}", at("trace.json")));
    let mut all = vec!["bench", &config, "--json", "--set", &output, &trace];
    all.extend(args);
    let stdout = succeeds(&all);
    (serde_json::from_str(&stdout).unwrap(), home)
}

#[test]
fn what_a_bench_reports_adds_up_over_several_epochs() {
    // 70 samples (validation takes 3 of the 10 of each class) in 4 batches are 2 steps an epoch: 7 steps take
    // 4 epochs. Measured are steps 3 to 7, which learn from 40, 30, 40, 30 and 40 samples.
    let (report, home) = bench(&["--steps", "5", "--warmup", "2", "--checkpoint"]);
    assert_eq!((report["steps"].as_u64(), report["samples"].as_u64()), (Some(5), Some(180)));
    let number = |pointer: &str| {
        let value = report.pointer(pointer).and_then(Value::as_f64);
        value.unwrap_or_else(|| panic!("{pointer} is missing in {report}"))
    };
    let (mut share, mut ms) = (0.0, 0.0);
    for phase in PHASES {
        share += number(&format!("/phases/{phase}/share"));
        ms += number(&format!("/phases/{phase}/ms"));
    }
    assert!((share - 1.0).abs() < 1e-9, "the shares add up to {share}");
    assert!((number("/images_per_s") * ms * 5.0 / 1e3 - 180.0).abs() < 1e-6);
    assert_eq!(number("/data_wait"), number("/phases/data/share"));
    assert!(number("/phases/backward/share") > 0.1, "{report}");
    assert!(number("/step_ms/p10") <= number("/step_ms/median"));
    assert!(number("/step_ms/median") <= number("/step_ms/p90"));
    // A process with libtorch in it takes more than 100 MiB and this one less than 4 GiB.
    assert!((1e8..4e9).contains(&number("/peak_memory_bytes")));
    assert_eq!(
        (number("/evaluation/samples"), report["evaluation"]["split"].as_str()),
        (30.0, Some("validation"))
    );
    assert!(number("/checkpoint/save_s") > 0.0 && number("/checkpoint/load_s") > 0.0);
    assert!(report["free_running"].is_null(), "nothing is waited for on the CPU");
    let mut left: Vec<_> =
        fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["tiny.yaml", "trace.json"], "a bench keeps nothing");
}

#[test]
fn the_phases_of_a_trace_follow_each_other_within_their_step() {
    let (report, home) = bench(&["--steps", "3", "--warmup", "0", "--no-eval"]);
    assert!(report["evaluation"].is_null() && report["checkpoint"].is_null());
    let trace: Value = read_json(home.path().join("trace.json"));
    let events = trace["traceEvents"].as_array().unwrap();
    let (mut sums, mut steps) = (std::collections::HashMap::new(), Vec::new());
    let mut end = 0.0;
    for event in events {
        assert_eq!(event["ph"], "X");
        let (name, ts, dur) =
            (event["name"].as_str().unwrap(), event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap());
        if name == "step" {
            steps.push(dur);
            continue;
        }
        assert!((ts - end).abs() < 1e-3, "{name} begins at {ts} µs, what went before it ends at {end} µs");
        end = ts + dur;
        *sums.entry(name).or_insert(0.0) += dur / 1e3 / 3.0;
    }
    assert_eq!(steps.len(), 3);
    assert!((steps.iter().sum::<f64>() - end).abs() < 1e-2);
    for phase in PHASES {
        let reported = report["phases"][phase]["ms"].as_f64().unwrap();
        assert!(
            (sums[phase] - reported).abs() < 1e-3,
            "{phase}: {} ms in the trace, {reported} reported",
            sums[phase]
        );
    }
    // Two batches make a step, so the network is run twice in it.
    assert_eq!(events.iter().filter(|event| event["name"] == "forward").count(), 6);
}

#[test]
fn data_alone_is_loaded_and_nothing_learnt() {
    // One batch a step would be 20 samples; `accumulate` takes two.
    let (report, _home) = bench(&["--steps", "4", "--warmup", "0", "--data-only"]);
    assert_eq!(report["samples"].as_u64(), Some(140));
    assert_eq!(report["phases"]["forward"]["ms"].as_f64(), Some(0.0));
    assert!(report["data_wait"].as_f64().unwrap() > 0.5, "{report}");
    assert!(report["evaluation"].is_null());
}

#[test]
fn no_steps_are_a_mistake_of_usage() {
    let (code, _, stderr) = run(&["bench", "quickstart", "--steps", "0"]);
    assert_eq!(code, 2, "{stderr}");
}
