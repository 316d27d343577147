//! Classes of which there are few samples: weights, focal loss, logit adjustment, the sampler.

use std::path::Path;

use tch::{Kind, Tensor};
use tikhonov::data::Targets;
use tikhonov::data::balance::Sampling;
use tikhonov::data::loader::{Loader, Preparation};
use tikhonov::functional::loss::{self, Focal};

use crate::common::{killed_at, python, run, saved, succeeds, write_config};
use crate::loader::{augment, batches, dataset, options};

#[test]
fn weighted_focal_and_binary_losses_are_pytorchs_and_torchvisions() {
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
