//! A training run that changes language on the way: Python's optimiser goes on here, ours goes on there.

use std::fs;
use std::path::Path;

use serde_json::json;
use tch::Tensor;
use tikhonov::penalty::LambdaValues;
use tikhonov::pytorch::optimizer_state::{Known, PythonOptimizer};
use tikhonov::pytorch::weights::read_weights;

use crate::common::{python, run};

/// A small CNN on one fixed batch, so that the order of the samples does not matter, without a bias that the
/// batch norm cancels: Adam would blow the rounding errors up that are its gradient. `decays` and `others`
/// are its parameters with and without penalty, `steps` trains.
const PYTHON: &str = r#"
import json, numpy as np, os, torch, torch.nn.functional as F
from torch.optim import SGD, Adam, AdamW, Adagrad, RMSprop, NAdam, RAdam
torch.set_num_threads(1)
os.chdir(FOLDER)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn = torch.nn.BatchNorm2d(4)
        self.fc = torch.nn.Linear(4, 3)
    def forward(self, x):
        return self.fc(F.relu(self.bn(self.conv(x))).mean((2, 3)))
xs, ys = torch.from_numpy(np.load('xs.npy')), torch.from_numpy(np.load('ys.npy'))
def fresh(dtype):
    torch.manual_seed(1)
    return Net().to(getattr(torch, dtype))
def steps(net, optimizer, count):
    x = xs.unsqueeze(1).to(next(net.parameters()).dtype)
    for _ in range(count):
        optimizer.zero_grad(); F.cross_entropy(net(x), ys).backward(); optimizer.step()
def split(net, l2):
    decays = [p for n, p in net.named_parameters() if p.dim() > 1]
    others = [p for n, p in net.named_parameters() if p.dim() == 1]
    return [{'params': decays, 'weight_decay': l2}, {'params': others, 'weight_decay': 0}]
"#;

const CONFIG: &str = "
device: cpu
threads: 1
dtype: DTYPE
model: {INIT
  input: [1, 8, 8],
  layers: {conv: {conv2d: {out_channels: 4, kernel_size: 3, padding: 1, bias: false}}, bn: batch_norm2d, _relu: relu,
    _pool: {adaptive_avg_pool2d: {output_size: 1}}, _flatten: flatten, fc: {linear: {out_features: 3}}}}
task: classification
data: {train: {npy: {xs: FOLDER/xs.npy, ys: FOLDER/ys.npy}}, batch_size: 48, normalize: none}
penalty: PENALTY
optimizer: OPTIMIZER
train: {epochs: EPOCHS, eval_every: 1000, checkpoint: {every_epochs: 1000}}
";

/// One optimiser in both languages.
struct Case {
    label: &'static str,
    optimizer: &'static str,
    penalty: &'static str,
    /// Python's optimiser of `net`.
    python: &'static str,
}

const ALL: &str = "{groups: [{match: '*', l2: 0.01}]}";
const CASES: [Case; 12] = [
    Case {
        label: "sgd",
        optimizer: "{sgd: {lr: 0.1}}",
        penalty: "{l2: 0.01}",
        python: "SGD(split(net, 0.01), lr=0.1)",
    },
    Case {
        label: "sgd-nesterov",
        optimizer: "{sgd: {lr: 0.05, momentum: 0.9, nesterov: true}}",
        penalty: ALL,
        python: "SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01)",
    },
    Case {
        label: "sgd-dampening",
        optimizer: "{sgd: {lr: 0.1, momentum: 0.8, dampening: 0.3}}",
        penalty: "{l2: 0.01}",
        python: "SGD(split(net, 0.01), lr=0.1, momentum=0.8, dampening=0.3)",
    },
    Case {
        label: "adam",
        optimizer: "{adam: {lr: 0.01}}",
        penalty: ALL,
        python: "Adam(net.named_parameters(), lr=0.01, weight_decay=0.01)",
    },
    Case {
        label: "adam-amsgrad",
        optimizer: "{adam: {lr: 0.01, betas: [0.8, 0.99], eps: 1e-6, amsgrad: true}}",
        penalty: "{l2: 0.01}",
        python: "Adam(split(net, 0.01), lr=0.01, betas=(0.8, 0.99), eps=1e-6, amsgrad=True)",
    },
    Case {
        label: "adamw",
        optimizer: "{adamw: {lr: 0.01}}",
        penalty: "{decoupled: 0.1}",
        python: "AdamW(list(reversed(split(net, 0.1))), lr=0.01)",
    },
    Case {
        label: "adamw-fused",
        optimizer: "{adamw: {lr: 0.01}}",
        penalty: "{groups: [{match: '*', decoupled: 0.01}]}",
        python: "AdamW(net.parameters(), lr=0.01, fused=True)",
    },
    Case {
        label: "adagrad",
        optimizer: "{adagrad: {lr: 0.05, lr_decay: 0.01, initial_accumulator_value: 0.1}}",
        penalty: "{}",
        python: "Adagrad(net.parameters(), lr=0.05, lr_decay=0.01, initial_accumulator_value=0.1)",
    },
    Case {
        label: "rmsprop",
        optimizer: "{rmsprop: {lr: 0.002}}",
        penalty: "{l2: 0.01}",
        python: "RMSprop(split(net, 0.01), lr=0.002)",
    },
    Case {
        label: "rmsprop-centered",
        optimizer: "{rmsprop: {lr: 0.002, alpha: 0.9, eps: 1e-2, momentum: 0.5, centered: true}}",
        penalty: ALL,
        python: "RMSprop(net.parameters(), lr=0.002, alpha=0.9, eps=1e-2, momentum=0.5, centered=True, weight_decay=0.01)",
    },
    Case {
        label: "nadam",
        optimizer: "{nadam: {lr: 0.01, momentum_decay: 0.01}}",
        penalty: "{l2: 0.01}",
        python: "NAdam(split(net, 0.01), lr=0.01, momentum_decay=0.01)",
    },
    Case {
        label: "radam",
        optimizer: "{radam: {lr: 0.005}}",
        penalty: "{groups: [{match: '*', decoupled: 0.01}]}",
        python: "RAdam(net.parameters(), lr=0.005, weight_decay=0.01, decoupled_weight_decay=True)",
    },
];
const DTYPES: [(&str, f64); 2] = [("float32", 1e-6), ("float64", 1e-12)];

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        python(&format!(
            "import numpy as np, os; os.chdir({:?}); rng = np.random.default_rng(0)
ys = rng.integers(0, 3, 48); xs = rng.standard_normal((48, 8, 8)) + 0.7 * ys[:, None, None] * (np.arange(8) % 3 - 1)
np.save('xs.npy', xs); np.save('ys.npy', ys)",
            folder.path()
        ));
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn python(&self, body: &str) -> String {
        python(&format!("FOLDER = {:?}\n{PYTHON}\n{body}", self.folder.path()))
    }

    /// Writes the config called `label` and returns its path.
    fn config(&self, label: &str, case: &Case, dtype: &str, init: &str, epochs: u64) -> String {
        let init = if init.is_empty() { String::new() } else { format!("init_from: {init},") };
        let text = CONFIG
            .replace("INIT", &init)
            .replace("DTYPE", dtype)
            .replace("PENALTY", case.penalty)
            .replace("OPTIMIZER", case.optimizer)
            .replace("EPOCHS", &epochs.to_string())
            .replace("FOLDER", self.folder.path().to_str().unwrap());
        let path = self.path(&format!("{label}.yaml"));
        fs::write(&path, text).unwrap();
        path
    }

    fn train(&self, config: &str, label: &str, options: &[&str]) -> (i32, String) {
        let (code, _, stderr) = run(&[&["train", config, "--output", &self.path(label)], options].concat());
        (code, stderr)
    }

    /// ‖ours − theirs‖/‖theirs‖ over all parameters and statistics.
    fn distance(&self, ours: &str, theirs: &str) -> f64 {
        let flat = |file: &str| {
            let mut tensors = read_weights(Path::new(&self.path(file)), None).unwrap().tensors;
            tensors.retain(|(name, _)| !name.ends_with("num_batches_tracked"));
            tensors.sort_by(|a, b| a.0.cmp(&b.0));
            let flat: Vec<_> =
                tensors.iter().map(|(_, t)| t.to_kind(tch::Kind::Double).flatten(0, -1)).collect();
            Tensor::cat(&flat, 0)
        };
        let (ours, theirs) = (flat(ours), flat(theirs));
        ((ours - &theirs).norm() / theirs.norm()).double_value(&[])
    }
}

#[test]
fn a_python_run_goes_on_here_with_the_same_50_steps() {
    let place = Place::new();
    let mut script = String::new();
    for case in &CASES {
        for (dtype, _) in DTYPES {
            // The old container now and then, and other keys.
            let label = format!("{}-{dtype}", case.label);
            script += &format!(
                "net = fresh('{dtype}'); optimizer = {}; steps(net, optimizer, 20)
torch.save({{'epoch': 20, 'net': net.state_dict(), 'opt': optimizer.state_dict()}}, '{label}.pth',
           _use_new_zipfile_serialization={})
start = [p.detach().clone() for p in net.parameters()]
steps(net, optimizer, 50); torch.save(net.state_dict(), '{label}-after.pt')
print('{label}', float(sum((a - b).norm() for a, b in zip(start, net.parameters()))))\n",
                case.python,
                if case.label.len() % 2 == 0 { "True" } else { "False" }
            );
        }
    }
    for line in place.python(&script).lines() {
        // The 50 steps must lead somewhere, or anything would agree.
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 0.1, "{line}");
    }
    let mut failures = Vec::new();
    for case in &CASES {
        for (dtype, bound) in DTYPES {
            let label = format!("{}-{dtype}", case.label);
            let init = format!("{{file: {}, optimizer: true}}", place.path(&format!("{label}.pth")));
            let config = place.config(&label, case, dtype, &init, 50);
            let (code, text) = place.train(&config, &label, &[]);
            assert_eq!(code, 0, "{text}");
            let wanted =
                if case.label == "sgd" { "state of 0 of 5" } else { "state of 5 of 5 parameters from `opt`" };
            assert!(text.contains(wanted), "{label}: {text}");
            for difference in ["was", "is left out", "no state for", "starts from zero"] {
                let lines = text.lines().filter(|line| line.contains("optimizer: "));
                assert!(!lines.clone().any(|line| line.contains(difference)), "{label}: {text}");
            }
            let difference = place.distance(
                &format!("{label}/checkpoints/last/model.safetensors"),
                &format!("{label}-after.pt"),
            );
            println!("{label:28} {difference:.1e}");
            if difference.is_nan() || difference > bound {
                failures.push(format!("{label}: {difference:.2e}"));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn a_run_of_ours_goes_on_in_python_with_the_same_50_steps() {
    let place = Place::new();
    let mut script = String::new();
    for case in &CASES {
        for (dtype, _) in DTYPES {
            let label = format!("{}-{dtype}", case.label);
            let config = place.config(&label, case, dtype, "", 20);
            let (code, text) = place.train(&config, &label, &[]);
            assert_eq!(code, 0, "{text}");
            let (source, file) = (place.path(&label), place.path(&format!("{label}.pt")));
            let export = ["export", &source, "--to", "state-dict", "--with-optimizer", "--output", &file];
            let (code, text, stderr) = run(&export);
            assert!(code == 0 && text.contains("at step 20"), "{text}{stderr}");
            assert_eq!(
                text.contains("2 param groups"),
                case.penalty.starts_with("{l2") || case.penalty.starts_with("{dec"),
                "{text}"
            );
            let (code, text) = place.train(&config, &label, &["--resume", "--set", "train.epochs=70"]);
            assert_eq!(code, 0, "{text}");
            // Once into an optimiser that Python makes itself, in the order in which we write the groups;
            // once from the file's own groups.
            script += &format!(
                "for own in True, False:
    file = torch.load('{label}.pt', weights_only=True); net = fresh('{dtype}'); net.load_state_dict(file['model'])
    if own and 'reversed' not in {python:?}: optimizer = {python}
    else:
        params = dict(net.named_parameters())
        optimizer = {class}([{{**g, 'params': [params[n] for n in g['param_names']]}} for g in file['optimizer']['param_groups']])
    optimizer.load_state_dict(file['optimizer']); steps(net, optimizer, 50)
    torch.save(net.state_dict(), f'{label}-after-{{own}}.pt')
print(json.dumps([file['epoch'], file['step'], list(file['optimizer']['state'])]))\n",
                python = case.python,
                class = case.python.split('(').next().unwrap(),
            );
        }
    }
    let printed = place.python(&script);
    assert_eq!(printed.lines().count(), CASES.len() * DTYPES.len());
    assert!(
        printed.lines().next().unwrap() == "[20, 20, []]" && printed.contains("[20, 20, [0, 1, 2, 3, 4]]"),
        "{printed}"
    );
    let mut failures = Vec::new();
    for case in &CASES {
        for (dtype, bound) in DTYPES {
            let label = format!("{}-{dtype}", case.label);
            for own in ["True", "False"] {
                let ours = format!("{label}/checkpoints/last/model.safetensors");
                let difference = place.distance(&ours, &format!("{label}-after-{own}.pt"));
                println!("{label:28} {difference:.1e}");
                if difference.is_nan() || difference > bound {
                    failures.push(format!("{label} {own}: {difference:.2e}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
fn differences_between_the_files_optimizer_and_the_configs_are_said() {
    let place = Place::new();
    place.python(
        "net = fresh('float32'); optimizer = AdamW(net.parameters(), lr=0.5, betas=(0.5, 0.6), weight_decay=0.2, amsgrad=True)
steps(net, optimizer, 2); torch.save({'model': net.state_dict(), 'optimizer': optimizer.state_dict()}, 'a.pth')",
    );
    let case = Case { label: "a", optimizer: "{adam: {lr: 0.1}}", penalty: "{l2: 0.01}", python: "" };
    let init = format!("{{file: {}, optimizer: optimizer}}", place.path("a.pth"));
    let (code, text) = place.train(&place.config("a", &case, "float32", &init, 1), "a", &[]);
    assert_eq!(code, 0, "{text}");
    for line in [
        "optimizer: lr was 0.5 in the file, is 0.1 here",
        "optimizer: betas was (0.5, 0.6) in the file, is (0.9, 0.999) here",
        "optimizer: amsgrad was true in the file, is false here",
        "weight decay was 0.2 (decoupled) in the file, is 0.01 (l2) here, for 2 parameters (conv.weight, fc.weight)",
        "weight decay was 0.2 (decoupled) in the file, is 0 (l2) here, for 3 parameters (bn.weight, bn.bias, fc.bias)",
        "the file's max_exp_avg_sq is left out",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let text = fs::read_to_string(place.path("a/config.yaml")).unwrap();
    assert!(text.contains("optimizer: optimizer"), "{text}");
}

#[test]
fn state_that_does_not_fit_ends_with_4_and_names() {
    let place = Place::new();
    place.python(
        "net = fresh('float32')
def save(name, optimizer, **more):
    steps(net, optimizer, 1); torch.save({'model': net.state_dict(), 'optimizer': optimizer.state_dict(), **more}, name)
save('sgd.pth', SGD(net.parameters(), lr=0.1, momentum=0.9))
save('adamax.pth', torch.optim.Adamax(net.parameters()))
save('two.pth', Adam(net.parameters()), other={'optim': Adam(net.parameters()).state_dict()})
save('few.pth', Adam([net.conv.weight, net.fc.weight]))
save('swapped.pth', Adam([net.fc.weight, net.conv.weight, net.bn.weight, net.bn.bias, net.fc.bias]))
torch.save({'model': net.state_dict(), 'epoch': 3}, 'none.pth')
adam = Adam([(n.replace('fc', 'head'), p) for n, p in net.named_parameters()]); save('names.pth', adam)
state = Adam(net.parameters()); steps(net, state, 1); state = state.state_dict(); del state['state'][2]['exp_avg']
torch.save({'model': net.state_dict(), 'optimizer': state}, 'lacks.pth')",
    );
    let case = Case { label: "", optimizer: "adam", penalty: "{}", python: "" };
    for (file, messages) in [
        ("sgd", &["it is of SGD, and the config's optimizer is adam"][..]),
        ("adamax", &["only the state of SGD, Adam, AdamW, Adagrad, RMSprop, NAdam and RAdam"]),
        ("two", &["holds several: `optimizer`, `other.optim`"]),
        ("few", &["1 param groups hold 2 parameters, the network has 5"]),
        ("swapped", &["parameter 0 has shape [3, 4] there; conv.weight is [4, 1, 3, 3]", "named_parameters"]),
        ("none", &["nothing in the file has `state` and `param_groups`"]),
        ("names", &["head.weight", "head.bias"]),
        ("lacks", &["bn.bias.exp_avg is missing"]),
    ] {
        let init = format!("{{file: {}, optimizer: true}}", place.path(&format!("{file}.pth")));
        let (code, text) = place.train(&place.config(file, &case, "float32", &init, 1), file, &[]);
        assert!(code == 4 && messages.iter().all(|message| text.contains(message)), "{file}: {code} {text}");
        assert!(!Path::new(&place.path(file)).join("checkpoints").exists(), "{file}");
    }
}

#[test]
fn a_frozen_body_and_a_new_head_take_the_state_of_what_is_left() {
    let place = Place::new();
    place.python(
        "net = fresh('float32'); net.fc = torch.nn.Linear(4, 7); net = torch.nn.DataParallel(net)
optimizer = Adam(net.parameters()); steps(net, optimizer, 3)
torch.save({'state_dict': net.state_dict(), 'optimizer': optimizer.state_dict()}, 'all.pth')
named = Adam(net.named_parameters()); named.load_state_dict(optimizer.state_dict())
torch.save({'state_dict': net.state_dict(), 'optimizer': named.state_dict()}, 'named.pth')",
    );
    let case = Case { label: "", optimizer: "adam", penalty: "{}", python: "" };
    for file in ["all", "named"] {
        let init = format!(
            "{{file: {}, optimizer: true, freeze: ['conv.*'], reset: ['fc.*']}}",
            place.path(&format!("{file}.pth"))
        );
        let (code, text) = place.train(&place.config(file, &case, "float32", &init, 1), file, &[]);
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("state of 2 of 4 parameters"), "{text}");
        let state = read_weights(
            Path::new(&place.path(&format!("{file}/checkpoints/last/optimizer.safetensors"))),
            None,
        );
        let steps: Vec<_> = (state.unwrap().tensors.iter())
            .filter(|(name, _)| name.ends_with(".step"))
            .map(|(name, step)| (name.clone(), step.double_value(&[])))
            .collect();
        let mut steps = json!(steps).as_array().unwrap().clone();
        steps.sort_by_key(|step| step.to_string());
        assert_eq!(
            json!(steps),
            json!([
                ["bn.bias.step", 4.0],
                ["bn.weight.step", 4.0],
                ["fc.bias.step", 1.0],
                ["fc.weight.step", 1.0]
            ])
        );
    }
}

#[test]
fn param_groups_without_names_are_told_apart_by_shape_then_by_weight_decay_else_refused() {
    let place = Place::new();
    place.python(
        "net = torch.nn.Sequential(torch.nn.Linear(1, 3, bias=False), torch.nn.Linear(3, 1, bias=False))
ps = [torch.nn.Parameter(torch.ones(2)) for _ in range(4)]
for name, order, decay in ('a', [0, 2, 1, 3], .1), ('b', [0, 1, 2, 3], .1), ('c', [0, 1, 2, 3], 0):
    optimizer = Adam([{'params': [ps[i] for i in order[:2]], 'weight_decay': decay}, {'params': [ps[i] for i in order[2:]]}])
    for i, p in enumerate(ps): p.grad = torch.full_like(p, i + 1.)
    optimizer.step(); torch.save(optimizer.state_dict(), name + '.pt')",
    );
    let spec = tikhonov::optim::OptimizerSpec::Adam(Default::default());
    let lambdas = |l2| Some(LambdaValues::default().with("l2", l2));
    let known = |name, l2| Known { name, shape: &[2], lambdas: lambdas(l2), lr: 1.0 };
    let alternating = [known("a", 0.1), known("b", 0.0), known("c", 0.1), known("d", 0.0)];
    let split = [known("a", 0.1), known("b", 0.1), known("c", 0.0), known("d", 0.0)];
    let state = |file: &str| PythonOptimizer::open(Path::new(&place.path(file)), None).unwrap();
    // All shapes are the same: the groups' weight decay tells who is in which.
    for (file, known) in [("a.pt", &alternating), ("b.pt", &split)] {
        let fitted = state(file).fit(known, &spec).unwrap();
        let mean = |name: &str| fitted.state[&format!("{name}.exp_avg")].double_value(&[0]);
        for (name, gradient) in [("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0)] {
            // Adam's first exp_avg is a tenth of the gradient and, with weight decay 0.1, of the weight (1)
            // times that.
            let decay = if known.iter().any(|p| p.name == name && p.lambdas.unwrap().get("l2") > 0.0) {
                0.1
            } else {
                0.0
            };
            assert!((mean(name) - 0.1 * (gradient + decay)).abs() < 1e-4, "{file} {name}: {}", mean(name));
        }
    }
    // Without any decay nothing does.
    let error = state("c.pt").fit(&alternating, &spec).unwrap_err();
    assert_eq!(tikhonov::util::exit_code::code(&error), 4);
    assert!(format!("{error:#}").contains("orders; with PyTorch 2.6"), "{error:#}");
}
