//! The program on a pretend CUDA (tests/pretend_cuda/), which computes on the CPU and behaves as CUDA does: what a
//! machine without a GPU can show of training on one.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tch::{Kind, Tensor};

use crate::common::{outcome, records, tikhonov, write_config};

mod device;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pretend_cuda");

/// The counters of settings.h; without any where the device's library was not loaded.
#[derive(Clone, Debug)]
pub struct Counts(BTreeMap<String, i64>);

impl Counts {
    fn read(report: &Path) -> Self {
        let bytes = fs::read(report).unwrap();
        let entry = |bytes: &[u8]| {
            let (name, value) = bytes.split_at(24);
            let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
            (name, i64::from_le_bytes(value.try_into().unwrap()))
        };
        Self(bytes.chunks_exact(32).map(entry).collect())
    }

    /// Those of this process, which runs inside [`inside`].
    pub fn now() -> Self {
        Self::read(Path::new(&std::env::var_os("PRETEND_CUDA_REPORT").unwrap()))
    }

    pub fn of(&self, name: &str) -> i64 {
        match self.0.get(name) {
            Some(value) => *value,
            None => panic!("no counter {name}: {self:?}"),
        }
    }

    pub fn is_loaded(&self) -> bool {
        !self.0.is_empty()
    }
}

/// A finished command on the pretend device.
pub struct Outcome {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub counts: Counts,
}

impl Outcome {
    /// Of a command that succeeded, on the device, without a mistake that pretend.cpp finds.
    pub fn checked(self) -> Self {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        assert!(self.counts.is_loaded() && self.counts.of("operators") > 0, "a silent run on the CPU");
        for mistake in ["races", "unrecorded", "open_pools", "delayed"] {
            assert_eq!(self.counts.of(mistake), 0, "{mistake}: {}", self.stderr);
        }
        self
    }
}

/// The folder with the pretend libtorch_cuda.so, compiled once for this libtorch; None, said aloud, where it cannot be.
pub fn library(test: &str) -> Option<&'static Path> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match BUILT.get_or_init(compile) {
        Ok(folder) => Some(folder),
        Err(reason) => {
            eprintln!("SKIPPED {test}: no pretend CUDA: {reason}");
            None
        }
    }
}

fn compile() -> Result<PathBuf, String> {
    let torch = Path::new(env!("TIKHONOV_LIBTORCH"));
    if !torch.join("lib/libtorch_cuda.so").exists() {
        return Err("this libtorch has no CUDA, and the binary does not look for it".into());
    }
    let wheels = torch.parent().map(|site| site.join("nvidia/cu13/include"));
    let toolkit = std::env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("include"));
    let is_whole = |include: &PathBuf| include.join("crt/host_config.h").exists();
    let cuda = [wheels, toolkit].into_iter().flatten().find(is_whole).ok_or("no CUDA headers")?;
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let mut key = DefaultHasher::new();
    let mut files: Vec<_> = fs::read_dir(SOURCES)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| error.to_string())?
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "h" || extension == "cpp"))
        .collect();
    files.sort();
    for file in &files {
        fs::read(file).map_err(|error| error.to_string())?.hash(&mut key);
    }
    (torch, &cuda, &compiler).hash(&mut key);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pretend_cuda-{:016x}", key.finish()));
    if folder.exists() {
        return Ok(folder);
    }
    // Under a name of its own until it is whole: another process may compile it too.
    let mine = folder.with_extension(std::process::id().to_string());
    fs::create_dir_all(&mine).map_err(|error| error.to_string())?;
    let mut command = Command::new(compiler);
    command.args(["-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-Wl,-soname,libtorch_cuda.so"]);
    for include in [torch.join("include"), torch.join("include/torch/csrc/api/include"), cuda] {
        command.arg("-I").arg(include);
    }
    command.arg(format!("{SOURCES}/pretend.cpp")).arg("-L").arg(torch.join("lib")).args([
        "-ltorch_cpu",
        "-lc10",
        "-o",
    ]);
    let output = command.arg(mine.join("libtorch_cuda.so")).output();
    let output = output.map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)));
    }
    if fs::rename(&mine, &folder).is_err() {
        fs::remove_dir_all(&mine).map_err(|error| error.to_string())?;
    }
    Ok(folder)
}

/// Runs the binary on the pretend device, with these variables of pretend.cpp.
pub fn pretend(library: &Path, args: &[&str], variables: &[(&str, &str)]) -> Outcome {
    finish(tikhonov().args(args), library, variables)
}

fn finish(command: &mut Command, library: &Path, variables: &[(&str, &str)]) -> Outcome {
    let report = tempfile::NamedTempFile::new().unwrap();
    command.env("LD_LIBRARY_PATH", library).env("OMP_NUM_THREADS", "1");
    command.env("PRETEND_CUDA_REPORT", report.path()).envs(variables.iter().copied());
    let (code, stdout, stderr) = outcome(command.output().unwrap());
    Outcome { code, stdout, stderr, counts: Counts::read(report.path()) }
}

/// Whether this process runs the test `name`, and nothing else, with the pretend device in its libtorch. If not,
/// it starts one that does, and passes on its failure.
pub fn inside(name: &str, variables: &[(&str, &str)]) -> bool {
    if std::env::var_os("TIKHONOV_TEST_INSIDE").is_some() {
        tikhonov::libtorch::cuda::load().unwrap();
        return true;
    }
    let Some(library) = library(name) else { return false };
    let outcome = starts_inside(library, name, variables);
    assert!(
        outcome.code == 0 && outcome.stdout.contains("1 passed"),
        "{}\n{}",
        outcome.stdout,
        outcome.stderr
    );
    false
}

/// The test `name` in a process of its own with the pretend device.
fn starts_inside(library: &Path, name: &str, variables: &[(&str, &str)]) -> Outcome {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("pretend_cuda::{name}"), "--nocapture"]);
    finish(command.env("TIKHONOV_TEST_INSIDE", "1"), library, variables)
}

/// The largest difference between the weights and buffers of two runs' last checkpoints.
pub fn difference(run: &Path, other: &Path) -> f64 {
    let read = |run: &Path| {
        let file = run.join("checkpoints/last/model.safetensors");
        let mut tensors =
            Tensor::read_safetensors(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        tensors.sort_by(|(name, _), (other, _)| name.cmp(other));
        tensors
    };
    let (ours, theirs) = (read(run), read(other));
    assert_eq!(ours.len(), theirs.len());
    let apart = |((name, own), (also, their)): (&(String, Tensor), &(String, Tensor))| {
        assert_eq!((name, own.size()), (also, their.size()));
        f64::try_from((own.to_kind(Kind::Double) - their.to_kind(Kind::Double)).abs().max()).unwrap()
    };
    // Not f64::max, which prefers any number to NaN.
    ours.iter().zip(&theirs).map(apart).fold(0.0, |most, next| if next <= most { most } else { next })
}

const TINY: &str = "
seed: 1
threads: 1
model: {name: small-cnn, args: {channels: 1, size: 16, classes: 4, width: 2}}
task: classification
data:
  train: {shapes: {count: 200, size: 16, classes: 4}}
  test: {shapes: {count: 20, size: 16, classes: 4}}
  batch_size: 10
penalty: {l2: 1.0e-3}
optimizer: {sgd: {lr: 0.05, momentum: 0.9}}
train: {epochs: 1, log_every: 10}
";

#[test]
fn a_run_on_the_pretend_device_is_the_one_on_the_cpu_with_and_without_a_cuda_graph() {
    let Some(library) = library("a_run_on_the_pretend_device_is_the_one_on_the_cpu") else { return };
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), TINY);
    let train = |name: &str, device: &str, graph: &str| {
        let output = home.path().join(name);
        let graph = format!("train.cuda_graph={graph}");
        let args =
            ["train", &config, "--device", device, "--set", &graph, "--output", output.to_str().unwrap()];
        let outcome = pretend(library, &args, &[]);
        let outcome = if device == "cpu" { outcome } else { outcome.checked() };
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        (output, outcome.counts)
    };
    let (cpu, counts) = train("cpu", "cpu", "false");
    assert!(!counts.is_loaded());
    let (eager, counts) = train("eager", "cuda", "false");
    assert!(counts.of("operators") > 1000 && counts.of("replays") == 0, "{counts:?}");
    let (graph, counts) = train("graph", "cuda", "true");
    assert!(counts.of("replays") > 10, "{counts:?}");
    // The CPU has kernels of its own for small networks, which add in another order.
    assert!(difference(&eager, &cpu) < 1e-5, "{}", difference(&eager, &cpu));
    assert_eq!(difference(&graph, &eager), 0.0);
    let losses =
        |run: &Path| -> Vec<_> { records(run, "step").iter().map(|step| step["loss"].clone()).collect() };
    assert_eq!(losses(&graph), losses(&eager));
}

#[test]
fn no_step_waits_for_the_device() {
    let Some(library) = library("no_step_waits_for_the_device") else { return };
    let home = tempfile::tempdir().unwrap();
    let config = write_config(home.path(), TINY);
    let waits = |samples: usize, graph: &str| {
        let output = home.path().join(format!("{graph}-{samples}"));
        let count = format!("data.train={{shapes: {{count: {samples}, size: 16, classes: 4}}}}");
        let mut args = vec!["train", &config, "--device", "cuda", "--output", output.to_str().unwrap()];
        let graph = format!("train.cuda_graph={graph}");
        for set in [&count, &graph, "data.normalize=none", "train.log_every=1000"] {
            args.extend(["--set", set]);
        }
        pretend(library, &args, &[]).checked().counts
    };
    for graph in ["false", "true"] {
        let (few, many) = (waits(200, graph), waits(1200, graph));
        assert_eq!(many.of("syncs"), few.of("syncs"), "{few:?} {many:?}");
    }
}
