//! `doctor --kernels`: each of our own CPU kernels beside libtorch's operations, on this machine: the largest
//! errors against float64, and the times of one call.

use std::io::Write;
use std::time::Instant;

use anyhow::{Result, ensure};
use serde::Serialize;
use tch::{Device, Kind, Reduction, Tensor};

use crate::cli::commands::doctor::arithmetic::noise;
use crate::libtorch::kernels::batch_norm::{Channels, batch_norm};
use crate::libtorch::kernels::linear::linear;
use crate::libtorch::kernels::winograd::conv2d;
use crate::libtorch::kernels::{self, Kernel, loss};
use crate::libtorch::optim::{Control, FusedSgd, total_norm};
use crate::libtorch::{cpu_capability, or_panic};

/// A kernel's error may be this many times libtorch's, and [`SLACK`] more.
const FACTOR: f64 = 4.0;
const SLACK: f64 = 1e-6;

/// Runs of libtorch's and our own calls in turn, and how long each of them takes at the least. Within a run the
/// threads stay awake, as in training.
const ROUNDS: usize = 5;
const SECONDS_PER_ROUND: f64 = 0.03;
/// Calls before a run that do not count: the thread pool wakes its threads after 16 of them.
const WARMUP: usize = 20;

#[derive(Debug, Serialize)]
struct Report {
    capability: String,
    threads: i32,
    /// An error may be `factor` times libtorch's plus `slack`.
    factor: f64,
    slack: f64,
    kernels: Vec<Comparison>,
}

#[derive(Debug, Serialize)]
struct Comparison {
    kernel: &'static str,
    case: &'static str,
    own: Measured,
    libtorch: Measured,
    /// libtorch's time divided by our own.
    speed: f64,
    within_bound: bool,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Measured {
    /// The largest difference to float64 in a result or a gradient, as a share of the largest value there.
    error: f64,
    /// The median of the calls, forward and backward.
    seconds: f64,
}

/// One call, and the tensors that it computes. With float64 inputs every kernel leaves it to libtorch.
type Case = Box<dyn Fn() -> Vec<Tensor>>;

struct Work {
    kernel: Kernel,
    case: &'static str,
    make: fn(Kind) -> Case,
}

const WORK: [Work; 8] = [
    Work { kernel: Kernel::Winograd, case: "64 to 64 channels, 8 images of 32x32", make: convolution },
    Work { kernel: Kernel::Linear, case: "784 to 256 with ReLU, batch of 16", make: hidden_layer },
    Work {
        kernel: Kernel::BatchNorm,
        case: "64 channels, 16 images of 16x16, with ReLU",
        make: normalisation,
    },
    Work { kernel: Kernel::Loss, case: "cross-entropy of 10 classes, batch of 16", make: cross_entropy },
    Work { kernel: Kernel::Loss, case: "squared error, batch of 16", make: squared_error },
    Work { kernel: Kernel::Norms, case: "gradients of an MLP 784-256-256-10", make: gradient_norm },
    Work { kernel: Kernel::ThreadPool, case: "SGD step of an MLP 784-256-256-10", make: optimiser_step },
    Work { kernel: Kernel::ThreadPool, case: "784 to 256 with ReLU, batch of 16", make: hidden_layer },
];

/// Prints the comparison. Fails where an error is out of bounds.
pub fn run(json: bool) -> Result<()> {
    ensure!(
        kernels::COMPILED,
        "this binary was built without the feature `kernels`: there is nothing to compare"
    );
    let compared: Vec<Comparison> = WORK.iter().map(compare).collect();
    let report = Report {
        capability: cpu_capability(),
        threads: tch::get_num_threads(),
        factor: FACTOR,
        slack: SLACK,
        kernels: compared,
    };
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", table(&report))?;
    }
    let wrong: Vec<_> = report.kernels.iter().filter(|row| !row.within_bound).map(|row| row.kernel).collect();
    ensure!(wrong.is_empty(), "errors out of bounds: {}; train with `--kernels libtorch`", wrong.join(", "));
    Ok(())
}

fn compare(work: &Work) -> Comparison {
    let truth = (work.make)(Kind::Double)();
    let call = (work.make)(Kind::Float);
    let with = |own: bool| {
        kernels::enable(work.kernel, own);
        error(&call(), &truth)
    };
    let (own_error, libtorch_error) = (with(true), with(false));
    let (mut own_times, mut libtorch_times) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for (own, times) in [(true, &mut own_times), (false, &mut libtorch_times)] {
            kernels::enable(work.kernel, own);
            times.push(seconds(&call));
        }
    }
    kernels::enable(work.kernel, true);
    let own = Measured { error: own_error, seconds: median(own_times) };
    let libtorch = Measured { error: libtorch_error, seconds: median(libtorch_times) };
    Comparison {
        kernel: work.kernel.name(),
        case: work.case,
        own,
        libtorch,
        speed: libtorch.seconds / own.seconds,
        // NaN is out of bounds.
        within_bound: own.error <= FACTOR * libtorch.error + SLACK,
    }
}

fn error(got: &[Tensor], truth: &[Tensor]) -> f64 {
    let share = |(got, truth): (&Tensor, &Tensor)| {
        let difference = (got.to_kind(Kind::Double) - truth).abs().max().double_value(&[]);
        difference / truth.abs().max().double_value(&[])
    };
    // `f64::max` would drop a NaN.
    got.iter()
        .zip(truth)
        .map(share)
        .fold(0.0, |most, next| if next > most || next.is_nan() { next } else { most })
}

/// The median time of a call.
fn seconds(call: &Case) -> f64 {
    for _ in 0..WARMUP {
        call();
    }
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < 3 || start.elapsed().as_secs_f64() < SECONDS_PER_ROUND {
        let before = Instant::now();
        call();
        times.push(before.elapsed().as_secs_f64());
    }
    median(times)
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn table(report: &Report) -> String {
    let Report { capability, threads, factor, slack, kernels } = report;
    let mut text = format!(
        "{capability}, threads: {threads}; errors against float64, as shares of the largest value\n\
         {:<12} {:<42} {:>9} {:>9} {:>11} {:>11} {:>8}\n",
        "kernel", "case", "error", "libtorch", "time", "libtorch", "speed"
    );
    for Comparison { kernel, case, own, libtorch, speed, within_bound } in kernels {
        let micros = |seconds: f64| format!("{:.1} us", 1e6 * seconds);
        text += &format!(
            "{kernel:<12} {case:<42} {:>9.1e} {:>9.1e} {:>11} {:>11} {speed:>6.2} x{}\n",
            own.error,
            libtorch.error,
            micros(own.seconds),
            micros(libtorch.seconds),
            if *within_bound { "" } else { "  OUT OF BOUNDS" },
        );
    }
    text += &format!("an error may be {factor} times libtorch's plus {slack:e}\n");
    text
}

/// Numbers from -1 to 1, rounded to float32 so that both kinds get the same.
fn numbers(size: &[i64], salt: f64, kind: Kind) -> Tensor {
    noise(size, salt).to_kind(Kind::Float).to_kind(kind)
}

fn leaf(size: &[i64], salt: f64, scale: f64, kind: Kind) -> Tensor {
    (numbers(size, salt, Kind::Float) * scale).to_kind(kind).set_requires_grad(true)
}

fn images(size: &[i64], salt: f64, kind: Kind) -> Tensor {
    let order = numbers(size, salt, kind).permute([0, 2, 3, 1]).contiguous();
    order.permute([0, 3, 1, 2]).set_requires_grad(true)
}

/// The value, and its gradients by `inputs` where `dys` comes back.
fn with_gradients(ys: Tensor, dys: &Tensor, inputs: &[&Tensor]) -> Vec<Tensor> {
    let mut all = vec![ys.detach()];
    all.extend(Tensor::run_backward(&[(ys * dys).sum(dys.kind())], inputs, false, false));
    all
}

fn convolution(kind: Kind) -> Case {
    let (xs, weight) = (images(&[8, 64, 32, 32], 0.1, kind), leaf(&[64, 64, 3, 3], 0.2, 0.05, kind));
    let dys = images(&[8, 64, 32, 32], 0.3, kind).detach();
    Box::new(move || {
        let own = or_panic(conv2d(&xs, &weight, None, 1));
        let ys = own.unwrap_or_else(|| xs.conv2d(&weight, None::<&Tensor>, [1], [1], [1], 1));
        with_gradients(ys, &dys, &[&xs, &weight])
    })
}

/// `dys` without those of `ys`, the ReLU's inputs, that rounding could move across its kink; both float64.
fn away_from_kink(dys: &Tensor, ys: &Tensor, kind: Kind) -> Tensor {
    (dys * ys.detach().abs().ge(1e-4).to_kind(Kind::Double)).to_kind(kind)
}

fn hidden_layer(kind: Kind) -> Case {
    let inputs = |kind| {
        let (xs, weight) = (numbers(&[16, 784], 0.1, kind), leaf(&[256, 784], 0.2, 0.05, kind));
        (xs, weight, leaf(&[256], 0.3, 0.05, kind))
    };
    let (xs, weight, bias) = inputs(Kind::Double);
    let dys = away_from_kink(&numbers(&[16, 256], 0.4, Kind::Double), &xs.linear(&weight, Some(&bias)), kind);
    let (xs, weight, bias) = inputs(kind);
    Box::new(move || {
        let own = or_panic(linear(&xs, &weight, Some(&bias), true));
        let ys = own.unwrap_or_else(|| xs.linear(&weight, Some(&bias)).relu());
        with_gradients(ys, &dys, &[&weight, &bias])
    })
}

fn normalisation(kind: Kind) -> Case {
    let size = [16, 64, 16, 16];
    let inputs = |kind| (images(&size, 0.1, kind), leaf(&[64], 0.3, 1.0, kind), leaf(&[64], 0.4, 1.0, kind));
    let statistics =
        |kind| (Tensor::zeros([64], (kind, Device::Cpu)), Tensor::ones([64], (kind, Device::Cpu)));
    let (xs, weight, bias) = inputs(Kind::Double);
    let (mean, var) = statistics(Kind::Double);
    let ys = xs.batch_norm(Some(&weight), Some(&bias), Some(&mean), Some(&var), true, 0.1, 1e-5, false);
    let dys = away_from_kink(&images(&size, 0.2, Kind::Double), &ys, kind).detach();
    let ((xs, weight, bias), (mean, var)) = (inputs(kind), statistics(kind));
    Box::new(move || {
        let channels = Channels {
            weight: Some(&weight),
            bias: Some(&bias),
            running_mean: &mean,
            running_var: &var,
            momentum: 0.1,
            eps: 1e-5,
        };
        let own = or_panic(batch_norm(&xs, None, &channels, true));
        let ys = own.unwrap_or_else(|| {
            let (weight, bias) = (Some(&weight), Some(&bias));
            xs.batch_norm(weight, bias, Some(&mean), Some(&var), true, 0.1, 1e-5, false).relu()
        });
        with_gradients(ys, &dys, &[&xs, &weight, &bias])
    })
}

fn cross_entropy(kind: Kind) -> Case {
    let logits = leaf(&[16, 10], 0.1, 4.0, kind);
    let ys = Tensor::arange(16, (Kind::Int64, Device::Cpu)).remainder(10);
    let one = Tensor::ones([0i64; 0], (kind, Device::Cpu));
    Box::new(move || {
        let own = or_panic(loss::cross_entropy(&logits, &ys, 0.1));
        let loss = own
            .unwrap_or_else(|| logits.cross_entropy_loss(&ys, None::<&Tensor>, Reduction::Mean, -100, 0.1));
        with_gradients(loss, &one, &[&logits])
    })
}

fn squared_error(kind: Kind) -> Case {
    let (outputs, ys) = (leaf(&[16, 1], 0.1, 1.0, kind), numbers(&[16, 1], 0.2, kind));
    let one = Tensor::ones([0i64; 0], (kind, Device::Cpu));
    Box::new(move || {
        let own = or_panic(loss::squared_error(&outputs, &ys, 0.5));
        let loss = own.unwrap_or_else(|| outputs.mse_loss(&ys, Reduction::Mean) * 0.5);
        with_gradients(loss, &one, &[&outputs])
    })
}

/// The shapes of the parameters of an MLP 784-256-256-10.
const MLP: [&[i64]; 6] = [&[256, 784], &[256], &[256, 256], &[256], &[10, 256], &[10]];

fn mlp(salt: f64, kind: Kind) -> Vec<Tensor> {
    MLP.iter().zip(1..).map(|(size, index)| numbers(size, salt + 0.01 * f64::from(index), kind)).collect()
}

fn gradient_norm(kind: Kind) -> Case {
    let grads = mlp(0.1, kind);
    Box::new(move || vec![or_panic(total_norm(&grads.iter().collect::<Vec<_>>()))])
}

/// The weights after one step from the same start; copying them back is a part of the call on either side.
fn optimiser_step(kind: Kind) -> Case {
    let (start, grads, momenta) = (mlp(0.1, kind), mlp(0.2, kind), mlp(0.3, kind));
    let weights: Vec<Tensor> = start.iter().map(Tensor::copy).collect();
    let buffers: Vec<Tensor> = momenta.iter().map(Tensor::copy).collect();
    let rule =
        FusedSgd { weight_decay: 1e-3, momentum: 0.9, dampening: 0.0, nesterov: true, is_first_step: false };
    Box::new(move || {
        for (to, from) in weights.iter().zip(&start).chain(buffers.iter().zip(&momenta)) {
            to.shallow_clone().copy_(from);
        }
        let lists = [&weights, &grads, &buffers].map(|list| list.iter().collect::<Vec<_>>());
        let control = Control { lr: 0.05, lr_tensor: None, found_inf: None };
        or_panic(rule.step(&lists[0], &lists[1], &lists[2], &control));
        weights.iter().map(Tensor::shallow_clone).collect()
    })
}
