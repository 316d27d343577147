//! Reads what `torch.save` wrote (zip and legacy), the weights of TorchScript archives and safetensors
//! headers, without running any of it.
//!
//! The core of this room knows no libtorch: a file becomes an inert object tree ([`heap`]) plus the place of
//! every storage, so that it can be fuzzed alone. Reading needs at most four times the file's size and 64
//! MiB, whatever the file says.
//!
//! What a zip archive promises: every entry that is used matches its CRC-32, so damage is an error. What the
//! legacy stream promises: see `legacy.rs`.

mod describe;
pub mod dtype;
mod globals;
pub mod heap;
mod kind;
mod legacy;
mod lookup;
mod members;
pub mod modules;
mod numpy;
pub mod onnx;
mod pickle;
mod program;
pub(crate) mod pt2;
pub mod safetensors;
mod script;
pub mod source;
mod stranger;
mod structure;
pub mod zip;

pub use lookup::ROOT;
pub use structure::Found;

use std::path::Path;

use anyhow::{Context, Result, bail};

use heap::{Object, ObjectArena, Storage, Value};
use pickle::Unpickler;
use source::{Budget, Input, Source};
use zip::Archive;

/// How a file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// `torch.save` since PyTorch 1.6.
    Zip,
    /// `torch.save` before.
    Legacy,
    /// `torch.jit.save`.
    TorchScript,
    /// `torch.export.save`.
    Export,
    /// A folder of `torch.distributed.checkpoint`.
    Distributed,
    Safetensors,
    Onnx,
}

impl Container {
    pub fn name(self) -> &'static str {
        match self {
            Container::Zip => "zip (torch.save)",
            Container::Legacy => "legacy stream (torch.save before 1.6)",
            Container::TorchScript => "TorchScript archive",
            Container::Export => ".pt2 archive (torch.export.save)",
            Container::Distributed => "DCP folder (torch.distributed.checkpoint)",
            Container::Safetensors => "safetensors",
            Container::Onnx => "ONNX model",
        }
    }
}

/// A file's object tree and its storages, whose bytes are still in the file.
pub struct PythonFile {
    pub container: Container,
    pub heap: ObjectArena,
    pub root: Value,
    pub storages: Vec<Storage>,
    pub(crate) budget: Budget,
    source: Source,
    places: Places,
    /// TorchScript: class name -> which attributes are parameters and buffers.
    classes: script::Classes,
}

enum Places {
    /// Index of each storage's entry; None where the archive has none.
    Zip {
        archive: Archive,
        entries: Vec<Option<usize>>,
    },
    Legacy(Vec<legacy::Range>),
}

/// The container that the first bytes tell, or why the file is none.
pub fn detect(source: &Source) -> Result<Container> {
    let mut start = vec![0; source.size().min(1536) as usize];
    source.read_at(&mut start, 0)?;
    let head = &start[..start.len().min(512)];
    let json = head.get(8) == Some(&b'{');
    let starts = |magic: &[u8]| head.starts_with(magic);
    Ok(match head.first() {
        None => bail!("the file is empty"),
        _ if json && source::u64_le(head).is_some_and(|len| len <= source.size() - 8) => {
            Container::Safetensors
        }
        Some(0x80) => Container::Legacy,
        _ if starts(b"PK\x03\x04") => Container::Zip,
        _ if starts(b"version https://git-lfs") => {
            bail!("a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
        }
        _ if starts(b"\x89HDF\r\n\x1a\n") => bail!("an HDF5 file (Keras?), not a PyTorch checkpoint"),
        _ if starts(b"\x1f\x8b") => bail!("a gzip file: unpack it first"),
        _ if starts(b"GGUF") => bail!(
            "a GGUF file (llama.cpp), not a PyTorch checkpoint: take the safetensors file that it was made of"
        ),
        _ if is_onnx(head) => Container::Onnx,
        _ if head.windows(3).any(|bytes| bytes == b"\xef\xbf\xbd") => {
            bail!(
                "damaged: bytes were replaced by U+FFFD, so something handled the file as text; fetch it again"
            )
        }
        _ if head.get(257..262) == Some(b"ustar") => {
            // A header of PAX, of 512 bytes and as many of its own, may come before the first entry's.
            let first = if starts(b"././@PaxHeader") { start.get(1024..1124) } else { head.get(..100) };
            let name = first.unwrap_or_default().split(|&byte| byte == 0).next().unwrap_or_default();
            // PyTorch's own tar files begin with this entry.
            if name == b"sys_info" {
                bail!("the tar format of PyTorch before 0.1.10: torch.load it and torch.save its state_dict")
            }
            bail!("a tar archive (its first entry is `{}`): unpack it first", name.escape_ascii())
        }
        Some(b'{' | b'[') => bail!(
            "JSON, not weights; a sharded Hugging Face model is read by its index, NAME.safetensors.index.json, or by its folder"
        ),
        Some(b'<') => bail!("a web page or XML, not a checkpoint: the download went wrong"),
        _ => bail!("neither a zip archive, a legacy torch.save stream nor safetensors"),
    })
}

/// Reads the object tree of a `torch.save` or TorchScript file.
pub fn read(path: &Path) -> Result<PythonFile> {
    read_source(Source::open(path)?)
}

/// The same from a source that is already open.
pub fn read_source(source: Source) -> Result<PythonFile> {
    let budget = Budget::for_file(source.size());
    match detect(&source)? {
        Container::Legacy => {
            let mut machine = Unpickler::new(&budget);
            let (root, ranges) = legacy::read(&source, &mut machine)?;
            let (heap, storages) = (machine.heap, machine.storages);
            let (container, places) = (Container::Legacy, Places::Legacy(ranges));
            Ok(PythonFile {
                container,
                heap,
                root,
                storages,
                budget,
                source,
                places,
                classes: Default::default(),
            })
        }
        Container::Safetensors | Container::Distributed | Container::Onnx => {
            bail!("it holds no Python objects")
        }
        Container::Zip | Container::TorchScript | Container::Export => read_zip(source, budget),
    }
}

/// The object tree of a bare pickle without storages.
pub fn read_pickle(path: &Path) -> Result<(ObjectArena, Value)> {
    let source = Source::open(path)?;
    let budget = Budget::for_file(source.size());
    let mut machine = Unpickler::new(&budget);
    let root = machine.run(&mut Input::new(&source, 0, &budget))?;
    Ok((machine.heap, root))
}

fn read_zip(source: Source, budget: Budget) -> Result<PythonFile> {
    let archive = Archive::open(&source, &budget)?;
    let pickles: Vec<&str> = archive
        .entries
        .iter()
        .filter_map(|entry| entry.name.strip_suffix("data.pkl"))
        .filter(|prefix| prefix.is_empty() || (prefix.ends_with('/') && prefix.matches('/').count() == 1))
        .collect();
    let prefix = match pickles[..] {
        [prefix] => prefix.to_owned(),
        [] => return read_other_zip(archive, source, budget),
        _ => bail!("a zip archive with several entries data.pkl"),
    };
    let named = |name: &str| archive.entry(&format!("{prefix}{name}"));
    if let Some(entry) = named("byteorder") {
        let order = if entry.size > 16 { Vec::new() } else { entry.read(&source, &budget)? };
        match order.trim_ascii() {
            b"little" => {}
            b"big" => bail!(
                "entry {:?}: written on a big-endian machine: load and save it again with PyTorch there",
                entry.name
            ),
            _ => bail!("entry {:?}: neither `little` nor `big`", entry.name),
        }
    }
    let entry = named("data.pkl").context("no data.pkl")?;
    let pickle = Source::Bytes(entry.read(&source, &budget)?);
    let mut machine = Unpickler::new(&budget);
    let mut input = Input::new(&pickle, 0, &budget);
    let root = machine.run(&mut input).with_context(|| format!("entry {:?}", entry.name))?;
    let (heap, storages) = (machine.heap, machine.storages);
    drop(machine.by_key);

    budget.charge(storages.len() as u64 * 16)?;
    let entries =
        storages.iter().map(|storage| archive.index(&format!("{prefix}data/{}", storage.key))).collect();
    let script = named("constants.pkl").is_some();
    let classes =
        if script { script::classes(&archive, &prefix, &source, &budget)? } else { Default::default() };
    let container = if script { Container::TorchScript } else { Container::Zip };
    let places = Places::Zip { archive, entries };
    Ok(PythonFile { container, heap, root, storages, budget, source, places, classes })
}

/// A zip archive that has no object tree.
fn read_other_zip(archive: Archive, source: Source, budget: Budget) -> Result<PythonFile> {
    let prefix_of = |name: &str| {
        archive.entries.iter().find_map(|entry| entry.name.strip_suffix(name)).map(str::to_owned)
    };
    if let Some(prefix) = prefix_of(pt2::CONFIG) {
        let mut machine = Unpickler::new(&budget);
        let (root, entries) = pt2::read(&archive, &prefix, &source, &mut machine)?;
        let (heap, storages) = (machine.heap, machine.storages);
        let (container, places) = (Container::Export, Places::Zip { archive, entries });
        let classes = Default::default();
        return Ok(PythonFile { container, heap, root, storages, budget, source, places, classes });
    }
    if let Some(entry) = archive.entry(pt2::BEFORE) {
        let state = Source::Bytes(entry.read(&source, &budget)?);
        if detect(&state)? != Container::Zip {
            bail!("entry {:?} is no torch.save file", entry.name);
        }
        let file = read_zip(state, Budget::for_file(source.size()))?;
        return Ok(PythonFile { container: Container::Export, ..file });
    }
    let has = |end: &str| archive.entries.iter().any(|entry| entry.name.ends_with(end));
    if has("archive_format") {
        bail!("a .pt2 archive without weights (compiled by AOTInductor?): take what torch.export.save wrote")
    }
    if has("model.json") {
        bail!(
            "a TorchScript archive of PyTorch before 1.1, which PyTorch 2 does not read either: load it with PyTorch 1.x and \
             torch.save its state_dict()"
        )
    }
    if has(".npy") {
        bail!("a .npz archive of numpy arrays: torch.save them as a dict, or load them as data")
    }
    bail!("a zip archive without an entry data.pkl: not from torch.save")
}

/// A protocol buffer whose first fields are ONNX's `ir_version` and `producer_name`, `domain` or `graph`.
fn is_onnx(head: &[u8]) -> bool {
    matches!(head, [0x08, version, tag, ..] if (1..32).contains(version) && [0x12, 0x1a, 0x22, 0x3a, 0x42].contains(tag))
}

impl PythonFile {
    /// Checks that the bytes of storage `index` are all there, before memory is taken for them.
    pub fn check_storage(&self, index: u32) -> Result<u64> {
        let storage = &self.storages[index as usize];
        if storage.inline.is_some() {
            return Ok(storage.bytes);
        }
        if let Places::Zip { archive, entries } = &self.places {
            let entry = entries[index as usize]
                .map(|entry| &archive.entries[entry])
                .with_context(|| format!("entry `data/{}` is missing", storage.key))?;
            if entry.size != storage.bytes {
                bail!("entry {:?} holds {} bytes, data.pkl says {}", entry.name, entry.size, storage.bytes);
            }
            if entry.deflated {
                self.budget.charge(entry.size).with_context(|| format!("entry {:?}", entry.name))?;
            }
        }
        Ok(storage.bytes)
    }

    /// Reads storage `index` into `buffer`, which is as long as [`PythonFile::check_storage`] said.
    pub fn read_storage(&self, index: u32, buffer: &mut [u8]) -> Result<()> {
        if let Some(at) = self.storages[index as usize].inline {
            match self.heap.object(Value::Ref(at)) {
                Some(Object::Bytes(bytes)) if bytes.len() == buffer.len() => buffer.copy_from_slice(bytes),
                _ => bail!("the bytes of a numpy array are missing"),
            }
            return Ok(());
        }
        match &self.places {
            Places::Zip { archive, entries } => match entries[index as usize] {
                Some(entry) => archive.entries[entry].read_into(&self.source, buffer),
                None => bail!("entry `data/{}` is missing", self.storages[index as usize].key),
            },
            Places::Legacy(ranges) => {
                let (start, _) = ranges[index as usize];
                (self.source.read_at(buffer, start))
                    .with_context(|| format!("storage {:?}", self.storages[index as usize].key))
            }
        }
    }
}
