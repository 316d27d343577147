//! The fused batch norm against libtorch's own operations in float64.

use tch::{Device, Kind, Tensor};
use tikhonov::libtorch::kernels::batch_norm::{Channels, batch_norm};

use crate::common::{self, channels_last};

/// Value, gradients (xs, addend, weight, bias) and running statistics.
type Outcome = Vec<Tensor>;

struct Case {
    size: [i64; 4],
    added: bool,
    relu: bool,
    affine: bool,
    kind: Kind,
}

/// xs with a mean far from zero in some channels; addend, weight, bias and the gradient that comes back.
fn inputs(case: &Case) -> [Tensor; 5] {
    let channels = case.size[1];
    // Of variance 1.
    let noise = |size: &[i64], salt: f64| common::noise(size, salt) * 3f64.sqrt();
    let xs = noise(&case.size, 0.1) * 3.0 + noise(&[1, channels, 1, 1], 0.2) * 20.0;
    // Rounded once, so that both sides see the same numbers.
    let round = |tensor: Tensor| tensor.to_kind(case.kind).to_kind(Kind::Double);
    let own = |tensor: Tensor| tensor.to_kind(Kind::Float).to_kind(Kind::Double);
    [
        round(xs),
        round(noise(&case.size, 0.3)),
        own(noise(&[channels], 0.4)),
        own(noise(&[channels], 0.5)),
        round(noise(&case.size, 0.6)),
    ]
}

fn run(case: &Case, kind: Kind, fused: bool) -> Outcome {
    let [xs, addend, weight, bias, dys] = inputs(case);
    let leaf = |tensor: &Tensor, kind: Kind| channels_last(tensor, kind).set_requires_grad(true);
    let own = if kind == Kind::Double { Kind::Double } else { Kind::Float };
    let (xs, addend) = (leaf(&xs, kind), leaf(&addend, kind));
    let (weight, bias) =
        (weight.to_kind(own).set_requires_grad(true), bias.to_kind(own).set_requires_grad(true));
    let mean = Tensor::full([case.size[1]], 0.5, (own, Device::Cpu));
    let var = Tensor::full([case.size[1]], 2.0, (own, Device::Cpu));
    let given = |tensor| case.affine.then_some(tensor);
    let ys = if fused {
        let channels = Channels {
            weight: given(&weight),
            bias: given(&bias),
            running_mean: &mean,
            running_var: &var,
            momentum: 0.1,
            eps: 1e-5,
        };
        let ys = batch_norm(&xs, case.added.then_some(&addend), &channels, case.relu).unwrap();
        ys.expect("channels-last images on the CPU are taken")
    } else {
        let (ws, bs) = (given(&weight), given(&bias));
        let ys = Tensor::batch_norm(&xs, ws, bs, Some(&mean), Some(&var), true, 0.1, 1e-5, false);
        let ys = if case.added { ys + &addend } else { ys };
        if case.relu { ys.relu() } else { ys }
    };
    (&ys * channels_last(&dys, kind)).sum(Kind::Double).backward();
    let mut all = vec![ys.detach(), xs.grad()];
    if case.added {
        all.push(addend.grad());
    }
    if case.affine {
        all.extend([weight.grad(), bias.grad()]);
    }
    all.extend([mean, var]);
    all.into_iter().map(|tensor| tensor.to_kind(Kind::Double).contiguous()).collect()
}

/// The largest difference, as a share of the largest value.
fn apart(one: &Tensor, other: &Tensor) -> f64 {
    ((one - other).abs().max().double_value(&[])) / other.abs().max().double_value(&[])
}

#[test]
fn the_fused_batch_norm_gives_the_values_gradients_and_statistics_of_float64() {
    let sizes =
        [[4, 24, 14, 14], [2, 3, 33, 17], [4, 1, 9, 9], [3, 100, 5, 7], [2, 513, 3, 3], [16, 64, 1, 1]];
    for size in sizes {
        for flags in 0..8 {
            let [added, relu, affine] = [0, 1, 2].map(|bit| flags >> bit & 1 == 1);
            for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2)] {
                let case = Case { size, added, relu, affine, kind };
                let truth = run(&case, Kind::Double, false);
                let (fused, libtorch) = (run(&case, kind, true), run(&case, kind, false));
                assert_eq!(fused.len(), truth.len());
                for (i, ((fused, libtorch), truth)) in fused.iter().zip(&libtorch).zip(&truth).enumerate() {
                    // A value next to zero may fall on the other side of the ReLU: not counted in the
                    // gradient.
                    let agree = if i == 1 || i == 2 && added {
                        let off = (fused - truth).abs().ge(tolerance * truth.abs().max().double_value(&[]));
                        off.sum(Kind::Double).double_value(&[]) <= 1e-3 * truth.numel() as f64
                    } else {
                        let own = apart(fused, truth);
                        own <= tolerance && own <= 4.0 * apart(libtorch, truth) + 1e-6
                    };
                    let [own, other] = [fused, libtorch].map(|tensor| apart(tensor, truth));
                    assert!(
                        agree || own <= other,
                        "{size:?} {added} {relu} {affine} {kind:?} tensor {i}: {own:e}, libtorch {other:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_fused_batch_norm_gives_the_same_bits_on_one_thread_and_on_four() {
    let case = Case { size: [8, 24, 20, 20], added: true, relu: true, affine: true, kind: Kind::Float };
    let threads = tch::get_num_threads();
    tch::set_num_threads(1);
    let one = run(&case, Kind::Float, true);
    tch::set_num_threads(4);
    let four = run(&case, Kind::Float, true);
    tch::set_num_threads(threads);
    assert!(one.iter().zip(&four).all(|(one, four)| one.equal(four)));
}

#[test]
fn what_the_fused_batch_norm_does_not_take_is_left_to_libtorch() {
    let (mean, var) =
        (Tensor::zeros([4], (Kind::Float, Device::Cpu)), Tensor::ones([4], (Kind::Float, Device::Cpu)));
    let channels = Channels {
        weight: None,
        bias: None,
        running_mean: &mean,
        running_var: &var,
        momentum: 0.1,
        eps: 1e-5,
    };
    for (size, kind) in
        [(vec![2, 4, 8, 8], Kind::Float), (vec![8, 4], Kind::Float), (vec![2, 4, 8, 8], Kind::Double)]
    {
        let xs = Tensor::randn(&size, (kind, Device::Cpu));
        assert!(batch_norm(&xs, None, &channels, true).unwrap().is_none());
    }
    assert!(mean.equal(&Tensor::zeros([4], (Kind::Float, Device::Cpu))));
}
