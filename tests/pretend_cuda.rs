//! The program on a pretend CUDA (tests/pretend_cuda/), which computes on the CPU and behaves as CUDA does: what a
//! machine without a GPU can show of training on one.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tch::{Kind, Tensor};

use crate::common::{outcome, records, tikhonov, write_config};

mod commands;
mod device;
mod failures;
mod gpu_check;
mod training;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/pretend_cuda");

/// The counters of settings.h, by their names there.
macro_rules! counts {
    ($($name:ident)*) => {
        #[derive(Clone, Debug)]
        #[allow(dead_code)] // all are printed
        pub struct Counts { $(pub $name: i64),* }

        impl Counts {
            /// All are 0 where the device's library was not loaded.
            fn read(report: &Path) -> Self {
                let bytes = fs::read(report).unwrap();
                let value = |name: &str| {
                    let entry = bytes.chunks_exact(32).find(|entry| {
                        String::from_utf8_lossy(&entry[..24]).trim_end_matches('\0') == name
                    });
                    assert!(entry.is_some() || bytes.is_empty(), "no counter {name}");
                    entry.map_or(0, |entry| i64::from_le_bytes(entry[24..].try_into().unwrap()))
                };
                Self { $($name: value(stringify!($name))),* }
            }
        }
    };
}
counts! {
    operators syncs blocking_copies pinned_allocations recordings replays random open_pools kept_pools
    live peak delayed empty_caches races unrecorded failures
}

impl Counts {
    /// Those of this process, which runs inside [`inside`].
    pub fn now() -> Self {
        Self::read(Path::new(&std::env::var_os("PRETEND_CUDA_REPORT").unwrap()))
    }

    /// None of the mistakes that the pretend device looks for.
    pub fn check(&self, stderr: &str) {
        let mistakes = [self.races, self.unrecorded, self.open_pools, self.delayed];
        assert_eq!(mistakes, [0; 4], "{self:?}\n{stderr}");
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
    /// Of a command that succeeded, on the device, without a mistake.
    pub fn checked(self) -> Self {
        assert_eq!(self.code, 0, "{}{}", self.stdout, self.stderr);
        assert!(self.counts.operators > 0, "a silent run on the CPU: {}{}", self.stdout, self.stderr);
        self.counts.check(&self.stderr);
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
    let text = |error: std::io::Error| error.to_string();
    let files = fs::read_dir(SOURCES).map_err(text)?.map(|entry| entry.map(|entry| entry.path()));
    let mut files = files.collect::<Result<Vec<_>, _>>().map_err(text)?;
    files.retain(|path| path.extension().is_some_and(|extension| extension != "rs"));
    files.sort();
    for file in &files {
        fs::read(file).map_err(text)?.hash(&mut key);
    }
    (torch, &cuda, &compiler).hash(&mut key);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pretend_cuda-{:016x}", key.finish()));
    if folder.exists() {
        return Ok(folder);
    }
    // Under a name of its own until it is whole: another process may compile it too.
    let mine = folder.with_extension(std::process::id().to_string());
    fs::create_dir_all(&mine).map_err(text)?;
    let build = |name: &str, add: &dyn Fn(&mut Command)| {
        let mut command = Command::new(&compiler);
        command.args(["-std=c++17", "-O1", "-w", "-fPIC", "-shared"]).arg(format!("-Wl,-soname,{name}"));
        add(&mut command);
        let output = command.arg("-o").arg(mine.join(name)).output();
        match output.map_err(|error| format!("{command:?}: {error}"))? {
            output if output.status.success() => Ok(()),
            output => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))),
        }
    };
    build("libtorch_cuda.so", &|command| {
        for include in [torch.join("include"), torch.join("include/torch/csrc/api/include"), cuda.clone()] {
            command.arg("-I").arg(include);
        }
        command.arg(format!("{SOURCES}/pretend.cpp")).arg("-L").arg(torch.join("lib"));
        command.args(["-ltorch_cpu", "-lc10"]);
    })?;
    // `auto` looks for the driver first.
    build("libcuda.so.1", &|command| {
        command.args(["-x", "c++", "/dev/null"]);
    })?;
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
    assert_eq!(counts.operators, 0);
    let (eager, counts) = train("eager", "cuda", "false");
    assert!(counts.operators > 1000 && counts.replays == 0, "{counts:?}");
    let (graph, counts) = train("graph", "cuda", "true");
    assert!(counts.replays > 10, "{counts:?}");
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
        assert_eq!(many.syncs, few.syncs, "{few:?} {many:?}");
    }
}

#[test]
fn a_run_that_is_resumed_on_the_device_goes_on_with_its_random_numbers() {
    let Some(library) = library("a_run_that_is_resumed_on_the_device_goes_on_with_its_random_numbers") else {
        return;
    };
    let home = tempfile::tempdir().unwrap();
    let model = "model: {input: [1, 16, 16], layers: [{conv2d: {out_channels: 2, kernel_size: 3}}, {dropout: {p: 0.3}}, \
                 flatten, {linear: {out_features: 4}}]}";
    let text =
        TINY.replace("model: {name: small-cnn, args: {channels: 1, size: 16, classes: 4, width: 2}}", model);
    assert!(text.contains("dropout"));
    let config = write_config(home.path(), &text);
    let train = |name: &str, epochs: u64| {
        let output = home.path().join(name);
        let epochs = format!("train.epochs={epochs}");
        let args = ["train", &config, "--device", "cuda", "--resume", "--set", &epochs, "--output"];
        let counts =
            pretend(library, &[&args[..], &[output.to_str().unwrap()]].concat(), &[]).checked().counts;
        assert!(counts.random >= 20, "{counts:?}");
        output
    };
    let whole = train("whole", 2);
    train("parts", 1);
    assert_eq!(difference(&train("parts", 2), &whole), 0.0);
}
