//! Networks beside PyTorch twins: names, shapes, order, initial weights, outputs; and what a broken file
//! says.

mod errors;
mod fuzz;
mod language;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tikhonov::libtorch::kernels::{self, Kernel};
use tikhonov::nn::layers::ParamKind;
use tikhonov::nn::model::{Model, ModelSpec, Network, Rates, Summary};

use crate::common::{alone, python};

pub fn model(spec: Value) -> Model {
    let spec: ModelSpec = serde_json::from_value(spec).expect("a model spec");
    Model::from_spec(&spec).unwrap_or_else(|error| panic!("{error:#}"))
}

/// A model of `layers`, written as YAML in the flow style.
pub fn inline(input: &[i64], layers: &str) -> Model {
    let layers: Value = serde_yaml::from_str(layers).expect("YAML");
    model(json!({"input": input, "layers": layers}))
}

pub fn arrays(folder: &Path, name: &str) -> BTreeMap<String, Tensor> {
    Tensor::read_npz(folder.join(name)).expect("an npz file").into_iter().collect()
}

/// The largest difference, relative to the largest value.
pub fn difference(ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.size(), theirs.size());
    let (ours, theirs) = (ours.to_kind(Kind::Double), theirs.to_kind(Kind::Double));
    (&ours - &theirs).abs().max().double_value(&[]) / theirs.abs().max().double_value(&[]).max(1e-30)
}

pub fn assert_equal_bits(network: &Network, state: &BTreeMap<String, Tensor>, what: &str) {
    for (name, tensor) in network.state() {
        // The vectors of spectral norms are products by MKL, which may use other instructions here than in
        // Python (src/libtorch/threads.cpp): the last bit differs.
        let is_product = [".0._u", ".0._v"].iter().any(|end| name.ends_with(end));
        let is_near = || is_product && difference(&tensor, &state[&name]) < 1e-6;
        assert!(tensor.equal(&state[&name]) || is_near(), "{what}: {name} differs");
    }
}

/// The shipped networks that model/twins.py holds; tests/zoo.rs has the others.
pub const TWINS: [&str; 18] = [
    "autoencoder",
    "dncnn",
    "espcn",
    "ffdnet",
    "ffdnet-blind",
    "lenet",
    "linear",
    "mlp",
    "resnet18",
    "resnet18-imagenet",
    "resnet20",
    "resunet",
    "small-cnn",
    "srcnn",
    "unet",
    "unet-milesial",
    "vae",
    "vdsr",
];

fn twins(folder: &Path) -> String {
    let script = include_str!("model/twins.py");
    python(&format!("import sys\nsys.argv = ['', {:?}]\n{script}", folder.to_str().expect("text")))
}

#[test]
fn every_shipped_model_equals_its_pytorch_twin() {
    if !alone("model::every_shipped_model_equals_its_pytorch_twin") {
        return;
    }
    // Its rounding is held by tests/winograd.rs; here the order of the sums is libtorch's.
    kernels::enable(Kernel::Winograd, false);
    let folder = tempfile::tempdir().expect("a folder");
    let printed = twins(folder.path());
    assert_eq!(printed.lines().count(), TWINS.len(), "every model has a twin");
    for line in printed.lines() {
        let name = line.split(' ').next().expect("a name");
        let model = model(json!(name));
        let mut ours = name.to_string();
        for param in model.params() {
            let shape: Vec<_> = param.shape.iter().map(i64::to_string).collect();
            write!(ours, " {}:{}", param.name, shape.join(",")).expect("text");
        }
        assert_eq!(ours, line, "names, shapes and order");

        tch::manual_seed(7);
        let network = model.build(Device::Cpu, Kind::Float).expect("it builds");
        let file = |part: &str| arrays(folder.path(), &format!("{name}-{part}.npz"));
        assert_equal_bits(&network, &file("initial"), name);

        network.load_state(&file("state")).expect("the state fits");
        let io = file("io");
        // Sums run in another order than Python's: evaluation folds batch norms into the weights, images are
        // channels-last. DnCNN's seventeen layers in Python are 6e-6 from float64, and 1.4e-5 from themselves
        // in channels-last.
        let evaluated = difference(&network.forward(&io["x"], false), &io["eval"]);
        assert!(evaluated < 1e-5, "{name}: eval differs by {evaluated}");
        kernels::enable(Kernel::Winograd, true);
        let fast = difference(&network.forward(&io["x"], false), &io["eval"]);
        kernels::enable(Kernel::Winograd, false);
        assert!(fast < 2e-5, "{name}: eval by Winograd's method differs by {fast}");
        tch::manual_seed(9);
        let ys = network.forward(&io["x"], true);
        let trained = difference(&ys, &io["train"]);
        assert!(trained < 1e-5, "{name}: train differs by {trained}");
        ys.square().mean(Kind::Float).backward();
        let gradient = difference(&network.parameters()[0].tensor.grad(), &io["grad"]);
        // Networks of one-channel images learn channels-last from their first layer on, Python's do not: a
        // value next to zero may fall on the other side of a ReLU. DnCNN's gradient in Python is 3.9e-3 from
        // itself in channels-last; tests/batch_norm.rs holds gradients against float64.
        let tolerance = if io["x"].size()[1] == 1 { 1e-2 } else { 1e-5 };
        assert!(gradient < tolerance, "{name}: the gradient differs by {gradient}");
        for (key, value) in file("after") {
            let ours = network.state().into_iter().find(|(name, _)| *name == key).expect("the name").1;
            let difference = difference(&ours, &value);
            assert!(difference < 5e-6, "{name}: {key} differs by {difference} after a step in training");
        }
    }
}

#[test]
fn double_weights_are_the_single_ones_drawn_alike() {
    if !alone("model::double_weights_are_the_single_ones_drawn_alike") {
        return;
    }
    let model = model(json!({"name": "small-cnn", "args": {"width": 4}}));
    tch::manual_seed(3);
    let single = model.build(Device::Cpu, Kind::Float).expect("it builds");
    tch::manual_seed(3);
    let double = model.build(Device::Cpu, Kind::Double).expect("it builds");
    for ((name, a), (_, b)) in single.state().into_iter().zip(double.state()) {
        let kind = if name.ends_with("num_batches_tracked") { Kind::Int64 } else { Kind::Double };
        assert_eq!(b.kind(), kind, "{name}");
        assert!(a.to_kind(kind).equal(&b), "{name}");
    }
    let ys = double.forward(&Tensor::ones([2, 1, 28, 28], (Kind::Double, Device::Cpu)), true);
    assert_eq!((ys.kind(), ys.size()), (Kind::Double, vec![2, 10]));
}

/// YAML beside the `torch.nn` expression that it stands for.
pub const LAYERS: &[(&[i64], &str, &str)] = &[
    (
        &[4, 9, 8],
        "[conv2d: {out_channels: 6, kernel_size: [3, 2], stride: [2, 1], padding: [1, 2], groups: 2}]",
        "nn.Sequential(nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), groups=2))",
    ),
    (
        &[3, 9, 9],
        "[conv2d: {out_channels: 5, kernel_size: 3, dilation: 2, bias: false, in_channels: 3}]",
        "nn.Sequential(nn.Conv2d(3, 5, 3, dilation=2, bias=False))",
    ),
    (
        &[2, 7, 6],
        "[conv2d: {out_channels: 3, kernel_size: [4, 3], padding: same}]",
        "nn.Sequential(nn.Conv2d(2, 3, (4, 3), padding='same'))",
    ),
    (
        &[2, 7, 6],
        "[conv2d: {out_channels: 3, kernel_size: [2, 3], padding: same, padding_mode: reflect}]",
        "nn.Sequential(nn.Conv2d(2, 3, (2, 3), padding='same', padding_mode='reflect'))",
    ),
    (
        &[2, 7, 6],
        "[conv2d: {out_channels: 3, kernel_size: 3, padding: [1, 2], padding_mode: circular}]",
        "nn.Sequential(nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode='circular'))",
    ),
    (
        &[2, 7, 6],
        "[conv2d: {out_channels: 3, kernel_size: 3, padding: valid, padding_mode: replicate}]",
        "nn.Sequential(nn.Conv2d(2, 3, 3, padding='valid', padding_mode='replicate'))",
    ),
    (
        &[4, 5, 6],
        "[conv_transpose2d: {out_channels: 6, kernel_size: [3, 4], stride: [2, 3], padding: 1, output_padding: [1, 2], groups: 2, dilation: [2, 1]}]",
        "nn.Sequential(nn.ConvTranspose2d(4, 6, (3, 4), stride=(2, 3), padding=1, output_padding=(1, 2), groups=2, dilation=(2, 1)))",
    ),
    (&[4, 3, 5], "[linear: {in_features: 5, out_features: 3}]", "nn.Sequential(nn.Linear(5, 3))"),
    (
        &[3, 6, 5],
        "[weight_norm: {module: {conv2d: {out_channels: 4, kernel_size: 3, padding: 1}}}]",
        "nn.Sequential(weight_norm(nn.Conv2d(3, 4, 3, padding=1)))",
    ),
    (
        &[4, 6, 5],
        "[weight_norm: {module: {conv_transpose2d: {out_channels: 2, kernel_size: 2, stride: 2, bias: false}}, dim: 1}]",
        "nn.Sequential(weight_norm(nn.ConvTranspose2d(4, 2, 2, 2, bias=False), dim=1))",
    ),
    (
        &[5],
        "[weight_norm: {module: {linear: {out_features: 3}}, dim: ~}]",
        "nn.Sequential(weight_norm(nn.Linear(5, 3), dim=None))",
    ),
    (
        &[4, 6, 5],
        "[spectral_norm: {module: {conv2d: {out_channels: 4, kernel_size: 3, groups: 2, padding: 1, padding_mode: reflect}}, n_power_iterations: 2}]",
        "nn.Sequential(spectral_norm(nn.Conv2d(4, 4, 3, groups=2, padding=1, padding_mode='reflect'), n_power_iterations=2))",
    ),
    (
        &[3, 6, 5],
        "[spectral_norm: {module: {conv_transpose2d: {out_channels: 4, kernel_size: 3, stride: 2}}}]",
        "nn.Sequential(spectral_norm(nn.ConvTranspose2d(3, 4, 3, 2)))",
    ),
    (
        &[5],
        "[spectral_norm: {module: {linear: {out_features: 3, bias: false}}, eps: 1.0e-6, dim: 1}]",
        "nn.Sequential(spectral_norm(nn.Linear(5, 3, bias=False), eps=1e-6, dim=1))",
    ),
    (
        &[3, 6, 5],
        "[weight_standardization: {module: {conv2d: {out_channels: 4, kernel_size: 3, stride: 2}}}]",
        "nn.Sequential(StdConv2d(3, 4, 3, 2))",
    ),
    (
        &[3, 6, 5],
        "[weight_standardization: {module: {conv2d: {out_channels: 4, kernel_size: 3, padding: 1}}, gain: {gamma: 1.7, gain_init: 0.9}}]",
        "nn.Sequential(ScaledStdConv2d(3, 4, 3, padding=1, gamma=1.7, gain_init=0.9))",
    ),
    (&[5], "[linear: {out_features: 3, bias: false}]", "nn.Sequential(nn.Linear(5, 3, bias=False))"),
    (
        &[3, 4, 4],
        "[batch_norm2d: {eps: 1e-3, momentum: 0.3}]",
        "nn.Sequential(nn.BatchNorm2d(3, eps=1e-3, momentum=0.3))",
    ),
    (&[3, 4, 4], "[batch_norm2d: {affine: false}]", "nn.Sequential(nn.BatchNorm2d(3, affine=False))"),
    (
        &[3, 4, 4],
        "[batch_norm2d: {track_running_stats: false}]",
        "nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False))",
    ),
    (&[3, 4, 4], "[batch_norm2d: {momentum: ~}]", "nn.Sequential(nn.BatchNorm2d(3, momentum=None))"),
    (
        &[5],
        "[batch_norm1d: {momentum: ~, affine: false}]",
        "nn.Sequential(nn.BatchNorm1d(5, momentum=None, affine=False))",
    ),
    (&[3, 4, 5], "[instance_norm2d]", "nn.Sequential(nn.InstanceNorm2d(3))"),
    (
        &[3, 4, 5],
        "[instance_norm2d: {affine: true, track_running_stats: true, momentum: 0.3}]",
        "nn.Sequential(nn.InstanceNorm2d(3, affine=True, track_running_stats=True, momentum=0.3))",
    ),
    (&[5], "[batch_norm1d]", "nn.Sequential(nn.BatchNorm1d(5))"),
    (&[6, 4, 5], "[group_norm: {num_groups: 3}]", "nn.Sequential(nn.GroupNorm(3, 6))"),
    (
        &[6, 4, 5],
        "[group_norm: {num_groups: 2, affine: false}]",
        "nn.Sequential(nn.GroupNorm(2, 6, affine=False))",
    ),
    (&[6, 4, 5], "[layer_norm]", "nn.Sequential(nn.LayerNorm([6, 4, 5]))"),
    (
        &[6, 4, 5],
        "[layer_norm: {normalized_shape: [4, 5], bias: false}]",
        "nn.Sequential(nn.LayerNorm([4, 5], bias=False))",
    ),
    (
        &[6, 4, 5],
        "[layer_norm: {normalized_shape: 5, elementwise_affine: false}]",
        "nn.Sequential(nn.LayerNorm(5, elementwise_affine=False))",
    ),
    (&[6, 4, 5], "[layer_norm2d]", "nn.Sequential(LayerNorm2d(6))"),
    (
        &[6, 4, 5],
        "[layer_norm2d: {normalized_shape: 6, eps: 1.0e-3, bias: false}]",
        "nn.Sequential(LayerNorm2d(6, eps=1e-3, bias=False))",
    ),
    (&[3, 4, 5], "[scale: {value: 0.2}]", "Times(0.2)"),
    (&[3, 4, 5], "[scale: {parameter: gamma}]", "nn.Sequential(Scale('gamma', (3, 1, 1), 1))"),
    (
        &[3, 4, 5],
        "[scale: {parameter: layer_scale, shape: [1, 3, 1, 1], init: 1.0e-6}]",
        "nn.Sequential(Scale('layer_scale', (1, 3, 1, 1), 1e-6))",
    ),
    (&[3, 4, 5], "[scale: {parameter: beta, shape: [5], init: 0}]", "nn.Sequential(Scale('beta', (5,), 0))"),
    (&[6], "[scale: {parameter: w, init: -0.3}]", "nn.Sequential(Scale('w', (6,), -0.3))"),
    (&[3, 4, 5], "[permute: {dims: [0, 2, 3, 1]}]", "Permute([0, 2, 3, 1])"),
    (&[6, 4, 5], "[channel_shuffle: {groups: 3}]", "nn.ChannelShuffle(3)"),
    (&[3, 4, 5], "[stochastic_depth: {p: 0, mode: batch}]", "StochasticDepth(0.0, 'batch')"),
    (&[4, 3], "[relu]", "nn.ReLU()"),
    (&[4, 3], "[relu6]", "nn.ReLU6()"),
    (&[4, 3], "[leaky_relu]", "nn.LeakyReLU()"),
    (&[4, 3], "[leaky_relu: {negative_slope: 0.2}]", "nn.LeakyReLU(0.2)"),
    (&[4, 3], "[elu]", "nn.ELU()"),
    (&[4, 3], "[elu: {alpha: 0.7}]", "nn.ELU(0.7)"),
    (&[4, 3], "[selu]", "nn.SELU()"),
    (&[4, 3], "[gelu]", "nn.GELU()"),
    (&[4, 3], "[gelu: {approximate: tanh}]", "nn.GELU('tanh')"),
    (&[4, 3], "[silu]", "nn.SiLU()"),
    (&[4, 3], "[mish]", "nn.Mish()"),
    (&[4, 3], "[sigmoid]", "nn.Sigmoid()"),
    (&[4, 3], "[tanh]", "nn.Tanh()"),
    (&[4, 3], "[softplus]", "nn.Softplus()"),
    (&[4, 3], "[softplus: {beta: 3}]", "nn.Softplus(3)"),
    (&[4, 3], "[hardswish]", "nn.Hardswish()"),
    (&[4, 3], "[hardsigmoid]", "nn.Hardsigmoid()"),
    (&[4, 3], "[hardtanh: {min_val: -0.5, max_val: 0.25}]", "nn.Hardtanh(-0.5, 0.25)"),
    (&[4, 3], "[softmax]", "nn.Softmax(1)"),
    (&[4, 3], "[softmax: {dim: -1}]", "nn.Softmax(-1)"),
    (&[4, 3], "[log_softmax: {dim: 2}]", "nn.LogSoftmax(2)"),
    (&[4, 3], "[prelu]", "nn.Sequential(nn.PReLU())"),
    (&[4, 3, 2], "[prelu: {num_parameters: 4}]", "nn.Sequential(nn.PReLU(4))"),
    (&[2, 9, 8], "[max_pool2d: {kernel_size: 3, stride: 2, padding: 1}]", "nn.MaxPool2d(3, 2, 1)"),
    (
        &[2, 9, 8],
        "[max_pool2d: {kernel_size: [3, 2], dilation: 2, ceil_mode: true}]",
        "nn.MaxPool2d((3, 2), dilation=2, ceil_mode=True)",
    ),
    (
        &[2, 9, 8],
        "[avg_pool2d: {kernel_size: 4, padding: 2, ceil_mode: true, count_include_pad: false}]",
        "nn.AvgPool2d(4, padding=2, ceil_mode=True, count_include_pad=False)",
    ),
    (
        &[2, 9, 8],
        "[avg_pool2d: {kernel_size: [2, 3], stride: 1, divisor_override: 5}]",
        "nn.AvgPool2d((2, 3), 1, divisor_override=5)",
    ),
    (&[2, 9, 8], "[adaptive_avg_pool2d: {output_size: [3, 2]}]", "nn.AdaptiveAvgPool2d((3, 2))"),
    (&[2, 9, 8], "[adaptive_max_pool2d: {output_size: 3}]", "nn.AdaptiveMaxPool2d(3)"),
    (&[2, 3, 4], "[dropout: {p: 0}]", "nn.Identity()"),
    (&[2, 3, 4], "[dropout2d: {p: 0}]", "nn.Identity()"),
    (&[2, 3, 4], "[identity]", "nn.Identity()"),
    (&[2, 3, 4], "[flatten]", "nn.Flatten()"),
    (&[2, 3, 4], "[flatten: {start_dim: 2, end_dim: -1}]", "nn.Flatten(2)"),
    (&[12, 3], "[unflatten: {unflattened_size: [2, -1]}]", "nn.Unflatten(1, (2, 6))"),
    (&[24], "[reshape: {shape: [2, -1, 4]}]", "nn.Unflatten(1, (2, 3, 4))"),
    (&[2, 3, 4], "[upsample: {scale_factor: 2}]", "nn.Upsample(scale_factor=2)"),
    (&[2, 3, 4], "[upsample: {size: [5, 7]}]", "nn.Upsample(size=(5, 7))"),
    (
        &[2, 3, 4],
        "[upsample: {scale_factor: [1.7, 2.5], mode: bilinear}]",
        "nn.Upsample(scale_factor=(1.7, 2.5), mode='bilinear')",
    ),
    (
        &[2, 3, 4],
        "[upsample: {size: 6, mode: bilinear, align_corners: true}]",
        "nn.Upsample(size=6, mode='bilinear', align_corners=True)",
    ),
    (
        &[2, 6, 4],
        "[upsample: {scale_factor: [1.7, 2], mode: bicubic}]",
        "nn.Upsample(scale_factor=(1.7, 2), mode='bicubic')",
    ),
    (
        &[2, 6, 4],
        "[upsample: {size: [9, 7], mode: bicubic, align_corners: true}]",
        "nn.Upsample(size=(9, 7), mode='bicubic', align_corners=True)",
    ),
    (
        &[2, 9, 8],
        "[upsample: {scale_factor: [0.4, 0.6], mode: bicubic, antialias: true}]",
        "Interpolate(scale_factor=(0.4, 0.6), mode='bicubic', antialias=True)",
    ),
    (
        &[2, 9, 8],
        "[upsample: {size: [4, 3], mode: bilinear, antialias: true, align_corners: true}]",
        "Interpolate(size=(4, 3), mode='bilinear', antialias=True, align_corners=True)",
    ),
    (
        &[2, 9, 8],
        "[upsample: {scale_factor: 0.5, mode: bilinear, antialias: true}]",
        "Interpolate(scale_factor=0.5, mode='bilinear', antialias=True)",
    ),
    (
        &[2, 9, 8],
        "[upsample: {size: 5, mode: bicubic, antialias: true}]",
        "Interpolate(size=5, mode='bicubic', antialias=True)",
    ),
    (&[2, 5, 6], "[reflection_pad2d: {padding: [1, 2, 3, 4]}]", "nn.ReflectionPad2d((1, 2, 3, 4))"),
    (&[2, 5, 6], "[replication_pad2d: {padding: [1, 2, 0, 7]}]", "nn.ReplicationPad2d((1, 2, 0, 7))"),
    (&[2, 5, 6], "[zero_pad2d: {padding: [1, -2, 0, 3]}]", "nn.ZeroPad2d((1, -2, 0, 3))"),
    (&[2, 5, 6], "[zero_pad2d: {padding: 2}]", "nn.ZeroPad2d(2)"),
    (&[2, 5, 6], "[drop_block2d: {p: 0, block_size: 3}]", "DropBlock2d(0.0, 3)"),
    (&[6, 3, 4], "[chunk: {chunks: 2, index: 1}]", "Chunk(2, 1)"),
    (&[6, 3, 5], "[chunk: {chunks: 2, index: 1, dim: -1}]", "Chunk(2, 1, -1)"),
    (&[7], "[chunk: {chunks: 3, index: 0}]", "Chunk(3, 0)"),
    (&[8, 3, 4], "[pixel_shuffle: {upscale_factor: 2}]", "nn.PixelShuffle(2)"),
    (&[2, 6, 9], "[pixel_unshuffle: {downscale_factor: 3}]", "nn.PixelUnshuffle(3)"),
];

#[test]
fn every_layer_equals_torch_nn_in_names_shapes_values_and_gradients() {
    if !alone("model::every_layer_equals_torch_nn_in_names_shapes_values_and_gradients") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let mut cases = String::new();
    for (shape, _, twin) in LAYERS {
        let shape: Vec<_> = shape.iter().map(i64::to_string).collect();
        writeln!(cases, "{} | {twin}", shape.join(",")).expect("text");
    }
    std::fs::write(folder.path().join("cases.txt"), cases).expect("the cases are written");
    let script = include_str!("model/layers.py");
    python(&format!("import sys\nsys.argv = ['', {:?}]\n{script}", folder.path().to_str().expect("text")));
    for (index, (shape, layers, _)) in LAYERS.iter().enumerate() {
        let model = inline(shape, layers);
        let mut arrays = arrays(folder.path(), &format!("{index}.npz"));
        let mut take = |name: &str| arrays.remove(name).expect("the array");
        let (xs, ys, gradient) = (take("x").set_requires_grad(true), take("y"), take("grad"));
        let states = |prefix: &str| -> BTreeMap<_, _> {
            let named = arrays.iter().filter_map(|(name, value)| {
                Some((name.strip_prefix(prefix)?.to_string(), value.shallow_clone()))
            });
            named.collect()
        };
        let (initial, state) = (states("initial."), states("state."));
        tch::manual_seed(index as i64);
        let network = model.build(Device::Cpu, Kind::Float).expect("it builds");
        assert_equal_bits(&network, &initial, layers);
        network.load_state(&state).unwrap_or_else(|error| panic!("{layers}: {error}"));
        let ours = network.forward(&xs, true);
        assert_eq!(&ours.size()[1..], model.output(), "{layers}: the shape rule");
        let apart = difference(&ours, &ys);
        assert!(apart < 1e-6, "{layers}: differs by {apart}");
        let weights =
            Tensor::linspace(-1, 1, ys.numel() as i64, (Kind::Float, Device::Cpu)).reshape(ys.size());
        (ours * weights).sum(Kind::Float).backward();
        let apart = difference(&xs.grad(), &gradient);
        assert!(apart < 2e-5, "{layers}: the gradient differs by {apart}");
    }
}

#[test]
fn dropout_draws_as_pytorch_does_and_rests_in_eval() {
    if !alone("model::dropout_draws_as_pytorch_does_and_rests_in_eval") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("y.npz");
    python(&format!(
        "import torch, numpy as np\ntorch.manual_seed(5)\nx = torch.ones(4, 6, 3, 3)\n\
         y = torch.nn.Dropout2d(0.4)(torch.nn.Dropout(0.3)(x))\nnp.savez({:?}, y=y.numpy())",
        file.to_str().expect("text")
    ));
    let network = inline(&[6, 3, 3], "[{dropout: {p: 0.3}}, {dropout2d: {p: 0.4}}]")
        .build(Device::Cpu, Kind::Float)
        .expect("it builds");
    let xs = Tensor::ones([4, 6, 3, 3], (Kind::Float, Device::Cpu));
    tch::manual_seed(5);
    assert!(network.forward(&xs, true).equal(&arrays(folder.path(), "y.npz")["y"]));
    assert!(network.forward(&xs, false).equal(&xs));
}

#[test]
fn residual_concat_repeat_and_silent_names_make_the_names_of_the_twin() {
    let layers = "
stem: {conv2d: {out_channels: 8, kernel_size: 3, padding: 1}}
_dense:
  repeat:
    times: 2
    layers:
      dense{i + 1}: {concat: {_same: identity, grow: {conv2d: {out_channels: 4, kernel_size: 1}}}}
mix: {concat: [conv2d: {out_channels: 2, kernel_size: 1}, [relu, conv2d: {out_channels: 3, kernel_size: 1}]]}
tail:
  - relu
  - repeat: {times: 2, layers: [conv2d: {out_channels: 5, kernel_size: 1}, relu]}
  - _res:
      residual:
        layers: {a: {conv2d: {out_channels: 5, kernel_size: 1}}}
        shortcut: {conv2d: {out_channels: 5, kernel_size: 1}}
";
    let model = inline(&[3, 6, 6], layers);
    let names: Vec<_> = model.params().iter().map(|param| param.name.as_str()).collect();
    let weights: Vec<_> = names.iter().filter_map(|name| name.strip_suffix(".weight")).collect();
    assert_eq!(
        weights,
        ["stem", "dense1.grow", "dense2.grow", "mix.0", "mix.1.1", "tail.1", "tail.3", "tail.5", "tail.5.a"]
    );
    assert_eq!(model.output(), [5, 6, 6]);
    let shape = |name: &str| &model.params().iter().find(|param| param.name == name).expect("the name").shape;
    assert_eq!(shape("dense2.grow.weight"), &[4, 12, 1, 1]);
    assert_eq!(shape("tail.1.weight"), &[5, 5, 1, 1]);
}

#[test]
fn a_residual_adds_and_a_concat_joins() {
    let network =
        inline(&[2, 1, 1], "[residual: {layers: [relu], shortcut: [tanh]}, concat: [identity, relu]]")
            .build(Device::Cpu, Kind::Float)
            .expect("it builds");
    let ys = network.forward(&Tensor::from_slice(&[1f32, -1.0]).reshape([1, 2, 1, 1]), false);
    let expected = [1.0 + 1f32.tanh(), -(1f32.tanh()), 1.0 + 1f32.tanh(), 0.0];
    assert!(difference(&ys.flatten(0, -1), &Tensor::from_slice(&expected)) < 1e-6);
}

#[test]
fn a_multiply_takes_products_and_broadcasts_and_a_subtract_takes_the_layers_off() {
    let answer = |layers: &str, xs: &[f32]| {
        let network = inline(&[2, 1, 2], layers).build(Device::Cpu, Kind::Float).expect("it builds");
        network.forward(&Tensor::from_slice(xs).reshape([1, 2, 1, 2]), false).flatten(0, -1)
    };
    let xs = [3f32, 1.0, -2.0, 4.0];
    for (layers, expected) in [
        ("[multiply: {layers: [relu]}]", [9.0, 1.0, 0.0, 16.0]),
        ("[multiply: {layers: [adaptive_avg_pool2d: {output_size: 1}]}]", [6.0, 2.0, -2.0, 4.0]),
        (
            "[multiply: {layers: [identity], shortcut: [slice_channels: {start: 0, end: 1}]}]",
            [9.0, 1.0, -6.0, 4.0],
        ),
        ("[subtract: {layers: [relu]}]", [0.0, 0.0, -2.0, 0.0]),
        (
            "[subtract: {layers: [relu], shortcut: {upsample: {scale_factor: 1}}}, multiply: {layers: [relu]}]",
            [0.0, 0.0, 0.0, 0.0],
        ),
    ] {
        let expected: Vec<f32> = expected.to_vec();
        assert!(answer(layers, &xs).equal(&Tensor::from_slice(&expected)), "{layers}");
    }
    // The shape rule follows other sizes, so any image size goes through.
    let gate = inline(
        &[2, 8, 8],
        "[multiply: {layers: [adaptive_avg_pool2d: {output_size: 1}, conv2d: {out_channels: 2, kernel_size: 1}, sigmoid]}]",
    );
    let network = gate.build(Device::Cpu, Kind::Float).expect("it builds");
    let ys = network.forward(&Tensor::ones([1, 2, 5, 13], (Kind::Float, Device::Cpu)), false);
    assert_eq!(ys.size(), [1, 2, 5, 13]);
}

#[test]
fn an_upsample_like_input_follows_any_size_of_what_comes_into_its_list() {
    let layers = "{features: [conv2d: {out_channels: 4, kernel_size: 3, stride: 2, bias: false}, relu],
          aspp: {concat: [identity, [adaptive_avg_pool2d: {output_size: 1}, upsample: {like: input, mode: bilinear}]]},
          head: {conv2d: {out_channels: 5, kernel_size: 1}}, _up: {upsample: {like: input, mode: bilinear}}, _soft: {softmax: {dim: 1}}}";
    let model = inline(&[3, 9, 8], layers);
    assert_eq!(model.output(), [5, 9, 8]);
    let names: Vec<_> = model.params().iter().map(|param| param.name.as_str()).collect();
    assert_eq!(names, ["features.0.weight", "head.weight", "head.bias"]);
    let rows: Vec<_> = model.summary().into_iter().map(|row| (row.path, row.layer, row.output)).collect();
    assert!(rows.contains(&("_up".into(), "upsample".into(), vec![5, 9, 8])), "{rows:?}");
    assert!(rows.contains(&("aspp.1.1".into(), "upsample".into(), vec![4, 4, 3])), "{rows:?}");
    let network = model.build(Device::Cpu, Kind::Float).expect("it builds");
    let weight =
        |name: &str| network.state().into_iter().find(|(known, _)| known == name).expect("the name").1;
    for size in [[9, 8], [13, 22], [3, 5]] {
        let xs = Tensor::randn([2, 3, size[0], size[1]], (Kind::Float, Device::Cpu));
        let features =
            xs.conv2d(&weight("features.0.weight"), None::<Tensor>, [2, 2], [0, 0], [1, 1], 1).relu();
        let pooled = features.adaptive_avg_pool2d([1, 1]).expand_as(&features);
        let both = Tensor::cat(&[&features, &pooled], 1);
        let ys = both.conv2d(&weight("head.weight"), Some(weight("head.bias")), [1, 1], [0, 0], [1, 1], 1);
        let wanted = ys.upsample_bilinear2d(size, false, None, None).softmax(1, None::<Kind>);
        for train in [false, true] {
            assert!(difference(&network.forward(&xs, train), &wanted) < 1e-5, "{size:?}");
        }
    }
}

#[test]
fn names_have_hyphens_and_two_underscores_are_one() {
    let model = inline(
        &[2, 4, 4],
        "{block1: {_r: {repeat: {times: 2, layers: {\"block1-{i}\": {conv2d: {out_channels: 2, kernel_size: 1}}}}}},
          __conv_stem: {conv2d: {out_channels: 2, kernel_size: 1, bias: false}}}",
    );
    let names: Vec<_> = model.params().iter().map(|param| param.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "block1.block1-0.weight",
            "block1.block1-0.bias",
            "block1.block1-1.weight",
            "block1.block1-1.bias",
            "_conv_stem.weight"
        ]
    );
}

#[test]
fn arguments_reach_the_layers_and_formulas_are_evaluated() {
    let small =
        model(json!({"name": "small-cnn", "args": {"channels": 3, "size": 32, "width": 8, "classes": 4}}));
    assert_eq!((small.input(), small.output()), ([3, 32, 32].as_slice(), [4].as_slice()));
    let shape =
        |name: &str| small.params().iter().find(|param| param.name == name).expect("the name").shape.clone();
    assert_eq!(shape("block3.0.conv.weight"), [32, 16, 3, 3]);
    let deep = model(json!({"name": "resnet20", "args": {"n": 9}}));
    assert_eq!(deep.parameter_count(), 853_018, "ResNet-56");
}

#[test]
fn an_inlined_model_is_the_same_model_without_its_file() {
    let spec: ModelSpec =
        serde_json::from_value(json!({"name": "lenet", "args": {"classes": 3}})).expect("a spec");
    let inlined = spec.inlined().expect("it is inlined");
    let value = serde_json::to_value(&inlined).expect("JSON");
    assert!(value["layers"].is_object());
    let again: ModelSpec = serde_json::from_value(value).expect("a spec");
    let (a, b) = (Model::from_spec(&spec).expect("a model"), Model::from_spec(&again).expect("a model"));
    assert_eq!(a.params(), b.params());
    for spec in [json!("lenet"), json!("my.yaml"), json!({"name": "lenet", "args": {"classes": 3}})] {
        let parsed: ModelSpec = serde_json::from_value(spec.clone()).expect("a spec");
        assert_eq!(serde_json::to_value(parsed).expect("JSON"), spec);
    }
}

#[test]
fn shipped_models_have_the_published_sizes_and_multiply_adds() {
    // 1.814 GMAC is the figure of the literature for ResNet-18, 40.6 M (with the last layer) for ResNet-20.
    for (name, parameters, multiply_adds) in [
        ("resnet18-imagenet", 11_689_512, 1_814_073_344),
        ("resnet18", 11_173_962, 555_422_720),
        ("resnet20", 269_722, 40_551_040),
        ("dncnn", 556_032, 886_579_200),
        ("lenet", 61_706, 416_520),
        ("linear", 2, 1),
    ] {
        let model = model(json!(name));
        let summary = Summary::new(&model, |_| Rates::default());
        assert_eq!((summary.trainable, summary.multiply_adds), (parameters, Some(multiply_adds)), "{name}");
    }
}

#[test]
fn the_summary_shows_layers_and_each_parameters_penalty() {
    let model = model(json!("linear"));
    let summary = Summary::new(&model, |name| Rates {
        penalty: name.ends_with("weight").then(|| "l2 0.1".to_string()),
        ..Rates::default()
    });
    assert_eq!(
        summary.text(),
        "linear: [1] to [1]\n\n\
         layer   type    output  parameters  multiply-adds\n\
         linear  linear  [1]              2              1\n\n\
         parameter      shape   penalty  values\n\
         linear.weight  [1, 1]  l2 0.1        1\n\
         linear.bias    [1]     none          1\n\n\
         2 parameters, 0 values in buffers, 1 multiply-adds per sample\n"
    );
    let json = serde_json::to_value(&summary).expect("JSON");
    assert_eq!(json["parameters"][0]["penalty"], "l2 0.1");
    assert_eq!(
        json["layers"][0],
        json!({"path": "linear", "layer": "linear", "output": [1], "params": 2, "multiply_adds": 1})
    );
}

#[test]
fn only_weights_of_convolutions_and_linear_maps_are_of_the_penalised_kind() {
    let kinds: BTreeMap<_, _> = inline(
        &[2, 4, 4],
        "{c: {conv2d: {out_channels: 4, kernel_size: 1}}, t: {conv_transpose2d: {out_channels: 4, kernel_size: 1}}, \
         n: batch_norm2d, g: {group_norm: {num_groups: 2}}, p: prelu, f: flatten, l: {linear: {out_features: 1}}}",
    )
    .params()
    .iter()
    .map(|param| (param.name.clone(), param.kind))
    .collect();
    let of = |kind| {
        kinds.iter().filter(|(_, own)| **own == kind).map(|(name, _)| name.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(of(ParamKind::Weight), ["c.weight", "l.weight", "t.weight"]);
    assert_eq!(of(ParamKind::Norm), ["g.weight", "n.weight", "p.weight"]);
    assert_eq!(of(ParamKind::Bias), ["c.bias", "g.bias", "l.bias", "n.bias", "t.bias"]);
    assert_eq!(of(ParamKind::Buffer), ["n.num_batches_tracked", "n.running_mean", "n.running_var"]);
}

#[test]
fn loading_weights_lists_every_difference_at_once_and_changes_nothing() {
    let network = inline(&[4], "{fc: {linear: {out_features: 2}}, bn: batch_norm1d}")
        .build(Device::Cpu, Kind::Float)
        .expect("it builds");
    let state = || -> BTreeMap<_, _> {
        network.state().into_iter().map(|(name, value)| (name, value.detach().copy())).collect()
    };
    let before = state();
    let mut broken = state();
    broken.insert("fc.weight".into(), Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)));
    broken.insert("head.weight".into(), Tensor::zeros([2], (Kind::Float, Device::Cpu)));
    broken.insert("fc.bias".into(), Tensor::ones([2], (Kind::Float, Device::Cpu)));
    broken.remove("bn.running_mean");
    let error = network.load_state(&broken).expect_err("it does not fit");
    assert_eq!(tikhonov::util::exit_code::code(&error), 4);
    let text = error.to_string();
    for part in
        ["fc.weight is [2, 3], wanted [2, 4]", "unexpected head.weight [2]", "missing bn.running_mean [2]"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert_equal_bits(&network, &before, "nothing is changed");

    // Doubles go into a single network, which stays single; files without the counter are old but good.
    let mut good = state();
    good.insert("fc.bias".into(), Tensor::ones([2], (Kind::Double, Device::Cpu)));
    good.remove("bn.num_batches_tracked");
    network.load_state(&good).expect("it fits");
    let bias = &network.parameters()[1];
    assert_eq!((bias.name.as_str(), bias.tensor.kind()), ("fc.bias", Kind::Float));
    assert_eq!(bias.tensor.sum(Kind::Double).double_value(&[]), 2.0);
    assert!(bias.tensor.requires_grad());
}

#[test]
fn one_value_per_channel_leaves_the_running_statistics_finite() {
    let model = inline(&[3], "[batch_norm1d]");
    assert_eq!(model.min_batch(), 2);
    let network = model.build(Device::Cpu, Kind::Float).expect("it builds");
    let ys = network.forward(&Tensor::ones([1, 3], (Kind::Float, Device::Cpu)), true);
    for tensor in network.state().into_iter().map(|(_, tensor)| tensor).chain([ys]) {
        assert_eq!(tensor.isfinite().all().int64_value(&[]), 1);
    }
    assert_eq!(inline(&[3, 2, 1], "[batch_norm2d]").min_batch(), 1);
}

#[test]
fn a_fully_convolutional_network_takes_any_image_size() {
    let network = model(json!({"name": "dncnn", "args": {"depth": 4, "width": 2}}))
        .build(Device::Cpu, Kind::Float)
        .expect("it builds");
    let ys = network.forward(&Tensor::ones([1, 1, 13, 57], (Kind::Float, Device::Cpu)), false);
    assert_eq!(ys.size(), [1, 1, 13, 57]);
}

#[test]
fn weights_in_channels_last_are_the_same_numbers_and_still_those_of_the_network() {
    let network = model(json!({"name": "resnet20", "args": {"channels": 1, "size": 16}}))
        .build(Device::Cpu, Kind::Float)
        .expect("it builds");
    let before: Vec<_> = network.state().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect();
    let xs = Tensor::ones([2, 1, 16, 16], (Kind::Float, Device::Cpu));
    let plain = network.forward(&xs, false);
    network.use_channels_last().expect("it takes the format");
    for ((name, old), (_, new)) in before.iter().zip(network.state()) {
        assert!(old.equal(&new), "{name}");
        assert!(new.dim() != 4 || new.size()[1] == 1 || new.stride()[1] == 1, "{name}: {:?}", new.stride());
    }
    assert!(difference(&network.forward(&xs, false), &plain) < 1e-6);
    network.forward(&xs, true).sum(Kind::Float).backward();
    for parameter in network.parameters() {
        assert!(parameter.tensor.requires_grad() && parameter.tensor.grad().defined(), "{}", parameter.name);
    }
}

#[test]
fn parameters_train_and_buffers_do_not() {
    let network = model(json!("small-cnn")).build(Device::Cpu, Kind::Float).expect("it builds");
    let trained: Vec<_> = network.parameters().iter().map(|parameter| parameter.name.as_str()).collect();
    for (name, tensor) in network.state() {
        assert_eq!(tensor.requires_grad(), trained.contains(&name.as_str()), "{name}");
    }
    assert!(!trained.iter().any(|name| name.contains("running")));
}
