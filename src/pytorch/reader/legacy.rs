//! The stream that `torch.save` wrote before PyTorch 1.6: five pickles (magic number, protocol, system,
//! object, storage keys) and the raw storages, each behind its element count.
//!
//! The stream has no checksum. What can be promised: it is complete (any truncation is an error), every
//! storage that the object names is there exactly once with the size the object declares, and every view lies
//! inside its storage. A bit flipped inside the raw numbers, a name or a shape cannot be seen.

use anyhow::{Context, Result, bail};

use super::heap::{Object, Value};
use super::pickle::Unpickler;
use super::source::{Input, Source};

/// 0x1950a86a20f9469cfc6c, as a pickle holds it: little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Where a storage's bytes lie: offset and length.
pub type Range = (u64, u64);

/// Runs the five pickles; returns the object and the place of each of the machine's storages.
pub fn read(source: &Source, machine: &mut Unpickler) -> Result<(Value, Vec<Range>)> {
    let budget = machine.budget;
    let mut input = Input::new(source, 0, budget);
    let magic = machine.run(&mut input).context("not a PyTorch file")?;
    match machine.heap.object(magic) {
        Some(Object::BigInt(bytes)) if **bytes == MAGIC => {}
        _ => bail!(
            "a pickle, but not one of torch.save: save the state_dict with torch.save(model.state_dict(), file)"
        ),
    }
    if machine.run(&mut input).context("the protocol version")? != Value::Int(1001) {
        bail!("a legacy file of another protocol than 1001");
    }
    let system = machine.run(&mut input).context("the system record")?;
    if machine.heap.get(system, "little_endian") != Some(Value::Bool(true)) {
        bail!("written on a big-endian machine: load and save it again with PyTorch there");
    }
    let object = machine.run(&mut input).context("the saved object")?;
    let keys = machine.run(&mut input).context("the list of storages")?;
    let keys = machine.heap.sequence(keys).context("the list of storages is no list")?;
    let count = machine.storages.iter().filter(|storage| storage.inline.is_none()).count();
    if keys.len() != count {
        bail!("the object names {count} storages, the list {}", keys.len());
    }

    budget.charge(machine.storages.len() as u64 * size_of::<Option<Range>>() as u64 * 2)?;
    // Those in the pickle itself have no place in the stream.
    let mut ranges: Vec<Option<Range>> =
        machine.storages.iter().map(|storage| storage.inline.map(|_| (0, 0))).collect();
    for &key in keys {
        let key = machine.heap.str(key).context("a storage key that is no string")?;
        let index =
            *machine.by_key.get(key).with_context(|| format!("storage {key:?} belongs to no tensor"))?
                as usize;
        let storage = &machine.storages[index];
        let context = || format!("storage {key:?}");
        let count = u64::from_le_bytes(input.array().with_context(context)?);
        if count.checked_mul(storage.unit) != Some(storage.bytes) {
            bail!("storage {key:?} holds {count} elements, the object says {}", storage.bytes / storage.unit);
        }
        let range = (input.position(), storage.bytes);
        input.skip(storage.bytes).with_context(context)?;
        if ranges[index].replace(range).is_some() {
            bail!("storage {key:?} is listed twice");
        }
    }
    // As many keys as storages and none twice: every storage has its range.
    Ok((object, ranges.into_iter().flatten().collect()))
}
