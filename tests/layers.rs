//! Layers that draw random numbers, and tensors that share a module, beside PyTorch and torchvision.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::common::{alone, python};
use crate::model::{arrays, difference, inline};

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
