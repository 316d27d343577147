//! What an archive of a program says beside its weights, for a look into the file.

use anyhow::{Context, Result};
use serde_json::{Map, Value as Json};

use super::{Places, PythonFile};

impl PythonFile {
    /// Of `torch.export.save` the input's shape, with `s0` and the like for what is free, and the number of
    /// calls; of both kinds of programs what `extra/metadata.json` says, as `export` writes it.
    pub fn program(&self) -> Result<Map<String, Json>> {
        let mut known = Map::new();
        let Places::Zip { archive, .. } = &self.places else { return Ok(known) };
        let read = |inside: &str, end: &str| -> Result<Option<Json>> {
            let fits = |name: &str| {
                name.split_once('/').is_some_and(|(_, rest)| rest.starts_with(inside) && rest.ends_with(end))
            };
            let Some(entry) = archive.entries.iter().find(|entry| fits(&entry.name)) else { return Ok(None) };
            // What a JSON tree takes beside its text.
            self.budget.charge(entry.size.saturating_mul(8))?;
            let text = entry.read(&self.source, &self.budget)?;
            serde_json::from_slice(&text).map(Some).with_context(|| format!("entry {:?}", entry.name))
        };
        if let Some(program) = read("models/", ".json")? {
            let graph = &program["graph_module"]["graph"];
            let specs = program["graph_module"]["signature"]["input_specs"].as_array();
            let name =
                |spec: &Json| spec["user_input"]["arg"]["as_tensor"]["name"].as_str().map(str::to_owned);
            for name in specs.into_iter().flatten().filter_map(name) {
                let sizes = graph["tensor_values"][&name]["sizes"].as_array();
                let sizes: Vec<_> = sizes.into_iter().flatten().map(extent).collect();
                known.insert(format!("input {name}"), sizes.join(" × ").into());
            }
            let calls = graph["nodes"].as_array().map_or(0, Vec::len);
            known.insert("calls".into(), calls.into());
        }
        if let Some(Json::Object(about)) = read("extra/", "metadata.json")? {
            known.extend(about);
        }
        Ok(known)
    }
}

/// `3`, `s0`, or `8*s1`.
fn extent(size: &Json) -> String {
    let Some(text) = size["as_expr"]["expr_str"].as_str() else { return size["as_int"].to_string() };
    let plain = text.replace(", positive=True, integer=True", "").replace("Symbol('", "").replace("')", "");
    let product = plain.strip_prefix("Mul(Integer(").and_then(|rest| rest.strip_suffix(')'));
    product
        .and_then(|rest| rest.split_once("), "))
        .map_or(plain.clone(), |(times, name)| format!("{times}*{name}"))
}
