//! Links libtorch (its CUDA libraries are loaded at run time, when a GPU is used) and compiles the C++ shim: what
//! tch does not bind and, with the feature `kernels`, our own CPU kernels.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// In src/libtorch.
const SHIM: [&str; 28] = [
    "activation_checkpoint.cpp",
    "autocast.cpp",
    "cuda.cpp",
    "distributed.cpp",
    "flat.cpp",
    "graph.cpp",
    "machine.cpp",
    "malloc.cpp",
    "nativert.cpp",
    "optim.cpp",
    "script.cpp",
    "shim.cpp",
    "stream.cpp",
    "threads.cpp",
    "cuda.h",
    "flat.h",
    "guarded.h",
    "lists.h",
    "script.h",
    "startup.h",
    "stubs/gloo/algorithm.h",
    "stubs/gloo/common/error.h",
    "stubs/gloo/config.h",
    "stubs/gloo/context.h",
    "stubs/gloo/rendezvous/store.h",
    "stubs/gloo/transport/device.h",
    "kernels/thread_pool.h",
    "cuda_plugin.cpp",
];
/// The CPU kernels, in src/libtorch.
const KERNELS: [&str; 8] = [
    "kernels/batch_norm.cpp",
    "kernels/linear.cpp",
    "kernels/loss.cpp",
    "kernels/norms.cpp",
    "kernels/thread_pool.cpp",
    "kernels/winograd.cpp",
    "kernels/simd.h",
    "kernels/winograd.h",
];
/// In a wheel alone: old versions of a few symbols, for systems as old as manylinux_2_34.
const MANYLINUX: &str = "manylinux.cpp";
/// Where a wheel's binary, in site-packages/tikhonov_train/bin, finds the torch that is installed beside it.
const TORCH_BESIDE: &str = "$ORIGIN/../../torch";
/// Needs symbols of libtorch's CUDA libraries: a plugin of its own, which the binary embeds.
const CUDA_PLUGIN: &str = "cuda_plugin.cpp";

fn source(file: &str) -> PathBuf {
    Path::new("src/libtorch").join(file)
}

fn main() {
    let has_kernels = env::var_os("CARGO_FEATURE_KERNELS").is_some();
    let files: Vec<&str> = SHIM.iter().chain(KERNELS.iter().filter(|_| has_kernels)).copied().collect();
    for file in &files {
        println!("cargo:rerun-if-changed=src/libtorch/{file}");
    }
    println!("cargo:rerun-if-changed=src/libtorch/{MANYLINUX}");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    // Set by scripts/wheel.
    println!("cargo:rerun-if-env-changed=TIKHONOV_WHEEL");
    let is_wheel = env::var_os("TIKHONOV_WHEEL").is_some();
    // The binary embeds these folders.
    println!("cargo:rerun-if-changed=models");
    println!("cargo:rerun-if-changed=configs");

    // torch-sys has found libtorch and passes its place to its direct dependents.
    let lib = env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is");
    let lib = PathBuf::from(&lib).canonicalize().unwrap_or_else(|_| PathBuf::from(&lib));
    let torch = lib.parent().expect("libtorch's lib folder has a parent");

    if is_wheel {
        // DT_RPATH comes before LD_LIBRARY_PATH, which containers and conda set to folders with another libc10.so.
        println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags,-rpath,{TORCH_BESIDE}/lib");
        for object in cc::Build::new().cpp(true).file(source(MANYLINUX)).compile_intermediates() {
            println!("cargo:rustc-link-arg={}", object.display());
        }
    } else {
        // An rpath to the real folder: reached through a symlink, libtorch would not find its own neighbours.
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }
    println!("cargo:rustc-link-arg=-Wl,--allow-shlib-undefined");

    let mut shim = cc::Build::new();
    shim.cpp(true)
        .std("c++17")
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(torch.join("include"))
        .include(torch.join("include/torch/csrc/api/include"))
        // Gloo's headers, which the wheel leaves out.
        .include("src/libtorch/stubs")
        // For `#include "…"` alone: `<cuda.h>` is CUDA's.
        .flag("-iquote")
        .flag("src/libtorch")
        .files(
            files
                .iter()
                .filter(|file| file.ends_with(".cpp") && **file != CUDA_PLUGIN)
                .map(|file| source(file)),
        );
    if has_kernels {
        shim.define("TIKHONOV_KERNELS", None);
    }
    let has_cuda = lib.join("libtorch_cuda.so").exists();
    if has_cuda {
        shim.define("TIKHONOV_CUDA", None);
    }
    let cuda = has_cuda.then(|| cuda_headers(torch)).flatten();
    if let Some(openmp) = openmp(&lib) {
        shim.flag("-fopenmp");
        println!("cargo:rustc-link-arg={}", openmp.display());
    }
    println!("cargo:rustc-env=TIKHONOV_CUDA_HEADERS={}", if cuda.is_some() { "yes" } else { "no" });
    let compiled_path = if is_wheel { TORCH_BESIDE.into() } else { torch.display().to_string() };
    println!("cargo:rustc-env=TIKHONOV_LIBTORCH={compiled_path}");
    // A change in models/ or configs/ runs this script too, and is no reason to compile C++ for half a minute.
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where to build"));
    let stamp = out.join("shim.stamp");
    let now = fingerprint(&lib, has_cuda, cuda.as_deref(), &files);
    let is_built = out.join("libtikhonov_shim.a").exists() && fs::read(&stamp).is_ok_and(|then| then == now);
    if is_built {
        println!("cargo:rustc-link-search=native={}", out.display());
        println!("cargo:rustc-link-lib=static=tikhonov_shim");
        println!("cargo:rustc-link-lib=stdc++");
    } else {
        shim.compile("tikhonov_shim");
        let plugin = out.join("tikhonov_cuda.so");
        match &cuda {
            Some(headers) => link_plugin(shim.include(headers), &plugin),
            None => fs::write(&plugin, []).expect("OUT_DIR can be written"),
        }
        fs::write(&stamp, now).expect("OUT_DIR can be written");
    }
}

/// Its undefined symbols are libtorch's, which is loaded first: nothing is linked to it.
fn link_plugin(shim: &cc::Build, plugin: &Path) {
    let mut command = shim.get_compiler().to_command();
    command.args(["-shared", "-s", "-o"]).arg(plugin).arg(source(CUDA_PLUGIN));
    assert!(command.status().is_ok_and(|status| status.success()), "{command:?} failed");
}

/// Everything that the compiled shim depends on: its sources, this script, and the libtorch and CUDA headers that
/// it is compiled against.
fn fingerprint(lib: &Path, has_cuda: bool, headers: Option<&Path>, files: &[&str]) -> Vec<u8> {
    let mut all = format!("{} {has_cuda} {headers:?} {}\n", lib.display(), files.join(" ")).into_bytes();
    for file in std::iter::once(PathBuf::from("build.rs")).chain(files.iter().map(|file| source(file))) {
        all.extend(fs::read(file).unwrap_or_default());
    }
    all
}

/// libtorch's own OpenMP library, whose threads the shim's loops use: a second one beside it would compete for the
/// cores. Without it those loops run on one thread.
fn openmp(lib: &Path) -> Option<PathBuf> {
    let files = fs::read_dir(lib).ok()?.flatten().map(|file| file.path());
    let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
    files
        .into_iter()
        .find(|path| name(path).is_some_and(|name| name.starts_with("libgomp") && name.contains(".so")))
}

/// The CUDA headers that belong to this libtorch: from the neighbouring PyPI wheels, else from `CUDA_HOME`.
fn cuda_headers(torch: &Path) -> Option<PathBuf> {
    let wheels = torch.parent()?.join("nvidia/cu13/include");
    let toolkit = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("include"));
    [Some(wheels), toolkit].into_iter().flatten().find(|include| include.join("crt/host_config.h").exists())
}
