//! The forms of penalty one by one: optima of skglm and closed forms with their zeros, finite differences of the
//! value, the derivative by λ, the log, and a resume.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};
use tikhonov::optim::{Optimizer, OptimizerSpec, StepOptions};
use tikhonov::penalty::{LambdaValues, PenaltyParam, PenaltySpec};
use tikhonov::schedule::ScheduleStep;

use crate::common::{noise, python, records, run, saved, succeeds, write_config};

const START: ScheduleStep = ScheduleStep { step: 0, steps_per_epoch: 1, total_steps: 1 };

/// 60 samples of 8 correlated features.
fn features() -> Tensor {
    let xs = noise(&[60, 8], 1.0);
    &xs + xs.roll([1], [1]) * 0.3
}

/// An optimiser of one weight under `penalty`, with its λs.
fn single(weight: &Tensor, optimizer: &str, penalty: &str) -> (Optimizer, Vec<LambdaValues>) {
    let spec: PenaltySpec = serde_yaml::from_str(penalty).unwrap();
    spec.validate().unwrap();
    let groups = spec.assign(&[PenaltyParam { name: "w", is_weight: true }]).unwrap();
    let optimizer: OptimizerSpec = serde_yaml::from_str(optimizer).unwrap();
    let built = optimizer.build(vec![("w".into(), weight.shallow_clone())], &groups).unwrap();
    (built, groups.iter().map(|group| group.lambdas(START)).collect())
}

/// The weights `[outputs, 8]` after full-batch steps of SGD on ½·MSE over all outputs.
fn fit(xs: &Tensor, ys: &Tensor, penalty: &str, lr: f64, momentum: f64) -> Vec<f64> {
    tch::set_num_threads(1);
    let weight =
        Tensor::zeros([ys.size()[1], xs.size()[1]], (Kind::Double, Device::Cpu)).set_requires_grad(true);
    let (mut steps, values) = single(&weight, &format!("{{sgd: {{momentum: {momentum}}}}}"), penalty);
    for _ in 0..6000 {
        ((xs.matmul(&weight.tr()) - ys).square().mean(Kind::Double) * 0.5).backward();
        steps.step(lr, &values, None).unwrap();
    }
    list(&weight)
}

fn list(w: &Tensor) -> Vec<f64> {
    Vec::try_from(w.detach().to_kind(Kind::Double).contiguous().view(-1)).unwrap()
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Equal to `bound`, with the same zeros.
fn is_optimum(what: &str, ours: &[f64], theirs: &[f64], bound: f64) {
    assert!(apart(ours, theirs) < bound, "{what}: {:e}\n{ours:?}\n{theirs:?}", apart(ours, theirs));
    let zeros = |list: &[f64]| list.iter().map(|w| *w == 0.0).collect::<Vec<_>>();
    assert_eq!(zeros(ours), zeros(theirs), "{what}");
}

/// One step without data: only the penalty acts.
fn acted(weight: &Tensor, penalty: &str, lr: f64) -> Tensor {
    let own = weight.copy().set_requires_grad(true);
    let (mut optimizer, values) = single(&own, "sgd", penalty);
    (&own * 0.0).sum(Kind::Double).backward();
    optimizer.step(lr, &values, None).unwrap();
    own.detach()
}

// The numbers of skglm 0.5, tol=1e-13, made by:
//
// import numpy as np
// from skglm import GeneralizedLinearEstimator as GLE
// from skglm.datafits import Quadratic, QuadraticGroup
// from skglm.penalties import MCPenalty, SCAD, WeightedL1GroupL2
// from skglm.solvers import AndersonCD, GroupBCD
// from skglm.utils.data import grp_converter
// def noise(size, salt):
//     u = np.sin(np.arange(np.prod(size)) * 12.9898 + salt) * 43758.5453
//     return ((u - np.floor(u)) * 2 - 1).reshape(size)
// x = noise((60, 8), 1.0) + 0.3 * np.roll(noise((60, 8), 1.0), 1, 1)
// y = x @ np.array([1.5, 0, -2.0, 0, 0.15, 0.8, 0, 0.3]) + 0.3 * noise((60,), 2.0)
// for penalty in [MCPenalty(0.05, 3.0), MCPenalty(0.05, 10.0), SCAD(0.05, 3.7), SCAD(0.05, 8.0)]:
//     GLE(Quadratic(), penalty, AndersonCD(tol=1e-13, fit_intercept=False, max_iter=1000)).fit(x, y).coef_
// t = noise((8, 3), 3.0); t[[1, 4, 5, 7]] = 0; t[0, 1] = 0
// ys = x @ t + 0.3 * noise((60, 3), 4.0)
// indices, ptr = grp_converter([[g, g + 8, g + 16] for g in range(8)], 24)
// penalty = WeightedL1GroupL2(1.0, np.full(8, 0.024 * 3 ** 0.5), np.full(24, 0.016), ptr, indices)
// solver = GroupBCD(tol=1e-13, fit_intercept=False, max_iter=5000, ws_strategy="fixpoint")
// GLE(QuadraticGroup(ptr, indices), penalty, solver).fit(np.kron(np.eye(3), x), ys.T.ravel()).coef_
const CONCAVE: [(&str, [f64; 8]); 4] = [
    (
        "{mcp: 0.05}",
        [1.45455144307, 0.0, -1.97139217668, 0.0, 0.156396924519, 0.850642291323, 0.0, 0.22748204036],
    ),
    (
        "{mcp: 0.05, mcp_gamma: 10}",
        [1.50197910293, 0.0, -1.99537620722, 0.0, 0.0, 0.933963294104, 0.0, 0.0999678276328],
    ),
    ("{scad: 0.05}", [1.46951041093, 0.0, -2.0121138923, 0.0, 0.0, 0.894896109645, 0.0, 0.214342457843]),
    (
        "{scad: 0.05, scad_gamma: 8}",
        [1.50590120068, 0.0, -1.99335435685, 0.0, 0.0, 0.938682465306, 0.0, 0.0861517958752],
    ),
];
#[rustfmt::skip]
const SPARSE_GROUP: [f64; 24] = [
    -0.2535549191, 0.0, 0.6142198523, 0.2584327398, 0.0, 0.0, 0.402052501, 0.0,
    0.0, 0.0, -0.5601513076, -0.4484460632, 0.0, 0.0, -0.2738135822, 0.0,
    -0.3659661286, 0.0, 0.0, 0.0, 0.0, 0.0, -0.3893889344, 0.0,
];

#[test]
fn mcp_and_scad_reach_the_optimum_of_skglm_with_the_same_zeros() {
    let xs = features();
    let truth = Tensor::from_slice(&[1.5, 0.0, -2.0, 0.0, 0.15, 0.8, 0.0, 0.3]);
    let ys = (xs.mv(&truth) + noise(&[60], 2.0) * 0.3).view([60, 1]);
    for (penalty, theirs) in CONCAVE {
        for (lr, momentum) in [(1.0, 0.0), (0.1, 0.9)] {
            // At their default γ the objective has several minima here: momentum finds another than coordinate descent.
            if momentum > 0.0 && !penalty.contains("gamma") {
                continue;
            }
            let ours = fit(&xs, &ys, penalty, lr, momentum);
            is_optimum(&format!("{penalty}, momentum {momentum}"), &ours, &theirs, 1e-8);
        }
    }
}

#[test]
fn l1_with_group_lasso_is_the_sparse_group_lasso_of_skglm_with_the_same_zeros() {
    let xs = features();
    let truth = noise(&[8, 3], 3.0);
    for feature in [1, 4, 5, 7] {
        let _ = truth.get(feature).zero_();
    }
    let _ = truth.get(0).get(1).zero_();
    let ys = xs.matmul(&truth) + noise(&[60, 3], 4.0) * 0.3;
    for (lr, momentum) in [(1.0, 0.0), (0.1, 0.9)] {
        let penalty = "{l1: 0.016, group_lasso: 0.024, group_lasso_mode: input_channels}";
        let ours = fit(&xs, &ys, penalty, lr, momentum);
        is_optimum(&format!("momentum {momentum}"), &ours, &SPARSE_GROUP, 1e-8);
    }
}

#[test]
fn the_nuclear_norm_and_a_bound_on_the_spectrum_reach_their_closed_forms() {
    // Where XᵀX/n is the identity, the optimum is a function of the singular values of XᵀY/n.
    let (xs, _) = Tensor::linalg_qr(&noise(&[60, 8], 1.0), "reduced");
    let xs = xs * 60f64.sqrt();
    let ys = xs.matmul(&noise(&[8, 3], 5.0)) + noise(&[60, 3], 6.0) * 0.5;
    let (u, s, v) = (ys.tr().matmul(&xs) / 60.0).svd(true, true);
    let optimum = |s: Tensor| list(&u.matmul(&s.diag(0)).matmul(&v.tr()));
    // The loss is the mean over three outputs too.
    let lambda = 0.5 * (s.double_value(&[1]) + s.double_value(&[2])) / 3.0;
    let soft = optimum((&s - 3.0 * lambda).clamp_min(0.0));
    let bound = 0.5 * (s.double_value(&[0]) + s.double_value(&[1]));
    let clipped = optimum(s.clamp_max(bound));
    for (lr, momentum) in [(2.0, 0.0), (0.3, 0.9)] {
        for (penalty, wanted) in [
            (format!("{{nuclear_norm: {lambda}}}"), &soft),
            (format!("{{max_spectral_norm: {bound}}}"), &clipped),
        ] {
            let ours = fit(&xs, &ys, &penalty, lr, momentum);
            assert!(apart(&ours, wanted) < 1e-7, "{penalty} momentum {momentum}: {:e}", apart(&ours, wanted));
            let rank = Tensor::from_slice(&ours).view([3, 8]).svd(true, true).1.gt(1e-12).sum(Kind::Int64);
            let wanted = if penalty.contains("nuclear") { 2 } else { 3 };
            assert_eq!(rank.int64_value(&[]), wanted, "{penalty}");
        }
    }
}

#[test]
fn constraints_on_norms_project_each_filter_and_reach_the_constrained_optimum() {
    let weight = Tensor::from_slice(&[3.0, 4.0, 0.3, 0.4, 0.0, 0.0]).view([3, 2]);
    assert!(apart(&list(&acted(&weight, "{max_norm: 1}", 0.1)), &[0.6, 0.8, 0.3, 0.4, 0.0, 0.0]) < 1e-15);
    assert!(apart(&list(&acted(&weight, "{unit_norm: 1}", 0.1)), &[0.6, 0.8, 0.6, 0.8, 0.0, 0.0]) < 1e-15);
    // Where the bound holds the bits stay.
    let kernel = noise(&[4, 3, 3, 3], 2.0);
    assert!(acted(&kernel, "{max_norm: 100, max_spectral_norm: 100}", 0.1).equal(&kernel));
    let norms = acted(&kernel, "{max_norm: 1.5}", 0.1).flatten(1, -1).square().sum_dim_intlist(
        1,
        false,
        Kind::Double,
    );
    assert!((norms.sqrt() - 1.5).abs().max().double_value(&[]) < 1e-12);

    // ‖w‖ ≤ 1 binds: w = (XᵀX/n + μI)⁻¹Xᵀy/n with the μ that makes ‖w‖ = 1, by bisection.
    let xs = features();
    let ys = xs.mv(&Tensor::from_slice(&[1.5, 0.0, -2.0, 0.0, 0.15, 0.8, 0.0, 0.3])).view([60, 1]);
    let (gram, moment) = (xs.tr().matmul(&xs) / 60.0, xs.tr().matmul(&ys) / 60.0);
    let ridge =
        |mu: f64| (&gram + Tensor::eye(8, (Kind::Double, Device::Cpu)) * mu).inverse().matmul(&moment);
    let (mut low, mut high) = (0.0, 10.0);
    for _ in 0..100 {
        let middle = 0.5 * (low + high);
        if ridge(middle).norm().double_value(&[]) > 1.0 { low = middle } else { high = middle }
    }
    for (lr, momentum) in [(1.0, 0.0), (0.1, 0.9)] {
        let ours = fit(&xs, &ys, "{max_norm: 1}", lr, momentum);
        // Momentum is not projected, so that its last digits come later.
        assert!(
            apart(&ours, &list(&ridge(low))) < 1e-6,
            "momentum {momentum}: {:e}",
            apart(&ours, &list(&ridge(low)))
        );
    }
}

/// Forms that are a part of the gradient.
const GRADIENTS: [&str; 6] = [
    "{hoyer_square: 0.3}",
    "{hoyer_square: 0.3, hoyer_square_mode: filters}",
    "{hoyer_square: 0.3, hoyer_square_mode: input_channels}",
    "{soft_orthogonality: 0.3}",
    "{spectral_norm: 0.3}",
    "{l2_sp: 0.3}",
];

/// The optimiser of a weight that began at 0.1 everywhere.
fn begun(weight: &Tensor, optimizer: &str, penalty: &str) -> (Optimizer, Vec<LambdaValues>) {
    let (mut built, values) = single(weight, optimizer, penalty);
    let spec: PenaltySpec = serde_yaml::from_str(penalty).unwrap();
    let groups = spec.assign(&[PenaltyParam { name: "w", is_weight: true }]).unwrap();
    let now = weight.detach().copy();
    let _ = weight.detach().fill_(0.1);
    built.keep_initial(&groups, |_| true).unwrap();
    weight.detach().copy_(&now);
    (built, values)
}

#[test]
fn the_gradient_of_each_form_agrees_with_finite_differences_of_its_value() {
    for (shape, salt) in [(&[3i64, 2, 2, 2][..], 1.0), (&[6, 2], 2.0), (&[5], 3.0)] {
        for penalty in GRADIENTS {
            let (weight, lr) = (noise(shape, salt), 1e-6);
            let own = weight.copy().set_requires_grad(true);
            let (mut optimizer, values) = begun(&own, "sgd", penalty);
            (&own * 0.0).sum(Kind::Double).backward();
            optimizer.step(lr, &values, None).unwrap();
            let moved = (&weight - own.detach()) / lr;
            let initial = Tensor::full(shape, 0.1, (Kind::Double, Device::Cpu));
            for i in 0..weight.numel() as i64 {
                let at = |shift: f64| {
                    let near = weight.copy();
                    let _ = near.view(-1).get(i).g_add_scalar_(shift);
                    let initial = optimizer.initial()[0].is_some().then_some(&initial);
                    values[0].value_from(&[&near], &[initial], 0.0).unwrap().double_value(&[])
                };
                let numeric = (at(1e-6) - at(-1e-6)) / 2e-6;
                let analytic = moved.view(-1).double_value(&[i]);
                assert!(
                    (numeric - analytic).abs() < 1e-7,
                    "{penalty} {shape:?}: {numeric} and {analytic} at {i}"
                );
            }
        }
    }
}

#[test]
fn the_derivative_of_a_step_by_lambda_is_that_of_finite_differences() {
    for optimizer in [
        "{sgd: {momentum: 0.9, nesterov: true}}",
        "{adam: {eps: 1e-3}}",
        "{rmsprop: {eps: 1e-3}}",
        "{nadam: {eps: 1e-3}}",
        "{radam: {eps: 1e-3}}",
    ] {
        for penalty in GRADIENTS {
            // The weight after eight steps, the last with λ·factor, and ∂w′/∂λ of the last.
            let eight = |factor: f64| {
                let own = noise(&[4, 3], 1.0).set_requires_grad(true);
                let (mut steps, mut values) = begun(&own, optimizer, penalty);
                let mut derivative = None;
                for step in 0..8 {
                    (&own * noise(&[4, 3], 7.0 + f64::from(step))).sum(Kind::Double).backward();
                    let key = penalty[1..].split(':').next().unwrap();
                    if step == 7 {
                        values[0] = values[0].with(key, 0.3 * factor);
                    }
                    let options =
                        StepOptions { lr: 0.05, lambdas: &values, differentiate: &[0], ..Default::default() };
                    derivative = steps.step_with(&options).unwrap().lambda_gradients[0].pop();
                }
                (own.detach(), derivative.unwrap().tensor)
            };
            let (_, derivative) = eight(1.0);
            let numeric = (eight(1.0001).0 - eight(0.9999).0) / (0.3 * 2e-4);
            let apart = (&derivative - &numeric).abs().max().double_value(&[]);
            let size = derivative.abs().max().double_value(&[]);
            assert!(apart < 1e-6 * size.max(1e-3) + 1e-9, "{optimizer} {penalty}: {apart:e} of {size:e}");
            assert!(size > 1e-4, "{optimizer} {penalty} acts");
        }
    }
}

#[test]
fn what_has_no_meaning_is_refused_with_its_key() {
    let invalid = |text: &str| {
        let spec = serde_yaml::from_str::<PenaltySpec>(text);
        spec.map_or_else(|error| error.to_string(), |spec| spec.validate().unwrap_err().to_string())
    };
    for (text, words) in [
        ("{l1: 0.1, mcp: 0.1}", &["mcp", "l1", "two ways"][..]),
        ("{l2: 0.1, l2_sp: 0.1}", &["l2_sp", "l2"]),
        ("{max_norm: 1, unit_norm: 1}", &["unit_norm", "max_norm"]),
        ("{mcp: 0.1, mcp_gamma: 1}", &["γ is 1", "above 1"]),
        ("{scad: 0.1, scad_gamma: 2}", &["γ is 2", "above 2"]),
        ("{l1: 0.1, scad_gamma: 3}", &["scad_gamma", "scad"]),
        ("{max_norm: auto}", &["max_norm", "hoyer_square"]),
        ("{l2: auto, nuclear_norm: 0.1}", &["nuclear_norm", "auto"]),
    ] {
        let message = invalid(text);
        assert!(words.iter().all(|word| message.contains(word)), "{text}: {message}");
    }
    let home = tempfile::tempdir().unwrap();
    let small = "device: cpu\nmodel: {name: mlp}\ntask: classification\ndata: {train: {shapes: {count: 20, size: 16}}}\n\
                 train: {epochs: 1}\noptimizer: {sgd: {lr: 0.5, momentum: 0.9}}\n";
    for (lines, words) in [
        ("penalty: {mcp: 0.1}", &["penalty.mcp", "below 3", "momentum"][..]),
        ("penalty: {l2_sp: 0.1}", &["penalty.l2_sp", "init_from"]),
        ("penalty: {groups: [{match: '*', l2_sp: 0.1}]}", &["penalty.groups.0.l2_sp"]),
    ] {
        let config = write_config(home.path(), &format!("{small}{lines}\n"));
        let (code, _, stderr) =
            run(&["train", &config, "--output", home.path().join("run").to_str().unwrap()]);
        assert_eq!(code, 2, "{lines}: {stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{lines}: {stderr}");
    }
}

/// The penalty of docs/penalties.md over the weights of `model.safetensors`, in NumPy.
const LOGGED: &str = "
import json, numpy as np
from safetensors.numpy import load_file
now, first = load_file(run + '/checkpoints/last/model.safetensors'), load_file(start)
w = lambda name: now[name].astype(np.float64).reshape(len(now[name]), -1)
s = lambda name: np.linalg.svd(w(name), compute_uv=False)
conv, fc, head = names
a = np.abs(w(fc)).ravel()
c = np.minimum(a, 3 * 0.001)
total = 0.01 / 2 * ((w(conv) - first[conv].reshape(w(conv).shape)) ** 2).sum() + 0.001 * s(conv).sum()
total += (0.001 * c - c ** 2 / 6).sum() + 0.002 / 2 * s(fc)[0] ** 2
m = w(head); m = m if m.shape[0] <= m.shape[1] else m.T
total += 0.001 * ((m @ m.T - np.eye(len(m))) ** 2).sum() + 0.0001 * np.abs(m).sum() ** 2 / (m ** 2).sum()
print(json.dumps([total, np.linalg.norm(w(head), axis=1).max(), float((w(fc) == 0).mean())]))";

#[test]
fn the_log_has_the_value_of_every_form_and_a_resume_goes_on_bit_for_bit() {
    let home = tempfile::tempdir().unwrap();
    let at = home.path().display();
    let text = format!(
        "
device: cpu
threads: 1
model: {{name: small-cnn, init_from: {{file: {at}/start.safetensors}}}}
task: classification
data: {{train: {{shapes: {{count: 90, size: 16}}}}, batch_size: 30}}
optimizer: {{sgd: {{lr: 0.05, momentum: 0.9}}}}
train: {{epochs: 4, log_every: 2}}
penalty:
  groups:
    - {{match: CONV, l2_sp: 0.01, nuclear_norm: 0.001}}
    - {{match: FC, mcp: 0.001, spectral_norm: {{start: 0, end: 0.002, epochs: 2}}}}
    - {{match: HEAD, soft_orthogonality: 0.001, hoyer_square: 0.0001, max_norm: 0.5}}
"
    );
    // The pretrained weights: those of a run of one step.
    let names: Vec<String> = {
        let plain =
            text.lines().take_while(|line| !line.starts_with("penalty")).collect::<Vec<_>>().join("\n");
        let plain = plain.replace(&format!(", init_from: {{file: {at}/start.safetensors}}"), "");
        let config = write_config(home.path(), &plain);
        let output = home.path().join("first");
        succeeds(&["train", &config, "--set", "train.epochs=1", "--output", output.to_str().unwrap()]);
        let weights = output.join("checkpoints/last/model.safetensors");
        std::fs::copy(&weights, home.path().join("start.safetensors")).unwrap();
        let tensors = Tensor::read_safetensors(weights).unwrap();
        let shapes: BTreeMap<String, usize> = tensors.into_iter().map(|(name, t)| (name, t.dim())).collect();
        let weights =
            |dim: usize| shapes.iter().filter(move |(name, d)| name.ends_with("weight") && **d == dim);
        let linear: Vec<_> = weights(2).map(|(name, _)| name.clone()).collect();
        let conv: Vec<_> = weights(4).map(|(name, _)| name.clone()).collect();
        vec![conv[0].clone(), conv[1].clone(), linear[0].clone()]
    };
    let text =
        ["CONV", "FC", "HEAD"].iter().zip(&names).fold(text, |text, (key, name)| text.replace(key, name));
    let config = write_config(home.path(), &text);
    let train = |name: &str, more: &[&str]| {
        let output = home.path().join(name);
        succeeds(&[&["train", &config, "--output", output.to_str().unwrap()], more].concat());
        output
    };
    let whole = train("whole", &[]);
    let halved = train("halved", &["--set", "train.epochs=2"]);
    std::fs::remove_file(home.path().join("start.safetensors")).unwrap();
    std::fs::copy(
        home.path().join("first/checkpoints/last/model.safetensors"),
        home.path().join("kept.safetensors"),
    )
    .unwrap();
    train("halved", &["--resume"]);
    for part in ["model", "optimizer"] {
        assert!(saved(&whole, part) == saved(&halved, part), "{part} of a resumed run");
    }

    let epoch = records(&whole, "epoch").pop().unwrap();
    let printed = python(&format!(
        "run, start, names = {whole:?}, {:?}, {names:?}\n{LOGGED}",
        Path::new(&home.path().join("kept.safetensors"))
    ));
    let [penalty, norm, zeros]: [f64; 3] = serde_json::from_str(printed.trim()).unwrap();
    let logged = epoch["penalty"].as_f64().unwrap();
    assert!((logged - penalty).abs() < 1e-5 * penalty, "{logged} in the log, {penalty} by NumPy");
    assert!(norm < 0.5 + 1e-6, "{norm}");
    assert!(zeros > 0.0 && epoch["zeros"].as_f64().unwrap() > 0.0, "{zeros}");
    let of = |name: &str, key: &str| epoch["lambda"][name][key].as_f64();
    assert_eq!((of(&names[0], "l2_sp"), of(&names[2], "max_norm")), (Some(0.01), Some(0.5)), "{epoch}");
    assert_eq!(of(&names[1], "spectral_norm"), Some(0.002), "{epoch}");
    let summary = succeeds(&["summary", &config, "--json"]);
    assert!(summary.contains("\"mcp\""), "{summary}");
}

#[test]
fn the_table_of_the_page_is_that_of_the_forms() {
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/penalties.md")).unwrap();
    let table = succeeds(&["explain", "--penalties"]);
    assert!(
        page.contains(&format!("-->\n{table}<!-- end")),
        "the table of docs/penalties.md is stale; CONTRIBUTING.md says how to renew it"
    );
}
