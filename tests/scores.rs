//! Scores of all answers of a set: equal to scikit-learn's and torchmetrics', with intervals, as what decides.

use std::path::Path;

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use tikhonov::metrics::{MetricArgs, MetricCollection, Scores, Thresholds, Wanted, bootstrap};

use crate::common::{python, read_json, records, run, succeeds, write_config};

const CPU: (Kind, Device) = (Kind::Double, Device::Cpu);

/// The scores of these logits `[N, K]`, given in two batches.
fn scores(task: &str, logits: &Tensor, ys: &Tensor, thresholds: Thresholds) -> Scores {
    let args = MetricArgs { classes: logits.size()[1] as usize, ..MetricArgs::default() };
    let mut meter = MetricCollection::new(task, &args, Wanted::All);
    let all = logits.size()[0];
    for (start, end) in [(0, all / 3), (all / 3, all)] {
        let part = |tensor: &Tensor| tensor.slice(0, start, end, 1);
        meter.update(&Tensor::new(), &part(logits).into(), &part(ys));
    }
    meter.compute(thresholds)
}

/// 600 logits of four classes, some of them beyond what a float tells from 1, and classes that they fit by half.
fn of_four() -> (Tensor, Tensor) {
    let logits = (Tensor::arange(2400, CPU) * 1.7).sin().reshape([600, 4]) * 4.0;
    logits.narrow(0, 0, 3).copy_(&Tensor::from_slice(&[900.0, 0.0, 0.0, 0.0]).expand([3, 4], false));
    let ys = (Tensor::arange(600, (Kind::Int64, Device::Cpu)) * 7).remainder(4);
    ys.slice(0, 0, 600, 2).copy_(&logits.argmax(1, false).slice(0, 0, 600, 2));
    (logits, ys)
}

fn several(logits: &Tensor) -> Tensor {
    let turned: Tensor =
        (Tensor::arange(logits.numel() as i64, CPU) * 0.9).cos().view_as(logits) + logits / 8.0;
    turned.gt(0.3).to_kind(Kind::Double)
}

/// The same numbers in Python.
const SETUP: &str = "
import numpy as np, torch
from sklearn.metrics import *
t = torch.float64
z = (torch.sin(torch.arange(2400, dtype=t) * 1.7) * 4).reshape(600, 4); z[:3] = torch.tensor([900., 0, 0, 0], dtype=t)
y = (torch.arange(600) * 7) % 4; y[::2] = z.argmax(1)[::2]
s = (torch.cos(torch.arange(2400, dtype=t) * 0.9).reshape(600, 4) + z / 8 > 0.3).long().numpy()
P, S, Y = z.softmax(1).numpy(), z.sigmoid().numpy(), y.numpy()
def show(**named):
    for name, value in named.items(): print(name, repr(float(value)))
";

fn agree(scores: &Scores, script: &str) {
    let text = python(&format!("{SETUP}{script}"));
    assert!(text.lines().count() > 3, "{text}");
    for line in text.lines() {
        let (name, wanted) = line.split_once(' ').unwrap();
        let (wanted, ours) = (wanted.parse::<f64>().unwrap(), scores.get(name));
        assert!(ours.is_some_and(|ours| (ours - wanted).abs() < 1e-6), "{name}: {ours:?}, {wanted}");
    }
}

#[test]
fn the_scores_of_classes_are_those_of_scikit_learn() {
    let (logits, ys) = of_four();
    let ours = scores("classification", &logits, &ys, Thresholds::Given(&[]));
    agree(
        &ours,
        "
p = P.argmax(1)
show(auroc=roc_auc_score(Y, P, multi_class='ovr'), average_precision=average_precision_score(np.eye(4)[Y], P),
     balanced_accuracy=balanced_accuracy_score(Y, p), cohen_kappa=cohen_kappa_score(Y, p),
     matthews_corrcoef=matthews_corrcoef(Y, p), brier_score=((P - np.eye(4)[Y]) ** 2).sum(1).mean(), accuracy=(p == Y).mean())
for k in range(4):
    show(**{f'auroc_{k}': roc_auc_score(Y == k, P[:, k]), f'average_precision_{k}': average_precision_score(Y == k, P[:, k])})
",
    );
    // MulticlassCalibrationError(4, n_bins=15, norm='l1')(z.softmax(1), y) of torchmetrics 1.9.0.
    assert!((ours.get("ece").unwrap() - 0.22113771736621857).abs() < 1e-6, "{:?}", ours.get("ece"));
}

#[test]
fn the_scores_of_two_classes_are_those_of_the_second() {
    let (logits, ys) = of_four();
    let ours = scores("classification", &logits.narrow(1, 0, 2), &ys.remainder(2), Thresholds::Given(&[]));
    agree(
        &ours,
        "
p, b = z[:, :2].softmax(1)[:, 1].numpy(), Y % 2
show(auroc=roc_auc_score(b, p), average_precision=average_precision_score(b, p), brier_score=brier_score_loss(b, p),
     matthews_corrcoef=matthews_corrcoef(b, p > 0.5), cohen_kappa=cohen_kappa_score(b, p > 0.5))
",
    );
}

#[test]
fn the_scores_of_any_number_of_classes_are_those_of_scikit_learn() {
    let (logits, _) = of_four();
    let ys = several(&logits);
    let thresholds = [0.5, 0.9, 0.1, 0.6];
    let ours = scores("multi_label", &logits, &ys, Thresholds::Given(&thresholds));
    agree(
        &ours,
        "
d = S >= np.array([0.5, 0.9, 0.1, 0.6])
show(auroc=roc_auc_score(s, S), average_precision=average_precision_score(s, S), macro_f1=f1_score(s, d, average='macro'),
     micro_f1=f1_score(s, d, average='micro'), subset_accuracy=accuracy_score(s, d), hamming_loss=hamming_loss(s, d),
     brier_score=((S - s) ** 2).mean())
for k in range(4): show(**{f'average_precision_{k}': average_precision_score(s[:, k], S[:, k])})
",
    );
    // The mean over classes of BinaryCalibrationError(n_bins=15) of torchmetrics 1.9.0.
    assert!((ours.get("ece").unwrap() - 0.2735187222003609).abs() < 1e-6, "{:?}", ours.get("ece"));
    let report = ours.report.as_ref().unwrap();
    assert!(report.confusion.is_empty() && report.per_class[1].threshold == Some(0.9));
    // No other threshold finds a class with a higher F1.
    let best = scores("multi_label", &logits, &ys, Thresholds::Best);
    let chosen = best.report.as_ref().unwrap();
    let highest = python(&format!(
        "{SETUP}\nfor k in range(4): r = precision_recall_curve(s[:, k], S[:, k]); \
         print(float(max(2 * p * q / (p + q) for p, q in zip(r[0], r[1]) if p + q > 0)))"
    ));
    for (line, class) in highest.lines().zip(&chosen.per_class) {
        assert!((line.parse::<f64>().unwrap() - class.f1).abs() < 1e-12, "{line} {class:?}");
    }
}

#[test]
fn classes_that_a_set_lacks_have_no_part_in_a_mean() {
    let (logits, ys) = of_four();
    let ours = scores("classification", &logits, &ys.clamp(0, 2), Thresholds::Given(&[]));
    assert_eq!((ours.get("auroc_3"), ours.get("average_precision_3")), (None, None));
    let mean = (0..3).map(|class| ours.get(&format!("auroc_{class}")).unwrap()).sum::<f64>() / 3.0;
    assert!((ours.get("auroc").unwrap() - mean).abs() < 1e-12);
}

#[test]
fn pixels_and_numbers_have_the_scores_of_scikit_learn_in_every_draw() {
    // Sixty masks of 5 x 5, three classes and pixels that do not count.
    let logits = (Tensor::arange(60 * 75, CPU) * 1.3).sin().reshape([60, 3, 5, 5]);
    let ys = (Tensor::arange(1500, (Kind::Int64, Device::Cpu)) * 7).remainder(5).reshape([60, 5, 5]) - 1;
    let ys = ys.where_self(&ys.lt(3), &Tensor::from(-100i64));
    let args = MetricArgs { classes: 3, ..MetricArgs::default() };
    let mut meter = MetricCollection::new("segmentation", &args, Wanted::All);
    meter.update(&Tensor::new(), &logits.shallow_clone().into(), &ys);
    let ours = meter.compute(Thresholds::Given(&[]));
    agree(
        &ours,
        "
m = torch.sin(torch.arange(4500, dtype=t) * 1.3).reshape(60, 3, 5, 5).argmax(1).numpy().ravel()
w = ((torch.arange(1500) * 7) % 5 - 1).numpy()
keep = (w >= 0) & (w < 3); m, w = m[keep], w[keep]
show(mean_iou=jaccard_score(w, m, average='macro'), mean_dice=f1_score(w, m, average='macro'), pixel_accuracy=(w == m).mean())
for k, v in enumerate(jaccard_score(w, m, average=None)): show(**{f'iou_{k}': v})
",
    );
    let answers = ours.answers.clone().unwrap();
    let within = bootstrap::intervals("segmentation", &answers, 400, 0);
    for (name, value) in &ours.values {
        let interval = within[name];
        assert!(interval.low < *value && *value < interval.high, "{name} {value} {interval:?}");
    }
    assert_eq!(bootstrap::intervals("segmentation", &answers, 400, 0), within);
    assert_ne!(bootstrap::intervals("segmentation", &answers, 400, 1), within);
}

#[test]
fn an_interval_is_that_of_the_binomial_distribution() {
    let (logits, ys) = of_four();
    let ours = scores("classification", &logits, &ys, Thresholds::Given(&[]));
    let interval =
        bootstrap::intervals("classification", ours.answers.as_ref().unwrap(), 2000, 0)["accuracy"];
    let accuracy = ours.get("accuracy").unwrap();
    let deviation = (accuracy * (1.0 - accuracy) / 600.0).sqrt();
    let half = (interval.high - interval.low) / 2.0;
    assert!((half / (1.96 * deviation) - 1.0).abs() < 0.08, "{half} {deviation}");
    assert!((f64::midpoint(interval.low, interval.high) - accuracy).abs() < 0.2 * deviation);
}

/// Rows with three labels, of which the last is rare; a config that learns them.
pub fn labelled(folder: &Path, more: &str) -> String {
    let at = folder.display();
    python(&format!(
        "import numpy as np\nr = np.random.default_rng(0)\nx = r.normal(size=(400, 5)).astype('float32')\n\
         y = (x[:, :3] + 0.7 * r.normal(size=(400, 3)) > [0, 0.5, 1.8]).astype('uint8')\n\
         for part, a, b in [('train', 0, 200), ('validation', 200, 300), ('test', 300, 400)]:\n    \
         np.savez(f'{at}/{{part}}.npz', x=x[a:b], y=y[a:b])"
    ));
    let part = |name: &str| {
        format!(
            "{{npy: {{file: {at}/{name}.npz, xs: x, ys: y, targets: multi_label, classes: [cat, dog, emu]}}}}"
        )
    };
    format!(
        "device: cpu\nseed: 1\nmodel: {{name: linear, args: {{features: 5, outputs: 3}}}}\ntask: multi_label\n\
         data: {{train: {}, validation: {}, test: {}, batch_size: 20}}\noptimizer: {{sgd: {{lr: 0.5}}}}\n\
         train: {{epochs: 4}}\noutput: {at}/run\n{more}\n",
        part("train"),
        part("validation"),
        part("test")
    )
}

#[test]
fn a_multi_label_run_chooses_thresholds_on_validation_and_keeps_them() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &labelled(folder.path(), ""));
    let told = succeeds(&["train", &config]);
    assert!(told.contains("average_precision") && told.contains("subset_accuracy"), "{told}");
    let run_folder = folder.path().join("run");
    let state = read_json(run_folder.join("checkpoints/best/state.json"));
    let thresholds = state["thresholds"].as_array().unwrap();
    assert_eq!(thresholds.len(), 3);
    assert!(thresholds.iter().any(|threshold| threshold != 0.5));
    // Test is decided by the thresholds of validation, and so is `eval`.
    let result = read_json(run_folder.join("result.json"));
    let path = run_folder.to_str().unwrap();
    let eval: Value =
        serde_json::from_str(&succeeds(&["eval", path, "--json", "--bootstrap", "200"])).unwrap();
    assert_eq!(eval["scores"]["macro_f1"], result["best"]["test"]["macro_f1"]);
    assert_eq!(eval["report"]["per_class"][0]["threshold"], thresholds[0]);
    assert!(eval["intervals"]["auroc_emu"]["low"].is_number(), "{eval}");
    assert!(eval["reliability"][0]["confidence"].is_number());
    let shown = succeeds(&["eval", path, "--bootstrap", "50"]);
    assert!(shown.contains("threshold") && shown.contains("  micro_f1 ") && shown.contains("["), "{shown}");
    // The rare class gets weights, as ratios of the numbers.
    let config =
        write_config(folder.path(), &labelled(folder.path(), "balance: {loss: inverse, sampler: sqrt}"));
    let summary: Value = serde_json::from_str(&succeeds(&["summary", &config, "--json"])).unwrap();
    let rare = &summary["balance"][2];
    let samples = rare["samples"].as_f64().unwrap();
    assert_eq!(rare["loss_weight"].as_f64().unwrap(), (200.0 - samples) / samples);
    assert!(rare["draws"].as_f64().unwrap() > samples);
    succeeds(&["train", &config, "--quiet", "--output", &format!("{path}-balanced")]);
}

#[test]
fn any_score_decides_and_is_recorded_where_the_config_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let text = labelled(folder.path(), "");
    let text = text.replace(
        "train: {epochs: 4}",
        "train: {epochs: 4, monitor: auroc_2, metrics: [average_precision_0]}",
    );
    let config = write_config(folder.path(), &text);
    succeeds(&["train", &config, "--quiet"]);
    let run_folder = folder.path().join("run");
    let best = &read_json(run_folder.join("checkpoints/best/state.json"))["best"];
    assert_eq!(best["metric"], "auroc_2");
    for epoch in records(&run_folder, "epoch") {
        let validation = &epoch["validation"];
        assert!(validation["auroc_emu"].is_number() && validation["average_precision_cat"].is_number());
        assert!(validation["auroc_cat"].is_null(), "{validation}");
    }
    for (key, parts) in [
        ("train.monitor=aurok", "did you mean `auroc`"),
        ("train.monitor=auroc_3", "3 classes"),
        ("train.metrics=[psnr]", "has no score `psnr`"),
    ] {
        let output = format!("{}-refused", run_folder.display());
        let (code, _, stderr) = run(&["train", &config, "--set", key, "--output", &output]);
        assert!(code == 2 && stderr.contains(parts), "{key}: {stderr}");
    }
    // A goal of a sweep over classes that exclude each other, where it is computed because it is the goal.
    let shapes = "device: cpu\nthreads: 1\nmodel: {name: lenet, args: {channels: 1, classes: 3, size: 28}}\n\
                  task: classification\ndata: {train: {shapes: {count: 60, classes: 3}}, validation: {fraction: 0.3}, batch_size: 30}\n\
                  optimizer: {sgd: {lr: 0.1}}\ntrain: {epochs: 1}\n";
    let config = write_config(folder.path(), shapes);
    let output = folder.path().join("sweep");
    let output = output.to_str().unwrap();
    let told = succeeds(&[
        "sweep",
        &config,
        "--over",
        "penalty.l2=0,1e-3",
        "--metric",
        "matthews_corrcoef",
        "--output",
        output,
    ]);
    assert!(told.contains("matthews_corrcoef"), "{told}");
}

#[test]
fn predict_names_the_classes_that_reach_their_thresholds() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().display().to_string();
    python(&format!(
        "import numpy as np\nfrom PIL import Image\nr = np.random.default_rng(0)\n\
         y = r.integers(0, 2, (120, 2)).astype('uint8')\nx = r.integers(0, 60, (120, 8, 8, 3)).astype('uint8')\n\
         x[:, :4] += (y[:, :1] * 120)[:, None, None].astype('uint8'); x[:, 4:] += (y[:, 1:] * 120)[:, None, None].astype('uint8')\n\
         np.savez('{at}/p.npz', x=x, y=y)\n[Image.fromarray(x[i]).save(f'{at}/{{i}}.png') for i in range(6)]\nnp.savetxt('{at}/y.txt', y[:6])"
    ));
    let source = format!(
        "{{npy: {{file: {at}/p.npz, xs: x, ys: y, layout: nhwc, targets: multi_label, classes: [top, bottom]}}}}"
    );
    let text = format!(
        "device: cpu\nmodel: {{input: [3, 8, 8], layers: [flatten, {{linear: {{out_features: 2}}}}]}}\ntask: {{multi_label: {{focal: {{gamma: 1}}}}}}\n\
         data: {{train: {source}, validation: {{fraction: 0.3}}, batch_size: 10}}\noptimizer: {{adam: {{lr: 0.01}}}}\n\
         train: {{epochs: 15}}\noutput: {at}/run\n"
    );
    succeeds(&["train", &write_config(folder.path(), &text), "--quiet"]);
    let truth = std::fs::read_to_string(folder.path().join("y.txt")).unwrap();
    for (index, row) in truth.lines().enumerate() {
        let picture = format!("{at}/{index}.png");
        let predict =
            |format: &str| succeeds(&["predict", &format!("{at}/run"), &picture, "--format", format]);
        let line: Value = serde_json::from_str(&predict("json")).unwrap();
        let names =
            ["top", "bottom"].into_iter().zip(row.split(' ')).filter(|(_, label)| label.starts_with('1'));
        let names: Vec<&str> = names.map(|(name, _)| name).collect();
        assert_eq!(line["labels"], serde_json::json!(names), "{line}");
        assert!(line["probabilities"]["top"].is_number());
        let shown = if names.is_empty() { "-".to_owned() } else { names.join(";") };
        assert_eq!(predict("table").trim(), format!("{picture}  {shown}"));
        assert!(predict("csv").starts_with("input,labels,top,bottom\n"));
    }
}
