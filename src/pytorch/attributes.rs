//! Whether a module that was pickled whole computes what the network does: its `eps`, `stride`, `padding` and
//! the like against the config's, layer by layer.

use std::collections::HashMap;

use serde_json::Value as Json;

use crate::nn::layers::TorchModule;
use crate::nn::model::{Model, Op};
use crate::pytorch::reader::modules::Module;

/// Arguments that the tensors' shapes tell, or that a module keeps elsewhere.
const SHAPES: [&str; 9] = [
    "in_channels",
    "out_channels",
    "in_features",
    "out_features",
    "num_features",
    "num_channels",
    "num_parameters",
    "normalized_shape",
    "bias",
];

/// One line for each difference. `place` gives the module of a layer (by the layer's path) whose tensors were
/// taken; layers without tensors are met under their own path behind `prefix`, where the module is of their
/// class.
pub fn differences(
    model: &Model,
    modules: &[Module],
    place: impl Fn(&str) -> Option<String>,
    prefix: &str,
) -> Vec<String> {
    let by_path: HashMap<&str, &Module> =
        modules.iter().map(|module| (module.path.as_str(), module)).collect();
    let mut lines = Vec::new();
    for leaf in model.root().leaves() {
        let Op::Layer(spec) = &leaf.op else { continue };
        if leaf.is_bare_parameter() {
            continue;
        }
        let twin = spec.layer().torch_module(&leaf.input);
        let has_tensors = !leaf.params().is_empty();
        let path = match has_tensors {
            true => place(&leaf.path),
            // A silent layer has no path of its own.
            false => (!leaf.label.starts_with('_')).then(|| format!("{prefix}{}", leaf.path)),
        };
        let Some(module) = path.and_then(|path| by_path.get(path.as_str()).copied()) else { continue };
        let class = module.class.rsplit('.').next().unwrap_or_default();
        let wanted = twin.class.trim_start_matches("nn.");
        let is_known = module.class.starts_with("torch.nn.modules.");
        let same_class = family(class) == family(wanted);
        if (!has_tensors && !same_class) || twin.definition.is_some() || wanted.starts_with("Dropout") {
            continue;
        }
        let name = if leaf.path.is_empty() { "the network" } else { &leaf.path };
        if is_known && !same_class {
            lines.push(format!("{name} is a {class} in the file, {wanted} in the config"));
            continue;
        }
        lines.extend(arguments(&twin, module).into_iter().map(|line| format!("{name} ({class}): {line}")));
    }
    lines
}

/// Classes with the same arithmetic.
fn family(class: &str) -> &str {
    match class {
        "BatchNorm1d" | "BatchNorm2d" | "BatchNorm3d" | "SyncBatchNorm" => "BatchNorm",
        "NonDynamicallyQuantizableLinear" => "Linear",
        _ => class,
    }
}

fn arguments(twin: &TorchModule, module: &Module) -> Vec<String> {
    let value = |name: &str| twin.args.iter().find(|arg| arg.name == name).map(|arg| literal(&arg.value));
    let mut lines = Vec::new();
    for arg in twin.args.iter().filter(|arg| !SHAPES.contains(&arg.name)) {
        let (Some(ours), Some(theirs)) = (value(arg.name), module.attributes.get(arg.name)) else { continue };
        let ours = match (arg.name, &ours) {
            // A pooling layer's stride is its kernel where none is given.
            ("stride", Json::Null) => value("kernel_size").unwrap_or(ours),
            ("align_corners", Json::Null) => Json::Bool(false),
            _ => ours,
        };
        let theirs =
            if arg.name == "align_corners" && theirs.is_null() { &Json::Bool(false) } else { theirs };
        let is_same = same(&ours, theirs)
            || (arg.name == "padding" && same(&sides(&ours, &value), &sides(theirs, &value)));
        if !is_same {
            lines.push(format!(
                "{} is {} in the file, {} in the config",
                arg.name,
                shown(theirs),
                shown(&ours)
            ));
        }
    }
    lines
}

/// Padding in numbers: `same` of an odd window is half of it, `valid` none.
fn sides(padding: &Json, value: &impl Fn(&str) -> Option<Json>) -> Json {
    let pair = |name: &str| match value(name) {
        Some(Json::Array(pair)) if pair.len() == 2 => Some([pair[0].as_i64()?, pair[1].as_i64()?]),
        Some(one) => Some([one.as_i64()?; 2]),
        None => None,
    };
    match padding.as_str() {
        Some("valid") => Json::from(0),
        Some("same") => match (pair("kernel_size"), pair("dilation")) {
            (Some(kernel), Some(dilation)) => {
                let both = [dilation[0] * (kernel[0] - 1), dilation[1] * (kernel[1] - 1)];
                if both.iter().all(|all| all % 2 == 0) {
                    Json::from(both.map(|all| all / 2).to_vec())
                } else {
                    padding.clone()
                }
            }
            _ => padding.clone(),
        },
        _ => padding.clone(),
    }
}

/// A number is the same as a tuple of it.
fn same(one: &Json, other: &Json) -> bool {
    match (one, other) {
        (Json::Array(one), Json::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Json::Array(all), single) | (single, Json::Array(all)) => all.iter().all(|one| same(one, single)),
        (Json::Number(one), Json::Number(other)) => {
            let (one, other) = (one.as_f64().unwrap_or(f64::NAN), other.as_f64().unwrap_or(f64::NAN));
            (one - other).abs() <= 1e-9 * one.abs().max(other.abs())
        }
        _ => one == other,
    }
}

/// A value as Python spells it.
fn shown(value: &Json) -> String {
    match value {
        Json::Null => "None".into(),
        Json::Bool(true) => "True".into(),
        Json::Bool(false) => "False".into(),
        Json::Array(values) => format!("({})", values.iter().map(shown).collect::<Vec<_>>().join(", ")),
        // 1e-5 says more than 0.00001.
        Json::Number(number) if number.is_f64() => format!("{:?}", number.as_f64().unwrap_or(f64::NAN)),
        _ => value.to_string(),
    }
}

/// What a [`TorchModule`] has as Python's text.
fn literal(text: &str) -> Json {
    match text {
        "None" => Json::Null,
        "True" => Json::Bool(true),
        "False" => Json::Bool(false),
        _ => match text.strip_prefix(['(', '[']).and_then(|text| text.strip_suffix([')', ']'])) {
            Some(parts) => parts.split(',').map(|part| literal(part.trim())).collect::<Vec<_>>().into(),
            None => serde_json::from_str(text).unwrap_or_else(|_| Json::from(text)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_tuples_of_them_are_one_and_same_padding_is_half_the_window() {
        assert!(same(&literal("(1, 1)"), &Json::from(1)) && !same(&literal("(1, 2)"), &Json::from(1)));
        assert!(same(&literal("1e-05"), &Json::from(0.00001)) && !same(&literal("0.001"), &Json::from(1e-5)));
        let value = |name: &str| (name == "kernel_size").then(|| Json::from(3)).or(Some(Json::from(2)));
        assert_eq!(sides(&Json::from("same"), &value), Json::from(vec![2, 2]));
        assert_eq!(sides(&Json::from("valid"), &value), Json::from(0));
    }
}
