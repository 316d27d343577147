//! Links libtorch (without its CUDA half, which is loaded when a GPU is asked for) and compiles the C++ shim.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

const SHIM: [&str; 23] = [
    "shim.cpp",
    "autocast.cpp",
    "cores.cpp",
    "cuda.cpp",
    "dense.cpp",
    "graph.cpp",
    "heap.cpp",
    "loss.cpp",
    "machine.cpp",
    "measures.cpp",
    "norm.cpp",
    "optim.cpp",
    "script.cpp",
    "segment.cpp",
    "stream.cpp",
    "team.cpp",
    "winograd.cpp",
    "cuda.h",
    "guarded.h",
    "lists.h",
    "simd.h",
    "team.h",
    "winograd.h",
];
/// What needs symbols of libtorch's CUDA half: a library of its own, which the binary carries.
const HALF: &str = "cuda_half.cpp";

fn main() {
    for file in SHIM.iter().chain([&HALF]) {
        println!("cargo:rerun-if-changed=src/libtorch/{file}");
    }
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    // New files there must reach the binary that embeds them.
    println!("cargo:rerun-if-changed=models");
    println!("cargo:rerun-if-changed=configs");

    // torch-sys has found libtorch already; it tells its direct dependents where.
    let lib = env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where libtorch is");
    let lib = PathBuf::from(&lib).canonicalize().unwrap_or_else(|_| PathBuf::from(&lib));
    let torch = lib.parent().expect("libtorch's lib folder has a parent");

    // An rpath to the real folder: reached through a symlink, libtorch would not find its own neighbours.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,--allow-shlib-undefined");

    let mut shim = cc::Build::new();
    shim.cpp(true)
        .std("c++17")
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(torch.join("include"))
        .include(torch.join("include/torch/csrc/api/include"))
        .files(
            SHIM.iter()
                .filter(|file| file.ends_with(".cpp"))
                .map(|file| Path::new("src/libtorch").join(file)),
        );
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
    println!("cargo:rustc-env=TIKHONOV_LIBTORCH={}", torch.display());
    // A change in models/ or configs/ brings us here too, and is no reason to compile C++ for half a minute.
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo says where to build"));
    let stamp = out.join("shim.stamp");
    let now = fingerprint(&lib, has_cuda, cuda.as_deref());
    let is_built = out.join("libtikhonov_shim.a").exists() && fs::read(&stamp).is_ok_and(|then| then == now);
    if is_built {
        println!("cargo:rustc-link-search=native={}", out.display());
        println!("cargo:rustc-link-lib=static=tikhonov_shim");
        println!("cargo:rustc-link-lib=stdc++");
    } else {
        shim.compile("tikhonov_shim");
        let half = out.join("tikhonov_cuda.so");
        match &cuda {
            Some(headers) => link_half(shim.include(headers), &half),
            None => fs::write(&half, []).expect("OUT_DIR can be written"),
        }
        fs::write(&stamp, now).expect("OUT_DIR can be written");
    }
}

/// Its symbols are libtorch's, which is loaded by then: nothing is linked to it.
fn link_half(shim: &cc::Build, half: &Path) {
    let mut command = shim.get_compiler().to_command();
    command.args(["-shared", "-s", "-o"]).arg(half).arg(Path::new("src/libtorch").join(HALF));
    assert!(command.status().is_ok_and(|status| status.success()), "{command:?} failed");
}

/// All that the compiled shim depends on: its sources, the libtorch and the CUDA headers that it is compiled against.
fn fingerprint(lib: &Path, has_cuda: bool, headers: Option<&Path>) -> Vec<u8> {
    let own = fs::read_to_string("build.rs").ok();
    let mut all = format!("{} {has_cuda} {headers:?} {own:?}\n", lib.display()).into_bytes();
    for file in SHIM.iter().chain([&HALF]) {
        all.extend(fs::read(Path::new("src/libtorch").join(file)).unwrap_or_default());
    }
    all
}

/// libtorch's own OpenMP, whose threads the shim's loops share: a second one beside it would fight for the cores. Without it
/// those loops run on one thread.
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
