//! TorchScript archives: which attributes of a class are parameters and buffers, read from the class
//! headers in `code/` as text. The code itself is never run.

use std::collections::HashMap;

use anyhow::Result;

use super::source::{Budget, Source};
use super::zip::Archive;

/// What `state_dict()` lists of a class, in its order.
#[derive(Debug, Default)]
pub struct Class {
    pub parameters: Vec<String>,
    pub buffers: Vec<String>,
}

/// By full class name, such as `__torch__.torch.nn.modules.conv.Conv2d`.
pub type Classes = HashMap<String, Class>;

pub(super) fn classes(archive: &Archive, prefix: &str, source: &Source, budget: &Budget) -> Result<Classes> {
    let mut classes = Classes::new();
    let folder = format!("{prefix}code/");
    for entry in &archive.entries {
        let Some(module) = entry.name.strip_prefix(&folder).and_then(|name| name.strip_suffix(".py")) else {
            continue;
        };
        let module = module.replace('/', ".");
        let code = entry.read(source, budget)?;
        let mut class: Option<String> = None;
        for line in String::from_utf8_lossy(&code).lines() {
            if let Some(head) = line.strip_prefix("class ") {
                class = head.split_once('(').map(|(name, _)| format!("{module}.{name}"));
            }
            let Some(class) = &class else { continue };
            let list = |key: &str| {
                let rest = line.strip_prefix("  ")?.strip_prefix(key)?.strip_prefix(" = [")?;
                Some(rest.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>())
            };
            if let Some(names) = list("__parameters__") {
                budget.charge(64 * names.len() as u64 + class.len() as u64 + 256)?;
                classes.entry(class.clone()).or_default().parameters = names;
            } else if let Some(names) = list("__buffers__") {
                budget.charge(64 * names.len() as u64 + class.len() as u64 + 256)?;
                classes.entry(class.clone()).or_default().buffers = names;
            }
        }
    }
    Ok(classes)
}
