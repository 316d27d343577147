//! Data sources: every format against files that Python wrote, damaged files, generators, splits, smoothing.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tch::{Kind, Tensor};
use tikhonov::data::{DataSpec, Dataset, Samples, Sets, Targets};
use tikhonov::exit;

use crate::common::{data_dir, outcome, python_path};

/// Runs a Python script in `folder`; a failing script fails the test.
fn python_in(folder: &Path, script: &str) -> String {
    let output =
        Command::new(python_path()).args(["-c", script]).current_dir(folder).output().expect("Python runs");
    let (code, stdout, stderr) = outcome(output);
    assert_eq!(code, 0, "Python failed:\n{stderr}");
    stdout
}

fn spec(data: Value) -> DataSpec {
    serde_json::from_value(data).expect("a data section")
}

fn open(data: Value) -> Sets {
    let spec = spec(data);
    spec.validate().expect("valid");
    spec.open(0).unwrap_or_else(|error| panic!("{error:#}"))
}

/// (exit code, text) of a data section that cannot be opened.
fn refusal(data: Value) -> (u8, String) {
    let spec = spec(data);
    spec.validate().expect("valid");
    match spec.open(0) {
        Ok(_) => panic!("it opened"),
        Err(error) => (exit::code(&error), format!("{error:#}")),
    }
}

fn xs(set: &Dataset) -> &Tensor {
    match &set.samples {
        Samples::Resident(xs) => xs,
        Samples::Files(_) => panic!("files, not resident"),
    }
}

fn labels(set: &Dataset) -> &[i64] {
    match &set.targets {
        Targets::Classes(labels) => labels,
        _ => panic!("no classes"),
    }
}

fn values(set: &Dataset) -> Vec<f64> {
    match &set.targets {
        Targets::Values(ys) => Vec::try_from(ys.view([-1])).expect("float64"),
        _ => panic!("no values"),
    }
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.numel()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// Sum and index-weighted sum of the pixels: any shift, swap or change shows.
fn sums(tensor: &Tensor) -> String {
    let flat = tensor.to_kind(Kind::Int64).view([-1]);
    let weights = Tensor::arange(flat.size()[0], (Kind::Int64, flat.device())).remainder(1009);
    format!(
        "{} {}",
        flat.sum(Kind::Int64).int64_value(&[]),
        (&flat * weights).sum(Kind::Int64).int64_value(&[])
    )
}

const SUMS: &str = "
import numpy as np
def sums(a):
    f = np.ascontiguousarray(a).astype(np.int64).ravel()
    return f'{f.sum()} {(f * (np.arange(f.size) % 1009)).sum()}'
";

#[test]
fn fashion_mnist_reads_as_numpy_reads_it() {
    let Some(data) = data_dir("fashion_mnist_reads_as_numpy_reads_it") else { return };
    let folder = data.join("fashion-mnist");
    let at = |name: &str| folder.join(name).display().to_string();
    let started = std::time::Instant::now();
    let sets = open(json!({
        "train": {"idx": {"images": at("train-images-idx3-ubyte.gz"), "labels": at("train-labels-idx1-ubyte.gz")}},
        "test": {"idx": {"images": at("t10k-images-idx3-ubyte.gz"), "labels": at("t10k-labels-idx1-ubyte.gz")}},
    }));
    eprintln!("opened in {:?}", started.elapsed());
    let script = format!(
        "{SUMS}
import gzip
for part in ['train', 't10k']:
    x = np.frombuffer(gzip.open(part + '-images-idx3-ubyte.gz').read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    y = np.frombuffer(gzip.open(part + '-labels-idx1-ubyte.gz').read(), np.uint8, offset=8)
    print(x.shape, sums(x), sums(y))
"
    );
    let ours = |set: &Dataset| {
        let size: Vec<String> = xs(set).size().iter().map(i64::to_string).collect();
        format!("({}) {} {}\n", size.join(", "), sums(xs(set)), sums(&Tensor::from_slice(labels(set))))
    };
    let test = sets.test.as_ref().expect("a test set");
    assert_eq!(ours(&sets.train) + &ours(test), python_in(&folder, &script));
    assert_eq!(sets.train.shape, [1, 28, 28]);
    assert_eq!(sets.train.classes.len(), 10);
    assert_eq!(bytes(xs(test)).len(), 10_000 * 784);
    let _ = (values as fn(&Dataset) -> Vec<f64>, refusal as fn(Value) -> (u8, String));
}
