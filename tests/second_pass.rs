//! Steps that pass over a batch twice, sharpness-aware minimisation and the input-gradient penalty, against loops in
//! PyTorch.

use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};
use tikhonov::pytorch::weights::read_weights;

use crate::common::{python, records, run, saved, succeeds, write_config};

/// A small CNN on one fixed batch; `train` makes 50 steps and saves the weights, the last loss and the last penalty.
const PYTHON: &str = r#"
import json, numpy as np, os, torch, torch.nn.functional as F
torch.set_num_threads(1); os.chdir(FOLDER)
class Net(torch.nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3, padding=1)
        if norm: self.bn = torch.nn.BatchNorm2d(4)
        self.fc = torch.nn.Linear(64, 3)
    def forward(self, x):
        x = self.conv(x)
        return self.fc(F.avg_pool2d(torch.tanh(self.bn(x) if hasattr(self, 'bn') else x), 2).flatten(1))
rng = np.random.default_rng(0)
ys = rng.integers(0, 3, 24); xs = rng.standard_normal((24, 8, 8)) + 0.7 * ys[:, None, None] * (np.arange(8) % 3 - 1)
np.save('xs.npy', xs); np.save('ys.npy', ys)

def train(label, dtype, norm, rho=0, adaptive=False, gradient=0):
    torch.manual_seed(1)
    net = Net(norm).to(getattr(torch, dtype)); ps = list(net.parameters())
    torch.save(net.state_dict(), f'{label}-start.pth')
    decays, others = [p for p in ps if p.dim() > 1], [p for p in ps if p.dim() == 1]
    optimizer = torch.optim.SGD([dict(params=decays, weight_decay=0.01), dict(params=others)], lr=0.1, momentum=0.9)
    x, y = torch.from_numpy(xs).unsqueeze(1).to(ps[0].dtype).requires_grad_(), torch.from_numpy(ys)
    def backward():
        loss, penalty = F.cross_entropy(net(x), y), torch.tensor(0.0)
        if gradient:
            # The sum over samples: each sample's own gradient, where no batch norm couples them.
            slope, = torch.autograd.grad(F.cross_entropy(net(x), y, reduction='sum'), x, create_graph=True)
            penalty = gradient / 2 * slope.square().sum() / len(x)
        (loss + penalty).backward()
        return float(loss), float(penalty)
    for step in range(50):
        optimizer.zero_grad(); told = backward()
        if rho:
            with torch.no_grad():
                old, kept = [p.clone() for p in ps], [b.clone() for b in net.buffers()]
                size = [p.abs() if adaptive else 1.0 for p in ps]
                norm = torch.stack([(s * p.grad).norm() for s, p in zip(size, ps)]).norm()
                for s, p in zip(size, ps): p.add_(s * s * p.grad * (rho / (norm + 1e-12)))
            optimizer.zero_grad(); backward()
            with torch.no_grad():
                for p, o in zip(ps, old): p.copy_(o)
                for b, k in zip(net.buffers(), kept): b.copy_(k)
        optimizer.step()
    torch.save(net.state_dict(), f'{label}.pt')
    print(json.dumps(told))
"#;

const CONFIG: &str = "
device: cpu
threads: 1
dtype: DTYPE
model: {init_from: {file: FOLDER/LABEL-start.pth}, input: [1, 8, 8],
  layers: {conv: {conv2d: {out_channels: 4, kernel_size: 3, padding: 1}}, NORM _tanh: tanh,
    _pool: {avg_pool2d: {kernel_size: 2}}, _flatten: flatten, fc: {linear: {out_features: 3}}}}
task: classification
data: {train: {npy: {xs: FOLDER/xs.npy, ys: FOLDER/ys.npy}}, batch_size: 24, normalize: none}
optimizer: {sgd: {lr: 0.1, momentum: 0.9}}
penalty: {l2: 0.01PENALTY}
train: {epochs: 50, log_every: 1, eval_every: 1000TRAIN}
";

/// (label, the arguments of `train`, with batch norm, keys of `penalty`, keys of `train`)
const CASES: [(&str, &str, bool, &str, &str); 5] = [
    ("sam", "rho=0.05", true, "", ", sam: {}"),
    ("asam", "rho=0.5, adaptive=True", true, "", ", sam: {rho: 0.5, adaptive: true}"),
    ("gradient", "gradient=0.3", false, ", input_gradient: 0.3", ""),
    ("gradient-halves", "gradient=0.3", false, ", input_gradient: 0.3", ", accumulate: 2"),
    ("both", "rho=0.05, gradient=0.3", false, ", input_gradient: 0.3", ", sam: {rho: 0.05}"),
];

fn weights(file: &Path) -> Tensor {
    let mut tensors = read_weights(file, None).unwrap().tensors;
    tensors.retain(|(name, _)| !name.ends_with("num_batches_tracked"));
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    Tensor::cat(&tensors.iter().map(|(_, t)| t.to_kind(Kind::Double).flatten(0, -1)).collect::<Vec<_>>(), 0)
}

#[test]
fn sam_and_the_input_gradient_penalty_make_the_same_50_steps_as_in_pytorch() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path();
    let mut script = format!("FOLDER = {at:?}\n{PYTHON}");
    for (label, arguments, norm, ..) in CASES {
        for dtype in ["float32", "float64"] {
            let norm = if norm { "True" } else { "False" };
            script += &format!("train('{label}-{dtype}', '{dtype}', {norm}, {arguments})\n");
        }
    }
    let printed = python(&script);
    let mut told = printed.lines().map(|line| serde_json::from_str::<[f64; 2]>(line).unwrap());
    for (label, _, norm, penalty, train) in CASES {
        for (dtype, bound) in [("float32", 1e-6), ("float64", 1e-12)] {
            let label = format!("{label}-{dtype}");
            let mut text = CONFIG
                .replace("FOLDER", at.to_str().unwrap())
                .replace("LABEL", &label)
                .replace("DTYPE", dtype)
                .replace("NORM", if norm { "bn: batch_norm2d," } else { "" })
                .replace("PENALTY", penalty)
                .replace("TRAIN", train);
            if train.contains("accumulate") {
                text = text.replace("batch_size: 24", "batch_size: 12");
            }
            let config = write_config(at, &text);
            let output = at.join(&label);
            succeeds(&["train", &config, "--quiet", "--output", output.to_str().unwrap()]);
            let ours = weights(&output.join("checkpoints/last/model.safetensors"));
            let theirs = weights(&at.join(format!("{label}.pt")));
            let apart = ((&ours - &theirs).norm() / theirs.norm()).double_value(&[]);
            println!("{label:24} {apart:.1e}");
            assert!(apart < bound, "{label}: {apart:e}");
            let moved = (theirs - weights(&at.join(format!("{label}-start.pth")))).norm().double_value(&[]);
            assert!(moved > 0.3, "{label} moves by {moved}");
            // The loss of the first pass, and the penalty apart from it.
            let [loss, penalty] = told.next().unwrap();
            let step = records(&output, "step").pop().unwrap();
            assert!((step["loss"].as_f64().unwrap() - loss).abs() < 1e-5, "{label}: {step} {loss}");
            let logged = step["input_gradient"].as_f64().unwrap_or_default();
            assert!((logged - penalty).abs() < 1e-5, "{label}: {logged} and {penalty}");
            let total = step["loss"].as_f64().unwrap() + step["penalty"].as_f64().unwrap();
            assert!((step["total"].as_f64().unwrap() - total).abs() < 1e-12, "{label}: {step}");
            let lambda = step["lambda"]["inputs"]["input_gradient"].as_f64();
            assert_eq!(lambda.is_some(), logged > 0.0, "{label}: {step}");
        }
    }
}

/// Dropout, batch norm, augmentation, bf16 and a ramp: what a resume must find again.
const EVERYTHING: &str = "
device: cpu
threads: 1
model: {name: small-cnn, args: {dropout: 0.3}}
task: classification
data: {train: {shapes: {count: 120, size: 16}}, batch_size: 20, augment: [{flip: {horizontal: true}}]}
optimizer: {muon: {lr: 0.02, adamw_for: ['fc.*']}}
penalty: {decoupled: 0.01, input_gradient: {start: 0, end: 0.1, epochs: 2}}
train: {epochs: 4, accumulate: 2, amp: bf16, ema: {decay: 0.5}, sam: {rho: 0.1, adaptive: true}}
";

/// Trains at once and with a resume after two epochs, and compares what both save; the folder of the first.
fn resumed_bit_for_bit(home: &Path, config: &str) -> PathBuf {
    let train = |name: &str, more: &[&str]| {
        let output = home.join(name);
        succeeds(&[&["train", config, "--quiet", "--output", output.to_str().unwrap()], more].concat());
        output
    };
    let whole = train("whole", &[]);
    let halved = train("halved", &["--set", "train.epochs=2"]);
    train("halved", &["--resume"]);
    for part in ["model", "optimizer", "ema"] {
        assert!(saved(&whole, part) == saved(&halved, part), "{part}");
    }
    whole
}

#[test]
fn a_resume_with_sam_input_gradients_and_muon_goes_on_bit_for_bit() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), EVERYTHING);
    let whole = resumed_bit_for_bit(home.path(), &config);
    let (code, _, stderr) =
        run(&["export", whole.to_str().unwrap(), "--to", "state-dict", "--with-optimizer"]);
    assert!(code == 2 && stderr.contains("muon"), "{stderr}");
}

#[test]
fn a_schedule_free_run_is_judged_by_its_average_and_resumes_bit_for_bit() {
    let home = tempfile::tempdir().unwrap();
    let text = EVERYTHING.replace(
        "{muon: {lr: 0.02, adamw_for: ['fc.*']}}",
        "{schedulefree: {lr: 0.02}}\nschedule: {constant: {}, warmup: {steps: 3}}",
    );
    let config = write_config(home.path(), &text.replace("ema: {decay: 0.5}, ", ""));
    let whole = resumed_bit_for_bit(home.path(), &config);
    // x = y + (1 − 1/β₁)(z − y)
    let printed = python(&format!(
        "import torch
from safetensors.torch import load_file
y, o, x = (load_file({:?} + '/' + part + '.safetensors') for part in ('model', 'optimizer', 'ema'))
print(max(float((x[n] - torch.lerp(y[n], o[n + '.z'], 1 - 1 / 0.9)).abs().max()) for n in y if n + '.z' in o),
      max(float((x[n] - y[n]).abs().max()) for n in y if n + '.z' in o))",
        whole.join("checkpoints/last")
    ));
    let found: Vec<f64> = printed.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert!(found[0] < 1e-6 && found[1] > 1e-3, "{printed}");
    let (code, _, stderr) = run(&["train", &config, "--dry-run", "--set", "train.ema.decay=0.9"]);
    assert!(code == 2 && stderr.contains("train.ema"), "{stderr}");
}

#[test]
fn what_a_second_pass_cannot_be_is_refused_with_its_key_and_the_remedy() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), EVERYTHING);
    for (sets, words) in [
        (&["train.amp=fp16"][..], &["train.sam", "bf16"][..]),
        (&["train.amp=fp16", "train.sam=null"], &["penalty.input_gradient", "bf16"]),
        (&["train.kernels=own"], &["penalty.input_gradient", "train.kernels"]),
        (&["train.checkpoint_activations=2"], &["penalty.input_gradient", "checkpoint_activations"]),
        (&["penalty.input_gradient=auto"], &["penalty.input_gradient", "sweep it"]),
        (&["penalty.input_gradient=-1"], &["penalty.input_gradient", "at least 0"]),
        (&["train.sam.rho=0"], &["train.sam.rho", "above 0"]),
    ] {
        let mut args = vec!["train", config.as_str(), "--dry-run"];
        args.extend(sets.iter().flat_map(|set| ["--set", *set]));
        let (code, _, stderr) = run(&args);
        assert!(code == 2 && words.iter().all(|word| stderr.contains(word)), "{sets:?}: {stderr}");
    }
}
