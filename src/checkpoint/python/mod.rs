//! Reads what `torch.save` wrote (zip and legacy), the weights of TorchScript archives and safetensors headers,
//! without running any of it.
//!
//! The core of this room knows no libtorch: a file becomes an inert object tree ([`heap`]) plus the place of every storage,
//! so that it can be fuzzed alone. Reading needs at most four times the file's size and 64 MiB, whatever the file says.
//!
//! What a zip archive promises: every entry that is used matches its CRC-32, so damage is an error. What the legacy
//! stream promises: see `legacy.rs`.

mod describe;
pub mod dtype;
mod globals;
pub mod heap;
mod legacy;
mod lookup;
mod members;
mod pickle;
pub mod safetensors;
mod script;
pub mod source;
mod stranger;
mod structure;
pub mod zip;

use std::path::Path;

use anyhow::{Context, Result, bail};

use heap::{Heap, Storage, Value};
use pickle::Machine;
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
    Safetensors,
}

impl Container {
    pub fn name(self) -> &'static str {
        match self {
            Container::Zip => "zip (torch.save)",
            Container::Legacy => "legacy stream (torch.save before 1.6)",
            Container::TorchScript => "TorchScript archive",
            Container::Safetensors => "safetensors",
        }
    }
}

/// A file's object tree and its storages, whose bytes are still in the file.
pub struct PythonFile {
    pub container: Container,
    pub heap: Heap,
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
    let mut head = vec![0; source.size().min(512) as usize];
    source.read_at(&mut head, 0)?;
    let json = head.get(8) == Some(&b'{');
    let starts = |magic: &[u8]| head.starts_with(magic);
    Ok(match head.first() {
        None => bail!("the file is empty"),
        _ if json && source::u64_le(&head).is_some_and(|len| len <= source.size() - 8) => {
            Container::Safetensors
        }
        Some(0x80) => Container::Legacy,
        _ if starts(b"PK\x03\x04") => Container::Zip,
        _ if starts(b"version https://git-lfs") => {
            bail!("a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
        }
        _ if starts(b"\x89HDF\r\n\x1a\n") => bail!("an HDF5 file (Keras?), not a PyTorch checkpoint"),
        _ if starts(b"\x1f\x8b") => bail!("a gzip file: unpack it first"),
        _ if head.windows(3).any(|bytes| bytes == b"\xef\xbf\xbd") => {
            bail!(
                "damaged: bytes were replaced by U+FFFD, so something handled the file as text; fetch it again"
            )
        }
        _ if head.get(257..262) == Some(b"ustar") => {
            bail!("the tar format of PyTorch before 0.1.10: load and save it again with a newer PyTorch")
        }
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
            let mut machine = Machine::new(&budget);
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
        Container::Safetensors => bail!("a safetensors file holds no Python objects"),
        Container::Zip | Container::TorchScript => read_zip(source, budget),
    }
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
        [] if archive.entries.iter().any(|entry| entry.name.ends_with("model.json")) => {
            bail!("a TorchScript archive of PyTorch before 1.1: load and save it again with a newer PyTorch")
        }
        [] => bail!("a zip archive without an entry data.pkl: not from torch.save"),
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
    let mut machine = Machine::new(&budget);
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

impl PythonFile {
    /// Checks that the bytes of storage `index` are all there, before memory is taken for them.
    pub fn check_storage(&self, index: u32) -> Result<u64> {
        let storage = &self.storages[index as usize];
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
