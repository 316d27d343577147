//! Networks beside PyTorch twins: names, shapes, order, initial weights, outputs; and what a broken file says.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tikhonov::layers::ParamKind;
use tikhonov::model::{Model, ModelSpec, Summary};

use crate::common::python;

fn model(spec: Value) -> Model {
    let spec: ModelSpec = serde_json::from_value(spec).expect("a model spec");
    Model::from_spec(&spec).unwrap_or_else(|error| panic!("{error:#}"))
}

/// What `Model::from_spec` says about a model file with this text, after the file's name.
fn complaint(text: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("net.yaml");
    std::fs::write(&file, text).expect("the file is written");
    let spec: ModelSpec = serde_json::from_value(json!(file.to_str().expect("text"))).expect("a spec");
    let error = Model::from_spec(&spec).expect_err("the file is broken");
    assert_eq!(tikhonov::exit::code(&error), 2, "{error:#}");
    let text = format!("{error:#}");
    text.replace(&format!("{}:", file.display()), "")
}

#[test]
fn shipped_models_have_the_published_parameter_counts() {
    for (name, count) in [
        ("resnet18-imagenet", 11_689_512),
        ("resnet18", 11_173_962),
        ("resnet20", 269_722),
        ("dncnn", 556_032),
        ("lenet", 61_706),
        ("mlp", 269_322),
        ("linear", 2),
    ] {
        assert_eq!(model(json!(name)).parameter_count(), count, "{name}");
    }
}
