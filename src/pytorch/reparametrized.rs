//! Plain weights out of those that `torch.nn.utils` takes apart: pruning, weight normalisation (Salimans and
//! Kingma, 2016) and spectral normalisation (Miyato et al., 2018), in their old forms (`weight_g`) and as
//! parametrizations (`parametrizations.weight.original0`).

use std::collections::HashMap;

use anyhow::Result;
use tch::{Kind, Tensor};

/// A weight that is the function of other tensors of the file.
pub struct Computed {
    /// As the module calls it without the parametrization: `conv1.weight`.
    pub name: String,
    pub tensor: Tensor,
    /// The tensors that it was computed from, by their places among the file's.
    pub from: Vec<usize>,
    /// Such as `weight_norm`.
    pub how: &'static str,
}

/// What can be computed exactly as PyTorch does in evaluation. `names` are the tensors' names after renaming.
pub fn plain(names: &[String], tensors: &[(String, Tensor)]) -> Result<Vec<Computed>> {
    let places: HashMap<&str, usize> =
        names.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
    let find = |name: &str| places.get(name).map(|&at| (at, &tensors[at].1));
    let mut computed = Vec::new();
    for name in names {
        let Some((whole, original)) = split(name) else { continue };
        if find(&whole).is_some() {
            continue;
        }
        // The other tensors, in the old form and in the new.
        let part = |old: &str, new: &str| match original {
            Form::Old => find(&format!("{whole}_{old}")),
            Form::New => {
                let (module, tensor) = whole.rsplit_once('.').unwrap_or(("", &whole));
                let dot = if module.is_empty() { "" } else { "." };
                find(&format!("{module}{dot}parametrizations.{tensor}.{new}"))
            }
        };
        let single = part("orig", "original");
        let found = match (part("g", "original0"), part("v", "original1"), single) {
            (Some(g), Some(v), None) => weight_norm(g.1, v.1)?.map(|w| (w, vec![g.0, v.0], "weight_norm")),
            (_, _, Some(orig)) => {
                let mask = part("mask", "");
                let (u, v) = (part("u", "0._u"), part("v", "0._v"));
                match (mask, u, v) {
                    (Some(mask), _, _) if mask.1.size() == orig.1.size() => {
                        let kept = mask.1.f_to_kind(orig.1.kind())?.f_mul(orig.1)?;
                        Some((kept, vec![orig.0, mask.0], "pruning"))
                    }
                    (None, Some(u), Some(v)) => spectral_norm(orig.1, u.1, v.1)?
                        .map(|weight| (weight, vec![orig.0, u.0, v.0], "spectral_norm")),
                    _ => None,
                }
            }
            _ => None,
        };
        if let Some((tensor, from, how)) = found {
            computed.push(Computed { name: whole, tensor, from, how });
        }
    }
    Ok(computed)
}

#[derive(Clone, Copy)]
enum Form {
    Old,
    New,
}

/// The plain name of what `name` is the first part of.
fn split(name: &str) -> Option<(String, Form)> {
    if let Some(whole) = name.strip_suffix("_orig").or_else(|| name.strip_suffix("_g")) {
        return Some((whole.to_owned(), Form::Old));
    }
    let (before, last) = name.rsplit_once('.')?;
    let (before, tensor) = before.rsplit_once('.')?;
    let module = before.strip_suffix("parametrizations")?;
    (["original", "original0"].contains(&last)).then(|| (format!("{module}{tensor}"), Form::New))
}

/// g·v/‖v‖, the norm over all dimensions but the one that `g` keeps, or over all.
fn weight_norm(g: &Tensor, v: &Tensor) -> Result<Option<Tensor>> {
    let (kept, full) = (g.size(), v.size());
    if kept.is_empty() {
        return Ok(Some(Tensor::f_internal_weight_norm(v, g, -1)?));
    }
    let ones = |dim: usize| (0..full.len()).all(|d| kept[d] == if d == dim { full[d] } else { 1 });
    let dim = (0..full.len()).filter(|_| kept.len() == full.len()).find(|&dim| ones(dim));
    let floating = g.kind() == v.kind() && v.is_floating_point();
    match dim.filter(|_| floating) {
        Some(dim) => Ok(Some(Tensor::f_internal_weight_norm(v, g, dim as i64)?)),
        None => Ok(None),
    }
}

/// W/σ with σ = uᵀWv, W as a matrix of its first dimension, of transposed convolutions of the second; None where
/// neither fits. Where both may, that counts which u and v are singular vectors of: power iteration has made one
/// of them of the other.
fn spectral_norm(weight: &Tensor, u: &Tensor, v: &Tensor) -> Result<Option<Tensor>> {
    if ![u, v].iter().all(|vector| vector.kind() == weight.kind()) || weight.kind() == Kind::Half {
        return Ok(None);
    }
    let mut fitting = Vec::new();
    for dim in 0..weight.dim().min(2) as i64 {
        let rows = weight.size()[dim as usize];
        let matrix = weight.f_transpose(0, dim)?.f_reshape([rows, -1])?;
        if u.size() == [rows] && v.size() == [matrix.size()[1]] {
            let likeness = cosine(u, &matrix.f_mv(v)?)?.max(cosine(v, &matrix.f_transpose(0, 1)?.f_mv(u)?)?);
            fitting.push((likeness, matrix));
        }
    }
    fitting.sort_by(|a, b| b.0.total_cmp(&a.0));
    let matrix = match fitting.as_slice() {
        [(_, matrix)] => matrix,
        [(first, matrix), (second, _)] if *first > 0.9 && *second < 0.9 * first => matrix,
        _ => return Ok(None),
    };
    let sigma = u.f_dot(&matrix.f_mv(v)?)?;
    Ok(Some(weight.f_div(&sigma)?))
}

/// |aᵀb|/(‖a‖·‖b‖); 0 where one is 0.
fn cosine(a: &Tensor, b: &Tensor) -> Result<f64> {
    let norms = a.f_norm()?.f_mul(&b.f_norm()?)?.f_double_value(&[])?;
    Ok(if norms > 0.0 { a.f_dot(b)?.f_double_value(&[])?.abs() / norms } else { 0.0 })
}

/// What names that no plain weight was made of say, and the cure in Python; empty where they say nothing.
pub fn explain(names: &[String]) -> Vec<String> {
    let has = |end: &str| names.iter().any(|name| name.ends_with(end));
    let holds = |part: &str| names.iter().any(|name| name.contains(part));
    let mut said = Vec::new();
    let mut say = |what: &str, cure: &str| {
        said.push(format!("{what}: in Python, {cure}, and save the state_dict again"))
    };
    if has("_orig") && has("_mask") {
        say(
            "`_orig` and `_mask` are torch.nn.utils.prune's",
            "prune.remove(module, 'weight') makes the weights plain",
        );
    } else if has("_orig") && has("_u") {
        say(
            "`_orig` and `_u` are spectral_norm's",
            "torch.nn.utils.remove_spectral_norm(module) makes the weights plain",
        );
    }
    if has("_g") && has("_v") {
        say(
            "`_g` and `_v` are weight_norm's",
            "torch.nn.utils.remove_weight_norm(module) makes the weights plain",
        );
    }
    if holds("parametrizations.") {
        say(
            "`parametrizations` are torch.nn.utils.parametrize's",
            "parametrize.remove_parametrizations(module, 'weight') makes the weights plain",
        );
    }
    if has("scale") && has("zero_point") || holds("_packed_params") {
        said.push(
            "`scale` and `zero_point` are a quantized network's: take the one it was made from".to_owned(),
        );
    }
    said
}
