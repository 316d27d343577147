//! What `--to pt2` writes.

use std::path::Path;

use serde_json::json;
use tch::{Device, Kind, Tensor};
use tikhonov::pytorch::export::{pt2, torchscript::Options};

use super::{RUN, script, utf8};
use crate::common::{python, run, succeeds};
use crate::model::{inline, model};

/// `NAME.pt2` of a shipped model, inputs of three sizes and what the network answers.
fn write_shipped(folder: &Path, name: &str, shipped: &str, sides: [i64; 2]) {
    let model = model(json!(shipped));
    let network = model.build(Device::Cpu, Kind::Float).expect("it builds");
    let file = |extension: &str| folder.join(format!("{name}.{extension}"));
    pt2::write(&file("pt2"), &model, &network, &Options::default()).expect("it is written");
    let mut arrays = Vec::new();
    for (index, (batch, [height, width])) in
        [(2, [model.input()[1], model.input()[2]]), (1, sides), (5, sides)].into_iter().enumerate()
    {
        let xs = Tensor::randn([batch, model.input()[0], height, width], (Kind::Float, Device::Cpu));
        arrays.push((format!("y{index}"), network.forward(&xs, false).detach().contiguous()));
        arrays.push((format!("x{index}"), xs));
    }
    Tensor::write_npz(&arrays, file("npz")).expect("the arrays are written");
    let names: Vec<_> = model.params().iter().map(|param| param.name.clone()).collect();
    std::fs::write(file("txt"), names.join("\n")).expect("the names are written");
}

/// Pictures of a folder, scaled until they cover the network's input, and their centre.
const CROPPED: &str = "
device: cpu
threads: 1
model: {name: small-cnn, args: {size: 20, classes: 2, width: 4}}
task: classification
data:
  train: {folder: {root: FOLDER, size: 20, mode: grey, resize: crop}}
optimizer: {sgd: {lr: 0.05}}
train: {epochs: 1}
";

#[test]
fn an_exported_program_is_loaded_differentiated_unflattened_decomposed_and_saved_again_by_pytorch() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| utf8(&folder.path().join(name)).to_owned();
    write_shipped(folder.path(), "resnet", "resnet20", [24, 40]);
    write_shipped(folder.path(), "unet", "unet", [48, 80]);
    std::fs::write(path("c.yaml"), RUN).expect("the config is written");
    succeeds(&["train", &path("c.yaml"), "--output", &path("run")]);
    for class in ["a", "b"] {
        std::fs::create_dir_all(path(&format!("pictures/{class}"))).expect("a folder");
        for index in 0..4 {
            let file = path(&format!("pictures/{class}/{index}.pgm"));
            std::fs::write(file, [&b"P5 30 24 255\n"[..], &[index * 60; 720]].concat()).expect("a picture");
        }
    }
    std::fs::write(path("d.yaml"), CROPPED.replace("FOLDER", &path("pictures"))).expect("the config");
    succeeds(&["train", &path("d.yaml"), "--output", &path("cropped")]);
    let export = |source: &str, output: &str, args: &[&str]| {
        let (code, stdout, stderr) =
            run(&[&["export", &path(source), "-o", &path(output), "--to"], args].concat());
        assert!(code == 0 && stderr.is_empty(), "{output}: {code} {stdout} {stderr}");
        stdout
    };
    let said = export("run", "plain.pt2", &["pt2"]);
    assert!(said.contains("torch.export of") && said.contains("for any batch"), "{said}");
    export("run", "plain.torchscript.pt", &["torchscript"]);
    export("run", "softmax.pt2", &["pt2", "--softmax"]);
    export("run", "half.pt2", &["pt2", "--half"]);
    export("run", "pictures.pt2", &["pt2", "--preprocess", "--softmax"]);
    export("cropped", "crop.pt2", &["pt2", "--preprocess"]);
    export("cropped", "crop.torchscript.pt", &["torchscript", "--preprocess"]);
    assert_eq!(script(include_str!("pt2.py"), &[utf8(folder.path())]), "good\n");
    let seen = succeeds(&["inspect", &path("plain.pt2")]);
    for part in [".pt2 archive", "input x: \"s0 × 1 × s1 × s2\"", "input_size: [1,20,20]", "classes: ["] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    let seen = succeeds(&["inspect", &path("unet.pt2")]);
    assert!(seen.contains("8*s1 × 8*s2"), "{seen}");
    assert!(succeeds(&["inspect", &path("plain.torchscript.pt")]).contains("input_size: [1,20,20]"));
    // Weights come back by name.
    let back = path("back.safetensors");
    succeeds(&["convert", &path("plain.pt2"), &back]);
    let (code, _, stderr) = run(&["export", &path("run"), "--to", "pt2", "--freeze"]);
    assert!(code == 2 && stderr.contains("--to torchscript"), "{code} {stderr}");
}

#[test]
fn a_network_that_is_no_flat_list_is_not_exported() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("net.pt");
    python(&format!(
        "import torch, importlib, sys\nsys.dont_write_bytecode = True\nopen({0:?} + '/net.py', 'w').write('''import torch\n\
         class Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.fc = torch.nn.Linear(3, 2)\n\
         \x20   def forward(self, x):\n        y = self.fc(x)\n        if bool(x.sum() > 0):\n            y = y * 2\n        return y\n''')\n\
         sys.path.insert(0, {0:?})\nimport net\ntorch.jit.script(net.Net()).save({1:?})",
        utf8(folder.path()),
        utf8(&program)
    ));
    let model = model(json!({"torchscript": utf8(&program), "input": [3]}));
    let network = model.build(Device::Cpu, Kind::Float).expect("it builds");
    let path = folder.path().join("x.pt2");
    let error = pt2::write(&path, &model, &network, &Options::default()).expect_err("it is refused");
    assert_eq!(tikhonov::util::exit_code::code(&error), 2);
    assert!(format!("{error:#}").contains("an `if` that depends on the values of its input"), "{error:#}");
    assert!(!path.exists());
}

#[test]
fn an_exported_program_of_another_network_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.pt2");
    let net = |slope: &str| {
        inline(&[3], &format!("[linear: {{out_features: 4}}, leaky_relu: {{negative_slope: {slope}}}]"))
    };
    let (written, meant) = (net("0.1"), net("0.101"));
    let network = meant.build(Device::Cpu, Kind::Float).expect("it builds");
    let other = written.build(Device::Cpu, Kind::Float).expect("it builds");
    other.load_state(&network.state().into_iter().collect()).expect("the same names");
    pt2::write(&path, &written, &other, &Options::default()).expect("it is that of `written`");
    let error = pt2::check(&path, &meant, &network, &Options::default(), None).expect_err("it is refused");
    assert_eq!(tikhonov::util::exit_code::code(&error), 4);
    assert!(format!("{error:#}").contains("answers otherwise than the network"), "{error:#}");
}

#[test]
#[ignore = "compiles C++ for a minute"]
fn aotinductor_compiles_an_exported_program_once_for_all_batches() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = inline(
        &[1, 8, 8],
        "[conv2d: {out_channels: 4, kernel_size: 3, padding: 1}, batch_norm2d, relu, adaptive_avg_pool2d: {output_size: 1}, flatten, linear: {out_features: 3}]",
    );
    let network = model.build(Device::Cpu, Kind::Float).expect("it builds");
    let path = folder.path().join("x.pt2");
    pt2::write(&path, &model, &network, &Options::default()).expect("it is written");
    let printed = python(&format!(
        "import torch, warnings\nwarnings.simplefilter('ignore')\nprogram = torch.export.load({0:?})\n\
         package = torch._inductor.aoti_compile_and_package(program, package_path={0:?} + '.package.pt2')\n\
         compiled = torch._inductor.aoti_load_package(package)\nmodule = program.module()\n\
         for size in [(1, 1, 8, 8), (2, 1, 8, 8), (9, 1, 12, 20)]:\n    x = torch.randn(size)\n    \
         assert torch.allclose(compiled(x), module(x), atol=1e-5), size\nprint('good')",
        utf8(&path)
    ));
    assert!(printed.ends_with("good\n"), "{printed}");
}

/// The first block of `language` in docs/python.md after `heading`.
fn snippet(language: &str, heading: &str) -> String {
    let page = include_str!("../../docs/python.md");
    let rest = page.split_once(heading).expect("the heading").1;
    let start = rest.split_once(&format!("```{language}\n")).expect("the block").1;
    start.split_once("```").expect("its end").0.to_owned()
}

#[test]
fn the_snippets_of_the_documentation_run_in_python_and_in_cpp() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| utf8(&folder.path().join(name)).to_owned();
    std::fs::write(path("c.yaml"), RUN.replace("epochs: 2", "epochs: 1")).expect("the config is written");
    succeeds(&["train", &path("c.yaml"), "--output", &path("run")]);
    for (format, file) in [("torchscript", "net.pt"), ("pt2", "net.pt2")] {
        succeeds(&["export", &path("run"), "--to", format, "-o", &path(file)]);
    }
    let text = snippet("python", "In Python:");
    let printed = python(&format!("import os\nos.chdir({:?})\n{text}", utf8(folder.path())));
    assert_eq!(printed.lines().count(), 1, "{printed}");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    if std::process::Command::new(&compiler).arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no {compiler} for the snippet in C++");
        return;
    }
    std::fs::write(path("use.cpp"), snippet("cpp", "In C++")).expect("the source is written");
    let torch = Path::new(env!("TIKHONOV_LIBTORCH"));
    let lib = torch.join("lib");
    let compiled = std::process::Command::new(&compiler)
        .args(["-O0", "-std=c++17", "-w", "-I", utf8(&torch.join("include"))])
        .args(["-I", utf8(&torch.join("include/torch/csrc/api/include"))])
        .args([&path("use.cpp"), "-o", &path("use"), "-L", utf8(&lib), "-ltorch", "-ltorch_cpu", "-lc10"])
        .arg(format!("-Wl,-rpath,{}", lib.display()))
        .output()
        .expect("the compiler starts");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let output =
        std::process::Command::new(path("use")).current_dir(folder.path()).output().expect("it starts");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.trim_end().ends_with(" 1"), "{output:?}");
    assert!(stdout.contains("\"input_size\":[1,20,20]") && stdout.contains("\"classes\":["), "{stdout}");
}
