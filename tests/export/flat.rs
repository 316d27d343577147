//! A network as a flat list of ATen calls.

use std::collections::BTreeSet;

use serde_json::json;
use tch::{Device, Kind};
use tikhonov::nn::model::Model;
use tikhonov::pytorch::export::flat::{FlatGraph, FlatValue};
use tikhonov::pytorch::export::torchscript::Options;

use super::{NETWORKS, utf8};
use crate::common::python;
use crate::model::{LAYERS, inline, model};

fn flat(model: &Model) -> anyhow::Result<FlatGraph> {
    let network = model.build(Device::Cpu, Kind::Float).expect("it builds");
    FlatGraph::of(model, &network, &Options::default())
}

fn targets(graph: &FlatGraph) -> Vec<String> {
    graph.nodes.iter().map(|node| node.target()).collect()
}

#[test]
fn every_layer_and_every_shipped_model_is_a_flat_list_under_the_names_of_the_state_dict() {
    let layers = LAYERS.iter().map(|(shape, layers, _)| (*shape, *layers)).chain(NETWORKS.iter().copied());
    let models = layers.map(|(shape, layers)| inline(shape, layers));
    // A family is no network before one of its variants is named.
    let shipped = tikhonov::util::builtin::models()
        .filter_map(|name| Model::from_spec(&serde_json::from_value(json!(name)).expect("a spec")).ok());
    for model in models.chain(shipped) {
        let name = format!("{} {:?}", model.name(), model.input());
        let graph = flat(&model).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let used: BTreeSet<&str> = graph.nodes.iter().flat_map(|node| node.weights()).collect();
        let runs = |name: &str| !name.ends_with("num_batches_tracked") && !model.is_auxiliary(name);
        for param in model.params().iter().filter(|param| runs(&param.name)) {
            assert!(used.contains(param.name.as_str()), "{name}: {} in {:?}", param.name, targets(&graph));
        }
        assert!(graph.constants.is_empty(), "{name}: {:?}", graph.constants);
        let output = &graph.info(graph.output).expect("the output").shape;
        assert_eq!(*output, [&[2], model.output()].concat(), "{name}");
    }
}

#[test]
fn the_sides_that_a_network_takes_are_known() {
    let sides = |spec| {
        let model = model(spec);
        flat(&model).expect("a flat list").sides.map(|sides| (sides.multiple, sides.least))
    };
    assert_eq!(sides(json!("resnet20")), Some((1, [1, 1])));
    assert_eq!(sides(json!("dncnn")), Some((1, [1, 1])));
    assert_eq!(sides(json!("unet")), Some((8, [8, 8])));
    assert_eq!(sides(json!("lenet")), None);
    let normed = json!({"input": [2, 6, 6], "layers": ["layer_norm"]});
    assert_eq!(sides(normed), None);
}

/// Programs of Python's, and the calls that are left of them, or a part of the refusal.
const PROGRAMS: &[(&str, Result<&[&str], &str>)] = &[
    ("if x.dim() == 4:\n            x = F.relu(x)\n        return self.conv(x)", Ok(&["relu", "conv2d"])),
    (
        "return F.interpolate(self.conv(x), size=x.shape[2:], mode='nearest')",
        Ok(&["conv2d", "upsample_nearest2d.vec"]),
    ),
    ("x = self.conv(x)\n        return x.view(x.size(0), -1)", Ok(&["conv2d", "view"])),
    (
        "parts = [x]\n        for i in range(2):\n            parts.append(F.relu(self.conv(x), inplace=True))\n        return torch.cat(parts, 1)",
        Ok(&["conv2d", "relu", "conv2d", "relu", "cat"]),
    ),
    ("return self.conv(x) + torch.arange(3.0)[0]", Ok(&["conv2d", "add.Tensor"])),
    ("return F.dropout(self.conv(x), 0.5, self.training)", Ok(&["conv2d", "dropout"])),
    (
        "y = self.conv(x)\n        return F.dropout(y.flatten(1), 0.5, self.training, inplace=True) + y.flatten(1)",
        Ok(&["conv2d", "flatten.using_ints", "dropout", "flatten.using_ints", "add.Tensor"]),
    ),
    (
        "torch._assert(x.dim() == 4, f'wanted four dimensions, got {x.dim()}')\n        return self.conv(x)",
        Ok(&["conv2d"]),
    ),
    (
        "if x.size(0) > 5:\n            x = F.relu(x)\n        return self.conv(x)",
        Err("an `if` that depends on the size of its input"),
    ),
    (
        "if bool(x.sum() > 0):\n            x = F.relu(x)\n        return self.conv(x)",
        Err("an `if` that depends on the values of its input by aten::Bool"),
    ),
    ("return self.conv(x) + torch.rand(1)", Err("aten::rand, which draws random numbers")),
    (
        "x = self.conv(x)\n        x[:, 0].mul_(2.0)\n        return x",
        Err("aten::mul_.Scalar changes a tensor that shares its memory"),
    ),
];

#[test]
fn a_foreign_program_becomes_a_flat_list_or_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |index: usize| folder.path().join(format!("{index}.pt"));
    let mut script = String::from("import sys, importlib, torch\nsys.dont_write_bytecode = True\n");
    for (index, (body, _)) in PROGRAMS.iter().enumerate() {
        let source = format!(
            "import torch\nimport torch.nn.functional as F\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n        \
             self.conv = torch.nn.Conv2d(2, 2, 3, padding=1)\n    def forward(self, x):\n        {body}\n"
        );
        std::fs::write(folder.path().join(format!("net{index}.py")), source).expect("the source is written");
        script += &format!(
            "sys.path.insert(0, {:?})\ntorch.jit.script(importlib.import_module('net{index}').Net()).save({:?})\n",
            utf8(folder.path()),
            utf8(&file(index))
        );
    }
    python(&script);
    for (index, (body, expected)) in PROGRAMS.iter().enumerate() {
        let model = model(json!({"torchscript": utf8(&file(index)), "input": [2, 6, 6]}));
        match (flat(&model), expected) {
            (Ok(graph), Ok(wanted)) => assert_eq!(targets(&graph), *wanted, "{body}"),
            (Err(error), Err(wanted)) => {
                let text = format!("{error:#}");
                assert!(text.contains(wanted), "{body}: {text}");
                assert_eq!(tikhonov::util::exit_code::code(&error), 2);
            }
            (got, _) => panic!("{body}: {:?}", got.map(|graph| targets(&graph))),
        }
    }
}

#[test]
fn a_call_knows_the_module_that_makes_it() {
    let graph = flat(&model(json!("resnet20"))).expect("a flat list");
    let paths: Vec<_> = graph.nodes.iter().take(6).map(|node| format!("{} {}", node.path, node.op)).collect();
    let wanted = [
        "conv1 conv2d",
        "bn1 batch_norm",
        " relu",
        "layer1.0.conv1 conv2d",
        "layer1.0.bn1 batch_norm",
        "layer1.0 relu",
    ];
    assert_eq!(paths, wanted);
}

#[test]
fn sizes_of_the_input_stay_sizes_and_all_others_are_numbers() {
    let graph = flat(&inline(&[12], "[reshape: {shape: [3, 2, 2]}]")).expect("a flat list");
    let [node] = graph.nodes.as_slice() else { panic!("{:?}", targets(&graph)) };
    let batch = FlatValue::Size(graph.input, 0);
    let shape = FlatValue::List(vec![batch, FlatValue::Int(3), FlatValue::Int(2), FlatValue::Int(2)]);
    assert_eq!(node.arg("shape"), Some(&shape));
}
