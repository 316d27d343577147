//! Hugging Face's sharded models: an index (`model.safetensors.index.json`) and the files that it names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value as Json;

use super::named_weights::{Part, Unreadable, Weights};
use super::single_file;

const INDEX: &str = ".index.json";

/// The index at `path`, or in the folder there: the safetensors one goes before the pickled one.
pub fn index(path: &Path) -> Option<PathBuf> {
    let is_index = |path: &Path| path.to_string_lossy().ends_with(INDEX) && path.is_file();
    if is_index(path) {
        return Some(path.to_owned());
    }
    let mut found: Vec<PathBuf> = std::fs::read_dir(path)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|p| is_index(p))
        .collect();
    found.sort_by_key(|path| (!path.to_string_lossy().contains("safetensors"), path.clone()));
    (!found.is_empty()).then(|| found.remove(0))
}

/// The one file of weights in a folder of Hugging Face's.
pub fn single(folder: &Path) -> Option<PathBuf> {
    const NAMES: [&str; 3] =
        ["model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin"];
    NAMES.iter().map(|name| folder.join(name)).find(|file| file.is_file())
}

/// All tensors that the index lists, from the files that it says, in its order.
pub fn read(index: &Path, part: &Part) -> Result<(Weights, Vec<Unreadable>)> {
    if let Some(key) = part.keys.first() {
        bail!("a sharded model has no keys such as `{key}`: leave the key out");
    }
    let text = std::fs::read(index)?;
    let json: Json = serde_json::from_slice(&text).context("the index")?;
    let map = json["weight_map"].as_object().context("the index has no `weight_map`")?;
    let folder = index.parent().unwrap_or(Path::new(""));
    let mut wanted: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, file) in map {
        let file = file.as_str().with_context(|| format!("`{name}`: its file is no text"))?;
        // Nothing outside the model's own folder.
        if Path::new(file).components().count() != 1 || file == ".." {
            bail!("`{name}`: {file:?} is no file beside the index");
        }
        wanted.entry(file).or_default().push(name);
    }
    let mut found = BTreeMap::new();
    let mut widened = Vec::new();
    let mut unreadable = Vec::new();
    let mut container = None;
    for (file, names) in &wanted {
        let (shard, broken) = single_file::read(&folder.join(file), &Part::default())
            .with_context(|| format!("shard {file}"))?;
        container.get_or_insert(shard.container);
        let broken: Vec<_> =
            broken.into_iter().filter(|tensor| names.contains(&tensor.name.as_str())).collect();
        let mut tensors: BTreeMap<_, _> = shard.tensors.into_iter().collect();
        for &name in names {
            match tensors.remove(name) {
                Some(tensor) => drop(found.insert(name, tensor)),
                None if broken.iter().any(|tensor| tensor.name == name) => {}
                None => bail!("shard {file} lacks `{name}`, which the index says is in it"),
            }
        }
        if let Some(name) = tensors.keys().next() {
            bail!(
                "shard {file} holds `{name}`, which the index does not list there: index and shards are not of one model"
            );
        }
        widened.extend(shard.widened);
        unreadable.extend(broken);
    }
    let container = container.context("the index lists no tensor")?;
    let tensors = map.keys().filter_map(|name| Some((name.clone(), found.remove(name.as_str())?))).collect();
    let structure = format!("named tensors of {} shards", wanted.len());
    Ok((Weights { widened, ..Weights::new(container, structure, tensors) }, unreadable))
}
