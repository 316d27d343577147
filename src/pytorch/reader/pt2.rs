//! The weights of a `.pt2` archive (`torch.export.save`): raw bytes and a JSON table of what they are (PT2
//! Archive Spec). The program beside them is not read.

use anyhow::{Context, Result, bail};
use serde_json::Value as Json;

use super::dtype::Dtype;
use super::globals::inside;
use super::heap::{Object, Storage, TensorInfo, Value};
use super::pickle::Unpickler;
use super::source::Source;
use super::zip::Archive;

/// The table of the weights, behind the archive's root folder.
pub(super) const CONFIG: &str = "data/weights/model_weights_config.json";
/// Before PyTorch 2.9: a `torch.save` file inside.
pub(super) const BEFORE: &str = "serialized_state_dict.pt";

/// The state_dict of the archive whose entries begin with `prefix`, and the entry of each of its storages.
pub(super) fn read(
    archive: &Archive,
    prefix: &str,
    source: &Source,
    machine: &mut Unpickler,
) -> Result<(Value, Vec<Option<usize>>)> {
    let entry = archive.entry(&format!("{prefix}{CONFIG}")).context("no table of the weights")?;
    // What a JSON tree takes beside its text.
    machine.budget.charge(entry.size.saturating_mul(8))?;
    let table: Json = serde_json::from_slice(&entry.read(source, machine.budget)?)
        .with_context(|| format!("entry {:?}", entry.name))?;
    let table =
        table["config"].as_object().with_context(|| format!("entry {:?}: no `config`", entry.name))?;
    let mut entries: Vec<Option<usize>> = Vec::new();
    let mut items = Vec::new();
    for (name, row) in table {
        let tensor =
            tensor(archive, prefix, row, machine, &mut entries).with_context(|| format!("`{name}`"))?;
        machine.budget.charge(size_of::<TensorInfo>() as u64 + 16 * tensor.shape.len() as u64 + 96)?;
        let value = machine.allocate(Object::Tensor(Box::new(tensor)), 0)?;
        let key = machine.allocate(Object::Str(name.as_str().into()), name.len() as u64)?;
        items.push((key, value));
    }
    let payload = 32 * items.len() as u64;
    Ok((machine.allocate(Object::Dict(items), payload)?, entries))
}

fn tensor(
    archive: &Archive,
    prefix: &str,
    row: &Json,
    machine: &mut Unpickler,
    entries: &mut Vec<Option<usize>>,
) -> Result<TensorInfo> {
    if row["use_pickle"] == true {
        bail!("is pickled, not plain bytes: save it as a plain tensor");
    }
    let meta = &row["tensor_meta"];
    let dtype = meta["dtype"].as_u64().and_then(dtype).context("its dtype is not known")?;
    let number = |value: &Json| {
        let number = value["as_int"].as_i64().filter(|number| *number >= 0);
        number.context("a size that is no number")
    };
    let numbers = |key: &str| {
        let list =
            meta[key].as_array().filter(|list| list.len() <= 64).with_context(|| format!("no `{key}`"))?;
        list.iter().map(number).collect::<Result<Vec<i64>>>()
    };
    let (shape, strides) = (numbers("sizes")?, numbers("strides")?);
    let offset = number(&meta["storage_offset"])? as u64;
    let path = row["path_name"].as_str().context("no `path_name`")?;
    let place = archive.index(&format!("{prefix}data/weights/{path}"));
    let place = place.with_context(|| format!("entry `data/weights/{path}` is missing"))?;
    let bytes = archive.entries[place].size;
    inside(dtype, &shape, &strides, offset, bytes / dtype.size())?;
    // Tied weights are one entry.
    let storage = match entries.iter().position(|entry| *entry == Some(place)) {
        Some(known) => known,
        None => {
            machine.budget.charge(2 * (path.len() as u64 + 96))?;
            machine.storages.push(Storage { key: path.into(), bytes, unit: 1, inline: None });
            entries.push(Some(place));
            entries.len() - 1
        }
    };
    let storage = u32::try_from(storage)?;
    Ok(TensorInfo { storage, dtype, offset, shape, strides, conj: false, neg: false })
}

/// By the numbers of torch/_export/serde/schema.py.
pub(crate) fn dtype(number: u64) -> Option<Dtype> {
    Some(match number {
        1 => Dtype::U8,
        2 => Dtype::I8,
        3 => Dtype::I16,
        4 => Dtype::I32,
        5 => Dtype::I64,
        6 => Dtype::F16,
        7 => Dtype::F32,
        8 => Dtype::F64,
        9 => Dtype::C32,
        10 => Dtype::C64,
        11 => Dtype::C128,
        12 => Dtype::Bool,
        13 => Dtype::BF16,
        28 => Dtype::U16,
        29 => Dtype::F8E4M3,
        30 => Dtype::F8E5M2,
        31 => Dtype::F8E4M3Fnuz,
        32 => Dtype::F8E5M2Fnuz,
        _ => return None,
    })
}
