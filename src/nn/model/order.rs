//! The order of PyTorch's `state_dict()`: a module's own tensors (those of its layer, bare parameters, buffers),
//! then those of its children one after the other, however the computation goes back and forth between them.

use std::collections::{HashMap, HashSet};

use crate::nn::layers::{Param, ParamKind};
use crate::util::yaml::{Invalid, nearest};

/// `params`, which are in the order of computation and say whether they are bare parameters, as PyTorch orders
/// them; `order` are names of siblings where they come otherwise. Those that it leaves out follow.
pub(super) fn arranged(mut params: Vec<(bool, Param)>, order: &[String]) -> Result<Vec<Param>, Invalid> {
    let parts = |param: &Param| param.name.split('.').map(str::to_owned).collect::<Vec<_>>();
    if !order.is_empty() {
        let known: HashSet<String> = params.iter().flat_map(|(_, param)| parts(param)).collect();
        if let Some((index, name)) = order.iter().enumerate().find(|(_, name)| !known.contains(*name)) {
            let hint = nearest(name, known.iter().map(String::as_str))
                .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            let message = format!("`{name}` is part of no tensor's name{hint}");
            return Err(Invalid::new(format!("order.{index}"), message));
        }
    }
    let prefixes = |name: &str| -> Vec<String> {
        name.match_indices('.').map(|(end, _)| name[..end].to_owned()).collect()
    };
    // Of each prefix its place among its siblings: by `order`, then as they come first.
    let mut places: HashMap<String, (usize, usize)> = HashMap::new();
    for (_, param) in &params {
        for prefix in prefixes(&param.name) {
            let own = prefix.rsplit('.').next().unwrap_or_default();
            let rank = order.iter().position(|name| name == own).unwrap_or(order.len());
            let next = places.len();
            places.entry(prefix).or_insert((rank + 3, next));
        }
    }
    params.sort_by_cached_key(|(is_bare, param)| {
        let children = prefixes(&param.name).into_iter().map(|prefix| places[&prefix]);
        let own = if param.kind == ParamKind::Buffer { 2 } else { usize::from(*is_bare) };
        children.chain([(own, 0)]).collect::<Vec<_>>()
    });
    Ok(params.into_iter().map(|(_, param)| param).collect())
}
