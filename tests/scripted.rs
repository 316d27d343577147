//! Networks that Python scripted: trained, resumed, exported; and files that are none.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tikhonov::nn::model::{Model, ModelSpec};
use tikhonov::pytorch::weights::read_weights;

use crate::common::{alone, python, run, succeeds};
use crate::model::difference;

const CONFIG: &str = "
seed: 1
device: cpu
threads: 1
task: {classification: {}}
data:
  train: {shapes: {count: 160, size: 20}}
  validation: {fraction: 0.2}
  batch_size: 32
penalty: {l2: 1.0e-2}
optimizer: {sgd: {lr: 0.05, momentum: 0.9}}
train: {epochs: 2}
";

/// The twin of `small-cnn` with four channels, scripted as net.pt; its state as net.pth.
fn scripted(folder: &Path) {
    let twins = include_str!("model/twins.py").replace("\nmain(sys.argv[1])", "");
    let file = folder.join("twins.py");
    // TorchScript wants the source in a file.
    fs::write(&file, twins).expect("the twins are written");
    python(&format!(
        "import sys\nsys.dont_write_bytecode = True\nsys.path.insert(0, {folder:?})\nfrom twins import *\ntorch.manual_seed(0)\n\
         net = SmallCNN(4)\ntorch.save(net.state_dict(), {folder:?} + '/net.pth')\ntorch.jit.script(net).save({folder:?} + '/net.pt')\n\
         torch.jit.freeze(torch.jit.script(net.eval())).save({folder:?} + '/frozen.pt')"
    ));
    fs::remove_file(file).expect("the twins go");
}

pub fn text(path: &Path) -> String {
    path.to_str().expect("text").to_owned()
}

pub fn config(folder: &Path, name: &str, model: &Value) -> String {
    let path = folder.join(name);
    fs::write(&path, format!("model: {model}\n{CONFIG}")).expect("the config is written");
    text(&path)
}

#[test]
fn a_scripted_network_trains_resumes_and_goes_back_as_one_of_ours_would() {
    let home = tempfile::tempdir().expect("a folder");
    let folder = home.path();
    scripted(folder);
    let at = |name: &str| text(&folder.join(name));
    let script = json!({"torchscript": at("net.pt"), "input": [1, 20, 20]});
    let ours = json!({"name": "small-cnn", "args": {"size": 20, "width": 4}, "init_from": at("net.pth")});
    let (script, ours) = (config(folder, "script.yaml", &script), config(folder, "ours.yaml", &ours));

    let summary = |config: &str| -> Value {
        serde_json::from_str(&succeeds(&["summary", config, "--json"])).expect("JSON")
    };
    let (theirs, known) = (summary(&script), summary(&ours));
    for key in ["parameters", "groups", "trainable", "buffers", "output"] {
        assert_eq!(theirs[key], known[key], "{key}");
    }
    let table = succeeds(&["summary", &script]);
    assert!(table.contains("block1.0.conv") && table.contains("Conv2d"), "{table}");
    assert!(table.contains("an unknown number of multiply-adds per sample"), "{table}");
    assert_eq!(theirs["multiply_adds"], Value::Null);

    succeeds(&["train", &script, "--output", &at("a")]);
    succeeds(&["train", &ours, "--output", &at("b")]);
    let weights = |run: &str| {
        let file = folder.join(run).join("checkpoints/last/model.safetensors");
        (fs::read(&file).expect("the weights"), read_weights(&file, None).expect("they are read").tensors)
    };
    let started = read_weights(&folder.join("net.pth"), None).expect("the start").tensors;
    for ((name, ours), (other, theirs)) in weights("b").1.iter().zip(&weights("a").1) {
        assert_eq!(name, other);
        let apart = difference(ours, theirs);
        assert!(apart < 1e-4, "{name}: {apart}");
        let first = &started.iter().find(|(known, _)| known == name).expect("the name").1;
        assert!(!first.equal(theirs), "{name} did not move");
    }

    // Interrupted after an epoch.
    succeeds(&["train", &script, "--output", &at("c"), "--set", "train.epochs=1"]);
    succeeds(&["train", &script, "--output", &at("c"), "--resume"]);
    assert!(weights("a").0 == weights("c").0, "resumed weights differ");
    let scores = |run: &str| {
        succeeds(&["eval", &at(run), "--split", "validation"]).lines().skip(1).collect::<String>()
    };
    assert_eq!(scores("a"), scores("c"));

    // Back to Python.
    succeeds(&["export", &at("a"), "--to", "torchscript", "--checkpoint", "last", "-o", &at("back.pt")]);
    succeeds(&["export", &at("a"), "--to", "state-dict", "--checkpoint", "last", "-o", &at("back.pth")]);
    let printed = python(&format!(
        "import torch\nscript = torch.jit.load({:?}); state = torch.load({:?}, weights_only=True); first = torch.jit.load({:?})\n\
         assert list(script.state_dict()) == list(state) == list(first.state_dict())\n\
         assert all(torch.equal(v, state[k]) for k, v in script.state_dict().items())\n\
         first.load_state_dict(state); x = torch.rand(2, 1, 24, 20)\n\
         print(torch.equal(first.eval()(x), script.eval()(x)), script.code == first.code)",
        at("back.pt"),
        at("back.pth"),
        at("net.pt")
    ));
    assert_eq!(printed, "True True\n");
    let (code, _, stderr) = run(&["export", &at("a"), "--to", "python", "-o", &at("x.py")]);
    assert!(code == 2 && stderr.contains("its author's"), "{stderr}");

    // A run needs no file but its own copy; another program in the place of the first is not gone on with.
    let before = scores("a");
    fs::copy(at("back.pt"), at("net.pt")).expect("it is replaced");
    let (code, _, stderr) =
        run(&["train", &script, "--output", &at("c"), "--resume", "--set", "train.epochs=3"]);
    assert!(
        code == 4 && stderr.contains("not the program") && stderr.contains("program.pt"),
        "{code} {stderr}"
    );
    fs::remove_file(at("net.pt")).expect("it goes");
    fs::rename(at("a"), at("moved")).expect("it moves");
    assert_eq!(scores("moved").replace("/moved/", "/a/"), before);
    for source in ["moved", "moved/checkpoints/last"] {
        for (format, name) in [("safetensors", "again.safetensors"), ("torchscript", "again.pt")] {
            succeeds(&["export", &at(source), "--to", format, "--force", "-o", &at(name)]);
        }
    }
    succeeds(&["train", &at("moved"), "--resume", "--set", "train.epochs=3"]);
    fs::copy(at("back.pt"), at("moved/program.pt")).expect("it is replaced");
    let (code, _, stderr) = run(&["eval", &at("moved"), "--split", "validation"]);
    assert!(code == 4 && stderr.contains("not the program"), "{code} {stderr}");
    let (code, _, stderr) = run(&[
        "train",
        &config(folder, "f.yaml", &json!({"torchscript": at("frozen.pt"), "input": [1, 20, 20]})),
    ]);
    assert!(code == 4 && stderr.contains("no parameters to train"), "{code} {stderr}");
}

#[test]
fn a_program_that_fails_in_training_exits_with_4_in_its_own_words_and_without_frames() {
    let home = tempfile::tempdir().expect("a folder");
    let folder = home.path();
    let file = folder.join("broken.py");
    let module = |class: &str, body: &str| {
        format!(
            "class {class}(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n        \
             self.fc = torch.nn.Linear(400, 10)\n    def forward(self, x):\n{body}\n"
        )
    };
    let text = format!(
        "import torch\n{}{}",
        module(
            "Raises",
            "        if self.training:\n            raise ValueError('no training here')\n        return self.fc(x.flatten(1))"
        ),
        module(
            "Untracked",
            "        with torch.no_grad():\n            y = self.fc(x.flatten(1))\n        return y"
        ),
    );
    fs::write(&file, text).expect("the modules are written");
    python(&format!(
        "import sys\nsys.dont_write_bytecode = True\nsys.path.insert(0, {folder:?})\nfrom broken import *\n\
         for net in Raises, Untracked: torch.jit.script(net()).save({folder:?} + '/' + net.__name__ + '.pt')"
    ));
    for (name, message) in [("Raises", "no training here"), ("Untracked", "no_grad")] {
        let program = folder.join(format!("{name}.pt"));
        let config = config(folder, "c.yaml", &json!({"torchscript": program, "input": [1, 20, 20]}));
        let (code, _, stderr) = run(&["train", &config, "--output", &text_of(folder, name)]);
        assert_eq!(code, 4, "{name}: {stderr}");
        for part in [message, &format!("{name}.pt"), "mend it"] {
            assert!(stderr.contains(part), "{name}: {part}: {stderr}");
        }
        assert!(!stderr.contains("frame #") && stderr.lines().count() < 20, "{stderr}");
    }
}

#[test]
fn a_program_of_unknown_modules_has_its_matrices_penalised_and_what_is_frozen_keeps_its_statistics() {
    let home = tempfile::tempdir().expect("a folder");
    let folder = home.path();
    let file = folder.join("net.py");
    fs::write(
        &file,
        "
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 8)
        self.conv, self.bn = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.att = nn.MultiheadAttention(8, 2, batch_first=True)
        self.ln = nn.LayerNorm([20, 8])
        self.fc = nn.Linear(8, 10)
        self.last = nn.Linear(10, 1)
    def forward(self, x):
        x = self.bn2(self.conv2(self.bn(self.conv(x)).relu())) * self.scale
        x = x.mean(3).transpose(1, 2) + self.table.weight[0]
        x, _ = self.rnn(x)
        x, _ = self.att(x, x, x)
        x = self.fc(self.ln(x).mean(1))
        return x + self.last(x)
torch.manual_seed(0)
",
    )
    .expect("the source is written");
    python(&format!(
        "import sys\nsys.dont_write_bytecode = True\nsys.path.insert(0, {folder:?})\nfrom net import *\nnet = Net()\n\
         torch.save(net.state_dict(), {folder:?} + '/net.pth')\ntorch.jit.script(net).save({folder:?} + '/net.pt')"
    ));
    let at = |name: &str| text(&folder.join(name));
    let mut model = json!({"torchscript": at("net.pt"), "input": [1, 20, 20]});
    let plain = config(folder, "plain.yaml", &model);
    let summary: Value = serde_json::from_str(&succeeds(&["summary", &plain, "--json"])).expect("JSON");
    let weights: Vec<&str> = summary["groups"][0]["parameters"]
        .as_array()
        .expect("names")
        .iter()
        .map(|name| name.as_str().expect("text"))
        .collect();
    let expected = [
        "conv.weight",
        "conv2.weight",
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0",
        "att.in_proj_weight",
        "att.out_proj.weight",
        "fc.weight",
        "last.weight",
    ];
    let (mut weights, mut expected) = (weights, expected.to_vec());
    weights.sort_unstable();
    expected.sort_unstable();
    assert_eq!(weights, expected);

    model["init_from"] = json!({"file": at("net.pth"), "freeze": ["conv.*", "bn.*"]});
    let frozen = config(folder, "frozen.yaml", &model);
    succeeds(&["train", &frozen, "--output", &at("run")]);
    let before = read_weights(&folder.join("net.pth"), None).expect("the start").tensors;
    let after =
        read_weights(&folder.join("run/checkpoints/last/model.safetensors"), None).expect("the end").tensors;
    let find = |list: &[(String, tch::Tensor)], name: &str| {
        list.iter().find(|(own, _)| own == name).map(|(_, tensor)| tensor.copy()).expect("a tensor")
    };
    for (name, was) in &before {
        let stays = name.starts_with("conv.") || name.starts_with("bn.") || *name == "att.in_proj_bias_k";
        let same = *was == find(&after, name);
        if stays || name.starts_with("bn2.running") || name.starts_with("conv2") {
            assert_eq!(same, stays, "{name}");
        }
    }
}

fn text_of(folder: &Path, name: &str) -> String {
    text(&folder.join(name))
}

fn open(file: &Path) -> anyhow::Result<Model> {
    let spec: ModelSpec =
        serde_json::from_value(json!({"torchscript": file, "input": [1, 20, 20]})).expect("a spec");
    Model::from_spec(&spec)
}

#[test]
fn damaged_files_and_files_that_are_no_torchscript_exit_with_4_and_never_with_a_signal() {
    if !alone("scripted::damaged_files_and_files_that_are_no_torchscript_exit_with_4_and_never_with_a_signal")
    {
        return;
    }
    let home = tempfile::tempdir().expect("a folder");
    scripted(home.path());
    let whole = fs::read(home.path().join("net.pt")).expect("the file");
    let params = open(&home.path().join("net.pt")).expect("it is whole").params().to_vec();
    let path = home.path().join("damaged.pt");
    let mut refused = 0;
    for at in 0..30 {
        fs::write(&path, &whole[..whole.len() * at / 30]).expect("it is written");
        let error = open(&path).expect_err("it is truncated");
        assert_eq!(tikhonov::util::exit_code::code(&error), 4, "{error:#}");
    }
    for at in 0..120 {
        let mut bytes = whole.clone();
        let place = (at * 7919 + at * at * 31) % bytes.len();
        bytes[place] ^= 1 << (at % 8);
        fs::write(&path, &bytes).expect("it is written");
        match open(&path) {
            // Padding and dates may change.
            Ok(model) => assert_eq!(model.params(), params),
            Err(error) => {
                assert_eq!(tikhonov::util::exit_code::code(&error), 4, "{error:#}");
                refused += 1;
            }
        }
    }
    assert!(refused > 60, "{refused} of 120");
    for other in ["net.pth", "no-such-file.pt"] {
        let error = open(&home.path().join(other)).expect_err("it is no TorchScript");
        assert_eq!(tikhonov::util::exit_code::code(&error), 4, "{error:#}");
    }
    fs::write(&path, "a text").expect("it is written");
    let config = config(home.path(), "c.yaml", &json!({"torchscript": path, "input": [1, 20, 20]}));
    let (code, _, stderr) = run(&["summary", &config]);
    assert!(code == 4 && stderr.contains("torch.jit.script"), "{code} {stderr}");
    let (code, _, stderr) = run(&["summary", &config, "--set", "model.input=[0]"]);
    assert!(code == 2 && stderr.contains("model.input"), "{code} {stderr}");
}
