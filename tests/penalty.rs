//! The penalty: closed forms, scikit-learn, finite differences, and who gets which λ.

use crate::common::lambdas;
use tch::{Kind, Tensor};
use tikhonov::optim::{OptimizerSpec, SgdSpec};
use tikhonov::penalty::{self, LambdaValues, ParamGroup, PenaltyParam, PenaltySpec};
use tikhonov::schedule::ScheduleStep;
use tikhonov::util::rng::{CounterRng, RngStream};
use tikhonov::util::yaml::Document;

use crate::common;

fn decode(text: &str) -> PenaltySpec {
    Document::parse("c.yaml", text).unwrap().decode().unwrap()
}

const START: ScheduleStep = ScheduleStep { step: 0, steps_per_epoch: 10, total_steps: 100 };

// ---------------------------------------------------------------------------------------- linear regression

/// 60 samples of 8 features, correlated and not centred; the target depends on 3 of them and has noise.
fn regression() -> (Tensor, Tensor) {
    let mut draw = CounterRng::new(11, 0, 0, RngStream::Generate);
    let values: Vec<f64> = (0..60 * 8).map(|_| draw.normal()).collect();
    let xs = Tensor::from_slice(&values).view([60, 8]);
    let xs = &xs + xs.roll([1], [1]) * 0.4 + 0.7;
    let truth = Tensor::from_slice(&[1.5, 0.0, -2.0, 0.0, 0.0, 0.8, 0.0, 0.0]);
    let noise: Vec<f64> = (0..60).map(|_| 0.3 * draw.normal()).collect();
    let ys = xs.mv(&truth) + Tensor::from_slice(&noise) + 4.0;
    (xs, ys)
}

/// (weight, bias) after full-batch steps of SGD on ½·MSE.
fn fit(penalty: &str, momentum: f64, steps: u64) -> (Tensor, f64) {
    tch::set_num_threads(1);
    let (xs, ys) = regression();
    let weight = Tensor::zeros([8], (Kind::Double, tch::Device::Cpu)).set_requires_grad(true);
    let bias = Tensor::zeros([1], (Kind::Double, tch::Device::Cpu)).set_requires_grad(true);
    let targets =
        [PenaltyParam { name: "weight", is_weight: true }, PenaltyParam { name: "bias", is_weight: false }];
    let groups = decode(penalty).assign(&targets).unwrap();
    let spec = OptimizerSpec::Sgd(SgdSpec { lr: 0.1, momentum, ..Default::default() });
    let params = vec![("weight".into(), weight.shallow_clone()), ("bias".into(), bias.shallow_clone())];
    let mut optimizer = spec.build(params, &groups).unwrap();
    let rates: Vec<LambdaValues> = groups.iter().map(|group| group.lambdas(START)).collect();
    for _ in 0..steps {
        let loss = (xs.mv(&weight) + &bias - &ys).square().mean(Kind::Double) * 0.5;
        loss.backward();
        optimizer.step(spec.lr(), &rates, None).unwrap();
    }
    (weight.detach(), bias.detach().double_value(&[0]))
}

fn list(w: &Tensor) -> Vec<f64> {
    Vec::try_from(w).unwrap()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn l2_reaches_the_closed_form_of_ridge_with_a_free_bias() {
    let lambda = 0.1;
    let (xs, ys) = regression();
    let n = xs.size()[0] as f64;
    // An unpenalised bias is the same as centred data: w = (XᵀX/n + λI)⁻¹Xᵀy/n, b = ȳ − x̄·w.
    let x_mean = xs.mean_dim([0i64].as_slice(), false, Kind::Double);
    let y_mean = ys.mean(Kind::Double);
    let (xc, yc) = (&xs - &x_mean, &ys - &y_mean);
    let gram = xc.tr().matmul(&xc) / n + Tensor::eye(8, (Kind::Double, tch::Device::Cpu)) * lambda;
    let closed = gram.inverse().mv(&xc.tr().mv(&yc)) / n;
    let closed_bias = (&y_mean - x_mean.dot(&closed)).double_value(&[]);

    for (penalty, momentum) in [("{l2: 0.1}", 0.0), ("{l2: 0.1}", 0.9), ("{decoupled: 0.1}", 0.0)] {
        let (weight, bias) = fit(penalty, momentum, 4000);
        let difference = largest_difference(&list(&weight), &list(&closed)).max((bias - closed_bias).abs());
        println!("{penalty} momentum {momentum}: {difference:.1e} from the closed form");
        assert!(difference < 1e-6, "{penalty} momentum {momentum}: {difference:e}");
    }
    // A penalised bias would end elsewhere: this data's is large.
    let (_, penalised) = fit("{groups: [{match: '*', l2: 0.1}]}", 0.9, 4000);
    assert!((penalised - closed_bias).abs() > 0.1, "{penalised} {closed_bias}");
}

#[test]
fn proximal_l1_reaches_lasso_and_elastic_net_of_scikit_learn_with_the_same_zeros() {
    let (xs, ys) = regression();
    let folder = tempfile::tempdir().unwrap();
    xs.write_npy(folder.path().join("xs.npy")).unwrap();
    ys.write_npy(folder.path().join("ys.npy")).unwrap();
    let at = folder.path().display().to_string();
    let printed = common::python(&format!(
        "import json, numpy as np
from sklearn.linear_model import ElasticNet, Lasso, Ridge
at = {at:?}
x, y = np.load(at + '/xs.npy'), np.load(at + '/ys.npy')
exact = dict(tol=1e-14, max_iter=1_000_000)
models = [Lasso(alpha=0.2, **exact), ElasticNet(alpha=0.4, l1_ratio=0.75, **exact), Ridge(alpha=0.1 * len(y))]
print(json.dumps([[*m.fit(x, y).coef_.tolist(), float(m.intercept_)] for m in models]))"
    ));
    let theirs: Vec<Vec<f64>> = serde_json::from_str(printed.trim()).unwrap();
    let penalties = ["{l1: 0.2}", "{l1: 0.3, l2: 0.1}", "{l2: 0.1}"].into_iter().zip(theirs);
    for ((penalty, theirs), momentum) in penalties.flat_map(|one| [(one.clone(), 0.0), (one, 0.9)]) {
        let (weight, bias) = fit(penalty, momentum, 8000);
        let mut ours = list(&weight);
        ours.push(bias);
        let zeros = |list: &[f64]| list.iter().map(|w| *w == 0.0).collect::<Vec<_>>();
        let difference = largest_difference(&ours, &theirs);
        let count = zeros(&ours).iter().filter(|zero| **zero).count();
        println!("{penalty} momentum {momentum}: {difference:.1e} from scikit-learn, {count} exact zeros");
        assert!(difference < 1e-5, "{penalty} momentum {momentum}: {difference:e}\n{ours:?}\n{theirs:?}");
        assert_eq!(zeros(&ours), zeros(&theirs), "{penalty}");
        assert_eq!(count >= 3, penalty.contains("l1"), "{penalty}: {ours:?}");
    }
}

// ---------------------------------------------------------------------------------------- the gradient

#[test]
fn the_gradient_of_every_penalty_form_agrees_with_finite_differences_of_its_value() {
    let w = [0.7, -1.3, 0.02, -0.4, 2.5];
    for (rates, name) in [
        (lambdas("{l2: 0.3}"), "l2"),
        (lambdas("{decoupled: 0.3}"), "decoupled"),
        (lambdas("{l1: 0.3, l1_mode: subgradient}"), "l1 subgradient"),
        (lambdas("{l1: 0.3}"), "l1 proximal"),
        (lambdas("{l1: 0.3, l2: 0.2, l1_mode: subgradient}"), "elastic net, subgradient"),
        (lambdas("{l1: 0.3, l2: 0.2}"), "elastic net, proximal"),
        (lambdas("{l1: 0.3, decoupled: 0.2}"), "l1 with decoupled decay"),
    ] {
        // A small step without data moves by −η times the penalty's gradient.
        let lr = 1e-5;
        let param = Tensor::from_slice(&w).set_requires_grad(true);
        let target = [PenaltyParam { name: "w", is_weight: true }];
        let groups = PenaltySpec::default().assign(&target).unwrap();
        let spec = OptimizerSpec::Sgd(SgdSpec::default());
        let mut optimizer = spec.build(vec![("w".into(), param.shallow_clone())], &groups).unwrap();
        (&param * 0.0).sum(Kind::Double).backward();
        optimizer.step(lr, &[rates], None).unwrap();
        let moved = list(&param.detach());

        for i in 0..w.len() {
            let at = |shift: f64| {
                let mut near = w;
                near[i] += shift;
                rates.value(&[&Tensor::from_slice(&near)], 0.0).unwrap().double_value(&[])
            };
            let h = 1e-6;
            let numeric = (at(h) - at(-h)) / (2.0 * h);
            let analytic = (w[i] - moved[i]) / lr;
            // A threshold after decay sees weights that are η·λ smaller: an error of order η.
            assert!((numeric - analytic).abs() < 1e-8 + lr, "{name}: {numeric} and {analytic} at {}", w[i]);
            assert!(analytic.abs() > 1e-3, "{name} acts");
        }
    }
}

#[test]
fn the_value_is_the_sum_over_all_tensors() {
    let a = Tensor::from_slice(&[1.0f32, -2.0]);
    let b = Tensor::from_slice(&[[3.0f32], [0.0]].concat()).view([2, 1]);
    let rates = lambdas("{l1: 0.5, l2: 0.1}");
    let value = rates.value(&[&a, &b], 0.0).unwrap();
    assert_eq!((value.kind(), value.dim()), (Kind::Double, 0));
    assert!((value.double_value(&[]) - (0.5 * 6.0 + 0.05 * 14.0)).abs() < 1e-12);
    assert_eq!(rates.value(&[], 0.0).unwrap().double_value(&[]), 0.0);
    assert!((penalty::norm(&[&a, &b]).unwrap().double_value(&[]) - 14f64.sqrt()).abs() < 1e-6);
    assert_eq!(penalty::zeros(&[&a, &b]).unwrap().double_value(&[]), 0.25);
    // Weights that record gradients make a value that does not.
    let w = Tensor::from_slice(&[1.0]).set_requires_grad(true);
    assert!(!rates.value(&[&w], 0.0).unwrap().requires_grad());
}

#[test]
fn the_soft_threshold_makes_positive_zeros_keeps_nan_and_follows_the_scheduled_rate() {
    let param =
        Tensor::from_slice(&[0.5, -0.5, 0.05, -0.05, 0.1, 0.0, -0.0, f64::NAN]).set_requires_grad(true);
    let groups = PenaltySpec::default().assign(&[PenaltyParam { name: "w", is_weight: true }]).unwrap();
    for optimizer in ["\"sgd\"", "\"adam\""] {
        let spec: OptimizerSpec = serde_json::from_str(optimizer).unwrap();
        let own = param.detach().copy().set_requires_grad(true);
        let mut optimizer = spec.build(vec![("w".into(), own.shallow_clone())], &groups).unwrap();
        (&own * 0.0).sum(Kind::Double).backward();
        // η = 0.5, whatever `lr` the spec has: the threshold is 0.5·0.2 = 0.1.
        optimizer.step(0.5, &[lambdas("{l1: 0.2}")], None).unwrap();
        let after = list(&own.detach());
        assert!(largest_difference(&after[..2], &[0.4, -0.4]) < 1e-15);
        assert!(after[2..7].iter().all(|w| w.to_bits() == 0), "{after:?}");
        assert!(after[7].is_nan());
    }
}

// ---------------------------------------------------------------------------------------- groups and λ

const NAMES: [(&str, bool); 7] = [
    ("conv1.weight", true),
    ("bn1.weight", false),
    ("bn1.bias", false),
    ("layer4.0.conv1.weight", true),
    ("layer4.0.bn1.weight", false),
    ("fc.weight", true),
    ("fc.bias", false),
];

fn targets() -> Vec<PenaltyParam<'static>> {
    NAMES.iter().map(|&(name, decays)| PenaltyParam { name, is_weight: decays }).collect()
}

/// (label, members, l2, decoupled, l1) of each group.
fn assigned(text: &str) -> Vec<(String, Vec<usize>, f64, f64, f64)> {
    let spec = decode(text);
    spec.validate().unwrap();
    let row = |group: ParamGroup| {
        let rates = group.lambdas(START);
        (group.label, group.param_indices, rates.get("l2"), rates.get("decoupled"), rates.get("l1"))
    };
    spec.assign(&targets()).unwrap().into_iter().map(row).collect()
}

fn row(
    label: &str,
    members: &[usize],
    l2: f64,
    decoupled: f64,
    l1: f64,
) -> (String, Vec<usize>, f64, f64, f64) {
    (label.into(), members.to_vec(), l2, decoupled, l1)
}

#[test]
fn biases_and_normalisation_get_no_penalty_unless_a_group_says_so() {
    assert_eq!(
        assigned("{l2: 0.1, l1: 0.2}"),
        [row("weights", &[0, 3, 5], 0.1, 0.0, 0.2), row("others", &[1, 2, 4, 6], 0.0, 0.0, 0.0),]
    );
    assert_eq!(
        assigned("{l2: 0.1, groups: [{match: fc.bias, l2: 0.3}]}"),
        [
            row("fc.bias", &[6], 0.3, 0.0, 0.0),
            row("weights", &[0, 3, 5], 0.1, 0.0, 0.0),
            row("others", &[1, 2, 4], 0.0, 0.0, 0.0),
        ]
    );
}

#[test]
fn the_first_matching_group_wins_and_the_rest_is_inherited() {
    let text = "{l2: 0.1, l1: 0.2, groups: [{match: '*.bn?.*', l2: 0}, {match: 'layer4.*', l2: 0.5}, {match: 'fc.*', l1: 0}]}";
    assert_eq!(
        assigned(text),
        [
            // layer4.0.bn1.weight: no weight, so λ₁ is not inherited.
            row("*.bn?.*", &[4], 0.0, 0.0, 0.0),
            row("layer4.*", &[3], 0.5, 0.0, 0.2),
            row("fc.*", &[5], 0.1, 0.0, 0.0),
            row("fc.* (others)", &[6], 0.0, 0.0, 0.0),
            row("weights", &[0], 0.1, 0.0, 0.2),
            row("others", &[1, 2], 0.0, 0.0, 0.0),
        ]
    );
    // What a group states holds for all that it matches; equal rates make one group.
    assert_eq!(
        assigned("{l2: 0.1, groups: [{match: '*', l2: 0.5}]}"),
        [row("*", &[0, 1, 2, 3, 4, 5, 6], 0.5, 0.0, 0.0)]
    );
}

#[test]
fn a_group_that_states_one_form_of_decay_does_not_inherit_the_other() {
    assert_eq!(
        assigned("{decoupled: 0.1, groups: [{match: fc.weight, l2: 0.5}]}"),
        [
            row("fc.weight", &[5], 0.5, 0.0, 0.0),
            row("weights", &[0, 3], 0.0, 0.1, 0.0),
            row("others", &[1, 2, 4, 6], 0.0, 0.0, 0.0),
        ]
    );
}

#[test]
fn a_pattern_that_gets_no_parameter_is_refused_with_the_nearest_names() {
    for (text, path, parts) in [
        (
            "{groups: [{match: 'layr4.*', l2: 1}]}",
            "groups.0.match",
            &["layr4.*", "layer4.0.conv1.weight"][..],
        ),
        ("{groups: [{match: '*', l2: 1}, {match: fc.wieght, l2: 1}]}", "groups.1.match", &["fc.weight"]),
        (
            "{groups: [{match: 'fc.*', l2: 1}, {match: fc.bias, l2: 0}]}",
            "groups.1.match",
            &["fc.bias", "earlier"],
        ),
    ] {
        let invalid = decode(text).assign(&targets()).unwrap_err();
        assert_eq!(invalid.path, path, "{text}");
        assert!(parts.iter().all(|part| invalid.message.contains(part)), "{text}: {}", invalid.message);
    }
}

#[test]
fn every_parameter_is_in_exactly_one_group() {
    for text in ["{}", "{l2: 1}", "{l2: 1, groups: [{match: '*bn*', l1: 1}, {match: 'fc.*', decoupled: 1}]}"]
    {
        let mut all: Vec<_> = assigned(text).into_iter().flat_map(|group| group.1).collect();
        all.sort();
        assert_eq!(all, (0..NAMES.len()).collect::<Vec<_>>(), "{text}");
    }
}

#[test]
fn lambda_follows_its_schedule() {
    let at = |text: &str, step: u64| {
        let groups = decode(text).assign(&[PenaltyParam { name: "w", is_weight: true }]).unwrap();
        groups[0].lambdas(ScheduleStep { step, ..START }).get("l2")
    };
    for (text, expected) in [
        ("{l2: {start: 0, end: 1}}", [0.0, 0.5, 1.0]),
        ("{l2: {start: 0, end: 1, epochs: 5}}", [0.0, 1.0, 1.0]),
        ("{l2: {start: 1, end: 0, steps: 200}}", [1.0, 0.75, 0.5]),
        (
            "{l2: {start: 0, end: 1, epochs: 20, curve: cosine}}",
            [0.0, (1.0 - (0.25 * std::f64::consts::PI).cos()) / 2.0, 0.5],
        ),
        ("{l2: {start: 1e-4, end: 1e-2, curve: exponential}}", [1e-4, 1e-3, 1e-2]),
    ] {
        for (step, expected) in [0, 50, 100].into_iter().zip(expected) {
            assert!((at(text, step) - expected).abs() < 1e-12, "{text} at {step}: {}", at(text, step));
        }
    }
}

#[test]
fn lambdas_that_mean_nothing_are_refused_with_their_key() {
    for (text, path) in [
        ("{l2: -1}", "l2"),
        ("{l1: -0.1}", "l1"),
        ("{decoupled: {start: 0, end: -1}}", "decoupled.end"),
        ("{l1: {start: 0, end: 1, curve: exponential}}", "l1.curve"),
        ("{l2: {start: 0, end: 1, epochs: 1, steps: 1}}", "l2"),
        ("{l2: 1, decoupled: 1}", "decoupled"),
        ("{groups: [{match: a, l2: 1}, {match: b, l2: -1}]}", "groups.1.l2"),
        ("{groups: [{match: a, l2: 1, decoupled: 1}]}", "groups.0.decoupled"),
        ("{groups: [{match: a}]}", "groups.0"),
        ("{l2: 0.1, decoupled_mode: cautious}", "decoupled_mode"),
        ("{l2: 0.1, l1_mode: subgradient}", "l1_mode"),
        ("{l2: 0.1, groups: [{match: a, decoupled_mode: relative}]}", "groups.0.decoupled_mode"),
        (
            "{decoupled: 0.1, groups: [{match: a, l2: 0.1, decoupled_mode: relative}]}",
            "groups.0.decoupled_mode",
        ),
        ("{decoupled: 0.1, groups: [{match: a, l1_mode: subgradient}]}", "groups.0.l1_mode"),
        ("{groups: [{match: a, l2: auto}], l1: 1, l1_mode: preconditioned}", "groups.0.l2"),
        ("{decoupled: auto, decoupled_mode: accumulated}", "decoupled"),
    ] {
        assert_eq!(decode(text).validate().unwrap_err().path, path, "{text}");
    }
    // A mode is of the groups' λs too, and a group's of the λ that it inherits.
    for text in [
        "{decoupled_mode: cautious, groups: [{match: a, decoupled: 0.1}]}",
        "{l1_mode: subgradient, groups: [{match: a, l1: 0}]}",
        "{decoupled: 0, l1: 1, groups: [{match: a, decoupled_mode: relative, l1_mode: preconditioned}]}",
    ] {
        decode(text).validate().unwrap();
    }
    for bad in [f64::NAN, f64::INFINITY] {
        let spec = PenaltySpec { l2: Some(tikhonov::penalty::Lambda::Constant(bad)), ..Default::default() };
        assert_eq!(spec.validate().unwrap_err().path, "l2");
    }
    for (text, part) in [
        ("{l2: .nan}", "l2"),
        ("{l1: .inf}", "l1"),
        ("{l2: much}", "a number of at least 0"),
        ("{l3: 1}", "l3"),
        ("{l2: {start: 1, stop: 2}}", "stop"),
        ("{groups: [{l2: 1}]}", "match"),
        ("{l1: 1, l1_mode: soft}", "proximal"),
    ] {
        let error = Document::parse("c.yaml", text)
            .and_then(|document| document.decode::<PenaltySpec>())
            .unwrap_err();
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
}

#[test]
fn what_is_written_back_reads_as_the_same() {
    for text in [
        "{}",
        "{l2: 0.1}",
        "{l1: {start: 0, end: 1, epochs: 5}, l1_mode: subgradient, groups: [{match: a, l2: 0}]}",
    ] {
        let spec = decode(text);
        let again: PenaltySpec = serde_json::from_value(serde_json::to_value(&spec).unwrap()).unwrap();
        assert_eq!(again, spec);
    }
}

/// The weights 0 and 1 of a linear map without a bias after `steps` steps on ½·MSE of one sample.
fn trained(sample: &str, steps: u32, optimizer: &str, penalty: &str, schedule: &str) -> [f64; 2] {
    let home = tempfile::tempdir().unwrap();
    let at = home.path().display();
    std::fs::write(home.path().join("table.csv"), format!("a,b,y\n{sample}\n")).unwrap();
    let weight = Tensor::from_slice(&[0.0, 1.0]).view([1, 2]);
    Tensor::write_safetensors(&[("linear.weight", weight)], home.path().join("w.safetensors")).unwrap();
    let config = format!(
        "device: cpu
dtype: float64
model: {{name: linear, args: {{features: 2, bias: false}}, init_from: {{file: {at}/w.safetensors}}}}
task: {{regression: {{loss: half_mse}}}}
data: {{train: {{csv: {{file: {at}/table.csv, target: y}}}}, batch_size: 1, normalize: none}}
penalty: {penalty}
optimizer: {optimizer}
schedule: {schedule}
train: {{epochs: {steps}}}
"
    );
    let config = common::write_config(home.path(), &config);
    common::succeeds(&["train", &config, "--quiet", "--output", &format!("{at}/run")]);
    let table = std::fs::read_to_string(home.path().join("run/coefficients.csv")).unwrap();
    ["a", "b"].map(|name| {
        let mut lines = table.lines().map(|line| line.split(',').collect::<Vec<_>>());
        lines.find(|cells| cells[1] == name).unwrap()[2].parse().unwrap()
    })
}

#[test]
fn what_a_penalty_takes_of_weights_that_the_data_says_nothing_of_is_its_closed_form() {
    let halved = "{exponential: {gamma: 0.5}}";
    // (optimiser, penalty, schedule, what is left of 1)
    let cases = [
        ("{sgd: {lr: 0.1}}", "{l1: 0.5, l1_mode: subgradient}", "constant", 1.0 - 3.0 * 0.05),
        ("{sgd: {lr: 0.1}}", "{l1: 0.5}", halved, 1.0 - 0.05 * 1.75),
        // Momentum has a steady gradient act (1 − dampening)/(1 − momentum) times over.
        ("{sgd: {lr: 0.1, momentum: 0.5, dampening: 0.2}}", "{l1: 0.5}", "constant", 1.0 - 3.0 * 0.08),
        ("{sgd: {lr: 0.1}}", "{l2: 0.5}", halved, 0.95 * 0.975 * 0.9875),
        ("{sgd: {lr: 0.1}}", "{decoupled: 0.5}", halved, 0.95 * 0.975 * 0.9875),
        ("{adam: {lr: 0.1}}", "{decoupled: 0.5}", halved, 0.95 * 0.975 * 0.9875),
        ("{rmsprop: {lr: 0.1}}", "{decoupled: 0.5}", halved, 0.95 * 0.975 * 0.9875),
        ("{sgd: {lr: 0.1}}", "{decoupled: 0.5, decoupled_mode: relative}", halved, 0.5 * 0.75 * 0.875),
        // Where the rate rises to its peak: half of it, two thirds, five sixths.
        (
            "{sgd: {lr: 0.1}}",
            "{decoupled: 0.5, decoupled_mode: relative}",
            "{linear: {start_factor: 0.5, end_factor: 1}}",
            0.75 * (2.0 / 3.0) * (7.0 / 12.0),
        ),
        // A weight that a step does not move decays.
        ("{sgd: {lr: 0.1}}", "{decoupled: 0.5, decoupled_mode: cautious}", halved, 0.95 * 0.975 * 0.9875),
        (
            "{adamw: {lr: 0.1}}",
            "{decoupled: 0.5, decoupled_mode: accumulated}",
            halved,
            0.95 * 0.975 * 0.9875,
        ),
    ];
    for (optimizer, penalty, schedule, wanted) in cases {
        let [zero, one] = trained("0,0,0", 3, optimizer, penalty, schedule);
        assert_eq!(zero, 0.0, "{optimizer} {penalty}: 0 has no sign");
        assert!((one - wanted).abs() < 1e-14, "{optimizer} {penalty} {schedule}: {one}, not {wanted}");
    }
}

#[test]
fn a_preconditioned_threshold_is_scaled_as_the_first_step_of_each_optimizer() {
    // (optimiser, the root that a gradient of 1 is divided by in the first step, ε included)
    let cases = [
        ("{adam: {lr: 0.01, eps: 0.1}}", 1.1),
        ("{adam: {lr: 0.01, eps: 0.1, amsgrad: true}}", 1.1),
        ("{adagrad: {lr: 0.01, eps: 0.1, lr_decay: 0.5}}", 1.1),
        ("{rmsprop: {lr: 0.01, alpha: 0.75, eps: 0.1}}", 0.6),
        // The mean of the gradient is a quarter of it: 1/4 − 1/16.
        ("{rmsprop: {lr: 0.01, alpha: 0.75, eps: 0.1, centered: true}}", 0.1875f64.sqrt() + 0.1),
    ];
    for (optimizer, root) in cases {
        let [zero, one] = trained("0,1,0", 1, optimizer, "{l1: 0.5, l1_mode: preconditioned}", "constant");
        // The gradient of ½·w² at 1 is 1.
        let wanted = 1.0 - 0.01 * (1.0 + 0.5) / root;
        assert_eq!(zero, 0.0, "{optimizer}");
        assert!((one - wanted).abs() < 1e-12, "{optimizer}: {one}, not {wanted}");
    }
}
