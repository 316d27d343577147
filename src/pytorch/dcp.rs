//! The folders of `torch.distributed.checkpoint` (DCP): `.metadata`, a pickle that says where each piece of
//! each tensor is, and `.distcp` files of pieces that `torch.save` wrote.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};

use anyhow::{Context, Result, bail, ensure};
use tch::{Device, Tensor};

use super::named_weights::{Part, Unreadable, Weights};
use super::single_file::tensors;
use crate::pytorch::reader::heap::{ObjectArena, Value};
use crate::pytorch::reader::source::{Budget, Source};
use crate::pytorch::reader::{Container, ROOT, read_pickle, read_source};

const METADATA: &str = ".metadata";

/// The folder that `path` names, itself or by a file in it; None where it is none of DCP's.
pub fn folder(path: &Path) -> Option<&Path> {
    let is_part = path.extension().is_some_and(|extension| extension == "distcp") || path.ends_with(METADATA);
    let folder = if is_part { path.parent()? } else { path };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    folder.join(METADATA).is_file().then_some(folder)
}

/// Where a piece of a tensor is.
struct Piece {
    /// Its first element's place in the tensor.
    at: Vec<i64>,
    file: String,
    start: u64,
    len: u64,
}

/// A tensor of the folder.
struct Entry {
    /// The keys that lead to it.
    path: Vec<String>,
    size: Vec<i64>,
    pieces: Vec<Piece>,
}

/// Tensors by their full names.
type Named = Vec<(String, Entry)>;

/// The tensors of the largest group by their first key, optimisers left out, or of the one that `part` names.
pub fn read(folder: &Path, part: &Part) -> Result<(Weights, Vec<Unreadable>)> {
    let (heap, root) = read_pickle(&folder.join(METADATA)).context(METADATA)?;
    let (entries, objects) = entries(&heap, root).context(METADATA)?;
    let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, entry) in &entries {
        *groups.entry(entry.group()).or_default() += 1;
    }
    let name = |group: &str| if group.is_empty() { ROOT.to_owned() } else { group.to_owned() };
    let key = match part.keys.as_slice() {
        [] => {
            let weights = groups.iter().filter(|(group, _)| !group.contains("optim"));
            let largest = weights.max_by_key(|(_, count)| **count).context("it holds no tensors")?;
            name(largest.0)
        }
        [key] => key.clone(),
        _ => bail!("one key at a time for a DCP folder"),
    };
    let wanted = if key == ROOT { "" } else { key.as_str() };
    let known = groups.keys().map(|group| format!("`{}`", name(group))).collect::<Vec<_>>().join(", ");
    ensure!(groups.contains_key(wanted), "no key `{key}`; there are {known}");
    let mut files = HashMap::new();
    let mut found = Vec::new();
    for (full, entry) in entries.iter().filter(|(_, entry)| entry.group() == wanted) {
        let short = full.get(wanted.len() + usize::from(!wanted.is_empty())..).unwrap_or(full).to_owned();
        let tensor = entry.read(folder, &mut files).with_context(|| format!("`{full}`"))?;
        found.push((short, tensor));
    }
    let others = (groups.iter())
        .filter(|(group, _)| **group != wanted && !group.contains("optim"))
        .map(|(group, count)| (name(group), *count));
    let under = if wanted.is_empty() { String::new() } else { format!(" under `{wanted}`") };
    let weights = Weights {
        key: wanted.to_owned(),
        others: others.collect(),
        metadata: objects.into_iter().map(|name| (name, "<an object>".into())).collect(),
        ..Weights::new(Container::Distributed, format!("state_dict{under}"), found)
    };
    Ok((weights, Vec::new()))
}

impl Entry {
    /// The first of several keys.
    fn group(&self) -> &str {
        if self.path.len() > 1 { &self.path[0] } else { "" }
    }

    fn read(&self, folder: &Path, files: &mut HashMap<String, Source>) -> Result<Tensor> {
        let mut pieces = Vec::new();
        for piece in &self.pieces {
            pieces.push((piece, piece.read(folder, files)?));
        }
        let numel = |size: &[i64]| size.iter().try_fold(1i64, |n, &d| n.checked_mul(d));
        let total: i64 = pieces.iter().map(|(_, tensor)| tensor.numel() as i64).sum();
        ensure!(
            numel(&self.size) == Some(total),
            "its pieces hold {total} values, its size is {:?}",
            self.size
        );
        let [(first, tensor), ..] = pieces.as_slice() else { bail!("no piece of it is in the folder") };
        if first.at.iter().all(|&at| at == 0) && tensor.size() == self.size {
            return Ok(tensor.shallow_clone());
        }
        let whole = Tensor::f_zeros(&self.size, (tensor.kind(), Device::Cpu))?;
        for (piece, tensor) in &pieces {
            let mut window = whole.shallow_clone();
            let shape = tensor.size();
            ensure!(
                shape.len() == self.size.len() && piece.at.len() == shape.len(),
                "a piece of {shape:?} at {:?} in {:?}",
                piece.at,
                self.size
            );
            for (dim, (&at, &len)) in piece.at.iter().zip(&shape).enumerate() {
                window = window.f_narrow(dim as i64, at, len)?;
            }
            window.f_copy_(tensor)?;
        }
        Ok(whole)
    }
}

impl Piece {
    fn read(&self, folder: &Path, files: &mut HashMap<String, Source>) -> Result<Tensor> {
        let context = || format!("{} at byte {}", self.file, self.start);
        let is_plain = Path::new(&self.file).components().all(|part| matches!(part, Component::Normal(_)));
        ensure!(is_plain, "{:?} is no file in the folder", self.file);
        if !files.contains_key(&self.file) {
            files.insert(self.file.clone(), Source::open(&folder.join(&self.file)).with_context(context)?);
        }
        let source = &files[&self.file];
        let bytes =
            source.read(self.start, self.len, &Budget::for_file(source.size())).with_context(context)?;
        let file = read_source(Source::Bytes(bytes)).with_context(context)?;
        let found = file.find(None).with_context(context)?;
        let mut tensors = tensors(&file, &found.tensors).with_context(context)?;
        ensure!(tensors.len() == 1, "{} holds {} tensors, not one", context(), tensors.len());
        Ok(tensors.remove(0).1)
    }
}

/// The tensors by their full names, in the folder's order, and the names of what is no tensor.
fn entries(heap: &ObjectArena, root: Value) -> Result<(Named, Vec<String>)> {
    let dict = |key: &str| {
        let value = heap.attribute(root, key).with_context(|| format!("no `{key}`"))?;
        anyhow::Ok(heap.items(value).unwrap_or_default())
    };
    let mut paths: HashMap<&str, Vec<String>> = HashMap::new();
    for &(name, path) in dict("planner_data")? {
        if let (Some(name), Some(keys)) = (heap.str(name), heap.sequence(path)) {
            paths.insert(name, keys.iter().map(|&key| heap.key(key).into_owned()).collect());
        }
    }
    let mut pieces: HashMap<&str, Vec<Piece>> = HashMap::new();
    for &(index, info) in dict("storage_data")? {
        let name =
            heap.attribute(index, "fqn").and_then(|name| heap.str(name)).context("a piece without a name")?;
        let at = heap.attribute(index, "offset").and_then(|at| numbers(heap, at)).unwrap_or_default();
        let transformed = heap.attribute(info, "transform_descriptors");
        ensure!(
            matches!(transformed, None | Some(Value::None)),
            "`{name}` is compressed: save it without extensions"
        );
        let file = heap.attribute(info, "relative_path").and_then(|file| heap.str(file));
        let number = |key: &str| match heap.attribute(info, key) {
            Some(Value::Int(number)) => u64::try_from(number).ok(),
            _ => None,
        };
        let (Some(file), Some(start), Some(len)) = (file, number("offset"), number("length")) else {
            bail!("`{name}`: its file, offset or length is missing");
        };
        pieces.entry(name).or_default().push(Piece { at, file: file.to_owned(), start, len });
    }
    let (mut tensors, mut objects) = (Vec::new(), Vec::new());
    for &(name, about) in dict("state_dict_metadata")? {
        let name = heap.str(name).context("a name that is no text")?;
        let size = heap.attribute(about, "size").and_then(|size| numbers(heap, size));
        match size {
            Some(size) => {
                let path = paths.remove(name).unwrap_or_default();
                let pieces = pieces.remove(name).unwrap_or_default();
                tensors.push((name.to_owned(), Entry { path, size, pieces }));
            }
            None => objects.push(name.to_owned()),
        }
    }
    Ok((tensors, objects))
}

fn numbers(heap: &ObjectArena, value: Value) -> Option<Vec<i64>> {
    let values = heap.sequence(value).filter(|values| values.len() <= 64)?;
    values
        .iter()
        .map(|value| if let Value::Int(n) = value { Some(*n).filter(|n| *n >= 0) } else { None })
        .collect()
}
