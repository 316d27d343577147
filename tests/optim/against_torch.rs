//! The same 200 steps here and in Python's `torch.optim`.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Kind, Reduction, Tensor};
use tikhonov::optim::Optimizer;
use tikhonov::penalty::{LambdaValues, ParamGroup, PenaltyParam};
use tikhonov::schedule::{Plateau, ScheduleStep};
use tikhonov::util::rng::{CounterRng, RngStream};

use super::{Declared, declared, distance, normal};
use crate::common;

const STEPS: u64 = 200;
pub(super) const NAMES: [&str; 4] = ["conv.weight", "conv.bias", "fc.weight", "fc.bias"];
const SHAPES: [&[i64]; 4] = [&[4, 1, 3, 3], &[4], &[3, 64], &[3]];

/// A small convolutional classifier on fixed data: 64 images [1, 8, 8] of three classes, in 4 batches of 16.
pub(super) struct Problem {
    xs: Tensor,
    ys: Tensor,
    weights: Vec<Tensor>,
}

impl Problem {
    pub(super) fn new() -> Self {
        let mut draw = CounterRng::new(7, 1, 0, RngStream::Generate);
        let ys: Vec<i64> = (0..64).map(|_| draw.below(3) as i64).collect();
        let ys = Tensor::from_slice(&ys);
        let shift = ys.to_kind(Kind::Double).view([64, 1, 1, 1]) * 0.5;
        let weights = SHAPES.iter().zip([0.3, 0.1, 0.1, 0.1]).enumerate();
        Self {
            xs: normal(&[64, 1, 8, 8], 1.0, 10) + shift,
            ys,
            weights: weights.map(|(i, (shape, scale))| normal(shape, scale, i as u64)).collect(),
        }
    }

    pub(super) fn write(&self, folder: &Path) {
        self.xs.write_npy(folder.join("xs.npy")).unwrap();
        self.ys.write_npy(folder.join("ys.npy")).unwrap();
        for (name, w) in NAMES.iter().zip(&self.weights) {
            w.write_npy(folder.join(format!("{name}.npy"))).unwrap();
        }
    }

    pub(super) fn parameters(&self, kind: Kind) -> Vec<(String, Tensor)> {
        let own = |w: &Tensor| w.to_kind(kind).copy().set_requires_grad(true);
        NAMES.iter().zip(&self.weights).map(|(name, w)| (name.to_string(), own(w))).collect()
    }

    /// The mean loss of `count` samples from `start` on.
    pub(super) fn loss(&self, params: &[(String, Tensor)], start: i64, count: i64) -> Tensor {
        let kind = params[0].1.kind();
        let xs = self.xs.narrow(0, start, count).to_kind(kind);
        let hidden = xs.conv2d(&params[0].1, Some(&params[1].1), [1, 1], [1, 1], [1, 1], 1).tanh();
        let pooled = hidden.avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None::<i64>).flatten(1, -1);
        let logits = pooled.linear(&params[2].1, Some(&params[3].1));
        // tch's cross_entropy_for_logits would compute in float32.
        let ys = self.ys.narrow(0, start, count);
        logits.cross_entropy_loss(&ys, None::<&Tensor>, Reduction::Mean, -100, 0.0)
    }
}

/// The same network and loop in Python; `run` trains and saves, `case` runs all variants of one optimiser.
const PYTHON: &str = r#"
import json, sys, numpy as np, torch, torch.nn.functional as F
from torch.optim.adamw import adamw as adamw_step
from torch.optim._muon import _single_tensor_muon
torch.set_num_threads(1)
NAMES = ["conv.weight", "conv.bias", "fc.weight", "fc.bias"]
load = lambda name: torch.from_numpy(np.load(f"{folder}/{name}.npy"))
xs, ys, start = load("xs"), load("ys"), [load(name) for name in NAMES]

def run(label, make, l2, decoupled, clip, schedule, dtype, fused):
    ws = [w.to(dtype).clone().requires_grad_() for w in start]
    weights, biases = [ws[0], ws[2]], [ws[1], ws[3]]
    own = getattr(make, "func", make)
    adamw = own is torch.optim.AdamW or getattr(own, "decays", False)
    decay = decoupled if adamw else l2
    groups = [{"params": weights, "weight_decay": decay}, {"params": biases, "weight_decay": 0.0}]
    optimizer = make(groups, fused=True) if fused else make(groups)
    scheduler = schedule(optimizer) if schedule else None
    for step in range(200):
        i = 16 * (step % 4)
        x, y = xs[i:i + 16].to(dtype), ys[i:i + 16]
        h = F.avg_pool2d(F.conv2d(x, ws[0], ws[1], padding=1).tanh(), 2).flatten(1)
        optimizer.zero_grad()
        F.cross_entropy(F.linear(h, ws[2], ws[3]), y).backward()
        if clip: torch.nn.utils.clip_grad_norm_(ws, clip)
        if decoupled and not adamw:
            with torch.no_grad():
                for w in weights: w.mul_(1 - optimizer.param_groups[0]["lr"] * decoupled)
        optimizer.step()
        if scheduler: scheduler.step()
    np.save(f"{folder}/{label}.npy", torch.cat([w.detach().flatten() for w in ws]).numpy())
    return sorted(f"{NAMES[[0, 2, 1, 3][i]]}.{key}" for i, state in optimizer.state_dict()["state"].items()
                  for key, value in state.items() if value is not None)

class Lion(torch.optim.Optimizer):
    # google/automl, lion/lion_pytorch.py: the loop of `step`.
    def __init__(self, groups, **defaults): super().__init__(groups, defaults)
    decays = True
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(1 - group["lr"] * group["weight_decay"])
                grad, state = p.grad, self.state[p]
                if len(state) == 0: state["exp_avg"] = torch.zeros_like(p)
                exp_avg = state["exp_avg"]
                beta1, beta2 = group["betas"]
                update = exp_avg * beta1 + grad * (1 - beta1)
                p.add_(update.sign_(), alpha=-group["lr"])
                exp_avg.mul_(beta2).add_(grad, alpha=1 - beta2)

class Muon(torch.optim.Optimizer):
    # torch.optim.Muon for matrices, which filters are as rows; torch.optim.AdamW for the rest and, with `head`, for fc.
    decays = True
    def __init__(self, groups, lr, adamw_lr, head=False, adjust_lr_fn=None, momentum=0.95, nesterov=True):
        super().__init__(groups, {"lr": lr})
        self.share, self.head = adamw_lr / lr, head
        self.muon = dict(momentum=momentum, nesterov=nesterov, adjust_lr_fn=adjust_lr_fn, eps=1e-7, ns_steps=5,
                         ns_coefficients=(3.4445, -4.7750, 2.0315), has_complex=False)
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state, lr, decay = self.state[p], group["lr"], group["weight_decay"]
                if p.dim() < 2 or self.head and len(p) == 3:
                    if not state: state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
                    adamw_step([p], [p.grad], [state["exp_avg"]], [state["exp_avg_sq"]], [], [state["step"]],
                                            amsgrad=False, beta1=0.9, beta2=0.999, lr=lr * self.share, weight_decay=decay,
                                            eps=1e-8, maximize=False)
                else:
                    if not state: state["momentum_buffer"] = torch.zeros_like(p)
                    flat = lambda t: [t.view(len(t), -1)]
                    _single_tensor_muon(flat(p), flat(p.grad), flat(state["momentum_buffer"]), lr=lr,
                                                          weight_decay=decay, **self.muon)

class ScheduleFree(torch.optim.Optimizer):
    # schedulefree 1.4, adamw_schedulefree.py: `step` without foreach and warm-up.
    def __init__(self, groups, lr, betas=(0.9, 0.999), eps=1e-8, r=0.0, weight_lr_power=2.0):
        super().__init__(groups, dict(lr=lr, betas=betas, eps=eps, r=r, weight_lr_power=weight_lr_power, k=0,
                                      lr_max=-1.0, weight_sum=0.0))
    decays = True
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            eps, (beta1, beta2), decay, k, lr = group["eps"], group["betas"], group["weight_decay"], group["k"], group["lr"]
            bias_correction2 = 1 - beta2 ** (k + 1)
            lr_max = group["lr_max"] = max(lr, group["lr_max"])
            weight = ((k + 1) ** group["r"]) * (lr_max ** group["weight_lr_power"])
            weight_sum = group["weight_sum"] = group["weight_sum"] + weight
            ckp1 = weight / weight_sum
            for y in group["params"]:
                grad, state = y.grad, self.state[y]
                if "z" not in state:
                    state["z"] = torch.clone(y); state["exp_avg_sq"] = torch.zeros_like(y)
                    # Ours are by parameter.
                    state["step"], state["lr_max"], state["weight_sum"] = 0, 0, 0
                z, exp_avg_sq = state["z"], state["exp_avg_sq"]
                exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                denom = exp_avg_sq.div(bias_correction2).sqrt_().add_(eps)
                grad_normalized = grad.div_(denom)
                if decay != 0: grad_normalized.add_(y, alpha=decay)
                y.lerp_(end=z, weight=ckp1)
                y.add_(grad_normalized, alpha=lr * (beta1 * (1 - ckp1) - 1))
                z.sub_(grad_normalized, alpha=lr)
            group["k"] = k + 1

def case(label, make, variants, l2=0.0, decoupled=0.0, fused=True):
    half = lambda t: (1 + np.cos(np.pi * t / 200)) / 2
    cosine = lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, half)
    for dtype, kind in [(torch.float32, "Float"), (torch.float64, "Double")]:
        for clip, name in variants:
            for impl in ["default"] + ["fused"] * fused:
                keys = run(f"{label}-{kind}-{clip}-{name}-{impl}", make, l2, decoupled, clip,
                           cosine if name == "cosine" else None, dtype, impl == "fused")
    print(json.dumps([label, keys]))
"#;

/// One optimiser here and in Python.
struct Case {
    label: &'static str,
    config: &'static str,
    python: &'static str,
    /// All four of with and without clipping and schedule, or only with both.
    all_variants: bool,
    /// Whether PyTorch has a fused form.
    fused: bool,
}

const CASES: [Case; 18] = [
    Case {
        label: "sgd-nesterov",
        config: "optimizer: {sgd: {lr: 0.05, momentum: 0.9, nesterov: true}}\npenalty: {l2: 0.01}",
        python: "partial(O.SGD, lr=0.05, momentum=0.9, nesterov=True), l2=0.01",
        all_variants: true,
        fused: true,
    },
    Case {
        label: "sgd-dampening",
        config: "optimizer: {sgd: {lr: 0.1, momentum: 0.8, dampening: 0.3}}\npenalty: {l2: 0.01}",
        python: "partial(O.SGD, lr=0.1, momentum=0.8, dampening=0.3), l2=0.01",
        all_variants: false,
        fused: true,
    },
    Case {
        label: "sgd-plain",
        config: "optimizer: {sgd: {lr: 0.1}}",
        python: "partial(O.SGD, lr=0.1)",
        all_variants: false,
        fused: true,
    },
    Case {
        label: "sgdw",
        config: "optimizer: {sgd: {lr: 0.05, momentum: 0.9}}\npenalty: {decoupled: 0.1}",
        python: "partial(O.SGD, lr=0.05, momentum=0.9), decoupled=0.1",
        all_variants: true,
        fused: true,
    },
    Case {
        label: "adam-l2",
        config: "optimizer: {adam: {lr: 0.01}}\npenalty: {l2: 0.1}",
        python: "partial(O.Adam, lr=0.01), l2=0.1",
        all_variants: true,
        fused: true,
    },
    Case {
        label: "adam-amsgrad",
        config: "optimizer: {adam: {lr: 0.01, betas: [0.8, 0.99], eps: 1e-6, amsgrad: true}}\npenalty: {l2: 0.01}",
        python: "partial(O.Adam, lr=0.01, betas=(0.8, 0.99), eps=1e-6, amsgrad=True), l2=0.01",
        all_variants: false,
        fused: true,
    },
    Case {
        label: "adamw",
        config: "optimizer: {adamw: {lr: 0.01}}\npenalty: {decoupled: 0.1}",
        python: "partial(O.AdamW, lr=0.01), decoupled=0.1",
        all_variants: true,
        fused: true,
    },
    Case {
        label: "adamw-amsgrad",
        config: "optimizer: {adamw: {lr: 0.01, amsgrad: true}}\npenalty: {decoupled: 0.1}",
        python: "partial(O.AdamW, lr=0.01, amsgrad=True), decoupled=0.1",
        all_variants: false,
        fused: true,
    },
    Case {
        label: "adagrad",
        config: "optimizer: {adagrad: {lr: 0.05}}\npenalty: {l2: 0.01}",
        python: "partial(O.Adagrad, lr=0.05), l2=0.01",
        all_variants: true,
        fused: true,
    },
    Case {
        label: "adagrad-decay",
        config: "optimizer: {adagrad: {lr: 0.05, lr_decay: 0.01, initial_accumulator_value: 0.1}}\npenalty: {l2: 0.01}",
        python: "partial(O.Adagrad, lr=0.05, lr_decay=0.01, initial_accumulator_value=0.1), l2=0.01",
        all_variants: false,
        fused: true,
    },
    Case {
        label: "rmsprop",
        config: "optimizer: {rmsprop: {lr: 0.002}}\npenalty: {l2: 0.01}",
        python: "partial(O.RMSprop, lr=0.002), l2=0.01",
        all_variants: true,
        fused: false,
    },
    Case {
        label: "rmsprop-centered",
        config: "optimizer: {rmsprop: {lr: 0.002, alpha: 0.9, eps: 1e-4, momentum: 0.5, centered: true}}\npenalty: {l2: 0.01}",
        python: "partial(O.RMSprop, lr=0.002, alpha=0.9, eps=1e-4, momentum=0.5, centered=True), l2=0.01",
        all_variants: false,
        fused: false,
    },
    Case {
        label: "nadam",
        config: "optimizer: {nadam: {lr: 0.01, momentum_decay: 0.01}}\npenalty: {l2: 0.01}",
        python: "partial(O.NAdam, lr=0.01, momentum_decay=0.01), l2=0.01",
        all_variants: true,
        fused: false,
    },
    Case {
        label: "radam",
        config: "optimizer: {radam: {lr: 0.05}}\npenalty: {decoupled: 0.1}",
        python: "partial(O.RAdam, lr=0.05, decoupled_weight_decay=True), decoupled=0.1",
        all_variants: true,
        fused: false,
    },
    Case {
        label: "lion",
        config: "optimizer: {lion: {lr: 0.001}}\npenalty: {decoupled: 0.1}",
        python: "partial(Lion, lr=0.001, betas=(0.9, 0.99)), decoupled=0.1",
        all_variants: false,
        fused: false,
    },
    Case {
        label: "muon",
        config: "optimizer: {muon: {lr: 0.02, adamw: {lr: 0.003}}}\npenalty: {decoupled: 0.1}",
        python: "partial(Muon, lr=0.02, adamw_lr=0.003), decoupled=0.1",
        all_variants: false,
        fused: false,
    },
    Case {
        label: "schedulefree",
        config: "optimizer: {schedulefree: {lr: 0.01, r: 0.5}}\npenalty: {decoupled: 0.1}",
        python: "partial(ScheduleFree, lr=0.01, r=0.5), decoupled=0.1",
        all_variants: true,
        fused: false,
    },
    Case {
        label: "muon-head",
        config: "optimizer: {muon: {lr: 0.02, momentum: 0.9, nesterov: false, adjust_lr_fn: match_rms_adamw, adamw_for: ['fc.*'], adamw: {lr: 0.003}}}\npenalty: {decoupled: 0.1}",
        python: "partial(Muon, lr=0.02, adamw_lr=0.003, head=True, adjust_lr_fn='match_rms_adamw', momentum=0.9, nesterov=False), decoupled=0.1",
        all_variants: false,
        fused: false,
    },
];

impl Case {
    fn variants(&self) -> &'static [(Option<f64>, &'static str)] {
        const ALL: [(Option<f64>, &str); 4] =
            [(None, "constant"), (None, "cosine"), (Some(0.2), "constant"), (Some(0.2), "cosine")];
        if self.all_variants { &ALL } else { &ALL[3..] }
    }
}

pub(super) fn targets() -> Vec<PenaltyParam<'static>> {
    NAMES.iter().map(|name| PenaltyParam { name, is_weight: name.ends_with("weight") }).collect()
}

/// The weights after 200 steps, in one vector, and the optimiser.
fn train(problem: &Problem, declared: &Declared, kind: Kind) -> (Tensor, Optimizer) {
    let params = problem.parameters(kind);
    let groups = declared.penalty.assign(&targets()).unwrap();
    let mut optimizer = declared.optimizer.build(shared(&params), &groups).unwrap();
    steps(problem, declared, &params, &groups, &mut optimizer, 0..STEPS);
    (flat(&params), optimizer)
}

fn steps(
    problem: &Problem,
    declared: &Declared,
    params: &[(String, Tensor)],
    groups: &[ParamGroup],
    optimizer: &mut Optimizer,
    range: std::ops::Range<u64>,
) {
    for step in range {
        let clock = ScheduleStep { step, steps_per_epoch: 4, total_steps: STEPS };
        problem.loss(params, 16 * (step as i64 % 4), 16).backward();
        let rates: Vec<LambdaValues> = groups.iter().map(|group| group.lambdas(clock)).collect();
        let lr = declared.schedule.lr(declared.optimizer.lr(), clock, &Plateau::default());
        optimizer.step(lr, &rates, declared.clip.as_ref()).unwrap();
    }
}

pub(super) fn shared(params: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    params.iter().map(|(name, w)| (name.clone(), w.shallow_clone())).collect()
}

pub(super) fn flat(params: &[(String, Tensor)]) -> Tensor {
    Tensor::cat(&params.iter().map(|(_, w)| w.detach().flatten(0, -1)).collect::<Vec<_>>(), 0)
}

#[test]
fn weights_after_200_steps_equal_those_of_torch_optim() {
    // The tensors are tiny: more threads would only wait for each other.
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let problem = Problem::new();
    problem.write(folder.path());
    let at = folder.path().display().to_string();
    let mut script = format!("folder = {at:?}\nfrom functools import partial\n{PYTHON}O = torch.optim\n");
    let python_clip = |clip: Option<f64>| clip.map_or("None".into(), |norm| norm.to_string());
    for case in &CASES {
        let variants: Vec<_> = case
            .variants()
            .iter()
            .map(|(clip, name)| format!("({}, {name:?})", python_clip(*clip)))
            .collect();
        let variants = variants.join(", ");
        let fused = if case.fused { "True" } else { "False" };
        script += &format!("case({:?}, {}, variants=[{variants}], fused={fused})\n", case.label, case.python);
    }
    let printed = common::python(&script);
    let state_names: BTreeMap<String, Vec<String>> =
        printed.lines().map(|line| serde_json::from_str::<(String, Vec<String>)>(line).unwrap()).collect();

    let mut failures = Vec::new();
    let mut ours = BTreeMap::new();
    for case in &CASES {
        for (kind, bound) in [(Kind::Float, 1e-6), (Kind::Double, 1e-12)] {
            // Clipped, NAdam multiplies rounding errors by ten, in float64 too.
            let bound = if case.label == "nadam" { 10.0 * bound } else { bound };
            for &(clip, schedule) in case.variants() {
                let clip_text = clip.map_or(String::new(), |norm| format!("\nclip: {{norm: {norm}}}"));
                let declared = declared(&format!("{}\nschedule: {schedule}{clip_text}", case.config));
                let (weights, optimizer) = train(&problem, &declared, kind);
                let mut keys: Vec<_> = optimizer.state().into_iter().map(|(name, _)| name).collect();
                keys.sort();
                assert_eq!(keys, state_names[case.label], "{}: names of the state", case.label);
                let run = format!("{}-{kind:?}-{}-{schedule}", case.label, python_clip(clip));
                let mut line = format!("{run:36}");
                for implementation in ["default", "fused"].iter().take(1 + usize::from(case.fused)) {
                    let theirs = folder.path().join(format!("{run}-{implementation}.npy"));
                    let difference = distance(&weights, &Tensor::read_npy(theirs).unwrap());
                    line += &format!("  {implementation} {difference:.1e}");
                    if difference.is_nan() || difference > bound {
                        failures.push(format!("{run} {implementation}: {difference:.2e}"));
                    }
                }
                println!("{line}");
                ours.insert(run, weights);
            }
        }
    }
    assert!(failures.is_empty(), "beyond 1e-6 (fp32) or 1e-12 (fp64):\n{}", failures.join("\n"));
    for case in CASES.iter().filter(|case| case.all_variants) {
        let of = |variant: &str| &ours[&format!("{}-Double-{variant}", case.label)];
        let clipped = distance(of("0.2-constant"), of("None-constant"));
        let scheduled = distance(of("None-cosine"), of("None-constant"));
        assert!(
            clipped > 1e-4 && scheduled > 1e-2,
            "{}: clip {clipped:e}, schedule {scheduled:e}",
            case.label
        );
    }
    let apart = distance(&ours["adam-l2-Double-None-constant"], &ours["adamw-Double-None-constant"]);
    println!("Adam with L2 and AdamW at the same λ = 0.1 differ by {apart:.2}");
    assert!(apart > 0.05, "{apart}");
}

#[test]
fn a_run_continued_from_saved_state_is_bit_identical() {
    tch::set_num_threads(1);
    let problem = Problem::new();
    for case in &CASES {
        let declared = declared(&format!("{}\nschedule: cosine\nclip: {{norm: 0.2}}", case.config));
        let (whole, _) = train(&problem, &declared, Kind::Float);

        let groups = declared.penalty.assign(&targets()).unwrap();
        let first = problem.parameters(Kind::Float);
        let mut optimizer = declared.optimizer.build(shared(&first), &groups).unwrap();
        steps(&problem, &declared, &first, &groups, &mut optimizer, 0..77);
        let saved: BTreeMap<String, Tensor> =
            optimizer.state().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
        let copy = |w: &Tensor| w.detach().copy().set_requires_grad(true);
        let second: Vec<_> = first.iter().map(|(name, w)| (name.clone(), copy(w))).collect();
        // What the first goes on to do must not reach the second.
        steps(&problem, &declared, &first, &groups, &mut optimizer, 77..80);
        let mut optimizer = declared.optimizer.build(shared(&second), &groups).unwrap();
        optimizer.load_state(&saved).unwrap();
        steps(&problem, &declared, &second, &groups, &mut optimizer, 77..STEPS);
        assert!(flat(&second).equal(&whole), "{}", case.label);
    }
}

#[test]
fn micro_batches_add_up_to_the_large_batch() {
    tch::set_num_threads(1);
    let problem = Problem::new();
    let declared = declared("optimizer: {adam: {lr: 0.01}}\npenalty: {l2: 0.01}\nclip: {norm: 0.2}");
    let run = |shares: &[i64]| {
        let params = problem.parameters(Kind::Double);
        let groups = declared.penalty.assign(&targets()).unwrap();
        let mut optimizer = declared.optimizer.build(shared(&params), &groups).unwrap();
        let clock = ScheduleStep { step: 0, steps_per_epoch: 1, total_steps: 20 };
        let rates: Vec<LambdaValues> = groups.iter().map(|group| group.lambdas(clock)).collect();
        for _ in 0..20 {
            let mut start = 0;
            for &share in shares {
                (problem.loss(&params, start, share) * (share as f64 / 64.0)).backward();
                start += share;
            }
            optimizer.step(0.01, &rates, declared.clip.as_ref()).unwrap();
        }
        flat(&params)
    };
    let whole = run(&[64]);
    for shares in [&[16, 16, 16, 16][..], &[40, 24]] {
        let difference = distance(&run(shares), &whole);
        println!("{shares:?}: {difference:.1e}");
        assert!(difference < 1e-13, "{shares:?}: {difference:e}");
    }
}

#[test]
fn state_that_does_not_fit_is_refused_whole_with_every_mistake_named() {
    let declared = declared("optimizer: {adam: {lr: 0.01}}");
    let (_, mut optimizer) = train(&Problem::new(), &declared, Kind::Float);
    let before: Vec<_> = optimizer.state().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
    let mut state: BTreeMap<_, _> = before.iter().map(|(name, t)| (name.clone(), t.zeros_like())).collect();
    state.remove("conv.weight.exp_avg");
    state.insert("fc.bias.exp_avg_sq".into(), Tensor::from_slice(&[1f32, 2.0]));
    state.insert("fc.bias.momentum_buffer".into(), Tensor::from(1.0));
    let error = optimizer.load_state(&state).unwrap_err();
    assert_eq!(tikhonov::util::exit_code::code(&error), 4);
    let text = error.to_string();
    for part in [
        "conv.weight.exp_avg is missing",
        "fc.bias.exp_avg_sq is [2], expected [3]",
        "fc.bias.momentum_buffer is unexpected",
    ] {
        assert!(text.contains(part), "{text}");
    }
    for ((name, tensor), (_, old)) in optimizer.state().iter().zip(&before) {
        assert!(tensor.equal(old), "{name} changed");
    }
}
