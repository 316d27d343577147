//! The optimisers against Python's `torch.optim`, and what PyTorch has no test for.

mod against_torch;
mod decay;
mod graph_scalars;
mod scaling;

use std::collections::BTreeMap;

use crate::common::lambdas;
use tch::{Kind, Tensor};
use tikhonov::optim::{Clip, Ema, EmaSpec, Optimizer, OptimizerSpec};
use tikhonov::penalty::{LambdaValues, PenaltyParam, PenaltySpec};
use tikhonov::schedule::ScheduleSpec;
use tikhonov::util::rng::{CounterRng, RngStream};
use tikhonov::util::yaml::Document;

use crate::common;

/// What a run's config says about the optimiser.
struct Declared {
    optimizer: OptimizerSpec,
    penalty: PenaltySpec,
    schedule: ScheduleSpec,
    clip: Option<Clip>,
}

fn declared(text: &str) -> Declared {
    let document = Document::parse("test", text).unwrap();
    let optional = |key: &str| document.value(key).is_some();
    let declared = Declared {
        optimizer: document.decode_at("optimizer").unwrap(),
        penalty: if optional("penalty") {
            document.decode_at("penalty").unwrap()
        } else {
            Default::default()
        },
        schedule: if optional("schedule") {
            document.decode_at("schedule").unwrap()
        } else {
            Default::default()
        },
        clip: optional("clip").then(|| document.decode_at("clip").unwrap()),
    };
    declared.optimizer.validate().unwrap();
    declared.penalty.validate().unwrap();
    declared.optimizer.accepts(&declared.penalty).unwrap();
    declared.schedule.validate().unwrap();
    declared
}

fn normal(shape: &[i64], scale: f64, which: u64) -> Tensor {
    let mut draw = CounterRng::new(7, 0, which, RngStream::Generate);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| scale * draw.normal()).collect();
    Tensor::from_slice(&values).view(shape)
}

/// ‖a − b‖/‖b‖
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    ((a - &b).norm() / b.norm()).double_value(&[])
}

/// An optimiser of one parameter, and the parameter.
fn single(config: &str, values: &[f64]) -> (Tensor, Optimizer) {
    let declared = declared(config);
    let w = Tensor::from_slice(values).set_requires_grad(true);
    let groups = declared.penalty.assign(&[PenaltyParam { name: "w", is_weight: true }]).unwrap();
    let optimizer = declared.optimizer.build(vec![("w".into(), w.shallow_clone())], &groups).unwrap();
    (w, optimizer)
}

fn values(w: &Tensor) -> Vec<f64> {
    Vec::try_from(w.detach()).unwrap()
}

#[test]
fn momentum_and_l2_move_as_written_by_hand() {
    let (w, mut optimizer) = single("optimizer: {sgd: {lr: 0.1, momentum: 0.5}}", &[1.0, -2.0]);
    let rates = [lambdas("{l2: 0.5}")];
    for expected in [[0.65, -2.2], [0.65 - 0.1 * (1.75 + 3.325), -2.2 - 0.1 * (1.0 + 1.9)]] {
        // f = 3·Σw: g = 3 + 0.5·w, b = 0.5·b + g, w = w − 0.1·b.
        (&w * 3.0).sum(Kind::Double).backward();
        let step = optimizer.step(0.1, &rates, None).unwrap();
        assert!((step.grad_norm.double_value(&[]) - 18f64.sqrt()).abs() < 1e-12);
        assert!(!w.grad().defined(), "the gradient is forgotten");
        assert!(values(&w).iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-14), "{:?}", values(&w));
    }
}

#[test]
fn clipping_equals_torch_nn_utils() {
    let grads = [3.0, -0.2, 0.05, -4.0];
    let printed = common::python(&format!(
        "import torch, json
out = []
for value, norm in [(None, 1.5), (0.5, None), (0.5, 0.3), (None, 1e9)]:
    w = torch.zeros(4, dtype=torch.float64); w.grad = torch.tensor({grads:?}, dtype=torch.float64)
    if value: torch.nn.utils.clip_grad_value_([w], value)
    if norm: torch.nn.utils.clip_grad_norm_([w], norm)
    out.append(w.grad.tolist())
print(json.dumps(out))"
    ));
    let expected: Vec<Vec<f64>> = serde_json::from_str(printed.trim()).unwrap();
    let clips = [(None, Some(1.5)), (Some(0.5), None), (Some(0.5), Some(0.3)), (None, Some(1e9))];
    for ((value, norm), expected) in clips.into_iter().zip(expected) {
        // With η = 1 and no momentum a step moves by the clipped gradient.
        let (w, mut optimizer) = single("optimizer: sgd", &[0.0; 4]);
        (&w * Tensor::from_slice(&grads)).sum(Kind::Double).backward();
        let step = optimizer.step(1.0, &[LambdaValues::default()], Some(&Clip { value, norm })).unwrap();
        let moved: Vec<f64> = values(&w).iter().map(|w| -w).collect();
        let same = moved.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-15 * b.abs());
        assert!(same, "value {value:?}, norm {norm:?}: {moved:?}, {expected:?} expected");
        let before_clipping = grads.iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!((step.grad_norm.double_value(&[]) - before_clipping).abs() < 1e-12);
    }
}

#[test]
fn the_clip_bounds_the_data_gradient_and_not_the_penalty() {
    let (w, mut optimizer) = single("optimizer: sgd", &[100.0]);
    (&w * 5.0).sum(Kind::Double).backward();
    let rates = [lambdas("{l2: 0.5}")];
    optimizer.step(0.1, &rates, Some(&Clip { value: Some(1.0), norm: None })).unwrap();
    assert!((values(&w)[0] - (100.0 - 0.1 * (1.0 + 50.0))).abs() < 1e-12);
}

#[test]
fn a_parameter_without_gradient_is_left_alone_and_may_join_later() {
    let used = Tensor::from_slice(&[1.0f64]).set_requires_grad(true);
    let idle = Tensor::from_slice(&[1.0f64]).set_requires_grad(true);
    let declared = declared("optimizer: {sgd: {lr: 0.1, momentum: 0.9}}");
    let targets =
        [PenaltyParam { name: "used", is_weight: true }, PenaltyParam { name: "idle", is_weight: true }];
    let groups = declared.penalty.assign(&targets).unwrap();
    let params = vec![("used".into(), used.shallow_clone()), ("idle".into(), idle.shallow_clone())];
    let mut optimizer = declared.optimizer.build(params, &groups).unwrap();
    let rates = [lambdas("{l1: 0.1, l2: 0.1}")];
    (&used * 2.0).sum(Kind::Double).backward();
    optimizer.step(0.1, &rates, None).unwrap();
    assert_eq!(values(&idle), [1.0]);
    let names: Vec<_> = optimizer.state().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["used.momentum_buffer"]);

    (&used * 2.0 + &idle * 3.0).sum(Kind::Double).backward();
    optimizer.step(0.1, &rates, None).unwrap();
    // The first step of `idle`: its buffer starts as the gradient 3.1, then the threshold takes 0.01 / (1 -
    // 0.9).
    assert!((values(&idle)[0] - (1.0 - 0.31 - 0.1)).abs() < 1e-14, "{:?}", values(&idle));
}

#[test]
fn weights_in_channels_last_memory_move_as_contiguous_ones() {
    tch::set_num_threads(1);
    let weight = normal(&[4, 3, 3, 3], 0.3, 30);
    let xs = normal(&[2, 3, 6, 6], 1.0, 31);
    for optimizer in ["{sgd: {momentum: 0.9}}", "adam", "adagrad", "rmsprop", "nadam", "radam", "lion"] {
        let declared = declared(&format!("optimizer: {optimizer}"));
        let run = |w: Tensor| {
            let w = w.set_requires_grad(true);
            let groups = declared.penalty.assign(&[PenaltyParam { name: "w", is_weight: true }]).unwrap();
            let mut optimizer =
                declared.optimizer.build(vec![("w".into(), w.shallow_clone())], &groups).unwrap();
            for _ in 0..3 {
                let ys = xs.conv2d(&w, None::<&Tensor>, [1, 1], [0, 0], [1, 1], 1);
                ys.square().mean(Kind::Double).backward();
                optimizer.step(0.1, &[lambdas("{l2: 0.1}")], None).unwrap();
            }
            w.detach()
        };
        let contiguous = run(weight.copy());
        let channels_last = run(weight.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]));
        assert_ne!(channels_last.stride(), contiguous.stride());
        assert!(distance(&contiguous, &weight) > 1e-2, "{optimizer} moves");
        let difference = distance(&channels_last, &contiguous);
        assert!(difference < 1e-13, "{optimizer}: {difference:e}");
    }
}

#[test]
fn a_gradient_that_is_not_finite_shows_in_the_norm() {
    for bad in [f64::NAN, f64::INFINITY] {
        let (w, mut optimizer) = single("optimizer: sgd", &[1.0, 2.0]);
        (&w * Tensor::from_slice(&[1.0, bad])).sum(Kind::Double).backward();
        assert!(!optimizer.grad_norm().unwrap().double_value(&[]).is_finite());
        let step = optimizer.step(0.1, &[LambdaValues::default()], None).unwrap();
        assert!(!step.grad_norm.double_value(&[]).is_finite());
    }
    let (_, mut optimizer) = single("optimizer: sgd", &[1.0]);
    let step = optimizer.step(0.1, &[LambdaValues::default()], None).unwrap();
    assert_eq!(step.grad_norm.double_value(&[]), 0.0, "no gradients, no norm");
}

#[test]
fn the_average_of_weights_follows_its_formula_and_copies_counters() {
    let state = |w: f32, n: i64| {
        vec![("w".to_owned(), Tensor::from_slice(&[w, 2.0 * w])), ("n".to_owned(), Tensor::from(n))]
    };
    for (warmup, decays) in [(false, [0.9, 0.9, 0.9]), (true, [0.1, 2.0 / 11.0, 3.0 / 12.0])] {
        let spec = EmaSpec { decay: 0.9, warmup };
        let mut ema = Ema::new(&spec, &state(1.0, 0)).unwrap();
        let mut expected = 1.0f64;
        let mut resumed = Ema::new(&spec, &state(9.0, 9)).unwrap();
        for (i, (decay, w)) in decays.into_iter().zip([3.0f32, -1.0, 0.5]).enumerate() {
            if i == 2 {
                let saved = ema.state().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
                resumed.load_state(&saved).unwrap();
                resumed.update(&state(w, 3), None).unwrap();
            }
            ema.update(&state(w, i as i64 + 1), None).unwrap();
            expected = decay * expected + (1.0 - decay) * f64::from(w);
        }
        let weights = ema.weights();
        assert!((weights["w"].double_value(&[0]) - expected).abs() < 1e-6);
        assert!((weights["w"].double_value(&[1]) - 2.0 * expected).abs() < 1e-6);
        assert_eq!(weights["n"].int64_value(&[]), 3);
        let resumed = resumed.weights();
        assert!(resumed["w"].equal(&weights["w"]) && resumed["n"].equal(&weights["n"]));
    }
    let mut ema = Ema::new(&EmaSpec::default(), &state(1.0, 0)).unwrap();
    let error = ema.load_state(&BTreeMap::from([("v".to_owned(), Tensor::from(1))])).unwrap_err();
    assert_eq!(tikhonov::util::exit_code::code(&error), 4);
    assert!(error.to_string().contains("w is missing") && error.to_string().contains("v is unexpected"));
}

#[test]
fn a_wrong_optimizer_is_refused_with_the_remedy() {
    for (text, parts) in [
        (
            "optimizer: {adam: {weight_decay: 0.1}}",
            &["adam.weight_decay", "penalty: {l2: λ}", "decoupled"][..],
        ),
        ("optimizer: {sgd: {momentm: 0.9}}", &["sgd.momentm", "momentum"]),
        ("optimizer: sdg", &["sgd"]),
        ("optimizer: {sgd: {lr: 0.1}, adam: {}}", &["choose one"]),
        ("optimizer: {sgd: {lr: -1}}", &["sgd.lr", "-1", "at least 0"]),
        ("optimizer: {sgd: {momentum: 9}}", &["sgd.momentum", "[0, 1)"]),
        ("optimizer: {sgd: {nesterov: true}}", &["sgd.nesterov", "momentum"]),
        ("optimizer: {adam: {betas: [0.9, 1]}}", &["adam.betas.1", "[0, 1)"]),
        ("optimizer: {adam: {betas: [0.9]}}", &["optimizer.adam.betas"]),
        ("optimizer: {rmsprop: {alpha: 1.5}}", &["rmsprop.alpha"]),
        ("optimizer: {adagrad: {eps: -1}}", &["adagrad.eps"]),
    ] {
        let document = Document::parse("c.yaml", text).unwrap();
        let message = match document.decode_at::<OptimizerSpec>("optimizer") {
            Err(error) => error.to_string(),
            Ok(spec) => spec.validate().expect_err(text).to_string(),
        };
        assert!(parts.iter().all(|part| message.contains(part)), "{text}: {message}");
    }
}

#[test]
fn defaults_are_those_of_torch_optim_and_a_name_alone_suffices() {
    let printed = common::python(
        "import torch, json
w = torch.zeros(1)
print(json.dumps({n.lower(): getattr(torch.optim, n)([w]).defaults
                  for n in ['SGD', 'Adam', 'AdamW', 'Adagrad', 'RMSprop', 'NAdam', 'RAdam']}))",
    );
    let theirs: serde_json::Value = serde_json::from_str(printed.trim()).unwrap();
    for name in ["sgd", "adam", "adamw", "adagrad", "rmsprop", "nadam", "radam"] {
        let bare = declared(&format!("optimizer: {name}")).optimizer;
        for text in [format!("optimizer: {{{name}: {{}}}}"), format!("optimizer:\n  {name}:\n")] {
            assert_eq!(declared(&text).optimizer, bare, "{text}");
        }
        let ours = serde_json::to_value(&bare).unwrap();
        for (key, value) in ours[name].as_object().unwrap() {
            let there = &theirs[name][key];
            let same = value == there || value.is_number() && value.as_f64() == there.as_f64();
            assert!(same, "{name}.{key}: {value} here, {there} there");
        }
        // What is written back reads as the same.
        assert_eq!(serde_json::from_value::<OptimizerSpec>(ours).unwrap(), bare);
    }
}

#[test]
fn what_no_gradient_decides_is_refused_beside_lion_and_muon() {
    for optimizer in ["lion", "muon"] {
        let spec: OptimizerSpec = serde_yaml::from_str(optimizer).unwrap();
        for (text, path, part) in [
            ("{l2: auto}", "l2", "auto"),
            ("{groups: [{match: a, hoyer_square: auto}]}", "groups.0.hoyer_square", "auto"),
            ("{l1: 0.1, l1_mode: preconditioned}", "l1", "l1_mode"),
        ] {
            let penalty = serde_yaml::from_str::<PenaltySpec>(text).unwrap();
            let invalid = spec.accepts(&penalty).unwrap_err();
            assert!(invalid.path == path && invalid.message.contains(part), "{text}: {}", invalid.message);
        }
        let decoupled = serde_yaml::from_str::<PenaltySpec>("{decoupled: auto}").unwrap();
        spec.accepts(&decoupled).unwrap();
    }
}

#[test]
fn what_is_judged_of_schedulefree_is_the_mean_of_its_steps_and_what_would_not_reach_it_is_refused() {
    let (w, mut optimizer) = single("optimizer: {schedulefree: {lr: 0.1, weight_lr_power: 0}}", &[1.0, -2.0]);
    // x is the mean of all z: with rates alike each step counts as much.
    let (mut sum, mut z) = ([0.0; 2], [0.0; 2]);
    for step in 1..=5 {
        (&w * w.shallow_clone()).sum(Kind::Double).backward();
        optimizer.step(0.1, &[LambdaValues::default()], None).unwrap();
        let state: BTreeMap<_, _> = optimizer.state().into_iter().collect();
        z = values(&state["w.z"]).try_into().unwrap();
        let x = optimizer.averaged(vec![("w".into(), w.shallow_clone())]).unwrap();
        for i in 0..2 {
            sum[i] += z[i];
            let (x, y) = (values(&x[0].1)[i], values(&w)[i]);
            assert!((x - sum[i] / f64::from(step)).abs() < 1e-12, "step {step}: {x}");
            assert!((y - (0.1 * z[i] + 0.9 * x)).abs() < 1e-12, "step {step}: {y}");
        }
    }
    assert!(z[0] < 0.7 && z[1] > -1.7, "{z:?}");
    let spec: OptimizerSpec = serde_yaml::from_str("schedulefree").unwrap();
    for text in
        ["{l1: 0.1}", "{decoupled: auto}", "{decoupled: 0.1, decoupled_mode: cautious}", "{max_norm: 1}"]
    {
        assert!(
            spec.accepts(&serde_yaml::from_str(text).unwrap()).unwrap_err().message.contains("average"),
            "{text}"
        );
    }
    spec.accepts(&serde_yaml::from_str("{decoupled: 0.1, hoyer_square: 0.1}").unwrap()).unwrap();
}

#[test]
fn adamw_refuses_l2_wherever_it_is_declared() {
    let spec: OptimizerSpec = serde_json::from_str("\"adamw\"").unwrap();
    let penalty = |text: &str| Document::parse("c.yaml", text).unwrap().decode::<PenaltySpec>().unwrap();
    for (text, path) in [
        ("{l2: 0.1}", "l2"),
        ("{groups: [{match: '*', l2: 0.1}]}", "groups.0.l2"),
        ("{l2: {start: 0, end: 0.1}}", "l2"),
    ] {
        let invalid = spec.accepts(&penalty(text)).unwrap_err();
        assert_eq!(invalid.path, path);
        assert!(invalid.message.contains("decoupled"), "{}", invalid.message);
    }
    spec.accepts(&penalty("{l2: 0, decoupled: 0.1}")).unwrap();
    let (w, mut optimizer) = single("optimizer: adamw", &[1.0]);
    w.sum(Kind::Double).backward();
    assert!(optimizer.step(0.1, &[lambdas("{l2: 0.1}")], None).is_err());
}
