//! The order of PyTorch's `state_dict()`: a module's own tensors (those of its layer, bare parameters, buffers),
//! then those of its children one after the other, however the computation goes back and forth between them.

use std::collections::HashMap;

use crate::nn::layers::{Param, ParamKind};
use crate::util::yaml::{Invalid, nearest};

/// `params`, which are in the order of computation and say whether they are bare parameters, as PyTorch orders
/// them; `order` are the outermost names, where they come otherwise. Those that it leaves out follow.
pub(super) fn arranged(mut params: Vec<(bool, Param)>, order: &[String]) -> Result<Vec<Param>, Invalid> {
    let head = |param: &Param| param.name.split('.').next().unwrap_or_default().to_owned();
    for (index, name) in order.iter().enumerate() {
        let heads: Vec<String> = params.iter().map(|(_, param)| head(param)).collect();
        if !heads.contains(name) {
            let hint = nearest(name, heads.iter().map(String::as_str))
                .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            let message = format!("no tensor's name begins with `{name}`{hint}");
            return Err(Invalid::new(format!("order.{index}"), message));
        }
    }
    params
        .sort_by_key(|(_, param)| order.iter().position(|name| head(param) == *name).unwrap_or(order.len()));
    let prefixes = |name: &str| -> Vec<String> {
        name.match_indices('.').map(|(end, _)| name[..end].to_owned()).collect()
    };
    let mut places: HashMap<String, usize> = HashMap::new();
    for (_, param) in &params {
        for prefix in prefixes(&param.name) {
            let next = places.len();
            places.entry(prefix).or_insert(next);
        }
    }
    params.sort_by_cached_key(|(is_bare, param)| {
        let children = prefixes(&param.name).into_iter().map(|prefix| places[&prefix] + 3);
        let own = if param.kind == ParamKind::Buffer { 2 } else { usize::from(*is_bare) };
        children.chain([own]).collect::<Vec<_>>()
    });
    Ok(params.into_iter().map(|(_, param)| param).collect())
}
