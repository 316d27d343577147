//! Layers that draw random numbers, and tensors that share a module, beside PyTorch and torchvision.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::common::{alone, has_modules, python, run, succeeds};
use crate::model::{arrays, assert_equal_bits, difference, inline};

/// Runs a script that saves arrays into `y.npz` of `folder`.
fn saved(folder: &Path, script: &str) -> std::collections::BTreeMap<String, Tensor> {
    let file = folder.join("y.npz");
    python(&format!(
        "import torch, numpy as np\nfrom torch import nn\ntorch.set_num_threads(1)\nfile = {:?}\n{script}",
        file.to_str().expect("text")
    ));
    arrays(folder, "y.npz")
}

#[test]
fn branches_are_left_out_where_torchvision_leaves_them_out() {
    if !has_modules("branches_are_left_out_where_torchvision_leaves_them_out", &["torchvision"]) {
        return;
    }
    if !alone("layers::branches_are_left_out_where_torchvision_leaves_them_out") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let theirs = saved(
        folder.path(),
        "from torchvision.ops import StochasticDepth
torch.manual_seed(5)
x = torch.randn(8, 6, 3, 3)
a = StochasticDepth(0.3, 'row')(x)
np.savez(file, x=x.numpy(), a=a.numpy(), b=StochasticDepth(0.2, 'batch')(a).numpy(), c=StochasticDepth(1.0, 'row')(x).numpy())",
    );
    let net = |layers: &str| inline(&[6, 3, 3], layers).build(Device::Cpu, Kind::Float).expect("it builds");
    tch::manual_seed(5);
    let xs = Tensor::randn([8, 6, 3, 3], (Kind::Float, Device::Cpu));
    assert!(xs.equal(&theirs["x"]));
    let rows = net("[stochastic_depth: {p: 0.3}]");
    let left = rows.forward(&xs, true);
    assert!(left.equal(&theirs["a"]));
    assert!(net("[stochastic_depth: {p: 0.2, mode: batch}]").forward(&left, true).equal(&theirs["b"]));
    assert!(net("[stochastic_depth: {p: 1, mode: row}]").forward(&xs, true).equal(&theirs["c"]));
    assert!(rows.forward(&xs, false).equal(&xs), "evaluation");
}

#[test]
fn squares_fall_where_torchvision_lets_them_fall() {
    if !has_modules("squares_fall_where_torchvision_lets_them_fall", &["torchvision"]) {
        return;
    }
    if !alone("layers::squares_fall_where_torchvision_lets_them_fall") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let theirs = saved(
        folder.path(),
        "from torchvision.ops import DropBlock2d
torch.manual_seed(5)
x = torch.randn(4, 3, 9, 7, requires_grad=True)
a = DropBlock2d(0.2, 3)(x)
a.square().sum().backward()
np.savez(file, x=x.detach().numpy(), a=a.detach().numpy(), b=DropBlock2d(0.1, 99)(x[:, :, :5, :5]).detach().numpy(), grad=x.grad.numpy())",
    );
    let net = |side: i64, layers: &str| {
        inline(&[3, side, side], layers).build(Device::Cpu, Kind::Float).expect("it builds")
    };
    tch::manual_seed(5);
    let xs = Tensor::randn([4, 3, 9, 7], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    assert!(xs.equal(&theirs["x"]));
    let squares = net(9, "[drop_block2d: {p: 0.2, block_size: 3}]");
    let ys = squares.forward(&xs, true);
    assert!(ys.equal(&theirs["a"]));
    ys.square().sum(Kind::Float).backward();
    assert!(xs.grad().equal(&theirs["grad"]));
    let part = xs.narrow(2, 0, 5).narrow(3, 0, 5);
    let whole = net(5, "[drop_block2d: {p: 0.1, block_size: 99}]").forward(&part, true);
    assert!(whole.equal(&theirs["b"]));
    assert!(squares.forward(&xs, false).equal(&xs), "evaluation");
}

/// Three batches in training, then evaluation.
#[test]
fn running_statistics_average_all_batches_or_are_not_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let cases = [
        (
            "[conv2d: {out_channels: 4, kernel_size: 1}, batch_norm2d: {momentum: ~}, relu]",
            "nn.BatchNorm2d(4, momentum=None)",
        ),
        (
            "[conv2d: {out_channels: 4, kernel_size: 1}, batch_norm2d: {track_running_stats: false}, relu]",
            "nn.BatchNorm2d(4, track_running_stats=False)",
        ),
        (
            "[conv2d: {out_channels: 4, kernel_size: 1}, instance_norm2d: {track_running_stats: true}, relu]",
            "nn.InstanceNorm2d(4, track_running_stats=True)",
        ),
        ("[conv2d: {out_channels: 4, kernel_size: 1}, instance_norm2d, relu]", "nn.InstanceNorm2d(4)"),
    ];
    let nets: Vec<_> = cases.iter().map(|(_, norm)| *norm).collect();
    let theirs = saved(
        folder.path(),
        &format!(
            "x = torch.randn(4, 6, 3, 40, 30) * 2 + 1
arrays = {{'x': x.numpy()}}
for i, norm in enumerate([{}]):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.ReLU())
    arrays |= {{f'{{i}}.state.{{k}}': v.numpy().copy() for k, v in net.state_dict().items()}}
    for part in x[:3]:
        arrays[f'{{i}}.train'] = net(part).detach().numpy()
    arrays[f'{{i}}.eval'] = net.eval()(x[3]).detach().numpy()
    arrays |= {{f'{{i}}.after.{{k}}': v.numpy() for k, v in net.state_dict().items()}}
np.savez(file, **arrays)",
            nets.join(", ")
        ),
    );
    for (index, (layers, _)) in cases.iter().enumerate() {
        let network = inline(&[3, 40, 30], layers).build(Device::Cpu, Kind::Float).expect("it builds");
        let of = |part: &str| &theirs[&format!("{index}.{part}")];
        let state = |name: String| {
            let tensor = of(&format!("state.{name}")).shallow_clone();
            (name, tensor)
        };
        let names: Vec<_> = network.state().into_iter().map(|(name, _)| name).collect();
        network.load_state(&names.into_iter().map(state).collect()).expect("it fits");
        let mut trained = Tensor::new();
        for batch in 0..3 {
            trained = network.forward(&theirs["x"].get(batch), true);
        }
        assert!(difference(&trained, of("train")) < 1e-5, "{layers}");
        // Outside the recording of gradients evaluation folds the norm into the convolution.
        let xs = theirs["x"].get(3);
        for evaluated in [network.forward(&xs, false), tch::no_grad(|| network.forward(&xs, false))] {
            assert!(difference(&evaluated, of("eval")) < 1e-5, "{layers}");
        }
        for (name, tensor) in network.state() {
            assert!(difference(&tensor, of(&format!("after.{name}"))) < 1e-6, "{layers}: {name}");
        }
    }
}

/// The block of ConvNeXt: its tensor comes before those of the layers that are made before it.
#[test]
fn a_learned_factor_belongs_to_the_module_around_it() {
    if !alone("layers::a_learned_factor_belongs_to_the_module_around_it") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let theirs = saved(
        folder.path(),
        "from torchvision.models.convnext import CNBlock
torch.manual_seed(3)
net = nn.Sequential(CNBlock(8, 1e-6, 0.0), nn.Conv2d(8, 5, 1))
arrays = {'initial.' + k: v.numpy().copy() for k, v in net.state_dict().items()}
with torch.no_grad():
    net[0].layer_scale.uniform_(0.5, 1)
arrays |= {'state.' + k: v.detach().numpy() for k, v in net.state_dict().items()}
x = torch.randn(2, 8, 9, 7)
y = net(x)
y.square().mean().backward()
grads = {'grad.' + k: v.grad.numpy() for k, v in net.named_parameters()}
np.savez(file, x=x.numpy(), y=y.detach().numpy(), **arrays, **grads)
print(' '.join(net.state_dict()))",
    );
    let model = inline(
        &[8, 9, 7],
        "
- residual:
    layers:
      block:
        - conv2d: {out_channels: 8, kernel_size: 7, padding: 3, groups: 8}
        - permute: {dims: [0, 2, 3, 1]}
        - layer_norm: {normalized_shape: 8, eps: 1.0e-6}
        - linear: {in_features: 8, out_features: 32}
        - gelu
        - linear: {in_features: 32, out_features: 8}
        - permute: {dims: [0, 3, 1, 2]}
      _layer_scale: {scale: {parameter: layer_scale, shape: [8, 1, 1], init: 1.0e-6}}
      _stochastic_depth: {stochastic_depth: {p: 0, mode: row}}
- conv2d: {out_channels: 5, kernel_size: 1}
",
    );
    let names: Vec<_> = model.params().iter().map(|param| param.name.as_str()).collect();
    assert_eq!(names[..3], ["0.layer_scale", "0.block.0.weight", "0.block.0.bias"]);
    tch::manual_seed(3);
    let network = model.build(Device::Cpu, Kind::Float).expect("it builds");
    for (name, tensor) in network.state() {
        assert!(tensor.equal(&theirs[&format!("initial.{name}")]), "{name}");
    }
    let state = |name: &&str| (name.to_string(), theirs[&format!("state.{name}")].shallow_clone());
    network.load_state(&names.iter().map(state).collect()).expect("it fits");
    let ys = network.forward(&theirs["x"], true);
    assert!(difference(&ys, &theirs["y"]) < 1e-6);
    ys.square().mean(Kind::Float).backward();
    for parameter in network.parameters() {
        let apart = difference(&parameter.tensor.grad(), &theirs[&format!("grad.{}", parameter.name)]);
        assert!(apart < 1e-5, "{}: {apart}", parameter.name);
    }
}

/// A discriminator of every wrapper; YAML, then Python.
const WRAPPED: (&str, &str) = (
    "
conv1: {weight_norm: {module: {conv2d: {out_channels: 8, kernel_size: 3, padding: 1}}}}
_a: {leaky_relu: {negative_slope: 0.2}}
conv2: {spectral_norm: {module: {conv2d: {out_channels: 8, kernel_size: 3, padding: 1}}}}
_b: relu
conv3: {weight_standardization: {module: {conv2d: {out_channels: 8, kernel_size: 3, padding: 1}}, gain: {gamma: 1.7}}}
_c: relu
up: {spectral_norm: {module: {conv_transpose2d: {out_channels: 4, kernel_size: 2, stride: 2}}}}
_d: {adaptive_avg_pool2d: {output_size: 2}}
_e: flatten
fc1: {weight_norm: {module: {linear: {out_features: 6}}}}
_f: relu
fc2: {spectral_norm: {module: {linear: {out_features: 3}}}}
",
    "
from collections import OrderedDict
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
import torch.nn.functional as F
try:
    from timm.layers import ScaledStdConv2d
except ImportError:
    print('timm is not installed: the standardised convolution is written out')
    class ScaledStdConv2d(nn.Conv2d):
        def __init__(self, i, o, k, padding, gamma):
            super().__init__(i, o, k, padding=padding)
            self.gain = nn.Parameter(torch.ones(o, 1, 1, 1))
            self.scale = gamma * self.weight[0].numel() ** -0.5
        def forward(self, x):
            w = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None,
                weight=(self.gain * self.scale).view(-1), training=True, momentum=0., eps=1e-6).reshape_as(self.weight)
            return F.conv2d(x, w, self.bias, padding=self.padding)
def make():
    return nn.Sequential(OrderedDict(
        conv1=weight_norm(nn.Conv2d(3, 8, 3, padding=1)), a=nn.LeakyReLU(0.2),
        conv2=spectral_norm(nn.Conv2d(8, 8, 3, padding=1)), b=nn.ReLU(),
        conv3=ScaledStdConv2d(8, 8, 3, padding=1, gamma=1.7), c=nn.ReLU(),
        up=spectral_norm(nn.ConvTranspose2d(8, 4, 2, 2)), d=nn.AdaptiveAvgPool2d(2), e=nn.Flatten(),
        fc1=weight_norm(nn.Linear(16, 6)), f=nn.ReLU(), fc2=spectral_norm(nn.Linear(6, 3))))
",
);

#[test]
fn normalised_weights_begin_and_learn_as_in_pytorch() {
    if !alone("layers::normalised_weights_begin_and_learn_as_in_pytorch") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let theirs = saved(
        folder.path(),
        &format!(
            "{}
torch.manual_seed(4)
net = make()
arrays = {{'initial.' + k: v.numpy().copy() for k, v in net.state_dict().items()}}
x = torch.randn(4, 3, 10, 8)
target = torch.randn(4, 3)
opt = torch.optim.SGD(net.parameters(), 0.05)
for step in range(20):
    opt.zero_grad()
    loss = (net(x) - target).square().mean()
    loss.backward()
    opt.step()
arrays |= {{'after.' + k: v.numpy() for k, v in net.state_dict().items()}}
np.savez(file, x=x.numpy(), target=target.numpy(), loss=loss.detach().numpy(), y=net.eval()(x).detach().numpy(), **arrays)",
            WRAPPED.1
        ),
    );
    let model = inline(&[3, 10, 8], WRAPPED.0);
    tch::manual_seed(4);
    let network = model.build(Device::Cpu, Kind::Float).expect("it builds");
    let initial = |(name, value): (&String, &Tensor)| {
        name.strip_prefix("initial.").map(|name| (name.to_owned(), value.shallow_clone()))
    };
    assert_equal_bits(&network, &theirs.iter().filter_map(initial).collect(), "at the seed");
    let mut loss = Tensor::new();
    for _ in 0..20 {
        loss = (network.forward(&theirs["x"], true) - &theirs["target"]).square().mean(Kind::Float);
        loss.backward();
        tch::no_grad(|| {
            for parameter in network.parameters() {
                let mut tensor = parameter.tensor.shallow_clone();
                tensor -= tensor.grad() * 0.05;
                tensor.zero_grad();
            }
        });
    }
    assert!(difference(&loss, &theirs["loss"]) < 1e-5);
    for (name, tensor) in network.state() {
        let apart = difference(&tensor, &theirs[&format!("after.{name}")]);
        assert!(apart < 1e-5, "{name}: {apart}");
    }
    assert!(difference(&network.forward(&theirs["x"], false), &theirs["y"]) < 1e-5);
}

#[test]
fn computed_weights_are_exported_as_they_are_or_folded() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("text").to_owned();
    let yaml: String = WRAPPED.0.lines().map(|line| format!("  {line}\n")).collect();
    std::fs::write(path("net.yaml"), format!("input: [3, 10, 8]\nlayers:\n{yaml}"))
        .expect("the model is written");
    let script = |lines: &str| {
        python(&format!(
            "import os, sys, torch\nfrom torch import nn\nos.chdir({:?})\nsys.path.insert(0, '.')\n{}\n{lines}",
            folder.path(),
            WRAPPED.1
        ))
    };
    script("torch.manual_seed(1); torch.save(make().state_dict(), 'in.pth')");
    let export = |to: &str, output: &str, options: &[&str]| {
        let args = ["export", &path("in.pth"), "--model", &path("net.yaml"), "--to", to, "-o", &path(output)];
        succeeds(&[&args, options].concat())
    };
    export("state-dict", "plain.pth", &[]);
    for (format, output) in [
        ("state-dict", "folded.pth"),
        ("torchscript", "folded.pt"),
        ("python", "folded.py"),
        ("safetensors", "f.safetensors"),
    ] {
        export(format, output, &["--fold"]);
    }
    export("python", "named.py", &[]);
    export("torchscript", "frozen.pt", &["--freeze"]);
    script(
        "
from torch.nn.utils.parametrize import remove_parametrizations
net = make().eval()
net.load_state_dict(torch.load('plain.pth'), strict=True)
x = torch.randn(2, 3, 10, 8)
y = net(x)
close = lambda z: ((y - z).abs().max() / y.abs().max()).item() < 1e-5
import folded, named
n = named.Net().eval(); n.load_state_dict(torch.load('plain.pth'), strict=True)
assert close(n(x)) and 'conv1 = weight_norm(nn.Conv2d(' in open('named.py').read()
m = folded.Net().eval(); m.load_state_dict(torch.load('folded.pth'), strict=True)
assert close(m(x)) and close(torch.jit.load('folded.pt')(x)) and close(torch.jit.load('frozen.pt')(x))
assert not any('parametri' in name or 'gain' in name for name in torch.load('folded.pth'))
for name in ['conv1', 'conv2', 'up', 'fc1', 'fc2']:
    remove_parametrizations(getattr(net, name), 'weight')
folded = torch.load('folded.pth')
for name, value in net.state_dict().items():
    assert name in ['conv3.weight', 'conv3.gain'] or torch.allclose(value, folded[name], rtol=1e-6, atol=1e-8), name",
    );
    let args =
        ["export", &path("folded.pth"), "--model", "lenet", "--to", "state-dict", "-o", &path("x.pth")];
    let (code, _, _) = run(&args);
    assert_eq!(code, 4);
    std::fs::write(path("fc.yaml"), "input: [3]\nlayers: {fc: {linear: {out_features: 2}}}\n")
        .expect("written");
    script("torch.save(nn.Sequential(OrderedDict(fc=nn.Linear(3, 2))).state_dict(), 'fc.pth')");
    let args = ["export", &path("fc.pth"), "--model", &path("fc.yaml"), "--to", "state-dict", "--fold"];
    let (code, _, stderr) = run(&args);
    assert!(code == 2 && stderr.contains("computes no weights"), "{stderr}");
}
