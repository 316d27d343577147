//! Every schedule against `torch.optim.lr_scheduler`.

use tikhonov::schedule::{Plateau, ScheduleSpec, ScheduleStep};
use tikhonov::util::yaml::Document;

use crate::common;

fn decode(text: &str) -> ScheduleSpec {
    let spec: ScheduleSpec =
        Document::parse("c.yaml", format!("schedule: {text}")).unwrap().decode_at("schedule").unwrap();
    spec.validate().unwrap();
    spec
}

const BASE: f64 = 0.3;
const EPOCHS: u64 = 12;
const PER_EPOCH: u64 = 5;

fn clock(step: u64) -> ScheduleStep {
    ScheduleStep { step, steps_per_epoch: PER_EPOCH, total_steps: EPOCHS * PER_EPOCH }
}

/// The rate at each of the 60 steps.
fn ours(text: &str) -> Vec<f64> {
    let spec = decode(text);
    (0..EPOCHS * PER_EPOCH).map(|step| spec.lr(BASE, clock(step), &Plateau::default())).collect()
}

#[test]
fn every_schedule_equals_its_torch_twin_step_by_step() {
    // (here, the scheduler in Python, whether it is stepped once per epoch)
    let cases = [
        ("constant", "S.ConstantLR(o, 1.0)", false),
        ("{step: {step_size: 3, gamma: 0.5}}", "S.StepLR(o, 3, 0.5)", true),
        ("{step: {step_size: 3, gamma: 0.5, by: step}}", "S.StepLR(o, 3, 0.5)", false),
        ("{multistep: {milestones: [2, 7]}}", "S.MultiStepLR(o, [2, 7])", true),
        ("{multistep: {milestones: [2, 7], gamma: 0.3, by: step}}", "S.MultiStepLR(o, [2, 7], 0.3)", false),
        ("{exponential: {gamma: 0.9}}", "S.ExponentialLR(o, 0.9)", true),
        ("{exponential: {gamma: 0.99, by: step}}", "S.ExponentialLR(o, 0.99)", false),
        ("{inverse_sqrt: {gamma: 0.5}}", "S.LambdaLR(o, lambda t: 1 / (1 + 0.5**2 * t) ** 0.5)", false),
        (
            "{inverse_sqrt: {gamma: 0.5, by: epoch}}",
            "S.LambdaLR(o, lambda t: 1 / (1 + 0.5**2 * t) ** 0.5)",
            true,
        ),
        ("cosine", "S.CosineAnnealingLR(o, 60)", false),
        ("{cosine: {min_lr: 0.01, by: epoch}}", "S.CosineAnnealingLR(o, 12, 0.01)", true),
        ("polynomial", "S.PolynomialLR(o, 60)", false),
        ("{polynomial: {power: 0.9}}", "S.PolynomialLR(o, 60, 0.9)", false),
        ("{polynomial: {power: 2, by: epoch}}", "S.PolynomialLR(o, 12, 2)", true),
        ("{cosine_warm_restarts: {t_0: 5}}", "S.CosineAnnealingWarmRestarts(o, 5)", true),
        (
            "{cosine_warm_restarts: {t_0: 7, t_mult: 2, min_lr: 0.01, by: step}}",
            "S.CosineAnnealingWarmRestarts(o, 7, 2, 0.01)",
            false,
        ),
        (
            "{wsd: {decay: 0.25, min_lr: 0.03}, warmup: {steps: 8}}",
            "S.SequentialLR(o, [S.LinearLR(o, total_iters=8), S.ConstantLR(o, 1.0), S.LinearLR(o, 1.0, 0.1, 13)], [8, 47])",
            false,
        ),
        (
            "{wsd: {decay_steps: 20, shape: cosine}}",
            "S.LambdaLR(o, lambda t: 1 if t < 40 else (1 + math.cos(math.pi * (t - 40) / 20)) / 2)",
            false,
        ),
        (
            "{wsd: {decay_steps: 20, shape: sqrt}}",
            "S.LambdaLR(o, lambda t: 1 if t < 40 else 1 - ((t - 40) / 20) ** 0.5)",
            false,
        ),
        ("linear", "S.LinearLR(o, 1.0, 0.0, 60)", false),
        ("{linear: {start_factor: 0.5, end_factor: 0.1}}", "S.LinearLR(o, 0.5, 0.1, 60)", false),
        ("one_cycle", "S.OneCycleLR(o, 0.3, total_steps=60, cycle_momentum=False)", false),
        (
            "{one_cycle: {max_lr: 1.0, pct_start: 0.25, div_factor: 10, final_div_factor: 100}}",
            "S.OneCycleLR(o, 1.0, total_steps=60, pct_start=0.25, div_factor=10, final_div_factor=100, cycle_momentum=False)",
            false,
        ),
        (
            "{cosine: {min_lr: 0.01}, warmup: {epochs: 2, start_factor: 0.1}}",
            "S.SequentialLR(o, [S.LinearLR(o, 0.1, 1.0, 10), S.CosineAnnealingLR(o, 50, 0.01)], [10])",
            false,
        ),
        ("{warmup: {steps: 7}}", "S.LinearLR(o, total_iters=7)", false),
        // The 53 steps behind it are ten epochs of 5 and a part of one.
        (
            "{cosine: {by: epoch}, warmup: {steps: 7}}",
            "S.SequentialLR(o, [S.LinearLR(o, total_iters=7), S.LambdaLR(o, lambda t: (1 + math.cos(math.pi * (t // 5) / 11)) / 2)], [7])",
            false,
        ),
        (
            "{step: {step_size: 10, by: step}, warmup: {steps: 7}}",
            "S.SequentialLR(o, [S.LinearLR(o, total_iters=7), S.StepLR(o, 10)], [7])",
            false,
        ),
        (
            "{linear: {}, warmup: {epochs: 0.4, start_factor: 1e-3}}",
            "S.SequentialLR(o, [S.LinearLR(o, 1e-3, 1.0, 2), S.LinearLR(o, 1.0, 0.0, 58)], [2])",
            false,
        ),
    ];
    let mut script = "import torch, json, math, warnings
warnings.simplefilter('ignore')
S = torch.optim.lr_scheduler
def rates(make, per_epoch):
    o = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    s, out = make(o), []
    for step in range(60):
        out.append(float(o.param_groups[0]['lr']))
        o.step()
        if not per_epoch or step % 5 == 4: s.step()
    print(json.dumps(out))
"
    .to_owned();
    for (_, python, per_epoch) in &cases {
        script += &format!("rates(lambda o: {python}, {})\n", if *per_epoch { "True" } else { "False" });
    }
    let printed = common::python(&script);
    let theirs: Vec<Vec<f64>> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(theirs.len(), cases.len());
    for ((text, _, _), theirs) in cases.iter().zip(theirs) {
        let ours = ours(text);
        let difference = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        println!("{text}: {difference:.1e}");
        // PyTorch multiplies rate by rate, so its own rounding adds up.
        assert!(difference < 1e-13, "{text}: {difference:e}\n{ours:?}\n{theirs:?}");
        if *text != "constant" {
            assert!(ours.iter().any(|lr| (lr - BASE).abs() > 1e-3), "{text} changes the rate");
        }
    }
}

#[test]
fn reduce_on_plateau_follows_torch_through_every_mode() {
    let metrics =
        [1.0, 0.9, 0.9, 0.95, 0.9, 0.89999, 0.5, 0.5, 0.5, 0.5, 0.6, f64::NAN, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4];
    let cases = [
        ("{plateau: {patience: 1, factor: 0.5}}", "patience=1, factor=0.5"),
        ("{plateau: {patience: 0, factor: 0.3, min_lr: 0.01}}", "patience=0, factor=0.3, min_lr=0.01"),
        ("{plateau: {patience: 2, mode: max}}", "patience=2, mode='max'"),
        ("{plateau: {patience: 1, threshold: 0.15}}", "patience=1, threshold=0.15"),
        (
            "{plateau: {patience: 1, threshold: 0.2, threshold_mode: abs, cooldown: 2}}",
            "patience=1, threshold=0.2, threshold_mode='abs', cooldown=2",
        ),
        ("plateau", ""),
    ];
    let mut script = "import torch, json
def rates(**kw):
    o = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    s, out = torch.optim.lr_scheduler.ReduceLROnPlateau(o, **kw), []
    for m in METRICS:
        s.step(m); out.append(float(o.param_groups[0]['lr']))
    print(json.dumps(out))
"
    .replace("METRICS", &format!("{metrics:?}").replace("NaN", "float('nan')"));
    for (_, python) in cases {
        script += &format!("rates({python})\n");
    }
    let printed = common::python(&script);
    for ((text, _), line) in cases.iter().zip(printed.lines()) {
        let theirs: Vec<f64> = serde_json::from_str(line).unwrap();
        let spec = decode(text);
        let mut plateau = Plateau::default();
        for (epoch, (metric, theirs)) in metrics.iter().zip(theirs).enumerate() {
            spec.observe(*metric, &mut plateau);
            // The state survives a checkpoint.
            plateau = serde_json::from_str(&serde_json::to_string(&plateau).unwrap()).unwrap();
            let lr = spec.lr(BASE, clock(0), &plateau);
            assert!((lr - theirs).abs() < 1e-15, "{text} after epoch {epoch}: {lr} here, {theirs} there");
        }
    }
}

#[test]
fn the_decay_per_epoch_is_a_staircase() {
    let rates = ours("{exponential: {gamma: 0.9}}");
    for (step, lr) in rates.iter().enumerate() {
        let epoch = step as i32 / PER_EPOCH as i32;
        assert!((lr - BASE * 0.9f64.powi(epoch)).abs() < 1e-15);
    }
}

#[test]
fn rates_stay_finite_at_and_behind_the_ends_of_a_run() {
    for name in [
        "constant",
        "cosine",
        "linear",
        "one_cycle",
        "plateau",
        "{inverse_sqrt: {gamma: 1}}",
        "{cosine: {}, warmup: {epochs: 100}}",
    ] {
        let spec = decode(name);
        for total_steps in [0, 1, 2, 3] {
            for step in [0, 1, 2, 3, 1000] {
                for steps_per_epoch in [0, 1, 2] {
                    let clock = ScheduleStep { step, steps_per_epoch, total_steps };
                    let lr = spec.lr(BASE, clock, &Plateau::default());
                    assert!(lr.is_finite() && (0.0..=BASE).contains(&lr), "{name} {clock:?}: {lr}");
                }
            }
        }
    }
}

#[test]
fn what_no_schedule_can_mean_is_refused_with_its_key() {
    let decoded = |text: &str| {
        Document::parse("c.yaml", format!("schedule: {text}")).unwrap().decode_at::<ScheduleSpec>("schedule")
    };
    for (text, path) in [
        ("{step: {step_size: 0}}", "step.step_size"),
        ("{step: {step_size: 3, gamma: -1}}", "step.gamma"),
        ("{multistep: {milestones: [3, 2]}}", "multistep.milestones"),
        ("{cosine: {min_lr: -1}}", "cosine.min_lr"),
        ("{one_cycle: {pct_start: 1.5}}", "one_cycle.pct_start"),
        ("{plateau: {factor: 1}}", "plateau.factor"),
        ("{cosine: {}, warmup: {}}", "warmup"),
        ("{cosine: {}, warmup: {steps: 3, epochs: 1}}", "warmup"),
        ("{warmup: {steps: 3, start_factor: 0}}", "warmup.start_factor"),
    ] {
        assert_eq!(decoded(text).unwrap().validate().unwrap_err().path, path, "{text}");
    }
    for (text, part) in [
        ("cosin", "cosine"),
        ("step", "step_size"),
        ("{cosin: {}}", "cosine"),
        ("{cosine: {}, linear: {}}", "choose one"),
        ("{cosine: {eta_min: 0}}", "min_lr"),
        ("{cosine: {by: batch}}", "epoch"),
        ("{cosine: {}, warmup: {epoch: 1}}", "epochs"),
        ("3", "a schedule"),
    ] {
        let error = decoded(text).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn what_is_written_back_reads_as_the_same() {
    for text in
        ["cosine", "{warmup: {steps: 3}}", "{multistep: {milestones: [1]}, warmup: {epochs: 0.5}}", "plateau"]
    {
        let spec = decode(text);
        let written = serde_json::to_value(&spec).unwrap();
        let again: ScheduleSpec = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(again, spec, "{written}");
    }
}
