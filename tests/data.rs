//! Data sources: every format against files that Python wrote, damaged files, generators, splits, smoothing.

mod floats;
mod formats;
mod generated;
mod image_tables;
mod images;
mod pairs;
mod pictures;
mod shards;
mod tables;

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tch::{Kind, Tensor};
use tikhonov::data::{DataSpec, Dataset, Samples, Split, Splits, Targets};
use tikhonov::util::exit_code;

use crate::common::{outcome, python_path};

/// Python's twin of `sums`.
const SUMS: &str = "
import numpy as np
def sums(a):
    f = np.ascontiguousarray(a).astype(np.int64).ravel()
    return f'{list(a.shape)} {f.sum()} {(f * (np.arange(f.size) % 1009)).sum()}'
";

/// Runs a Python script in `folder` and returns what it printed; a failing script fails the test.
fn python_in(folder: &Path, script: &str) -> String {
    let output = Command::new(python_path())
        .args(["-c", &format!("{SUMS}{script}")])
        .current_dir(folder)
        .output()
        .expect("Python runs");
    let (code, stdout, stderr) = outcome(output);
    assert_eq!(code, 0, "Python failed:\n{stderr}");
    stdout
}

/// A folder with the files that a Python script makes in it.
fn made_by(script: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let printed = python_in(folder.path(), script);
    (folder, printed)
}

/// The path of a file in a folder, as a config has it.
fn at(folder: impl AsRef<Path>, name: &str) -> String {
    folder.as_ref().join(name).display().to_string()
}

fn spec(data: Value) -> DataSpec {
    serde_json::from_value(data).expect("a data section")
}

fn open(data: Value) -> Splits {
    let spec = spec(data);
    spec.validate(&Split::ALL).expect("valid");
    spec.open(0).unwrap_or_else(|error| panic!("{error:#}"))
}

/// The text of a data section that is valid and cannot be opened, which is exit 3.
fn refusal(data: Value) -> String {
    let spec = spec(data);
    spec.validate(&Split::ALL).expect("valid");
    match spec.open(0) {
        Ok(_) => panic!("it opened"),
        Err(error) => {
            assert_eq!(exit_code::code(&error), 3, "{error:#}");
            format!("{error:#}")
        }
    }
}

/// `path: message` of a data section that is not valid.
fn mistake(data: Value) -> String {
    spec(data).validate(&Split::ALL).expect_err("a mistake").to_string()
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
        Targets::Values(ys) => numbers(ys),
        _ => panic!("no values"),
    }
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).reshape([-1])).expect("float64")
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    Vec::try_from(tensor.reshape([-1])).expect("uint8")
}

/// Size, sum and index-weighted sum: any shift, swap or change shows.
fn sums(tensor: &Tensor) -> String {
    let flat = tensor.to_kind(Kind::Int64).reshape([-1]);
    let weights = Tensor::arange(flat.size()[0], (Kind::Int64, flat.device())).remainder(1009);
    let sum = |tensor: Tensor| tensor.sum(Kind::Int64).int64_value(&[]);
    format!("{:?} {} {}", tensor.size(), sum(flat.shallow_clone()), sum(flat * weights))
}

/// `sums` of samples and labels, a line each.
fn class_sums(set: &Dataset) -> String {
    format!("{}\n{}\n", sums(xs(set)), sums(&Tensor::from_slice(labels(set))))
}
