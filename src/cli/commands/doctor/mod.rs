//! `tikhonov doctor`: what this machine offers, and whether its arithmetic is right.

mod arithmetic;
mod kernels;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use tch::Device;

use crate::libtorch::device::cores;
use crate::libtorch::machine::{self, Gpu};
use crate::libtorch::{self, cuda};

/// Check libtorch, the CPU and the GPUs.
///
/// Exits non-zero when something is broken; a machine without a GPU is not broken.
#[derive(Args, Debug)]
pub struct Options {
    /// Compare our own CPU kernels with libtorch's instead: errors and speeds, in a few seconds
    #[arg(long)]
    kernels: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    tikhonov: &'static str,
    libtorch: Libtorch,
    cpu: Cpu,
    cuda: Cuda,
    checks: Vec<Check>,
}

#[derive(Debug, Serialize)]
struct Libtorch {
    /// The version of the library that is loaded.
    version: String,
    /// The version of the headers that the binary was compiled with.
    compiled_for: String,
    /// Where the loaded library is.
    path: Option<String>,
    compiled_path: &'static str,
}

#[derive(Debug, Serialize)]
struct Cpu {
    capability: String,
    cores: usize,
    threads: i32,
    mkl: Option<String>,
    onednn: Option<String>,
    openmp: Option<String>,
}

#[derive(Debug, Serialize)]
struct Cuda {
    /// Whether libtorch's CUDA half is loaded.
    libtorch: bool,
    /// Whether the binary was compiled with CUDA's headers.
    headers: bool,
    /// CUDA's version as libtorch was built.
    version: Option<String>,
    cudnn: Option<String>,
    devices: Vec<Gpu>,
    /// Why there are no devices.
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
struct Check {
    name: String,
    /// None when all is well.
    problem: Option<String>,
}

pub fn run(options: &Options) -> Result<()> {
    if options.kernels {
        return kernels::run(options.json);
    }
    let report = examine();
    let mut out = std::io::stdout().lock();
    if options.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", table(&report))?;
    }
    let broken: Vec<&str> = report
        .checks
        .iter()
        .filter(|check| check.problem.is_some())
        .map(|check| check.name.as_str())
        .collect();
    match broken.as_slice() {
        [] => Ok(()),
        broken => anyhow::bail!("broken: {}", broken.join(", ")),
    }
}

fn examine() -> Report {
    // First: libtorch looks for it once.
    let half = cuda::load();
    let built = machine::show_config();
    let setting = |name: &str| {
        let rest = &built[built.find(&format!("{name}="))? + name.len() + 1..];
        rest.split(',').next().map(|value| value.trim().to_owned())
    };
    let line = |word: &str| {
        let found = built.lines().find(|line| line.contains(word))?;
        Some(found.trim_start_matches([' ', '-']).to_owned())
    };
    let compiled_for = libtorch::version();
    let version = setting("TORCH_VERSION").unwrap_or_else(|| compiled_for.clone());
    let loaded = loaded_from("libtorch_cpu.so");
    let cuda_loaded = !loaded_from("libtorch_cuda.so").is_empty();
    let cuda_exists = loaded.iter().any(|folder| Path::new(folder).join("libtorch_cuda.so").exists());
    let mut checks = vec![
        Check {
            name: "one libtorch".into(),
            problem: match loaded.len() {
                0 | 1 => None,
                _ => Some(format!(
                    "two are loaded: {}; unset LD_LIBRARY_PATH",
                    loaded.iter().cloned().collect::<Vec<_>>().join(" and ")
                )),
            },
        },
        Check {
            name: "libtorch is the one that the binary was built for".into(),
            problem: (version != compiled_for).then(|| {
                format!("{version} is loaded, {compiled_for} was compiled in; unset LD_LIBRARY_PATH or build again")
            }),
        },
    ];
    if cuda_exists {
        checks.push(Check { name: "libtorch's CUDA half can be loaded".into(), problem: half.err() });
    }
    let (devices, reason) = gpus();
    let usable = devices.iter().enumerate().filter(|(_, gpu)| gpu.is_ok());
    let places = std::iter::once(Device::Cpu).chain(usable.map(|(index, _)| Device::Cuda(index)));
    for device in places {
        for (what, problem) in arithmetic::check(device) {
            checks.push(Check { name: format!("{what} on {}", name_of(device)), problem });
        }
    }
    for (index, gpu) in devices.iter().enumerate() {
        if let Err(problem) = gpu {
            checks.push(Check { name: format!("GPU cuda:{index}"), problem: Some(problem.clone()) });
        }
    }
    Report {
        tikhonov: env!("CARGO_PKG_VERSION"),
        libtorch: Libtorch {
            version,
            compiled_for,
            path: loaded.into_iter().next(),
            compiled_path: env!("TIKHONOV_LIBTORCH"),
        },
        cpu: Cpu {
            capability: libtorch::cpu_capability(),
            cores: cores(),
            threads: tch::get_num_threads(),
            mkl: line("Math Kernel Library"),
            onednn: line("MKL-DNN"),
            openmp: line("OpenMP"),
        },
        cuda: Cuda {
            libtorch: cuda_loaded,
            headers: env!("TIKHONOV_CUDA_HEADERS") == "yes",
            version: setting("CUDA_VERSION"),
            cudnn: setting("CUDNN_VERSION"),
            devices: devices.into_iter().flatten().collect(),
            reason,
        },
        checks,
    }
}

/// Every GPU (or why it does not answer), and the precise reason where there is none.
fn gpus() -> (Vec<Result<Gpu, String>>, Option<String>) {
    match cuda::count() {
        Ok(count) => ((0..count).map(machine::gpu).collect(), None),
        Err(reason) => (Vec::new(), Some(reason.trim().replace('\n', " "))),
    }
}

fn name_of(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".into(),
    }
}

/// The folders from which this process has loaded `library`. Empty where the system has no /proc.
fn loaded_from(library: &str) -> BTreeSet<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let libraries = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    libraries
        .filter(|path| path.file_name().is_some_and(|name| name == library))
        .filter_map(|path| Some(path.parent()?.display().to_string()))
        .collect()
}

fn table(report: &Report) -> String {
    let Report { libtorch, cpu, cuda, checks, .. } = report;
    let mut rows = vec![
        ("tikhonov", report.tikhonov.to_owned()),
        ("libtorch", libtorch.version.clone()),
        ("  loaded from", libtorch.path.clone().unwrap_or_else(|| libtorch.compiled_path.to_owned())),
        ("CPU", format!("{}, {} cores, {} threads", cpu.capability, cpu.cores, cpu.threads)),
    ];
    rows.extend([&cpu.mkl, &cpu.onednn, &cpu.openmp].into_iter().flatten().map(|line| ("", line.clone())));
    let version = cuda.version.as_ref().filter(|_| cuda.libtorch);
    let half = match version {
        Some(version) => format!("{version}, cuDNN {}", cuda.cudnn.as_deref().unwrap_or("missing")),
        None => "this libtorch has none".to_owned(),
    };
    rows.push(("CUDA", half));
    let headers = if cuda.headers { "yes" } else { "no: some GPU work takes a slower way" };
    rows.push(("  headers", headers.into()));
    for (index, gpu) in cuda.devices.iter().enumerate() {
        let gib = |bytes: i64| bytes as f64 / f64::from(1 << 30);
        let (total, free) = (gib(gpu.memory_total), gib(gpu.memory_free));
        let text = format!(
            "cuda:{index}, {}, capability {}, {} multiprocessors, {total:.1} GiB ({free:.1} free)",
            gpu.name, gpu.capability, gpu.multiprocessors
        );
        rows.push(("  device", text));
    }
    rows.extend(cuda.reason.clone().map(|reason| ("  no device", reason)));
    let mut text: String = rows.iter().map(|(name, value)| format!("{name:<14} {value}\n")).collect();
    for check in checks {
        text += &match &check.problem {
            None => format!("ok             {}\n", check.name),
            Some(problem) => format!("BROKEN         {}: {problem}\n", check.name),
        };
    }
    text
}
