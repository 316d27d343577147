//! What `export --to onnx` writes answers in onnxruntime as the network does in Rust.

use std::fmt::Write;
use std::path::Path;

use serde_json::json;
use tch::{Device, Kind, Tensor};
use tikhonov::data::normalize::Normalize;
use tikhonov::data::{EvalTransform, Interpolation, Resize};
use tikhonov::libtorch::script;
use tikhonov::nn::model::{Model, Network};
use tikhonov::pytorch::export::EXPORTS;
use tikhonov::pytorch::export::onnx::{self, LARGEST, Options};
use tikhonov::pytorch::export::torchscript::{self, Preprocess};
use tikhonov::pytorch::weights::read_weights;
use tikhonov::pytorch::writer;

use crate::common::{has_modules, python, run, succeeds};
use crate::export::{NETWORKS, RUN};
use crate::model::{LAYERS, inline, model};

const MODULES: &[&str] = &["onnx", "onnxruntime"];

fn options(largest: u64) -> Options {
    Options {
        preprocess: None,
        softmax: false,
        sigmoid: false,
        temperature: None,
        half: false,
        largest,
        name: "net".into(),
        metadata: vec![("model".into(), "net".into())],
    }
}

/// Fresh weights; vectors and statistics other than the ones and zeros that they begin with.
fn network(model: &Model) -> Network {
    let network = model.build(Device::Cpu, Kind::Float).expect("it builds");
    for (_, tensor) in network.state() {
        if tensor.dim() == 1 {
            let _ = tch::no_grad(|| tensor.shallow_clone().uniform_(0.5, 1.5));
        }
    }
    network
}

/// `[N, …]` of several batches and, where the network takes them, several sizes, those of large pictures
/// smaller than the model's own.
fn inputs(model: &Model) -> Vec<Vec<i64>> {
    const LARGE: i64 = 64;
    // What the network in Rust pads by itself, and the file does not.
    const PADDED: i64 = 16;
    let input = model.input();
    let (Some(sides), &[channels, height, width]) = (model.sides(), input) else {
        return vec![[&[3], input].concat(), [&[1], input].concat()];
    };
    let is_padded = model.output().len() == 3 && height % PADDED == 0 && width % PADDED == 0;
    let m = if is_padded { PADDED.max(sides.multiple) } else { sides.multiple };
    let [height, width] = [(height, 0), (width, 1)]
        .map(|(side, axis)| side.min((LARGE + m - 1) / m * m).max(sides.least[axis]));
    vec![
        vec![3, channels, height, width],
        vec![1, channels, height + m, width + 2 * m],
        vec![2, channels, height + 3 * m, width],
        vec![1, channels, sides.least[0].max(height / 2 / m * m).max(m), width + m],
    ]
}

/// Writes NAME.onnx with its inputs and, reckoned in float64, its answers.
fn write(folder: &Path, name: &str, model: &Model, largest: u64) -> anyhow::Result<String> {
    let network = network(model);
    let said = onnx::write(&folder.join(format!("{name}.onnx")), model, &network, &options(largest))?;
    let exact = model.build(Device::Cpu, Kind::Double)?;
    exact.load_state(&network.state().into_iter().collect())?;
    let mut arrays = Vec::new();
    for (index, shape) in inputs(model).into_iter().enumerate() {
        let xs = Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 2.0;
        let ys = tch::no_grad(|| exact.forward(&xs.to_kind(Kind::Double), false));
        arrays.extend([(format!("x{index}"), xs), (format!("y{index}"), ys.contiguous())]);
    }
    Tensor::write_npz(&arrays, folder.join(format!("{name}.npz")))?;
    let names = model.params().iter().map(|param| {
        let shape: Vec<_> = param.shape.iter().map(i64::to_string).collect();
        format!("{} {}\n", param.name, shape.join(","))
    });
    std::fs::write(folder.join(format!("{name}.txt")), names.collect::<String>())?;
    Ok(said)
}

/// The largest difference of each file in the folder: `case0 3.1e-7`.
fn compare(folder: &Path, tolerance: f64) -> String {
    let args = [folder.to_str().expect("text").to_owned(), tolerance.to_string()];
    python(&format!("import sys\nsys.argv = [''] + {args:?}\n{}", include_str!("export/onnx.py")))
}

#[test]
fn every_layer_with_all_its_arguments_answers_in_onnxruntime_as_in_rust() {
    let test = "every_layer_with_all_its_arguments_answers_in_onnxruntime_as_in_rust";
    if !has_modules(test, MODULES) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    // What the general cases leave out: windows at the border, sides that do not divide.
    let more: &[(&[i64], &str)] = &[
        (&[2, 13, 14], "[adaptive_avg_pool2d: {output_size: [3, 7]}]"),
        (&[2, 13, 14], "[adaptive_max_pool2d: {output_size: [5, 1]}]"),
        (&[2, 12, 14], "[adaptive_avg_pool2d: {output_size: [3, 7]}, flatten, linear: {out_features: 3}]"),
        (&[2, 12, 14], "[adaptive_max_pool2d: {output_size: 2}, flatten, linear: {out_features: 3}]"),
        (&[2, 13, 14], "[flatten: {start_dim: 2}]"),
        (&[2, 3, 4], "[flatten: {start_dim: 1, end_dim: 2}]"),
        (&[4, 9, 8], "[subsample_pad: {out_channels: 8}]"),
        (&[2, 7, 6], "[conv2d: {out_channels: 3, kernel_size: 2, dilation: 3, padding: same}]"),
        (&[2, 7, 6], "[conv2d: {out_channels: 3, kernel_size: 4, padding: same, padding_mode: circular}]"),
        (&[2, 13, 13], "[avg_pool2d: {kernel_size: 3, stride: 2, padding: 1, ceil_mode: true}]"),
        (&[2, 13, 13], "[max_pool2d: {kernel_size: 2, stride: 3, padding: 1, ceil_mode: true}]"),
        (&[2, 11, 13], "[upsample: {scale_factor: [3, 0.5]}]"),
        (&[2, 11, 13], "[upsample: {scale_factor: [2.3, 0.7], mode: bilinear}]"),
        (&[2, 2, 13], "[upsample: {size: [82, 31]}]"),
        (&[2, 2, 2], "[upsample: {size: [82, 3]}, flatten, linear: {out_features: 3}]"),
        (&[2, 11, 13], "[upsample: {scale_factor: [2.3, 0.7], mode: bilinear, align_corners: true}]"),
        (&[2, 11, 13], "[upsample: {size: 1, mode: bilinear}]"),
        (&[8], "[group_norm: {num_groups: 4}]"),
    ];
    let cases = LAYERS.iter().map(|(shape, layers, _)| (*shape, *layers));
    let cases: Vec<_> = cases.chain(NETWORKS.iter().copied()).chain(more.iter().copied()).collect();
    // What ONNX reckons otherwise.
    let refused = |layers: &str| layers.contains("antialias") && layers.contains("align_corners");
    let mut written = 0;
    for (index, (shape, layers)) in cases.iter().enumerate() {
        match write(folder.path(), &format!("case{index}"), &inline(shape, layers), LARGEST) {
            Ok(_) => {
                assert!(!refused(layers), "{layers}");
                written += 1;
            }
            Err(error) => {
                let text = format!("{error:#}");
                assert!(refused(layers) && text.contains("--to onnx"), "{layers}: {text}");
            }
        }
    }
    let printed = compare(folder.path(), 1e-5);
    assert_eq!(printed.lines().count(), written, "{printed}");
}

#[test]
fn every_shipped_model_answers_in_onnxruntime_as_in_rust() {
    let test = "every_shipped_model_answers_in_onnxruntime_as_in_rust";
    if !has_modules(test, MODULES) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for (name, model) in shipped(1, |values| values < SMALL) {
        write(folder.path(), &name, &model, LARGEST).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
    println!("{}", compare(folder.path(), 1e-5));
}

/// Values of a model that is compared whenever the tests run.
const SMALL: i64 = 12_000_000;

#[test]
#[ignore = "gigabytes of weights; cargo test --release --locked -- --ignored large_shipped"]
fn every_large_shipped_model_answers_in_onnxruntime_as_in_rust() {
    for (name, model) in shipped(usize::MAX, |values| values >= SMALL) {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), &name, &model, LARGEST).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        print!("{}", compare(folder.path(), 1e-5));
    }
}

/// The shipped models with so many values; of families the first variants, or all.
fn shipped(variants: usize, wanted: impl Fn(i64) -> bool) -> impl Iterator<Item = (String, Model)> {
    let names = tikhonov::util::builtin::models().flat_map(move |name| {
        let text = tikhonov::util::builtin::model(name).expect("it is shipped");
        let file: serde_yaml::Value = serde_yaml::from_str(text).expect("YAML");
        match file.get("variants").and_then(serde_yaml::Value::as_mapping) {
            Some(all) => {
                let names = all.keys().filter_map(|name| name.as_str().map(str::to_owned));
                names.take(variants).collect()
            }
            None => vec![name.to_owned()],
        }
    });
    let models = names.map(|name| (name.clone(), model(json!(name))));
    let values = |model: &Model| model.params().iter().map(|p| p.shape.iter().product::<i64>()).sum();
    models.filter(move |(_, model)| wanted(values(model)))
}

#[test]
fn a_network_that_was_scripted_in_python_goes_to_onnx_too() {
    let test = "a_network_that_was_scripted_in_python_goes_to_onnx_too";
    if !has_modules(test, MODULES) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    // In a file, where torch.jit.script finds its source.
    std::fs::write(path("scripted.py"), include_str!("export/scripted.py")).expect("the file is written");
    let in_python = |step: &str| {
        let start = format!("sys.path.insert(0, {:?})\nsys.dont_write_bytecode = True", path(""));
        python(&format!("import sys\n{start}\nsys.argv = ['', {step:?}, {:?}]\nimport scripted", path("net")))
    };
    in_python("write");
    let net = format!("{{torchscript: {:?}, input: [3, 16, 12]}}", path("net.pt"));
    succeeds(&["export", &path("net.pth"), "--model", &net, "--to", "onnx", "-o", &path("net.onnx")]);
    assert_eq!(in_python("read"), "good\n");
}

#[test]
fn weights_beyond_the_limit_go_into_a_file_beside_the_model() {
    let test = "weights_beyond_the_limit_go_into_a_file_beside_the_model";
    if !has_modules(test, MODULES) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| folder.path().join(name);
    let net = model(json!("resnet20"));
    let said = write(folder.path(), "net", &net, 1 << 20).expect("it is written");
    assert!(said.ends_with("net.onnx.data"), "{said}");
    let size = |name: &str| std::fs::metadata(file(name)).expect("the file").len();
    assert!(size("net.onnx") < 60_000 && size("net.onnx.data") > 1_000_000);
    compare(folder.path(), 1e-5);
    // The weights that are there belong to another model.
    std::fs::remove_file(file("net.onnx")).expect("it is there");
    let error = write(folder.path(), "net", &net, 1 << 20).expect_err("it is refused");
    assert_eq!(tikhonov::util::exit_code::code(&error), 2);
    assert!(format!("{error:#}").contains("net.onnx.data exists"), "{error:#}");
}

#[test]
fn pictures_of_any_size_are_prepared_in_onnx_as_in_torchscript() {
    let test = "pictures_of_any_size_are_prepared_in_onnx_as_in_torchscript";
    if !has_modules(test, MODULES) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let normalize = Normalize { mean: vec![0.4, 0.5, 0.3], std: vec![0.2, 0.3, 0.25] };
    let shorter =
        |interpolation| Resize::Shorter(EvalTransform { resize: 27, center_crop: None, interpolation });
    let classifier = "[conv2d: {out_channels: 4, kernel_size: 3}, relu, flatten, linear: {out_features: 3}]";
    for (name, layers, resize) in [
        ("squash", classifier, Some(Resize::Squash)),
        ("crop", classifier, Some(Resize::Crop)),
        ("shorter", classifier, Some(shorter(Interpolation::Bilinear))),
        ("bicubic", classifier, Some(shorter(Interpolation::Bicubic))),
        ("none", "[conv2d: {out_channels: 3, kernel_size: 3, padding: 1}]", None),
    ] {
        let model = inline(&[3, 20, 24], layers);
        let network = network(&model);
        let preprocess = Preprocess { normalize: Some(normalize.clone()), resize, normalize_target: None };
        let what =
            Options { preprocess: Some(preprocess.clone()), softmax: resize.is_some(), ..options(LARGEST) };
        let file = |extension: &str| folder.path().join(format!("{name}.{extension}"));
        onnx::write(&file("onnx"), &model, &network, &what)
            .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let twin = torchscript::Options {
            preprocess: Some(preprocess),
            softmax: what.softmax,
            ..Default::default()
        };
        torchscript::write(&file("pt"), &model, &network, &twin).expect("TorchScript");
        let script = script::Module::load(&file("pt"), Device::Cpu).expect("it loads");
        let mut arrays = Vec::new();
        for (index, (height, width)) in
            [(20, 24), (50, 31), (13, 20), (20, 90), (97, 24), (33, 40)].into_iter().enumerate()
        {
            let xs = Tensor::randint(256, [2, 3, height, width], (Kind::Uint8, Device::Cpu));
            let ys = tch::no_grad(|| script.forward(&xs)).expect("it runs");
            arrays.extend([(format!("x{index}"), xs), (format!("y{index}"), ys)]);
        }
        Tensor::write_npz(&arrays, file("npz")).expect("the arrays are written");
        std::fs::write(file("txt"), "").expect("no names");
    }
    // Features, and answers in the units of the targets.
    let model = inline(&[3], "[linear: {out_features: 2}]");
    let network = network(&model);
    let target = Normalize { mean: vec![100.0, -3.0], std: vec![25.0, 0.5] };
    let preprocess = Preprocess {
        normalize: Some(normalize.clone()),
        resize: None,
        normalize_target: Some(target.clone()),
    };
    let what = Options { preprocess: Some(preprocess), ..options(LARGEST) };
    onnx::write(&folder.path().join("units.onnx"), &model, &network, &what).expect("it is written");
    let xs = Tensor::randn([5, 3], (Kind::Float, Device::Cpu));
    let ys = tch::no_grad(|| target.undo(&network.forward(&normalize.apply(&xs), false)));
    Tensor::write_npz(&[("x0", xs), ("y0", ys)], folder.path().join("units.npz")).expect("the arrays");
    std::fs::write(folder.path().join("units.txt"), "").expect("no names");
    compare(folder.path(), 1e-5);
}

#[test]
fn half_precision_keeps_the_statistics_of_batch_norms() {
    let test = "half_precision_keeps_the_statistics_of_batch_norms";
    if !has_modules(test, MODULES) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let layers =
        "[conv2d: {out_channels: 4, kernel_size: 3}, batch_norm2d, relu, flatten, linear: {out_features: 3}]";
    let model = inline(&[2, 8, 8], layers);
    let network = network(&model);
    for (name, tensor) in network.state() {
        if name.ends_with("running_var") {
            let _ = tch::no_grad(|| tensor.shallow_clone().fill_(311_255.0));
        }
    }
    let what = Options { half: true, ..options(LARGEST) };
    onnx::write(&folder.path().join("half.onnx"), &model, &network, &what).expect("it is written");
    let xs = Tensor::randn([4, 2, 8, 8], (Kind::Float, Device::Cpu));
    let ys = tch::no_grad(|| network.forward(&xs, false));
    Tensor::write_npz(&[("x0", xs), ("y0", ys)], folder.path().join("half.npz")).expect("the arrays");
    std::fs::write(folder.path().join("half.txt"), "").expect("no names");
    compare(folder.path(), 1e-2);
    // Weights that do not fit are refused.
    let _ = tch::no_grad(|| network.parameters()[0].tensor.shallow_clone().fill_(1e6));
    let error =
        onnx::write(&folder.path().join("x.onnx"), &model, &network, &what).expect_err("it is refused");
    assert!(format!("{error:#}").contains("`0.weight` hold values too large for float16"), "{error:#}");
}

#[test]
fn a_run_goes_to_onnx_with_what_is_known_of_it_and_the_documented_lines_classify() {
    let test = "a_run_goes_to_onnx_with_what_is_known_of_it_and_the_documented_lines_classify";
    if !has_modules(test, MODULES) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    std::fs::write(path("c.yaml"), RUN).expect("the config is written");
    succeeds(&["train", &path("c.yaml"), "--output", &path("run")]);
    let export = |output: &str, args: &[&str]| {
        succeeds(&[&["export", &path("run"), "--to", "onnx", "-o", &path(output)], args].concat())
    };
    let said = export("net.onnx", &[]);
    assert!(said.contains("opset 18") && said.contains("averaged weights"), "{said}");
    export("pictures.onnx", &["--preprocess", "--softmax"]);
    for (option, message) in [("--bf16", "no bfloat16"), ("--freeze", "fold batch norms")] {
        let (code, _, stderr) = run(&["export", &path("run"), "--to", "onnx", option, "-o", &path("x.onnx")]);
        assert!(code == 2 && stderr.contains(message), "{option}: {code} {stderr}");
    }
    let page = include_str!("../docs/python.md");
    let mut blocks = page.split("```python\n").filter_map(|block| block.split("```").next());
    let lines = blocks.find(|block| block.contains("onnxruntime")).expect("the lines");
    let printed = python(&format!(
        "import os, numpy\nos.chdir({:?})\npictures = numpy.random.default_rng(0).integers(0, 256, (5, 1, 20, 20), numpy.uint8)\n\
         numpy.save('pictures.npy', pictures)\n{lines}\n\
         whole = onnxruntime.InferenceSession('pictures.onnx').run(None, {{'input': pictures}})[0]\n\
         other = onnxruntime.InferenceSession('pictures.onnx').run(None, {{'input': pictures[:, :, :13]}})[0]\n\
         said = onnxruntime.InferenceSession('pictures.onnx').get_modelmeta().custom_metadata_map\n\
         assert abs(whole.sum(1) - 1).max() < 1e-6 and other.shape == (5, 10)\n\
         assert 'mean' not in said and len(json.loads(said['classes'])) == 10 and said['epoch'], said\n\
         assert json.loads(said['input_size']) == [1, 20, 20]\n\
         print([about['classes'][best] for best in whole.argmax(1)])",
        folder.path().to_str().expect("text")
    ));
    let [first, second] = printed.lines().collect::<Vec<_>>()[..] else { panic!("{printed}") };
    assert_eq!(first, second, "with and without --preprocess");
}

#[test]
fn an_onnx_file_is_inspected_and_gives_its_weights_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    let net = model(json!("resnet20"));
    write(folder.path(), "net", &net, LARGEST).expect("it is written");
    let shown = succeeds(&["inspect", &path("net.onnx")]);
    for text in [
        "container  ONNX model",
        "producer: \"tikhonov",
        "opset: \"18\"",
        "inputs: \"input: float32 [batch, 3, height, width]\"",
        "outputs: \"output: float32 [batch, 10]\"",
        "layer1.0.conv1.weight",
    ] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    assert!(!shown.contains("constant_"), "{shown}");
    succeeds(&[
        "export",
        &path("net.onnx"),
        "--model",
        "resnet20",
        "--to",
        "safetensors",
        "-o",
        &path("w.safetensors"),
    ]);
    succeeds(&[
        "export",
        &path("w.safetensors"),
        "--model",
        "resnet20",
        "--to",
        "onnx",
        "-o",
        &path("again.onnx"),
    ]);
    let weights = |name: &str| read_weights(&folder.path().join(name), None).expect("it is read").tensors;
    let (first, again) = (weights("net.onnx"), weights("again.onnx"));
    let counters = net.params().iter().filter(|param| param.name.ends_with("num_batches_tracked")).count();
    assert_eq!(first.len(), net.params().len() - counters);
    for ((name, one), (other, two)) in first.iter().zip(&again) {
        assert!(name == other && one.equal(two), "{name} {other}");
    }
    // Damage is named, and weights in another file are not read.
    let bytes = std::fs::read(path("net.onnx")).expect("the file");
    std::fs::write(path("short.onnx"), &bytes[..bytes.len() / 2]).expect("half of it");
    let (code, _, stderr) = run(&["inspect", &path("short.onnx")]);
    assert!(code == 4 && stderr.contains("ONNX model") && stderr.contains("truncated"), "{code} {stderr}");
    write(folder.path(), "large", &net, 1 << 20).expect("it is written");
    let (code, _, stderr) = run(&["export", &path("large.onnx"), "--model", "resnet20", "--to", "python"]);
    assert!(code == 4 && stderr.contains("is in the file `large.onnx.data`"), "{code} {stderr}");
}

#[test]
fn what_onnx_cannot_say_exactly_is_refused_by_name_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    for (shape, layers, message) in [
        (
            &[2, 9, 9][..],
            "[avg_pool2d: {kernel_size: 3, stride: 2, divisor_override: 5, ceil_mode: true}]",
            "divisor_override with ceil_mode",
        ),
        (&[2, 9, 9], "[upsample: {scale_factor: 2.3}]", "the factor 2.3, with which rounding decides"),
    ] {
        let error = write(folder.path(), "x", &inline(shape, layers), LARGEST).expect_err("it is refused");
        assert_eq!(tikhonov::util::exit_code::code(&error), 2);
        assert!(format!("{error:#}").contains(message), "{error:#}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0);
}

#[test]
#[ignore = "makes the table of docs/python.md: cargo test --release --locked -- --ignored --nocapture hand_over"]
fn the_hand_over_table_of_every_shipped_model() {
    let names: Vec<_> = EXPORTS.iter().map(|export| format!("`{}`", export.name)).collect();
    println!("\n| model | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
    for (name, model) in shipped(1, |_| true) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str| folder.path().join(name);
        let text = |name: &str| file(name).to_str().expect("text").to_owned();
        let network = network(&model);
        writer::write(&file("weights.pth"), &network.state()).expect("the weights are written");
        let exact = model.build(Device::Cpu, Kind::Double).expect("it builds");
        exact.load_state(&network.state().into_iter().collect()).expect("the same names");
        let xs = Tensor::randn([&[2], model.input()].concat(), (Kind::Float, Device::Cpu));
        let ys = tch::no_grad(|| exact.forward(&xs.to_kind(Kind::Double), false)).contiguous();
        Tensor::write_npz(&[("x", xs), ("y", ys)], file("io.npz")).expect("the arrays are written");
        let mut files = String::new();
        for export in EXPORTS {
            let output = format!("net.{}", export.exporter.extension());
            let args =
                ["export", &text("weights.pth"), "--model", &name, "--to", export.name, "-o", &text(&output)];
            let (code, _, stderr) = run(&args);
            match code {
                0 => writeln!(files, "{} {output}", export.name).expect("text"),
                _ => writeln!(files, "{} -", export.name)
                    .inspect(|()| eprintln!("{name}: {stderr}"))
                    .expect("text"),
            }
        }
        std::fs::write(file("files.txt"), files).expect("the list is written");
        let args = [folder.path().to_str().expect("text"), name.as_str()];
        print!(
            "{}",
            python(&format!(
                "import sys\nsys.argv = [''] + {args:?}\n{}",
                include_str!("export/handover.py")
            ))
        );
    }
}

#[test]
#[ignore = "times onnxruntime beside the program: cargo test --release --locked -- --ignored --nocapture images_per_second"]
fn images_per_second_of_onnxruntime_and_of_the_program() {
    for (name, shape) in
        [("resnet20", [64, 3, 32, 32]), ("dncnn", [4, 1, 128, 128]), ("resnet18-imagenet", [8, 3, 224, 224])]
    {
        let folder = tempfile::tempdir().expect("a folder");
        let model = model(json!(name));
        let network = network(&model);
        onnx::write(&folder.path().join("net.onnx"), &model, &network, &options(LARGEST))
            .expect("it is written");
        let xs = Tensor::randn(shape, (Kind::Float, Device::Cpu));
        Tensor::write_npz(&[("x", xs.shallow_clone())], folder.path().join("io.npz")).expect("the array");
        let args = [folder.path().to_str().expect("text")];
        let theirs =
            python(&format!("import sys\nsys.argv = [''] + {args:?}\n{}", include_str!("export/speed.py")));
        let ours = (0..7).map(|_| {
            let start = std::time::Instant::now();
            let _ = tch::no_grad(|| network.forward(&xs, false));
            shape[0] as f64 / start.elapsed().as_secs_f64()
        });
        let ours = ours.fold(0.0, f64::max);
        println!(
            "{name} {shape:?}: onnxruntime {:.0}/s, tikhonov {ours:.0}/s",
            theirs.trim().parse::<f64>().expect("a number")
        );
    }
}
