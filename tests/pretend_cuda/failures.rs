//! A device that fails: the right exit code, nothing left behind, and no silent run on the CPU.

use std::path::Path;

use super::{difference, library, pretend};
use crate::common::{records, write_config};

/// Batches from files come by a stream of their own.
const FILES: &str = "
seed: 1
threads: 1
model:
  input: [1, 16, 16]
  layers:
    - conv2d: {out_channels: 4, kernel_size: 3, padding: 1}
    - dropout: {p: 0.1}
    - conv2d: {out_channels: 1, kernel_size: 3, padding: 1}
task: {reconstruction: {degrade: {gaussian: {sigma: 25}}}}
data:
  train: {images: {root: ROOT, mode: grey, patch: 16}}
  batch_size: 4
  memory_gib: 0
  normalize: none
optimizer: {sgd: {lr: 0.0625, momentum: 0.5}}
train: {epochs: 2, log_every: 4}
";

fn files(home: &Path) -> String {
    let folder = home.join("pictures");
    std::fs::create_dir(&folder).unwrap();
    for at in 0..40u32 {
        let pixel = |x: u32, y: u32| image::Luma([((x * 7 + y * 11 + at * 5) % 256) as u8]);
        image::GrayImage::from_fn(16, 16, pixel).save(folder.join(format!("{at}.png"))).unwrap();
    }
    write_config(home, &FILES.replace("ROOT", folder.to_str().unwrap()))
}

#[test]
fn memory_that_the_device_refuses_is_exit_6_and_another_failure_exit_1() {
    let Some(library) = library("memory_that_the_device_refuses_is_exit_6") else { return };
    let home = tempfile::tempdir().unwrap();
    let config = files(home.path());
    let fails = |name: &str, variable: (&str, &str), graph: &str| {
        let output = home.path().join(name).to_str().unwrap().to_owned();
        let graph = format!("train.cuda_graph={graph}");
        let args = ["train", &config, "--device", "cuda", "--output", &output, "--set", &graph];
        let outcome = pretend(library, &args, &[variable]);
        (outcome.code, outcome.stderr)
    };
    for (name, variable) in [
        ("small", ("PRETEND_CUDA_MEMORY", "20000")),
        ("at-start", ("PRETEND_CUDA_FAIL", "memory@3")),
        ("later", ("PRETEND_CUDA_FAIL", "memory@150")),
        ("cudnn", ("PRETEND_CUDA_FAIL", "cudnn@150")),
        ("cublas", ("PRETEND_CUDA_FAIL", "cublas@150")),
    ] {
        let (code, stderr) = fails(name, variable, "false");
        assert_eq!(code, 6, "{variable:?}: {stderr}");
    }
    let (code, stderr) = fails("launch", ("PRETEND_CUDA_FAIL", "launch@150"), "false");
    assert!(code == 1 && stderr.contains("unspecified launch failure"), "{code}: {stderr}");
}

#[test]
fn a_recording_that_fails_leaves_nothing_behind_and_the_run_is_the_eager_one() {
    let Some(library) = library("a_recording_that_fails_leaves_nothing_behind") else { return };
    let home = tempfile::tempdir().unwrap();
    let config = files(home.path());
    let train = |name: &str, graph: &str, fail: Option<&str>| {
        let output = home.path().join(name);
        let graph = format!("train.cuda_graph={graph}");
        let args =
            ["train", &config, "--device", "cuda", "--output", output.to_str().unwrap(), "--set", &graph];
        let variables: Vec<_> = fail.map(|fail| ("PRETEND_CUDA_FAIL", fail)).into_iter().collect();
        (pretend(library, &args, &variables), output)
    };
    let (outcome, eager) = train("eager", "false", None);
    let usual = outcome.checked().counts;
    // At the first recorded operator, in the forward pass, in the backward pass.
    for fail in ["cudnn@record:1", "cublas@record:4", "memory@record:6", "cudnn@record:12"] {
        let (outcome, auto) = train(&fail.replace([':', '@'], "-"), "auto", Some(fail));
        let told = outcome.stderr.clone();
        let counts = outcome.checked().counts;
        assert_eq!((counts.recordings, counts.failures, counts.replays), (1, 1, 0), "{fail}");
        assert_eq!(counts.kept_pools, 0, "{fail}: the graph's memory is kept");
        assert!(counts.peak < 2 * usual.peak, "{fail}: {} bytes, not {}", counts.peak, usual.peak);
        assert!(told.contains("no CUDA graph: the step cannot be recorded"), "{fail}: {told}");
        assert_eq!(difference(&auto, &eager), 0.0, "{fail}");
        assert_eq!(records(&auto, "epoch").len(), 2);
    }
    let (outcome, _) = train("insists", "true", Some("cudnn@record:4"));
    assert_ne!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("the step cannot be recorded"), "{}", outcome.stderr);
}
