//! The group lasso: the optimum of scikit-learn, whole filters at 0, and its part of the log.

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use tikhonov::optim::{OptimizerSpec, SgdSpec};
use tikhonov::penalty::{LambdaValues, PenaltyParam, PenaltySpec};
use tikhonov::schedule::ScheduleStep;
use tikhonov::util::rng::{CounterRng, RngStream};

use crate::common::{lambdas, python, records, succeeds, write_config};

const START: ScheduleStep = ScheduleStep { step: 0, steps_per_epoch: 1, total_steps: 1 };

/// Weights `[3, 8]` after full-batch steps of SGD on ½·MSE over the three outputs, without a bias.
fn fit(xs: &Tensor, ys: &Tensor, penalty: &str, momentum: f64) -> Tensor {
    let weight = Tensor::zeros([3, 8], (Kind::Double, Device::Cpu)).set_requires_grad(true);
    let target = [PenaltyParam { name: "weight", is_weight: true }];
    let spec: PenaltySpec = serde_yaml::from_str(penalty).unwrap();
    let groups = spec.assign(&target).unwrap();
    let optimizer = OptimizerSpec::Sgd(SgdSpec { lr: 0.3, momentum, ..Default::default() });
    let mut steps = optimizer.build(vec![("weight".into(), weight.shallow_clone())], &groups).unwrap();
    let values: Vec<LambdaValues> = groups.iter().map(|group| group.lambdas(START)).collect();
    for _ in 0..4000 {
        ((xs.matmul(&weight.tr()) - ys).square().mean(Kind::Double) * 0.5).backward();
        steps.step(0.3, &values, None).unwrap();
    }
    weight.detach()
}

#[test]
fn group_lasso_reaches_the_multi_task_lasso_of_scikit_learn_with_the_same_zeros() {
    let mut draw = CounterRng::new(5, 0, 0, RngStream::Generate);
    let mut normal = |shape: &[i64]| {
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| draw.normal()).collect();
        Tensor::from_slice(&values).view(shape)
    };
    let (xs, noise, truth) = (normal(&[60, 8]), normal(&[60, 3]) * 0.3, normal(&[8, 3]));
    for feature in [1, 4, 5, 7] {
        let _ = truth.get(feature).zero_();
    }
    let ys = xs.matmul(&truth) + noise;
    let folder = tempfile::tempdir().unwrap();
    xs.write_npy(folder.path().join("xs.npy")).unwrap();
    ys.write_npy(folder.path().join("ys.npy")).unwrap();
    let printed = python(&format!(
        "import json, numpy as np
from sklearn.linear_model import MultiTaskLasso
at = {:?}
x, y = np.load(at + '/xs.npy'), np.load(at + '/ys.npy')
model = MultiTaskLasso(alpha=0.25, fit_intercept=False, tol=1e-14, max_iter=1_000_000)
print(json.dumps(model.fit(x, y).coef_.ravel().tolist()))",
        folder.path()
    ));
    let theirs: Vec<f64> = serde_json::from_str(printed.trim()).unwrap();
    let lambda = 0.25 / (3.0 * 3f64.sqrt());
    for momentum in [0.0, 0.9] {
        let weight =
            fit(&xs, &ys, &format!("{{group_lasso: {lambda}, group_lasso_mode: input_channels}}"), momentum);
        let ours: Vec<f64> = Vec::try_from(weight.contiguous().view(-1)).unwrap();
        let apart = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(apart < 1e-6, "momentum {momentum}: {apart:e}");
        let zeros = |list: &[f64]| list.iter().map(|w| *w == 0.0).collect::<Vec<_>>();
        assert_eq!(zeros(&ours), zeros(&theirs), "momentum {momentum}");
        assert!(ours.iter().filter(|w| **w == 0.0).count() >= 9, "{ours:?}");
    }
}

#[test]
fn a_group_shrinks_by_the_threshold_times_the_root_of_its_size_or_becomes_zero_whole() {
    // Without a gradient only the threshold acts: η·λ·√2 = 0.1·√2 of a filter's norm 5, and all of one of norm 0.1.
    let weight = Tensor::from_slice(&[3.0, 4.0, 0.06, 0.08, 0.0, 0.0]).view([3, 2]).set_requires_grad(true);
    let groups = PenaltySpec::default().assign(&[PenaltyParam { name: "w", is_weight: true }]).unwrap();
    let spec = OptimizerSpec::Sgd(SgdSpec::default());
    let mut optimizer = spec.build(vec![("w".into(), weight.shallow_clone())], &groups).unwrap();
    (&weight * 0.0).sum(Kind::Double).backward();
    let values = [lambdas("{group_lasso: 0.2}")];
    assert!(
        (values[0].value(&[&weight], 0.0).unwrap().double_value(&[]) - 0.2 * 2f64.sqrt() * 5.1).abs() < 1e-12
    );
    optimizer.step(0.5, &values, None).unwrap();
    let kept = 1.0 - 0.1 * 2f64.sqrt() / 5.0;
    let found: Vec<f64> = Vec::try_from(weight.detach().view(-1)).unwrap();
    for (found, wanted) in found.iter().zip([3.0 * kept, 4.0 * kept, 0.0, 0.0, 0.0, 0.0]) {
        assert!((found - wanted).abs() < 1e-12, "{found} against {wanted}");
    }
}

#[test]
fn a_network_under_group_lasso_loses_whole_filters_and_its_log_and_summary_say_what_acted() {
    let home = tempfile::tempdir().unwrap();
    let text = "
device: cpu
threads: 1
model: {name: small-cnn}
task: classification
data: {train: {shapes: {count: 120, size: 16}}, batch_size: 30}
penalty: {group_lasso: 0.002, l2: 1.0e-4}
optimizer: {sgd: {lr: 0.1, momentum: 0.9}}
train: {epochs: 5, ema: {decay: 0.5}, log_every: 4}
";
    let config = write_config(home.path(), text);
    let summary = succeeds(&["summary", &config]);
    assert!(summary.contains("l2 1e-4, group_lasso 2e-3 (filters)"), "{summary}");
    let run = home.path().join("run");
    succeeds(&["train", &config, "--output", run.to_str().unwrap()]);
    let epoch: Value = records(&run, "epoch").pop().unwrap();
    let group = &epoch["lambda"]["weights"];
    assert_eq!((group["group_lasso"].as_f64(), group["l2"].as_f64()), (Some(0.002), Some(1e-4)), "{epoch}");
    let printed = python(&format!(
        "import json, math
from safetensors.torch import load_file
w = [t.double() for n, t in load_file({:?}).items() if n.endswith('weight') and t.dim() > 1]
norms = [t.flatten(1).norm(dim=1) for t in w]
penalty = sum(0.002 * math.sqrt(t[0].numel()) * n.sum() for t, n in zip(w, norms)) + sum(5e-5 * t.square().sum() for t in w)
partial = sum(int(((t == 0).flatten(1).any(1) & (n > 0)).sum()) for t, n in zip(w, norms))
print(json.dumps([float(penalty), sum(int((n == 0).sum()) for n in norms), partial]))",
        run.join("checkpoints/last/model.safetensors")
    ));
    let found: Vec<f64> = serde_json::from_str(printed.trim()).unwrap();
    assert!(found[1] >= 4.0 && found[0] > 0.0, "{} filters are 0, penalty {}", found[1], found[0]);
    assert_eq!(found[2], 0.0, "a filter is 0 as a whole or not at all");
    let logged = epoch["penalty"].as_f64().unwrap();
    let averaged = epoch["averaged"]["penalty"].as_f64().unwrap();
    assert!(
        [logged, averaged].iter().any(|logged| (logged - found[0]).abs() < 1e-4 * found[0]),
        "{logged} or {averaged} against {}",
        found[0]
    );
}
