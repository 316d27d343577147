//! Which of the shipped networks a file's weights are of, by their names and shapes.

use anyhow::Result;
use serde_json::{Map, json};

use super::initial_weights::head_that_differs;
use crate::nn::layers::ParamKind;
use crate::nn::model::{Model, ModelSource, ModelSpec, Patterns, family};
use crate::pytorch::name_matching::{KeyMatch, Named, match_keys};
use crate::pytorch::reparametrized;
use crate::pytorch::weights::Weights;
use crate::util::exit_code::{ExitCode, fail};

/// What a file may hold beside the network's own tensors: heads for training alone, a criterion's weights, the
/// count of an average.
const BESIDE: [&str; 5] = ["aux*", "AuxLogits*", "criterion*", "n_averaged", "*.n_averaged"];

/// A shipped network that the weights fit, but for the number of outputs.
#[derive(Debug)]
pub struct Recognized {
    pub name: String,
    /// Channels of the pictures that it takes, 1 or 3.
    pub channels: i64,
    /// How many tensors of the network the file has.
    pub tensors: usize,
    /// Outputs in the file.
    pub outputs: i64,
    /// Patterns of the file's names that the network has not.
    pub ignore: Vec<String>,
    /// Other networks that fit as well.
    pub others: Vec<String>,
}

/// Exit 4, with the nearest network, where the weights are of none.
pub fn recognize(weights: &Weights) -> Result<Recognized> {
    let names: Vec<String> = weights.tensors.iter().map(|(name, _)| name.clone()).collect();
    let computed = reparametrized::plain(&names, &weights.tensors)?;
    let mut found: Vec<(String, Vec<i64>)> =
        weights.tensors.iter().map(|(name, tensor)| (name.clone(), tensor.size())).collect();
    // The tensors that others are computed from are no part of the network.
    let spent: Vec<usize> = computed.iter().flat_map(|one| one.from.iter().copied()).collect();
    found = (0..).zip(found).filter(|(at, _)| !spent.contains(at)).map(|(_, one)| one).collect();
    found.extend(computed.iter().map(|one| (one.name.clone(), one.tensor.size())));
    let found: Vec<Named> = found.iter().map(|(name, shape)| (name.as_str(), &shape[..])).collect();
    let first = found.iter().find(|(_, shape)| shape.len() == 4).map(|(_, shape)| shape[1]);
    let channels = first.filter(|channels| *channels == 1).unwrap_or(3);

    let mut fitting: Vec<Recognized> = Vec::new();
    let mut nearest: Option<(usize, usize, String)> = None;
    for (_, name) in family::names() {
        let Some(model) = shipped(&name, channels) else { continue };
        let wanted: Vec<Named> = model.params().iter().map(|p| (p.name.as_str(), &p.shape[..])).collect();
        let fit = match_keys(&wanted, &found);
        if nearest.as_ref().is_none_or(|(most, ..)| fit.mapping.len() > *most) {
            nearest = Some((fit.mapping.len(), wanted.len(), name.clone()));
        }
        fitting.extend(fits(&model, &name, channels, &fit, &found));
    }
    // What needs the least to be left out, and then what has the head as it is.
    fitting.sort_by_key(|one| (one.ignore.len(), usize::MAX - one.tensors));
    let mut fitting = fitting.into_iter();
    match (fitting.next(), nearest) {
        (Some(best), _) => Ok(Recognized { others: fitting.map(|one| one.name).collect(), ..best }),
        (None, Some((most, all, name))) if most > 0 => Err(fail(
            ExitCode::Checkpoint,
            format!(
                "the {} is of none of the shipped networks; the nearest is `{name}`, of whose {all} tensors {most} fit. \
                 --model says which network it is: a name, or a .yaml of your own",
                weights.structure
            ),
        )),
        _ => Err(fail(
            ExitCode::Checkpoint,
            format!(
                "the {} is of none of the shipped networks; --model says which network it is: a .yaml of your own",
                weights.structure
            ),
        )),
    }
}

/// The shipped network `name`; None where it does not take such pictures.
fn shipped(name: &str, channels: i64) -> Option<Model> {
    let mut args = Map::new();
    if channels == 1 {
        args.insert("channels".into(), json!(channels));
    }
    let source = ModelSource::Shipped { name: name.to_owned(), args };
    let model = Model::from_spec(&ModelSpec { source, init_from: None }).ok()?;
    (model.input().len() == 3 && model.output().len() == 1).then_some(model)
}

fn fits(model: &Model, name: &str, channels: i64, fit: &KeyMatch, found: &[Named]) -> Option<Recognized> {
    let prefix = fit.stripped.as_deref().unwrap_or_default();
    let beside = |name: &str| {
        let plain = name.strip_prefix(prefix).unwrap_or(name);
        let full =
            |pattern: &str| if name == plain { pattern.to_owned() } else { format!("{prefix}{pattern}") };
        BESIDE
            .iter()
            .map(|pattern| full(pattern))
            .find(|p| Patterns::new(std::slice::from_ref(p)).matches(name))
    };
    let mut ignore: Vec<String> = Vec::new();
    for (name, _) in &fit.unexpected {
        let pattern = beside(name)?;
        if !ignore.contains(&pattern) {
            ignore.push(pattern);
        }
    }
    let head = head_that_differs(model.params(), fit);
    if !fit.missing.is_empty() || !(fit.mismatched.is_empty() || head.is_some()) {
        return None;
    }
    let last = model.params().iter().rev().find(|param| param.kind == ParamKind::Weight)?;
    let outputs = found.iter().find(|(name, _)| name.strip_prefix(prefix).unwrap_or(name) == last.name);
    Some(Recognized {
        name: name.to_owned(),
        channels,
        tensors: fit.mapping.len() + fit.zeros.len(),
        outputs: outputs.and_then(|(_, shape)| shape.first().copied()).unwrap_or_default(),
        ignore,
        others: Vec::new(),
    })
}
