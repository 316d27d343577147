//! Auxiliary heads: they learn as PyTorch's do, and use leaves them out.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tikhonov::nn::model::{Model, ModelSpec, Summary};

use crate::common::{alone, python, records, run, succeeds, write_config};
use crate::model::{arrays, difference, inline};

/// Two heads: one in its place, one that is defined after what it takes, as GoogLeNet's are.
const LAYERS: &str = "
stem: [conv2d: {out_channels: 4, kernel_size: 3, padding: 1}, batch_norm2d, relu]
near: {aux: {weight: 0.3, layers: {conv: {conv2d: {out_channels: 3, kernel_size: 1}}, _r: relu,
                                   _p: {adaptive_avg_pool2d: {output_size: 1}}, _f: flatten, fc: {linear: {out_features: 5}}}}}
body: {conv: {conv2d: {out_channels: 6, kernel_size: 3, padding: 1, bias: false}}, bn: batch_norm2d, _relu: relu}
_pool: {adaptive_avg_pool2d: {output_size: 1}}
_flatten: flatten
far: {aux: {weight: 0.2, from: stem.1, layers: [batch_norm2d, relu, flatten, linear: {out_features: 5}]}}
fc: {linear: {out_features: 5}}
";

const TWIN: &str = "
import sys
import numpy as np
import torch
from torch import nn
import torch.nn.functional as F


class Near(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 3, 1)
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        return self.fc(F.relu(self.conv(x)).mean([2, 3]))


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Net(nn.Module):
    def __init__(self, channels=3, side=8):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.near = Near()
        self.body = Body()
        self.far = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * side * side, 5))
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        normed = self.stem[1](self.stem[0](x))
        x = self.stem[2](normed)
        return self.fc(self.body(x).mean([2, 3])), self.near(x), self.far(normed)
";

#[test]
fn the_gradients_of_auxiliary_heads_are_those_of_pytorch_and_use_leaves_the_heads_out() {
    if !alone("auxiliary::the_gradients_of_auxiliary_heads_are_those_of_pytorch_and_use_leaves_the_heads_out")
    {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let names = python(&format!(
        "{TWIN}
torch.manual_seed(7)
net = Net()
state = lambda: {{k: v.detach().numpy().copy() for k, v in net.state_dict().items()}}
np.savez('{0}/initial.npz', **state())
x, y = torch.randn(6, 3, 8, 8), torch.arange(6) % 5
net.eval()
evaluated = net(x)[0]
net.train()
main, near, far = net(x)
loss = F.cross_entropy(main, y) + 0.3 * F.cross_entropy(near, y) + 0.2 * F.cross_entropy(far, y)
loss.backward()
np.savez('{0}/io.npz', x=x.numpy(), y=y.numpy(), evaluated=evaluated.detach().numpy(), loss=loss.detach().numpy())
np.savez('{0}/grad.npz', **{{k: v.grad.numpy() for k, v in net.named_parameters()}})
np.savez('{0}/after.npz', **state())
print(*state())",
        folder.path().display()
    ));
    let model = inline(&[3, 8, 8], LAYERS);
    let ours: Vec<_> = model.params().iter().map(|param| param.name.as_str()).collect();
    assert_eq!(ours.join(" "), names.trim());
    tch::manual_seed(7);
    let network = model.build(Device::Cpu, Kind::Float).expect("it builds");
    let file = |name: &str| arrays(folder.path(), name);
    let (initial, io) = (file("initial.npz"), file("io.npz"));
    for (name, tensor) in network.state() {
        assert!(tensor.equal(&initial[&name]), "{name}");
    }
    let heads: Vec<_> = model.auxiliary_heads().into_iter().map(|head| (head.name, head.weight)).collect();
    assert_eq!(heads, [("near".to_owned(), 0.3), ("far".to_owned(), 0.2)]);
    let (ys, answers) = network.with_auxiliary(|| network.forward(&io["x"], false));
    assert!(answers.is_empty() && difference(&ys, &io["evaluated"]) < 1e-5);
    // Training without learning, as an export is compared.
    network.load_state(&initial).expect("it fits");
    let _ = network.forward(&io["x"], true);
    let counted =
        |name: &str| network.state().into_iter().find(|(known, _)| known == name).expect("the name").1;
    assert_eq!(counted("far.0.num_batches_tracked").int64_value(&[]), 0);
    network.load_state(&initial).expect("it fits");
    let (ys, answers) = network.with_auxiliary(|| network.forward(&io["x"], true));
    let loss = |ys: &Tensor| ys.cross_entropy_for_logits(&io["y"]);
    let sum = answers.iter().fold(loss(&ys), |sum, (weight, answer)| sum + loss(answer) * *weight);
    assert!(difference(&sum, &io["loss"]) < 1e-5);
    sum.backward();
    let gradients = file("grad.npz");
    assert_eq!(gradients.len(), network.parameters().len());
    for parameter in network.parameters() {
        let apart = (parameter.tensor.grad() - &gradients[&parameter.name]).abs().max().double_value(&[]);
        assert!(apart < 1e-5, "{}: {apart}", parameter.name);
    }
    let after = file("after.npz");
    for (name, tensor) in network.state() {
        assert!(
            (tensor - &after[&name]).abs().to_kind(Kind::Double).max().double_value(&[]) < 1e-5,
            "{name}"
        );
    }
    let summary = Summary::new(&model, |_| Default::default());
    assert_eq!(summary.multiply_adds, Some(3 * 4 * 9 * 64 + 4 * 6 * 9 * 64 + 6 * 5), "without the heads");
    assert!(summary.text().ends_with("per sample without the auxiliary heads, which only training uses\n"));
}

fn complaint(layers: &str) -> String {
    let layers: Value = serde_yaml::from_str(layers).expect("YAML");
    let spec: ModelSpec =
        serde_json::from_value(json!({"input": [3, 8, 8], "layers": layers})).expect("a spec");
    let error = Model::from_spec(&spec).expect_err("it is refused");
    assert_eq!(tikhonov::util::exit_code::code(&error), 2);
    format!("{error:#}")
}

#[test]
fn a_head_that_fits_nowhere_is_refused_with_its_place() {
    let conv = "conv2d: {out_channels: 5, kernel_size: 1}";
    for (layers, expected) in [
        ("[relu, aux: {weight: 1}]", "layers.1.aux: `layers` is missing"),
        ("[aux: {weight: x, layers: [relu]}]", "layers.0.aux.weight: \"x\" is no weight of a loss"),
        ("[aux: {weight: -1, layers: [relu]}]", "-1 is no weight of a loss: expected a number from 0 up"),
        ("[aux: {weigth: 1, layers: [relu]}]", "layers.0.aux.weigth: unknown key; did you mean `weight`?"),
        (
            "[aux: {weight: 1, resize: bilinaer, layers: [relu]}]",
            "aux.resize: unknown choice `bilinaer`; did you mean `bilinear`?",
        ),
        (
            "{stem: relu, a: {aux: {weight: 1, from: stme, layers: [relu]}}}",
            "layers.a.aux.from: no layer before is called `stme`; did you mean `stem`?",
        ),
        ("{a: {aux: {weight: 1, from: b, layers: [relu]}}, b: relu}", "no layer before is called `b`"),
        ("{_a: {aux: {weight: 1, layers: [relu]}}}", "layers._a: an auxiliary head wants a name of its own"),
        (
            "{a: {aux: {weight: 1, layers: {b: {aux: {weight: 1, layers: [relu]}}}}}}",
            "an auxiliary head cannot hold another",
        ),
        ("{a: [relu, _x: relu], b: {aux: {weight: 1, from: a.1._x, layers: [relu]}}}", ""),
        (
            &format!("{{a: {{aux: {{weight: 1, layers: [{conv}]}}}}}}"),
            "layers.a: an auxiliary head learns what the network learns, but it gives [5, 8, 8] and the network [3, 8, 8]: they must be equal",
        ),
        (
            &format!("{{a: {{aux: {{weight: 1, resize: nearest, layers: [{conv}]}}}}}}"),
            "they must have the same channels",
        ),
        (
            "{a: {aux: {weight: 1, resize: nearest, layers: [relu]}}, _f: flatten}",
            "leave `resize` out, which is for images",
        ),
        (
            "{_x: [relu], _y: {_x: relu, _z: {_x: relu}}, a: {aux: {weight: 1, from: _y._x, layers: [relu]}}}",
            "",
        ),
        (
            "[repeat: {times: 2, layers: [concat: {_x: relu}, residual: {layers: {_x: relu}}]}, aux: {weight: 1, from: 1._x, layers: [relu]}]",
            "",
        ),
    ] {
        if expected.is_empty() {
            inline(&[3, 8, 8], layers);
        } else {
            let message = complaint(layers);
            assert!(message.contains(expected), "expected: {expected}\n     got: {message}");
        }
    }
    let twice = "{a: {_s: {repeat: {times: 2, layers: {_x: relu}}}}, b: {aux: {weight: 1, from: a._x, layers: [relu]}}}";
    assert!(complaint(twice).contains("several layers are called `a._x`"), "{}", complaint(twice));
}

fn config(rest: &str) -> String {
    let layers: Value = serde_yaml::from_str(LAYERS).expect("YAML");
    format!("device: cpu\nthreads: 1\nmodel: {}\n{rest}", json!({"input": [1, 16, 16], "layers": layers}))
}

const CLASSES: &str = "task: classification\ndata: {train: {shapes: {count: 40, size: 16, classes: 5}}, \
                       validation: {fraction: 0.2}, batch_size: 8}\npenalty: {l2: 1.0e-3}\noptimizer: {sgd: {lr: 0.05}}\n";

fn utf8(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn a_run_learns_with_its_heads_logs_their_loss_apart_and_every_export_says_what_became_of_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let path = |name: &str| here.join(name);
    let text = config(&format!("{CLASSES}train: {{epochs: 2, log_every: 1}}\n"));
    let config = write_config(here, &text);
    let output = path("run");
    succeeds(&["train", &config, "--output", utf8(&output), "--quiet"]);
    for step in records(&output, "step") {
        let number = |key: &str| step[key].as_f64().expect("a number");
        assert!(number("aux_loss") > 0.5 && number("loss") > 0.5, "{step}");
        assert!(
            (number("loss") + number("aux_loss") + number("penalty") - number("total")).abs() < 1e-12,
            "{step}"
        );
    }
    let scores = succeeds(&["eval", utf8(&output), "--json"]);
    assert!(scores.contains("accuracy"), "{scores}");
    for (format, file, note) in [
        ("state-dict", "w.pth", ""),
        ("python", "net.py", ""),
        ("torchscript", "net.pt", "left out: the auxiliary heads near, far, which only training uses"),
    ] {
        let (code, stdout, stderr) = run(&["export", utf8(&output), "--to", format, "-o", utf8(&path(file))]);
        assert_eq!(code, 0, "{stderr}");
        assert!(format!("{stdout}{stderr}").contains(note), "{stdout}{stderr}");
    }
    let said = python(&format!(
        "{TWIN}
sys.path.insert(0, '{0}')
import net as source
weights = torch.load('{0}/w.pth', weights_only=True)
weights = weights.get('state_dict', weights)
twin, ours, script = Net(1, 16), source.Net(), torch.jit.load('{0}/net.pt')
assert list(weights) == list(twin.state_dict()) == list(ours.state_dict())
twin.load_state_dict(weights)
ours.load_state_dict(weights)
assert not any(k.startswith(('near', 'far')) for k in script.state_dict())
x = torch.randn(4, 1, 16, 16)
wanted, near, far = twin.eval()(x)
ours.eval()
for y in [ours(x), script(x)]:
    assert torch.allclose(y, wanted, atol=1e-6)
assert torch.allclose(ours.near(ours.stem(x)), near, atol=1e-6)
print('forward leaves out the auxiliary heads near, far' in source.__doc__)
plain = {{k: v for k, v in weights.items() if not k.startswith('near')}}
torch.save(plain, '{0}/plain.pth')
del plain['far.0.bias']
torch.save(plain, '{0}/broken.pth')",
        here.display()
    ));
    assert_eq!(said.trim(), "True");
    // A file without a head: its head starts afresh, which is said; one with a part of it is refused.
    let from = |file: &str| format!("model.init_from={}", json!({"file": utf8(&path(file))}));
    let other = path("other");
    let args = |file: &str| {
        run(&["train", &config, "--output", utf8(&other), "--set", &from(file), "--set", "train.epochs=1"])
    };
    let (code, _, stderr) = args("broken.pth");
    assert!(code == 4 && stderr.contains("far.0.bias"), "{stderr}");
    let (code, stdout, stderr) = args("plain.pth");
    assert_eq!(code, 0, "{stderr}");
    let note = "the file lacks the auxiliary head near; new weights there, for training alone";
    assert!(format!("{stdout}{stderr}").contains(note), "{stdout}{stderr}");
    let judged = succeeds(&["eval", utf8(&output), "--weights", utf8(&path("plain.pth")), "--json"]);
    let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    assert_eq!(json(&judged)["scores"], json(&scores)["scores"]);
    assert!(judged.contains("lacks the auxiliary head near"), "{judged}");
    let (code, _, stderr) = run(&["shrink", utf8(&output), "-o", utf8(&path("small"))]);
    assert!(code == 2 && stderr.contains("the auxiliary head `near` answers in training only"), "{stderr}");
}

#[test]
fn what_cannot_learn_with_auxiliary_heads_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |text: &str, words: &str| {
        let config = write_config(folder.path(), text);
        let output = folder.path().join("run");
        let (code, _, stderr) = run(&["train", &config, "--output", utf8(&output)]);
        assert!(code == 2 && stderr.contains(words), "{code}: {stderr}");
    };
    refused(
        &config(&format!("{CLASSES}train: {{epochs: 1, checkpoint_activations: true}}\n")),
        "train.checkpoint_activations: the auxiliary head `near` takes features half-way",
    );
    let denoiser = "device: cpu\nmodel: {input: [1, 16, 16], layers: {a: {conv2d: {out_channels: 1, kernel_size: 1}}, \
                    b: {aux: {weight: 1, layers: [relu]}}}}\ntask: {reconstruction: {degrade: {gaussian: {sigma: 25}}}}\n\
                    data: {train: {shapes: {count: 8, size: 16}}, normalize: none}\noptimizer: sgd\ntrain: {epochs: 1}\n";
    refused(denoiser, "the network has the auxiliary head `b`, from which reconstruction cannot learn");
}

#[test]
fn a_head_of_half_the_size_is_resized_and_cropped_with_the_networks_answer() {
    let layers = "{down: [conv2d: {out_channels: 4, kernel_size: 3, stride: 2, padding: 1}, relu],
          far: {aux: {weight: 1, resize: bilinear, layers: [conv2d: {out_channels: 2, kernel_size: 1}]}},
          up: {conv_transpose2d: {out_channels: 2, kernel_size: 2, stride: 2}}}";
    let network = inline(&[3, 8, 8], layers).build(Device::Cpu, Kind::Float).expect("it builds");
    let weights: BTreeMap<_, _> = network.state().into_iter().collect();
    for size in [[8, 8], [12, 6], [9, 7]] {
        let xs = Tensor::randn([2, 3, size[0], size[1]], (Kind::Float, Device::Cpu));
        let (ys, answers) = network.with_auxiliary(|| network.forward(&xs, true));
        assert_eq!((ys.size(), answers[0].1.size()), (vec![2, 2, size[0], size[1]], ys.size()));
        if size[0] % 2 == 0 {
            let conv = |xs: &Tensor, name: &str, stride, padding| {
                let (w, b) = (&weights[&format!("{name}.weight")], &weights[&format!("{name}.bias")]);
                xs.conv2d(w, Some(b), [stride; 2], [padding; 2], [1, 1], 1)
            };
            let small = conv(&conv(&xs, "down.0", 2, 1).relu(), "far.0", 1, 0);
            let wanted = small.upsample_bilinear2d(size, false, None, None);
            assert!(difference(&answers[0].1, &wanted) < 1e-6);
        }
    }
}
