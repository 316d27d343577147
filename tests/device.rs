//! Where a run computes: libtorch's CUDA half is loaded in time by those who ask for a GPU, and by nobody
//! else.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::common::{outcome, run, succeeds, tikhonov};

const CONFIG: &str = "
seed: 1
threads: 1
model: {name: small-cnn, args: {channels: 1, size: 16, classes: 10, width: 4}}
task: classification
data:
  train: {shapes: {count: 40, size: 16}}
  test: {shapes: {count: 20, size: 16}}
  batch_size: 20
penalty: {l2: 1.0e-3}
optimizer: {sgd: {lr: 0.05}}
train: {epochs: 1}
";

/// What `doctor` says of CUDA.
fn cuda() -> Value {
    let (_, stdout, stderr) = run(&["doctor", "--json"]);
    let report: Value =
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
    report["cuda"].clone()
}

/// A config and a folder for its run.
fn place() -> (tempfile::TempDir, String, String) {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("tiny.yaml"), CONFIG).unwrap();
    let (config, output) = (at("tiny.yaml"), at("run"));
    (home, config, output)
}

#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn libtorchs_cuda_half_is_loaded_for_those_who_ask_for_a_gpu_and_for_nobody_else() {
    if !Path::new(env!("TIKHONOV_LIBTORCH")).join("lib/libtorch_cuda.so").exists() {
        eprintln!("SKIPPED libtorchs_cuda_half_is_loaded: this libtorch has none");
        return;
    }
    let loads = |args: &[&str]| {
        let (_, stdout, stderr) = outcome(tikhonov().args(args).env("LD_DEBUG", "files").output().unwrap());
        assert!(stderr.contains("libtorch_cpu.so"), "the loader does not tell: {stdout}{stderr}");
        stderr.contains("libtorch_cuda.so")
    };
    let (_home, config, output) = place();
    let train = |device| ["train", &config, "--output", &output, "--device", device];
    assert!(loads(&["doctor"]));
    assert!(loads(&train("cuda")));
    let _ = fs::remove_dir_all(&output);
    assert!(!loads(&train("cpu")));
    assert!(Path::new(&output).join("checkpoints/last").exists(), "it trained");
    assert!(!loads(&["eval", &output, "--device", "cpu"]));
    if cuda()["reason"].as_str().is_some_and(|reason| reason.contains("no NVIDIA driver")) {
        assert!(!loads(&["eval", &output, "--device", "auto"]), "no driver, no GPU");
    }
}

#[test]
fn who_asks_for_a_gpu_that_is_not_there_reads_why_and_gets_no_silent_cpu_run() {
    let cuda = cuda();
    let Some(reason) = cuda["reason"].as_str() else {
        eprintln!("SKIPPED who_asks_for_a_gpu_that_is_not_there: this machine has one");
        return;
    };
    // Of a library that is missing, or of a symbol that it lacks.
    assert!(!reason.contains("cannot be loaded"), "{reason}");
    let (_home, config, output) = place();
    let refused = |args: &[&str]| {
        let (code, _, stderr) = run(&[args, &["--device", "cuda"]].concat());
        assert_eq!(code, 2, "{args:?}: {stderr}");
        let said = stderr.replace('\n', " ");
        assert!(
            said.contains("cuda:0 cannot be used") && said.contains(reason) && said.contains("--device cpu"),
            "{args:?}: {stderr}, not {reason}"
        );
    };
    refused(&["train", &config, "--output", &output]);
    assert!(!Path::new(&output).exists(), "nothing is written before the device is known");
    refused(&["bench", &config]);
    succeeds(&["train", &config, "--device", "cpu", "--output", &output]);
    // With weights in hand, nothing has been computed yet.
    refused(&["eval", &output]);
    let picture = format!("{output}/picture.png");
    image::GrayImage::new(16, 16).save(&picture).unwrap();
    refused(&["predict", &output, &picture]);
}
