//! The linear kernel for small batches against libtorch's own operations in float64.

use tch::{Device, Kind, Tensor};
use tikhonov::libtorch::kernels::linear::linear;
use tikhonov::libtorch::optim::total_norm;

use crate::common::{self, run as binary, write_config};

/// Rows, columns in, columns out; fewer than a vector holds, and more, and what fills none.
const SIZES: [[i64; 3]; 9] = [
    [16, 784, 256],
    [16, 256, 10],
    [16, 32, 1],
    [1, 5, 3],
    [7, 17, 33],
    [13, 100, 15],
    [33, 50, 40],
    [64, 129, 70],
    [2, 1, 1],
];

/// In float32, so that both sides see the same numbers.
fn noise(size: &[i64], salt: f64) -> Tensor {
    common::noise(size, salt).to_kind(Kind::Float)
}

/// Value and gradients of xs, weight and bias.
fn run([rows, inputs, outputs]: [i64; 3], relu: bool, biased: bool, kind: Kind) -> Vec<Tensor> {
    let leaf = |size: &[i64], salt| noise(size, salt).to_kind(kind).set_requires_grad(true);
    let (xs, weight, bias) =
        (leaf(&[rows, inputs], 0.1), leaf(&[outputs, inputs], 0.2), leaf(&[outputs], 0.3));
    let bias = biased.then_some(bias);
    let ys = match kind {
        Kind::Float => linear(&xs, &weight, bias.as_ref(), relu).unwrap().expect("small batches are taken"),
        _ => {
            let ys = xs.linear(&weight, bias.as_ref());
            if relu { ys.relu() } else { ys }
        }
    };
    (&ys * noise(&[rows, outputs], 0.4).to_kind(kind)).sum(kind).backward();
    let mut all = vec![ys.detach(), xs.grad(), weight.grad()];
    all.extend(bias.map(|bias| bias.grad()));
    all
}

#[test]
fn the_linear_map_gives_the_values_and_gradients_of_float64() {
    for size in SIZES {
        for (relu, biased) in [(false, false), (false, true), (true, false), (true, true)] {
            let (own, truth) = (run(size, relu, biased, Kind::Float), run(size, relu, biased, Kind::Double));
            assert_eq!(own.len(), truth.len());
            for (i, (own, truth)) in own.iter().zip(&truth).enumerate() {
                assert_eq!(own.size(), truth.size());
                let off = (own.to_kind(Kind::Double) - truth).abs();
                // For sums of so many products of numbers in ±1; a value next to zero may fall on the other
                // side of the ReLU, and its gradient with it.
                let [rows, inputs, outputs] = size;
                let terms = [inputs, outputs, rows, rows][i];
                let bound = 2e-6 * (terms as f64).sqrt().max(4.0);
                let flipped = if relu && i > 0 { 1e-3 * truth.numel() as f64 } else { 0.0 };
                assert!(
                    off.gt(bound).sum(Kind::Double).double_value(&[]) <= flipped,
                    "{size:?} {relu} {biased} tensor {i}: {:e}",
                    off.max().double_value(&[])
                );
            }
        }
    }
}

#[test]
fn the_linear_map_gives_the_same_bits_on_one_thread_and_on_four() {
    // Worth four threads: 64 × 1024 × 512 products.
    let size = [64, 1024, 512];
    let threads = tch::get_num_threads();
    tch::set_num_threads(1);
    let one = run(size, true, true, Kind::Float);
    tch::set_num_threads(4);
    let four = run(size, true, true, Kind::Float);
    tch::set_num_threads(threads);
    assert!(one.iter().zip(&four).all(|(one, four)| one.equal(four)));
}

#[test]
fn a_run_of_small_steps_learns_the_same_bits_on_one_thread_and_on_four() {
    let home = tempfile::tempdir().unwrap();
    let config = write_config(
        home.path(),
        "
device: cpu
model: {name: mlp, args: {hidden: 256}}
task: classification
data: {train: {shapes: {count: 640, size: 28}}, batch_size: 16}
penalty: {l2: 0.001}
train: {epochs: 3, clip: {norm: 1.0}}
optimizer: sgd
",
    );
    for optimizer in
        ["{sgd: {lr: 0.05, momentum: 0.9, nesterov: true}}", "{adam: {lr: 0.001, amsgrad: true}}", "adagrad"]
    {
        let weights = ["1", "4"].map(|threads| {
            let output = tempfile::tempdir_in(home.path()).unwrap();
            let set = format!("optimizer={optimizer}");
            let folder = output.path().to_str().unwrap();
            let (code, _, stderr) =
                binary(&["train", &config, "--set", &set, "--threads", threads, "--output", folder]);
            assert_eq!(code, 0, "{stderr}");
            ["model", "optimizer"].map(|part| {
                std::fs::read(output.path().join(format!("checkpoints/last/{part}.safetensors"))).unwrap()
            })
        });
        assert_eq!(weights[0], weights[1], "{optimizer}");
    }
}

#[test]
fn the_linear_map_has_a_second_derivative() {
    let gradient_of_norm = |fused: bool| {
        let kind = if fused { Kind::Float } else { Kind::Double };
        let leaf = |size: &[i64], salt| noise(size, salt).to_kind(kind).set_requires_grad(true);
        let (xs, weight) = (leaf(&[8, 20], 0.1), leaf(&[30, 20], 0.2));
        let ys = match fused {
            true => linear(&xs, &weight, None, true).unwrap().expect("small batches are taken"),
            false => xs.linear::<&Tensor>(&weight, None).relu(),
        };
        let first = Tensor::run_backward(&[ys.square().sum(kind)], &[&xs], true, true);
        first[0].square().sum(kind).backward();
        weight.grad().to_kind(Kind::Double)
    };
    let (own, truth) = (gradient_of_norm(true), gradient_of_norm(false));
    assert!(((own - &truth).abs().max() / truth.abs().max()).double_value(&[]) < 1e-5);
}

#[test]
fn what_the_linear_map_does_not_take_is_left_to_libtorch() {
    let weight = noise(&[30, 20], 0.1);
    for (xs, bias) in [
        (noise(&[65, 20], 0.2), None),
        (noise(&[8, 21], 0.2), None),
        (noise(&[8, 4, 20], 0.2), None),
        (noise(&[20, 8], 0.2).tr(), None),
        (noise(&[8, 20], 0.2).to_kind(Kind::Double), None),
        (noise(&[8, 20], 0.2), Some(noise(&[20], 0.3))),
    ] {
        assert!(linear(&xs, &weight, bias.as_ref(), false).unwrap().is_none(), "{:?}", xs.size());
    }
}

#[test]
fn the_norm_of_all_gradients_is_that_of_float64_and_tells_what_is_not_finite() {
    let tensors = [noise(&[300, 100], 0.1), noise(&[7], 0.2), noise(&[64, 65], 0.3).tr(), noise(&[0], 0.4)];
    let norm =
        |tensors: &[Tensor]| total_norm(&tensors.iter().collect::<Vec<_>>()).unwrap().double_value(&[]);
    let all: f64 =
        tensors.iter().map(|t| t.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[])).sum();
    assert!((norm(&tensors) / all.sqrt() - 1.0).abs() < 1e-6);
    for odd in [f64::NAN, f64::INFINITY] {
        let with = [noise(&[100], 0.1), Tensor::full([3], odd, (Kind::Float, Device::Cpu))];
        assert!(!norm(&with).is_finite());
    }
}
