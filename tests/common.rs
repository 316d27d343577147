//! What the tests share: the binary, a Python with torch beside it, the real data where it exists.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tch::{Device, Kind, Tensor};

/// The `tikhonov` binary, ready for arguments.
pub fn tikhonov() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tikhonov"))
}

/// Runs the binary and returns (exit code, stdout, stderr). A signal counts as exit code -1.
pub fn run(args: &[&str]) -> (i32, String, String) {
    outcome(tikhonov().args(args).output().expect("the binary starts"))
}

/// Runs the binary, which has to succeed, and returns its stdout.
pub fn succeeds(args: &[&str]) -> String {
    let (code, stdout, stderr) = run(args);
    assert_eq!(code, 0, "{args:?}\n{stdout}\n{stderr}");
    stdout
}

/// (exit code, stdout, stderr) of a finished process.
pub fn outcome(output: Output) -> (i32, String, String) {
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// A config of this text in the folder.
pub fn write_config(folder: &Path, text: &str) -> String {
    let path = folder.join("config-under-test.yaml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A file of JSON.
pub fn read_json(file: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// What a run told of itself, of this kind: `step` or `epoch`.
pub fn records(run: &Path, kind: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|record| record["kind"] == kind).collect()
}

/// A part of a run's last checkpoint (`model`, `optimizer`, `ema`), byte for byte.
pub fn saved(run: &Path, part: &str) -> Vec<u8> {
    std::fs::read(run.join(format!("checkpoints/last/{part}.safetensors"))).unwrap()
}

/// Starts a command that resumes once for each of `moments`, kills it shortly after the file `told` has so
/// many lines, and in the end lets it finish. How often there was something to kill.
pub fn killed_at(moments: &[usize], told: &Path, args: &[&str]) -> usize {
    let lines = || std::fs::read_to_string(told).map_or(0, |text| text.lines().count());
    let mut kills = 0;
    for &wanted in moments {
        let mut child = tikhonov().args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let began = Instant::now();
        while lines() < wanted && child.try_wait().unwrap().is_none() && began.elapsed().as_secs() < 300 {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(15));
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let (code, _, stderr) = run(args);
    assert_eq!(code, 0, "{stderr}");
    kills
}

/// The Python whose torch the binary is linked with: `TIKHONOV_PYTHON`, else the one that owns libtorch's
/// folder.
pub fn python_path() -> PathBuf {
    if let Some(python) = std::env::var_os("TIKHONOV_PYTHON") {
        return python.into();
    }
    // <venv>/lib/python3.x/site-packages/torch
    let torch = Path::new(env!("TIKHONOV_LIBTORCH"));
    torch.ancestors().nth(4).map_or_else(|| "python3".into(), |venv| venv.join("bin/python"))
}

/// Runs a Python script with torch and numpy and returns what it printed; a failing script fails the test.
pub fn python(script: &str) -> String {
    let output = Command::new(python_path())
        .args(["-c", script])
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap_or_else(|error| panic!("no Python at {}: {error}", python_path().display()));
    let (code, stdout, stderr) = outcome(output);
    assert_eq!(code, 0, "Python failed:\n{stderr}");
    stdout
}

/// Whether Python has the optional `modules`; where it lacks one, that `test` skips is said aloud.
pub fn has_modules(test: &str, modules: &[&str]) -> bool {
    let script = format!(
        "import importlib.util\nprint(*[m for m in {modules:?} if importlib.util.find_spec(m) is None])"
    );
    let lacking = python(&script);
    if !lacking.trim().is_empty() {
        eprintln!("SKIPPED {test}: Python has no {}", lacking.trim().replace(' ', ", no "));
    }
    lacking.trim().is_empty()
}

/// The folder of real data: `TIKHONOV_DATA`, else `../shared/data`; None, said aloud, where there is neither.
pub fn data_dir(test: &str) -> Option<PathBuf> {
    let candidates = [
        std::env::var_os("TIKHONOV_DATA").map(PathBuf::from),
        Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data")),
    ];
    let found = candidates.into_iter().flatten().find(|folder| folder.join("README.md").exists());
    if found.is_none() {
        eprintln!("SKIPPED {test}: no real data; set TIKHONOV_DATA to its folder");
    }
    found
}

/// Whether this process runs the test `name` and nothing else. If not, it starts one that does and passes on
/// its failure. For tests that need torch's global generator to themselves.
pub fn alone(name: &str) -> bool {
    if std::env::var_os("TIKHONOV_TEST_ALONE").is_some() {
        return true;
    }
    let binary = std::env::current_exe().expect("the test binary has a path");
    let output = Command::new(binary)
        .args(["--exact", name, "--nocapture"])
        .env("TIKHONOV_TEST_ALONE", "1")
        // As the Python beside it: other threads add in another order, and a ReLU at its kink falls to the
        // other side.
        .env("OMP_NUM_THREADS", "1")
        .output()
        .expect("the test binary starts");
    let (code, stdout, stderr) = outcome(output);
    assert!(code == 0 && stdout.contains("1 passed"), "{name} failed alone:\n{stdout}\n{stderr}");
    false
}

/// Uniform noise in ±1, float64, without libtorch's generator, which tests on other threads draw from too.
pub fn noise(size: &[i64], salt: f64) -> Tensor {
    let count = size.iter().product::<i64>();
    let uniform = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + salt).sin() * 43758.5453;
    ((&uniform - uniform.floor()) * 2.0 - 1.0).view(size)
}

/// `[N, C, H, W]` with the channels of a pixel side by side in memory.
#[cfg(feature = "kernels")]
pub fn channels_last(tensor: &Tensor, kind: Kind) -> Tensor {
    tensor.to_kind(kind).permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// The λs of a weight under `penalty: {…}`.
pub fn lambdas(penalty: &str) -> tikhonov::penalty::LambdaValues {
    serde_yaml::from_str::<tikhonov::penalty::PenaltySpec>(penalty).unwrap().lambdas()
}
