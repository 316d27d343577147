//! The losses of small batches against libtorch's own operations in float64.

use tch::{Device, Kind, Reduction, Tensor};
use tikhonov::functional::loss::{self, RegressionLoss};
use tikhonov::libtorch::kernels::loss::{cross_entropy, squared_error};

use crate::common;

fn noise(size: &[i64], salt: f64) -> Tensor {
    common::noise(size, salt).to_kind(Kind::Float)
}

fn leaf(tensor: &Tensor, kind: Kind) -> Tensor {
    tensor.to_kind(kind).copy().set_requires_grad(true)
}

/// The largest difference of value and gradient of `own` and `truth`, both of which were asked for three
/// times the gradient.
fn apart(own: (&Tensor, &Tensor), truth: (&Tensor, &Tensor)) -> f64 {
    let difference = |own: &Tensor, truth: &Tensor| {
        assert_eq!(own.size(), truth.size());
        (own.to_kind(Kind::Double) - truth).abs().max().double_value(&[])
    };
    (own.0 * 3.0).backward();
    (truth.0 * 3.0).backward();
    difference(own.0, truth.0).max(difference(&own.1.grad(), &truth.1.grad()))
}

#[test]
fn the_cross_entropy_gives_the_value_and_gradient_of_float64() {
    for (rows, classes) in [(16, 10), (1, 2), (7, 100), (3, 1)] {
        for (smoothing, scale, skipped) in [(0.0, 1.0, 0), (0.1, 1.0, 0), (0.1, 200.0, 0), (0.3, 5.0, 1)] {
            let given = noise(&[rows, classes], 0.1) * scale;
            let mut ys: Vec<i64> = (0..rows).map(|row| row * 7 % classes).collect();
            if skipped > 0 && rows > 1 {
                ys[1] = -100;
            }
            let ys = Tensor::from_slice(&ys);
            let (own, truth) = (leaf(&given, Kind::Float), leaf(&given, Kind::Double));
            let loss = cross_entropy(&own, &ys, smoothing).unwrap().expect("small batches are taken");
            let wanted = truth.cross_entropy_loss::<Tensor>(&ys, None, Reduction::Mean, -100, smoothing);
            let off = apart((&loss, &own), (&wanted, &truth));
            assert!(off < 4e-7 * scale.max(4.0), "{rows} {classes} {smoothing} {scale}: {off:e}");
        }
    }
}

#[test]
fn the_squared_error_gives_the_value_and_gradient_of_float64() {
    for size in [vec![16, 1], vec![3, 7], vec![1], vec![4, 2, 3]] {
        for factor in [1.0, 0.5] {
            let (given, wanted) = (noise(&size, 0.1), noise(&size, 0.2));
            let (own, truth) = (leaf(&given, Kind::Float), leaf(&given, Kind::Double));
            let loss = squared_error(&own, &wanted, factor).unwrap().expect("small batches are taken");
            let known = truth.mse_loss(&wanted.to_kind(Kind::Double), Reduction::Mean) * factor;
            let off = apart((&loss, &own), (&known, &truth));
            assert!(off < 1e-6, "{size:?} {factor}: {off:e}");
        }
    }
}

#[test]
fn without_gradients_a_loss_has_none_and_what_is_not_taken_is_left_to_libtorch() {
    let (logits, ys) = (noise(&[4, 3], 0.1), Tensor::from_slice(&[0i64, 1, 2, 0]));
    assert!(!cross_entropy(&logits, &ys, 0.0).unwrap().expect("small batches are taken").requires_grad());
    let beyond = Tensor::from_slice(&[0i64, 1, 3, 0]);
    assert!(cross_entropy(&logits, &beyond, 0.0).unwrap().is_none());
    assert!(cross_entropy(&logits, &logits.softmax(1, Kind::Float), 0.0).unwrap().is_none());
    assert!(cross_entropy(&noise(&[100, 100], 0.1), &ys, 0.0).unwrap().is_none());
    assert!(squared_error(&logits, &noise(&[4, 1], 0.1), 1.0).unwrap().is_none());
    let on = Tensor::zeros([4, 3], (Kind::Double, Device::Cpu));
    assert!(squared_error(&on, &on, 1.0).unwrap().is_none());
}

#[test]
fn every_loss_of_a_config_equals_its_twin_in_torch_nn() {
    let [outputs, ys] = [0.1, 0.2].map(|salt| common::noise(&[6, 4], salt) * 3.0);
    let list = |tensor: &Tensor| format!("{:?}", Vec::<f64>::try_from(tensor.view(-1)).unwrap());
    let printed = common::python(&format!(
        "import torch, torch.nn as nn
x, y = [torch.tensor(v, dtype=torch.float64).view(6, 4) for v in ({}, {})]
shares, classes = y.softmax(1), torch.tensor([0, 3, 1, 1, 2, 0])
losses = [nn.MSELoss()(x, y), nn.MSELoss()(x, y) / 2, nn.L1Loss()(x, y), nn.HuberLoss(delta=0.3)(x, y),
          nn.HuberLoss(delta=2.5)(x, y), ((x - y).square() + 0.2 ** 2).sqrt().mean(),
          nn.CrossEntropyLoss()(x, classes), nn.CrossEntropyLoss(label_smoothing=0.2)(x, classes),
          nn.CrossEntropyLoss()(x, shares), nn.CrossEntropyLoss(label_smoothing=0.2)(x, shares)]
print(*[loss.item() for loss in losses])",
        list(&outputs),
        list(&ys)
    ));
    let theirs: Vec<f64> = printed.split_whitespace().map(|word| word.parse().unwrap()).collect();
    let regression = [
        "mse",
        "half_mse",
        "l1",
        "{huber: {delta: 0.3}}",
        "{huber: {delta: 2.5}}",
        "{charbonnier: {eps: 0.2}}",
    ];
    let of = |text: &str| {
        let loss: RegressionLoss = serde_yaml::from_str::<serde_json::Value>(text)
            .map(|tree| tikhonov::util::yaml::decode(&tree).unwrap())
            .unwrap();
        loss.of(&outputs, &ys)
    };
    let (shares, classes) = (ys.softmax(1, Kind::Double), Tensor::from_slice(&[0i64, 3, 1, 1, 2, 0]));
    let targets = [(&classes, 0.0), (&classes, 0.2), (&shares, 0.0), (&shares, 0.2)];
    let ours = regression.map(of).into_iter();
    let ours = ours.chain(targets.map(|(ys, smoothing)| loss::cross_entropy(&outputs, ys, smoothing, None)));
    for (at, (ours, theirs)) in ours.zip(&theirs).enumerate() {
        let ours = ours.double_value(&[]);
        assert!((ours - theirs).abs() < 1e-14, "loss {at}: {ours}, {theirs} in PyTorch");
    }
    assert_eq!(theirs.len(), 10);
}
