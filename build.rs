//! Links libtorch (with its CUDA half, which `--as-needed` would drop) and compiles the C++ shim.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    for file in ["shim.cpp", "autocast.cpp", "machine.cpp", "optim.cpp", "script.cpp", "guarded.h"] {
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
    if lib.join("libtorch_cuda.so").exists() {
        println!("cargo:rustc-link-arg=-L{}", lib.display());
        println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
        println!("cargo:rustc-link-arg=-ltorch_cuda");
        println!("cargo:rustc-link-arg=-lc10_cuda");
    }

    let mut shim = cc::Build::new();
    shim.cpp(true)
        .std("c++17")
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .include(torch.join("include"))
        .include(torch.join("include/torch/csrc/api/include"))
        .file("src/libtorch/shim.cpp")
        .file("src/libtorch/autocast.cpp")
        .file("src/libtorch/machine.cpp")
        .file("src/libtorch/optim.cpp")
        .file("src/libtorch/script.cpp");
    let cuda = lib.join("libtorch_cuda.so").exists().then(|| cuda_headers(torch)).flatten();
    if let Some(include) = &cuda {
        shim.include(include).define("TIKHONOV_CUDA", None);
    }
    println!("cargo:rustc-env=TIKHONOV_CUDA_HEADERS={}", if cuda.is_some() { "yes" } else { "no" });
    println!("cargo:rustc-env=TIKHONOV_LIBTORCH={}", torch.display());
    shim.compile("tikhonov_shim");
}

/// The CUDA headers that belong to this libtorch: from the neighbouring PyPI wheels, else from `CUDA_HOME`.
fn cuda_headers(torch: &Path) -> Option<PathBuf> {
    let wheels = torch.parent()?.join("nvidia/cu13/include");
    let toolkit = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("include"));
    [Some(wheels), toolkit].into_iter().flatten().find(|include| include.join("crt/host_config.h").exists())
}
