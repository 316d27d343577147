//! Cautious and relative decay, and the derivative of one step by λ₂, against loops written by hand in
//! PyTorch.

use crate::common::lambdas;
use tch::Kind;
use tikhonov::optim::StepOptions;
use tikhonov::schedule::{Plateau, ScheduleStep};

use super::against_torch::{NAMES, Problem, flat, shared, targets};
use super::{declared, distance};
use crate::common;

/// Every rule as a differentiable function of (weight, gradient, state, count of steps before, η). `train`
/// makes `steps` of them, tells dL_val/dλ through the last, and leaves the weights.
const PYTHON: &str = r#"
import json, math, numpy as np, torch, torch.nn.functional as F
torch.set_num_threads(1)
NAMES = ["conv.weight", "conv.bias", "fc.weight", "fc.bias"]
load = lambda name: torch.from_numpy(np.load(f"{folder}/{name}.npy"))
xs, ys, start = load("xs"), load("ys"), [load(name) for name in NAMES]

def loss(ws, i):
    h = F.avg_pool2d(F.conv2d(xs[i:i + 16].to(ws[0].dtype), ws[0], ws[1], padding=1).tanh(), 2).flatten(1)
    return F.cross_entropy(F.linear(h, ws[2], ws[3]), ys[i:i + 16])

def sgd(momentum=0.0, dampening=0.0, nesterov=False):
    def step(w, g, s, t, lr):
        if not momentum: return w - lr * g, {}
        b = g if t == 0 else momentum * s["b"] + (1 - dampening) * g
        return w - lr * (g + momentum * b if nesterov else b), {"b": b}
    return step

def adam(b1=0.9, b2=0.999, eps=1e-8, amsgrad=False):
    def step(w, g, s, t, lr):
        zero = torch.zeros_like(w)
        m = b1 * s.get("m", zero) + (1 - b1) * g
        v = b2 * s.get("v", zero) + (1 - b2) * g * g
        x = torch.maximum(s.get("x", zero), v) if amsgrad else v
        d = (x / (1 - b2 ** (t + 1))).sqrt() + eps
        return w - lr * m / (1 - b1 ** (t + 1)) / d, {"m": m, "v": v, "x": x}
    return step

def adagrad(decay=0.0, initial=0.0, eps=1e-10):
    def step(w, g, s, t, lr):
        a = s.get("a", torch.full_like(w, initial)) + g * g
        return w - lr / (1 + t * decay) * g / (a.sqrt() + eps), {"a": a}
    return step

def rmsprop(alpha=0.99, eps=1e-8, momentum=0.0, centered=False):
    def step(w, g, s, t, lr):
        zero = torch.zeros_like(w)
        v = alpha * s.get("v", zero) + (1 - alpha) * g * g
        a = alpha * s.get("a", zero) + (1 - alpha) * g
        u = g / ((v - a * a if centered else v).sqrt() + eps)
        b = momentum * s.get("b", zero) + u
        return w - lr * b, {"v": v, "a": a, "b": b}
    return step

def train(label, step, lr, l2=0.0, decoupled=0.0, mode="plain", peak=None, l1=0.0, subgradient=False, over=1, clip=None, steps=50,
          dtype=torch.float64):
    ws = [w.to(dtype).clone().requires_grad_() for w in start]
    states = [{} for _ in ws]
    lam = torch.tensor(l2 + decoupled, dtype=dtype, requires_grad=True)
    for t in range(steps):
        eta = lr * (1 + math.cos(math.pi * t / 200)) / 2
        gs = torch.autograd.grad(loss(ws, 16 * (t % 4)), ws)
        if clip:
            total = torch.cat([g.flatten() for g in gs]).norm()
            gs = [g * min(1.0, (clip / (total + 1e-6)).item()) for g in gs]
        # λ acts through the last step alone.
        ws, states = [w.detach() for w in ws], [{k: v.detach() for k, v in s.items()} for s in states]
        for i, (w, g) in enumerate(zip(ws, gs)):
            decays = NAMES[i].endswith("weight")
            if decays and l2: g = g + lam * w
            if decays and l1 and subgradient: g = g + l1 * w.sign()
            old = w
            w, states[i] = step(w, g, states[i], t, eta)
            if decays and decoupled:
                u = (old - w) / eta
                if mode == "cautious": w = w - eta * lam * (u * old >= 0) * old
                elif mode == "relative": w = w - eta / (peak or lr) * lam * old
                else: w = w - eta * lam * old
            if decays and l1 and not subgradient:
                w = w.sign() * (w.abs() - eta * l1 * over).clamp(min=0)
            ws[i] = w.requires_grad_() if not w.requires_grad else w
    slope = torch.autograd.grad(loss(ws, 48), lam)[0].item() if l2 + decoupled else 0.0
    np.save(f"{folder}/{label}.npy", torch.cat([w.detach().flatten() for w in ws]).numpy())
    print(json.dumps([label, slope]))
"#;

/// (label, config, the same in Python)
const CASES: &[(&str, &str, &str)] = &[
    (
        "cautious-sgd",
        "optimizer: {sgd: {lr: 0.05, momentum: 0.9}}\npenalty: {decoupled: 0.5, decoupled_mode: cautious}",
        "sgd(0.9), 0.05, decoupled=0.5, mode='cautious'",
    ),
    (
        "cautious-adam",
        "optimizer: {adam: {lr: 0.01}}\npenalty: {decoupled: 0.5, decoupled_mode: cautious}",
        "adam(), 0.01, decoupled=0.5, mode='cautious'",
    ),
    (
        "relative-sgd",
        "optimizer: {sgd: {lr: 0.05, momentum: 0.9, nesterov: true}}\npenalty: {decoupled: 0.01, decoupled_mode: relative}",
        "sgd(0.9, nesterov=True), 0.05, decoupled=0.01, mode='relative'",
    ),
    (
        "relative-adamw",
        "optimizer: {adamw: {lr: 0.01}}\npenalty: {decoupled: 0.01, decoupled_mode: relative}\nclip: {norm: 0.2}",
        "adam(), 0.01, decoupled=0.01, mode='relative', clip=0.2",
    ),
    ("sgd", "optimizer: {sgd: {lr: 0.1}}\npenalty: {l2: 0.05}", "sgd(), 0.1, l2=0.05"),
    (
        "sgd-dampened",
        "optimizer: {sgd: {lr: 0.1, momentum: 0.8, dampening: 0.3}}\npenalty: {l2: 0.05}",
        "sgd(0.8, 0.3), 0.1, l2=0.05",
    ),
    (
        "sgd-nesterov",
        "optimizer: {sgd: {lr: 0.05, momentum: 0.9, nesterov: true}}\npenalty: {l2: 0.05}\nclip: {norm: 0.2}",
        "sgd(0.9, nesterov=True), 0.05, l2=0.05, clip=0.2",
    ),
    (
        "sgd-l1",
        "optimizer: {sgd: {lr: 0.1, momentum: 0.9}}\npenalty: {l2: 0.05, l1: 0.02}",
        "sgd(0.9), 0.1, l2=0.05, l1=0.02, over=10",
    ),
    (
        "sgdw",
        "optimizer: {sgd: {lr: 0.05, momentum: 0.9}}\npenalty: {decoupled: 0.1}",
        "sgd(0.9), 0.05, decoupled=0.1",
    ),
    ("adam", "optimizer: {adam: {lr: 0.01}}\npenalty: {l2: 0.05}", "adam(), 0.01, l2=0.05"),
    (
        "adam-l1",
        "optimizer: {adam: {lr: 0.01}}\npenalty: {l2: 0.05, l1: 0.01, l1_mode: subgradient}",
        "adam(), 0.01, l2=0.05, l1=0.01, subgradient=True",
    ),
    (
        "amsgrad",
        "optimizer: {adam: {lr: 0.01, betas: [0.8, 0.9], eps: 1e-6, amsgrad: true}}\npenalty: {l2: 0.05}",
        "adam(0.8, 0.9, 1e-6, True), 0.01, l2=0.05",
    ),
    ("adamw", "optimizer: {adamw: {lr: 0.01}}\npenalty: {decoupled: 0.1}", "adam(), 0.01, decoupled=0.1"),
    (
        "adagrad",
        "optimizer: {adagrad: {lr: 0.05, lr_decay: 0.01, initial_accumulator_value: 0.1}}\npenalty: {l2: 0.05}",
        "adagrad(0.01, 0.1), 0.05, l2=0.05",
    ),
    (
        "rmsprop",
        "optimizer: {rmsprop: {lr: 0.002, alpha: 0.9, eps: 1e-4, momentum: 0.5}}\npenalty: {l2: 0.05}",
        "rmsprop(0.9, 1e-4, 0.5), 0.002, l2=0.05",
    ),
    (
        "rmsprop-centered",
        "optimizer: {rmsprop: {lr: 0.002, alpha: 0.9, eps: 1e-4, momentum: 0.5, centered: true}}\npenalty: {l2: 0.05}",
        "rmsprop(0.9, 1e-4, 0.5, True), 0.002, l2=0.05",
    ),
];

/// Steps made before the derivative is asked for; in the first there is no state yet.
const LENGTHS: [u64; 3] = [1, 2, 50];

#[test]
fn decay_in_every_mode_and_the_derivative_of_a_step_by_lambda_equal_autograd_through_loops_written_by_hand() {
    tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let problem = Problem::new();
    problem.write(folder.path());
    let mut script = format!("folder = {:?}\n{PYTHON}", folder.path().display().to_string());
    for (label, _, python) in CASES {
        for steps in LENGTHS {
            script += &format!("train('{label}-{steps}-Double', {python}, steps={steps})\n");
        }
        script += &format!("train('{label}-50-Float', {python}, steps=50, dtype=torch.float32)\n");
    }
    let printed = common::python(&script);
    let theirs: std::collections::HashMap<String, f64> =
        printed.lines().map(|line| serde_json::from_str::<(String, f64)>(line).unwrap()).collect();

    let mut failures = Vec::new();
    for (label, config, _) in CASES {
        let declared = declared(&format!("{config}\nschedule: cosine"));
        let groups = declared.penalty.assign(&targets()).unwrap();
        let traced = groups.iter().position(|group| group.label == "weights").unwrap();
        for (steps, kind) in LENGTHS.map(|steps| (steps, Kind::Double)).into_iter().chain([(50, Kind::Float)])
        {
            let params = problem.parameters(kind);
            let mut optimizer = declared.optimizer.build(shared(&params), &groups).unwrap();
            let mut slope = 0.0;
            for step in 0..steps {
                let clock = ScheduleStep { step, steps_per_epoch: 4, total_steps: 200 };
                problem.loss(&params, 16 * (step as i64 % 4), 16).backward();
                let rates: Vec<_> = groups.iter().map(|group| group.lambdas(clock)).collect();
                let lr = declared.schedule.lr(declared.optimizer.lr(), clock, &Plateau::default());
                let traced = if step == steps - 1 { vec![traced] } else { Vec::new() };
                let clip = declared.clip.as_ref();
                let options = StepOptions {
                    lr,
                    lambdas: &rates,
                    clip,
                    differentiate: &traced,
                    ..StepOptions::default()
                };
                let made = optimizer.step_with(&options).unwrap();
                for shift in made.lambda_gradients.iter().flatten() {
                    assert!(NAMES[shift.param].ends_with("weight"));
                    problem.loss(&params, 48, 16).backward();
                    slope +=
                        (params[shift.param].1.grad() * &shift.tensor).sum(Kind::Double).double_value(&[]);
                    optimizer.zero_grad().unwrap();
                }
            }
            let run = format!("{label}-{steps}-{kind:?}");
            let weights = tch::Tensor::read_npy(folder.path().join(format!("{run}.npy"))).unwrap();
            let apart = distance(&flat(&params), &weights);
            let off = (slope - theirs[&run]).abs() / theirs[&run].abs();
            println!("{run:28} weights {apart:.1e}, dL/dλ = {slope:+.3e}, off by {off:.1e}");
            // RMSprop divides by the root of what is almost nothing at first.
            let bounds = if kind == Kind::Double { (1e-12, 1e-9) } else { (4e-6, 1e-3) };
            if !(apart < bounds.0 && off < bounds.1) {
                failures.push(format!("{run}: weights {apart:.1e}, derivative {off:.1e}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn relative_decay_does_not_depend_on_the_rate_and_cautious_decay_spares_weights_that_grow() {
    // Without a gradient only decay acts: by λ·η/η_peak, whatever lr is.
    for lr in [0.5, 0.005] {
        let (w, mut optimizer) = super::single(&format!("optimizer: {{sgd: {{lr: {lr}}}}}"), &[1.0, -2.0]);
        let rates = [lambdas("{decoupled: 0.1, decoupled_mode: relative}")];
        (&w * 0.0).sum(Kind::Double).backward();
        optimizer.step(lr / 2.0, &rates, None).unwrap();
        assert!(super::values(&w).iter().zip([0.95, -1.9]).all(|(a, b)| (a - b).abs() < 1e-15), "{lr}");
    }
    let (w, mut optimizer) = super::single("optimizer: sgd", &[1.0, 1.0]);
    let rates = [lambdas("{decoupled: 0.1, decoupled_mode: cautious}")];
    // The first weight is pushed towards 0, the second away.
    (&w * tch::Tensor::from_slice(&[1.0, -1.0])).sum(Kind::Double).backward();
    optimizer.step(0.5, &rates, None).unwrap();
    assert!(super::values(&w).iter().zip([0.5 - 0.05, 1.5]).all(|(a, b)| (a - b).abs() < 1e-15), "{w:?}");
}
