//! A matrix product and a convolution with its gradients, against plain loops over small whole numbers: every
//! intermediate result is exact in float32 (and in TF32), so a right answer is an equal one.

use tch::{Device, Kind, Tensor};

use crate::libtorch;

/// (what was computed, what is wrong with it).
pub fn check(device: Device) -> Vec<(&'static str, Option<String>)> {
    let run = |f: fn(Device) -> Result<(), String>| match libtorch::catch_panics(|| f(device)) {
        Ok(outcome) => outcome.err(),
        Err(panic) => Some(panic.to_string()),
    };
    vec![("matrix product", run(product)), ("convolution and its gradients", run(convolution))]
}

/// Uniform noise in ±1, float64, without libtorch's generator.
pub fn noise(size: &[i64], salt: f64) -> Tensor {
    let count = size.iter().product::<i64>();
    let uniform = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + salt).sin() * 43758.5453;
    ((&uniform - uniform.floor()) * 2.0 - 1.0).view(size)
}

/// Whole numbers from -3 to 3 that repeat with no simple period.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * i + 3 * i + seed * 5) % 7) as f32 - 3.0).collect()
}

fn tensor(values: &[f32], shape: &[i64], device: Device) -> Tensor {
    Tensor::from_slice(values).reshape(shape).to_device(device)
}

fn compare(what: &str, got: &Tensor, wanted: &[f32]) -> Result<(), String> {
    let got = Vec::<f32>::try_from(got.to_device(Device::Cpu).to_kind(Kind::Float).flatten(0, -1))
        .map_err(|error| error.to_string())?;
    match got.iter().zip(wanted).position(|(got, wanted)| got != wanted) {
        _ if got.len() != wanted.len() => Err(format!("{what}: {} numbers, not {}", got.len(), wanted.len())),
        Some(index) => Err(format!("{what}: element {index} is {}, not {}", got[index], wanted[index])),
        None => Ok(()),
    }
}

fn product(device: Device) -> Result<(), String> {
    const N: usize = 48;
    let (a, b) = (numbers(N * N, 1), numbers(N * N, 2));
    let mut wanted = vec![0.0; N * N];
    for row in 0..N {
        for column in 0..N {
            wanted[row * N + column] = (0..N).map(|k| a[row * N + k] * b[k * N + column]).sum();
        }
    }
    let size = [N as i64, N as i64];
    compare("product", &tensor(&a, &size, device).matmul(&tensor(&b, &size, device)), &wanted)
}

/// 2 images of 3 channels, 8 by 8, with 4 filters of 3 by 3 and padding 1.
fn convolution(device: Device) -> Result<(), String> {
    const N: usize = 2;
    const C: usize = 3;
    const K: usize = 4;
    const S: usize = 8;
    let (x, w, g) = (numbers(N * C * S * S, 3), numbers(K * C * 9, 4), numbers(N * K * S * S, 5));
    let (mut y, mut dx, mut dw) = (vec![0.0; g.len()], vec![0.0; x.len()], vec![0.0; w.len()]);
    for n in 0..N {
        for k in 0..K {
            for c in 0..C {
                for (row, column, i, j) in places(S) {
                    let at_x = ((n * C + c) * S + row + i - 1) * S + column + j - 1;
                    let at_y = ((n * K + k) * S + row) * S + column;
                    let at_w = ((k * C + c) * 3 + i) * 3 + j;
                    y[at_y] += x[at_x] * w[at_w];
                    dx[at_x] += g[at_y] * w[at_w];
                    dw[at_w] += g[at_y] * x[at_x];
                }
            }
        }
    }
    let (n, c, k, s) = (N as i64, C as i64, K as i64, S as i64);
    let x = tensor(&x, &[n, c, s, s], device).set_requires_grad(true);
    let w = tensor(&w, &[k, c, 3, 3], device).set_requires_grad(true);
    let out = x.conv2d(&w, None::<Tensor>, [1], [1], [1], 1);
    compare("output", &out, &y)?;
    (out * tensor(&g, &[n, k, s, s], device)).sum(Kind::Float).backward();
    compare("gradient of the input", &x.grad(), &dx)?;
    compare("gradient of the weights", &w.grad(), &dw)
}

/// Every output pixel with every filter element that reads inside the image.
fn places(size: usize) -> impl Iterator<Item = (usize, usize, usize, usize)> {
    let all = (0..size * size * 9).map(move |at| (at / 9 / size, at / 9 % size, at % 9 / 3, at % 3));
    all.filter(move |(row, column, i, j)| {
        (1..=size).contains(&(row + i)) && (1..=size).contains(&(column + j))
    })
}
