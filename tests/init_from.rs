//! Runs that start from weights of elsewhere, and evaluations of them.

use std::fs;
use std::path::Path;

use tikhonov::pytorch::weights::read_weights;

use crate::common::{data_dir, python, run, succeeds};

/// Writes `net.pth` as a Python user would: float64, DataParallel's prefix, nested, a head of seven classes.
const PRETRAINED: &str = "
import torch
torch.manual_seed(0)
net = torch.nn.Sequential()
net.add_module('conv', torch.nn.Conv2d(1, 4, 3, padding=1))
net.add_module('bn', torch.nn.BatchNorm2d(4))
net.add_module('fc', torch.nn.Linear(4, 7))
net.bn.running_mean.uniform_(-1, 1)
torch.save({'net': torch.nn.DataParallel(net).double().state_dict(), 'epoch': 12}, PATH)
";

const CONFIG: &str = "
device: cpu
threads: 1
model:
  init_from: INIT
  input: [1, 28, 28]
  layers:
    conv: {conv2d: {out_channels: 4, kernel_size: 3, padding: 1}}
    bn: batch_norm2d
    _relu: relu
    _pool: {adaptive_avg_pool2d: {output_size: 1}}
    _flatten: flatten
    fc: {linear: {out_features: 10}}
task: classification
data: {train: {shapes: {count: 200, size: 28}}, batch_size: 50}
penalty: {l2: 0.1}
optimizer: {sgd: {lr: 0.1}}
train: {epochs: 1}
";

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        python(&PRETRAINED.replace("PATH", &format!("{:?}", folder.path().join("net.pth"))));
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Trains with `init_from: {file: net.pth, REST}`.
    fn train(&self, rest: &str, options: &[&str]) -> (i32, String, String) {
        let init = format!("{{file: {}, {rest}}}", self.path("net.pth"));
        fs::write(self.path("config.yaml"), CONFIG.replace("INIT", &init)).unwrap();
        let (config, output) = (self.path("config.yaml"), self.path("run"));
        run(&[&["train", &config, "--output", &output], options].concat())
    }

    fn values(&self, file: &str, name: &str) -> (String, Vec<f64>) {
        let weights = read_weights(Path::new(&self.path(file)), None).unwrap();
        let (_, tensor) = weights.tensors.iter().find(|(found, _)| found.ends_with(name)).unwrap();
        (
            format!("{:?}", tensor.kind()),
            Vec::try_from(tensor.to_kind(tch::Kind::Float).to_kind(tch::Kind::Double).reshape([-1])).unwrap(),
        )
    }
}

#[test]
fn a_colleagues_file_is_fine_tuned_with_a_new_head_on_a_frozen_body() {
    let place = Place::new();
    let rest = "reset: ['fc.*'], freeze: ['conv.*', 'bn.*']";
    let (code, _, stderr) = place.train(rest, &[]);
    assert_eq!(code, 0, "{stderr}");
    for note in [
        "7 of 9 tensors",
        "under `net`",
        "`module.` taken off",
        "2 tensors start afresh",
        "7 tensors are frozen",
    ] {
        assert!(stderr.contains(note), "{note} is missing in {stderr}");
    }
    let trained = "run/checkpoints/last/model.safetensors";
    for name in ["conv.weight", "conv.bias", "bn.weight", "bn.running_mean", "bn.running_var"] {
        let (kind, values) = place.values(trained, name);
        assert_eq!(kind, "Float", "the file's float64 must not become the model's");
        assert_eq!(values, place.values("net.pth", name).1, "{name} is frozen");
    }
    let (_, head) = place.values(trained, "fc.weight");
    assert_eq!(head.len(), 40);

    // The run owes nothing to the file any more.
    fs::remove_file(place.path("net.pth")).unwrap();
    let (code, _, stderr) = place.train(rest, &["--resume", "--set", "train.epochs=2"]);
    assert_eq!(code, 0, "{stderr}");
    assert_ne!(place.values(trained, "fc.weight").1, head, "the head learns on");
    let (code, stdout, stderr) = run(&["eval", &place.path("run"), "--split", "train"]);
    assert!(code == 0 && stdout.contains("accuracy"), "{stderr}");
    let (_, stdout, _) = run(&["summary", &place.path("run")]);
    assert!(stdout.contains("frozen") && stdout.contains("50 parameters and 48 frozen ones"), "{stdout}");
}

#[test]
fn frozen_weights_are_neither_penalised_nor_is_their_statistic_moved_but_others_are() {
    let place = Place::new();
    let (code, _, stderr) = place.train("reset: ['fc.*'], freeze: [conv.weight]", &[]);
    assert_eq!(code, 0, "{stderr}");
    let trained = "run/checkpoints/last/model.safetensors";
    assert_eq!(place.values(trained, "conv.weight").1, place.values("net.pth", "conv.weight").1);
    for name in ["conv.bias", "bn.weight", "bn.running_mean"] {
        assert_ne!(place.values(trained, name).1, place.values("net.pth", name).1, "{name} is free");
    }
}

#[test]
fn what_does_not_fit_is_listed_at_once_with_the_nearest_names_and_nothing_is_written() {
    let place = Place::new();
    let (code, _, stderr) = place.train("rename: ['^module\\.conv\\.=>module.conv1.']", &[]);
    assert_eq!(code, 4, "{stderr}");
    for part in [
        "missing",
        "conv.weight (near: conv1.weight)",
        "unexpected",
        "conv1.bias",
        "[7, 4] in the file, [10, 4] in the network",
        "`reset`",
    ] {
        assert!(stderr.contains(part), "{part} is missing in {stderr}");
    }
    assert!(!Path::new(&place.path("run/config.yaml")).exists());
}

#[test]
fn a_part_is_taken_only_when_asked_for_and_reported() {
    let place = Place::new();
    let (code, _, stderr) = place.train("partial: true, key: net", &["--set", "optimizer.sgd.lr=0"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stderr.contains("7 of 9") && stderr.contains("[7, 4] in the file"), "{stderr}");
    let trained = "run/checkpoints/last/model.safetensors";
    assert_eq!(place.values(trained, "conv.weight").1, place.values("net.pth", "conv.weight").1);
}

#[test]
fn patterns_that_match_nothing_and_wrong_keys_are_told_with_the_remedy() {
    let place = Place::new();
    for (rest, code, part) in [
        ("freeze: [conv.weigth]", 2, "did you mean `conv.weight`?"),
        ("reset: ['head.*']", 2, "matches no tensor"),
        ("freeze: ['*']", 2, "leave something to train"),
        ("key: nte", 4, "nte"),
        ("rename: ['nothing']", 2, "REGEX=>REPLACEMENT"),
        ("rename: ['x=>y']", 2, "fits no name"),
        ("frezee: ['*']", 2, "did you mean `freeze`?"),
    ] {
        let (got, _, stderr) = place.train(rest, &[]);
        assert!(got == code && stderr.contains(part), "{rest}: {got}: {stderr}");
    }
}

#[test]
fn exact_names_are_loaded_and_not_a_second_copy_under_a_prefix() {
    let place = Place::new();
    python(&format!(
        "
import torch
d = torch.load({0:?})['net']
d = {{k[len('module.'):]: v for k, v in d.items()}}
torch.save({{**{{'ema.' + k: 3 * v for k, v in d.items()}}, **d}}, {0:?})
",
        place.path("net.pth")
    ));
    let (code, _, stderr) = place.train("partial: true, reset: ['fc.*']", &["--set", "optimizer.sgd.lr=0"]);
    assert!(code == 0 && !stderr.contains("taken off"), "{stderr}");
    let trained = "run/checkpoints/last/model.safetensors";
    let (_, ours) = place.values(trained, "conv.weight");
    let (_, first) = place.values("net.pth", "ema.conv.weight");
    assert!(ours.iter().zip(&first).all(|(one, three)| (3.0 * one - three).abs() < 1e-6));
}

#[test]
fn weights_that_are_no_numbers_are_refused_where_they_come_in() {
    let place = Place::new();
    python(&format!(
        "
import torch
d = torch.load({0:?}); d['net']['module.conv.bias'][1] = 1e300
torch.save(d, {0:?})
",
        place.path("net.pth")
    ));
    let (code, _, stderr) = place.train("reset: ['fc.*']", &[]);
    assert!(
        code == 4 && stderr.contains("`conv.bias` holds NaN or infinity, or what Float cannot hold"),
        "{stderr}"
    );
}

#[test]
fn a_dry_run_checks_the_weights_and_a_group_of_frozen_names_is_no_mistake() {
    let place = Place::new();
    let (code, _, stderr) = place.train("ignore: ['*.fc.bias']", &["--dry-run"]);
    assert!(code == 4 && stderr.contains("[7, 4] in the file"), "{stderr}");
    let groups = "penalty.groups=[{match: 'conv.*', l2: 1.0e-2}]";
    let (code, stdout, stderr) =
        place.train("reset: ['fc.*'], freeze: ['conv.*']", &["--dry-run", "--set", groups]);
    assert!(code == 0 && stdout.contains("conv.*"), "{stderr}");
}

#[test]
fn a_head_of_another_number_of_classes_starts_afresh_and_nothing_else_does() {
    let place = Place::new();
    let (code, _, stderr) = place.train("optimizer: false", &["--set", "optimizer.sgd.lr=1e-9"]);
    let line = "`fc` has 7 outputs in the file and 10 here, so that fc.weight and fc.bias start afresh";
    assert!(code == 0 && stderr.contains(line), "{stderr}");
    let trained = "run/checkpoints/last/model.safetensors";
    assert_eq!(place.values(trained, "fc.weight").1.len(), 40);
    let (ours, theirs) = (place.values(trained, "conv.weight").1, place.values("net.pth", "conv.weight").1);
    assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-6));
    // To judge by, weights have to be whole.
    let (code, _, stderr) =
        run(&["eval", &place.path("config.yaml"), "--split", "train", "--weights", &place.path("net.pth")]);
    assert!(code == 4 && stderr.contains("[7, 4] in the file"), "{stderr}");
    // Another width before the head is no matter of the head.
    let wider = ["--dry-run", "--set", "model.layers.conv.conv2d.out_channels=5"];
    let (code, _, stderr) = place.train("optimizer: false", &wider);
    assert!(code == 4 && stderr.contains("[7, 4] in the file"), "{stderr}");
}

#[test]
fn several_files_are_joined_and_a_tensor_in_two_of_them_is_refused() {
    let place = Place::new();
    python(&format!(
        "import torch\nnet = torch.load({:?})['net']\n\
         part = lambda *names: {{n[7:]: t for n, t in net.items() if n[7:].startswith(names)}}\n\
         torch.save(part('conv', 'bn'), {:?}); torch.save(part('fc'), {:?})",
        place.path("net.pth"),
        place.path("body.pth"),
        place.path("head.pth")
    ));
    let init = |second: &str| {
        let files = format!("model.init_from={{file: [{}, {}]}}", place.path("body.pth"), place.path(second));
        place.train("partial: true", &["--dry-run", "--set", &files])
    };
    let (code, _, stderr) = init("head.pth");
    assert!(code == 0 && stderr.contains("7 of 9 tensors") && stderr.contains("head.pth"), "{stderr}");
    let (code, _, stderr) = init("body.pth");
    assert!(code == 4 && stderr.contains("is in two of the files"), "{stderr}");
}

#[test]
fn spectral_norm_of_square_and_of_transposed_convolutions_is_computed() {
    let place = Place::new();
    let layers = "input: [3, 8, 8]
layers:
  a: {conv2d: {out_channels: 6, kernel_size: 3, padding: 1}}
  b: {conv2d: {out_channels: 6, kernel_size: 3, padding: 1}}
  up: {conv_transpose2d: {out_channels: 6, kernel_size: 2, stride: 2}}
  down: {conv_transpose2d: {out_channels: 4, kernel_size: 2, stride: 2}}
";
    fs::write(place.path("net.yaml"), layers).unwrap();
    python(&format!(
        "import torch, os\nos.chdir({:?})\ntorch.manual_seed(0)\nfrom torch import nn\n\
         from torch.nn.utils import spectral_norm, parametrizations as P\n\
         for name, norm in (('old', spectral_norm), ('new', P.spectral_norm)):\n    \
             net = nn.Sequential()\n    \
             for key, layer in (('a', nn.Conv2d(3, 6, 3, padding=1)), ('b', nn.Conv2d(6, 6, 3, padding=1)), \
             ('up', nn.ConvTranspose2d(6, 6, 2, 2)), ('down', nn.ConvTranspose2d(6, 4, 2, 2))): \
             net.add_module(key, norm(layer))\n    \
             net(torch.randn(2, 3, 8, 8))\n    torch.save(net.state_dict(), name + '.pth')\n    \
             net.eval(); net(torch.randn(2, 3, 8, 8))\n    \
             torch.save({{f'{{k}}.weight': getattr(net, k).weight.detach().clone() for k in ('a', 'b', 'up', 'down')}}, \
             name + '-plain.pth')\n",
        place.folder.path()
    ));
    for name in ["old", "new"] {
        let (file, out) = (place.path(&format!("{name}.pth")), place.path(&format!("{name}.safetensors")));
        let model = place.path("net.yaml");
        succeeds(&["export", &file, "--model", &model, "--to", "safetensors", "-o", &out]);
        for layer in ["a.weight", "b.weight", "up.weight", "down.weight"] {
            let ours = place.values(&format!("{name}.safetensors"), layer).1;
            let theirs = place.values(&format!("{name}-plain.pth"), layer).1;
            let apart = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(ours.len() == theirs.len() && apart < 1e-6, "{name} {layer}: {apart}");
        }
    }
}

#[test]
fn a_run_starts_from_another_runs_best_checkpoint() {
    let place = Place::new();
    let (code, _, stderr) = place.train("reset: ['fc.*']", &[]);
    assert_eq!(code, 0, "{stderr}");
    let init = format!("model.init_from={}", place.path("run"));
    let (next, config) = (place.path("next"), place.path("config.yaml"));
    succeeds(&["train", &config, "--output", &next, "--set", &init, "--set", "optimizer.sgd.lr=0"]);
    let weights = |run: &str| place.values(&format!("{run}/checkpoints/last/model.safetensors"), "fc.weight");
    assert_eq!(weights("run"), weights("next"));
}

#[test]
fn the_published_resnet20_scores_its_published_accuracy() {
    let Some(data) = data_dir("the_published_resnet20_scores_its_published_accuracy") else { return };
    let weights = data.join("checkpoints/resnet20-cifar10.legacy.th");
    let files =
        format!("data.test.cifar10.files=[{}]", data.join("cifar-10/test_batch_first1000.bin").display());
    let train = files.replace("test.", "train.");
    let (code, stdout, stderr) = run(&[
        "eval",
        "cifar10",
        "--set",
        "model=resnet20",
        "--set",
        &files,
        "--set",
        &train,
        "--weights",
        weights.to_str().unwrap(),
        "--set",
        "data.normalize={mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}",
        "--threads",
        "1",
    ]);
    let is_published = |line: &str| line.split_whitespace().eq(["accuracy", "0.9150"]);
    assert!(code == 0 && stdout.lines().any(is_published), "{stdout}{stderr}");
}

/// dB that PyTorch 2.11 gets with `torch.randn` of one generator seeded 0, image after image in the order of
/// their names: clean = noisy - net(noisy), clamped to [0, 1], the mean of the images' PSNR.
fn dncnn(data: &Path, set: &str, sigma: u32, expected: f64) {
    let weights = data.join(format!("checkpoints/dncnn-s-{sigma}.legacy.pth"));
    let (images, noise) = (
        format!("data.test.images.root={}", data.join("denoise").join(set).display()),
        format!("task.reconstruction.degrade.gaussian.sigma={sigma}"),
    );
    let weights = weights.to_str().unwrap();
    let options = ["--weights", weights, "--set", &images, "--set", &noise, "--threads", "1", "--json"];
    let stdout = succeeds(&[&["eval", "dncnn"], &options[..]].concat());
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let psnr = report["scores"]["psnr"].as_f64().unwrap();
    assert!((psnr - expected).abs() < 0.01, "{set}, noise of {sigma}: {psnr} dB instead of {expected}");
}

#[test]
fn the_published_dncnns_denoise_set12_as_published() {
    let Some(data) = data_dir("the_published_dncnns_denoise_set12_as_published") else { return };
    dncnn(&data, "Set12", 15, 32.822);
    dncnn(&data, "Set12", 25, 30.383);
}

#[test]
#[ignore = "minutes on one core"]
fn the_published_dncnns_denoise_set68_as_published() {
    let Some(data) = data_dir("the_published_dncnns_denoise_set68_as_published") else { return };
    dncnn(&data, "Set68", 15, 31.713);
    dncnn(&data, "Set68", 25, 29.203);
}
