//! What `export` writes answers in Python as the network does in Rust.

mod flat;
mod pt2;

use std::fmt::Write;
use std::path::Path;

use serde_json::json;
use tch::{Device, Kind, Tensor};
use tikhonov::nn::model::Model;
use tikhonov::pytorch::export::{About, pt2 as exported, python as source, torchscript};

use crate::common::{outcome, python, run, succeeds};
use crate::model::{LAYERS, inline, model};

/// A Python script of this folder with its arguments.
fn script(text: &str, args: &[&str]) -> String {
    python(&format!("import sys\nsys.argv = ['']  + {args:?}\n{text}"))
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// Writes `model` in every form under `name`, with fresh weights, an input and what it answers.
fn write_all(folder: &Path, name: &str, model: &Model) {
    let network = model.build(Device::Cpu, Kind::Float).expect("it builds");
    for (_, tensor) in network.state() {
        if tensor.dim() == 1 {
            let _ = tch::no_grad(|| tensor.shallow_clone().uniform_(0.5, 1.5));
        }
    }
    let options = torchscript::Options::default();
    let before: Vec<_> = network.state().into_iter().map(|(name, t)| (name, t.detach().copy())).collect();
    let file = |extension: &str| folder.join(format!("{name}.{extension}"));
    torchscript::write(&file("pt"), model, &network, &options)
        .unwrap_or_else(|error| panic!("{name}: {error:#}"));
    exported::write(&file("pt2"), model, &network, &options)
        .unwrap_or_else(|error| panic!("{name}: {error:#}"));
    source::write(&file("py"), model, name, &[], &About::default())
        .unwrap_or_else(|error| panic!("{name}: {error:#}"));
    let names: Vec<_> = model.params().iter().map(|param| param.name.clone()).collect();
    std::fs::write(file("txt"), names.join("\n")).expect("the names are written");
    network.load_state(&before.into_iter().collect()).expect("its own state");
    let xs = Tensor::randn([&[3], model.input()].concat(), (Kind::Float, Device::Cpu));
    let mut arrays = vec![("x".to_owned(), xs.shallow_clone())];
    arrays.push(("eval".into(), network.forward(&xs, false)));
    if let Some(sides) = model.sides() {
        let &[channels, height, width] = model.input() else { panic!("{name}: sides without an image") };
        let wide = [2, channels, height + sides.multiple, width + 2 * sides.multiple];
        let wide = Tensor::randn(wide, (Kind::Float, Device::Cpu));
        arrays.push(("wide_eval".into(), network.forward(&wide, false)));
        arrays.push(("wide".into(), wide));
    }
    tch::manual_seed(3);
    arrays.push(("train".into(), network.forward(&xs, true)));
    arrays.extend(network.state().into_iter().map(|(name, tensor)| (format!("after.{name}"), tensor)));
    let arrays: Vec<_> = arrays.into_iter().map(|(name, t)| (name, t.detach().contiguous())).collect();
    Tensor::write_npz(&arrays, file("npz")).expect("the arrays are written");
}

/// What single layers do not show: names that are shared, silent or numbered.
pub const NETWORKS: &[(&[i64], &str)] = &[
    (
        &[3, 6, 6],
        "
stem: {conv2d: {out_channels: 8, kernel_size: 3, padding: 1}}
_dense:
  repeat:
    times: 2
    layers:
      dense{i + 1}: {concat: {_same: identity, grow: {conv2d: {out_channels: 4, kernel_size: 1}}}}
mix: {concat: [conv2d: {out_channels: 2, kernel_size: 1}, [relu, conv2d: {out_channels: 3, kernel_size: 1}], tanh]}
tail:
  - relu
  - repeat: {times: 2, layers: [conv2d: {out_channels: 5, kernel_size: 1}, relu]}
  - residual: {layers: [relu, conv2d: {out_channels: 5, kernel_size: 1}], shortcut: [sigmoid]}
",
    ),
    (
        &[4],
        "
inner: {linear: {out_features: 6}}
_relu: relu
body: [repeat: {times: 4, layers: [linear: {out_features: 6}, batch_norm1d, relu]}]
_relu: leaky_relu
head: [linear: {out_features: 3}, [relu, linear: {out_features: 3}]]
_a: {twice: {one: {linear: {out_features: 3}}}}
_b: {twice: {two: {linear: {out_features: 2}}}}
",
    ),
    (&[2, 4, 4], "[residual: {layers: [residual: {layers: [tanh]}, conv2d: {out_channels: 2, kernel_size: 1}]}]"),
    (
        &[4, 6, 5],
        "
block1: {block1-0: {conv2d: {out_channels: 6, kernel_size: 1}}, act-1: relu, _act-2: tanh, block1-1: batch_norm2d}
__se:
  multiply:
    layers: {_pool: {adaptive_avg_pool2d: {output_size: 1}}, fc: {conv2d: {out_channels: 6, kernel_size: 1}}, _s: sigmoid}
__apply_gate: {multiply: {layers: [slice_channels: {start: 0, end: 3}], shortcut: [slice_channels: {start: 3, end: 6}, tanh]}}
_noise: {subtract: {layers: {__1: {conv2d: {out_channels: 3, kernel_size: 3, padding: 1}}}}}
_other: {subtract: {layers: [sigmoid], shortcut: {a: [relu, subtract: {layers: [batch_norm2d]}]}}}
",
    ),
    (
        &[3, 9, 8],
        "
features: [conv2d: {out_channels: 4, kernel_size: 3, stride: 2}, relu]
aspp: {concat: [identity, [adaptive_avg_pool2d: {output_size: 2}, conv2d: {out_channels: 2, kernel_size: 1}, upsample: {like: input}]]}
_up: {upsample: {like: input, mode: bilinear, align_corners: true}}
head: {conv2d: {out_channels: 2, kernel_size: 3}}
last: {upsample: {like: input, mode: bilinear}}
",
    ),
    (&[12], "[reshape: {shape: [3, 2, 2]}, subsample_pad: {out_channels: 7}, flatten]"),
    (&[5, 4, 4], "[slice_channels: {start: 1, end: 5}, reparametrize, quantize]"),
    (&[2, 8, 8], "[dropout: {p: 0.3}, dropout2d: {p: 0.4}, dropout2d]"),
    (&[2, 9, 9], "[drop_block2d: {p: 0.2, block_size: 3}, drop_block2d: {p: 0.1, block_size: 11, eps: 0.1}]"),
    (
        &[3, 6, 6],
        "{down: {_a: {weight_norm: {module: {conv2d: {out_channels: 4, kernel_size: 3, padding: 1}}}}, _r: relu, b: {spectral_norm: {module: {conv2d: {out_channels: 4, kernel_size: 1}}}}}, up: [repeat: {times: 3, layers: [{weight_norm: {module: {conv2d: {out_channels: 4, kernel_size: 1}}}}, relu]}]}",
    ),
    (&[2, 8, 8], "[stochastic_depth: {p: 0.3}, stochastic_depth: {p: 0.2, mode: batch}, scale: {value: 0.1}]"),
    (
        &[4, 6, 6],
        "
features:
  - repeat:
      times: 2
      layers:
        - residual:
            layers:
              block:
                - conv2d: {out_channels: 4, kernel_size: 7, padding: 3, groups: 4}
                - permute: {dims: [0, 2, 3, 1]}
                - layer_norm: {normalized_shape: 4, eps: 1.0e-6}
                - linear: {in_features: 4, out_features: 16}
                - gelu
                - linear: {in_features: 16, out_features: 4}
                - permute: {dims: [0, 3, 1, 2]}
              _layer_scale: {scale: {parameter: layer_scale, shape: [4, 1, 1], init: 0.5}}
              _stochastic_depth: {stochastic_depth: {p: 0, mode: row}}
  - conv2d: {out_channels: 6, kernel_size: 1}
  - residual: {layers: {norm: layer_norm2d, _beta: {scale: {parameter: beta}}, conv: {conv2d: {out_channels: 6, kernel_size: 1}}, _gamma: {scale: {parameter: gamma, shape: [1, 6, 1, 1]}}}}
named: {scale: {parameter: weight}}
",
    ),
    (&[3, 4, 4], "[[{conv: {conv2d: {out_channels: 3, kernel_size: 1}}, _s: {scale: {parameter: in_front}}}], {_n: batch_norm2d, _s: {scale: {parameter: behind}}}]"),
    (&[2, 8, 8], "{a: {concat: {x: relu, y: {conv2d: {out_channels: 1, kernel_size: 1}}}}, _b: {a: {z: batch_norm2d}}}"),
];

#[test]
fn every_layer_with_all_its_arguments_answers_in_every_form_as_in_rust() {
    let folder = tempfile::tempdir().expect("a folder");
    let kinds: std::collections::BTreeSet<_> = tikhonov::nn::layers::LayerSpec::kinds().collect();
    let cases = LAYERS.iter().map(|(shape, layers, _)| (*shape, *layers)).chain(NETWORKS.iter().copied());
    let mut seen = String::new();
    for (index, (shape, layers)) in cases.enumerate() {
        write_all(folder.path(), &format!("case{index}"), &inline(shape, layers));
        write!(seen, "{layers} ").expect("text");
    }
    for kind in kinds {
        assert!(seen.contains(kind), "{kind} is not among the cases");
    }
    let printed = script(include_str!("export/layers.py"), &[utf8(folder.path())]);
    assert_eq!(printed, format!("{}\n", LAYERS.len() + NETWORKS.len()));
}

#[test]
fn every_shipped_model_goes_to_python_and_back_unchanged_in_all_forms() {
    let folder = tempfile::tempdir().expect("a folder");
    let twins = include_str!("model/twins.py").replace("\nmain(sys.argv[1])", "");
    let text = format!("{twins}\n{}", include_str!("export/roundtrip.py"));
    let names = script(&text, &["write", utf8(folder.path())]);
    let export = |name: &str| {
        let stem = name.replace('-', "_");
        let file = |extension: &str| folder.path().join(format!("{stem}.{extension}"));
        for (format, extension) in [
            ("state-dict", "pt"),
            ("safetensors", "safetensors"),
            ("torchscript", "torchscript.pt"),
            ("pt2", "pt2"),
            ("python", "py"),
        ] {
            let (weights, output) = (file("pth"), file(extension));
            let (code, _, stderr) =
                run(&["export", utf8(&weights), "--model", name, "--to", format, "-o", utf8(&output)]);
            assert_eq!(code, 0, "{name} to {format}: {stderr}");
        }
    };
    std::thread::scope(|scope| {
        for name in names.lines() {
            scope.spawn(move || export(name));
        }
    });
    assert_eq!(script(&text, &["read", utf8(folder.path())]), names);
    assert_eq!(names.lines().count(), crate::model::TWINS.len(), "every model has a twin");
}

#[test]
fn python_source_is_readable() {
    let text = source::source(&model(json!("resnet20")), "net", "resnet20", &[], &About::default())
        .expect("it is written");
    assert!(text.contains("class Basic(nn.Module):\n    def __init__(self, channels):"), "{text}");
    assert!(text.contains("        self.layer1 = nn.Sequential(*(Basic(16) for _ in range(3)))"), "{text}");
    let text = source::source(&model(json!("dncnn")), "net", "dncnn", &[], &About::default())
        .expect("it is written");
    assert!(text.contains("for _ in range(15)"), "{text}");
}

pub const RUN: &str = "
device: cpu
threads: 1
model: {name: small-cnn, args: {size: 20, classes: 10, width: 4}}
task: {classification: {}}
data:
  train: {shapes: {count: 200, size: 20}}
  validation: {fraction: 0.2}
penalty: {l2: 1.0e-4}
optimizer: {sgd: {lr: 0.05}}
train: {epochs: 2, ema: {decay: 0.5}}
";

#[test]
fn a_run_is_exported_averaged_or_raw_narrowed_frozen_and_with_its_preprocessing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| utf8(&folder.path().join(name)).to_owned();
    std::fs::write(path("c.yaml"), RUN).expect("the config is written");
    succeeds(&["train", &path("c.yaml"), "--output", &path("run")]);
    let export = |output: &str, args: &[&str]| {
        succeeds(&[&["export", &path("run"), "-o", &path(output)], args].concat())
    };
    assert!(export("plain.pt", &["--to", "torchscript"]).contains("averaged weights"));
    assert!(export("raw.safetensors", &["--to", "safetensors", "--raw"]).contains("raw weights"));
    export("named.safetensors", &["--to", "safetensors", "--checkpoint", "epoch-0002"]);
    export("half.pt", &["--to", "torchscript", "--half"]);
    export("bf16.safetensors", &["--to", "safetensors", "--bf16"]);
    export("frozen.pt", &["--to", "torchscript", "--freeze"]);
    export("optimized.pt", &["--to", "torchscript", "--optimize", "--softmax"]);
    export("pictures.pt", &["--to", "torchscript", "--preprocess", "--softmax"]);
    export("source.py", &["--to", "python"]);
    export("weights.pt", &["--to", "state-dict"]);
    let checks = include_str!("export/run.py");
    assert_eq!(script(checks, &[utf8(folder.path())]), "good\n");

    // The source is safe, what exists too, and options that mean nothing are not swallowed.
    let inside = path("run/checkpoints/epoch-0002/model.safetensors");
    let run_folder = path("run");
    let weights = path("raw.safetensors");
    for (args, message) in [
        (vec!["export", &run_folder, "--to", "safetensors", "--force", "-o", &inside], "never overwritten"),
        (
            vec!["export", &weights, "--to", "safetensors", "--model", "lenet", "--force", "-o", &weights],
            "does not fit",
        ),
        (vec!["export", &run_folder, "--to", "torchscript", "-o", &weights], "--force"),
        (vec!["export", &run_folder, "--to", "safetensors", "--freeze"], "--to torchscript"),
        (vec!["export", &run_folder, "--to", "python", "--half"], "no dtype"),
        (vec!["export", &weights, "--to", "python"], "--model"),
        (vec!["export", &run_folder, "--to", "python", "--model", "lenet"], "--model is for files"),
    ] {
        let (code, _, stderr) = run(&args);
        assert!([2, 4].contains(&code) && stderr.contains(message), "{args:?}: {code} {stderr}");
    }
}

#[test]
fn names_that_python_cannot_say_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    for (layers, message) in [
        ("{in: {linear: {out_features: 2}}}", "`in` at the top of the network is a word of Python"),
        ("{torch: {linear: {out_features: 2}}, _r: relu}", "the name of Python's torch"),
        ("{forward: {linear: {out_features: 2}}}", "called `forward`"),
    ] {
        let model = inline(&[3], layers);
        let network = model.build(Device::Cpu, Kind::Float).expect("it builds");
        let path = folder.path().join("x.pt");
        let error = torchscript::write(&path, &model, &network, &torchscript::Options::default())
            .expect_err("it is refused");
        assert_eq!(tikhonov::util::exit_code::code(&error), 2);
        assert!(format!("{error:#}").contains(message), "{error:#}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0);
    for name in ["type", "__modules"] {
        let layers = format!("{{{name}: {{linear: {{out_features: 2}}}}}}");
        let error = source::source(&inline(&[3], &layers), "net", "net", &[], &About::default());
        assert_eq!(tikhonov::util::exit_code::code(&error.expect_err("it is refused")), 2);
    }
}

/// So deep that the batch statistics of three samples magnify float32's rounding to 1e-4.
const DEEP: &str = "
device: cpu
threads: 1
model:
  input: [1, 16, 16]
  layers:
    - conv2d: {out_channels: 8, kernel_size: 3, padding: 1, bias: false}
    - repeat:
        times: 30
        layers:
          - residual:
              layers:
                - conv2d: {out_channels: 8, kernel_size: 3, padding: 1, bias: false}
                - batch_norm2d
                - relu
                - conv2d: {out_channels: 8, kernel_size: 3, padding: 1, bias: false}
                - batch_norm2d
    - max_pool2d: {kernel_size: 8}
    - repeat: {times: 20, layers: [conv2d: {out_channels: 8, kernel_size: 1, bias: false}, batch_norm2d, relu]}
    - flatten
    - linear: {out_features: 4}
task: classification
data: {train: {shapes: {count: 16, size: 16, classes: 4}}, batch_size: 8}
optimizer: {sgd: {lr: 0.0001}}
train: {epochs: 1}
";

#[test]
fn a_deep_network_is_judged_in_float64_and_not_refused_for_its_rounding() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| utf8(&folder.path().join(name)).to_owned();
    std::fs::write(path("c.yaml"), DEEP).expect("the config is written");
    succeeds(&["train", &path("c.yaml"), "--output", &path("run")]);
    for (name, options) in [("plain.pt", &[][..]), ("half.pt", &["--bf16"]), ("frozen.pt", &["--freeze"])] {
        let args = ["export", &path("run"), "--to", "torchscript", "-o", &path(name)];
        let said = succeeds(&[&args, options].concat());
        assert!(name != "plain.pt" || said.contains("in training (float64)"), "{said}");
    }
}

#[test]
fn a_program_that_is_another_network_is_refused_however_small_the_difference() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.pt");
    let net = |eps: &str, slope: &str| {
        let layers = format!(
            "[conv2d: {{out_channels: 3, kernel_size: 3}}, batch_norm2d: {{eps: {eps}}}, leaky_relu: {{negative_slope: {slope}}}]"
        );
        inline(&[2, 6, 6], &layers)
    };
    let meant = net("1.0e-5", "0.01");
    let network = meant.build(Device::Cpu, Kind::Float).expect("it builds");
    for (model, freeze, is_same) in [
        (net("1.0e-5", "0.01"), false, true),
        (net("1.0e-5", "0.01"), true, true),
        (net("1.1e-5", "0.01"), false, false),
        (net("1.0e-5", "0.010001"), false, false),
        (net("1.0e-2", "0.01"), true, false),
        (net("1.0e-5", "0.02"), true, false),
    ] {
        // The file is of `model` with the same weights.
        let other = model.build(Device::Cpu, Kind::Float).expect("it builds");
        other.load_state(&network.state().into_iter().collect()).expect("the same names");
        let options = torchscript::Options { freeze, ..Default::default() };
        torchscript::write(&path, &model, &other, &options).expect("it is that of `model`");
        match torchscript::check(&path, &meant, &network, &options) {
            Ok(_) => assert!(is_same, "{model:?} passed for another"),
            Err(error) => {
                let text = format!("{error:#}");
                assert!(!is_same && text.contains("answers otherwise than the network"), "{text}");
                assert_eq!(tikhonov::util::exit_code::code(&error), 4);
            }
        }
    }
}

#[test]
fn an_optimizer_whose_schedule_is_over_says_so_and_predictions_in_json_are_a_list() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| utf8(&folder.path().join(name)).to_owned();
    for (schedule, is_over) in [("cosine", true), ("constant", false)] {
        std::fs::write(path("c.yaml"), format!("{RUN}schedule: {schedule}\n"))
            .expect("the config is written");
        succeeds(&["train", &path("c.yaml"), "--output", &path(schedule)]);
        let output = path("resumable.pt");
        let said = succeeds(&[
            "export",
            &path(schedule),
            "--to",
            "state-dict",
            "--with-optimizer",
            "--force",
            "-o",
            &output,
        ]);
        assert_eq!(said.contains("`lr` is 0.0") && said.contains("g['lr'] = 0.05"), is_over, "{said}");
    }
    std::fs::write(path("x.pgm"), [&b"P5 20 20 255\n"[..], &[100; 400]].concat())
        .expect("a picture is written");
    let predict = |top: &str| -> serde_json::Value {
        let args = ["predict", &path("constant"), &path("x.pgm"), "--format", "json", "--top", top];
        serde_json::from_str(&succeeds(&args)).expect("one object")
    };
    let (one, three) = (predict("1"), predict("3"));
    assert_eq!(three["classes"].as_array().map(Vec::len), Some(3));
    let first = &three["classes"][0];
    assert!(first["class"] == one["class"] && first["probability"] == one["probability"], "{three}");
    assert!(one["class"] == three["class"] && three.get("class_2").is_none() && one.get("classes").is_none());
}

const LINEAR: &str = "{input: [2], layers: {fc: {linear: {out_features: 2}}}}";

#[test]
fn what_narrowing_would_break_is_refused_by_name_and_broken_weights_stay_as_they_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| utf8(&folder.path().join(name)).to_owned();
    python(&format!(
        "import torch\nstate = torch.nn.Linear(2, 2).state_dict(); torch.save(state, {:?})\n\
         state['weight'][0, 0] = 70000; torch.save({{'fc.' + k: v for k, v in state.items()}}, {:?})\n\
         state['weight'][0, 0] = float('nan'); torch.save({{'fc.' + k: v for k, v in state.items()}}, {:?})",
        path("bare.pth"),
        path("large.pth"),
        path("nan.pth")
    ));
    let (large, nan) = (path("large.pth"), path("nan.pth"));
    let export = |from: &str, to: &str, more: &[&str]| {
        let output = path("x");
        let args = ["export", from, "--model", LINEAR, "--to", to, "--force", "-o", &output];
        run(&[&args, more].concat())
    };
    for format in ["safetensors", "state-dict", "torchscript"] {
        let (code, _, stderr) = export(&large, format, &["--half"]);
        assert!(code == 4 && stderr.contains("`fc.weight`") && stderr.contains("--bf16"), "{code} {stderr}");
        assert!(!stderr.contains("fc.bias"), "{stderr}");
        let (code, _, stderr) = export(&large, format, &["--bf16"]);
        assert_eq!(code, 0, "{stderr}");
        let (code, stdout, stderr) = export(&nan, format, &["--half"]);
        assert!(
            code == 0 && stdout.contains("not all values are finite in `fc.weight`"),
            "{stdout} {stderr}"
        );
    }
    let (code, _, stderr) = run(&["convert", &large, &path("y.safetensors"), "--half"]);
    assert!(code == 4 && stderr.contains("`fc.weight`"), "{code} {stderr}");
}

#[test]
fn half_precision_leaves_batch_norms_in_float32_so_that_large_variances_stay_finite() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| utf8(&folder.path().join(name)).to_owned();
    python(&format!(
        "import torch\nfrom torch import nn\ntorch.manual_seed(0)\n\
         net = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))\n\
         net[2].running_var.fill_(311255.0)\ntorch.save(net.state_dict(), {:?})",
        path("w.pth")
    ));
    let net = "{input: [2, 8, 8], layers: [batch_norm2d, conv2d: {out_channels: 4, kernel_size: 3}, batch_norm2d, relu, flatten, linear: {out_features: 3}]}";
    for (format, options, output) in [
        ("state-dict", &[][..], "w.pt"),
        ("safetensors", &[], "w.safetensors"),
        ("torchscript", &[], "plain.pt"),
        ("torchscript", &["--freeze"], "frozen.pt"),
        ("torchscript", &["--optimize"], "optimized.pt"),
    ] {
        let args = ["export", &path("w.pth"), "--model", net, "--to", format, "--half", "-o", &path(output)];
        succeeds(&[&args, options].concat());
    }
    let printed = python(&format!(
        "import os, torch\nfrom safetensors.torch import load_file\nfrom torch import nn\nos.chdir({:?})\n\
         net = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()\n\
         net.load_state_dict(torch.load('w.pth'))\nx = torch.randn(5, 2, 8, 8)\n\
         a, b = torch.load('w.pt', weights_only=True), load_file('w.safetensors')\n\
         for state in [a, b, torch.jit.load('plain.pt').state_dict()]:\n\
         \x20   assert state['1.weight'].dtype == torch.half and state['2.running_var'].dtype == state['2.weight'].dtype == torch.float32\n\
         \x20   assert state['2.running_var'][0] == 311255\n\
         with torch.no_grad():\n\
         \x20   for name in ['plain.pt', 'frozen.pt', 'optimized.pt']:\n\
         \x20       y = torch.jit.load(name)(x.half())\n\
         \x20       assert y.dtype == torch.half, name\n\
         \x20       print(name, ((y.float() - net(x)).abs().max() / net(x).abs().max()).item() < 5e-3)",
        utf8(folder.path())
    ));
    assert_eq!(printed, "plain.pt True\nfrozen.pt True\noptimized.pt True\n");
}

#[test]
fn only_regular_files_are_ever_replaced_and_a_run_that_is_not_there_is_told_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| utf8(&folder.path().join(name)).to_owned();
    python(&format!(
        "import torch, os\nnet = torch.nn.Linear(2, 2)\n\
         torch.save({{'fc.' + k: v for k, v in net.state_dict().items()}}, {0:?} + '/w.pth')\n\
         os.mkfifo({0:?} + '/pipe'); open({0:?} + '/real', 'w').close()\n\
         os.symlink('real', {0:?} + '/link'); os.symlink('nothing', {0:?} + '/dangling')",
        utf8(folder.path())
    ));
    let weights = path("w.pth");
    let export = |to: &str| {
        run(&["export", &weights, "--model", LINEAR, "--to", "safetensors", "--force", "-o", &path(to)])
    };
    for name in ["pipe", "dangling"] {
        let (code, _, stderr) = export(name);
        assert!(code == 2 && stderr.contains("no regular file"), "{name}: {code} {stderr}");
        assert!(!folder.path().join(name).is_file());
    }
    let (code, _, stderr) = export("link");
    assert_eq!(code, 0, "{stderr}");
    assert!(folder.path().join("link").is_symlink());
    assert!(std::fs::metadata(path("real")).expect("the target").len() > 0);
    let (code, _, stderr) = run(&["export", &path("runs-with-a-typo"), "--to", "safetensors"]);
    assert!(code == 2 && stderr.contains("there is no") && !stderr.contains("says"), "{code} {stderr}");
    succeeds(&["export", &weights, "--model", LINEAR, "--to", "python", "-o", &path("a b.py")]);
    let source = std::fs::read_to_string(path("a b.py")).expect("the source");
    assert!(source.contains("from net import Net") && !source.contains("from a b"), "{source}");
}

#[test]
fn a_file_that_cannot_be_written_whole_is_exit_7_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| utf8(&folder.path().join(name)).to_owned();
    let net = "{layers: {fc: {linear: {out_features: 100}}}, input: [100]}";
    python(&format!(
        "import torch\ntorch.save({{'fc.' + k: v for k, v in torch.nn.Linear(100, 100).state_dict().items()}}, {:?})",
        path("w.pth")
    ));
    for format in ["torchscript", "safetensors"] {
        // 40 kB into 8: a file-size limit stands in for a disk that is full.
        let limited = format!(
            "trap '' XFSZ; ulimit -f 8; exec {} export {} --model '{net}' --to {format} -o {}",
            env!("CARGO_BIN_EXE_tikhonov"),
            path("w.pth"),
            path("x.pt")
        );
        let (code, _, stderr) =
            outcome(std::process::Command::new("sh").args(["-c", &limited]).output().expect("a shell"));
        assert_eq!(code, 7, "{format}: {stderr}");
        assert!(stderr.contains("x.pt"), "{stderr}");
        let left: Vec<_> = std::fs::read_dir(folder.path()).expect("the folder").flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}

#[test]
fn the_optimizer_of_a_partly_frozen_run_comes_with_the_recipe_that_loads_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| utf8(&folder.path().join(name)).to_owned();
    std::fs::write(path("c.yaml"), RUN).expect("the config is written");
    succeeds(&["train", &path("c.yaml"), "--output", &path("first"), "--set", "train.epochs=1"]);
    let from = format!("model.init_from={{file: {:?}, freeze: ['block1.*']}}", path("first"));
    succeeds(&["train", &path("c.yaml"), "--output", &path("second"), "--set", &from]);
    let (code, stdout, stderr) =
        run(&["export", &path("second"), "--to", "state-dict", "--with-optimizer", "-o", &path("o.pt")]);
    assert!(code == 0 && stdout.contains("parameters are frozen"), "{stdout} {stderr}");
    succeeds(&["export", &path("second"), "--to", "python", "-o", &path("source.py")]);
    let note = stdout.lines().find(|line| line.contains("are frozen")).expect("the note");
    let start = note.find("torch.optim.").expect("the recipe");
    let (make, params) = note[start..].split_once(", params = ").expect("both halves");
    let printed = python(&format!(
        "import sys, torch\nsys.dont_write_bytecode = True\nsys.path.insert(0, {:?})\nimport source\n\
         net = source.Net(); file = torch.load({:?}, weights_only=True); net.load_state_dict(file['model'])\n\
         params = {params}\noptimizer = {make}\noptimizer.load_state_dict(file['optimizer'])\n\
         print(sum(len(g['params']) for g in optimizer.param_groups) < len(params))",
        utf8(folder.path()),
        path("o.pt")
    ));
    assert_eq!(printed, "True\n");
}
