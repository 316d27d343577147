//! Classes of which there are few samples: weights, focal loss, logit adjustment, the sampler.

use std::path::Path;

use tch::{Kind, Tensor};
use tikhonov::data::Targets;
use tikhonov::data::balance::Sampling;
use tikhonov::data::loader::{Loader, Preparation};
use tikhonov::functional::loss::{self, Focal};

use crate::common::{data_dir, has_modules, killed_at, python, run, saved, succeeds, write_config};
use crate::loader::{augment, batches, dataset, options};
use crate::pretend_cuda::{difference, library, pretend};

#[test]
fn weighted_focal_and_binary_losses_are_pytorchs_and_torchvisions() {
    if !has_modules("weighted_focal_and_binary_losses_are_pytorchs_and_torchvisions", &["torchvision"]) {
        return;
    }
    let script = "
import torch, torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss
z = torch.sin(torch.arange(24, dtype=torch.float64)).reshape(8, 3) * 3
y = torch.arange(8) % 3
soft = torch.softmax(torch.cos(torch.arange(24, dtype=torch.float64)).reshape(8, 3), 1)
w = torch.tensor([0.5, 2.0, 1.25], dtype=torch.float64)
several = (torch.cos(torch.arange(24, dtype=torch.float64)).reshape(8, 3) > 0).double()
def focal(y, w, gamma, smoothing):
    shares = F.one_hot(y, 3).double() if y.dim() == 1 else y
    lp = torch.log_softmax(z, 1)
    each = -(shares * (1 - smoothing) + smoothing / 3) * w * (1 - lp.exp()) ** gamma * lp
    return each.sum() / (w[y].sum() if y.dim() == 1 else 8)
for value in [F.cross_entropy(z, y, w, label_smoothing=0.1), F.cross_entropy(z, soft, w),
              focal(y, w, 2, 0.1), focal(soft, torch.ones(3).double(), 0.5, 0),
              F.binary_cross_entropy_with_logits(z, several, pos_weight=w),
              sigmoid_focal_loss(z, several, alpha=0.25, gamma=2, reduction='mean'),
              sigmoid_focal_loss(z, several, alpha=-1, gamma=1.5, reduction='mean'),
              F.cross_entropy(z + 0.7 * torch.log(w / 4), y)]:
    print(repr(float(value)))
";
    let wanted: Vec<f64> = python(script).lines().map(|line| line.parse().unwrap()).collect();
    let steps = Tensor::arange(24, (Kind::Double, tch::Device::Cpu));
    let (z, turned) = (steps.sin().reshape([8, 3]) * 3.0, steps.cos().reshape([8, 3]));
    let (y, soft) =
        (Tensor::arange(8, (Kind::Int64, tch::Device::Cpu)).remainder(3), turned.softmax(1, None));
    let (w, several) = (Tensor::from_slice(&[0.5, 2.0, 1.25]), turned.gt(0.0).to_kind(Kind::Double));
    let focal = |gamma, alpha| Focal { gamma, alpha };
    let ours = [
        loss::cross_entropy(&z, &y, 0.1, Some(&w)),
        loss::cross_entropy(&z, &soft, 0.0, Some(&w)),
        focal(2.0, None).cross_entropy(&z, &y, 0.1, Some(&w)),
        focal(0.5, None).cross_entropy(&z, &soft, 0.0, None),
        loss::binary_cross_entropy(&z, &several, Some(&w)),
        focal(2.0, Some(0.25)).binary_cross_entropy(&z, &several, None),
        focal(1.5, None).binary_cross_entropy(&z, &several, None),
        loss::cross_entropy(&(&z + (&w / 4.0).log() * 0.7), &y, 0.0, None),
    ];
    assert_eq!(ours.len(), wanted.len());
    for (at, (ours, wanted)) in ours.iter().zip(wanted).enumerate() {
        let ours = ours.double_value(&[]);
        assert!((ours - wanted).abs() < 1e-12, "{at}: {ours} {wanted}");
    }
}

#[test]
fn a_sample_that_comes_again_is_augmented_anew_and_the_first_time_as_ever() {
    let xs = Tensor::arange(20 * 3 * 8 * 8, (Kind::Float, tch::Device::Cpu)).reshape([20, 3, 8, 8]) / 4000.0;
    let set = dataset(xs, Targets::Classes((0..20).map(|index| i64::from(index >= 18)).collect()));
    let plain = Preparation { augment: augment("[{noise: {sigma: 0.1}}]"), ..Preparation::default() };
    let balanced = Preparation { sampler: Some(Sampling::Uniform), ..plain.clone() };
    let (plain, balanced) =
        (Loader::new(&set, &plain, options()).unwrap(), Loader::new(&set, &balanced, options()).unwrap());
    let samples = |loader: &Loader| -> Vec<(i64, Tensor)> {
        let each = batches(loader, 5, 0).into_iter().flat_map(|batch| {
            let xs: Vec<_> = (0..batch.indices.len()).map(|at| batch.xs.get(at as i64)).collect();
            batch.indices.into_iter().zip(xs)
        });
        each.collect()
    };
    let (once, drawn) = (samples(&plain), samples(&balanced));
    assert_eq!(drawn.len(), 20);
    let of = |index: i64, all: &[(i64, Tensor)]| -> Vec<Tensor> {
        all.iter().filter(|(of, _)| *of == index).map(|(_, xs)| xs.shallow_clone()).collect()
    };
    for rare in [18, 19] {
        let (mine, usual) = (of(rare, &drawn), of(rare, &once));
        assert_eq!(mine.len(), 5);
        assert_eq!(mine.iter().filter(|xs| xs.equal(&usual[0])).count(), 1);
        assert!((0..5).all(|a| (0..a).all(|b| !mine[a].equal(&mine[b]))));
    }
    // A batch is the same wherever one starts.
    let (whole, rest) = (batches(&balanced, 5, 0), batches(&balanced, 5, 1));
    assert!(whole[1].xs.equal(&rest[0].xs) && whole[1].indices == rest[0].indices);
}

/// Rows of two classes, 90 and 10 of them, of which the second is hard to tell; a config that learns them.
fn imbalanced(folder: &Path, more: &str, output: &str) -> String {
    let at = folder.display();
    python(&format!(
        "import numpy as np\nr = np.random.default_rng(0)\ny = np.repeat([0, 1], [90, 10])\n\
         np.save('{at}/x.npy', (r.normal(size=(100, 4)) + y[:, None] * 0.8).astype('float32')); np.save('{at}/y.npy', y)"
    ));
    format!(
        "device: cpu\nseed: 3\nmodel: {{name: linear, args: {{features: 4, outputs: 2}}}}\n\
         data: {{train: {{npy: {{xs: {at}/x.npy, ys: {at}/y.npy, classes: [usual, rare]}}}}, batch_size: 8}}\n\
         optimizer: {{sgd: {{lr: 0.1, momentum: 0.9}}}}\n\
         train: {{epochs: 6, log_every: 1, checkpoint: {{every_steps: 2}}}}\noutput: {at}/{output}\n{more}\n"
    )
}

#[test]
fn summary_shows_what_balance_means_for_each_class() {
    let folder = tempfile::tempdir().unwrap();
    let text = |more: &str| imbalanced(folder.path(), more, "run");
    let config =
        write_config(folder.path(), &text("task: classification\nbalance: {loss: inverse, sampler: sqrt}"));
    let shown = succeeds(&["summary", &config]);
    assert!(
        shown.contains("class usual: 90 samples, loss weight 0.5556, drawn 75 times per epoch"),
        "{shown}"
    );
    assert!(shown.contains("class rare: 10 samples, loss weight 5, drawn 25 times per epoch"), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&succeeds(&["summary", &config, "--json"])).unwrap();
    assert_eq!(json["balance"][1]["loss_weight"], 5.0);
    let config = write_config(folder.path(), &text("task: classification\nbalance: {logit_adjustment: 1}"));
    assert!(succeeds(&["summary", &config]).contains("class rare: 10 samples, -2.303 added to its logit"));
    for (more, parts) in [
        ("task: classification\nbalance: {los: inverse}", "did you mean `loss`"),
        ("task: classification\nbalance: {loss: inwerse}", "did you mean `inverse`"),
        ("task: classification\nbalance: {loss: [1, 2, 3]}", "3 weights for 2 classes"),
        ("task: classification\nbalance: {loss: [1, -2]}", "-2 is not a weight"),
        ("task: classification\nbalance: {sampler: uniform, logit_adjustment: 1}", "leave it or them out"),
        ("task: {classification: {focal: {alpha: 0.2}}}", "is for `task: multi_label`"),
        ("task: regression\nbalance: {loss: inverse}", "leave it out"),
        ("task: multi_label\nbalance: {logit_adjustment: 1}", "say `loss: inverse` for several labels"),
    ] {
        let (code, _, stderr) = run(&["train", &write_config(folder.path(), &text(more)), "--quiet"]);
        assert_eq!(code, 2, "{more}: {stderr}");
        assert!(stderr.contains(parts), "{more}: {stderr}");
    }
}

#[test]
fn a_balanced_run_that_is_killed_resumes_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let balance = "task: {classification: {focal: {}}}\nbalance: {loss: effective, sampler: uniform}";
    let whole = write_config(folder.path(), &imbalanced(folder.path(), balance, "whole"));
    succeeds(&["train", &whole, "--threads", "1", "--quiet"]);
    let killed = write_config(folder.path(), &imbalanced(folder.path(), balance, "killed"));
    let told = folder.path().join("killed/metrics.jsonl");
    let kills = killed_at(&[5, 20, 41], &told, &["train", &killed, "--resume", "--threads", "1", "--quiet"]);
    assert!(kills > 0, "the run was over before it could be killed");
    for part in ["model", "optimizer"] {
        assert_eq!(saved(&folder.path().join("whole"), part), saved(&folder.path().join("killed"), part));
    }
    // Without balance these are other weights.
    let plain = imbalanced(folder.path(), "task: classification", "plain");
    succeeds(&["train", &write_config(folder.path(), &plain), "--threads", "1", "--quiet"]);
    assert_ne!(saved(&folder.path().join("whole"), "model"), saved(&folder.path().join("plain"), "model"));
    let log = std::fs::read_to_string(folder.path().join("whole/log.txt")).unwrap();
    assert!(log.contains("balance: class rare: 10 samples, loss weight"), "{log}");
}

#[test]
fn weights_lift_the_recall_of_the_rare_class() {
    let folder = tempfile::tempdir().unwrap();
    let recall = |name: &str, balance: &str| {
        let text = imbalanced(folder.path(), &format!("task: classification\n{balance}"), name);
        succeeds(&["train", &write_config(folder.path(), &text), "--threads", "1", "--quiet"]);
        let eval =
            succeeds(&["eval", &format!("{}/{name}", folder.path().display()), "--split", "train", "--json"]);
        let eval: serde_json::Value = serde_json::from_str(&eval).unwrap();
        eval["report"]["per_class"][1]["recall"].as_f64().unwrap()
    };
    let plain = recall("plain", "");
    for balance in ["loss: inverse", "sampler: uniform", "logit_adjustment: 1", "loss: [1, 9]"] {
        let lifted =
            recall(&balance.replace([':', ' ', '[', ']', ','], ""), &format!("balance: {{{balance}}}"));
        assert!(lifted > plain + 0.1, "{balance}: {plain} to {lifted}");
    }
}

/// Fashion-MNIST as npz files in `folder`: `lt` with 700 samples of the first class and 10 of the last, `several` with
/// up to three pictures in one, each in a quarter, and as many to judge by.
fn real(folder: &Path, test: &str) -> bool {
    let Some(data) = data_dir(test) else { return false };
    let (data, at) = (data.join("fashion-mnist"), folder.display());
    python(&format!(
        "import numpy as np, gzip\nfrom PIL import Image\nD = '{}/'\n\
         image = lambda f: np.frombuffer(gzip.open(D + f).read(), np.uint8, offset=16).reshape(-1, 28, 28)\n\
         label = lambda f: np.frombuffer(gzip.open(D + f).read(), np.uint8, offset=8).astype('int64')\n\
         x, y = image('train-images-idx3-ubyte.gz'), label('train-labels-idx1-ubyte.gz')\n\
         tx, ty = image('t10k-images-idx3-ubyte.gz')[:1000], label('t10k-labels-idx1-ubyte.gz')[:1000]\n\
         r = np.random.default_rng(0)\nn = [int(700 * 70 ** (-k / 9)) for k in range(10)]\n\
         keep = r.permutation(np.concatenate([np.where(y == k)[0][:n[k]] for k in range(10)]))\n\
         np.savez('{at}/lt.npz', x=x[keep], y=y[keep]); np.savez('{at}/test.npz', x=tx, y=ty)\n\
         for name, xs, ys, count in [('several', x, y, 600), ('several-test', tx, ty, 300)]:\n    \
         X, Y = np.zeros((count, 56, 56), 'uint8'), np.zeros((count, 4), 'uint8')\n    \
         for i in range(count):\n        \
         for q in r.permutation(4)[:r.integers(1, 4)]:\n            \
         k = r.choice(4, p=[.5, .3, .15, .05]); j = r.choice(np.where(ys == [1, 8, 7, 9][k])[0])\n            \
         X[i, q // 2 * 28:q // 2 * 28 + 28, q % 2 * 28:q % 2 * 28 + 28] = xs[j]; Y[i, k] = 1\n    \
         np.savez(f'{at}/{{name}}.npz', x=X, y=Y)\n    \
         [Image.fromarray(X[i]).save(f'{at}/{{i}}.png') for i in range(3)]",
        data.display()
    ));
    true
}

#[test]
fn balance_lifts_long_tailed_fashion_mnist_and_compare_says_so() {
    let folder = tempfile::tempdir().unwrap();
    if !real(folder.path(), "balance_lifts_long_tailed_fashion_mnist_and_compare_says_so") {
        return;
    }
    let at = folder.path().display();
    let source = |name: &str| format!("{{npy: {{file: {at}/{name}.npz, xs: x, ys: y}}}}");
    let text = format!(
        "device: cpu\nthreads: 1\nmodel: {{name: small-cnn, args: {{width: 8, channels: 1, classes: 10}}}}\ntask: classification\n\
         data: {{train: {}, test: {}, batch_size: 32}}\noptimizer: {{sgd: {{lr: 0.05, momentum: 0.9}}}}\n\
         schedule: {{one_cycle: {{}}}}\npenalty: {{l2: 5e-4}}\ntrain: {{epochs: 8, metrics: [auroc, balanced_accuracy]}}\n",
        source("lt"),
        source("test")
    );
    let config = write_config(folder.path(), &text);
    let (plain, balanced) = (format!("{at}/plain"), format!("{at}/balanced"));
    succeeds(&["train", &config, "--quiet", "--output", &plain]);
    succeeds(&["train", &config, "--quiet", "--output", &balanced, "--set", "balance.sampler=sqrt"]);
    let told =
        succeeds(&["compare", &plain, &balanced, "--metric", "balanced_accuracy", "--bootstrap", "200"]);
    assert!(told.starts_with(&format!("B ({balanced}) is better than A: balanced_accuracy")), "{told}");
}

#[test]
fn several_labels_of_real_pictures_are_learnt_calibrated_and_predicted() {
    let folder = tempfile::tempdir().unwrap();
    if !real(folder.path(), "several_labels_of_real_pictures_are_learnt_calibrated_and_predicted") {
        return;
    }
    let at = folder.path().display();
    let source = |name: &str| {
        format!(
            "{{npy: {{file: {at}/{name}.npz, xs: x, ys: y, targets: multi_label, classes: [trouser, bag, sneaker, boot]}}}}"
        )
    };
    let text = format!(
        "device: cpu\nthreads: 1\nmodel: {{name: small-cnn, args: {{width: 4, channels: 1, classes: 4, size: 56}}}}\n\
         task: multi_label\nbalance: {{loss: inverse}}\n\
         data: {{train: {}, validation: {{fraction: 0.3}}, test: {}, batch_size: 20}}\n\
         optimizer: {{sgd: {{lr: 0.05, momentum: 0.9}}}}\ntrain: {{epochs: 8, eval_every: 4}}\noutput: {at}/run\n",
        source("several"),
        source("several-test")
    );
    succeeds(&["train", &write_config(folder.path(), &text), "--quiet"]);
    let run_folder = format!("{at}/run");
    succeeds(&["calibrate", &run_folder]);
    let eval: serde_json::Value = serde_json::from_str(&succeeds(&["eval", &run_folder, "--json"])).unwrap();
    assert!(eval["scores"]["auroc"].as_f64().unwrap() > 0.8, "{}", eval["scores"]);
    let (code, stdout, stderr) = run(&["predict", &run_folder, &format!("{at}/0.png"), "--format", "json"]);
    assert!(code == 0 && stderr.contains("divided by the temperature"), "{stdout}{stderr}");
    assert!(stdout.contains("\"probabilities\":{"), "{stdout}");
    let report = format!("{at}/report.html");
    succeeds(&["report", &run_folder, "-o", &report]);
    let page = std::fs::read_to_string(report).unwrap();
    assert!(page.contains("sneaker") && !page.contains("Rows: truth"), "the table of classes is on the page");
}

#[test]
fn a_balanced_step_on_a_gpu_is_that_of_the_cpu_recorded_or_not() {
    let Some(library) = library("a_balanced_step_on_a_gpu_is_that_of_the_cpu_recorded_or_not") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let focal =
        "task: {classification: {focal: {}, label_smoothing: 0.1}}\nbalance: {loss: inverse, sampler: sqrt}";
    let adjusted = "task: classification\nbalance: {logit_adjustment: 1}";
    for (name, balance) in [("focal", focal), ("adjusted", adjusted)] {
        let config = write_config(folder.path(), &imbalanced(folder.path(), balance, "run"));
        let train = |device: &str, graph: &str| {
            let output = folder.path().join(format!("{name}-{device}-{graph}"));
            let graph = format!("train.cuda_graph={graph}");
            let to = output.to_str().unwrap();
            let args =
                ["train", &config, "--device", device, "--set", &graph, "--output", to, "--threads", "1"];
            let outcome = pretend(library, &args, &[]);
            let outcome = if device == "cpu" { outcome } else { outcome.checked() };
            assert_eq!(outcome.code, 0, "{}", outcome.stderr);
            output
        };
        let (cpu, eager, graph) = (train("cpu", "false"), train("cuda", "false"), train("cuda", "true"));
        assert!(difference(&eager, &cpu) < 1e-5, "{}", difference(&eager, &cpu));
        assert_eq!(difference(&graph, &eager), 0.0);
    }
}
