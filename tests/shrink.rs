//! Networks without the channels that do nothing answer as before.

use std::collections::BTreeMap;

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use tikhonov::nn::model::{Model, ModelSpec};
use tikhonov::nn::shrink::{Shrunk, shrink};
use tikhonov::util::rng::{CounterRng, RngStream};

use crate::common::{run, succeeds, write_config};

type Weights = BTreeMap<String, Tensor>;

fn model(yaml: &str) -> Model {
    let tree: Value = serde_yaml::from_str(yaml).expect("YAML");
    let spec: ModelSpec = serde_json::from_value(tree).expect("a model");
    Model::from_spec(&spec).unwrap_or_else(|error| panic!("{error:#}"))
}

/// Random weights and statistics, in float64.
fn weights(model: &Model, seed: i64) -> Weights {
    tch::manual_seed(seed);
    let network = model.build(Device::Cpu, Kind::Double).expect("a network");
    let random = |name: &str, tensor: &Tensor| match name.rsplit('.').next() {
        Some("num_batches_tracked") => tensor.copy(),
        Some("running_var") => tensor.rand_like() + 0.5,
        _ => tensor.randn_like() * 0.5,
    };
    network.state().into_iter().map(|(name, tensor)| (name.clone(), random(&name, &tensor))).collect()
}

/// Sets slices `indices` along dimension `dim` of a weight to 0.
fn zero(weights: &Weights, name: &str, dim: i64, indices: &[i64]) {
    let tensor = weights.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", weights.keys()));
    let _ = tensor.shallow_clone().index_fill_(dim, &Tensor::from_slice(indices), 0.0);
}

fn answers(model: &Model, weights: &Weights, xs: &Tensor) -> Tensor {
    let network = model.build(Device::Cpu, Kind::Double).expect("a network");
    network.load_state(weights).expect("weights that fit");
    tch::no_grad(|| network.forward(xs, false))
}

/// Shrinks, and compares the answers on large and small inputs.
fn checked(model: &Model, weights: &Weights) -> Shrunk {
    let shrunk = shrink(model, weights).unwrap_or_else(|error| panic!("{error:#}"));
    for scale in [1.0, 30.0, 0.0] {
        let size = [&[3], model.input()].concat();
        let xs = Tensor::randn(size, (Kind::Double, Device::Cpu)) * scale;
        let (a, b) = (answers(model, weights, &xs), answers(&shrunk.model, &shrunk.weights, &xs));
        assert_eq!(a.size(), b.size());
        let (apart, largest) = ((&a - &b).abs().max().double_value(&[]), a.abs().max().double_value(&[]));
        assert!(
            apart <= 1e-10 * largest.max(1.0),
            "{apart:e} apart, the largest is {largest:e}:\n{}",
            layers(&shrunk)
        );
    }
    shrunk
}

fn layers(shrunk: &Shrunk) -> String {
    serde_json::to_string_pretty(&shrunk.description).expect("a description")
}

fn size(shrunk: &Shrunk, name: &str) -> Vec<i64> {
    shrunk.weights[name].size()
}

const PLAIN: &str = "
input: [3, 8, 8]
layers:
  conv1: {conv2d: {out_channels: 8, kernel_size: 3, padding: 1}}
  _relu1: relu
  conv2: {conv2d: {out_channels: 6, kernel_size: 3, padding: 1}}
  _relu2: relu
  _pool: {max_pool2d: {kernel_size: 2}}
  _flatten: flatten
  fc: {linear: {out_features: 5}}
";

#[test]
fn a_filter_of_zeros_goes_with_all_that_reads_it_and_its_bias_is_kept_by_one_channel() {
    let model = model(PLAIN);
    let weights = weights(&model, 1);
    zero(&weights, "conv1.weight", 0, &[0, 2, 3, 7]);
    // One of the constants is 0 behind the ReLU; three are not, and conv2 has a border of zeros.
    for (index, bias) in [(0, -1.0), (2, 0.5), (3, 2.0), (7, 0.25)] {
        let _ = weights["conv1.bias"].get(index).fill_(bias);
    }
    zero(&weights, "conv2.weight", 0, &[1, 4]);
    let shrunk = checked(&model, &weights);
    assert_eq!(size(&shrunk, "conv1.weight"), [5, 3, 3, 3], "four that work and one constant");
    assert_eq!(size(&shrunk, "conv2.weight"), [4, 5, 3, 3], "the linear layer's bias takes all constants");
    assert_eq!(size(&shrunk, "fc.weight"), [5, 4 * 16]);
}

#[test]
fn a_channel_that_nothing_reads_goes_without_a_trace() {
    let model = model(PLAIN);
    let weights = weights(&model, 2);
    zero(&weights, "conv2.weight", 1, &[1, 5]);
    // Of one channel: its 16 pixels.
    zero(&weights, "fc.weight", 1, &(32..48).collect::<Vec<_>>());
    let shrunk = checked(&model, &weights);
    assert_eq!(size(&shrunk, "conv1.weight"), [6, 3, 3, 3]);
    assert_eq!(size(&shrunk, "conv2.weight"), [5, 6, 3, 3]);
    assert_eq!(size(&shrunk, "fc.weight"), [5, 80]);
}

#[test]
fn what_only_a_dead_channel_reads_is_dead() {
    let model = model(PLAIN);
    let weights = weights(&model, 3);
    // Channels 0 to 3 of conv1 are read by filters 0 and 1 of conv2 only, which nothing reads.
    zero(&weights, "conv2.weight", 1, &[0, 1, 2, 3]);
    let _ = weights["conv2.weight"].narrow(0, 0, 2).fill_(1.0);
    zero(&weights, "fc.weight", 1, &(0..32).collect::<Vec<_>>());
    let shrunk = checked(&model, &weights);
    assert_eq!(size(&shrunk, "conv1.weight"), [4, 3, 3, 3]);
    assert_eq!(size(&shrunk, "conv2.weight"), [4, 4, 3, 3]);
}

#[test]
fn nothing_changes_where_every_channel_works_and_one_stays_where_none_does() {
    let model = model(PLAIN);
    let weights = weights(&model, 4);
    let shrunk = checked(&model, &weights);
    assert!(weights.iter().all(|(name, tensor)| shrunk.weights[name].size() == tensor.size()));
    zero(&weights, "conv1.weight", 0, &(0..8).collect::<Vec<_>>());
    zero(&weights, "conv2.weight", 0, &(0..6).collect::<Vec<_>>());
    let shrunk = checked(&model, &weights);
    assert_eq!(size(&shrunk, "conv1.weight"), [1, 3, 3, 3]);
    assert_eq!(size(&shrunk, "conv2.weight"), [1, 1, 3, 3]);
}

#[test]
fn a_residual_loses_a_channel_where_both_branches_do() {
    let model = model(
        "
input: [2, 6, 6]
layers:
  stem: {conv2d: {out_channels: 6, kernel_size: 3, padding: 1, bias: false}}
  block:
    residual:
      layers:
        conv1: {conv2d: {out_channels: 8, kernel_size: 3, padding: 1, bias: false}}
        bn1: batch_norm2d
        _relu: relu
        conv2: {conv2d: {out_channels: 6, kernel_size: 3, padding: 1}}
  down:
    residual:
      layers: {conv: {conv2d: {out_channels: 10, kernel_size: 3, stride: 2, padding: 1}}}
      shortcut: {subsample_pad: {out_channels: 10}}
  head: {conv2d: {out_channels: 3, kernel_size: 1}}
",
    );
    let weights = weights(&model, 5);
    zero(&weights, "stem.weight", 0, &[0, 1, 2]);
    zero(&weights, "block.conv2.weight", 0, &[1, 2, 3]);
    // In bn1 two channels are constants, by their factor.
    zero(&weights, "block.bn1.weight", 0, &[3, 4]);
    let _ = weights["block.bn1.bias"].shallow_clone().index_fill_(0, &Tensor::from_slice(&[3i64, 4]), 1.0);
    // Channels 0, 1, 8 and 9 of the second sum come from `conv` alone; 3 and 4 are 1 and 2 of the first.
    zero(&weights, "down.conv.weight", 0, &[0, 9, 3, 4]);
    let shrunk = checked(&model, &weights);
    // Channels 1 and 2 of the stem's sum are the constants of conv2's bias; one of them stays, for `conv`'s border.
    assert_eq!(size(&shrunk, "stem.weight"), [5, 2, 3, 3]);
    assert_eq!(size(&shrunk, "block.conv1.weight"), [7, 5, 3, 3]);
    assert_eq!(size(&shrunk, "block.bn1.running_mean"), [7]);
    assert!(shrunk.model.parameter_count() < model.parameter_count());
    assert_eq!(size(&shrunk, "down.conv.weight"), [7, 5, 3, 3]);
}

/// Networks with every way in which channels hang together, and the tensors of which random slices are 0.
const NETWORKS: &[(&str, &[(&str, i64)])] = &[
    (PLAIN, &[("conv1.weight", 0), ("conv1.weight", 1), ("conv2.weight", 0), ("conv2.weight", 1)]),
    // Concat, pooling with and without a border, transposed convolution, PReLU.
    (
        "
input: [2, 8, 8]
layers:
  a: {conv2d: {out_channels: 6, kernel_size: 3, padding: 1}}
  slope: {prelu: {num_parameters: 6}}
  both:
    concat:
      _same: identity
      deep:
        _pool: {avg_pool2d: {kernel_size: 3, stride: 2, padding: 1}}
        b: {conv2d: {out_channels: 6, kernel_size: 3, padding: 1, padding_mode: replicate}}
        bn: batch_norm2d
        _act: hardswish
        up: {conv_transpose2d: {out_channels: 5, kernel_size: 2, stride: 2}}
  c: {conv2d: {out_channels: 8, kernel_size: 1}}
  _shuffle: {pixel_shuffle: {upscale_factor: 2}}
  d: {conv2d: {out_channels: 2, kernel_size: 3, padding: 1}}
",
        &[
            ("a.weight", 0),
            ("both.deep.b.weight", 0),
            ("both.deep.bn.weight", 0),
            ("both.deep.up.weight", 1),
            ("c.weight", 1),
            ("d.weight", 1),
        ],
    ),
    // MobileNet's block: depthwise, squeeze-and-excitation, residual; a linear map without a bias.
    (
        "
input: [3, 8, 8]
layers:
  stem: {conv2d: {out_channels: 8, kernel_size: 3, stride: 2, padding: 1, bias: false}}
  bn0: batch_norm2d
  _act0: relu6
  block:
    residual:
      layers:
        expand: {conv2d: {out_channels: 12, kernel_size: 1, bias: false}}
        bn1: batch_norm2d
        _act1: relu6
        depthwise: {conv2d: {out_channels: 12, kernel_size: 3, padding: 1, groups: 12, bias: false}}
        bn2: batch_norm2d
        _act2: relu6
        se:
          multiply:
            layers:
              _pool: {adaptive_avg_pool2d: {output_size: 1}}
              fc1: {conv2d: {out_channels: 5, kernel_size: 1}}
              _relu: relu
              fc2: {conv2d: {out_channels: 12, kernel_size: 1}}
              _gate: hardsigmoid
        project: {conv2d: {out_channels: 8, kernel_size: 1, bias: false}}
        bn3: batch_norm2d
        layer_scale: {scale: {parameter: gamma}}
  _pool: {adaptive_avg_pool2d: {output_size: 1}}
  _flatten: flatten
  fc: {linear: {out_features: 4, bias: false}}
",
        &[
            ("bn0.weight", 0),
            ("block.expand.weight", 0),
            ("block.bn1.weight", 0),
            ("block.bn2.weight", 0),
            ("block.depthwise.weight", 0),
            ("block.se.fc1.weight", 0),
            ("block.project.weight", 0),
            ("block.project.weight", 1),
            ("fc.weight", 1),
        ],
    ),
    // Grouped convolution, shuffle, slices, a group norm that no channel may leave, upsampling.
    (
        "
input: [4, 8, 8]
layers:
  a: {conv2d: {out_channels: 12, kernel_size: 3, padding: 1}}
  _relu1: relu
  b: {conv2d: {out_channels: 12, kernel_size: 3, padding: 1, groups: 3}}
  _mix: {channel_shuffle: {groups: 3}}
  c: {conv2d: {out_channels: 8, kernel_size: 1}}
  _tanh: tanh
  halves:
    multiply:
      layers: {_first: {slice_channels: {start: 0, end: 4}}}
      shortcut: {_second: {slice_channels: {start: 4, end: 8}}}
  d: {conv2d: {out_channels: 6, kernel_size: 3, padding: 1}}
  norm: {group_norm: {num_groups: 2}}
  e: {conv2d: {out_channels: 4, kernel_size: 3, padding: 1}}
  _up: {upsample: {scale_factor: 2, mode: bilinear}}
  f: {conv2d: {out_channels: 2, kernel_size: 1}}
",
        &[
            ("a.weight", 0),
            ("b.weight", 0),
            ("b.weight", 1),
            ("c.weight", 0),
            ("c.weight", 1),
            ("d.weight", 1),
            ("e.weight", 0),
            ("f.weight", 1),
        ],
    ),
    // A perceptron with normalisation.
    (
        "
input: [10]
layers:
  a: {linear: {out_features: 16}}
  bn: batch_norm1d
  _relu: relu
  b: {linear: {out_features: 12, bias: false}}
  _silu: silu
  _drop: {dropout: {p: 0.5}}
  c: {linear: {out_features: 3}}
",
        &[("a.weight", 0), ("bn.weight", 0), ("b.weight", 0), ("b.weight", 1), ("c.weight", 1)],
    ),
];

#[test]
fn answers_stay_whatever_is_zero() {
    let mut removed = 0;
    for (number, (yaml, tensors)) in NETWORKS.iter().enumerate() {
        let model = model(yaml);
        for seed in 0..12 {
            let mut dice = CounterRng::new(seed, 0, number as u64, RngStream::Order);
            let weights = weights(&model, seed as i64);
            for (name, dim) in *tensors {
                let extent = weights[*name].size()[*dim as usize];
                let share = dice.uniform();
                let chosen: Vec<i64> = (0..extent).filter(|_| dice.uniform() < share * 0.8).collect();
                zero(&weights, name, *dim, &chosen);
            }
            let shrunk = checked(&model, &weights);
            removed += model.parameter_count() - shrunk.model.parameter_count();
        }
    }
    assert!(removed > 10_000, "{removed} parameters removed in all");
}

#[test]
fn every_shipped_network_of_one_piece_is_followed() {
    for name in ["small-cnn", "resnet20", "resnet18", "unet", "dncnn", "mlp", "espcn"] {
        let model = model(&format!("{{name: {name}}}"));
        let weights = weights(&model, 7);
        let mut planted = 0;
        for (name, tensor) in &weights {
            let size = tensor.size();
            if size.len() == 4 && size[0] > 8 {
                zero(&weights, name, 0, &[1, 3, 6]);
                planted += 1;
            }
        }
        let shrunk = shrink(&model, &weights).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let fewer = shrunk.model.parameter_count() < model.parameter_count();
        assert!(fewer || planted == 0, "{name}: {planted} layers with zeros, nothing removed");
    }
}

#[test]
fn a_run_is_shrunk_evaluated_trained_further_and_exported() {
    let home = tempfile::tempdir().expect("a folder");
    let path = |name: &str| home.path().join(name).display().to_string();
    let config = write_config(
        home.path(),
        "
model: {name: small-cnn, args: {channels: 1, size: 16, classes: 10, width: 8}}
task: classification
data: {train: {shapes: {count: 600, size: 16}}, validation: {fraction: 0.2}, batch_size: 50}
penalty: {l2: 1.0e-4, groups: [{match: '*.bn.weight', l1: 0.1}]}
optimizer: {sgd: {lr: 0.05, momentum: 0.9}}
train: {epochs: 3}
",
    );
    let (whole, small) = (path("run"), path("run-small"));
    succeeds(&["train", &config, "--output", &whole, "--quiet"]);
    let json = |args: &[&str]| -> Value { serde_json::from_str(&succeeds(args)).expect("JSON") };
    let report = json(&["shrink", &whole, "--checkpoint", "last", "--json"]);
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN);
    assert!(number("/after/multiply_adds") < number("/before/multiply_adds"), "{report}");
    assert!(number("/largest_difference") <= 1e-5 * number("/largest_output").max(1.0), "{report}");

    let loss = |run: &str| {
        json(&["eval", run, "--checkpoint", "last", "--json"])["scores"]["loss"].as_f64().expect("a loss")
    };
    assert!((loss(&whole) - loss(&small)).abs() < 1e-5);
    succeeds(&["export", &small, "--to", "torchscript", "-o", &path("small.pt")]);
    succeeds(&["train", &small, "--set", "train.epochs=4", "--resume", "--quiet"]);

    let (code, _, message) = run(&["shrink", &whole]);
    assert!(code == 2 && message.contains("--force"), "{message}");
    let (code, _, message) = run(&["shrink", &whole, "-o", &whole, "--force"]);
    assert!(code == 2 && message.contains("replace the run itself"), "{message}");
}

#[test]
fn networks_that_are_used_in_parts_are_refused() {
    let home = tempfile::tempdir().expect("a folder");
    let config = write_config(
        home.path(),
        "
model: {name: vae, args: {channels: 1, size: 16}}
task: generation
data: {train: {shapes: {count: 40, size: 16}}, normalize: none, batch_size: 20}
optimizer: {adam: {lr: 1.0e-3}}
train: {epochs: 1}
",
    );
    let run_folder = home.path().join("run").display().to_string();
    succeeds(&["train", &config, "--output", &run_folder, "--quiet"]);
    let (code, _, message) = run(&["shrink", &run_folder]);
    assert!(code == 2 && message.contains("generation uses parts"), "{message}");
}
